"""Figures and tables: exact demonstrations, the numbers behind the curves, and files that are pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import laws
from distill.laws.planning.lawfile import StoredLaws, read
from distill.laws.planning.scenarios import PlanError
from distill.report.paper import gallery, kernel, mapping, optima, tables
from distill.report.paper.curves import curves
from distill.report.paper.scene import scene
from launch.figures import main
from launch.support import cli

PAPER = read("paper")
SMALL = mapping.Mapping(
    student_width=8, student_steps=250, widths=(8,), teacher_steps=250, long_width=8, long_steps=(250, 500),
    batch=32, seeds=2, evaluation=256,
)  # fmt: skip


class TestKernelRegression:
    @pytest.mark.parametrize("m, n", [(10, 50), (60, 50), (100, 50), (500, 200), (1000, 400)])
    def test_errors_are_those_of_the_functions_themselves(self, m, n):
        a = np.random.default_rng(3).uniform(-1, 1, 1000)
        teacher = np.where(np.arange(1000) < m, a, 0.0)
        teacher *= min(1.0, kernel.TEACHER_NORM / np.linalg.norm(teacher))
        student = np.where(np.arange(1000) < n, teacher, 0.0)
        student *= min(1.0, kernel.STUDENT_NORM / np.linalg.norm(student))
        expected = np.linalg.norm(a - teacher), np.linalg.norm(a - student)
        assert kernel.errors(a, m, n) == pytest.approx(expected, rel=1e-12)

    def test_a_u_in_the_teachers_size_and_none_in_its_own_error(self):
        a = np.random.default_rng(0).uniform(-1, 1, kernel.COEFFICIENTS)
        teacher, student = np.array([kernel.errors(a, m, 100) for m in range(1, 1001)]).T
        assert 10 < student.argmin() < 990 and student[-1] > student.min() + 0.1
        assert teacher[-1] == teacher.min() and np.all(np.diff(teacher) < 0.05)


class TestMappingProblem:
    def test_labels_by_brute_force(self):
        x, label = (np.asarray(v) for v in mapping.sample(jax.random.key(0), 10, 200))
        for row, y in zip(x, label):
            context, index = row[:10].astype(int), int(row[10:].argmax())
            assert sorted(context) == [0] * 6 + [1, 1, 2, 2] and row[10:].sum() == 1
            other = [j for j in range(10) if j != index and context[j] == context[index]]
            assert y == (index if context[index] == 0 else other[0])

    def test_a_small_run_learns(self):
        results = mapping.run(SMALL)
        assert [[row["x"] for row in results[which]] for which in ("width", "steps")] == [[8], [250, 500]]
        first, second = (np.mean(row["teacher_cross_entropy"]) for row in results["steps"])
        assert second < first and len(results["alone"][0]["kl"]) == 2
        assert mapping.figure_11(results).axes and mapping.figure_12(results).axes

    def test_a_student_equal_to_its_teacher_has_no_divergence(self):
        nets, _ = mapping.train(SMALL, 8, 250, 0)
        assert float(jnp.max(jnp.abs(mapping.evaluate(SMALL, nets, nets)["kl"]))) < 1e-6


class TestCurves:
    def test_they_are_the_planners(self):
        found = curves(PAPER.supervised, PAPER.distillation, sizes=(1e9,), budgets=(1e22,))
        assert f"{found.optima['best_case'].L_S[0, 0]:.4f}" == "2.1310"
        assert f"{found.optima['teacher_inference'].L_S[0, 0]:.4f}" == "2.1395"
        assert f"{found.supervised_L[0, 0]:.4f}" == "2.1348"
        assert list(found.optima) == list(laws.SCENARIOS)

    def test_teachers_are_smooth_where_they_cost_next_to_nothing(self):
        found = curves(
            PAPER.supervised, PAPER.distillation, sizes=(3e8,), budgets=np.geomspace(1e24, 1e26, 11),
            scenarios=("teacher_pretraining",),
        )  # fmt: skip
        split = found.optima["teacher_pretraining"]
        for values in (split.N_T, split.D_T):
            assert np.all(np.abs(np.diff(np.log(values[0]))) < 0.05)

    def test_printed_claims_that_the_coefficients_do_not_reproduce(self):
        """Table 3's 'large student, small compute: mostly student', and 'teacher pretraining always loses'."""
        rows = tables.table_3(scene(PAPER))
        large_small = next(row for row in rows if row["N_S"] == 5e10 and row["compute"] == pytest.approx(1e21))
        assert large_small["teacher"] > 0.8 > 0.2 > large_small["student"]
        found = curves(PAPER.supervised, PAPER.distillation, sizes=(3e8,), budgets=(1e22,))
        assert found.optima["teacher_pretraining"].L_S[0, 0] < found.supervised_L[0, 0]


