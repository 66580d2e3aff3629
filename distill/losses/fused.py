"""The losses of divergences.py from hidden states and heads, without logits [B, S, V] of student or teacher.

Logits are computed for a chunk of tokens and a chunk of the vocabulary at a time (chunks.py), reduced, and discarded;
the backward pass recomputes them. Everything runs inside one shard_map, batch over (data, fsdp) and vocabulary over
tensor. Its collectives are before and after the loops: the head is gathered over fsdp (so its gradient is scattered),
and each token's normaliser is summed over tensor once.

Letters: N tokens and V columns of one device, n those of one chunk; D width; K ids a token.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from distill.losses import kernel
from distill.losses.chunks import Chunks, Cotangents, TeacherArrays, TokenSums, vary
from distill.losses.chunks import FusedSpec as FusedSpec
from distill.model import attention_kernels, sharding
from distill.types import HiddenSignal, MixedSignal, TeacherSignal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedLosses:
    """For every token: logsumexp of the logits at tau = 1 and of logits / tau, the logits of some ids, the divergence.

    If tau is 1, `log_z` carries the gradient and `log_z_tau` none. The divergence is between distributions softened by
    tau, without the factor tau^2; it is zero if none was requested.
    """

    log_z: Float[Array, "B S"]
    log_z_tau: Float[Array, "B S"]
    id_logits: Float[Array, "B S K"]
    divergence: Float[Array, "B S"]


def fused_losses(
    spec: FusedSpec,
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    ids: Int[Array, "B S K"],
    signal: HiddenSignal | MixedSignal | TeacherSignal | None,
    temperature: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 0.5,
) -> FusedLosses:
    """The losses of the student's logits hidden @ head.T, differentiable by `hidden` and `head`.

    `head` has its stored sharding (over tensor and fsdp) and is used in hidden's dtype. The teacher, stop-gradient, is
    given by its hidden states and head, as a mixture of several, or by its log-probabilities; its columns match the
    student's.
    """
    reshard = jax.sharding.reshard
    teacher, teacher_specs = _teacher_arrays(signal)
    spec = dataclasses.replace(spec, teacher_caps=_caps(signal))
    if spec.kernel is None:
        kind, widths = attention_kernels.device_kind(), [x.shape[1] for x in (head, *teacher.heads)]
        given = widths, ids.shape[-1], len(teacher.by_token), hidden.dtype
        spec = dataclasses.replace(spec, kernel=kernel.is_faster(kind, spec.divergence, *given))
    values = (hidden, head, ids, jnp.asarray(temperature, jnp.float32), jnp.asarray(beta, jnp.float32), teacher)
    specs = (sharding.ACT_BSD, sharding.PARAM_SPECS["head_vd"], sharding.ACT_BSD, P(), P(), teacher_specs)
    outputs = (sharding.TOKENS_BS, sharding.TOKENS_BS, sharding.ACT_BSD, sharding.TOKENS_BS)
    values = jax.tree.map(reshard, values, specs)
    if jax.sharding.get_abstract_mesh().size == 1:
        spec = dataclasses.replace(spec, one_device=True)
        losses = _on_device(spec, *jax.tree.map(lambda x: reshard(x, P()), values))
        return FusedLosses(*map(reshard, losses, outputs))
    mapped = jax.shard_map(functools.partial(_on_device, spec), in_specs=specs, out_specs=outputs)
    return FusedLosses(*mapped(*values))


def _caps(signal: HiddenSignal | MixedSignal | TeacherSignal | None) -> tuple[float, ...]:
    """The cap of each teacher whose logits are computed here."""
    match signal:
        case HiddenSignal():
            return (signal.cap,)
        case MixedSignal():
            return tuple(part.cap for part in signal.parts)
    return ()


def _teacher_arrays(
    signal: HiddenSignal | MixedSignal | TeacherSignal | None,
) -> tuple[TeacherArrays, TeacherArrays]:
    """The signal as arrays, and the PartitionSpec of each."""
    head = sharding.PARAM_SPECS["head_vd"]
    if signal is None:
        return TeacherArrays((), ()), TeacherArrays((), ())
    if isinstance(signal, TeacherSignal):
        return TeacherArrays((signal.log_probs,), ()), TeacherArrays((sharding.LOGITS_BSV,), ())
    if isinstance(signal, HiddenSignal):
        return TeacherArrays((signal.hidden,), (signal.head,)), TeacherArrays((sharding.ACT_BSD,), (head,))
    by_token = (*(part.hidden for part in signal.parts), *signal.offsets)
    heads = tuple(part.head for part in signal.parts)
    specs = TeacherArrays((sharding.ACT_BSD,) * len(by_token), (head,) * len(heads))
    return TeacherArrays(by_token, heads), specs


def _on_device(
    spec: FusedSpec,
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V _"],
    ids: Int[Array, "B S K"],
    temperature: Float[Array, ""],
    beta: Float[Array, ""],
    teacher: TeacherArrays,
) -> tuple[Float[Array, "B S"], Float[Array, "B S"], Float[Array, "B S K"], Float[Array, "B S"]]:
    """The computation of one device: flattens its tokens, gathers the heads, and restores the batch."""
    batch = hidden.shape[:2]
    flat = lambda x: x.reshape(-1, x.shape[-1])
    weight = _gather(spec, head, hidden.dtype)
    by_token, heads = tuple(map(flat, teacher.by_token)), teacher.heads
    if heads:
        by_token = tuple(vary(spec, x, "tensor") for x in by_token)
        heads = tuple(_gather(spec, head, x.dtype) for x, head in zip(by_token, heads))
    student = vary(spec, flat(hidden), "tensor"), weight, vary(spec, flat(ids), "tensor")
    log_z, log_z_tau, id_logits, divergence = _losses(spec, *student, temperature, beta, TeacherArrays(by_token, heads))
    unflat = lambda x: x.reshape(*batch, *x.shape[1:])
    return unflat(log_z), unflat(log_z_tau), unflat(id_logits), unflat(divergence)


def _gather(spec: FusedSpec, head: Float[Array, "V _"], dtype: DTypeLike) -> Float[Array, "V D"]:
    """Gathers this device's rows of the head with all columns, in `dtype` (that of the hidden states) for the transfer.

    On one device nothing is transferred, and each chunk is cast when it is used, which saves a second copy. What is
    gathered varies over `data` already, so that its gradient is scattered over fsdp before it is summed over data.
    """
    if spec.one_device:
        return head
    return sharding.gather_rows(vary(spec, head.astype(dtype), "data"))


_Losses = tuple[Float[Array, " N"], Float[Array, " N"], Float[Array, "N K"], Float[Array, " N"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(
    spec: FusedSpec,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    ids: Int[Array, "N K"],
    temperature: Float[Array, ""],
    beta: Float[Array, ""],
    teacher: TeacherArrays,
) -> _Losses:
    """(log_z, log_z_tau, id_logits, divergence) of the tokens of one device."""
    return _losses_forward(spec, hidden, head, ids, temperature, beta, teacher)[0]


class _Residuals(NamedTuple):
    """The backward pass's residuals: the inputs, and five numbers per token."""

    hidden: Float[Array, "N D"]
    head: Float[Array, "V D"]
    ids: Int[Array, "N K"]
    temperature: Float[Array, ""]
    beta: Float[Array, ""]
    teacher: TeacherArrays
    sums: TokenSums


