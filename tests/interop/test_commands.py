"""From a run to a directory and back to a teacher, through the commands; users' mistakes are one line."""

import dataclasses
import json

import pytest

from configs import base, student
from distill import interop
from distill.config import ConfigError, ExperimentConfig, InitConfig, build, parse
from distill.model import warm_start
from distill.records.runs import load_record
from distill.teacher import any_model, conversion
from distill.training import loop
from launch import convert
from launch import evaluate as launch_evaluate
from launch.support import cli
from tests.tokens import library, publish

SMALL = {
    "model.d_model": "16", "model.n_layers": "2", "model.n_heads": "2", "model.d_ff": "24", "tokens": "4096",
    "batch_size": "8", "seq_len": "64", "eval.tokens": "2048", "eval.batch_size": "8", "loop.steps_per_call": "8",
}  # fmt: skip


BPE = {"data__tokenizer__kind": "bpe", "data__tokenizer__vocab_size": "300", "model__vocab_size": "300"}


def make(**changes):
    """An ExperimentConfig with SMALL and the changes, whose names have __ for a dot."""
    config = base.get_config()
    with config.unlocked():
        for path, text in (SMALL | {name.replace("__", "."): value for name, value in changes.items()}).items():
            *parents, last = path.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            node[last] = parse(ExperimentConfig, path, text)
    return build(ExperimentConfig, config.to_dict())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on bytes."""
    path = tmp_path_factory.mktemp("run")
    loop.train(make(data__cache=str(path / "stores")), path)
    return path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    assert convert.main([f"--in={run}", f"--out={out}", "--verify", "--law=paper"]) == 0
    return out


def test_a_student_of_written_text_has_a_card_too(run):
    record = dataclasses.replace(load_record(run / "result.json"), kind="generated", teacher="aa", N_T=12_000)
    found = conversion.facts(dataclasses.replace(any_model.load(str(run)), record=record))
    assert found["teacher"] == "aa, N = 12,000" and found["KL(teacher, student)"] == "not measured"


def scores(capsys, *flags):
    capsys.readouterr()
    assert cli.guard(launch_evaluate.main, [*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_card_says_what_was_measured_and_what_the_law_said(run, exported):
    record, text = load_record(run / "result.json"), (exported / "README.md").read_text()
    assert f"{record.loss:.4f} ± {record.loss_se:.4f}" in text and record.run in text
    assert "loss the law predicted (nats per token)" in text and "by paper" in text
    assert sorted(p.name for p in exported.iterdir()) == [
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]


def test_a_run_and_its_export_are_judged_alike(run, exported, capsys, tmp_path):
    """On the run's own text, and on other text through the tokenizer that travelled along."""
    record = load_record(run / "result.json")
    own = scores(capsys, f"--model={run}", "--tokens=2048")
    assert own["loss"] == pytest.approx(record.loss, rel=1e-5)
    assert own["bits_per_byte"] == pytest.approx(record.bits_per_byte, rel=1e-5)
    (tmp_path / "a.txt").write_text("The state of the union is what it is, more or less.\n" * 40)
    text = [f"--text={tmp_path / 'a.txt'}", "--tokens=512", "--seq_len=32", f"--cache={tmp_path / 'c'}"]
    mine = scores(capsys, f"--model={run}", *text)
    other = scores(capsys, f"--model={exported}", f"--teacher={exported}", *text)
    assert other["bits_per_byte"] == pytest.approx(mine["bits_per_byte"], rel=1e-5)
    assert other["kl"] == pytest.approx(0, abs=1e-6) and other["agreement"] == 1


def test_a_directory_teaches(run, exported, tmp_path):
    """Its N from its shapes, its loss measured, its tokens unknown; the run is named by its weights."""
    text = {"data__tokenizer__kind": "json", "data__tokenizer__path": str(exported), "data__cache": str(tmp_path / "s")}
    config = make(teacher__source=str(exported), **text)
    record = loop.train(config, tmp_path / "student")
    original = load_record(run / "result.json")
    assert (record.kind, record.N_T, record.D_T) == ("distillation", original.N, None)
    assert pytest.approx(original.loss, abs=0.05) == record.L_T
    assert f'teacher.run = "{record.teacher}"' in (tmp_path / "student" / "config.txt").read_text()
    # And a student may begin with its weights: an export of a tied model of ours has two tables.
    begun = make(init__source=str(exported), model__tied="false", model__scaled_embedding="false", **text)
    assert loop.train(begun, tmp_path / "begun").loss < record.loss


def test_a_student_of_any_directory(exported):
    """configs/student.py: the teacher's shape cut to a quarter, which a slice of its weights fits."""
    config = build(ExperimentConfig, student.get_config(str(exported)).to_dict())
    teacher = interop.open_source(exported)[1]
    assert (config.model.d_model, config.model.head_dim, config.model.tied) == (4, teacher.head_dim, False)
    warm_start.check(InitConfig(source="s", width="slice"), config.model, teacher)
    with pytest.raises(ConfigError, match="name the teacher"):
        student.get_config("")


@pytest.fixture
def routed(tmp_path):
    """A folder of gpt-oss's kind: windows in some layers, experts, sinks, biases."""
    shape = {
        "n_layers": 8, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_model": 32, "experts": 4, "d_ff": 24,
        "expert_d_ff": 24, "attention_sinks": True, "feed_bias": True, "qkv_bias": True, "out_bias": True,
        "activation": "clipped_swiglu", "window": 9, "global_layers": (0, 3, 5),
    }  # fmt: skip
    return publish(tmp_path / "oss", library(), shape=shape)


