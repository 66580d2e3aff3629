"""The loss from hidden states to gradients, dense and fused: time, and XLA's temporary memory.

    python -m launch.bench loss [--vocab=256,32768,128256,151936] [--tokens=2048] [--width=64] [--dtype=float32]
                                [--divergence=forward] [--repeats=5] [--seconds=20] [--published] [--topology=v5p:2x2x1]

Both compute L_NTP, a divergence from an online teacher of the same width, and the gradients of the student's hidden
states and head. They alternate in one process; a time is the median of the repeats, the ratio that of the pairs, with
its range. Shapes whose dense logits exceed a gigabyte are compiled but not run. --published compiles the shape of
Liger's published figures (V = 128256, 8192 tokens, width 4096) and runs it where a GPU is there. --topology compiles
for a TPU that need not be there (it needs libtpu).
"""

import functools
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.bench import turns
from distill.config import ConfigError, MeshConfig
from distill.config.exactness import DIVERGENCES
from distill.config.flags import Parser
from distill.losses import divergences, fused
from distill.losses.fused import FusedSpec
from distill.model import sharding
from distill.types import HiddenSignal

# The loss sum of (hidden, head, ids, teacher's hidden, teacher's head).
Route = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

MOST_LOGITS = 2**28  # largest dense array that is run, not only compiled


def routes(vocab: int, divergence: str) -> dict[str, Route]:
    """The two ways to the loss, by name."""

    def dense(hidden: jax.Array, head: jax.Array, ids: jax.Array, t_hidden: jax.Array, t_head: jax.Array) -> jax.Array:
        def project(hidden: jax.Array, head: jax.Array) -> jax.Array:
            head = jax.sharding.reshard(head.astype(hidden.dtype), jax.P("tensor", None))
            exact = {"preferred_element_type": jnp.float32, "out_sharding": sharding.LOGITS_BSV}
            return jnp.einsum("bsd,vd->bsv", hidden, head, **exact)

        z, t = project(hidden, head), project(t_hidden, t_head)
        kd = divergences.divergence(divergence, z, jax.lax.stop_gradient(t))
        return jnp.sum(0.5 * divergences.cross_entropy(z, ids[..., 0]) + 0.5 * kd)

    def chunked(
        hidden: jax.Array, head: jax.Array, ids: jax.Array, t_hidden: jax.Array, t_head: jax.Array
    ) -> jax.Array:
        spec = FusedSpec(divergence=divergence, tempered=False, tokens=vocab)
        losses = fused.fused_losses(spec, hidden, head, ids, HiddenSignal(hidden=t_hidden, head=t_head))
        return jnp.sum(0.5 * (losses.log_z - losses.id_logits[..., 0]) + 0.5 * losses.divergence)

    return {"dense": dense, "fused": chunked}


