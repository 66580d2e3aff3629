"""Dry runs: collectives read from HLO with known byte counts, what FSDP sends, FLOPs, chips, flags, emitted configs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, build, chips, counts
from distill.config.ladder import paper_model
from distill.diagnostics.dryrun import arithmetic, hlo, program, report
from distill.losses import fused
from distill.losses.chunks import FusedSpec
from distill.model import sharding
from launch import dryrun
from launch.support import cli


@pytest.fixture(autouse=True)
def one_device_mesh():
    """No mesh of one device here: abstract ones cannot be entered inside it."""


MODEL = ModelConfig(vocab_size=64, d_model=32, n_layers=3, n_heads=4, d_ff=96, tied=False)
CONFIG = ExperimentConfig(model=MODEL, batch_size=8, seq_len=16, tokens=10 * 8 * 16, mesh=MeshConfig(data=1, fsdp=8))


def compiled(function, made, *shapes) -> str:
    """The HLO of a function of arrays split over all devices along their first axis."""
    with jax.set_mesh(made):
        mapped = jax.shard_map(function, in_specs=P(sharding.AXES), out_specs=P(sharding.AXES))
        place = jax.NamedSharding(made, P(sharding.AXES))
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape in shapes]
        return jax.jit(mapped).lower(*arguments).compile().as_text()


@pytest.mark.parametrize(
    ("function", "kind", "size", "group"),
    [
        (lambda x: lax.all_gather(x, "fsdp", tiled=True), "all-gather", 4 * 256, 4),
        (lambda x: lax.psum_scatter(x, "fsdp", tiled=True), "reduce-scatter", 256, 4),
        (lambda x: lax.pcast(lax.psum(x, sharding.BATCH), sharding.BATCH, to="varying"), "all-reduce", 256, 8),
        (lambda x: lax.all_to_all(x, "data", 0, 0, tiled=True), "all-to-all", 256, 2),
        (lambda x: lax.ppermute(x, "fsdp", [(0, 1), (1, 2), (2, 3), (3, 0)]), "collective-permute", 256, 2),
    ],
)
def test_a_collective_is_read_with_its_bytes(mesh_of, function, kind, size, group):
    """Of 64 float32 a device, on (data, fsdp, tensor) = (2, 4, 1)."""
    (found,) = hlo.collectives(compiled(function, mesh_of(2, 4, 1), (8 * 64,)))
    assert (found.kind, found.bytes, found.group, found.times) == (kind, size, group, 1)
    share = (group - 1) / group
    factor = {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)
    assert hlo.bytes_by_kind([found]) == {kind: pytest.approx(factor * size)}


def test_a_collective_in_loops_counts_as_often_as_it_runs(mesh_of):
    def function(x):
        inner = lambda _, x: lax.ppermute(x, "fsdp", [(0, 1), (1, 0)])
        return lax.fori_loop(0, 5, lambda _, x: lax.fori_loop(0, 3, inner, jnp.tanh(x)), x)

    (found,) = hlo.collectives(compiled(function, mesh_of(4, 2, 1), (64,)))
    assert found.times == 15 and found.wire == 15 * 32


# As the TPU compiler writes them: a gather in three pieces of one channel, a reduce-scatter as all-reduce and slice,
# a halo exchange on the channel of another collective, and an all-reduce that is read whole.
TPU = """HloModule step
%start (p: bf16[64,32]) -> bf16[64,128] {
  %p = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0)
}
%done (p.1: bf16[64,32]) -> bf16[64,128] {
  %p.1 = bf16[64,32]{1,0} parameter(0)
  ROOT %g2 = bf16[64,128]{1,0} all-gather(%p.1), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0)
}
%all-reduce-scatter.1 (input: f32[128,16]) -> f32[32,16] {
  %input = f32[128,16]{1,0} parameter(0)
  %r = f32[128,16]{1,0} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %id = u32[] partition-id()
  %zero = u32[] constant(0)
  ROOT %slice = f32[32,16]{1,0} dynamic-slice(%r, %id, %zero), dynamic_slice_sizes={32,16}
}
%body (t: (s32[], bf16[64,32], f32[128,16])) -> (s32[], bf16[64,32], f32[128,16]) {
  %t = (s32[], bf16[64,32], f32[128,16]) parameter(0)
  %a = bf16[64,32]{1,0} get-tuple-element(%t), index=1
  %b = f32[128,16]{1,0} get-tuple-element(%t), index=2
  %async-collective-start = (bf16[64,32]{1,0}, bf16[64,128]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %async-collective-done = bf16[64,128]{1,0} fusion(%a), kind=kCustom, calls=%done
  %scattered = f32[32,16]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %halo = f32[8,16]{1,0} collective-permute(%scattered), channel_id=9, source_target_pairs={{0,1},{1,2}}
  %gains = (f32[32], f32[16]) all-reduce(%x, %y), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%add
  ROOT %out = (s32[], bf16[64,32], f32[128,16]) tuple(%i, %a, %b)
}
%condition (t.1: (s32[], bf16[64,32], f32[128,16])) -> pred[] {
  %t.1 = (s32[], bf16[64,32], f32[128,16]) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  %n = s32[]{:T(128)} constant(34)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}
ENTRY %main (x: (s32[], bf16[64,32], f32[128,16])) -> (s32[], bf16[64,32], f32[128,16]) {
  %x = (s32[], bf16[64,32], f32[128,16]) parameter(0)
  ROOT %while = (s32[], bf16[64,32], f32[128,16]) while(%x), condition=%condition, body=%body
}
"""


def test_what_the_tpu_compiler_writes_is_read_as_what_it_is():
    found = {one.kind: (one.bytes, one.group, one.times) for one in hlo.collectives(TPU)}
    assert len(hlo.collectives(TPU)) == 4
    assert found == {
        "all-gather": (2 * 64 * 128, 4, 34),
        "reduce-scatter": (4 * 128 * 16, 4, 34),
        "collective-permute": (4 * 8 * 16, 2, 34),
        "all-reduce": (4 * 48, 2, 34),
    }


# As the GPU compiler writes collectives that it has combined and made asynchronous, layouts and memory spaces included.
GPU = """HloModule jit_step, entry_computation_layout={()->f32[]}

%wrapped (p.0: f32[64,32], p.1: f32[128]) -> (f32[8,32], f32[16]) {
  %p.0 = f32[64,32]{1,0} parameter(0)
  %p.1 = f32[128]{0} parameter(1)
  ROOT %rs = (f32[8,32]{1,0}, f32[16]{0}) reduce-scatter(%p.0, %p.1), replica_groups=[1,8]<=[8], dimensions={0}
}
ENTRY %main (x: bf16[8,32], y: bf16[16]) -> f32[] {
  %x = bf16[8,32]{1,0} parameter(0)
  %y = bf16[16]{0} parameter(1)
  %ags = ((bf16[8,32]{1,0}, bf16[16]{0}), (bf16[64,32]{1,0}, bf16[128]{0})) all-gather-start(%x, %y), \
channel_id=1, replica_groups=[1,8]<=[8]
  %agd = (bf16[64,32]{1,0}, bf16[128]{0}) all-gather-done(%ags)
  %one = (bf16[8,32]{1,0}, bf16[64,32]{1,0}) all-gather-start(%x), channel_id=4, replica_groups=[1,8]<=[8]
  %oned = bf16[64,32]{1,0} all-gather-done(%one)
  %rss = ((f32[64,32]{1,0}, f32[128]{0}), (f32[8,32]{1,0}, f32[16]{0})) async-start(%a, %b), calls=%wrapped
  %rsd = (f32[8,32]{1,0}, f32[16]{0}) async-done(%rss)
  %rso = ((bf16[64,8]{1,0}), bf16[8,8]{1,0}) reduce-scatter-start(%e), channel_id=9, replica_groups=[1,8]<=[8]
  %rsod = bf16[8,8]{1,0} reduce-scatter-done(%rso)
  %ars = (f32[32]{0}, f32[16]{0}) all-reduce-start(%c, %d), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
  %ard = (f32[32]{0}, f32[16]{0}) all-reduce-done(%ars)
}
"""


def test_what_the_gpu_compiler_combines_is_counted_whole():
    """All arrays of a combined gather, not the largest alone; of a scatter of one array, what it gives, eight times.

    (The operand was taken for what it gives: eight times too many bytes of embedding and head.)
    """
    found = [(one.kind, one.bytes, one.group) for one in hlo.collectives(GPU)]
    assert sorted(found) == [
        ("all-gather", 2 * 64 * 32, 8),
        ("all-gather", 2 * (64 * 32 + 128), 8),
        ("all-reduce", 4 * 48, 8),
        ("reduce-scatter", 2 * 64 * 8, 8),
        ("reduce-scatter", 4 * (64 * 32 + 128), 8),
    ]


@functools.cache
def step_hlo(remat: str) -> str:
    """The step of CONFIG with a teacher, compiled for eight devices of a CPU."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, remat=remat))
    made = sharding.make(config.mesh, jax.devices()[:8])
    with jax.set_mesh(made):
        return program.trace(config, MODEL, made).traced.lower().compile().as_text()


@pytest.mark.parametrize(
    "remat", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("attention", "dots")), "full"]
)
def test_fsdp_gathers_each_weight_once_a_pass_and_keeps_none(remat):
    text = step_hlo(remat)
    got = hlo.bytes_by_kind(hlo.collectives(text))["all-gather"]
    least = arithmetic.fsdp_bytes(dataclasses.replace(CONFIG, model=MODEL), MODEL)["all-gather"]
    assert 0.9 * least < got < 1.2 * least
    # A residual would be stacked over the layers.
    whole = {(32, 96), (96, 32), (32, 32)}
    stacked = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[3,(\d+,\d+)\]", text)}
    assert not whole & stacked


