"""Figures 1 to 5, 36 to 39 and 41: the law along the paper's protocols, with the runs if there are any."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.laws.fitting.table import load_table
from distill.report.paper import style
from distill.report.paper.scene import Scene
from distill.report.theme import LIGHT
from distill.system.numbers import si

_ISOFLOP = (3e19, 1e20, 3e20, 1e21)


def figure_1(scene: Scene) -> Figure:
    """Student against teacher loss: the paper's 354 runs that the figure shows, and the law through them.

    Filled points are the weaker students that the authors fitted (L_S > 2.3), open ones the strong ones they predicted.
    """
    runs = load_table("apple")
    N_S, D_S = runs.numbers("N_S"), runs.numbers("D_S_nominal")
    L_T, L_S = runs.numbers("L_T"), runs.numbers("L_S")
    figure, axes = style.panels(1, 2, width=4.6, height=3.8)
    ax = axes[0, 0]
    sizes = np.unique(N_S)
    grid = np.linspace(L_T.min(), L_T.max(), 200)
    for i, (size, color) in enumerate(zip(sizes, LIGHT.shades(len(sizes)))):
        of_size = size == N_S
        for D in np.unique(D_S[of_size]):
            ax.plot(grid, scene.distillation(size, D, grid), color=color, linewidth=0.6, alpha=0.7)
        for fitted in (True, False):
            shown = of_size & ((L_S > 2.3) == fitted)
            face = color if fitted else LIGHT.ground
            label = si(size) if fitted == (L_S[of_size] > 2.3).any() else None
            ax.plot(
                L_T[shown], L_S[shown], style.marker(i), color=color, markerfacecolor=face, markersize=3.2, label=label
            )
    low, high = L_T.min() - 0.03, L_S.max() + 0.03
    ax.plot([low, high], [low, high], color=LIGHT.ink, linestyle=":", linewidth=1)
    ax.set(xlabel="teacher cross-entropy $L_T$", ylabel="student cross-entropy $L_S$", xlim=(low, L_T.max() + 0.03))
    ax.legend(title="student $N_S$", fontsize=6, ncols=2, title_fontsize=7)
    predicted = np.asarray(scene.distillation(N_S, D_S, L_T))
    _predicted(axes[0, 1], L_S, predicted, "law of the figure")
    return figure


def _predicted(ax: Axes, observed: np.ndarray, predicted: np.ndarray, title: str) -> None:
    error = 100 * np.abs(predicted / observed - 1)
    ax.plot(observed, 100 * (predicted / observed - 1), ".", color=LIGHT.blue, markersize=3)
    ax.axhline(0, color=LIGHT.ink, linewidth=0.8)
    ax.set(
        xlabel="observed $L_S$",
        ylabel="predicted over observed - 1 (%)",
        title=f"{title}: mean {error.mean():.2f}%, largest {error.max():.2f}%",
    )


def _isoflop(ax: Axes, scene: Scene, L_T: float | None, budgets: Sequence[float]) -> None:
    N = np.geomspace(*scene.N, 200)
    losses, labels = [], []
    for C in budgets:
        D = C / (3 * scene.flops(N))
        loss = scene.supervised(N, D) if L_T is None else scene.distillation(N, D, L_T)
        losses.append(np.where(N * 1000 >= D, np.where(D >= N, loss, np.nan), np.nan))
        labels.append(f"C = {style.power(C)}")
    style.lines(ax, N, losses, labels)
    ax.set(xscale="log", xlabel="student size $N_S$")


def _budgets(scene: Scene) -> Sequence[float]:
    return _ISOFLOP if scene.law.name == "paper" else tuple(scene.budgets[[5, 15, 25, 35]])


def figure_2(scene: Scene) -> Figure:
    """Protocol A: students on IsoFLOP budgets under two teachers of 20 tokens a parameter (dotted: the teacher)."""
    return _protocol_a(scene, (scene.teachers[0], scene.teachers[-1]))


def figure_37(scene: Scene) -> Figure:
    """Protocol A in full: students on IsoFLOP budgets under six fixed teachers."""
    return _protocol_a(scene, scene.teachers)


def _protocol_a(scene: Scene, teachers: Sequence[float]) -> Figure:
    rows = -(-len(teachers) // 3)
    figure, axes = style.panels(rows, min(len(teachers), 3), sharey=True, sharex=True)
    for ax, N_T, L_T in zip(axes.flat, teachers, scene.teacher_loss(teachers)):
        _isoflop(ax, scene, float(L_T), _budgets(scene))
        ax.axhline(L_T, color=LIGHT.ink, linestyle=":", linewidth=1)
        ax.set_title(f"teacher {si(N_T)}, $L_T$ = {L_T:.2f}")
    for ax in axes[:, 0]:
        ax.set_ylabel("student loss $L_S$")
    style.legend(figure, axes[0, 0])
    return figure


def figure_3(scene: Scene) -> Figure:
    """Protocol B: teachers on IsoFLOP budgets, students at 20 tokens a parameter (dotted: supervised)."""
    return _protocol_b(scene, (scene.few_sizes[0], scene.few_sizes[2]))


def figure_38(scene: Scene) -> Figure:
    """Protocol B in full: teachers on IsoFLOP budgets, four students."""
    return _protocol_b(scene, scene.few_sizes)


def _protocol_b(scene: Scene, students: Sequence[float]) -> Figure:
    figure, axes = style.panels(1, len(students))
    N_T = np.geomspace(*scene.N, 200)
    for ax, N_S in zip(axes[0], students):
        losses = []
        for C in _budgets(scene):
            D_T = C / (3 * scene.flops(N_T))
            loss = np.asarray(scene.distillation(N_S, 20 * N_S, np.asarray(scene.supervised(N_T, D_T))))
            losses.append(np.where((N_T * 1000 >= D_T) & (D_T >= N_T), loss, np.nan))
        style.lines(ax, N_T, losses, [f"teacher C = {style.power(C)}" for C in _budgets(scene)])
        alone = float(np.asarray(scene.supervised(N_S, 20 * N_S)))
        ax.axhline(alone, color=LIGHT.ink, linestyle=":", linewidth=1)
        ax.set(xscale="log", xlabel="teacher size $N_T$", title=f"student {si(N_S)}")
    axes[0, 0].set_ylabel("student loss $L_S$")
    style.legend(figure, axes[0, 0])
    return figure


def figure_4(scene: Scene) -> Figure:
    """Protocol C: teachers of 20 tokens a parameter, students of 20 to 320 (star: best teacher)."""
    return _protocol_c(scene, (scene.few_sizes[0],))


def figure_39(scene: Scene) -> Figure:
    """Protocol C in full: the U in the teacher's size, four students."""
    return _protocol_c(scene, scene.few_sizes)


