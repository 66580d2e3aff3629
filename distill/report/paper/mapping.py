"""Figures 11 and 12: the capacity gap on the mapping problem, with small MLPs (the paper's synthetic demonstration).

The input is a context of K digits, two 1s, two 2s and zeros elsewhere, and a one-hot index i; the label is i where
context[i] = 0, else the other index with the same digit. Data are drawn anew at every step, so nothing overfits: a
student is limited by its capacity and its number of steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from distill.report.paper import style
from distill.report.theme import LIGHT
from distill.system.numbers import si

Net = list[tuple[jax.Array, jax.Array]]  # weight and bias of every layer; with a leading axis of seeds in training
Row = dict[str, Any]  # one teacher: its width or steps as 'x', and a list over seeds of every measure
Results = dict[str, list[Row]]

_BLOCK = 250  # steps in one jitted call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mapping:
    """The experiment; its defaults take about twenty minutes on two busy cores."""

    digits: int = 10
    student_width: int = 256
    student_steps: int = 4_000
    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)  # of the teachers of Figure 11
    teacher_steps: int = 16_000
    long_width: int = 256  # of the teacher of Figure 12, taken at these steps
    long_steps: tuple[int, ...] = (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000)
    batch: int = 128
    seeds: int = 4
    learning_rate: float = 3e-4
    evaluation: int = 8_192


def sample(key: jax.Array, digits: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """(inputs [batch, 2 K], labels [batch]) of the mapping problem."""
    context_key, index_key = jax.random.split(key)
    order = jax.vmap(lambda k: jax.random.permutation(k, digits))(jax.random.split(context_key, batch))
    context = jnp.where(order < 2, 1, jnp.where(order < 4, 2, 0))
    index = jax.random.randint(index_key, (batch,), 0, digits)
    own = jnp.take_along_axis(context, index[:, None], 1)
    place = jnp.arange(digits)
    twin = (context == own) & (place[None] != index[:, None])
    label = jnp.where(own[:, 0] == 0, index, jnp.argmax(twin, axis=1))
    return jnp.concatenate([context.astype(jnp.float32), jax.nn.one_hot(index, digits)], axis=1), label


def init(key: jax.Array, digits: int, width: int) -> Net:
    """Two hidden layers, He initialisation."""
    sizes = (2 * digits, width, width, digits)
    keys = jax.random.split(key, 3)
    return [(jax.random.normal(k, (i, o)) * jnp.sqrt(2.0 / i), jnp.zeros(o)) for k, i, o in zip(keys, sizes, sizes[1:])]


def logits(net: Net, x: jax.Array) -> jax.Array:
    for weight, bias in net[:-1]:
        x = jax.nn.relu(x @ weight + bias[None])
    weight, bias = net[-1]
    return x @ weight + bias[None]


def _loss(net: Net, teacher: Net | None, x: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy against the label or, with a teacher, against the teacher's distribution."""
    log_p = jax.nn.log_softmax(logits(net, x))
    if teacher is None:
        return -jnp.mean(jnp.take_along_axis(log_p, label[:, None], 1))
    return -jnp.mean(jnp.sum(jax.nn.softmax(logits(teacher, x)) * log_p, axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _train_block(
    config: Mapping, nets: Net, states: optax.OptState, teachers: Net | None, keys: jax.Array
) -> tuple[Net, optax.OptState]:
    """_BLOCK steps of every seed."""
    optimiser = optax.adam(config.learning_rate)

    def one(net, state, teacher, key):
        def step(carry, key):
            net, state = carry
            x, label = sample(key, config.digits, config.batch)
            updates, state = optimiser.update(jax.grad(_loss)(net, teacher, x, label), state)
            return (optax.apply_updates(net, updates), state), None

        carry, _ = jax.lax.scan(step, (net, state), jax.random.split(key, _BLOCK))
        return carry

    return jax.vmap(one)(nets, states, teachers, keys)


def train(
    config: Mapping, width: int, steps: int, stream: int, teachers: Net | None = None, snapshots: tuple[int, ...] = ()
) -> tuple[Net, dict[int, Net]]:
    """(nets of all seeds, {step: nets} at the snapshots); a student when `teachers` are given."""
    seeds = jnp.arange(config.seeds)
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), stream))(seeds)
    nets = jax.vmap(lambda k: init(k, config.digits, width))(keys)
    states = jax.vmap(optax.adam(config.learning_rate).init)(nets)
    kept = {}
    for block in range(steps // _BLOCK):
        block_keys = jax.vmap(lambda k, b=block: jax.random.fold_in(k, b + 1))(keys)
        nets, states = _train_block(config, nets, states, teachers, block_keys)
        if (block + 1) * _BLOCK in snapshots:
            kept[(block + 1) * _BLOCK] = nets
    return nets, kept


@functools.partial(jax.jit, static_argnums=0)
def evaluate(config: Mapping, nets: Net, teachers: Net) -> dict[str, jax.Array]:
    """Cross-entropy and error against the labels, and KL from the teacher, per seed."""
    x, label = sample(jax.random.key(2**31 - 1), config.digits, config.evaluation)

    def one(net, teacher):
        own = jax.nn.log_softmax(logits(net, x))
        taught = jax.nn.log_softmax(logits(teacher, x))
        return {
            "cross_entropy": -jnp.mean(jnp.take_along_axis(own, label[:, None], 1)),
            "error": jnp.mean(jnp.argmax(own, 1) != label),
            "kl": jnp.mean(jnp.sum(jnp.exp(taught) * (taught - own), axis=1)),
        }

    return jax.vmap(one)(nets, teachers)


def run(config: Mapping, report: Callable[[str], None] = lambda line: None) -> Results:
    """{'width': rows, 'steps': rows}: one row per teacher, with per-seed lists of its loss and of its student's."""

    def distilled(x: int, teachers: Net, stream: int) -> Row:
        students, _ = train(config, config.student_width, config.student_steps, stream, teachers)
        teacher, student = evaluate(config, teachers, teachers), evaluate(config, students, teachers)
        row = {f"student_{k}": np.asarray(v).tolist() for k, v in student.items()}
        row |= {f"teacher_{k}": np.asarray(teacher[k]).tolist() for k in ("cross_entropy", "error")}
        report(f"{x}: teacher {np.mean(teacher['cross_entropy']):.4f}, student {np.mean(student['cross_entropy']):.4f}")
        return {"x": x, **row}

    by_width = []
    for width in config.widths:
        teachers, _ = train(config, width, config.teacher_steps, 1)
        by_width.append(distilled(width, teachers, 2))
    _, snapshots = train(config, config.long_width, max(config.long_steps), 3, snapshots=config.long_steps)
    by_steps = [distilled(steps, teachers, 4) for steps, teachers in sorted(snapshots.items())]
    alone, _ = train(config, config.student_width, config.student_steps, 5)
    baseline = {k: np.asarray(v).tolist() for k, v in evaluate(config, alone, alone).items()}
    return {"width": by_width, "steps": by_steps, "alone": [baseline]}


def _panels(rows: list[Row], alone: Row, label: str) -> Figure:
    figure, axes = style.panels(1, 3, width=3.3)
    x = [row["x"] for row in rows]
    for ax, name, title in zip(
        axes[0], ("cross_entropy", "error", "kl"), ("cross-entropy", "error", "KL from teacher")
    ):
        shown = [("student", LIGHT.blue, "o")] + ([("teacher", LIGHT.ink, "s")] if name != "kl" else [])
        for who, color, marker in shown:
            values = np.array([row[f"{who}_{name}"] for row in rows])
            spread = values.std(axis=1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))
            ax.errorbar(x, values.mean(axis=1), spread, color=color, marker=marker, markersize=4, label=who)
        if name != "kl":
            ax.axhline(np.mean(alone[name]), color=LIGHT.orange, linestyle="--", label="student without a teacher")
        ax.set(xscale="log", xlabel=label, ylabel=title)
        ax.set_xticks(x, [si(value) for value in x], rotation=45)
        ax.minorticks_off()
    style.legend(figure, axes[0, 0])
    return figure


def figure_11(results: Results) -> Figure:
    """The mapping problem: students of width 256 against the width of their fully trained teacher."""
    return _panels(results["width"], results["alone"][0], "teacher width")


def figure_12(results: Results) -> Figure:
    """The mapping problem: students of width 256 against the training steps of their teacher."""
    return _panels(results["steps"], results["alone"][0], "teacher steps")
