"""Two statuses, lack of fit, predictions beyond the runs, plans that say what they do not know."""

import dataclasses
import json

import numpy as np
import pytest

from distill import laws
from distill.laws.fitting import identifiability
from distill.laws.planning import lawfile
from distill.laws.planning.scenarios import SCENARIOS
from distill.laws.planning.text import to_dict
from distill.laws.uncertainty import text
from distill.laws.uncertainty.calibration import CalibratedLaws, Calibration
from distill.laws.uncertainty.edges import Edges

TRUTH = laws.Chinchilla(A=480.0, B=2100.0, E=1.70, alpha=0.35, beta=0.37)
SUPERVISED = laws.paper()[0]


def runs(n, seed=0, noise=0.005, law=TRUTH, sizes=(1e8, 4e9), bend=0.0):
    generator = np.random.default_rng(seed)
    N = np.exp(generator.uniform(*np.log(sizes), n))
    D = np.exp(generator.uniform(np.log(2e9), np.log(2e11), n))
    far = np.log(N * D / np.sqrt(sizes[0] * sizes[1] * 4e20))
    return laws.from_arrays(N=N, D=D, L=law(N, D) * np.exp(noise * generator.standard_normal(n) + bend * far**2))


@pytest.fixture(scope="module")
def good():
    return laws.fit("chinchilla", runs(60), delta=1e-2, start_count=32)


@pytest.fixture(scope="module")
def bent():
    return laws.fit("chinchilla", runs(60, bend=0.004), delta=1e-2, start_count=32)


def test_one_model_size_leaves_its_floor_open():
    # A / N**alpha is a constant there: any E does. With a marginal error from the diagonal of J'J alone E passed.
    D = np.geomspace(2e9, 2e11, 24)
    noise = 0.003 * np.random.default_rng(0).standard_normal(24)
    table = laws.from_arrays(N=np.full(24, 1e9), D=D, L=TRUTH(1e9, D) * np.exp(noise))
    fit = laws.fit("chinchilla", table, delta=1e-2, start_count=32)
    assert {"A", "E", "alpha"} <= set(fit.open) and "beta" not in fit.open
    assert fit.coefficients.kind == fit.status.kind == "not identified"
    boot = laws.bootstrap(fit, resamples=64)
    printed = text.report(fit, boot)
    assert " open: " in next(line for line in printed.splitlines() if line.startswith("E "))
    assert "E" not in boot.to_dict()["intervals"] and "E" in boot.to_dict()["open"] and "E" in boot.interval()


@pytest.mark.parametrize("seed", range(3))
def test_six_rows_for_five_parameters_identify_nothing(seed):
    fit = laws.fit("chinchilla", runs(6, seed), delta=1e-2, start_count=32)
    assert fit.status.kind == "not identified" and "too few to tell the noise" in fit.status.message
    assert set(fit.open) == {"A", "B", "E", "alpha", "beta"}


def test_a_right_form_is_fixed_and_not_rejected(good):
    assert good.status.kind == "ok" and not good.open and good.predictions.kind == "not assessed"
    assert text.statuses(good) == [
        "coefficients  ok; fixed: A, B, E, alpha, beta",
        "predictions   not assessed",
    ]


def test_a_floor_whose_interval_reaches_zero_is_open(good):
    # The same rows with four times the noise: E's own error grows with it, in the linear interval as in the bootstrap.
    loud = good.residuals * 40
    why = identifiability.open_parameters(good.law, good.rows, loud, good.weights)
    assert why["E"] == "its interval reaches 0" or "only together" in why["E"]


def test_what_follows_a_parameter_at_its_bound_is_open():
    # Eq. 8 on Apple's runs ends at its limit form: f1 and kappa move with d1, as the limit form knows them well.
    eq8 = laws.fit("distillation", "apple", supervised=SUPERVISED, start_count=32)
    assert "tied to d1" in eq8.open["f1"] and "tied to d1" in eq8.open["kappa"] and "c0" not in eq8.open
    limit = laws.fit("distillation-limit", "apple", supervised=SUPERVISED, start_count=32)
    assert not {"f1", "kappa", "c0"} & set(limit.open)


