"""A short, seeded campaign against every reader, and every input that one of them once answered wrongly."""

import json
import random
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import laws
from distill.config import DistillError
from distill.records.runs import RunTable
from distill.teacher.signals import codec
from tests.fuzz import harness
from tests.fuzz.harness import Bench, Outcome, Reader, mutate
from tests.fuzz.readers import READERS
from tests.records.test_runs import record

SHORT = settings(max_examples=40, derandomize=True, deadline=None, database=None)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """bench(name): that reader, set up once."""
    found: dict[str, Bench] = {}

    def make(name):
        if name not in found:
            found[name] = Bench(READERS[name], tmp_path_factory.mktemp(name))
        return found[name]

    return make


@pytest.mark.parametrize("name", READERS)
def test_whatever_is_changed_is_read_or_refused_by_name(bench, name):
    reader = bench(name)

    @SHORT
    @given(st.integers(0, 2**64))
    def check(seed):
        chance = random.Random(seed)
        case = mutate(reader.reader, chance.choice(reader.seeds), chance.choice(reader.seeds), chance)
        outcome = reader.judge(case)
        assert not outcome.bad, (outcome.kind, outcome.detail, case[:500])

    check()


def parquet(bench, name):
    """A parquet file whose footer is damaged."""
    seed = bench(name).seeds[0]
    return seed[:-40] + b"\x15\xff" * 16 + seed[-8:]


DEEP, NO_TEXT = b"[" * 100_000, b"\xff\xfe\n"
KINDS = {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "layer_types": [[1], [2]]}
LLAMA = {"architectures": ["LlamaForCausalLM"]}
PACKED = b"\x00" + codec.pack(codec.Ragged(np.full(8, 6), np.tile(np.arange(6), (8, 1))))  # five places a token
ONCE_WRONG = {
    # nested too deeply
    **{f"deep {name}": (name, DEEP) for name in ("law_json", "result_json", "hf_config")},
    **{f"deep {name}": (name, DEEP) for name in ("safetensors_index", "token_manifest", "signal_manifest")},
    **{f"deep {name}": (name, DEEP) for name in ("chat_config", "completions")},
    "deep metrics": ("metrics_jsonl", DEEP + b"\n"),
    "deep study": ("study", b"\x00" + DEEP),
    "deep text": ("text_jsonl", b'\x00{"text": ' + DEEP),
    # not UTF-8, not CSV
    **{f"bytes {name}": (name, NO_TEXT) for name in ("runs_csv", "curves_csv", "predictions_csv", "completions")},
    "bytes metrics": ("metrics_jsonl", b'{"step": 1, "a": "\xbd"}\n'),
    "a cell of 200 KB": ("curves_csv", b"run,step,tokens,flops,loss\n" + b'"' + b"x" * 200_000 + b'",1,1,1,1\n'),
    # names that are paths, or too long to be names
    "planned": ("study", b'\x00{"planned": {"' + b"9" * 5000 + b'": "a", "../../../../etc": "b"}}'),
    "a long file": ("safetensors_index", json.dumps({"weight_map": {"a": "a" * 5000}}).encode()),
    "no file": ("safetensors_index", json.dumps({"weight_map": {"a": ""}}).encode()),
    "a long config": ("flags", b"--config=" + b"c" * 5000 + b"\n--workdir=w"),
    # numbers that are none
    "a large parameter": (
        "law_json",
        b'{"form": "supervised", "parameters": {"E": 1, "A": 1' + b"0" * 400 + b', "B": 1, "alpha": 1, "beta": 1, '
        b'"gamma": 1}}',
    ),
    "a large loss": ("metrics_jsonl", b'{"step": 1, "loss": 1' + b"0" * 400 + b"}\n"),
    "a large width": ("study_lines", b"models:a = 16x" + b"9" * 5000),
    # patterns that try everything
    "many digits": ("study_lines", b"models:a = 16x1\nsupervised:a @ 8K #" + b"9" * 60),
    "many spaces": ("rule", b"a" + b" " * 60_000 + b"b"),
    "no heads": ("config_txt", b"model.n_heads = 0\n"),
    # structures
    "more entries than places": ("signal_payload", PACKED),
    "architecture": ("hf_config", b'{"architectures": [false]}'),
    "quantised": ("hf_config", json.dumps(LLAMA | {"quantization_config": ["a"]}).encode()),
    "kinds of layers": ("hf_config", json.dumps(KINDS).encode()),
    "a dtype that is a list": ("safetensors", b'{"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}'),
    "templates": ("chat_config", b'{"chat_template": [1, {"name": ["default"]}]}'),
    "no object": ("chat_config", b"[]"),
    "an unknown word": (
        "tokenizer_json",
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}}',
    ),
    "an id of 32 bits": (
        "tokenizer_json",
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 4294967295}, '
        b'"unk_token": "a"}}',
    ),
    "an id of 31 bits": ("tokenizer_json", b'{"model": {"vocab": {"a": 0, "b": 2147483648}, "unk_token": "a"}}'),
    # programs of strangers
    "memory": ("chat_template", b"{{ 'x' * 10**10 }}"),
    "digits": ("chat_template", b"{{ " + b"9" * 5000 + b" }}"),
    "brackets": ("chat_template", b"{{ " + b"[" * 3000),
    "padding": ("chat_template", b"{{ 'x'|center(10**10) }}"),
    "recursion": ("chat_template", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "a loop": (
        "chat_template",
        b"{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}{% endfor %}"
        b"{% endfor %}",
    ),
}  # fmt: skip


PASSED_OVER = ("planned", "templates", "a large loss")  # read, without what was wrong in them


