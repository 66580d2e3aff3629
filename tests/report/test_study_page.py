"""The page of a study, whole: every figure inside and beside it, whatever the workdir holds."""

import csv
import dataclasses
import importlib
import io
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from distill.config import DistillError, StudyExperimentConfig, tree
from distill.records.predictions import PredictionTable
from distill.records.runs import RunTable
from distill.records.study_table import StudyTable
from distill.report.study import findings, prose, results, terminal, write
from distill.study import analysis, matrix
from launch import plan, report
from tests.report.conftest import rows
from tests.report.test_page import Reader

FIGURES = ("students", "tokens", "accuracy", "intervals", "plan", "learning")


@pytest.fixture(scope="module")
def written(study_dir, tmp_path_factory):
    """(index.html, what on_progress heard) of the whole study."""
    workdir = shutil.copytree(study_dir, tmp_path_factory.mktemp("written") / "<smoke>")
    heard = []
    return write.write(workdir, heard.append), heard


def test_the_page_holds_every_figure_in_both_themes(written):
    path, heard = written
    read = Reader(path.read_text("utf-8"))
    charts = [figure for figure in read.all("figure") if "id" in figure]
    assert [figure["id"] for figure in charts] == [f"figure-{name}" for name in FIGURES]
    assert all(len(figure["aria-label"]) > 40 for figure in charts)
    images, sources = read.all("img"), read.all("source")
    assert len(images) == len(sources) == len(FIGURES)
    assert all(len(image["alt"]) > 40 for image in images)
    for uri in [i["src"] for i in images] + [s["srcset"] for s in sources]:
        assert uri.startswith("data:image/png;base64,")
    for name in FIGURES:
        for file in (f"{name}.png", f"{name}-dark.png"):
            with Image.open(path.parent / file) as image:
                image.verify()
                assert image.width > 1000
        assert (path.parent / f"{name}.svg").read_text("utf-8").lstrip().startswith("<?xml")
        with open(path.parent / f"{name}.csv", newline="") as file:
            header, *points = csv.reader(file)
        assert header[:4] == ["panel", "series", "x", "y"] and points
    assert [told.text for told in heard] == [*FIGURES, "page"]
    assert (heard[-1].done, heard[-1].total) == (6, 6)


def test_the_page_reaches_for_nothing_outside(written):
    read = Reader(written[0].read_text("utf-8"))
    assert not any("src" in script for script in read.all("script")) and not read.all("link") and not read.all("iframe")
    links = {a["href"] for a in read.all("a")}
    files = {link for link in links if not link.startswith("#")}
    assert files == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert all((written[0].parent / file).exists() for file in files)
    runs = {link for link in links if link.startswith("#run=")}
    assert runs == {f"#run={run.run}" for run in rows()}
    anchors = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in links - files - runs} <= set(anchors)
    assert len(read.all("h1")) == 1
    assert len(read.all("table")) == len(read.all("caption"))


def test_the_page_tells_what_the_rows_hold(written):
    text = Reader(written[0].read_text("utf-8")).text
    assert "Study <smoke>" in text
    assert "36 students of 4 teachers and 13 supervised runs" in text
    assert "Distil a 56K student on 3.8M tokens" in text
    assert "of 12 later runs fell inside their predicted 90% interval" in text
    assert "MemoryError: <big>" in text
    assert "python -m launch.study --workdir=runs/smoke" in text
    assert "python -m launch.report --workdir=runs/smoke" in text  # the folder that its command named, not its name
    assert "1 x cpu x86_64, 2 cores" in text and "abc123def" in text
    for run in rows()[-3:]:
        assert f"{run.loss:.4f}" in text


@pytest.fixture
def bare(tmp_path):
    """A workdir with the supervised rows of a runs table and nothing else."""
    RunTable(tmp_path / "runs.csv").append([run for run in rows() if run.kind == "supervised"])
    return tmp_path


def test_a_bare_table_gets_a_page_and_old_figures_go(bare):
    (bare / "report").mkdir()
    (bare / "report" / "plan.png").write_bytes(b"old")
    path = write.write(bare)
    assert {file.name for file in path.parent.iterdir()} == {
        "index.html",
        "tokens.png",
        "tokens-dark.png",
        "tokens.svg",
        "tokens.csv",
    }
    text = Reader(path.read_text("utf-8")).text
    assert "No law was fitted" in text and "no student" in text


def test_a_second_writing_changes_no_byte(bare):
    folder = write.write(bare).parent
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    write.write(bare)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_one_line(bare):
    (bare / "report").write_text("a file in the way")
    with pytest.raises(DistillError, match="report cannot be written"):
        write.write(bare)


def shown(renderable, width=100):
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(renderable)
    return text.getvalue()


def test_the_screen_shows_table_laws_and_advice(study_dir):
    text = shown(terminal.summary(study_dir))
    for run in rows():
        if run.kind == "distillation":
            assert f"{run.L_T:.4f}   {run.loss:.4f}" in text
    assert "[8.68, 18.6]" in text and "not identified: c1, d1 only kappa" in text
    assert "Advice: Distil a 56K student" in text
    assert "1 run not in the table: s@1M>r@500K" in text


