"""Which runs a law is fitted to: students and others, runs without a loss, duplicates, the best of several."""

import json
import random
import re

import numpy as np
import pytest

from distill import laws
from distill.laws.fitting.checks import loss_doubts
from distill.laws.fitting.outliers import outliers
from distill.laws.fitting.rows import notes, rows_of, select

TRUE = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)


def grid(noise=0.003, seed=0):
    generator = np.random.default_rng(seed)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 6), np.geomspace(2e9, 2e11, 6)))
    return {"N": N, "D": D, "loss": TRUE(N, D) * np.exp(noise * generator.standard_normal(36))}


def test_a_row_with_a_teachers_loss_is_a_student():
    """Without a column `kind` too; today's file may hold both sorts."""
    runs = {"N": [1e8, 2e8, 4e8], "D": [1e10] * 3, "loss": [3.0, 2.8, 2.6], "L_T": ["", 2.5, 2.4]}
    alone, taught = select(laws.Supervised, runs), select(laws.Distillation, runs)
    assert alone.lines.tolist() == [1] and taught.lines.tolist() == [2, 3]
    assert alone.notes == ("2 rows with L_T left out: not runs of supervised",)
    with pytest.raises(laws.LawError, match="every row is one with a teacher's loss"):
        select(laws.Supervised, runs | {"L_T": [2.5] * 3})
    with pytest.raises(laws.LawError, match="every row is one without a teacher's loss"):
        select(laws.Distillation, runs | {"L_T": [""] * 3})


def test_the_default_law_follows_from_the_table():
    runs = {"N": [1e8], "D": [1e10], "loss": [3.0]}
    assert laws.default_form(runs) == laws.default_form(runs | {"L_T": [""]}) == "supervised"
    assert laws.default_form(runs | {"teacher_loss": [2.5]}) == "distillation"
    assert laws.default_form("apple") == laws.default_form("micro") == "distillation"


def test_a_run_without_a_loss_is_counted_named_and_left_out():
    runs = grid()
    runs["loss"] = [*runs["loss"][:-2], "", "nan"]
    selected = select(laws.Chinchilla, runs)
    assert len(selected) == 34 and selected.notes == ("2 rows without a loss left out: 35, 36",)
    assert len(rows_of(laws.Chinchilla, selected)) == 34
    with pytest.raises(laws.LawError, match="no row has a loss in 'loss'"):
        select(laws.Chinchilla, runs | {"loss": [""] * 36})


def test_crashed_rows_are_dropped_before_they_are_checked():
    runs = {"N": [1e8, "?", 4e8], "D": [1e10, -1, 4e10], "loss": [3.0, "inf", 2.6], "State": ["ok", "crashed", "ok"]}
    kept = laws.as_table(runs).where("State == ok")
    assert len(rows_of(laws.Supervised, select(laws.Supervised, kept))) == 2


@pytest.mark.parametrize("extra", [{}, {"index": [0, 1, 2]}, {"created": ["a", "b", "c"]}, {"empty": ["", "", 1]}])
def test_duplicates_are_seen_by_the_laws_own_columns(extra):
    """Whatever else differs: an index, a time stamp, an empty cell (nan is no two cells)."""
    runs = {"N": [1e8, 2e8, 1e8], "D": [1e10, 2e10, 1e10], "loss": [3.0, 2.8, 3.0]} | extra
    with pytest.raises(laws.LawError, match=r"rows 1 and 3 are the same run twice.*--duplicates=mean or keep"):
        rows_of(laws.Supervised, select(laws.Supervised, runs))
    kept = select(laws.Supervised, laws.as_table(runs, duplicates="keep"))
    assert len(rows_of(laws.Supervised, kept)) == 3
    merged = select(laws.Supervised, laws.as_table(runs, duplicates="mean"))
    assert merged.lines.tolist() == [1, 2] and "3 rows became 2" in merged.notes[-1]


def test_200_tables_with_a_run_twice_are_refused_by_its_rows():
    """Whatever columns stand beside it, filled, empty or numbered; where nothing is twice, nothing is said."""
    for seed in range(200):
        draw = random.Random(seed)
        runs = {name: [float(cell) for cell in cells] for name, cells in grid(seed=seed).items()}
        first, at = sorted(draw.sample(range(36), 2))
        if draw.random() < 0.5:
            runs |= {
                "L_T": [2.1 + 0.01 * (i % 3) for i in range(36)],
                "kl": [draw.choice(["", 0.1]) for _ in range(36)],
            }
        names = draw.sample(["index", "created", "seed", "note"], draw.randint(0, 3))
        runs |= {name: [draw.choice(["", f"{name} {i}"]) if name == "note" else i for i in range(36)] for name in names}
        form = laws.Distillation if "L_T" in runs else laws.Chinchilla
        assert len(rows_of(form, select(form, runs))) == 36
        for name in ("N", "D", "loss", "L_T"):
            if name in runs:
                runs[name][at] = runs[name][first]
        with pytest.raises(laws.LawError, match=rf"rows {first + 1} and {at + 1} are the same run twice"):
            rows_of(form, select(form, runs))


