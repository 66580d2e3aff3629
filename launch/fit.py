"""Fits a scaling law to a table of runs: estimates, intervals, a status, held-out error; a law file and a figure."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from distill import laws
from distill.config import ConfigError
from distill.config.flags import Parser, between
from distill.laws.fitting.numerals import number
from distill.laws.fitting.rows import has_both_kinds
from distill.laws.forms import registry
from distill.laws.planning import lawfile
from distill.laws.uncertainty import text as summary
from distill.laws.uncertainty.extrapolation import plausible
from distill.system import process
from launch.support import cli

EXAMPLES = (
    "distill fit --table=runs.csv --law=supervised --out=supervised.json",
    "distill fit --table=runs.csv --law=distillation --supervised=table --cluster=trunk --out=law.json",
    "distill fit --table=apple --law=distillation-limit --holdout='L_S<=2.3' --out=law.json",
    "distill fit --table=theirs.csv --law=chinchilla --columns=N=params,D=tokens,L=val_loss --delta=1e-3",
    "distill fit --table=wandb.csv --rows='State == finished' --scale=D=1e9 --loss-unit=bits",
    "distill fit --table='runs/*' --out=law.json",
    "distill fit --table=apple --law=distillation-limit --delta=1e-5,1e-4,1e-3,1e-2,1e-1",
    "distill fit --table=runs.csv --forms=mine.py --law=saturating --out=law.json",
)


class _Resampling(TypedDict, total=False):
    """How `laws.bootstrap` and `laws.holdout` resample."""

    resamples: int
    kind: str
    cluster: str | None


STANDS_IN = (
    "supervised the paper's law (Table 6) stands in for Lsup, as the table has no supervised runs: of other models or\n"
    "           text a guess, and so is whether to distil; --supervised=FILE or a table with such runs replaces it"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the table, fits, bootstraps, prints; writes nothing unless all of it succeeded."""
    began = time.perf_counter()
    flags = parser().parse_args(argv)
    deltas = deltas_of(flags.delta)
    if len(deltas) > 1 and (flags.out or flags.objective != "huber"):
        raise ConfigError(f"--delta={flags.delta}: a path of deltas is for huber and prints only; wanted one delta")
    for flag, place in (("--out", flags.out), ("--page", flags.page)):
        if place and Path(place).is_dir():
            raise ConfigError(f"{flag}={place}: is a folder; wanted the name of a file in it")
    process.cache_compilations()
    if flags.forms:
        registry.import_forms(flags.forms)
    table = _table(flags)
    form = registry.get(flags.law or laws.default_form(table))
    below = flags.supervised or ("table" if form.given() and has_both_kinds(table) else "paper")
    options = {"weights": flags.weights or None, "units": flags.units == "check", "seed": flags.seed}
    options |= {"grid": flags.starts == "published"}
    resampling: _Resampling = {"resamples": flags.resamples, "kind": flags.bootstrap, "cluster": flags.cluster or None}

    def fitted(delta: float, **how: Unpack[_Resampling]) -> tuple[laws.Fit, laws.Fit | None, laws.Holdout | None]:
        """(fit, that of the first stage, held-out part): the last two where the flags ask for them."""
        objective = laws.Objective(kind=flags.objective, delta=delta, quantile=flags.quantile)
        first = given = None
        if form.given() and below == "table":
            first = laws.fit("supervised", table, objective=objective, **options)
            given = first.law
        elif form.given():
            given = laws.paper()[0] if below == "paper" else laws.load(below)
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
    inside = lawfile.draws(below) if form.given() and below not in ("table", "paper") else None
    staged = (first, fit) if first else fit
    plain = held.boot if held and inside is None else None
    boot = plain or laws.bootstrap(staged, seed=flags.seed, given=inside, **resampling)
    boot = laws.calibrated(boot, plausible(form) if flags.out or flags.page else ())
    print(summary.report(fit, boot, held, first, flags.level))
    if form.given() and below == "paper" and not flags.supervised and flags.table != "apple":
        print(STANDS_IN)
    if flags.out:
        _law_file(Path(flags.out), fit, boot, held, first, flags)
    if flags.page:
        _page(Path(flags.page), fit, boot, held, first, flags.level)
    print(f"{time.perf_counter() - began:.1f} s")
    return 0


def _law_file(
    out: Path,
    fit: laws.Fit,
    boot: laws.Bootstrap,
    held: laws.Holdout | None,
    first: laws.Fit | None,
    flags: argparse.Namespace,
) -> None:
    """The law file, with its figure beside it unless --figures=no."""
    lawfile.write(out, fit, boot, held, first, level=flags.level)
    if flags.figures == "yes":
        from distill.report.law import fit_figure

        fit_figure.draw(out.with_suffix(".png"), fit, boot, held)
    print(f"\nwrote {out}" + (f" and {out.with_suffix('.png')}" if flags.figures == "yes" else ""))


def _page(
    path: Path, fit: laws.Fit, boot: laws.Bootstrap, held: laws.Holdout | None, first: laws.Fit | None, level: float
) -> None:
    from distill.report.law import law_page
    from distill.report.law.law_charts import Fitted

    law_page.write(path, Fitted(fit=fit, boot=boot, held=held, level=level), first)
    print(f"\nwrote {path}; open it in any browser")


