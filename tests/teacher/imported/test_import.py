"""Signals that other tools wrote: each form gives the same stores, and a teacher's own words come back as they were."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from distill.config import ExperimentConfig
from distill.data.store.store import TokenStore
from distill.errors import SignalError
from distill.teacher import load
from distill.teacher.imported import containers, measure, spool
from distill.teacher.imported.dialects import Columns, Reading, rows_of
from distill.teacher.imported.distillkit import Codec
from distill.teacher.imported.store import import_signals
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.spec import SignalSpec
from distill.training import cache, loop
from launch import __main__ as launch_main
from launch.support import cli
from tests.teacher.imported.written import (
    K,
    V,
    columns,
    content,
    distributions,
    said,
    sglang,
    vllm,
    wanted,
    write_lines,
)

HERE = Path(__file__).parent


def test_windows_hold_what_was_written(reference):
    """Catches: signals one position off, rows of another document, a token's own entry kept beyond the k likeliest."""
    made, (ids, log_probs, tokens, weight) = reference
    written = {}  # of each pair (token before, token): the distributions written for it
    for row, values in made:
        for t in range(1, len(row)):
            written.setdefault((row[t - 1], row[t]), {})[frozenset(np.argsort(-values[t])[:K].tolist())] = values[t]
    for window, s in np.argwhere(weight > 0).tolist():
        here = ids[window, s]
        values = written[tokens[window, s], tokens[window, s + 1]][frozenset(here.tolist())]
        np.testing.assert_allclose(np.exp(log_probs[window, s]), np.exp(values[here]), atol=0.02)
    assert len(np.argwhere(weight > 0)) > 0.8 * sum(len(row) - 1 for row, _ in made), "all but the rows held out"


