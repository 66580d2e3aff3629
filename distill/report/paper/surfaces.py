"""Figures 6, 7 and 13 to 16, and 40: the law itself over two variables, and its limit of infinite data."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from distill.report.paper import style
from distill.report.paper.scene import Scene
from distill.report.theme import LIGHT
from distill.system.numbers import si

Tokens = Callable[[np.ndarray, np.ndarray], np.ndarray]  # D of N and the x axis
_GRID = 160


def figure_6(scene: Scene) -> Figure:
    """L_S - L supervised over student tokens and student size, one panel a teacher of 20 tokens a parameter."""
    D = np.geomspace(*scene.D, _GRID)
    N = np.geomspace(*scene.N, _GRID)[:, None]
    return _six_teachers(scene, D, N, lambda N, D: D, "student tokens $D_S$")


def figure_14(scene: Scene) -> Figure:
    """As Figure 6, over the student's training compute."""
    low = 3 * scene.flops(scene.N[0]) * scene.D[0]
    C = np.geomspace(low, 3 * scene.flops(scene.N[1]) * scene.D[1], _GRID)
    N = np.geomspace(*scene.N, _GRID)[:, None]
    return _six_teachers(scene, C, N, lambda N, C: C / (3 * scene.flops(N)), "student compute (FLOPs)")


def _six_teachers(scene: Scene, x: np.ndarray, N: np.ndarray, tokens: Tokens, label: str) -> Figure:
    figure, axes = style.panels(2, 3, sharex=True, sharey=True)
    for ax, N_T, L_T in zip(axes.flat, scene.teachers, scene.teacher_loss(scene.teachers)):
        D = tokens(N, x[None, :])
        gain = np.asarray(scene.distillation(N, D, L_T)) - np.asarray(scene.supervised(N, D))
        last = ax in axes[:, -1]
        style.difference(ax, x, N[:, 0], gain, 0.2, "$L_S - L$ (nats)" if last else "")
        ax.set(xscale="log", yscale="log", title=f"$N_T$ = {si(N_T)}, $L_T$ = {L_T:.2f}")
    for ax in axes[-1]:
        ax.set_xlabel(label)
    for ax in axes[:, 0]:
        ax.set_ylabel("student size $N_S$")
    return figure


def figure_7(scene: Scene) -> Figure:
    """L_S over student size and teacher loss for six token budgets; the line is the best teacher L_T*."""
    budgets = (250e9, 500e9, 1e12, 2e12, 4e12, 16e12)
    if scene.law.name != "paper":
        budgets = tuple(np.geomspace(*scene.D, 6))
    N = np.geomspace(scene.N[0], scene.N[1] * 10, _GRID)[None, :]
    L_T = np.linspace(*scene.L, _GRID)[:, None]
    figure, axes = style.panels(2, 3, sharex=True, sharey=True)
    for ax, D in zip(axes.flat, budgets):
        loss = np.asarray(scene.distillation(N, D, L_T))
        style.contours(ax, N[0], L_T[:, 0], loss, label="$L_S$" if ax in axes[:, -1] else "")
        ax.plot(N[0], L_T[np.argmin(loss, axis=0), 0], color=LIGHT.ground, linewidth=2.4)
        ax.plot(N[0], L_T[np.argmin(loss, axis=0), 0], color=LIGHT.ink, linewidth=1.2, label="$L_T^*$")
        ax.set(xscale="log", title=f"$D_S$ = {si(D)}")
    for ax in axes[-1]:
        ax.set_xlabel("student size $N_S$")
    for ax in axes[:, 0]:
        ax.set_ylabel("teacher loss $L_T$")
    axes[0, 0].legend(loc="upper right", frameon=True)
    return figure


def figure_13(scene: Scene) -> Figure:
    """L_S - L supervised over teacher size and teacher tokens (above) or teacher compute (below), four students."""
    N_T = np.geomspace(scene.N[0], scene.N[1] * 100, _GRID)[None, :]
    figure, axes = style.panels(2, 4)
    for column, N_S in enumerate(scene.few_sizes):
        D_S = 20 * N_S if scene.law.name == "paper" else np.sqrt(scene.D[0] * scene.D[1])
        alone = float(np.asarray(scene.supervised(N_S, D_S)))
        D_T = np.geomspace(*scene.D, _GRID)[:, None]
        compute = np.geomspace(
            3 * scene.flops(scene.N[0]) * scene.D[0], 3 * scene.flops(scene.N[1]) * scene.D[1] * 10, _GRID
        )[:, None]
        rows = ((D_T, D_T, "teacher tokens $D_T$"), (compute, compute / (3 * scene.flops(N_T)), "teacher compute"))
        for row, (y, tokens, label) in enumerate(rows):
            L_T = np.asarray(scene.supervised(N_T, tokens))
            gain = np.asarray(scene.distillation(N_S, D_S, L_T)) - alone
            ax = axes[row, column]
            style.difference(ax, N_T[0], y[:, 0], gain, 0.2, "$L_S - L$ (nats)" if column == 3 else "")
            ax.set(xscale="log", yscale="log", xlabel="teacher size $N_T$")
            if not column:
                ax.set_ylabel(label)
        axes[0, column].set_title(f"$N_S$ = {si(N_S)}, $D_S$ = {si(D_S)}")
    return figure


