"""What a stranger found who had only the documents: each was a traceback, or went on without a word."""

import json

import numpy as np
import pytest

from distill import laws
from distill.config import ConfigError, build
from distill.config.experiment import ExperimentConfig
from distill.laws.fitting import identifiability
from distill.laws.forms.published import Farseer
from launch import fit, plan
from launch.support import cli


@pytest.fixture
def runs(tmp_path):
    """Twelve supervised runs with the states that a tracker writes, one of them crashed at a plausible loss."""
    lines = ["State,params,tokens,val_loss"]
    for i, N in enumerate((1e8, 3e8, 1e9)):
        for D in (2e9, 6e9, 2e10, 6e10):
            loss = 1.7 + 400 / N**0.34 + 410 / D**0.28
            lines.append(f"{'crashed' if i == 1 and D == 6e9 else 'finished'},{N:g},{D:g},{loss:.6f}")
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "runs.csv"


@pytest.fixture
def students(tmp_path):
    """Students alone: no supervised runs."""
    supervised, distilled = laws.paper()
    rows = [(N, D, T, distilled(N, D, T)) for N in (1e8, 4e8, 1e9) for D in (4e9, 2e10, 6e10) for T in (2.1, 2.4, 2.7)]
    text = "N_S,D_S,L_T,L_S\n" + "".join(",".join(f"{x:.8g}" for x in row) + "\n" for row in rows)
    (tmp_path / "students.csv").write_text(text)
    return tmp_path / "students.csv"


def test_rows_that_a_tracker_calls_crashed_are_named(runs, capsys):
    assert cli.guard(fit.main, [f"--table={runs}", "--law=chinchilla", "--resamples=16"]) == 0
    out = capsys.readouterr().out
    assert "1 of 12 rows are not finished by their column State (row 7: crashed)" in out
    assert "--rows='State == finished' leaves them out" in out
    rows = ["--rows=State == finished", "--resamples=16", "--law=chinchilla"]
    assert cli.guard(fit.main, [f"--table={runs}", *rows]) == 0
    assert "not finished" not in capsys.readouterr().out


def test_losses_per_token_of_several_tokenizers_are_named(tmp_path, capsys):
    """Two names of one tokenizer of ours are one; without the note the law is of nothing."""
    law = laws.Chinchilla(A=400.0, B=2000.0, E=1.7, alpha=0.34, beta=0.37)
    kinds = ["bpe-512-f9bb7cc9", "mine-512-f9bb7cc9", "bytes"]
    lines = ["N,D,L,tokenizer"]
    for i, kind in enumerate(kinds * 6):
        N, D = 1e8 * 1.3**i, 2e9 * 1.2 ** (7 * i % 18)
        lines.append(f"{N:.6g},{D:.6g},{float(law(N, D)) * (0.3 if kind == 'bytes' else 1):.8g},{kind}")
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(lines) + "\n")
    flags = [f"--table={table}", "--law=chinchilla", "--resamples=16"]
    assert cli.guard(fit.main, flags) == 0
    out = capsys.readouterr().out
    assert f"losses per token of 2 tokenizers by the column tokenizer ({', '.join(kinds)}) do not compare" in out
    advice = next(word for word in ("bpe-512-f9bb7cc9", "bytes") if f"--rows='tokenizer == \"{word}\"'" in out)
    for rule in (f'tokenizer == "{advice}"', "tokenizer != bytes"):
        assert cli.guard(fit.main, [*flags, f"--rows={rule}"]) == 0
        assert "do not compare" not in capsys.readouterr().out


