"""What a student learns from: its token store, its windows, and the teacher on them."""

import dataclasses
from pathlib import Path

import jax

from distill import config as configs
from distill import data
from distill.config import ConfigError, ExperimentConfig
from distill.data.mixture import Mixture
from distill.data.store import Evaluation, TokenStore
from distill.evaluate import Scores, evaluate
from distill.teacher import online
from distill.teacher.memory import MemorySignal


class Lesson:
    """A teacher on one mesh and one store: loaded once, its signal kept for every student that asks for it."""

    def __init__(self, source: str | Path, store: TokenStore | Mixture, student: ExperimentConfig):
        self.teacher = online.load(source)
        mine, theirs = student.model, self.teacher.config.model
        if (mine.vocab_size != theirs.vocab_size and not mine.valid_vocab) or mine.tokens > theirs.tokens:
            raise ConfigError(
                f"config.model.vocab_size={mine.vocab_size} with {mine.tokens} tokens, but the teacher in {source} has "
                f"{theirs.vocab_size} with {theirs.tokens}; teacher and student must share a vocabulary. Where heads "
                f"are padded, give the number of tokens: config.model.valid_vocab={store.vocab_size}"
            )
        if self.teacher.record.tokenizer != store.tokenizer_name:
            raise ConfigError(
                f"the teacher in {source} was trained on {self.teacher.record.tokenizer!r} tokens and the student's "
                f"data are {store.tokenizer_name!r} tokens; distillation needs one tokenizer"
            )
        self._store, self._config = store, student
        self._signals: dict[str, MemorySignal] = {}
        self._scores: dict[tuple[int, int], Scores] = {}

    def signal(self, split: str) -> MemorySignal:
        """The in-memory signal over the windows of a split."""
        if split not in self._signals:
            c = self._config
            loader = make_loader(c, self._store, split)
            self._signals[split] = MemorySignal(
                self.teacher.params, loader.read, loader.window_count, c.seq_len, c.teacher.memory_gib
            )
        return self._signals[split]

    @property
    def bytes(self) -> int:
        """Memory that the kept signals hold."""
        return sum(signal.bytes for signal in self._signals.values())

    def loss(self, evaluation: Evaluation, config: ExperimentConfig) -> float:
        """L_T: the teacher's own loss on the student's validation set."""
        key = (len(evaluation.windows), config.seq_len)
        if key not in self._scores:
            self._scores[key] = evaluate(self.teacher.params, evaluation, config.eval.batch_size)
        return self._scores[key].loss


def open_store(config: ExperimentConfig, workdir: str | Path) -> TokenStore | Mixture:
    """The token store of a run: in `data.cache`, or in WORKDIR/data."""
    store = data.open_store(config.data, config.data.cache or Path(workdir) / "data")
    store.check_vocabulary(config.model.tokens)
    return store


def identify(config: ExperimentConfig, store: TokenStore | Mixture | None = None) -> ExperimentConfig:
    """The config with what it points at named by content: its teacher's own fingerprint, and its store's."""
    if store is not None:
        config = dataclasses.replace(config, data=config.data.identified(store.fingerprint))
    if not config.teacher.source:
        if config.on_policy.fraction:
            raise ConfigError(
                f"config.on_policy.fraction={config.on_policy.fraction}, but nobody judges what the student writes; "
                "give config.teacher.source, the workdir of a finished run"
            )
        return config
    teacher, _ = online.find(config.teacher.source)
    run = configs.fingerprint(teacher)
    if config.teacher.run not in ("", run):
        raise ConfigError(f"config.teacher.run={config.teacher.run}, but {config.teacher.source} holds run {run}")
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, run=run))


def make_loader(config: ExperimentConfig, store: TokenStore | Mixture, split: str) -> data.Loader:
    """This process's share of a split, cut into windows as the config says: a teacher's signal is of these windows."""
    return data.Loader(
        store,
        split=split,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        seed=config.data.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        packing=config.data.packing,
        completions_only=config.data.completions_only,
    )
