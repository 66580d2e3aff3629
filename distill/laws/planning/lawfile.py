"""Law files: a fit writes them; planners, pages and figures read them.

A law file is JSON: the law itself (`Law.to_dict`), the fit that made it (`Fit.to_dict`), and beside them

    coefficients    the status of the coefficients, and which are open, with why (`Fit.to_dict`)
    predictions     the status of predictions and, where rolling forward has shown it, how wide their intervals must be
                    (`Calibration`); absent in older files: not assessed
    alternatives    other forms of the same runs, in the order of the weights in `predictions`, with draws
    open            directions in parameter space that the runs leave open
    bootstrap       how the runs were resampled, and the intervals of what is not open (`Bootstrap.to_dict`)
    draws           the resampled parameters by name, at most DRAWS of each; those of Lsup under "supervised"
    held_out        errors of the runs that were held out
    supervised_fit  the fit of the supervised law inside (`Fit.to_dict`)
    region          [least, most] of every variable in the fitted runs
    flops           [context, vocabulary] of F(N); the paper's closed form where a file has none

All keys except the law itself are optional.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TypedDict

import jax
import numpy as np

from distill.laws.fitting.fit import NOT_ASSESSED, Fit, Status
from distill.laws.forms.arrays import Floats
from distill.laws.forms.law import Law, LawError, read_json
from distill.laws.forms.registry import from_dict
from distill.laws.forms.repetition import DistillationUnique
from distill.laws.forms.resampled import ResampledLaws, supervised_inside
from distill.laws.forms.students import paper
from distill.laws.planning.region import ANY, PAPER_REGION, Region
from distill.laws.planning.scenarios import Flops
from distill.laws.uncertainty import text
from distill.laws.uncertainty.bootstrap import Bootstrap
from distill.laws.uncertainty.calibration import Calibration
from distill.laws.uncertainty.holdout import Holdout

STUDENTS = ("N_S", "D_S", "L_T")  # inputs of a law of students; U_S may follow
DRAWS = 512  # resampled laws that a law file keeps
BORROWED = (
    "this law file holds no law of students, so the paper's (Table 6) stands in with this supervised law inside: its "
    "advice on distilling is a guess for your data"
)
PAPERS = (
    "the supervised law in this file is the paper's (Table 6): where your runs are of other models or text, whether to "
    "distil is a guess; fit the students with --supervised=FILE of your own runs"
)
_LARGEST = 1e12  # JSON has no infinity, and the standard error of an unconstrained direction is infinite


class _Tree(TypedDict, total=False):
    """The keys of a law file that are read here, as they should be; whatever is not raises where it is used."""

    status: Mapping[str, str] | str
    coefficients: Mapping[str, str]
    predictions: Mapping[str, object]
    alternatives: Sequence[Mapping[str, Mapping[str, object]]]
    bootstrap: Mapping[str, float]
    draws: Mapping[str, object]
    supervised_fit: Mapping[str, Mapping[str, object]]
    region: Mapping[str, Sequence[float]]
    flops: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLaws:
    """The resampled laws of a law file (CalibratedLaws): a stack of distillation laws, each with its supervised law.

    `best` is the file's law; `failure` the share of failed resamples; `calibration` is of the law of students,
    `below` of the supervised law inside, `others` are other forms of the same runs.
    """

    kept: Law
    best: Law | None = None
    failure: float = 0.0
    calibration: Calibration | None = None
    below: Calibration | None = None
    others: tuple["StoredLaws", ...] = ()

    @property
    def estimate(self) -> Law:
        """The law that was resampled; the stack itself where it is not known."""
        return self.kept if self.best is None else self.best


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawFile:
    """Laws and their metadata; if the file lacks them, `boot` and `region` are None and `flops` is Appendix H's.

    A status that the file lacks is "not assessed".
    """

    name: str
    supervised: Law
    distillation: Law
    boot: ResampledLaws | None
    region: Region | None
    flops: Flops
    status: Status = Status(kind=NOT_ASSESSED)
    coefficients: Status = Status(kind=NOT_ASSESSED)
    predictions: Status = Status(kind=NOT_ASSESSED)
    borrowed: bool = False  # the law of students is the paper's, because the file has only a supervised law

    def caveats(self) -> tuple[str, ...]:
        """Warnings of every plan with these laws: where the law of students, or the supervised one, is the paper's."""
        if self.borrowed:
            return (BORROWED,)
        return (PAPERS,) if self.name != "paper" and self.supervised == paper()[0] else ()

    def statuses(self) -> dict[str, str]:
        """Both statuses in words, for whatever shows the law: 'not assessed' of a file that does not say."""
        return {"coefficients": str(self.coefficients), "predictions": str(self.predictions)}


