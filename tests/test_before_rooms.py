"""What the last version before the fourteen rooms wrote opens as it did (golden/before_rooms/make.sh).

Commands alone are used here, as whoever kept these files would use them: a finished run is known by its name and not
trained again, its weights give the loss that they gave, and its law gives the plan that it gave.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BEFORE = Path(__file__).parent / "golden" / "before_rooms"
FLAGS = (
    "--config=configs/train.py:micro",
    "--config.data.source=tokens",
    "--config.data.tokens=tests/golden/first/store",
    "--config.model.vocab_size=300",
    "--config.model.d_model=16",
    "--config.model.n_layers=1",
    "--config.model.n_heads=1",
    "--config.seq_len=16",
    "--config.batch_size=4",
    "--config.teacher.source=tests/golden/first/run",
    "--config.tokens=8K",
    "--config.eval.tokens=512",
    "--config.loop.keep=1",
)


def run(*command):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as a user has
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def student(tmp_path):
    return Path(shutil.copytree(BEFORE / "student", tmp_path / "student"))


def test_a_finished_run_keeps_its_name_and_is_not_trained_again(student):
    files = ("config.txt", "result.json", "metrics.jsonl")
    before = {name: hashlib.sha256((student / name).read_bytes()).hexdigest() for name in files}
    told = run("launch.train", f"--workdir={student}", *FLAGS)
    assert "6d2f61cd0a35" in told
    assert before == {name: hashlib.sha256((student / name).read_bytes()).hexdigest() for name in files}


def test_its_weights_give_the_loss_that_they_gave(student):
    """Without its result a run whose last checkpoint is there is only evaluated again."""
    row = json.loads((student / "result.json").read_text("utf-8"))
    (student / "result.json").unlink()
    run("launch.train", f"--workdir={student}", *FLAGS)
    again = json.loads((student / "result.json").read_text("utf-8"))
    moving = {"start", "end", "machine", "commit"}
    for name, value in row.items():
        if isinstance(value, float):
            assert again[name] == pytest.approx(value, rel=1e-5), name
        elif name not in moving:
            assert again[name] == value, name


def test_its_law_gives_the_plan_that_it_gave():
    told = run("launch.plan", f"--law={BEFORE / 'law.json'}", "--N_S=1e5", "--tokens=4e6", "--scenario=best_case")
    for part in ("3.42M teacher of 18M tokens (L_T 1.263)", "1.495 [1.486, 1.505]", "1.554 [1.551, 1.558]"):
        assert part in " ".join(told.split())