def test_bent_residuals_and_repeats_reject_a_form(good, bent):
    assert bent.predictions.kind == "lack of fit" and "the form does not describe these runs" in bent.status.message
    assert bent.status.kind == "not identified" and bent.coefficients.kind == "ok"
    # Repeated runs agree with each other far better than with the law.
    table = bent.table
    twice = {k: np.tile(table[k], 2) for k in ("N", "D")}
    noise = np.exp(0.001 * np.random.default_rng(1).standard_normal(120))
    repeated = laws.as_table({**twice, "L": np.tile(table["L"], 2) * noise}, duplicates="keep")
    assert "repeated runs" in laws.fit("chinchilla", repeated, delta=1e-2, start_count=16).status.message


def test_right_forms_are_hardly_ever_rejected():
    rejected = [
        laws.fit("chinchilla", runs(40, seed, sizes=(1e8, 4e9)), delta=1e-2, start_count=8).predictions.kind
        for seed in range(100, 120)
    ]
    assert rejected.count("lack of fit") <= 1


def test_runs_of_a_trunk_are_one_witness():
    # Errors that the runs of a trunk share look like curvature if each run counts alone.
    generator = np.random.default_rng(5)
    N = np.repeat(np.geomspace(1e8, 4e9, 10), 12)
    D = np.tile(np.geomspace(2e9, 2e11, 12), 10)
    shared = np.repeat(0.01 * generator.standard_normal(10), 12) * np.tile(np.linspace(-1, 1, 12), 10)
    loss = TRUTH(N, D) * np.exp(shared + 0.001 * generator.standard_normal(120))
    columns = {"N": N, "D": D, "L": loss}
    alone = laws.fit("chinchilla", laws.from_arrays(**columns), delta=1e-2, start_count=16)
    trunk = np.repeat([f"t{i}" for i in range(10)], 12)
    together = laws.fit("chinchilla", laws.from_arrays(trunk=trunk, **columns), delta=1e-2, start_count=16)
    assert alone.predictions.kind == "lack of fit" and together.predictions.kind == "not assessed"


def test_distance_beyond_the_runs():
    inputs = (np.array([1e8, 1e9]), np.array([1e9, 1e10]), np.array([2.0, 2.5]))
    edges = Edges.of(laws.paper()[1], inputs)
    assert edges.beyond(1e9, 1e10, 2.2) == 0 and edges.beyond(1e8, 1e9, 2.0) == 0
    assert edges.beyond(2e9, 1e10, 2.2) == pytest.approx(np.log(2))  # in N and in compute
    assert edges.beyond(4e9, 2.5e9, 2.2) == pytest.approx(np.log(4))  # compute inside, N outside
    assert edges.beyond(1e9, 1e10, 1.9) > 0 and edges.beyond(1e7, 1e10, 2.2) == pytest.approx(np.log(10))
    assert Edges.from_dict(edges.to_dict()) == edges
    moved = edges.moved(4.0, *inputs)
    np.testing.assert_allclose(moved[0] * moved[1], 4 * inputs[0] * inputs[1])


def test_calibrated_intervals_hold_what_the_bootstrap_misses(good, bent):
    # A bend too slight for the tests of curvature: the plain interval misses the truth beyond the runs on both probes.
    gentle = laws.fit("chinchilla", runs(60, bend=0.002), delta=1e-2, start_count=32)
    reach, boot = laws.extrapolate(gentle), laws.bootstrap(gentle, resamples=100)
    for N, D in ((5.6e9, 2.8e11), (8e9, 4e11)):
        truth = TRUTH(N, D) * np.exp(0.002 * np.log(N * D / np.sqrt(1e8 * 4e9 * 4e20)) ** 2)
        guess, plain = reach.predict(N=N, D=D), boot.predict(N=N, D=D)
        assert guess.low < truth < guess.high and not plain.low < truth < plain.high
    assert laws.extrapolate(bent).factor > reach.factor > laws.extrapolate(good).factor
    assert laws.extrapolate(bent).status.kind == "lack of fit"
    words = str(laws.extrapolate(good).status)
    assert words.startswith("ok: ") and "to 2x" in words and words.endswith("the compute, not beyond")


