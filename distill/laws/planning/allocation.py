"""The best split of a budget between student and teacher: Eq. 9 minimised over N_T, D_T and D_S, batched, in float64.

The constraint removes one variable; each scenario leaves one or two:
- free teacher (best_case): only L_T matters, one variable; the cheapest teacher that reaches it is then reported;
- only its forward passes are paid (teacher_inference): D_T is free, so D_T or N_T is at a bound, one variable along
  that edge;
- its training is paid (teacher_pretraining, pretraining_and_inference): N_T and the share of compute spent on the
  teacher's training, two variables.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from distill.laws.forms.arrays import Floats, Values
from distill.laws.planning.minimise import minimise
from distill.laws.planning.repeats import alone, reads_unique, taught
from distill.laws.planning.scenarios import UNLIMITED, Scenario
from distill.laws.planning.signatures import ForwardFlops, StudentLaw, SupervisedLaw

_CHUNK = 128  # cases solved in one call: one shape, so one compilation per scenario
_BISECTIONS = 52
_FLAT = 1e-7  # of a loss, within which a teacher of fewer tokens is as good
_SLOPE_WIDTH = 1e-3  # of the central differences in logarithms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """The range of N_T, D_T and D_S that is searched; the paper's is 1e6 to 1e17."""

    low: float = 1e6
    high: float = 1e17


PAPER_BOUNDS = Bounds()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """Optimal splits: float64 arrays of one shape. `second_*` is the second-best local minimum (inf: none)."""

    N_S: Floats
    D_S: Floats
    N_T: Floats
    D_T: Floats
    L_T: Floats
    L_S: Floats
    second_N_T: Floats
    second_D_S: Floats
    second_L_T: Floats
    second_L_S: Floats


def allocate(
    supervised: SupervisedLaw,
    distillation: StudentLaw,
    N_S: Values,
    compute: Values,
    scenario: Scenario,
    *,
    flops: ForwardFlops,
    unique: float = UNLIMITED,
    bounds: Bounds = PAPER_BOUNDS,
) -> Allocation:
    """The split of `compute` FLOPs with the lowest L_S for students of N_S parameters (arrays broadcast).

    Laws may be stacks (leaves of shape [R], a bootstrap): the result then has a leading axis R.
    `unique` is the number of distinct tokens that student and teacher each have.
    """
    kind = "share" if scenario.pretraining else "edge" if scenario.logits else "loss"
    limits = _Limits(scenario.logits, scenario.pretraining, unique, bounds.low, bounds.high)
    return Allocation(**_run(_SOLVERS[kind], (supervised, distillation, flops), (N_S, compute), limits))


def supervised_optimum(
    supervised: SupervisedLaw,
    compute: Values,
    *,
    flops: ForwardFlops,
    unique: float = UNLIMITED,
    bounds: Bounds = PAPER_BOUNDS,
) -> dict[str, Floats]:
    """{'N', 'D', 'L'} of the compute-optimal supervised model, 3 F(N) D = compute."""
    limits = _Limits(0.0, 0.0, unique, bounds.low, bounds.high)
    out = _run(_solve_supervised, (supervised, flops), (compute,), limits)
    return {"N": out["N_S"], "D": out["D_S"], "L": out["L_S"]}


def cheapest_teacher(
    supervised: SupervisedLaw,
    L_T: Values,
    D_S: Values,
    scenario: Scenario,
    *,
    flops: ForwardFlops,
    unique: float = UNLIMITED,
    bounds: Bounds = PAPER_BOUNDS,
) -> tuple[Floats, Floats]:
    """(N_T, D_T) of loss L_T at the lowest cost for D_S student tokens; training counts even if others pay for it.

    Under a stack of laws [R], L_T and D_S [R, ...] hold the cases of each law.
    """
    limits = _Limits(scenario.logits, scenario.pretraining or 1.0, unique, bounds.low, bounds.high)
    out = _run(_solve_teacher, (supervised, flops), (L_T, D_S), limits, paired=True)
    return out["N_T"], out["D_T"]


class _Limits(NamedTuple):
    """Numbers shared by all cases: the weights of Eq. 9 (Scenario), distinct tokens, the range of the search."""

    logits: float
    pretraining: float
    unique: float
    low: float
    high: float


# A law or F(N); the scalars of one case; a point of the search; from parts, case and limits to a result by name.
_Part: TypeAlias = SupervisedLaw | StudentLaw | ForwardFlops
_Scalars: TypeAlias = tuple[jax.Array, ...]
_Point: TypeAlias = tuple[Values, ...]
_Solver: TypeAlias = Callable[[tuple, _Scalars, _Limits], Mapping[str, Values]]