@pytest.mark.parametrize("table", ["embedding", "head"])
def test_only_pieces_of_a_table_gradient_are_summed_over_data(mesh_of, table):
    """Scattered over fsdp first. Both failed when tables were gathered before they varied over data: the whole
    gradient was all-reduced."""
    spec = FusedSpec(divergence="", tempered=False, tokens=64)

    def total(table_vd, tokens, hidden):
        if table == "embedding":
            return jnp.sum(jnp.sin(sharding.rows(table_vd, tokens)))
        return jnp.sum(fused.fused_losses(spec, hidden, table_vd, tokens[..., None], None).log_z)

    made = mesh_of(2, 4, 1)
    with jax.set_mesh(made):
        at = lambda shape, dtype, place: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(made, place))
        arrays = (
            at((64, 32), jnp.float32, sharding.PARAM_SPECS["embed_vd"]),
            at((8, 16), jnp.int32, sharding.TOKENS_BS),
            at((8, 16, 32), jnp.float32, sharding.ACT_BSD),
        )
        text = jax.jit(jax.grad(total)).lower(*arrays).compile().as_text()
    summed = [one.bytes for one in hlo.collectives(text) if one.kind == "all-reduce" and one.group == 2]
    assert summed == [4 * 64 * 32 / 4], "the gradient's quarter, between the two halves of the batch"


