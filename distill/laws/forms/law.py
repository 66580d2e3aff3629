"""The base class of laws: a frozen dataclass that is called to evaluate it, traces under jax, and saves as JSON.

A form is a subclass with declared parameters (parameters.py), its `inputs`, its `output` and one method:

    @dataclasses.dataclass(frozen=True)
    class PowerLaw(Law):
        A: float = coefficient("x", exponent="alpha")
        E: float = floor()
        alpha: float = positive(0.05, 1.0)

        inputs = ("x",)

        def loss(self, xp, x):
            return self.E + self.A * x**-self.alpha

`xp` is numpy or jax.numpy. Fit, bootstrap, compare and design need nothing else.
A law is a jax pytree whose leaves are its parameters, so `jax.vmap` runs over a stack of laws (a bootstrap).
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from distill.config import DistillError, nearest
from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.parameters import KEY, FitSetting, Parameter
from distill.system.files import atomic_write, loads

FORMAT = 1
FORMS: dict[str, type["Law"]] = {}


class LawError(DistillError):
    """A law that cannot be built, read or fitted: where, got, wanted, what to do."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A scaling law: parameters are fields, calling it gives the loss in nats per token.

    `inputs` names the arguments, `output` the predicted loss; both are columns of a table of runs. A field annotated
    with a Law (`supervised` of Eq. 8) is given, not fitted.
    """

    inputs: ClassVar[tuple[str, ...]] = ()
    output: ClassVar[str] = "L"
    name: ClassVar[str] = ""
    may_be_zero: ClassVar[tuple[str, ...]] = ()  # inputs for which 0 is a value; all others are positive
    combinations: ClassVar[tuple[str, ...]] = ()  # properties that data may fix even if they do not fix the parameters

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()
        if cls.loss is not Law.loss and not cls.__name__.startswith("_"):  # bases without a formula are no forms
            FORMS[cls.name] = cls
        jax.tree_util.register_pytree_with_keys(cls, _flatten, functools.partial(_unflatten, cls))

    def loss(self, xp: ArrayModule, *inputs: Any) -> Values:
        """The law itself, elementwise, written with `xp` (numpy or jax.numpy) and operators."""
        raise NotImplementedError(f"{type(self).__name__} has no loss method")

    def __call__(self, *args: ArrayLike, **kwargs: ArrayLike) -> Any:
        """The predicted loss (nats per token); arguments broadcast. Numpy in, float64 out; jax in, jax out."""
        values = self._arguments(args, kwargs)
        leaves = [*values, *jax.tree_util.tree_leaves(self)]
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return self.loss(jnp, *values)
        double: Law = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64)[()], self)
        with np.errstate(over="ignore"):  # far outside its runs a law may give inf
            return double.loss(np, *(np.asarray(value, np.float64)[()] for value in values))

    def _arguments(self, args: tuple[ArrayLike, ...], kwargs: dict[str, ArrayLike]) -> list[ArrayLike]:
        named = dict(zip(self.inputs, args))
        wrong = [key for key in kwargs if key not in self.inputs or key in named]
        if wrong or len(args) > len(self.inputs) or len(named) + len(kwargs) != len(self.inputs):
            hint = nearest(wrong[0], self.inputs) if wrong else ""
            got = ", ".join([f"{len(args)} positional", *kwargs])
            raise LawError(f"{self.name}: got arguments ({got}), wanted ({', '.join(self.inputs)}).{hint}")
        return [named[key] if key in named else kwargs[key] for key in self.inputs]

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """The declared parameters by name, in the order of the fields."""
        return {f.name: f.metadata[KEY] for f in dataclasses.fields(cls) if KEY in f.metadata}

    @classmethod
    def given(cls) -> tuple[str, ...]:
        """Names of the fields that a fit does not change: the laws nested in this law."""
        return tuple(f.name for f in dataclasses.fields(cls) if KEY not in f.metadata)

    def values(self) -> dict[str, Values]:
        """The fitted parameters by name."""
        return {name: getattr(self, name) for name in self.parameters()}

    @classmethod
    def unpack(
        cls,
        xp: ArrayModule,
        theta: Sequence[Values] | np.ndarray,
        setting: FitSetting,
        given: Mapping[str, "Law"] | None = None,
    ) -> Self:
        """The law at the coordinates theta[0], theta[1], ... (a sequence over parameters; traceable)."""
        values = cls._decode(xp, dict(zip(cls.parameters(), theta)), setting)
        return cls(**values, **(given or {}))

    def pack(self, setting: FitSetting) -> np.ndarray:
        """The coordinates of this law, float64 [..., parameters]; a stack of laws keeps its leading axes."""
        values: dict[str, Values] = {name: np.asarray(value, np.float64) for name, value in self.values().items()}
        coordinates = self._encode(np, values, setting)
        return np.stack(np.broadcast_arrays(*(coordinates[name] for name in self.parameters())), axis=-1)

    @classmethod
    def _decode(cls, xp: ArrayModule, coordinates: dict[str, Values], setting: FitSetting) -> dict[str, Values]:
        """Values of the parameters by name; a form whose coordinates mix parameters overrides this and _encode."""
        values: dict[str, Values] = {}
        for name in cls._order(list(coordinates)):
            values[name] = cls.parameters()[name].decode(xp, coordinates[name], values, setting)
        return values

    @classmethod
    def _encode(cls, xp: ArrayModule, values: dict[str, Values], setting: FitSetting) -> dict[str, Values]:
        return {name: p.encode(xp, values[name], values, setting) for name, p in cls.parameters().items()}

    @classmethod
    def _order(cls, names: list[str]) -> Iterator[str]:
        """The names, each after those that its decoding needs."""
        left, known = names, set(cls.parameters()) - set(names)
        while left:
            ready = [name for name in left if set(cls.parameters()[name].needs) <= known]
            if not ready:
                raise LawError(f"{cls.name}: the parameters {', '.join(left)} need each other in a circle.")
            yield from ready
            known |= set(ready)
            left = [name for name in left if name not in ready]

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready description: {"form": name, "parameters": {...}, and nested laws by field}."""
        tree: dict[str, object] = {"form": self.name, "parameters": {k: float(v) for k, v in self.values().items()}}
        return tree | {name: getattr(self, name).to_dict() for name in self.given()}

    def save(self, path: str | os.PathLike, **extra: object) -> None:
        """Writes the law as JSON, atomically; `extra` (status, intervals, options) is added beside it."""
        write_json(path, {"format": FORMAT} | self.to_dict() | extra)


def _flatten(law: Law) -> tuple[list[tuple[jax.tree_util.GetAttrKey, object]], None]:
    return [(jax.tree_util.GetAttrKey(f.name), getattr(law, f.name)) for f in dataclasses.fields(law)], None


def _unflatten(cls: type[Law], aux: None, children: Iterable[object]) -> Law:
    law = object.__new__(cls)
    for field, child in zip(dataclasses.fields(cls), children):
        object.__setattr__(law, field.name, child)
    return law


def read_json(path: str | os.PathLike) -> Any:
    """Parses a JSON file. Raises LawError if it is missing or malformed."""
    try:
        return loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LawError(f"{path}: cannot be read ({error.strerror}); wanted a law file in JSON.") from error
    except ValueError as error:
        raise LawError(f"{path}: not valid JSON ({error}); wanted a law file written by launch.fit.") from error


def write_json(path: str | os.PathLike, tree: object) -> None:
    """Writes JSON, atomically. Raises LawError if the file cannot be written."""
    try:
        atomic_write(Path(path), json.dumps(tree, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise LawError(f"{path}: cannot be written ({error.strerror}).") from error
