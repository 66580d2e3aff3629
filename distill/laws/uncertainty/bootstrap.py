"""Bootstraps: the variation of a fitted law if the runs were repeated.

Three kinds of resampling: "pairs" draws rows with replacement; with `cluster`, whole groups of rows that share a
trunk, a teacher or a model, which are not independent; "residual" keeps the design and redraws the residuals; "wild"
flips their signs, by cluster where one is given. Of a pair of fits (supervised, distillation) both stages are
resampled, and each resample of Eq. 8 takes Lsup from its own supervised law, so that its error is included.

Resamples start from the fit. Those whose certificate fails are solved again from other resamples' solutions; those
that still fail are counted and excluded from the intervals.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from numpy.typing import ArrayLike

from distill.config import nearest
from distill.laws.fitting import solver
from distill.laws.fitting.fit import Fit, solved_rows
from distill.laws.forms import notebook, plots
from distill.laws.forms.law import Law, LawError
from distill.laws.forms.resampled import supervised_inside
from distill.laws.uncertainty.calibration import Calibration
from distill.system import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("pairs", "residual", "wild")
MOST_FAILED = 0.1  # share of failed resamples above which no interval is printed
_AT_BOUND = 0.05  # share of resamples at a parameter's bound from which its interval is that of the bound
_RETRIES = (1.0, 10.0, 10.0)  # factor of the first delta: continue the search once, then start from other solutions


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionInterval:
    """The predicted loss of new runs and its interval, each of the inputs' shape, nats per token."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