def figure_15(scene: Scene) -> Figure:
    """L_S over student tokens and teacher loss, four students; left of the black line distillation wins."""
    sizes = (1e9, 3e9, 1e10, 3e10) if scene.law.name == "paper" else scene.few_sizes
    D = np.geomspace(scene.D[0] * 10, scene.D[1] * 10, _GRID)[None, :]
    L_T = np.linspace(*scene.L, _GRID)[:, None]
    figure, axes = style.panels(1, 4, sharey=True)
    for ax, N_S in zip(axes[0], sizes):
        loss = np.asarray(scene.distillation(N_S, D, L_T))
        gain = loss - np.asarray(scene.supervised(N_S, D))
        style.contours(ax, D[0], L_T[:, 0], loss, label="$L_S$" if ax is axes[0, -1] else "")
        ax.contour(D[0], L_T[:, 0], gain, levels=[0.0], colors=LIGHT.ink, linewidths=2.0)
        ax.set(xscale="log", xlabel="student tokens $D_S$", title=style.sizes_label([N_S])[0])
    axes[0, 0].set_ylabel("teacher loss $L_T$")
    return figure


def figure_16(scene: Scene) -> Figure:
    """L_S at a fixed total compute over teacher size and teacher loss, the teacher's logits paid; dot: the optimum."""
    budgets = (1e21, 1e22, 1e23, 1e24) if scene.law.name == "paper" else tuple(scene.budgets[[5, 20, 35, 50]])
    N_S = scene.few_sizes[1]
    N_T = np.geomspace(scene.N[0], scene.N[1] * 100, _GRID)[None, :]
    L_T = np.linspace(*scene.L, _GRID)[:, None]
    figure, axes = style.panels(1, 4, sharey=True)
    possible = np.asarray(scene.supervised(N_T, 1e17)) <= L_T
    for ax, C in zip(axes[0], budgets):
        D_S = C / (3 * scene.flops(N_S) + scene.flops(N_T))
        loss = np.where(possible, np.asarray(scene.distillation(N_S, D_S, L_T)), np.nan)
        style.contours(ax, N_T[0], L_T[:, 0], loss, label="$L_S$" if ax is axes[0, -1] else "")
        at = np.unravel_index(np.nanargmin(loss), loss.shape)
        ax.plot(N_T[0, at[1]], L_T[at[0], 0], "o", color=LIGHT.ground, markeredgecolor=LIGHT.ink)
        ax.set(xscale="log", xlabel="teacher size $N_T$", title=f"C = {style.power(C)}, {style.sizes_label([N_S])[0]}")
    axes[0, 0].set_ylabel("teacher loss $L_T$ (blank: out of reach)")
    return figure


def figure_40(scene: Scene) -> Figure:
    """With infinite data, supervised training and the best teacher reach almost the same loss."""
    N = np.geomspace(scene.N[0], scene.N[1] * 10, 120)
    alone = np.asarray(scene.supervised(N, 1e30))
    L_T = np.linspace(alone.min() * 0.7, scene.L[1] * 1.3, 4001)[:, None]
    taught = np.asarray(scene.distillation(N[None, :], 1e30, L_T)).min(axis=0)
    figure, axes = style.panels(1, 2, width=3.8)
    axes[0, 0].plot(N, alone, label="supervised $L(N, \\infty)$", **style.SCENARIO_STYLE["supervised"])
    axes[0, 0].plot(N, taught, label="$\\min_{L_T} L_S(N, \\infty)$", **style.SCENARIO_STYLE["best_case"])
    axes[0, 0].set(xscale="log", xlabel="size N", ylabel="cross-entropy")
    axes[0, 0].legend()
    axes[0, 1].plot(N, 100 * (taught / alone - 1), color=LIGHT.blue)
    axes[0, 1].axhline(0, color=LIGHT.ink, linewidth=0.8)
    axes[0, 1].set(xscale="log", xlabel="size N", ylabel="difference (%)")
    return figure
