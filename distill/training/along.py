"""What a model does on held-out text along its run: its scores at even distances, and how it continues one text.

Each is a line of heldout.jsonl. Nothing here changes the run: `eval.along` asks for it, and no fingerprint knows it.
"""

import dataclasses
import json

import jax
import numpy as np
from jaxtyping import PyTree

from distill.config import DecodeConfig, ExperimentConfig
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.model import decode, sharding
from distill.model.transformer import Transformer
from distill.records import heldout
from distill.system import cloud, distributed
from distill.training.evaluate import evaluate
from distill.training.inputs import validation_set
from distill.training.tasks import RunTasks
from distill.training.teachers import TeacherSource

_PROMPT, _NEW = 48, 96  # tokens of the text that is continued, and of its continuation


def marks(config: ExperimentConfig) -> list[int]:
    """The steps at which a run is scored: its first and last, and `eval.along` between them; none where that is 0."""
    if not config.eval.along:
        return []
    return sorted({round(step) for step in np.linspace(0, config.steps, config.eval.along + 2)})


class Along:
    """Scores a run on the current mesh as it passes its marks."""

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: cloud.Workdir,
        store: TokenStore | Mixture,
        teacher: TeacherSource | None,
        tasks: RunTasks,
        done: int,
    ):
        """`done` is the step that the run continues at: what an earlier attempt wrote of later steps goes."""
        self._config, self._workdir, self._store, self._teacher, self._tasks = config, workdir, store, teacher, tasks
        self._left = [step for step in marks(config) if step > done or done == 0]
        self._evaluation = validation_set(config, store) if self._left else None
        if self._left and distributed.first():
            heldout.keep(workdir.path / heldout.FILE, done)

    def reach(self, step: int, params: Transformer) -> None:
        """Scores the model if the run has passed a mark since the last one."""
        passed = [mark for mark in self._left if mark <= step]
        if not passed or self._evaluation is None:
            return
        self._left = self._left[len(passed) :]
        if self._teacher:
            scores = self._teacher.scores(params, self._evaluation)
        else:
            scores = evaluate(params, self._evaluation, self._config.eval.batch_size, context=self._config.mesh.context)
        tokens = step * self._config.batch_size * self._config.seq_len
        line: dict[str, object] = {"step": step, "tokens": tokens} | dataclasses.asdict(scores)
        if self._asks_tasks(passed[-1]):
            line["scores"] = self._tasks.scores(params)
        if step in (0, self._config.steps) and not distributed.several():
            line |= self._sample(params)
        if distributed.first():
            with (self._workdir.path / heldout.FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: value for name, value in line.items() if value is not None}) + "\n")
            self._workdir.push(heldout.FILE)

    def _asks_tasks(self, mark: int) -> bool:
        """Whether tasks are scored at a mark: each n-th from the first, but not the end, where the run's row is."""
        every = self._config.eval.tasks_every
        return mark < self._config.steps and every > 0 and marks(self._config).index(mark) % every == 0

    def _sample(self, params: Transformer) -> dict[str, object]:
        """The beginning of the first held-out window and its likeliest continuation, as text."""
        assert self._evaluation is not None
        mesh = jax.sharding.get_mesh()
        window = np.asarray(self._evaluation.batch.inputs)[0]
        prompt = window[: min(_PROMPT, len(window) // 2)]
        rows = np.tile(prompt, (mesh.shape["data"] * mesh.shape["fsdp"], 1)).astype(np.int32)
        settings = DecodeConfig(temperature=0.0, new_tokens=min(_NEW, len(window) - len(prompt)))
        placed: PyTree = sharding.place(rows, mesh)
        keys = jax.random.split(jax.random.key(0), len(rows))
        written = np.asarray(decode.generate(settings, params, placed, keys).tokens)[0, len(prompt) :]
        store = self._store.stores[0] if isinstance(self._store, Mixture) else self._store
        tokenizer = store.tokenizer()
        return {"prompt": tokenizer.decode(prompt.tolist()), "sample": tokenizer.decode(written.tolist())}
