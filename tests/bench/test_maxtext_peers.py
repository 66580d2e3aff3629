"""MaxText as the peer of `bench compile`, without MaxText: a script stands in for its interpreter.

Seen to fail: settings whose key-value heads are the query heads, or whose batch is that of all chips; `unlike` that
does not look at the teacher; PLACES whose loss is what MaxText's cross entropy alone does; `read` without the code's
bytes; an ended interpreter whose exit code is not looked at; figures that a run without --peers replaces.
"""

import copy
import json
import re
import stat
import sys

import pytest

from distill.bench import compile as bench
from distill.bench import maxtext_peers as peers
from distill.config import ConfigError, counts, ladder
from distill.config.chips import CHIPS
from distill.diagnostics.dryrun import compiler, estimate
from distill.diagnostics.dryrun.bundles import Kernel
from launch.support import cli

MODEL = {"vocab_size": 32768, "d_model": 1024, "n_layers": 8, "n_heads": 8, "dtype": "bfloat16", "remat": "full"}
SHAPE = {
    "model": MODEL,
    "teacher": None,
    "teacher_dtype": "float32",
    "batch_size": 16,
    "seq_len": 4096,
    "microbatches": 1,
    "mesh": {"data": 1, "fsdp": 4, "tensor": 1},
}
OURS = {
    "flags": ["--chip=v5e"],
    "chip": "v5e",
    "chips": 4,
    "compiler": "libtpu 1",
    "jax": "1",
    "attention": "splash (auto)",
    "gib": 2.0,
    "sent_gb": {"all-gather": 3.0},
    "model_flops": 4 * 197e12 * 3e-3,
    "estimated_seconds": 0.5,
    "estimated_mfu": 0.41,
    "estimated_parts": dict.fromkeys(estimate.PARTS, 0.1),
    "without_estimate": {},
    "shape": SHAPE,
}
PROGRAM = "103M supervised, 4 v5e"

# A step as libtpu writes it, shortened: a layer's product in a loop of eight, Splash, its copy, the head and the loss,
# AdamW. 1.5 million cycles of a v5e are a millisecond.
TEXT = """HloModule jit_train_step, is_scheduled=true

FileNames
1 "/lib/maxtext/layers/linears.py"
2 "/lib/maxtext/layers/attention_op.py"
3 "/lib/maxtext/utils/max_utils.py"
4 "/lib/optax/_src/transform.py"
5 "/lib/maxtext/layers/nnx_decoders.py"
6 "/lib/maxtext/trainers/post_train/distillation/distillation_utils.py"

FunctionNames
1 "DenseGeneral.__call__"
2 "AttentionOp.tpu_flash_attention"
3 "_cross_entropy_with_logits_fwd"
4 "update_fn"
5 "NNXDecoder.apply_output_head"
6 "CombinedDistillationStrategy.compute_loss"

FileLocations
1 {file_name_id=1 function_name_id=1 line=162 end_line=162 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=1927 end_line=1927 column=1 end_column=2}
3 {file_name_id=3 function_name_id=3 line=675 end_line=675 column=1 end_column=2}
4 {file_name_id=4 function_name_id=4 line=7 end_line=7 column=1 end_column=2}
5 {file_name_id=5 function_name_id=5 line=1606 end_line=1606 column=1 end_column=2}
6 {file_name_id=6 function_name_id=6 line=500 end_line=500 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=3 parent_frame_id=1}
4 {file_location_id=4 parent_frame_id=1}
5 {file_location_id=5 parent_frame_id=1}
6 {file_location_id=1 parent_frame_id=6}
7 {file_location_id=6 parent_frame_id=1}

%adds (q: f32[128]) -> f32[128] {
  %q = f32[128]{0} parameter(0)
  ROOT %s = f32[128]{0} add(%q, %q)
}
%body (t: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %t = (s32[], bf16[64,128]) parameter(0)
  %x = bf16[8,1024,128]{2,1,0} get-tuple-element(%t), index=1
  %maps = bf16[64,128]{1,0} fusion(%x), kind=kOutput, calls=%adds, metadata={stack_frame_id=1}, \
backend_config={"convolution_algorithm_config":{},"estimated_cycles":"3000000"}
  %splash_mha_fwd.1 = bf16[8,1024,128]{2,1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
metadata={op_name="splash_mha_fwd_block_q=512" stack_frame_id=2}
  %around = f32[128]{0} fusion(%x), kind=kLoop, calls=%adds, metadata={stack_frame_id=2}, \
backend_config={"estimated_cycles":"1500000"}
  ROOT %out = (s32[], bf16[64,128]) tuple(%t, %x)
}
%condition (t.1: (s32[], bf16[64,128])) -> pred[] {
  %t.1 = (s32[], bf16[64,128]) parameter(0)
  ROOT %lt = pred[] compare(%t.1, %t.1), direction=LT
}
ENTRY %main (x: (s32[], bf16[64,128])) -> f32[128] {
  %x.1 = (s32[], bf16[64,128]) parameter(0)
  %while = (s32[], bf16[64,128]) while(%x.1), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"8"}}
  %logits = bf16[64,128]{1,0} fusion(%x.1), kind=kOutput, calls=%adds, metadata={stack_frame_id=6}, \
backend_config={"convolution_algorithm_config":{},"estimated_cycles":"4500000"}
  %loss = f32[128]{0} fusion(%x.1), kind=kLoop, calls=%adds, metadata={stack_frame_id=3}, \
backend_config={"estimated_cycles":"1500000"}
  %kl = f32[128]{0} fusion(%x.1), kind=kLoop, calls=%adds, metadata={stack_frame_id=7}, \
backend_config={"estimated_cycles":"1500000"}
  ROOT %update = f32[128]{0} fusion(%x.1), kind=kLoop, calls=%adds, metadata={stack_frame_id=4}, \
backend_config={"estimated_cycles":"7500000"}
}
"""
ANSWER = {
    "function": "train_step",
    "arguments": 2**30,
    "temporaries": 2**29,
    "code": 2**28,
    "parameters": counts.total(ladder.paper_model("103M")),
    "versions": {"maxtext": "0.2.5", "jax": "2", "libtpu": "1"},
}

