"""What one asks of a GPU or TPU first, in one command: is it right, how fast is it, what does it hold.

    python -m launch.bench accelerator --out=docs/results/accelerator.json [--page=docs/results/accelerator.md]
                                       [--shape=gpu-350M] [--seconds=5] [--minutes=9] [--only=bfloat16,student]

Each part is written to --out as it ends; started again, the command does the parts that are missing, and no part begins
later than --minutes after the start. Correctness: bfloat16 against float32, the attention kernel against our own, fused
against dense losses, decoding against whole forward passes. Speed: student, teacher and pair in tokens/s and MFU, with
the memory at its peak; the losses; runs trained together. `calibration` sets the measured step beside the dry run's
roofline. --shape is one of `launch.bench step`; by default the largest that the memory of the device takes.
"""

import dataclasses
import functools
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from distill.bench import loss, turns
from distill.bench.step import SHAPES
from distill.config import ConfigError, DecodeConfig, ExperimentConfig, MeshConfig, ModelConfig, chips, counts, nearest
from distill.config.flags import Parser
from distill.diagnostics import profile
from distill.diagnostics.dryrun import report
from distill.model import attention_kernels, decode, sharding
from distill.model.transformer import Transformer
from distill.system.files import atomic_write
from distill.training import step, vmapped

Values = dict[str, float | str]
Precision = Literal["float32", "bfloat16"]
Kernel = Literal["xla", "splash", "cudnn"]

CALL = 4  # steps in one call
# The shapes by the memory that a pair of them needs, student and teacher, in GiB; the last that fits is taken.
_BY_MEMORY = (("micro-25K", 0.0), ("gpu-350M", 20.0), ("gpu-1B", 60.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: the model of a shape, its batch, and how long a measurement lasts."""

    shape: str
    model: ModelConfig
    batch: int
    length: int
    seconds: float

    @property
    def config(self) -> ExperimentConfig:
        tokens = 10_000 * self.batch * self.length
        return ExperimentConfig(model=self.model, batch_size=self.batch, seq_len=self.length, tokens=tokens)

    def small(self, dtype: Precision, attention: Kernel = "xla") -> ModelConfig:
        """The model with two layers, in this precision, for comparisons of numbers."""
        return dataclasses.replace(self.model, n_layers=2, unroll=1, dtype=dtype, attention=attention)


def _random(setting: Setting, count: int = 2) -> jax.Array:
    ids = np.random.default_rng(0).integers(0, setting.model.tokens, (count, min(setting.length, 512)), np.int32)
    return jax.device_put(ids, jax.NamedSharding(jax.sharding.get_mesh(), sharding.TOKENS_BS))


def bfloat16(setting: Setting) -> Values:
    """Logits of the same weights in bfloat16 and in float32."""
    ids, run = _random(setting), jax.jit(lambda model, ids: model(ids))
    with jax.default_matmul_precision("highest"):
        wanted = run(Transformer(setting.small("float32"), jax.random.key(0)), ids)
    got = run(Transformer(setting.small("bfloat16"), jax.random.key(0)), ids)
    exact, rounded = (log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (wanted, got))
    return {
        "relative error of the logits": _relative(got, wanted),
        "KL, nats": float(np.mean(np.sum(np.exp(exact) * (exact - rounded), axis=-1))),
        "same first choice": float(np.mean(exact.argmax(-1) == rounded.argmax(-1))),
    }


def attention(setting: Setting) -> Values:
    """The platform's kernel and our own attention, both in bfloat16, against float32: relative errors of gradients."""
    kind: Kernel = "splash" if attention_kernels.platform() == "tpu" else "cudnn"
    ids, found = _random(setting), dict[str, float | str](kernel=kind)
    documents = jax.sharding.reshard(jnp.cumsum(ids % 97 == 0, axis=1).astype(jnp.int32), sharding.TOKENS_BS)

    def total(model: Transformer, segment: jax.Array | None) -> jax.Array:
        return jnp.mean(jnp.sin(model.hidden(ids, segment).astype(jnp.float32)))

    def gradient(model: ModelConfig, segment: jax.Array | None) -> NDArray[np.float64]:
        leaves = jax.tree.leaves(jax.jit(jax.grad(total))(Transformer(model, jax.random.key(0)), segment))
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])

    for name, segment in (("whole rows", None), ("packed documents", documents)):
        with jax.default_matmul_precision("highest"):
            wanted = gradient(setting.small("float32"), segment)
        found[f"{name}: the kernel"] = _relative(gradient(setting.small("bfloat16", kind), segment), wanted)
        found[f"{name}: our own"] = _relative(gradient(setting.small("bfloat16"), segment), wanted)
    return found


def fused(setting: Setting) -> Values:
    """The fused losses against the dense ones, in float32: value and gradients."""
    vocab = min(setting.model.vocab_size, 4096)
    arguments = loss.shapes(vocab, 512, 256, "float32")
    values = loss.fill(arguments, vocab)
    with jax.default_matmul_precision("highest"):
        found = {
            name: loss.compile_route(route, arguments)(*values) for name, route in loss.routes(vocab, "forward").items()
        }
    (value, grads), (exact, wanted) = found["fused"], found["dense"]
    return {
        "relative error of the loss": abs(float(value / exact) - 1),
        "largest relative error of a gradient": max(_relative(a, b) for a, b in zip(grads, wanted, strict=True)),
    }


