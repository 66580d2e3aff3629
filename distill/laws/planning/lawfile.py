"""Law files: a fit writes them; planners, pages and figures read them.

A law file is JSON: the law itself (`Law.to_dict`), the fit that made it (`Fit.to_dict`), and beside them

    open            directions in parameter space that the runs leave open
    bootstrap       how the runs were resampled, and the intervals (`Bootstrap.to_dict`)
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

import jax
import numpy as np

from distill.laws.fitting.fit import Fit
from distill.laws.forms.arrays import Floats
from distill.laws.forms.law import Law, LawError, read_json
from distill.laws.forms.registry import from_dict
from distill.laws.forms.repetition import DistillationUnique
from distill.laws.forms.resampled import ResampledLaws, supervised_inside
from distill.laws.forms.students import paper
from distill.laws.planning.region import ANY, PAPER_REGION, Region
from distill.laws.planning.scenarios import Flops
from distill.laws.uncertainty.bootstrap import Bootstrap
from distill.laws.uncertainty.holdout import Holdout

STUDENTS = ("N_S", "D_S", "L_T")  # inputs of a law of students; U_S may follow
DRAWS = 512  # resampled laws that a law file keeps
_LARGEST = 1e12  # JSON has no infinity, and the standard error of an unconstrained direction is infinite


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLaws:
    """The resampled laws of a law file (ResampledLaws): a stack of distillation laws, each with its supervised law."""

    kept: Law


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawFile:
    """Laws and their metadata; if the file lacks them, `boot` and `region` are None and `flops` is Appendix H's."""

    name: str
    supervised: Law
    distillation: Law
    boot: ResampledLaws | None
    region: Region | None
    flops: Flops
    borrowed: bool = False  # the law of students is the paper's, because the file has only a supervised law


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
        tree["supervised_fit"] = first.to_dict()
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
        return _borrowed(law, tree.get("draws"), tree.get("region"), tree.get("flops"), where)
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
            boot=_stored(law, inside["supervised"], tree.get("draws")),
            region=Region(**{k: (float(v[0]), float(v[1])) for k, v in region.items()}) if region else None,
            flops=Flops(float(flops[0]), float(flops[1])) if flops else Flops.closed(),
        )
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise LawError(f"{where}: draws, region or flops are damaged ({error}); fit the law again.") from error


def _borrowed(
    law: Law,
    draws: Mapping[str, object] | None,
    region: Mapping[str, Sequence[float]] | None,
    flops: Sequence[float] | None,
    where: str,
) -> LawFile:
    """A supervised law nested in the paper's law of students. Raises LawError for damaged draws or region."""
    try:
        stack = dataclasses.replace(law, **{name: _column(draws[name]) for name in law.parameters()}) if draws else None
        box = {name: (float(low), float(high)) for name, (low, high) in (region or {}).items()}
        return LawFile(
            name=where,
            supervised=law,
            distillation=_students(law),
            boot=StoredLaws(kept=_students(stack)) if stack else None,
            region=Region(N_S=box["N"], D_S=box["D"], L_T=ANY, N_T=box["N"], D_T=box["D"]) if box else None,
            flops=Flops(float(flops[0]), float(flops[1])) if flops else Flops.closed(),
            borrowed=True,
        )
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise LawError(f"{where}: draws, region or flops are damaged ({error}); fit the law again.") from error


def _students(supervised: Law) -> Law:
    """The paper's law of students around a supervised law; where that reads U, its limit form with the same penalty."""
    law = paper()[1]
    if "U" not in supervised.inputs:
        return dataclasses.replace(law, supervised=supervised)
    c = {name: float(value) for name, value in law.values().items() if name not in ("c1", "d1")}
    P, delta, eta = (getattr(supervised, name, one) for name, one in (("P", 1e-30), ("delta", 1.0), ("kappa", 0.0)))
    return DistillationUnique(**c, kappa=float(law.kappa), P=P, delta=delta, eta=eta, supervised=supervised)


def _draws(boot: Bootstrap) -> dict[str, object]:
    """The first kept resamples by parameter; those of the nested supervised law under its own name."""
    first: Law = jax.tree_util.tree_map(lambda leaf: leaf[:DRAWS] if np.ndim(leaf) else leaf, boot.kept)
    columns = lambda law: {name: np.asarray(values).tolist() for name, values in law.values().items()}
    inside = supervised_inside(first) if boot.supervised else None
    return columns(first) | ({"supervised": columns(inside)} if inside else {})


def _covered(fit: Fit, first: Fit | None) -> dict[str, list[float]]:
    """The minimum and maximum of each variable in the runs, and of N and D of the first stage's runs as N_T and D_T."""
    columns = dict(zip(fit.law.inputs, fit.rows.inputs))
    if first:
        columns |= dict(zip(("N_T", "D_T"), first.rows.inputs))
    return {name: [float(values.min()), float(values.max())] for name, values in columns.items()}


def _stored(law: Law, supervised: Law, draws: Mapping[str, object] | None) -> StoredLaws | None:
    """The stack of laws that a file's `draws` describe. Raises ValueError or similar errors for damaged ones."""
    if not draws:
        return None
    below = draws.get("supervised", {})
    if not isinstance(below, Mapping):
        raise TypeError(f"draws of the supervised law are {type(below).__name__}, wanted an object")
    inner = {name: _column(values) for name, values in below.items()}
    own = {name: _column(draws[name]) for name in law.parameters()}
    shapes = {values.shape for values in (*own.values(), *inner.values())}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"draws of shapes {sorted(shapes)}, wanted as many of every parameter")
    inside = dataclasses.replace(supervised, **inner)
    return StoredLaws(kept=dataclasses.replace(law, **own, **{"supervised": inside}))


def _column(values: object) -> Floats:
    if not isinstance(values, Sequence):
        raise TypeError(f"draws of a parameter are {type(values).__name__}, wanted a list of numbers")
    return np.asarray(values, np.float64)
