"""Fits a study's laws to its table, and makes its predictions and its plan from them."""

import dataclasses
import datetime
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill import data, laws
from distill.config import DistillError, StudyExperimentConfig, counts
from distill.laws.fitting.fit import NOT_ASSESSED
from distill.laws.fitting.table import make_table
from distill.laws.planning import lawfile
from distill.laws.planning import text as plan_text
from distill.records.predictions import PredictionRecord, PredictionTable
from distill.records.runs import RunRecord, RunTable, as_columns
from distill.records.study_table import StudyTable
from distill.report.study.results import FittedLaw, Results
from distill.study.matrix import PlannedRun, models
from distill.system.files import atomic_write, loads
from distill.system.numbers import si

LEVEL = 0.9
_SHOWN = 8  # teachers in a command that is printed
CALIBRATED, BOOTSTRAP = "calibrated", "bootstrap alone"  # where a prediction's interval is from
# About the noise of a small run: better than 1e-3 for tables of tens of runs (docs/results/laws.md, "Which delta").
DELTA = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyLaws:
    """Both laws of a study with the bootstrap by trunk, calibrated where there are budgets enough to predict the
    largest from the others; None if the table is too small, with the `reasons`."""

    supervised: laws.Fit | None = None
    distillation: laws.Fit | None = None
    supervised_boot: laws.Bootstrap | None = None
    boot: laws.Bootstrap | None = None
    reasons: tuple[str, ...] = ()


def fit(config: StudyExperimentConfig, table: StudyTable) -> StudyLaws:
    """Fits Eq. 1, then Eq. 8 on top of it, to the runs of the table; saves both to WORKDIR/laws.

    Where runs repeat their text both forms read the unique tokens: Eq. 1 and Eq. 8 would take them for fresh. If the
    table is too small for a law, the law is None and the reason is given.
    """
    if config.study.ablations:
        return StudyLaws(reasons=("this study varies the objective, and a law is of one objective",))
    if not table.runs:
        return StudyLaws(reasons=("there is no finished run yet",))
    columns, folder = law_table(table), table.workdir / "laws"
    supervised = supervised_boot = distillation = boot = None
    reasons: list[str] = []
    resampling: dict[str, Any] = {"resamples": config.study.resamples, "cluster": "trunk"}
    of_runs, of_students = forms(table.runs)
    try:
        supervised = laws.fit(of_runs, columns, delta=DELTA, units=False)
        supervised_boot = laws.calibrated(laws.bootstrap(supervised, **resampling))
        lawfile.write(folder / "supervised.json", supervised, supervised_boot, level=LEVEL)
        distillation = laws.fit(of_students, columns, supervised=supervised.law, delta=DELTA, units=False)
        boot = laws.calibrated(laws.bootstrap((supervised, distillation), **resampling))
        lawfile.write(
            folder / "distillation.json",
            distillation,
            boot,
            first=supervised,
            level=LEVEL,
            region=region_of(table),
            flops=flops_of(config),
        )
    except laws.LawError as error:
        reasons.append(str(error))
    return StudyLaws(
        supervised=supervised,
        distillation=distillation,
        supervised_boot=supervised_boot,
        boot=boot,
        reasons=tuple(reasons),
    )


def forms(runs: Sequence[RunRecord]) -> tuple[str, str]:
    """The forms of supervised runs and of students that read what these runs differ in."""
    repeated = any(run.D_unique < 0.99 * run.D for run in runs)
    return ("additive-penalty", "distillation-unique") if repeated else ("supervised", "distillation")


def law_table(table: StudyTable) -> laws.Table:
    """The columns that laws are fitted to: those of `laws.load_table`, the runs by name.

    Runs end in another order on other machines, and an optimiser's sums differ by the order of their terms (2e-6 of a
    parameter): in one order, the same runs make the same law.
    """
    lines = sorted(range(len(table.runs)), key=lambda i: table.runs[i].run)
    names, rows = as_columns([table.runs[i] for i in lines], RunTable(table.path).columns)
    return make_table(names, rows, str(table.path), table.sha256, lines=[2 + i for i in lines])


