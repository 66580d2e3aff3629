"""The TPU's kernel of the fused losses, interpreted: against float64, against XLA's chunks, on any mesh and shape."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import mlir
from jax._src.pallas import hlo_interpreter

from distill import types
from distill.losses import fused, kernel
from distill.losses.fused import FusedSpec
from distill.model import sharding
from distill.types import HiddenSignal, TeacherSignal

KINDS = ("", "forward", "reverse")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks and pieces of the small arrays here."""
    monkeypatch.setattr(kernel, "BLOCK_TOKENS", 16)
    monkeypatch.setattr(kernel, "BLOCK_COLUMNS", 256)
    monkeypatch.setattr(kernel, "PIECE", 128)


@pytest.fixture(autouse=True)
def interpreted_in_any_shard_map(monkeypatch):
    """JAX's interpreter slices arrays that vary over a mesh by places that do not, which shard_map's check refuses.

    So its arguments are taken as not varying; the check of the rest, with the kernel's output, stays. A TPU's lowering
    has no such limit.
    """
    original = mlir.lower_fun

    def lower_fun(fun, *args, **kwargs):
        rule = original(fun, *args, **kwargs)
        if getattr(fun, "func", None) is not hlo_interpreter.pallas_call_hlo_interpret:
            return rule
        plain = lambda aval: aval.update(manual_axis_type=type(aval.manual_axis_type)())
        return lambda ctx, *nodes: rule(ctx.replace(avals_in=list(map(plain, ctx.avals_in))), *nodes)

    monkeypatch.setattr(mlir, "lower_fun", lower_fun)


def made(rng, batch, length, width, taught, columns, ids, dtype=np.float32):
    """(hidden, head, ids, the teacher's hidden, its head), as they are stored."""
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    hidden, head, t_hidden, t_head = (
        normal(batch, length, width), normal(columns, width), normal(batch, length, taught), normal(columns, taught),
    )  # fmt: skip
    picked = rng.integers(0, columns - 6, (batch, length, ids), np.int32)
    head, t_head = head / np.sqrt(width), t_head / np.sqrt(taught)
    arrays = hidden.astype(dtype), head, picked, t_hidden.astype(dtype), t_head
    acts, heads = sharding.ACT_BSD, sharding.PARAM_SPECS["head_vd"]
    return tuple(map(jax.device_put, arrays, (acts, heads, acts, acts, heads)))


def found(spec, arrays, by, stored=False, temperature=1.5):
    """(the four losses, gradients by hidden and head) with random cotangents `by`, as numpy arrays."""

    @jax.jit
    def both(hidden, head, ids, t_hidden, t_head):
        def total(hidden, head):
            signal = HiddenSignal(hidden=t_hidden, head=t_head, cap=spec.cap / 2) if spec.divergence else None
            if stored:
                weight = jax.sharding.reshard(t_head, jax.P("tensor", None))
                t = jnp.einsum("bsd,vd->bsv", t_hidden, weight, out_sharding=sharding.LOGITS_BSV)
                signal = TeacherSignal(log_probs=t)
            got = fused.fused_losses(spec, hidden, head, ids, signal, temperature)
            soft = got.log_z_tau if spec.tempered else got.log_z
            parts = got.log_z * by[0], soft * by[1], got.id_logits.sum(-1) * by[2], got.divergence * by[3]
            return sum(jnp.sum(x) for x in parts), (got.log_z, soft, got.id_logits, got.divergence)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, head)

    (_, losses), gradients = both(*arrays)
    return [np.asarray(x, np.float64) for x in (*losses, *gradients)]


def exact(spec, arrays, by, temperature=1.5):
    """The same by numpy in float64, gradients by hand: sum over columns of by_z."""
    hidden, head, ids, t_hidden, t_head = (np.asarray(x).astype(np.float64 if i != 2 else np.int64)
                                           for i, x in enumerate(arrays))  # fmt: skip
    tau = temperature if spec.tempered else 1.0
    known = np.arange(head.shape[0]) < spec.tokens
    cap = lambda z, c: c * np.tanh(z / c) if c else z
    raw = hidden @ head.T
    z, t = (np.where(known, x, types.LOG_ZERO) for x in (cap(raw, spec.cap), cap(t_hidden @ t_head.T, spec.cap / 2)))
    total = lambda x: x.max(-1) + np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))
    log_z, soft, log_t = total(z), total(z / tau), total(t / tau)
    q, log_q, log_p = np.exp(z - log_z[..., None]), z / tau - soft[..., None], t / tau - log_t[..., None]
    divergence, d = 0 * log_z, 0 * z
    if spec.divergence == "forward":
        divergence = -(np.exp(log_p) * np.where(known, log_q, 0)).sum(-1)
        d = np.exp(log_q) - np.exp(log_p)
    elif spec.divergence == "reverse":
        ratio = np.where(known, log_q - log_p, 0)
        divergence = (np.exp(log_q) * ratio).sum(-1)
        d = np.exp(log_q) * (ratio - divergence[..., None])
    picked = np.take_along_axis(z, ids, axis=-1)
    by_z = by[0][..., None] * q + by[1][..., None] / tau * np.exp(log_q) + by[3][..., None] / tau * d
    for k in range(ids.shape[-1]):
        by_z += by[2][..., None] * (np.arange(head.shape[0]) == ids[..., k : k + 1])
    if spec.cap:
        by_z = by_z * (1 - np.tanh(raw / spec.cap) ** 2)
    by_z = np.where(known, by_z, 0)
    gradients = by_z @ head, np.einsum("bsv,bsd->vd", by_z, hidden)
    return [log_z, soft, picked, divergence, *gradients]


