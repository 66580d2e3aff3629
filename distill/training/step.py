"""One step of training, supervised or distilled: pure functions, in the paper's symbols.

    signal   = stop_gradient(teacher(x))                       or None
    loss_sum = sum_tokens w [(1 - lambda) L_NTP + lambda L_KD + w_F L_F + lambda_z Z + those of routers]
    gradient = d loss_sum / d theta, over all microbatches and devices, divided once by sum w

The division comes last, so the result depends neither on microbatches nor on devices nor on packing.

`train_steps` is what the loop calls: K times `train_step`, which takes its gradient from `gradients`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from distill.config import ExperimentConfig, ModelConfig, ObjectiveConfig, OptimConfig
from distill.losses import features
from distill.losses.features import Projector
from distill.losses.sums import WeightedSum
from distill.model import adapted, layouts, quantize, sharding, transformer
from distill.model.transformer import Transformer
from distill.teacher.observe import StepTeacher, observe
from distill.training import guard, objective, on_policy, optim
from distill.training.guard import GradientGuard
from distill.training.objective import ObjectiveSpec
from distill.training.on_policy import OnPolicySpec
from distill.types import Batch

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """The part of a config that is compiled into its step; the rest is traced (optim.Hyperparams)."""

    optim: OptimConfig
    objective: ObjectiveSpec
    microbatches: int
    on_policy: OnPolicySpec | None = None  # None: every batch is data


def step_spec(config: ExperimentConfig) -> StepSpec:
    """What the step of a config is compiled for: configs with the same spec share an executable."""
    traced = ("learning_rate", "weight_decay", "clip", "warmup_steps", "decay_fraction", "final_ratio")
    defaults = OptimConfig()
    return StepSpec(
        optim=dataclasses.replace(config.optim, **{name: getattr(defaults, name) for name in traced}),
        objective=objective.objective_spec(config.objective, config.model),
        microbatches=config.microbatches,
        on_policy=on_policy.on_policy_spec(config),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and the hyperparameters that it reads. `params` is the student alone."""

    step: Int[Array, ""]
    params: Transformer
    opt_state: optax.OptState
    hyper: optim.Hyperparams
    guard: GradientGuard
    projector: Projector | None = None  # of feature losses
    projector_state: optax.OptState | None = None  # its gradients are clipped apart from the student's

    def stored(self) -> dict[str, PyTree]:
        """What a checkpoint holds. Hyperparameters come from the config: runs of one trunk end at different steps."""
        optimizer = {"step": self.step, "state": self.opt_state, "guard": self.guard.stored()}
        if self.projector is not None:
            optimizer |= {"projector": self.projector, "projector_state": self.projector_state}
        return {"params": self.params, "optimizer": optimizer}

    def restored(self, items: dict[str, PyTree]) -> "TrainState":
        """This state with the contents of a checkpoint (`stored`)."""
        optimizer = items["optimizer"]
        return dataclasses.replace(
            self,
            step=optimizer["step"],
            params=items["params"],
            opt_state=optimizer["state"],
            guard=GradientGuard.restored(optimizer["guard"]),
            projector=optimizer.get("projector"),
            projector_state=optimizer.get("projector_state"),
        )


def init_state(config: ExperimentConfig, teacher: ModelConfig | None = None) -> TrainState:
    """The state before the first step, created in its sharding on the current mesh; traceable, to get its shapes.

    With feature losses it has projections to the `teacher`'s width.
    """
    # Only what the arrays depend on, so that runs of one shape share the compiled initialisation.
    objective = dataclasses.replace(ObjectiveConfig(), features=config.objective.features)
    canonical = dataclasses.replace(
        ExperimentConfig(), model=config.model, optim=step_spec(config).optim, objective=objective
    )
    key = jax.random.key(config.seed)
    init = _init if isinstance(key, jax.core.Tracer) else _compiled_init()
    return init(canonical, teacher.d_model if teacher else 0, key, optim.hyperparams(config))


