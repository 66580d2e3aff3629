"""Fitting and bootstrapping beside the peers, in one run: time, and who ends lowest on every resample.

    python -m launch.bench fit                       # Chinchilla form, 240 rows, and Eq. 8 on Apple's 354 runs
    python -m launch.bench fit --part=scaling        # cost against resamples and rows, and memory
    python -m launch.bench fit --part=rows           # one fit of 128 starts to 1e5 rows, in seconds of processor time

Peers run a sample of the resamples and are scaled to all; everything alternates in rounds, so that a busy machine
slows both. The Chinchilla table in $DISTILL_DATA is used where that is set, else a seeded twin of 240 rows.
"""

import importlib.util
import os
import resource
import time
from collections.abc import Sequence

import numpy as np

from distill import laws
from distill.bench import fit_peers, outside, public
from distill.config import ConfigError, nearest
from distill.config.flags import Parser
from distill.laws.fitting import search, solver, starts
from distill.laws.fitting.fit import solved_rows
from distill.laws.forms.law import Law
from distill.laws.uncertainty.bootstrap import draw

_TWIN = laws.Chinchilla(A=478.0, B=2143.0, E=1.817, alpha=0.347, beta=0.367)
_ROUNDS = 4


def chinchilla_table(rows: int = 240) -> tuple[str, laws.Table]:
    """The table of Hoffmann et al. as Epoch digitised it, less its five largest losses, or a seeded twin of it."""
    folder = outside.folder()
    found = next(public.chinchilla(folder), None) if folder and rows == 240 else None
    if found:
        return "the Chinchilla table", found.table
    generator = np.random.default_rng(7)
    N = np.exp(generator.uniform(np.log(5e7), np.log(1.5e10), rows))
    D = np.exp(generator.uniform(np.log(2e8), np.log(3e11), rows))
    return f"a seeded twin of {rows} rows", laws.from_arrays(
        N=N, D=D, L=_TWIN(N, D) * np.exp(0.007 * generator.standard_t(3, rows))
    )


def _counts(n: int, resamples: int, seed: int = 42) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.uint8)


def chinchilla(resamples: int, sample: int) -> None:
    """4096 bootstraps of the five-parameter form beside BFGS with autograd and with a hand-written gradient."""
    what, table = chinchilla_table()
    measure = laws.Objective()
    began = time.perf_counter()
    fit = laws.fit("chinchilla", table)
    first = time.perf_counter() - began
    began = time.perf_counter()
    fit = laws.fit("chinchilla", table)
    again = time.perf_counter() - began
    print(f"Chinchilla form, {what}: {len(table)} rows, Huber delta 1e-3, objective {fit.objective:.13g}")
    print(f"  one fit of 128 starts: {first:.2f} s with compilation, {again:.3f} s without; {fit.agreement:.0%} agree")
    counts = _counts(len(table), resamples)
    rows = solved_rows(fit.rows, measure)
    starts = np.tile(fit.theta, (resamples, 1))
    law = fit.law
    columns = tuple(table[name] for name in ("N", "D", "L"))
    warm = np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])
    ours: list[float] = []
    peers: dict[str, list[float]] = {"bfgs_autograd": [], "bfgs_numpy": []}
    if importlib.util.find_spec("autograd") is None:
        print("  the package autograd is not installed (pip install autograd): its path is left out")
        del peers["bfgs_autograd"]
    ends: dict[str, list[np.ndarray]] = {name: [] for name in peers}
    share = sample // _ROUNDS
    for turn in range(_ROUNDS):
        began = time.perf_counter()
        solutions = solver.solve(laws.Chinchilla, rows, starts, counts, measure)
        ours.append(time.perf_counter() - began)
        mine = counts[turn * share : (turn + 1) * share]
        for name in peers:
            began = time.perf_counter()
            ends[name].append(getattr(fit_peers, name)(columns, warm, mine, measure.delta))
            peers[name].append((time.perf_counter() - began) * resamples / share)
    spent = np.median(ours)
    certified = f"{int((~solutions.converged).sum())} without certificate"
    print(f"  {resamples} bootstraps: {spent:.3f} s ({certified}), best of rounds {min(ours):.3f} s; {_load()}")
    _again(laws.Chinchilla, rows, counts, solutions)
    for name, seconds in peers.items():
        print(f"  {name}: {np.median(seconds):.1f} s for as many (from {share * _ROUNDS}): {_ratio(seconds, ours)}")
        _ends(name, solutions.objective[: share * _ROUNDS], np.concatenate(ends[name]))


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    ratios = np.array(theirs) / np.array(ours)
    return f"{np.median(ratios):.0f} times ours ({min(ratios):.0f} to {max(ratios):.0f} over the rounds)"


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _again(form: type[Law], rows: solver.Rows, counts: np.ndarray, found: solver.Solutions) -> None:
    """Solves every resample again, from another resample's solution and a delta 30 times wider: was it lower?"""
    others = np.random.default_rng(1).permutation(found.theta)
    other = solver.solve(form, rows, others, counts, laws.Objective(), widen=30.0)
    above = found.objective / np.minimum(found.objective, other.objective) - 1
    missed = other.objective / np.minimum(found.objective, other.objective) - 1
    print(
        f"    all {len(found)} solved again from elsewhere: lower by more than 1e-9 on {(above > 1e-9).sum()} "
        f"(by up to {above.max():.1e}); above on {(missed > 1e-9).sum()}"
    )