def write(
    path: str | os.PathLike,
    fit: Fit,
    boot: Bootstrap | None = None,
    held: Holdout | None = None,
    first: Fit | None = None,
    *,
    level: float = 0.9,
    region: Region | None = None,
    flops: Flops | None = None,
) -> None:
    """Writes a fit and its metadata as a law file, atomically.

    `first` is the fit of the nested supervised law, `held` the held-out runs, `level` that of the intervals; `region`
    is by default that of the fitted runs. Raises LawError if the file cannot be written.
    """
    tree: dict[str, object] = {
        "open": [{"words": d.words(), "error": min(d.error, _LARGEST)} for d in fit.directions() if d.open]
    }
    if boot:
        tree |= {"bootstrap": boot.to_dict(level), "draws": _draws(boot)}
    if boot and boot.calibration:
        said = dataclasses.asdict(text.predictions(fit, boot))
        tree |= {"status": dataclasses.asdict(text.judged(fit, boot)), "predictions": boot.calibration.to_dict() | said}
        tree["alternatives"] = [one.fit.law.to_dict() | {"draws": _draws(one)} for one in boot.others]
    if held:
        errors = held.errors
        tree["held_out"] = {
            "rows": len(errors),
            "mean": float(errors.mean()),
            "max": float(errors.max()),
            "coverage": held.coverage,
            "level": held.level,
        }
    if first:
        below = {"predictions": boot.below.to_dict()} if boot and boot.below else {}
        tree["supervised_fit"] = first.to_dict() | below
    tree["region"] = dataclasses.asdict(region) if region else _covered(fit, first)
    if flops:
        tree["flops"] = [flops.context, flops.vocabulary]
    fit.save(path, **tree)


def read(path: str | os.PathLike, borrow: bool = False) -> LawFile:
    """Reads `paper`, or a JSON file of a law of students (inputs N_S, D_S, L_T) with its supervised law nested.

    With `borrow` a file of a supervised law (inputs N, D, or N, D, U) is accepted, and the paper's law of students with
    this law nested replaces the missing one. Raises LawError for a file that is missing or damaged, or that has another
    kind of law.
    """
    if str(path) == "paper":
        supervised, distillation = paper()
        return LawFile(
            name="paper",
            supervised=supervised,
            distillation=distillation,
            boot=None,
            region=PAPER_REGION,
            flops=Flops.closed(),
        )
    where = str(path)
    tree = read_json(path)
    law = from_dict(tree, where)
    if borrow and law.inputs in (("N", "D"), ("N", "D", "U")):
        return _borrowed(law, tree, where)
    inside = {name: getattr(law, name) for name in law.given()}
    if law.inputs not in (STUDENTS, (*STUDENTS, "U_S")) or "supervised" not in inside:
        raise LawError(
            f"{where}: a plan needs a law of students, of N_S, D_S and L_T with its supervised law inside; "
            f"got {law.name} of {', '.join(law.inputs)}."
        )
    region, flops = tree.get("region"), tree.get("flops")
    try:
        return LawFile(
            name=where,
            supervised=inside["supervised"],
            distillation=law,
            boot=_stored(law, inside["supervised"], tree),
            region=Region(**{k: (float(v[0]), float(v[1])) for k, v in region.items()}) if region else None,
            flops=Flops(float(flops[0]), float(flops[1])) if flops else Flops.closed(),
            **_statuses(tree),
        )
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise LawError(f"{where}: draws, region or flops are damaged ({error}); fit the law again.") from error


def _borrowed(law: Law, tree: _Tree, where: str) -> LawFile:
    """A supervised law nested in the paper's law of students. Raises LawError for damaged draws or region."""
    draws, region, flops = tree.get("draws"), tree.get("region"), tree.get("flops")
    try:
        stack = dataclasses.replace(law, **{name: _column(draws[name]) for name in law.parameters()}) if draws else None
        box = {name: (float(low), float(high)) for name, (low, high) in (region or {}).items()}
        boot = None
        if stack is not None:
            boot = StoredLaws(
                kept=_students(stack),
                best=_students(law),
                failure=_failure(tree),
                below=Calibration.from_dict(tree.get("predictions", {})),
                others=tuple(_borrowing(other) for other in tree.get("alternatives", [])),
            )
        return LawFile(
            name=where,
            supervised=law,
            distillation=_students(law),
            boot=boot,
            region=Region(N_S=box["N"], D_S=box["D"], L_T=ANY, N_T=box["N"], D_T=box["D"]) if box else None,
            flops=Flops(float(flops[0]), float(flops[1])) if flops else Flops.closed(),
            borrowed=True,
            **_statuses(tree),
        )
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise LawError(f"{where}: draws, region or flops are damaged ({error}); fit the law again.") from error


def _borrowing(tree: Mapping[str, Mapping[str, object]]) -> StoredLaws:
    """Another form of the supervised runs, nested in the paper's law of students as the file's own is."""
    law, draws = from_dict(tree, "alternatives"), tree["draws"]
    stack = dataclasses.replace(law, **{name: _column(draws[name]) for name in law.parameters()})
    return StoredLaws(kept=_students(stack), best=_students(law))


