"""The step that would run, traced for a mesh of devices that need not exist, and its FLOPs."""

import dataclasses
import functools
import math
from typing import TypeVar
from typing import cast as cast_type

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.sharding import AbstractMesh, Mesh

from distill.config import ConfigError, ExperimentConfig, ModelConfig
from distill.data import spans
from distill.model import sharding as mesh
from distill.model.quantize import cast
from distill.model.transformer import Transformer
from distill.training import step
from distill.types import Batch

T = TypeVar("T")
STACKED = 2  # batches in the one call that is compiled; a step's cost does not depend on it


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced step and the shapes and shardings of its arguments."""

    traced: jax.stages.Traced
    state: step.TrainState
    teacher: Transformer | None
    batches: Batch
    devices: int


def trace(
    config: ExperimentConfig, teacher: ModelConfig | None, devices: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> Program:
    """`train_steps` of a config on a mesh, abstract or of a compiler's devices. Nothing is allocated.

    Raises ConfigError if a dimension does not divide over the mesh.
    """
    if config.on_policy.fraction or config.objective.features:
        raise ConfigError("a dry run knows neither on_policy.fraction nor objective.features; set them to 0 and ()")
    if config.objective.cross_tokenizer != "none":
        raise ConfigError(
            "a dry run does not know how long the texts are in a teacher's own tokens; set "
            "objective.cross_tokenizer=none, which takes a teacher for one of the student's tokenizer"
        )
    abstract = devices if isinstance(devices, AbstractMesh) else devices.abstract_mesh
    for model in (config.model, teacher):
        if model is not None:
            mesh.check(model, config.batch_size // config.microbatches, abstract, config.mesh.context)

    cut = 2 * config.mesh.context if config.mesh.context > 1 else 1
    span = spans.length(config.seq_len, config.mesh.context) if cut > 1 else config.seq_len

    def placed(tree: T) -> T:
        def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = leaf.sharding.spec if leaf.sharding else jax.P()
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.NamedSharding(devices, spec))

        return jax.tree.map(one, tree)

    def stacked(length: int, dtype: jnp.dtype) -> jax.Array:
        sharding = jax.NamedSharding(devices, jax.P(None, mesh.BATCH, None))
        shape = STACKED, config.batch_size * cut, length
        return cast_type(jax.Array, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))  # Batch takes arrays

    with jax.sharding.use_abstract_mesh(abstract):
        state = placed(jax.eval_shape(lambda: step.init_state(config)))
        draw = lambda model: cast(Transformer(model, jax.random.key(0)), config.teacher.dtype)
        taught = placed(jax.eval_shape(functools.partial(draw, teacher))) if teacher else None
    batches = Batch(stacked(span + 1, jnp.int32), stacked(span, jnp.float32))
    if cut > 1:
        batches = dataclasses.replace(batches, position=stacked(span, jnp.int32), spans=cut)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    scope = jax.set_mesh(devices) if isinstance(devices, Mesh) else jax.sharding.use_abstract_mesh(abstract)
    with scope:
        traced = step.train_steps.trace(step.step_spec(config), state, taught, batches, count)
    return Program(traced, state, taught, batches, abstract.size)


def held(tree: object) -> float:
    """Bytes of a tree of sharded shapes on one device."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.ShapeDtypeStruct)]
    return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step's matrix products over all devices: those with weights, and those of attention."""

    linear: float
    attention: float


def flops(program: Program) -> StepFlops:
    """FLOPs of all products of the traced step, recomputation included; a loop over steps counts once."""
    return StepFlops(*_count(program.traced.jaxpr.jaxpr, 1, program.devices))


def _count(jaxpr: Jaxpr, times: float, size: int) -> tuple[float, float]:
    linear = attention = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            left = _shape(equation.invars[0])
            cost = 2.0 * times * math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in contracted)
            linear, attention = (linear, attention + cost) if batched else (linear + cost, attention)
            continue
        again, many = times, size
        if equation.primitive.name == "scan":
            again *= equation.params["length"]
        elif equation.primitive.name == "shard_map":
            again, many = times * size, 1  # its body is the program of one device
        inner = [_count(inside, again, many) for inside in _inside(equation)]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        linear, attention = linear + sum(a for a, _ in inner), attention + sum(b for _, b in inner)
    return linear, attention


def _shape(variable: Var | Literal) -> tuple[int, ...]:
    assert isinstance(variable.aval, jax.core.ShapedArray)
    return variable.aval.shape


def _inside(equation: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs that an equation runs; of a while, its body; of a custom derivative, the function."""
    jaxprs: list[Jaxpr] = []
    for name, value in equation.params.items():
        if name == "cond_jaxpr":
            continue
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if isinstance(one, Jaxpr):
                jaxprs.append(one)
    return jaxprs
