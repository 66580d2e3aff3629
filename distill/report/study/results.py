"""The results of a study, read from its workdir and checked once: runs, curves, laws, predictions, plan, missing runs.

Only runs.csv is required. Optional files: curves.csv, laws/*.json, laws/plan.json, predictions.csv, study.json
({"command": the command line, "planned": {fingerprint: name}}) and runs/*/error.txt.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import ReportError
from distill.laws.forms import registry
from distill.laws.forms.law import Law
from distill.records.predictions import PredictionRecord, PredictionTable, carried
from distill.records.runs import CurvePoint, CurveTable, RunRecord
from distill.records.study_table import StudyTable
from distill.system.files import loads


@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedLaw:
    """A law file: the law, its status, errors and intervals (empty if the file has none)."""

    name: str  # the file's stem
    path: Path
    law: Law
    status: str
    message: str
    rows: int | None
    error: tuple[float, float] | None  # mean and maximal relative error in the sample
    intervals: Mapping[str, tuple[float, float]]
    level: float
    resamples: int
    failed: int

    @property
    def distilled(self) -> bool:
        """Whether it is a law of students (L_T is among its inputs)."""
        return "L_T" in self.law.inputs

    @property
    def title(self) -> str:
        return "distillation law" if self.distilled else "supervised law"

    def predict(self, run: RunRecord) -> float:
        """The law's loss for a run, nats per token."""
        L_T = float("nan") if run.L_T is None else run.L_T
        unique = run.D_unique
        values = {"N": run.N, "N_S": run.N, "D": run.D, "D_S": run.D, "L_T": L_T, "U": unique, "U_S": unique}
        return float(self.law(*(values[name] for name in self.law.inputs)))

    def covers(self, run: RunRecord) -> bool:
        """Whether the law applies to this kind of run."""
        known = {"N", "N_S", "D", "D_S", "L_T", "U", "U_S"}
        return self.distilled == (run.kind == "distillation") and set(self.law.inputs) <= known


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """The parts of a plan that a report needs: sentence, student, who pays, expected losses, bill (FLOPs)."""

    sentence: str
    scenario: str
    teacher: str  # '' if the plan trains its own
    N_S: float
    L_S: float
    compute: float
    supervised_L: float
    supervised_compute: float
    distil: bool  # the plan's advice


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblatedRun:
    """A student of an ablation: which student it varies, and its (field, value) pairs."""

    base: str
    run: RunRecord
    settings: tuple[tuple[str, str], ...]
    plain: bool  # whether it is the unchanged student


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a study's report needs. Students under other objectives are only in `ablated`."""

    workdir: Path
    runs: tuple[RunRecord, ...]
    curves: Mapping[str, tuple[CurvePoint, ...]] = dataclasses.field(default_factory=dict)
    laws: tuple[FittedLaw, ...] = ()
    predictions: tuple[PredictionRecord, ...] = ()
    carried: frozenset[str] = frozenset()  # runs that began under their prediction, whatever the clocks say
    plan: "PlanSummary | None" = None
    planned: Mapping[str, str] = dataclasses.field(default_factory=dict)  # fingerprint -> name
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> why
    command: str = ""
    ablated: tuple[AblatedRun, ...] = ()
    ablation_values: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # of every varied field

    @property
    def teachers(self) -> tuple[RunRecord, ...]:
        """The runs that teach, the weakest first."""
        names = {teacher for run in self.runs for teacher in run.teachers}
        return tuple(sorted((run for run in self.runs if run.run in names), key=lambda run: -run.loss))

    @property
    def distilled(self) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.kind == "distillation")

    @property
    def supervised(self) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.kind == "supervised")

    def name(self, run: RunRecord) -> str:
        """The study's name of a run; its model and tokens if no name is recorded."""
        return self.planned.get(run.run, f"{run.model} on {run.D:,d}" + (f" of {run.teacher}" if run.teacher else ""))

    def law(self, distilled: bool) -> FittedLaw | None:
        """The law of students, or that of supervised runs; the first by file name if there are several."""
        return next((law for law in self.laws if law.distilled == distilled), None)


def load(source: str | Path | StudyTable) -> Results:
    """Reads a study's results: `source` is its workdir, its loaded table, or only a table file.

    A table file is for example `laws.shipped("micro")`. Raises ReportError without finished runs, DistillError for a
    damaged file.
    """
    alone = not isinstance(source, StudyTable) and Path(source).is_file()
    if isinstance(source, StudyTable):
        table = source
    else:
        table = StudyTable.read(source if alone else Path(source) / "runs.csv")
    path, workdir, runs = table.path, table.workdir, table.runs
    if not runs:
        if path.exists():
            got = f"{path} has no finished run"
        else:
            got = f"{source} is a folder without runs.csv" if Path(path).parent.is_dir() else f"there is no {source}"
        raise ReportError(
            f"{got}; wanted the workdir of a study (python -m launch.study makes one) or of a run, or a table of runs"
        )
    _refuse_nonsense(path, runs)
    if alone:
        return Results(workdir=workdir, runs=runs)
    curves: dict[str, list[CurvePoint]] = {}
    for point in CurveTable(workdir / "curves.csv").load():
        curves.setdefault(point.run, []).append(point)
    note = _object(workdir / "study.json")
    planned = _texts(note.get("planned"))
    ablated = _ablated(workdir / "study.json", note, runs)
    varied = {one.run.run for one in ablated if not one.plain}
    predictions = tuple(PredictionTable(workdir / "predictions.csv").load())
    return Results(
        workdir=workdir,
        runs=tuple(run for run in runs if run.run not in varied),
        ablated=ablated,
        ablation_values=_values(note),
        curves={run: tuple(points) for run, points in curves.items()},
        laws=_laws(workdir),
        predictions=predictions,
        carried=carried(workdir, predictions),
        plan=_plan(workdir / "laws" / "plan.json"),
        planned=planned,
        missing=_missing(workdir, {run.run for run in runs}, planned),
        command=str(note.get("command", "")),
    )


