"""A real model's forward pass and decoding against `transformers` + torch, and what its import takes.

    python -m launch.bench forward --model=SmolLM2-135M-Instruct.Q4_1.gguf [--batch=4] [--seq_len=512] [--repeats=5]
                                   [--new_tokens=64] [--parts=import,forward,decode]

Both in float32, on the same cores, in turns in one process: the median and spread of the repeats, ours over theirs.
`import` has processes of its own, which take turns, as float32 and as bfloat16: seconds of the process and of the
load, and the peak of memory above the weights. The peer needs the extra `parity`.
"""

import argparse
import importlib
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill import interop
from distill.bench import import_peers, turns
from distill.config import ConfigError, MeshConfig, counts, nearest
from distill.config.flags import Parser
from distill.model import decode, sharding

PARTS = ("import", "forward", "decode")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a part."""
    parser = Parser("bench forward", __doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face directory or a GGUF file")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS), help="of these, with commas")
    flags = parser.parse_args(argv)
    parts = [part for part in flags.parts.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        raise ConfigError(f"--parts={flags.parts}; wanted some of {', '.join(PARTS)}.{nearest(min(unknown), PARTS)}")
    if min(flags.batch, flags.seq_len, flags.new_tokens, flags.repeats) < 1 or not parts:
        raise ConfigError("--batch, --seq_len, --new_tokens and --repeats: wanted 1 or more of each, and a part")
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{len(os.sched_getaffinity(0))} cores, load average {load} before")
    if "import" in parts:
        import_peers.compare(flags.model, flags.repeats)
    if {"forward", "decode"} & set(parts):
        with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
            compare(flags, parts)
    return 0


def compare(flags: argparse.Namespace, parts: list[str]) -> None:
    """Both libraries on the same weights."""
    try:
        torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    except ImportError:
        raise ConfigError("the peer needs the extra parity: pip install -e '.[parity]'") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    path = Path(flags.model)
    where = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1]).eval()
    ours = interop.load(path)
    print(f"{counts.total(ours.config):,} parameters; torch {torch.__version__} with attention "
          f"{theirs.config._attn_implementation!r}, jax {jax.__version__}, float32")  # fmt: skip
    random = np.random.default_rng(0)

    def draw(batch: int, length: int) -> tuple[jax.Array, object]:
        tokens = random.integers(0, ours.config.tokens, (batch, length))
        return jnp.asarray(tokens, jnp.int32), torch.tensor(tokens)

    if "forward" in parts:
        mine, other = draw(flags.batch, flags.seq_len)
        run = jax.jit(lambda model, tokens: model(tokens))

        def forward() -> Any:
            with torch.no_grad():
                return theirs(other, use_cache=False).logits

        off = np.max(np.abs(np.asarray(run(ours.params, mine)) - forward().numpy()))
        title = f"forward {flags.batch} x {flags.seq_len} (logits differ by {off:.1e})"
        report(title, lambda: jax.block_until_ready(run(ours.params, mine)), forward, flags.repeats,
               flags.batch * flags.seq_len)  # fmt: skip
    if "decode" not in parts:
        return
    for batch in (1, 8):
        mine, other = draw(batch, 16)
        config = decode.DecodeConfig(new_tokens=flags.new_tokens, temperature=0.0)
        keys = jax.random.split(jax.random.key(0), batch)

        def generate(config: decode.DecodeConfig = config, mine: jax.Array = mine, keys: jax.Array = keys) -> object:
            return jax.block_until_ready(decode.generate(config, ours.params, mine, keys))

        def peer(other: object = other) -> object:
            with torch.no_grad():
                return theirs.generate(
                    other, attention_mask=torch.ones_like(other), do_sample=False, pad_token_id=0,
                    min_new_tokens=flags.new_tokens, max_new_tokens=flags.new_tokens,
                )  # fmt: skip

        report(f"decode batch {batch}, {flags.new_tokens} tokens", generate, peer, flags.repeats,
               batch * flags.new_tokens)  # fmt: skip


def report(title: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int, tokens: int) -> None:
    """Prints the times of both, alternated: once to warm up and then `repeats` times."""
    times = turns.take_turns({"ours": turns.timed(ours), "theirs": turns.timed(theirs)}, repeats)
    each = [f"{name} {_spread(t)}, {tokens / statistics.median(t):,.0f} tokens/s" for name, t in times.items()]
    ratio = turns.spread(turns.ratios(times["ours"], times["theirs"]))
    print(
        f"{title}: {'; '.join(each)}; ours / theirs {ratio}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]"
