"""From prompts to a store of completions and a student of it: each completion once, whatever kills the process."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from distill import config as configs
from distill import data
from distill.config import ConfigError, DecodeConfig, DistillError, counts
from distill.config.data import ColumnsConfig, DataConfig, FilesConfig
from distill.config.generation import GenerationConfig
from distill.model import decode
from distill.records.runs import load_record
from distill.teacher import load
from distill.teacher.generation import generate, journal
from distill.teacher.generation.journal import Journal
from distill.teacher.generation.prompts import Prompts
from distill.training import loop
from launch import generate as launch_generate
from launch import train as launch_train
from launch.support import cli

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """A mesh of data=-1 takes one of the eight fake devices, here and in the loop of training."""
    make = loop.sharding.make
    monkeypatch.setattr(
        loop.sharding, "make", lambda config, *devices: make(config, *(devices or (jax.devices()[:1],)))
    )


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """A byte model of a few steps on the embedded text."""
    workdir, make = tmp_path_factory.mktemp("teacher"), loop.sharding.make
    flags = ["--config.tokens=4096", "--config.seq_len=32", "--config.eval.tokens=512", "--config.data.split=teacher"]
    config = cli.resolve(configs.ExperimentConfig, flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))
        loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def wanted(teacher):
    """150 prompts of 16 bytes, two completions each, in batches of 8."""
    return GenerationConfig(
        teacher=str(teacher),
        data=DataConfig(cache=str(teacher / "data")),
        decode=DecodeConfig(new_tokens=12),
        prompt_tokens=16,
        every=2048,
        prompts=150,
        per_prompt=2,
        batch_size=8,
        seed=3,
    )


@pytest.fixture(scope="session")
def done(wanted, tmp_path_factory):
    output, make = tmp_path_factory.mktemp("done"), loop.sharding.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))
        return generate.generate(wanted, output), output


def records(output):
    return list(journal.read(output / generate.JOURNAL))


def test_every_prompt_is_completed_as_often_as_asked_by_its_own_draws(wanted, teacher, done):
    """Beside the teacher alone, a batch of one completion: neighbours and padding change nothing."""
    manifest, output = done
    found = records(output)
    assert len(found) == manifest["completions"] == 300
    assert len({(r["document"], r["start"], r["sample"]) for r in found}) == 300
    store = data.open_store(wanted.data, wanted.data.cache)
    params = load.load(teacher).params
    text = store.split("student")
    for number in (0, 5, 299):
        r = found[number]
        assert bytes(r["prompt_ids"]).decode() == r["prompt"] and len(r["prompt_ids"]) == 16
        assert text.read_span(r["start"], r["start"] + 16).tolist() == r["prompt_ids"]
        assert np.searchsorted(text.document_ends(), r["start"], "right") == r["document"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(jax.random.key(3), number // 2), np.array([r["sample"]])
        )
        alone = decode.generate(
            dataclasses.replace(wanted.decode, stop=(0,)), params, np.array([r["prompt_ids"]]), keys
        )
        count = int(alone.weight.sum())
        assert r["ids"] == np.asarray(alone.tokens)[0, 16:][:count].tolist()
        assert r["log_prob"] == pytest.approx(float(alone.log_probs.sum()) / count, abs=1e-5)
        assert (
            r["finish"] == ("stop" if r["ids"][-1] == 0 else "length") and r["teacher"] == manifest["maker"]["teacher"]
        )


def test_the_manifest_counts_what_was_written(done, teacher):
    manifest, output = done
    found, model = records(output), load.read_info(teacher).config.model
    lengths = [len(r["ids"]) for r in found]
    assert (manifest["tokens"], manifest["prompt_tokens"]) == (sum(lengths), 300 * 16)
    assert manifest["flops"] == sum(counts.forward_flops(model, 16 + n) * (16 + n) for n in lengths)
    mean = np.average([r["log_prob"] for r in found], weights=lengths)
    assert manifest["log_prob"] == pytest.approx(mean) and -5.6 < mean < -1


def test_the_store_holds_the_completions_and_they_alone_count(done, wanted):
    manifest, output = done
    store = data.TokenStore(output / generate.STORE)
    assert store.fingerprint == manifest["store"] and store.maker == manifest["maker"]
    split, begin = store.split("student"), 0
    for r, end in zip(records(output), split.document_ends().astype(int), strict=True):
        assert split.read_span(begin, end).tolist() == r["prompt_ids"] + r["ids"]
        assert split.read_span(begin, end, "mask").tolist() == [0] * len(r["prompt_ids"]) + [1] * len(r["ids"])
        begin = end
    text = data.open_store(wanted.data, wanted.data.cache)
    held_out, source = store.split("validation"), text.split("validation")
    np.testing.assert_array_equal(held_out.read_span(0, held_out.tokens), source.read_span(0, source.tokens))
    loader = data.Loader(store, split="student", batch_size=4, seq_len=32, packing="documents", completions_only=True)
    weight = sum(float(loader.read(np.arange(i, i + 1)).weight.sum()) for i in range(loader.window_count))
    assert weight == manifest["tokens"]


def test_a_student_trains_on_them_and_its_record_says_who_wrote_them(done, teacher, tmp_path):
    manifest, output = done
    flags = [
        "--config=configs/generation.py:hard_labels",
        f"--config.data.tokens={output / generate.STORE}",
        *("--config.tokens=2048", "--config.seq_len=32", "--config.eval.tokens=512", "--config.mesh.data=1"),
    ]
    assert launch_train.main([*flags, f"--workdir={tmp_path}"]) == 0
    record, made = load_record(tmp_path / "result.json"), load.read_info(teacher).record
    assert (record.kind, record.teacher) == ("generated", made.run)
    assert (record.N_T, record.D_T, record.flops_teacher) == (made.N, made.D, manifest["flops"])
    assert record.L_T is None and record.loss < np.log(256)


def test_the_on_policy_preset_runs(teacher, tmp_path):
    flags = [
        "--config=configs/generation.py",
        f"--config.teacher.source={teacher}",
        "--config.on_policy.prompt_tokens=8",
    ]
    flags += ["--config.tokens=2048", "--config.seq_len=32", "--config.eval.tokens=512"]
    assert launch_train.main([*flags, f"--workdir={tmp_path}"]) == 0
    record = load_record(tmp_path / "result.json")
    assert record.kind == "distillation" and record.loss < np.log(256)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any(line["own"] > 0 and line["kd_own"] > 0 for line in lines)


def test_what_passes_is_decided_again_without_generating_again(wanted, done, tmp_path):
    _, output = done
    (tmp_path / "config.txt").write_text((output / "config.txt").read_text())
    (tmp_path / generate.JOURNAL).write_bytes((output / generate.JOURNAL).read_bytes())
    found = records(output)
    least = float(np.median([r["log_prob"] for r in found]))
    good = lambda r: r["sample"] == 0
    manifest = generate.generate(
        dataclasses.replace(wanted, min_log_prob=least),
        tmp_path,
        keep=good,
        on_progress=lambda _: pytest.fail("it ran"),
    )
    kept = [r for r in found if r["log_prob"] >= least and r["sample"] == 0]
    assert 0 < len(kept) < 150 and manifest["kept"] == len(kept)
    assert data.TokenStore(tmp_path / generate.STORE).split("student").tokens == sum(16 + len(r["ids"]) for r in kept)
    with pytest.raises(DistillError, match="none of the 300 completions passes"):
        generate.generate(wanted, tmp_path, keep=lambda r: False)
    with pytest.raises(DistillError, match="line 1: the filter raised KeyError: 'gone'"):
        generate.generate(wanted, tmp_path, keep=lambda r: r["gone"])


def test_held_out_prompts_may_be_completed_as_well(wanted, tmp_path):
    config = dataclasses.replace(wanted, held_out="completions", every=0, prompts=3, per_prompt=1)
    manifest = generate.generate(config, tmp_path)
    store = data.TokenStore(tmp_path / generate.STORE)
    assert manifest["completions"] == 6 and [s.documents for s in store.splits.values()] == [0, 3, 3]


def test_a_torn_batch_is_cut_off(tmp_path):
    path, sizes = tmp_path / "j.jsonl", [2, 2, 1]
    with Journal(path, sizes) as kept:
        kept.append([{"a": 1}, {"a": 2}])
    whole = path.read_bytes()
    for torn in (b'{"a": 3}\n', b'{"a": 3}\n{"a"', b'{"a'):
        path.write_bytes(whole + torn)
        with Journal(path, sizes) as kept:
            assert (kept.done, kept.lines) == (1, 2)
            kept.append([{"a": 3}, {"a": 4}])
        assert [r["a"] for r in journal.read(path)] == [1, 2, 3, 4]


def test_a_killed_generation_ends_in_the_same_bytes(wanted, tmp_path):
    """Two real SIGKILLs, in the middle of different batches; of more prompts than are done before they arrive."""
    whole, output = tmp_path / "whole", tmp_path / "killed"
    made = generate.generate(dataclasses.replace(wanted, prompts=300), whole)
    command = [sys.executable, "-m", "launch.generate", f"--output={output}", f"--teacher={wanted.teacher}"]
    command += [f"--data.cache={wanted.data.cache}", "--decode.new_tokens=12", "--prompt_tokens=16", "--prompts=300"]
    command += ["--per_prompt=2", "--every=2048", "--batch_size=8", "--seed=3", "--mesh.data=1"]
    environment = os.environ | {"XLA_FLAGS": "", "DISTILL_CACHE": str(Path(wanted.teacher) / "cache")}
    path = output / generate.JOURNAL
    seen: list[int] = []
    while len(seen) < 2:
        lines = seen[-1] + 50 if seen else 1  # the first may have left more lines than one
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < lines):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen.append(path.read_bytes().count(b"\n"))
        assert not (output / generate.MANIFEST).exists()
    assert seen[0] < seen[1] < 600, "they must fall into the work"
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert path.read_bytes() == (whole / generate.JOURNAL).read_bytes()
    manifest = json.loads((output / generate.MANIFEST).read_text())
    assert manifest["store"] == made["store"]


def test_prompts_come_before_the_first_completion_or_at_every_so_many_tokens(tmp_path):
    lines = [{"q": "two and two?", "a": " four"}, {"q": "x" * 40, "a": " y"}, {"q": "and?", "a": " no"}]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = FilesConfig(paths=(str(tmp_path / "ask.jsonl"),))
    known = DataConfig(source="files", files=files, columns=ColumnsConfig(prompt="{q}", completion="{a}"))
    known = dataclasses.replace(known, splits=dataclasses.replace(known.splits, validation=0.0, teacher=0.0))
    config = GenerationConfig(data=known, prompt_tokens=20)
    prompts = Prompts(data.open_store(known, tmp_path / "a"), config)
    assert [bytes(prompts.read(i).tolist()).decode() for i in range(len(prompts))] == ["two and two?", "and?"]
    assert prompts.left_out == 1
    plain = dataclasses.replace(known, columns=ColumnsConfig(text="q"))
    config = GenerationConfig(data=plain, prompt_tokens=20, every=15)
    prompts = Prompts(data.open_store(plain, tmp_path / "b"), config)
    assert [prompts.where(i)[1:] for i in range(len(prompts))] == [(0, 0, 12), (1, 13, 20), (1, 28, 20), (2, 54, 4)]
    widths = {width: len(items) for width, items in prompts.batches(8, 3)}
    assert widths == {16: 6, 20: 6}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed was 3 and is now 4; use another --output"),
        ({"decode": DecodeConfig(new_tokens=13)}, "decode.new_tokens was 12 and is now 13"),
    ],
)
def test_a_folder_belongs_to_one_generation(wanted, done, changes, words):
    with pytest.raises(ConfigError, match=words):
        generate.generate(dataclasses.replace(wanted, **changes), done[1])


def test_tokens_of_another_kind_are_refused(wanted, tmp_path):
    tokens = DataConfig(source="generated")
    with pytest.raises(ConfigError, match="reads 'bytes' tokens and the text is 'symbols-8' tokens"):
        generate.generate(dataclasses.replace(wanted, data=tokens), tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--out=... is missing"]),
        (["--output=o"], ["--teacher=... is missing"]),
        (["--output=o", "--teacher=nowhere"], ["nowhere", "no finished run"]),
        (["--output=o", "--teacher=t", "--decode.top_p=2"], ["top_p of sampling: got 2.0"]),
        (["--output=o", "--teacher=t", "--per_promt=2"], ["Did you mean --per_prompt"]),
        (["--output=o", "--teacher=t", "--min_log_prob=1"], ["min_log_prob: got 1.0"]),
        (["--output=o", "--teacher=t", "--filter=math:sqroot"], ["math has no function 'sqroot'. Did you mean 'sqrt'"]),
        (["--output=o", "--teacher=t", "--filter=no.py:f"], ["--filter=no.py:f: FileNotFoundError"]),
    ],
)
def test_a_mistake_is_one_line(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.guard(launch_generate.main, flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    for word in words:
        assert word in said


def test_a_filter_is_a_function_in_the_users_file(tmp_path):
    (tmp_path / "mine.py").write_text("def short(record):\n    return len(record['ids']) < 3\n")
    keep = launch_generate.load_filter(f"{tmp_path}/mine.py:short")
    assert keep({"ids": [1]}) and not keep({"ids": [1, 2, 3]})
