"""Finds the columns of a table that a law needs: the aliases of the law's names, and FLOPs in place of N or D.

Aliases are compared case-insensitively, with `_` for every `.`, `/`, `-` and blank, and after any of PREFIXES:
"Train/Tokens", "summary.train-tokens" and "train_tokens" are the same. The law's own names (N, D, L, L_T, ...) are
compared exactly: `n` and `d` are not sizes. A column that the user named (`columns=`) takes precedence; a missing
column is an error, and so are two candidates with different values.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from distill.config import counts, nearest
from distill.laws.forms.law import Law, LawError

_SIZE = (
    *("params", "n_params", "num_params", "parameters", "n_parameters", "num_parameters", "param_count"),
    *("non_embedding_params", "non_embedding_parameters", "params_non_embedding", "model_params"),
    *("model_parameters", "model_n_params", "model_num_params", "model_num_parameters", "model_size", "n_model"),
)
_DATA = (
    *("tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "train_tokens_seen"),
    *("total_tokens", "token_count", "n_train_tokens", "num_train_tokens", "consumed_tokens", "data_tokens"),
)
_LOSS = (
    *("loss", "eval_loss", "val_loss", "valid_loss", "validation_loss", "test_loss", "final_loss", "final_eval_loss"),
    *("final_val_loss", "loss_eval", "loss_val", "validation_cross_entropy", "val_cross_entropy"),
    *("eval_cross_entropy", "cross_entropy", "nll", "val_nll", "eval_nll"),
)
# Used if no column of _LOSS exists, and before those with loss_unit="perplexity".
_PERPLEXITY = ("perplexity", "ppl", "eval_perplexity", "eval_ppl", "val_perplexity", "val_ppl", "validation_perplexity")
_FLOPS = (
    *("flops", "flop", "total_flops", "train_flops", "training_flops", "compute", "train_compute", "training_compute"),
    *("compute_flops", "total_compute", "flops_student"),
)


def _student(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"student_{name}" for name in names)


def _teacher(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"teacher_{name}" for name in names)


# The law's name -> (names written exactly so, aliases).
ALIASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "N": (("N",), _SIZE),
    "D": (("D",), _DATA),
    "L": (("L",), (*_LOSS, *_PERPLEXITY)),
    "C": (("C",), _FLOPS),
    "U": (("U", "D_unique"), ("unique_tokens", "d_unique", "tokens_unique")),
    "N_S": (("N_S", "N"), (*_SIZE, *_student(_SIZE))),
    "D_S": (("D_S", "D_S_nominal", "D"), (*_DATA, *_student(_DATA))),
    "L_S": (("L_S", "L"), (*_LOSS, *_student(_LOSS), *_PERPLEXITY, *_student(_PERPLEXITY))),
    "N_T": (("N_T",), _teacher(_SIZE)),
    "D_T": (("D_T",), _teacher(_DATA)),
    "L_T": (("L_T",), (*_teacher(_LOSS), *_teacher(_PERPLEXITY))),
    "U_S": (("U_S", "U", "D_unique"), ("unique_tokens", "d_unique", "tokens_unique")),
    "lambda_": (("lambda_", "lambda"), ("objective_lambda", "objective_lambda_")),
    "experts": (("experts",), ("n_experts", "num_experts")),
    "N_0": (("N_0",), ("params_before", "params_unpruned")),
    "L_0": (("L_0",), ("loss_before", "loss_unpruned")),
    "rho": (("rho",), ("pruning_rate", "pruned_share")),
    "Q": (("Q",), ("accuracy", "acc")),
    "k": (("k",), ("samples", "n_samples", "num_samples")),
    "error_S": (("error_S",), ("error_rate", "student_error_rate")),
    "error_T": (("error_T",), ("teacher_error_rate",)),
}
_KNOWN = frozenset(alias for _, aliases in ALIASES.values() for alias in aliases)
# Prefixes that experiment trackers add to the names of settings and results.
PREFIXES = ("metrics", "metric", "params", "param", "config", "summary", "hparams", "tags", "data")
_TRAINING = ("train_loss", "training_loss", "loss_train")  # not a law's loss; an error mentions it if none is found
RUN = ("run", "run_id", "run id", "Run ID", "ID")  # columns that tell one run from another
# Ends of a column's name that say its unit: params_b, "tokens (M)".
_UNITS = {"m": 1e6, "mn": 1e6, "million": 1e6, "millions": 1e6, "b": 1e9, "bn": 1e9, "billion": 1e9, "billions": 1e9}
_SOLVED = ("N", "D", "N_S", "D_S")  # names that C can stand for
RULES = ("6ND", "F")
# Of runs.csv and of sweep.csv, where a swept field such as `tokens`, the budget before it is cut to whole steps, may
# stand beside what was measured: there the law's own names are meant.
_OURS = frozenset(("run", "N", "D", "loss", "flops_student"))


class NamedColumns(Protocol):
    """The part of a table that this module reads."""

    @property
    def source(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, np.ndarray]: ...
    @property
    def named(self) -> Mapping[str, str]: ...
    @property
    def flops(self) -> str: ...
    @property
    def loss_unit(self) -> str: ...

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64. Raises LawError for cells that are not finite numbers."""
        ...

    def refuse(self, bad: np.ndarray, name: str, wanted: str) -> None:
        """Raises LawError that names the rows where `bad` holds."""
        ...


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Columns by the law's names: values float64 [rows], and a text that says where each comes from."""

    values: dict[str, np.ndarray]
    columns: dict[str, str]  # the table's column that holds it, or that of the FLOPs it is computed from
    words: dict[str, str]


