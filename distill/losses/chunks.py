"""The fused losses' arithmetic for one chunk of tokens and columns: logits, sums over columns, gradients by logits.

With z the student's logits, q(tau) its probabilities and d_v = d terms_v / d log q_v, the gradients are
    d logsumexp(z / tau) / d z_v = q_v / tau      d divergence / d z_v = (d_v - q_v sum_u d_u) / tau

On a TPU a kernel computes the sums where it is faster (kernel.py).

Letters: N tokens and V columns of one device, n and v those of one chunk, C chunks of tokens; D width; K ids a token.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from distill.losses import divergences, kernel, online
from distill.losses.online import PartialSums
from distill.model import attention_kernels, sharding
from distill.model.layers import capped
from distill.types import LOG_ZERO

# On a CPU: enough logits for an efficient matmul, few enough for the cache (measured: docs/results/objectives.md).
CPU_LOGITS = 2**20
CPU_TOKENS = 2048
# On a GPU or TPU: 64 MiB of float32 logits of all models. Sums [n, D] and [v, D] are read and written once a chunk, so
# that a product makes n / 4 and v / 4 FLOPs for each of their bytes; the chips' ratio of FLOPs to bandwidth is 150 to
# 560, which 4096 passes everywhere.
ACCELERATOR_LOGITS = 2**24
ACCELERATOR_TOKENS = 4096
MIN_COLUMNS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedSpec:
    """Static options. divergence '' computes none; tokens: columns of the heads that are tokens.

    cap: of the student's logits (layers.capped); teacher_caps: of each teacher's, filled in from the signal.
    """

    divergence: str
    tempered: bool
    tokens: int
    chunk_logits: int = 0  # 0: chosen for the platform (chunk_size)
    chunk_tokens: int = 0
    cap: float = 0.0
    teacher_caps: tuple[float, ...] = ()
    kernel: bool | None = None  # the TPU's kernel (kernel.py), interpreted elsewhere; None: where it is faster
    one_device: bool = False  # then without shard_map: even collectives over one device copy the heads


def chunk_size(platform: str, models: int) -> tuple[int, int]:
    """Tokens of one chunk at most, and its logits of each model, on 'cpu', 'gpu' or 'tpu' ('': as on a CPU)."""
    if platform in ("", "cpu"):
        return CPU_TOKENS, CPU_LOGITS
    return ACCELERATOR_TOKENS, ACCELERATOR_LOGITS // models


class TeacherArrays(NamedTuple):
    """A teacher's signal as arrays: arrays split by tokens, and heads.

    Either log-probabilities without a head; or hidden states and a head for each teacher and, in a mixture, an offset
    each (after all hidden states).
    """

    by_token: PyTree
    heads: PyTree


class TokenSums(NamedTuple):
    """Five numbers a token that the backward pass needs: log_z_t is the teacher's at tau, d_sum is sum_u d_u."""

    log_z: Float[Array, "*C n"]
    log_z_tau: Float[Array, "*C n"]
    divergence: Float[Array, "*C n"]
    log_z_t: Float[Array, "*C n"]
    d_sum: Float[Array, "*C n"]


class Cotangents(NamedTuple):
    """The gradients by log_z, log_z_tau, the logits of the ids, and the divergence."""

    log_z: Float[Array, "*C n"]
    log_z_tau: Float[Array, "*C n"]
    id_logits: Float[Array, "*C n K"]
    divergence: Float[Array, "*C n"]


def vary(spec: FusedSpec, x: Array, *axes: str) -> Array:
    """Marks x as varying along these mesh axes too (default: all); the transpose sums gradients over them."""
    return x if spec.one_device else lax.pcast(x, axes or sharding.AXES, to="varying")


