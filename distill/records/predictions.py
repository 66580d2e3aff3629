"""predictions.csv: the loss that a law predicted for each run, written before the run began.

Once a study has a fitted law, it appends one PredictionRecord per run before that run starts, and never changes it.
`coverage` counts how often the measured loss was inside the interval. Standard library only.
"""

import dataclasses
import datetime
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from distill.records.runs import RecordTable, RunRecord, TableError
from distill.system.files import atomic_write, loads

CARRIED = "prediction.json"  # in a run's folder: the prediction that was there when the run began


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """A run's expected loss and its interval (nats per token), written before the run started."""

    run: str  # the config's fingerprint
    N: int
    D: int
    L_T: float | None  # None for a supervised run
    predicted: float
    lower: float
    upper: float
    level: float  # of the interval: 0.9
    law: str  # name or hash of the law file
    made: str  # ISO time

    def contains(self, loss: float) -> bool:
        """Whether the interval contains a loss."""
        return self.lower <= loss <= self.upper


class PredictionTable(RecordTable[PredictionRecord]):
    """predictions.csv: each run is predicted once; rows are never changed."""

    def __init__(self, path: str | Path):
        super().__init__(path, PredictionRecord)

    def add(self, predictions: Iterable[PredictionRecord]) -> None:
        """Adds the predictions of runs that have none yet. Raises TableError if lower > upper."""
        known = self.by_run()
        new: dict[str, PredictionRecord] = {}
        for prediction in predictions:
            if not prediction.lower <= prediction.predicted <= prediction.upper or not 0 < prediction.level < 1:
                raise TableError(
                    f"{self.path}: the prediction of run {prediction.run} is {prediction.predicted} within "
                    f"[{prediction.lower}, {prediction.upper}] at level {prediction.level}; wanted "
                    "lower <= predicted <= upper and a level between 0 and 1"
                )
            if prediction.run not in known:
                new.setdefault(prediction.run, prediction)
        if new:
            self.append(list(new.values()))

    def by_run(self) -> dict[str, PredictionRecord]:
        """The first prediction of every run."""
        first: dict[str, PredictionRecord] = {}
        for prediction in self.load():
            first.setdefault(prediction.run, prediction)
        return first


def carry(folder: Path, prediction: PredictionRecord) -> None:
    """Leaves in a run's folder, before the run begins, the prediction that it begins under."""
    atomic_write(folder / CARRIED, json.dumps(dataclasses.asdict(prediction), indent=1) + "\n")


def carried(workdir: Path, predictions: Iterable[PredictionRecord]) -> frozenset[str]:
    """The runs of a study that began with exactly these predictions in their folders."""

    def holds(prediction: PredictionRecord) -> bool:
        try:
            text = (workdir / "runs" / prediction.run / CARRIED).read_text("utf-8")
            return bool(loads(text) == dataclasses.asdict(prediction))
        except (OSError, ValueError):
            return False

    return frozenset(prediction.run for prediction in predictions if holds(prediction))


def settled(
    predictions: Iterable[PredictionRecord],
    runs: Mapping[str, RunRecord] | Iterable[RunRecord],
    carried: Collection[str] = (),
) -> Iterator[tuple[PredictionRecord, RunRecord]]:
    """Every prediction whose run has finished, with that run; predictions made after the run started are excluded.

    Runs that `carried` their prediction began after it. The times of the others are compared, as those of one machine:
    a run of another machine carries its prediction.
    """
    finished = runs if isinstance(runs, Mapping) else {record.run: record for record in runs}
    seen: set[str] = set()
    for prediction in predictions:
        record = finished.get(prediction.run)
        if record is None or prediction.run in seen:
            continue
        if prediction.run not in carried and _time(prediction.made) > _time(record.start):
            continue
        seen.add(prediction.run)
        yield prediction, record


def coverage(
    predictions: Iterable[PredictionRecord],
    runs: Mapping[str, RunRecord] | Iterable[RunRecord],
    carried: Collection[str] = (),
) -> tuple[int, int]:
    """(inside, total): finished runs whose loss fell inside their predicted interval, and all that were predicted."""
    hits = [prediction.contains(record.loss) for prediction, record in settled(predictions, runs, carried)]
    return sum(hits), len(hits)


def _time(text: str) -> datetime.datetime:
    """An ISO time; one without a zone is taken as UTC."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise TableError(f"predictions: got the time {text!r}, wanted one such as 2026-01-31T12:00:00+00:00") from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
