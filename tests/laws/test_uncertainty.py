"""Bootstraps, profiles, comparisons and holdouts: identities first, then known truths."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from distill import laws
from distill.bench import coverage
from distill.laws.fitting import identifiability, solver
from distill.laws.fitting.fit import solved_rows
from distill.laws.uncertainty import bootstrap, profile_likelihood

SUPERVISED = laws.paper()[0]
STUDENT = laws.DistillationLimit(
    A=3379.0, B=25305.0, alpha=0.351, beta=0.423, gamma=0.707, c0=2.306, kappa=2.3, f1=0.104, supervised=SUPERVISED
)
LINE = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)


def supervised_runs(seed=0, noise=0.004, law=SUPERVISED):
    generator = np.random.default_rng(seed)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 8), np.geomspace(2e9, 2e11, 8)))
    trunk = [f"t{i // 4}" for i in range(64)]
    return laws.from_arrays(trunk=trunk, N=N, D=D, L=law(N, D) * np.exp(noise * generator.standard_normal(64)))


def student_runs(seed=0, noise=0.004):
    generator = np.random.default_rng(seed)
    grid = np.meshgrid([2.6, 2.35, 2.15, 2.0], np.geomspace(1.5e8, 3e9, 4), np.geomspace(3e9, 1e11, 4))
    L_T, N_S, D_S = (x.ravel() for x in grid)
    loss = STUDENT(N_S, D_S, L_T) * np.exp(noise * generator.standard_normal(64))
    return laws.from_arrays(trunk=[f"u{i // 4}" for i in range(64)], N_S=N_S, D_S=D_S, L_T=L_T, L_S=loss)


@pytest.fixture(scope="module")
def line():
    return laws.fit("chinchilla", supervised_runs(law=LINE), delta=1e-2)


@pytest.fixture(scope="module")
def pair():
    first = laws.fit("supervised", supervised_runs(), delta=1e-2)
    return first, laws.fit("distillation-limit", student_runs(), supervised=first.law, delta=1e-2)


def test_a_resample_is_the_fit_of_its_rows(line):
    boot = laws.bootstrap(line, resamples=20, seed=3)
    counts = bootstrap.draw([line], 20, "pairs", None, 3)[0][0]
    drawn = np.repeat(np.arange(64), counts[7])
    table = laws.as_table({k: line.table[k][drawn] for k in ("N", "D", "L")}, duplicates="keep")
    alone = laws.fit("chinchilla", table, delta=1e-2)
    assert boot.solutions.objective[7] == pytest.approx(alone.objective, rel=1e-9)
    assert boot.laws.E[7] == pytest.approx(alone.law.E, rel=1e-5)


def test_clusters_come_and_go_whole(pair):
    (first, _), (second, _) = bootstrap.draw(pair, 50, "pairs", "trunk", 0)
    for counts, fit in ((first, pair[0]), (second, pair[1])):
        by_trunk = counts.reshape(50, -1, 4)
        assert (by_trunk == by_trunk[:, :, :1]).all()
        assert counts.shape == (50, len(fit.rows))


def test_the_same_seed_gives_the_same_bootstrap(line):
    one, two, other = (laws.bootstrap(line, resamples=16, seed=s).interval() for s in (1, 1, 2))
    assert one == two != other


def test_no_noise_no_uncertainty():
    exact = laws.fit("chinchilla", supervised_runs(noise=0.0, law=LINE), delta=1e-2)
    for kind in bootstrap.KINDS:
        low, high = laws.bootstrap(exact, resamples=16, kind=kind).interval()["E"]
        assert high - low < 1e-4


def test_stubborn_resamples_get_their_certificate():
    # Few rows within delta and noise far above it: without second derivatives a tenth of these crawl for ever.
    case = coverage.CASES["student-pairs"]
    table = coverage.student_table(case, np.random.default_rng((7, 2)))
    fit = laws.fit("distillation-limit", table, supervised=SUPERVISED, start_count=32)
    weights = bootstrap.draw([fit], 60, "pairs", None, 0)[0][0]
    start, rows = np.tile(fit.theta, (60, 1)), solved_rows(fit.rows, fit.minimised)
    crawled = ~solver.solve(type(fit.law), rows, start, weights, fit.minimised).converged
    boot = laws.bootstrap(fit, resamples=60)
    assert crawled.sum() > 0 and not boot.failed.any()


def test_two_stages_carry_the_error_of_the_first(pair):
    whole = laws.bootstrap(pair, resamples=200, seed=0)
    alone = laws.bootstrap(pair[1], resamples=200, seed=0)
    assert alone.to_dict()["conditional"] and "supervised" in whole.to_dict()
    # Far from the data, where Lsup matters, the two-stage interval is the wider one.
    probe = dict(N_S=2e10, D_S=1e12, L_T=1.75)
    widths = [np.log(p.high / p.low) for p in (b.predict(noise=False, **probe) for b in (whole, alone))]
    assert widths[0] > 1.1 * widths[1]
    # Each resample holds its own supervised law.
    np.testing.assert_array_equal(whole.laws.supervised.A, whole.supervised.laws.A)


def test_predictions_hold_the_truth_and_widen_with_noise(line):
    boot = laws.bootstrap(line, resamples=300)
    mean = boot.predict(0.95, noise=False, N=[1e9, 5e9], D=2e11)
    run = boot.predict(0.95, noise=True, N=[1e9, 5e9], D=2e11)
    truth = LINE([1e9, 5e9], 2e11)
    assert ((mean.low < truth) & (truth < mean.high)).all()
    assert (run.high - run.low > mean.high - mean.low).all()
    with pytest.raises(laws.LawError, match="Did you mean 'N'"):
        boot.predict(Nn=1e9, D=1e10)


@pytest.mark.parametrize(("kind", "cluster"), [("residual", None), ("wild", "trunk"), ("pairs", "trunk")])
def test_other_bootstraps_are_of_the_same_size(line, kind, cluster):
    pairs = laws.bootstrap(line, resamples=200).laws.E.std()
    other = laws.bootstrap(line, resamples=200, kind=kind, cluster=cluster)
    assert not other.failed.any()
    assert 0.4 * pairs < other.laws.E.std() < 2.5 * pairs


def test_bad_requests_are_refused(line):
    with pytest.raises(laws.LawError, match="Did you mean 'pairs'"):
        laws.bootstrap(line, kind="pair")
    with pytest.raises(laws.LawError, match="no column 'trunks'.*Did you mean 'trunk'"):
        laws.bootstrap(line, cluster="trunks")
    with pytest.raises(laws.LawError, match="wanted at least 2"):
        laws.bootstrap(line, resamples=1)


def test_directions_are_eigenvectors_of_a_linear_law():
    @dataclasses.dataclass(frozen=True)
    class Line(laws.Law):
        a: float = laws.real()
        b: float = laws.real()
        inputs = ("x",)

        def loss(self, xp, x):
            return xp.exp(self.a + self.b * xp.log(x))

    x = np.exp(np.linspace(-1.0, 1.0, 21))
    generator = np.random.default_rng(0)
    fit = laws.fit(Line, laws.from_arrays(x=x, L=2.0 * np.exp(0.01 * generator.standard_normal(21))), units=False)
    found = fit.directions()
    sigma = identifiability.noise(fit.residuals, 2)
    # The design is centred: the directions are a and b themselves, with the textbook standard errors.
    errors = {d.main[0]: d.error for d in found}
    assert errors["a"] == pytest.approx(sigma / np.sqrt(21), rel=1e-5)
    assert errors["b"] == pytest.approx(sigma / np.sqrt((np.log(x) ** 2).sum()), rel=1e-5)


def test_a_profile_agrees_with_fits_that_hold_the_parameter():
    line = laws.fit("chinchilla", supervised_runs(law=LINE), objective="log-mse")
    found = profile_likelihood.profile(line, "E", reach=1.1, points=9)
    rows = line.rows

    def held(E):
        def residual(u):
            a, b, alpha, beta = u
            predicted = np.exp(a) / rows.inputs[0] ** alpha + np.exp(b) / rows.inputs[1] ** beta + E
            return np.log(predicted / rows.target)

        start = [np.log(line.law.A), np.log(line.law.B), line.law.alpha, line.law.beta]
        return optimize.least_squares(residual, start, xtol=1e-15, ftol=1e-15).cost

    for value, objective in zip(found.values[::4], found.objective[::4]):
        assert objective == pytest.approx(held(value), rel=1e-6)
    assert found.low < line.law.E < found.high
    assert profile_likelihood.profile(line, "E", reach=1.001, points=5).high == np.inf


def test_cross_validation_prefers_the_true_form():
    runs = supervised_runs(law=LINE, noise=0.003)
    ranked = laws.compare(["kaplan", "chinchilla"], runs, delta=1e-2, cluster="trunk")
    assert [c.fit.law.name for c in ranked] == ["chinchilla", "kaplan"]
    assert ranked[0].error < 0.005


def test_nested_tests_keep_a_true_small_form_and_drop_a_false_one(line):
    larger = laws.fit("supervised", line.table, delta=1e-2)
    assert laws.nested(line, larger, resamples=60).p_value > 0.05
    runs = supervised_runs(noise=0.001)  # gamma = 0.452
    small, large = (laws.fit(form, runs, delta=1e-2) for form in ("chinchilla", "supervised"))
    assert laws.nested(small, large, resamples=60).p_value < 0.05
    with pytest.raises(laws.LawError, match="smaller form first"):
        laws.nested(larger, line)


def test_holdouts_predict_and_count():
    found = laws.holdout("chinchilla", supervised_runs(law=LINE), "D > 1e11", resamples=200, delta=1e-2)
    assert len(found.observed) == 16 and found.errors.max() < 0.03 and found.coverage > 0.5
    with pytest.raises(laws.LawError, match="holds out 0 of 64"):
        laws.holdout("chinchilla", supervised_runs(), "D > 1e19")
    rolled = laws.roll_forward("chinchilla", supervised_runs(law=LINE), shares=(0.6, 0.8), resamples=50, delta=1e-2)
    assert [len(h.observed) for h in rolled] == [13, 13] and len(rolled[1].fit.rows) == 51


def test_a_joint_fit_is_no_worse_than_two_stages(pair):
    joint = laws.fit_jointly(*pair, start_count=8)
    assert joint.objective <= joint.two_stage * (1 + 1e-9)
    assert joint.supervised.objective + joint.student.objective == pytest.approx(joint.objective, rel=1e-9)
    assert joint.supervised.law(1e9, 2e10) == pytest.approx(SUPERVISED(1e9, 2e10), rel=0.01)