def test_a_row_of_sums_is_refused_with_the_rule_that_leaves_it_out():
    """200 tables with a Total at the end, or elsewhere: what the message advises is followed, and the rows are read."""
    for seed in range(200):
        draw = random.Random(seed)
        size = draw.choice(["N", "n_params", "model size", "params/total"])
        runs = {name: list(cells) for name, cells in grid(seed=seed).items()}
        runs[size] = runs.pop("N")
        at = draw.choice([0, 17, 36])
        runs[size].insert(at, empty := draw.choice(["", "nan", "-", "all of them", "Total"]))
        runs["D"].insert(at, 1e13)
        runs["loss"].insert(at, draw.choice([2.5, 90.0]))
        table = laws.as_table(runs, columns={"N": size} if size == "params/total" else {})
        with pytest.raises(laws.LawError, match="wanted a finite number") as error:
            rows_of(laws.Chinchilla, select(laws.Chinchilla, table))
        assert f"in row {at + 1} ({empty or 'nan'})" in str(error.value) or empty == "-"
        rule = re.search(r"leave such rows out .*: --rows='(.+)'\.", str(error.value))[1]
        assert size in rule
        kept = table.where(rule)
        assert len(kept) == 36 and len(rows_of(laws.Chinchilla, select(laws.Chinchilla, kept))) == 36


def test_an_empty_cell_hides_no_duplicate():
    students = {"N": [1e8, 1e8], "D": [1e10] * 2, "loss": [2.8] * 2, "L_T": [2.5] * 2, "kl": ["", ""]}
    with pytest.raises(laws.LawError, match="rows 1 and 2 are the same run twice, equal in N_S, D_S, L_T, L_S"):
        rows_of(laws.Distillation, select(laws.Distillation, students))


def test_seeds_are_averaged():
    runs = {"N": [1e8, 1e8, 2e8], "D": [1e10, 1e10, 2e10], "loss": [3.0, 3.2, 2.8], "seed": [0, 1, 0]}
    rows = rows_of(laws.Supervised, select(laws.Supervised, laws.as_table(runs, duplicates="mean")))
    np.testing.assert_allclose(rows.target, [3.1, 2.8])
    with pytest.raises(laws.LawError, match="Did you mean 'mean'"):
        laws.as_table(runs, duplicates="means")


def test_the_best_of_a_sweep_of_rates():
    rates = {"N": [1e8] * 3 + [2e8] * 3, "D": [1e10] * 6, "lr": [1, 2, 3] * 2, "loss": [3.1, 3.0, 3.4, 2.9, 2.8, 2.7]}
    told = notes(laws.Supervised, laws.as_table(rates))[-1]
    assert "2 of 2 (N, D) have several runs (6 in all, losses up to 13.3% apart)" in told and "--best-of=N,D" in told
    for names in (("N", "D"), ("N",)):
        best = select(laws.Supervised, laws.as_table(rates, best_of=names))
        assert best.lines.tolist() == [2, 6] and "2 of 6 rows" in best.notes[-1]
    assert len(notes(laws.Supervised, best)) == 2
    students = rates | {"L_T": [2.5] * 6}
    taught = select(laws.Distillation, laws.as_table(students, best_of=("N", "D", "L_T")))
    assert taught.lines.tolist() == [2, 6]


def test_selecting_twice_is_selecting_once():
    """A holdout selects, cuts and fits, which selects again."""
    runs = grid()
    runs = {name: np.concatenate([values, values[:4] * 1.01]) for name, values in runs.items()}
    runs["D"][36:] = runs["D"][:4]
    runs["N"][36:] = runs["N"][:4]
    for options in ({"duplicates": "mean"}, {"best_of": ("N", "D")}):
        once = select(laws.Chinchilla, laws.as_table(runs, **options))
        twice = select(laws.Chinchilla, once)
        assert len(once) == 36 and once.lines.tolist() == twice.lines.tolist() and once.notes == twice.notes


def test_a_path_a_dict_and_a_data_frame_are_tables(tmp_path):
    class Frame:
        """As pandas and polars: `columns`, and a column by its name."""

        def __init__(self, data):
            self._data, self.columns = data, list(data)

        def __getitem__(self, name):
            return self._data[name]

    runs = grid()
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([dict(zip(runs, map(float, row))) for row in zip(*runs.values())]))
    laws_found = [laws.fit("chinchilla", source).law for source in (runs, str(path), path, Frame(runs))]
    assert len({law.E for law in laws_found}) == 1
    assert pytest.approx(TRUE.E, rel=0.05) == laws_found[0].E
    with pytest.raises(laws.LawError, match="got int; wanted a table, a path"):
        laws.fit("chinchilla", 3)
    with pytest.raises(laws.LawError, match="columns of different lengths"):
        laws.fit("chinchilla", runs | {"N": [1e8]})