# What the script that stands in for an interpreter does: it keeps its job, and writes a program and the answer.
STUB = """#!{python}
import json, os, sys
from pathlib import Path
job = json.loads(sys.stdin.read())
assert sys.argv[1].endswith("maxtext_step_peers.py")
Path({kept!r}).write_text(json.dumps(job | {{"given": dict(os.environ)}}))
print("a warning")
if {fails!r}:
    print({fails!r}, file=sys.stderr)
    sys.exit(1)
(Path(job["dump"]) / "module_0000.jit_train_step.cl_1.after_codegen.txt").write_text({text!r})
Path(job["answer"]).write_text(json.dumps({answer!r}))
"""


@pytest.fixture(autouse=True)
def one_device_mesh():
    """No mesh of one device here: the programs are texts."""


@pytest.fixture
def maxtext(monkeypatch, tmp_path):
    """`maxtext(fails='', **answer)`: MAXTEXT_PYTHON is such a script; returns the file that keeps its job."""

    def make(fails="", **answer):
        path, kept = tmp_path / "python", tmp_path / "job.json"
        told = {**ANSWER, **answer}
        # Splash's kernel is not in a dump of text alone: without it the call has no estimate.
        path.write_text(STUB.format(python=sys.executable, kept=str(kept), fails=fails, text=TEXT, answer=told))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(peers.VARIABLE, str(path))
        return kept

    return make


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.setattr(compiler, "missing", lambda chip: "")
    monkeypatch.setattr(bench, "compiled", lambda program: copy.deepcopy(OURS))


def test_without_an_interpreter_one_line_says_how_to_make_one(ours, monkeypatch, capsys):
    monkeypatch.delenv(peers.VARIABLE, raising=False)
    assert bench.main([f"--programs={PROGRAM}", "--peers=maxtext"]) == 0
    said = capsys.readouterr().out
    (line,) = re.findall("^MaxText is left out: .*$", said, re.M)
    assert "MAXTEXT_PYTHON is not set" in line and "pip install" in line
    assert f"| {PROGRAM} | 0.500 |" in said and "ratio" not in said
    monkeypatch.setenv(peers.VARIABLE, "/no/such/python")
    assert peers.missing().startswith("MAXTEXT_PYTHON=/no/such/python: no program")


