"""One step of training, supervised or distilled: pure functions, in the paper's symbols.

    signal   = stop_gradient(teacher(x))                       or None
    loss_sum = sum_tokens w [(1 - lambda) L_NTP + lambda L_KD + w_F L_F + lambda_z Z]
    gradient = d loss_sum / d theta, over all microbatches and devices, divided once by sum w

The division comes last, so the result depends neither on microbatches nor on devices nor on packing.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PRNGKeyArray

from distill.config import ExperimentConfig, ModelConfig, ObjectiveConfig, OptimConfig
from distill.losses import features
from distill.losses.features import Projector
from distill.losses.sums import Sum
from distill.model import sharding, transformer
from distill.teacher.observe import Teacher, observe
from distill.training import guard, objective, on_policy, optim
from distill.training.guard import Guard
from distill.types import Batch, Head

Metrics = dict[str, Any]  # scalars by name


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepShape:
    """What of a config is compiled into its step; the rest is traced (optim.Hyper)."""

    optim: OptimConfig
    objective: objective.ObjectiveShape
    microbatches: int
    own: on_policy.OnPolicyShape | None = None  # batches that the student writes


def shape(config: ExperimentConfig) -> StepShape:
    """The part of a config that its step is compiled for: configs that share it share an executable."""
    numbers = ("learning_rate", "weight_decay", "clip", "warmup_steps", "decay_fraction", "final_ratio")
    defaults = OptimConfig()
    return StepShape(
        optim=dataclasses.replace(config.optim, **{name: getattr(defaults, name) for name in numbers}),
        objective=objective.shape(config.objective, config.model),
        microbatches=config.microbatches,
        own=on_policy.shape(config),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and the numbers that it reads. `params` is the student and nothing else."""

    step: Int[Array, ""]
    params: transformer.Transformer
    opt_state: Any
    hyper: optim.Hyper
    guard: Guard
    projector: Projector | None = None  # of feature losses
    projector_state: Any = None  # its optimiser's: clipped on its own, so that it takes nothing from the student

    def stored(self) -> dict[str, Any]:
        """What a checkpoint holds. The numbers come from the config, which may end a shared trunk elsewhere."""
        optimizer = {"step": self.step, "state": self.opt_state, "guard": self.guard}
        if self.projector is not None:
            optimizer |= {"projector": self.projector, "projector_state": self.projector_state}
        return {"params": self.params, "optimizer": optimizer}

    def restored(self, items: dict[str, Any]) -> "TrainState":
        """This state with what a checkpoint held."""
        optimizer = items["optimizer"]
        return dataclasses.replace(
            self,
            step=optimizer["step"],
            params=items["params"],
            opt_state=optimizer["state"],
            guard=optimizer["guard"],
            projector=optimizer.get("projector"),
            projector_state=optimizer.get("projector_state"),
        )


def _init(config: ExperimentConfig, teacher_width: int, key: PRNGKeyArray, hyper: optim.Hyper) -> TrainState:
    params = transformer.Transformer(config.model, key)
    opt_state = optim.transform(config.optim, hyper, transformer.fan_in(config.model)).init(params)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(step=zero, params=params, opt_state=opt_state, hyper=hyper, guard=guard.fresh())
    pairs = len(config.objective.features)
    if not pairs or not teacher_width:
        return state
    # Folded in, so that the student starts as it would without features.
    projector = Projector(pairs, config.model.d_model, teacher_width, jax.random.fold_in(key, 1))
    projector_state = optim.transform(config.optim, hyper, features.fan_in(projector)).init(projector)
    return dataclasses.replace(state, projector=projector, projector_state=projector_state)


@functools.cache
def _draw() -> Any:
    # Drawing weights runs once: on a CPU, compiling it at full optimisation took 6.0 s against 1.8 s, for nothing.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(_init, static_argnums=(0, 1), compiler_options=options)


def init_state(config: ExperimentConfig, teacher: ModelConfig | None = None) -> TrainState:
    """The state before the first step, born in its sharding on the current mesh; traceable, for its shapes alone.

    Where the objective has features, projections to the `teacher`'s width are part of it.
    """
    objective = dataclasses.replace(ObjectiveConfig(), features=config.objective.features)
    canonical = dataclasses.replace(
        ExperimentConfig(), model=config.model, optim=shape(config).optim, objective=objective
    )
    key = jax.random.key(config.seed)
    draw = _init if isinstance(key, jax.core.Tracer) else _draw()
    return draw(canonical, teacher.d_model if teacher else 0, key, optim.hyper(config))


