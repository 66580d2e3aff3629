"""Shape annotations are checked while tests run: the list is complete, and a wrong shape is refused."""

import ast
import importlib

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from distill.diagnostics import imports
from distill.losses import divergences, targets
from distill.model import layers
from distill.types import TeacherSignal
from tests.checked_modules import CHECKED, EXTRAS, PYTREES

ROOMS = ("distill.losses", "distill.model", "distill.teacher", "distill.training")
APART = ("distill.teacher.generation", "distill.teacher.signals")  # NumPy on the host; shapes there are checked on disk


def annotated(path):
    """Whether a module's functions have shapes in their signatures."""
    functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    hints = [hint for f in functions for hint in (f.returns, *(a.annotation for a in f.args.args + f.args.kwonlyargs))]
    inside = [node for hint in hints if hint for node in ast.walk(hint)]
    return any(isinstance(n, ast.Subscript) and getattr(n.value, "id", "") in ("Float", "Int", "Bool") for n in inside)


def test_every_module_with_shapes_is_checked_or_left_out_for_a_reason():
    within = lambda name, rooms: name.startswith(tuple(f"{room}." for room in rooms))
    names = {
        name
        for name, path in imports.modules().items()
        if within(name, ROOMS) and not within(name, APART) and annotated(path)
    }
    assert names == {*CHECKED, *EXTRAS, *PYTREES}


@pytest.mark.parametrize("name", CHECKED)
def test_the_hook_has_read_the_module(name):
    """A name that was misspelt or moved would otherwise be passed over in silence."""
    assert "jaxtyping" in type(importlib.import_module(name).__loader__).__module__


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: divergences.cross_entropy(jnp.zeros((2, 3, 8)), jnp.zeros((2, 4), jnp.int32)),
        lambda: divergences.kl_divergence(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3, 9))),
        lambda: targets.gather(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), jnp.int32)),
        lambda: layers.attention(
            jnp.zeros((1, 2, 1, 4, 8)),
            jnp.zeros((1, 3, 4, 8)),
            jnp.zeros((1, 3, 4, 8)),
            jnp.zeros((1, 1, 1, 4, 4)),
            True,
        ),
        lambda: layers.attention(*[jnp.zeros((1, 2, 4, 8))] * 3, jnp.zeros((1, 1, 1, 4, 4)), True),
    ],
    ids=["labels", "vocabulary", "ids", "heads", "rank"],
)
def test_a_wrong_shape_is_refused(wrong):
    with pytest.raises(TypeCheckError):
        wrong()


def test_a_wrong_shape_inside_the_objective_is_refused(tiny, make_batch):
    from distill.training import objective, optim

    spec, batch = objective.objective_spec(tiny.objective), make_batch(batch=2, seq=16)
    signal = TeacherSignal(log_probs=jnp.zeros((2, 16, 32)))
    with pytest.raises(TypeCheckError):
        objective.loss(spec, optim.hyperparams(tiny), jnp.zeros((2, 16)), signal, batch)
