"""One dialect for every command: the list, --help, the version, completion, and what a mistyped word gets."""

import configparser
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import distill.bench
from distill.config import ConfigError
from launch import __main__ as launch_main
from launch import bench
from launch.support import cli

ROOT = Path(__file__).parents[2]
COMMANDS = tuple(launch_main.COMMANDS)


def command(name):
    return importlib.import_module("launch.gke.__main__" if name == "gke" else f"launch.{name}")


def test_every_command_is_listed_once_and_every_listed_command_exists():
    modules = {path.stem for path in (ROOT / "launch").glob("*.py") if path.stem[0] != "_"} | {"gke"}
    assert set(COMMANDS) == modules
    assert len(COMMANDS) == sum(len(group) for group in launch_main.GROUPS.values())


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_distill_alone_lists_the_commands_in_groups(words, capsys):
    assert cli.guard(launch_main.main, words) == 0
    out = capsys.readouterr().out
    for group, commands in launch_main.GROUPS.items():
        assert f"\n{group}:\n" in out
        for name, about in commands.items():
            assert re.search(rf"^  {name} +{re.escape(about)}$", out, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_groups_defaults_and_three_examples_that_parse(name, capsys):
    module = command(name)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: distill {name}") and "\nexamples:\n" in out and out.endswith("\n")
    examples = module.parser().examples
    assert len(examples) >= 3
    titles = [group.title for group in module.parser()._action_groups if group._group_actions]
    assert len(titles) >= 2, titles
    for example in examples:
        assert example in out
        words = shlex.split(example)
        words = words[: words.index("--")] if "--" in words else words
        starts = (["distill", name], ["python", "-m", f"launch.{name}"])
        if start := next((start for start in starts if words[: len(start)] == start), None):
            if name == "bench":  # the words after a benchmark's name are its own
                words, start = words[:3], start
            module.parser().parse_args([word for word in words[len(start) :] if word != "--help"])


def test_every_option_says_what_it_is():
    for name in COMMANDS:
        for action in command(name).parser()._actions:
            assert action.help, f"{name} {action.option_strings}"


def test_what_a_command_makes_is_out_and_its_own_folder_is_workdir():
    options = {name: set(command(name).parser()._option_string_actions) for name in COMMANDS}
    for name in COMMANDS:
        assert ("--out" in options[name]) == ("--output" in options[name]), name
    assert {name for name in COMMANDS if "--workdir" in options[name]} >= {
        "train", "sweep", "study", "watch", "report", "replay",
    }  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["--workdir=w", "--dry-run", "--config.batch_size=8"],
        ["--workdir", "w", "--dry_run", "--config.batch-size", "8"],
        ["--config.batch-size=8", "--dry-run=true", "--workdir", "w"],
        ["--dry_run=yes", "--workdir=w", "--config.batch_size", "8"],
    ],
)
def test_a_value_follows_a_space_or_a_sign_and_dashes_are_underscores(words):
    flags = command("train").parser().parse_args(words)
    assert (flags.workdir, flags.dry_run, flags.overrides) == ("w", True, [("batch_size", "8")])


def test_text_columns_have_one_name_where_text_is_read():
    from launch import generate, tokenize

    for flag in ("--columns.text=body", "--data.columns.text=body", "--config.data.columns.text=body"):
        given = tokenize.parser().parse_args(["--out=o", "a.txt", flag])
        assert tokenize.read_config(given.files, given.overrides).columns.text == "body", flag
        assert generate.read(["--teacher=t", "--out=o", flag])[0].data.columns.text == "body", flag
    assert generate.read(["--teacher=t", "--output=o"])[1].out == "o"