def _init(config: ExperimentConfig, teacher_width: int, key: PRNGKeyArray, hyper: optim.Hyperparams) -> TrainState:
    params = Transformer(config.model, key)
    if config.model.lora.rank and config.model.dtype == "bfloat16":
        params = quantize.cast(params, "bfloat16")  # what is not trained is kept as it is computed with
    opt_state = optim.optimizer(config.optim, hyper, transformer.fan_in(config.model)).init(adapted.trained(params))
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(step=zero, params=params, opt_state=opt_state, hyper=hyper, guard=guard.init())
    pairs = len(config.objective.features)
    if not pairs or not teacher_width:
        return state
    # A key of its own, so that the student starts as it would without features.
    projector = Projector(pairs, config.model.d_model, teacher_width, jax.random.fold_in(key, 1))
    projector_state = optim.optimizer(config.optim, hyper, features.fan_in(projector)).init(projector)
    return dataclasses.replace(state, projector=projector, projector_state=projector_state)


@functools.cache
def _compiled_init() -> Callable[[ExperimentConfig, int, PRNGKeyArray, optim.Hyperparams], TrainState]:
    # Weights are drawn once: on a CPU, compiling this at full optimisation took 6.0 s against 1.8 s, for no gain.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(_init, static_argnums=(0, 1), compiler_options=options)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(
    spec: StepSpec, state: TrainState, teacher: StepTeacher | None, batches: Batch, count: Int[Array, ""] | int
) -> tuple[TrainState, Metrics]:
    """The first `count` of the stacked `batches` ([K, B, ...]) in one call, for any count <= K without recompiling.

    Returns the new state, and the metrics summed over those steps, with `consecutive_rejections` as it is after the
    last of them. `state` is donated.
    """

    def body(i: Int[Array, ""], carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, sums = carry
        batch = jax.tree.map(lambda stack: lax.dynamic_index_in_dim(stack, i, keepdims=False), batches)
        state, means = train_step(spec, layouts.compact(state), layouts.compact(teacher), batch)
        return layouts.compact(state), jax.tree.map(jnp.add, sums, means)

    first = jax.tree.map(lambda stack: stack[0], batches)
    zero = jax.eval_shape(functools.partial(train_step, spec), state, teacher, first)[1]
    state, sums = lax.fori_loop(0, count, body, (state, jax.tree.map(jnp.zeros_like, zero)))
    return state, sums | {"consecutive_rejections": state.guard.consecutive_rejections}


def train_step(
    spec: StepSpec, state: TrainState, teacher: StepTeacher | None, batch: Batch
) -> tuple[TrainState, Metrics]:
    """One update. Returns the new state and the step's means (nats per token), gradient norm and learning rate."""
    (gradient, projector_gradient), sums, is_on_policy = gradients(spec, state, teacher, batch)
    means = {name: total.mean() for name, total in sums.items()}
    if is_on_policy is not None:  # the column `own` is the share of such steps; X_own / own is the mean of X in them
        means |= {f"{name}_own": jnp.where(is_on_policy, means[name], 0.0) for name in ("ntp", "kd")}
        means["own"] = is_on_policy.astype(jnp.float32)
    means["grad_norm"] = optax.tree.norm(gradient)
    means["param_norm"] = optax.tree.norm(state.params)
    means["learning_rate"] = state.hyper.learning_rate * optim.schedule(spec.optim.schedule, state.hyper, state.step)
    # Before the update, which needs its answer: the new state can then take the place of the old one.
    norm = optax.tree.norm((gradient, projector_gradient))
    accepted, new_guard = guard.accept(spec.optim.spike, state.guard, means["loss"], norm, means["param_norm"])
    optimizer = optim.optimizer(spec.optim, state.hyper, transformer.fan_in(state.params.config))
    trained = adapted.trained(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, trained, step=state.step, accepted=accepted)
    params = adapted.with_trained(state.params, optax.apply_updates(trained, updates))
    new = dataclasses.replace(state, params=guard.select(accepted, params, state.params), opt_state=opt_state)
    if state.projector is not None:
        optimizer = optim.optimizer(spec.optim, state.hyper, features.fan_in(state.projector))
        updates, projector_state = optimizer.update(
            projector_gradient, state.projector_state, state.projector, step=state.step, accepted=accepted
        )
        projector = guard.select(accepted, optax.apply_updates(state.projector, updates), state.projector)
        new = dataclasses.replace(new, projector=projector, projector_state=projector_state)
    # A rejected step adds nothing to any mean; the data, the schedule and the random draws advance all the same.
    means = {name: jnp.where(accepted, value, 0.0) for name, value in means.items()} | {"rejected": 1.0 - accepted}
    return dataclasses.replace(new, step=state.step + 1, guard=new_guard), means


Trained = tuple[PyTree, Projector | None]  # of the student the part that is trained (adapted.trained)


def gradients(
    spec: StepSpec, state: TrainState, teacher: StepTeacher | None, batch: Batch
) -> tuple[Trained, dict[str, WeightedSum], Bool[Array, ""] | None]:
    """d (loss_sum / sum w) / d theta, with what it was computed from.

    Returns the gradients of the student and of its projector, the sums of the loss and of its parts over all tokens,
    and whether the student wrote this batch itself (None where it never does).
    """
    hyper, is_on_policy = objective.scheduled(spec.objective, state.hyper, state.step), None
    if spec.on_policy:
        is_on_policy = on_policy.is_on_policy(state.hyper, state.step)
        batch = on_policy.student_batch(spec.on_policy, state.hyper, state.step, state.params, batch)
        hyper = dataclasses.replace(hyper, lambda_=jnp.where(is_on_policy, 1.0, hyper.lambda_))
    pairs = spec.objective.features if state.projector is not None else ()
    student_layers, teacher_layers = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)

    def loss_sum(trained: Trained, part: Batch) -> tuple[Float[Array, ""], dict[str, WeightedSum]]:
        student, projector = adapted.with_trained(state.params, trained[0]), trained[1]
        signal, teacher_states = observe(teacher, part, spec.objective.fused, teacher_layers)
        inputs = part.inputs, part.segment, part.position, part.spans
        hidden, states, router = student.routed_states(student_layers, *inputs, part.weight)
        distance = None
        if projector is not None:
            distance = features.distance(spec.objective.feature_loss, projector, states, teacher_states)
        if spec.objective.fused:
            head = student.head_vd
            return objective.fused_loss(spec.objective, hyper, hidden, head, signal, part, state.step, distance, router)
        logits = student.logits(hidden)
        return objective.loss(spec.objective, hyper, logits, signal, part, state.step, distance, router)

    grad, trained = jax.grad(loss_sum, has_aux=True), (adapted.trained(state.params), state.projector)
    gradient, sums = _accumulated(grad, trained, batch, spec.microbatches)
    weight = jnp.maximum(sums["loss"].weight, 1e-9)
    return jax.tree.map(lambda leaf: leaf / weight, gradient), sums, is_on_policy


def _accumulated(
    grad: Callable[[Trained, Batch], tuple[Trained, dict[str, WeightedSum]]],
    trained: Trained,
    batch: Batch,
    microbatches: int,
) -> tuple[Trained, dict[str, WeightedSum]]:
    """grad(trained, batch), one microbatch after the other, summed."""
    if microbatches == 1:
        return grad(trained, batch)
    parts = _split(batch, microbatches)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(grad, trained, jax.tree.map(lambda leaf: leaf[0], parts)))

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, grad(trained, part)), None

    return lax.scan(add, zero, parts)[0]


def _split(batch: Batch, microbatches: int) -> Batch:
    """[B, ...] -> [M, B/M, ...]; the batch keeps its place on the mesh, M is not split."""

    def split(array: Array) -> Array:
        shape = (microbatches, array.shape[0] // microbatches, *array.shape[1:])
        return lax.reshape(array, shape, out_sharding=P(None, sharding.BATCH, *([None] * (array.ndim - 1))))

    return jax.tree.map(split, batch)
