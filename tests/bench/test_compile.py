"""`bench compile` without a compiler: its table, its comparison with committed figures, and the committed file."""

import copy
import json
import re
from pathlib import Path

import pytest

from distill.bench import compile as bench
from distill.config import ConfigError
from distill.diagnostics.dryrun import compiler
from launch.support import cli

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs/results/compiled.json"
ONE = {
    "flags": [],
    "compiler": "libtpu 1",
    "jax": "1",
    "attention": "splash (auto)",
    "gib": 2.0,
    "sent_gb": {"all-gather": 3.0, "all-to-all": 0.001},
    "estimated_seconds": 0.5,
    "estimated_mfu": 0.41,
    "estimated_parts": dict.fromkeys(
        ("products", "attention", "loss", "elementwise", "copies", "optimizer", "network"), 0.1
    ),
}


@pytest.fixture
def made(monkeypatch):
    """`made(**changes)`: what every program then compiles to; all compilers are installed."""
    monkeypatch.setattr(compiler, "missing", lambda chip: "")

    def make(**changes):
        monkeypatch.setattr(bench, "compiled", lambda program: {**copy.deepcopy(ONE), **changes})

    make()
    return make


def test_the_committed_figures_are_of_todays_programs_and_the_page_has_their_lines():
    """docs/results/speed.md has, word for word, the table that `bench compile` prints of the committed file."""
    found = bench.read(COMMITTED)
    plain = [name for name in found if " + " not in name]
    assert plain == [name for name in bench.PROGRAMS if name in found]
    for name, one in found.items():
        command = bench.PROGRAMS[name.partition(" + ")[0]].command
        assert one["flags"][: len(command)] == command, name
        assert (
            name in plain or bench.changed(name.partition(" + ")[0], " ".join(one["flags"][len(command) :]))[0] == name
        )
        assert not one["without_estimate"], name
    page = (ROOT / "docs/results/speed.md").read_text("utf-8")
    for line in bench.table(found).splitlines():
        assert line in page


def test_a_figure_that_grew_by_more_than_a_tenth_fails(made, tmp_path, capsys):
    path, flags = tmp_path / "figures.json", ["--programs=103M supervised, 4 v5e"]
    assert bench.main([*flags, f"--out={path}"]) == 0
    assert bench.main([*flags, f"--against={path}"]) == 0
    made(estimated_seconds=0.54, sent_gb={"all-gather": 3.2, "all-to-all": 0.01})
    assert bench.main([*flags, f"--against={path}"]) == 0
    capsys.readouterr()
    made(estimated_seconds=0.56, sent_gb={"all-gather": 3.0, "all-reduce": 0.2})
    assert bench.main([*flags, f"--against={path}"]) == 1
    said = capsys.readouterr().out
    assert "GREW: estimated seconds 0.56 (committed: 0.5), all-reduce, GB 0.2 (committed: 0.0)" in said
    made(estimated_seconds=0.56, compiler="libtpu 2")
    assert bench.main([*flags, f"--against={path}"]) == 0, "another compiler only prints"
    assert "grew, under other versions" in capsys.readouterr().out


def test_programs_are_chosen_and_those_of_a_file_stay(made, tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    assert bench.main(["--small", "--chips=v5e", f"--out={path}"]) == 0
    assert bench.main(["--small", "--chips=h100", f"--out={path}"]) == 0
    names = list(json.loads(path.read_text())["programs"])
    assert names == [n for n, one in bench.PROGRAMS.items() if one.small and one.chip in ("v5e", "h100")]
    capsys.readouterr()
    monkeypatch.setattr(compiler, "missing", lambda chip: "not installed" if chip.dims else "")
    assert bench.main(["--small"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\w+) is left out: not installed$", said, re.M) == ["v5e"]
    assert "| 103M supervised, 8 h100 | 0.500 | 41.0% |" in said and "4 v6e |" not in said


def test_a_change_of_a_program_is_a_line_after_it(made, tmp_path, monkeypatch, capsys):
    path, asked = tmp_path / "figures.json", []
    monkeypatch.setattr(bench, "compiled", lambda program: asked.append(program.command) or copy.deepcopy(ONE))
    both = "--programs=103M supervised, 8 h100;103M supervised, 4 v5e"
    changes = "--with=--config.model.remat=none;--config.model.remat=dots --config.microbatches=2"
    assert bench.main([both, f"--out={path}"]) == 0
    assert bench.main([both, changes, f"--out={path}"]) == 0
    h100, v5e = both.removeprefix("--programs=").split(";")
    more = (" + model.remat=none", " + model.remat=dots microbatches=2")
    assert list(bench.read(path)) == [h100, *(h100 + one for one in more), v5e, *(v5e + one for one in more)]
    assert asked[3] == [*bench.PROGRAMS[h100].command, "--config.model.remat=dots", "--config.microbatches=2"]
    assert f"| {v5e} + model.remat=none | 0.500 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--programs=103M supervised, 8 H100"], "--programs: there is no '103M supervised, 8 H100'"),
        (["--chips=h1000"], "--chips: no program is of 'h1000', only of v5e"),
        (["--against=no.json"], "no.json: not a file that `bench compile --out` wrote"),
    ],
)
def test_a_mistake_is_one_line(flags, said, capsys):
    assert cli.guard(bench.main, flags) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1


def test_a_program_that_cannot_be_compiled_is_named():
    with pytest.raises(ConfigError, match=r"^launch.dryrun --chip=v5 --mesh=data=4: error: .*'v5', wanted"):
        bench.compiled(bench.Program(chip="v5", flags=("--mesh=data=4",)))
