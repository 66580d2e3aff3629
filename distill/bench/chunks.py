"""The fused loss alone, chunk by chunk size, by the compiler of a chip that is not there; no attention, no layers.

    python -m launch.bench chunks --chip=h100 [--model=103M] [--teacher=143M] [--rows=8] [--sizes=4096x4096,kernel]

Prints the estimated seconds of value and gradients for each size (tokens x columns of a chunk; 'kernel': that of a
TPU, distill/losses/kernel.py), the share of the chip's peak that its products reach with logits computed twice, and the
dearest lines of source. Nothing here was ever measured: compare the lines of one compiler. Of a kernel the bundles of
its program are counted, stalls are not. --ids: tokens whose logits are read, as those of a sparse target are; what XLA
gathers and scatters for them has no estimate on a TPU. Seconds of processor time a size.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.config import ConfigError, MeshConfig, chips
from distill.config.flags import Parser
from distill.config.ladder import SEQ_LEN, VOCAB_SIZE, paper_model

if TYPE_CHECKING:
    from distill.diagnostics.dryrun.compiler import Compiled


def compiled(
    chip: chips.Chip, count: int, rows: int, widths: tuple[int, int], size: tuple[int, int], ids: int = 1
) -> "Compiled":
    """The loss of `rows` sequences a chip on fsdp=count, of models of these widths (no teacher: 0).

    size: tokens and columns of a chunk; (0, 0) is the kernel, with its own.
    """
    import jax
    import jax.numpy as jnp
    from jax.typing import DTypeLike

    from distill.diagnostics.dryrun import compiler
    from distill.losses import fused
    from distill.model import sharding
    from distill.types import HiddenSignal

    made = sharding.make(MeshConfig(data=1, fsdp=count), compiler.devices(chip, count))
    tokens, columns = size
    spec = fused.FusedSpec(divergence="forward" if widths[1] else "", tempered=False, tokens=VOCAB_SIZE,
                           chunk_logits=tokens * columns, chunk_tokens=tokens, kernel=not tokens)  # fmt: skip

    def array(dims: tuple[int, ...], place: jax.P, dtype: DTypeLike = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=jax.NamedSharding(made, place))

    def model(width: int, dtype: DTypeLike) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        hidden = array((count * rows, SEQ_LEN, width), sharding.ACT_BSD)
        return hidden, array((VOCAB_SIZE, width), sharding.PARAM_SPECS["head_vd"], dtype)

    def loss(student: tuple[jax.Array, jax.Array], ids: jax.Array, teacher: tuple[jax.Array, jax.Array]) -> jax.Array:
        signal = HiddenSignal(hidden=teacher[0], head=teacher[1]) if widths[1] else None
        found = fused.fused_losses(spec, *student, ids, signal)
        return jnp.sum(found.log_z - found.id_logits.sum(-1) + found.divergence)

    picked = array((count * rows, SEQ_LEN, ids), sharding.ACT_BSD, jnp.int32)
    arrays = model(widths[0], jnp.float32), picked, model(widths[1] or count, jnp.bfloat16)
    with jax.set_mesh(made):
        return compiler.compile_traced(jax.jit(jax.value_and_grad(loss)).trace(*arrays), chip)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each size of chunks, and the dearest lines of source under it."""
    parser = Parser("bench chunks", __doc__)
    parser.add_argument("--chip", required=True, choices=chips.CHIPS, help="of which accelerator")
    parser.add_argument("--model", default="103M", help="a row of the paper's ladder")
    parser.add_argument("--teacher", default="", help="another; without one there is no divergence")
    parser.add_argument("--rows", type=int, default=8, help=f"sequences of {SEQ_LEN} a chip")
    parser.add_argument("--ids", type=int, default=1, help="tokens of a position whose logits are read")
    parser.add_argument("--sizes", default="4096x4096", help="tokens x columns of a chunk or 'kernel', ',' between")
    flags = parser.parse_args(argv)
    for name in ("rows", "ids"):
        if getattr(flags, name) < 1:
            raise ConfigError(f"--{name}={getattr(flags, name)}: wanted at least 1")
    chip = chips.find(flags.chip)
    count = chip.node or 4
    os.environ["JAX_PLATFORMS"] = "cpu"
    from distill.diagnostics.dryrun import compiler

    compiler.check_estimates(chip)
    with tempfile.TemporaryDirectory() as kernels:
        os.environ.update(compiler.environment(chip, count, kernels))
        _table(flags, chip, count, kernels)


def _table(flags: argparse.Namespace, chip: chips.Chip, count: int, kernels: str) -> None:
    """Prints the lines; `kernels`: the folder of the programs of kernels."""
    from distill.diagnostics.dryrun import compiler

    widths = paper_model(flags.model).d_model, paper_model(flags.teacher).d_model if flags.teacher else 0
    tokens = flags.rows * SEQ_LEN
    products = 2 * tokens * VOCAB_SIZE * (4 * widths[0] + 2 * widths[1]) / chip.flops
    print(f"{chip.name}: {tokens} tokens x {VOCAB_SIZE} columns a chip, widths {widths}; estimates, never measured")
    for size in flags.sizes.split(","):
        if size == "kernel" and not chip.dims:
            raise ConfigError(f"--sizes: 'kernel' is for TPUs, not for a {chip.name}; leave it out")
        try:
            n, v = (0, 0) if size == "kernel" else map(int, size.split("x"))
            if size != "kernel" and min(n, v) < 1:
                raise ValueError(size)
        except ValueError:
            raise ConfigError(f"--sizes: got {size!r}, wanted tokens x columns such as 4096x4096") from None
        made = compiled(chip, count, flags.rows, widths, (n, v), flags.ids)
        found = compiler.estimated(made, chip, kernels if chip.dims else "")
        seconds = sum(one.seconds for one in found.operations if one.part != "network")
        share, gib = products / seconds, made.temporaries / chips.GIB
        print(f"{size}: {1e3 * seconds:.2f} ms, {100 * share:.0f}% of the peak, {gib:.2f} GiB", flush=True)
        for one in found.dearest(10):
            print(f"    {1e3 * one.seconds:.2f} {one.part:12} {one.times:6d} x {one.source}")
        if found.unknown:
            print(f"    without an estimate: {dict(found.unknown)}")
