"""The fused losses against the dense ones: values, gradients, meshes, and where the compiled program communicates."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import types
from distill.config import ExperimentConfig
from distill.config.exactness import DIVERGENCES
from distill.config.objective import every
from distill.losses import chunks, divergences, fused
from distill.losses.fused import FusedSpec
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.training import objective, optim
from distill.types import Batch, HiddenSignal, TeacherSignal

B, S, D, V = 4, 6, 8, 50
OPTIONS = {"xla_backend_optimization_level": 0}


@pytest.fixture
def case():
    """(hidden, head, ids, teacher's hidden, teacher's head, cotangents of every reading), heads as they are stored."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    ids = rng.integers(0, V - 6, (B, S, 3), np.int32)
    return normal(B, S, D), normal(V, D), ids, normal(B, S, 2 * D), normal(V, 2 * D), normal(5, B, S)


def place(case):
    specs = (
        sharding.ACT_BSD,
        sharding.PARAM_SPECS["head_vd"],
        sharding.ACT_BSD,
        sharding.ACT_BSD,
        sharding.PARAM_SPECS["head_vd"],
    )
    return tuple(jax.device_put(x, spec) for x, spec in zip(case, specs))


def project(hidden, head, tokens):
    head = jax.sharding.reshard(head, jax.P(None, None))
    logits = jnp.einsum("bsd,vd->bsv", hidden, head, out_sharding=sharding.ACT_BSD)
    return jnp.where(jnp.arange(V)[None, None] < tokens, logits, types.LOG_ZERO)


def dense(spec, hidden, head, ids, t_hidden, t_head, temperature, beta):
    z, t = project(hidden, head, spec.tokens), project(t_hidden, t_head, spec.tokens)
    tau = temperature if spec.tempered else 1.0
    soft = jax.nn.logsumexp(z / tau, axis=-1)
    value = divergences.divergence(spec.divergence, z, t, tau, beta) / tau**2 if spec.divergence else 0 * soft
    return jax.nn.logsumexp(z, axis=-1), soft, jnp.take_along_axis(z, ids, axis=-1), value


def chunked(spec, hidden, head, ids, t_hidden, t_head, temperature, beta, stored=False):
    signal = HiddenSignal(hidden=t_hidden, head=t_head) if spec.divergence else None
    if stored:
        signal = TeacherSignal(log_probs=jax.sharding.reshard(project(t_hidden, t_head, V), sharding.LOGITS_BSV))
    found = fused.fused_losses(spec, hidden, head, ids, signal, temperature, beta)
    return found.log_z, found.log_z_tau if spec.tempered else found.log_z, found.id_logits, found.divergence


def scored(readings, spec, arrays, by, **kwargs):
    """(every reading weighed by a random cotangent, gradients by hidden and head)."""

    @jax.jit
    def both(hidden, head, rest):
        def total(hidden, head):
            numbers = jnp.float32(1.5), jnp.float32(0.3)
            plain, soft, picked, value = readings(spec, hidden, head, *rest, *numbers, **kwargs)
            parts = plain * by[0], soft * by[1], picked[..., 0] * by[2], picked[..., 1:].sum(-1) * by[3], value * by[4]
            return sum(jnp.sum(part) for part in parts), (plain, soft, picked, value)

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, head)

    (_, found), gradients = both(arrays[0], arrays[1], arrays[2:])
    return jax.tree.map(np.asarray, (found, gradients))


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1.0)


SPECS = {
    f"{kind or 'hard'}-{'2' if tempered else '1'}": FusedSpec(
        divergence=kind, tempered=tempered, tokens=V - 6, chunk_logits=12 * 128, chunk_tokens=12
    )
    for kind in ("", *DIVERGENCES)
    for tempered in (False, True)
}


def small(spec, columns=16):
    """Chunks of 16 columns and 12 tokens: several of each, the last one short."""
    return dataclasses.replace(spec, chunk_logits=columns * 12)


@pytest.fixture(autouse=True)
def narrow_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "MIN_COLUMNS", 1)


@pytest.mark.parametrize("name", SPECS)
def test_fused_equals_dense(name, case):
    spec = small(SPECS[name])
    *arrays, by = case
    assert_close(scored(chunked, spec, place(arrays), by), scored(dense, spec, place(arrays), by))


