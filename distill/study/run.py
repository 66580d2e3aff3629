"""Runs a study from its config to its report, in one call that may be killed and repeated at any moment."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill import config as configs
from distill import data
from distill.config import ConfigError, StudyExperimentConfig
from distill.records.study_table import StudyTable
from distill.study import ablations, driver, ledger, matrix, slurm
from distill.study.execute import execute, print_failures
from distill.system import cloud, files, process

if TYPE_CHECKING:
    from distill.report.study.results import Results


def run(config: StudyExperimentConfig, workdir: str | Path, *, command: str = "") -> int:
    """Runs the remaining runs of a study, fits its laws and writes its report; returns 1 if runs failed, else 0.

    Before the largest students start, the laws fitted so far predict them (predictions.csv). Writes config.txt, data/,
    runs/, trunks/, runs.csv, curves.csv, predictions.csv, laws/ and report/ in `workdir`, and study.json: the
    `command` that was given and the names of all planned runs. Raises ConfigError for a matrix without a run.
    """
    console, workdir = Console(), shared_folder(workdir)
    matrix.refuse_several_hosts(planned(config, workdir))
    slurm.refuse_beside_jobs(workdir)
    with process.folder_lock(workdir):
        driver.refuse_beside(workdir)
        began = time.monotonic()
        config, tasks = prepare(config, workdir)
        outcome = execute(
            tasks,
            workdir,
            console,
            note=note(config, tasks, command),
            n_workers=config.study.workers,
            pack=config.study.pack,
            before_start=ledger.Predictor(config, workdir, tasks, console),
        )
        study = _analyse(config, workdir, console)
        console.print(f"{time.monotonic() - began:.0f} s in all", highlight=False)
        if study is not None:
            _end(study, workdir, console)
        return print_failures(outcome, console)


def shared_folder(workdir: str | Path) -> Path:
    """The folder of a study.

    Raises ConfigError for a file, or a bucket: tables are appended to under locks, which it has not.
    """
    if cloud.remote(workdir):
        raise ConfigError(
            f"--workdir={workdir}: a study or sweep needs a file system with locks that all its hosts see; wanted a "
            "folder (NFS, Lustre, Filestore); only a single `distill train` may have its workdir in a bucket"
        )
    folder = Path(workdir).resolve()
    if folder.is_file():
        raise ConfigError(
            f"--workdir={workdir}: got a file, wanted the folder of the study, which may be new; a config file goes "
            "to --config=FILE.py:PRESET, and `distill report` reads a table"
        )
    return folder


def prepare(config: StudyExperimentConfig, workdir: Path) -> tuple[StudyExperimentConfig, list[matrix.PlannedRun]]:
    """Builds the token store and writes config.txt; returns the config and the runs under the names that they keep."""
    store = data.open_store(config.data, config.data.cache or workdir / "data")
    config = dataclasses.replace(config, data=config.data.identified(store.fingerprint))
    tasks = matrix.expand(config, workdir)  # again: a run's fingerprint includes that of outside text
    files.atomic_write(workdir / "config.txt", configs.to_text(config))
    return config, tasks


def prepared(workdir: Path) -> tuple[StudyExperimentConfig, list[matrix.PlannedRun]]:
    """The study that `prepare` left in a folder. Raises ConfigError where there is none."""
    path = workdir / "config.txt"
    if not path.exists():
        raise ConfigError(
            f"{workdir}: there is no study in it (no config.txt); start one by distill study --config=..."
        )
    config = configs.from_text(StudyExperimentConfig, path.read_text("utf-8"), str(path))
    return config, planned(config, workdir)


def conclude(config: StudyExperimentConfig, workdir: Path, console: Console) -> None:
    """Fits the laws to runs.csv, writes plan and report, prints their short form."""
    study = _analyse(config, workdir, console)
    if study is not None:
        _end(study, workdir, console)


def planned(config: StudyExperimentConfig, workdir: Path) -> list[matrix.PlannedRun]:
    """All runs of a study. Raises ConfigError for a matrix without one."""
    tasks = matrix.expand(config, workdir)
    if not tasks:
        raise ConfigError("config.study: there is nothing to run; give study.models and study.supervised at least")
    return tasks


def note(config: StudyExperimentConfig, tasks: Sequence[matrix.PlannedRun], command: str) -> dict[str, object]:
    """What study.json says of a study beside its runs: the command, and the settings of an ablation."""
    return {"command": command, **_ablation_note(config, tasks)}


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