def _protocol_c(scene: Scene, students: Sequence[float]) -> Figure:
    figure, axes = style.panels(1, len(students))
    N_T = np.geomspace(scene.N[0], scene.N[1] * 20, 200)
    L_T = scene.teacher_loss(N_T)
    ratios = (20, 40, 80, 160, 320)
    for ax, N_S in zip(axes[0], students):
        losses = [np.asarray(scene.distillation(N_S, M * N_S, L_T)) for M in ratios]
        style.lines(ax, N_T, losses, [f"$M_S$ = {M}" for M in ratios])
        best = [int(np.argmin(loss)) for loss in losses]
        ax.plot(N_T[best], [loss[i] for loss, i in zip(losses, best)], "*", color=LIGHT.ink, markersize=7)
        ax.set(xscale="log", xlabel="teacher size $N_T$ (M = 20)", title=f"student {si(N_S)}")
    axes[0, 0].set_ylabel("student loss $L_S$")
    style.legend(figure, axes[0, 0])
    return figure


def figure_5(scene: Scene) -> Figure:
    """The laws along their variables: supervised L(N, D), and the student's loss against its teacher's."""
    figure, axes = style.panels(1, 2, width=4.0)
    D = np.geomspace(*scene.D, 200)
    sizes = scene.teachers
    style.lines(axes[0, 0], D, [np.asarray(scene.supervised(n, D)) for n in sizes], style.sizes_label(sizes, "N"))
    axes[0, 0].set(xscale="log", xlabel="tokens D", ylabel="supervised loss L")
    L_T = np.linspace(scene.L[0], scene.L[1], 200)
    losses = [np.asarray(scene.distillation(n, 20 * n, L_T)) for n in scene.few_sizes]
    style.lines(axes[0, 1], L_T, losses, style.sizes_label(scene.few_sizes))
    axes[0, 1].plot(L_T, L_T, color=LIGHT.ink, linestyle=":", label="$L_S = L_T$")
    axes[0, 1].set(xlabel="teacher loss $L_T$", ylabel="student loss $L_S$ ($M_S$ = 20)")
    for ax in axes[0]:
        ax.legend(fontsize=7)
    return figure


def figure_36(scene: Scene) -> Figure:
    """The supervised law: IsoFLOP profiles, and losses at 20 tokens a parameter."""
    figure, axes = style.panels(1, 2, width=3.8)
    _isoflop(axes[0, 0], scene, None, _budgets(scene))
    axes[0, 0].set_ylabel("supervised loss L")
    axes[0, 0].legend(loc="upper center")
    N = np.geomspace(*scene.N, 200)
    style.lines(
        axes[0, 1], N, [scene.teacher_loss(N, M) for M in (20, 40, 80, 160, 320)], ["M = 20", "40", "80", "160", "320"]
    )
    axes[0, 1].set(xscale="log", xlabel="size N", ylabel="supervised loss L")
    axes[0, 1].legend()
    return figure


def figure_41(scene: Scene) -> Figure:
    """Protocol D: students on fixed tokens, 4B to 512B, against the loss of their teacher."""
    tokens = (4e9, 8e9, 16e9, 32e9, 64e9, 128e9, 256e9, 512e9)
    if scene.law.name != "paper":
        tokens = tuple(np.geomspace(scene.D[0] * 2, scene.D[1] / 100, 8))
    L_T = np.linspace(scene.L[0], scene.L[1], 200)
    figure, axes = style.panels(1, 4, sharey=True)
    for ax, N_S in zip(axes[0], scene.few_sizes):
        losses = [np.asarray(scene.distillation(N_S, D, L_T)) for D in tokens]
        style.lines(ax, L_T, losses, [f"$D_S$ = {si(D)}" for D in tokens])
        ax.set(xlabel="teacher loss $L_T$", title=f"student {si(N_S)}")
    axes[0, 0].set_ylabel("student loss $L_S$")
    style.legend(figure, axes[0, 0])
    return figure
