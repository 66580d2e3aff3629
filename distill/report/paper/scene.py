"""The inputs of a figure: a law, the ranges of its axes, and the optima that several figures share."""

import dataclasses
import functools

import jax
import numpy as np
from numpy.typing import ArrayLike

from distill.laws.forms.law import Law
from distill.laws.planning.lawfile import LawFile
from distill.laws.planning.scenarios import Flops
from distill.report.paper.curves import BUDGETS, SIZES, Curves, curves

_BAND_DRAWS = 24
_BAND_BUDGETS = 13


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A law with the ranges of its figures: the paper's, or ranges around the fitted runs of a user's law."""

    law: LawFile
    sizes: tuple[float, ...]  # N_S of the line figures
    few_sizes: tuple[float, ...]  # N_S of Figures 8 and 15
    teachers: tuple[float, ...]  # N_T at M = 20
    budgets: np.ndarray  # FLOPs
    D: tuple[float, float]
    N: tuple[float, float]
    L: tuple[float, float]

    @property
    def supervised(self) -> Law:
        return self.law.supervised

    @property
    def distillation(self) -> Law:
        return self.law.distillation

    @property
    def flops(self) -> Flops:
        return self.law.flops

    @functools.cached_property
    def curves(self) -> Curves:
        """Optima of all sizes, budgets and scenarios."""
        return curves(self.supervised, self.distillation, flops=self.flops, sizes=self.sizes, budgets=self.budgets)

    @functools.cached_property
    def dense(self) -> Curves:
        """Optima on a grid of sizes and budgets fine enough for contours."""
        sizes = np.geomspace(self.sizes[0], self.sizes[-1], 30)
        budgets = np.geomspace(self.budgets[0], self.budgets[-1], 41)
        return curves(self.supervised, self.distillation, flops=self.flops, sizes=sizes, budgets=budgets)

    @functools.cached_property
    def few(self) -> Curves:
        """Optima of the few sizes of Figures 8, 9 and 15."""
        return curves(self.supervised, self.distillation, flops=self.flops, sizes=self.few_sizes, budgets=self.budgets)

    @functools.cached_property
    def bands(self) -> dict[str, np.ndarray] | None:
        """90% intervals of L_S* by scenario, [2, sizes, budgets], under a thinned bootstrap; None without one."""
        if self.law.boot is None:
            return None
        stack = jax.tree_util.tree_map(
            lambda leaf: np.asarray(leaf)[:_BAND_DRAWS] if np.ndim(leaf) else leaf, self.law.boot.kept
        )
        budgets = np.geomspace(self.budgets[0], self.budgets[-1], _BAND_BUDGETS)
        drawn = curves(stack.supervised, stack, flops=self.flops, sizes=self.sizes, budgets=budgets)
        out = {}
        for name, split in drawn.optima.items():
            low_high = np.percentile(split.L_S, [5, 95], axis=0)
            out[name] = np.array(
                [[np.interp(np.log(self.budgets), np.log(budgets), row) for row in side] for side in low_high]
            )
        return out

    def teacher_loss(self, N_T: ArrayLike, M: float = 20.0) -> np.ndarray:
        """L_T of teachers trained on M tokens a parameter."""
        N_T = np.asarray(N_T, np.float64)
        return np.asarray(self.supervised(N_T, M * N_T))


def scene(law: LawFile) -> Scene:
    """The paper's axes for the paper's law; for another law, axes that reach somewhat beyond its fitted runs."""
    if law.name == "paper" or law.region is None:
        return Scene(
            law=law,
            sizes=SIZES,
            few_sizes=(3e8, 1e9, 3e9, 1e10),
            teachers=(5.46e8, 9.75e8, 1.82e9, 2.72e9, 4.82e9, 7.75e9),
            budgets=BUDGETS,
            D=(1e9, 1e13),
            N=(1e8, 7e9),
            L=(1.75, 2.75),
        )
    region = law.region
    low_N, high_N = region.N_S
    low_D, high_D = region.D_S
    sizes = np.geomspace(low_N, 4 * high_N, 8)
    F = law.flops
    return Scene(
        law=law,
        sizes=tuple(sizes),
        few_sizes=tuple(sizes[::2]),
        teachers=tuple(np.geomspace(*region.teachers, 6)),
        budgets=np.geomspace(3 * F(low_N) * low_D, 3 * F(high_N) * high_D * 1e3, 61),
        D=(low_D / 2, high_D * 100),
        N=(low_N / 2, high_N * 10),
        L=(region.L_T[0] * 0.95, region.L_T[1] * 1.05),
    )
