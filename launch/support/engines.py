"""The backends that run units of a study or sweep on other machines, from their names and flags."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.config import ConfigError

if TYPE_CHECKING:
    from distill.study.driver import Engine
    from distill.study.elsewhere import Study

NAMES = ("slurm", "ray", "gke")
WANTED = "slurm, ray or gke"
_SCRIPT = Path(__file__).parents[1] / "slurm.sh"

Prepare = Callable[[Console], "Study"]
Made = Callable[["Study"], "AbstractContextManager[Engine]"]


def check(backend: str, flags: str, follow: bool = False) -> None:
    """Raises ConfigError for flags that the backend does not have, before anything is written or sent."""
    if flags and backend not in NAMES:
        raise ConfigError(f"--backend={backend} takes no --engine; wanted --backend={WANTED}")
    if follow and backend != "slurm":
        raise ConfigError(f"--backend={backend} takes no --follow: it stays until the end by itself")
    options = shlex.split(flags)
    if backend == "slurm":
        from distill.study import slurm

        slurm.check(options)
    elif backend == "gke":
        from launch.gke import engine

        engine.check(options)
    elif backend == "ray":
        from distill.study.ray_options import RayOptions

        RayOptions.parse(flags)


def run(backend: str, workdir: Path, prepare: Prepare, flags: str, follow: bool = False) -> int:
    """Runs what is left on a backend of NAMES; `prepare` makes the folder ready, under its lock.

    Returns 1 where runs are missing at the end, else 0; for slurm, which is not waited for without `follow`, 0.
    """
    from distill.study import elsewhere

    if backend == "slurm":
        return elsewhere.submit(workdir, prepare, script=_SCRIPT, flags=shlex.split(flags), follow=follow)
    return elsewhere.drive(workdir, prepare, _ray(flags) if backend == "ray" else _gke(shlex.split(flags)))


def _ray(flags: str) -> Made:
    try:
        from distill.study import ray_engine
    except ImportError as error:
        raise ConfigError(f"--backend=ray: {error}; pip install -e '.[ray]'") from None
    options = ray_engine.RayOptions.parse(flags)
    return lambda study: ray_engine.RayEngine(study.workdir, study.command, options)


def _gke(options: Sequence[str]) -> Made:
    from launch.gke.engine import GkeEngine

    return lambda study: GkeEngine(study.workdir, study.command, options)
