"""A museum of laws: every form that reads a table's columns, fitted to every public table at hand, and rolled forward.

The tables of others lie in $DISTILL_DATA as published (public.py reads them); Apple's and our own ship (ours.py). A
result is one entry of a JSON file by table and form; a table that is not at hand keeps the entries that the file has.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import ours, public, refits
from distill.bench.public import Specimen
from distill.config import ConfigError
from distill.laws.fitting.fit import Fit
from distill.laws.fitting.rows import rows_of, select
from distill.laws.forms.forms import Chinchilla
from distill.laws.uncertainty.approaches import isoflops, parametric
from distill.system.files import atomic_write

_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
_ROWS = 2.5  # rows that a form needs for each parameter, on the smallest share


def specimens(folder: Path | None) -> Iterator[Specimen]:
    """The tables that ship, then those of others in `folder`."""
    yield from ours.specimens()
    if folder is not None:
        yield from public.specimens(folder)


def judge(one: Specimen, form: str) -> dict[str, object]:
    """One entry: a fit to all rows, and errors rolled forward by compute."""
    fit = laws.fit(form, one.table, supervised=one.given, objective=one.objective, units=False)
    entry: dict[str, object] = {
        "table": one.name,
        "form": form,
        "digest": one.table.digest,
        "rows": len(fit.rows),
        "parameters": len(fit.law.parameters()),
        "coefficients": fit.coefficients.kind,
        "predictions": fit.predictions.kind,
        "in_sample": float(f"{fit.error[0]:.4g}"),
        "law": {name: float(f"{value:.6g}") for name, value in fit.law.values().items()},
    }
    errors = rolled(fit)
    if errors is not None:
        entry |= {"rolled": float(f"{errors.mean():.4g}"), "rolled_rows": len(errors)}
    if one.held is not None:
        held = rows_of(type(fit.law), select(type(fit.law), one.held), fit.rows.given, units=False)
        misses = np.abs(fit.law(*held.inputs) / held.target - 1)
        entry |= {"held": float(f"{misses.mean():.4g}"), "held_rows": len(misses)}
    if isinstance(fit.law, Chinchilla) and "N" in one.table.columns and one.forms == public.SUPERVISED:
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
        optima = isoflops(public.runs(N=N, D=D, L=np.asarray(law(N, D))))
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
