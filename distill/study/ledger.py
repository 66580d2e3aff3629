"""The promise of predictions.csv: a run of the last stage begins only after its prediction, on whichever machine.

No two clocks are compared. A run that is about to begin takes its prediction along (runs/RUN/prediction.json); one of
the last stage that has none does not begin, unless unpredicted.json says why there is none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.config import DistillError, StudyExperimentConfig
from distill.records import predictions
from distill.records.predictions import PredictionTable
from distill.records.study_table import StudyTable
from distill.study.matrix import LAST_STAGE, PlannedRun
from distill.system import process
from distill.system.files import atomic_write, loads

if TYPE_CHECKING:
    from distill.study.analysis import StudyLaws

UNPREDICTED = "unpredicted.json"


class NotPredicted(DistillError):
    """A run of the last stage was asked to begin before its prediction was made."""


def begin(workdir: Path, task: PlannedRun) -> None:
    """Called before a run trains: a run that has not begun takes its prediction along.

    Raises NotPredicted for a run of the last stage without a prediction or a reason.
    """
    if has_begun(workdir, task):
        return
    prediction = PredictionTable(workdir / "predictions.csv").by_run().get(task.run)
    if prediction is not None:
        predictions.carry(workdir / "runs" / task.run, prediction)
    elif task.stage == LAST_STAGE and task.run not in unpredicted(workdir):
        raise NotPredicted(
            f"{task.name} may not start yet: predictions.csv has no row for it, and {UNPREDICTED} does not "
            f"say why; run --part=predict in {workdir} first"
        )


def has_begun(workdir: Path, task: PlannedRun) -> bool:
    """Whether a run has ever begun to train."""
    return (workdir / "runs" / task.run / "config.txt").exists()


def unpredicted(workdir: Path) -> dict[str, str]:
    """Why runs of the last stage have no prediction: {fingerprint: sentence}. Raises DistillError for damage."""
    path = workdir / UNPREDICTED
    if not path.exists():
        return {}
    try:
        return {str(run): str(why) for run, why in loads(path.read_text("utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise DistillError(f"{path}: cannot be read ({error}); delete it and predict again") from None


def predict_last(
    laws: "StudyLaws", workdir: Path, tasks: Sequence[PlannedRun], table: StudyTable, console: Console
) -> None:
    """Predicts the runs of the last stage that have not begun, and says of the others why they have no prediction."""
    from distill.study import analysis  # imports JAX, which takes seconds

    last = [task for task in tasks if task.stage == LAST_STAGE and task.run not in table.by_fingerprint]
    new = [task for task in last if not has_begun(workdir, task)]
    n_predicted = analysis.predict(laws, new, table)
    known = PredictionTable(workdir / "predictions.csv").by_run()
    why = " ".join(laws.reasons) or "no finished run tells the loss of its teacher"
    _excuse(
        workdir, {task.run: why if task in new else "it had begun before" for task in last if task.run not in known}
    )
    console.print(f"predicted {n_predicted} runs before they start", highlight=False)


def _excuse(workdir: Path, reasons: Mapping[str, str]) -> None:
    atomic_write(workdir / UNPREDICTED, json.dumps(unpredicted(workdir) | dict(reasons), indent=1) + "\n")


class Predictor:
    """Predicts runs just before they start, so that a prediction cannot depend on its run.

    The last stage is predicted from all other runs, when its first run starts. Runs added to a study that already has a
    law are predicted from the runs that were finished when this call began. A run that started in an earlier call is
    not predicted.
    """

    def __init__(self, config: StudyExperimentConfig, workdir: Path, tasks: Sequence[PlannedRun], console: Console):
        self._config, self._workdir, self._tasks, self._console = config, workdir, tasks, console
        self._laws: StudyLaws | None = None
        self._predicted_last = False

    def __call__(self, starting: Sequence[PlannedRun]) -> None:
        last = starting[0].stage == LAST_STAGE
        has_law = self._laws is not None or (self._workdir / "laws" / "supervised.json").exists()
        if self._predicted_last or not (last or has_law):
            return
        from distill.study import analysis  # imports JAX, which takes seconds

        table = StudyTable.read(self._workdir / "runs.csv")
        if last or self._laws is None:
            process.cache_compilations()
            self._laws = analysis.fit(self._config, table)
        if last:
            predict_last(self._laws, self._workdir, self._tasks, table, self._console)
            self._predicted_last = True
        else:
            new = [t for t in starting if t.run not in table.by_fingerprint and not has_begun(self._workdir, t)]
            analysis.predict(self._laws, new, table)