def _refuse_nonsense(path: Path, runs: tuple[RunRecord, ...]) -> None:
    for line, run in enumerate(runs, 2):
        if run.kind not in ("supervised", "distillation", "generated"):
            raise ReportError(
                f"{path}, line {line}: kind is {run.kind!r}, wanted supervised, distillation or generated"
            )
        if run.kind == "distillation" and run.L_T is None:
            raise ReportError(f"{path}, line {line}: a distilled run without L_T; wanted its teacher's loss")
        if not (run.N > 0 and run.D > 0 and math.isfinite(run.loss) and run.loss > 0):
            raise ReportError(
                f"{path}, line {line}: N={run.N}, D={run.D}, loss={run.loss}; wanted positive, finite numbers"
            )


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file."""
    if not path.exists():
        return {}
    try:
        tree = loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); delete it and run the study again") from None
    if not isinstance(tree, dict):
        raise ReportError(f"{path}: wanted a JSON object, got {type(tree).__name__}")
    return tree


def _plan(path: Path) -> PlanSummary | None:
    tree = _object(path)
    if not tree:
        return None
    try:
        bill, other = tree["bill"], tree["supervised"]
        compute = sum(_finite_or_inf(bill[part]) for part in ("student", "logits", "teacher", "serving"))
        cheaper = compute < _finite_or_inf(other["compute"])
        return PlanSummary(
            sentence=str(tree["sentence"]),
            scenario=str(tree["scenario"]),
            teacher=str(tree["teacher"]),
            N_S=float(tree["N_S"]),
            L_S=float(tree["L_S"]),
            compute=compute,
            supervised_L=_finite_or_inf(other["L"]),
            supervised_compute=_finite_or_inf(other["compute"]),
            distil=cheaper if tree["constraint"] == "loss" else float(tree["L_S"]) < _finite_or_inf(other["L"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as damage:
        raise ReportError(f"{path}: damaged ({damage!r}); delete it and run the study again") from None


def _finite_or_inf(value: float | None) -> float:
    """A number of a plan; null in JSON means infinite."""
    return math.inf if value is None else float(value)


def _ablated(path: Path, note: dict[str, Any], runs: tuple[RunRecord, ...]) -> tuple[AblatedRun, ...]:
    """The finished students of an ablation, from the study's note."""
    known = note.get("ablated", {})
    try:
        return tuple(
            AblatedRun(
                base=str(known[run.run]["base"]),
                run=run,
                settings=tuple((str(field), str(value)) for field, value in known[run.run]["settings"]),
                plain=bool(known[run.run]["plain"]),
            )
            for run in runs
            if run.run in known
        )
    except (KeyError, TypeError, ValueError, OverflowError) as damage:
        raise ReportError(f"{path}: damaged ({damage!r}); run the study again to rewrite it") from None


def _values(note: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """The values of every varied field, in the order of the study's lines."""
    fields = note.get("values", {})
    if not isinstance(fields, dict):
        return {}
    return {str(field): tuple(map(str, values)) for field, values in fields.items()}


def _texts(tree: object) -> dict[str, str]:
    return {str(key): str(value) for key, value in tree.items()} if isinstance(tree, dict) else {}


def _laws(workdir: Path) -> tuple[FittedLaw, ...]:
    """All law files, supervised laws first."""
    laws = [law for file in sorted(workdir.glob("laws/*.json")) if (law := _law(file)) is not None]
    return tuple(sorted(laws, key=lambda law: law.distilled))


def _law(path: Path) -> FittedLaw | None:
    """The law of a file; None for JSON without one (such as a plan)."""
    tree = _object(path)
    if "form" not in tree:
        return None
    law = registry.from_dict(tree, str(path))
    boot = tree["bootstrap"] if isinstance(tree.get("bootstrap"), dict) else tree
    status = tree.get("status", "")
    kind, message = (status.get("kind", ""), status.get("message", "")) if isinstance(status, dict) else (status, "")
    error = tree.get("error")
    try:
        intervals = {name: (float(low), float(high)) for name, (low, high) in boot.get("intervals", {}).items()}
        return FittedLaw(
            name=path.stem,
            path=path,
            law=law,
            status=str(kind),
            message=str(message),
            rows=int(tree["rows"]) if "rows" in tree else None,
            error=(float(error["mean"]), float(error["max"])) if error else None,
            intervals=intervals,
            level=float(boot.get("level", 0.9)),
            resamples=int(boot.get("resamples", 0)),
            failed=int(boot.get("failed", 0)),
        )
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as damage:
        raise ReportError(f"{path}: intervals or errors are damaged ({damage}); fit the law again") from None


def _missing(workdir: Path, finished: set[str], planned: Mapping[str, str]) -> dict[str, str]:
    """Runs that were planned or started and are not in the table, by name, with one line of their error."""
    begun = {folder.parent.name for folder in workdir.glob("runs/*/config.txt")}
    reasons = {}
    for run in [*planned, *sorted(begun - set(planned))]:
        if run in finished:
            continue
        error = workdir / "runs" / run / "error.txt"
        if run.isalnum() and len(run) < 100 and error.exists():  # a plain name, not a path to another folder
            # A traceback says what happened on its last line.
            lines = error.read_text("utf-8", "replace").strip().splitlines() or ["failed"]
            why = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        else:
            why = "begun, not finished" if run in begun else "not run"
        reasons[planned.get(run, run)] = why
    return reasons
