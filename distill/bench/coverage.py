"""Do the intervals hold what they promise? Repeated synthetic tables, fitted and bootstrapped, counted.

    python -m launch.bench coverage --case=all --repetitions=400 --out=docs/campaigns

Each case draws tables from a known law, fits the form, bootstraps it and asks whether the 90% intervals contain the
truth: of parameters, of identified combinations, of the law's predictions inside the data, three and ten times beyond
them, and of a new noisy run there. One JSON line a repetition is appended at once, so the campaign can be stopped and
started again; the summary is printed and written beside the log. 400 repetitions know a coverage of 90% to +-1.5%.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.config import ConfigError, nearest
from distill.config.flags import Parser
from distill.system import process

LEVEL = 0.9
SUPERVISED = laws.Supervised(A=3355.0, B=18186.0, E=1.22, alpha=0.408, beta=0.431, gamma=0.452)
STUDENT = laws.DistillationLimit(
    A=3379.0, B=25305.0, alpha=0.351, beta=0.423, gamma=0.707, c0=2.306, kappa=2.3, f1=0.104, supervised=SUPERVISED
)
NOISE = 0.008  # relative, of one run
TRUNK_NOISE = 0.008  # shared by the runs of a trunk, in cases with trunks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A law, the kind of bootstrap, and whether runs of a trunk share an error."""

    form: str
    kind: str = "pairs"
    cluster: str | None = None
    trunks: bool = False
    stages: int = (
        1  # 2: the supervised law is fitted too, and resampled; 3: fitted, but taken as known by the bootstrap
    )


CASES = {
    "chinchilla-pairs": Case(form="chinchilla"),
    "chinchilla-residual": Case(form="chinchilla", kind="residual"),
    "chinchilla-wild": Case(form="chinchilla", kind="wild"),
    "supervised-pairs": Case(form="supervised"),
    "supervised-residual": Case(form="supervised", kind="residual"),
    "supervised-trunks-pairs": Case(form="supervised", trunks=True),
    "supervised-trunks-clustered": Case(form="supervised", trunks=True, cluster="trunk"),
    "supervised-trunks-wild": Case(form="supervised", trunks=True, kind="wild", cluster="trunk"),
    "student-pairs": Case(form="distillation-limit"),
    "student-residual": Case(form="distillation-limit", kind="residual"),
    "eq8-pairs": Case(form="distillation"),
    "two-stage-pairs": Case(form="distillation-limit", stages=2),
    "two-stage-trunks-clustered": Case(form="distillation-limit", stages=2, trunks=True, cluster="trunk"),
    "two-stage-second-only": Case(form="distillation-limit", stages=3),
}


def supervised_table(case: Case, generator: np.random.Generator, truth: laws.Law) -> laws.Table:
    """72 runs: 9 model sizes x 8 budgets, three runs to a trunk."""
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 9), np.geomspace(2e9, 2e11, 8), indexing="ij"))
    trunk = np.arange(len(N)) // 3
    return _noisy(case, generator, truth, trunk, N=N, D=D)