def _losses_forward(
    spec: FusedSpec,
    hidden: Float[Array, "N D"],
    head: Float[Array, "V D"],
    ids: Int[Array, "N K"],
    temperature: Float[Array, ""],
    beta: Float[Array, ""],
    teacher: TeacherArrays,
) -> tuple[_Losses, _Residuals]:
    chunks = Chunks(spec, hidden, head, temperature, beta, teacher.heads)
    tau, by_token = chunks.tau, tuple(map(chunks.split, teacher.by_token))
    join = lambda x: x.reshape(-1, *x.shape[2:])
    partial = lax.map(chunks.reduce, (chunks.split(hidden), chunks.split(ids), by_token))
    peak, mass, mass_tau, id_logits, peak_t, mass_t, expected = map(join, partial)

    # The only collectives: each token's sums over the vocabulary, once.
    total = lambda x: x if spec.one_device else lax.psum(x, "tensor")
    most = lambda x: x if spec.one_device else lax.pmax(x, "tensor")
    top, top_t = most(peak), most(peak_t)
    rescale, rescale_t = jnp.exp((peak - top) / tau), jnp.exp((peak_t - top_t) / tau)
    log_z = top + jnp.log(total(mass * jnp.exp(peak - top)))
    mass_tau, mass_t = total(mass_tau * rescale), total(mass_t * rescale_t)
    id_logits, log_z_tau = total(id_logits), top / tau + jnp.log(mass_tau)
    d_sum = divergence = log_z_t = jnp.zeros_like(log_z)
    if spec.divergence:
        log_z_t = top_t / tau + jnp.log(mass_t)
    if spec.divergence == "forward":
        divergence = log_z_tau - total(expected * rescale_t) / mass_t / tau
    elif spec.divergence == "reverse":
        divergence = total(expected * rescale) / mass_tau / tau - log_z_tau + log_z_t
    elif spec.divergence:
        known = chunks.split(hidden), by_token, chunks.split(log_z_tau), chunks.split(log_z_t)
        value, d = lax.map(chunks.compare, known)
        divergence, d_sum = total(join(value)), total(join(d))
    # Equal on every device of tensor, which JAX cannot infer after the division by a varying tau.
    log_z_tau, divergence = most((log_z_tau, divergence))
    sums = TokenSums(log_z, log_z_tau, divergence, log_z_t, d_sum)
    residuals = _Residuals(hidden, head, ids, temperature, beta, teacher, sums)
    return (log_z, log_z_tau, id_logits, divergence), residuals


