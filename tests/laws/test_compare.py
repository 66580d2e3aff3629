"""Forms and options chosen by a split of the runs by size, never by the runs that judge the choice."""

import dataclasses

import numpy as np
import pytest

from distill import laws

TRUE = laws.Supervised(A=3355.0, B=18186.0, E=1.22, alpha=0.408, beta=0.431, gamma=0.452)
CANDIDATES = [
    laws.Candidate(form="chinchilla"),
    laws.Candidate(form="supervised"),
    laws.Candidate(form="chinchilla", options={"delta": 1e-2}),
]


def table(broken: float = 0.0) -> laws.Table:
    """Ten sizes with eight budgets each; the losses of the two largest sizes are off by a factor 1 + broken."""
    generator = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e11, 10), np.geomspace(1e9, 1e12, 8)))
    L = TRUE(N, D) * np.exp(1e-3 * generator.normal(size=80))
    return laws.from_arrays(N=N, D=D, L=np.where(N > 2e10, L * (1 + broken), L))


def test_the_choice_sees_no_test_run():
    one, other = (laws.choose(CANDIDATES, table(broken)) for broken in (0.0, 0.3))
    assert one.best.form == other.best.form == "supervised"
    assert one.development == other.development and len(one.development) == 3
    assert one.error < 0.002 < 0.2 < other.error
    assert len(one.test) == 16 and len(one.fit.rows) == 64
    assert one.sizes == pytest.approx((1e7 * 10 ** (4 * 6 / 9), 1e7 * 10 ** (4 * 8 / 9)), rel=1e-6)
    assert one.beside["chinchilla"] > one.beside["supervised"] == one.error


def test_candidates_are_told_apart_and_parts_are_not_empty():
    with pytest.raises(laws.LawError, match="each of another form or other options"):
        laws.choose([CANDIDATES[0], dataclasses.replace(CANDIDATES[0])], table())
    two = table().where("N < 3e7")
    with pytest.raises(laws.LawError, match="wanted at least three sizes"):
        laws.choose(CANDIDATES, two)
    assert str(CANDIDATES[2]) == "chinchilla (delta=0.01)"