def decoding(setting: Setting) -> Values:
    """Greedy tokens, one by one from the cache, against the choices of whole forward passes in float32."""
    model = Transformer(setting.small("float32"), jax.random.key(0))
    prompts, new = _random(setting)[:, :32], 32
    with jax.default_matmul_precision("highest"):
        drawn = decode.generate(
            DecodeConfig(new_tokens=new, temperature=0.0), model, prompts, jax.random.split(jax.random.key(1), 2)
        )
        whole = np.asarray(jax.jit(lambda model, ids: model(ids))(model, drawn.tokens[:, :-1])).argmax(-1)
    return {"same tokens": float(np.mean(whole[:, -new:] == np.asarray(drawn.tokens)[:, -new:]))}


def student(setting: Setting) -> Values:
    """A supervised step."""
    return _step(setting, taught=False)


def pair(setting: Setting) -> Values:
    """A distilled step, from an online teacher of the student's size."""
    return _step(setting, taught=True)


def teacher(setting: Setting) -> Values:
    """The forward pass of the teacher alone."""
    model = Transformer(setting.model, jax.random.key(1))
    tokens = profile.random_batches(setting.config, 1).tokens[0, :, :-1]
    run = jax.jit(lambda model, ids: jnp.sum(model.hidden(ids).astype(jnp.float32)))
    seconds = _measure(lambda: run(model, tokens), setting.seconds)
    done = setting.batch * setting.length
    return _rates(seconds, done, counts.forward_flops(setting.model, setting.length) * done)


def losses(setting: Setting) -> Values:
    """Both routes to the loss at a published vocabulary, and memory; the ratio is round by round."""
    vocab, tokens, width = (32_768, 4096, 2048) if setting.model.d_model >= 1024 else (4096, 512, 64)
    dtype = "bfloat16" if setting.model.d_model >= 1024 else "float32"
    arguments = loss.shapes(vocab, tokens, width, dtype)
    values = loss.fill(arguments, vocab)
    compiled = {name: loss.compile_route(route, arguments) for name, route in loss.routes(vocab, "forward").items()}
    runs = {
        name: turns.timed(functools.partial(lambda one: jax.block_until_ready(one(*values)), route))
        for name, route in compiled.items()
    }
    times = turns.take_turns(runs, 20, seconds=setting.seconds)
    found: Values = {"shape": f"{tokens} tokens, {vocab} columns, width {width}, {dtype}"}
    for name, each in times.items():
        found[f"{name}, ms"] = 1e3 * statistics.median(each)
        analysis = compiled[name].memory_analysis()
        found[f"{name}, temporaries in MiB"] = analysis.temp_size_in_bytes / 2**20 if analysis else "not told"
    found["fused / dense, time"] = turns.spread(turns.ratios(times["fused"], times["dense"]))
    return found


def together(setting: Setting) -> Values:
    """Eight small runs under one vmapped step, against one of them alone."""
    model, batch, length = SHAPES["micro-25K"]
    config = ExperimentConfig(model=model, batch_size=batch, seq_len=length)
    spec, placed, rates = step.step_spec(config), profile.random_batches(config, 16), dict[int, float]()
    for size in (1, 8):
        states = [step.init_state(config) for _ in range(size)]

        def call(states: list[step.TrainState] = states, size: int = size) -> object:
            if size == 1:
                states[0], sums = step.train_steps(spec, states[0], None, placed, np.int32(16))
                return sums
            answers = vmapped.vmapped_steps(spec, list(states), None, [placed] * size, 16)
            states[:] = [state for state, _ in answers]
            return [sums for _, sums in answers]

        rates[size] = 16 * size * batch * length / _measure(call, setting.seconds)
    return {"tokens/s alone": rates[1], "tokens/s of eight": rates[8], "gain": rates[8] / rates[1]}


def calibration(setting: Setting) -> Values:
    """The measured seconds of a step beside the dry run's roofline of the same step on this chip."""
    chip = chips.recognise(jax.devices()[0].device_kind)
    if chip is None:
        return {"skipped": f"{jax.devices()[0].device_kind} is not in the table of chips"}
    config = dataclasses.replace(setting.config, mesh=MeshConfig(data=1))
    # By arithmetic, whatever compilers there are: that is the estimate which needs none.
    seconds = report.dry_run(config, None, dataclasses.replace(chip, dims=0)).seconds
    roofline = max(seconds["products"], seconds["network"], seconds["memory"])
    measured = float(_step(setting, taught=False)["seconds a step"])
    return {"measured, s": measured, "roofline, s": roofline, "measured / roofline": measured / roofline}


PARTS: dict[str, Callable[[Setting], Values]] = {
    part.__name__: part
    for part in (bfloat16, attention, fused, decoding, student, teacher, pair, losses, together, calibration)
}


