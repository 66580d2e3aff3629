"""Forms judged on real runs: in the sample, left out, held out, rolled forward.

python -m launch.bench tables                # the museum: every form, every table that ships or is in $DISTILL_DATA
python -m launch.bench tables --part=page    # its section of docs/results/laws.md, from the results of the museum
python -m launch.bench tables --part=apple   # Apple's 354 distillation runs: held-out errors and coverage
python -m launch.bench tables --part=lambda  # the study of lambda: runs of left-out trunks and teachers
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import extrapolation, lambdas, museum, museum_page, ours, outside
from distill.config import ConfigError, nearest
from distill.config.flags import Parser

PARTS = ("museum", "page", "apple", "lambda")


def apple() -> None:
    """The student forms on Apple's runs: 328 weak ones fitted, 26 strong ones predicted."""
    runs, supervised = laws.load_table("apple"), laws.paper()[0]
    weak = runs.where("L_S > 2.3")
    ranked = laws.compare(ours.STUDENTS, weak, supervised=supervised)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line per form and table; the museum writes its results too."""
    parser = Parser("bench tables", __doc__)
    parser.add_argument("--part", default="museum", help=", ".join(PARTS))
    parser.add_argument("--out", default="docs/campaigns/museum.json", help="the museum's results")
    parser.add_argument("--page", default="docs/results/laws.md", help="the document with the museum's section")
    parser.add_argument("--table", default="docs/study/lambda/runs.csv", help="the runs of the study of lambda")
    flags = parser.parse_args(argv)
    if flags.part not in PARTS:
        raise ConfigError(f"--part={flags.part}; wanted one of {', '.join(PARTS)}.{nearest(flags.part, PARTS)}")
    if flags.part == "museum":
        museum.run(outside.folder(), Path(flags.out))
    elif flags.part == "page":
        log = Path(flags.out).with_name("extrapolation.jsonl")
        forecasts = extrapolation.read(log) if log.exists() else []
        museum_page.write(museum.read(Path(flags.out)), Path(flags.page), forecasts)
        print(f"wrote {flags.page}")
    elif flags.part == "lambda":
        lambdas.judge(laws.load_table(flags.table))
    else:
        apple()
    return 0
