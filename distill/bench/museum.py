"""A museum of laws: every form that reads a table's columns, fitted to every public table at hand, and rolled forward.

The tables of others lie in $DISTILL_DATA as published (docs/results/laws.md says which); Apple's and our own ship. A
result is one entry of a JSON file by table and form; a table that is not at hand keeps the entries that the file has.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import refits
from distill.config import ConfigError
from distill.laws.fitting.fit import Fit
from distill.laws.forms.forms import Chinchilla
from distill.laws.uncertainty.approaches import isoflops, parametric
from distill.system.files import atomic_write

SUPERVISED = ("chinchilla", "supervised", "kaplan", "farseer")
STUDENTS = ("distillation", "distillation-limit", "overtaking", "additive")
REPEATED = ("chinchilla", "data-constrained", "additive-penalty")
_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
_ROWS = 2.5  # rows that a form needs for each parameter, on the smallest share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specimen:
    """A table of runs, the forms that are fitted to it and their objective; `given` is Lsup of students."""

    name: str
    table: laws.Table
    forms: tuple[str, ...] = SUPERVISED
    given: laws.Law | None = None
    objective: laws.Objective = laws.Objective()


def specimens(folder: Path | None) -> Iterator[Specimen]:
    """The tables that ship, then those in `folder`."""
    apple = laws.load_table("apple").where("L_S > 2.3")
    yield Specimen(name="apple students", table=apple, forms=STUDENTS, given=laws.paper()[0])
    micro = laws.load_table("micro")
    tilted = laws.Objective(delta=1e-2)
    yield Specimen(name="micro", table=micro.where("kind == supervised"), objective=tilted)
    lsup = laws.fit("supervised", micro, objective=tilted, units=False).law
    forms = (*STUDENTS, "teacher-size", "teacher-tokens")
    yield Specimen(name="micro students", table=micro, forms=forms, given=lsup, objective=tilted)
    if folder is not None:
        for loader in LOADERS:
            yield from loader(folder)


def _cells(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def _numbers(cells: Sequence[Mapping[str, str]], *names: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([float(cell[name]) for cell in cells]) for name in names)


def _columns(cells: Sequence[Mapping[str, object]], **names: str) -> dict[str, np.ndarray]:
    """Columns by the law's names from cells by the file's."""
    return {own: np.array([float(str(cell[name])) for cell in cells]) for own, name in names.items()}


def _runs(**columns: np.ndarray) -> laws.Table:
    """A table whose repeated inputs are runs of their own."""
    return laws.as_table(laws.from_arrays(**columns), duplicates="keep")


def _best(N: np.ndarray, D: np.ndarray, L: np.ndarray) -> laws.Table:
    """The lowest loss of each size and budget, as of a sweep of learning rates."""
    return laws.as_table(_runs(N=N, D=D, L=L), best_of=("N", "D"))


def chinchilla(folder: Path) -> Iterator[Specimen]:
    """245 points read off Figure 4 of 2203.15556, without the five of highest loss (2404.10102); D = C / 6N."""
    path = folder / "chinchilla" / "svg_extracted_data.csv"
    if path.exists():
        N, C, L = _numbers(_cells(path), "Model Size", "Training FLOP", "loss")
        kept = np.sort(np.argsort(L)[:-5])
        yield Specimen(name="chinchilla", table=_runs(N=N[kept], D=(C / 6 / N)[kept], L=L[kept]))


def openathena(folder: Path) -> Iterator[Specimen]:
    """IsoFLOPs of Llama 3 (raw loss) and Marin on three texts (2603.22339), every row as published."""
    path = folder / "openathena" / "isoflops.csv"
    names = {"llama_3__raw_loss": "llama 3"} | {
        f"marin_202603__{text}__llama_2": f"marin {text}" for text in ("comma", "dclm", "nemotron")
    }
    cells = _cells(path) if path.exists() else []
    for experiment, name in names.items():
        mine = [cell for cell in cells if cell["experiment"] == experiment]
        if mine:
            N, D, L = _numbers(mine, "params", "tokens", "loss")
            yield Specimen(name=name, table=_runs(N=N, D=D, L=L))


def gadre(folder: Path) -> Iterator[Specimen]:
    """Overtrained models on three texts, C4 validation loss (2403.08540)."""
    path = folder / "gadre_overtraining" / "runs_long.csv"
    cells = [cell for cell in _cells(path) if cell["eval"].startswith("c4_val")] if path.exists() else []
    for kind in sorted({cell["train_set"] for cell in cells}):
        columns = _numbers([c for c in cells if c["train_set"] == kind], "N_no_emb", "D", "loss")
        yield Specimen(name=f"gadre {kind}", table=_best(*columns))


def misfitting(folder: Path) -> Iterator[Specimen]:
    """The best learning rate of each size and budget (2502.18969)."""
    path = folder / "misfitting" / "scaling_results_last_ckpt_only.csv"
    if path.exists():
        yield Specimen(name="misfitting", table=_best(*_numbers(_cells(path), "N_no_emb", "D", "loss")))


def steplaw(folder: Path) -> Iterator[Specimen]:
    """The best learning rate and batch size of each size and budget (2503.04715)."""
    path = folder / "steplaw" / "dense_lr_bs_loss.csv"
    if path.exists():
        yield Specimen(name="steplaw", table=_best(*_numbers(_cells(path), "N", "D", "smooth loss")))


def gemstones(folder: Path) -> Iterator[Specimen]:
    """Losses of the Gemstones on two texts (2502.06857): 22 shapes, checkpoints of one run each."""
    for text in ("dclm", "edu"):
        path = folder / "gemstones" / f"fineweb_{text}_losses_combined.jsonl"
        if path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
            N, D, L = (
                np.array([float(line[k]) for line in lines]) for k in ("params_active_precise", "tokens", "final_loss")
            )
            yield Specimen(name=f"gemstones {text}", table=_runs(N=N, D=D, L=L))


def repeated(folder: Path) -> tuple[laws.Table, laws.Table]:
    """Muennighoff's runs as ScaleBench splits them (2604.22753): 161 to fit, 21 held out."""
    place = folder / "scalebench" / "data_constrained"
    fitted, held = (laws.load_table(place / f"{part}.parquet") for part in ("train", "test"))
    named = {"N": "params", "D": "tokens", "U": "unique_tokens", "L": "loss"}
    return tuple(_runs(**{name: part.numbers(own) for name, own in named.items()}) for part in (fitted, held))