def candidates(table: NamedColumns, name: str) -> list[str]:
    """The columns that may hold the law's `name`; only the one that the user named, if any."""
    exact, aliases = ALIASES.get(name, ((name,), ()))
    chosen = [known for known in exact if known in table.named]
    if chosen:
        return chosen[:1]
    if _OURS.issubset(table.columns) and (own := [c for c in table.columns if c in exact]):
        return own[:1]
    named_alike = [c for c in table.columns if c in exact or _plain(c) in aliases or _bare(c) in exact]
    perplexities = [c for c in named_alike if is_perplexity(c)]
    if table.loss_unit == "perplexity":
        return perplexities or named_alike
    return [c for c in named_alike if c not in perplexities] or named_alike


def is_perplexity(column: str) -> bool:
    """Whether a column's name says that it holds perplexities."""
    return _plain(column).endswith(("perplexity", "ppl"))


def find(table: NamedColumns, name: str) -> str:
    """The column of a law's name. Raises LawError if there is none, or if several differ."""
    columns = candidates(table, name)
    if not columns:
        raise LawError(f"{table.source}: {_missing(table, name)}.{_advice(table, [name])}")
    return _only(table, name, columns)


def loss_columns(table: NamedColumns) -> list[str]:
    """All columns that hold losses, of runs or of their teachers."""
    return list(dict.fromkeys(column for name in ("L", "L_S", "L_T") for column in candidates(table, name)))


def resolve(form: type[Law], table: NamedColumns) -> Resolved:
    """The inputs and the output of a form as numbers. One LawError lists all that is missing."""
    wanted = (*form.inputs, form.output)
    by_name = {name: candidates(table, name) for name in (*wanted, "C")}
    solved = [name for name in form.inputs if name in _SOLVED and not by_name[name]]
    if not by_name["C"] or len(solved) != 1:
        solved = []
    missing = [name for name in wanted if not by_name.get(name) and name not in solved]
    if missing:
        flops = " FLOPs (C) may stand for N or D." if set(missing) & set(_SOLVED) else ""
        raise LawError(
            f"{table.source}: {'; '.join(_missing(table, name) for name in missing)}; it has "
            f"{', '.join(table.columns)}.{flops}{_advice(table, missing)}"
        )
    values, columns, words = {}, {}, {}
    for name in wanted:
        if name in solved:
            columns[name] = _only(table, "C", by_name["C"])
            values[name], words[name] = _from_flops(form, table, name, columns[name], by_name)
        else:
            columns[name] = _only(table, name, by_name[name])
            values[name] = table.numbers(columns[name])
            words[name] = table.named.get(columns[name], columns[name])
        zero = name in form.may_be_zero
        low = values[name] < 0 if zero else values[name] <= 0
        table.refuse(low, columns[name], "a positive number" + (" or 0" if zero else ""))
    return Resolved(values, columns, words)


def described(form: type[Law], table: NamedColumns) -> str:
    """Which columns a fit of a form reads: 'N_S, D_S = tokens, L_S = val_loss'."""
    words = resolve(form, table).words
    return ", ".join(name if word == name else f"{name} = {word}" for name, word in words.items())


