"""What rolling forward has shown of a law, as numbers: kept in law files, applied to resampled laws by plans."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from distill.laws.forms.law import Law
from distill.laws.uncertainty.edges import Edges

DEVIATE = 1.6449  # half of a 90% interval of a normal distribution, in standard deviations


def normals(seed: int, count: int) -> np.ndarray:
    """The first `count` normals of the noise of runs: the same in every plan; the planner's page carries them."""
    return np.random.default_rng((seed, 3)).standard_normal(count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """The factor on the standard error within forms, its growth with the distance beyond the runs, the factor on that
    between forms (`apart`), the noise of a run [forms] (log loss), the forms' weights, and where the runs end; `kind`
    and `message` are the status."""

    kind: str
    message: str
    factor: float
    growth: float
    apart: float
    noise: tuple[float, ...]
    weights: tuple[float, ...]
    edges: Edges

    def draws(
        self, logs: Sequence[np.ndarray], resampled: Sequence[np.ndarray], inputs: Sequence[ArrayLike], seed: int
    ) -> np.ndarray:
        """Log losses of a run at one point, [R]: the forms' resamples [R_form] moved apart as the held-out errors ask.

        `logs` are the forms' estimates. The interval of the result is that of `laws.extrapolate`, from resamples
        instead of slopes: the form's own estimate, plus factor times its resample's and a run's error and what distance
        adds.
        """
        noises = np.split(normals(seed, sum(map(len, resampled))), np.cumsum([len(each) for each in resampled])[:-1])
        centre = float(np.dot(self.weights, [float(log) for log in logs]))
        far = float(self.edges.beyond(*(np.asarray(x, np.float64) for x in inputs)))
        wider = float(np.sqrt(1 + (self.growth * far) ** 2))
        moved = []
        for log, each, noise, normal in zip(logs, resampled, self.noise, noises):
            error = each - log + noise * normal
            own = centre + self.apart / DEVIATE * (log - centre)
            moved.append(own + self.factor / DEVIATE * wider * error)
        return np.concatenate(moved)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        tree = dataclasses.asdict(self) | {"edges": self.edges.to_dict()}
        return tree | {"noise": list(self.noise), "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, tree: Mapping[str, object]) -> Self | None:
        """Reads `to_dict`; None where nothing was assessed. Raises TypeError, KeyError or ValueError for damage."""
        if "factor" not in tree:
            return None
        numbers = {name: tuple(float(x) for x in _listed(tree[name])) for name in ("noise", "weights")}
        scalars = {name: float(str(tree[name])) for name in ("factor", "growth")}
        if not np.isfinite([*scalars.values(), *numbers["noise"], *numbers["weights"]]).all():
            raise ValueError("a calibration that is not finite")
        scalars["apart"] = float(str(tree.get("apart", scalars["factor"])))  # until 0.1 one factor was for both
        edges = Edges.from_dict(tree["edges"])
        return cls(
            kind=str(tree.get("kind", "")),
            message=str(tree.get("message", "")),
            factor=scalars["factor"],
            growth=scalars["growth"],
            apart=scalars["apart"],
            noise=numbers["noise"],
            weights=numbers["weights"],
            edges=edges,
        )


@runtime_checkable
class CalibratedLaws(Protocol):
    """Resampled laws that know what rolling forward has shown; `laws.Bootstrap` and the `boot` of a law file are.

    `others` are those of other forms of the same runs, in the order of the calibration's weights after the first.
    """

    @property
    def kept(self) -> Law: ...

    @property
    def estimate(self) -> Law: ...

    @property
    def failure(self) -> float: ...

    @property
    def calibration(self) -> Calibration | None: ...

    @property
    def below(self) -> Calibration | None:
        """That of the supervised law inside a law of students."""

    @property
    def others(self) -> Sequence["CalibratedLaws"]: ...


def _listed(value: object) -> Sequence[float]:
    if not isinstance(value, list):
        raise TypeError(f"got {type(value).__name__}, wanted a list of numbers")
    return value
