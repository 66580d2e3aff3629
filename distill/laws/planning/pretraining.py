"""Plans from a supervised law alone: the best size and tokens for a budget or a loss, with intervals."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypedDict

import numpy as np

from distill.laws.forms.arrays import Floats
from distill.laws.forms.law import Law
from distill.laws.forms.resampled import ResampledLaws, supervised_inside
from distill.laws.planning.allocation import Bounds, supervised_optimum
from distill.laws.planning.crossover import column
from distill.laws.planning.intervals import bootstrap_caveats, failure, predictions, supervised_draws, trust
from distill.laws.planning.region import Region
from distill.laws.planning.repeats import alone, enough, useless
from distill.laws.planning.scenarios import UNLIMITED, Flops, PlanError
from distill.laws.planning.signatures import ForwardFlops, SupervisedLaw
from distill.laws.planning.text import Json
from distill.laws.uncertainty.bootstrap import MOST_FAILED
from distill.system.numbers import si

_BOUNDS = Bounds(low=1e3)
_RANGE = (1e9, 1e32)  # FLOPs between which a target loss is searched


class _Options(TypedDict):
    """Options of the search for the optimum."""

    flops: ForwardFlops
    unique: float
    bounds: Bounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The compute-optimal supervised model of `compute` FLOPs: N parameters on D tokens, loss L in nats per token.

    `interval` holds 90% intervals by name: L of this exact model, calibrated where the law was rolled forward
    (`predictions` says what that showed), with the plain one in `bootstrap`; N and D of the optimum recomputed under
    each resampled law.
    """

    constraint: str
    compute: float
    N: float
    D: float
    L: float
    interval: Mapping[str, tuple[float, float]]
    warnings: tuple[str, ...]
    bootstrap: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    predictions: str = ""

    def sentence(self) -> str:
        """The advice in one sentence."""
        low, high = self.interval.get("L", (np.nan, np.nan))
        within = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
        goal = ("for" if self.constraint == "compute" else "at least cost,") + f" {self.compute:.3g} FLOPs"
        text = f"Supervised: a {si(self.N)} model on {si(self.D)} tokens, expected loss {self.L:.3f}{within}, {goal}"
        return ". ".join([text, *(f"Warning: {w}" for w in self.warnings)]) + "."

    def describe(self) -> str:
        """The sentence, and one line per number with its 90% interval."""
        rows = [
            ("parameters N", si(self.N), self._within("N", si)),
            ("tokens D", si(self.D), self._within("D", si)),
            ("tokens per parameter", f"{self.D / self.N:.3g}", ""),
            ("loss L", f"{self.L:.4f}", self._within("L", "{:.4f}".format)),
            ("compute", f"{self.compute:.3g}", ""),
        ]
        lines = [f"  {label:<32}{value:>10}  {within}".rstrip() for label, value, within in rows]
        head = [f"  predictions: {self.predictions}"] if self.predictions else []
        if "L" in self.bootstrap:
            low, high = self.bootstrap["L"]
            head.append(f"  90% interval of the loss: calibrated; of the bootstrap alone: [{low:.4f}, {high:.4f}]")
        return "\n".join([self.sentence(), "", *head, *lines])

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready values."""
        return {
            "constraint": self.constraint,
            **{name: getattr(self, name) for name in ("compute", "N", "D", "L")},
            "interval": {name: [low, high] for name, (low, high) in self.interval.items()},
            "bootstrap": {name: [low, high] for name, (low, high) in self.bootstrap.items()},
            "predictions": self.predictions,
            "warnings": list(self.warnings),
            "sentence": self.sentence(),
        }

    def _within(self, name: str, show: Callable[[float], str]) -> str:
        if name not in self.interval:
            return ""
        low, high = self.interval[name]
        return f"[{show(low)}, {show(high)}]"


def pretraining(
    supervised: Law,
    *,
    compute: float | None = None,
    loss: float | None = None,
    boot: ResampledLaws | None = None,
    flops: ForwardFlops | None = None,
    unique: float = UNLIMITED,
    region: Region | None = None,
) -> Pretraining:
    """The best size and tokens for `compute` FLOPs, 3 F(N) D, or at the lowest cost for a `loss`.

    boot: resampled supervised laws, or resampled laws of students with supervised ones nested. Raises PlanError.
    """
    if (compute is None) == (loss is None):
        raise PlanError("constraint: wanted exactly one of compute and loss for a supervised law; tokens fix no size")
    flops = Flops.closed() if flops is None else flops
    options = _Options(flops=flops, unique=unique, bounds=_BOUNDS)
    constraint = "compute" if loss is None else "loss"
    if compute is None:
        assert loss is not None
        compute = _compute_for(supervised, loss, options)
    if not (np.isfinite(compute) and compute > 0):
        raise PlanError(f"compute={compute!r}: wanted a positive number of FLOPs")
    optimum = supervised_optimum(supervised, np.array([compute]), **options)
    best = {name: float(values[0]) for name, values in optimum.items()}
    interval, plain = {}, {}
    stack = (supervised_inside(boot.kept) or boot.kept) if boot is not None and failure(boot) <= MOST_FAILED else None
    if stack is not None and any(np.ndim(value) for value in stack.values().values()):
        again = supervised_optimum(stack, np.array([compute]), **options)
        N, D = np.array([best["N"]]), np.array([best["D"]])

        def expected(law: SupervisedLaw) -> Floats:
            return np.asarray(alone(column(law), N, D, unique), np.float64)

        interval = {"N": _percentiles(again["N"]), "D": _percentiles(again["D"]), "L": _percentiles(expected(stack))}
        trusted = trust(boot)
        if trusted and trusted.below:
            draws = supervised_draws(trusted, trusted.below, supervised, expected, (N[0], D[0]))
            plain = {"L": interval["L"]}
            interval["L"] = _percentiles(draws)
    return Pretraining(
        constraint=constraint,
        compute=compute,
        **best,
        interval=interval,
        warnings=(
            *useless(best["D"], enough(supervised, best["N"], unique), unique),
            *_warnings(best, region),
            *(bootstrap_caveats(boot) if stack is None else ()),
        ),
        bootstrap=plain,
        predictions=predictions(boot),
    )


def _compute_for(supervised: Law, loss: float, options: _Options) -> float:
    """The least compute that reaches a loss, by bisection of its logarithm. Raises PlanError if none does."""
    low, high = np.log(_RANGE)
    reached = lambda z: float(supervised_optimum(supervised, np.exp([z]), **options)["L"][0]) <= loss
    if not reached(high):
        best = float(supervised_optimum(supervised, np.exp([high]), **options)["L"][0])
        raise PlanError(f"loss={loss:g}: this law reaches {best:.4f} at best; ask for more than that")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return float(np.exp(high))


def _percentiles(values: Floats) -> tuple[float, float]:
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)


def _warnings(best: dict[str, float], region: Region | None) -> list[str]:
    out = []
    for name in ("N", "D"):
        if not _BOUNDS.low * 1.01 < best[name] < _BOUNDS.high / 1.01:
            out.append(f"{name} stands at a bound of the search ({best[name]:.3g})")
    if region is not None:  # a region names the supervised runs' variables N_T and D_T
        beyond = region.beyond({"N_T": best["N"], "D_T": best["D"]})
        out += [text.replace("N_T", "N", 1).replace("D_T", "D", 1) for text in beyond]
    return out
