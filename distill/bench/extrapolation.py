"""Do intervals hold beyond the runs of real tables? The largest budgets held out, predicted from the others, counted.

    python -m launch.bench extrapolation --out=docs/campaigns      # all tables; those of others lie in $DISTILL_DATA
    python -m launch.bench extrapolation --part=ours               # those that ship with this project
    python -m launch.bench extrapolation --summarise=docs/campaigns/extrapolation.jsonl

For each share of a table's runs by compute (40 to 90%) the forms are fitted to them, and the runs above, up to ten
times their largest compute, are predicted by the plain bootstrap (200 resamples, with the noise of a run) and by
`laws.extrapolate`, for each form and for their average. One JSON line a fit is appended at once, so the campaign can be
stopped and started again. Width is the mean width of the intervals (in logs) over that between the 5% and 95%
quantiles of the held-out errors themselves.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import outside, public
from distill.config import ConfigError
from distill.config.flags import Parser
from distill.laws.fitting.rows import rows_of, select
from distill.laws.forms.law import Law
from distill.laws.forms.registry import get
from distill.laws.uncertainty.edges import Edges
from distill.system import process

SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BANDS = {"2x": (1.0, 2.05), "4x": (2.05, 4.1), "10x": (4.1, 10.5)}  # the held-out compute over the largest fitted
_LEAST = 40  # held-out rows from which a table is shown alone
_OURS = ("micro", "entropy", "lambda")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One table, the forms that are fitted to it, and the law of Lsup where they are of students."""

    name: str
    runs: laws.Table
    forms: tuple[str, ...]
    supervised: Law | None = None
    delta: float = 1e-2


def cases(folder: Path | None, studies: Path = Path("docs/study")) -> Iterator[Case]:
    """The tables of others in `folder`, and our own studies'."""
    if folder is not None:
        for name, runs in public.tables(folder):
            forms = ("data-constrained", "chinchilla") if "U" in runs.columns else ("chinchilla", "supervised")
            yield Case(name=name, runs=runs, forms=forms, delta=1e-3 if name == "chinchilla" else 1e-2)
    students = ("distillation-limit", "overtaking")
    yield Case(name="apple", runs=laws.load_table("apple"), forms=students, supervised=laws.paper()[0], delta=1e-3)
    for name in _OURS:
        runs = laws.load_table(studies / name / "runs.csv", duplicates="keep")
        yield Case(name=name, runs=runs, forms=("chinchilla", "supervised"))
        if name == "micro":
            below = laws.fit("supervised", runs, delta=1e-2, units=False).law
            yield Case(name="micro students", runs=runs, forms=students, supervised=below)


def predicted(case: Case, share: float) -> Iterator[dict[str, object]]:
    """Held-out errors and intervals by band, one entry a form and one for their average; nothing where runs are few."""
    forms = [get(form) for form in case.forms]
    selected = select(forms[0], case.runs)
    rows = rows_of(forms[0], selected, units=False)
    law = laws.paper()[0] if case.supervised is None else laws.paper()[1]
    compute = Edges.of(law, rows.inputs).compute(*rows.inputs)
    seen = compute <= np.quantile(compute, share) + 1e-9
    far = np.exp(compute - compute[seen].max())
    held = ~seen & (far <= BANDS["10x"][1])
    if seen.sum() < 2 * max(len(form.parameters()) for form in forms) or not held.any():
        return
    options = {"supervised": case.supervised, "units": False, "delta": case.delta, "start_count": 64}
    fits = [laws.fit(form, selected.where(seen), **options) for form in forms]
    new = rows_of(forms[0], selected.where(held), units=False)
    inputs = [dict(zip(form.inputs, rows_of(form, selected.where(held), units=False).inputs)) for form in forms]
    plain = [laws.bootstrap(fit, resamples=200).predict(**at) for fit, at in zip(fits, inputs)]
    guesses = [(fit.law.name, laws.extrapolate(fit).predict(**at), p) for fit, at, p in zip(fits, inputs, plain)]
    if len({fit.law.inputs for fit in fits}) == 1:
        guesses.append(("average", laws.extrapolate(fits).predict(**inputs[0]), None))
    for name, guess, bootstrap in guesses:
        entry = {"table": case.name, "form": name, "share": share, "rows": int(seen.sum())}
        yield entry | {"bands": _bands(far[held], new.target, guess, bootstrap)}