def test_the_peer_is_a_line_of_the_table_and_lies_beside_ours_in_the_file(ours, maxtext, tmp_path, capsys):
    maxtext()
    path = tmp_path / "figures.json"
    flags = [f"--programs={PROGRAM}", f"--out={path}"]
    assert bench.main([*flags, "--peers=maxtext"]) == 0
    said = capsys.readouterr().out
    peer = f"| MaxText 0.2.5: {PROGRAM} | 0.034 |"
    assert peer in said and said.index(f"| {PROGRAM} | 0.500 |") < said.index(peer)
    assert f"| {PROGRAM} | MaxText 0.2.5 | 0.500 | 0.034 |" in said
    assert re.search(r"2\.00 \| 1\.75 \| 1\.14 \|$", said, re.M), "GiB of both, and their ratio"
    assert "libtpu 1, jax 2" in said and "another compiler" not in said
    kept = bench.read(path)[PROGRAM]["peers"]["MaxText 0.2.5"]
    assert kept["gib"] == 1.75
    assert bench.main(flags) == 0, "without --peers"
    assert bench.read(path)[PROGRAM]["peers"]["MaxText 0.2.5"] == kept
    maxtext(versions=ANSWER["versions"] | {"libtpu": "2"})
    assert bench.main([*flags, "--peers=maxtext"]) == 0
    assert "another compiler than ours" in capsys.readouterr().out


def test_ratios_are_with_and_without_exposed_network():
    theirs = {**OURS, "estimated_seconds": 1.0, "gib": 4.0}
    theirs["estimated_parts"] = OURS["estimated_parts"] | {"network": 0.5}
    (line,) = peers.beside({"a": {**OURS, "peers": {"MaxText 1": theirs}}, "b": OURS}).splitlines()[2:]
    assert line == "| a | MaxText 1 | 0.500 | 1.000 | 0.50 | 0.400 | 0.500 | 0.80 | 2.00 | 4.00 | 0.50 |"


def test_the_job_has_both_models_settings_and_nothing_of_this_environment(maxtext, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    job, taught = maxtext(), {**MODEL, "d_model": 1152, "n_layers": 9, "n_heads": 9}
    pair = copy.deepcopy(OURS) | {"shape": {**SHAPE, "teacher": taught, "teacher_dtype": "bfloat16"}}
    name, found = peers.compiled(pair)
    assert name == "MaxText 0.2.5" and found["flags"] == OURS["flags"]
    given = json.loads(job.read_text())
    student, teacher = (dict(one.split("=", 1) for one in given[who]) for who in ("student", "teacher"))
    assert (student["base_emb_dim"], teacher["base_emb_dim"]) == ("1024", "1152")
    assert (student["weight_dtype"], teacher["weight_dtype"]) == ("float32", "bfloat16")
    assert given["given"]["XLA_FLAGS"] == "" and "PYTHONPATH" not in given["given"]
    assert given["given"]["TPU_ACCELERATOR_TYPE"] == "v5litepod-4"
    assert "--xla_jf_dump_to=" in given["given"]["LIBTPU_INIT_ARGS"]


def test_settings_are_those_of_the_shape():
    """7.75B on 256 v5e: data=8, fsdp=32, one sequence of 4096 a chip; each value by hand."""
    shape = {**SHAPE, "batch_size": 256, "mesh": {"data": 8, "fsdp": 32, "tensor": 1}}
    given = dict(one.split("=", 1) for one in peers.settings(ladder.paper_model("7.75B"), shape, CHIPS["v5e"]))
    want = {
        "base_emb_dim": "4352",
        "base_num_decoder_layers": "34",
        "base_num_query_heads": "34",
        "base_num_kv_heads": "34",
        "head_dim": "128",
        "base_mlp_dim": "11648",  # 8/3 of 4352, rounded up to a multiple of 128
        "vocab_size": "32768",
        "logits_via_embedding": "true",
        "use_qk_norm": "true",
        "decoder_block": "qwen3",
        "weight_dtype": "float32",
        "dtype": "bfloat16",
        "remat_policy": "full",
        "max_target_length": "4096",
        "per_device_batch_size": "1.0",
        "ici_data_parallelism": "8",
        "ici_fsdp_parallelism": "32",
        "ici_tensor_parallelism": "1",
        "compile_topology": "v5e:16x16",
        "internal_compile_num_devices": "256",
    }
    assert {name: given[name] for name in want} == want
    grouped = ladder.paper_model("103M").__class__(**{**MODEL, "n_kv_heads": 2})
    assert "base_num_kv_heads=2" in peers.settings(grouped, shape, CHIPS["v5e"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"teacher": MODEL}, ""),
        ({"model": MODEL | {"window": 512}}, "model.window=512 has no setting"),
        ({"teacher": MODEL | {"experts": 8}}, "teacher.experts=8 has no setting"),
        ({"model": MODEL | {"remat": "dots"}}, "every layer recomputed"),
        ({"model": MODEL | {"qk_norm": False}}, "normalised queries and keys"),
        ({"microbatches": 2}, "one microbatch, not 2"),
        ({"teacher": MODEL, "teacher_dtype": "int8_products"}, "teacher.dtype=int8_products"),
    ],
)
def test_a_step_that_maxtext_does_not_have_is_left_out_with_a_reason(changes, said):
    found = peers.unlike({**OURS, "shape": {**SHAPE, **changes}})
    assert said in found and bool(said) == bool(found)


