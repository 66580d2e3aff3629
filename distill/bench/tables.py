"""Forms judged on real runs: in the sample, left out, held out, rolled forward.

    python -m launch.bench tables                 # Apple's 354 distillation runs, which ship
    python -m launch.bench tables --part=others   # the supervised tables in $DISTILL_DATA

The others: Chinchilla (245 digitised points), Gadre et al. (104 runs, three training sets, C4 validation), misfitting
(the best learning rate per size and budget), steplaw (the best learning rate and batch size).
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import outside
from distill.config import ConfigError, nearest
from distill.config.flags import Parser

STUDENT_FORMS = ("distillation", "distillation-limit", "overtaking", "additive")


def apple() -> None:
    """The student forms on Apple's runs: 328 weak ones fitted, 26 strong ones predicted."""
    runs, supervised = laws.load_table("apple"), laws.paper()[0]
    weak = runs.where("L_S > 2.3")
    ranked = laws.compare(STUDENT_FORMS, weak, supervised=supervised)
    for one in ranked:
        form = one.fit.law.name
        held = laws.holdout(form, runs, "L_S <= 2.3", supervised=supervised, resamples=500)
        rolled = laws.roll_forward(form, runs, supervised=supervised, resamples=200)
        errors = np.concatenate([part.errors for part in rolled])
        inside = np.mean([part.coverage for part in rolled])
        print(
            f"{form:18s} objective {one.fit.objective:.6g}, left out {one.error:.3%} +- {one.standard_error:.3%}, "
            f"L_S <= 2.3: {held.errors.mean():.3%} ({held.coverage:.0%} inside), "
            f"rolled forward: {errors.mean():.3%} ({inside:.0%} inside)",
            flush=True,
        )
    fits = {one.fit.law.name: one.fit for one in ranked}
    for larger in ("distillation", "overtaking"):
        test = laws.nested(fits["distillation-limit"], fits[larger])
        print(f"{test.larger} against {test.smaller}: objective {test.gain:+.1%} lower, p = {test.p_value:.3f}")


def others(folder: Path) -> None:
    """Chinchilla's form and Eq. 1 on supervised tables: fitted on four fifths of the compute, the last predicted."""
    for name, runs in _tables(folder):
        compute = runs["N"] * runs["D"]
        for form in ("chinchilla", "supervised"):
            fit = laws.fit(form, runs)
            held = laws.holdout(form, runs, compute > np.quantile(compute, 0.8), resamples=500)
            print(
                f"{name:16s} {len(runs):3d} rows {form:10s} in the sample {fit.error[0]:.3%}, last fifth "
                f"{held.errors.mean():.2%} mean {held.errors.max():.2%} max ({held.coverage:.0%} inside); {fit.status}",
                flush=True,
            )


def _tables(folder: Path) -> Iterable[tuple[str, laws.Table]]:
    def rows(path: str) -> list[dict[str, str]]:
        with (folder / path).open() as file:
            return list(csv.DictReader(file))

    if (folder / "chinchilla").exists():
        cells = rows("chinchilla/svg_extracted_data.csv")
        N, C, L = (np.array([float(row[name]) for row in cells]) for name in ("Model Size", "Training FLOP", "loss"))
        kept = np.sort(np.argsort(L)[:-5])
        yield "chinchilla", laws.from_arrays(N=N[kept], D=(C / 6 / N)[kept], L=L[kept])
    if (folder / "gadre_overtraining").exists():
        cells = [row for row in rows("gadre_overtraining/runs_long.csv") if row["eval"].startswith("c4_val")]
        for kind in sorted({row["train_set"] for row in cells}):
            yield f"gadre {kind}", _best([r for r in cells if r["train_set"] == kind], "N_no_emb", "D", "loss")
    if (folder / "misfitting").exists():
        yield "misfitting", _best(rows("misfitting/scaling_results_last_ckpt_only.csv"), "N_no_emb", "D", "loss")
    if (folder / "steplaw").exists():
        yield "steplaw", _best(rows("steplaw/dense_lr_bs_loss.csv"), "N", "D", "smooth loss")


def _best(cells: Sequence[Mapping[str, str]], N: str, D: str, loss: str) -> laws.Table:
    """The lowest loss of each size and budget."""
    best: dict[tuple[float, float], float] = {}
    for row in cells:
        key = float(row[N]), float(row[D])
        best[key] = min(best.get(key, np.inf), float(row[loss]))
    return laws.from_arrays(N=[k[0] for k in best], D=[k[1] for k in best], L=list(best.values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line per form and table."""
    parser = Parser("bench tables", __doc__)
    parser.add_argument("--part", default="apple", help="apple or others")
    flags = parser.parse_args(argv)
    if flags.part not in ("apple", "others"):
        hint = nearest(flags.part, ("apple", "others"))
        raise ConfigError(f"--part={flags.part}; wanted apple or others.{hint}")
    if flags.part == "apple":
        apple()
    else:
        folder = outside.folder()
        if folder is None:
            raise ConfigError(outside.MISSING)
        others(folder)
    return 0