FORMS = {
    "sglang": lambda row: sglang(*row),
    "axolotl": lambda row: columns(*row),
    "choices": lambda row: {"id": "x", "choices": [{"index": 0, "text": "", **vllm(*row)}]},
    "batch": lambda row: {"custom_id": "1", "response": {"status_code": 200, "body": {"choices": [vllm(*row)]}}},
    "floats": lambda row: {
        "prompt_token_ids": row[0],
        "prompt_logprobs": [p and {i: e["logprob"] for i, e in p.items()} for p in vllm(*row)["prompt_logprobs"]],
    },
    "pairs": lambda row: {
        "input_ids": row[0],
        "prompt_logprobs": [
            p and [[int(i), e["logprob"]] for i, e in p.items()] for p in vllm(*row)["prompt_logprobs"]
        ],
    },
    "text": lambda row: {**vllm(*row), "prompt_logprobs": json.dumps(vllm(*row)["prompt_logprobs"])},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_windows(form, reference, tmp_path):
    made, expected = reference
    import_signals(wanted(write_lines(tmp_path / "b.jsonl.gz", map(FORMS[form], made))), tmp_path / "out")
    for got, want in zip(content(tmp_path / "out"), expected):
        np.testing.assert_allclose(got, want, atol=2e-6)  # sums of probabilities in another order


@pytest.mark.parametrize("kind", ["parquet", pytest.param("datasets", marks=pytest.mark.slow), "map"])
def test_tables_give_the_same_windows(kind, reference, tmp_path):
    made, expected = reference
    pa = pytest.importorskip("pyarrow")
    folder = tmp_path / "in"
    if kind == "datasets":  # written by the library itself
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list([columns(*row) for row in made]).save_to_disk(str(folder), num_shards=2)
        changes = {}
    else:
        import pyarrow.parquet as pq

        folder.mkdir()
        records = [columns(*row, names=("t", "i", "l")) for row in made]
        changes = {"columns": Columns("t", "i", "l")}
        table = pa.Table.from_pylist(records)
        if kind == "map":
            changes = {}
            entries = [[p and [(int(i), e["logprob"]) for i, e in p.items()] for p in said(*row)] for row in made]
            form = pa.list_(pa.map_(pa.int64(), pa.float64()))
            ids = [row for row, _ in made]
            table = pa.table({"prompt_token_ids": ids, "prompt_logprobs": pa.array(entries, form)})
        pq.write_table(table, folder / "x.parquet")
    import_signals(wanted(str(folder), **changes), tmp_path / "out")
    for got, want in zip(content(tmp_path / "out"), expected):
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_logits_are_normalised_over_what_there_is(tmp_path):
    made = distributions(1)
    rows = [columns(*row, names=("tokens", "top_k_indices", "top_k_logits")) for row in made]
    for row in rows:
        row["top_k_logits"] = (np.array(row["top_k_logits"]) + 7).tolist()
    manifest = import_signals(wanted(write_lines(tmp_path / "b.jsonl", rows)), tmp_path / "out")
    assert manifest["coverage"]["covered"] == pytest.approx(1)
    ids, log_probs, _, weight = content(tmp_path / "out")
    assert np.exp(log_probs).sum(-1)[weight > 0] == pytest.approx(1, abs=1e-3)
    named = [columns(*row, names=("tokens", "a", "b")) for row in made]
    for row in named:
        row["b"] = (np.array(row["b"]) + 7).tolist()
    path = write_lines(tmp_path / "c.jsonl", named)
    with pytest.raises(SignalError, match=r"c.jsonl, row 1: .*--values=logits"):
        import_signals(wanted(path, columns=Columns("tokens", "a", "b")), tmp_path / "out2")


@pytest.mark.parametrize("name", ["exact", "delta", "poly"])
def test_distillkits_own_files(name):
    """The files and their decoded values were made by DistillKit at 2026-11 (its compressor and its schema)."""
    folder = HERE / "distillkit" / name
    reading = Reading(codec=containers.codec_beside(folder / "data_0.parquet"))
    expected = json.loads((folder / "decoded.json").read_text())
    records = [record for _, record in containers.read(folder / "data_0.parquet")]
    for record, want in zip(records, expected, strict=True):
        values = np.array(record["compressed_logprobs"], np.uint8)
        got, ids = reading.codec.unpack(values, np.array(record["bytepacked_indices"], np.uint8))
        np.testing.assert_array_equal(ids, want["ids"])
        np.testing.assert_allclose(got, want["values"], atol=2e-2 if name != "exact" else 1e-6)
        (row,) = rows_of(record, reading)
        assert row.ids.tolist() == record["input_ids"]
        assert set(row.top_ids[1]) == set(want["ids"][0]), "row 0 is about token 1"


def test_a_codec_of_other_settings_is_refused():
    settings = {"d": 256, "k": 8, "exact_k": 8, "residual_bins": []}
    with pytest.raises(ValueError, match="wanted 32 and 8 a position"):
        Codec.of(settings).unpack(np.zeros((3, 30), np.uint8), np.zeros((3, 8), np.uint8))
    with pytest.raises(ValueError, match="more than k"):
        Codec.of(settings | {"exact_k": 9})


BAD = {
    "no signal of that form": ({"input_ids": [1, 2]}, "wanted vLLM's prompt_logprobs"),
    "lengths": ({"prompt_token_ids": [1, 2, 3], "prompt_logprobs": [None, {"1": -0.5}]}, "2 positions for 3 tokens"),
    "an id": ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"300": -0.5}]}, "300, wanted 0"),
    "a token": ({"prompt_token_ids": [1, 999], "prompt_logprobs": [None, {"3": -0.5}]}, "999, wanted 0 to 255"),
    "NaN": (
        {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"3": float("nan")}]},
        "wanted a number of at most 0",
    ),
    "above 0": ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"3": 0.5}]}, "--values=logits"),
    "mass": ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"3": -0.1, "4": -0.1}]}, "sum to 1.81"),
    "words": ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {" the": -0.1}]}, "wanted its id"),
    "text": ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"3": "x"}]}, "wanted a number"),
    "one token": ({"prompt_token_ids": [1], "prompt_logprobs": [None]}, "wanted at least 2"),
    "no ids": ({"prompt_logprobs": [None, {"3": -0.1}]}, "no prompt_token_ids"),
    "twice": ({"input_ids": [1, 2], "top_ids": [[], [3, 3]], "top_logprobs": [[], [-1, -1]]}, "names a token twice"),
    "counts": ({"input_ids": [1, 2], "top_ids": [[], [3]], "top_logprobs": [[], [-1, -2]]}, "1 ids and 2"),
    "sglang without": ({"meta_info": {"prompt_tokens": 2}}, "top_logprobs_num=K"),
    "packed": (
        {"input_ids": [1], "compressed_logprobs": [[1]], "bytepacked_indices": [[1]]},
        "compression_config.yaml",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_and_nothing_looks_finished(name, tmp_path):
    record, message = BAD[name]
    path = write_lines(tmp_path / "b.jsonl", [vllm(*distributions(rows=1)[0]), record])
    with pytest.raises(SignalError, match=r"b\.jsonl, row 2: ") as error:
        import_signals(wanted(path), tmp_path / "out")
    assert message in str(error.value)
    assert not list((tmp_path / "out").rglob("manifest.json")) and not list((tmp_path / "out").rglob("rows-*"))


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "cut.jsonl").write_text('{"prompt_token_ids": [1, 2], "prompt')
    with pytest.raises(SignalError, match=r"cut.jsonl, line 1: not a JSON object"):
        import_signals(wanted(str(tmp_path / "cut.jsonl")), tmp_path / "out")
    for name in ("x.parquet", "x.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 and nothing else")
        with pytest.raises(SignalError, match=f"{name}: not an? .*, or damaged after row 0"):
            import_signals(wanted(str(tmp_path / name)), tmp_path / f"out-{name}")
    with pytest.raises(SignalError, match="unknown kind"):
        (tmp_path / "x.pt").write_bytes(b"")
        import_signals(wanted(str(tmp_path / "x.pt")), tmp_path / "o")
    with pytest.raises(SignalError, match="no such file"):
        import_signals(wanted(str(tmp_path / "nothing.jsonl")), tmp_path / "o")


