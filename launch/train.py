"""Trains one run and prints its result.

    python -m launch.train --config=configs/train.py:micro --workdir=DIR [--config.FIELD=VALUE ...]

With --config.teacher.source=WORKDIR_OF_A_FINISHED_RUN the run is distilled. The same command continues a run that was
interrupted; a finished run is not run again. --dry-run prints what would run: N, D, FLOPs, fingerprint.
"""

import sys
from collections.abc import Sequence

from launch import cli


def main(argv: Sequence[str] | None = None) -> int:
    from distill.config import ExperimentConfig

    config, flags = cli.configured(
        ExperimentConfig, argv, __doc__ or "", "configs/train.py", {"workdir": None, "dry-run": "false"}
    )
    from distill.report import run

    if flags["dry-run"] == "true":
        return run.describe(config)
    return run.follow(config, flags["workdir"])


if __name__ == "__main__":
    sys.exit(cli.guard(main))