class TestTables:
    def test_closed_form_of_flops(self):
        assert max(abs(row["error"]) for row in tables.table_11(scene(PAPER))) < 3e-3

    def test_parts_add_up(self):
        *parts, N, total = tables.table_9(scene(PAPER))
        assert sum(row["parameters"] for row in parts) == total["parameters"]
        assert N["parameters"] == total["parameters"] - parts[-1]["parameters"]
        *parts, F = tables.table_10(scene(PAPER))
        assert sum(row["FLOPs per token"] for row in parts) == pytest.approx(F["FLOPs per token"])

    def test_coefficients_and_intervals(self):
        rows = tables.table_6(scene(dataclasses.replace(PAPER, boot=_draws())))
        assert len(rows) == 15 and all(row["low"] < row["value"] < row["high"] for row in rows)

    def test_text(self):
        rows = [{"a": 1.5, "b": "x"}, {"a": float("nan"), "b": "y"}]
        assert tables.to_csv(rows) == "a,b\n1.5,x\nnan,y\n"
        assert tables.to_markdown(rows).splitlines()[2:] == ["| 1.5 | x |", "| - | y |"]


class TestFiles:
    def test_pictures(self, tmp_path):
        drawn = gallery.draw(scene(PAPER), tmp_path, ["1", "6", "10", "40"])
        assert list(drawn) == ["1", "6", "10", "40"] and all(drawn.values())
        for path in tmp_path.glob("*.png"):
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 8_000
        assert len(list(tmp_path.iterdir())) == 4

    def test_every_number_of_the_paper_is_there(self):
        law_alone = {*map(str, range(1, 35)), *map(str, range(36, 42))}
        assert {*gallery.FIGURES, *gallery.MAPPING} == law_alone

    def test_every_figure_has_one_sentence(self):
        for make in [*gallery.FIGURES.values(), *gallery.MAPPING.values()]:
            sentence = make.__doc__.split("\n")[0]
            assert sentence.endswith(".") and len(sentence) < 140

    def test_a_law_of_ones_own_has_bands_and_its_own_axes(self):
        region = laws.Region(N_S=(1e4, 2e5), D_S=(2e5, 8e6), L_T=(1.2, 2.2), N_T=(1e4, 2e5), D_T=(2e5, 8e6))
        mine = scene(dataclasses.replace(PAPER, name="mine", region=region, boot=_draws(4)))
        assert mine.sizes[0] == pytest.approx(1e4) and mine.D[1] < 1e10
        few = dataclasses.replace(mine, sizes=mine.sizes[:2], budgets=mine.budgets[::20])
        assert optima.figure_17(few).axes[0].collections
        low, high = few.bands["best_case"]
        assert np.all(low <= high)

    def test_unknown_numbers(self, capsys, tmp_path):
        with pytest.raises(PlanError, match="wanted one of"):
            gallery.choose(["99"])
        assert cli.guard(main, [f"--out={tmp_path}", "--only=35"]) == 2
        assert capsys.readouterr().err.startswith("error: figure '35'") and not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_all_of_them(self, tmp_path):
        assert cli.guard(main, [f"--out={tmp_path}"]) == 0
        assert len(list(tmp_path.glob("figure_*.png"))) == len(gallery.FIGURES)
        assert len(list(tmp_path.glob("table_*"))) == 2 * len(tables.TABLES)
        page = (tmp_path / "gallery.md").read_text()
        assert all(f"figure_{int(n):02d}.png" in page for n in gallery.FIGURES)


def _draws(count=40):
    random = np.random.default_rng(0)
    return StoredLaws(
        kept=jax.tree_util.tree_map(lambda v: v * np.exp(0.003 * random.normal(size=count)), PAPER.distillation)
    )
