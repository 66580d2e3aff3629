"""Text from a model: prefill and decoding in tokens per second, beside the forward pass run again for every token.

    python -m launch.bench decode [--shapes=micro,smollm2] [--batches=1,8] [--prompt=64] [--new=24] [--repeats=3]
                                  [--transformers]

Weights are random. All routes draw from the whole distribution, have one context of --prompt + --new tokens and
alternate in one process; figures are medians. A prefill is what it takes to the first new token. --transformers adds
`generate` of that library (eager PyTorch, its own cache) with a Llama of the same shape. The bandwidth is that of a
plain sum over 512 MiB, for a token of one sequence reads every weight once.
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill.bench import turns
from distill.config import ConfigError, DecodeConfig, MeshConfig, ModelConfig, counts, nearest
from distill.config.flags import Parser
from distill.model import decode, sharding
from distill.model.transformer import Transformer

SHAPES = {
    "micro": ModelConfig(d_model=32, n_layers=2, d_head=16, d_ff_multiple=16, tied=False),
    "smollm2": ModelConfig(
        vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_ff=1536, qk_norm=False, rope_base=1e5
    ),
}

Route = Callable[[int], None]  # generates so many new tokens


def ours(model: Transformer, prompts: jax.Array) -> Route:
    """decode.generate."""
    keys = jax.random.split(jax.random.key(0), prompts.shape[0])
    return lambda new: jax.block_until_ready(decode.generate(DecodeConfig(new_tokens=new), model, prompts, keys).tokens)


def again(model: Transformer, prompts: jax.Array, new: int) -> Route:
    """The whole forward pass for each token, over a row of the longest text's length, so it compiles once."""
    batch, length = prompts.shape
    rows = jnp.pad(prompts, ((0, 0), (0, new)))

    @jax.jit
    def step(model: Transformer, rows: jax.Array, i: jax.Array | int) -> jax.Array:
        hidden = jax.lax.dynamic_index_in_dim(model.hidden(rows), i - 1, axis=1, keepdims=False)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i), batch)
        keys = jax.sharding.reshard(keys, jax.P(sharding.BATCH))
        token = decode.draw(DecodeConfig(), decode.last_logits(model, hidden), keys)
        return jax.lax.dynamic_update_slice_in_dim(rows, token[:, None], i, axis=1)

    def run(count: int) -> None:
        text = rows
        for i in range(length, length + count):
            text = step(model, text, i)
        jax.block_until_ready(text)

    return run


def peer(config: ModelConfig, prompts: np.ndarray) -> Route:
    """generate of transformers. Raises ConfigError if it is not installed."""
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ConfigError(f"--transformers: {error}; pip install torch transformers") from None
    torch.manual_seed(0)
    like = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tied,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(like).eval()
    rows = torch.from_numpy(prompts.astype(np.int64))
    drawn = {"attention_mask": torch.ones_like(rows), "do_sample": True, "top_k": 0, "use_cache": True}

    def run(count: int) -> None:
        with torch.no_grad():
            model.generate(rows, max_new_tokens=count, **drawn)

    return run


@dataclasses.dataclass
class Times:
    """Seconds of one route, one value per repeat: to the first token, and for each token after it."""

    first: list[float] = dataclasses.field(default_factory=list)
    token: list[float] = dataclasses.field(default_factory=list)


def measure(routes: dict[str, Route], new: int, repeats: int) -> dict[str, Times]:
    """The times of all routes, alternated."""

    def seconds(run: Route) -> tuple[float, float]:
        begin = time.perf_counter()
        run(1)
        first = time.perf_counter() - begin
        run(1 + new)
        whole = time.perf_counter() - begin - first
        return first, max(whole - first, 1e-9) / new

    pairs_of = turns.take_turns({name: functools.partial(seconds, run) for name, run in routes.items()}, repeats)
    return {
        name: Times(first=[first for first, _ in pairs], token=[token for _, token in pairs])
        for name, pairs in pairs_of.items()
    }


def bandwidth() -> float:
    """Bytes per second of a sum over 512 MiB, the best of five."""
    array = jnp.ones((2**27,), jnp.float32)
    total = jax.jit(jnp.sum)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        total(array).block_until_ready()
        times.append(time.perf_counter() - begin)
    return array.nbytes / min(times[1:])


def report(name: str, batch: int, prompt: int, new: int, repeats: int, transformers: bool) -> None:
    """Prints one line per route."""
    config = SHAPES[name]
    model = jax.jit(lambda key: Transformer(config, key))(jax.random.key(0))
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch, prompt), np.int32)
    placed = sharding.place(prompts, jax.sharding.get_mesh())
    routes = {"ours": ours(model, placed), "forward again": again(model, placed, new + 1)}
    if transformers:
        routes["transformers"] = peer(config, prompts)
    times_of = measure(routes, new, repeats)
    size, best = 4 * counts.total(config), statistics.median(times_of["ours"].token)
    for route, times in times_of.items():
        token = statistics.median(times.token)
        ratios = [theirs / mine for theirs, mine in zip(times.token, times_of["ours"].token)]
        line = f"{name:8s} B={batch:<3d} {route:14s} prefill {batch * prompt / statistics.median(times.first):9,.0f}, "
        line += f"decode {batch / token:9,.1f} tokens/s, {1e3 * token:8.2f} ms a step"
        line += f" ({1e3 * min(times.token):.2f} to {1e3 * max(times.token):.2f})"
        if route == "ours":
            line += f", weights at {size / best / 1e9:.1f} GB/s (at best {size / min(times.token) / 1e9:.1f})"
        else:
            line += f", {statistics.median(ratios):.2f} x ours ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line a shape, batch and route."""
    parser = Parser("bench decode", __doc__)
    parser.add_argument("--shapes", default="micro,smollm2", help="of " + ", ".join(SHAPES))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--transformers", action="store_true")
    flags = parser.parse_args(argv)
    names = flags.shapes.split(",")
    for name in names:
        if name not in SHAPES:
            raise ConfigError(f"--shapes: got {name!r}, wanted some of {', '.join(SHAPES)}.{nearest(name, SHAPES)}")
    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
        kind = jax.devices()[0].device_kind
        print(f"{kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, sums {bandwidth() / 1e9:.1f} GB/s")
        for name in names:
            for batch in map(int, flags.batches.split(",")):
                report(name, batch, flags.prompt, flags.new, flags.repeats, flags.transformers)
        print(f"load {os.getloadavg()[0]:.1f} at the end, sums {bandwidth() / 1e9:.1f} GB/s")
    return 0
