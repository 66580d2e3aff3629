"""How close students are to their teacher where they write themselves, and what a step of writing costs.

    python -m launch.bench policy --teacher=DIR --students=DIR,DIR [--prompts=512] [--prompt=32] [--new=96] [--seed=0]

Each student continues the same beginnings of validation windows by its own draws; both divergences are means over the
tokens that it wrote, with their standard errors over the texts, in nats. Beside them stand its loss and its divergence
on the whole windows, the same for every student, however it was trained.
"""

import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from distill.bench import turns
from distill.config import DecodeConfig, ExperimentConfig, MeshConfig, ModelConfig, OnPolicyConfig
from distill.config.flags import Parser
from distill.diagnostics import profile
from distill.losses import divergences as losses
from distill.model import decode, sharding
from distill.model.transformer import Transformer
from distill.teacher import load
from distill.training import step
from distill.training.evaluate import evaluate
from distill.training.inputs import open_store

CHUNK = 64  # texts at once


@jax.jit
def divergences(
    student: Transformer, teacher: Transformer, tokens: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """KL(student, teacher) and KL(teacher, student) of each text [B], means over the tokens from `first` on."""
    log_q, log_p = (jax.nn.log_softmax(model(tokens[:, :-1]), axis=-1) for model in (student, teacher))
    counted = jnp.arange(tokens.shape[1] - 1)[None] >= first - 1
    mean = lambda x: jnp.sum(jnp.sum(x, axis=-1) * counted, axis=1) / jnp.sum(counted)
    return mean(losses.terms("reverse", log_p, log_q)), mean(jnp.exp(log_p) * (log_p - log_q))


def cost(repeats: int = 5, steps: int = 16) -> tuple[float, list[float]]:
    """Seconds of a step on data, and the relative time of a step on a batch that the student samples: micro shapes."""
    model = ModelConfig(d_model=32, n_layers=2, d_head=16, d_ff_multiple=16, tied=False)
    batches = profile.random_batches(ExperimentConfig(model=model), steps)
    teacher = step.init_state(ExperimentConfig(model=model, seed=1)).params

    def seconds(fraction: float) -> float:  # one executable serves both: the fraction is traced
        config = ExperimentConfig(model=model, on_policy=OnPolicyConfig(fraction=fraction, prompt_tokens=32))
        state = step.init_state(config)
        begin = time.perf_counter()
        jax.block_until_ready(step.train_steps(step.step_spec(config), state, teacher, batches, steps))
        return (time.perf_counter() - begin) / steps

    times = turns.take_turns({"data": lambda: seconds(1e-9), "own": lambda: seconds(1.0)}, repeats)
    return statistics.median(times["data"]), turns.ratios(times["own"], times["data"])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line per student."""
    parser = Parser("bench policy", __doc__)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", required=True, help="workdirs, separated by commas")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
        teacher = load.load(flags.teacher)
        store = open_store(teacher.config, Path(flags.teacher))
        windows = store.evaluation("validation", flags.prompt + flags.new, flags.prompts * (flags.prompt + flags.new))
        prompts = np.asarray(windows.batch.tokens)[:, : flags.prompt]
        prompts = prompts[: len(prompts) - len(prompts) % CHUNK]
        for source in flags.students.split(","):
            student, measured = load.load(source).params, []
            for start in range(0, len(prompts), CHUNK):
                keys = jax.random.split(jax.random.fold_in(jax.random.key(flags.seed), start), CHUNK)
                rows = jnp.asarray(prompts[start : start + CHUNK], jnp.int32)
                text = decode.generate(DecodeConfig(new_tokens=flags.new), student, rows, keys).tokens
                measured.append(np.stack(divergences(student, teacher.params, text, jnp.asarray(flags.prompt))))
            values = np.concatenate(measured, axis=1)
            text_scores = evaluate(student, windows, CHUNK, teacher=teacher.params)
            means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(values.shape[1])
            print(
                f"{source}: KL(student, teacher) {means[0]:.4f} +- {errors[0]:.4f}, "
                f"KL(teacher, student) {means[1]:.4f} +- {errors[1]:.4f} on {values.shape[1]} texts of its own; "
                f"on validation text loss {text_scores.loss:.4f} +- {text_scores.loss_se:.4f}, "
                f"KL(teacher, student) {text_scores.kl:.4f}",
                flush=True,
            )
        seconds, ratios = cost()
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(
            f"micro: a step on data {1e3 * seconds:.1f} ms; one that the student writes (4 x 97 tokens, one after the "
            f"other) {middle:.2f} times as long ({low:.2f} to {high:.2f}); load {os.getloadavg()[0]:.1f}"
        )
    return 0