def _ends(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    best = np.minimum(ours, theirs)
    above = {who: values / best - 1 for who, values in (("ours", ours), (name, theirs))}
    said = [f"{who} {(excess > 1e-9).sum()} (by up to {excess.max():.1e})" for who, excess in above.items()]
    print(f"    of {len(best)} resamples, above the lower end by more than 1e-9: {', '.join(said)}")


def students(resamples: int, sample: int) -> None:
    """Eq. 8 on the 354 runs, with unconverged resamples solved again, beside scipy's L-BFGS-B."""
    table = laws.load_table("apple")
    began = time.perf_counter()
    fit = laws.fit("distillation", table, supervised=laws.paper()[0])
    print(f"Eq. 8 on Apple's {len(table)} runs: objective {fit.objective:.9g}")
    print(f"  one fit of 128 starts: {time.perf_counter() - began:.2f} s with compilation; {fit.agreement:.0%} agree")
    spent: list[float] = []
    seconds: list[float] = []
    ends = []
    share = max(sample // _ROUNDS, 2)
    counts = draw([fit], resamples, "pairs", None, 0)[0][0]
    began = time.perf_counter()
    laws.bootstrap(fit, resamples=resamples)
    first = time.perf_counter() - began
    for turn in range(_ROUNDS):
        began = time.perf_counter()
        boot = laws.bootstrap(fit, resamples=resamples)
        spent.append(time.perf_counter() - began)
        mine = counts[turn * share : (turn + 1) * share]
        began = time.perf_counter()
        ends.append(fit_peers.lbfgsb(laws.Distillation, fit.rows, fit.theta, mine, 1e-3))
        seconds.append((time.perf_counter() - began) * resamples / share)
    print(
        f"  {resamples} bootstraps, retries included: {np.median(spent):.2f} s ({first:.2f} s with compilation), "
        f"{int(boot.failed.sum())} failed; {_load()}"
    )
    _again(laws.Distillation, solved_rows(fit.rows, laws.Objective()), counts, boot.solutions)
    print(f"  lbfgsb: {np.median(seconds):.0f} s for as many (from {share * _ROUNDS}): {_ratio(seconds, spent)}")
    _ends("lbfgsb", boot.solutions.objective[: share * _ROUNDS], np.concatenate(ends))


def scaling() -> None:
    """Seconds against resamples and rows, for the Chinchilla form."""
    for rows, sizes in ((240, (1000, 10_000, 100_000)), (1000, (1000,)), (10_000, (1000,))):
        _, table = chinchilla_table(rows)
        fit = laws.fit("chinchilla", table, start_count=32)
        for resamples in sizes:
            laws.bootstrap(fit, resamples=64)
            began = time.perf_counter()
            boot = laws.bootstrap(fit, resamples=resamples)
            spent = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            per = spent / resamples / len(fit.rows) * 1e9
            print(
                f"  {rows:6d} rows x {resamples:6d} resamples: {spent:7.2f} s, {per:.0f} ns per row and resample, "
                f"{boot.failed.mean():.2%} failed, peak memory {peak:.2f} GiB"
            )


def large(rows: int, sample: int) -> None:
    """One fit of 128 starts to many rows beside BFGS with a gradient written by hand, from `sample` of the starts.

    Seconds are of processor time over all threads, since the peer has one thread and a busy machine slows both.
    """
    _, table = chinchilla_table(rows)
    for turn in ("with compilation", "again"):
        began, clock = time.process_time(), time.perf_counter()
        fit = laws.fit("chinchilla", table)
        spent, passed = time.process_time() - began, time.perf_counter() - clock
        print(
            f"Chinchilla form, {rows} rows, 128 starts, {turn}: {spent:.2f} s of processor time, {passed:.2f} s on the "
            f"clock, objective {fit.objective:.16g}, {fit.agreement:.0%} agree; {_load()}",
            flush=True,
        )
    problem = solved_rows(fit.rows, laws.Objective())
    points = starts.random(laws.Chinchilla, fit.rows.setting, 128, 0)
    began = time.process_time()
    full = solver.solve(laws.Chinchilla, problem, points, fit.weights, laws.Objective(), widen=search.WIDEN)
    print(
        f"  all starts on all rows: {time.process_time() - began:.2f} s (with compilation), {full.objective.min():.16g}"
    )
    chosen = [laws.Chinchilla.unpack(np, point, fit.rows.setting, {}) for point in points[:sample]]
    columns = tuple(table[name] for name in ("N", "D", "L"))
    began = time.process_time()
    ends = [
        fit_peers.bfgs_numpy(
            columns, np.array([*np.log([law.A, law.B, law.E]), law.alpha, law.beta]), np.ones((1, rows)), 1e-3
        )[0]
        for law in chosen
    ]
    theirs = (time.process_time() - began) * 128 / sample
    print(
        f"  bfgs_numpy on one thread: {theirs:.0f} s for as many (from {sample}): {theirs / spent:.0f} times ours; "
        f"lowest end {min(ends) / fit.objective - 1:+.1e} of ours"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one part or all."""
    parts = ("all", "chinchilla", "students", "scaling", "rows")
    parser = Parser("bench fit", __doc__)
    parser.add_argument("--part", default="all", help=", ".join(parts))
    parser.add_argument("--resamples", type=int, default=4096)
    parser.add_argument("--sample", type=int, default=400, help="resamples that the slow peers run")
    parser.add_argument("--rows", type=int, default=100_000, help="of --part=rows")
    flags = parser.parse_args(argv)
    if flags.part not in parts:
        raise ConfigError(f"--part={flags.part}; wanted one of {', '.join(parts)}.{nearest(flags.part, parts)}")
    if flags.part in ("all", "chinchilla"):
        chinchilla(flags.resamples, flags.sample)
    if flags.part in ("all", "students"):
        students(flags.resamples, max(flags.sample // 4, 8))
    if flags.part in ("all", "scaling"):
        scaling()
    if flags.part in ("all", "rows"):
        large(flags.rows, max(flags.sample // 50, 2))
    return 0
