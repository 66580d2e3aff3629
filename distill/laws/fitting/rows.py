"""Selects the runs and columns of a table that a law is fitted to, and checks them."""

from collections.abc import Mapping

import numpy as np

from distill.laws.fitting import checks, expressions
from distill.laws.fitting import columns as naming
from distill.laws.fitting.solver import Rows
from distill.laws.fitting.table import Runs, Table, as_table
from distill.laws.forms.law import Law, LawError
from distill.laws.forms.parameters import FitSetting

_KINDS = ("supervised", "distillation")  # of the column `kind` in this project's tables
_SHARES = {"Q", "error_S", "error_T"}  # accuracies and error rates


def default_form(runs: Runs) -> str:
    """The default form of a table: Eq. 8 if runs have a teacher (a filled L_T), else the supervised law."""
    table = as_table(runs)
    return "distillation" if _taught(table).any() else "supervised"


def has_both_kinds(runs: Runs) -> bool:
    """Whether a table has supervised runs beside students, so that the law of Lsup can be fitted to it first."""
    table = as_table(runs)
    kinds = table.columns.get("kind")
    if kinds is not None and set(kinds.tolist()) & set(_KINDS):
        return set(_KINDS) <= set(kinds.tolist())
    taught = _taught(table)
    return bool(taught.any() and not taught.all())


def select(form: type[Law], runs: Runs) -> Table:
    """The runs that a form describes: of its kind, with a loss, and on request the best or the mean of each group.

    A run with a teacher's loss is a student, unless the table has a column `kind`, which then decides. Runs without a
    loss are excluded, and the notes count and name them. Raises LawError.
    """
    table = _of_kind(form, as_table(runs))
    table = _finished(form, table)
    if table.best_of:
        table = _best(form, table)
    if table.duplicates == "mean":
        table = _averaged(form, table)
    return table.with_notes(*_unread(form, table))


def rows_of(form: type[Law], table: Table, given: Mapping[str, Law] | None = None, units: bool = True) -> Rows:
    """The checked inputs and target of a form. Raises LawError; `units=False` accepts unusual magnitudes."""
    if not len(table):
        raise LawError(
            f"{table.source}: no row is left for the law {form.name!r}; wanted some. Does a rule leave all out?"
        )
    resolved = naming.resolve(form, table)
    arrays = resolved.values
    if table.duplicates == "error":
        checks.refuse_duplicates(table, arrays, next((name for name in naming.RUN if name in table.columns), None))
    for column in (resolved.columns[name] for name in arrays if name.startswith("L")):
        shown = table.named.get(column, column)
        if units and naming.is_perplexity(shown) and table.loss_unit != "perplexity":
            raise LawError(
                f"{table.source}: column {shown!r} holds perplexities by its name; add --loss-unit=perplexity."
            )
    if units:
        checks.refuse_units(table, {k: table.named.get(v, v) for k, v in resolved.columns.items()}, arrays)
    for name in _SHARES & set(arrays):
        table.refuse(
            arrays[name] > 1, resolved.columns[name], f"a share from 0 to 1; of percentages --scale={name}=0.01"
        )
    target = arrays[form.output]
    centre = {name: _centre(arrays[name]) for name in form.inputs}
    return Rows(
        inputs=tuple(arrays[name] for name in form.inputs),
        target=target,
        setting=FitSetting(centre, float(np.exp(np.log(target).mean())), float(target.min())),
        given=given or {},
    )


def _centre(values: np.ndarray) -> float:
    """The mean logarithm of the positive values."""
    return float(np.log(values[values > 0]).mean()) if (values > 0).any() else 0.0


def of_students(form: type[Law]) -> bool:
    """Whether a form is of runs with a teacher: one of its inputs is a student's or a teacher's (_S, _T)."""
    return any(name.endswith(("_S", "_T")) for name in form.inputs)


def notes(form: type[Law], table: Table) -> list[str]:
    """The notes on a fit's rows: their columns, their unit, excluded runs, and repeated inputs."""
    arrays = naming.resolve(form, table).values
    unit = f"stated as {table.loss_unit}" if table.loss_unit else "assumed; else --loss-unit=bits or perplexity"
    losses = f"; losses in nats per token ({unit})" if any(name.startswith("L") for name in arrays) else ""
    lines = [f"{naming.described(form, table)}{losses}", *table.notes]
    lines += checks.unfinished_note(table)
    if form.output.startswith("L"):
        lines += checks.tokenizers_note(table)
    if table.duplicates != "mean":
        lines += checks.repeats_note(form.inputs, [arrays[name] for name in form.inputs], arrays[form.output])
    return lines


