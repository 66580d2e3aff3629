"""Laws of the planner's page, with draws and calibrations that no fit made: `laws_by_name()`."""

import dataclasses

import numpy as np

from distill import laws
from distill.laws.forms.law import Law
from distill.laws.planning.lawfile import LawFile, StoredLaws, read
from distill.laws.planning.scenarios import Flops
from distill.laws.uncertainty.calibration import Calibration
from distill.laws.uncertainty.edges import Edges

PAPER = read("paper")
_LIMIT = {"A": 2243.0, "B": 24181.0, "alpha": 0.321, "beta": 0.637, "gamma": 0.764, "c0": 2.549, "f1": 0.09}
_KAPPA = float(PAPER.distillation.kappa)
_SUPERVISED = dataclasses.replace(PAPER.supervised, E=1.25)
PENALTY = laws.AdditivePenalty(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28, P=0.02, delta=0.8, kappa=0.3)


def stack(law: Law, seed: int, count: int, **given: Law) -> Law:
    """`count` laws around one, every parameter by a factor of about 0.3%."""
    factors = np.exp(0.003 * np.random.default_rng(seed).standard_normal((len(law.values()), count)))
    return dataclasses.replace(law, **{k: v * f for (k, v), f in zip(law.values().items(), factors)}, **given)


def calibration(names: tuple[str, ...], weights: tuple[float, ...], factor: float) -> Calibration:
    """What rolling forward might have shown of runs of 100M to 2B parameters on 1B to 100B tokens."""
    known = {"N": (1e8, 2e9), "D": (1e9, 1e11), "L": (1.9, 2.7), "U": (1e9, 1e11)}
    ranges = {name: (float(np.log(known[name[0]][0])), float(np.log(known[name[0]][1]))) for name in names}
    noise = tuple(0.003 + 0.001 * i for i in range(len(weights)))
    edges = Edges(ranges=ranges, budgets=(40.0, 46.0))
    return Calibration(
        kind="ok",
        message="8 cutoffs",
        factor=factor,
        growth=0.4,
        apart=0.6 * factor,
        noise=noise,
        weights=weights,
        edges=edges,
    )


def laws_by_name() -> dict[str, LawFile]:
    """Law files of every kind that the page takes, with 60 draws, or 20 where they are slow."""
    own = dataclasses.replace(PAPER.distillation, supervised=_SUPERVISED)
    inside = stack(_SUPERVISED, 1, 60)
    over = laws.Overtaking(**_LIMIT, kappa=_KAPPA, w=0.1, supervised=_SUPERVISED)
    unique = laws.DistillationUnique(**_LIMIT, kappa=_KAPPA, P=0.01, delta=0.7, eta=0.2, supervised=PENALTY)
    students = ("N_S", "D_S", "L_T")
    averaged = StoredLaws(
        kept=stack(own, 2, 60, supervised=inside),
        best=own,
        calibration=calibration(students, (0.35, 0.65), 2.3),
        below=calibration(("N", "D"), (1.0,), 1.9),
        others=(StoredLaws(kept=stack(over, 3, 60, supervised=inside), best=over),),
    )
    one = lambda law, draws, **more: StoredLaws(
        kept=stack(law, 4, 20, supervised=stack(law.supervised, 5, 20)), best=law, **draws, **more
    )
    files = {
        "averaged": (own, averaged),
        "bootstrap": (own, one(own, {})),
        "failed": (own, one(own, {}, failure=0.2)),
        "unique": (unique, one(unique, {"calibration": calibration((*students, "U_S"), (1.0,), 2.0)})),
    }
    flops = Flops(30.0, 200.0)
    return {
        name: dataclasses.replace(PAPER, name=name, supervised=law.supervised, distillation=law, boot=boot, flops=flops)
        for name, (law, boot) in files.items()
    }
