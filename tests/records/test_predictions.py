"""The ledger: a prediction stands as it was first made, and only one made before its run counts."""

import dataclasses

import pytest

from distill.records.predictions import PredictionRecord, PredictionTable, coverage
from distill.records.runs import RunRecord, TableError

RUN = RunRecord(
    run="r0", kind="supervised", N=25_000, D=500_000, D_unique=500_000, loss=1.73, loss_se=0.004, L_T=None,
    teacher=None, N_T=None, D_T=None, flops_student=1e11, flops_teacher=0.0, lambda_=None, tau=None, seed=0,
    trunk="t0", model="32x2", tokenizer="bytes", bits_per_byte=2.5, kl=None, agreement=None, ece=0.02,
    start="2026-01-01T12:00:00+00:00", end="2026-01-01T12:01:00+00:00", machine="m", commit="c",
)  # fmt: skip
SAID = PredictionRecord(
    run="r0", N=25_000, D=500_000, L_T=None, predicted=1.72, lower=1.70, upper=1.75, level=0.9, law="supervised",
    made="2026-01-01T11:00:00+00:00",
)  # fmt: skip


def test_a_prediction_survives_the_file_and_a_second_one_does_not_replace_it(tmp_path):
    table = PredictionTable(tmp_path / "predictions.csv")
    table.add([SAID, dataclasses.replace(SAID, run="r1", L_T=2.1)])
    table.add([dataclasses.replace(SAID, predicted=1.74)])
    assert table.load() == [SAID, dataclasses.replace(SAID, run="r1", L_T=2.1)]
    header = (tmp_path / "predictions.csv").read_text().splitlines()[0]
    assert header == "run,N,D,L_T,predicted,lower,upper,level,law,made"


@pytest.mark.parametrize("change", [{"lower": 1.73}, {"upper": 1.71}, {"level": 90.0}, {"predicted": float("nan")}])
def test_an_interval_that_cannot_be_is_refused_and_nothing_is_written(tmp_path, change):
    table = PredictionTable(tmp_path / "predictions.csv")
    with pytest.raises(TableError, match="run r0"):
        table.add([SAID, dataclasses.replace(SAID, **change)])
    assert not table.path.exists()


def test_coverage_counts_finished_runs_predicted_before_they_began():
    late = "2026-01-01T12:00:01+00:00"
    runs = [dataclasses.replace(RUN, run=f"r{i}", loss=loss) for i, loss in enumerate((1.70, 1.75, 1.7501, 1.72))]
    predictions = [dataclasses.replace(SAID, run=f"r{i}") for i in range(3)]
    predictions += [dataclasses.replace(SAID, run="r3", made=late), dataclasses.replace(SAID, run="unfinished")]
    assert coverage(predictions, runs) == (2, 3)
    assert coverage(predictions, {record.run: record for record in runs}) == (2, 3)
    twice = [dataclasses.replace(SAID, run="r3", made=late), dataclasses.replace(SAID, run="r3")]
    assert coverage(twice, runs) == (1, 1)
    assert coverage([], runs) == (0, 0)


def test_times_without_a_zone_are_utc_and_nonsense_is_named():
    local = dataclasses.replace(SAID, made="2026-01-01T12:00:00")
    assert coverage([local], [RUN]) == (1, 1)
    with pytest.raises(TableError, match="yesterday"):
        coverage([dataclasses.replace(SAID, made="yesterday")], [RUN])
