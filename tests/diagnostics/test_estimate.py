"""Estimates read from stored program texts as the compilers of GPUs and TPUs write them: no compiler is needed."""

import dataclasses
import logging
import re

import pytest

from distill.config import ConfigError
from distill.config.chips import CHIPS
from distill.diagnostics.dryrun import bundles, compiler, estimate, hlo, installed, targets
from distill.diagnostics.dryrun.sources import Sources
from launch import dryrun
from launch.support import cli

# Two layers of a step on 16 H100, shortened: a product whose time XLA knows, one of bfloat16 into float32 that it does
# not, cuDNN's attention, a fusion of the loss, a copy, the optimizer's fusion, and a gather over eight GPUs that begins
# before a product and is waited for after it. Frames are printed with one added where 0 means none.
GPU = """HloModule jit_train_steps, is_scheduled=true

FileNames
1 "/src/distill/model/transformer.py"
2 "/src/distill/losses/chunks.py"
3 "/lib/optax/_src/transform.py"
4 "/src/distill/model/attention_kernels.py"

FunctionNames
1 "Block.mlp"
2 "Chunks.logits"
3 "update_fn"
4 "_cudnn"

FileLocations
1 {file_name_id=1 function_name_id=1 line=215 end_line=215 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=140 end_line=140 column=1 end_column=2}
3 {file_name_id=3 function_name_id=3 line=7 end_line=7 column=1 end_column=2}
4 {file_name_id=4 function_name_id=4 line=99 end_line=99 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=1}
4 {file_location_id=4 parent_frame_id=2}

%moves (p: bf16[64,128]) -> bf16[128,64] {
  %p = bf16[64,128]{1,0} parameter(0)
  ROOT %t = bf16[128,64]{1,0} transpose(%p), dimensions={1,0}
}
%adds (q: f32[128]) -> f32[128] {
  %q = f32[128]{0} parameter(0)
  ROOT %s = f32[128]{0} add(%q, %q)
}
%body (t: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %t = (s32[], bf16[64,128]) parameter(0)
  %x = bf16[64,128]{1,0} get-tuple-element(%t), index=1
  %w = bf16[16,256]{1,0} get-tuple-element(%t), index=2
  %ags = (bf16[16,256]{1,0}, bf16[128,256]{1,0}) all-gather-start(%w), channel_id=1, \
replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_0'}, dimensions={0}
  %known = (bf16[64,256]{1,0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul", \
metadata={op_name="a/dot_general" stack_frame_id=1}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"]}},"reification_cost":[{"exec_time_us":5.0,"compute_time_us":0,"name":"sol"}]}
  %agd = bf16[128,256]{1,0} all-gather-done(%ags)
  %mixed = (f32[64,512]{1,0}, s8[64]{0}) custom-call(%x, %agd), custom_call_target="__cublas$lt$matmul", \
metadata={op_name="a/dot_general" stack_frame_id=2}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"]}},"reification_cost":[{"exec_time_us":900.0,"name":"sol"}]}
  %fmha = (bf16[1,4,256,64]{3,1,2,0}, f32[1,4,256]{2,1,0}) custom-call(%x), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", metadata={stack_frame_id=4}, backend_config={\
"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["1", "4", "256", "256"], "tuple_shapes": []}}
  %moved = bf16[128,64]{1,0} fusion(%x), kind=kInput, calls=%moves, metadata={stack_frame_id=1}, \
backend_config={"reification_cost":[{"exec_time_us":2.0,"name":""}]}
  %added = f32[128]{0} fusion(%x), kind=kLoop, calls=%adds, metadata={stack_frame_id=1}, \
backend_config={"reification_cost":[{"exec_time_us":3.0,"name":""}]}
  %plain = bf16[64,128]{1,0} copy(%x)
  %sorted = f32[128]{0} sort(%added), dimensions={0}
  ROOT %out = (s32[], bf16[64,128]) tuple(%t, %x)
}
%condition (t.1: (s32[], bf16[64,128])) -> pred[] {
  %t.1 = (s32[], bf16[64,128]) parameter(0)
  ROOT %lt = pred[] compare(%t.1, %t.1), direction=LT
}
ENTRY %main (x: (s32[], bf16[64,128])) -> f32[128] {
  %x.1 = (s32[], bf16[64,128]) parameter(0)
  %while = (s32[], bf16[64,128]) while(%x.1), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"2"}}
  ROOT %update = f32[128]{0} fusion(%while), kind=kLoop, calls=%adds, metadata={stack_frame_id=3}, \
backend_config={"reification_cost":[{"exec_time_us":7.0,"name":""}]}
}
"""

