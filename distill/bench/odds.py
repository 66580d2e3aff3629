"""Are the probabilities of plans calibrated? Simulated studies, plans near the crossover, and whether distillation won.

    python -m launch.bench odds --studies=60 --out=docs/campaigns

Each study draws supervised runs and students from known laws (bench.coverage's, noise of 0.8% a run), fits both laws,
bootstraps the pair (200 resamples) and rolls it forward. Plans with given teachers are asked at budgets around the true
crossover, where the answer is in doubt; the truth is one run of each kind. Brier's score is the mean square of
probability minus outcome: 0.25 knows nothing. Probabilities of the bootstrap alone, which leave out a run's noise and
the law's own error, stand beside. One JSON line a study is appended at once.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import coverage
from distill.config.flags import Parser
from distill.system import process

_PLANS = 8  # a study
_CASE = coverage.Case(form="distillation-limit", stages=2)
_BINS = np.array([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])


def study(seed: int) -> list[list[float]]:
    """[probability, that of the bootstrap alone, won] of every plan of one simulated study."""
    generator = np.random.default_rng((11, seed))
    below = laws.fit("supervised", coverage.supervised_table(_CASE, generator, coverage.SUPERVISED), start_count=64)
    table = coverage.student_table(_CASE, generator)
    fit = laws.fit(_CASE.form, table, supervised=below.law, start_count=64)
    plain = laws.bootstrap((below, fit), resamples=200, seed=seed)
    boot = laws.calibrated(plain, ("overtaking",), resamples=100)
    flops = laws.Flops.closed()
    answers = []
    for _ in range(_PLANS):
        N_S, L_T = float(np.exp(generator.uniform(np.log(2e8), np.log(6e9)))), float(generator.uniform(2.0, 2.5))
        tokens = float(laws.crossover_tokens(coverage.SUPERVISED, coverage.STUDENT, N_S, L_T))
        factor = float(np.exp(0.7 * generator.standard_normal()))
        noise = coverage.NOISE * generator.standard_normal(2)
        if not np.isfinite(tokens):
            continue
        compute = 3 * float(flops(N_S)) * tokens * factor
        asked = {"N_S": N_S, "compute": compute, "teachers": (laws.Teacher(name="given", N=7e9, L=L_T),)}
        ours, alone = (laws.plan(below.law, fit.law, boot=one, **asked).probability for one in (boot, plain))
        taught = coverage.STUDENT(N_S, tokens * factor, L_T) * np.exp(noise[0])
        won = coverage.SUPERVISED(N_S, tokens * factor) * np.exp(noise[1]) > taught
        answers.append([round(float(ours or 0.0), 4), round(float(alone or 0.0), 4), float(won)])
    return answers


def summarise(path: Path) -> str:
    """Brier's scores, and how often distillation won by the probability that was said, as Markdown."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    said = np.array([answer for entry in entries for answer in entry["plans"]])
    base = said[:, 2].mean()
    scores = [float(np.mean((said[:, k] - said[:, 2]) ** 2)) for k in (0, 1)]
    out = [
        f"{len(entries)} studies, {len(said)} plans, {base:.0%} won by distillation: Brier {scores[0]:.3f} calibrated, "
        f"{scores[1]:.3f} of the bootstrap alone, {base * (1 - base):.3f} of the base rate",
        "",
        "| probability said | plans | mean | won | bootstrap alone: plans | mean | won |",
        "|" + "---|" * 7,
    ]
    for low, high in zip(_BINS, _BINS[1:]):
        cells = []
        for k in (0, 1):
            mine = (said[:, k] >= low) & ((said[:, k] < high) | (high == 1.0))
            cells += [str(int(mine.sum())), *(f"{said[mine, c].mean():.2f}" if mine.any() else "" for c in (k, 2))]
        out.append(f"| {low:.1f} to {high:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the missing studies and prints the summary."""
    parser = Parser("bench odds", __doc__)
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/campaigns"))
    flags = parser.parse_args(argv)
    process.cache_compilations()
    path = flags.out / "odds.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["seed"] for line in path.read_text().splitlines()} if path.exists() else set()
    for seed in range(flags.studies):
        if seed not in done:
            entry = {"seed": seed, "noise": coverage.NOISE, "case": dataclasses.asdict(_CASE), "plans": study(seed)}
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
    print(summarise(path))
    return 0
