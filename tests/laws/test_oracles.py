"""What holds each form: published coefficients on published numbers, and a test of every form by the results page.

The numbers here are facts of the papers' own tables, few enough to stand in a test.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from distill import laws
from distill.laws.forms import registry
from distill.laws.forms.law import FORMS

ROOT = Path(__file__).parents[2]
SHIPPED = {module.__name__ for module in registry.SHIPPED}

# 2506.10972: coefficients as ScaleBench (2604.22753, CC BY 4.0) lists them, and the seven runs that it holds out.
FARSEER = laws.Farseer(
    a1=-1.665630816, b1=3.133347198805445, alpha=0.0458999999999619, a2=230.73437075885855, b2=-1.544209554,
    beta=-0.1729, a3=-0.062465473, b3=0.1284880679442551, gamma=0.13,
)  # fmt: skip
HELD_OUT = np.array(
    [
        (2273495040.0, 430537310208.0, 0.4600584099831048),
        (2697992704.0, 430537310208.0, 0.4548075815344646),
        (3816352512.0, 453197168640.0, 0.4460747851747051),
        (6369572352.0, 304437264384.0, 0.4406577644428261),
        (25120768000.0, 125599744000.0, 0.4381460921911891),
        (5354047488.0, 215270162432.0, 0.4493814300408138),
        (5354047488.0, 430540062720.0, 0.4390641046993989),
    ]
)
# 2609.32722, MIT: A, alpha, beta, zeta as published, sizes in billions; student, teacher, G_T, the peak it predicts.
PEAKS = {
    (0.9739369510690142, 0.30407272329987006, -0.2672517517938801, 0.9516032152326636): (
        0.5, 3.0, 0.3983, 0.38386997990055516,
    ),
    (1.020202213822959, 0.33626516894502395, -0.3251543135756083, 1.0093724754096693): (
        14.0, 7.0, 0.7398, 0.7968120861697527,
    ),
}  # fmt: skip

# 2502.05172 as public pages print it (sciencestack.ai, a Notion page of `MOE scaling laws`), by its own letters.
JOINT = dict(
    a=35.91, delta=0.2285, alpha=0.1889, gamma=-0.0098, b=35.98, omega=-0.5529, beta=0.1775, zeta=0.0259, c=1.3637
)
# The law of 2202.01169 in a public implementation for the MoE table of ScaleBench (2604.22753, CC BY 4.0), and runs
# that the table holds out, all of 1308819456 parameters without the experts: their number, the loss.
ROUTED = dict(
    a=-0.09008401973934832, b=-0.14048869392779256, c=0.0056318683241378545, d=2.703841330229758,
    E_start=4.869805626274102, E_max=385.8083911184742,
)  # fmt: skip
ROUTED_RUNS = {
    1: 2.2420146818345645, 2: 2.2269717427605973, 4: 2.1967321173098804, 8: 2.1591146870283318, 16: 2.132817651960962,
    32: 2.106091442560873, 64: 2.054386854182635, 128: 2.0305706789040205, 256: 2.0145282839951717,
    512: 2.0568151369187118,
}  # fmt: skip


def test_farseers_printed_coefficients_predict_its_held_out_runs():
    N, D, L = HELD_OUT.T
    errors = np.abs(FARSEER(N, D) / L - 1)
    assert errors.mean() == pytest.approx(0.0048, abs=5e-5) and errors.max() < 0.01
    # A wrong sign or place of any coefficient is off by far more.
    swapped = laws.Farseer(**{**FARSEER.values(), "b1": FARSEER.b2, "b2": FARSEER.b1})
    assert np.abs(swapped(N, D) / L - 1).min() > 0.1


@pytest.mark.parametrize("published", sorted(PEAKS))
def test_published_peaks_of_on_policy_distillation(published):
    A, alpha, beta, zeta = published
    s, t, G_T, peak = PEAKS[published]
    law = laws.OnPolicyPeak(A=A * 1e9 ** (alpha + beta), alpha=alpha, beta=beta, zeta=zeta)
    assert 1 - law(s * 1e9, t * 1e9, 1 - G_T) == pytest.approx(peak, rel=1e-12)


def joint(p, sign, N, D, X):
    """The printed law; sign: of the exponents, as printed (1) or as those of reciprocals (-1)."""
    e = math.log(X)
    model = p["a"] * X ** (sign * p["delta"]) * N ** (sign * (p["alpha"] + p["gamma"] * e))
    return model + p["b"] * X ** (sign * p["omega"]) * D ** (sign * (p["beta"] + p["zeta"] * e)) + p["c"]


def test_the_joint_law_of_sparse_models_as_printed_and_what_its_paper_concludes_from_it():
    """Only as exponents of reciprocals do the printed numbers say what the paper does: at equal compute and equal
    memory (total parameters) a sparse model has the lower loss, of 1.1B in all with four experts, which it checked.
    """
    p = JOINT
    law = laws.SparseExperts(
        A=p["a"], B=p["b"], E=p["c"], alpha=p["alpha"], beta=p["beta"], delta=-p["delta"], omega=-p["omega"],
        gamma=-p["gamma"], zeta=-p["zeta"], E_start=1.0, E_max=1e9,
    )  # fmt: skip  # with this start and end X is the number of experts
    for N, D, experts in ((4e8, 5.5e10, 4.0), (1.1e9, 2e10, 1.0), (2.7e9, 1e11, 32.0)):
        assert law(N, D, experts) == pytest.approx(joint(p, -1, N, D, experts), rel=1e-8)
    # Parameters without embeddings, a dense 1.1B model and a sparse one of .4B active parameters: 6 N D is the same.
    dense, sparse = law(1.1e9, 2e10, 1.0), law(0.4e9, 5.5e10, 4.0)
    assert sparse < dense - 0.02
    assert joint(p, 1, 1.1e9, 2e10, 1.0) > 1000  # with the exponents as printed there, a loss rises with size
    rising = {**p, "alpha": -p["alpha"], "beta": -p["beta"]}  # and with the signs of alpha and beta alone, with experts
    assert joint(rising, 1, 0.4e9, 5.5e10, 4.0) > joint(rising, 1, 1.1e9, 2e10, 1.0)


def test_a_public_implementation_of_the_law_of_routed_models_and_the_runs_that_its_table_holds_out():
    """Its X subtracts 1 from E_start and E_max inside: the same curve, with E_start where ours has 3.87."""
    p, N, experts = ROUTED, 1308819456.0, np.array(list(ROUTED_RUNS), float)
    offset = 1 / (1 / (p["E_start"] - 1) - 1 / (p["E_max"] - 1))
    X = 1 / (1 / (experts - 1 + offset) + 1 / p["E_max"])
    want = np.exp(p["a"] * np.log(N) + p["b"] * np.log(X) + p["c"] * np.log(N) * np.log(X) + p["d"])
    law = laws.RoutedExperts(
        A=math.exp(p["d"]), a=-p["a"], b=-p["b"], c=p["c"], E_start=1 / (1 / p["E_max"] + 1 / offset), E_max=p["E_max"]
    )
    np.testing.assert_allclose(law(N, experts), want, rtol=1e-12)
    errors = np.abs(law(N, experts) / np.array(list(ROUTED_RUNS.values())) - 1)
    assert errors.mean() < 0.015 and errors.max() < 0.03


def oracles() -> dict[str, tuple[str, str]]:
    """The rows of the results page: form to (what it is checked against, the tests)."""
    page = (ROOT / "docs" / "results" / "laws.md").read_text(encoding="utf-8")
    section = page.partition("### What holds each form")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \| ([^|]*) \|$", section, re.MULTILINE)
    return {name: (what, tests) for names, what, tests in rows for name in re.findall(r"`([^`]+)`", names)}


def test_every_form_has_its_oracle():
    named = oracles()
    forms = {name for name, form in FORMS.items() if form.__module__ in SHIPPED}
    assert set(named) == forms, "docs/results/laws.md, What holds each form"
    for form, (what, tests) in named.items():
        assert what.strip(), form
        names = re.findall(r"`(test_\w+)\.py` (test_\w+)", tests)
        assert names, f"{form}: no test is named"
        for module, function in names:
            source = (ROOT / "tests" / "laws" / f"{module}.py").read_text(encoding="utf-8")
            assert f"def {function}(" in source, f"{form}: tests/laws/{module}.py has no {function}"
            assert f"@pytest.mark.data\ndef {function}(" not in source, f"{form}: {function} is not part of CI"
