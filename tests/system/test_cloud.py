"""A run whose workdir, teacher, token store and signals are in a bucket; through tensorstore and gcsfs, as on gs://."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.gcs import Server

ROOT = Path(__file__).parents[2]
RUN = [
    "--config=configs/train.py:micro", "--config.data.source=generated", "--config.data.generated.tokens=20_000",
    "--config.data.generated.validation_tokens=4096", "--config.seq_len=16", "--config.tokens=6400",
    "--config.eval.tokens=1024", "--config.loop.steps_per_call=4", "--config.loop.log_steps=4",
    "--config.optim.warmup_steps=10",
]  # fmt: skip


@pytest.fixture
def bucket(tmp_path):
    """gs://bucket on this machine, and train(workdir, flags): launch.train in a process that is sent there."""
    assert importlib.util.find_spec("gcsfs")
    server = Server()
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=1",
        "STORAGE_EMULATOR_HOST": server.url, "TENSORSTORE_GCS_HTTP_URL": server.url,
        "GCE_METADATA_ROOT": "127.0.0.1:9", "NO_GCE_CHECK": "true", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }  # fmt: skip

    def train(workdir, *flags, cache="cache", check=True):
        command = [sys.executable, "-m", "launch.train", *RUN, *flags, f"--workdir={workdir}"]
        given = environment | {"DISTILL_CACHE": str(tmp_path / cache)}
        done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=ROOT, timeout=200)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    server.train = train
    yield server
    server.shutdown()


def text(bucket, name):
    return bucket.objects["bucket", name][1].decode()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_a_disk_and_another_host_goes_on_with_it(bucket, tmp_path):
    bucket.train(tmp_path / "run")
    here = json.loads((tmp_path / "run" / "result.json").read_text())
    bucket.train("gs://bucket/run")
    there = json.loads(text(bucket, "run/result.json"))
    assert (there["run"], there["loss"]) == (here["run"], here["loss"])
    names = [name for _, name in bucket.objects if name.startswith("run/")]
    parts = sorted(name for name in names if name.startswith("run/metrics-"))
    lines = [json.loads(line)["step"] for part in parts for line in text(bucket, part).splitlines()]
    wanted = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert parts[0] == "run/metrics-000000.jsonl" and lines == wanted
    assert any(name.startswith("run/checkpoints/100/params/") for name in names)

    # As if its host had gone before the result was written, with a later part that no checkpoint covers.
    del bucket.objects["bucket", "run/result.json"]
    bucket.objects["bucket", "run/metrics-000900.jsonl"] = (1, b'{"step": 104, "ntp": 1.0}\n')
    bucket.train("gs://bucket/run", cache="another host")
    assert json.loads(text(bucket, "run/result.json"))["loss"] == here["loss"]
    assert ("bucket", "run/metrics-000900.jsonl") not in bucket.objects

    done = bucket.train("gs://bucket/run", "--config.seed=3", check=False)
    assert done.returncode == 2 and "gs://bucket/run: this workdir belongs to another run: config.seed" in done.stderr

    bucket.train("gs://bucket/student", "--config.teacher.source=gs://bucket/run", cache="a third")
    assert json.loads(text(bucket, "student/result.json"))["teacher"] == here["run"]
