"""What the figures draw is read back from their axes; their colours hold against both grounds."""

import dataclasses
import re
from pathlib import Path

import jax
import matplotlib.colors
import numpy as np
import pytest

from distill.report import theme as theme_module
from distill.report.charts import picture
from distill.report.study import law_figures, results, run_figures
from distill.report.study.results import Results
from distill.report.theme import DARK, LIGHT, THEMES, padded, png
from tests.report.conftest import BUDGETS, DISTILLATION, SIZES, SUPERVISED, rows


@pytest.fixture(scope="module")
def found(study_dir):
    return results.load(study_dir)


def drawn(chart, theme=LIGHT):
    with theme.applied():
        return picture.draw(chart, theme)


def lines(ax, style="-"):
    """(x, y) of every line of a style."""
    chosen = [line for line in ax.get_lines() if line.get_linestyle() == style]
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in chosen]


def test_students_against_teachers_panel_by_panel(found):
    figure = drawn(run_figures.students(found), LIGHT)
    for ax, N in zip(figure.axes, sorted(SIZES.values())):
        means = lines(ax)
        assert len(means) == len(BUDGETS)
        for (x, y), D in zip(means, BUDGETS):
            truth = sorted((run.L_T, run.loss) for run in found.distilled if (run.N, run.D) == (N, D))
            np.testing.assert_array_equal(np.stack([x, y], axis=1), truth)
        dashed = sorted(float(y[0]) for _, y in lines(ax, "--"))
        alone = [run.loss for run in found.supervised[4:] if run.N == N]
        assert dashed == sorted(alone)
        ((x, y),) = lines(ax, ":")
        np.testing.assert_array_equal(x, y)


def test_lines_are_means_over_seeds():
    runs = tuple(rows(seeds=(0, 1, 2)))
    figure = drawn(run_figures.students(Results(workdir=Path(), runs=runs)), LIGHT)
    x, y = lines(figure.axes[0])[0]
    N, D = sorted(SIZES.values())[0], BUDGETS[0]
    best = [run for run in runs if (run.N, run.D, run.N_T, run.D_T) == (N, D, 98_000, 1_000_000)]
    assert len(best) == 3
    assert x[0] == pytest.approx(np.mean([run.L_T for run in best]))
    assert y[0] == pytest.approx(np.mean([run.loss for run in best]))


def test_loss_against_tokens_marks_the_runs_that_teach(found):
    figure = drawn(run_figures.tokens(found), LIGHT)
    stars = [(x, y) for ax in figure.axes for line in ax.get_lines() if line.get_marker() == "*"
             for x, y in zip(line.get_xdata(), line.get_ydata())]  # fmt: skip
    teachers = {(run.D, run.loss) for run in found.teachers if run.N in SIZES.values()}
    assert set(stars) == teachers
    (x, y), *_ = lines(figure.axes[0], "--")
    assert list(x) == list(BUDGETS)
    assert list(y) == [run.loss for run in found.supervised[4:] if min(SIZES.values()) == run.N]


def test_learning_curves_show_every_run(found):
    figure = drawn(run_figures.learning(found), DARK)
    assert sum(len(lines.get_paths()) for ax in figure.axes for lines in ax.collections) == len(found.runs)
    assert run_figures.learning(dataclasses.replace(found, curves={})) is None


def test_of_many_sizes_and_teachers_some_are_shown_and_it_says_so(found, monkeypatch):
    whole = drawn(run_figures.tokens(found), LIGHT)
    sizes = sum(ax.get_visible() for ax in whole.axes)
    assert sizes > 2 and whole.legends[0].get_title().get_text() == ""
    monkeypatch.setattr(run_figures, "_PANELS", 2)
    monkeypatch.setattr(run_figures, "_NAMED", 2)
    few = drawn(run_figures.tokens(found), LIGHT)
    titles = [ax.get_title(loc="left") for ax in few.axes if ax.get_visible()]
    assert titles == [whole.axes[0].get_title(loc="left"), whole.axes[sizes - 1].get_title(loc="left")]
    assert few.legends[0].get_title().get_text() == f"2 of {sizes} sizes"
    labels = [text.get_text() for text in few.legends[0].get_texts()]
    assert labels[-1] == "supervised" and sum(label.startswith("teacher ") for label in labels) == 2 == len(labels) - 1


def test_predictions_stand_where_they_were_made(found):
    figure = drawn(law_figures.accuracy(found))
    above, below = figure.axes[1], figure.axes[3]
    dots = next(line for line in above.get_lines() if line.get_marker() == "o")
    truth = [run.loss for run in found.distilled]
    np.testing.assert_array_equal(dots.get_xdata(), truth)
    expected = [DISTILLATION(run.N, run.D, run.L_T) for run in found.distilled]
    np.testing.assert_allclose(dots.get_ydata(), expected, rtol=1e-12)
    held, out = (line for line in above.get_lines() if line.get_marker() == "D")
    assert [matplotlib.colors.to_hex(line.get_color()) for line in (held, out)] == [LIGHT.green, LIGHT.orange]
    losses = {run.run: run.loss for run in found.runs}
    inside = [p for p in found.predictions if p.contains(losses[p.run])]
    assert list(held.get_ydata()) == [p.predicted for p in inside]
    assert len(held.get_xdata()) + len(out.get_xdata()) == len(found.predictions)
    bars = next(c for c in above.collections if len(c.get_segments()) == len(inside))
    assert [tuple(bar[:, 1]) for bar in bars.get_segments()] == [(p.lower, p.upper) for p in inside]
    errors = next(line for line in below.get_lines() if line.get_marker() == "o")
    np.testing.assert_allclose(errors.get_ydata(), 100 * (np.array(expected) / truth - 1), atol=1e-9)


