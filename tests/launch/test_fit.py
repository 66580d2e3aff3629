"""launch.fit end to end: the printed table, the files, and one-line errors with nothing left behind."""

import json
from pathlib import Path

import numpy as np
import pytest

from distill import laws
from distill.laws.forms import registry
from launch import fit, plan
from launch.support import cli

TRUE = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)


@pytest.fixture
def runs(tmp_path):
    generator = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 6), np.geomspace(2e9, 2e11, 6)))
    loss = TRUE(N, D) * np.exp(0.003 * generator.standard_normal(36))
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n" + "".join(f"{n},{d},{v}\n" for n, d, v in zip(N, D, loss)))
    return path


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr("distill.system.process.cache_compilations", lambda directory=None: None)


def test_a_fit_from_the_command_line(runs, tmp_path, capsys):
    out = tmp_path / "law.json"
    flags = ["--law=chinchilla", "--columns=N=params,D=tokens", "--holdout=D>1e11", "--resamples=64", f"--out={out}"]
    assert cli.guard(fit.main, [f"--table={runs}", *flags]) == 0
    text = capsys.readouterr().out
    for part in ("estimate", "90% interval", "status     ok", "64 resamples (pairs), 0 failed", "held out (6 runs)"):
        assert part in text
    tree = json.loads(out.read_text())
    assert laws.load(out)(1e9, 1e11) == pytest.approx(TRUE(1e9, 1e11), rel=0.01)
    assert tree["status"]["kind"] == "ok" and len(tree["table"]["sha256"]) == 64
    assert tree["held_out"]["rows"] == 6 and set(tree["bootstrap"]["intervals"]) == set("ABE") | {"alpha", "beta"}
    assert len(tree["draws"]["E"]) == 64
    N, D = 4e9, 2e11 ** (4 / 5) * 2e9 ** (1 / 5)  # the largest budget is held out
    assert tree["region"] == {"N": [1e8, pytest.approx(N)], "D": [2e9, pytest.approx(D)]}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_path_of_deltas(runs, capsys):
    flags = [f"--table={runs}", "--law=chinchilla", "--columns=N=params,D=tokens", "--holdout=D>1e11"]
    assert cli.guard(fit.main, [*flags, "--delta=1e-4,1e-2"]) == 0
    lines = {line[:20].strip(): line[20:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["delta"] == ["0.0001", "0.01"]
    table = laws.load_table(runs, columns={"N": "params", "D": "tokens"}).where("D<=1e11")
    for column, delta in enumerate((1e-4, 1e-2)):
        alone = laws.fit("chinchilla", table, delta=delta)
        assert float(lines["E"][column]) == pytest.approx(alone.law.E, rel=1e-5)
        assert float(lines["objective"][column]) == pytest.approx(alone.objective, rel=1e-8)
    within = [float(share.rstrip("%")) for share in lines["rows within delta"]]
    assert within[0] < 50 < within[1] and len(lines["error held out"]) == 2


OWN = """
import dataclasses
from distill import laws

@dataclasses.dataclass(frozen=True)
class Tilted(laws.Law):
    A: float = laws.coefficient("N", exponent="alpha")
    E: float = laws.floor()
    alpha: float = laws.positive(0.05, 1.5)
    t: float = laws.bounded(0.0, 1.0)
    inputs = ("N", "D")

    def loss(self, xp, N, D):
        return self.E + self.A * N**-self.alpha * (1 + self.t * xp.log(1 + 20 * N / D))

@dataclasses.dataclass(frozen=True)
class Lean(laws.Law):
    m: float = laws.bounded(0.0, 1.0)
    supervised: laws.Law = dataclasses.field(kw_only=True)
    inputs = ("N_S", "D_S", "L_T")
    output = "L_S"

    def loss(self, xp, N_S, D_S, L_T):
        own = self.supervised.loss(xp, N_S, D_S)
        return own + self.m * (L_T - own) * xp.exp(-0.1 * xp.log(L_T / own) ** 2)
"""


def test_the_form_in_the_docs_is_ten_lines_and_works(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "laws.md").read_text()
    blocks = text.partition("### A form of your own")[2].split("```python\n")[1:3]
    code = [block.partition("```")[0] for block in blocks]
    body = code[0].partition("@dataclasses")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10
    (tmp_path / "mine.py").write_text("\n".join(code))
    assert registry.import_forms(tmp_path / "mine.py") == ["between", "saturating"]
    truth = laws.get("saturating")(A=400.0, E=1.8, alpha=0.33, t=0.3)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 5), np.geomspace(2e9, 2e11, 5)))
    found = laws.fit("saturating", laws.from_arrays(N=N, D=D, L=truth(N, D)))
    np.testing.assert_allclose(list(found.law.values().values()), list(truth.values().values()), rtol=1e-4)


