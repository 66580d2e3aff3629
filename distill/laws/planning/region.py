"""The range that the fitted runs cover, so that a plan can warn where it extrapolates."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from distill.system.numbers import si

ANY = (0.0, 1e30)  # the range of a variable that the runs do not record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """The range of the fitted runs, (least, most) of each variable; a plan outside it warns that it extrapolates.

    A table of only students does not contain its teachers' sizes and tokens.
    """

    N_S: tuple[float, float]
    D_S: tuple[float, float]
    L_T: tuple[float, float]
    N_T: tuple[float, float] = ANY
    D_T: tuple[float, float] = ANY

    @classmethod
    def of(cls, N: ArrayLike, D: ArrayLike, N_S: ArrayLike, D_S: ArrayLike, L_T: ArrayLike) -> "Region":
        """The box around the columns of the supervised table (N, D) and the distillation table (N_S, D_S, L_T)."""
        box = {"N_S": N_S, "D_S": D_S, "L_T": L_T, "N_T": N, "D_T": D}
        return cls(**{name: (float(np.min(v)), float(np.max(v))) for name, v in box.items()})

    @property
    def teachers(self) -> tuple[float, float]:
        """The sizes of the teachers, or those of the students if the teachers' are unknown."""
        return self.N_S if self.N_T == ANY else self.N_T

    def beyond(self, values: Mapping[str, float]) -> list[str]:
        """One warning for every value outside the box by more than a twentieth."""
        out = []
        for name, value in values.items():
            low, high = getattr(self, name)
            if name == "L_T" and not low / 1.02 <= value <= high * 1.02:
                out.append(f"L_T = {value:.3f} lies outside the fitted runs ({low:.3f} to {high:.3f})")
            elif name != "L_T" and value > 1.05 * high:
                most = f"the largest fitted ({si(high)})"
                out.append(f"{name} = {si(value)} is {value / high:.3g} times {most}")
            elif name != "L_T" and value < low / 1.05:
                out.append(f"{name} = {si(value)} is only {value / low:.2g} of the least fitted ({si(low)})")
        return out


# The paper's runs: teachers of 143M to 12.6B, students of 143M to 7.75B, up to 512B tokens (Sections 4 and 5).
PAPER_REGION = Region(
    N_S=(1.43e8, 7.75e9), D_S=(3.6e9, 5.12e11), L_T=(1.895, 2.755), N_T=(1.43e8, 1.261e10), D_T=(2e9, 5.12e11)
)
