"""A sweep on other machines: sweep.json in its folder, from which jobs and later submissions know its runs."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig
from distill.study.elsewhere import Study
from distill.study.execute import write_note
from distill.study.matrix import PlannedRun
from distill.study.sweep import Axis, SweepOptions, expand
from distill.study.tables import Tables
from distill.system import files

SWEEP = "sweep.json"


def opened(
    config: ExperimentConfig, axes: Sequence[Axis], workdir: Path, options: SweepOptions, console: Console
) -> Study:
    """Prepares the folder of a sweep: text, sweep.json, study.json, the tables of what is finished.

    The caller holds the lock of the folder. Raises ConfigError for an impossible value, before anything is written.
    """
    tasks = expand(config, axes, workdir, options.where, options.places)
    tree = {
        "config": configs.to_text(config),
        "axes": [dataclasses.asdict(each) for each in axes],
        "where": options.where,
        "places": options.places,
    }
    files.atomic_write(workdir / SWEEP, json.dumps(tree, indent=1) + "\n")
    write_note(tasks, workdir, {"command": shlex.join(options.overrides)})
    tables = Tables(workdir)
    tables.collect(tasks)
    done = frozenset(task.run for task in tasks if task.run in tables.runs)
    console.print(f"{len(tasks)} runs, {len(done)} of them finished, in {workdir}", highlight=False)
    part = ("python", "-m", "launch.sweep", f"--workdir={workdir}")
    return Study(workdir=workdir, tasks=tasks, done=done, command=part)


def is_sweep(workdir: Path) -> bool:
    """Whether a sweep was given to a backend in this folder."""
    return (workdir / SWEEP).exists()


def prepared(workdir: Path) -> list[PlannedRun]:
    """The runs of the sweep that `opened` left in a folder. Raises ConfigError for a damaged file."""
    path = workdir / SWEEP
    try:
        tree = files.loads(path.read_text("utf-8"))
        axes = [Axis(fields=tuple(it["fields"]), rows=tuple(map(tuple, it["rows"]))) for it in tree["axes"]]
        config = configs.from_text(ExperimentConfig, tree["config"], str(path))
        places = [str(line) for line in tree.get("places", ())]
        return expand(config, axes, workdir, str(tree["where"]), places)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); submit the sweep again") from None
