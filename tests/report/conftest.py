"""A study that never ran: rows drawn from known laws of the paper's forms, at micro scale, with 1% noise."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill import laws
from distill.records.predictions import PredictionRecord, PredictionTable
from distill.records.runs import CurvePoint, CurveTable, RunRecord, RunTable

SUPERVISED = laws.Supervised(A=12.4, B=132.7, E=0.9, alpha=0.408, beta=0.431, gamma=0.452)
DISTILLATION = laws.Distillation(
    A=2.6, B=858.0, alpha=0.321, beta=0.637, gamma=0.764, c0=2.549, c1=522.6, f1=0.09, d1=1.315, supervised=SUPERVISED
)
SIZES = {"16x2": 6_000, "32x2": 25_000, "48x2": 56_000}
BUDGETS = (125_000, 250_000, 500_000)
TEACHERS = (("32x2", 250_000), ("32x2", 1_000_000), ("64x2", 500_000), ("64x2", 1_000_000))
NOISE = 0.01


def rows(seeds: tuple[int, ...] = (0,), noise: float = NOISE) -> list[RunRecord]:
    """Teachers, supervised runs and students of every size, budget and teacher."""
    generator = np.random.default_rng(7)
    sizes = SIZES | {"64x2": 98_000}
    found: list[RunRecord] = []

    def add(model: str, D: int, seed: int, half: str, teacher: RunRecord | None = None) -> RunRecord:
        N = sizes[model]
        L = SUPERVISED(N, D) if teacher is None else DISTILLATION(N, D, teacher.loss)
        minute = len(found) % 60
        F = 4.0 * N
        record = RunRecord(
            run=f"{len(found):012x}", kind="distillation" if teacher else "supervised", N=N, D=D, D_unique=D,
            loss=float(L * np.exp(noise * generator.standard_normal())), loss_se=0.004,
            L_T=teacher.loss if teacher else None, teacher=teacher.run if teacher else None,
            N_T=teacher.N if teacher else None, D_T=teacher.D if teacher else None, flops_student=3 * F * D,
            flops_teacher=4.0 * teacher.N * D if teacher else 0.0, lambda_=1.0 if teacher else None,
            tau=1.0 if teacher else None, seed=seed,
            trunk=f"{half}-{model}-{teacher.run if teacher else ''}-{seed}", model=model, tokenizer="bytes",
            bits_per_byte=float(L / np.log(2)), kl=0.1 if teacher else None, agreement=0.7 if teacher else None,
            ece=0.02, start=f"2026-01-01T12:{minute:02d}:00+00:00", end=f"2026-01-01T12:{minute:02d}:50+00:00",
            machine="1 x cpu x86_64, 2 cores", commit="abc123def",
        )  # fmt: skip
        found.append(record)
        return record

    for seed in seeds:
        teachers = [add(model, D, seed, "teacher") for model, D in TEACHERS]
        for model in SIZES:
            for D in BUDGETS:
                add(model, D, seed, "student")
        for teacher in teachers:
            for model in SIZES:
                for D in BUDGETS:
                    add(model, D, seed, "student", teacher)
    return found


def write_study(workdir: Path, found: list[RunRecord]) -> Path:
    """All files of a study's workdir: tables, law files as the fitter saves them, ledger, plan, study.json."""
    RunTable(workdir / "runs.csv").append(found)
    CurveTable(workdir / "curves.csv").append(
        [
            CurvePoint(
                run=run.run, step=i, tokens=run.D * i // 30, flops=run.flops_student * i / 30,
                loss=run.loss * (1 + 1.2 * np.exp(-i / 4)),
            )
            for run in found
            for i in range(1, 31)
        ]
    )  # fmt: skip
    (workdir / "laws").mkdir()
    _save(SUPERVISED, workdir / "laws" / "supervised.json", {})
    spread = np.exp(0.02 * np.random.default_rng(1).standard_normal((2, 40)))
    draws = {name: [value] * 40 for name, value in DISTILLATION.values().items()}
    draws |= {
        "A": list(2.6 * spread[0]),
        "supervised": {k: [v] * 40 for k, v in SUPERVISED.values().items()} | {"E": list(0.9 * spread[1])},
    }
    _save(DISTILLATION, workdir / "laws" / "distillation.json", {"draws": draws})
    predictions = []
    for run in found:
        if run.L_T is not None and BUDGETS[-1] == run.D:
            middle = float(DISTILLATION(run.N, run.D, run.L_T))
            predictions.append(
                PredictionRecord(
                    run=run.run, N=run.N, D=run.D, L_T=run.L_T, predicted=middle, lower=middle * 0.985,
                    upper=middle * 1.015, level=0.9, law="distillation", made="2026-01-01T11:59:00+00:00",
                )
            )  # fmt: skip
    PredictionTable(workdir / "predictions.csv").add(predictions)
    (workdir / "laws" / "plan.json").write_text(json.dumps(PLAN))
    planned = {run.run: f"run-{i}" for i, run in enumerate(found)} | {"f" * 12: "s@1M>r@500K"}
    (workdir / "study.json").write_text(
        json.dumps({"command": "python -m launch.study --workdir=runs/smoke", "planned": planned})
    )
    failed = workdir / "runs" / ("f" * 12)
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("Traceback (most recent call last):\n  x\nMemoryError: <big>\n")
    return workdir


def _save(law: Any, path: Path, extra: dict[str, Any]) -> None:
    intervals = {name: [value * 0.7, value * 1.5] for name, value in law.values().items()}
    if "kappa" in law.combinations:
        intervals["kappa"] = [law.kappa * 0.9, law.kappa * 1.2]
        intervals["c1"] = [0.1, 1e8]
    law.save(
        path,
        status={"kind": "ok" if not extra else "not identified", "message": "" if not extra else "c1, d1 only kappa"},
        error={"mean": 0.008, "max": 0.03},
        rows=40,
        bootstrap={"resamples": 256, "failed": 3, "level": 0.9, "intervals": intervals},
        **extra,
    )


PLAN = {
    "scenario": "best_case", "teacher": "64x2 of 1M tokens", "constraint": "compute",
    "N_S": 56_000.0, "D_S": 3.8e6, "N_T": 4e5, "D_T": 1e8,
    "L_T": 1.2, "L_S": 1.28, "supervised": {"N": 56_000.0, "D": 9e6, "L": 1.37, "compute": 6e12},
    "bill": {"student": 2.5e12, "logits": 3.5e12, "teacher": 0.0, "serving": 0.0},
    "sentence": "Distil a 56K student on 3.8M tokens: expected loss 1.280 against 1.370.", "distil": True,
}  # fmt: skip


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    """A running Chromium."""
    if BROWSER is None:
        pytest.skip("no Chromium; install it with apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """visit(path or address, **context): a tab; errors, console messages and requests are kept in its `seen`."""
    contexts = []

    def open_page(place, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.seen = []
        page.on("pageerror", lambda error: page.seen.append(str(error)))
        page.on("console", lambda message: page.seen.append(message.text))
        page.on("request", lambda request: page.seen.append(request.url))
        page.goto(place.as_uri() if isinstance(place, Path) else place)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a complete study with one seed; read it, never change it."""
    return write_study(tmp_path_factory.mktemp("study"), rows())
