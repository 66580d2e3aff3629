"""What a study consists of: its lines, presets and protocols, and mistakes in them; nothing is run."""

from pathlib import Path

import numpy as np
import pytest

from configs import study as study_config
from distill import data, laws
from distill.bench import study as bench
from distill.config import ConfigError, StudyExperimentConfig, build, counts
from distill.report.study.results import FittedLaw
from distill.study import analysis, matrix
from tests.study.test_study import study


def test_the_smoke_matrix():
    tasks = matrix.expand(study(), Path("w"))
    assert len(tasks) == len({task.run for task in tasks}) == 46
    assert [sum(task.stage == s for task in tasks) for s in range(3)] == [16, 20, 10]
    teachers = {task.run for task in tasks if task.config.data.split == "teacher"}
    taught = [task for task in tasks if task.stage]
    assert {task.config.teacher.run for task in taught} == teachers and len(teachers) == 4
    assert all(task.config.data.split == "student" for task in taught)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"models": ("a: 16x2",)}, "wanted 'name = width x layers'"),
        ({"models": ("cat = 16x2",), "supervised": ("cap @ 4K",)}, "Did you mean 'cat'"),
        ({"models": ("a = 16x2",), "supervised": ("a 4K",)}, "wanted 'models @ budgets'"),
        ({"models": ("a = 16x2",), "supervised": ("a @ many",)}, "wanted tokens"),
        ({"models": ("a = 16x2",), "teachers": ("a @ 8K",), "distilled": ("a@9K > a @ 4K",)}, "Did you mean 'a@8K'"),
        ({"models": ("a = 16x2",), "teachers": ("a @ 8K",), "distilled": ("a@8K a @ 4K",)}, "wanted 'teachers >"),
        ({"models": ("a = 16x2",), "supervised": ("a @ 4K # 0, 1",)}, "wanted seeds behind the '#'"),
        (
            {"models": ("a = 16x2",), "teachers": ("a @ 8K # 0",), "distilled": ("a@8K > a @ 4K # 1",)},
            "not among study.teachers of seed 1",
        ),
    ],
)
def test_a_wrong_line_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        matrix.expand(study(study=changes), Path("w"))


def test_a_budget_of_repeated_text():
    """'8K/2K' are 8K tokens of 2K unique ones, for all three kinds of runs; the budget alone says the length."""
    lines = {
        "models": ("a = 16x2",), "teachers": ("a @ 8K/2K",), "supervised": ("a @ 4K 4K/1K",),
        "distilled": ("a@8K/2K > a @ 4K/1K 4K",),
    }  # fmt: skip
    tasks = {task.name: task.config for task in matrix.expand(study(study=lines), Path("w"))}
    assert {name: (c.tokens, c.data.unique) for name, c in tasks.items()} == {
        "a@8K/2K": (8000, 2000), "a@4K": (4000, 0), "a@4K/1K": (4000, 1000),
        "a@8K/2K>a@4K/1K": (4000, 1000), "a@8K/2K>a@4K": (4000, 0),
    }  # fmt: skip
    assert len({task.trunk for task in matrix.expand(study(study=lines), Path("w"))}) == 5


def test_a_student_teaches_the_next():
    lines = {
        "models": ("a = 16x2",), "teachers": ("a @ 8K",), "seeds": (0, 1),
        "distilled": ("a@8K > a @ 4K", "a@8K>a@4K > a @ 4K 6K", "a@8K>a@4K>a@6K > a @ 4K"),
    }  # fmt: skip
    tasks = {task.name: task for task in matrix.expand(study(study=lines), Path("w"))}
    for end in ("", "#1"):
        chain = [f"a@8K{end}", f"a@8K>a@4K{end}", f"a@8K>a@4K>a@6K{end}", f"a@8K>a@4K>a@6K>a@4K{end}"]
        for teacher, taught in zip(chain, chain[1:]):
            assert tasks[taught].config.teacher.run == tasks[teacher].run
            assert tasks[taught].config.teacher.source == str(Path("w") / "runs" / tasks[teacher].run)
    assert len(tasks) == 10, sorted(tasks)
    with pytest.raises(ConfigError, match="nor a student of a line above"):
        matrix.expand(study(study=lines | {"distilled": lines["distilled"][::-1]}), Path("w"))


FINDINGS = {"chains": 96, "ensembles": 88, "repeats": 152, "teachers": 138, "lambda": 376, "stored": 160}


@pytest.mark.parametrize("preset, runs", FINDINGS.items())
def test_the_presets_of_findings_have_their_runs(preset, runs):
    config = build(StudyExperimentConfig, study_config.get_config(preset).to_dict())
    assert len(matrix.expand(config, Path("w"))) == runs


ABLATED = {
    "models": ("a = 16x1",),
    "teachers": ("a @ 8K",),
    "distilled": ("a@8K > a @ 4K 6K",),
    "ablations": ("lambda_ = 0 0.5 1", "target = soft topk:4 topk:16 argmax"),
}


def test_a_line_may_name_its_seeds():
    lines = {
        "models": ("c = 32x2", "p = 16x2"),
        "teachers": ("c @ 1M", "c @ 250K # 0 2"),
        "distilled": ("c@1M > p @ 125K", "c@250K > p @ 125K # 2"),
        "seeds": (0, 1),
    }
    found = {task.name for task in matrix.expand(study(study=lines), Path("w"))}
    teachers = {"c@1M", "c@1M#1", "c@250K", "c@250K#2"}
    assert found == teachers | {"c@1M>p@125K", "c@1M>p@125K#1", "c@250K>p@125K#2"}