def _run(
    solve: _Solver, parts: tuple[_Part, ...], cases: tuple[Values, ...], limits: _Limits, paired: bool = False
) -> dict[str, Floats]:
    """Solves every case under every law of a stack, in chunks on all cores; axes: [R, *cases].

    paired: the cases already have the axis R, one row of cases per law.
    """
    leaves, structures = zip(*(_split(part) for part in parts))
    flat = [np.asarray(leaf, np.float64) for part in leaves for leaf in part]
    laws = np.broadcast_shapes(*(leaf.shape for leaf in flat)) if flat else ()
    grid = np.broadcast_arrays(*(np.asarray(case, np.float64) for case in cases))
    shape = grid[0].shape if paired and grid[0].shape[: len(laws)] == laws else laws + grid[0].shape
    count = int(np.prod(shape))
    per_law = [np.broadcast_to(leaf, laws).reshape(-1) for leaf in flat]
    each = count // max(int(np.prod(laws)), 1)
    rows = [np.repeat(leaf, each) for leaf in per_law]
    rows += [np.broadcast_to(case, shape).reshape(-1) for case in grid]

    def chunk(start: int) -> dict[str, Floats]:
        with jax.enable_x64(True):
            picked = [np.resize(row[start : start + _CHUNK], _CHUNK) for row in rows]
            return {k: np.asarray(v) for k, v in _batched(solve, structures, len(cases), picked, limits).items()}

    starts = range(0, count, _CHUNK)
    if len(starts) == 1:
        solved = [chunk(0)]
    else:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            solved = [chunk(starts[0]), *pool.map(chunk, starts[1:])]
    return {name: np.concatenate([part[name] for part in solved])[:count].reshape(shape) for name in solved[0]}


_Structure: TypeAlias = "jax.tree_util.PyTreeDef | _Part"


def _split(part: _Part) -> tuple[list[Values], _Structure]:
    """A law's numbers and its structure; a plain function has no numbers and serves as its structure."""
    leaves, structure = jax.tree_util.tree_flatten(part)
    if all(isinstance(leaf, (int, float, np.ndarray, np.generic, jax.Array)) for leaf in leaves):
        return leaves, structure
    return [], part


def _join(structures: tuple[_Structure, ...], numbers: list[jax.Array]) -> tuple[_Part, ...]:
    parts, at = [], 0
    for structure in structures:
        if isinstance(structure, jax.tree_util.PyTreeDef):
            parts.append(structure.unflatten(numbers[at : at + structure.num_leaves]))
            at += structure.num_leaves
        else:
            parts.append(structure)
    return tuple(parts)


# Compiling costs more than solving: at the lowest level it takes half the time, while the solver runs half as fast.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), compiler_options={"xla_backend_optimization_level": 0})
def _batched(
    solve: _Solver, structures: tuple[_Structure, ...], n_cases: int, rows: list[jax.Array], limits: _Limits
) -> Mapping[str, Values]:
    def one(row: list[jax.Array]) -> Mapping[str, Values]:
        first = len(row) - n_cases
        return solve(_join(structures, row[:first]), tuple(row[first:]), limits)

    return jax.vmap(one)(rows)


def _solve(
    kind: str, parts: tuple[SupervisedLaw, StudentLaw, ForwardFlops], case: _Scalars, limits: _Limits
) -> dict[str, Values]:
    """One case (N_S, compute) of `allocate`; `kind` names the variables that the scenario leaves."""
    supervised, distillation, flops = parts
    N_S, compute = case
    logits, pretraining, unique, low, high = limits
    log_low, log_high = jnp.log(low), jnp.log(high)
    F_S = flops(N_S)

    def teacher_loss(N_T: Values, D_T: Values) -> Values:
        return alone(supervised, N_T, D_T, unique, jnp)

    best, worst = _strongest(supervised, limits)[1], teacher_loss(low, low)

    def place(z: jax.Array) -> _Point:
        """(N_T, D_T, D_S, L_T) of a point of the search."""
        if kind == "loss":
            return jnp.nan, jnp.nan, compute / (3 * F_S), best + jnp.exp(z[0])
        if kind == "edge":
            D_T = jnp.exp(jnp.minimum(log_low + z[0], log_high))
            N_T = jnp.exp(jnp.maximum(log_low, 2 * log_low - log_high + z[0]))
            return N_T, D_T, compute / (3 * F_S + logits * flops(N_T)), teacher_loss(N_T, D_T)
        N_T = jnp.exp(z[0])
        F_T = flops(N_T)
        share = jax.nn.sigmoid(z[1])
        D_T = jnp.minimum(share * compute / (3 * pretraining * F_T), high)
        return N_T, D_T, (1 - share) * compute / (3 * F_S + logits * F_T), teacher_loss(N_T, D_T)

    def loss(z: jax.Array) -> jax.Array:
        _, _, D_S, L_T = place(z)
        return jnp.asarray(taught(distillation, N_S, jnp.minimum(D_S, high), L_T, unique, jnp))

    minimum = minimise(loss, _axes(kind, log_low, log_high, worst - best))
    N_T, D_T, D_S, L_T = place(minimum.z)
    second = place(minimum.second_z)
    if kind != "edge":
        costs = limits if kind == "share" else limits._replace(logits=0.0, pretraining=1.0)
        cheapest = _solve_teacher((supervised, flops), (jnp.asarray(L_T), jnp.asarray(D_S)), costs)
        if kind == "loss":
            N_T, D_T = cheapest["N_T"], cheapest["D_T"]
        else:
            starts = jnp.log(jnp.array([[N_T, D_T], [cheapest["N_T"], cheapest["D_T"]]]))
            N_T, D_T, D_S, L_T = _polish(starts, minimum.value, parts, case, limits)
    return {
        "N_S": N_S,
        "D_S": jnp.minimum(D_S, high),
        "N_T": N_T,
        "D_T": D_T,
        "L_T": L_T,
        "L_S": taught(distillation, N_S, jnp.minimum(D_S, high), L_T, unique, jnp),
        "second_N_T": second[0],
        "second_D_S": second[2],
        "second_L_T": second[3],
        "second_L_S": minimum.second_value,
    }


