"""Scores on tasks of EleutherAI's lm-evaluation-harness (extra lm_eval), along a run and at its end.

`eval.tasks` names them; a score is called task:metric, as its column in runs.csv is.
"""

import importlib
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from distill.config import ConfigError, ExperimentConfig, nearest
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.data.tokenizers.tokenizer import Tokenizer
from distill.model.transformer import Transformer
from distill.system import distributed

_LOCK = threading.Lock()  # runs that train together are scored one after another: the harness seeds global generators


class Tasks:
    """Tasks of the harness, found once.

    names: tasks or groups of tasks
    folder: of task files of one's own, read first; '' for the harness's own alone, whose index takes a while
    Raises ConfigError where the extra is missing, for a name that is not known, and in several processes.
    """

    def __init__(self, names: Sequence[str], folder: str = ""):
        if distributed.several():
            raise ConfigError(
                "tasks in several processes: the harness runs in one; leave eval.tasks out, and score the finished run "
                "with `distill evaluate --model=WORKDIR --tasks=NAMES`"
            )
        if folder and not Path(folder).is_dir():
            raise ConfigError(f"task_files: got {folder!r}, which is no folder; wanted one of .yaml files")
        self._harness = _library("lm_eval")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        managers = _library("lm_eval.tasks")
        self._names = list(names)
        self._manager = managers.TaskManager(include_path=folder or None, include_defaults=not folder)
        if folder and self._unknown():
            self._manager = managers.TaskManager(include_path=folder)
        if unknown := self._unknown():
            close = nearest(unknown[0], self._manager.all_tasks)
            raise ConfigError(
                f"tasks: the lm-evaluation-harness has no {unknown[0]!r}.{close} "
                "Wanted the `task:` of a .yaml file in the folder task_files, or a name that `lm_eval ls tasks` prints"
            )

    def _unknown(self) -> list[str]:
        return [name for name in self._names if name not in self._manager.all_tasks]

    def scores(
        self, params: Transformer, tokenizer: Tokenizer, *, context: int, batch_size: int = 8
    ) -> dict[str, float]:
        """The scores of a model on the current mesh, by task:metric; those that are not finite are left out.

        context: tokens that the model reads at once; batch_size: windows of them computed at once.
        """
        model = _library("distill.training.lm_eval").Harness(params, tokenizer, context=context, batch_size=batch_size)
        with _LOCK:
            found = self._harness.simple_evaluate(
                model=model, tasks=self._names, task_manager=self._manager, bootstrap_iters=0, log_samples=False
            )
        return named(found["results"], self._names)


class RunTasks:
    """The tasks of a run, `eval.tasks`, in the tokens of its text. Raises ConfigError as Tasks does."""

    def __init__(self, config: ExperimentConfig, store: TokenStore | Mixture):
        self._config = config
        self._tasks = Tasks(config.eval.tasks, config.eval.task_files) if config.eval.tasks else None
        first = store.stores[0] if isinstance(store, Mixture) else store
        self._tokenizer = first.tokenizer() if self._tasks else None

    def scores(self, params: Transformer) -> dict[str, float] | None:
        """The scores of a model on the current mesh by task:metric; None where no tasks are asked for."""
        if self._tasks is None or self._tokenizer is None:
            return None
        size = self._config.eval.batch_size
        return self._tasks.scores(params, self._tokenizer, context=self._config.seq_len, batch_size=size)


def named(results: Mapping[str, Mapping[str, object]], tasks: Sequence[str]) -> dict[str, float]:
    """The harness's results by task:metric, or task:metric:filter: of the tasks asked for.

    Where one of them only collects others and has no score of its own, those of all its tasks are there.
    """
    scores = {
        f"{task}:{metric.removesuffix(',none').replace(',', ':')}": float(value)
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if "," in metric and "_stderr" not in metric and isinstance(value, int | float) and math.isfinite(value)
    }
    asked = {name: value for name, value in scores.items() if name.split(":")[0] in tasks}
    whole = {name.split(":")[0] for name in asked} >= set(tasks)
    return asked if whole else scores


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            "tasks need the lm-evaluation-harness: pip install 'distill[lm_eval]', or leave eval.tasks empty"
        ) from None