def flops_of(config: StudyExperimentConfig) -> laws.Flops:
    """F(N) fitted to the study's models: at micro scale neither 2N nor the paper's closed form holds."""
    sizes = models(config).values()
    return laws.Flops.through(
        [counts.non_embedding(m) for m in sizes], [counts.forward_flops(m, config.seq_len) for m in sizes]
    )


def region_of(table: StudyTable) -> laws.Region:
    """The region that the finished runs cover."""
    return laws.Region.of(
        N=[run.N for run in table.supervised],
        D=[run.D for run in table.supervised],
        N_S=[run.N for run in table.distilled],
        D_S=[run.D for run in table.distilled],
        L_T=[run.L_T for run in table.distilled],
    )


def predict(fitted: StudyLaws, tasks: Sequence[PlannedRun], table: StudyTable) -> int:
    """Records, before they start, the losses that the laws predict for these runs; returns the number of predictions.

    `table` gives the losses of their teachers. Runs without a fitted law are not predicted.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    predictions = [_predict(fitted, task, table, made) for task in tasks]
    known = [prediction for prediction in predictions if prediction is not None]
    PredictionTable(table.workdir / "predictions.csv").add(known)
    return len(known)


def _predict(fitted: StudyLaws, task: PlannedRun, table: StudyTable, made: str) -> PredictionRecord | None:
    N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
    unique = min(task.config.data.unique or D, D)
    L_T = _teacher_loss(task, table)
    if not task.config.teacher.run:
        fit, boot, law = fitted.supervised, fitted.supervised_boot, "supervised"
        known: dict[str, float] = {"N": N, "D": D, "U": unique}
    elif L_T is not None:
        fit, boot, law = fitted.distillation, fitted.boot, "distillation"
        known = {"N_S": N, "D_S": D, "L_T": L_T, "U_S": unique}
    else:
        return None
    if fit is None or boot is None:
        return None
    inputs = {name: known[name] for name in fit.law.inputs}
    low, high, how = interval(boot, **inputs)
    # A percentile interval need not contain the estimate; predictions.csv requires it.
    estimate = float(boot.estimate(**inputs))
    return PredictionRecord(
        run=task.run,
        N=N,
        D=D,
        L_T=L_T,
        predicted=estimate,
        lower=min(low, estimate),
        upper=max(high, estimate),
        level=LEVEL,
        law=f"{law}, {how}",
        made=made,
    )


def _teacher_loss(task: PlannedRun, table: StudyTable) -> float | None:
    """L_T of a run that has not begun: its teacher's loss; an ensemble's, as its finished students measured it."""
    teacher = table.by_fingerprint.get(task.config.teacher.run)
    if teacher is not None:
        return teacher.loss
    return next((run.L_T for run in table.distilled if run.teacher == task.config.teacher.run), None)


def interval(boot: laws.Bootstrap, **inputs: float) -> tuple[float, float, str]:
    """The interval of a new run's loss (nats per token) and where it is from: CALIBRATED by rolling forward, or
    BOOTSTRAP alone where too few budgets were run to tell how far the law holds."""
    reach = boot.calibration
    if reach is None or reach.kind == NOT_ASSESSED:
        plain = boot.predict(level=LEVEL, **inputs)
        return float(plain.low), float(plain.high), BOOTSTRAP
    at = [inputs[name] for name in boot.estimate.inputs]
    resampled = np.log(boot.evaluate(*(np.array([x]) for x in at)))[:, 0]
    draws = reach.draws([np.log(boot.estimate(*at))], [resampled], at, boot.seed)
    low, high = np.exp(np.percentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]))
    return float(low), float(high), CALIBRATED


def entropy_sentence(config: StudyExperimentConfig, fitted: Sequence[FittedLaw]) -> str:
    """The entropy rate of a generated language beside the fitted E of Eq. 1, in nats; '' for any other text."""
    law = next((law for law in fitted if not law.distilled and "E" in law.intervals), None)
    if config.data.source != "generated" or law is None:
        return ""
    rate, E = data.make_language(config.data.generated).entropy_rate(), law.law.values()["E"]
    low, high = law.intervals["E"]
    return f"The language's entropy is {rate:.4f} nats a token; E is fitted as {E:.4f} [{low:.4f}, {high:.4f}]."


def next_commands(workdir: Path, results: Results) -> list[str]:
    """Commands to try after a study: show its curves; plan with its law for four times the text and the study's own
    teachers; fit the law again with more resamples.

    Without a law of students the plan is replaced by writing the page again, and the supervised law is fitted.
    Without any law there is no fit either.
    """
    place = _shown(workdir)
    watch = _command("watch", place, "--once")
    fit = [f"--table={place}/runs.csv", "--units=asis", "--cluster=trunk", f"--delta={DELTA:g}", "--resamples=512"]
    fit.append(f"--out={place}-law.json")
    law = next((law for law in results.laws if law.distilled), None)
    if law is None or not results.distilled:
        commands = [watch, _command("report", f"--workdir={place}")]
        return [*commands, _command("fit", *fit, "--law=supervised")] if results.laws else commands
    N_S, D_S = max(run.N for run in results.distilled), max(run.D for run in results.distilled)
    plan = [f"--law={_shown(law.path)}", f"--N_S={si(N_S)}", f"--tokens={si(4 * D_S)}", "--scenario=best_case"]
    names = [f"{run.model}-{si(run.D)}:{si(run.N)}:{run.loss:.4f}" for run in _strongest(results.teachers)]
    plan.append(f"--teachers={','.join(names)}")
    return [watch, _command("plan", *plan), _command("fit", *fit, "--law=distillation", "--supervised=table")]


def _strongest(teachers: Sequence[RunRecord]) -> list[RunRecord]:
    """The best seed of each size and budget, and of those the few of lowest loss: a command that can be read."""
    best: dict[tuple[str, int], RunRecord] = {}
    for run in sorted(teachers, key=lambda run: run.loss):
        best.setdefault((run.model, run.D), run)
    return list(best.values())[:_SHOWN]


def _command(name: str, *arguments: str) -> str:
    return shlex.join(["python", "-m", f"launch.{name}", *arguments])


def _shown(path: Path) -> str:
    """A path relative to the current folder if it is inside, else unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def is_up_to_date(table: StudyTable) -> bool:
    """Whether the saved laws and plan were made from exactly this table."""
    plan, law = table.workdir / "laws" / "plan.json", table.workdir / "laws" / "distillation.json"
    if not plan.exists() or not law.exists():
        return False
    try:
        return bool(loads(law.read_text("utf-8"))["table"]["sha256"] == table.sha256)
    except (ValueError, KeyError, TypeError):
        return False  # a damaged law file is written again