def _taught(table: Table) -> np.ndarray:
    """The mask [rows] of rows with a teacher's loss."""
    losses = naming.candidates(table, "L_T")
    taught = np.zeros(len(table), bool)
    for name in losses:
        taught |= ~expressions.empty(table.columns[name])
    return taught


def _of_kind(form: type[Law], table: Table) -> Table:
    kinds = table.columns.get("kind")
    if kinds is not None and set(kinds.tolist()) & set(_KINDS):
        kind = "distillation" if of_students(form) else "supervised"
        if not (kinds == kind).any():
            raise LawError(f"{table.source}: no row of kind {kind!r}, which the form {form.name} needs.")
        return table.where(kinds == kind)
    if not naming.candidates(table, "L_T"):
        return table
    taught = _taught(table)
    mine = taught if of_students(form) else ~taught
    if mine.all():
        return table
    what = ("without", "with") if of_students(form) else ("with", "without")
    if not mine.any():
        raise LawError(
            f"{table.source}: every row is one {what[0]} a teacher's loss (L_T), and {form.name} is a law of runs "
            f"{what[1]} one; choose a law of the other kind."
        )
    return table.where(mine).with_notes(f"{int((~mine).sum())} rows {what[0]} L_T left out: not runs of {form.name}")


def _finished(form: type[Law], table: Table) -> Table:
    """The rows with a loss."""
    losses = naming.candidates(table, form.output)
    if not losses:
        return table  # rows_of reports all that is missing
    bad = np.all([expressions.empty(table.columns[name]) for name in losses], axis=0)
    if not bad.any():
        return table
    rows = ", ".join(table.label(i) for i in np.flatnonzero(bad)[:8])
    more = ", ..." if bad.sum() > 8 else ""
    if bad.all():
        raise LawError(f"{table.source}: no row has a loss in {', '.join(map(repr, losses))}; wanted finished runs.")
    count = int(bad.sum())
    note = f"{count} row{'s' if count > 1 else ''} without a loss left out: {rows}{more}"
    return table.where(~bad).with_notes(note)


def _unread(form: type[Law], table: Table) -> tuple[str, ...]:
    """Notes on what runs differ in that the form does not read: repeated text, and lambda."""
    notes = []
    students = of_students(form)
    if not {"U", "U_S"} & set(form.inputs):
        U, D = (naming.candidates(table, name) for name in (("U_S", "D_S") if students else ("U", "D")))
        repeated = int((table.columns[U[0]] < 0.99 * table.columns[D[0]]).sum()) if _numeric(table, U, D) else 0
        if repeated:
            better = "distillation-unique" if students else "additive-penalty"
            notes.append(
                f"{repeated} of {len(table)} runs repeat their text ({U[0]} below {D[0]}), which {form.name} takes for "
                f"fresh: --law={better} reads it"
            )
    weights = naming.candidates(table, "lambda_")
    if students and "lambda_" not in form.inputs and _numeric(table, weights):
        values = np.unique(table.columns[weights[0]])
        if np.isfinite(values).sum() > 1:
            shown = ", ".join(f"{value:g}" for value in values[:6])
            notes.append(
                f"these runs differ in {weights[0]} ({shown}), which {form.name} does not read: "
                "--law=lambda-mixture does"
            )
    return tuple(notes)


def _numeric(table: Table, *columns: list[str]) -> bool:
    return all(len(names) == 1 and table.columns[names[0]].dtype.kind == "f" for names in columns)


def _best(form: type[Law], table: Table) -> Table:
    """The row of lowest loss for each combination of `best_of`."""
    resolved = naming.resolve(form, table)
    keys = []
    for name in table.best_of:
        own = next((n for n in (name, f"{name}_S") if n in resolved.values), None)
        keys.append(resolved.values[own] if own else table.column(name))
    index, losses = checks.groups(keys), resolved.values[form.output]
    order = np.lexsort((losses, index))
    best = np.sort(order[np.unique(index[order], return_index=True)[1]])
    if len(best) == len(table):
        return table
    return table.where(best).with_notes(
        f"the best of each ({', '.join(table.best_of)}): {len(best)} of {len(table)} rows"
    )


def _averaged(form: type[Law], table: Table) -> Table:
    """Merges rows of equal inputs: keeps the first of them, with the mean of their losses."""
    resolved = naming.resolve(form, table)
    index, losses = checks.groups([resolved.values[name] for name in form.inputs]), resolved.values[form.output]
    first = np.unique(index, return_index=True)[1]
    if len(first) == len(table):
        return table
    mean = np.bincount(index, losses) / np.bincount(index)
    column = resolved.columns[form.output]
    note = f"runs of equal ({', '.join(form.inputs)}) averaged: {len(table)} rows became {len(first)}"
    return table.where(first).with_column(column, mean).with_notes(note)