def test_a_few_runs_are_not_assessed():
    fit = laws.fit("chinchilla", runs(9), delta=1e-2, start_count=16)
    reach = laws.extrapolate(fit)
    assert reach.cutoffs == 0 and reach.status.kind == "not assessed" and not reach.reach


def test_the_better_form_gets_the_weight():
    # Eq. 1's runs: Chinchilla's form predicts the held-out ones worse.
    table = runs(80, law=SUPERVISED, noise=0.002)
    fits = [laws.fit(form, table, delta=1e-2, start_count=32) for form in ("chinchilla", "supervised")]
    reach = laws.extrapolate(fits)
    assert reach.weights[1] > 0.8 and reach.weights.sum() == pytest.approx(1)
    twice = laws.extrapolate([fits[1], fits[1]])
    np.testing.assert_allclose(twice.weights, 0.5)
    with pytest.raises(laws.LawError, match="different runs"):
        laws.extrapolate([fits[0], laws.fit("chinchilla", runs(30), delta=1e-2, start_count=8)])


def test_draws_of_a_calibration_have_the_interval_of_the_slopes(good):
    reach, boot = laws.extrapolate(good), laws.bootstrap(good, resamples=2000)
    at = {"N": 8e9, "D": 4e11}
    guess = reach.predict(**at)
    log = np.log(TRUTH(**at) * 0 + good.law(**at))
    draws = reach.calibration.draws([log], [np.log(boot.evaluate(8e9, 4e11))[:, 0]], (8e9, 4e11), seed=0)
    low, high = np.percentile(draws, [5, 95])
    assert low == pytest.approx(np.log(guess.low), abs=0.25 * (log - np.log(guess.low)))
    assert high == pytest.approx(np.log(guess.high), abs=0.25 * (np.log(guess.high) - log))
    assert Calibration.from_dict(reach.calibration.to_dict()) == reach.calibration


@pytest.fixture(scope="module")
def students():
    """A pair of fits to made runs, with a calibrated bootstrap over two forms."""
    generator = np.random.default_rng(0)
    supervised, distillation = laws.paper()
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 7), np.geomspace(2e9, 2e11, 7)))
    L_T = np.resize([2.6, 2.3, 2.1], 49)
    noise = np.exp(0.002 * generator.standard_normal((2, 49)))
    first = laws.fit(
        "supervised", laws.from_arrays(N=N, D=D, L=supervised(N, D) * noise[0]), delta=1e-2, start_count=32
    )
    table = laws.from_arrays(N_S=N, D_S=D, L_T=L_T, L_S=distillation(N, D, L_T) * noise[1])
    fit = laws.fit("distillation-limit", table, supervised=first.law, delta=1e-2, start_count=32)
    boot = laws.bootstrap((first, fit), resamples=200, seed=1)
    return first, fit, laws.calibrated(boot, ("distillation-limit", "overtaking"), resamples=100)


def test_a_plan_says_how_far_its_laws_hold_and_under_which(students, tmp_path):
    first, fit, boot = students
    assert isinstance(boot, CalibratedLaws) and boot.below is not None
    asked = {"N_S": 1e10, "compute": 1e23}
    plan = laws.plan(first.law, fit.law, boot=boot, **asked)
    plain = laws.plan(first.law, fit.law, boot=dataclasses.replace(boot, calibration=None, supervised=None), **asked)
    assert set(plan.forms) == {"distillation-limit", "overtaking"} and sum(plan.forms.values()) == pytest.approx(1)
    assert (
        set(plan.bootstrap) == {"L_S", "supervised_L"} and plain.bootstrap == {} and plain.predictions == "not assessed"
    )
    assert np.diff(plan.interval["L_S"]) > 1.5 * np.diff(plan.bootstrap["L_S"])
    assert plan.bootstrap["L_S"] == pytest.approx(plain.interval["L_S"])
    shown = laws.describe(plan)
    for words in ("predictions: ", "calibrated by rolling forward", "the bootstrap alone", "overtaking"):
        assert words in shown
    lawfile.write(tmp_path / "law.json", fit, boot, first=first)
    file = lawfile.read(tmp_path / "law.json")
    again = laws.plan(file.supervised, file.distillation, boot=file.boot, **asked)
    assert again.forms == plan.forms and again.predictions == plan.predictions
    assert file.predictions.message == boot.calibration.message and file.coefficients.kind == fit.coefficients.kind


