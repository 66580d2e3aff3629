"""Runs a study from its config to its report, in one call that may be killed and repeated at any moment."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distill import config as configs
from distill import data
from distill.config import ConfigError, StudyExperimentConfig, counts
from distill.records.study_table import StudyTable
from distill.study import ablations, matrix
from distill.study.execute import execute, print_failures
from distill.system import files, process

if TYPE_CHECKING:
    from distill.report.study.results import Results
    from distill.study.analysis import StudyLaws


def run(config: StudyExperimentConfig, workdir: str | Path, *, dry_run: bool = False, command: str = "") -> int:
    """Runs the remaining runs of a study, fits its laws and writes its report; returns 1 if runs failed, else 0.

    Before the largest students start, the laws fitted so far predict them (predictions.csv). Writes config.txt, data/,
    runs/, trunks/, runs.csv, curves.csv, predictions.csv, laws/ and report/ in `workdir`, and study.json: the
    `command` that was given and the names of all planned runs. Raises ConfigError for a matrix without a run.
    """
    console, workdir = Console(), Path(workdir).resolve()
    tasks = matrix.expand(config, workdir)
    if not tasks:
        raise ConfigError("config.study: there is nothing to run; give study.models and study.supervised at least")
    if dry_run:
        console.print(_listing(tasks))
        return 0
    with process.folder_lock(workdir):
        return _run(config, workdir, command, console)


def _run(config: StudyExperimentConfig, workdir: Path, command: str, console: Console) -> int:
    began = time.monotonic()
    store = data.open_store(config.data, config.data.cache or workdir / "data")
    config = dataclasses.replace(config, data=config.data.identified(store.fingerprint))
    tasks = matrix.expand(config, workdir)  # again: a run's fingerprint includes that of outside text
    files.atomic_write(workdir / "config.txt", configs.to_text(config))
    outcome = execute(
        tasks,
        workdir,
        console,
        note={"command": command, **_ablation_note(config, tasks)},
        n_workers=config.study.workers,
        pack=config.study.pack,
        before_start=_Predictor(config, workdir, tasks, console),
    )
    study = _analyse(config, workdir, console)
    console.print(f"{time.monotonic() - began:.0f} s in all", highlight=False)
    if study is not None:
        _end(study, workdir, console)
    return print_failures(outcome, console)


def _ablation_note(config: StudyExperimentConfig, tasks: Sequence[matrix.PlannedRun]) -> dict[str, object]:
    """The note for an ablation's report: the settings of every run, and the values of every field in their order."""
    varied = ablations.settings(config)
    return {
        "ablated": {
            task.run: {"base": task.base, "settings": task.settings, "plain": task.config.objective == config.objective}
            for task in tasks
            if task.base
        },
        "values": {s.field: [t.value for t in varied if t.field == s.field] for s in varied},
    }


class _Predictor:
    """Predicts runs just before they start, so that a prediction cannot depend on its run.

    The last stage is predicted from all other runs, when its first run starts. Runs added to a study that already has a
    law are predicted from the runs that were finished when this call began. A run that started in an earlier call is
    not predicted.
    """

    def __init__(
        self, config: StudyExperimentConfig, workdir: Path, tasks: Sequence[matrix.PlannedRun], console: Console
    ):
        self._config, self._workdir, self._tasks, self._console = config, workdir, tasks, console
        self._laws: StudyLaws | None = None
        self._predicted_last = False

    def __call__(self, starting: Sequence[matrix.PlannedRun]) -> None:
        last = starting[0].stage == matrix.LAST_STAGE
        has_law = self._laws is not None or (self._workdir / "laws" / "supervised.json").exists()
        if self._predicted_last or not (last or has_law):
            return
        from distill.study import analysis  # imports JAX, which takes seconds

        table = StudyTable.read(self._workdir / "runs.csv")
        if last or self._laws is None:
            process.cache_compilations()
            self._laws = analysis.fit(self._config, table)
        asked = [task for task in self._tasks if task.stage == matrix.LAST_STAGE] if last else starting
        new = [task for task in asked if task.run not in table.by_fingerprint and not self._has_begun(task)]
        n_predicted = analysis.predict(self._laws, new, table)
        if last:
            self._predicted_last = True
            self._console.print(f"predicted {n_predicted} runs before they start", highlight=False)

    def _has_begun(self, task: matrix.PlannedRun) -> bool:
        return (self._workdir / "runs" / task.run / "config.txt").exists()


def _analyse(config: StudyExperimentConfig, workdir: Path, console: Console) -> "Results | None":
    """Makes laws, plan and report of the finished runs if the table has changed; prints their short form.

    Returns the results of the report; None if no run is finished.
    """
    from distill.report.study import results, terminal, write
    from distill.study import analysis

    table = StudyTable.read(workdir / "runs.csv")
    if not table.runs:
        return None
    page, current = workdir / "report" / "index.html", analysis.is_up_to_date(table)
    if not (page.exists() and current):
        process.cache_compilations()
        analysis.advise(config, analysis.fit(config, table), table)
    study = results.load(table)
    if not (page.exists() and current):
        write.write(study)
    console.print(terminal.summary(study))
    if sentence := analysis.entropy_sentence(config, study.laws):
        console.print(sentence, highlight=False)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return study


def _end(study: "Results", workdir: Path, console: Console) -> None:
    """Prints the lessons and the commands to try next."""
    from distill.report.study import terminal
    from distill.study import analysis

    console.print()
    console.print(terminal.ending(study))
    console.print("[bold]To try next:[/]")
    for command in analysis.next_commands(workdir, study):
        # Not wrapped, so that it can be copied.
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def _listing(tasks: list[matrix.PlannedRun]) -> Table:
    table = Table(title=f"{len(tasks)} runs, {sum(t.flops for t in tasks):.3g} FLOPs of training", title_justify="left")
    for name in ("run", "fingerprint", "stage", "N", "D", "FLOPs"):
        table.add_column(name, justify="left" if name in ("run", "fingerprint") else "right")
    for task in tasks:
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        table.add_row(task.name, task.run, str(task.stage), f"{N:,d}", f"{D:,d}", f"{task.flops:.3g}")
    return table
