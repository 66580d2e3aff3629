"""Do intervals hold beyond the runs of real tables? The largest budgets held out, predicted from the others, counted.

    python -m launch.bench extrapolation --out=docs/campaigns      # all tables; those of others lie in $DISTILL_DATA
    python -m launch.bench extrapolation --part=ours               # those that ship with this project
    python -m launch.bench extrapolation --tables=micro --forms=kaplan,farseer   # forms beside, of some tables
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
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import museum, outside, public
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
# Forms that are averaged where a table's forms have both; other tables are not rolled forward by size times tokens.
AVERAGED = (("chinchilla", "supervised"), ("data-constrained", "chinchilla"), ("distillation-limit", "overtaking"))
_TWICE = {f"gemstones {part}" for part in public.GEMSTONES} | {"scalebench lr_bsz"}  # runs of other tables here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One table, the forms that are averaged, those judged `beside` them, and Lsup where they are of students."""

    name: str
    runs: laws.Table
    forms: tuple[str, ...]
    beside: tuple[str, ...] = ()
    supervised: Law | None = None
    delta: float = 1e-2


def cases(folder: Path | None) -> Iterator[Case]:
    """The tables that ship, and those of others in `folder`."""
    for one in museum.specimens(folder):
        forms = next((pair for pair in AVERAGED if set(pair) <= set(one.forms)), None)
        if forms and one.name not in _TWICE:
            beside = tuple(form for form in one.forms if form not in forms)
            delta = 1e-3 if one.name in ("chinchilla", "apple students") else 1e-2
            yield Case(name=one.name, runs=one.all, forms=forms, beside=beside, supervised=one.given, delta=delta)


def predicted(case: Case, share: float, known: Container[str] = ()) -> Iterator[dict[str, object]]:
    """Held-out errors and intervals by band, one entry a form and one for their average; nothing where runs are few.

    Forms that are `known`, and their average, are not fitted again.
    """
    again = () if all(form in known for form in case.forms) else case.forms
    forms = [get(form) for form in (*again, *(form for form in case.beside if form not in known))]
    selected = select(get(case.forms[0]), case.runs)
    rows = rows_of(get(case.forms[0]), selected, units=False)
    law = laws.paper()[0] if case.supervised is None else laws.paper()[1]
    compute = Edges.of(law, rows.inputs).compute(*rows.inputs)
    seen = compute <= np.quantile(compute, share) + 1e-9
    far = np.exp(compute - compute[seen].max())
    held = ~seen & (far <= BANDS["10x"][1])
    enough = {form for form in (*case.forms, *case.beside) if seen.sum() >= 2 * len(get(form).parameters())}
    forms = [form for form in forms if form.name in enough]
    if not forms or not held.any() or not set(case.forms) <= enough:
        return
    options = {"supervised": case.supervised, "units": False, "delta": case.delta, "start_count": 64}
    fits = [laws.fit(form, selected.where(seen), **options) for form in forms]
    new = rows_of(forms[0], selected.where(held), units=False)
    inputs = [dict(zip(form.inputs, rows_of(form, selected.where(held), units=False).inputs)) for form in forms]
    plain = [laws.bootstrap(fit, resamples=200).predict(**at) for fit, at in zip(fits, inputs)]
    guesses = [(fit.law.name, laws.extrapolate(fit).predict(**at), p) for fit, at, p in zip(fits, inputs, plain)]
    averaged = [fit for fit in fits if fit.law.name in case.forms]
    if averaged and len({fit.law.inputs for fit in averaged}) == 1:
        guesses.append(("average", laws.extrapolate(averaged).predict(**inputs[0]), None))
    for name, guess, bootstrap in guesses:
        entry = {"table": case.name, "form": name, "share": share, "rows": int(seen.sum())}
        if name in case.beside:
            entry["beside"] = True
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


def campaign(path: Path, folder: Path | None, tables: Sequence[str] = (), forms: Sequence[str] = ()) -> None:
    """Appends the missing entries of all cases to a log, or of some tables and of some forms."""
    lines = path.read_text().splitlines() if path.exists() else []
    done: dict[tuple[str, float], set[str]] = defaultdict(set)
    for entry in map(json.loads, lines):
        done[entry["table"], entry["share"]].add(entry["form"])
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in cases(folder):
        if tables and case.name not in tables:
            continue
        others = {form for form in (*case.forms, *case.beside) if forms and form not in forms}
        for share in SHARES:
            known = done[case.name, share] | others
            entries = "".join(json.dumps(entry) + "\n" for entry in predicted(case, share, known))
            with path.open("a") as file:
                file.write(entries)


def read(path: Path) -> list[dict]:
    """The entries of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def coverage(entries: Sequence[dict], table: str, form: str) -> tuple[float, float, int] | None:
    """Coverage and width of the calibrated 90% intervals of one form on one table, and how many rows are behind them.

    None below 40 rows.
    """
    parts = [(table, band) for e in entries if (e["table"], e["form"]) == (table, form) for band in e["bands"].values()]
    rows = sum(len(part["errors"]) for _, part in parts)
    if rows < _LEAST:
        return None
    inside = sum(part["calibrated"][0] for _, part in parts)
    errors = np.concatenate([part["errors"] for _, part in parts])
    spread = float(np.quantile(errors, 0.95) - np.quantile(errors, 0.05))
    return inside / rows, sum(part["calibrated"][1] for _, part in parts) / rows / max(spread, 1e-9), rows


def summarise(path: Path) -> str:
    """The coverage and width by form and distance, pooled and the mean over tables, and by table, as Markdown."""
    entries = [entry for entry in read(path) if not entry.get("beside")]
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
    parser.add_argument("--tables", default="", metavar="NAMES", help="these alone, separated by commas")
    parser.add_argument("--forms", default="", metavar="NAMES", help="these alone, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("docs/campaigns"), help="folder of the log")
    parser.add_argument("--summarise", type=Path, default=None, metavar="LOG", help="print the summary of a log")
    flags = parser.parse_args(argv)
    if flags.summarise is None:
        process.cache_compilations()
        folder = outside.folder()
        if folder is None and flags.part == "all":
            raise ConfigError(f"{outside.MISSING}; --part=ours needs none")
        flags.summarise = flags.out / "extrapolation.jsonl"
        chosen = [[name for name in names.split(",") if name] for names in (flags.tables, flags.forms)]
        campaign(flags.summarise, folder if flags.part == "all" else None, *chosen)
    elif not flags.summarise.exists():
        raise ConfigError(f"--summarise={flags.summarise}: no such file; wanted a log of this campaign")
    print(summarise(flags.summarise))
    return 0
