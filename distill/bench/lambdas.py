"""The study of lambda judged: which law predicts runs of trunks, teachers and lambdas that it has not seen?"""

from collections.abc import Callable, Sequence

import numpy as np

from distill import laws
from distill.bench import refits
from distill.laws.fitting.rows import select

_HOW = {"delta": 1e-2, "units": False}
FORMS = ("distillation", "distillation-limit", "overtaking", "lambda-mixture")
_CELL = ("N", "D", "teacher")  # runs that differ in lambda alone


def judge(table: laws.Table) -> None:
    """Prints the supervised law, the fits, and mean errors of left-out runs: all, at lambda 1, at the best lambda."""
    sup = laws.fit("supervised", table, **_HOW)
    print(f"supervised: {len(sup.rows)} runs, in the sample {sup.error[0]:.2%}; {sup.status.kind}", flush=True)
    students = table.where("kind == distillation")
    share, L, L_T = (students.column(name).astype(float) for name in ("lambda", "loss", "L_T"))
    own = np.asarray(sup.law(students.column("N").astype(float), students.column("D").astype(float)))
    tuned = select(laws.LambdaMixture, laws.as_table(students, best_of=_CELL))
    best = np.isin(students["run"], tuned["run"])
    trivial = {"L_S = L_T": L_T, "(1 - lambda) Lsup + lambda L_T": (1 - share) * own + share * L_T}
    for name, guess in trivial.items():
        _show(name, {"none": np.abs(guess / L - 1)}, share == 1, best, "")
    groups = {
        "trunk": students["trunk"].astype(str),
        "teacher": students["teacher"].astype(str),
        "lambda": share.astype(str),
    }
    for form in FORMS:
        fit = laws.fit(form, students, supervised=sup.law, **_HOW)
        errors = {name: left_out(fit, labels) for name, labels in groups.items()}
        _show(form, errors, share == 1, best, f"in the sample {fit.error[0]:.2%}; {fit.status.kind}")
        if form == "lambda-mixture":
            boot = laws.bootstrap((sup, fit), resamples=200, cluster="trunk")
            print(f"  90% intervals by trunk: {_intervals(boot, ('s', 'G', 'h'))}", flush=True)
    lambda_one(students, sup.law)


def lambda_one(students: laws.Table, supervised: laws.Law) -> None:
    """Prints left-out errors of the forms without lambda, fitted to the runs of lambda = 1 alone, and to the best
    lambda of each size, budget and teacher, with how often L_S < L_T there."""
    one = students.where("lambda == 1")
    tuned = laws.as_table(students, best_of=_CELL)
    for label, table in (("lambda 1 alone", one), ("the best lambda", tuned)):
        for form in ("distillation-limit", "overtaking"):
            fit = laws.fit(form, table, supervised=supervised, **_HOW)
            below = float((fit.rows.target < fit.rows.inputs[2]).mean())
            errors = {by: left_out(fit, fit.table[by].astype(str)).mean() for by in ("trunk", "teacher")}
            print(
                f"{label}: {len(fit.rows)} runs, L_S < L_T in {below:.0%}; {form}: by trunk {errors['trunk']:.2%}, "
                f"by teacher {errors['teacher']:.2%}; in the sample {fit.error[0]:.2%}; {fit.status.kind}",
                flush=True,
            )


def left_out(fit: laws.Fit, labels: np.ndarray) -> np.ndarray:
    """Relative errors of every row, by a fit to the rows of the other labels, [rows]."""
    names = np.unique(labels)
    held = labels[None, :] == names[:, None]
    errors = np.full(len(labels), np.nan)
    for rows, law in zip(held, refits.refits(fit, ~held)):
        errors[rows] = refits.errors(fit, law, rows)
    return errors


def _show(name: str, errors: dict[str, np.ndarray], one: np.ndarray, best: np.ndarray, more: str) -> None:
    parts = [
        f"{'' if by == 'none' else f'by {by} '}{each.mean():.2%} (lambda 1: {each[one].mean():.2%}, the best lambda: "
        f"{each[best].mean():.2%})"
        for by, each in errors.items()
    ]
    print("; ".join([f"{name}: {', '.join(parts)}", *([more] if more else [])]), flush=True)


def _intervals(boot: laws.Bootstrap, names: Sequence[str]) -> str:
    interval: Callable[[str], tuple[float, float]] = boot.interval(0.9).__getitem__
    return ", ".join(f"{name} ({interval(name)[0]:.3g}, {interval(name)[1]:.3g})" for name in names)