def scalebench(folder: Path) -> Iterator[Specimen]:
    """Repeated text and numbers of experts (2604.22753)."""
    place = folder / "scalebench"
    if (place / "data_constrained").exists():
        yield Specimen(name="muennighoff", table=repeated(folder)[0], forms=REPEATED)
    if (place / "moe").exists():
        table = laws.load_table(place / "moe" / "train.parquet")
        names = {"N": "dense_parameter_count", "experts": "num_experts", "L": "loss_validation"}
        runs = _runs(**{name: table.numbers(own) for name, own in names.items()})
        yield Specimen(name="scalebench experts", table=runs, forms=("routed-experts",))


def on_policy(folder: Path) -> Iterator[Specimen]:
    """Peaks of on-policy distillation, plain and with a changed loss (2609.32722); least squares of log error rates."""
    path = folder / "opd" / "law.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    for method in sorted({cell["method"] for cell in cells}):
        mine = [cell for cell in cells if cell["method"] == method]
        s, t, g, peak = (np.array([float(cell[key]) for cell in mine]) for key in ("s", "t", "gt", "peak"))
        table = _runs(N_S=s * 1e9, N_T=t * 1e9, error_T=1 - g, error_S=1 - peak)
        yield Specimen(name=method, table=table, forms=("on-policy-peak",), objective=laws.Objective(kind="log-mse"))


LOADERS: tuple[Callable[[Path], Iterator[Specimen]], ...] = (
    on_policy, scalebench, steplaw, gadre, openathena, chinchilla, misfitting, gemstones,
)  # fmt: skip