def _strongest(supervised: SupervisedLaw, limits: _Limits) -> tuple[jax.Array, Values]:
    """(log N, loss) of the best teacher of all: the largest, except where repeated text makes large models overfit."""
    if not reads_unique(supervised):
        return jnp.log(limits.high), alone(supervised, limits.high, limits.high, limits.unique, jnp)
    n = jnp.linspace(jnp.log(limits.low), jnp.log(limits.high), 512)
    losses = jnp.asarray(jax.vmap(lambda n: alone(supervised, jnp.exp(n), limits.high, limits.unique, jnp))(n))
    at = jnp.argmin(losses)
    return n[at], losses[at]


def _axes(kind: str, log_low: jax.Array, log_high: jax.Array, losses: Values) -> tuple[jax.Array, ...]:
    """The grid of each variable that a scenario leaves; `losses`: how far L_T can exceed the best teacher's."""
    if kind == "loss":
        return (jnp.linspace(jnp.log(1e-8), jnp.log(losses), 640),)
    if kind == "edge":
        return (jnp.linspace(0.0, 2 * (log_high - log_low), 512),)
    return jnp.linspace(log_low, log_high, 52), jnp.linspace(-30.0, 14.0, 45)


def _slopes(function: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Both derivatives of a function of two variables at (0, 0), of fourth order, from one batch of values."""
    steps = _SLOPE_WIDTH * np.array([-2.0, -1.0, 1.0, 2.0])
    offsets = np.concatenate([np.stack([steps, 0 * steps], 1), np.stack([0 * steps, steps], 1)])
    values = jax.vmap(lambda offset: function(offset[0], offset[1]))(jnp.asarray(offsets)).reshape(2, 4)
    first, second = (values @ np.array([1.0, -8.0, 8.0, -1.0])) / (12 * _SLOPE_WIDTH)
    return first, second


def _log_slope(flops: ForwardFlops, n: jax.Array) -> Values:
    """d log F / d log N at N = exp(n)."""
    return _slopes(lambda h, _: jnp.log(flops(jnp.exp(n + h))))[0]


def _polish(
    starts: jax.Array,
    value: jax.Array,
    parts: tuple[SupervisedLaw, StudentLaw, ForwardFlops],
    case: _Scalars,
    limits: _Limits,
) -> _Point:
    """(N_T, D_T, D_S, L_T) where the conditions of the optimum hold, by Newton from the second start, or the first.

    If the teacher is very cheap, losses hardly separate its size from its tokens. The conditions do: no teacher of this
    loss is cheaper, and moving compute between teacher and student gains nothing.
    """
    supervised, distillation, flops = parts
    N_S, compute = case
    logits, pretraining, unique, low, high = limits
    F_S = flops(N_S)

    def split(z: jax.Array) -> _Point:
        N_T, D_T = jnp.exp(z[0]), jnp.exp(z[1])
        F_T = flops(N_T)
        unit = 3 * F_S + logits * F_T
        return N_T, D_T, F_T, unit, (compute - 3 * pretraining * F_T * D_T) / unit

    def teacher(n: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.asarray(alone(supervised, jnp.exp(n), jnp.exp(d), unique, jnp))

    def student(D_S: Values, L_T: Values) -> jax.Array:
        return jnp.asarray(taught(distillation, N_S, jnp.minimum(D_S, high), L_T, unique, jnp))

    def conditions(z: jax.Array) -> jax.Array:
        _, D_T, F_T, unit, D_S = split(z)
        L_T = teacher(z[0], z[1])
        by_n, by_d = _slopes(lambda h, k: teacher(z[0] + h, z[1] + k))
        cost = _log_slope(flops, z[0]) * (1 + logits * D_S / (3 * pretraining * D_T))
        by_L, by_D = _slopes(lambda h, k: student(D_S * jnp.exp(k), L_T * jnp.exp(h)))
        return jnp.stack([cost - by_n / by_d, by_L / L_T * by_d - by_D * 3 * pretraining * F_T * D_T / (D_S * unit)])

    def newton(_: int, z: jax.Array) -> jax.Array:
        offsets = _SLOPE_WIDTH * np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        r = jax.vmap(conditions)(z[None] + offsets)
        (a, c), (b, d) = (r[1] - r[2]) / (2 * _SLOPE_WIDTH), (r[3] - r[4]) / (2 * _SLOPE_WIDTH)
        step = jnp.stack([d * r[0, 0] - b * r[0, 1], a * r[0, 1] - c * r[0, 0]]) / (a * d - b * c)
        return z - jnp.clip(step, -0.5, 0.5)

    polished = jax.lax.fori_loop(0, 6, newton, starts[1])
    _, _, _, _, D_S = split(polished)
    reached = student(D_S, teacher(polished[0], polished[1]))
    inside = jnp.all((polished > jnp.log(low)) & (polished < jnp.log(high))) & (D_S > 0)
    z = jnp.where(inside & (reached <= value + 1e-12), polished, starts[0])
    N_T, D_T, _, _, D_S = split(z)
    return N_T, D_T, D_S, teacher(z[0], z[1])


_SOLVERS = {kind: functools.partial(_solve, kind) for kind in ("loss", "edge", "share")}


def _solve_supervised(parts: tuple[SupervisedLaw, ForwardFlops], case: _Scalars, limits: _Limits) -> dict[str, Values]:
    """One case (compute,) of `supervised_optimum`."""
    (supervised, flops), (compute,) = parts, case

    def tokens(z: jax.Array) -> jax.Array:
        return jnp.minimum(compute / (3 * flops(jnp.exp(z[0]))), limits.high)

    def loss(z: jax.Array) -> jax.Array:
        return jnp.asarray(alone(supervised, jnp.exp(z[0]), tokens(z), limits.unique, jnp))

    minimum = minimise(loss, (jnp.linspace(jnp.log(limits.low), jnp.log(limits.high), 256),))
    return {"N_S": jnp.exp(minimum.z[0]), "D_S": tokens(minimum.z), "L_S": minimum.value}


def _bisect(rises: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The position of an increasing sign change between low and high (a bound if there is none)."""

    def halve(_: int, bracket: _Scalars) -> _Scalars:
        middle = (bracket[0] + bracket[1]) / 2
        up = rises(middle)
        return jnp.where(up, bracket[0], middle), jnp.where(up, middle, bracket[1])

    bracket = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return (bracket[0] + bracket[1]) / 2


def _solve_teacher(parts: tuple[SupervisedLaw, ForwardFlops], case: _Scalars, limits: _Limits) -> dict[str, Values]:
    """One case (L_T, D_S) of `cheapest_teacher`.

    Along the contour of L_T, cost = F(N) (logits D_S + 3 pretraining D) has one minimum, where its slope is zero.
    """
    (supervised, flops), (L_T, D_S) = parts, case
    logits, pretraining, unique, low, high = limits
    log_low, log_high = jnp.log(low), jnp.log(high)

    def loss(n: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.asarray(alone(supervised, jnp.exp(n), jnp.exp(d), unique, jnp))

    # A law of repeated text is flat beyond its useful tokens: all of them reach L_T, and the fewest are wanted.
    goal = L_T * (1 + _FLAT) if reads_unique(supervised) else L_T

    def tokens(n: jax.Array) -> jax.Array:
        return _bisect(lambda d: loss(n, d) < goal, log_low, log_high)

    def cost_rises(n: jax.Array) -> jax.Array:
        d = tokens(n)
        by_n, by_d = _slopes(lambda h, k: loss(n + h, d + k))
        training = 3 * pretraining * jnp.exp(d)
        slope = _log_slope(flops, n) - training / (logits * D_S + training) * by_n / by_d
        return jnp.asarray((slope > 0) & (loss(n, log_high) <= L_T))

    n = _bisect(cost_rises, log_low, _strongest(supervised, limits)[0])
    return {"N_T": jnp.exp(n), "D_T": jnp.exp(tokens(n))}
