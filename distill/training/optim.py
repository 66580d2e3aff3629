"""AdamW with independent weight decay and muP (simple) as one optax chain whose numbers are traced.

Runs that differ only in numbers (rate, length, decay) share one executable: the numbers travel in `Hyper`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from distill.config import ExperimentConfig, OptimConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """The numbers of one run, as float32 scalars, and its seed."""

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    clip: Float[Array, ""]
    warmup_steps: Float[Array, ""]
    stable_steps: Float[Array, ""]
    steps: Float[Array, ""]
    final_ratio: Float[Array, ""]
    lambda_: Float[Array, ""]
    temperature: Float[Array, ""]
    z_loss: Float[Array, ""]
    beta: Float[Array, ""]
    lambda_final: Float[Array, ""]
    temperature_final: Float[Array, ""]
    beta_final: Float[Array, ""]
    feature_weight: Float[Array, ""]
    on_policy: Float[Array, ""]
    seed: Int[Array, ""]


def hyper(config: ExperimentConfig) -> Hyper:
    """The traced numbers of a config."""
    optim, objective = config.optim, config.objective
    numbers = {
        "learning_rate": optim.learning_rate,
        "weight_decay": optim.weight_decay,
        "clip": optim.clip,
        "warmup_steps": optim.warmup_steps,
        "stable_steps": config.stable_steps,
        "steps": config.steps,
        "final_ratio": optim.final_ratio,
        "lambda_": objective.lambda_,
        "temperature": objective.temperature,
        "z_loss": objective.z_loss,
        "beta": objective.beta,
        "lambda_final": objective.lambda_final,
        "temperature_final": objective.temperature_final,
        "beta_final": objective.beta_final,
        "feature_weight": objective.feature_weight,
        "on_policy": config.on_policy.fraction,
    }
    scalars = {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}
    return Hyper(**scalars, seed=jnp.asarray(config.seed, jnp.int32))


def schedule(kind: str, h: Hyper, step: Any) -> Float[Array, ""]:
    """The learning rate of `step` (from 0) over its peak: linear warmup, then the shape that `kind` names.

    wsd: constant up to stable_steps, then 1 - sqrt(progress) to zero. cosine: from 1 to final_ratio. constant: 1.
    """
    t = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (t + 1) / jnp.maximum(h.warmup_steps, 1.0))
    if kind == "wsd":
        progress = jnp.clip((t - h.stable_steps) / jnp.maximum(h.steps - h.stable_steps, 1.0), 0.0, 1.0)
        return warm * (1 - jnp.sqrt(progress))
    if kind == "cosine":
        progress = jnp.clip((t - h.warmup_steps) / jnp.maximum(h.steps - h.warmup_steps, 1.0), 0.0, 1.0)
        return warm * (h.final_ratio + (1 - h.final_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))
    return warm


def _name(path: tuple[Any, ...]) -> str:
    """The attribute that holds a parameter, from its path in the model's tree."""
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return names[-2]  # a Param adds its own `value` last


def transform(config: OptimConfig, h: Hyper, fan_in: dict[str, int]) -> optax.GradientTransformationExtraArgs:
    """clip -> Adam -> muP -> independent decay -> schedule, for the parameters of a model.

    `update` takes the run's `step` as well: an update that was rejected (guard.py) leaves Adam as it was, but the
    schedule goes on.

    fan_in names the linear maps by attribute (model.fan_in without the dims of its keys); each trains at
    base_width / fan_in of the peak rate (muP simple, Wortsman et al. 2309.14322). The decay subtracts weight_decay *
    parameter times the schedule, whatever the rate ("independent"); norm gains and biases are not decayed.
    """
    maps = {key.rsplit("_", 1)[0]: n for key, n in fan_in.items()}

    def scale(updates, params):
        def one(path, update, param):
            name = _name(path)
            rate = config.base_width / maps[name] if config.mup and name in maps else 1.0
            decay = h.weight_decay if name in maps or name == "embed" else 0.0
            return h.learning_rate * rate * update + decay * param

        return jax.tree_util.tree_map_with_path(one, updates, params)

    def follow(updates, state, params=None, *, step, **_):
        rate = -schedule(config.schedule, h, step)
        return jax.tree.map(lambda update: rate * update, updates), state

    return optax.chain(
        # Written out, because optax's own clipping wants its bound as a Python number.
        optax.stateless(lambda updates, _: clip_by_global_norm(updates, h.clip)),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.stateless(scale),
        optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), follow),
    )


def clip_by_global_norm(tree: Any, bound: Float[Array, ""]) -> Any:
    """The tree, scaled down where its global norm exceeds the bound."""
    factor = jnp.minimum(1.0, bound / jnp.maximum(optax.tree.norm(tree), 1e-12))
    return jax.tree.map(lambda leaf: leaf * factor, tree)