H100 = CHIPS["h100"]


@pytest.fixture(autouse=True)
def one_device_mesh():
    """No mesh of one device here: abstract ones cannot be entered inside it."""


def test_a_gpus_step_is_split_into_its_parts():
    """Each by hand: trip counts included, and the mixed product without XLA's figure."""
    assert estimate.products_without_estimate(GPU) == [(64, 128, 512)]
    found = estimate.of_gpu(GPU, H100, {(64, 128, 512): 11e-6})
    got = found.by_part()
    flops = 2.5 * 2 * 2 * (4 * 256 * 256) / 2 * 64  # five products backward, half of the scores
    want = {
        "products": 2 * 5e-6,
        "loss": 2 * 11e-6,
        "attention": 2 * flops / H100.flops / estimate.CUDNN_SHARE,
        "elementwise": 2 * 3e-6,
        "copies": 2 * (2e-6 + 2 * 64 * 128 * 2 / H100.bandwidth),
        "optimizer": 7e-6,
        "network": 0.0,  # 57 KB in .13 us, behind a product of 5
        "slices": 0.0,
    }
    assert got == pytest.approx(want)
    assert found.seconds == pytest.approx(sum(want.values()))
    assert found.unknown == {"sort": 2}
    assert found.dearest(1)[0].source == "losses/chunks.py:140 logits"


def test_a_collective_costs_what_is_not_hidden():
    """The same gather, waited for at once, and one that is longer than the product that it hides behind."""
    wait = "  %agd = bf16[128,256]{1,0} all-gather-done(%ags)\n"
    known = re.search(r"  %known = .*\n", GPU)[0]
    assert known + wait in GPU
    (gather,) = hlo.collectives(GPU)
    seconds = gather.wire / gather.times / H100.link
    at_once = estimate.of_gpu(GPU.replace(known + wait, wait + known), H100, {})
    assert at_once.by_part()["network"] == pytest.approx(2 * seconds)
    slow = GPU.replace('"exec_time_us":5.0', '"exec_time_us":0.1')
    assert estimate.of_gpu(slow, H100, {}).by_part()["network"] == pytest.approx(2 * (seconds - 0.1e-6))


EIGHT = """HloModule jit_train_steps, is_scheduled=true
ENTRY %main (x: TYPE[64,128], w: TYPE[512,128]) -> bf16[64,512] {
  %x = TYPE[64,128]{1,0} parameter(0)
  %w = TYPE[512,128]{1,0} parameter(1)
  %call = (bf16[64,512]{1,0}, s8[64]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul$f8", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}, \
"reification_cost":[{"exec_time_us":1.0,"name":"sol"}]}
  ROOT %out = bf16[64,512]{1,0} get-tuple-element(%call), index=0
}
"""


@pytest.mark.parametrize("kind", estimate.EIGHT_BITS)
def test_a_gpu_multiplies_eight_bits_at_twice_the_rate(kind):
    """And not at what XLA's table says of float8, which is more than the peak."""
    text = EIGHT.replace("TYPE", kind)
    assert estimate.products_without_estimate(text) == [(64, 128, 512)]
    assert estimate.of_gpu(text, H100, {(64, 128, 512): 11e-6}).by_part()["products"] == pytest.approx(5.5e-6)
    assert estimate.of_gpu(text, H100, {}).unknown


@pytest.mark.parametrize(
    ("groups", "size", "span"),
    [
        ("replica_groups={{0,8},{1,9}}", 2, 9),
        ("replica_groups=[8,8]<=[64]", 8, 8),
        ("replica_groups=[8,8]<=[8,8]T(1,0)", 8, 57),
        ("replica_groups=mesh['a'=8,'b'=8] {'a'}", 8, 57),
        ("replica_groups=mesh['a'=8,'b'=8] {'a','b'}", 64, 64),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_0'}", 8, 8),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_2'}", 2, 9),
        ("source_target_pairs={{0,8},{8,0}}", 2, 9),
    ],
)
def test_a_group_is_as_wide_as_its_devices_are_apart(groups, size, span):
    """A group of eight that no node holds sends between nodes. The notation with device_ids was read as no group."""
    text = f"ENTRY %m (x: f32[8]) -> f32[8] {{\n  ROOT %r = f32[8]{{0}} all-reduce(%x), {groups}, to_apply=%add\n}}\n"
    (found,) = hlo.collectives(text)
    assert (found.group, found.span) == (size, span)
    assert H100.seconds(1.0, found.span) == 1.0 / (H100.beyond if span > 8 else H100.link)


