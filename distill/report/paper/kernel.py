"""Figure 10: the capacity gap in kernel regression, exact (the paper's synthetic demonstration)."""

import numpy as np
from matplotlib.figure import Figure

from distill.report.paper import style
from distill.report.theme import LIGHT

TEACHER_NORM, STUDENT_NORM, COEFFICIENTS = 5.0, 4.5, 1000


def errors(a: np.ndarray, m: int, n: int, T: float = TEACHER_NORM, D: float = STUDENT_NORM) -> tuple[float, float]:
    """(teacher's, student's) error: a target of coefficients a, a teacher of m of them, a student of n <= m or m.

    Each can only represent functions of norm at most T or D: the teacher scales its first m coefficients by C, the
    student fits the teacher's first k = min(m, n) coefficients and scales them by Q.
    """
    k = min(m, n)
    squares = a**2
    C = min(1.0, T / np.sqrt(squares[:m].sum()))
    Q = min(1.0, D / (C * np.sqrt(squares[:k].sum())))
    teacher = np.sqrt((C - 1) ** 2 * squares[:m].sum() + squares[m:].sum())
    student = np.sqrt((C * Q - 1) ** 2 * squares[:k].sum() + squares[k:].sum())
    return float(teacher), float(student)


def figure_10(scene: object = None, seed: int = 0) -> Figure:
    """A larger teacher keeps improving while its student gets worse again: a U in the teacher's size."""
    a = np.random.default_rng(seed).uniform(-1, 1, COEFFICIENTS)
    sizes = np.arange(1, COEFFICIENTS + 1)
    figure, axes = style.panels(1, 2, width=3.8, height=3.0)
    students = (50, 100, 200, 400)
    for i, (n, color) in enumerate(zip(students, LIGHT.shades(len(students)))):
        student = np.array([errors(a, int(m), n)[1] for m in sizes])
        how = {"color": color, "marker": style.marker(i), "markevery": 100, "markersize": 4}
        axes[0, 0].plot(sizes, student, label=f"student of n = {n}", **how)
        axes[0, 1].plot(sizes, student - student.min(), **how)
    teacher = np.array([errors(a, int(m), 1)[0] for m in sizes])
    axes[0, 0].plot(sizes, teacher, color=LIGHT.ink, linestyle=":", label="teacher")
    axes[0, 0].set(xlabel="teacher size m", ylabel="error", title=f"T = {TEACHER_NORM}, D = {STUDENT_NORM}")
    axes[0, 1].set(xlabel="teacher size m", ylabel="student error above its least", ylim=(0, 1))
    style.legend(figure, axes[0, 0])
    return figure