def _students(supervised: Law) -> Law:
    """The paper's law of students around a supervised law; where that reads U, its limit form with the same penalty."""
    law = paper()[1]
    if "U" not in supervised.inputs:
        return dataclasses.replace(law, supervised=supervised)
    c = {name: float(value) for name, value in law.values().items() if name not in ("c1", "d1")}
    P, delta, eta = (getattr(supervised, name, one) for name, one in (("P", 1e-30), ("delta", 1.0), ("kappa", 0.0)))
    return DistillationUnique(**c, kappa=float(law.kappa), P=P, delta=delta, eta=eta, supervised=supervised)


class _Statuses(TypedDict):
    status: Status
    coefficients: Status
    predictions: Status


def _statuses(tree: _Tree) -> _Statuses:
    """Both statuses and the worse of them. A file of before 0.2 has one, or none."""

    def one(entry: object) -> Status:
        if isinstance(entry, str):
            return Status(kind=entry)
        entry = entry if isinstance(entry, Mapping) else {}
        return Status(kind=str(entry.get("kind", NOT_ASSESSED)), message=str(entry.get("message", "")))

    return _Statuses(
        status=one(tree.get("status")),
        coefficients=one(tree.get("coefficients")),
        predictions=one(tree.get("predictions")),
    )


def _failure(tree: _Tree) -> float:
    """The share of resamples that failed; 0 in a file that does not say."""
    boot = tree.get("bootstrap") or {}
    return float(boot.get("failed", 0)) / max(float(boot.get("resamples", 1)), 1.0)


def _draws(boot: Bootstrap) -> dict[str, object]:
    """The first kept resamples by parameter; those of the nested supervised law under its own name."""
    first: Law = jax.tree_util.tree_map(lambda leaf: leaf[:DRAWS] if np.ndim(leaf) else leaf, boot.kept)
    columns = lambda law: {name: np.asarray(values).tolist() for name, values in law.values().items()}
    inside = supervised_inside(first) if boot.staged else None
    return columns(first) | ({"supervised": columns(inside)} if inside else {})


def _covered(fit: Fit, first: Fit | None) -> dict[str, list[float]]:
    """The minimum and maximum of each variable in the runs, and of N and D of the first stage's runs as N_T and D_T."""
    columns = dict(zip(fit.law.inputs, fit.rows.inputs))
    if first:
        columns |= dict(zip(("N_T", "D_T"), first.rows.inputs))
    return {name: [float(values.min()), float(values.max())] for name, values in columns.items()}


def _stored(law: Law, supervised: Law, tree: _Tree) -> StoredLaws | None:
    """The stack of laws that a file's `draws` describe. Raises ValueError or similar errors for damaged ones."""
    draws = tree.get("draws")
    if not draws:
        return None
    others = []
    for other in tree.get("alternatives", []):
        own = from_dict(other, "alternatives")
        others.append(StoredLaws(kept=_stack(own, supervised, other["draws"]), best=own))
    return StoredLaws(
        kept=_stack(law, supervised, draws),
        best=law,
        failure=_failure(tree),
        calibration=Calibration.from_dict(tree.get("predictions", {})),
        below=Calibration.from_dict((tree.get("supervised_fit") or {}).get("predictions", {})),
        others=tuple(others),
    )


def _stack(law: Law, supervised: Law, draws: Mapping[str, object]) -> Law:
    below = draws.get("supervised", {})
    if not isinstance(below, Mapping):
        raise TypeError(f"draws of the supervised law are {type(below).__name__}, wanted an object")
    inner = {name: _column(values) for name, values in below.items()}
    own = {name: _column(draws[name]) for name in law.parameters()}
    shapes = {values.shape for values in (*own.values(), *inner.values())}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"draws of shapes {sorted(shapes)}, wanted as many of every parameter")
    return dataclasses.replace(law, **own, **{"supervised": dataclasses.replace(supervised, **inner)})


def draws(path: str | os.PathLike) -> Law | None:
    """The resampled laws of a file of a supervised law, a stack [R]; None where it keeps none. Raises LawError."""
    tree = read_json(path)
    law, columns = from_dict(tree, str(path)), tree.get("draws")
    if law.given() or not columns:
        return None
    try:
        return dataclasses.replace(law, **{name: _column(columns[name]) for name in law.parameters()})
    except (TypeError, ValueError, KeyError) as error:
        raise LawError(f"{path}: draws are damaged ({error}); fit the law again.") from error


def _column(values: object) -> Floats:
    if not isinstance(values, Sequence):
        raise TypeError(f"draws of a parameter are {type(values).__name__}, wanted a list of numbers")
    return np.asarray(values, np.float64)