def _bands(
    far: np.ndarray, target: np.ndarray, guess: laws.PredictionInterval, plain: laws.PredictionInterval | None
) -> dict[str, dict[str, object]]:
    """By band the errors (log, to 1e-4), and how many intervals hold and how wide they are on average."""
    bands = {}
    for name, (low, high) in BANDS.items():
        mine = (far > low) & (far <= high)
        if not mine.any():
            continue
        errors = np.log(guess.estimate / target)[mine]
        entry: dict[str, object] = {"errors": [round(float(e), 4) for e in errors]}
        for kind, one in (("calibrated", guess), ("plain", plain)):
            if one is not None:
                inside = (one.low <= target) & (target <= one.high)
                widths = np.log(one.high / one.low)[mine]
                entry[kind] = [int(inside[mine].sum()), round(float(widths.sum()), 5)]
        bands[name] = entry
    return bands


def campaign(path: Path, folder: Path | None) -> None:
    """Appends the missing entries of all cases to a log."""
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(entry["table"], entry["share"]) for entry in map(json.loads, lines)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in cases(folder):
        for share in SHARES:
            if (case.name, share) not in done:
                entries = "".join(json.dumps(entry) + "\n" for entry in predicted(case, share))
                with path.open("a") as file:
                    file.write(entries)


def summarise(path: Path) -> str:
    """The coverage and width by form and distance, pooled and the mean over tables, and by table, as Markdown."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {"each form": lambda form: form != "average", "their average": lambda form: form == "average"}
    out = ["| 90% intervals | distance | rows | hold | mean of tables | width | plain bootstrap | its width |"]
    out.append("|" + "---|" * 8)
    for kind, wanted in kinds.items():
        for band in BANDS:
            parts = [(e["table"], e["bands"][band]) for e in entries if wanted(e["form"]) and band in e["bands"]]
            if parts:
                out.append(f"| {kind} | {band} | " + " | ".join(_row(parts)) + " |")
    out += ["", "| table | form | rows | hold | width | plain bootstrap | its width |", "|" + "---|" * 7]
    for table, form in dict.fromkeys((e["table"], e["form"]) for e in entries):
        parts = [(table, b) for e in entries if (e["table"], e["form"]) == (table, form) for b in e["bands"].values()]
        if sum(len(part["errors"]) for _, part in parts) >= _LEAST:
            cells = _row(parts)
            out.append(f"| {table} | {form} | " + " | ".join([*cells[:2], *cells[3:]]) + " |")
    return "\n".join(out)


def _row(parts: Sequence[tuple[str, dict]]) -> list[str]:
    """Rows, coverage, its mean over tables, width; coverage and width of the plain bootstrap ('' without)."""
    errors = np.concatenate([part["errors"] for _, part in parts])
    spread = float(np.quantile(errors, 0.95) - np.quantile(errors, 0.05))
    cells = [str(len(errors))]
    for kind in ("calibrated", "plain"):
        counted = [(table, part[kind], len(part["errors"])) for table, part in parts if kind in part]
        if not counted:
            return [*cells, "", ""]
        held, total = sum(one[0] for _, one, _ in counted), sum(n for *_, n in counted)
        by_table: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for table, one, n in counted:
            by_table[table][0] += one[0]
            by_table[table][1] += n
        mean = np.mean([inside / n for inside, n in by_table.values()])
        width = sum(one[1] for _, one, _ in counted) / total / max(spread, 1e-9)
        cells += [f"{held / total:.0%}", *([f"{mean:.0%}"] if kind == "calibrated" else []), f"{width:.2f}"]
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the campaign, or prints the summary of a log."""
    parser = Parser("bench extrapolation", __doc__)
    parser.add_argument("--part", default="all", choices=("all", "ours"), help="ours: only tables that ship")
    parser.add_argument("--out", type=Path, default=Path("docs/campaigns"), help="folder of the log")
    parser.add_argument("--summarise", type=Path, default=None, metavar="LOG", help="print the summary of a log")
    flags = parser.parse_args(argv)
    if flags.summarise is None:
        process.cache_compilations()
        folder = outside.folder()
        if folder is None and flags.part == "all":
            raise ConfigError(f"{outside.MISSING}; --part=ours needs none")
        flags.summarise = flags.out / "extrapolation.jsonl"
        campaign(flags.summarise, folder if flags.part == "all" else None)
    elif not flags.summarise.exists():
        raise ConfigError(f"--summarise={flags.summarise}: no such file; wanted a log of this campaign")
    print(summarise(flags.summarise))
    return 0
