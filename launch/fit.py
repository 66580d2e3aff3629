"""Fits a scaling law to a table of runs: estimates, intervals, a status, held-out error; a law file and a figure."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import laws
from distill.config import ConfigError
from distill.config.flags import Parser
from distill.laws.forms import registry
from distill.laws.planning import lawfile
from distill.laws.uncertainty import text as summary
from distill.system import process
from launch.support import cli

EXAMPLES = (
    "distill fit --table=runs.csv --law=supervised --out=supervised.json",
    "distill fit --table=runs.csv --law=distillation --supervised=table --cluster=trunk --out=law.json",
    "distill fit --table=apple --law=distillation-limit --holdout='L_S<=2.3' --out=law.json",
    "distill fit --table=theirs.csv --law=chinchilla --columns=N=params,D=tokens,L=val_loss --delta=1e-3",
    "distill fit --table=apple --law=distillation-limit --delta=1e-5,1e-4,1e-3,1e-2,1e-1",
    "distill fit --table=runs.csv --forms=mine.py --law=saturating --out=law.json",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the table, fits, bootstraps, prints; writes nothing unless all of it succeeded."""
    began = time.perf_counter()
    flags = parser().parse_args(argv)
    deltas = _deltas(flags.delta)
    if len(deltas) > 1 and (flags.out or flags.objective != "huber"):
        raise ConfigError(f"--delta={flags.delta}: a path of deltas is for huber and prints only; wanted one delta")
    process.cache_compilations()
    if flags.forms:
        registry.import_forms(flags.forms)
    table = laws.load_table(flags.table, _columns(flags.columns))
    if flags.rows:
        table = table.where(flags.rows)
    form = registry.get(flags.law)
    options = {"weights": flags.weights or None, "units": flags.units == "check", "seed": flags.seed}
    options |= {"grid": flags.starts == "published"}
    resampling = {"resamples": flags.resamples, "kind": flags.bootstrap, "cluster": flags.cluster or None}

    def fitted(delta: float, **how: Any) -> tuple[laws.Fit, laws.Fit | None, laws.Holdout | None]:
        """(fit, that of the first stage, held-out part): the last two where the flags ask for them."""
        objective = laws.Objective(kind=flags.objective, delta=delta)
        first = given = None
        if form.given() and flags.supervised == "table":
            first = laws.fit("supervised", table, objective=objective, **options)
            given = first.law
        elif form.given():
            given = laws.paper()[0] if flags.supervised == "paper" else laws.load(flags.supervised)
        if not flags.holdout:
            return laws.fit(form, table, supervised=given, objective=objective, **options), first, None
        held = laws.holdout(
            form,
            table,
            flags.holdout,
            supervised=first or given,
            level=flags.level,
            objective=objective,
            **how,
            **options,
        )
        return held.fit, first, held

    if len(deltas) > 1:
        print(summary.path([(fit, held) for fit, _, held in (fitted(delta, resamples=2) for delta in deltas)]))
        print(f"{time.perf_counter() - began:.1f} s")
        return 0
    fit, first, held = fitted(deltas[0], **resampling)
    boot = held.boot if held else laws.bootstrap((first, fit) if first else fit, seed=flags.seed, **resampling)
    print(summary.report(fit, boot, held, first, flags.level))
    if flags.out:
        out = Path(flags.out)
        lawfile.write(out, fit, boot, held, first, level=flags.level)
        if flags.figures == "yes":
            from distill.report.law import fit_figure

            fit_figure.draw(out.with_suffix(".png"), fit, boot, held)
        print(f"\nwrote {out}" + (f" and {out.with_suffix('.png')}" if flags.figures == "yes" else ""))
    print(f"{time.perf_counter() - began:.1f} s")
    return 0


def parser() -> Parser:
    parser = Parser("fit", __doc__, examples=EXAMPLES)
    add = parser.group("the table and the law")
    add("--table", required=True, help="a .csv, .jsonl or .parquet file, or a table that ships (apple, micro)")
    add("--law", default="distillation", help="a form: supervised, distillation, distillation-limit, chinchilla, ...")
    add("--forms", default="", help="a Python file with forms of your own, imported first")
    add("--supervised", default="paper", help="Lsup of a student law: paper, table (fit it first), or a law file")
    add("--columns", default="", help="the law's names for the table's columns: N=params,D=tokens")
    add("--rows", default="", help="fit only the rows of a rule: 'N_S >= 1e9 and D_S < 1e12'")
    add("--holdout", default="", help="a rule of rows to predict instead of fitting: 'L_S<=2.3'")
    add = parser.group("how it is fitted")
    add("--objective", default="huber", help="huber, log-mse, mse or lad (default huber)")
    add("--delta", default="1e-3", help="of Huber's function on log losses (default 1e-3); several print the path")
    add("--starts", default="random", choices=("random", "published"), help="published: the paper's grid as well")
    add("--weights", default="", help="a column of standard errors of the loss")
    add("--resamples", type=int, default=4096, help="of the bootstrap (default 4096)")
    add("--bootstrap", default="pairs", help="pairs, residual or wild (default pairs)")
    add("--cluster", default="", help="a column of runs that are not independent: trunk, teacher, model")
    add("--level", type=float, default=0.9, help="of the intervals (default 0.9)")
    add("--units", default="check", choices=("check", "asis"), help="asis accepts unusual magnitudes")
    add("--seed", type=int, default=0, help="of random starts and resamples")
    add = parser.group("what is written")
    add("--out", "--output", default="", help="the law file to write (JSON), with a figure beside it (PNG)")
    add("--figures", default="yes", choices=("yes", "no"), help="a PNG beside the law file")
    return parser


def _deltas(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--delta={text}: wanted a positive number such as 1e-3, or several: 1e-4,1e-3,1e-2"
        ) from None


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