def test_a_student_of_a_teacher_whose_layers_differ(routed):
    """Of every fourth layer the student has its window, and experts of a quarter of their width."""
    teacher = interop.open_source(routed)[1]
    assert (teacher.global_layers, teacher.expert_dim) == ((0, 3, 5), 24)
    model = build(ExperimentConfig, student.get_config(str(routed)).to_dict()).model
    assert (model.n_layers, model.window, model.global_layers) == (2, 9, (0,))  # of the teacher's layers 0 and 4
    assert (model.experts, model.expert_dim, model.attention_sinks) == (4, 6, True)
    warm_start.check(InitConfig(source="s", width="slice"), model, teacher)


@pytest.mark.slow
def test_a_student_with_experts_learns_from_a_teacher_with_experts(routed, tmp_path):
    found = student.get_config(str(routed))
    with found.unlocked():
        found.tokens, found.batch_size, found.seq_len, found.loop.steps_per_call = 1024, 8, 32, 4
        found.eval.tokens, found.eval.batch_size, found.data.cache = 512, 8, str(tmp_path / "stores")
    record = loop.train(build(ExperimentConfig, found.to_dict()), tmp_path / "run")
    assert record.N_total > record.N and record.N_T_total > record.N_T and 0 < record.kl < 5


@pytest.mark.parametrize(
    "main, flags, words",
    [
        (convert.main, ["--in=nowhere", "--out=x"], ["nowhere", "no finished run", "GGUF"]),
        (convert.main, ["--in={exported}", "--out={exported}"], ["something already"]),
        (convert.main, ["--in={exported}", "--out=x", "--law=paper"], ["does not say on how many tokens"]),
        (launch_evaluate.main, ["--model={exported}", "--text=none*.txt"], ["none*.txt", "matches no file"]),
        (launch_evaluate.main, ["--model=nothing.gguf"], ["nothing.gguf", "no such file"]),
    ],
)
def test_a_mistake_is_one_line(main, flags, words, exported, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.guard(main, [flag.format(exported=exported) for flag in flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    for word in words:
        assert word in said


def test_an_export_of_rounded_products_says_that_it_is_another_model(tmp_path, capsys):
    """Other software multiplies in full; --verify called it a wrong config.json, and nothing else said it."""
    config = make(model__products="int8", data__cache=str(tmp_path / "d"))
    loop.train(config, tmp_path / "run")
    assert cli.guard(convert.main, [f"--in={tmp_path / 'run'}", f"--out={tmp_path / 'm'}", "--verify"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "its loss is that of products in int8" in said and "tensors are bit-equal in float32" in said
    assert "linear maps that multiply in int8" in (tmp_path / "m" / "README.md").read_text()
    assert any_model.load(tmp_path / "m").config.model.products == "full"


def test_what_fewer_bits_cost_a_model_is_measured(run, capsys):
    """Each form is further from the model than the one before, and the loss stays; float32 is the model."""
    dtypes = ("float32", "bfloat16", "int8", "int8_products", "float8_products")
    found = [scores(capsys, f"--model={run}", f"--teacher={run}", f"--dtype={name}") for name in dtypes]
    assert [one.get("dtype", "float32") for one in found] == list(dtypes)
    distances = [one["kl"] for one in found]
    assert abs(distances[0]) < 1e-8 and distances[0] < distances[1] and distances == sorted(distances), distances
    assert all(abs(one["loss"] - found[0]["loss"]) < 0.01 for one in found)
    assert cli.guard(launch_evaluate.main, [f"--model={run}", "--dtype=int4"]) == 2
    assert "wanted one of float32, bfloat16, int8" in capsys.readouterr().err


def test_an_equal_tokenizer_in_another_form_is_accepted(exported, tmp_path):
    """Bytes of ours, and the tokenizer.json that says so."""
    config = make(teacher__source=str(exported), data__cache=str(tmp_path))
    assert loop.train(config, tmp_path / "w").kind == "distillation"


def test_another_tokenizer_is_refused(exported, tmp_path, capsys):
    config = make(teacher__source=str(exported), data__cache=str(tmp_path), **BPE)
    assert cli.guard(lambda _: loop.train(config, tmp_path / "w"), []) == 2
    assert "ids from 256 on have no row" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_says_what_to_do(exported, run, tmp_path, capsys):
    """evaluate asked for data.tokenizer.path, for which it had no flag; a teacher read '' tokens."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((exported / name).read_bytes())
    assert cli.guard(launch_evaluate.main, [f"--model={bare}"]) == 2
    said = capsys.readouterr().err
    assert "no tokenizer.json in this folder" in said and "data.tokenizer.path" in said
    assert cli.guard(launch_evaluate.main, [f"--model={run}", f"--teacher={bare}"]) == 2
    assert "has no tokenizer that can be read" in capsys.readouterr().err
    config = make(teacher__source=str(bare), data__cache=str(tmp_path))
    assert cli.guard(lambda _: loop.train(config, tmp_path / "w"), []) == 2
    assert "has no tokenizer that can be read" in capsys.readouterr().err
