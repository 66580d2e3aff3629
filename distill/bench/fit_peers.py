"""The peers of the fit benchmark: how others fit and bootstrap these laws, with exact gradients, written for speed.

`bfgs_autograd` is the Epoch replication's path (Besiroglu et al. 2404.10102): scipy's BFGS at its default tolerance,
one warm start a resample, gradients by the package autograd. `bfgs_numpy` is the same with the gradient written by hand
in numpy, the fastest that this protocol gets. `lbfgsb` fits Eq. 8 with scipy's L-BFGS-B, as the paper does, from one
warm start, with exact gradients compiled by jax. All run on one thread, as their authors run them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from distill.laws.fitting.solver import Rows
    from distill.laws.forms.law import Law

GTOL = 1e-5  # scipy's default, as in the replication


def huber_objective(log_N: np.ndarray, log_D: np.ndarray, log_L: np.ndarray, delta: float) -> Callable:
    """(objective, gradient) of (log A, log B, log E, alpha, beta) for rows with multiplicities w, by hand in numpy."""

    def both(theta: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = theta
        first, second = np.exp(a - alpha * log_N), np.exp(b - beta * log_D)
        floor = np.exp(e)
        whole = first + second + floor
        r = np.log(whole) - log_L
        size = np.abs(r)
        value = (w * np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))).sum()
        pull = w * np.clip(r, -delta, delta) / whole
        by_a, by_b = pull * first, pull * second
        return value, np.array(
            [by_a.sum(), by_b.sum(), floor * pull.sum(), -(by_a * log_N).sum(), -(by_b * log_D).sum()]
        )

    return both


def bfgs_numpy(table: tuple[np.ndarray, ...], start: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Objectives [R] of one BFGS run per resample, from one warm start, with the hand-written gradient."""
    from scipy.optimize import minimize

    log_N, log_D, log_L = (np.log(column) for column in table)
    both = huber_objective(log_N, log_D, log_L, delta)
    return np.array([minimize(both, start, (w,), method="BFGS", jac=True, options={"gtol": GTOL}).fun for w in weights])


def bfgs_autograd(table: tuple[np.ndarray, ...], start: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """The same with gradients by the `autograd` package if it is installed, as in the replication."""
    import autograd
    import autograd.numpy as anp
    from autograd.scipy.special import logsumexp
    from scipy.optimize import minimize

    log_N, log_D, log_L = (np.log(column) for column in table)

    def objective(theta: np.ndarray, log_N: np.ndarray, log_D: np.ndarray, log_L: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        parts = anp.stack([a - alpha * log_N, b - beta * log_D, e + anp.zeros_like(log_N)])
        r = log_L - logsumexp(parts, axis=0)
        size = anp.abs(r)
        return anp.sum(anp.where(size <= delta, 0.5 * r**2, delta * (size - 0.5 * delta)))

    gradient = autograd.grad(objective)
    objectives = []
    for w in weights:
        drawn = np.repeat(np.arange(len(log_N)), w)
        rows = log_N[drawn], log_D[drawn], log_L[drawn]
        objectives.append(minimize(objective, start, rows, method="BFGS", jac=gradient, options={"gtol": GTOL}).fun)
    return np.array(objectives)


def lbfgsb(form: "type[Law]", rows: "Rows", start: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Objectives [R] of scipy's L-BFGS-B from one warm start, gradients exact by jax's reverse mode, compiled once."""
    import jax
    import jax.numpy as jnp
    from scipy.optimize import minimize

    from distill.laws.fitting import objective as ob

    with jax.enable_x64(True):
        inputs = [jnp.asarray(x)[None] for x in rows.inputs]
        target = jnp.log(jnp.asarray(rows.target))[None]

        def total(theta: jax.Array, w: jax.Array) -> jax.Array:
            law = form.unpack(jnp, list(theta[:, None, None]), rows.setting, rows.given)
            return (w * ob.rho(jnp, jnp.log(law.loss(jnp, *inputs)) - target, delta)).sum()

        both = jax.jit(jax.value_and_grad(total))
        boxes = [p.box for p in form.parameters().values()]
        both(jnp.asarray(start), jnp.asarray(weights[0], float))

        def scaled(theta: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = both(theta, w)
            return float(value), np.asarray(slope)

        options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 2000, "maxfun": 4000}
        return np.array(
            [
                minimize(
                    scaled, start, (w.astype(float),), method="L-BFGS-B", jac=True, bounds=boxes, options=options
                ).fun
                for w in weights
            ]
        )
