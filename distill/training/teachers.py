"""What a student learns from where the teacher's signals are stored: it never meets the teacher while it trains."""

import functools
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from distill import config as configs
from distill.config import ExperimentConfig
from distill.data.mixture import Mixture
from distill.data.store.evaluation import Evaluation
from distill.data.store.store import TokenStore
from distill.errors import SignalError
from distill.model import sharding as mesh
from distill.model.transformer import Transformer
from distill.records import runs
from distill.teacher.load import Known
from distill.teacher.signals import manifest
from distill.teacher.signals.reader import SignalStore
from distill.training.evaluate import Scores, evaluate
from distill.training.inputs import Lesson, check, make_loader
from distill.types import Head, HiddenStates, SparseSignal, TeacherSignal


class StoredLesson:
    """A store of signals, checked against what the student reads and minimises.

    `params` is what a step needs of the teacher beside the batch: its head, where hidden states are stored. The
    teacher itself is loaded after training, to judge the student, if config.teacher.source says where it is.
    """

    def __init__(self, store: TokenStore | Mixture, student: ExperimentConfig):
        """Raises DistillError where the store is damaged, or made for another teacher, other data or another target."""
        where = student.teacher.store
        self._store, self._config = store, student
        self.signals = SignalStore(where, student.objective)
        known = self.signals.manifest
        manifest.compare(where, known["recipe"]["data"], data_of(student, store), "data of")
        config = configs.from_text(ExperimentConfig, known["teacher"]["config"], f"{where}: teacher")
        record = runs.RunRecord(**known["teacher"]["record"])
        self.teachers = (Known(config=config, record=record),)
        self.run = record.run
        check(where, self.teachers[0], store, student)
        missing = self.signals.missing(make_loader(student, store, student.data.split).distinct(student.steps))
        if len(missing):
            raise SignalError(
                f"{where}: holds no signal of {len(missing)} of the windows that this run reads (the first is "
                f"{missing[0]}); {self.signals.extent}"
            )
        head = self.signals.head
        self.params = None if head is None else Head(head_vd=_placed(head))

    def reader(self, split: str) -> Any:
        """The signal of windows, by their ids."""
        del split  # the store is of one, and was checked to be of this

        def read(windows: NDArray[np.int64]) -> SparseSignal | HiddenStates | TeacherSignal:
            return self.signals.read(windows)

        return read

    @functools.cached_property
    def _online(self) -> Lesson | None:
        return Lesson(self._store, self._config) if self._config.teacher.sources else None

    def scores(self, params: Transformer, evaluation: Evaluation) -> Scores:
        """The student's scores; beside its teacher's where that can be loaded, else without kl and agreement."""
        if self._online:
            return self._online.scores(params, evaluation)
        return evaluate(params, evaluation, self._config.eval.batch_size)

    def loss(self, evaluation: Evaluation, config: ExperimentConfig) -> float | None:
        """L_T: by the teacher itself, or as it stands in the store for this validation set; None for another."""
        if self._online:
            return self._online.loss(evaluation, config)
        known = self.signals.manifest["teacher"]["validation"]
        return known["loss"] if known["tokens"] == config.eval.tokens else None


def _placed(head: NDArray[Any]) -> jax.Array:
    sharding = jax.NamedSharding(jax.sharding.get_mesh(), mesh.STORED["head_vd"])
    return jax.make_array_from_callback(head.shape, sharding, lambda part: head[part])


def data_of(config: ExperimentConfig, store: TokenStore | Mixture) -> dict[str, Any]:
    """What a signal's windows are windows of; a student's must be the same."""
    return {
        "store": store.fingerprint,
        "tokenizer": store.tokenizer_name,
        "tokenizer_hash": store.tokenizer_hash,
        "split": config.data.split,
        "seq_len": config.seq_len,
        "packing": config.data.packing,
        "completions_only": config.data.completions_only,
    }


def open_lesson(store: TokenStore | Mixture, config: ExperimentConfig) -> Lesson | StoredLesson | None:
    """What teaches in this config; None where nobody does."""
    if config.teacher.signal == "stored":
        return StoredLesson(store, config)
    return Lesson(store, config) if config.teacher.sources else None