class Chunks:
    """A device's iteration over its N tokens and its V columns, n tokens and v columns at a time.

    `exact` is the dtype of sums: float32 at least. A temperature of 1 is compiled in.
    """

    def __init__(
        self,
        spec: FusedSpec,
        hidden: Float[Array, "N D"],
        head: Float[Array, "V D"],
        temperature: Float[Array, ""],
        beta: Float[Array, ""],
        heads: tuple[Float[Array, "V _"], ...],
    ):
        tokens, rows = hidden.shape[0], head.shape[0]
        self.spec, self.head, self.heads, self.beta = spec, head, heads, beta
        self.exact = jnp.promote_types(hidden.dtype, jnp.float32)
        self.tau: Float[Array, ""] | float = temperature.astype(self.exact) if spec.tempered else 1.0
        self.soften = (lambda x: x / self.tau) if spec.tempered else None
        platform = attention_kernels.platform()
        # XLA's GPU compiler reads a chunk's logits twice as long for one more sum over them, and it copies the sums
        # [v, D] for a product that adds to them (docs/results/speed.md).
        self.on_gpu = platform == "gpu"
        most, logits = chunk_size(platform, 1 + len(heads))
        most, logits = spec.chunk_tokens or most, spec.chunk_logits or logits
        self.tokens = max(n for n in range(1, min(tokens, most) + 1) if tokens % n == 0)
        self.columns = min(rows, max(MIN_COLUMNS, logits // self.tokens))
        self.parts = tokens // self.tokens
        self.count = math.ceil(rows / self.columns)
        self.rows, self.valid = rows, spec.tokens
        self.offset: Int[Array, ""] | int = 0 if spec.one_device else lax.axis_index("tensor") * rows
        self.divides = rows % self.columns == 0

    def split(self, x: Array) -> Array:
        """[N, ...] -> [C, n, ...]."""
        return x.reshape(self.parts, self.tokens, *x.shape[1:])

    def start(self, i: Int[Array, ""]) -> Int[Array, ""]:
        """The first column of chunk i; the last chunk overlaps the previous one if v does not divide V."""
        return i * self.columns if self.divides else jnp.minimum(i * self.columns, self.rows - self.columns)

    def is_new(self, i: Int[Array, ""]) -> Bool[Array, " v"]:
        """Which columns of chunk i were in no earlier chunk and are not padding."""
        column = self.start(i) + jnp.arange(self.columns)
        return (column >= i * self.columns) & (column + self.offset < self.valid)

    def rows_of(self, i: Int[Array, ""], head: Float[Array, "V D"], dtype: DTypeLike) -> Float[Array, "v D"]:
        """The rows of a head for the columns of chunk i."""
        return lax.dynamic_slice_in_dim(head, self.start(i), self.columns).astype(dtype)

    def logits(
        self, i: Int[Array, ""], hidden: Float[Array, "n D"], head: Float[Array, "V D"], cap: float
    ) -> Float[Array, "n v"]:
        """The logits of chunk i under a cap, in float32 at least; LOG_ZERO in columns that are not new."""
        exact = jnp.promote_types(hidden.dtype, jnp.float32)
        contracted = (((1,), (1,)), ((), ()))
        z = lax.dot_general(hidden, self.rows_of(i, head, hidden.dtype), contracted, preferred_element_type=exact)
        return jnp.where(self.is_new(i)[None], capped(z, cap), LOG_ZERO)

    def uncapped(self, by_z: Float[Array, "n v"], z: Float[Array, "n v"]) -> Float[Array, "n v"]:
        """The gradient by the student's logits before their cap, from that by its logits z."""
        return by_z * (1 - jnp.square(jnp.maximum(z / self.spec.cap, -1.0))) if self.spec.cap else by_z

    def teacher_logits(self, i: Int[Array, ""], by_token: tuple[Float[Array, "n _"], ...]) -> Float[Array, "n v"]:
        """The teacher's logits, or its log-probabilities, over the same columns."""
        if self.heads:
            caps = self.spec.teacher_caps or (0.0,) * len(self.heads)
            each = [self.logits(i, *part).astype(self.exact) for part in zip(by_token, self.heads, caps)]
            offsets = by_token[len(self.heads) :]
            return functools.reduce(jnp.logaddexp, [z + c for z, c in zip(each, offsets)]) if offsets else each[0]
        part = lax.dynamic_slice_in_dim(by_token[0], self.start(i), self.columns, axis=1).astype(self.exact)
        return jnp.where(self.is_new(i)[None], jnp.maximum(part, LOG_ZERO), LOG_ZERO)

    def locate(self, i: Int[Array, ""], ids: Int[Array, "n K"]) -> tuple[Int[Array, "n K"], Bool[Array, "n K"]]:
        """The column of each id in chunk i, and whether it is in this chunk at all."""
        column = ids - self.offset - self.start(i)
        inside = (column >= i * self.columns - self.start(i)) & (column < self.columns)
        return jnp.clip(column, 0, self.columns - 1), inside

    def logits_of_ids(self, hidden: Float[Array, "n D"], ids: Int[Array, "n 1"]) -> Float[Array, "n 1"]:
        """The logits of one id a token by its row of the head alone; 0 where another device has the row."""
        row = ids[:, 0] - self.offset
        weight = self.head[jnp.clip(row, 0, self.rows - 1)].astype(hidden.dtype)
        z = capped(jnp.sum(hidden.astype(self.exact) * weight.astype(self.exact), axis=1), self.spec.cap)
        return jnp.where((row >= 0) & (row < self.rows), z, 0)[:, None]

    def reduce(self, x: tuple[Float[Array, "n D"], Int[Array, "n K"], tuple[Float[Array, "n _"], ...]]) -> PartialSums:
        """The sums over all columns of this device, from a chunk's (hidden, ids, the teacher's arrays by token)."""
        hidden, ids, by_token = x
        kind = self.spec.divergence
        if self.spec.kernel:
            return self._reduced_by_kernel(hidden, ids, by_token)
        apart = self.on_gpu and ids.shape[1] == 1
        zeros = lambda *dims, fill=0.0: vary(self.spec, jnp.full((hidden.shape[0], *dims), fill, self.exact))

        def columns(carry: PartialSums, i: Int[Array, ""]) -> tuple[PartialSums, None]:
            z = self.logits(i, hidden, self.head, self.spec.cap)
            column, inside = self.locate(i, ids)
            if apart:
                here = jnp.zeros((), self.exact)
            elif ids.shape[1] == 1:
                here = jnp.sum(jnp.where((column == jnp.arange(self.columns)[None]) & inside, z, 0), axis=1)[:, None]
            else:
                here = jnp.where(inside, jnp.take_along_axis(z, column, axis=1), 0)
            z_t = self.teacher_logits(i, by_token) if kind else None
            sums = online.add(kind, self.soften, carry, z, z_t, axis=1)
            return sums._replace(id_logits=carry.id_logits + here), None

        picked = self.logits_of_ids(hidden, ids) if apart else zeros(ids.shape[1])
        start = (zeros(fill=LOG_ZERO), zeros(), zeros(), picked, zeros(fill=LOG_ZERO), zeros(), zeros())
        return lax.scan(columns, PartialSums(*start), jnp.arange(self.count))[0]

    def _reduced_by_kernel(
        self, hidden: Float[Array, "n D"], ids: Int[Array, "n K"], by_token: tuple[Float[Array, "n _"], ...]
    ) -> PartialSums:
        """`reduce` by the kernel, which has all columns in one call."""
        row = ids - self.offset
        whole = self.valid == self.rows * (1 if self.spec.one_device else lax.axis_size("tensor"))
        tiles = kernel.Tiles(
            divergence=self.spec.divergence, tempered=self.spec.tempered, padded=not whole,
            caps=(self.spec.cap, (*self.spec.teacher_caps, 0.0)[0]), heads=bool(self.heads),
            interpret=attention_kernels.platform() != "tpu", one_device=self.spec.one_device,
        )  # fmt: skip
        return kernel.sums(
            tiles,
            jnp.asarray(self.tau, jnp.float32),
            jnp.minimum(self.rows, self.valid - self.offset),
            jnp.where((row >= 0) & (row < self.rows), row, -1),
            hidden,
            self.head,
            (*by_token, *self.heads),
        )

    def compare(
        self, x: tuple[Float[Array, "n D"], tuple[Float[Array, "n _"], ...], Float[Array, " n"], Float[Array, " n"]]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The sums of a divergence's terms and of their derivatives d_v, over the columns of this device.

        x: a chunk's hidden states, the teacher's arrays by token, and log_z of student and teacher at tau.
        """
        hidden, by_token, log_z_tau, log_z_t = x
        zero = vary(self.spec, jnp.zeros(log_z_tau.shape, log_z_tau.dtype))

        def columns(carry: tuple[Array, Array], i: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
            log_q = self.logits(i, hidden, self.head, self.spec.cap) / self.tau - log_z_tau[:, None]
            log_p = self.teacher_logits(i, by_token) / self.tau - log_z_t[:, None]
            value, d = self._terms(log_p, log_q)
            return (carry[0] + jnp.sum(value, axis=1), carry[1] + jnp.sum(d, axis=1)), None

        return lax.scan(columns, (zero, zero), jnp.arange(self.count))[0]

    def _terms(
        self, log_p: Float[Array, "n v"], log_q: Float[Array, "n v"]
    ) -> tuple[Float[Array, "n v"], Float[Array, "n v"]]:
        """The terms of the divergence and their derivatives by log q."""
        beta = self.beta.astype(log_q.dtype)
        terms = lambda log_q: divergences.terms(self.spec.divergence, log_p, log_q, beta)
        return jax.jvp(terms, (log_q,), (jnp.ones_like(log_q),))

    def gradient(
        self,
        i: Int[Array, ""],
        z: Float[Array, "n v"],
        ids: Int[Array, "n K"],
        by_token: tuple[Float[Array, "n _"], ...],
        sums: TokenSums,
        by: Cotangents,
    ) -> Float[Array, "n v"]:
        """The gradient by the logits z of chunk i."""
        kind, tau = self.spec.divergence, self.tau
        q = jnp.exp(z - sums.log_z[:, None])
        by_z = by.log_z[:, None] * q
        if self.spec.tempered:
            q = jnp.exp(z / tau - sums.log_z_tau[:, None])
            by_z += (by.log_z_tau / tau)[:, None] * q
        if kind:
            log_p = self.teacher_logits(i, by_token) / tau - sums.log_z_t[:, None]
            if kind == "forward":
                d = q - jnp.exp(log_p)
            elif kind == "reverse":
                d = q * ((z / tau - sums.log_z_tau[:, None] - log_p) - sums.divergence[:, None])
            else:
                d = self._terms(log_p, z / tau - sums.log_z_tau[:, None])[1] - q * sums.d_sum[:, None]
            by_z += (by.divergence / tau)[:, None] * d
        column, inside = self.locate(i, ids)
        here = jnp.where(inside, by.id_logits, 0)
        if ids.shape[1] == 1:
            return by_z + jnp.where(column == jnp.arange(self.columns)[None], here, 0)
        return by_z.at[jnp.arange(self.tokens)[:, None], column].add(here)
