"""Event files, read by TensorBoard's own reader."""

import pytest

from distill.records import tensorboard


def test_the_checksum_is_that_of_the_rfc():
    """RFC 3720, B.4, and the check value of the polynomial."""
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA
    assert tensorboard.crc32c(b"\xff" * 32) == 0x62A8AB43


def test_tensorboard_reads_what_was_written(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    want = [(1, 1000.25, 2.5), (300, 1001.5, -1e-3), (2**40, 1002.0, 3e38)]
    writer = tensorboard.EventWriter(tmp_path)
    for step, wall, value in want:
        writer.add(step, wall, {"loss": value, "a/long name, ünïcode": 1.0})
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "a/long name, ünïcode"}
    got = [(event.step, event.wall_time, event.value) for event in found.Scalars("loss")]
    assert [(step, wall) for step, wall, _ in got] == [(step, wall) for step, wall, _ in want]
    assert [value for *_, value in got] == pytest.approx([value for *_, value in want], rel=1e-6)


def test_a_resumed_run_opens_another_file(tmp_path):
    for step in (1, 2):
        tensorboard.EventWriter(tmp_path).add(step, 0.0, {"x": 1.0})
    assert len(list(tmp_path.iterdir())) == 2