@pytest.mark.parametrize(("name", "sizes"), [("hard-1", (1, 1, 1)), ("forward-2", (2, 1, 2))])
def test_one_id_a_token_is_read_apart_on_a_gpu(name, sizes, case, mesh_of, monkeypatch):
    """By its row of the head, not in a sum over logits; also of a capped head, and for ids that are no token's."""
    spec = dataclasses.replace(small(SPECS[name]), cap=3.0)
    (hidden, head, ids, *rest), by = case[:-1], case[-1]
    ids = np.where(np.arange(ids.shape[1])[None, :, None] == 2, -1, ids[..., :1])
    arrays = place((hidden, head, ids, *rest))
    want = scored(chunked, spec, arrays, by)
    read = []
    original = chunks.Chunks.logits_of_ids
    monkeypatch.setattr(chunks.attention_kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(chunks.Chunks, "logits_of_ids", lambda *given: read.append(1) or original(*given))
    with jax.set_mesh(mesh_of(*sizes)):
        assert_close(scored(chunked, spec, place((hidden, head, ids, *rest)), by), want, 1e-6)
    assert read and not np.any(want[0][2][:, 2]) and np.all(want[0][2][:, 0])


@pytest.mark.parametrize("name", ["forward-2", "jensen_shannon-2"])
def test_a_stored_distribution_serves_as_well(name, case):
    spec = small(SPECS[name])
    *arrays, by = case
    assert_close(scored(chunked, spec, place(arrays), by, stored=True), scored(dense, spec, place(arrays), by))


@pytest.mark.parametrize("name", ["hard-1", "forward-1", "reverse-2", "total_variation-2"])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 2)])
def test_any_mesh(name, sizes, case, mesh_of):
    spec = small(SPECS[name], columns=10)
    *arrays, by = case
    want = scored(dense, spec, place(arrays), by)
    with jax.set_mesh(mesh_of(*sizes)):
        assert_close(scored(chunked, spec, place(arrays), by), want)


def test_one_label_a_token(case):
    *arrays, by = case
    arrays[2] = arrays[2][..., :1]
    spec = small(SPECS["forward-1"])
    assert_close(scored(chunked, spec, place(arrays), by), scored(dense, spec, place(arrays), by))


def test_bfloat16_stays_near_float32(case):
    *arrays, by = case
    arrays[0], arrays[3] = arrays[0].astype(jnp.bfloat16), arrays[3].astype(jnp.bfloat16)
    want_arrays = [np.asarray(x, np.float32) if x.dtype == jnp.bfloat16 else x for x in arrays]
    spec = small(SPECS["forward-1"])
    got = scored(chunked, spec, place(arrays), by)
    assert got[1][0].dtype == jnp.bfloat16 and got[1][1].dtype == np.float32
    got = jax.tree.map(lambda x: x.astype(np.float32), got)
    assert_close(got, scored(dense, spec, place(want_arrays), by), tolerance=3e-2)


def test_no_collective_inside_a_loop(case, mesh_of):
    """Forward and backward on 2 x 2 x 2 devices: all-gather, all-reduce and reduce-scatter outside of every while."""
    spec = small(SPECS["jensen_shannon-2"], columns=2)
    *arrays, by = case
    with jax.set_mesh(mesh_of(2, 2, 2)):
        total = lambda h, w, *rest: sum(x.sum() for x in chunked(spec, h, w, *rest, 1.5, 0.3))
        compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*place(arrays)).compile().as_text()
    collective = re.compile(r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")
    computations = dict(re.findall(r"^(?:ENTRY )?(%?[\w.\-]+) [^\n]*\{\n(.*?)^\}", compiled, re.M | re.S))
    inside, todo = set(), re.findall(r"body=(%?[\w.\-]+)", compiled)
    assert todo, "there is a loop"
    while todo:
        name = todo.pop()
        if name not in inside:
            inside.add(name)
            todo += re.findall(r"(?:calls|to_apply|body|condition)=(%?[\w.\-]+)", computations[name])
    assert len(collective.findall(compiled)) >= 4, "the head is gathered and its gradient scattered"
    assert not [line for name in inside for line in computations[name].splitlines() if collective.search(line)]


def test_the_logits_never_exist():
    """At V = 32768 the temporaries stay below a tenth of one [B, S, V] array."""
    spec = FusedSpec(divergence="forward", tempered=False, tokens=32768)
    floats = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 512, 64), (32768, 64), (4, 512, 32), (32768, 32))]
    ids = jax.ShapeDtypeStruct((4, 512, 1), jnp.int32)

    def total(hidden, head, ids, t_hidden, t_head):
        found = fused.fused_losses(spec, hidden, head, ids, HiddenSignal(hidden=t_hidden, head=t_head))
        return jnp.sum(found.log_z + found.divergence)

    step = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*floats[:2], ids, *floats[2:]).compile()
    assert step.memory_analysis().temp_size_in_bytes < 0.1 * 4 * 512 * 32768 * 4