def shapes(vocab: int, tokens: int, width: int, dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The arguments' shapes, sharded on the current mesh; heads are float32, as stored."""
    hidden, head, ids = ((1, tokens, width), dtype), ((vocab, width), "float32"), ((1, tokens, 1), "int32")
    specs = (
        sharding.ACT_BSD,
        sharding.PARAM_SPECS["head_vd"],
        sharding.ACT_BSD,
        sharding.ACT_BSD,
        sharding.PARAM_SPECS["head_vd"],
    )
    return tuple(
        jax.ShapeDtypeStruct(shape, kind, sharding=jax.NamedSharding(jax.sharding.get_mesh(), spec))
        for (shape, kind), spec in zip((hidden, head, ids, hidden, head), specs)
    )


def compile_route(route: Route, arguments: Sequence[jax.ShapeDtypeStruct]) -> jax.stages.Compiled:
    """The compiled value and gradients by hidden states and head."""
    return jax.jit(jax.value_and_grad(route, argnums=(0, 1))).lower(*arguments).compile()


def fill(arguments: Sequence[jax.ShapeDtypeStruct], vocab: int) -> list[jax.Array]:
    """Random values whose logits have unit variance."""
    random = np.random.default_rng(0)

    def one(like: jax.ShapeDtypeStruct) -> jax.Array:
        if like.dtype == jnp.int32:
            return jax.device_put(random.integers(0, vocab, like.shape, np.int32), like.sharding)
        scale = like.shape[-1] ** -0.25
        return jax.device_put(
            (scale * random.standard_normal(like.shape, np.float32)).astype(like.dtype), like.sharding
        )

    return [one(like) for like in arguments]


def report(vocab: int, tokens: int, width: int, dtype: str, divergence: str, repeats: int, seconds: float) -> None:
    """Prints one line: memory of both routes, and their times if the dense logits fit."""
    arguments = shapes(vocab, tokens, width, dtype)
    compiled = {name: compile_route(route, arguments) for name, route in routes(vocab, divergence).items()}
    memory: dict[str, Any] = {name: run.memory_analysis() for name, run in compiled.items()}
    temporary = {name: m.temp_size_in_bytes / 2**20 for name, m in memory.items()}
    line = f"{vocab:7d} {tokens:6d} {width:5d} {dtype:8s} {divergence:15s} temporary MiB: "
    line += f"dense {temporary['dense']:8.1f}, fused {temporary['fused']:7.1f}, "
    line += f"{temporary['dense'] / max(temporary['fused'], 1e-9):5.1f} x less"
    on_gpu = jax.devices()[0].platform == "gpu"
    if next(iter(jax.sharding.get_mesh().devices.flat)).platform == "tpu":
        print(line)
        return
    if on_gpu or vocab * tokens <= MOST_LOGITS and vocab * tokens * width <= 2**36:
        values = fill(arguments, vocab)
        wait = lambda route: jax.block_until_ready(route(*values))
        runs = {name: turns.timed(functools.partial(wait, route)) for name, route in compiled.items()}
        times = turns.take_turns(runs, repeats, seconds=seconds)
        middle = {name: 1e3 * statistics.median(each) for name, each in times.items()}
        ratios = sorted(turns.ratios(times["fused"], times["dense"]))
        line += f"; ms: dense {middle['dense']:8.1f}, fused {middle['fused']:8.1f}, "
        line += f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    else:
        line += "; compiled, not run"
    if on_gpu:
        m = memory["fused"]
        total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
        line += f"; arguments + outputs + temporaries of fused: {total / 1e9:.1f} GB"
    print(line, flush=True)


def tpu_mesh(topology: str) -> jax.sharding.Mesh:
    """An explicit mesh of one chip of a topology such as 'v5p:2x2x1', which need not be present."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises many kinds of errors
        raise ConfigError(f"--topology={topology}: {error}; it needs libtpu (pip install libtpu)") from error
    return sharding.make(MeshConfig(data=1), described.devices[:1])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line per vocabulary."""
    parser = Parser("bench loss", __doc__)
    parser.add_argument("--vocab", default="256,32768,128256,151936", help="sizes, separated by commas")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--divergence", choices=DIVERGENCES, default="forward")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one shape's repeats, at most")
    parser.add_argument("--published", action="store_true", help="the shape of Liger's published figures")
    parser.add_argument("--topology", default="", help="compile for this TPU, for instance v5p:2x2x1")
    flags = parser.parse_args(argv)
    if flags.published:
        flags.vocab, flags.tokens, flags.width = "128256", 8192, 4096
    place = tpu_mesh(flags.topology) if flags.topology else sharding.make(MeshConfig(data=1), jax.devices()[:1])
    kind, load = place.devices.flat[0].device_kind, os.getloadavg()[0]
    print(f"{kind}; load {load:.1f} at the start; columns: vocabulary, tokens, width, dtype, divergence")
    with jax.set_mesh(place):
        for vocab in map(int, flags.vocab.split(",")):
            report(vocab, flags.tokens, flags.width, flags.dtype, flags.divergence, flags.repeats, flags.seconds)
    return 0