def test_a_table_in_a_notebook():
    table = laws.as_table({"N": [1e8] * 20, "name": ["<b>"] * 20})
    html = table._repr_html_()
    assert html.count("<tr>") == 9 and "&lt;b&gt;" in html and "20 rows" in html and "<b>" not in html
    assert repr(table) == "Table(table: 20 rows; N, name)"


def broken(kind, row):
    """A clean table with one row, or a sixth of the rows, that cannot be meant; and the words that name it."""
    runs = grid(seed=row)
    if kind == "millions":
        runs["N"][row] /= 1e6
        return runs, [row], "N in millions, x1e6"
    if kind == "billions of tokens":
        runs["D"][row] /= 1e9
        return runs, [row], "D in billions, x1e9"
    if kind == "diverged":
        runs["loss"][row] = 7.5
        return runs, [row], "diverged"
    if kind == "perplexity":
        runs["loss"][row] = np.exp(runs["loss"][row])
        return runs, [row], "perplexity"
    if kind == "bits":
        rows = np.sort(np.random.default_rng(row).choice(36, 6, replace=False))
        runs["loss"][rows] /= np.log(2)
        return runs, rows.tolist(), "/ ln 2"
    total = {"N": runs["N"].sum(), "D": runs["D"].sum(), "loss": runs["loss"].mean()}
    runs = {name: np.append(values, total[name]) for name, values in runs.items()}
    return runs, [36], "a row of totals"


@pytest.mark.parametrize("kind", ["millions", "billions of tokens", "diverged", "perplexity", "bits", "total"])
@pytest.mark.parametrize("row", [3, 29])
def test_rows_that_cannot_be_meant_are_named(kind, row):
    runs, rows, words = broken(kind, row)
    status = laws.fit("chinchilla", runs).status
    assert status.kind == "suspect rows" and words in status.message and not status
    for i in rows[:1] if len(rows) > 5 else rows:
        assert f"row {i + 1} " in status.message or len(rows) > 5
    assert f"{len(rows)} row" in status.message


def test_heavy_tails_are_no_suspects():
    """Student's t of 4 degrees of freedom at 0.5%, and the paper's own runs."""
    for seed in range(3):
        runs = grid(noise=0.0)
        runs["loss"] *= np.exp(0.005 * np.random.default_rng(seed).standard_t(4, 36))
        assert laws.fit("chinchilla", runs).status.kind == "ok"
    supervised = laws.paper()[0]
    assert "suspect" not in laws.fit("distillation-limit", "apple", supervised=supervised).status.kind


def test_many_seeded_units_are_found_again():
    """240 rows in another unit, by the law itself (no fit): the cause that is named is the change that was made."""
    generator = np.random.default_rng(5)
    runs = grid()
    table = select(laws.Chinchilla, runs)
    clean = rows_of(laws.Chinchilla, table)
    changes = {
        "x1e6": lambda N, D, L: (N / 1e6, D, L),
        "x1e9": lambda N, D, L: (N, D / 1e9, L),
        "/ ln 2": lambda N, D, L: (N, D, L / np.log(2)),
        "perplexity": lambda N, D, L: (N, D, np.exp(L)),
    }
    for case in range(240):
        words = list(changes)[case % 4]
        row = int(generator.integers(36))
        arrays = [values.copy() for values in (*clean.inputs, clean.target)]
        for values, value in zip(arrays, changes[words](*(values[row] for values in arrays))):
            values[row] = value
        rows = type(clean)(inputs=tuple(arrays[:2]), target=arrays[2], setting=clean.setting)
        residuals = np.log(TRUE(*rows.inputs)) - np.log(rows.target)
        found = outliers(TRUE, rows, residuals, table.columns, table.labels())
        assert [one.row for one in found] == [row] and words in found[0].cause, (case, found)


def test_an_implausible_unit_is_doubted():
    bits = laws.Chinchilla(A=480.0, B=2100.0, E=1.82 / np.log(2), alpha=0.35, beta=0.37)
    assert "--loss-unit=bits" in loss_doubts(bits, np.array([3.0, 4.0]))[0]
    assert "no trained model" in loss_doubts(TRUE, np.array([3.0, 14.0]))[0]
    assert not loss_doubts(TRUE, np.array([3.0, 4.0])) and not loss_doubts(laws.paper()[0], np.array([2.0]))
