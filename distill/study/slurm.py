"""A study as jobs of a Slurm cluster: one a unit, held together by Slurm's own dependencies. No process of ours waits.

What Slurm 22.05 does (tests/launch/slurm/study.sh): a dependency on a job that it does not know is taken as met, so
only jobs that it lists now are named, and what is finished is known by its files. A dependency that has failed stays
failed, so such a job is cancelled (--kill-on-invalid-dep), and the next submission sends it again.
"""

import getpass
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.config import ConfigError, DistillError, chips, nearest
from distill.study.board import Board
from distill.study.units import Unit
from distill.system.files import atomic_write, loads

JOBS = "jobs.json"  # {job: {"name": ..., "keys": [...]}} of the submissions so far


FLAGS = ("tasks-per-node", "gpus-per-node", "time", "grace", "sbatch")  # of launch/slurm.sh that are the user's to give


class SlurmError(DistillError):
    """Slurm refused a command, with its own words."""


class Jobs:
    """The jobs of the study in `workdir`; `script` is launch/slurm.sh, `flags` are its flags for every job."""

    def __init__(self, workdir: Path, script: Path, flags: Sequence[str]):
        self._workdir, self._script, self._flags = workdir, script, list(flags)
        # Singleton goes by name: two studies whose folders have one name must not wait for each other.
        self._prefix = f"{workdir.name}-{hashlib.sha256(str(workdir).encode()).hexdigest()[:4]}"
        self._known = _read(workdir / JOBS)

    def alive(self) -> dict[str, str]:
        """The job that Slurm lists now for each key of the study: runs, PREDICT, CONCLUDE."""
        if not self._known:
            return {}
        listed = dict(
            line.split(maxsplit=1) for line in _slurm("squeue", "-h", f"--user={getpass.getuser()}", "-o", "%A %j")
        )
        return {
            key: job
            for job, (name, keys) in self._known.items()
            if listed.get(job) == name  # ids begin anew where a cluster is set up again
            for key in keys
        }

    def submit(self, units: Sequence[Unit], alive: Mapping[str, str], command: Sequence[str]) -> int:
        """Submits units, each after what it needs, which may be in the jobs that are `alive`. Raises SlurmError."""
        jobs = dict(alive)
        try:
            for unit in units:
                needs = sorted({jobs[key] for key in unit.needs}, key=int)
                after = sorted({jobs[key] for key in unit.after} - set(needs), key=int)
                conditions = [*_condition("afterok", needs), *_condition("afterany", after), "singleton"]
                name = f"{self._prefix}.{unit.name}"
                job = self._submit(name, unit, ",".join(conditions), command)
                self._known[job] = name, sorted(unit.keys)
                jobs |= dict.fromkeys(unit.keys, job)
        finally:  # what was submitted before an error is known to the next submission
            tree = {job: {"name": name, "keys": keys} for job, (name, keys) in self._known.items()}
            atomic_write(self._workdir / JOBS, json.dumps(tree, indent=1) + "\n")
        return len(units)

    def _submit(self, name: str, unit: Unit, dependency: str, command: Sequence[str]) -> str:
        place, logs = unit.place, self._workdir / "logs"
        logs.mkdir(exist_ok=True)
        own = [f"--name={name}", f"--nodes={place.hosts}", f"--logs={logs}", f"--dependency={dependency}"]
        own += [f"--time={place.time}"] if place.time else []
        if place.chip and (node := chips.find(place.chip).node):
            own.append(f"--gpus-per-node={min(place.chips, node)}")
        lines = _slurm("bash", str(self._script), *self._flags, *own, "--", *command, f"--part={unit.part}")
        return lines[-1].split()[-1]

    def follow(self, board: Board, every: float = 5.0) -> None:
        """Prints the lines of a board until none of the study's jobs is left."""
        while self.alive():
            board.refresh()
            time.sleep(every)
        board.refresh()


def check(flags: Sequence[str]) -> None:
    """Raises ConfigError for a flag that launch/slurm.sh does not have, or that follows from the study."""
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or name not in FLAGS or not value:
            wanted = ", ".join(f"--{each}=" for each in FLAGS)
            raise ConfigError(
                f"flags of Slurm: got {flag!r}, wanted {wanted}{nearest(name, FLAGS)} Flags of sbatch itself go into "
                "--sbatch, as in --sbatch=--partition=gpu; names, hosts and order follow from the study"
            )


def refuse_beside_jobs(workdir: Path) -> None:
    """Raises SlurmError where jobs of this study are in the queue: this machine would train their runs too."""
    if (workdir / JOBS).exists() and shutil.which("squeue") and (alive := Jobs(workdir, Path(), ()).alive()):
        raise SlurmError(
            f"{workdir}: {len(set(alive.values()))} jobs of it are in the queue of Slurm; wait for them "
            "(--backend=slurm --follow), or cancel them with scancel"
        )


def _condition(kind: str, jobs: Sequence[str]) -> list[str]:
    return [":".join([kind, *jobs])] if jobs else []


def _slurm(*command: str) -> list[str]:
    """The lines that a command prints. Raises SlurmError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise SlurmError(f"there is no {command[0]} here; run this on a login node of the cluster") from None
    if done.returncode:
        raise SlurmError((done.stderr.strip() or f"{command[0]} ended with {done.returncode}").removeprefix("error: "))
    return done.stdout.splitlines()


def _read(path: Path) -> dict[str, tuple[str, list[str]]]:
    if not path.exists():
        return {}
    try:
        return {
            job: (str(it["name"]), list(map(str, it["keys"]))) for job, it in loads(path.read_text("utf-8")).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SlurmError(f"{path}: cannot be read ({error}); delete it once no job of the study is queued") from None
