"""Every config builds, resolved configs are golden text, and a user's mistake is one line and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import experts as experts_config
from configs import generation as generation_config
from configs import scale as scale_config
from configs import signals as signals_config
from configs import smollm2 as smollm2_config
from configs import study as study_config
from configs import tokenizers as tokenizers_config
from configs import train as train_config
from distill import config as configs
from distill.config import ExperimentConfig, StudyExperimentConfig, counts, ladder
from launch import study as launch_study
from launch import train as launch_train
from launch.support import cli

GOLDEN = Path(__file__).parents[1] / "golden" / "configs"
PRESETS = [(ExperimentConfig, f"configs/train.py:{name}") for name in ("micro", *ladder.PAPER_LADDER)]
PRESETS += [(StudyExperimentConfig, f"configs/study.py:{name}") for name in study_config.PRESETS]
PRESETS += [(ExperimentConfig, f"configs/generation.py:{name}") for name in generation_config.PRESETS]
PRESETS += [(ExperimentConfig, f"configs/signals.py:{name}") for name in signals_config.PRESETS]
PRESETS += [(ExperimentConfig, f"configs/smollm2.py:{name}") for name in smollm2_config.PRESETS]
PRESETS += [(ExperimentConfig, f"configs/tokenizers.py:{name}") for name in tokenizers_config.PRESETS]
PRESETS += [(ExperimentConfig, f"configs/experts.py:{name}") for name in experts_config.PRESETS]
PRESETS += [(ExperimentConfig, f"configs/scale.py:{name}") for name in scale_config.MESHES]
PRESETS += [(ExperimentConfig, "configs/base.py")]


def resolve(cls, source):
    return cli.resolve(cls, [f"--config={source}"])


@pytest.mark.parametrize("cls, source", PRESETS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_preset_builds_and_survives_its_text(cls, source):
    config = resolve(cls, source)
    assert configs.from_text(cls, configs.to_text(config)) == config


@pytest.mark.parametrize("source", ["configs/train.py:micro", "configs/train.py:1.82B", "configs/study.py:smoke"])
def test_resolved_configs_are_golden(source):
    """Run with UPDATE_GOLDEN=1 to accept a change, and say in the commit why finished runs are not orphaned by it."""
    config = resolve(StudyExperimentConfig if "study" in source else ExperimentConfig, source)
    file = GOLDEN / (source.removeprefix("configs/").replace(".py:", "-") + ".txt")
    text = f"# run {configs.fingerprint(config)}\n{configs.to_text(config)}"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"{source} resolves differently; UPDATE_GOLDEN=1 pytest {__file__} accepts it"


def test_the_paper_presets_have_the_papers_recipe():
    config = resolve(ExperimentConfig, "configs/train.py:1.15B")
    assert (config.model.n_layers, config.model.d_model, config.model.head_dim) == (18, 2304, 128)
    assert config.tokens == pytest.approx(20 * 1.147e9, rel=1e-3)
    assert (config.optim.schedule, config.optim.warmup_steps, config.optim.base_width) == ("cosine", 2000, 256)
    with pytest.raises(configs.ConfigError, match="Did you mean '1.15B'"):
        train_config.get_config("1.15b")


@pytest.mark.parametrize(
    "main, flags, words",
    [
        (
            launch_train,
            ["--workdir=w", "--config.optim.learning_rat=1"],
            ["learning_rat", "Did you mean 'learning_rate'"],
        ),
        (launch_train, ["--workdir=w", "--config.optim.clip=x"], ["config.optim.clip", "'x'", "wanted a number"]),
        (launch_train, ["--workdir=w", "--config.model.dtype=f64"], ["'f64'", "'float32', 'bfloat16'"]),
        (launch_train, ["--workdir=w", "--config.model=3"], ["group of fields"]),
        (launch_train, ["--workdir=w", "--config.tokens=1.5"], ["config.tokens", "wanted an integer"]),
        (launch_train, ["--workdir=w", "--config=configs/trian.py"], ["Did you mean 'configs/train.py'"]),
        (launch_train, ["--workdir=w", "--config=configs/train.py:macro"], ["macro", "Did you mean 'micro'"]),
        (
            launch_train,
            ["--workdir=w", "--config.model.d_head=0", "--config.model.n_heads=5"],
            ["d_model=32", "n_heads=5"],
        ),
        (launch_train, ["--workdir=w", "--config.microbatches=3"], ["microbatches=3", "batch_size=4"]),
        (launch_train, ["--workdir=w", "--config.tokens=10"], ["tokens=10", "at least 512"]),
        (launch_train, ["--workdir=w", "--config.teacher.source=nowhere", "--dry-run"], ["nowhere", "no finished run"]),
        (launch_train, ["--workdir=w", "--dry-run", "--config.data.source=files"], ["data.files.paths is empty"]),
        (launch_train, ["--workdri=w"], ["--workdri", "Did you mean --workdir?"]),
        (launch_train, [], ["--workdir=... is missing"]),
        (launch_train, ["--workdir=w", "stray"], ["'stray'", "--name=value"]),
        (
            launch_study,
            ["--workdir=w", "--config.study.teachers=c 1M"],
            ["config.study.teachers", "'models @ budgets'"],
        ),
        (launch_study, ["--workdir=w", "--config.study.worker=3"], ["Did you mean 'workers'"]),
    ],
)
def test_a_mistake_is_one_line(main, flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.guard(main.main, flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    for word in words:
        assert word in said
    assert not any(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "w").write_text("kept")
    assert cli.guard(launch_study.main, [f"--workdir={tmp_path}/w"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --workdir={tmp_path}/w: got a file, wanted the folder") and said.count("\n") == 1
    assert (tmp_path / "w").read_text() == "kept"


def test_a_reader_that_has_had_enough_is_no_error():
    """As in `... | head -1`: no traceback, and the exit code of a closed pipe."""
    command = [sys.executable, "-m", "launch.bench"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 141)


def test_a_broken_config_file_says_where(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def get_config(arg):\n    return 1 / 0\n")
    assert cli.guard(launch_train.main, [f"--config={file}", "--workdir=w"]) == 2
    assert "ZeroDivisionError" in (said := capsys.readouterr().err) and "mine.py:2" in said


def test_overrides_reach_every_kind_of_field():
    argv = [
        "--config=configs/study.py:smoke",
        "--config.study.seeds=1,2",
        "--config.tokens=2.5e5",
        "--config.model.tied=true",
    ]
    config = cli.resolve(StudyExperimentConfig, argv)
    assert (config.study.seeds, config.tokens, config.model.tied) == ((1, 2), 250_000, True)


def test_tokens_may_be_given_per_parameter():
    config = cli.resolve(ExperimentConfig, ["--config.tokens=20N", "--config.model.n_layers=1"], "configs/train.py")
    assert config.tokens == 20 * counts.non_embedding(config.model) and config.model.n_layers == 1
    later = cli.resolve(ExperimentConfig, ["--config.tokens=20N", "--config.tokens=1M"], "configs/train.py")
    assert later.tokens == 10**6, "the last one counts"


def test_a_dry_run_prints_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch_train.main(["--workdir=w", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "26,848 non-embedding" in said and "the embedded text, student split: 55 documents" in " ".join(said.split())
    assert launch_study.main(["--workdir=w", "--dry-run"]) == 0
    assert "46 runs" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
