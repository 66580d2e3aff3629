"""How exact each objective is under each teacher signal and temperature: exact, unbiased, biased, or refused.

The divergence of the student q from the teacher p that a config names is estimated from what the signal holds. This
table says how well, at tau = 1 and at any other tau; a config of a refused cell does not build. Its claims are tested
(tests/training/test_exactness.py). Standard library only, because configs import it.
"""

import dataclasses
from typing import Literal

DIVERGENCES = ("forward", "reverse", "jensen_shannon", "total_variation")
SIGNALS = ("full", "truncated", "renormalised", "sampled", "argmax")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A verdict and its reason, in one sentence."""

    verdict: Literal["exact", "unbiased", "biased", "refused"]
    reason: str


_EXACT = Cell("exact", "the whole distribution is there, online, in memory or as hidden states")
_COARSE = Cell(
    "biased",
    "the divergence over k + 1 outcomes, the tail being one: never above the full one, and without a word on how the "
    "tail's tokens share its mass",
)
_TAIL_TAU = Cell(
    "refused", "the mass of a tail is known at tau = 1 only, and what tau makes of it depends on tokens not kept"
)
_RENORMALISED = Cell("biased", "the tail's mass is given to the kept tokens, so the optimum is the truncated teacher")
_INFINITE = Cell("refused", "the teacher has no probability outside the kept tokens, where the student always has some")
_SAMPLED = Cell("unbiased", "the loss is linear in p, so its mean over draws, and its gradient's, are the full ones")
_NONLINEAR = Cell("refused", "the divergence is not linear in p, and most tokens that it needs were never drawn")
_SAMPLED_TAU = Cell("refused", "the tokens were drawn at tau = 1, and p(tau) is not linear in p")
_HARD = Cell("biased", "the teacher's likeliest token as a label: the optimum is a point mass, not the teacher")
_HARD_TAU = Cell("refused", "a single token has no temperature")

_ROWS = {
    "full": {divergence: (_EXACT, _EXACT) for divergence in DIVERGENCES},
    "truncated": {divergence: (_COARSE, _TAIL_TAU) for divergence in DIVERGENCES},
    "renormalised": {divergence: (_RENORMALISED, _RENORMALISED) for divergence in DIVERGENCES}
    | {"reverse": (_INFINITE, _INFINITE)},
    "sampled": {divergence: (_NONLINEAR, _NONLINEAR) for divergence in DIVERGENCES}
    | {"forward": (_SAMPLED, _SAMPLED_TAU)},
    "argmax": {divergence: (_HARD, _HARD_TAU) for divergence in DIVERGENCES} | {"reverse": (_INFINITE, _INFINITE)},
}

# (divergence, signal, is tau = 1?) -> Cell
TABLE: dict[tuple[str, str, bool], Cell] = {
    (divergence, signal, at_one): cells[0 if at_one else 1]
    for signal, row in _ROWS.items()
    for divergence, cells in row.items()
    for at_one in (True, False)
}


def markdown() -> str:
    """The table as printed in docs/guide/objectives.md, with the reasons below it."""
    head = ["| signal | tau | " + " | ".join(DIVERGENCES) + " |", "|---" * (2 + len(DIVERGENCES)) + "|"]
    reasons: list[Cell] = []
    for signal in SIGNALS:
        for at_one in (True, False):
            cells = [TABLE[divergence, signal, at_one] for divergence in DIVERGENCES]
            reasons += [cell for cell in dict.fromkeys(cells) if cell not in reasons]
            words = [f"{cell.verdict} [{reasons.index(cell) + 1}]" for cell in cells]
            head.append(f"| {signal} | {'1' if at_one else 'other'} | " + " | ".join(words) + " |")
    notes = [f"{i}. {cell.verdict}: {cell.reason}." for i, cell in enumerate(reasons, 1)]
    return "\n".join([*head, "", *notes])
