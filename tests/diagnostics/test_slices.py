"""Dry runs over several slices: what they send to one another, what of it is hidden, what a report says of it."""

import json
import re

import pytest

from distill.config import ExperimentConfig, MeshConfig, chips, counts
from distill.config.ladder import paper_model
from distill.diagnostics.dryrun import arithmetic, compiler, estimate, hlo, tune
from launch import dryrun
from launch.support import cli


@pytest.fixture(autouse=True)
def one_device_mesh():
    """No mesh of one device here: abstract ones cannot be entered inside it."""


# As libtpu writes it for four slices of 256, shortened: pieces of a layer's gradient, scattered over the chips of a
# slice, go to the other slices while the next layer is computed.
SLICES = """HloModule step
%sums (p: bf16[4096,256]) -> bf16[16,256] {
  %p = bf16[4096,256]{1,0} parameter(0)
  ROOT %piece = bf16[16,256]{1,0} reduce-scatter(%p), channel_id=1, replica_groups=[1,256]<=[256], dimensions={0}
}
%body (t: (s32[], bf16[4096,256])) -> (s32[], bf16[4096,256]) {
  %t = (s32[], bf16[4096,256]) parameter(0)
  %w = bf16[4096,256]{1,0} get-tuple-element(%t), index=1
  %token = token[] after-all()
  %r = (bf16[2,8,256]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) recv(%token), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="psum.1_0",_xla_megascale_target="{1,2,3,4}x{0:255}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %s = (bf16[2,8,256]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%piece.1, %token), channel_id=4, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="psum.1_0",_xla_megascale_reduce_operation=\
"SUM",_xla_megascale_target="{1,2,3,4}x{0:255}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %next = bf16[4096,256]{1,0} fusion(%w), kind=kOutput, calls=%grows, backend_config={"estimated_cycles":"15000"}
  %sd = token[] send-done(%s), channel_id=4, is_host_transfer=true
  %rd = (bf16[2,8,256]{2,1,0}, token[]) recv-done(%r), channel_id=3, is_host_transfer=true
  ROOT %out = (s32[], bf16[4096,256]) tuple(%i, %next)
}
%grows (q: bf16[4096,256]) -> bf16[4096,256] {
  %q = bf16[4096,256]{1,0} parameter(0)
  ROOT %n = bf16[4096,256]{1,0} negate(%q)
}
%condition (t.1: (s32[], bf16[4096,256])) -> pred[] {
  %t.1 = (s32[], bf16[4096,256]) parameter(0)
  ROOT %lt = pred[] compare(%t.1, %t.1), direction=LT
}
ENTRY %main (x: (s32[], bf16[4096,256]), y: bf16[64,128]) -> (s32[], bf16[4096,256]) {
  %x = (s32[], bf16[4096,256]) parameter(0)
  %y = bf16[64,128]{1,0} parameter(1)
  %gs = (bf16[64,128]{1,0}, u32[], token[]) send(%y), channel_id=8, frontend_attributes={_xla_host_transfer_rendezvous=\
"gather_0",_xla_megascale_target="{1,2,3,4}x{0:255}",_xla_megascale_transfer_type="ALL_GATHER"}
  %ps = (bf16[64,128]{1,0}, u32[], token[]) send(%y), channel_id=9, frontend_attributes={_xla_host_transfer_rendezvous=\
"permute_0",_xla_megascale_target={{100000->400000},{100001->400001}},_xla_megascale_transfer_type="ONE_TO_ONE"}
  %as = (bf16[64,128]{1,0}, u32[], token[]) send(%y), channel_id=9, frontend_attributes={_xla_host_transfer_rendezvous=\
"all_0",_xla_megascale_target={{100000,200000},{100001,200001}},_xla_megascale_transfer_type="ALL_TO_ALL"}
  %logged = (f32[8]{0}, u32[], token[]) send(%y), channel_id=10, is_host_transfer=true
  ROOT %while = (s32[], bf16[4096,256]) while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"34"}}
}
"""


