"""The three ways a teacher reaches its student, behind one protocol: `TeacherSource`.

config.teacher.signal    class            where the teacher runs
online                   OnlineTeacher    inside every step (CrossTokenizerTeacher: on tokens of its own)
memory                   CachedTeacher    once a window, in this process; the batch carries its log-probabilities
stored                   StoredTeacher    earlier, in launch.cache; the batch carries what the store holds
"""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig, counts, mixture_run
from distill.data.mixture import Mixture
from distill.data.store.evaluation import Evaluation
from distill.data.store.store import TokenStore
from distill.errors import SignalError
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.records import runs
from distill.teacher import load, vocabulary
from distill.teacher.cross_tokenizer import Cells
from distill.teacher.in_memory import InMemorySignals
from distill.teacher.load import TeacherInfo
from distill.teacher.mixture import TeacherMixture
from distill.teacher.observe import StepTeacher, Teacher
from distill.teacher.signals import manifest
from distill.teacher.signals.reader import SignalStore
from distill.training.cross_teacher import CrossTokenizerTeacher
from distill.training.evaluate import Scores, SignalReader, evaluate
from distill.training.inputs import ALSO, ResolvedRun, check_heads, make_loader
from distill.types import Head


class TeacherSource(Protocol):
    """A run's teacher, on the current mesh: what the step and the student's record need of it."""

    @property
    def run(self) -> str:
        """The teacher's fingerprint; of a mixture, all fingerprints and their weights."""

    @property
    def teachers(self) -> tuple[TeacherInfo, ...]:
        """Config and record of every teacher."""

    @property
    def step_argument(self) -> StepTeacher | None:
        """What the step takes beside the batch: the teacher, the head of stored hidden states, or nothing."""

    @property
    def tokens_per_token(self) -> float:
        """Tokens that the teacher reads for one of the student's."""

    def step_flops(self, seq_len: int) -> float:
        """FLOPs per token of the teacher's forward pass inside the step."""

    def signal_reader(self, split: str) -> SignalReader | None:
        """Maps window ids of a split to the signals that a batch carries; None where the teacher runs in the step."""

    def scores(self, params: Transformer, evaluation: Evaluation) -> Scores:
        """The student's scores on a validation set, with kl and agreement where the teacher can be run on it."""

    def loss(self, evaluation: Evaluation, config: ExperimentConfig) -> float | None:
        """L_T, the teacher's own loss (nats per token) on the student's validation set; None where it is not known."""

    @property
    def bytes(self) -> int:
        """Host memory that cached signals take."""


class OnlineTeacher:
    """One teacher, or a mixture of several, that runs inside every step."""

    tokens_per_token = 1.0

    def __init__(self, run: ResolvedRun, store: TokenStore | Mixture):
        """Raises DistillError where a teacher is gone, or does not share the student's vocabulary."""
        config = run.config
        self.teachers = run.teachers
        for teacher in self.teachers:
            if config.teacher.tokens == "same":
                vocabulary.check(teacher, store, "teacher", ALSO)
            check_heads(teacher, store, config)
        models = tuple(load.load_parameters(teacher, config.teacher.dtype) for teacher in self.teachers)
        weights = [weight for _, weight in config.teacher.sources]
        self.model: Teacher = (
            models[0] if len(models) == 1 else TeacherMixture(models=models, weights=jnp.asarray(weights, jnp.float32))
        )
        self.run = mixture_run([(teacher.record.run, weight) for teacher, weight in zip(self.teachers, weights)])
        self.step_argument: StepTeacher | None = self.model
        self._store, self._config = store, config
        self._losses: dict[tuple[int, int], float] = {}

    def step_flops(self, seq_len: int) -> float:
        return sum(counts.forward_flops(teacher.config.model, seq_len) for teacher in self.teachers)

    def signal_reader(self, split: str) -> SignalReader | None:
        return None

    def scores(self, params: Transformer, evaluation: Evaluation) -> Scores:
        c = self._config
        return evaluate(params, evaluation, c.eval.batch_size, teacher=self.model, context=c.mesh.context)

    def loss(self, evaluation: Evaluation, config: ExperimentConfig) -> float:
        """L_T, computed once for each validation set."""
        key = (len(evaluation.windows), config.seq_len)
        if key not in self._losses:
            self._losses[key] = evaluate(
                self.model, evaluation, config.eval.batch_size, context=config.mesh.context
            ).loss
        return self._losses[key]

    @property
    def bytes(self) -> int:
        return 0


class CachedTeacher(OnlineTeacher):
    """Teachers whose log-probabilities are computed once a window and kept in memory, for every student that asks."""

    def __init__(self, run: ResolvedRun, store: TokenStore | Mixture):
        """Raises ConfigError in a run of several processes, and as OnlineTeacher does."""
        if jax.process_count() > 1:
            raise ConfigError(
                "config.teacher.signal='memory' keeps a window in the process that computed it, but the next epoch "
                "gives the window to another process; with several, use 'online' or 'stored' (launch.cache)"
            )
        super().__init__(run, store)
        self.step_argument = None
        self._signals: dict[str, InMemorySignals] = {}

    def step_flops(self, seq_len: int) -> float:
        return 0.0

    def signal_reader(self, split: str) -> SignalReader:
        return self.cached_signals(split).read

    def cached_signals(self, split: str) -> InMemorySignals:
        """The signals of the windows of a split."""
        if split not in self._signals:
            c = self._config
            loader = make_loader(c, self._store, split)
            self._signals[split] = InMemorySignals(
                self.model, loader.read, loader.window_count, c.seq_len, c.teacher.memory_gib
            )
        return self._signals[split]

    def scores(self, params: Transformer, evaluation: Evaluation) -> Scores:
        read = self.signal_reader("validation")
        c = self._config
        return evaluate(params, evaluation, c.eval.batch_size, signal=read, context=c.mesh.context)

    @property
    def bytes(self) -> int:
        return sum(signals.bytes for signals in self._signals.values())