def test_forms_of_ones_own_from_the_command_line_to_a_plan(tmp_path, capsys):
    """Both laws, the one inside the other: fitted, bootstrapped, saved, drawn and planned with nothing else written."""
    forms = tmp_path / "mine.py"
    forms.write_text(OWN)
    assert registry.import_forms(forms) == ["lean", "tilted"]
    inside = laws.get("tilted")(A=400.0, E=1.8, alpha=0.33, t=0.3)
    truth = laws.get("lean")(m=0.4, supervised=inside)
    generator = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 6), np.geomspace(2e9, 2e11, 6)))
    rows = "N,D,L\n" + "".join(
        f"{n},{d},{inside(n, d) * np.exp(0.002 * z)}\n" for n, d, z in zip(N, D, generator.standard_normal(36))
    )
    (tmp_path / "alone.csv").write_text(rows)
    L_T = np.resize([2.6, 2.3, 2.1], 36)
    rows = "".join(
        f"{n},{d},{t},{truth(n, d, t) * np.exp(0.002 * z)}\n"
        for n, d, t, z in zip(N, D, L_T, generator.standard_normal(36))
    )
    (tmp_path / "taught.csv").write_text("N_S,D_S,L_T,L_S\n" + rows)
    common = [f"--forms={forms}", "--resamples=32"]
    alone, taught = tmp_path / "alone.json", tmp_path / "taught.json"
    flags = [f"--table={tmp_path}/alone.csv", "--law=tilted", f"--out={alone}"]
    assert cli.guard(fit.main, [*common, *flags]) == 0
    flags = [f"--table={tmp_path}/taught.csv", "--law=lean", f"--supervised={alone}", f"--out={taught}"]
    assert cli.guard(fit.main, [*common, *flags]) == 0
    assert taught.with_suffix(".png").exists()
    capsys.readouterr()
    asked = [
        f"--forms={forms}",
        f"--law={taught}",
        "--N_S=1e9",
        "--compute=1e21",
        "--scenario=teacher_inference",
    ]
    assert cli.guard(plan.main, [*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = laws.plan(inside, truth, N_S=1e9, compute=1e21, scenario="teacher_inference")
    assert found["L_S"] == pytest.approx(best.L_S, rel=0.01)
    low, high = found["interval"]["L_S"]
    assert low <= found["L_S"] <= high and high - low < 0.05


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1\n", "defines no form"), ("import nothing_of_that_name\n", "(line 1)"), (None, "wanted a Python file")],
)
def test_a_file_without_forms_is_one_line(runs, tmp_path, capsys, text, message):
    path = tmp_path / "no_forms.py"
    if text:
        path.write_text(text)
    assert cli.guard(fit.main, [f"--table={runs}", f"--forms={path}", "--law=tilted"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--law=chinchilla", "--delta=1e-3,wide"], "wanted a positive number"),
        (["--law=chinchilla", "--delta=0"], "wanted a positive number"),
        (["--law=chinchilla", "--delta=1e-3,1e-2"], "prints only"),
        (["--law=chinchila"], "Did you mean 'chinchilla'"),
        (["--law=powerlaw"], "no column for x"),
        (["--law=chinchilla", "--columns=N"], "wanted NAME=COLUMN"),
        (["--law=chinchilla", "--columns=N=params,D=token"], "Did you mean 'tokens'"),
        (["--law=chinchilla", "--columns=N=params,D=tokens", "--holdout=E<1"], "no column 'E'"),
        (["--law=chinchilla", "--columns=N=params,D=tokens", "--rows=N<1.5e8 and D<1e10"], "2 rows for the 5"),
        (["--law=distillation", "--supervised=nothing.json"], "cannot be read"),
        (["--law=kaplan", "--columns=N=params,D=tokens", "--starts=published"], "no grid of starts was published"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(runs, tmp_path, capsys, flags, message):
    out = tmp_path / "made" / "law.json"
    code = cli.guard(fit.main, [f"--table={runs}", f"--out={out}", "--resamples=8", *flags])
    error = capsys.readouterr().err
    assert (code, error.count("\n"), error[:7]) == (2, 1, "error: ")
    assert message in error
    assert not out.parent.exists()


def report(capsys, *flags):
    """What a fit of few resamples prints."""
    assert cli.guard(fit.main, [*flags, "--resamples=8"]) == 0
    return capsys.readouterr().out


def test_an_export_needs_no_flags(runs, capsys):
    text = report(capsys, f"--table={runs}")
    assert text.startswith("supervised: 36 runs") and "N = params, D = tokens, L = loss; losses in nats" in text


def test_unfinished_runs_and_other_units(runs, tmp_path, capsys):
    """As exported: sizes in millions, losses in bits, a crashed run, one without a loss."""
    known = laws.load_table(runs)
    lines = ["Name;State;n_params;train/tokens;eval/loss"]
    for i in range(len(known)):
        N, D, L = (float(known[name][i]) for name in ("params", "tokens", "loss"))
        lines.append(f"r{i};finished;{N / 1e6!r};{D / 1e9!r}B;{float(L / np.log(2))!r}".replace(".", ","))
    lines += ["r98;crashed;none;oops;inf", "r99;finished;100,5;1B;"]
    path = tmp_path / "export.csv"
    path.write_text("sep=;\n" + "\n".join(lines).replace("e+", "e"))
    flags = [f"--table={path}", "--law=chinchilla", "--rows=State == finished", "--scale=N=1e6", "--loss-unit=bits"]
    text = report(capsys, *flags)
    for part in (
        "chinchilla: 36 runs",
        "N = n_params, D = train/tokens, L = eval/loss; losses in nats per token (stated as bits)",
        "n_params times 1e+06",
        "eval/loss converted from bits to nats per token",
        "--rows keeps 37 of 38 rows: State == finished",
        "1 row without a loss left out: 40",
    ):
        assert part in text, part
    same = report(capsys, f"--table={runs}", "--law=chinchilla")
    pick = lambda printed: [line.split()[1] for line in printed.splitlines() if line.startswith("E ")]
    assert pick(text) == pick(same)


def test_the_default_law_of_students(tmp_path, capsys):
    apple = laws.load_table("apple")
    text = report(capsys, "--table=apple")
    assert text.startswith("distillation: 354 runs of apple") and "D_S = D_S_nominal" in text
    assert len(apple) == 354


def test_suspect_rows_and_units_are_said(runs, capsys):
    lines = runs.read_text().splitlines()
    N, D, L = lines[8].split(",")
    lines[8] = f"{float(N) / 1e6},{D},{L}"
    runs.write_text("\n".join(lines))
    text = report(capsys, f"--table={runs}", "--law=chinchilla")
    assert "status     suspect rows: 1 row far outside" in text and "row 9 " in text and "N in millions, x1e6?" in text


def test_losses_in_bits_are_doubted(runs, capsys):
    known = laws.load_table(runs)
    lines = [f"{n},{d},{v}" for n, d, v in zip(known["params"], known["tokens"], known["loss"] / np.log(2))]
    runs.write_text("params,tokens,loss\n" + "\n".join(lines))
    text = report(capsys, f"--table={runs}", "--law=chinchilla")
    assert "units      E = 2.6" in text and "--loss-unit=bits" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale=N"], "--scale: got 'N', wanted NAME=FACTOR"),
        (["--scale=N=many"], "got 'many' for N, wanted a positive number"),
        (["--scale=M=1e6"], "no column for M"),
        (["--loss-unit=nat"], "Did you mean 'nats'"),
        (["--duplicates=drop"], "wanted one of error, mean, keep"),
        (["--flops=6nd"], "wanted one of 6ND, F"),
        (["--best-of=width"], "no column 'width'"),
        (["--rows=loss > 99"], "keeps none of the 36 rows"),
        (["--loss-unit=perplexity", "--weights=loss"], "standard errors of perplexities"),
    ],
)
def test_mistakes_in_reading_are_one_line(runs, capsys, flags, message):
    code = cli.guard(fit.main, [f"--table={runs}", "--resamples=8", *flags])
    error = capsys.readouterr().err
    assert (code, error.count("\n"), error[:7]) == (2, 1, "error: ") and message in error
