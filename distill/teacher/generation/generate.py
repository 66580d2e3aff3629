"""The teacher's completions of all prompts: in batches over the mesh, onto the disk, and on after a kill."""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill import config as configs
from distill import data
from distill.config import ConfigError, counts
from distill.config.generation import GenerationConfig
from distill.data.store.store import TokenStore
from distill.model import decode, sharding
from distill.model.decode import Completions
from distill.system import files, process
from distill.teacher import load
from distill.teacher.generation import journal
from distill.teacher.generation import store as completions
from distill.teacher.generation.journal import Journal
from distill.teacher.generation.prompts import Prompts
from distill.teacher.generation.store import CompletionSource, Filter

JOURNAL, MANIFEST, STORE = "completions.jsonl", "manifest.json", "store"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a generation is: completions done of all; tokens per second of this process."""

    done: int
    total: int
    tokens_per_second: float


def generate(
    config: GenerationConfig,
    output: str | Path,
    *,
    keep: Filter | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes completions.jsonl, the token store and, last, manifest.json into `output`; returns the manifest.

    Called again, it goes on where it was; finished, it only looks at `keep` and min_log_prob again. `keep` says of a
    record (a line of the jsonl) whether it enters the store. Raises DistillError for another generation's `output`.
    """
    output = Path(output)
    with process.sole(output), jax.set_mesh(sharding.make(config.mesh)):
        if jax.process_count() > 1:
            raise ConfigError("generating is one process's work; give each host its own prompts and output")
        store = data.open_store(config.data, config.data.cache or output / "data")
        if not isinstance(store, TokenStore):
            raise ConfigError("data.source='mixture': prompts come from one store; generate from each")
        teacher = load.read_info(config.teacher)
        record = teacher.record
        _check(config, store, record.tokenizer)
        config = dataclasses.replace(config, run=record.run, data=config.data.identified(store.fingerprint))
        _claim(output, config)
        prompts = Prompts(store, config)
        written = _write(config, output, store, prompts, teacher.config.model, on_progress)
        maker = {"teacher": record.run, "N": record.N, "D": record.D, "flops": written["flops"]}
        source = CompletionSource(output / JOURNAL, config, store, keep, maker)
        built = completions.build(output / STORE, source, store)
        manifest = {"generation": configs.fingerprint(config), "maker": maker, "tokenizer": store.tokenizer_name}
        manifest |= written | {"kept": len(source.kept), "left_out": prompts.left_out, "store": built.fingerprint}
        files.atomic_write(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return manifest


def _check(config: GenerationConfig, store: TokenStore, tokenizer: str) -> None:
    if tokenizer != store.tokenizer_name:
        raise ConfigError(
            f"the teacher in {config.teacher} reads {tokenizer!r} tokens and the prompts are {store.tokenizer_name!r} "
            "tokens; set data.tokenizer to the teacher's"
        )


def _claim(output: Path, config: GenerationConfig) -> None:
    """Writes config.txt, or checks that the one there names the same generation."""
    path = output / "config.txt"
    if path.exists():
        found = configs.from_text(GenerationConfig, path.read_text("utf-8"), str(path))
        old, new = dict(configs.identity(found)), dict(configs.identity(config))
        differing = [key for key in configs.to_flat(config) if old.get(key) != new.get(key)]
        if differing:
            was, now = configs.to_flat(found)[differing[0]], configs.to_flat(config)[differing[0]]
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
) -> dict[str, Any]:
    """Completes what is not there yet; returns what the manifest says of all of it."""
    batches = list(prompts.batches(config.batch_size, config.per_prompt))
    sizes = [len(items) for _, items in batches]
    began, tokens = time.monotonic(), 0
    with Journal(output / JOURNAL, sizes) as kept:
        first, done = kept.done, kept.lines
        if first < len(batches):
            sharding.check(model, config.batch_size, jax.sharding.get_mesh())
            write = _Writer(config, store, prompts, load.load(config.teacher).params)
            pending: Completions | None = write.start(*batches[first])
            began = time.monotonic()
            for i in range(first, len(batches)):
                # The next batch is computed while this one is written.
                coming = write.start(*batches[i + 1]) if i + 1 < len(batches) else None
                records = write.finish(batches[i][1], pending)
                kept.append(records)
                pending, done = coming, done + sizes[i]
                tokens += sum(len(record["ids"]) for record in records)
                rate = tokens / max(time.monotonic() - began, 1e-9)
                on_progress(Progress(done=done, total=sum(sizes), tokens_per_second=rate))
    return _summary(output / JOURNAL, model, tokens, time.monotonic() - began)


class _Writer:
    """Items to records, by one teacher."""

    def __init__(self, config: GenerationConfig, store: TokenStore, prompts: Prompts, params: Any):
        self._config, self._prompts, self._params = config, prompts, params
        self._tokenizer, self._mesh = store.tokenizer(), jax.sharding.get_mesh()
        stop = config.decode.stop + ((store.end_of_text,) if store.end_of_text >= 0 else ())
        self._decode = dataclasses.replace(config.decode, stop=tuple(dict.fromkeys(stop)))
        self._common = {"seed": config.seed, "teacher": config.run}
        self._common |= {name: getattr(config.decode, name) for name in ("temperature", "top_k", "top_p", "new_tokens")}

    def start(self, width: int, items: list[tuple[int, int]]) -> Completions:
        """Dispatches one batch; items are repeated to fill it, so that one shape is compiled a width."""
        size = self._config.batch_size
        rows, lengths = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
        filled = [items[i % len(items)] for i in range(size)]
        for i, (prompt, _) in enumerate(filled):
            ids = self._prompts.read(prompt)
            rows[i, width - len(ids) :], lengths[i] = ids, len(ids)
        numbers = np.array(filled, np.uint32)
        placed = sharding.place((rows, lengths), self._mesh)
        return decode.generate(self._decode, self._params, placed[0], _keys(self._config.seed, numbers), placed[1])

    def finish(self, items: list[tuple[int, int]], found: Any) -> list[dict[str, Any]]:
        """The records of a batch that was started."""
        tokens, weight, log_probs = (np.asarray(x) for x in (found.tokens, found.weight, found.log_probs))
        records = []
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
                    **self._common,
                    "prompt_ids": given,
                    "ids": ids,
                }
            )
        return records


@functools.partial(jax.jit, static_argnums=0)
def _keys(seed: int, items: jax.Array) -> jax.Array:
    """A key for each (prompt, sample) [B, 2]: what a completion is does not depend on its batch."""
    one = lambda item: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), item[0]), item[1])
    return jax.vmap(one)(items)


def _summary(path: Path, model: configs.ModelConfig, tokens: int, seconds: float) -> dict[str, Any]:
    """Counts and FLOPs of a whole journal, and the speed of this process where it wrote any of it."""
    found: dict[str, Any] = {"completions": 0, "tokens": 0, "prompt_tokens": 0, "stopped": 0, "flops": 0.0}
    log_prob = 0.0
    for record in journal.read(path):
        given, new = len(record["prompt_ids"]), len(record["ids"])
        found["completions"] += 1
        found["tokens"] += new
        found["prompt_tokens"] += given
        found["stopped"] += record["finish"] == "stop"
        # Each token is read once: that is what the cache is for.
        found["flops"] += counts.forward_flops(model, given + new) * (given + new)
        log_prob += record["log_prob"] * new
    found["log_prob"] = log_prob / max(found["tokens"], 1)
    found["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if tokens:
        found["tokens_per_second"] = tokens / max(seconds, 1e-9)
    assert math.isfinite(found["log_prob"])
    return found