ROUTES = every(lambda_=0.7, beta=0.3, top_k=5, draws=4)


@pytest.mark.parametrize("name", ["jensen_shannon-soft-2", "reverse-topk-bucket-1", "forward-sampled-1", "supervised"])
def test_the_step_takes_either_route(name, tiny, make_batch, gradient_of, relative_error):
    """Heads of 32 and 40 columns, 24 of them tokens, on one step from an online teacher."""
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, valid_vocab=24))
    teacher = None
    if name != "supervised":
        config = dataclasses.replace(config, objective=ROUTES[name])
        teacher = Transformer(dataclasses.replace(tiny.model, d_model=24, vocab_size=40), jax.random.key(9))
    gradients = {}
    for route in ("dense", "fused"):
        routed = dataclasses.replace(config, objective=dataclasses.replace(config.objective, implementation=route))
        gradients[route] = gradient_of(routed, make_batch(1, vocab=24), teacher=teacher)
    assert relative_error(gradients["fused"], gradients["dense"]) < 1e-5


# Whole distributions are compared reading by reading above; of the cut ones, one of every kind and divergence.
CUT = {
    name: config
    for name, config in ROUTES.items()
    if config.exactness_row != "full" and (config.target != "topp" or config.divergence == "forward")
    and (config.tempered or name[:-1] + "2" not in ROUTES)
}  # fmt: skip


@functools.partial(jax.jit, static_argnums=0, compiler_options=OPTIONS)
def all_losses(fused_route, hidden, head, t_hidden, t_head, batch):
    """(loss sum, its gradients by hidden and head) under every cut target of an online teacher, in one program."""
    signal, found = HiddenSignal(hidden=t_hidden, head=t_head), {}
    for name, config in CUT.items():
        h = optim.hyperparams(ExperimentConfig(objective=config))
        spec = dataclasses.replace(objective.objective_spec(config), tokens=V - 6)

        def loss(hidden, head, spec=spec, h=h):
            if fused_route:
                return objective.fused_loss(spec, h, hidden, head, signal, batch, 3)[0]
            return objective.loss(spec, h, project(hidden, head, spec.tokens), signal, batch, 3)[0]

        found[name] = jax.value_and_grad(loss, argnums=(0, 1))(hidden, head)
    return found


def test_cut_targets_are_the_same_fused(case):
    """Value and gradients to 1e-5."""
    hidden, head, _, t_hidden, t_head, _ = case
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, V - 6, (B, S + 1), np.int32)
    weight = rng.choice([0.0, 0.5, 1.0], (B, S)).astype(np.float32)
    batch = sharding.place(Batch(tokens, weight), jax.sharding.get_mesh())
    arguments = (*place((hidden, head)), *place((t_hidden, t_head)), batch)
    got, want = (jax.tree.map(np.asarray, all_losses(route, *arguments)) for route in (True, False))
    assert {config.exactness_row for config in CUT.values()} == {"truncated", "renormalised", "sampled", "argmax"}
    assert got.keys() == CUT.keys() and len(got) == 13
    for name, (value, gradients) in want.items():
        np.testing.assert_allclose(got[name][0], value, rtol=1e-5, err_msg=name)
        for a, b in zip(got[name][1], gradients):
            assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b), name
            assert np.linalg.norm(b) > 0.1, name


def test_auto_is_dense_for_small_vocabularies_and_fused_for_large_ones(tiny):
    large = dataclasses.replace(tiny.model, vocab_size=128_256)
    assert not objective.objective_spec(tiny.objective, tiny.model).fused
    assert objective.objective_spec(tiny.objective, large).fused


def test_chunks_are_those_of_the_platform(monkeypatch):
    """On a CPU as they were; a GPU or TPU takes larger ones, of at most 64 MiB of all models' logits in float32."""
    spec = FusedSpec(divergence="", tempered=False, tokens=32768)
    hidden, head, one = jnp.zeros((32768, 8), jnp.bfloat16), jnp.zeros((32768, 8), jnp.bfloat16), jnp.ones(())

    def sizes(heads):
        made = chunks.Chunks(dataclasses.replace(spec, one_device=True), hidden, head, one, one, heads)
        return made.tokens, made.columns

    assert sizes(()) == sizes((head,)) == (2048, 512)
    for platform in ("gpu", "tpu"):
        monkeypatch.setattr(chunks.attention_kernels, "platform", lambda platform=platform: platform)
        assert sizes(()) == (4096, 4096) and sizes((head,)) == (4096, 2048)
        assert 4 * 4096 * 4096 == 4 * 2 * 4096 * 2048 == 64 * 2**20