def _from_flops(
    form: type[Law], table: NamedColumns, name: str, column: str, by_name: Mapping[str, list[str]]
) -> tuple[np.ndarray, str]:
    """(values, text) of the size or the tokens, computed from compute C = 6 N D, or C = 3 F(N) D."""
    C = table.numbers(column)
    partner = {"N": "D", "D": "N", "N_S": "D_S", "D_S": "N_S"}[name]
    other = table.numbers(_only(table, partner, by_name[partner]))
    for values, label in ((C, column), (other, _only(table, partner, by_name[partner]))):
        table.refuse(values <= 0, label, "a positive number")
    place = table.named.get(column, column)
    if table.flops == "6ND":
        return C / (6 * other), f"C / (6 {partner}) with C = {place}"
    if name.startswith("D"):
        return C / (3 * counts.forward_flops_closed(other)), f"C / (3 F({partner})) with C = {place}"
    low, high = np.zeros_like(C), np.log(C)  # F(N) > 1 and increases
    for _ in range(100):
        middle = (low + high) / 2
        enough = 3 * counts.forward_flops_closed(np.exp(middle)) * other < C
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return np.exp(high), f"N of C = 3 F(N) {partner} with C = {place}"


def _only(table: NamedColumns, name: str, named_alike: Sequence[str]) -> str:
    """The first of the candidates if all hold the same values. Raises LawError that names them if they differ."""
    first, *others = named_alike
    for other in others:
        if not _same(table.columns[first], table.columns[other]):
            both = " and ".join(repr(column) for column in named_alike[:5])
            meant = others[0]  # a column that is called as the law's own letter, as layers are, comes first
            raise LawError(
                f"{table.source}: {name} may be the column {both}, and they differ. "
                f"Name the one that is meant: --columns={name}={meant} (columns={{{name!r}: {meant!r}}} in Python)."
            )
    return first


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        return bool(np.array_equal(a, b, equal_nan=True))
    return bool(np.array_equal(a.astype(str), b.astype(str)))


@functools.cache
def _plain(column: str) -> str:
    """A column's name normalised for comparison: lower case, `_` between words, no tracker prefix."""
    plain = re.sub(r"[\s./\-:]+", "_", column.strip().lower()).strip("_")
    if plain in _KNOWN:
        return plain
    head, _, tail = plain.partition("_")
    return tail if head in PREFIXES and tail else plain


def _bare(column: str) -> str:
    """A column's name without a tracker's prefix: 'params.N' -> 'N'."""
    head, dot, tail = column.strip().partition(".")
    return tail if dot and head.lower() in PREFIXES else ""


def _missing(table: NamedColumns, name: str) -> str:
    exact, aliases = ALIASES.get(name, ((name,), ()))
    looked = f" (looked for {', '.join((*exact, *aliases[:3]))}{', ...' if len(aliases) > 3 else ''})"
    close = nearest(name, table.columns) or nearest(name.lower(), table.columns)
    training = [column for column in table.columns if _plain(column) in _TRAINING] if name in ("L", "L_S") else []
    if training:
        close = f" ({training[0]!r} looks like a loss on the training text; a law wants that on held-out text)"
    return f"no column for {name}{looked}{close}"


def _advice(table: NamedColumns, names: Sequence[str]) -> str:
    """How to name the missing columns; those that are called an alias in a unit, with their factor."""
    found = {name: _in_unit(table, name) for name in names}
    places = ",".join(f"{name}={found[name][0] or 'ITS_NAME'}" for name in names)
    factors = ",".join(f"{name}={factor:.0e}".replace("+0", "") for name, (_, factor) in found.items() if factor > 1)
    places = f"'{places}'" if set(places) & set(" ()'") else places
    scale = f" --scale={factors}" if factors else ""
    return f" Name {'it' if len(names) == 1 else 'them'}: --columns={places}{scale}."


def _in_unit(table: NamedColumns, name: str) -> tuple[str, float]:
    """The column called as an alias of a size or of tokens, with its unit at the end; ('', 1) where there is none."""
    exact, aliases = ALIASES.get(name, ((name,), ()))
    for column in table.columns if name in _SOLVED else ():
        head, _, unit = "_".join(re.findall(r"[a-z]+", column.lower())).rpartition("_")
        head = head.removesuffix("_in")
        if unit in _UNITS and (head in aliases or head in map(str.lower, exact)):
            return column, _UNITS[unit]
    return "", 1.0
