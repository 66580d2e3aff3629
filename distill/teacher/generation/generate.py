"""Generates a teacher's completions of all prompts: in batches over the mesh, written to disk, resumed after a kill."""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

import jax
import numpy as np

from distill import config as configs
from distill import data
from distill.config import ConfigError, counts
from distill.config.generation import GenerationConfig
from distill.data.store.store import TokenStore
from distill.model import decode, sharding
from distill.model.decode import Completions
from distill.model.transformer import Transformer
from distill.system import files, process
from distill.system.progress import Progress, Rate
from distill.teacher import load, vocabulary
from distill.teacher.generation import journal
from distill.teacher.generation import store as completions
from distill.teacher.generation.journal import Journal, Record
from distill.teacher.generation.prompts import Prompts
from distill.teacher.generation.store import CompletionSource, Filter, Maker

JOURNAL, MANIFEST, STORE = "completions.jsonl", "manifest.json", "store"


class Summary(TypedDict):
    """Counts and FLOPs of a whole journal, and the speed of this process, absent if it wrote nothing."""

    completions: int
    tokens: int  # generated
    prompt_tokens: int
    stopped: int  # completions that ended in a stop token
    flops: float
    log_prob: float  # mean over the generated tokens, in nats
    sha256: str  # of the journal
    tokens_per_second: NotRequired[float]


class GenerationManifest(Summary):
    """The content of manifest.json."""

    generation: str  # fingerprint of the config
    maker: Maker
    tokenizer: str
    kept: int  # completions in the store
    left_out: int  # prompts that were too long or empty
    store: str  # fingerprint of the token store


