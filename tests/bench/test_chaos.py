"""Kills that must be survived are, and a command that loses something is found out."""

import dataclasses
import json
import tempfile

import pytest

from distill.bench import chaos
from launch import chaos as entry

# Counts to ten in a file that is written whole and renamed. The unsafe one also keeps a log, in which a kill between
# the two writings leaves a double.
COUNT = """
import os, sys, time
path = sys.argv[1] + "/count"
os.makedirs(sys.argv[1], exist_ok=True)
done = int(open(path).read()) if os.path.exists(path) else 0
for i in range(done, 10):
    time.sleep(0.01)
    LOG
    time.sleep(0.01)
    open(path + ".new", "w").write(str(i + 1))
    os.replace(path + ".new", path)
"""
SAFE = COUNT.replace("LOG", "")
UNSAFE = COUNT.replace("LOG", 'open(path + ".log", "a").write(str(i))')


def scenario(script):
    return chaos.ChaosScenario(
        name="count", command=("-c", script, "FOLDER"), result=chaos.folder_result, writing=("count", "count.new")
    )


def test_a_command_that_writes_safely_survives(tmp_path):
    found = list(chaos.attack(scenario(SAFE), 12, 0, tmp_path / "here"))
    assert len(found) == 12 and any(kill.seen for kill in found)
    assert not (tmp_path / "here").exists()


def test_a_command_that_loses_something_is_found_out_and_its_folder_stays(tmp_path):
    with pytest.raises(chaos.Lost, match="count.log: "):
        list(chaos.attack(scenario(UNSAFE), 40, 0, tmp_path / "here"))
    assert (tmp_path / "here" / "whole" / "count").read_text() == "10"


def test_a_command_that_fails_is_no_success(tmp_path):
    broken = chaos.ChaosScenario(name="broken", command=("-c", "raise SystemExit(3)"), result=lambda folder: None)
    with pytest.raises(chaos.Lost, match="ended with code 3"):
        list(chaos.attack(broken, 1, 0, tmp_path / "here"))


@pytest.mark.dear("a real run, killed and started again until it ends")
def test_a_killed_training_run_ends_as_one_that_was_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # the tests' eight devices
    found = list(chaos.attack(chaos.SCENARIOS["train"], 2, 1, tmp_path / "here"))
    assert [kill.scenario for kill in found] == ["train"] * 2


def test_an_unknown_scenario_is_refused(capsys):
    from launch.support import cli

    assert cli.guard(entry.main, ["--only=trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_what_was_lost_stands_in_the_log(tmp_path, monkeypatch):
    """A campaign that finds something says so in its line, not only on the screen."""
    monkeypatch.setitem(chaos.SCENARIOS, "unsafe", dataclasses.replace(scenario(UNSAFE), name="unsafe"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(chaos.Lost):
        entry.main(["--only=unsafe", "--kills=40", f"--out={tmp_path / 'log.jsonl'}"])
    (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (line["scenario"], line["lost"]) == ("unsafe", 1) and 0 < line["kills"] <= 40
