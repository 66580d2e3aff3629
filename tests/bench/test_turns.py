"""Taking turns: who runs when, what is counted, and that a slow round cancels in a ratio."""

import itertools

import pytest

from distill.bench import turns


@pytest.fixture
def order():
    return []


def contenders(order):
    counter = itertools.count()

    def run(name):
        def work():
            order.append(name)
            return next(counter)

        return work

    return {"a": run("a"), "b": run("b")}


def test_rounds_alternate_and_the_first_is_not_counted(order):
    values = turns.take_turns(contenders(order), 3)
    assert "".join(order) == "abbaabba"
    assert values == {"a": [3, 4, 7], "b": [2, 5, 6]}


def test_without_a_warm_up_every_round_counts(order):
    assert turns.take_turns(contenders(order), 1, warm_up=False) == {"a": [0], "b": [1]}


def test_after_the_time_is_up_no_round_begins_but_one_is_always_counted(order, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(turns.time, "perf_counter", lambda: float(next(clock)))
    assert turns.take_turns(contenders(order), 5, seconds=0.0) == {"a": [3], "b": [2]}
    assert turns.take_turns(contenders(order), 5, seconds=2.5)["a"] != [3]


def test_a_round_that_is_slow_for_both_leaves_the_ratio(monkeypatch):
    ratios = turns.ratios([1.0, 10.0, 1.0], [2.0, 20.0, 2.0])
    assert ratios == [0.5, 0.5, 0.5] and turns.spread(ratios) == "0.50 [0.50, 0.50]"


def test_timed_measures_the_work(monkeypatch):
    clock = iter([5.0, 7.5])
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
    assert turns.timed(lambda: None)() == 2.5