def test_an_embedding_with_uneven_rows_has_the_same_gradient(mesh_of):
    """60 rows do not divide over 8 devices: the pieces travel by columns."""
    table, tokens = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32), np.arange(8 * 4).reshape(8, 4)
    want = None
    for shape in [(1, 1, 1), (1, 8, 1), (2, 2, 2)]:
        with jax.set_mesh(mesh_of(*shape)):
            placed = jax.sharding.reshard(jnp.asarray(table), sharding.PARAM_SPECS["embed_vd"])
            ids = jax.sharding.reshard(jnp.asarray(tokens), sharding.TOKENS_BS)
            weigh = lambda table, ids: jnp.sum(jnp.sin(sharding.rows(table, ids)) * 3)
            gradient = np.asarray(jax.jit(jax.grad(weigh))(placed, ids))
        want = gradient if want is None else want
        np.testing.assert_allclose(gradient, want, rtol=1e-6)
        assert np.abs(gradient[:32]).min() > 0 and not gradient[32:].any()


@pytest.mark.parametrize("name", ["103M", pytest.param("7.75B", marks=pytest.mark.slow)])
def test_the_products_of_a_step_are_those_that_are_counted(name):
    """Without recomputation: three forward passes of the student and one of the teacher, attention apart."""
    config = pod(name, remat="none")
    student, teacher = config.model, paper_model("546M")
    with_abstract = program.trace(config, teacher, sharding.abstract(config.mesh))
    got, tokens = program.flops(with_abstract), config.batch_size * config.seq_len

    def linear(model):
        context = model.n_layers * config.seq_len * (2 * model.n_heads * model.head_dim + 2.5 * model.n_heads)
        return counts.forward_flops(model, config.seq_len) - context

    head = 2 * student.vocab_size * student.d_model + 2 * teacher.vocab_size * teacher.d_model
    want = (3 * linear(student) + linear(teacher) + head) * tokens  # the fused loss computes both heads again backward
    assert got.linear == pytest.approx(want, rel=3e-3)
    # A mask hides half of the scores at most; what is skipped is at most that.
    causal = config.seq_len * 2 * (3 * student.n_layers * student.d_model + teacher.n_layers * teacher.d_model)
    assert 1.0 <= got.attention / (causal * tokens) <= 2.4