def generate(
    config: GenerationConfig,
    output: str | Path,
    *,
    keep: Filter | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> GenerationManifest:
    """Writes completions.jsonl, the token store and, last, manifest.json into `output`; returns the manifest.

    A second call resumes; after completion, it only reapplies `keep` and min_log_prob. `keep` decides for each
    record (a line of the jsonl) whether it enters the store. Raises DistillError where `output` belongs to another
    generation, or teacher and prompts have different tokenizers.
    """
    output = Path(output)
    with process.folder_lock(output), jax.set_mesh(sharding.make(config.mesh)):
        if jax.process_count() > 1:
            raise ConfigError("generation runs in one process; give each host its own prompts and output")
        store = data.open_store(config.data, config.data.cache or output / "data")
        if not isinstance(store, TokenStore):
            raise ConfigError("data.source='mixture': prompts come from one store; generate from each store by itself")
        teacher = load.read_info(config.teacher)
        record = teacher.record
        vocabulary.check(teacher, store, "teacher")
        config = dataclasses.replace(config, run=record.run, data=config.data.identified(store.fingerprint))
        _claim(output, config)
        prompts = Prompts(store, config)
        written = _write(config, output, store, prompts, teacher.config.model, on_progress)
        maker: Maker = {"teacher": record.run, "N": record.N, "D": record.D, "flops": written["flops"]}
        source = CompletionSource(output / JOURNAL, config, store, keep, maker)
        built = completions.build(output / STORE, source, store)
        manifest: GenerationManifest = {
            "generation": configs.fingerprint(config),
            "maker": maker,
            "tokenizer": store.tokenizer_name,
            **written,
            "kept": len(source.kept),
            "left_out": prompts.left_out,
            "store": built.fingerprint,
        }
        files.atomic_write(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return manifest


def _claim(output: Path, config: GenerationConfig) -> None:
    """Writes config.txt, or checks that the one there names the same generation."""
    path = output / "config.txt"
    if path.exists():
        stored = configs.from_text(GenerationConfig, path.read_text("utf-8"), str(path))
        old, new = dict(configs.identity(stored)), dict(configs.identity(config))
        differing = [key for key in configs.to_flat(config) if old.get(key) != new.get(key)]
        if differing:
            was, now = configs.to_flat(stored)[differing[0]], configs.to_flat(config)[differing[0]]
            raise ConfigError(
                f"{output}: this folder belongs to another generation: {differing[0]} was {was!r} and is now {now!r}; "
                "use another --output, or the old value to continue"
            )
    files.atomic_write(path, f"# generation {configs.fingerprint(config)}\n{configs.to_text(config)}")


def _write(
    config: GenerationConfig,
    output: Path,
    store: TokenStore,
    prompts: Prompts,
    model: configs.ModelConfig,
    on_progress: Callable[[Progress], None],
) -> Summary:
    """Generates the completions that the journal lacks; returns the summary of the whole journal."""
    batches = list(prompts.batches(config.batch_size, config.per_prompt))
    sizes = [len(items) for _, items in batches]
    began, tokens, speed = time.monotonic(), 0, Rate()
    with Journal(output / JOURNAL, sizes) as written:
        first, done = written.done, written.lines
        if first < len(batches):
            sharding.check(model, config.batch_size, jax.sharding.get_mesh())
            params = load.load(config.teacher).params
            # A padded head has columns that are no tokens, which must not be drawn.
            params.config = dataclasses.replace(params.config, valid_vocab=store.vocab_size)
            writer = _Writer(config, store, prompts, params)
            pending = writer.start(*batches[first])
            began = time.monotonic()
            for i in range(first, len(batches)):
                # The next batch is computed while this one is written.
                current = pending
                if i + 1 < len(batches):
                    pending = writer.start(*batches[i + 1])
                records = writer.finish(batches[i][1], current)
                written.append(records)
                done += sizes[i]
                tokens += sum(len(record["ids"]) for record in records)
                rate = speed.update(tokens)
                text = f"{rate:,.0f} tokens/s" if rate else ""
                on_progress(Progress(done=done, total=sum(sizes), unit="completion", text=text))
    return _summary(output / JOURNAL, model, tokens, time.monotonic() - began)


class _Writer:
    """Turns batches of (prompt, sample) items into records, with one teacher."""

    def __init__(self, config: GenerationConfig, store: TokenStore, prompts: Prompts, params: Transformer):
        self._config, self._prompts, self._params = config, prompts, params
        self._tokenizer, self._mesh = store.tokenizer(), jax.sharding.get_mesh()
        stop = config.decode.stop + ((store.end_of_text,) if store.end_of_text >= 0 else ())
        self._decode = dataclasses.replace(config.decode, stop=tuple(dict.fromkeys(stop)))

    def start(self, width: int, items: list[tuple[int, int]]) -> Completions:
        """Dispatches one batch; items are repeated to fill it, so that one shape is compiled per width."""
        size = self._config.batch_size
        rows, lengths = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
        filled = [items[i % len(items)] for i in range(size)]
        for i, (prompt, _) in enumerate(filled):
            ids = self._prompts.read(prompt)
            rows[i, width - len(ids) :], lengths[i] = ids, len(ids)
        numbers = np.array(filled, np.uint32)
        placed = sharding.place((rows, lengths), self._mesh)
        return decode.generate(self._decode, self._params, placed[0], _keys(self._config.seed, numbers), placed[1])

    def finish(self, items: list[tuple[int, int]], completions: Completions) -> list[Record]:
        """The records of a batch that was started; waits for the devices."""
        tokens, weight, log_probs = (
            np.asarray(x) for x in (completions.tokens, completions.weight, completions.log_probs)
        )
        settings = self._config.decode
        records: list[Record] = []
        for i, (prompt, sample) in enumerate(items):
            split, document, start, _ = self._prompts.where(prompt)
            count = int(weight[i].sum())
            given = self._prompts.read(prompt).tolist()
            ids = tokens[i, tokens.shape[1] - weight.shape[1] :][:count].tolist()
            stopped = ids[-1] in self._decode.stop
            records.append(
                {
                    "prompt": self._tokenizer.decode(given),
                    "completion": self._tokenizer.decode(ids[:-1] if stopped else ids),
                    "finish": "stop" if stopped else "length",
                    "log_prob": float(log_probs[i].sum() / count),
                    "split": split,
                    "document": document,
                    "start": start,
                    "sample": sample,
                    "seed": self._config.seed,
                    "teacher": self._config.run,
                    "temperature": settings.temperature,
                    "top_k": settings.top_k,
                    "top_p": settings.top_p,
                    "new_tokens": settings.new_tokens,
                    "prompt_ids": given,
                    "ids": ids,
                }
            )
        return records


@functools.partial(jax.jit, static_argnums=0)
def _keys(seed: int, items: jax.Array) -> jax.Array:
    """A key for each (prompt, sample) [B, 2], so that a completion does not depend on its batch."""
    one = lambda item: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), item[0]), item[1])
    return jax.vmap(one)(items)


def _summary(path: Path, model: configs.ModelConfig, tokens: int, seconds: float) -> Summary:
    """The summary of a whole journal, of which this process wrote `tokens` tokens in `seconds`."""
    summary: Summary = {
        "completions": 0,
        "tokens": 0,
        "prompt_tokens": 0,
        "stopped": 0,
        "flops": 0.0,
        "log_prob": 0.0,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    log_prob = 0.0
    for record in journal.read(path):
        given, new = len(record["prompt_ids"]), len(record["ids"])
        summary["completions"] += 1
        summary["tokens"] += new
        summary["prompt_tokens"] += given
        summary["stopped"] += record["finish"] == "stop"
        # With the key-value cache, each token passes through the model once.
        summary["flops"] += counts.forward_flops(model, given + new) * (given + new)
        log_prob += record["log_prob"] * new
    summary["log_prob"] = log_prob / max(summary["tokens"], 1)
    if tokens:
        summary["tokens_per_second"] = tokens / max(seconds, 1e-9)
    assert math.isfinite(summary["log_prob"])
    return summary