def parser() -> Parser:
    parser = Parser("fit", __doc__, examples=EXAMPLES)
    add = parser.group("the table and the law")
    add("--table", required=True, help="a file (.csv, .tsv, .xlsx, .json, .jsonl, .parquet), a folder or a glob of run "
        "folders, or a table that ships (apple, micro, lambda, ...)")  # fmt: skip
    add("--law", default="", help="a form: supervised, distillation, distillation-limit, chinchilla, ... (default: "
        "distillation where runs have a teacher's loss, else supervised)")  # fmt: skip
    add("--forms", default="", help="a Python file with forms of your own, imported first")
    add("--supervised", default="", help="Lsup of a student law: table (fit it first; the default where the table has "
        "both kinds of runs), paper (the default elsewhere), or a law file")  # fmt: skip
    add("--columns", default="", help="the law's names for the table's columns: N=params,D=tokens")
    add("--rows", default="", help="fit only the rows of a rule, before any check: 'State == finished and D < 1e12'")
    add("--scale", default="", help="factors of columns: N=1e6,D=1e9 for sizes in millions and tokens in billions")
    add("--loss-unit", default="", help="of losses in the table: nats, bits or perplexity (default: nats, assumed)")
    add("--flops", default="6ND", help="what C means where it stands for N or D: 6ND, or F for 3 F(N) D (default 6ND)")
    add("--duplicates", default="error", help="runs listed twice: error, mean (one row of equal inputs) or keep")
    add("--best-of", default="", help="fit the run of least loss for each of these columns: N,D")
    add("--holdout", default="", help="a rule of rows to predict instead of fitting: 'L_S<=2.3'")
    add = parser.group("how it is fitted")
    add("--objective", default="huber", help="huber, log-mse, mse or lad (default huber)")
    add("--delta", default="1e-3", help="of Huber's function on log losses (default 1e-3); several print the path")
    add("--quantile", type=float, default=0.5, help="share of runs below the law: less than .5 for a law of the best "
        "loss of undertuned runs (default 0.5)")  # fmt: skip
    add("--starts", default="random", choices=("random", "published"), help="published: the paper's grid as well")
    add("--weights", default="", help="a column of standard errors of the loss")
    add("--resamples", type=int, default=4096, help="of the bootstrap (default 4096)")
    add("--bootstrap", default="pairs", help="pairs, residual or wild (default pairs)")
    add("--cluster", default="", help="a column of runs that are not independent: trunk, teacher, model")
    add("--level", type=between(0, 1), default=0.9, help="of the intervals (default 0.9)")
    add("--units", default="check", choices=("check", "asis"), help="asis accepts unusual magnitudes")
    add("--seed", type=int, default=0, help="of random starts and resamples")
    add = parser.group("what is written")
    add("--out", "--output", default="", help="the law file to write (JSON), with a figure beside it (PNG)")
    add("--page", default="", metavar="FILE", help="the page of the fit (HTML), with its figures in a folder beside it")
    add("--figures", default="yes", choices=("yes", "no"), help="a PNG beside the law file")
    return parser


def deltas_of(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--delta={text}: wanted a positive number such as 1e-3, or several: 1e-4,1e-3,1e-2"
        ) from None


def _table(flags: argparse.Namespace) -> laws.Table:
    """The table as the flags say to read it."""
    scale = {}
    for name, text in pairs("scale", flags.scale, "NAME=FACTOR such as N=1e6").items():
        scale[name] = number(text)
        if not scale[name] > 0:
            raise ConfigError(f"--scale={flags.scale}: got {text!r} for {name}, wanted a positive number such as 1e6")
    if flags.loss_unit == "perplexity" and flags.weights:
        raise ConfigError(
            "--weights: standard errors of perplexities are none of losses; give a table with losses and their "
            "standard errors in nats"
        )
    table = laws.load_table(
        flags.table,
        pairs("columns", flags.columns, "NAME=COLUMN such as N=params"),
        scale=scale,
        loss_unit=flags.loss_unit,
        duplicates=flags.duplicates,
        best_of=[name.strip() for name in flags.best_of.split(",") if name.strip()],
        flops=flags.flops,
    )
    if not flags.rows:
        return table
    kept = table.where(flags.rows)
    if not len(kept):
        raise ConfigError(f"--rows={flags.rows}: keeps none of the {len(table)} rows of {table.source}")
    return kept.with_notes(f"--rows keeps {len(kept)} of {len(table)} rows: {flags.rows}")


def pairs(flag: str, text: str, wanted: str) -> dict[str, str]:
    """{'N': 'params'} of 'N=params,...'. Raises ConfigError."""
    pairs = {}
    for item in text.split(",") if text else []:
        name, separator, value = item.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise ConfigError(f"--{flag}: got {item!r}, wanted {wanted}")
        pairs[name.strip()] = value.strip()
    return pairs


if __name__ == "__main__":
    raise SystemExit(cli.guard(main))
