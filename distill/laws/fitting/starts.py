"""Start points of searches: random points anchored to the data, and the grids that papers published."""

import itertools

import numpy as np

from distill.laws.forms.law import Law, LawError
from distill.laws.forms.parameters import FitSetting

# By form: the values of each parameter, in order; exponents and f1 of 0 stand for a small positive number.
PUBLISHED: dict[str, tuple[tuple[float, ...], ...]] = {
    # Hoffmann et al., appendix D.3: A, B, E, alpha, beta (4500 starts).
    "chinchilla": (
        tuple(np.exp((0.0, 5.0, 10.0, 15.0, 20.0, 25.0))),
        tuple(np.exp((0.0, 5.0, 10.0, 15.0, 20.0, 25.0))),
        tuple(np.exp((-1.0, -0.5, 0.0, 0.5, 1.0))),
        (0.0, 0.5, 1.0, 1.5, 2.0),
        (0.0, 0.5, 1.0, 1.5, 2.0),
    ),
    # Busbridge et al., appendix F: A, B, E, alpha, beta, gamma (9600 starts).
    "supervised": (
        tuple(np.exp((0.0, 5.0, 10.0, 15.0, 20.0))),
        tuple(np.exp((0.0, 5.0, 10.0, 15.0, 20.0))),
        tuple(np.exp((-1.0, -0.5, 0.0, 0.5, 1.0, 1.5))),
        (0.0, 0.5, 1.0, 1.5),
        (0.0, 0.5, 1.0, 1.5),
        (0.0, 0.5, 1.0, 1.5),
    ),
    # The same: A', B', alpha', beta', gamma', c0, c1, f1, d1 (216,000 starts).
    "distillation": (
        tuple(np.exp((0.0, 5.0, 10.0, 15.0, 20.0))),
        tuple(np.exp((0.0, 5.0, 10.0, 15.0, 20.0))),
        (0.0, 0.5, 1.0),
        (0.0, 0.5, 1.0),
        (0.0, 0.5, 1.0),
        (0.0, 0.5, 1.0, 1.5),
        (0.0, 0.5, 1.0, 1.5),
        (0.0, 0.5, 1.0, 1.5),
        tuple(np.exp((-1.0, -0.5, 0.0, 0.5, 1.0))),
    ),
}
_ZERO = 0.02


def random(form: type[Law], setting: FitSetting, count: int, seed: int) -> np.ndarray:
    """Coordinates [count, p] drawn uniformly from the start ranges that the form declares."""
    low, high = np.array([p.start(setting) for p in form.parameters().values()]).T
    return np.random.default_rng(seed).uniform(low, high, (count, len(low)))


def published(form: type[Law], setting: FitSetting, count: int | None = None, seed: int = 0) -> np.ndarray:
    """Coordinates of the published grid, or of `count` random points of it. Raises LawError if there is no grid."""
    if form.name not in PUBLISHED:
        raise LawError(f"no grid of starts was published for {form.name}; known: {', '.join(PUBLISHED)}.")
    points = np.array(list(itertools.product(*PUBLISHED[form.name])))
    if count is not None and count < len(points):
        points = points[np.random.default_rng(seed).choice(len(points), count, replace=False)]
    positive = np.array([p.sign == "positive" for p in form.parameters().values()])
    points = np.where(positive & (points == 0.0), _ZERO, points)
    values = dict(zip(form.parameters(), points.T))
    inside = dict.fromkeys(form.given())
    coordinates = form(**values, **inside).pack(setting)
    low, high = np.array([p.box for p in form.parameters().values()]).T
    return np.clip(coordinates, low, high)