# As the TPU compiler writes cycles, and calls of kernels that newlines in an attribute break over three lines.
TPU = """HloModule jit_train_steps
%body (t: (s32[], bf16[2,4,2048,128])) -> (s32[], bf16[2,4,2048,128]) {
  %t = (s32[], bf16[2,4,2048,128]) parameter(0)
  %q = bf16[2,4,2048,128]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %product = bf16[8,128]{1,0} fusion(%q), kind=kOutput, calls=%inner, metadata={op_name="a" \
source_file="/src/distill/model/transformer.py" source_line=116}, \
backend_config={"convolution_algorithm_config":{"emitter":"E"},"estimated_cycles":"1500"}
  %splash_mha_fwd.2 = bf16[2,4,2048,128]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="a/pallas_call" stack_frame_id=0}
  %splash_mha_dq.1 = bf16[2,4,2048,128]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q_dq\\": 512}"
}}, metadata={op_name="a/pallas_call" stack_frame_id=0}
  ROOT %out = (s32[], bf16[2,4,2048,128]) tuple(%t, %q)
}
%condition (t.1: (s32[], bf16[2,4,2048,128])) -> pred[] {
  %t.1 = (s32[], bf16[2,4,2048,128]) parameter(0)
  %i = s32[] get-tuple-element(%t.1), index=0
  %n = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (x: (s32[], bf16[2,4,2048,128])) -> (s32[], bf16[2,4,2048,128]) {
  %x = (s32[], bf16[2,4,2048,128]) parameter(0)
  ROOT %while = (s32[], bf16[2,4,2048,128]) while(%x), condition=%condition, body=%body
}
"""


def test_a_tpus_cycles_and_kernels_are_seconds():
    kernel = bundles.Kernel(step=100, block=1000, row=10)
    found = estimate.of_tpu(TPU, CHIPS["v5e"], {"splash_mha_fwd.2": kernel, "splash_mha_dq.1": kernel})
    assert found.by_part()["products"] == pytest.approx(3 * 1500 / 1.5e9)
    # 8 heads of 4 x 4 blocks, of which the mask leaves 10.
    assert found.by_part()["attention"] == pytest.approx(2 * 3 * 8 * (16 * 100 + 10 * 1000 + 4 * 10) / 1.5e9)
    assert estimate.of_tpu(TPU, CHIPS["v5e"], {}).unknown == {"tpu_custom_call": 6}
    # Of calls that are alike one is dumped.
    again = estimate.of_tpu(TPU, CHIPS["v5e"], {"splash_mha_fwd.1": kernel, "splash_mha_dq": kernel})
    assert again.by_part() == found.by_part() and not again.unknown


def test_a_kernels_queries_are_what_its_call_takes():
    """An operand may be one of several results of a fusion: of one with four dimensions MaxText's call cost nothing."""
    several = TPU.replace("%q = bf16[2,4,2048,128]{3,2,1,0:T(8,128)(2,1)}", "%q = (bf16[8,2048,128], bf16[1,8,64,99])")
    assert several != TPU
    taken = "operand_layout_constraints={s8[1,8,8]{2,1,0}, bf16[8,2048,128]{2,1,0}, f32[8,8,2048]{2,1,0}}"
    several = several.replace(
        'custom_call_target="tpu_custom_call", ', f'custom_call_target="tpu_custom_call", {taken}, '
    )
    kernel = bundles.Kernel(step=100, block=1000, row=10)
    known = {"splash_mha_fwd.2": kernel, "splash_mha_dq.1": kernel}
    found = estimate.of_tpu(several, CHIPS["v5e"], known)
    assert found.by_part() == estimate.of_tpu(TPU, CHIPS["v5e"], known).by_part()
    unsaid = estimate.of_tpu(several.replace(taken, ""), CHIPS["v5e"], known)
    assert unsaid.unknown == {"tpu_custom_call": 6}, "a block longer than the queries is no estimate of 0"


