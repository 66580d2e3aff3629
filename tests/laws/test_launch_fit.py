"""launch.fit end to end: the printed table, the files, and one-line errors with nothing left behind."""

import json

import numpy as np
import pytest

from distill import laws
from launch import cli, fit

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
    monkeypatch.setattr("distill.runtime.cache_compilations", lambda directory=None: None)


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
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--law=chinchila"], "Did you mean 'chinchilla'"),
        (["--law=chinchilla"], "no column for N"),
        (["--law=chinchilla", "--columns=N"], "wanted NAME=COLUMN"),
        (["--law=chinchilla", "--columns=N=params,D=token"], "Did you mean 'tokens'"),
        (["--law=chinchilla", "--columns=N=params,D=tokens", "--holdout=E<1"], "no column 'E'"),
        (["--law=chinchilla", "--columns=N=params,D=tokens", "--rows=N<1.5e8 and D<1e10"], "2 rows for the 5"),
        (["--law=distillation", "--supervised=nothing.json"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(runs, tmp_path, capsys, flags, message):
    out = tmp_path / "made" / "law.json"
    code = cli.guard(fit.main, [f"--table={runs}", f"--out={out}", "--resamples=8", *flags])
    error = capsys.readouterr().err
    assert (code, error.count("\n"), error[:7]) == (2, 1, "error: ")
    assert message in error
    assert not out.parent.exists()
