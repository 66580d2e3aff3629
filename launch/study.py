"""Runs a study: a matrix of runs, then the laws, the plan and the report. Run again, it does what is left.

Ctrl-C saves the runs under way and ends. Leaves runs.csv, curves.csv, laws/ and report/index.html in --workdir.
"""

import shlex
import sys
from collections.abc import Sequence

from distill.config import StudyExperimentConfig
from distill.config.flags import Parser
from launch.support import cli

EXAMPLES = (
    "distill study --config=configs/study.py:smoke --workdir=runs/smoke",
    "distill study --config=configs/study.py:smoke --workdir=runs/smoke --dry-run",
    "distill study --config=configs/study.py:micro --workdir=runs/micro --config.study.workers=8",
)


def parser() -> Parser:
    parser = cli.experiment_parser("study", __doc__, EXAMPLES, StudyExperimentConfig, "configs/study.py")
    add = parser.group("the study")
    add("--workdir", required=True, metavar="DIR", help="folder of the study")
    add("--dry-run", action="store_true", help="list the runs with N, D and FLOPs, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    config = cli.config_of(StudyExperimentConfig, flags)
    from distill.study import run

    command = shlex.join(["python", "-m", "launch.study", *(sys.argv[1:] if argv is None else argv)])
    return run.run(config, flags.workdir, dry_run=flags.dry_run, command=command)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
