"""Which lambda, the weight of the teacher's distribution beside the labels, for which teacher."""

import numpy as np

# The lambda of least cost by L_T over the loss that the student reaches alone on the same tokens: 45 cells of 376 runs
# of our own at micro scale (docs/results/findings.md#lambda-and-weak-teachers). Learned on the smaller sizes it cost
# the largest students .0006 nats.
_RATIOS = (0.9, 0.95, 1.0, 1.06)
_LAMBDAS = (1.0, 0.75, 0.5, 0.25, 0.0)


def advised(L_T: float, alone: float) -> float:
    """lambda in [0, 1] by our study; 0 is no teacher. Equation 7 of Busbridge et al. has lambda beside the labels."""
    return _LAMBDAS[int(np.digitize(L_T / alone, _RATIOS))]