def _losses_backward(
    spec: FusedSpec, residuals: _Residuals, cotangents: _Losses
) -> tuple[Float[Array, "N D"], Float[Array, "V D"], None, None, None, None]:
    hidden, head, ids, temperature, beta, teacher, sums = residuals
    chunks = Chunks(spec, hidden, head, temperature, beta, teacher.heads)
    exact = chunks.exact

    def tokens(by_head: Float[Array, "V D"], x: PyTree) -> tuple[Float[Array, "V D"], Float[Array, "n D"]]:
        hidden, *rest = x

        def columns(carry: tuple[Array, Array], i: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
            by_hidden, by_head = carry
            z = chunks.logits(i, hidden, head, spec.cap)
            by_z = chunks.uncapped(chunks.gradient(i, z, *rest), z).astype(hidden.dtype)
            weight, start = chunks.rows_of(i, head, hidden.dtype), chunks.start(i)
            by_hidden += lax.dot_general(by_z, weight, (((1,), (0,)), ((), ())), preferred_element_type=exact)
            new = lax.dot_general(by_z, hidden, (((0,), (0,)), ((), ())), preferred_element_type=exact)
            if chunks.on_gpu:
                new = lax.optimization_barrier(new)
            old = lax.dynamic_slice_in_dim(by_head, start, chunks.columns)
            by_head = lax.dynamic_update_slice_in_dim(by_head, old + new.astype(by_head.dtype), start, axis=0)
            return (by_hidden, by_head), None

        zero = vary(spec, jnp.zeros(hidden.shape, exact))
        (by_hidden, by_head), _ = lax.scan(columns, (zero, by_head), jnp.arange(chunks.count))
        return by_head, by_hidden.astype(hidden.dtype)

    # Rows accumulate only over several chunks of tokens, so only then do they need float32.
    zero = vary(spec, jnp.zeros(head.shape, head.dtype if chunks.parts == 1 else exact))
    parts = jax.tree.map(chunks.split, (hidden, ids, teacher.by_token, sums, Cotangents(*cotangents)))
    by_head, by_hidden = lax.scan(tokens, zero, parts)
    return by_hidden.reshape(hidden.shape), by_head.astype(head.dtype), None, None, None, None


_losses.defvjp(_losses_forward, _losses_backward)
