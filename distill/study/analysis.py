"""From a study's table to its laws, its predictions, its advice and its report."""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import data, laws
from distill.config import DistillError, StudyExperimentConfig, counts
from distill.laws.planning import lawfile
from distill.laws.planning import text as plan_text
from distill.records.predictions import Prediction, PredictionTable
from distill.records.runs import RunTable
from distill.report.study.results import FittedLaw
from distill.study.matrix import Planned, models
from distill.system.files import atomic_write

LEVEL = 0.9
# About the noise of a small run: better than 1e-3 for tables of tens of runs (docs/guide/laws.md, "Objective").
DELTA = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laws:
    """Both laws of a study with the bootstrap by trunk; None where the table is too small, and `why`."""

    supervised: laws.Fit | None = None
    distillation: laws.Fit | None = None
    supervised_boot: laws.Bootstrap | None = None
    boot: laws.Bootstrap | None = None
    why: tuple[str, ...] = ()


def fit(config: StudyExperimentConfig, workdir: Path) -> Laws:
    """Fits Eq. 1, then Eq. 8 on top of it, to the runs so far; saves both to WORKDIR/laws.

    A law that the table is too small for is left out, with the reason.
    """
    if config.study.ablations:
        return Laws(why=("this study varies the objective, and a law is of one objective",))
    table_path = workdir / "runs.csv"
    if not table_path.exists():
        return Laws(why=("there is no finished run yet",))
    table = laws.load_table(table_path)
    supervised = supervised_boot = distillation = boot = None
    why: list[str] = []
    resampling: dict[str, Any] = {"resamples": config.study.resamples, "cluster": "trunk"}
    try:
        supervised = laws.fit("supervised", table, delta=DELTA, units=False)
        supervised_boot = laws.bootstrap(supervised, **resampling)
        lawfile.write(workdir / "laws" / "supervised.json", supervised, supervised_boot, level=LEVEL)
        distillation = laws.fit("distillation", table, supervised=supervised.law, delta=DELTA, units=False)
        boot = laws.bootstrap((supervised, distillation), **resampling)
        lawfile.write(
            workdir / "laws" / "distillation.json",
            distillation,
            boot,
            first=supervised,
            level=LEVEL,
            region=region_of(workdir),
            flops=flops_of(config),
        )
    except laws.LawError as error:
        why.append(str(error))
    return Laws(
        supervised=supervised,
        distillation=distillation,
        supervised_boot=supervised_boot,
        boot=boot,
        why=tuple(why),
    )


def flops_of(config: StudyExperimentConfig) -> laws.Flops:
    """F(N) through the study's own models: at micro scale neither 2N nor the paper's closed form holds."""
    sizes = models(config).values()
    return laws.Flops.through(
        [counts.non_embedding(m) for m in sizes], [counts.forward_flops(m, config.seq_len) for m in sizes]
    )


def region_of(workdir: Path) -> laws.Region:
    """What the finished runs cover."""
    records = RunTable(workdir / "runs.csv").load()
    alone = [r for r in records if r.kind == "supervised"]
    taught = [r for r in records if r.kind == "distillation"]
    return laws.Region.of(
        N=[r.N for r in alone],
        D=[r.D for r in alone],
        N_S=[r.N for r in taught],
        D_S=[r.D for r in taught],
        L_T=[r.L_T for r in taught],
    )


def predict(found: Laws, tasks: Sequence[Planned], workdir: Path) -> int:
    """Writes down, before they start, what the laws so far say of these runs; returns how many were predicted."""
    losses = {r.run: r.loss for r in RunTable(workdir / "runs.csv").load()}
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    predictions = []
    for task in tasks:
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        L_T = losses.get(task.config.teacher.run)
        if task.config.teacher.run:
            if found.boot is None or L_T is None:
                continue
            said, law = found.boot.predict(level=LEVEL, N_S=N, D_S=D, L_T=L_T), "distillation"
        elif found.supervised_boot is not None:
            said, law = found.supervised_boot.predict(level=LEVEL, N=N, D=D), "supervised"
        else:
            continue
        # An interval of percentiles need not hold the estimate itself; the ledger wants it to.
        estimate = float(said.estimate)
        lower, upper = min(float(said.low), estimate), max(float(said.high), estimate)
        predictions.append(
            Prediction(
                run=task.run,
                N=N,
                D=D,
                L_T=L_T,
                predicted=estimate,
                lower=lower,
                upper=upper,
                level=LEVEL,
                law=law,
                made=made,
            )  # fmt: skip
        )
    PredictionTable(workdir / "predictions.csv").add(predictions)
    return len(predictions)


def truth(config: StudyExperimentConfig, fitted: Sequence[FittedLaw]) -> str:
    """One sentence where the text is a language of known entropy, else '': its rate beside the E of Eq. 1, in nats."""
    law = next((law for law in fitted if not law.distilled and "E" in law.intervals), None)
    if config.data.source != "generated" or law is None:
        return ""
    rate, E = data.make_language(config.data.generated).entropy_rate(), law.law.values()["E"]
    low, high = law.intervals["E"]
    return f"The language's entropy is {rate:.4f} nats a token; E is fitted as {E:.4f} [{low:.4f}, {high:.4f}]."


def concluded(workdir: Path) -> bool:
    """Whether the laws and the advice were already drawn from this very table."""
    plan, law = workdir / "laws" / "plan.json", workdir / "laws" / "distillation.json"
    if not plan.exists() or not law.exists():
        return False
    fitted = json.loads(law.read_text("utf-8"))["table"]["sha256"]
    return fitted == laws.load_table(workdir / "runs.csv").digest


def advise(config: StudyExperimentConfig, found: Laws, workdir: Path) -> str:
    """One sentence: the best teacher and budget for the asked student, from the study's own laws and teachers.

    Also writes WORKDIR/laws/plan.json.
    """
    if found.supervised is None or found.distillation is None:
        return "No advice: " + " ".join(found.why)
    records = RunTable(workdir / "runs.csv").load()
    taught = [r for r in records if r.kind == "distillation"]
    names = {r.teacher for r in taught}
    zoo = [laws.Teacher(name=f"{r.model} of {r.D:,d} tokens", N=r.N, L=r.loss) for r in records if r.run in names]
    sizes = {name: counts.non_embedding(model) for name, model in models(config).items()}
    asked = config.study.ask_model
    if asked and asked not in sizes:
        raise DistillError(f"config.study.ask_model={asked!r} is not among study.models: {', '.join(sizes)}")
    size = sizes[asked] if asked else max(r.N for r in taught)
    tokens = config.study.ask_tokens or 2 * max(r.D for r in taught)
    advice = laws.plan(
        found.supervised.law,
        found.distillation.law,
        N_S=float(size),
        tokens=float(tokens),
        scenario="best_case",
        boot=found.boot,
        flops=flops_of(config),
        teachers=zoo,
        region=region_of(workdir),
    )
    atomic_write(workdir / "laws" / "plan.json", json.dumps(plan_text.to_dict(advice), indent=1) + "\n")
    return advice.sentence()