Prediction = PredictionInterval  # its public name until 0.1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Bootstrap:
    """Resampled laws of a fit: `laws` is one Law whose parameters are arrays [resamples], `failed` marks the bad ones.

    `supervised` holds the first stage of a pair. Intervals and predictions exclude the failed resamples. `calibration`
    and the `others`, bootstraps of other forms of the runs, come from `laws.calibrated`.
    """

    fit: Fit
    laws: Law
    solutions: solver.Solutions
    kind: str
    cluster: str | None
    seed: int
    supervised: "Bootstrap | None" = None
    calibration: Calibration | None = None
    others: tuple["Bootstrap", ...] = ()

    def __repr__(self) -> str:
        how = f"{self.kind} by {self.cluster}" if self.cluster else self.kind
        ends = (f"  {name} = {estimate} {within}" for name, estimate, within in self.estimates())
        return "\n".join(
            [f"{self.fit.law.name}: {len(self)} resamples ({how}), {int(self.failed.sum())} failed", *ends]
        )

    def _repr_html_(self) -> str:
        caption = repr(self).split("\n")[0]
        return notebook.table(caption, ("", "estimate", "90% interval"), self.estimates())

    def estimates(self, level: float = 0.9, within: str = "[{:.5g}, {:.5g}]") -> list[tuple[str, str, str]]:
        """Name, estimate and interval of every parameter and combination; "open: why" where the runs fix none.

        `within` is the format of the ends of an interval.
        """
        best, why = self.fit.law, self.open
        return [
            (name, f"{getattr(best, name):.6g}", f"open: {why[name]}" if name in why else within.format(*ends))
            for name, ends in self.interval(level).items()
        ]

    @functools.cached_property
    def open(self) -> dict[str, str]:
        """The parameters and combinations without an honest interval, each with why.

        Those that the fit leaves open; those whose resamples reach a bound, or spread by a factor of e to the power
        1.645 to either side; all of them where more than a tenth of the resamples failed.
        """
        names = [*self.laws.parameters(), *self.laws.combinations]
        if self.failure > MOST_FAILED:
            return dict.fromkeys(names, f"{self.failure:.0%} of the resamples failed")
        reasons = dict(self.fit.open)
        kept = self.solutions.theta[~self.failed]
        for column, (name, p) in zip(kept.T, self.laws.parameters().items()):
            low, high = np.percentile(np.asarray(getattr(self.kept, name)), [5, 95])
            if np.mean((column <= p.box[0] + 1e-9) | (column >= p.box[1] - 1e-9)) >= _AT_BOUND:
                reasons.setdefault(name, "its interval reaches the end of its range")
            elif p.sign == "positive" and high > low * np.exp(2 * 1.645):
                reasons.setdefault(name, f"the resamples spread over a factor of {high / low:.2g}")
        return {name: reasons[name] for name in names if name in reasons}

    @property
    def estimate(self) -> Law:
        """The fitted law."""
        return self.fit.law

    @property
    def below(self) -> Calibration | None:
        """The calibration of the supervised law inside."""
        return self.supervised.calibration if self.supervised else None

    @property
    def staged(self) -> bool:
        """Whether the supervised law inside was resampled too."""
        return any(np.ndim(leaf) for leaf in jax.tree_util.tree_leaves(supervised_inside(self.laws)))

    @property
    def failure(self) -> float:
        """The share of failed resamples."""
        return float(self.failed.mean())

    def plot(self) -> "Figure":
        """A matplotlib figure: the fit, its residuals, the intervals, and the least fixed pair of parameters."""
        return plots.figures().bootstrap(self)

    def __len__(self) -> int:
        return len(self.solutions)

    @property
    def failed(self) -> np.ndarray:
        """Resamples without a certificate (in either stage), [resamples]."""
        own = ~self.solutions.converged
        return own | self.supervised.failed if self.supervised else own

    @functools.cached_property
    def kept(self) -> Law:
        """The stack of the resamples that did not fail; all of them if all failed."""
        good = ~self.failed if not self.failed.all() else np.ones(len(self), bool)
        return jax.tree_util.tree_map(lambda leaf: leaf[good] if np.ndim(leaf) else leaf, self.laws)

    def interval(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Percentile intervals of the parameters and of the form's combinations, by name, those that are `open` too."""
        tails = [50 * (1 - level), 50 * (1 + level)]
        names = [*self.laws.parameters(), *self.laws.combinations]
        ends = {name: np.percentile(getattr(self.kept, name), tails) for name in names}
        return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

    def predict(self, level: float = 0.9, noise: bool = True, **inputs: ArrayLike) -> PredictionInterval:
        """The interval for new runs at inputs by name: from the law's error and, with `noise`, that of a single run."""
        arrays = np.broadcast_arrays(*(np.asarray(inputs[k], np.float64) for k in self._names(inputs)))
        shape, flat = arrays[0].shape, [array.ravel() for array in arrays]
        log_losses = np.log(self.evaluate(*flat))
        if noise:
            spread = np.sqrt(len(self.fit.rows) / max(len(self.fit.rows) - len(self.laws.parameters()), 1))
            generator = np.random.default_rng((self.seed, 1))
            log_losses = log_losses - spread * generator.choice(self.fit.residuals, log_losses.shape)
        low, high = np.exp(np.percentile(log_losses, [50 * (1 - level), 50 * (1 + level)], axis=0))
        return PredictionInterval(estimate=self.fit.law(*arrays), low=low.reshape(shape), high=high.reshape(shape))

    def evaluate(self, *inputs: ArrayLike) -> np.ndarray:
        """Losses of every kept law at inputs of shape [m]: [resamples, m]."""
        wide = jax.tree_util.tree_map(lambda leaf: leaf[:, None] if np.ndim(leaf) else leaf, self.kept)
        return wide(*inputs)

    def _names(self, inputs: Mapping[str, ArrayLike]) -> tuple[str, ...]:
        wanted = type(self.laws).inputs
        wrong = [name for name in inputs if name not in wanted]
        if wrong or len(inputs) != len(wanted):
            hint = nearest(wrong[0], wanted) if wrong else ""
            raise LawError(f"predict: got {', '.join(inputs) or 'nothing'}; wanted {', '.join(wanted)}.{hint}")
        return wanted

    def to_dict(self, level: float = 0.9) -> dict[str, object]:
        """Its entries in a law file: how it was resampled, how many failed, and the intervals of what is not open."""
        tree: dict[str, object] = {
            "kind": self.kind,
            "cluster": self.cluster,
            "resamples": len(self),
            "failed": int(self.failed.sum()),
            "seed": self.seed,
            "level": level,
            "intervals": {name: list(ends) for name, ends in self.interval(level).items() if name not in self.open},
            "open": self.open,
        }
        if self.supervised:
            tree["supervised"] = self.supervised.to_dict(level)
        elif self.laws.given() and not self.staged:
            tree["conditional"] = "on the given supervised law"
        return tree


def bootstrap(
    fits: Fit | Sequence[Fit],
    *,
    resamples: int = 1000,
    kind: str = "pairs",
    cluster: str | None = None,
    given: Law | None = None,
    seed: int = 0,
) -> Bootstrap:
    """Resamples a fit, or a pair (supervised, distillation) in two stages.

    `given` is a stack of resampled supervised laws (leaves [R]), such as `lawfile.draws` of the file that the law of
    Lsup came from: every resample of a student law then takes one of them. Raises LawError for a bad request.
    """
    if kind not in KINDS:
        raise LawError(f"bootstrap of kind {kind!r}; wanted one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    if resamples < 2:
        raise LawError(f"{resamples} resamples; wanted at least 2, better 1000.")
    if isinstance(fits, Fit):
        inside = None if given is None else jax.tree_util.tree_map(lambda leaf: np.resize(leaf, resamples), given)
        return _stage(fits, *draw([fits], resamples, kind, cluster, seed)[0], kind, cluster, seed, inside=inside)
    if len(fits) != 2 or not fits[1].law.given():
        raise LawError("a pair of fits is (supervised, distillation); got " + ", ".join(f.law.name for f in fits))
    first, second = draw(fits, resamples, kind, cluster, seed)
    below = _stage(fits[0], *first, kind, cluster, seed)
    return _stage(fits[1], *second, kind, cluster, seed, below)


def draw(
    fits: Sequence[Fit], resamples: int, kind: str, cluster: str | None, seed: int
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Per fit the weights [R, n] (or [n]) and the shifts of log targets [R, n] (or None).

    Clusters are drawn once for all fits, so that a trunk with runs in both tables is drawn in both or in neither.
    """
    generator = np.random.default_rng(seed)
    labels = [_labels(one, cluster) for one in fits]
    groups, index = np.unique(np.concatenate(labels), return_inverse=True)
    if cluster and len(groups) < 3:
        raise LawError(f"column {cluster!r} has {len(groups)} clusters; wanted at least 3, better 10 or more.")
    parts = np.split(index, np.cumsum([len(one) for one in labels])[:-1])
    drawn: list[tuple[np.ndarray, np.ndarray | None]] = []
    if kind == "pairs" and cluster:
        counts = generator.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=resamples)
        small = counts.astype(np.min_scalar_type(int(counts.max())))
        return [(_weighted(small[:, part], one), None) for one, part in zip(fits, parts)]
    signs = generator.choice(np.array([-1, 1], np.int8), (resamples, len(groups)))
    for one, part in zip(fits, parts):
        n = len(one.rows)
        spread = np.sqrt(n / max(n - len(one.law.parameters()), 1))
        if kind == "pairs":
            counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
            drawn.append((_weighted(counts.astype(np.min_scalar_type(int(counts.max()))), one), None))
        elif kind == "wild":
            drawn.append((one.weights, spread * signs[:, part] * one.residuals))
        else:
            centred = one.residuals - np.average(one.residuals, weights=one.weights)
            drawn.append((one.weights, spread * generator.choice(centred, (resamples, n))))
    return drawn


def _labels(one: Fit, cluster: str | None) -> np.ndarray:
    """The cluster of every row; without a column each row is its own."""
    if cluster is None:
        return np.array([f"{id(one)}:{i}" for i in range(len(one.rows))])
    return one.table[cluster].astype(str)


def _weighted(counts: np.ndarray, one: Fit) -> np.ndarray:
    """Counts times the fit's row weights, kept as small integers if the weights are all one."""
    return counts if (one.weights == 1.0).all() else counts * one.weights


def _stage(
    one: Fit,
    weights: np.ndarray,
    shifts: np.ndarray | None,
    kind: str,
    cluster: str | None,
    seed: int,
    below: Bootstrap | None = None,
    inside: Law | None = None,
) -> Bootstrap:
    """Solves all resamples of one fit, given those of the stage below, or other resamples of the law inside."""
    form = type(one.law)
    count = len(weights) if shifts is None else len(shifts)
    rows = one.rows
    inside = below.laws if below else inside
    if inside is not None:
        rows = dataclasses.replace(rows, given=dict.fromkeys(form.given(), inside))
    if shifts is not None:
        fitted = np.log(one.law(*rows.inputs))
        rows = dataclasses.replace(rows, target=np.exp(fitted - shifts))
    solutions = refit(one, rows, weights, count, np.random.default_rng((seed, 2)))
    laws = form.unpack(np, solutions.theta.T, one.rows.setting, rows.given)
    return Bootstrap(fit=one, laws=laws, solutions=solutions, kind=kind, cluster=cluster, seed=seed, supervised=below)


def refit(
    one: Fit, rows: solver.Rows, weights: np.ndarray, count: int, generator: np.random.Generator
) -> solver.Solutions:
    """Solves `count` variations of a fit (other weights, targets or given laws), and retries those that fail."""
    form, measure = type(one.law), one.minimised
    problem = solved_rows(rows, measure)
    with progress.counter(f"bootstrap {form.name}", count) as tick:
        solutions = solver.solve(form, problem, np.tile(one.theta, (count, 1)), weights, measure, progress=tick)
        for widen in _RETRIES:
            bad, good = np.flatnonzero(~solutions.converged), np.flatnonzero(solutions.converged)
            if not len(bad) or (widen > 1.0 and not len(good)):
                break
            again = _subset(problem, bad)
            share = weights[bad] if np.ndim(weights) > 1 else weights
            others = solutions.theta[bad if widen == 1.0 else generator.choice(good, len(bad))]
            retried = solver.solve(form, again, others, share, measure, widen=widen, exact=True)
            solutions = solutions.improved(bad, retried)
    return solutions


def _subset(rows: solver.Rows, index: np.ndarray) -> solver.Rows:
    """The rows of some problems."""
    given = jax.tree_util.tree_map(lambda leaf: leaf[index] if np.ndim(leaf) else leaf, dict(rows.given))
    target = rows.target[index] if rows.target.ndim > 1 else rows.target
    return dataclasses.replace(rows, target=target, given=given)