def advise(config: StudyExperimentConfig, fitted: StudyLaws, table: StudyTable) -> str:
    """One sentence: the best teacher and budget for the requested student, from the study's laws and teachers.

    Also writes WORKDIR/laws/plan.json. Raises DistillError if study.ask_model is not among study.models.
    """
    if fitted.supervised is None or fitted.distillation is None:
        return "No advice: " + " ".join(fitted.reasons)
    sizes = {name: counts.non_embedding(model) for name, model in models(config).items()}
    asked = config.study.ask_model
    if asked and asked not in sizes:
        raise DistillError(f"config.study.ask_model={asked!r} is not among study.models: {', '.join(sizes)}")
    plan = laws.plan(
        fitted.supervised.law,
        fitted.distillation.law,
        N_S=float(sizes[asked] if asked else max(run.N for run in table.distilled)),
        tokens=float(config.study.ask_tokens or 2 * max(run.D for run in table.distilled)),
        scenario="best_case",
        boot=fitted.boot,
        flops=flops_of(config),
        teachers=[_teacher(run) for run in table.teachers],
        region=region_of(table),
    )
    text = json.dumps(plan_text.to_dict(plan), indent=1)
    atomic_write(table.workdir / "laws" / "plan.json", text + "\n")
    return plan.sentence()


def _teacher(run: RunRecord) -> laws.Teacher:
    return laws.Teacher(name=f"{run.model} of {run.D:,d} tokens", N=run.N, L=run.loss)
