"""Every command as a person starts it, on a pseudo-terminal and piped: it ends well and shows no traceback.

The commands run in the order of the table, in one folder: a later one reads what an earlier one made.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill.system import interrupts, preemption
from tests import interrupts as campaign
from tests import terminal

TINY = ("--config.tokens=20K", "--config.eval.tokens=2048")
STUDY = (
    "--config.study.models=p = 16x1, q = 16x2", "--config.study.teachers=q @ 20K",
    "--config.study.distilled=q@20K > p @ 8K 16K", "--config.study.supervised=p @ 8K 16K",
    "--config.eval.tokens=2048", "--config.study.resamples=16",
)  # fmt: skip

# name: (words, what the output ends with); DIR is the folder of the test, $TABLE a run that is there.
COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "tokenize": (("tokenize", "--out=DIR/store", "--workers=1", "DIR/text.jsonl"), r"done in [\d.]+ s"),
    "train": (("train", "--workdir=DIR/teacher", "--config.data.split=teacher", *TINY), r"commit\s+\S+"),
    "train again": (("train", "--workdir=DIR/teacher", "--config.data.split=teacher", *TINY), r"commit\s+\S+"),
    "student": (("train", "--workdir=DIR/student", "--config.teacher.source=DIR/teacher", *TINY), r"commit\s+\S+"),
    "watch": (("watch", "DIR/teacher", "--once"), r"ntp [\d.]+"),
    "cache": (
        ("cache", "--config=configs/signals.py:topk", "--config.teacher.source=DIR/teacher", "--config.tokens=8K",
         "--out=DIR/signals"),
        r"fidelity KL",
    ),
    "generate": (
        ("generate", "--teacher=DIR/teacher", "--out=DIR/hard", "--every=64", "--prompts=4",
         "--decode.new_tokens=8"),
        r"}\s*$",
    ),
    "evaluate": (("evaluate", "--model=DIR/student", "--teacher=DIR/teacher", "--tokens=1K"), r"ece\s+[\d.]+"),
    "convert": (("convert", "--in=DIR/student", "--out=DIR/exported", "--verify"), r"verified: \d+ tensors"),
    "fit": (("fit", "--table=micro", "--law=supervised", "--resamples=16", "--out=DIR/law.json"), r"[\d.]+ s\s*$"),
    "plan": (("plan", "--N_S=1e9", "--compute=1e21"), r"L_S"),
    "figures": (("figures", "--out=DIR/figures", "--only=9"), r"figures in"),
    "report": (("report", "--workdir=DIR/teacher"), r"index\.html"),
    "replay": (("replay", "--workdir=DIR/teacher", "--step=2"), r"parameters"),
    "profile": (("profile", "--out=DIR/trace", "--top=2"), r"trace: "),
    "sweep": (("sweep", "--workdir=DIR/sweep", "--sweep=seed=0,1", "--workers=1", *TINY), r"lowest loss first"),
    "study": (("study", "--workdir=DIR/study", "--dry-run"), r"FLOPs"),
    "dryrun": (("dryrun", "--chip=h100", "--mesh=data=1"), r"fits"),
    "gke": (
        ("gke", "--name=x", "--image=i", "--gpu=h100", "--dry-run", "--", "python", "-m", "launch.train"),
        r"kind: JobSet",
    ),
    "bench": (("bench",), r"benchmarks: "),
    "chaos": (("chaos", "--kills=0", "--only=tokenize"), r"lost 0"),
    "corpus": (("corpus", "DIR/packages", "--out=DIR/prose"), r""),
    "notebooks": (("notebooks", "--only=fit_lawz"), r"Did you mean 'fit_laws'"),
    "list": ((), r"tab key"),
}  # fmt: skip
CODES = {"notebooks": 2, "corpus": 2}
FIRST = ("train", "fit", "watch", "report", "sweep")  # those that people see most


def line(name, folder):
    words, _ = COMMANDS[name]
    words = [word.replace("DIR", str(folder)) for word in words]
    if not words:
        return [sys.executable, "-m", "launch"]
    return [sys.executable, "-m", f"launch.{words[0]}", *words[1:]]


def piped(command, env=None):
    """The same command with pipes as its streams, as (exit code, stdout and stderr)."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "COLUMNS", "CI")}
    done = subprocess.run(
        command, cwd=terminal.ROOT, env={**environment, **(env or {})}, capture_output=True, timeout=300
    )
    return terminal.Result(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))


def check(name, ended, escapes):
    assert ended.returncode == CODES.get(name, 0), ended.text
    for bad in ("Traceback", "Exception ignored", "FATAL", "UnicodeEncodeError"):
        assert bad not in ended.text, ended.text
    assert re.search(COMMANDS[name][1], ended.text), ended.text
    if not escapes:
        assert "\x1b" not in ended.output, ended.output
    assert "\x1b" not in ended.text, repr(ended.text)
    assert ended.output.count("\x1b[?25l") <= ended.output.count("\x1b[?25h"), "the cursor stays hidden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the first of the commands read."""
    here = tmp_path_factory.mktemp("terminal")
    (here / "text.jsonl").write_text('{"text": "To be, or not to be: that is the question."}\n' * 400)
    (here / "packages").mkdir()
    return here


@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_terminal(folder, name):
    """The bar's total is None until the first step."""
    check(name, terminal.run(line(name, folder)), escapes=True)


def made(folder):
    if not (folder / "teacher" / "result.json").exists():
        terminal.run(line("train", folder))
    return folder


@pytest.mark.parametrize("name", ["watch", "report", "list"])
def test_piped_there_is_no_escape_code(folder, name):
    check(name, piped(line(name, made(folder))), escapes=False)