def student_table(case: Case, generator: np.random.Generator) -> laws.Table:
    """120 students: 5 sizes x 6 budgets x 4 teachers, three runs to a trunk."""
    teachers = np.array([2.6, 2.35, 2.15, 2.0])
    grid = np.meshgrid(teachers, np.geomspace(1.5e8, 3e9, 5), np.geomspace(3e9, 1e11, 6), indexing="ij")
    L_T, N_S, D_S = (x.ravel() for x in grid)
    return _noisy(case, generator, STUDENT, 1000 + np.arange(len(N_S)) // 3, N_S=N_S, D_S=D_S, L_T=L_T)


def _noisy(case: Case, generator: np.random.Generator, truth: laws.Law, trunk: np.ndarray, **inputs: np.ndarray):
    error = NOISE * generator.standard_normal(len(trunk))
    shared = TRUNK_NOISE * generator.standard_normal(int(trunk.max()) + 1)[trunk] if case.trunks else 0.0
    loss = truth(**inputs) * np.exp(error + shared)
    return laws.from_arrays(trunk=[f"t{t}" for t in trunk], **inputs, **{truth.output: loss})


def repeat(case: Case, seed: int, resamples: int) -> tuple[dict[str, bool], int]:
    """One repetition: whether each interval contains the truth, by name, and the number of failed resamples."""
    generator = np.random.default_rng((7, seed))
    if case.form in ("chinchilla", "supervised"):
        truth: laws.Law = SUPERVISED
        if case.form == "chinchilla":
            truth = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)
        fit = laws.fit(case.form, supervised_table(case, generator, truth), seed=seed, start_count=64)
        boot = laws.bootstrap(fit, resamples=resamples, kind=case.kind, cluster=case.cluster, seed=seed)
        probes = [dict(N=1e9 * k, D=3e10 * k) for k in (1, 3, 10)]
    else:
        truth = STUDENT
        below = None
        if case.stages > 1:
            below = laws.fit("supervised", supervised_table(case, generator, SUPERVISED), seed=seed, start_count=64)
        known = below.law if below else SUPERVISED
        table = student_table(case, generator)
        fit = laws.fit(case.form, table, supervised=known, seed=seed, start_count=64)
        staged: laws.Fit | tuple[laws.Fit, laws.Fit] = (below, fit) if below and case.stages == 2 else fit
        boot = laws.bootstrap(staged, resamples=resamples, kind=case.kind, cluster=case.cluster, seed=seed)
        probes = [dict(N_S=8e8 * k, D_S=2e10 * k, L_T=L_T) for k, L_T in ((1, 2.25), (3, 2.05), (10, 1.85))]
    held = {}
    values = truth.values() | {name: getattr(truth, name) for name in truth.combinations}
    if case.form == "distillation":
        values = {"kappa": STUDENT.kappa, "f1": STUDENT.f1, "c0": STUDENT.c0}
    for name, (low, high) in boot.interval(LEVEL).items():
        if name in values:
            held[name] = bool(low <= values[name] <= high)
    error = NOISE * generator.standard_normal(3)
    shared = TRUNK_NOISE * generator.standard_normal(3) if case.trunks else np.zeros(3)
    for where, probe, noise in zip(("inside", "3x beyond", "10x beyond"), probes, error + shared):
        law = boot.predict(LEVEL, noise=False, **probe)
        run = boot.predict(LEVEL, noise=True, **probe)
        mean = truth(**probe)
        held[f"law {where}"] = bool(law.low <= mean <= law.high)
        held[f"new run {where}"] = bool(run.low <= mean * np.exp(noise) <= run.high)
    return held, int(boot.failed.sum())


def campaign(name: str, repetitions: int, resamples: int, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Runs the missing repetitions of a case and appends one line each; returns the log."""
    case, path = CASES[name], folder / f"coverage-{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["seed"] for line in lines[1:] if line.endswith("}")}
    if lines:  # all lines of a log have the same number of resamples
        resamples = json.loads(lines[0])["resamples"]
    else:
        header = {"case": name, **dataclasses.asdict(case), "level": LEVEL, "resamples": resamples, "noise": NOISE}
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(header | {"commit": process.commit(), "began": time.strftime("%F %T", time.gmtime())}) + "\n"
        )
    for seed in range(repetitions):
        if seed in done:
            continue
        began = time.monotonic()
        held, failed = repeat(case, seed, resamples)
        entry = {
            "seed": seed,
            "missed": [key for key, inside in held.items() if not inside],
            "failed": failed,
            "seconds": round(time.monotonic() - began, 2),
        }
        if seed == 0:
            entry["asked"] = list(held)
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    say(summarise(path))
    return path


def summarise(path: Path) -> str:
    """A table of coverages of one log, with the binomial standard error of each."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    header, entries = lines[0], lines[1:]
    asked = next(entry["asked"] for entry in entries if "asked" in entry)
    n = len(entries)
    seconds = sum(entry["seconds"] for entry in entries)
    failed = sum(entry["failed"] for entry in entries) / (n * header["resamples"])
    out = [
        f"{header['case']}: {n} repetitions x {header['resamples']} resamples, commit {header['commit']}, "
        f"{seconds:.0f} s, {failed:.2%} of resamples failed"
    ]
    for name in asked:
        share = 1 - sum(name in entry["missed"] for entry in entries) / n
        out.append(f"  {name:18s} {share:6.1%} +- {np.sqrt(share * (1 - share) / n):.1%}")
    return "\n".join(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the campaign of one case or of all."""
    parser = Parser("bench coverage", __doc__)
    parser.add_argument("--case", default="all", help=f"all, or one of {', '.join(CASES)}")
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("docs/campaigns"))
    flags = parser.parse_args(argv)
    if flags.case != "all" and flags.case not in CASES:
        raise ConfigError(f"case {flags.case!r}; wanted all or one of {', '.join(CASES)}.{nearest(flags.case, CASES)}")
    for name in CASES if flags.case == "all" else [flags.case]:
        campaign(name, flags.repetitions, flags.resamples, flags.out)
    return 0
