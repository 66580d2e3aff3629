"""Runs a study: a matrix of runs, then the laws, the plan and the report. Run again, it does what is left.

    python -m launch.study --config=configs/study.py:smoke --workdir=DIR [--config.FIELD=VALUE ...]

--dry-run lists the runs with N, D and FLOPs, and stops.
"""

import shlex
import sys
from collections.abc import Sequence

from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    from distill.config import StudyExperimentConfig

    config, flags = cli.configured(
        StudyExperimentConfig, argv, __doc__ or "", "configs/study.py", {"workdir": None, "dry-run": "false"}
    )
    from distill.study import run

    command = shlex.join(["python", "-m", "launch.study", *(sys.argv[1:] if argv is None else argv)])
    return run.run(config, flags["workdir"], dry_run=flags["dry-run"] == "true", command=command)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
