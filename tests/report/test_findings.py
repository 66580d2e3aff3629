"""Findings are counts of rows: checked against hand-made tables, known noise and scipy."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from distill.report.study import findings, prose
from distill.report.study.findings import Noise
from distill.report.study.results import Results, load
from tests.report.conftest import NOISE, rows

QUIET = Noise(relative=0.001, source="seeds", cells=9)
BASE = rows()[-1]


def alone(N, D, loss, **changes):
    """A supervised row."""
    cleared = dict.fromkeys(("L_T", "teacher", "N_T", "D_T", "lambda_", "tau"), None)
    fields = {"run": f"s{N}-{D}-{loss}", "kind": "supervised", "N": N, "D": D, "loss": loss} | cleared | changes
    return dataclasses.replace(BASE, **fields)


def taught(N, D, L_T, loss, **changes):
    """A row of a student."""
    return dataclasses.replace(BASE, run=f"d{N}-{D}-{L_T}", N=N, D=D, L_T=L_T, loss=loss, teacher=f"t{L_T}", **changes)


def results(*runs):
    return Results(workdir=None, runs=tuple(runs))  # type: ignore[arg-type]


def test_every_student_meets_supervised_training_of_its_own_size():
    runs = [alone(10, 100, 2.0), alone(10, 200, 1.8), taught(10, 100, 1.5, 1.9), taught(10, 200, 1.5, 1.85)]
    found = findings.pair([*runs, taught(20, 100, 1.5, 1.7)])  # no supervised run of N = 20
    assert [(p.student.D, p.alone) for p in found] == [(100, 2.0), (200, 1.8)]
    assert [p.difference for p in found] == pytest.approx([-0.1, 0.05])


def test_a_baseline_is_the_mean_over_seeds_and_a_teacher_is_none_where_another_run_is():
    teacher = alone(10, 100, 1.0, run="t1.5")
    others = [alone(10, 100, 2.0, run="a"), alone(10, 100, 2.2, run="b", seed=1)]
    student = taught(10, 100, 1.5, 1.9)
    (pair,) = findings.pair([teacher, *others, student])
    assert (pair.alone, pair.count) == (pytest.approx(2.1), 2)
    (pair,) = findings.pair([teacher, student])
    assert (pair.alone, pair.count) == (1.0, 1)


def test_a_gap_in_the_middle_is_found_with_its_cost():
    falling = [taught(10, 100, L_T, L_S) for L_T, L_S in ((2.0, 1.9), (1.7, 1.6), (1.4, 1.5))]
    gap = [taught(10, 200, L_T, L_S) for L_T, L_S in ((2.0, 1.8), (1.7, 1.50), (1.4, 1.55))]
    found = findings.order(findings.student_groups([*gap, *falling]), QUIET)
    assert found is not None
    assert (found.cells, found.pairs, found.agree) == (2, 6, 5)
    assert (found.gaps, found.clear_gaps) == (1, 1)
    assert found.cost == pytest.approx(0.05)
    loud = findings.order(findings.student_groups([*gap, *falling]), dataclasses.replace(QUIET, relative=0.05))
    assert loud is not None and loud.clear_gaps == 0 and loud.gaps == 1
    assert findings.order(findings.student_groups(falling[:1]), QUIET) is None


def test_agreeing_pairs_are_kendalls():
    students = [run for run in rows(noise=0.05) if run.kind == "distillation"]
    found = findings.order(findings.student_groups(students), QUIET)
    assert found is not None
    agree = 0.0
    for _, group in itertools.groupby(sorted(students, key=lambda r: (r.N, r.D)), key=lambda r: (r.N, r.D)):
        cell = list(group)
        n = len(cell) * (len(cell) - 1) / 2
        tau = stats.kendalltau([run.L_T for run in cell], [run.loss for run in cell]).statistic
        agree += (tau + 1) / 2 * n
    assert found.agree == pytest.approx(agree)


def test_seed_noise_is_recovered_and_what_stands_in_for_it_is_named():
    found = findings.seed_noise(results(*rows(seeds=(0, 1, 2, 3))))
    assert found.source == "seeds"
    # Students differ by their teachers' noise as well, at most by all of it.
    assert NOISE * 0.8 < found.relative < NOISE * 1.6
    single = findings.seed_noise(results(*rows()))
    assert (single.source, single.cells) == ("validation", 0)
    assert single.relative == pytest.approx(np.mean([0.004 / run.loss for run in rows()]))


def test_noise_from_a_law_counts_the_parameters_spent(study_dir):
    """The fixture's laws say 0.8% mean error on 40 rows; Eq. 8 has nine parameters. Normal errors: sd = 1.2533 mean."""
    found = findings.seed_noise(load(study_dir))
    assert found.source == "law"
    assert found.relative == pytest.approx(0.008 * 1.25331 * np.sqrt(40 / 31), rel=1e-4)


def test_noise_shrinks_with_the_runs_that_a_baseline_averages():
    noise = Noise(relative=0.01, source="seeds", cells=9)
    assert not noise.exceeded(0.0282, 1.0, 1) and noise.exceeded(0.0283, 1.0, 1)
    assert not noise.exceeded(-0.0223, 1.0, 4) and noise.exceeded(-0.0224, 1.0, 4)


def test_tallies_count_wins_and_losses_beyond_noise():
    runs = [alone(10, 100, 2.0)] + [taught(10, 100, 1.5 + i / 10, loss) for i, loss in enumerate((1.9, 1.999, 2.1))]
    found = findings.tally(findings.pair(runs), QUIET)
    assert (found.pairs, found.wins, found.wins_beyond, found.losses_beyond) == (3, 2, 1, 1)
    assert found.mean == pytest.approx(-0.001 / 3)


def test_flops_are_split_by_purpose_and_none_is_lost():
    runs = rows()
    found = findings.costs(runs)
    assert found.student + found.teacher_training == pytest.approx(sum(run.flops_student for run in runs))
    teachers = {run.teacher for run in runs if run.teacher}
    assert found.teacher_training == pytest.approx(sum(3 * 4.0 * run.N * run.D for run in runs if run.run in teachers))
    students = [run for run in runs if run.kind == "distillation"]
    assert found.teacher_forward == pytest.approx(sum(4.0 * (run.N_T or 0) * run.D for run in students))
    assert found.run_seconds == 50 * len(runs)
    assert found.seconds == 50 * len(runs)  # one after the other, with pauses of ten seconds


def test_wall_clock_time_counts_runs_side_by_side_once_and_pauses_never():
    """Two runs of 50 s that overlap by 20 s, one inside the first, and another after a night: 80 + 50 s."""
    spans = (("12:00:00", "12:00:50"), ("12:00:30", "12:01:20"), ("12:00:10", "12:00:20"), ("23:00:00", "23:00:50"))
    runs = [
        dataclasses.replace(run, start=f"2026-01-01T{start}+00:00", end=f"2026-01-01T{end}+00:00")
        for run, (start, end) in zip(rows(), spans)
    ]
    found = findings.costs(runs)
    assert found.seconds == 130 and found.run_seconds == 50 + 50 + 10 + 50
    text = prose.costs_sentence(dataclasses.replace(found, seconds=9000.0, run_seconds=19260.0))
    assert "under way for 2 h 30 min" in text and "would have taken 5 h 21 min" in text