# The loss's kernel on 4096 tokens and 32768 columns of width 1024, with a teacher of width 512.
LOSS = """HloModule jit_train_steps
ENTRY %main (h: bf16[4096,1024], g: bf16[4096,512], w: bf16[32768,1024], u: bf16[32768,512]) -> f32[6,4096,128] {
  %tau = f32[1]{0} constant({1})
  %limit = s32[1]{0} constant({32768})
  %ids = s32[4096,1]{1,0} constant({...})
  %h = bf16[4096,1024]{1,0} parameter(0)
  %g = bf16[4096,512]{1,0} parameter(1)
  %w = bf16[32768,1024]{1,0} parameter(2)
  %u = bf16[32768,512]{1,0} parameter(3)
  ROOT %loss_sums_1024x512.3 = f32[6,4096,128]{2,1,0} custom-call(%tau, %limit, %ids, %h, %g, %w, %u), \
custom_call_target="tpu_custom_call", metadata={op_name="a" source_file="/src/distill/losses/kernel.py" source_line=9}
}
"""


def test_the_kernel_of_the_loss_takes_what_bounds_it():
    """Its bundles, its products at the peak, or its bytes: the heads once for each of four blocks of tokens."""
    chip = CHIPS["v5e"]

    def seconds(turns, chip=chip):
        kernel = bundles.Kernel(step=1000, block=20, row=4, turns=turns)
        found = estimate.of_tpu(LOSS, chip, {"loss_sums_1024x512.1": kernel})
        assert found.by_part()["loss"] == found.seconds and not found.unknown
        return found.seconds

    assert seconds(10**6) == pytest.approx(1024e6 / 1.5e9)
    assert seconds(1) == pytest.approx(2 * 4096 * 32768 * 1536 / chip.flops)
    wire = 2 * (4096 + 4 * 32768) * 1536 + 4 * 4096 + 4 * 6 * 4096 * 128
    assert seconds(1, dataclasses.replace(chip, bandwidth=1e9)) == pytest.approx(wire / 1e9)
    assert estimate.of_tpu(LOSS, chip, {}).unknown == {"tpu_custom_call": 1}


def test_the_turns_of_a_kernels_loop_are_read():
    """And the kernels of the loss are found by their names beside Splash's."""
    exit_test = "0x200   : > { %p8 = scmp.ge.s32.totalorder %s40_s6, 514 /* loop exit test */ }\n"
    found = bundles.kernel(BUNDLES + exit_test)
    assert found.turns == 514 and found.whole == 514 * (found.step + found.block + found.row)