@pytest.mark.parametrize("name", ["watch", "report"])
def test_a_stdout_that_is_not_utf_8(folder, name):
    """What it cannot write is written otherwise."""
    check(name, piped(line(name, made(folder)), {"PYTHONIOENCODING": "latin-1"}), escapes=False)


@pytest.mark.parametrize("name", ["watch", "report"])
def test_a_dumb_terminal_gets_no_escape_code(folder, name):
    check(name, terminal.run(line(name, made(folder)), env={"TERM": "dumb"}), escapes=False)


def test_watching_ends_with_ctrl_c(folder):
    ended = terminal.run(line("watch", made(folder))[:-1], interrupt_after=6.0)
    assert ended.returncode == 0, ended.text
    assert "Traceback" not in ended.text
    assert ended.output.count("\x1b[?1049h") == ended.output.count("\x1b[?1049l") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("where", ["200 columns", "piped"])
def test_every_command_everywhere(tmp_path_factory, name, where):
    here = tmp_path_factory.getbasetemp() / f"everywhere {where}".replace(" ", "-")
    if not here.exists():
        (here / "packages").mkdir(parents=True)
        (here / "text.jsonl").write_text('{"text": "To be, or not to be."}\n' * 400)
    ended = piped(line(name, here)) if where == "piped" else terminal.run(line(name, here), columns=200)
    check(name, ended, escapes=where != "piped")


ENVIRONMENTS = {
    "dumb": {"TERM": "dumb"},
    "no color": {"NO_COLOR": "1"},
    "60 columns": {"COLUMNS": "60"},
    "C locale": {"LC_ALL": "C"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_strange_terminals(folder, tmp_path, name, environment):
    """A command of its own for each, so that a bar is drawn; what it reads is the folder's."""
    command = [word.replace(f"{folder}/sweep", f"{tmp_path}/sweep") for word in line(name, made(folder))]
    if name == "train":
        command[3] = f"--workdir={tmp_path}/run"
    ended = terminal.run(command, env=ENVIRONMENTS[environment])
    check(name, ended, escapes=environment != "dumb")
    if environment == "no color":
        assert not re.search(r"\x1b\[[0-9;]*3[0-7][;m]", ended.output)
    if environment == "60 columns" and name in ("fit", "report"):
        assert max(map(len, ended.text.splitlines())) <= 200


@pytest.mark.slow
def test_a_study_to_its_end(tmp_path):
    ended = terminal.run([sys.executable, "-m", "launch.study", f"--workdir={tmp_path}/study", *STUDY], timeout=600)
    assert ended.returncode == 0, ended.text
    assert "Traceback" not in ended.text and "index.html" in ended.text


@pytest.mark.parametrize(("signal_after", "closed"), [(0.5, False), (2.0, False), (3.0, True), (6.0, False)])
def test_an_interrupt_ends_in_one_line(tmp_path, signal_after, closed):
    """Imports, compilation and the fit itself; JAX's callback of the garbage collector swallowed some."""
    how = {"hangup_after": signal_after} if closed else {"interrupt_after": signal_after}
    command = ["-m", "launch.fit", "--table=apple", "--law=distillation-limit", "--resamples=4096"]
    ended = terminal.run([sys.executable, *command], **how)
    assert not campaign.wrong(ended, closed), (ended.returncode, ended.text)


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_is_saved_when_its_terminal_says_so(tmp_path, closed):
    """Once there is a step, Ctrl-C and a closed terminal save the run, as SIGTERM does; the same command ends it."""
    command = [sys.executable, "-m", "launch.train", f"--workdir={tmp_path}/run", "--config.tokens=40M"]
    log = tmp_path / "run" / "metrics.jsonl"
    how = {"hangup_after": 0.0} if closed else {"interrupt_after": 0.0}
    ended = terminal.run(command, when=lambda: log.exists() and log.stat().st_size > 0, **how)
    assert ended.returncode == preemption.REQUEUE, ended.text
    assert any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    if not closed:
        assert re.search(r"SIGINT: step [\d,]+ of [\d,]+ is saved in", ended.text), ended.text


def test_what_is_ignored_stays_ignored():
    """Under nohup a closed terminal does not end a command."""
    program = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from distill.system import interrupts\n"
        "interrupts.install()\n"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.getsignal(signal.SIGINT) is interrupts.end)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=terminal.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_signal_while_the_main_thread_is_inside_c(tmp_path):
    """As in a compilation: Python would handle the signal only when the call returns."""
    program = (
        "import ctypes, os, signal, threading, time\n"
        "from distill.system import interrupts\n"
        "interrupts.install()\n"
        "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "began, sleep = time.monotonic(), ctypes.CDLL(None).poll\n"
        "while time.monotonic() - began < 20:\n"
        "    [sleep(None, 0, 10_000) for _ in (1, 2)]  # an EINTR ends one call and not the other\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=terminal.ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (interrupts.CODE, f"{interrupts.LINE}\n")


def test_campaigns_table():
    """docs/campaigns/interrupts.jsonl: no interrupt ended badly; both signals and the first seconds are covered."""
    import json

    path = Path(terminal.ROOT) / "docs" / "campaigns" / "interrupts.jsonl"
    rows = [json.loads(row) for row in path.read_text("utf-8").splitlines()]
    assert len(rows) >= 100 and {row["scenario"] for row in rows} == {*campaign.SCENARIOS}
    assert {row["code"] for row in rows if row["ready"]} <= {0, interrupts.CODE, preemption.REQUEUE}
    assert {row["signal"] for row in rows} == {signal.Signals.SIGINT.name, signal.Signals.SIGHUP.name}
    assert sum(row["after"] < 5 for row in rows) >= 50
