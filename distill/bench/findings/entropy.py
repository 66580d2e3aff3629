"""The entropy question: why does a law fitted to runs on a language of known entropy put E too low?

A model of width w predicts a symbol from a hidden vector of w numbers, so its logits, over all 256 contexts, have rank
w at most. The lowest loss of such logits can be computed without training anything, which leaves neither the
optimiser nor the budget to blame.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize

from distill import laws
from distill.bench.findings.cells import Cells, count, markdown
from distill.data.sources import language
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats

TABLE, KNEE = "entropy", "knee"
_WIDTHS = {16: 6_800, 24: 12_472, 32: 26_848, 48: 55_600, 64: 100_736, 96: 221_728, 128: 402_112}
_HOW = {"delta": 1e-2, "units": False}
_EPSILON = 1e-6  # of the norm

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Spoken:
    """A language: probabilities of context and symbol together, [contexts, symbols]; entropy in nats a symbol."""

    joint: Floats
    entropy: float

    @classmethod
    def of(cls, spoken: language.Language) -> "Spoken":
        """Of a Markov chain, whose contexts are its states."""
        return cls(spoken.stationary()[:, None] * spoken.emission, spoken.entropy_rate())


@functools.cache
def the_language() -> Spoken:
    """That of the study (configs/study.py:entropy)."""
    return Spoken.of(language.markov(symbols=256, depth=1, concentration=0.1, seed=0))


def section() -> str:
    """Exact floors by width, what power laws of N make of them, and E from runs below and beyond the rank."""
    spoken = the_language()
    entropy = spoken.entropy
    runs, beyond = laws.load_table(TABLE).where("kind == supervised"), laws.load_table(KNEE)
    floors = {width: floor(spoken, width) for width in _WIDTHS}
    header = ["width", "N", "lowest possible loss less entropy", "best run of 4M tokens less entropy"]
    rows = []
    for width, N in _WIDTHS.items():
        table = runs if N in runs["N"] else beyond
        trained = table["loss"][(table["N"] == N) & (table["D"] > 3.9e6)]
        best = f"{trained.mean() - entropy:.3f}" if len(trained) else ""
        rows.append([str(width), count(N), f"{floors[width] - entropy:.4f}", best])
    return "\n\n".join([markdown(header, rows), _powers(floors, entropy), _fitted(runs, beyond, entropy)])


@functools.cache
def floor(spoken: "Spoken", width: int) -> float:
    """The lowest expected loss, nats a symbol, of logits normalise(H) W with H [contexts, width], W [width, symbols].

    By L-BFGS in float64 from one random start, 4,000 steps: a bound from above. It is not at its end there: 16,000
    steps lowered it by 1e-4 at width 16 and by .0016 at width 64; with other threads the last digits are others.
    """
    with jax.enable_x64(True):
        joint = jnp.asarray(spoken.joint)
        contexts, symbols = joint.shape

        @jax.jit
        @jax.value_and_grad
        def loss(flat: jax.Array) -> jax.Array:
            H, W = flat[: contexts * width].reshape(contexts, width), flat[contexts * width :].reshape(width, symbols)
            unit = H / jnp.sqrt((H**2).mean(1, keepdims=True) + _EPSILON)
            return -(joint * jax.nn.log_softmax(unit @ W)).sum()

        def value(flat: Floats) -> tuple[float, Floats]:
            found, slope = loss(flat)
            return float(found), np.asarray(slope, np.float64)

        start = np.random.default_rng(0).standard_normal((contexts + symbols) * width) * width**-0.25
        options = {"maxiter": 4000, "maxfun": 5000, "maxcor": 30}
        return float(minimize(value, start, jac=True, method="L-BFGS-B", options=options).fun)


def _powers(floors: dict[int, float], entropy: float) -> str:
    """E of E + A / N**alpha through the exact floors of some widths, and what it predicts of the next."""
    header = ["widths", "E of E + A / N^alpha through their exact floors", "entropy", "largest error on them"]
    rows = []
    for widths in ((16, 24, 32, 48, 64), (16, 24, 32), (48, 64, 96), (64, 96, 128)):
        N = np.array([_WIDTHS[width] for width in widths], float)
        losses = np.array([floors[width] for width in widths])
        found = least_squares(lambda at: _power(N, at) - losses, (3.0, 0.5, 0.5), xtol=1e-12, ftol=1e-12, gtol=1e-12).x
        worst = float(np.abs(_power(N, found) / losses - 1).max())
        rows.append([", ".join(map(str, widths)), f"{found[0]:.3f}", f"{entropy:.3f}", f"{worst:.2%}"])
    return markdown(header, rows)


def _power(N: Floats, at: Floats) -> Floats:
    """E + A (N / 1e5)**-alpha."""
    E, A, alpha = at
    return np.asarray(E + A * (N / 1e5) ** -alpha)


def _fitted(runs: laws.Table, beyond: laws.Table, entropy: float) -> str:
    """E with its interval from trained runs, by which sizes they have."""
    header = ["runs", "rows", "form", "E and its 90% interval", "entropy", "in the sample"]
    rows = []
    sizes = {
        "widths 16 to 64": runs,
        "widths 32 to 64": runs.where("N > 2e4"),
        "width 64 alone": runs.where("N > 1e5"),
        "widths 64 to 128": beyond,
        "widths 96 and 128": beyond.where("N > 2e5"),
    }
    for name, mine in sizes.items():
        form = "supervised" if len(set(mine["N"])) > 1 else "chinchilla"
        fit = laws.fit(form, mine, **_HOW)
        boot = laws.bootstrap(fit, resamples=256, cluster="trunk")
        low, high = boot.interval(0.9)["E"]
        interval = f"open: {boot.open['E']}" if "E" in boot.open else f"[{low:.3f}, {high:.3f}]"
        shown = f"{fit.law.E:.3f} {interval}"
        rows.append([name, str(len(fit.rows)), f"`{form}`", shown, f"{entropy:.3f}", f"{fit.error[0]:.2%}"])
    return markdown(header, rows)


def charts() -> list[Chart]:
    """Loss less entropy over N: the exact floor of each width, and trained models by budget."""
    spoken = the_language()
    entropy = spoken.entropy
    exact = floats([floor(spoken, width) - entropy for width in _WIDTHS])
    sizes = floats(list(_WIDTHS.values()))
    series = [Series(label="lowest possible", x=sizes, y=exact, colour="orange", line="-", marker="s")]
    means: dict[tuple[float, float], float] = {}
    for table in (laws.load_table(TABLE).where("kind == supervised"), laws.load_table(KNEE).where("N > 2e5")):
        cells = Cells.of(table, ("N", "D"))
        means |= {(float(key[0]), float(key[1])): cells.mean(key) for key in cells}
    budgets = sorted({D for _, D in means})
    for place, D in enumerate(budgets):
        keys = sorted(key for key in means if key[1] == D)
        N, excess = floats([key[0] for key in keys]), floats([means[key] - entropy for key in keys])
        shade = place / max(len(budgets) - 1, 1)
        series.append(Series(label=f"trained on {count(D)}", x=N, y=excess, colour=shade, line="-", marker="o"))
    x, y = Axis(label="N", log=True, counts=True), Axis(label="loss less entropy (nats)", log=True)
    panel = Panel(title="a language of known entropy", x=x, y=y, series=tuple(series))
    alt = "Loss less entropy over model size: the exact floor falls ever faster, which no power law does."
    return [
        Chart(name="finding-entropy", alt=alt, caption="The entropy question.", panels=(panel,), columns=1, height=3.6)
    ]