def pod(name: str, **changes) -> ExperimentConfig:
    model = dataclasses.replace(paper_model(name), **changes)
    return ExperimentConfig(
        model=model, mesh=MeshConfig(data=2, fsdp=8), batch_size=16, seq_len=2048, tokens=10 * 16 * 2048
    )


def test_recomputation_is_a_forward_pass_but_for_the_last_product_of_a_layer():
    """Nobody reads what `down` gives a second time."""
    configs = [pod("103M", remat=remat) for remat in ("none", "full")]
    once, again = (program.flops(program.trace(c, None, sharding.abstract(c.mesh))).linear for c in configs)
    model, tokens = configs[0].model, 16 * 2048
    maps = 4 * model.d_model**2 + 2 * model.d_model * model.ff_dim
    assert again - once == pytest.approx(2 * model.n_layers * maps * tokens, rel=1e-6)


def test_what_is_recomputed_is_what_its_name_says():
    """'attention' recomputes scores alone, 'dots' everything but linear maps; each buys memory with it.

    Products inside the linear maps' own gradient are none of theirs, or 'dots' would be 'full'.
    """
    flops, kept = {}, {}
    for remat in ("none", "attention", "dots", "full"):
        model = ModelConfig(vocab_size=512, d_model=128, n_layers=4, n_heads=4, d_head=32, tied=False, remat=remat)
        config = ExperimentConfig(
            model=dataclasses.replace(model, attention="xla"), batch_size=8, seq_len=256, tokens=10 * 8 * 256,
            mesh=MeshConfig(data=1),
        )  # fmt: skip
        found = program.flops(program.trace(config, None, sharding.abstract(config.mesh)))
        flops[remat] = found.linear, found.attention
        made = sharding.make(config.mesh, jax.devices()[:1])
        with jax.set_mesh(made):
            compiled = program.trace(config, None, made).traced.lower().compile()
        kept[remat] = compiled.memory_analysis().temp_size_in_bytes
    (linear, once), (linear_again, again) = flops["none"], flops["full"]
    assert linear < linear_again and once < again
    assert flops["attention"] == flops["dots"] == (linear, again)
    assert kept["full"] < kept["dots"] < kept["attention"] < kept["none"]


def test_bytes_of_the_state_are_those_of_the_arrays():
    config = dataclasses.replace(pod("103M"), mesh=MeshConfig(data=2, fsdp=4, tensor=2))
    found = program.trace(config, None, sharding.abstract(config.mesh))
    held = program.held(found.state.params) + program.held(found.state.opt_state)
    assert held == pytest.approx(arithmetic.state_bytes(config), rel=1e-3)
    assert program.held(found.state.params) < 4 * counts.total(config.model) / 7.9