def train_step(
    structure: StepShape, state: TrainState, teacher: Teacher | Head | None, batch: Batch
) -> tuple[TrainState, dict[str, Any]]:
    """One update. Returns the new state and the step's means (nats per token), gradient norm and learning rate."""
    (gradient, projector_gradient), sums, own = gradients(structure, state, teacher, batch)
    transform = optim.transform(structure.optim, state.hyper, transformer.fan_in(state.params.config))
    updates, opt_state = transform.update(gradient, state.opt_state, state.params, step=state.step)
    means = {name: value.mean() for name, value in sums.items()}
    if structure.own:  # `own` is the share of such steps; X_own / own is the mean of X in them
        means |= {f"{name}_own": jnp.where(own, means[name], 0.0) for name in ("ntp", "kd")}
        means["own"] = own.astype(jnp.float32)
    means["grad_norm"] = optax.tree.norm(gradient)
    means["param_norm"] = optax.tree.norm(state.params)
    means["learning_rate"] = state.hyper.learning_rate * optim.schedule(
        structure.optim.schedule, state.hyper, state.step
    )
    params = optax.apply_updates(state.params, updates)
    new = dataclasses.replace(state, params=params, opt_state=opt_state)
    if state.projector is not None:
        transform = optim.transform(structure.optim, state.hyper, features.fan_in(state.projector))
        updates, projector_state = transform.update(
            projector_gradient, state.projector_state, state.projector, step=state.step
        )
        projector = optax.apply_updates(state.projector, updates)
        new = dataclasses.replace(new, projector=projector, projector_state=projector_state)
    norm = optax.tree.norm((gradient, projector_gradient))
    good, judged = guard.judge(structure.optim.spike, state.guard, means["loss"], norm)
    # A rejected step is no step of any mean; the data, the schedule and the draws go on.
    means = {name: jnp.where(good, value, 0.0) for name, value in means.items()} | {"rejected": 1.0 - good}
    new = dataclasses.replace(guard.choose(good, new, state), step=state.step + 1, guard=judged)
    return new, means


def gradients(
    structure: StepShape, state: TrainState, teacher: Teacher | Head | None, batch: Batch
) -> tuple[tuple[transformer.Transformer, Projector | None], dict[str, Sum], Any]:
    """The gradients of the mean loss, in the student and in its projector, the sums of its parts over all tokens, and
    whether the student wrote this batch itself (None where it never does)."""
    wanted, own = structure.objective, None
    numbers = objective.at(wanted, state.hyper, state.step)
    mine, theirs = zip(*wanted.features) if wanted.features and state.projector is not None else ((), ())
    if structure.own:
        own = on_policy.chosen(state.hyper, state.step)
        batch = on_policy.write(structure.own, state.hyper, state.step, state.params, batch)
        numbers = dataclasses.replace(numbers, lambda_=jnp.where(own, 1.0, numbers.lambda_))

    def loss_sum(trained: tuple[transformer.Transformer, Projector | None], part: Batch) -> tuple[Any, dict[str, Sum]]:
        params, projector = trained
        signal, read = observe(teacher, part, wanted.fused, theirs)
        hidden, kept = params.states(mine, part.inputs, segment=part.segment, position=part.position)
        distance = None if projector is None else features.distance(wanted.feature_loss, projector, kept, read)
        if wanted.fused:
            head = params.head_vd
            return objective.evaluate_fused(wanted, numbers, hidden, head, signal, part, state.step, distance)
        return objective.evaluate(wanted, numbers, params.logits(hidden), signal, part, state.step, distance)

    grad, trained = jax.grad(loss_sum, has_aux=True), (state.params, state.projector)
    if structure.microbatches == 1:
        gradient, sums = grad(trained, batch)
    else:
        parts = _split(batch, structure.microbatches)
        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(grad, trained, jax.tree.map(lambda leaf: leaf[0], parts)))

        def accumulate(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, grad(trained, part)), None

        (gradient, sums), _ = lax.scan(accumulate, zero, parts)
    weight = jnp.maximum(sums["loss"].weight, 1e-9)
    return jax.tree.map(lambda leaf: leaf / weight, gradient), sums, own


def _split(batch: Batch, microbatches: int) -> Batch:
    """[B, ...] -> [M, B/M, ...]; the batch keeps its place on the mesh, M is not split."""

    def split(array: Any) -> Any:
        shape = (microbatches, array.shape[0] // microbatches, *array.shape[1:])
        return lax.reshape(array, shape, out_sharding=P(None, sharding.BATCH, *([None] * (array.ndim - 1))))

    return jax.tree.map(split, batch)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(
    structure: StepShape, state: TrainState, teacher: Teacher | Head | None, batches: Batch, count: Any
) -> tuple[TrainState, dict[str, Any]]:
    """The first `count` of the stacked `batches` ([K, B, ...]) in one call, for any count <= K without recompiling.

    Returns the new state, and the metrics summed over those steps with, as `row`, how many of the latest updates in a
    row were rejected. `state` is donated.
    """

    def body(i: Any, carry: tuple[TrainState, dict[str, Any]]) -> tuple[TrainState, dict[str, Any]]:
        state, sums = carry
        batch = jax.tree.map(lambda stack: lax.dynamic_index_in_dim(stack, i, keepdims=False), batches)
        state, means = train_step(structure, state, teacher, batch)
        return state, jax.tree.map(jnp.add, sums, means)

    first = jax.tree.map(lambda stack: stack[0], batches)
    zero = jax.eval_shape(functools.partial(train_step, structure), state, teacher, first)[1]
    state, sums = lax.fori_loop(0, count, body, (state, jax.tree.map(jnp.zeros_like, zero)))
    return state, sums | {"row": state.guard.row}