def test_numbers_are_written_as_people_write_them():
    flags = command("evaluate").parser().parse_args(["--model=m", "--tokens", "16K", "--text", "a", "b", "--json"])
    assert (flags.tokens, flags.text, flags.json) == (16_000, ["a", "b"], True)
    flags = command("sweep").parser().parse_args(["--workdir=w", "--rate", "1.5T", "--price=2"])
    assert (flags.rate, flags.price) == (1.5e12, 2.0)
    assert command("generate").read(["--teacher=t", "--out=o", "--min_log_prob", "-1.5"])[0].min_log_prob == -1.5


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("train", ["--workdir="], "--workdir= is empty, wanted --workdir=DIR; is a variable of the shell not set?"),
        ("train", ["--workdir"], "got '--workdir' without a value"),
        ("train", ["--workdir", "--dry-run"], "got '--workdir' without a value"),
        ("train", ["-workdri=x"], "there is no flag -workdri (value 'x'). Did you mean --workdir?"),
        ("train", ["--dry-run=perhaps"], "got 'perhaps', wanted no value, true or false"),
        ("train", ["--workdir=w", "--tokens=1M"], "Did you mean the config's field, --config.tokens?"),
        ("train", ["--workdir=w", "--seed=1"], "Did you mean the config's field, --config.seed?"),
        ("train", ["--workdir=w", "--lr=1e-3"], "Did you mean the config's field, --config.optim.learning_rate?"),
        ("train", ["--workdir=w", "--epochs=3"], "a run is as long as --config.tokens=N, epochs times the tokens"),
        ("train", ["--workdir=w", "--max-steps=3"], "a run is as long as --config.tokens=N, steps x batch_size"),
        ("train", ["--workdir=w", "--lambda=0.5"], "--config.objective.lambda_?"),
        ("train", ["--workdir=w", "--config.lr=1"], "Did you mean --config.optim.learning_rate?"),
        ("train", ["--workdir=w", "--config.learning_rate=1"], "Did you mean --config.optim.learning_rate?"),
        ("train", ["--workdir=w", "--output=x"], "Did you mean --workdir?"),
        ("tokenize", ["--out=o", "a", "--tokenizer.kind=bep"], "wanted one of 'bytes', 'bpe', 'json'"),
        ("tokenize", ["--out=o", "a", "--tokeniser.kind=bpe"], "Did you mean --tokenizer.kind?"),
        ("generate", ["--out=o"], "--teacher=... is missing"),
        (
            "sweep",
            ["--workdir=w", "--backend=slrum"],
            "wanted one of local, slurm, ray, gke, print. Did you mean 'slurm'?",
        ),
        ("sweep", ["--workdir=w", "--workers=many"], "--workers: got 'many', wanted a whole number such as"),
        ("sweep", ["--workdir=w", "--rate=-1"], "--rate: got '-1', wanted at least 0"),
        ("watch", [], "the folder is missing; wanted distill watch WORKDIR"),
        ("watch", ["w", "--evry=3"], "Did you mean --every?"),
        ("replay", ["--workdir=w"], "--step=... is missing; wanted --step=N"),
        ("cache", ["--out=o", "--kind=topkk"], "Did you mean 'topk'?"),
        ("profile", ["--out=o", "--top=0"], "--top: got '0', wanted at least 1"),
        (
            "convert",
            ["--in=m", "--out=o", "--dtype=fp16"],
            "wanted one of float32, bfloat16, float16, q8_0. Did you mean",
        ),
        ("evaluate", ["--modle=m"], "Did you mean --model?"),
        ("figures", ["--outt=o"], "Did you mean --out?"),
        ("report", ["runs/smoke"], "got 'runs/smoke', wanted --name=value"),
        ("gke", ["--name=x", "--image=i", "--tpu=v5"], "Did you mean 'v5p'?"),
        ("chaos", ["--kill=3"], "Did you mean --kills?"),
        ("bench", ["stpe"], "Did you mean 'step'?"),
        ("dryrun", ["--chip=h10"], "Did you mean 'h100'?"),
    ],
)
def test_a_mistake_gets_one_line_and_no_usage(name, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.guard(command(name).main, words) == 2
    text = capsys.readouterr()
    assert message in text.err, text.err
    assert text.err.startswith("error: ") and text.err.count("\n") == 1 and not text.out
    assert not any(tmp_path.iterdir())


def test_an_unknown_command_gets_the_nearest(capsys):
    assert cli.guard(launch_main.main, ["trian", "--workdir=w"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'trian'. Did you mean 'train'?\n"


def test_the_version_has_one_source(capsys):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: distill.__version__"
    assert setup["options.entry_points"]["console_scripts"].split() == ["distill", "=", "launch.__main__:run"]
    assert cli.guard(launch_main.main, ["--version"]) == 0
    assert capsys.readouterr().out == f"distill {distill.__version__}\n"


def complete(line, tmp_path):
    """What argcomplete answers the shell for a line, the cursor at its end."""
    answer = tmp_path / "answer"
    environment = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_LINE": line, "COMP_TYPE": "9",
        "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "0", "_ARGCOMPLETE_IFS": "\n",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "launch"], env=os.environ | environment, cwd=ROOT, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("distill tr", ["train"]),
        ("distill train --wor", ["--workdir"]),
        ("distill train --config.optim.learn", ["--config.optim.learning_rate"]),
        ("distill sweep --backend=sl", ["slurm"]),
        ("distill tokenize --tokenizer.k", ["--tokenizer.kind"]),
    ],
)
def test_the_tab_key_completes(line, wanted, tmp_path):
    answered = complete(line, tmp_path)
    assert [word.rpartition("=")[2] or word for word in answered if word] == wanted


def test_completion_scripts_are_for_bash_and_zsh(capsys):
    for shell in ("bash", "zsh"):
        assert cli.guard(launch_main.main, [f"--completion={shell}"]) == 0
        assert "_ARGCOMPLETE" in capsys.readouterr().out
    assert cli.guard(launch_main.main, ["--completion=fish"]) == 2
    assert "wanted one of bash, zsh" in capsys.readouterr().err


def test_bash_completes_a_real_line():
    script = """
eval "$(python -m launch --completion=bash)"
distill() { python -m launch "$@"; }
COMP_LINE="distill trai" COMP_POINT=12 COMP_WORDS=(distill trai) COMP_CWORD=1 COMP_TYPE=9
_python_argcomplete distill
echo "${COMPREPLY[@]}"
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["train"], done.stderr


def test_a_parser_is_cheap(tmp_path):
    """--help, a mistyped flag and the tab key wait for neither JAX nor scipy."""
    program = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name).parser()\n"
        "print(sorted({'jax', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    names = [command(name).__name__ for name in COMMANDS if name not in ("chaos", "bench", "fit", "plan")]
    done = subprocess.run(
        [sys.executable, "-c", program, *names], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_config_error_is_what_a_parser_raises():
    with pytest.raises(ConfigError, match="there is no flag --x"):
        command("train").parser().parse_args(["--workdir=w", "--x=1"])


def test_every_benchmark_can_be_run():
    """What `launch.bench` lists has a `main`, and no other module of the room has one of its own."""
    room = Path(distill.bench.__file__).parent
    modules = [*room.glob("*.py"), *room.glob("*/__init__.py")]
    with_main = {
        path.parent.name if path.stem == "__init__" else path.stem
        for path in modules
        if "\ndef main(" in path.read_text("utf-8")
    }
    apart = {"step_peers", "maxtext_step_peers"}  # started by the benches of steps and of compilers
    assert set(bench.names()) == with_main - apart