def test_kernels_are_found_by_their_names(tmp_path):
    for name in (
        "1-loss_sums_1024x512.3-70-final_bundles",
        "2-splash_mha_fwd.1-70-final_bundles",
        "3-other-final_bundles",
    ):
        (tmp_path / f"{name}-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "4-loss_sums_512x512-71-schedule-analysis_final_bundles.txt").write_text("")
    assert set(bundles.kernels(tmp_path)) == {"loss_sums_1024x512.3", "splash_mha_fwd.1"}


# What a v6e's sparse cores gather: the next computation's header went into this one's last line, a KeyError later.
SPARSE_CORE = """HloModule jit_train_steps
%gather (p: bf16[64,8]) -> bf16[64,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  ROOT %call = bf16[64,8]{1,0} custom-call(%p), custom_call_target="gather"
}, execution_thread="sparsecore"

%inner (q: bf16[64,8]) -> bf16[8,64] {
  %q = bf16[64,8]{1,0} parameter(0)
  ROOT %turned = bf16[8,64]{1,0} transpose(%q), dimensions={1,0}
}

ENTRY %main (x: bf16[64,8]) -> bf16[8,64] {
  %x = bf16[64,8]{1,0} parameter(0)
  ROOT %moved = bf16[8,64]{1,0} fusion(%x), kind=kLoop, calls=%inner, \
backend_config={"estimated_cycles":"1500"}
}
"""


def test_a_computation_of_a_sparse_core_ends_where_it_ends():
    assert list(hlo.Program(SPARSE_CORE).computations) == ["gather", "inner", "main"]
    assert estimate.of_tpu(SPARSE_CORE, CHIPS["v5e"], {}).by_part()["copies"] == pytest.approx(1500 / 1.5e9)


BUNDLES = """= control target key start
LH: loop header
  0xe   :  { %29 = vsyncpa [#allocation6], 0 }  /* Start region 1 */
  0x10 LB: > { %1 = sst } /* Start region 34 */
  0x12   : > { %525 = sbr.rel (%p522_p3) target = $region36 }
  0x20   : > { %900 = sbr.rel (%p8501_p0) target = $region40 }
  0x2a PF: > { %s1107 = sld } /* Start/End empty region 40 :: Start region 41 */
  0x30   : > { %1123 = sbr.rel (%p8506_p1) target = $region44 }
  0x94 PF: > { %p8764 = scmp } /* Start/End empty region 44 */
  0xa0 PF: > { %s19730 = sld } /* Start/End empty region 36 */
  0xb0   : > { %42 = sbr.rel (!%p18081_p7) target = $region157 }
"""


def test_bundles_of_a_kernel_are_split_into_block_row_and_the_rest():
    assert bundles.kernel(BUNDLES) == bundles.Kernel(step=0xB0 - 0x10 - 110, block=100, row=10)


def test_a_stack_is_read_in_every_notation():
    (inner, outer) = Sources(GPU).stack("stack_frame_id=2")
    assert (str(inner), str(outer)) == ("losses/chunks.py:140 logits", "model/transformer.py:215 mlp")
    assert Sources("").stack('source_file="/a/b/c.py" source_line=3')[0].line == 3
    assert Sources(GPU).stack("") == []


def test_without_the_gpus_compiler_the_estimate_is_refused_and_the_rest_is_arithmetic(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "PLUGINS", ("no-such-plugin",))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    flags = ["--chip=h100", "--mesh=data=2", "--config=configs/train.py:micro"]
    assert cli.guard(dryrun.main, [*flags, "--estimate"]) == 2
    said = capsys.readouterr().err
    assert "not installed (no-such-plugin" in said and "'.[gpu-compiler]'" in said and said.count("\n") == 1
    assert cli.guard(dryrun.main, flags) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "a model (arithmetic, no compiler)" in said and "'.[gpu-compiler]'" in said
    assert "compiler's estimate" not in said


def test_a_compiler_of_another_version_is_not_asked(monkeypatch):
    monkeypatch.setattr(installed, "version", lambda name: "0.9.9")
    assert "is of another version than jax" in compiler.missing(H100)
    with pytest.raises(ConfigError, match="jax-cuda13-plugin=="):
        compiler.check(H100)


def test_an_a100_has_no_estimates_and_says_so(monkeypatch):
    """XLA's table of products lacks it: with its estimator, the compiler ended in 'Cannot find key: sm_80'."""
    monkeypatch.setattr(compiler, "missing", lambda chip: "")
    with pytest.raises(ConfigError, match="no estimates of products on the a100"):
        compiler.check_estimates(CHIPS["a100"])
    compiler.check_estimates(H100)
    compiler.check_estimates(CHIPS["v5e"])


def test_every_gpu_of_the_table_has_a_target_of_its_memory_and_bandwidth():
    gpus = {name for name, chip in CHIPS.items() if chip.node}
    assert gpus == set(targets.TARGETS)
    for name in gpus:
        assert targets.TARGETS[name].memory == pytest.approx(CHIPS[name].memory, rel=0.08)
        assert targets.TARGETS[name].bandwidth == pytest.approx(CHIPS[name].bandwidth, rel=0.05)
        assert CHIPS[name].kinds[0] in targets.text(CHIPS[name])


@pytest.mark.parametrize("has_gpu", [False, True])
def test_the_gpus_compiler_leaves_no_traceback_in_commands_of_a_cpu(monkeypatch, tmp_path, caplog, has_gpu):
    """JAX logs one for a GPU's plugin without a GPU; where there is a GPU it stays."""
    log = logging.getLogger("jax._src.xla_bridge")
    monkeypatch.setattr(log, "filters", [])
    monkeypatch.setattr(cli, "NVIDIA_DRIVER", tmp_path if has_gpu else tmp_path / "none")
    assert cli.guard(lambda argv: 0, []) == 0
    with caplog.at_level(logging.ERROR, logger=log.name):
        log.error("Jax plugin configuration error: Exception when calling jax_plugins.xla_cuda13.initialize()")
        log.error("another")
    assert len(caplog.records) == (2 if has_gpu else 1)