def test_what_a_tpus_slices_send_to_one_another_is_read_from_the_sends():
    """Also an all-gather, whose send holds a part, and a send to the host that is no collective."""
    slow = chips.several(chips.CHIPS["v5e"], MeshConfig(data=32, fsdp=32), slices=4)
    found = hlo.collectives(SLICES)
    assert all(slow.leaves_slice(one.span) for one in found)
    assert sorted((one.kind, one.bytes, one.group, one.times) for one in found) == [
        ("all-gather", 4 * 2 * 64 * 128, 4, 1),
        ("all-reduce", 2 * 2 * 8 * 256, 4, 34),
        ("all-to-all", 2 * 64 * 128, 2, 1),
        ("collective-permute", 2 * 64 * 128, 2, 1),
    ]
    unknown = SLICES.replace('"ALL_GATHER"', '"BROADCAST"')
    with pytest.raises(ValueError, match="transfer between slices of a kind that is not known: gs, BROADCAST"):
        hlo.collectives(unknown)


@pytest.mark.parametrize(("gbit", "exposed"), [(25.0, 0.0), (0.01, 34 * (1.5 * 8192 * 8 / 0.01e9 - 15000 / 1.5e9))])
def test_what_is_sent_between_slices_hides_behind_what_runs_until_it_is_received(gbit, exposed):
    """3.9 us behind a product of 10 at 25 Gbit/s; by hand at a slow link."""
    text = re.sub(r"  %(gs|ps|as|logged) = .*\n", "", SLICES)
    slow = chips.several(chips.CHIPS["v5e"], MeshConfig(data=32, fsdp=32), 4, gbit)
    found = estimate.of_tpu(text, slow, {}).by_part()
    assert found["slices"] == pytest.approx(exposed) and found["network"] == 0.0


def test_over_slices_pieces_of_all_chips_of_a_slice_are_summed():
    """The least: of 7.7e9 gradients in bfloat16 a 256th, as a ring of four; a slice then sums over a fourth of data."""
    mesh, model = MeshConfig(data=32, fsdp=32), paper_model("7.75B")
    config = ExperimentConfig(model=model, mesh=mesh, batch_size=1024, seq_len=4096, tokens=2**32)
    between = arithmetic.slice_bytes(config, 4)
    assert between == pytest.approx(2 * 3 / 4 * 2 * counts.total(config.model) / 256, rel=1e-3)
    whole, inside = arithmetic.fsdp_bytes(config), arithmetic.fsdp_bytes(config, None, 4)
    assert inside["all-reduce"] * (31 / 32) == pytest.approx(whole["all-reduce"] * (7 / 8))
    assert arithmetic.slice_bytes(config, 1) == 0.0


def test_gpus_are_told_how_many_are_a_slice():
    """Without it XLA makes one ring over all slices: 3.9 GB of a chip cross in place of .4."""
    mesh = MeshConfig(data=32, fsdp=8)
    for name in ("h100", "a100"):
        assert compiler.SLICE_OPTION not in compiler._gpu_options(chips.CHIPS[name])
        several = chips.several(chips.CHIPS[name], mesh, slices=4)
        assert compiler._gpu_options(several)[compiler.SLICE_OPTION] == "64"


def test_tuning_leaves_meshes_out_that_would_cross_otherwise():
    config = ExperimentConfig(model=paper_model("103M"), mesh=MeshConfig(data=8, fsdp=4), batch_size=32, seq_len=1024)
    h100 = chips.CHIPS["h100"]
    meshes = lambda chip: {one.mesh.data for one in tune.choices(config, None, chip, limit=h100.memory)}
    assert meshes(chips.several(h100, config.mesh, slices=4)) == {4, 8, 16, 32} < meshes(h100)


def test_a_report_of_several_slices_prints_what_it_assumes(capsys, tmp_path):
    flags = ["--config=configs/train.py:103M", "--chip=v4", "--mesh=data=8,fsdp=4", f"--json={tmp_path / 'x.json'}"]
    assert cli.guard(dryrun.main, [*flags, "--slices=2", "--slice-gbit=10"]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert "2 of 16 chips; assumed between them: 10 Gbit/s a chip" in said
    sent = found["sent_between_slices_gb"]
    assert f"between slices  {sent:.2f} GB sent a chip and step" in re.sub(r"  +", "  ", said)
    assert (found["slices"], found["slice_gbit"]) == (2, 10)
    assert found["roofline_seconds"]["slices"] == pytest.approx(8 * sent / 10, rel=1e-2)
    assert cli.guard(dryrun.main, flags) == 0 and "between" not in capsys.readouterr().out
