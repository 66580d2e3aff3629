"""Errors in circulation, each with the number that shows it (docs/results/errors.md).

python -m launch.bench errors
"""

from collections.abc import Sequence

import numpy as np

from distill import laws
from distill.config.flags import Parser


def additive_formula() -> tuple[float, float]:
    """Mean relative errors on the 26 strong Apple students: of Eq. 8, and of the sum that articles give for it."""
    apple, supervised = laws.load_table("apple"), laws.paper()[0]
    errors = [
        laws.holdout(form, apple, "L_S <= 2.3", supervised=supervised, resamples=2).errors.mean()
        for form in ("distillation", "additive")
    ]
    return float(errors[0]), float(errors[1])


def padded_vocabulary(vocabulary: int = 32_000, padded: int = 32_768) -> dict[float, float]:
    """By the mean of the real logits: the added cross-entropy (nats) if padding columns enter the softmax with logit 0.

    A softmax is invariant to a constant added to all real logits, so training does not fix their mean; with columns
    padded with zeros it is not invariant.
    """
    generator = np.random.default_rng(0)
    logits = 2.5 * generator.standard_normal((64, vocabulary))
    gained = {}
    for mean in (2.0, 0.0, -4.0, -8.0):
        whole = np.log(np.exp(logits + mean).sum(-1))
        gained[mean] = float(np.mean(np.logaddexp(whole, np.log(padded - vocabulary)) - whole))
    return gained


def divided_by_length(longest: int = 2048, documents: int = 100_000) -> tuple[float, float, float]:
    """(mean fill, factor by which sum/longest misstates the mean KL per token, effective lambda for lambda = .5).

    Documents have log-normal lengths around 500 tokens, cut at the longest. The factor applies only to the distillation
    term if the other loss is a mean over tokens, so the mixture differs from the config's.
    """
    lengths = np.exp(np.random.default_rng(0).normal(np.log(500.0), 1.0, documents)).clip(1, longest)
    fill = float(lengths.mean() / longest)
    return fill, 1.0 / fill, 0.5 * fill / (0.5 * fill + 0.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the three numbers."""
    Parser("bench errors", __doc__).parse_args(argv)
    right, wrong = additive_formula()
    print(f"additive formula: {wrong:.2%} held-out error against {right:.3%} of Eq. 8, {wrong / right:.0f} times worse")
    said = ", ".join(f"{gain:.4f} nats at mean logit {mean:g}" for mean, gain in padded_vocabulary().items())
    print(f"32,000 tokens padded to 32,768 with zero logits: cross-entropy grows by {said}")
    fill, factor, mixture = divided_by_length()
    print(
        f"KL summed and divided by max_length: batches {fill:.0%} full, the KL {factor:.2f} times too small, "
        f"lambda = 0.5 acts as {mixture:.2f}"
    )
    return 0
