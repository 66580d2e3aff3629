"""Fits a scaling law to a table of runs: estimates, intervals, a status, held-out error; a law file and a figure.

python -m launch.fit --table=runs.csv --law=supervised --out=supervised.json
python -m launch.fit --table=runs.csv --law=distillation --supervised=table --cluster=trunk --out=law.json
python -m launch.fit --table=apple --law=distillation-limit --holdout='L_S<=2.3' --out=law.json
python -m launch.fit --table=theirs.csv --law=chinchilla --columns=N=params,D=tokens,L=val_loss --delta=1e-3
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from distill import laws, runtime
from distill.config import ConfigError
from distill.laws import registry, summary
from launch import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the table, fits, bootstraps, prints; writes nothing unless all of it succeeded."""
    began = time.perf_counter()
    flags = _parser().parse_args(argv)
    runtime.cache_compilations()
    table = laws.load_table(flags.table, _columns(flags.columns))
    if flags.rows:
        table = table.where(flags.rows)
    form = registry.get(flags.law)
    options = {
        "objective": laws.Objective(kind=flags.objective, delta=flags.delta),
        "weights": flags.weights or None,
        "units": flags.units == "check",
        "seed": flags.seed,
    }
    resampling = {"resamples": flags.resamples, "kind": flags.bootstrap, "cluster": flags.cluster or None}
    first = None
    given = None
    if form.given():
        if flags.supervised == "table":
            first = laws.fit("supervised", table, **options)
            given = first.law
        else:
            given = laws.paper()[0] if flags.supervised == "paper" else laws.load(flags.supervised)
    held = None
    if flags.holdout:
        known = first or given
        held = laws.holdout(form, table, flags.holdout, supervised=known, level=flags.level, **resampling, **options)
        fit, boot = held.fit, held.boot
    else:
        fit = laws.fit(form, table, supervised=given, **options)
        boot = laws.bootstrap((first, fit) if first else fit, seed=flags.seed, **resampling)
    print(summary.report(fit, boot, held, first, flags.level))
    if flags.out:
        out = Path(flags.out)
        fit.save(out, **summary.extra(fit, boot, held, first, flags.level))
        if flags.figures == "yes":
            from distill.laws import figures

            figures.draw(out.with_suffix(".png"), fit, boot, held)
        print(f"\nwrote {out}" + (f" and {out.with_suffix('.png')}" if flags.figures == "yes" else ""))
    print(f"{time.perf_counter() - began:.1f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.fit",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--table", required=True, help="a .csv, .jsonl or .parquet file, or a table that ships (apple)")
    add("--law", default="distillation", help="a form: supervised, distillation, distillation-limit, chinchilla, ...")
    add("--supervised", default="paper", help="Lsup of a student law: paper, table (fit it first), or a law file")
    add("--columns", default="", help="the law's names for the table's columns: N=params,D=tokens")
    add("--rows", default="", help="fit only the rows of a rule: 'N_S >= 1e9 and D_S < 1e12'")
    add("--holdout", default="", help="a rule of rows to predict instead of fitting: 'L_S<=2.3'")
    add("--objective", default="huber", help="huber, log-mse, mse or lad (default huber)")
    add("--delta", type=float, default=1e-3, help="of Huber's function on log losses (default 1e-3)")
    add("--weights", default="", help="a column of standard errors of the loss")
    add("--resamples", type=int, default=4096, help="of the bootstrap (default 4096)")
    add("--bootstrap", default="pairs", help="pairs, residual or wild (default pairs)")
    add("--cluster", default="", help="a column of runs that are not independent: trunk, teacher, model")
    add("--level", type=float, default=0.9, help="of the intervals (default 0.9)")
    add("--units", default="check", choices=("check", "asis"), help="asis accepts unusual magnitudes")
    add("--seed", type=int, default=0)
    add("--out", default="", help="the law file to write (JSON), with a figure beside it (PNG)")
    add("--figures", default="yes", choices=("yes", "no"))
    return parser


def _columns(text: str) -> dict[str, str]:
    columns = {}
    for item in text.split(",") if text else []:
        name, separator, column = item.partition("=")
        if not separator or not name or not column:
            raise ConfigError(f"--columns: got {item!r}, wanted NAME=COLUMN such as N=params")
        columns[name.strip()] = column.strip()
    return columns


if __name__ == "__main__":
    raise SystemExit(cli.guard(main))