class StoredTeacher:
    """A store of signals, checked against the data that the student reads and the target that it minimises.

    The teacher itself is loaded only after training, to score the student, and only if the config gives its source.
    """

    def __init__(self, run: ResolvedRun, store: TokenStore | Mixture):
        """Raises DistillError where the store is damaged, or made for another teacher, other data or another target."""
        self._run, self._store = run, store
        config = run.config
        path = config.teacher.store
        self.signals = SignalStore(path, config.objective)
        contents = self.signals.manifest
        wanted = {name: value for name, value in manifest.data_of(config, store).items() if name != "tokenizer"}
        manifest.compare(path, contents["recipe"]["data"], wanted, "data of")  # the hash tells tokenizers apart
        teacher = TeacherInfo(
            source=path,
            config=configs.from_text(ExperimentConfig, contents["teacher"]["config"], f"{path}: teacher"),
            record=runs.RunRecord(**contents["teacher"]["record"]),
        )
        crossing = self.signals.signal.crossing
        if not crossing:
            check_heads(teacher, store, config)
        self.teachers: tuple[TeacherInfo, ...] = (teacher,)
        self.run = teacher.record.run
        missing = self.signals.missing(make_loader(config, store, config.data.split).distinct(config.steps))
        if len(missing):
            raise SignalError(
                f"{path}: holds no signal of {len(missing)} of the windows that this run reads (the first is "
                f"{missing[0]}); {self.signals.extent}"
            )
        head = self.signals.head
        self.step_argument: StepTeacher | None = None if head is None else Head(head_vd=_placed(head))
        made = contents["recipe"]["teacher"]
        self.tokens_per_token = made["seq_len"] / config.seq_len if "seq_len" in made else 1.0
        cells = self.signals.cells
        if cells is not None and len(cells) != config.model.vocab_size:
            raise SignalError(
                f"{path}: holds the cells of {len(cells)} columns, and the student's head has "
                f"{config.model.vocab_size}; set model.vocab_size to that, or make a store with launch.cache"
            )
        if cells is not None:
            whole = jnp.asarray(cells)
            self.step_argument = Cells(student=whole, teacher=whole[:0], count=made.get("cells", 0))

    def step_flops(self, seq_len: int) -> float:
        return 0.0

    def signal_reader(self, split: str) -> SignalReader:
        return self.signals.read  # of the one split that it holds, which was checked

    @functools.cached_property
    def _online(self) -> "OnlineTeacher | CrossTokenizerTeacher | None":
        if not self._run.teachers:
            return None
        kind = CrossTokenizerTeacher if is_crossing(self._run, self._store) else OnlineTeacher
        return kind(self._run, self._store)

    def scores(self, params: Transformer, evaluation: Evaluation) -> Scores:
        if self._online:
            return self._online.scores(params, evaluation)
        config = self._run.config
        return evaluate(params, evaluation, config.eval.batch_size, context=config.mesh.context)

    def loss(self, evaluation: Evaluation, config: ExperimentConfig) -> float | None:
        """L_T: computed where the teacher can be loaded, else from the store if it is of the same validation set."""
        if self._online:
            return self._online.loss(evaluation, config)
        validation = self.signals.manifest["teacher"].get("validation")
        return validation["loss"] if validation and validation["tokens"] == config.eval.tokens else None

    @property
    def bytes(self) -> int:
        return 0


def _placed(head: NDArray[np.floating]) -> jax.Array:
    """The head on the current mesh, sharded as a parameter."""
    place = jax.NamedSharding(jax.sharding.get_mesh(), sharding.PARAM_SPECS["head_vd"])
    return jax.make_array_from_callback(head.shape, place, lambda part: head[part])


def is_crossing(run: ResolvedRun, store: TokenStore | Mixture) -> bool:
    """Whether the one teacher of a run reads other tokens than the text's, and the objective allows it."""
    if run.config.teacher.tokens == "number":
        return False
    asked = run.config.objective.cross_tokenizer != "none" and len(run.teachers) == 1
    return asked and bool(vocabulary.differing(run.teachers[0], store))


def open_teacher(run: ResolvedRun, store: TokenStore | Mixture) -> TeacherSource | None:
    """The teacher of a run, opened on the current mesh by config.teacher.signal; None for supervised training."""
    signal = run.config.teacher.signal
    if run.config.teacher.server and signal != "stored":
        raise ConfigError(
            f"config.teacher.server={run.config.teacher.server}: a server teaches through a store; fill one with "
            "launch.cache --out=DIR, and train with config.teacher.signal=stored and config.teacher.store=DIR"
        )
    if signal != "stored" and not run.teachers:
        return None
    if signal == "online" and is_crossing(run, store):
        return CrossTokenizerTeacher(run, store)
    kinds: dict[str, Callable[[ResolvedRun, TokenStore | Mixture], TeacherSource]] = {
        "online": OnlineTeacher,
        "memory": CachedTeacher,
        "stored": StoredTeacher,
    }
    return kinds[signal](run, store)
