"""What a planner needs from `--law`: both laws, their bootstrap, the region of the runs and F(N), in one object."""

import dataclasses
import os
from typing import Any

import numpy as np

from distill.laws.forms.forms import paper
from distill.laws.forms.law import LawError, read_json
from distill.laws.forms.registry import from_dict
from distill.laws.planning.region import PAPER_REGION, Region
from distill.laws.planning.scenarios import Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """A bootstrap at rest: the stack of resampled distillation laws, each with its supervised law inside."""

    laws: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawFile:
    """Laws and what is known about them; `boot`, `region` are None and `flops` Appendix H's where a file is silent."""

    name: str
    supervised: Any
    distillation: Any
    boot: Draws | None
    region: Region | None
    flops: Flops


def read(path: str | os.PathLike) -> LawFile:
    """`paper`, or a JSON file of a law of students (inputs N_S, D_S, L_T) with its supervised law inside.

    Beside the law the file may hold `draws` (the resampled parameters by name, those of the supervised law under
    `supervised`), `region` (least and most of each variable) and `flops` ([context, vocabulary] of F). Raises LawError.
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
    inside = {name: getattr(law, name) for name in law.given()}
    if law.inputs != ("N_S", "D_S", "L_T") or "supervised" not in inside:
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
            boot=_draws(law, tree.get("draws")),
            region=Region(**{k: (float(v[0]), float(v[1])) for k, v in region.items()}) if region else None,
            flops=Flops(float(flops[0]), float(flops[1])) if flops else Flops.closed(),
        )
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise LawError(f"{where}: draws, region or flops are damaged ({error}); fit the law again.") from error


def _draws(law: Any, tree: Any) -> Draws | None:
    if not tree:
        return None
    inside = dataclasses.replace(
        law.supervised,
        **{name: np.asarray(values, np.float64) for name, values in tree.get("supervised", {}).items()},
    )
    own = {name: np.asarray(tree[name], np.float64) for name in law.parameters()}
    shapes = {np.shape(values) for values in (*own.values(), *tree.get("supervised", {}).values())}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"draws of shapes {sorted(shapes)}, wanted as many of every parameter")
    return Draws(laws=dataclasses.replace(law, **own, supervised=inside))