def test_an_interrupted_import_continues_and_ends_alike(tmp_path, monkeypatch):
    made = distributions()
    first = write_lines(tmp_path / "a.jsonl", [vllm(*row) for row in made[:12]])
    second = write_lines(tmp_path / "b.jsonl", [vllm(*row) for row in made[12:]])
    both = wanted(first, paths=(first, second))
    import_signals(both, tmp_path / "whole")
    read, reads = containers.read, []
    first_only = lambda path, _: read(path) if not reads.append(path) and len(reads) < 2 else 1 / 0
    with monkeypatch.context() as patch:
        patch.setattr(containers, "read", first_only)
        with pytest.raises(ZeroDivisionError):
            import_signals(both, tmp_path / "out")
        with monkeypatch.context() as again:
            again.setattr(containers, "read", lambda path, _: read(path) if path.name == "b.jsonl" else 1 / 0)
            with monkeypatch.context() as later:  # the second file is read; the store of signals is interrupted
                later.setattr(spool.Part, "span", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    import_signals(both, tmp_path / "out")
    monkeypatch.setattr(containers, "read", lambda *_: 1 / 0)  # all is read
    import_signals(both, tmp_path / "out")
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "out" / n).read_bytes() for n in names)
    assert import_signals(both, tmp_path / "out")["recipe"], "a finished one is opened"
    with pytest.raises(SignalError, match="top_k"):
        import_signals(dataclasses.replace(both, top_k=3), tmp_path / "out")


