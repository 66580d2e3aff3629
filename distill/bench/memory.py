"""The peak memory of a distillation step beside torch's: an online teacher, whole logits, AdamW, float32.

    python -m launch.bench memory [--shape=smollm2] [--batch=4] [--seq_len=512] [--peers=torch]

Each in a process of its own, three steps: the peak of the first, which compiles, and of the other two. smollm2 is a
student of SmolLM2-135M's shape under a teacher of SmolLM2-360M's; micro takes seconds. The peer is the same pair by
transformers, its loss torch's kl_div of two log_softmax. What else runs changes no figure.
"""

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.bench.step import SHAPES
from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, ObjectiveConfig, OptimConfig, nearest
from distill.config.flags import Parser
from distill.system import process

_STUDENT, _MICRO = SHAPES["smollm2-135M"][0], SHAPES["micro-25K"][0]
_TEACHER = dataclasses.replace(_STUDENT, d_model=960, n_layers=32, n_heads=15, n_kv_heads=5, d_ff=2560)
PAIRS = {"smollm2": (_STUDENT, _TEACHER), "micro": (_MICRO, dataclasses.replace(_MICRO, n_layers=4))}
STEPS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a contender."""
    parser = Parser("bench memory", __doc__)
    parser.add_argument("--shape", default="smollm2", help=", ".join(PAIRS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--peers", default="torch", help="torch, or nothing")
    flags = parser.parse_args(argv)
    peers = [peer for peer in flags.peers.split(",") if peer]
    if flags.shape not in PAIRS:
        raise ConfigError(f"--shape={flags.shape}; wanted one of {', '.join(PAIRS)}.{nearest(flags.shape, PAIRS)}")
    if min(flags.batch, flags.seq_len) < 1:
        raise ConfigError(f"--batch={flags.batch} --seq_len={flags.seq_len}: wanted 1 or more of each")
    if set(peers) - {"torch"}:
        raise ConfigError(f"--peers={flags.peers}; wanted torch, or nothing")
    if peers and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise ConfigError("the peer needs the extra parity: pip install -e '.[parity]'; --peers= measures ours alone")
    print(
        f"{flags.shape}, {flags.batch} x {flags.seq_len}: MiB of a process at its peak; a minute or two each",
        flush=True,
    )
    ours = None
    for kind in ["ours", *peers]:
        found = measured(kind, flags.shape, flags.batch, flags.seq_len)
        ours = ours or found
        ratio = "" if found is ours else f"; ours / it {ours[0] / found[0]:.2f}, {ours[1] / found[1]:.2f}"
        print(f"  {kind:6s} first step {found[0]:,.0f}, later ones {found[1]:,.0f}{ratio}", flush=True)
    return 0


def measured(kind: str, shape: str, batch: int, seq_len: int) -> tuple[float, float]:
    """MiB at the peak of the first step, and of later ones. Raises ConfigError where it cannot run."""
    words = [sys.executable, "-m", "distill.bench.memory", kind, shape, str(batch), str(seq_len)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{kind}: {(done.stderr.strip().splitlines() or ['ended'])[-1]}")
    first, later = json.loads(done.stdout.splitlines()[-1])
    return first / 1024, later / 1024


def _ours(student: ModelConfig, teacher: ModelConfig, tokens: np.ndarray) -> Iterator[None]:
    import jax
    import jax.numpy as jnp

    from distill.model import sharding
    from distill.model.transformer import Transformer
    from distill.training import step
    from distill.types import Batch

    batch, seq_len = tokens.shape[0], tokens.shape[1] - 1
    config = ExperimentConfig(
        model=student, optim=OptimConfig(), objective=ObjectiveConfig(), batch_size=batch, seq_len=seq_len,
        tokens=1000 * batch * seq_len,
    )  # fmt: skip
    mesh = sharding.make(MeshConfig(data=1), jax.devices()[:1])
    jax.set_mesh(mesh)
    state, shape = step.init_state(config), step.step_spec(config)
    taught = jax.jit(lambda key: Transformer(teacher, key))(jax.random.key(1))
    batches = sharding.place(Batch(jnp.asarray(tokens[None]), jnp.ones((1, batch, seq_len))), mesh, leading=1)
    for _ in range(STEPS):
        state, sums = step.train_steps(shape, state, taught, batches, np.int32(1))
        jax.block_until_ready((state, sums))
        yield


def _torch(student: ModelConfig, teacher: ModelConfig, tokens: np.ndarray) -> Iterator[None]:
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))

    def made(c: ModelConfig) -> Any:
        kind = "Qwen3" if c.qk_norm else "Llama"
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.ff_dim, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
            tie_word_embeddings=c.tied, max_position_embeddings=tokens.shape[1], use_cache=False,
        )  # fmt: skip
        return getattr(transformers, f"{kind}ForCausalLM")(config)

    learner, judge = made(student).train(), made(teacher).eval()
    optimiser = torch.optim.AdamW(learner.parameters(), lr=1e-3, fused=True)
    read = torch.tensor(tokens[:, :-1], dtype=torch.long)
    for _ in range(STEPS):
        with torch.no_grad():
            wanted = torch.log_softmax(judge(input_ids=read).logits, -1)
        got = torch.log_softmax(learner(input_ids=read).logits, -1)
        divergence = torch.nn.functional.kl_div
        divergence(got.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean").backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield


def _worker(kind: str, shape: str, batch: int, seq_len: int) -> list[int]:
    """KiB at the peak of the first step and of later ones, in this process."""
    process.die_with_parent()
    student, teacher = PAIRS[shape]
    tokens = np.random.default_rng(0).integers(0, student.vocab_size, (batch, seq_len + 1), np.int32)
    steps = {"ours": _ours, "torch": _torch}[kind](student, teacher, tokens)
    next(steps)
    first = _peak()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in steps:
        pass
    return [first, _peak()]


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    print(json.dumps(_worker(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
