"""Signals in the law: is a stored signal a constant offset, a factor on D_S, another teacher, or another exponent?

Whole distributions beside the k likeliest tokens (renormalised, or the rest as one more outcome) and random draws,
for students of three sizes on two budgets under two teachers.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar

from distill import laws
from distill.bench.findings.cells import Cells, Key, Label, count, difference, markdown, spread

TABLE = "signals"
_BY = ("signal", "N", "D", "N_T")
_WHOLE = "soft"
_LAW = {"delta": 1e-2, "units": False}
_Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]  # N_S, D_S, L_T
_Predict = Callable[[float], np.ndarray]


def section() -> str:
    """The cost of every signal in each cell, and which single number a signal carries into Eq. 8 describes it best."""
    table = laws.load_table(TABLE)
    students = table.where("kind == distillation")
    cells = Cells.of(students, _BY)
    signals = [name for name in dict.fromkeys(students["signal"]) if name != _WHOLE]
    settings = sorted({key[1:] for key in cells})
    header = ["N", "D", "L_T", "whole", *signals]
    L_T: dict[Label, float] = {n: float(np.mean(students["L_T"][students["N_T"] == n])) for n in set(students["N_T"])}
    rows = []
    for N, D, N_T in settings:
        whole = cells[_WHOLE, N, D, N_T]
        costs = [difference(cells[name, N, D, N_T], whole) for name in signals]
        shown = [f"{cost:+.3f}" for cost in costs]
        rows.append([count(N), count(D), f"{L_T[N_T]:.3f}", f"{cells.mean((_WHOLE, N, D, N_T)):.3f}", *shown])
    errors = [spread([(cells[name, *at], cells[_WHOLE, *at]) for at in settings]) for name in signals]
    rows.append(["", "", "", "standard error", *(f"{error:.3f}" for error in errors)])
    return "\n\n".join([markdown(header, rows), _which(cells, settings, L_T, signals)])


def _which(cells: Cells, settings: list[Key], L_T: dict[Label, float], signals: list[str]) -> str:
    """Left-out errors of each reading of a signal: one number, fitted on the other cells, predicts the cell's cost."""
    law = _whole_law(settings, cells, L_T)
    N, D, strength = np.array([(N, D, L_T[N_T]) for N, D, N_T in settings], float).T
    inputs = N, D, strength
    header = ["signal", "mean cost", *(name for name, _ in _readings(law, inputs))]
    rows = []
    for name in signals:
        cost = np.array([difference(cells[name, *at], cells[_WHOLE, *at]) for at in settings])
        row = [name, f"{cost.mean():+.3f}"]
        for _, predict in _readings(law, inputs):
            left_out = [_left_out(predict, cost, at) for at in range(len(cost))]
            row.append(f"{np.mean(np.abs(left_out)):.4f} ({_fitted(predict, cost, np.ones(len(cost), bool)):.3g})")
        rows.append(row)
    return markdown(header, rows)


def _whole_law(settings: list[Key], cells: Cells, L_T: dict[Label, float]) -> laws.Law:
    """Eq. 8's limit form of the whole distributions, here and at lambda = 1 in `lambda`: one text, one rate."""
    others = laws.load_table("lambda")
    supervised = laws.fit("supervised", others.where("kind == supervised"), **_LAW)
    one = others.where("kind == distillation and lambda == 1")
    here = np.array([(N, D, L_T[N_T], cells.mean((_WHOLE, N, D, N_T))) for N, D, N_T in settings])
    columns = zip(("N_S", "D_S", "L_T", "L_S"), ("N", "D", "L_T", "loss"), here.T)
    both = laws.from_arrays("signals", **{name: [*one[there], *values] for name, there, values in columns})
    return laws.fit("distillation-limit", both, supervised=supervised.law, **_LAW).law


def _readings(law: laws.Law, inputs: _Inputs) -> tuple[tuple[str, _Predict], ...]:
    """What a signal may be: costs in nats, [cells], as a function of the one number that it brings."""
    N, D, L_T = inputs
    whole = np.asarray(law(N, D, L_T))

    def instead(N: np.ndarray, D: np.ndarray, L_T: np.ndarray) -> np.ndarray:
        return np.asarray(law(N, D, L_T)) - whole

    return (
        ("offset, nats", lambda x: np.full(len(whole), x)),
        ("factor on L_S", lambda x: whole * math.expm1(x)),
        ("factor on D_S", lambda x: instead(N, D * math.exp(-x), L_T)),
        ("another D_S exponent", lambda x: instead(N, 250e3 * (D / 250e3) ** math.exp(-x), L_T)),
        ("another L_T, nats", lambda x: instead(N, D, L_T + x)),
    )


def _fitted(predict: _Predict, cost: np.ndarray, kept: np.ndarray) -> float:
    """The number that predicts the kept cells best, by least absolute error."""
    found = minimize_scalar(lambda x: np.abs(predict(x) - cost)[kept].mean(), bounds=(-0.5, 4.0), method="bounded")
    return float(found.x)


def _left_out(predict: _Predict, cost: np.ndarray, at: int) -> float:
    """The error in nats for a cell, by the number of all others."""
    kept = np.arange(len(cost)) != at
    return float(predict(_fitted(predict, cost, kept))[at] - cost[at])
