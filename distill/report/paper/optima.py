"""Figures 8, 9 and 17 to 34: the best students, teachers and splits against total compute."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from distill.laws.planning.scenarios import SCENARIOS, bill
from distill.report.paper import style
from distill.report.paper.scene import Scene
from distill.report.theme import LIGHT

_PARTS = {"student": LIGHT.blue, "logits": LIGHT.orange, "teacher": LIGHT.green}
_PART_LABEL = {"student": "student training", "logits": "teacher's logits", "teacher": "teacher's training"}


def figure_8(scene: Scene) -> Figure:
    """Best loss against compute for four students: the four scenarios and supervised training."""
    figure, axes = style.panels(1, 4, sharey=True)
    for ax, i, size in zip(axes[0], range(4), scene.few_sizes):
        for name, split in scene.few.optima.items():
            ax.plot(scene.budgets, split.L_S[i], label=style.SCENARIO_LABEL[name], **style.SCENARIO_STYLE[name])
        ax.plot(scene.budgets, scene.few.supervised_L[i], label="supervised", **style.SCENARIO_STYLE["supervised"])
        ax.set(xscale="log", xlabel="total compute (FLOPs)", title=style.sizes_label([size])[0])
    axes[0, 0].set_ylabel("student cross-entropy $L_S^*$")
    style.legend(figure, axes[0, 3])
    return figure


def figure_9(scene: Scene) -> Figure:
    """Optimal student tokens, teacher size and teacher tokens when both training and logits are paid."""
    split = scene.few.optima["pretraining_and_inference"]
    figure, axes = style.panels(1, 3, width=3.6)
    for ax, values, label in zip(
        axes[0],
        (split.D_S, split.N_T, split.D_T),
        ("student tokens $D_S^*$", "teacher size $N_T^*$", "teacher tokens $D_T^*$"),
    ):
        style.lines(ax, scene.budgets, values, style.sizes_label(scene.few_sizes))
        ax.set(xscale="log", yscale="log", xlabel="total compute (FLOPs)", ylabel=label)
    style.legend(figure, axes[0, 0])
    return figure


def figure_17(scene: Scene) -> Figure:
    """Best student loss against compute, one panel a scenario and one for supervised training."""
    series = {name: split.L_S for name, split in scene.curves.optima.items()}
    return _by_scenario(scene, series | {"supervised": scene.curves.supervised_L}, "$L_S^*$", bands=scene.bands)


def figure_18(scene: Scene) -> Figure:
    """Loss of the optimal teacher against compute, one panel a scenario."""
    return _by_scenario(scene, {name: split.L_T for name, split in scene.curves.optima.items()}, "$L_T^*$")


def contour_of(name: str) -> Callable[[Scene], Figure]:
    """Figures 19, 21, 24 and 27: the best loss over student size and compute, and its gain over supervised."""

    def draw(scene: Scene) -> Figure:
        dense = scene.dense
        gain = dense.optima[name].L_S - dense.supervised_L
        figure, axes = style.panels(1, 2, width=4.2, height=3.2)
        style.contours(axes[0, 0], dense.budgets, dense.sizes, dense.optima[name].L_S, label="$L_S^*$")
        style.difference(axes[0, 1], dense.budgets, dense.sizes, gain, 0.1, "$L_S^* - L$ (nats)")
        for ax in axes[0]:
            ax.set(xscale="log", yscale="log", xlabel="total compute (FLOPs)", ylabel="student size $N_S$")
        figure.suptitle(style.SCENARIO_LABEL[name], fontsize=9)
        return figure

    draw.__doc__ = f"{style.SCENARIO_LABEL[name].capitalize()}: best loss over student size and compute; gain in blue."
    return draw


def lines_of(name: str) -> Callable[[Scene], Figure]:
    """Figures 20, 22, 25 and 28: the optimal quantities against compute, one line a student."""

    def draw(scene: Scene) -> Figure:
        split = scene.curves.optima[name]
        quantities = {
            "student loss $L_S^*$": split.L_S,
            "teacher loss $L_T^*$": split.L_T,
            "student tokens $D_S^*$": split.D_S,
            "teacher size $N_T^*$": split.N_T,
        }
        figure, axes = style.panels(1, 4)
        for ax, (label, values) in zip(axes[0], quantities.items()):
            bands = scene.bands[name] if scene.bands and label.startswith("student loss") else None
            style.lines(ax, scene.budgets, values, style.sizes_label(scene.sizes), bands=bands)
            scale = "linear" if "loss" in label else "log"
            ax.set(xscale="log", yscale=scale, xlabel="total compute (FLOPs)", ylabel=label)
        style.legend(figure, axes[0, 0])
        figure.suptitle(style.SCENARIO_LABEL[name], fontsize=9)
        return figure

    draw.__doc__ = f"{style.SCENARIO_LABEL[name].capitalize()}: optimal losses, tokens and teacher against compute."
    return draw


def allocation_of(name: str) -> Callable[[Scene], Figure]:
    """Figures 23, 26 and 29: the share of compute of every part."""

    def draw(scene: Scene) -> Figure:
        chosen = range(0, len(scene.sizes), 2)
        figure, axes = style.panels(1, len(chosen), sharey=True)
        split = scene.curves.optima[name]
        for ax, i in zip(axes[0], chosen):
            cost = bill(SCENARIOS[name], scene.flops, scene.sizes[i], split.D_S[i], split.N_T[i], split.D_T[i])
            parts = {part: np.broadcast_to(getattr(cost, part), scene.budgets.shape) for part in _PARTS}
            shown = {part: share for part, share in parts.items() if np.any(share)}
            ax.stackplot(
                scene.budgets,
                [share / cost.total for share in shown.values()],
                labels=[_PART_LABEL[part] for part in shown],
                colors=[_PARTS[part] for part in shown],
                edgecolor=LIGHT.ground,
                linewidth=0.8,
            )
            title = style.sizes_label([scene.sizes[i]])[0]
            ax.set(xscale="log", ylim=(0, 1), xlabel="total compute (FLOPs)", title=title)
            ax.grid(False)
        axes[0, 0].set_ylabel("share of compute")
        style.legend(figure, axes[0, 0])
        figure.suptitle(style.SCENARIO_LABEL[name], fontsize=9)
        return figure

    draw.__doc__ = f"{style.SCENARIO_LABEL[name].capitalize()}: how the compute is split, four students."
    return draw


def figure_30(scene: Scene) -> Figure:
    """Optimal student tokens against compute, one panel a scenario and one for supervised training."""
    series = {name: split.D_S for name, split in scene.curves.optima.items()}
    return _by_scenario(scene, series | {"supervised": scene.curves.supervised_D}, "$D_S^*$", log=True)


def figure_31(scene: Scene) -> Figure:
    """Optimal teacher tokens against compute (at their bound where they are free)."""
    return _by_scenario(scene, {name: split.D_T for name, split in scene.curves.optima.items()}, "$D_T^*$", log=True)


def figure_32(scene: Scene) -> Figure:
    """Optimal teacher size against compute."""
    return _by_scenario(scene, {name: split.N_T for name, split in scene.curves.optima.items()}, "$N_T^*$", log=True)


def figure_33(scene: Scene) -> Figure:
    """Compute that supervised training needs for the same loss, over the compute of distillation."""
    ratios = {}
    for name, split in scene.curves.optima.items():
        ratios[name] = _supervised_tokens(scene, split.L_S) / (scene.budgets / (3 * scene.flops(_column(scene))))
    return _by_scenario(scene, ratios, "supervised / distillation compute", log=True, one=True)


def figure_34(scene: Scene) -> Figure:
    """Tokens that supervised training needs for the same loss, over the student's tokens."""
    ratios = {name: _supervised_tokens(scene, split.L_S) / split.D_S for name, split in scene.curves.optima.items()}
    return _by_scenario(scene, ratios, "supervised / distillation tokens", log=True, one=True)