def test_a_step_of_gpus_or_of_another_objective_is_left_out():
    assert "no TPU" in peers.unlike({**OURS, "chip": "h100"})
    asked = ["--config=configs/train.py:103M", "--config.batch_size=16", "--config.objective.top_k=8"]
    assert peers.unlike({**OURS, "flags": asked}) == "--config.objective.top_k=8 has no setting of MaxText here"
    assert not peers.unlike({**OURS, "flags": asked[:2]})


def test_what_maxtext_says_last_is_the_error(ours, maxtext, tmp_path, capsys):
    maxtext(fails="ValueError: no such block")
    path = tmp_path / "figures.json"
    assert cli.guard(bench.main, [f"--programs={PROGRAM}", "--peers=maxtext", f"--out={path}"]) == 2
    assert PROGRAM in bench.read(path), "ours, minutes of work, stay"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "error: MaxText's step at the shape of --chip=v5e: ValueError: no such block"


def test_a_model_of_another_size_is_refused(maxtext):
    maxtext(parameters=7)
    with pytest.raises(ConfigError, match=r"its model has 7 parameters, ours [\d,]{9,}"):
        peers.compiled(OURS)


def test_a_peers_program_is_read_by_our_instrument_with_its_own_files():
    """Each part by hand: 1.5 million cycles are a millisecond, eight layers, Splash of 8 heads and 2 x 2 blocks."""
    splash = Kernel(step=10_000, block=100_000, row=5_000)
    found = peers.read(OURS, ANSWER, TEXT, {"splash_mha_fwd.1": splash})
    milli = 1e-3
    want = {
        "products": 8 * 2 * milli,
        "attention": 8 * (1 * milli + 8 * 1e3 * (4 * 10 + 3 * 100 + 2 * 5) / 1.5e9),
        "loss": (3 + 1 + 1) * milli,
        "optimizer": 5 * milli,
        "elementwise": 0.0,
        "copies": 0.0,
        "network": 0.0,
        "slices": 0.0,
    }
    assert found["estimated_parts"] == pytest.approx(want, abs=6e-6)
    assert found["estimated_seconds"] == pytest.approx(sum(want.values()), abs=6e-6)
    assert found["without_estimate"] == {} and found["gib"] == 1.75
    assert found["estimated_mfu"] == pytest.approx(3e-3 / sum(want.values()), abs=1e-4)
    assert found["dearest"][0]["source"] == "layers/attention_op.py:1927 tpu_flash_attention"
    alone = peers.read(OURS, ANSWER, TEXT, {})
    assert alone["without_estimate"] == {"tpu_custom_call": 8}