def judge(one: Specimen, form: str) -> dict[str, object]:
    """One entry: a fit to all rows, and errors rolled forward by compute."""
    fit = laws.fit(form, one.table, supervised=one.given, objective=one.objective, units=False)
    entry: dict[str, object] = {
        "table": one.name,
        "form": form,
        "digest": one.table.digest,
        "rows": len(fit.rows),
        "parameters": len(fit.law.parameters()),
        "status": fit.status.kind,
        "in_sample": float(f"{fit.error[0]:.4g}"),
        "law": {name: float(f"{value:.6g}") for name, value in fit.law.values().items()},
    }
    errors = rolled(fit)
    if errors is not None:
        entry |= {"rolled": float(f"{errors.mean():.4g}"), "rolled_rows": len(errors)}
    if isinstance(fit.law, Chinchilla):
        entry |= _approach_2(fit)
    return entry


def rolled(fit: Fit, shares: Sequence[float] = _SHARES) -> np.ndarray | None:
    """Relative errors of rows by compute: for each share, those up to the next share, from a fit to all below it.

    None where the smallest share has too few rows for the form. All fits are one batch of problems.
    """
    inputs, n = fit.rows.inputs, len(fit.rows)
    edges = [round(share * n) for share in (*shares, 1.0)]
    if edges[0] < _ROWS * len(fit.law.parameters()):
        return None
    rank = np.argsort(np.argsort(inputs[0] * (inputs[1] if len(inputs) > 1 else 1.0), kind="stable"))
    fits = refits.refits(fit, rank < np.array(edges[:-1])[:, None])
    held = [(rank >= low) & (rank < high) for low, high in zip(edges, edges[1:])]
    return np.concatenate([refits.errors(fit, law, rows) for law, rows in zip(fits, held)])


def _approach_2(fit: Fit) -> dict[str, float]:
    """The bias of parabolas along IsoFLOPs, by the law itself: losses without noise at the table's sizes and budgets.

    The error of the exponent a of N* ~ C**a, and of N* at a hundred times the largest budget. Nothing where the table
    has fewer than three IsoFLOPs.
    """
    law, (N, D) = fit.law, fit.rows.inputs
    assert isinstance(law, Chinchilla)
    try:
        optima = isoflops(_runs(N=N, D=D, L=np.asarray(law(N, D))))
    except laws.LawError:
        return {}
    if len(optima.flops) < 3:
        return {}
    far = 100 * float((6 * N * D).max())
    true = parametric(law, np.array([far]))
    ratio = optima.scale * far**optima.exponent / float(true.size[0])
    return {
        "approach_2_exponent": float(f"{optima.exponent - true.exponent:.3g}"),
        "approach_2_size": float(f"{ratio:.4g}"),
    }


def run(folder: Path | None, out: Path, show: Callable[[str], None] = print) -> list[dict[str, object]]:
    """Judges every form on every table at hand; entries are written as they come.

    Entries that the file has of the same cells, and those of tables that are not at hand, are kept: remove the file to
    judge again.
    """
    entries = read(out)
    for one in specimens(folder):
        for form in one.forms:
            key = (one.name, form, one.table.digest)
            if key in {(e["table"], e["form"], e.get("digest")) for e in entries}:
                continue
            entry = judge(one, form)
            entries = [e for e in entries if (e["table"], e["form"]) != key[:2]] + [entry]
            show(f"{one.name:20s} {form:20s} {_line(entry)}")
            atomic_write(out, "[\n" + ",\n".join(json.dumps(e) for e in entries) + "\n]\n")
    return entries


def _line(entry: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("table", "form", "law", "digest"))


def read(out: Path) -> list[dict[str, object]]:
    """The entries of a file; none where it does not exist. Raises ConfigError if it is damaged."""
    if not out.exists():
        return []
    try:
        entries = json.loads(out.read_text())
        assert isinstance(entries, list)
        assert all(isinstance(entry["table"], str) and isinstance(entry["form"], str) for entry in entries)
    except (ValueError, TypeError, KeyError, AssertionError):
        raise ConfigError(f"{out}: not the results of a museum of laws; remove it or name another --out") from None
    return entries
