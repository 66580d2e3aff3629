"""A store of signals in a bucket is read as on a disk, its records side by side."""

import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from distill.errors import SignalError
from distill.teacher.signals.reader import SignalStore
from tests.system import gcs


@pytest.fixture
def bucket(monkeypatch):
    """gs:// as a server on this machine, which takes `pause` seconds; `most` is how many reads it had at once."""
    server, asked = gcs.Server(), gcs._Handler.do_GET
    server.most, server.pause, now, lock = 0, 0.0, [0], threading.Lock()

    def slowly(handler):
        with lock:
            now[0] += 1
            server.most = max(server.most, now[0])
        time.sleep(server.pause)
        asked(handler)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(gcs._Handler, "do_GET", slowly)
    for name, value in {
        "STORAGE_EMULATOR_HOST": server.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
    }.items():
        monkeypatch.setenv(name, value)
    gcs.forget()
    yield server
    gcs.forget()
    server.shutdown()


@pytest.mark.parametrize("kind", ["topk", "hidden"])
def test_signals_in_a_bucket_are_those_on_the_disk(made, bucket, kind):
    folder = Path(made(kind))
    for path in folder.iterdir():
        bucket.objects["bucket", f"store/{path.name}"] = (1, path.read_bytes())
    windows = SignalStore(folder)._firsts[np.arange(8).reshape(2, 4) % 4]
    here, there = SignalStore(folder), SignalStore("gs://bucket/store")
    jax.tree.map(np.testing.assert_array_equal, there.read(windows), here.read(windows))
    before, bucket.most, bucket.pause = len(bucket.asked), 0, 0.2  # long enough to meet on a busy machine
    there.read(windows)
    assert len(bucket.asked) - before == windows.size and bucket.most >= 4
    bucket.pause = 0.0

    name = "store/shard-000001.signal"
    content = bytearray(bucket.objects["bucket", name][1])
    content[len(content) // 3] ^= 1
    bucket.objects["bucket", name] = (2, bytes(content))
    with pytest.raises(SignalError, match="gs://bucket/store/shard-000001.signal"):
        SignalStore("gs://bucket/store").verify()
    other = bucket.objects["bucket", "store/manifest.json"][1]
    bucket.objects["bucket", "store/manifest.json"] = (3, other + b" ")  # by another host, and longer
    with pytest.raises(SignalError, match="was changed after it was written"):
        SignalStore("gs://bucket/store")
    del bucket.objects["bucket", name]
    with pytest.raises(SignalError, match="cannot be read|is missing"):
        there.read(windows)
