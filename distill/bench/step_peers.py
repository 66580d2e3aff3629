"""What a worker of `launch.bench step` runs: a training step of ours, the same model's in torch, or a product.

A worker is a process of its own on its own cores. It says `ready` with what its preparation cost, then answers every
line that it is sent with a turn of about that many seconds: {"units": tokens or products done, "seconds": taken,
"processor": seconds of processors}.
"""

import dataclasses
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distill.config import ExperimentConfig, MeshConfig, ModelConfig, OptimConfig, build
from distill.system import process

CALL = 16  # our steps in one call, as in launch.train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The work of one worker, and its cores."""

    kind: str  # ours, distilled, eager, compiled or matmul
    cores: tuple[int, ...]
    model: ModelConfig
    batch_size: int
    seq_len: int
    quick: bool  # compiled at LLVM's level 1, as a study does
    microbatches: int = 1

    @classmethod
    def read(cls, line: str) -> "Job":
        """The job that `json.dumps(dataclasses.asdict(job))` wrote."""
        request = json.loads(line)
        return cls(**(request | {"model": build(ModelConfig, request["model"]), "cores": tuple(request["cores"])}))

    @property
    def config(self) -> ExperimentConfig:
        tokens = 10_000 * self.batch_size * self.seq_len
        return ExperimentConfig(
            model=self.model, optim=OptimConfig(), batch_size=self.batch_size, seq_len=self.seq_len, tokens=tokens,
            microbatches=self.microbatches,
        )  # fmt: skip


def main() -> int:
    """Executes the job in the first line of standard input."""
    job = Job.read(sys.stdin.readline())
    process.die_with_parent()
    process.pin_to_cores(job.cores)
    if job.quick:
        process.use_fast_cpu_compilation()
    begin = time.perf_counter()
    turn, told = {"matmul": _matmul, "eager": _torch, "compiled": _torch}.get(job.kind, _ours)(job)
    turn()
    told |= {"prepare": time.perf_counter() - begin}
    _say(told | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
    for line in sys.stdin:
        start, busy, units, wanted = time.perf_counter(), time.process_time(), 0.0, float(line)
        while (seconds := time.perf_counter() - start) < wanted or not units:
            units += turn()
        _say({"units": units, "seconds": seconds, "processor": time.process_time() - busy})
    return 0


def _say(found: dict[str, float]) -> None:
    print(json.dumps(found), flush=True)


def _tokens(job: Job, count: int) -> NDArray[np.int32]:
    """The tokens of `profile.random_batches`, in a process without JAX."""
    random = np.random.default_rng(0)
    return random.integers(0, job.model.vocab_size, (count, job.batch_size, job.seq_len + 1), np.int32)


def _ours(job: Job) -> tuple[Callable[[], float], dict[str, float]]:
    """Some steps in one call of `train_steps`; 'distilled' has an online teacher of the student's own shape."""
    import jax

    from distill.diagnostics import profile
    from distill.model import sharding
    from distill.training import step

    config = job.config
    jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1]))
    state = step.init_state(config)
    teacher = step.init_state(dataclasses.replace(config, seed=1)).params if job.kind == "distilled" else None
    batches, shape = profile.random_batches(config, CALL), step.step_spec(config)
    dispatch: list[float] = []

    def call(count: int) -> object:
        nonlocal state
        begin = time.perf_counter()
        state, sums = step.train_steps(shape, state, teacher, batches, np.int32(count))
        dispatch.append(time.perf_counter() - begin)
        return sums

    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(call(1))
        taken.append(time.perf_counter() - begin)

    def turn() -> float:
        # Blocks here, or the first call of a turn would be counted but not timed.
        jax.block_until_ready(call(CALL))
        return CALL * job.batch_size * job.seq_len

    return turn, {"compile": taken[0] - taken[-1], "dispatch": min(dispatch[1:]), "microbatches": job.microbatches}


def _torch(job: Job) -> tuple[Callable[[], float], dict[str, float]]:
    """The same model by transformers (Qwen3: RMSNorm, RoPE, QK-norm, SwiGLU; Llama without QK-norm), fused AdamW."""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    torch.set_num_threads(len(job.cores))
    torch.manual_seed(0)
    c, kind = job.model, "Qwen3" if job.model.qk_norm else "Llama"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.ff_dim, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        tie_word_embeddings=c.tied, max_position_embeddings=job.seq_len, rms_norm_eps=c.norm_eps, use_cache=False,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    run = torch.compile(model) if job.kind == "compiled" else model
    tokens = torch.tensor(_tokens(job, 1)[0], dtype=torch.long)

    def turn() -> float:
        logits = run(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return job.batch_size * job.seq_len

    begin = time.perf_counter()
    turn()
    return turn, {"compile": time.perf_counter() - begin, "parameters": sum(p.numel() for p in model.parameters())}


def _matmul(job: Job) -> tuple[Callable[[], float], dict[str, float]]:
    """A float32 product of 1024 x 1024 by XLA, which measures this machine's ceiling in FLOPs."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(lambda a: a @ a / 1024)

    def turn() -> float:
        jax.block_until_ready(product(a))
        return 2.0 * 1024**3

    return turn, {}


if __name__ == "__main__":
    sys.exit(main())
