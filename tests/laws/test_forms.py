"""The laws themselves: the paper's numbers, identities of the formulas, evaluation in numpy and under jax."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import laws
from distill.laws.forms import registry
from distill.laws.forms.law import FORMS
from distill.laws.forms.parameters import FitSetting

SUPERVISED, DISTILLATION = laws.paper()

# Numbers computed from Table 6 in float64, independently of this code.
GOLDEN_SUPERVISED = [((1e9, 2e10), 2.374692), ((1e8, 1e9), 3.139078)]
GOLDEN_DISTILLATION = [((1e9, 2e10, 2.0), 2.276811), ((198e6, 3.96e9, 2.0), 2.543370)]


@pytest.mark.parametrize(("at", "want"), GOLDEN_SUPERVISED)
def test_supervised_matches_table_6(at, want):
    assert SUPERVISED(*at) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("at", "want"), GOLDEN_DISTILLATION)
def test_distillation_matches_table_6(at, want):
    assert DISTILLATION(*at) == pytest.approx(want, rel=1e-5)


def test_table_7_student_of_a_1_82b_teacher():
    loss = DISTILLATION(N_S=546e6, D_S=1.092e10, L_T=SUPERVISED(1.82e9, 3.64e10))
    assert loss == pytest.approx(2.423819, rel=1e-5)
    assert loss == pytest.approx(2.42, rel=5e-3)  # as printed


@pytest.mark.parametrize(("ratio", "want"), [(0.6, 0.992), (0.8, 0.829), (0.9, 0.501), (1.0, 0.112), (1.1, 0.0023)])
def test_gate_of_eq_8(ratio, want):
    lsup = SUPERVISED(1e9, 2e10)
    teacher = ratio * lsup
    size = (DISTILLATION.A / 1e9**DISTILLATION.alpha + DISTILLATION.B / 2e10**DISTILLATION.beta) ** DISTILLATION.gamma
    gate = (DISTILLATION(1e9, 2e10, teacher) - teacher) * teacher**DISTILLATION.c0 / size
    assert gate == pytest.approx(want, abs=6e-4)


def test_kappa_of_table_6():
    assert DISTILLATION.kappa == pytest.approx(2.244, abs=5e-4)


def test_limits_of_eq_8():
    teacher = 2.0
    assert DISTILLATION(1e30, 1e30, teacher) == pytest.approx(teacher, rel=1e-6)
    assert DISTILLATION(1e9, 2e10, 50.0) == pytest.approx(50.0, rel=1e-12)
    grid = np.geomspace(1.3, 6.0, 50)
    assert (DISTILLATION(1e8, 1e9, grid) >= grid).all()


def test_the_limit_form_is_eq_8_with_large_c1():
    shared = {k: v for k, v in DISTILLATION.values().items() if k not in ("c1", "d1")}
    limit = laws.DistillationLimit(**shared, kappa=2.0, supervised=SUPERVISED)
    d1 = 10.0
    c1 = 2.0 / shared["f1"] * d1 ** (1 / shared["f1"])
    near = laws.Distillation(**shared, c1=c1, d1=d1, supervised=SUPERVISED)
    teacher = np.linspace(1.5, 3.5, 21)
    np.testing.assert_allclose(near(1e9, 2e10, teacher), limit(1e9, 2e10, teacher), rtol=1e-9)


def test_overtaking_contains_the_limit_form_and_crosses_the_teacher():
    shared = {k: v for k, v in DISTILLATION.values().items() if k not in ("c1", "d1")} | {"kappa": 2.0}
    limit = laws.DistillationLimit(**shared, supervised=SUPERVISED)
    same = laws.Overtaking(**shared, w=0.0, supervised=SUPERVISED)
    teacher = np.linspace(1.5, 3.5, 21)
    np.testing.assert_allclose(same(1e9, 2e10, teacher), limit(1e9, 2e10, teacher), rtol=1e-14)
    weak = 1.2 * SUPERVISED(1e9, 2e10)
    assert laws.Overtaking(**shared, w=0.5, supervised=SUPERVISED)(1e9, 2e10, weak) < weak
    ignoring = laws.Overtaking(**shared, w=1.0, supervised=SUPERVISED)
    assert ignoring(1e9, 2e10, 5.0) == pytest.approx(SUPERVISED(1e9, 2e10), rel=1e-6)


def test_supervised_with_gamma_one_is_chinchilla():
    law = laws.Supervised(A=480.0, B=2100.0, E=1.8, alpha=0.35, beta=0.37, gamma=1.0)
    plain = laws.Chinchilla(A=480.0, B=2100.0, E=1.8, alpha=0.35, beta=0.37)
    N, D = np.geomspace(1e7, 1e11, 7), np.geomspace(1e9, 1e12, 7)
    np.testing.assert_allclose(law(N, D), plain(N, D), rtol=1e-14)
    np.testing.assert_allclose(plain(N, D), 1.8 + 480 / N**0.35 + 2100 / D**0.37, rtol=1e-13)


def test_kaplan_formula():
    law = laws.Kaplan(N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103)
    want = ((6.4e13 / 1e9) ** (0.076 / 0.103) + 1.8e13 / 2e10) ** 0.103
    assert law(1e9, 2e10) == pytest.approx(want, rel=1e-13)


def test_data_constrained_equals_chinchilla_without_repetition():
    law = laws.DataConstrained(A=521.0, B=1488.0, E=1.87, alpha=0.353, beta=0.353, R_D=15.39, R_N=5.31)
    plain = laws.Chinchilla(A=521.0, B=1488.0, E=1.87, alpha=0.353, beta=0.353)
    # One epoch of a model that is not too large for its data: both laws are the same function.
    assert law(1e8, 1e11, 1e11) == pytest.approx(plain(1e8, 1e11), rel=1e-12)
    repeated = [law(1e6, 1e9 * epochs, 1e9) for epochs in (1, 4, 40, 4000)]
    fresh = [plain(1e6, 1e9 * epochs) for epochs in (1, 4, 40, 4000)]
    assert repeated == sorted(repeated, reverse=True)
    assert all(r > f for r, f in zip(repeated[1:], fresh[1:]))
    gain = fresh[0] - fresh[1]
    assert repeated[1] - fresh[1] < 0.08 * gain  # four epochs are nearly as good as fresh tokens
    assert repeated[3] - fresh[3] > 0.5 * gain  # four thousand are not


def test_calls_give_float64_for_numpy_and_follow_jax_inside_it():
    assert isinstance(SUPERVISED(1e9, 2e10), np.float64)
    assert SUPERVISED(np.float32(1e9), [1e9, 2e10]).dtype == np.float64
    inside = jax.jit(lambda law, n: law(n, 2e10, 2.0))(DISTILLATION, jnp.asarray([1e9, 2e9]))
    assert isinstance(inside, jax.Array)
    np.testing.assert_allclose(inside, DISTILLATION(np.array([1e9, 2e9]), 2e10, 2.0), rtol=1e-5)


def test_gradient_under_jax_matches_a_difference():
    slope = jax.grad(lambda law: law(1e9, 2e10, 2.0))(DISTILLATION)
    step = 1e-6
    for name in ("alpha", "f1", "c0", "d1"):
        up, down = (
            dataclasses.replace(DISTILLATION, **{name: getattr(DISTILLATION, name) + sign * step})(1e9, 2e10, 2.0)
            for sign in (1, -1)
        )
        assert float(getattr(slope, name)) == pytest.approx((up - down) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_coordinates_round_trip(name):
    form = laws.get(name)
    if form.__module__ not in {module.__name__ for module in registry.SHIPPED}:
        return
    setting = FitSetting({key: 20.0 + i for i, key in enumerate(form.inputs)}, typical=3.0, smallest=2.0)
    given = {field: SUPERVISED for field in form.given()}
    theta = np.linspace(0.11, 0.57, len(form.parameters()))
    law = form.unpack(np, theta, setting, given)
    np.testing.assert_allclose(law.pack(setting), theta, rtol=1e-9)


def test_a_stack_of_laws_is_a_pytree():
    stack = jax.tree_util.tree_map(lambda *leaves: np.stack(leaves), SUPERVISED, SUPERVISED)
    assert stack.A.shape == (2,)
    out = jax.vmap(lambda law: law(1e9, 2e10))(stack)
    np.testing.assert_allclose(out, [2.374692, 2.374692], rtol=1e-5)


def test_wrong_arguments_name_the_nearest():
    with pytest.raises(laws.LawError, match="wanted \\(N_S, D_S, L_T\\).*Did you mean 'D_S'"):
        DISTILLATION(1e9, D_s=2e10, L_T=2.0)


def test_law_files_round_trip(tmp_path):
    path = tmp_path / "law.json"
    DISTILLATION.save(path, status="ok")
    assert laws.load(path) == DISTILLATION
    assert [p.name for p in tmp_path.iterdir()] == ["law.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "wanted an object with 'form'"),
        ('{"form": "supervized"}', "Did you mean 'supervised'"),
        ('{"form": "powerlaw", "parameters": {"A": 1, "E": 1}}', "parameters of powerlaw are A, E, alpha"),
        ('{"form": "powerlaw", "parameters": {"A": 1, "E": 1, "alpha": NaN}}', "wanted a finite number"),
        ('{"form": "powerlaw", "parameters": {"A": 1, "E": 1, "alpha": true}}', "wanted a finite number"),
        ('{"form": "powerlaw", "parameters": {"A": -1, "E": 1, "alpha": 1}}', "wanted a positive number"),
    ],
)
def test_bad_law_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "law.json"
    path.write_text(text)
    with pytest.raises(laws.LawError, match=message):
        laws.load(path)


def test_a_missing_law_file_is_a_plain_error(tmp_path):
    with pytest.raises(laws.LawError, match="cannot be read"):
        laws.load(tmp_path / "nothing.json")


def test_forms_are_known_by_name_in_a_new_process():
    """Nothing but the name is asked for: a command that only fits must find the forms that ship."""
    code = "from distill import laws; assert laws.get('distillation').inputs == ('N_S', 'D_S', 'L_T')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
