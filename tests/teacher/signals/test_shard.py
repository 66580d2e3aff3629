"""Shards: every byte is vouched for, a killed writer's whole records stay, nothing lies where another belongs."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from distill.errors import SignalError
from distill.teacher.signals import writer
from distill.teacher.signals.shard import Name, Shard, ShardWriter

STORE = "ab" * 32
WINDOWS = np.arange(3, 40, 2)  # 19 windows: shards of 4, the last one short


def payload(window):
    """What stands for a packed signal: by its window alone, of another length each."""
    return np.random.default_rng(window).bytes(5 + window % 7)


def write(folder, **changes):
    options = {
        "per_shard": 4,
        "per_chunk": 3,
        "compute": lambda windows: windows.tolist(),
        "pack": lambda found, row, window: (found[row] % 5, payload(window)),
    }
    folder.mkdir(exist_ok=True)
    return writer.write(folder, STORE, WINDOWS, **options | changes)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def whole(tmp_path):
    """(folder, entries, its bytes) of a store that nothing interrupted."""
    entries = write(tmp_path / "whole")
    return tmp_path / "whole", entries, content(tmp_path / "whole")


def read_all(folder):
    found = {}
    for i in range(len(list(folder.iterdir()))):
        shard = Shard(folder / Name(STORE, i).file, Name(STORE, i))
        found |= dict(zip(shard.index["window"].tolist(), shard.read(range(len(shard.index)))))
    return found


def test_every_record_comes_back(whole):
    folder, entries, _ = whole
    assert read_all(folder) == {int(w): payload(w) for w in WINDOWS}
    assert [e["windows"] for e in entries] == [4, 4, 4, 4, 3]
    assert [e["first"] for e in entries] == WINDOWS[::4].tolist()
    assert max(e["most"] for e in entries) == 4


def test_every_flipped_byte_of_a_shard_is_found(whole):
    folder, _, _ = whole
    name = Name(STORE, 1)
    path = folder / name.file
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(SignalError, match=name.file):
            shard = Shard(path, name)
            shard.read(range(len(shard.index)))


def test_every_truncation_of_a_shard_is_found(whole):
    folder, _, _ = whole
    name = Name(STORE, 1)
    path = folder / name.file
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(SignalError, match=name.file):
            Shard(path, name)


def test_a_shard_or_a_record_in_the_place_of_another_is_found(whole):
    folder, _, _ = whole
    one, two = (folder / Name(STORE, i).file for i in (1, 2))
    shutil.copy(one, two)
    with pytest.raises(SignalError, match="begins with"):
        Shard(two, Name(STORE, 2))
    # The same bytes under a name that they would have had in another store: the digests know the store.
    other = Name("cd" * 32, 1)
    one.write_bytes(one.read_bytes().replace(STORE.encode(), other.store.encode()))
    with pytest.raises(SignalError, match="does not match its digest"):
        Shard(one, other)


def test_a_whole_record_of_another_store_is_found(tmp_path):
    """Of the same window and size, with its own header: only the key of its digest tells it apart."""
    records = {}
    for store, content in (("ab" * 32, b"mine!"), ("cd" * 32, b"yours")):
        (tmp_path / store).mkdir()
        part = ShardWriter(tmp_path / store, Name(store, 0))
        part.append(7, 1, content)
        part.finish()
        path = tmp_path / store / Name(store, 0).file
        place = Shard(path, Name(store, 0)).index["offset"][0]
        records[store] = (path, slice(int(place), int(place) + 37))
    (mine, here), (other, there) = records.values()
    whole = bytearray(mine.read_bytes())
    whole[here] = other.read_bytes()[there]
    mine.write_bytes(whole)
    with pytest.raises(SignalError, match="the record of window 7"):
        Shard(mine, Name("ab" * 32, 0)).read([0])


def test_a_missing_shard_is_named(whole):
    folder, _, _ = whole
    (folder / Name(STORE, 0).file).unlink()
    with pytest.raises(SignalError, match="shard-000000.signal: cannot be read"):
        Shard(folder / Name(STORE, 0).file, Name(STORE, 0))


def test_after_any_cut_the_store_ends_as_if_there_had_been_none(whole, tmp_path):
    """A kill leaves any prefix of a part file; what is whole of it is kept, and no record is wrong or doubled."""
    _, entries, want = whole
    finished = Name(STORE, 2).file
    # The last of them is cut before, within and after its index.
    for size in [*range(0, len(want[finished]), 3), len(want[finished])]:
        folder = tmp_path / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for i in (0, 1):
            (folder / Name(STORE, i).file).write_bytes(want[Name(STORE, i).file])
        (folder / f"{finished}.part").write_bytes(want[finished][:size])
        computed: list[int] = []
        assert write(folder, compute=lambda w: computed.extend(w) or w.tolist()) == entries  # noqa: B023
        assert content(folder) == want
        assert min(computed) >= WINDOWS[6], "whole chunks that are there are not computed again"


def test_a_finished_store_computes_nothing(whole):
    folder, entries, want = whole
    assert write(folder, compute=lambda _: pytest.fail("computed")) == entries
    assert content(folder) == want


def test_a_damaged_part_is_cut_at_its_first_bad_record(whole, tmp_path):
    _, entries, want = whole
    finished = Name(STORE, 0).file
    index = Shard(whole[0] / finished, Name(STORE, 0)).index
    broken = bytearray(want[finished][: index["offset"][3]])
    broken[int(index["offset"][1]) + 34] ^= 1
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / f"{finished}.part").write_bytes(broken)
    assert write(tmp_path / "bad") == entries and content(tmp_path / "bad") == want


def test_shards_of_other_windows_are_refused(whole, tmp_path):
    folder, _, want = whole
    part = ShardWriter(folder, Name(STORE, 0))
    part.append(5, 1, b"five")
    part.close()
    (folder / Name(STORE, 0).file).unlink()
    with pytest.raises(SignalError, match="does not hold the windows that its recipe gives it"):
        write(folder)


def test_computing_overlaps_writing(tmp_path):
    """The next chunk is computed while the one before is packed: here the two wait for each other."""
    started = {int(WINDOWS[3]): threading.Event()}

    def compute(windows):
        started.setdefault(int(windows[0]), threading.Event()).set()
        return windows.tolist()

    def pack(found, row, window):
        if window == WINDOWS[0]:
            assert started[int(WINDOWS[3])].wait(20), "the second chunk began only after the first was written"
        return 0, payload(window)

    write(tmp_path / "overlap", compute=compute, pack=pack)


def test_an_error_while_computing_is_raised_and_what_was_written_is_kept(tmp_path):
    def compute(windows):
        if windows[0] > WINDOWS[7]:
            raise RuntimeError("the device is gone")
        return windows.tolist()

    with pytest.raises(RuntimeError, match="the device is gone"):
        write(tmp_path / "broken", compute=compute)
    computed = []
    write(tmp_path / "broken", compute=lambda w: computed.extend(w) or w.tolist())
    assert min(computed) == WINDOWS[9] and read_all(tmp_path / "broken") == {int(w): payload(w) for w in WINDOWS}


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_shard
def pack(found, row, window):
    time.sleep(0.1)
    return found[row] % 5, test_shard.payload(window)
test_shard.write(Path(sys.argv[1]), pack=pack, on_progress=lambda done, kept: print(done, kept, flush=True))
"""


def test_killed_for_real(whole, tmp_path):
    """SIGKILL in the middle, and again: the third call ends with the bytes of a store that nothing interrupted."""
    _, entries, want = whole
    folder, here = tmp_path / "killed", os.path.dirname(__file__)
    for wanted in (4, 11):
        command = [sys.executable, "-c", SLOW, str(folder), here]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
        for line in process.stdout:
            if int(line.split()[0]) >= wanted:
                break
        time.sleep(0.03)  # in the middle of a chunk
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert list(folder.glob("*.part"))
    assert write(folder) == entries and content(folder) == want