def _relative(got: ArrayLike, wanted: ArrayLike) -> float:
    """The root mean square of the difference over that of what was wanted."""
    exact = np.asarray(wanted, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - exact) / max(float(np.linalg.norm(exact)), 1e-30))


def _measure(work: Callable[[], object], seconds: float) -> float:
    """The median seconds of a call, after one that compiles and one that warms up."""
    for _ in range(2):
        jax.block_until_ready(work())
    run = turns.timed(lambda: jax.block_until_ready(work()))
    return statistics.median(turns.take_turns({"": run}, 10_000, warm_up=False, seconds=seconds)[""])


def _step(setting: Setting, taught: bool) -> Values:
    config, spec = setting.config, step.step_spec(setting.config)
    state, batches = step.init_state(config), profile.random_batches(config, CALL)
    other = step.init_state(dataclasses.replace(config, seed=1)).params if taught else None

    def call() -> object:
        nonlocal state
        state, sums = step.train_steps(spec, state, other, batches, np.int32(CALL))
        return sums

    began = time.perf_counter()
    jax.block_until_ready(call())
    compiled = time.perf_counter() - began
    seconds = _measure(call, setting.seconds) / CALL
    done = setting.batch * setting.length
    flops = (4 if taught else 3) * counts.forward_flops(setting.model, setting.length) * done
    held = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return _rates(seconds, done, flops) | {
        "seconds a step": seconds,
        "compilation, s": compiled,
        "peak of the process so far, GiB": held / 2**30 if held else "not told by this device",
    }


def _rates(seconds: float, tokens: float, flops: float) -> Values:
    chip = chips.recognise(jax.devices()[0].device_kind)
    found: Values = {"tokens/s": tokens / seconds, "TFLOP/s": flops / seconds / 1e12}
    return found | ({"MFU": flops / seconds / chip.flops} if chip else {})


def machine(setting: Setting) -> Values:
    """What was measured on, as text."""
    device = jax.devices()[0]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
    about = f"{setting.shape} ({counts.non_embedding(setting.model):,d} N, {setting.batch} x {setting.length})"
    return {"device": f"{device.device_kind} ({device.platform})", "versions": versions, "shape": about,
            "date": time.strftime("%Y-%m-%d", time.gmtime())}  # fmt: skip


def page(results: dict[str, Values], command: str) -> str:
    """The results as a Markdown page."""
    about = results["machine"]
    lines = ["# Measured on an accelerator", "", f"One {about['device']}, {about['versions']}, {about['date']}; shape "
             f"{about['shape']}. Generated by", "", "```text", command, "```", ""]  # fmt: skip
    lines += ["| part | quantity | value |", "|---|---|---|"]
    for part in PARTS:
        for quantity, value in results.get(part, {"not run": "the time was up"}).items():
            lines.append(f"| {part} | {quantity} | {value if isinstance(value, str) else f'{value:.4g}'} |")
    return "\n".join(lines) + "\n"


def choose(shape: str, seconds: float) -> Setting:
    """The setting of a shape's name; of '' by the memory of the device."""
    if not shape:
        room = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0) / 2**30
        shape = [name for name, needed in _BY_MEMORY if needed <= room][-1]
    if shape not in SHAPES:
        raise ConfigError(f"--shape: there is no {shape!r}; wanted one of {', '.join(SHAPES)}.{nearest(shape, SHAPES)}")
    model, batch, length = SHAPES[shape]
    return Setting(shape=shape, model=model, batch=batch, length=length, seconds=seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the parts that --out lacks, and writes the page."""
    parser = Parser("bench accelerator", __doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="the same as a page")
    parser.add_argument("--shape", default="")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no part begins")
    parser.add_argument("--only", default=",".join(PARTS))
    flags = parser.parse_args(argv)
    wanted = flags.only.split(",")
    for name in wanted:
        if name not in PARTS:
            raise ConfigError(
                f"--only: there is no part {name!r}; wanted some of {', '.join(PARTS)}.{nearest(name, PARTS)}"
            )
    began, setting = time.monotonic(), choose(flags.shape, flags.seconds)
    about = machine(setting)
    results: dict[str, Values] = json.loads(flags.out.read_text("utf-8")) if flags.out.exists() else {"machine": about}
    for field in ("device", "shape"):
        if results["machine"][field] != about[field]:
            raise ConfigError(f"{flags.out}: was measured with {field} {results['machine'][field]!r}, and this is "
                              f"{about[field]!r}; choose another --out")  # fmt: skip
    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
        for name in (name for name in wanted if name not in results):
            if time.monotonic() - began > 60 * flags.minutes:
                print(f"{name}: not begun, {flags.minutes:g} minutes are over; the same command goes on")
                break
            results[name] = PARTS[name](setting)
            atomic_write(flags.out, json.dumps(results, indent=1) + "\n")
            told = ", ".join(f"{k} {v if isinstance(v, str) else f'{v:.4g}'}" for k, v in results[name].items())
            print(f"{name}: {told}", flush=True)
    if flags.page:
        atomic_write(flags.page, page(results, f"bash launch/accelerator.sh --shape={setting.shape}"))
    return 0
