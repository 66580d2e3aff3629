"""A study's runs.csv, read once for its laws, predictions, plan and report.

Standard library only.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

from distill.records.runs import RunRecord, RunTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyTable:
    """The finished runs of a table in the order of its rows, with the hash of its file."""

    path: Path
    runs: tuple[RunRecord, ...]
    sha256: str  # of the file's bytes, as a law file keeps it; '' where there is no file

    @classmethod
    def read(cls, path: str | Path) -> "StudyTable":
        """Reads WORKDIR/runs.csv, or another table of this kind; a missing file is an empty table.

        Raises TableError if the file is not such a table.
        """
        path = Path(path)
        if not path.exists():
            return cls(path=path, runs=(), sha256="")
        content = path.read_bytes()
        runs = tuple(RunTable(path).parse(content))
        return cls(path=path, runs=runs, sha256=hashlib.sha256(content).hexdigest())

    @property
    def workdir(self) -> Path:
        """The folder of the study."""
        return self.path.parent

    @functools.cached_property
    def by_fingerprint(self) -> dict[str, RunRecord]:
        """Every run by its config's fingerprint."""
        return {run.run: run for run in self.runs}

    @functools.cached_property
    def supervised(self) -> tuple[RunRecord, ...]:
        """The runs without a teacher."""
        return tuple(run for run in self.runs if run.kind == "supervised")

    @functools.cached_property
    def distilled(self) -> tuple[RunRecord, ...]:
        """The students of a teacher's signal."""
        return tuple(run for run in self.runs if run.kind == "distillation")

    @functools.cached_property
    def teachers(self) -> tuple[RunRecord, ...]:
        """The runs of this table that teach others."""
        names = {teacher for run in self.distilled for teacher in run.teachers}
        return tuple(run for run in self.runs if run.run in names)