def _column(scene: Scene) -> np.ndarray:
    return np.asarray(scene.sizes, np.float64)[:, None]


def _supervised_tokens(scene: Scene, loss: np.ndarray) -> np.ndarray:
    """D with L(N_S, D) = loss, by bisection; nan if supervised training never reaches it."""
    low, high = np.full(loss.shape, 0.0), np.full(loss.shape, 120.0)
    N = _column(scene)
    reachable = np.asarray(scene.supervised(N, np.exp(high))) <= loss
    for _ in range(80):
        middle = (low + high) / 2
        enough = np.asarray(scene.supervised(N, np.exp(middle))) <= loss
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reachable, np.exp(high), np.nan)


def _by_scenario(
    scene: Scene,
    series: dict[str, np.ndarray],
    label: str,
    log: bool = False,
    one: bool = False,
    bands: dict[str, np.ndarray] | None = None,
) -> Figure:
    figure, axes = style.panels(1, len(series), sharey=True)
    for ax, (name, values) in zip(axes[0], series.items()):
        band = bands.get(name) if bands else None
        style.lines(ax, scene.budgets, values, style.sizes_label(scene.sizes), bands=band)
        if one:
            ax.axhline(1.0, color=LIGHT.ink, linewidth=0.8)
        ax.set(xscale="log", xlabel="total compute (FLOPs)", title=style.SCENARIO_LABEL[name])
        if log:
            ax.set_yscale("log")
    axes[0, 0].set_ylabel(label)
    style.legend(figure, axes[0, -1])
    return figure
