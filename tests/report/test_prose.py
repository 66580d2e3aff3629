"""Sentences follow the rows: turn the rows around and the verdict turns around."""

import dataclasses

import pytest
from scipy import stats

from distill.report.study import findings, prose
from distill.report.study.findings import Ledger
from distill.report.study.results import Results
from distill.system import numbers
from tests.report.conftest import rows


def of(runs):
    found = Results(workdir=None, runs=tuple(runs))  # type: ignore[arg-type]
    return found, findings.find(found)


@pytest.mark.parametrize(
    "value, text",
    [(999_936, "1M"), (26_848, "26.8K"), (125_000, "125K"), (12, "12"), (1.68e9, "1.68B"), (5.12e11, "512B")],
)
def test_counts(value, text):
    assert numbers.si(value) == text


@pytest.mark.parametrize("value, text", [(1290.4, "1290"), (0.01234, "0.0123"), (1e8, "1e8"), (-2e-5, "-2e-5")])
def test_numbers(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize("seconds, text", [(41, "41 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")])
def test_durations(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    "time, text",
    [
        (1.796e9, "2026-11-30 00:53:20"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31 10:00:00"),
        ("2026-01-31T12:00:00", "2026-01-31 12:00:00"),
    ],
)
def test_times_are_of_utc(time, text):
    assert numbers.utc(time) == text


def test_a_study_that_follows_the_law_is_read_as_the_law_says():
    _, found = of(rows(seeds=(0, 1)))
    ordering, small = prose.ordering(found), prose.small_budget(found)
    assert ordering and ordering[0].startswith("Yes")
    assert small and small[0] == "Yes" and "D = 125K" in small[1] and "6 of 6 pairs" in small[1]


def test_a_study_turned_upside_down_is_read_upside_down():
    """The worst teacher's students best, and all of them worse than supervised training."""
    upside = [
        run if run.L_T is None else dataclasses.replace(run, loss=5.0 - run.loss, L_T=run.L_T)
        for run in rows(seeds=(0, 1))
    ]
    found, counted = of(upside)
    ordering, small = prose.ordering(counted), prose.small_budget(counted)
    assert ordering and ordering[0].startswith("No")
    assert "a clear gap opens" in ordering[0]
    assert small and small[0] == "No" and "0 of 6 pairs" in small[1] and "+" in small[1]
    assert prose.headline(found, counted) == small[1]


def test_a_study_without_students_claims_nothing():
    found, counted = of([run for run in rows() if run.kind == "supervised"])
    assert prose.answers(counted) == []
    assert "no student" in prose.headline(found, counted)


@pytest.mark.parametrize("n", [1, 10, 40])
def test_what_chance_allows_is_the_binomial(n):
    low, high = prose.binomial_range(n, 0.9)
    assert (low, high) == tuple(int(k) for k in stats.binom.interval(0.95, n, 0.9))


def test_the_ledger_says_when_intervals_are_too_narrow():
    _, counted = of(rows())

    def said(inside):
        book = Ledger(inside=inside, total=40, level=0.9, error=0.01, waiting=0)
        return prose.ledger(dataclasses.replace(counted, ledger=book)) or ""

    assert said(36).startswith("36 of 40 later runs fell inside") and "too" not in said(36)
    assert "too narrow" in said(20)
    waiting = Ledger(inside=0, total=0, level=0.9, error=float("nan"), waiting=3)
    assert "3 predicted runs" in (prose.ledger(dataclasses.replace(counted, ledger=waiting)) or "")
    assert prose.ledger(counted) is None
    mixed = Ledger(inside=36, total=40, level=0.9, error=0.01, waiting=0, how={"calibrated": 38, "bootstrap alone": 2})
    origins = prose.ledger(dataclasses.replace(counted, ledger=mixed)) or ""
    assert "Intervals: 38 calibrated, 2 bootstrap alone" in origins and "Intervals:" not in said(36)
