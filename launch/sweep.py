"""Runs a config with some of its fields varied: every combination is a run. Run again, it does what is left.

    python -m launch.sweep --config=configs/train.py --sweep='model.n_layers=2,4,6' \\
        --sweep='objective.temperature=logspace(0.5,4,5)' --sweep='seed=range(0,2)' --workdir=DIR [--config.FIELD=VALUE]
    python -m launch.sweep ... --zip='model.d_model=32,64;optim.learning_rate=1e-2,5e-3'

--sweep=FIELD=VALUES crosses with all others; --zip=FIELD=VALUES;FIELD=VALUES changes its fields together. VALUES is a
list of values, range(start,stop), linspace(from,to,n) and logspace(from,to,n), by equal factors.
--where='N < 1e5 and C < 1e12' keeps combinations by N, D, C (FLOPs) and the swept fields.
--dry-run lists the runs with N, D, FLOPs and, from what the finished runs took or from --rate (FLOPs/s of a worker),
their time; with --price (an hour of a worker) their cost.
--backend=local runs them on --workers=N processes, each on its own cores (default: one a core), up to --pack=N runs of
one shape together (seeds, rates, temperatures: one program with an axis more, for an accelerator that a small model
leaves idle; on a CPU it gains nothing); print prints a launch.train command for each that is not finished; slurm
submits those as an array, with the flags of launch/slurm.sh in --slurm='--gpus-per-node=1 --time=4:00:00'. After
either, --backend=local collects what finished.

Leaves runs/ (a folder a run), runs.csv, curves.csv and sweep.csv (settings and losses) in --workdir.
"""

import sys
from collections.abc import Sequence

from distill.config import ConfigError, ExperimentConfig, nearest, parse
from launch.support import cli

_FLAGS: dict[str, str | None] = {
    "workdir": None, "where": "", "backend": "local", "workers": "0", "pack": "1", "rate": "0", "price": "0",
    "slurm": "", "dry-run": "false",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    lines = [a.partition("=")[2] for a in argv if a.startswith(("--sweep=", "--zip="))]
    rest = [a for a in argv if not a.startswith(("--sweep=", "--zip="))]
    config, flags = cli.configured(ExperimentConfig, rest, __doc__ or "", "configs/train.py", _FLAGS)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.study import sweep

    if flags["backend"] not in sweep.BACKENDS:
        hint = nearest(flags["backend"], sweep.BACKENDS)
        raise ConfigError(f"--backend={flags['backend']}: wanted one of {', '.join(sweep.BACKENDS)}.{hint}")
    return sweep.run(
        config,
        [sweep.axis(line) for line in lines],
        flags["workdir"],
        where=flags["where"],
        backend=flags["backend"],
        n_workers=parse(ExperimentConfig, "tokens", flags["workers"]),
        pack=parse(ExperimentConfig, "tokens", flags["pack"]),
        rate=_number("rate", flags["rate"]),
        price=_number("price", flags["price"]),
        source=next((a.partition("=")[2] for a in rest if a.startswith("--config=")), "configs/train.py"),
        overrides=[a for a in rest if a.startswith("--config.")],
        slurm=flags["slurm"],
        dry_run=flags["dry-run"] == "true",
    )


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"--{name}={text}: wanted a positive number")
    return value


if __name__ == "__main__":
    sys.exit(cli.guard(main))