def test_signals_one_position_off_are_found(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for ids, log_probs in distributions(rows=8):
        log_probs[np.arange(len(ids)), ids] = 3 + rng.random(len(ids))  # a teacher that knows the text
        rows.append((ids, log_probs - np.log(np.exp(log_probs).sum(1, keepdims=True))))
    path = write_lines(tmp_path / "a.jsonl", [columns(*row) for row in rows])
    import_signals(wanted(path), tmp_path / "right")
    with pytest.raises(SignalError, match="one position off; add --describes=next"):
        import_signals(wanted(path, describes="token"), tmp_path / "wrong")


def test_another_tokenizer_is_found_by_what_ids_decode_to(tmp_path):
    ids = list(range(65, 90))
    log_probs = distributions(rows=1)[0][1][:1].repeat(25, 0)
    record = vllm(ids, log_probs, texts=True)
    for position in record["prompt_logprobs"][1:]:
        for entry in position.values():
            entry["decoded_token"] = entry["decoded_token"] and chr(ord(entry["decoded_token"]) + 1)
    path = write_lines(tmp_path / "a.jsonl", [record, record | {"prompt_token_ids": ids[::-1]}])
    with pytest.raises(SignalError, match="are the same text here, so the files were written with another tokenizer"):
        import_signals(wanted(path), tmp_path / "out")


def test_tokens_without_a_signal_have_no_weight(tmp_path):
    rows = []
    for ids, log_probs in distributions(rows=10):
        record = vllm(ids, log_probs)
        record["prompt_logprobs"][1:5] = [None] * 4
        rows.append(record)
    manifest = import_signals(wanted(write_lines(tmp_path / "a.jsonl", rows)), tmp_path / "out")
    assert manifest["recipe"]["data"]["completions_only"]
    (view,) = TokenStore(tmp_path / "out" / "tokens").views("student", 64, packing="documents", completions_only=True)
    for window in range(view.count):
        at = 0
        for _, length in view.pieces(window):
            assert not view.read([window]).weight[0, at : at + 4].any(), "the first four are predicted without a signal"
            assert view.read([window]).weight[0, at + 4 : at + length - 1].all()
            at += length


def test_no_tail_is_farther_than_the_bound():
    """Random tails under the cap never exceed it, and the one that fills as few tokens as it can reaches it."""
    rng = np.random.default_rng(0)
    others, least, rest = 50, 0.02, 0.13
    bound = measure.tail_bound(np.array([rest]), np.array([least]), np.array([others]))[0]
    distance = lambda tail: float((tail[tail > 0] * np.log(tail[tail > 0] * others / rest)).sum())
    extreme = np.array([least] * 6 + [0.01] + [0.0] * 43)
    assert extreme.sum() == pytest.approx(rest) and distance(extreme) == pytest.approx(bound)
    for _ in range(200):
        tail = rng.dirichlet(np.full(others, rng.choice([0.05, 0.3, 1])))
        for _ in range(60):  # cut at the cap, and give what was cut to the others
            tail = np.minimum(tail / tail.sum() * rest, least)
        if tail.sum() == pytest.approx(rest, rel=1e-6):
            assert distance(tail) <= bound + 1e-9


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make = loop.sharding.make
    monkeypatch.setattr(loop.sharding, "make", lambda config, devices=None: make(config, devices or jax.devices()[:1]))


def test_a_teachers_own_words_come_back_as_launch_cache_stores_them(tiny, tmp_path):
    """A teacher's log-probabilities, written as vLLM would and imported, equal its store of launch.cache, L_T included;
    and a student learns from them.

    Caught: rows of the spool taken from the file's order in place of the split's, L_T over the padded positions.
    """
    made = distributions(rows=16)
    import_signals(wanted(write_lines(tmp_path / "a.jsonl", [vllm(*row) for row in made])), tmp_path / "first")
    config = read_config(tmp_path / "first")
    config = dataclasses.replace(
        config, model=dataclasses.replace(tiny.model, vocab_size=V), batch_size=2, tokens=3 * 2 * config.seq_len
    )
    supervised = dataclasses.replace(
        config, teacher=tiny.teacher, objective=tiny.objective, optim=dataclasses.replace(tiny.optim, learning_rate=0.1)
    )
    loop.train(supervised, tmp_path / "teacher")
    student = dataclasses.replace(
        supervised, teacher=dataclasses.replace(tiny.teacher, source=str(tmp_path / "teacher")), seed=1
    )
    cached = cache.cache_signals(student, SignalSpec(kind="topk", top_k=K), tmp_path / "cached", every=True)

    teacher = load.load(tmp_path / "teacher").params
    predict = jax.jit(lambda model, ids: jax.nn.log_softmax(model.logits(model.hidden(ids))[0], axis=-1))
    words = []
    for ids, _ in made:
        padded = np.pad(np.array([ids], np.int32), ((0, 0), (0, 64 - len(ids))))
        words.append((ids, np.roll(np.asarray(predict(teacher, padded))[: len(ids)], 1, axis=0)))
    path = write_lines(tmp_path / "said.jsonl", [vllm(*row) for row in words])
    imported = import_signals(wanted(path, seq_len=config.seq_len), tmp_path / "second")
    ids, log_probs, tokens, weight = content(tmp_path / "second")
    store = SignalStore(tmp_path / "cached").read(np.arange(len(ids)))
    used = weight > 0
    exact = np.sort(np.exp(np.asarray(store.log_probs))[used], axis=-1)
    np.testing.assert_allclose(np.sort(np.exp(log_probs)[used], axis=-1), exact, atol=2e-3)
    same = np.sort(ids[used], axis=-1) == np.sort(np.asarray(store.ids)[used], axis=-1)
    assert same.all(axis=-1).mean() > 0.98, "near ties at the last place may differ"
    assert imported["teacher"]["validation"]["loss"] == pytest.approx(cached["teacher"]["validation"]["loss"], abs=1e-4)

    config = dataclasses.replace(read_config(tmp_path / "second"), model=config.model, batch_size=2, tokens=384)
    record = loop.train(
        dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=2)), tmp_path / "s"
    )
    assert record.kind == "distillation" and imported["teacher"]["validation"]["loss"] == record.L_T
    assert record.N_T is None and record.flops_teacher == 0, "of this teacher only its words are known"


def read_config(folder):
    return cli.resolve(ExperimentConfig, [f"--config=configs/imported.py:{folder}"])


def test_the_command_says_what_it_made(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [vllm(*row) for row in distributions()])
    words = ["import-signals", f"--in={path}", "--tokenizer=bytes", f"--out={tmp_path / 'out'}"]
    assert cli.guard(launch_main.main, words) == 0
    out = capsys.readouterr().out
    assert "topk top_k=6" in out and "of the mass is covered" in out and "nats a token from the truth" in out
    assert cli.guard(launch_main.main, [*words, "--columns=a,b"]) == 2
    assert "wanted three names" in capsys.readouterr().err
