"""Megatron-LM's tar shards: files that torch wrote after its source (megatron_writer.py), and damaged ones."""

import contextlib
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from distill.errors import ConfigError, SignalError
from distill.teacher.imported import megatron
from distill.teacher.imported.store import import_signals
from tests.teacher.imported.megatron_writer import COUNT, FILES, meta_of, order_of, samples, table, write_tar
from tests.teacher.imported.written import columns, content, wanted, write_lines

NAME, MEMBER, EACH = "dp0__0-8.tar", "0-8.pt.zst", 4  # of an iteration: shard, member, samples on a rank


def member():
    """The first iteration of the first rank, as it lies in its shard."""
    with tarfile.open(FILES / "2" / f"dp0__0-{COUNT}.tar") as tar:
        return tar.extractfile(MEMBER).read()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("longer", [True, False])
def test_shards_are_read_as_the_same_rows_in_columns(version, longer, tmp_path):
    tokens, log_probs = samples(COUNT)
    shown = tokens if longer else tokens[:, :-1]
    given = table(tmp_path / "samples.npy", shown)
    import_signals(wanted(str(FILES / str(version)), samples=given), tmp_path / "out")
    # columns() rolls: its row t is about token t, here about token t + 1.
    about = [np.roll(np.pad(log_probs[n], ((0, int(longer)), (0, 0))), 1, axis=0) for n in order_of(COUNT)]
    lines = [columns(shown[n].tolist(), said) for n, said in zip(order_of(COUNT), about)]
    for line in lines:
        for name in ("target_token_ids", "target_logprobs"):
            line[name] = line[name][:-1]
    import_signals(wanted(write_lines(tmp_path / "a.jsonl", lines)), tmp_path / "other")
    for one, other in zip(content(tmp_path / "out"), content(tmp_path / "other"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_order_of_samples_is_refused(tmp_path):
    tokens, _ = samples(COUNT)
    shuffled = table(tmp_path / "s.npy", tokens[np.random.default_rng(1).permutation(COUNT)])
    with pytest.raises(SignalError, match="wanted the samples in the order in which training read them"):
        import_signals(wanted(str(FILES / "2"), samples=shuffled), tmp_path / "out")


def test_damaged_shards_are_refused(tmp_path):
    good = member()
    file = write_tar(tmp_path / NAME, [(MEMBER, good)], meta_of(2))
    given = Path(table(tmp_path / "s.npy", samples(COUNT)[0]))
    assert len(list(megatron.read(file, given))) == EACH
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for cut in random.integers(1024, len(good), 30).tolist():
        file.write_bytes(whole[: 512 + cut])
        with pytest.raises(SignalError, match=re.escape(str(file))):
            list(megatron.read(file, given))
        flipped = bytearray(good)
        flipped[cut] ^= int(random.integers(1, 256))
        write_tar(file, [(MEMBER, bytes(flipped))], meta_of(2))
        with contextlib.suppress(SignalError):  # it may be another number; nothing else is raised
            list(megatron.read(file, given))


@pytest.mark.parametrize(
    "name, meta, words",
    [
        ("cp1_dp0__3.tar", meta_of(1), "context-parallel rank 1"),
        ("words.tar", meta_of(1), "wanted a shard of Megatron-LM's"),
        (NAME, {"saver": {"format_version": 3}}, "format_version is 3, wanted 1 or 2"),
        ("dp5__0-8.tar", meta_of(2), "rank 5 of dp_size_save 2"),
        (NAME, [], "_meta.json has no saver"),
    ],
)
def test_shards_of_another_kind_are_refused(name, meta, words, tmp_path):
    file = write_tar(tmp_path / name, [(MEMBER, member())], meta)
    with pytest.raises(SignalError, match=words):
        list(megatron.read(file, Path(table(tmp_path / "s.npy", samples(COUNT)[0]))))


def test_the_table_of_samples_is_checked(tmp_path):
    tokens, _ = samples(COUNT)
    source = str(FILES / "2")
    with pytest.raises(SignalError, match="hold no tokens; add --samples=FILE.npy"):
        import_signals(wanted(source), tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no such file"):
        import_signals(wanted(source, samples=str(tmp_path / "none.npy")), tmp_path / "out")
    bad = {
        "wanted whole numbers": tokens.astype(np.float32),
        "wanted whole numbers .samples, positions.": tokens[0],
        "it holds sample 21, and --samples has 17 rows": tokens[:17],
        "signals of 24 positions and --samples of 20, wanted 24 or 25": tokens[:, :20],
        "not a file of numpy.save": np.array([None, {}]),
    }
    for words, value in bad.items():
        np.save(tmp_path / "s.npy", value, allow_pickle=True)
        with pytest.raises(SignalError, match=words):
            import_signals(wanted(source, samples=str(tmp_path / "s.npy")), tmp_path / f"out-{len(words)}")
