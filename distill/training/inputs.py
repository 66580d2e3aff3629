"""What a student learns from: its token store, its windows, and the teacher on them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from distill import data
from distill.config import ConfigError, ExperimentConfig
from distill.data.mixture import Mixture
from distill.data.store.store import Evaluation, TokenStore
from distill.data.tokenizers.tokenizer import same_tokens
from distill.model import warm_start
from distill.model.transformer import Transformer
from distill.system import distributed
from distill.teacher import load
from distill.teacher.in_memory import MemorySignal
from distill.teacher.mixture import TeacherMixture
from distill.teacher.signals.reader import identify_stored
from distill.training.evaluate import Scores, evaluate


class Lesson:
    """What teaches, on one mesh and one store: loaded once, its signal kept for every student that asks for it.

    `params` is the teacher, or the mixture of all `teachers`; `run` names it.
    """

    def __init__(self, store: TokenStore | Mixture, student: ExperimentConfig):
        if student.teacher.signal == "memory" and jax.process_count() > 1:
            raise ConfigError(
                "config.teacher.signal='memory' keeps a window where it was computed, and the next epoch deals it to "
                "another process; with several, use 'online' or 'stored' (launch.cache)"
            )
        sources = student.teacher.sources
        self.teachers = tuple(load.load(source, student.teacher.dtype) for source, _ in sources)
        for (source, _), teacher in zip(sources, self.teachers):
            check(source, teacher, store, student)
        models = tuple(teacher.params for teacher in self.teachers)
        weights = jnp.asarray([weight for _, weight in sources], jnp.float32)
        self.params: Transformer | TeacherMixture = (
            models[0] if len(models) == 1 else TeacherMixture(models=models, weights=weights)
        )
        self.run = _name([(teacher.record.run, weight) for teacher, (_, weight) in zip(self.teachers, sources)])
        self._store, self._config = store, student
        self._signals: dict[str, MemorySignal] = {}
        self._scores: dict[tuple[int, int], Scores] = {}

    def signal(self, split: str) -> MemorySignal:
        """The in-memory signal over the windows of a split."""
        if split not in self._signals:
            c = self._config
            loader = make_loader(c, self._store, split)
            self._signals[split] = MemorySignal(
                self.params, loader.read, loader.window_count, c.seq_len, c.teacher.memory_gib
            )
        return self._signals[split]

    def reader(self, split: str) -> Any:
        """The in-memory signal of windows, by their ids; None where the teacher speaks inside the step."""
        return self.signal(split).read if self._config.teacher.signal == "memory" else None

    def scores(self, params: Transformer, evaluation: Evaluation) -> Scores:
        """The student's scores on this validation set, beside its teacher's."""
        read = self.reader("validation")
        return evaluate(
            params,
            evaluation,
            self._config.eval.batch_size,
            teacher=None if read else self.params,
            signal=read,
        )

    @property
    def bytes(self) -> int:
        """Memory that the kept signals hold."""
        return sum(signal.bytes for signal in self._signals.values())

    def loss(self, evaluation: Evaluation, config: ExperimentConfig) -> float:
        """L_T: the teacher's own loss on the student's validation set."""
        key = (len(evaluation.windows), config.seq_len)
        if key not in self._scores:
            self._scores[key] = evaluate(self.params, evaluation, config.eval.batch_size)
        return self._scores[key].loss


def check(source: str, teacher: load.Known, store: TokenStore | Mixture, student: ExperimentConfig) -> None:
    """Raises ConfigError where teacher and student do not speak of the same tokens."""
    mine, theirs = student.model, teacher.config.model
    if (mine.vocab_size != theirs.vocab_size and not mine.valid_vocab) or mine.tokens > theirs.tokens:
        raise ConfigError(
            f"config.model.vocab_size={mine.vocab_size} with {mine.tokens} tokens, but the teacher in {source} has "
            f"{theirs.vocab_size} with {theirs.tokens}; teacher and student must share a vocabulary. Where heads "
            f"are padded, give the number of tokens: config.model.valid_vocab={store.vocab_size}"
        )
    if not same_tokens(teacher.record.tokenizer, store.tokenizer_name):
        raise ConfigError(
            f"the teacher in {source} was trained on {teacher.record.tokenizer!r} tokens and the student's "
            f"data are {store.tokenizer_name!r} tokens; distillation needs one tokenizer"
        )


def _name(parts: list[tuple[str, float]]) -> str:
    """The fingerprint of one teacher, or those of a mixture with their weights, in an order of their own."""
    return parts[0][0] if len(parts) == 1 else "+".join(sorted(f"{run}@{weight:.6g}" for run, weight in parts))


def open_store(config: ExperimentConfig, workdir: str | Path) -> TokenStore | Mixture:
    """The token store of a run: in `data.cache`, or in WORKDIR/data."""
    store = data.open_store(config.data, config.data.cache or Path(workdir) / "data")
    store.check_vocabulary(config.model.tokens)
    # Now, not after the last step: a run without validation text cannot be scored.
    store.views(
        "validation", config.seq_len, packing=config.data.packing, completions_only=config.data.completions_only
    )
    return store


def identify(config: ExperimentConfig, store: TokenStore | Mixture | None = None) -> ExperimentConfig:
    """The config with what it points at named by content: its teacher's own fingerprint, and its store's."""
    if store is not None:
        config = dataclasses.replace(config, data=config.data.identified(store.fingerprint))
    if config.init.source:
        known = load.Known(*load.find(config.init.source))
        warm_start.check(config.init, config.model, known.config.model)
        config = dataclasses.replace(config, init=dataclasses.replace(config.init, run=known.record.run))
    if config.teacher.signal == "stored":
        config = dataclasses.replace(config, teacher=identify_stored(config.teacher))
    if not config.teacher.sources:
        if config.on_policy.fraction:
            raise ConfigError(
                f"config.on_policy.fraction={config.on_policy.fraction}, but nobody judges what the student writes; "
                "give config.teacher.source, the workdir of a finished run"
            )
        return config
    parts = []
    for source, weight in config.teacher.sources:
        teacher, record = load.find(source)
        parts.append((record.run, weight))
        deepest = max((theirs for _, theirs in config.objective.feature_pairs), default=0)
        if deepest > teacher.model.n_layers:
            raise ConfigError(
                f"config.objective.features={config.objective.features}: the teacher in {source} has "
                f"{teacher.model.n_layers} layers, got layer {deepest}; wanted 0 (the embedding) to "
                f"{teacher.model.n_layers}"
            )
    run, places = _name(parts), ", ".join(source for source, _ in config.teacher.sources)
    if config.teacher.run not in ("", run):
        raise ConfigError(f"config.teacher.run={config.teacher.run}, but {places} holds run {run}")
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, run=run))


def make_loader(config: ExperimentConfig, store: TokenStore | Mixture, split: str) -> data.Loader:
    """This process's share of a split, cut into windows as the config says: a teacher's signal is of these windows.

    The share is that of the current mesh.
    """
    index, count = distributed.share(jax.sharding.get_mesh())
    return data.Loader(
        store,
        split=split,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        seed=config.data.seed,
        process_index=index,
        process_count=count,
        packing=config.data.packing,
        completions_only=config.data.completions_only,
    )