@pytest.mark.parametrize("which", ONCE_WRONG)
def test_what_was_once_answered_wrongly(bench, which):
    name, case = ONCE_WRONG[which]
    outcome = bench(name).judge(case)
    assert not outcome.bad and (outcome.kind != "read" or which in PASSED_OVER), outcome


def test_a_law_with_an_infinite_count(bench):
    reader = bench("law_json")
    tree = json.loads(reader.seeds[0])
    tree["bootstrap"]["resamples"] = float("inf")
    assert reader.judge(json.dumps(tree).encode()).kind == "ReportError"


@pytest.mark.parametrize("name", ["table_parquet", "text_parquet"])
def test_a_damaged_parquet_footer(bench, name):
    outcome = bench(name).judge(parquet(bench, name))
    assert not outcome.bad and outcome.kind != "read", outcome


@pytest.mark.parametrize(
    "change", [{"files": 1}, {"shards": []}, {"shards": [[]]}, {"recipe": []}, {"files": {}}, {"codec": [[]]}]
)
def test_a_sealed_manifest_of_no_store(bench, change):
    reader = bench("signal_manifest")
    tree = json.loads(reader.seeds[0])
    if "codec" in change:
        change = {"recipe": tree["recipe"] | change}
    tree |= change
    assert reader.judge(json.dumps(tree).encode()).kind == "SignalError"


@pytest.mark.parametrize(
    "change", [{"splits": {}}, {"dtype": "float64"}, {"vocabulary": {"size": 2**40, "sha256": ""}}, {"tokenizer": []}]
)
def test_a_manifest_of_no_token_store(bench, change):
    reader = bench("token_manifest")
    tree = json.loads(reader.seeds[0]) | change
    outcome = reader.judge(json.dumps(tree).encode())
    assert not outcome.bad, outcome
    splits = json.loads(reader.seeds[0])["splits"]
    for name in ("../../x", "x" * 5000, "x" * 250):  # the last is a name, but with that of its hashes too long
        escaped = reader.judge(json.dumps(tree | {"splits": {name: splits["teacher"]}}).encode())
        assert escaped.kind == "DataError", escaped


def call_of(answer):
    return Reader(name="made", prepare=lambda folder: (answer, [b"good"]), named=("file",), true=True)


def answers(case):
    if case == b"foreign":
        raise KeyError("inside")
    if case == b"unnamed":
        raise DistillError("no place")
    if case == b"escape":
        open("/tmp/elsewhere", "ab").close()
    if case == b"greedy":
        return "good" if np.ones(40 << 20).sum() else ""
    return "other" if case == b"wrong" else "good"


def test_the_judge_finds_what_must_not_be(tmp_path):
    """Each of the ways to fail is told from the others, and a correct answer from all."""
    reader = Bench(call_of(lambda case: answers(case)), tmp_path)
    for kind in ("foreign", "unnamed", "escape", "greedy", "wrong"):
        outcome = reader.judge(kind.encode())
        assert outcome.bad and outcome.kind.startswith(kind), outcome
    good = reader.judge(b"good")
    assert good == Outcome(kind="read", seconds=good.seconds, grown=good.grown)


def test_a_slow_reader_is_told_from_a_busy_machine(tmp_path, monkeypatch):
    """By clocks of this test: a real sleep takes longer on a busy machine."""
    clocks = {"now": 0.0, "worked": 0.0, "stood": 0.0}
    monkeypatch.setattr(harness, "time", types.SimpleNamespace(perf_counter=lambda: clocks["now"]))
    monkeypatch.setattr(harness, "_busy", lambda: clocks["worked"])
    monkeypatch.setattr(harness, "_waited", lambda: clocks["stood"])
    passed: dict[bytes, dict[str, float]] = {
        b"asleep": {"now": 20.0},
        b"slow": {"now": 20.0, "worked": 15.0},
        b"busy": {"now": 20.0, "worked": 15.0, "stood": 16.0},
        b"stuck": {"now": 80.0},
    }

    def pass_time(case):
        for name, seconds in passed.get(case, {}).items():
            clocks[name] += seconds
        return "good"

    reader = Bench(call_of(pass_time), tmp_path)
    assert reader.judge(b"asleep").kind == "read", "on a busy machine others sleep too"
    assert reader.judge(b"slow").kind == "slow"
    busy = reader.judge(b"busy")
    assert busy.kind == "read" and busy.seconds == 4.0
    assert reader.judge(b"stuck").kind == "slow"


@SHORT
@given(machine=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), loss=st.floats(1e-300, 1e300))
def test_rows_of_any_text_come_back(tmp_path_factory, machine, loss):
    table = RunTable(tmp_path_factory.mktemp("rows") / "runs.csv")
    want = record(machine=machine.replace("\r", ""), loss=loss)
    table.append([want])
    assert table.load() == [want]


@SHORT
@given(st.lists(st.lists(st.integers(0, 2**20), unique=True, max_size=6), min_size=1, max_size=8))
def test_ids_of_any_gaps_come_back(rows):
    most = max(map(len, rows))
    ranks = np.zeros((len(rows), most), np.int64)
    for row, ids in zip(ranks, rows):
        row[: len(ids)] = sorted(ids)
    lengths = np.array([len(ids) for ids in rows])
    found = codec.unpack(codec.pack(codec.Ragged(lengths, ranks)), len(rows), most)
    assert [row[:n].tolist() for row, n in zip(found.ranks, found.lengths)] == [sorted(ids) for ids in rows]


@SHORT
@given(st.lists(st.floats(1e-30, 1e30), min_size=6, max_size=6))
def test_laws_of_any_numbers_come_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("laws") / "law.json"
    law = laws.get("supervised")(**dict(zip(laws.get("supervised").parameters(), values)))
    law.save(path)
    assert laws.load(path) == law