@pytest.mark.parametrize(
    ("chip", "count", "name"),
    [("v5e", 4, "v5e:2x2"), ("v5e", 128, "v5e:8x16"), ("v5e", 256, "v5e:16x16"), ("v5p", 256, "v5p:4x8x8")],
)
def test_slices_are_named_as_the_compiler_names_them(chip, count, name):
    assert chips.topology(chips.CHIPS[chip], count) == name


@pytest.mark.parametrize("count", [2, 21, 512])
def test_a_slice_that_is_not_made_is_refused(count):
    with pytest.raises(ConfigError, match=f"{count} chips; a slice of v5e has a power of two .* from 4 to 256"):
        chips.topology(chips.CHIPS["v5e"], count)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--chip=h1000"],
            "--chip: got 'h1000', wanted one of v5e, v5p, v6e, v4, a100, h100, h200, b200. Did you",
        ),
        (["--chip=h100", "--mesh=data=8,fsdq=2"], "there is no axis 'fsdq'. Did you mean 'fsdp'?"),
        (["--chip=h100", "--mesh=data=x"], "data='x', wanted a number of chips"),
        (["--chip=h100"], "--mesh=... is missing: wanted every axis"),
        (["--chip=h100", "--mesh=data=3"], "batch_size=4 does not divide over data x fsdp=3"),
        (["--chip=h100", "--mesh=data=2,fsdp=3", "--slices=3"], "--slices=3: got a mesh of data=2; only data crosses"),
        (["--chip=h100", "--mesh=data=2", "--slices=0"], "--slices=0: wanted at least 1"),
        (["--chip=h100", "--mesh=data=2", "--slices=2", "--slice-gbit=0"], "--slice-gbit=0.0: wanted Gbit/s of a chip"),
        (["--chip=h100", "--mesh=data=2", "--teacher=12B"], "--teacher=12B: neither a row of the paper's ladder"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, said, capsys):
    assert cli.guard(dryrun.main, flags) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "libtpu.so"))
    assert cli.guard(dryrun.main, ["--chip=v5e", "--mesh=data=4"]) == 2
    assert "there is no such file; unset it, or pip install -e '.[tpu-compiler]'" in capsys.readouterr().err


def test_a_report_and_its_config_have_the_same_run(capsys, tmp_path):
    """N and D exact, FLOPs within 0.3%, on the mesh that was asked for."""
    path = tmp_path / "emitted.py"
    flags = ["--config=configs/train.py:103M", "--teacher=546M", "--mesh=data=2,fsdp=8,tensor=2", "--chip=h100"]
    assert cli.guard(dryrun.main, [*flags, "--config.tokens=1000000007", f"--emit-config={path}"]) == 0
    said = capsys.readouterr().out
    assert "a model (arithmetic" in said and "fits" in said
    config = build(ExperimentConfig, cli.read(str(path)).to_dict())
    N, D = counts.non_embedding(config.model), config.tokens
    assert f"N = {N:,d}, D = {D:,d}" in said.replace("\n", " ")
    assert D == counts.training_tokens(config) == 1_000_000_007 // (256 * 4096) * 256 * 4096
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (2, 8, 2)
    a_step = counts.run_flops(config, paper_model("546M"))
    printed = float(re.search(r"([\d.e+]+) of the models", said)[1])
    assert printed == pytest.approx((a_step.student + a_step.teacher_forward) / config.steps, rel=3e-3)


def test_a_step_that_needs_more_than_the_chip_has_does_not_fit():
    config = dataclasses.replace(pod("7.75B"), mesh=MeshConfig(data=8, fsdp=2))
    found = report.dry_run(config, paper_model("12.6B"), chips.CHIPS["h100"])
    assert not found.fits and "DOES NOT FIT" in dict(report.rows(found))["total a chip"]
    assert found.teacher == pytest.approx(4 * counts.total(paper_model("12.6B")) / 2, rel=1e-3)