def test_a_study_ends_with_two_sentences_and_what_not_identified_means(study_dir):
    study = results.load(study_dir)
    learnt = prose.lessons(findings.find(study))
    assert len(learnt) == 2
    order = findings.find(study).ordering
    assert (
        f"in {order.clear_agree} of {order.clear_pairs} pairs of students that differ by more than noise" in learnt[0]
    )
    assert "With the least text (125K tokens)" in learnt[1] and "with the most (500K)" in learnt[1]
    text = " ".join(shown(terminal.ending(study)).split())
    assert text.startswith(f"What was learnt: {' '.join(learnt)}")
    assert 'Not identified" means: many settings of the coefficients of the distillation law describe' in text
    sound = dataclasses.replace(study, laws=tuple(law for law in study.laws if law.status == "ok"))
    assert "Not identified" not in shown(terminal.ending(sound))


def test_the_commands_to_try_next_are_commands(study_dir, monkeypatch, capsys):
    monkeypatch.chdir(study_dir.parent)
    study, place = results.load(study_dir), study_dir.name
    commands = [shlex.split(line) for line in analysis.next_commands(study_dir, study)]
    assert [words[2] for words in commands] == ["launch.watch", "launch.plan", "launch.fit"]
    for _, _, module, *arguments in commands:
        importlib.import_module(module).parser().parse_args(arguments)
    assert f"--law={place}/laws/distillation.json" in commands[1] and f"--delta={analysis.DELTA}" in commands[2]
    assert all((study_dir.parent / path).exists() for path in (commands[0][3], f"{place}/runs.csv"))
    assert plan.main(commands[1][3:]) == 0
    assert "a 56K student on 2M tokens" in capsys.readouterr().out
    for names in (("watch", "report", "fit"), ("watch", "report")):
        kept = tuple(law for law in study.laws if not law.distilled and "fit" in names)
        commands = analysis.next_commands(study_dir, dataclasses.replace(study, laws=kept))
        assert [line.split()[2] for line in commands] == [f"launch.{name}" for name in names]


def test_the_plan_to_try_names_few_teachers(study_dir):
    """A study of chains printed a command of 64, seeds and students of students among them."""
    study = results.load(study_dir)
    teacher = study.teachers[0]
    many = tuple(
        dataclasses.replace(row, run=f"{seed}{D}", D=D, loss=2.5 - D / 1e6 + seed / 100, seed=seed, N=teacher.N)
        for row in [teacher]
        for D in range(100_000, 1_100_000, 100_000)
        for seed in (0, 1)
    )
    taught = tuple(
        dataclasses.replace(run, run=f"s{run.run}", teacher=row.run) for run, row in zip(study.distilled, many)
    )
    study = dataclasses.replace(study, runs=(*study.runs, *many, *taught))
    line = next(line for line in analysis.next_commands(study_dir, study) if "launch.plan" in line)
    named = line.partition("--teachers=")[2].split()[0].split(",")
    assert len(named) == 8 and len({name.split(":")[0] for name in named}) == 8
    assert named[0].endswith(":1.5000"), "the lowest loss first, of the better seed"


def test_the_screen_takes_bare_rows_and_cuts_long_tables():
    text = shown(terminal.summary(rows(), limit=10))
    assert "26 rows not shown" in text and "Advice" not in text
    assert sum(line.strip().startswith(("6K", "25K", "56K")) for line in text.splitlines()) == 10


def test_the_command_rewrites_the_page(bare, capsys):
    assert report.main([f"--workdir={bare}"]) == 0
    assert (bare / "report" / "index.html").exists()
    assert str(bare / "report" / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--workdir=DIR is needed"),
        (["--workdri=x"], "Did you mean --workdir?"),
        (["x"], "got 'x', wanted --name=value"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    from launch.support import cli

    assert cli.guard(report.main, argv) == 2
    assert message in capsys.readouterr().err


def test_a_study_of_repeated_text_reads_its_unique_tokens(tmp_path):
    """Its laws, the predictions of its runs and its page: Eq. 8 took repeated text for fresh, and said nothing."""
    published = Path(__file__).parents[2] / "docs" / "study" / "repeats"
    for name in ("runs.csv", "study.json"):
        shutil.copy(published / name, tmp_path / name)
    config = tree.from_text(StudyExperimentConfig, (published / "config.txt").read_text())
    config = dataclasses.replace(config, study=dataclasses.replace(config.study, resamples=8))
    table = StudyTable.read(tmp_path / "runs.csv")
    assert analysis.forms(table.runs) == ("additive-penalty", "distillation-unique")
    assert analysis.forms([run for run in table.runs if run.D_unique == run.D]) == ("supervised", "distillation")
    fitted = analysis.fit(config, table)
    assert fitted.reasons == () and fitted.distillation.error[0] < 0.006
    tasks = [task for task in matrix.expand(config, tmp_path) if task.name in ("s@500K", "s@500K/31250")]
    assert analysis.predict(fitted, tasks, table) == 2
    fresh, repeated = sorted(row.predicted for row in PredictionTable(tmp_path / "predictions.csv").load())
    assert repeated - fresh > 0.3, "measured: 1.82 and 2.57"
    assert "Distil a 101K student" in analysis.advise(config, fitted, table)
    assert "distillation law" in write.write(results.load(table)).read_text()
