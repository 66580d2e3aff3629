"""A study from its config to its report, in one call that may be killed and repeated at any moment."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distill import config as configs
from distill import data
from distill.config import ConfigError, StudyExperimentConfig, counts
from distill.study import ablations, matrix, scheduler, workers
from distill.system import files, process


def run(config: StudyExperimentConfig, workdir: str | Path, *, dry_run: bool = False, command: str = "") -> int:
    """Runs what is left of a study, fits its laws and writes its report; returns 1 where runs failed, else 0.

    Before the largest students start, the laws so far predict them (the prediction ledger). Leaves config.txt, data/,
    runs/, trunks/, runs.csv, curves.csv, predictions.csv, laws/ and report/ in `workdir`, and study.json: the
    `command` that was given and the names of all planned runs, so that a report can tell what is missing.
    """
    console, workdir = Console(), Path(workdir).resolve()
    tasks = matrix.expand(config, workdir)
    if not tasks:
        raise ConfigError("config.study: there is nothing to run; give study.models and study.supervised at least")
    if dry_run:
        console.print(_listing(tasks))
        return 0
    with process.sole(workdir):
        return _run(config, workdir, command, console)


def _run(config: StudyExperimentConfig, workdir: Path, command: str, console: Console) -> int:
    began = time.monotonic()
    store = data.open_store(config.data, config.data.cache or workdir / "data")
    config = dataclasses.replace(config, data=config.data.identified(store.fingerprint))
    tasks = matrix.expand(config, workdir)  # anew: text from outside the package is part of what a run is
    files.atomic_write(workdir / "config.txt", configs.to_text(config))
    note: dict[str, Any] = {"command": command, "planned": {task.run: task.name for task in tasks}}
    note["ablated"] = {
        task.run: {"base": task.base, "settings": task.settings, "plain": task.config.objective == config.objective}
        for task in tasks
        if task.base
    }
    varied = ablations.settings(config)
    note["values"] = {s.field: [t.value for t in varied if t.field == s.field] for s in varied}
    files.atomic_write(workdir / "study.json", json.dumps(note, indent=1) + "\n")
    done = workers.collect(workdir, tasks)
    todo = [task for task in tasks if task.run not in done]
    console.print(f"{len(tasks)} runs, {len(tasks) - len(todo)} of them finished, in {workdir}", highlight=False)

    found: Any = None  # the laws so far
    said_last = False

    def before_start(starting: Sequence[matrix.Planned]) -> None:
        """Predicts runs just before they start: the last stage from all others, and what is added to a study that has
        a law already from what was finished when this call began. A run that had begun before is not predicted."""
        nonlocal found, said_last
        last = starting[0].stage == matrix.LAST
        if said_last or not (last or found or (workdir / "laws" / "supervised.json").exists()):
            return
        from distill.study import analysis as conclude  # jax, and seconds

        if last or found is None:
            process.cache_compilations()
            found = conclude.fit(config, workdir)
        asked = [t for t in todo if t.stage == matrix.LAST] if last else starting
        new = [t for t in asked if not (workdir / "runs" / t.run / "config.txt").exists()]
        said = conclude.predict(found, new, workdir)
        if last:
            said_last = True
            console.print(f"predicted {said} runs before they start", highlight=False)

    outcome = scheduler.run_all(tasks, done, workdir, config.study.workers, before_start, console, config.study.pack)
    _conclude(config, workdir, console)
    console.print(f"{time.monotonic() - began:.0f} s in all", highlight=False)
    for name, line in outcome.failed.items():
        console.print(f"[red]failed[/] {name}: {line}; run the same command to try it again", highlight=False)
    return 1 if outcome.failed else 0


def _conclude(config: StudyExperimentConfig, workdir: Path, console: Console) -> None:
    from distill.report.study import results, terminal
    from distill.report.study import write as page
    from distill.study import analysis as conclude

    if not (workdir / "runs.csv").exists():
        return
    path = workdir / "report" / "index.html"
    if not (path.exists() and conclude.concluded(workdir)):
        process.cache_compilations()
        conclude.advise(config, conclude.fit(config, workdir), workdir)
        path = page.write(workdir)
    found = results.load(workdir)
    console.print(terminal.summary(found))
    if said := conclude.truth(config, found.laws):
        console.print(said, highlight=False)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


def _listing(tasks: list[matrix.Planned]) -> Table:
    table = Table(title=f"{len(tasks)} runs, {sum(t.flops for t in tasks):.3g} FLOPs of training", title_justify="left")
    for name in ("run", "fingerprint", "stage", "N", "D", "FLOPs"):
        table.add_column(name, justify="left" if name in ("run", "fingerprint") else "right")
    for task in tasks:
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        table.add_row(task.name, task.run, str(task.stage), f"{N:,d}", f"{D:,d}", f"{task.flops:.3g}")
    return table
