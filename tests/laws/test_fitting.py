"""Fits against oracles: published optima where the tables are present, a seeded twin and SciPy everywhere."""

import csv
import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from distill import laws
from distill.laws.fitting import newton, search, solver, starts
from distill.laws.fitting import objective as ob
from distill.laws.fitting.fit import solved_rows
from distill.laws.fitting.rows import rows_of
from distill.laws.uncertainty import approaches

CHINCHILLA = Path(os.environ.get("DISTILL_DATA") or "unset") / "chinchilla" / "svg_extracted_data.csv"
TRUE = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)
SUPERVISED = laws.paper()[0]


def twin(seed: int = 0, n: int = 120, noise: float = 0.006) -> laws.Table:
    """A table like Hoffmann's: sizes and budgets over two decades, heavy-tailed noise."""
    generator = np.random.default_rng(seed)
    N = np.exp(generator.uniform(np.log(5e7), np.log(1e10), n))
    D = np.exp(generator.uniform(np.log(5e8), np.log(3e11), n))
    return laws.from_arrays(N=N, D=D, L=TRUE(N, D) * np.exp(noise * generator.standard_t(4, n)))


def chinchilla(drop: int = 5) -> laws.Table:
    if not CHINCHILLA.exists():
        pytest.skip("DISTILL_DATA names no folder with chinchilla/svg_extracted_data.csv")
    rows = list(csv.DictReader(CHINCHILLA.open()))
    N, C, L = (np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss"))
    kept = np.sort(np.argsort(L)[: len(L) - drop])
    return laws.from_arrays(N=N[kept], D=(C / 6 / N)[kept], L=L[kept])


@pytest.mark.data
@pytest.mark.parametrize(
    ("delta", "want"),
    [
        (1e-2, (538.75, 2905.6, 1.83808, 0.35442, 0.38154)),
        (1e-3, (477.8259, 2143.4174, 1.8172181, 0.3473105, 0.3671724)),
        (1e-4, (478.69, 2065.41, 1.81582, 0.34741, 0.36539)),
        (1e-6, (481.93, 2085.00, 1.816844, 0.347804, 0.365844)),
    ],
)
def test_the_delta_path_of_the_chinchilla_table(delta, want):
    found = laws.fit("chinchilla", chinchilla(), delta=delta)
    # The figure's largest residual is 5%: with a narrow delta that is a suspect row.
    assert not found.open and found.predictions.kind == "lack of fit" and found.agreement > 0.9
    np.testing.assert_allclose(list(found.law.values().values()), want, rtol=2e-5)
    if delta == 1e-3:
        assert found.objective == pytest.approx(0.0010182740178, rel=1e-11)


@pytest.mark.data
def test_other_objectives_of_the_chinchilla_table():
    assert laws.fit("chinchilla", chinchilla(drop=0)).objective == pytest.approx(0.0018260105, rel=1e-7)
    raw = laws.fit("chinchilla", chinchilla(), objective="mse").law
    np.testing.assert_allclose(list(raw.values().values()), (567.81, 7581.85, 1.88281, 0.35762, 0.42762), rtol=2e-5)


@pytest.mark.data
def test_the_compute_optimum_of_the_chinchilla_table():
    optima = approaches.parametric(laws.fit("chinchilla", chinchilla()).law, np.array([1e21]))
    assert optima.size[0] == pytest.approx(2.7917e9, rel=1e-4)
    assert 1e21 / 6 / optima.size[0] == pytest.approx(5.970e10, rel=1e-4)
    assert optima.loss[0] == pytest.approx(2.304455, abs=1e-6)


@pytest.mark.data
def test_published_intervals_of_the_chinchilla_table():
    boot = laws.bootstrap(laws.fit("chinchilla", chinchilla()), resamples=4000, seed=42)
    assert not boot.failed.any()
    published = {"A": (285.2, 743.6), "B": (1042.4, 5810.3), "E": (1.769, 1.871), "alpha": (0.317, 0.373)}
    for name, ends in published.items():
        np.testing.assert_allclose(boot.interval(0.95)[name], ends, rtol=0.06)
    assert boot.laws.A.std() == pytest.approx(124.475, rel=0.05)


@pytest.fixture(scope="module")
def twin_boot():
    """A fit of a table like the Chinchilla one, and its bootstrap."""
    fit = laws.fit("chinchilla", twin(n=240))
    return fit, laws.bootstrap(fit, resamples=1000, seed=42)


def test_intervals_of_a_twin_are_as_wide_as_its_noise_and_hold_the_truth(twin_boot):
    fit, boot = twin_boot
    assert fit.status and not boot.failed.any()
    for name, (low, high) in boot.interval(0.99).items():
        if name in TRUE.values():
            assert low <= TRUE.values()[name] <= high, name
            assert low < fit.law.values()[name] < high, name


def test_the_compute_optimum_of_a_twin_is_where_no_other_split_is_lower():
    law = laws.fit("chinchilla", twin(n=240)).law
    optima = approaches.parametric(law, np.array([1e21]))
    sizes = np.exp(np.linspace(np.log(1e8), np.log(1e11), 4001))
    losses = law(sizes, 1e21 / 6 / sizes)
    assert optima.loss[0] == pytest.approx(losses.min(), rel=1e-6) and optima.loss[0] <= losses.min() * (1 + 1e-12)
    assert optima.size[0] == pytest.approx(sizes[losses.argmin()], rel=0.01)


def test_squared_errors_of_losses_weigh_large_losses_more_than_those_of_logarithms():
    table = twin(n=240)
    raw, log = (laws.fit("chinchilla", table, objective=name).law for name in ("mse", "log-mse"))
    error = lambda law: float(np.sum((law(table["N"], table["D"]) - table["L"]) ** 2))
    assert error(raw) < error(log)


def huber(theta: np.ndarray, table: laws.Table, delta: float) -> float:
    """Hoffmann's objective, written down independently."""
    a, b, e, alpha, beta = theta
    logs = np.stack([a - alpha * np.log(table["N"]), b - beta * np.log(table["D"]), np.full(len(table), e)])
    r = np.abs(np.log(np.exp(logs).sum(0)) - np.log(table["L"]))
    return float(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum())


@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_no_worse_than_scipy_from_the_optimum_and_from_elsewhere(delta):
    table = twin()
    found = laws.fit("chinchilla", table, delta=delta)
    law = found.law
    at = np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
    assert huber(at, table, delta) == pytest.approx(found.objective, rel=1e-10)
    for start in (at, np.array([6.0, 7.5, 0.5, 0.33, 0.36]), np.array([5.0, 9.0, 0.6, 0.3, 0.45])):
        other = optimize.minimize(huber, start, (table, delta), method="Nelder-Mead", options={"maxfev": 4000})
        assert found.objective <= other.fun * (1 + 1e-9)


def test_least_squares_agrees_with_scipy():
    table = twin()
    law = laws.fit("chinchilla", table, objective="log-mse").law

    def residual(theta):
        a, b, e, alpha, beta = theta
        predicted = np.exp(a) / table["N"] ** alpha + np.exp(b) / table["D"] ** beta + e
        return np.log(predicted / table["L"])

    want = optimize.least_squares(residual, [6.0, 7.5, 1.8, 0.35, 0.37], xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    got = [np.log(law.A), np.log(law.B), law.E, law.alpha, law.beta]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_weights_count_rows():
    table = twin(n=40)
    doubled = np.ones(40)
    doubled[:10] = 2.0
    twice = {k: np.concatenate([v, v[:10] * (1 + 1e-15)]) for k, v in table.columns.items()}
    repeated = laws.fit("chinchilla", laws.as_table(twice, duplicates="keep"), delta=1e-2)
    weighted = laws.fit("chinchilla", table, weights=doubled, delta=1e-2)
    np.testing.assert_allclose(weighted.law.E, repeated.law.E, rtol=1e-6)


def test_least_absolute_deviation_is_the_limit_of_small_deltas():
    table = twin()
    lad = laws.fit("chinchilla", table, objective="lad")
    small = laws.fit("chinchilla", table, delta=1e-6)
    assert lad.objective == pytest.approx(np.abs(lad.residuals).sum(), rel=1e-4)
    assert lad.objective <= np.abs(small.residuals).sum() * (1 + 1e-6)


@pytest.mark.parametrize("form", ["powerlaw", "kaplan", "supervised", "overtaking"])
def test_known_laws_are_recovered_from_noiseless_tables(form):
    cls = laws.get(form)
    truth = {
        "powerlaw": laws.PowerLaw(A=400.0, E=1.7, alpha=0.3),
        "kaplan": laws.Kaplan(N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103),
        "supervised": SUPERVISED,
        "overtaking": laws.Overtaking(
            A=2243.0, B=24181.0, alpha=0.321, beta=0.637, gamma=0.764, c0=2.5, kappa=2.2, f1=0.1, w=0.1,
            supervised=SUPERVISED,
        ),
    }[form]  # fmt: skip
    generator = np.random.default_rng(1)
    draws = {"x": (1e7, 1e11), "N": (1e8, 1e10), "D": (1e9, 1e12), "N_S": (1e8, 1e10), "D_S": (1e9, 1e12)}
    inputs = {k: np.exp(generator.uniform(*np.log(draws.get(k, (1.9, 2.9))), 90)) for k in cls.inputs}
    table = laws.from_arrays(**inputs, **{cls.output: truth(**inputs)})
    found = laws.fit(form, table, supervised=SUPERVISED if cls.given() else None)
    far = {k: np.array([draws[k][1] * 3]) if k in draws else np.array([1.8]) for k in cls.inputs}
    np.testing.assert_allclose(found.law(**far), truth(**far), rtol=1e-6)
    assert found.objective < 1e-14


def test_apple_students_at_the_published_objective():
    apple = laws.load_table("apple")
    found = laws.fit("distillation", apple.where("L_S > 2.3"), supervised=SUPERVISED)
    assert found.objective == pytest.approx(0.000622028, rel=1e-5)
    held = apple.where("L_S <= 2.3")
    error = np.abs(found.law(held["N_S"], held["D_S_nominal"], held["L_T"]) / held["L_S"] - 1)
    assert len(error) == 26 and error.mean() <= 0.00285 and error.max() < 0.0058
    # Eq. 8 has reached its limit form; the status and the directions say so.
    assert found.status.kind == "not identified" and "d1" in found.status.message
    assert found.directions()[0].words() == "c1, d1 only through kappa"
    everything = laws.fit("distillation-limit", apple, supervised=SUPERVISED)
    assert everything.objective == pytest.approx(0.000674624, rel=1e-5)
    additive = laws.fit("additive", apple.where("L_S > 2.3"))
    worse = np.abs(additive.law(held["N_S"], held["D_S_nominal"], held["L_T"]) / held["L_S"] - 1)
    assert worse.mean() > 10 * error.mean()


def test_table_6_on_the_digitised_runs():
    apple = laws.load_table("apple")
    predicted = laws.paper()[1](apple["N_S"], apple["D_S_nominal"], apple["L_T"])
    assert np.abs(predicted / apple["L_S"] - 1).mean() == pytest.approx(0.0108, abs=2e-4)


def test_published_grids_reach_the_same_optimum():
    rows = laws.fit("chinchilla", twin()).rows
    points = starts.published(laws.Chinchilla, rows.setting, 200)
    found = solver.solve(
        laws.Chinchilla, solved_rows(rows, laws.Objective()), points, np.ones(len(rows)), laws.Objective(), widen=30.0
    )
    best = found.objective.min()
    assert (found.objective < best * (1 + 1e-8)).mean() > 0.5


def test_a_design_with_one_model_size_is_not_identified():
    generator = np.random.default_rng(0)
    D = np.geomspace(1e9, 1e12, 30)
    L = TRUE(1e9, D) * np.exp(0.005 * generator.standard_normal(30))
    found = laws.fit("chinchilla", laws.from_arrays(N=np.full(30, 1e9), D=D, L=L))
    assert found.status.kind == "not identified"


@pytest.mark.parametrize("form", ["chinchilla", "distillation"])
def test_second_derivatives_are_those_of_the_objective(form):
    cls = laws.get(form)
    generator = np.random.default_rng(2)
    draws = {"N": (1e8, 1e10), "D": (1e9, 1e12), "N_S": (1e8, 1e10), "D_S": (1e9, 1e12), "L_T": (1.9, 2.7)}
    inputs = {k: np.exp(generator.uniform(*np.log(draws[k]), 20)) for k in cls.inputs}
    table = laws.from_arrays(**inputs, **{cls.output: generator.uniform(2.2, 3.0, 20)})
    rows = rows_of(cls, table, dict.fromkeys(cls.given(), SUPERVISED))
    weights, delta = generator.uniform(0.5, 2.0, (3, 20)), 0.05

    low, high = np.array([p.box for p in cls.parameters().values()]).T
    problem = newton.SearchProblem(
        form=cls, raw=False, pull=None, exact=True, quantile=0.5,
        inputs=rows.inputs, setting=rows.setting, low=low, high=high,
        delta=delta,
    )  # fmt: skip

    def residual(theta):
        return newton.residuals(problem, theta, jnp.log(rows.target)[None], dict(rows.given))

    @jax.jit
    def both(theta):
        r, slopes = newton.linearise(residual, theta)
        gradient, H, _ = newton.normal(weights, r, slopes, delta)
        return gradient, H, newton.bend(residual, theta, weights * ob.psi(jnp, r, delta))

    @jax.jit
    def reference(theta):
        def total(at):
            return (weights * ob.rho(jnp, residual(at.T), delta)).sum()

        return jax.grad(total)(theta), jax.hessian(total)(theta)

    with jax.enable_x64(True):
        theta = jnp.asarray(starts.random(cls, rows.setting, 3, 0))
        gradient, H, bend = both(theta)
        slope, hessian = reference(theta)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(H + bend, [hessian[i, :, i] for i in range(3)], rtol=1e-8, atol=1e-9)
    assert np.abs(bend).max() > 1e-3


def test_fitting_leaves_the_process_configuration_alone():
    before = dict(jax.config.values)
    laws.bootstrap(
        laws.fit("powerlaw", laws.from_arrays(x=np.geomspace(1e6, 1e9, 8), L=np.linspace(4, 2, 8))), resamples=4
    )
    assert dict(jax.config.values) == before
    assert not jax.config.jax_enable_x64


def test_a_form_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Shifted(laws.Law):
        A: float = laws.positive(0.1, 10.0)
        b: float = laws.real(-1.0, 1.0)
        p: float = laws.bounded(0.0, 1.0)

        inputs = ("x",)

        def loss(self, xp, x):
            return self.A + self.b * xp.log(x) + self.p * xp.log(x) ** 2

    truth = Shifted(A=2.0, b=-0.3, p=0.05)
    x = np.geomspace(1.0, 20.0, 25)
    found = laws.fit(Shifted, laws.from_arrays(x=x, L=truth(x)))
    np.testing.assert_allclose(list(found.law.values().values()), (2.0, -0.3, 0.05), rtol=1e-6)
    noisy = laws.from_arrays(x=x, L=truth(x) * np.exp(0.001 * np.random.default_rng(0).standard_normal(25)))
    boot = laws.bootstrap(laws.fit(Shifted, noisy), resamples=50)
    low, high = boot.interval(0.99)["A"]
    assert low < 2.0 < high


def test_a_tilted_objective_is_quantile_regression():
    """A share q of the runs lies below a law fitted with `lad` at quantile q; untilted, half of them."""
    table = twin(n=120, noise=0.02)
    for q in (0.2, 0.5, 0.8):
        fit = laws.fit("chinchilla", table, objective=laws.Objective(kind="lad", quantile=q))
        below = (fit.residuals > 1e-6).mean()  # the law lies above the loss
        assert below == pytest.approx(q, abs=0.05), (q, below)


def test_an_asymmetric_huber_finds_the_law_of_the_best_loss():
    """Runs that are undertuned by 0 to 8% lie above the law: a tilt recovers it, the symmetric fit lies halfway up."""
    generator = np.random.default_rng(0)
    N, D = np.exp(generator.uniform(*np.log((1e8, 1e10)), 150)), np.exp(generator.uniform(*np.log((1e9, 1e12)), 150))
    best = TRUE(N, D)
    table = laws.from_arrays(N=N, D=D, L=best * (1 + 0.08 * generator.uniform(size=150) ** 2))
    error = {}
    for q in (0.05, 0.5):
        law = laws.fit("chinchilla", table, objective=laws.Objective(quantile=q)).law
        error[q] = np.mean(law(N, D) / best - 1)
    assert abs(error[0.05]) < 0.004 < 0.015 < error[0.5]


def test_a_tilt_of_one_half_is_no_tilt():
    """The tilted objective written out by hand, minimised: its value at the fit is the reported one."""
    table = twin(n=60, noise=0.02)
    fit = laws.fit("chinchilla", table, objective=laws.Objective(delta=1e-2, quantile=0.3))
    r = fit.residuals
    rho = np.where(np.abs(r) <= 1e-2, r**2 / 2, 1e-2 * (np.abs(r) - 5e-3))
    assert fit.objective == pytest.approx((rho * np.where(r < 0, 0.6, 1.4)).sum(), rel=1e-9)
    with pytest.raises(laws.LawError, match="quantile = 1.0; wanted a number between 0 and 1"):
        laws.Objective(quantile=1.0)


def test_tables_of_similar_size_share_a_compiled_program():
    """A study fits the same form again after every few runs. (Seen to fail with rows padded to multiples of 8.)"""
    N, D = np.geomspace(1e8, 1e10, 60), np.resize(np.geomspace(1e9, 1e11, 7), 60)
    runs = laws.from_arrays(N=N, D=D, L=TRUE(N, D))
    first = laws.fit("chinchilla", runs, start_count=16)
    compiled = newton.run._cache_size()
    for count in (36, 45, 59):
        again = laws.fit("chinchilla", runs.where(np.arange(60) % 60 < count), start_count=16)
        assert abs(again.law.E - first.law.E) < 2e-3
    assert newton.run._cache_size() == compiled
    # Padding wastes at most a half, and next to nothing where every row costs.
    sizes = np.arange(1, 3000)
    rows = np.array([solver.padded(n) for n in sizes])
    assert (rows >= sizes).all() and (rows < 1.5 * sizes)[sizes > 64].all() and (rows - sizes < 32)[sizes > 1024].all()
    assert len(set(rows[sizes <= 1024])) == 10


def test_a_large_table_is_searched_on_a_sample_and_solved_on_all_rows(monkeypatch):
    """The starts see a sample; the optimum is that of all rows, and every start says whether it reached it."""
    monkeypatch.setattr(search, "SAMPLE", 128)
    monkeypatch.setattr(search, "_LARGE", 512)
    generator = np.random.default_rng(0)
    N, D = np.exp(generator.uniform(np.log(1e8), np.log(1e10), 600)), np.exp(generator.uniform(21, 27, 600))
    true = laws.Chinchilla(A=480.0, B=2100.0, E=1.8, alpha=0.35, beta=0.37)
    table = laws.from_arrays(N=N, D=D, L=true(N, D) * np.exp(0.01 * generator.standard_normal(600)))
    asked = []
    solve = solver.solve
    monkeypatch.setattr(
        solver, "solve", lambda form, rows, *rest, **more: asked.append(len(rows)) or solve(form, rows, *rest, **more)
    )
    newton.run.clear_cache()
    fit = laws.fit("chinchilla", table, start_count=16)
    assert asked == [128, 600]
    assert newton.run._cache_size() == 2  # what is compiled ahead is the program that then solves all rows
    points = starts.random(laws.Chinchilla, fit.rows.setting, 16, 0)
    whole = solve(laws.Chinchilla, solved_rows(fit.rows, fit.minimised), points, fit.weights, fit.minimised, widen=30.0)
    assert fit.objective == pytest.approx(whole.objective.min(), rel=1e-9)
    assert fit.agreement == pytest.approx(np.mean(whole.objective < whole.objective.min() * (1 + 1e-6)), abs=0.1)
    # Rows of weight 0 are no sample: with 500 that count, all starts are solved on all rows.
    asked.clear()
    laws.fit("chinchilla", table, start_count=4, weights=np.where(np.arange(600) < 500, 1.0, 0.0))
    assert asked[0] == 600


def test_starts_of_one_optimum_share_a_solution():
    owner = search._distinct(np.array([2.0, np.inf, 1.0 + 1e-9, 1.0, 2.0 - 1e-8, 3.0]))
    assert owner.tolist() == [4, 1, 3, 3, 4, 5]