def worst(got, want):
    """The largest relative error of an array, by its norm."""
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1.0) for a, b in zip(got, want, strict=True))


def cotangents(batch, length, seed=1):
    return np.random.default_rng(seed).normal(size=(4, batch, length)).astype(np.float32)


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_float64_and_the_chunks_of_xla(kind, tempered, cap):
    """Value and gradients to 1e-6 (reverse, a mean of differences: 2e-6); with padding, blocks that divide nothing."""
    tolerance = 2e-6 if kind == "reverse" else 1e-6
    arrays, by = made(np.random.default_rng(0), 2, 21, 24, 40, 700, 1), cotangents(2, 21)
    spec = FusedSpec(divergence=kind, tempered=tempered, tokens=694, cap=cap, chunk_tokens=21, chunk_logits=21 * 300)
    got = found(dataclasses.replace(spec, kernel=True), arrays, by)
    xla = found(dataclasses.replace(spec, kernel=False), arrays, by)
    assert worst(got, xla) < tolerance and worst(got, exact(spec, arrays, by)) < tolerance


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_a_stored_distribution_and_several_ids(kind):
    arrays, by = made(np.random.default_rng(0), 2, 20, 24, 40, 512, 5), cotangents(2, 20)
    spec = FusedSpec(divergence=kind, tempered=True, tokens=512, kernel=True, chunk_tokens=20, chunk_logits=20 * 256)
    assert worst(found(spec, arrays, by, stored=True), exact(spec, arrays, by)) < 1e-6


def test_random_shapes():
    """Ten shapes, drawn: tokens, widths, columns, ids, chunks."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        batch, length, width, taught, ids = (int(rng.integers(1, n)) for n in (4, 30, 70, 70, 4))
        columns, chunk = int(rng.integers(130, 900)), int(rng.integers(130, 900))
        tokens = int(rng.integers(columns - 6, columns + 1))
        spec = FusedSpec(divergence=KINDS[rng.integers(3)], tempered=bool(rng.integers(2)), tokens=tokens, kernel=True,
                         chunk_tokens=batch * length, chunk_logits=batch * length * chunk)  # fmt: skip
        arrays, by = made(rng, batch, length, width, taught, columns, ids), cotangents(batch, length)
        error = worst(found(spec, arrays, by), exact(spec, arrays, by))
        assert error < 1e-6, (spec, [x.shape for x in arrays])


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (1, 1, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_sharded(kind, sizes, mesh_of):
    """The second device of `tensor` has the columns that are no tokens."""
    by = cotangents(4, 12)
    spec = FusedSpec(divergence=kind, tempered=True, tokens=620, kernel=True, chunk_tokens=6, chunk_logits=6 * 200)
    with jax.set_mesh(mesh_of(*sizes)):
        arrays = made(np.random.default_rng(0), 4, 12, 24, 40, 640, 2)
        got = found(spec, arrays, by)
    assert worst(got, exact(spec, arrays, by)) < 1e-6


def test_bfloat16():
    """As near to float64 of the rounded inputs as XLA's chunks are, a tenth more."""
    arrays, by = made(np.random.default_rng(0), 2, 21, 64, 40, 700, 1, jnp.bfloat16), cotangents(2, 21)
    spec = FusedSpec(divergence="forward", tempered=True, tokens=700)
    rounded = [
        np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64) if x.dtype != jnp.int32 else x for x in arrays
    ]
    want = exact(spec, rounded, by)
    ours, theirs = (worst(found(dataclasses.replace(spec, kernel=on), arrays, by), want) for on in (True, False))
    assert ours < 1e-2 and ours < 1.1 * theirs + 1e-4


def test_where_it_is_chosen():
    """Where the table has it faster, and never for what it does not have."""
    chosen = lambda kind="TPU v5 lite", divergence="", widths=(1024,), ids=1, parts=0, dtype=jnp.bfloat16: (
        kernel.is_faster(kind, divergence, widths, ids, parts, dtype)
    )
    assert all(chosen(kind) for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite"))
    assert chosen(divergence="reverse", widths=(1024, 1152), parts=1)
    assert not any(chosen(kind) for kind in ("cpu", "NVIDIA H100 80GB HBM3", "TPU v4", ""))
    assert not chosen(dtype=jnp.float32) and not chosen(ids=2) and not chosen(widths=(4352,))
    assert not chosen("TPU v6 lite", divergence="forward", widths=(1024, 1152), parts=1)
    assert not chosen(divergence="jensen_shannon", widths=(1024, 1152), parts=1)
    assert not chosen(divergence="forward", parts=1), "a stored distribution"
    assert not chosen(divergence="forward", widths=(256, 256, 256), parts=4), "a mixture"


def test_the_kernel_is_called_where_it_is_chosen(monkeypatch):
    """By `fused_losses` on a TPU, and not on a CPU."""
    called = []
    monkeypatch.setattr(kernel, "sums", lambda *given: called.append(given) or 1 / 0)
    arrays, by = made(np.random.default_rng(0), 2, 8, 16, 16, 256, 1, jnp.bfloat16), cotangents(2, 8)
    spec = FusedSpec(divergence="", tempered=False, tokens=256)
    found(spec, arrays, by)
    assert not called
    monkeypatch.setattr(fused.attention_kernels, "device_kind", lambda: "TPU v5 lite")
    with pytest.raises(ZeroDivisionError):
        found(spec, arrays, by)
