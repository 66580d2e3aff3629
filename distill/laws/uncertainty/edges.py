"""Where the fitted runs end, and how far beyond them an input lies."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from distill.laws.forms.law import Law

_NARROW = 1e-3  # least log range of a loss


def _amount(name: str) -> bool:
    """Whether an input is an amount that compute buys (sizes, tokens), not a loss or a setting."""
    return name[0] in "NDCx"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges:
    """The log range (least, most) of every input over the fitted runs, and of the product of the amounts (compute).

    Inputs in `plain` may be 0, so their ranges are those of the numbers themselves.
    """

    ranges: Mapping[str, tuple[float, float]]
    budgets: tuple[float, float]
    plain: tuple[str, ...] = ()

    @classmethod
    def of(cls, law: Law, inputs: tuple[np.ndarray, ...]) -> "Edges":
        """Those of runs with these inputs, in the order of the law's."""
        plain = law.may_be_zero
        logs = {name: x if name in plain else np.log(x) for name, x in zip(law.inputs, inputs)}
        ranges = {name: (float(x.min()), float(x.max())) for name, x in logs.items()}
        compute = sum((x for name, x in logs.items() if name in _amounts(ranges)), np.zeros(len(inputs[0])))
        return cls(ranges=ranges, budgets=(float(compute.min()), float(compute.max())), plain=plain)

    def compute(self, *inputs: ArrayLike) -> np.ndarray:
        """The log of size times tokens, of the inputs' shape."""
        named = dict(zip(self.ranges, inputs))
        return np.asarray(sum(np.log(np.asarray(named[name], np.float64)) for name in _amounts(self.ranges)))

    def beyond(self, *inputs: ArrayLike) -> np.ndarray:
        """The log distance beyond the runs, 0 inside: the largest of that in compute and that of each input.

        An input that is no amount, such as L_T, counts by its range: as far outside, in ranges, as that much compute.
        """
        wide = self.budgets[1] - self.budgets[0]
        far = np.maximum(self.compute(*inputs) - self.budgets[1], 0.0)
        for x, (name, (low, high)) in zip(inputs, self.ranges.items()):
            at = np.asarray(x, np.float64) if name in self.plain else np.log(np.asarray(x, np.float64))
            outside = np.maximum(np.maximum(at - high, low - at), 0.0)
            scale = 1.0 if _amount(name) else wide / max(high - low, _NARROW)
            far = np.maximum(far, scale * outside)
        return np.asarray(far)

    def moved(self, factor: float, *inputs: np.ndarray) -> list[np.ndarray]:
        """The inputs with their compute times `factor`, every amount scaled alike."""
        amounts = _amounts(self.ranges)
        return [x * (factor ** (1 / len(amounts)) if name in amounts else 1.0) for name, x in zip(self.ranges, inputs)]

    @classmethod
    def from_dict(cls, tree: object) -> Self:
        """Reads `to_dict`. Raises TypeError, KeyError or ValueError for damage."""
        if not isinstance(tree, Mapping):
            raise TypeError(f"edges are {type(tree).__name__}, wanted an object")
        pair = lambda ends: (float(ends[0]), float(ends[1]))
        ranges = {str(name): pair(ends) for name, ends in tree["ranges"].items()}
        return cls(ranges=ranges, budgets=pair(tree["budgets"]), plain=tuple(tree.get("plain", ())))

    def to_dict(self) -> dict[str, object]:
        """JSON-ready: logs of the least and most."""
        ranges = {name: list(ends) for name, ends in self.ranges.items()}
        return {"ranges": ranges, "budgets": list(self.budgets), "plain": list(self.plain)}


def _amounts(names: Mapping[str, object]) -> tuple[str, ...]:
    """The inputs whose product is the compute: the first two amounts, or the first input where there is none."""
    amounts = tuple(name for name in names if _amount(name))[:2]
    return amounts or tuple(names)[:1]