def test_the_papers_law_inside_is_said_by_fit_and_by_plan(students, tmp_path, capsys):
    out = tmp_path / "law.json"
    words = [f"--table={students}", "--law=distillation-limit", "--resamples=16", "--figures=no", f"--out={out}"]
    assert cli.guard(fit.main, words) == 0
    assert "the paper's law (Table 6) stands in for Lsup" in capsys.readouterr().out
    assert cli.guard(plan.main, [f"--law={out}", "--N_S=1B", "--tokens=20B", "--teachers=7B:7B:2.1"]) == 0
    assert "the supervised law in this file is the paper's (Table 6)" in capsys.readouterr().out
    assert cli.guard(plan.main, ["--N_S=1B", "--tokens=20B", "--teachers=7B:7B:2.1"]) == 0
    assert "in this file" not in capsys.readouterr().out


@pytest.mark.parametrize("level", ["90", "0", "1", "-0.5"])
def test_a_level_is_a_share(runs, level, capsys):
    assert cli.guard(fit.main, [f"--table={runs}", f"--level={level}"]) == 2
    assert "wanted a number between 0 and 1" in capsys.readouterr().err


def test_a_folder_is_no_file_to_write(runs, tmp_path, capsys):
    assert cli.guard(fit.main, [f"--table={runs}", f"--out={tmp_path}"]) == 2
    assert "is a folder; wanted the name of a file in it" in capsys.readouterr().err


def test_files_that_nobody_reads_are_refused():
    with pytest.raises(ConfigError, match="data.source='embedded' reads no files; add data.source=files"):
        build(ExperimentConfig, {"data": {"files": {"paths": ["chats.jsonl"]}}})


def test_a_law_at_the_end_of_its_numbers_is_open_and_no_traceback(monkeypatch):
    """Farseer's exponents overflow beside its optimum on a small table: such a slope fixes nothing."""
    law = Farseer(a1=-0.1, b1=-1.2, alpha=60.0, a2=-1e-41, b2=6.3, beta=4.3, a3=23.8, b3=0.4, gamma=-0.2)
    N, D = (x.ravel() for x in np.meshgrid([1e8, 1e9, 4e9], [1e9, 1e10]))
    table = laws.from_arrays(N=N, D=D, L=1.7 + 400 / N**0.34 + 410 / D**0.28)
    rows = laws.fit("chinchilla", table, units=False).rows
    slopes = identifiability.slopes(law, rows)
    assert np.isfinite(slopes).all()
    assert identifiability.directions(law, rows, np.full(6, 1e-3), np.ones(6))[0].open


def test_chips_by_any_case_and_hours_that_cost_nothing(capsys):
    assert cli.guard(plan.main, ["--N_S=1B", "--dollars=20000", "--chip=H100"]) == 0
    assert "h100, 989 TFLOP/s peak" in capsys.readouterr().out
    assert cli.guard(plan.main, ["--N_S=1B", "--dollars=20000", "--chip=h100", "--hourly=0"]) == 2
    assert "--hourly=0: wanted a price above 0" in capsys.readouterr().err


def test_a_bad_row_makes_no_claim_of_how_far(runs, tmp_path, capsys):
    """Beside `suspect rows` there is no `ok`: clean runs give 0.7%, these 0.13% to 2x."""
    text = runs.read_text().replace("crashed", "finished") + "finished,2e9,4e10,7.9\n"
    runs.write_text(text)
    out = tmp_path / "law.json"
    words = [f"--table={runs}", "--law=chinchilla", "--resamples=16", "--figures=no", f"--out={out}"]
    assert cli.guard(fit.main, words) == 0
    printed = capsys.readouterr().out
    assert "status     suspect rows" in printed and "predictions   not assessed: suspect rows make it" in printed
    assert json.loads(out.read_text())["predictions"]["kind"] == "not assessed"


def test_money_as_people_write_it():
    read = lambda text: plan.parser().parse_args(["--law=x", f"--dollars={text}"]).dollars
    assert {read(text) for text in ("20000", "20K", "$20K", "20,000", "$20,000", "2e4")} == {20000.0}
    assert read("$1,250,000.5") == 1250000.5
    for text in ("20,00", "$", "1,2,3", "20 000 dollars"):
        with pytest.raises(ConfigError, match="dollars"):
            read(text)
