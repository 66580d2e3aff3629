"""AdamW with independent weight decay and muP (simple) as one optax chain whose hyperparameters are traced.

Runs that differ only in these numbers (rate, length, decay) share one executable: they are an argument of the step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Float, Int, PyTree

from distill.config import ExperimentConfig, OptimConfig
from distill.model import attention_kernels
from distill.training import guard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperparams:
    """The traced hyperparameters of one run, as float32 scalars, and its seed."""

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


def hyperparams(config: ExperimentConfig) -> Hyperparams:
    """The traced hyperparameters of a config."""
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
    return Hyperparams(**scalars, seed=jnp.asarray(config.seed, jnp.int32))


def schedule(kind: str, hyper: Hyperparams, step: Int[Array, "..."]) -> Float[Array, "..."]:
    """The learning rate of `step` (from 0) over its peak: linear warmup, then the schedule `kind`.

    wsd: constant up to stable_steps, then 1 - sqrt(progress) to zero. cosine: from 1 to final_ratio. constant: 1.
    """
    t = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (t + 1) / jnp.maximum(hyper.warmup_steps, 1.0))
    if kind == "wsd":
        decay_steps = jnp.maximum(hyper.steps - hyper.stable_steps, 1.0)
        progress = jnp.clip((t - hyper.stable_steps) / decay_steps, 0.0, 1.0)
        return warmup * (1 - jnp.sqrt(progress))
    if kind == "cosine":
        decay_steps = jnp.maximum(hyper.steps - hyper.warmup_steps, 1.0)
        progress = jnp.clip((t - hyper.warmup_steps) / decay_steps, 0.0, 1.0)
        return warmup * (hyper.final_ratio + (1 - hyper.final_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))
    return warmup


def optimizer(config: OptimConfig, hyper: Hyperparams, fan_in: dict[str, int]) -> optax.GradientTransformationExtraArgs:
    """clip -> Adam -> muP -> independent decay -> schedule, for the parameters of a model.

    `update` takes the run's `step` as well, and whether the update is `accepted`: one that was rejected (guard.py)
    leaves Adam's state unchanged, but the schedule advances.

    fan_in names the linear maps by attribute (transformer.fan_in without the dims of its keys); each trains at
    base_width / fan_in of the peak rate (muP simple, Wortsman et al. 2309.14322). The decay subtracts weight_decay *
    parameter times the schedule, whatever the rate ("independent"); norm gains and biases are not decayed.
    Adapters (model/lora.py) are, and train at the peak rate itself.
    """
    maps = {key.rsplit("_", 1)[0]: n for key, n in fan_in.items()}

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        def one(path: KeyPath, update: Array, param: Array) -> Array:
            name = _attribute(path)
            rate = config.base_width / maps[name] if config.mup and name in maps else 1.0
            decayed = name in maps or name == "embed" or name.endswith(("_a", "_b"))  # the last: of an adapter
            decay = hyper.weight_decay if decayed else 0.0
            return hyper.learning_rate * rate * update + decay * param

        return jax.tree_util.tree_map_with_path(one, updates, params)

    def descend(
        updates: PyTree, state: optax.OptState, params: PyTree = None, *, step: Int[Array, ""], **_: object
    ) -> tuple[PyTree, optax.OptState]:
        rate = -schedule(config.schedule, hyper, step)
        return jax.tree.map(lambda update: rate * update, updates), state

    return optax.chain(
        # Not optax.clip_by_global_norm, whose bound must be a Python number.
        optax.stateless(lambda updates, _: clip_by_global_norm(updates, hyper.clip)),
        _adam(config),
        optax.stateless(scale),
        optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), descend),
    )


def _adam(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """optax.scale_by_adam, to the bit, whose state is that of before where the update is not accepted.

    On a CPU the new moments are stored before the update reads them. Otherwise XLA computes them a second time where
    they are used, and copies the old ones for it: twice the parameters in memory.
    """
    plain = optax.scale_by_adam(config.b1, config.b2, config.eps)

    def update(
        gradient: PyTree, state: optax.OptState, params: PyTree = None, *, accepted: Bool[Array, ""] | bool = True,
        **_: object,
    ) -> tuple[PyTree, optax.OptState]:  # fmt: skip
        state = guard.select(jnp.asarray(accepted), plain.update(gradient, state, params)[1], state)
        if attention_kernels.platform() == "cpu":
            state = lax.optimization_barrier(state)
        assert isinstance(state, optax.ScaleByAdamState)
        first = optax.tree.bias_correction(state.mu, config.b1, state.count)
        second = optax.tree.bias_correction(state.nu, config.b2, state.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.eps), first, second), state

    return optax.GradientTransformationExtraArgs(plain.init, update)


def _attribute(path: KeyPath) -> str:
    """The attribute that holds a parameter, from its path in the model's tree."""
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return names[-2]  # a Param adds its own `value` last


def clip_by_global_norm(tree: PyTree, bound: Float[Array, ""]) -> PyTree:
    """The tree, scaled down where its global norm exceeds the bound."""
    factor = jnp.minimum(1.0, bound / jnp.maximum(optax.tree.norm(tree), 1e-12))
    return jax.tree.map(lambda leaf: leaf * factor, tree)
