"""Plans where text repeats: a law that reads its unique tokens is asked, for the others tokens count less."""

import dataclasses
import json

import numpy as np
import pytest

from distill import laws
from distill.laws.fitting import rows
from distill.laws.planning import lawfile, repeats
from distill.laws.planning.pretraining import pretraining
from distill.laws.planning.scenarios import UNLIMITED, effective_tokens

SUPERVISED, DISTILLATION = laws.paper()
CHINCHILLA = laws.Chinchilla(A=920.0, B=25500.0, E=2.14, alpha=0.375, beta=0.478)
PENALTY = laws.AdditivePenalty(**CHINCHILLA.values(), P=0.0507, delta=0.374, kappa=0.723)
STUDENT = laws.DistillationUnique(
    **{k: v for k, v in DISTILLATION.values().items() if k not in ("c1", "d1")}, kappa=DISTILLATION.kappa,
    P=0.0507, delta=0.374, eta=0.723, supervised=PENALTY,
)  # fmt: skip


def test_laws_without_unique_tokens_count_effective_ones():
    N, D = np.geomspace(1e8, 1e10, 5), np.geomspace(1e8, 1e12, 5)
    np.testing.assert_array_equal(repeats.alone(CHINCHILLA, N, D, 1e9), CHINCHILLA(N, effective_tokens(D, 1e9)))
    np.testing.assert_array_equal(
        repeats.taught(DISTILLATION, N, D, 2.5, 1e9), DISTILLATION(N, effective_tokens(D, 1e9), 2.5)
    )


def test_a_law_with_unique_tokens_never_reads_on_to_its_harm():
    """Before its minimum it is the law itself; beyond, nearly the lowest loss of any smaller number of tokens."""
    D = 1e9 * np.geomspace(0.1, 1e4, 400)
    law = PENALTY(3e9, D, np.minimum(D, 1e9))
    best = np.minimum.accumulate(law)
    got = repeats.alone(PENALTY, 3e9, D, 1e9)
    assert np.diff(got).max() < 1e-4 and law[-1] > law.min() + 0.1
    assert (got <= best * (1 + 1e-4)).all() and got.min() == law.min()
    np.testing.assert_array_equal(repeats.alone(PENALTY, 3e9, D, UNLIMITED), CHINCHILLA(3e9, D))


def test_enough_tokens_are_where_the_law_turns():
    most = repeats.enough(STUDENT, 1e9, 1e9, 2.4)
    at = lambda D: STUDENT(1e9, D, 2.4, 1e9)
    assert at(most) < min(at(most / 1.3), at(most * 1.3)) and 1e9 <= most < 1e13
    assert repeats.enough(STUDENT, 1e9, UNLIMITED, 2.4) == repeats.enough(DISTILLATION, 1e9, 1e9, 2.4) == np.inf


@pytest.mark.slow  # compiles the search of two forms
def test_without_repetition_a_plan_is_that_of_the_limit_form():
    fresh = dataclasses.replace(STUDENT, supervised=PENALTY)
    limit = laws.DistillationLimit(
        **{k: v for k, v in STUDENT.values().items() if k not in ("P", "delta", "eta")}, supervised=CHINCHILLA
    )
    one = laws.plan(PENALTY, fresh, N_S=1e9, compute=1e21, scenario="pretraining_and_inference")
    other = laws.plan(CHINCHILLA, limit, N_S=1e9, compute=1e21, scenario="pretraining_and_inference")
    assert pytest.approx((other.L_S, other.N_T, other.D_S), rel=1e-6) == (one.L_S, one.N_T, one.D_S)


@pytest.mark.parametrize("scenario", ["best_case", pytest.param("pretraining_and_inference", marks=pytest.mark.slow)])
def test_few_unique_tokens_cost_and_too_many_epochs_are_named(scenario):
    plenty, few = (laws.plan(PENALTY, STUDENT, N_S=1e9, compute=1e22, scenario=scenario, unique=u) for u in (1e13, 1e9))
    assert few.L_S > plenty.L_S + 0.02
    assert any("epochs of 1B distinct tokens are more than" in text for text in few.warnings)
    assert not any("epochs of" in text for text in plenty.warnings)
    # No teacher of a grid is better, be it paid or not.
    N_T, D_T = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 1e11, 30), np.geomspace(1e9, 1e12, 40)))
    L_T = repeats.alone(PENALTY, N_T, D_T, 1e9)
    F = few.problem.F
    left = 1e22 - (0.0 if scenario == "best_case" else 1.0) * 3 * F(N_T) * D_T
    D_S = left / (3 * F(1e9) + (0.0 if scenario == "best_case" else 1.0) * F(N_T))
    losses = repeats.taught(STUDENT, 1e9, D_S[left > 0], L_T[left > 0], 1e9)
    assert losses.min() + 3e-4 >= few.L_S and few.D_T < 1e12


def test_a_file_of_a_law_of_repetition_can_be_planned_with(tmp_path):
    path = tmp_path / "penalty.json"
    PENALTY.save(path, draws={k: [v, v * 1.001, v * 0.999] for k, v in PENALTY.values().items()})
    law = lawfile.read(path, borrow=True)
    assert law.borrowed and law.supervised == PENALTY and law.distillation.P == PENALTY.P
    alone = pretraining(law.supervised, compute=1e21, boot=law.boot, unique=1e9)
    fresh = pretraining(law.supervised, compute=1e21, boot=law.boot)
    assert alone.L > fresh.L and alone.interval["L"][0] < alone.L < alone.interval["L"][1]
    N = np.geomspace(1e8, 1e11, 400)
    by_hand = repeats.alone(PENALTY, N, 1e21 / (3 * law.flops(N)), 1e9).min()
    assert pytest.approx(by_hand, rel=1e-4) == alone.L and "epochs of 1B" in alone.sentence()
    chosen = laws.plan(law.supervised, law.distillation, N_S=1e9, compute=1e21, boot=law.boot, unique=1e9)
    assert chosen.probability is not None and "L_S" in chosen.interval


def test_a_file_of_students_with_unique_tokens(tmp_path):
    path = tmp_path / "student.json"
    STUDENT.save(path)
    law = lawfile.read(path)
    assert law.distillation == STUDENT and law.supervised == PENALTY
    json.loads(path.read_text())


def test_a_form_says_what_it_does_not_read():
    # A study of repeated text predicted its students 8.5% wrong, with none of 30 inside its interval, and said nothing.
    columns = {"N": [1e8, 2e8, 4e8], "D": [1e10] * 3, "D_unique": [1e10, 5e9, 2.5e9], "L": [3.0, 2.9, 2.8]}
    table = laws.as_table(columns)
    (note,) = rows.select(laws.Chinchilla, table).notes
    assert "2 of 3 runs repeat their text (D_unique below D), which chinchilla takes for fresh" in note
    assert not rows.select(laws.AdditivePenalty, table).notes
    students = laws.as_table(columns | {"L_T": [2.5] * 3, "lambda": [0.5, 0.5, 1.0]})
    first, second = rows.select(laws.DistillationLimit, students).notes
    assert "--law=distillation-unique" in first and "lambda (0.5, 1), which distillation-limit does not read" in second
    assert not any("lambda (" in note for note in rows.select(laws.LambdaMixture, students).notes)