def test_intervals_are_drawn_relative_to_the_estimate_and_end_in_arrows(found):
    figure = drawn(law_figures.intervals(found))
    upper, lower = figure.axes
    names = ["A", "B", "E", *"\N{GREEK SMALL LETTER ALPHA}\N{GREEK SMALL LETTER BETA}\N{GREEK SMALL LETTER GAMMA}"]
    assert [text.get_text() for text in upper.get_yticklabels()] == names[::-1]
    (bars,) = upper.collections
    assert len(bars.get_segments()) == len(names)
    for bar in bars.get_segments():
        np.testing.assert_allclose(bar[:, 0], [0.7, 1.5])
    arrows = {line.get_marker() for line in lower.get_lines()} & {"<", ">"}
    assert arrows == {"<", ">"}  # c1, from 0.1 to 1e8


def test_the_plan_takes_the_best_of_the_studys_teachers(found):
    curves = law_figures.plan_curves(found)
    N, F = 56_000.0, 4.0 * 56_000
    D = curves.compute / (3 * F)
    np.testing.assert_allclose(curves.supervised[0], SUPERVISED(N, D), rtol=1e-12)
    free, paid = curves.distilled.values()
    options = np.stack([DISTILLATION(N, D, teacher.loss) for teacher in found.teachers])
    np.testing.assert_allclose(free[0], options.min(axis=0), rtol=1e-12)
    assert (paid[0] > free[0]).all()
    for middle, low, high in (curves.supervised, free, paid):
        # The resampled laws of the fixture scatter around the law.
        assert (low < middle).all() and (middle < high).all()


def test_the_star_stands_where_the_advice_points(found):
    def star(plan):
        figure = drawn(law_figures.plan(dataclasses.replace(found, plan=plan), law_figures.plan_curves(found)))
        (line,) = [line for line in figure.axes[0].get_lines() if line.get_marker() == "*"]
        return float(line.get_xdata()[0]), float(line.get_ydata()[0])

    assert found.plan.distil and star(found.plan) == (6e12, 1.28)
    pretrain = dataclasses.replace(found.plan, distil=False, supervised_compute=5e12)
    assert star(pretrain) == (5e12, 1.37)


@pytest.mark.slow
def test_a_plan_with_a_teacher_of_its_own_beats_the_studys_teachers(found):
    plan = dataclasses.replace(found.plan, teacher="", scenario="best_case")
    with jax.numpy_rank_promotion("allow"):
        curves = law_figures.plan_curves(dataclasses.replace(found, plan=plan))
    free, _, own = curves.distilled.values()
    assert (own[0] <= free[0] + 1e-9).all()


def test_without_laws_their_figures_are_left_out(found):
    bare = dataclasses.replace(found, laws=(), plan=None)
    assert law_figures.accuracy(bare) is None
    assert law_figures.intervals(bare) is None
    assert law_figures.plan_curves(bare) is None


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colours_hold_against_their_ground(theme):
    """WCAG 2: text 4.5 to 1, graphical objects 3 to 1."""
    for color in (theme.ink, theme.soft):
        assert contrast(color, theme.ground) >= 4.5
    for color in theme.kinds:
        assert contrast(color, theme.ground) >= 3
    shades = theme.shades(7)
    assert sum(contrast(shade, theme.ground) >= 2 for shade in shades) >= 6
    lightness = [luminance(shade) for shade in shades]
    assert lightness == sorted(lightness)  # an order that survives grey print and every colour vision


# Linear RGB as seen without one kind of cone: Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colours_that_share_a_shape_differ_for_every_eye(theme, vision):
    """Distance in CIELAB of at least 20; blue and green, too close in tritanopia, differ in marker or dashes."""
    seen = [lab(np.array(VISION[vision]) @ linear(color)) for color in (theme.blue, theme.orange, theme.green)]
    assert np.linalg.norm(seen[0] - seen[1]) > 20
    assert np.linalg.norm(seen[1] - seen[2]) > 20


def lab(rgb):
    """CIELAB of linear RGB under D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    scaled = xyz / [0.9505, 1.0, 1.089]
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def linear(color):
    channels = np.array(matplotlib.colors.to_rgb(color))
    return np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(color):
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_the_same_figure_is_the_same_file(found):
    with LIGHT.applied():
        first, second = (png(drawn(run_figures.students(found), LIGHT)) for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")


def test_themes_leave_matplotlib_as_it_was():
    before = matplotlib.rcParams["axes.facecolor"]
    with DARK.applied():
        assert matplotlib.rcParams["axes.facecolor"] == DARK.ground
    assert matplotlib.rcParams["axes.facecolor"] == before


def test_limits_surround_a_single_value():
    low, high = padded([2.0])
    assert low < 2.0 < high


def test_the_theme_is_the_only_palette():
    """No figure names a colour of its own; a description of a chart names those of the theme."""
    folder = Path(theme_module.__file__).parent
    own = r"#[0-9a-fA-F]{3,8}|0\.\d|black|white|red|gr[ae]y|C\d"
    for path in sorted(folder.rglob("*.py")):
        if path.name not in ("theme.py", "terminal.py"):  # a terminal has colours of its own
            text = path.read_text("utf-8")
            named = re.compile(rf"""["']({own}{"|blue|green|orange" if "matplotlib" in text else ""})["']""")
            found = [line.strip() for line in text.splitlines() if named.search(line)]
            assert not found, f"{path}: {found}"
