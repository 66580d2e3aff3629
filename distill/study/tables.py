"""runs.csv and curves.csv of a study or sweep, from the folders of its finished runs. One process writes them."""

from collections.abc import Sequence
from pathlib import Path

from distill.records.logger import read_metrics
from distill.records.runs import CurvePoint, CurveTable, RunRecord, RunTable, load_record
from distill.study.matrix import PlannedRun


class Tables:
    """Adds finished runs to both tables, each once; whoever uses it holds the lock of the workdir."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._runs, self._curves = RunTable(workdir / "runs.csv"), CurveTable(workdir / "curves.csv")
        self._curved = {point.run for point in self._curves.load()}
        self.runs = set(self._runs.runs())  # in runs.csv, by fingerprint

    def add(self, record: RunRecord) -> None:
        """Adds a run, its curve first: a run with a row has its curve."""
        if record.run not in self._curved:
            each, run = record.flops_student / record.D, record.run
            self._curves.append(
                [
                    CurvePoint(run=run, step=m["step"], tokens=m["tokens"], flops=each * m["tokens"], loss=m["ntp"])
                    for m in read_metrics(self._workdir / "runs" / run / "metrics.jsonl")
                ]
            )
            self._curved.add(run)
        if record.run not in self.runs:
            self._runs.add(record)
            self.runs.add(record.run)

    def collect(self, tasks: Sequence[PlannedRun]) -> None:
        """Adds the runs that are finished and have no row: a unit, or a study that was killed, left them."""
        for task in tasks:
            if task.run not in self.runs and (record := finished(self._workdir, task)) is not None:
                self.add(record)


def finished(workdir: Path, task: PlannedRun) -> RunRecord | None:
    """The row of a finished run, from its folder; None if it is not finished."""
    return load_record(workdir / "runs" / task.run / "result.json")