@pytest.mark.parametrize("scale", ["", "paper-"])
@pytest.mark.parametrize("name", study_config.PROTOCOLS)
def test_the_protocols_hold_fixed_what_they_say(name, scale):
    """Tokens a parameter, or FLOPs of training, to within one step."""
    config = build(StudyExperimentConfig, study_config.get_config(scale + name).to_dict())
    tasks = matrix.expand(config, Path("w"))
    taught = [task for task in tasks if task.config.teacher.run]
    teachers = {task.run: task for task in tasks if task.config.data.split == "teacher"}
    alone = [task for task in tasks if not task.config.teacher.run and task.run not in teachers]
    kinds = {
        "fixed-M": (alone, "N"),
        "isoflop": (alone, "C"),
        "A": (taught, "C"),
        "B": (taught, "N"),
        "C": (taught, ""),
    }
    held, by = kinds[name]
    assert len(held) >= 5 and {task.config.teacher.run for task in taught} == set(teachers)
    step = config.batch_size * config.seq_len

    def per_parameter(task, wanted):
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        return min(abs(D - M * N) for M in wanted) <= step

    if by == "C":
        wanted = (3e19, 1e20, 3e20, 1e21) if scale else (3e10, 1e11, 3e11, 1e12)
        assert all(min(abs(t.flops - C) for C in wanted) <= t.flops / t.config.steps for t in held)
    else:
        assert all(per_parameter(task, (20, 40, 80, 160, 320) if name == "C" else (20,)) for task in held)
    if name in "AC":
        assert all(per_parameter(task, (20,)) for task in teachers.values())


def test_a_fitted_E_stands_beside_the_entropy_of_a_generated_language():
    supervised, distilled = laws.paper()
    told = {"path": Path(), "status": "ok", "message": "", "rows": 9, "error": None, "level": 0.9, "resamples": 9}
    fitted = [
        FittedLaw(name="law", law=law, intervals={"E": (1.1, 1.4)}, failed=0, **told) for law in (distilled, supervised)
    ]
    # One context, so that the entropy is that of a single distribution.
    config = study(data={"source": "generated", "generated": {"depth": 0, "symbols": 5}})
    p = data.make_language(config.data.generated).emission[0]
    said = analysis.entropy_sentence(config, fitted)
    assert f"is {-(p * np.log(p)).sum():.4f} nats" in said and f"fitted as {supervised.E:.4f} [1.1000, 1.4000]" in said
    assert analysis.entropy_sentence(study(), fitted) == "" and analysis.entropy_sentence(config, fitted[:1]) == ""


def test_the_bench_of_studies_has_the_rows_that_it_says():
    tasks = matrix.expand(bench._config(2), Path("w"))
    assert len(tasks) == 2 * 25 and sum(bool(task.config.teacher.run) for task in tasks) == 2 * 12


def test_an_ablation_varies_one_setting_at_a_time():
    config = study(study=ABLATED | {"seeds": (0, 1)})
    tasks = matrix.expand(config, Path("w"))
    students = [task for task in tasks if task.base]
    assert len(tasks) == 2 * (1 + 2 * 6) and len(students) == 24  # lambda 1 and the soft target are the student itself
    assert {task.stage for task in students} == {1}
    plain = [task for task in students if task.config.objective == config.objective]
    assert {task.settings for task in plain} == {(("lambda_", "1"), ("target", "soft"))} and len(plain) == 4
    assert {task.name for task in students if task.base == "a@8K>a@4K" and not task.config.seed} == {
        "a@8K>a@4K", *(f"a@8K>a@4K {x}" for x in ("lambda=0", "lambda=0.5", "target=topk:4", "target=topk:16",
                                                  "target=argmax")),
    }  # fmt: skip
    (four,) = (t for t in students if t.settings == (("target", "topk:4"),) and t.config.tokens == 4000 and not
               t.config.seed)  # fmt: skip
    assert (four.config.objective.target, four.config.objective.top_k) == ("topk", 4)
    # Every seed has its own teacher.
    teachers = {task.config.seed: task.run for task in tasks if not task.base}
    assert all(task.config.teacher.run == teachers[task.config.seed] for task in students)


@pytest.mark.parametrize(
    "line, message",
    [
        ("lambda_ 0 1", "wanted 'field = values'"),
        ("lambda_ =", "wanted 'field = values'"),
        ("lambd = 0 1", "names 'lambd', which is no field .* Did you mean 'lambda_'"),
        ("lambda_ = 0 2", "'lambda_ = 0 2': objective.lambda_: got 2.0, wanted a number from 0 to 1"),
        ("lambda_ = few", "config.objective.lambda_: got 'few', wanted a number"),
        ("target = hard", "config.objective.target: got 'hard', wanted one of"),
        ("target = argmax:3", "'argmax' takes no number; topk, topp"),
    ],
)
def test_a_wrong_setting_is_named(line, message):
    with pytest.raises(ConfigError, match=message):
        matrix.expand(study(study=ABLATED | {"ablations": (line,)}), Path("w"))


def test_a_setting_that_the_table_refuses_is_refused_before_anything_runs():
    config = study(study=ABLATED | {"ablations": ("target = soft sampled",)}, objective={"temperature": 2.0})
    with pytest.raises(ConfigError, match="'target = soft sampled': objective: .* of target='sampled' .* is refused"):
        matrix.expand(config, Path("w"))


def test_the_preset_of_ablations():
    config = build(StudyExperimentConfig, study_config.get_config("ablations").to_dict())
    tasks = matrix.expand(config, Path("w"))
    assert len(tasks) == 57 and sum(bool(task.base) for task in tasks) == 51
