"""Plans as configs: exact N and D, FLOPs within .3%, the loss paid for snapping, and files that build again."""

import pytest

from distill import laws
from distill.config import ExperimentConfig, build, counts, fingerprint
from distill.laws.planning import recipe as emit
from distill.laws.planning.recipe import ladder, recipe
from distill.laws.planning.scenarios import SCENARIOS, PlanError, Teacher
from distill.system.numbers import si
from launch.support import cli

SUPERVISED, DISTILLATION = laws.paper()
PAPER = ladder("paper")


def plan(**asked):
    return laws.plan(SUPERVISED, DISTILLATION, **asked)


def test_the_ladder_is_the_papers():
    printed = [
        0.1028,
        0.1434,
        0.1983,
        0.2657,
        0.3398,
        0.4348,
        0.546,
        0.6636,
        0.8096,
        0.9755,
        1.147,
        1.355,
        1.586,
        1.821,
    ]
    printed += [2.102, 2.41, 2.718, 3.082, 3.478, 3.87, 4.329, 4.823, 5.309, 5.873, 6.476, 7.066, 7.747, 8.47, 9.173]
    assert PAPER.N[: len(printed)] / 1e9 == pytest.approx(printed, rel=5e-4)
    assert PAPER.N[-3:] / 1e9 == pytest.approx([10.84, 11.66, 12.61], rel=5e-4)  # the 10B row is printed inconsistently


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_snapped_plan_is_what_the_dry_run_counts(name):
    chosen = plan(N_S=2e9, compute=1e20, scenario=name)
    found = recipe(chosen, PAPER)
    dry = counts.run_flops(
        found.student, found.teacher and found.teacher.model, found.teacher.tokens if found.teacher else 0
    )
    weights = SCENARIOS[name]
    exact = dry.student
    if found.teacher:
        exact += weights.logits * dry.teacher_forward + weights.pretraining * dry.teacher_training
    assert found.bill.total == pytest.approx(exact, rel=1e-9)
    assert found.bill.total == pytest.approx(1e20, rel=3e-3) == pytest.approx(chosen.bill.total, rel=3e-3)
    assert counts.training_tokens(found.student) == found.student.tokens
    assert abs(found.paid) < 0.02 and pytest.approx(found.paid + min(chosen.L_S, chosen.supervised.L)) == found.L_S


def test_the_teacher_is_named_by_its_fingerprint_and_reads_its_own_half():
    found = recipe(plan(N_S=1e9, compute=3e20), PAPER)
    assert found.student.teacher.run == fingerprint(found.teacher)
    assert found.teacher.data.split == "teacher" and found.student.data.split == "student"
    assert float(SUPERVISED(counts.non_embedding(found.teacher.model), found.teacher.tokens)) == pytest.approx(
        found.L_T
    )


def test_emitted_files_build_into_the_same_configs(tmp_path):
    chosen = plan(N_S=1e9, compute=3e20)
    found = recipe(chosen, PAPER)
    told = emit.write(found, chosen, tmp_path / "out")
    assert told.count("launch.train --config=") == 2
    changed = next(row.split() for row in emit.snapped(found, chosen, PAPER).splitlines() if "student tokens" in row)
    assert changed[2:4] == [si(chosen.D_S), si(found.student.tokens)]
    for name, wanted in (("student", found.student), ("teacher", found.teacher)):
        assert build(ExperimentConfig, cli.read(str(tmp_path / "out" / f"{name}.py")).to_dict()) == wanted


def test_pretraining_and_a_zoo():
    alone = recipe(plan(N_S=1e9, compute=1e22, scenario="teacher_pretraining"), PAPER)
    assert alone.teacher is None and not alone.student.teacher.run
    zoo = (Teacher(name="7B", N=7e9, L=1.95),)
    taught = recipe(plan(N_S=546e6, compute=3e19, scenario="teacher_inference", teachers=zoo), PAPER)
    assert taught.teacher is None and taught.L_T == 1.95


@pytest.mark.parametrize(
    "asked, rungs, words",
    [
        ({"N_S": 1e12, "compute": 1e25}, "paper", "lie outside it"),
        ({"N_S": 1e9, "compute": 3e15}, "paper", "less than one step"),
    ],
)
def test_what_a_ladder_cannot_do(asked, rungs, words):
    with pytest.raises(PlanError, match=words):
        recipe(plan(**asked), ladder(rungs))


def test_unknown_ladder():
    with pytest.raises(PlanError, match="Did you mean 'micro'"):
        ladder("mirco")
