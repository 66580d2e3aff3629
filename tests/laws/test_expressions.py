"""Rules that select rows: the grammar, empty cells, and a seeded comparison with Python's own logic."""

import random

import numpy as np
import pytest

from distill import laws

NAN = float("nan")
RUNS = laws.as_table(
    {
        "N": [1e8, 2e8, 4e8, 8e8],
        "L_T": [2.0, "", 2.4, None],
        "State": ["finished", "crashed", "finished", "not yet"],
        "eval/loss": [3.0, "", 2.6, 2.5],
        "val loss": [3.0, 2.8, 2.6, 2.5],
        "size": ["100M", "200M", "0.4B", ""],
        "teacher": ["a", "", "b", ""],
    }
)


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        ("L_T > 0", [1, 3]),  # an empty cell compares false with every operator
        ("L_T < 9", [1, 3]),
        ("L_T != 2.0", [3]),
        ("L_T != nan", [1, 3]),
        ("has(L_T)", [1, 3]),
        ("not has(L_T)", [2, 4]),
        ("teacher != a", [3]),
        ("teacher < z", [1, 3]),
        ("State == finished", [1, 3]),
        ("State == 'not yet'", [4]),
        ("eval/loss >= 2.6", [1, 3]),
        ('"val loss" <= 2.6', [3, 4]),
        ("`val loss` <= 2.6 and N > 400M", [4]),
        ("N <= 0.2B", [1, 2]),
        ("N > 1_0e7 and N<8e8", [2, 3]),
        ("size >= 200M", [2, 3]),
        ("N == 1e8 or N == 8e8", [1, 4]),
        ("N == 1e8 or N == 8e8 and State == 'not yet'", [1, 4]),
        ("(N == 1e8 or N == 8e8) and State == 'not yet'", [4]),
        ("not (N == 1e8 or N == 8e8)", [2, 3]),
        ("not has(teacher) and not State == crashed", [4]),
        ("eval/loss < L_T", []),  # columns of numbers: as texts '2.6' < 'L_T' was always true
        ("eval/loss >= L_T", [1, 3]),
        ("eval/loss < N and N != eval/loss", [1, 3, 4]),
        ("eval/loss == `val loss`", [1, 3, 4]),
        ("N == '1e8'", [1]),
    ],
)
def test_rules(rule, rows):
    assert RUNS.where(rule).lines.tolist() == rows


def test_a_crashed_runs_cells_do_no_harm_where_another_comparison_excludes_it():
    runs = laws.as_table({"N": [1e8, "error", 4e8], "State": ["ok", "crashed", "ok"]})
    assert runs.where("State == ok and N > 2e8").lines.tolist() == [3]
    assert runs.where("State == crashed or N > 2e8").lines.tolist() == [2, 3]
    with pytest.raises(laws.LawError, match="column 'N' in row 2 .error.; wanted a number"):
        runs.where("N > 2e8 and State == ok")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "cannot read"),
        ("L_S 2.3", "cannot read 'L_S 2.3'"),
        ("N >", "cannot read 'N >'"),
        ("N = 1e8", "cannot read 'N = 1e8'"),
        ("N > 1e8 and", "cannot read"),
        ("N > 1e8 State == finished", "cannot read"),
        ("State == not yet", "cannot read"),
        ("(N > 1e8", "not closed"),
        ("has(", "cannot read"),
        ("has(L_X)", "no column 'L_X'.*Did you mean 'L_T'"),
        ("L_T == nan", r"has\(L_T\)"),
        ("L_T < best", "'L_T' holds numbers, and 'best' is neither a number nor a column"),
        ("L_T != State", "'L_T' holds numbers, and 'State' is neither"),
        ("(" * 99 + "N > 1" + ")" * 99, "nested more than"),
    ],
)
def test_rules_that_cannot_be_read(rule, message):
    with pytest.raises(laws.LawError, match=message):
        RUNS.where(rule)


def test_the_shipped_table_with_its_empty_cells():
    micro = laws.load_table("micro")
    taught = int((micro["kind"] == "distillation").sum())
    for rule in ("L_T > 0", "L_T != nan", "has(L_T)", "N > 1 and L_T != 99"):
        assert len(micro.where(rule)) == taught


def test_a_renamed_column_keeps_its_old_name():
    runs = laws.as_table({"params": [1e8, 2e8], "N": [1, 2]}, {"N": "params"})
    assert runs.where("N > 1.5e8").lines.tolist() == runs.where("params > 1.5e8").lines.tolist() == [2]


def test_random_rules_agree_with_python():
    """400 seeded rules over numbers and texts with empty cells, against the same rule evaluated cell by cell."""
    draw = random.Random(0)
    rows = [
        {
            "a": draw.choice([1.0, 2.0, 3.0, NAN]),
            "run/b": draw.choice([1.0, 2.5, NAN]),
            "text": draw.choice(["x", "y", "x y", ""]),
        }
        for _ in range(40)
    ]
    runs = laws.as_table(rows)

    def comparison():
        name = draw.choice(["a", "run/b", "text", "has"])
        if name == "has":
            name = draw.choice(["a", "run/b", "text"])
            return f"has({name})", lambda row: row[name] == row[name] and row[name] != ""
        sign = draw.choice(["<", "<=", ">", ">=", "==", "!="])
        value = draw.choice([1.0, 2.0, 2.5]) if name != "text" else draw.choice(["x", "x y"])
        blank = draw.choice(["", " "])
        compare = {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__", "==": "__eq__", "!=": "__ne__"}[sign]
        written = f"{value:g}" if name != "text" else f"{draw.choice(['{!r}', '{!r}'])}".format(value)
        filled = lambda row: row[name] == row[name] and row[name] != ""
        return f"{name}{blank}{sign}{blank}{written}", lambda row: filled(row) and getattr(row[name], compare)(value)

    def rule(depth):
        kind = draw.random()
        if depth == 0 or kind < 0.3:
            return comparison()
        if kind < 0.45:
            text, truth = rule(depth - 1)
            return f"not ({text})", lambda row: not truth(row)
        (left, first), (right, second) = rule(depth - 1), rule(depth - 1)
        if kind < 0.75:
            return f"({left}) and ({right})", lambda row: first(row) and second(row)
        return f"({left} or {right})", lambda row: first(row) or second(row)

    for _ in range(400):
        text, truth = rule(3)
        wanted = [bool(truth(row)) for row in rows]
        assert runs.matching(text).tolist() == wanted, text
    assert np.isnan(runs["a"]).any()


def test_a_fit_of_no_rows_says_so():
    # It was a traceback: the minimum of an empty array.
    with pytest.raises(laws.LawError, match="no row is left for the law 'chinchilla'"):
        laws.fit("chinchilla", RUNS.where("N > 1e12"))
