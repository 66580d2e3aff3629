"""Files of strangers: pickles that are read as data, masks of other lengths, sizes that are bounded."""

import contextlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from distill.errors import SignalError
from distill.teacher.imported import containers, plain_pickle, rows
from distill.teacher.imported.dialects import Reading, rows_of
from distill.teacher.imported.rows import BadRow
from distill.teacher.imported.store import import_signals
from tests.teacher.imported.written import K, columns, content, wanted, write_lines


def maxtext(folder, rows, protocol):
    """As MaxText's script writes: batches of packed rows with their segments, pickled, one record each."""
    module = pytest.importorskip("array_record.python.array_record_module")
    packed = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    batch = {
        name: np.zeros((2, 128, K), kind) for name, kind in (("top_k_indices", np.int32), ("top_k_logits", np.float32))
    }
    writer = module.ArrayRecordWriter(str(folder / "teacher_top_k_part_00000.array_record"), "group_size:1000")
    for i in range(0, len(packed), 2):
        made = {name: array.copy() for name, array in batch.items()}
        made |= {name: np.zeros((2, 128), np.int32) for name in ("tokens", "inputs_segmentation", "inputs_position")}
        for row, together in enumerate(packed[i : i + 2]):
            at = 0
            for segment, (ids, log_probs) in enumerate(together, 1):
                said, here = columns(ids, log_probs), (row, slice(at, at + len(ids)))
                made["tokens"][here], made["inputs_segmentation"][here] = ids, segment
                made["top_k_indices"][here] = said["target_token_ids"]
                made["top_k_logits"][here] = np.array(said["target_logprobs"]) + 5
                at += len(ids)
        writer.write(pickle.dumps(made, protocol=protocol))
    writer.close()


@pytest.mark.parametrize("protocol", [4, 5])
def test_maxtexts_pickles_are_read_as_data(protocol, reference, tmp_path):
    made, (ids, log_probs, tokens, weight) = reference
    (tmp_path / "in").mkdir()
    maxtext(tmp_path / "in", made, protocol)
    manifest = import_signals(wanted(str(tmp_path / "in")), tmp_path / "out")
    assert manifest["coverage"]["covered"] == pytest.approx(1)
    found = content(tmp_path / "out")
    np.testing.assert_array_equal(found[2], tokens)
    np.testing.assert_array_equal(found[3], weight)
    used = weight > 0
    np.testing.assert_array_equal(np.sort(found[0][used]), np.sort(ids[used]))
    scale = np.exp(log_probs[used]) / np.exp(log_probs[used]).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.sort(np.exp(found[1][used])), np.sort(scale), atol=0.03)


class Call:
    def __reduce__(self):
        return Path.touch, (Path("called-by-a-pickle"),)


@pytest.mark.parametrize(
    "value", [{"tokens": Call()}, {"tokens": np.array([None, 1])}, {"tokens": Path("x")}, print, 1j]
)
def test_no_pickle_is_run(value):
    for protocol in range(2, 6):
        with pytest.raises(BadRow, match="a record (is|holds) "):
            plain_pickle.load(pickle.dumps(value, protocol=protocol))
    assert not Path("called-by-a-pickle").exists()


def test_damaged_pickles_are_refused():
    content = pickle.dumps({"tokens": np.arange(6, dtype=">i4").reshape(2, 3), "a": [1, 2.5, None, True, (1, 2, 3, 4)]})
    whole = plain_pickle.load(content)
    assert whole["tokens"].tolist() == [[0, 1, 2], [3, 4, 5]] and whole["a"] == [1, 2.5, None, True, [1, 2, 3, 4]]
    random = np.random.default_rng(0)
    for cut in range(len(content)):
        with pytest.raises(BadRow):
            plain_pickle.load(content[:cut])
        flipped = bytearray(content)
        flipped[cut] ^= int(random.integers(1, 256))
        with contextlib.suppress(BadRow):  # nothing else is raised
            plain_pickle.load(bytes(flipped))


def test_a_pickle_that_names_its_lists_again_is_bounded():
    """A list of itself, and thirty lists of which each names the last one twice: 2^30 values in 300 bytes."""
    own: list = []
    own.append(own)
    many: list = [1]
    for _ in range(30):
        many = [many, many]
    deep: list = []
    for _ in range(40):
        deep = [deep]
    for value in (own, many, deep):
        with pytest.raises(BadRow, match="values or 32 levels"):
            plain_pickle.load(pickle.dumps(value))


PLAIN = {"input_ids": [1, 2, 3], "top_ids": [[], [4], [5]], "top_logprobs": [[], [-0.1], [-0.2]]}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"labels": [1, 2]}, "labels of 2 positions for 3 tokens"),
        ({"labels": [[1, 2, 3]]}, "labels is"),
        ({"attention_mask": [1, 1, 1, 0]}, "attention_mask of 4 positions for 3 tokens"),
        ({"target_mask": [[], [1]]}, r"target_mask \(2, 1\) and top_ids \(3, 1\)"),
        ({"target_mask": [[], [1, 1], [1, 1]]}, r"target_mask \(3, 2\) and top_ids"),
        ({"input_ids": [1, 2.5, 3]}, "input_ids is"),
        ({"input_ids": [1, float("nan"), 3]}, "input_ids is"),
        ({"top_ids": [[], [4.5], [5]]}, "got fractions"),
    ],
)
def test_what_does_not_fit_the_tokens_is_refused(fields, words, tmp_path):
    """A mask or labels of another shape was left out without a word, and a fraction was cut off."""
    with pytest.raises(BadRow, match=words):
        list(rows_of(PLAIN | fields, Reading()))
    path = write_lines(tmp_path / "a.jsonl", [PLAIN, PLAIN | fields])
    with pytest.raises(SignalError, match="row 2: ") as error:
        import_signals(wanted(path), tmp_path / "out")
    assert "\n" not in str(error.value)


def test_masks_leave_tokens_out():
    def made(**fields):
        (row,) = rows_of(PLAIN | fields, Reading())
        return row

    assert made().trained.tolist() == [True] * 3
    assert made(labels=[-100, -100, 3]).trained.tolist() == [False, False, True]
    assert made(labels=[-100, 2, 3], attention_mask=[1, 1, 0]).trained.tolist() == [False, True, False]
    assert made(target_mask=[[], [1], [0]]).top_ids.tolist() == [[-1], [4], [-1]]


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text(" " * 2000 + "\n")
    with pytest.raises(SignalError, match=r"line 1: it has over 1,000 bytes"):
        list(containers.read(path))
    monkeypatch.setattr(rows, "_SLOTS", 10)
    with pytest.raises(BadRow, match="4 positions of up to 3 entries"):
        rows.padded([[1, 2, 3], [], [], []], [[-1.0, -2.0, -3.0], [], [], []])
    wide = np.arange(70_000)
    with pytest.raises(BadRow, match="70,000 entries of a token"):
        rows.check(rows.of_arrays(np.array([1, 2]), np.stack([wide] * 2), np.full((2, 70_000), -12.0)), 70_000)


@pytest.mark.parametrize(
    "text", ["a: &a [1, 1]\nb: *a\n", "d: 256 # " + "x" * 70_000, "[" * 5000], ids=["alias", "long", "deep"]
)
def test_settings_of_a_codec_are_plain(text, tmp_path):
    (tmp_path / containers.CODEC).write_text(text)
    with pytest.raises(SignalError, match="is no config of DistillKit's codec") as error:
        containers.codec_beside(tmp_path / "data.parquet")
    assert "\n" not in str(error.value)