def test_an_old_law_file_is_not_assessed(students, tmp_path):
    first, fit, boot = students
    fit.law.save(tmp_path / "old.json", status={"kind": "ok", "message": ""}, draws={})
    file = lawfile.read(tmp_path / "old.json")
    assert (file.status.kind, file.coefficients.kind, file.predictions.kind) == ("ok", "not assessed", "not assessed")


def test_a_search_without_a_certificate_has_a_file(good, tmp_path):
    # A study of two sizes and two budgets ended in a traceback after its first stage: its law's decrement was nan.
    for value in (float("nan"), float("inf")):
        uncertified = dataclasses.replace(good, decrement=value)
        uncertified.save(tmp_path / "law.json")
        assert laws.load(tmp_path / "law.json") == good.law
        assert '"decrement": null' in (tmp_path / "law.json").read_text()


def test_no_interval_where_resamples_fail(students):
    first, fit, boot = students
    failing = dataclasses.replace(
        boot, solutions=dataclasses.replace(boot.solutions, converged=np.arange(len(boot)) % 8 > 0)
    )
    assert failing.failure == pytest.approx(0.125)
    plan = laws.plan(first.law, fit.law, boot=failing, N_S=1e9, compute=1e22)
    assert plan.interval == {} and plan.probability is None
    assert "12% of the resamples failed, so no interval is printed" in plan.sentence()
    assert set(failing.open) >= {"kappa", "f1"}


@pytest.mark.parametrize("scenario", ["best_case", "teacher_inference"])
def test_given_teachers_have_a_crossover_and_no_tokens(scenario):
    supervised, distillation = laws.paper()
    teacher = laws.Teacher(name="7B", N=7e9, L=2.2)
    asked = {"N_S": 5e8, "compute": 1e20, "scenario": scenario}
    plan = laws.plan(supervised, distillation, **asked, teachers=(teacher,))
    # At the crossover both ways end at one loss: a student that pays for its teacher's logits is on fewer tokens.
    F = laws.Flops.closed()
    alone = plan.crossover_compute / (3 * F(5e8))
    paid = F(7e9) if SCENARIOS[scenario].logits else 0.0
    taught = plan.crossover_compute / (3 * F(5e8) + paid)
    assert distillation(5e8, taught, 2.2) == pytest.approx(supervised(5e8, alone), rel=1e-5)
    assert plan.crossover_tokens >= taught * (1 - 1e-3)
    shown = laws.describe(plan) + json.dumps(to_dict(plan))
    assert "nan" not in shown.lower() and "teacher tokens" not in shown
    assert "catches up, compute               never" not in shown


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_a_plan_that_chooses_its_teacher_prints_no_nan(scenario):
    for asked in ({"compute": 1e21}, {"tokens": 2e10}, {"loss": 2.6}):
        plan = laws.plan(*laws.paper(), N_S=5e8, scenario=scenario, **asked)
        shown = laws.describe(plan)
        assert "nan" not in shown.lower() and "teacher tokens" in shown
        # "never" only where the best teacher's student stays ahead at any budget that is searched.
        assert ("compute               never" in shown) == (plan.crossover_compute is None)


def test_the_supervised_laws_draws_reach_the_student(students, tmp_path):
    first, fit, boot = students
    path = tmp_path / "supervised.json"
    lawfile.write(path, first, laws.bootstrap(first, resamples=64))
    stack = lawfile.draws(path)
    alone = laws.bootstrap(fit, resamples=96, given=stack)
    assert alone.staged and alone.laws.supervised.A.shape == (96,) and "conditional" not in alone.to_dict()
    np.testing.assert_array_equal(alone.laws.supervised.E[:64], stack.E)
    plan = laws.plan(first.law, fit.law, boot=alone, N_S=1e9, compute=1e22)
    assert not any("taken as known" in warning for warning in plan.warnings)
