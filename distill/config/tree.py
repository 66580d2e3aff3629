"""Trees of frozen config dataclasses: strict building, reading and writing, and the fingerprint that names a run.

A config file (configs/*.py) returns a plain tree; `build` turns it into frozen, hashable dataclasses or raises an
error that names the path, what it got, what it wanted and the nearest valid name. Standard library only.
"""

import dataclasses
import decimal
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from distill.errors import ConfigError
from distill.system.files import loads

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = DataclassInstance | type[DataclassInstance]  # `dataclasses.is_dataclass` is true of both

T = TypeVar("T")


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the valid name closest to a misspelt one, or '' where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


class Identity:
    """Marks for dataclass fields: what a run *is* enters its fingerprint, how it is executed does not."""

    excluded: Mapping[str, Any] = types.MappingProxyType({"identity": False})


def _hints(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls)


def _type_name(hint: object) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a tuple of {typing.get_args(hint)[0].__name__}"
    names: dict[object, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint) or str(getattr(hint, "__name__", hint))


def _convert(value: Any, hint: object, path: str) -> object:
    """The value converted to its field's type; ConfigError if the conversion would change or lose something."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        item = typing.get_args(hint)[0]
        return tuple(_convert(v, item, f"{path}[{i}]") for i, v in enumerate(value))
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        suggestion = nearest(str(value), [str(v) for v in typing.get_args(hint)])
        raise ConfigError(f"{path}: got {value!r}, wanted {_type_name(hint)}.{suggestion}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, bool, str) and type(value) is hint:
        return value
    raise ConfigError(f"{path}: got {value!r} ({type(value).__name__}), wanted {_type_name(hint)}")


def build(cls: type[T], tree: Mapping[str, object], path: str = "config") -> T:
    """A frozen dataclass from a plain tree, strictly.

    Raises ConfigError for an unknown name (with the nearest valid one), a wrong type or an impossible value.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: got {tree!r}, wanted a tree with the fields of {cls.__name__}")
    hints = _hints(cls)
    for name in tree:
        if name not in hints:
            raise ConfigError(f"{path}.{name}: there is no such field.{nearest(name, hints)}")
    values = {name: _convert(value, hints[name], f"{path}.{name}") for name, value in tree.items()}
    try:
        return cls(**values)
    except ConfigError as error:  # a class knows its fields, but not its own path
        raise (error if path in str(error) else ConfigError(f"{path}: {error}")) from None


def paths(cls: type, prefix: str = "") -> Iterator[str]:
    """The dotted path of every leaf field of a config class, in the order of the dataclasses."""
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from paths(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name


def parse(cls: type, path: str, text: str) -> Any:
    """The value that a command line's `--config.PATH=TEXT` means for that field of `cls`.

    Numbers may be written 250_000, 2.5e5, 250K, 1.5B; tuples as comma-separated items. Raises ConfigError.
    """
    where = f"config.{path}"
    hint: object = cls
    for i, name in enumerate(path.split(".")):
        if not dataclasses.is_dataclass(hint) or name not in _hints(typing.cast(type, hint)):
            known = _hints(typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else {}
            at = ".".join(["config", *path.split(".")[:i]])
            raise ConfigError(f"{where}: {at} has no field {name!r} (value {text!r}).{nearest(name, known)}")
        hint = _hints(typing.cast(type, hint))[name]
    if dataclasses.is_dataclass(hint):
        inside = ", ".join(_hints(typing.cast(type, hint)))
        raise ConfigError(f"{where}: got {text!r} for a group of fields; set one of {inside}")
    return _parse_text(text, hint, where)


def _parse_text(text: str, hint: object, where: str) -> object:
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if hint is int:
            return parse_count(text)
        if hint is float:
            return parse_number(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: got {text!r}, wanted {_type_name(hint)}") from None
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_parse_text(part.strip(), item, where) for part in text.split(",") if part.strip())
    return _convert(text, hint, where)


_SCALES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MOST_DIGITS = 30  # before the point; int('1e999999999') would take all memory


def _exact(text: str) -> decimal.Decimal:
    """A decimal with underscores, an exponent or a suffix of `_SCALES`; ValueError otherwise."""
    text = text.strip()
    scale = _SCALES.get(text[-1:].upper(), 1)
    try:
        return decimal.Decimal(text[:-1] if scale > 1 else text) * scale
    except ArithmeticError:  # InvalidOperation, Overflow
        raise ValueError(text) from None


def parse_count(text: str) -> int:
    """A whole number: 250_000 = 2.5e5 = 250K, 1.005B exactly. Raises ValueError for anything else."""
    value = _exact(text)
    if not value.is_finite() or value.adjusted() > _MOST_DIGITS or value % 1:
        raise ValueError(text)
    return int(value)


def parse_number(text: str) -> float:
    """A number: 0.5, 1e9, 1.5B, 546M, 7_000_000, inf. Raises ValueError for anything else."""
    return float(_exact(text))


def replace(config: T, path: str, value: object) -> T:
    """The config with the field at a dotted path changed; its checks run again."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: replace(getattr(config, name), rest, value) if rest else value})  # type: ignore


def to_flat(config: "Config", prefix: str = "") -> dict[str, object]:
    """Every field as {'a.b.c': value}, in the order of the dataclasses."""
    flat: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= to_flat(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat


def to_text(config: "Config") -> str:
    """`key = value` lines with JSON values, as saved beside every checkpoint; `from_text` reads them back."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in to_flat(config).items())


def from_text(cls: type[T], text: str, where: str = "config.txt") -> T:
    """The config that `to_text` wrote; lines that start with # are skipped. Raises ConfigError."""
    tree: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, separator, value = line.partition(" = ")
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{where}, line {number}: got {line!r:.200}, but {parent!r} is a value above")
        try:
            node[last] = loads(value)
        except (ValueError, TypeError):
            raise ConfigError(f"{where}, line {number}: got {line!r}, wanted `key = JSON value`") from None
        if not separator:
            raise ConfigError(f"{where}, line {number}: got {line!r}, wanted `key = JSON value`")
    return build(cls, tree, where)


def identity(config: "Config", prefix: str = "") -> Iterator[tuple[str, object]]:
    """The fields that define a run and differ from the defaults of their own class."""
    for field in dataclasses.fields(config):
        if field.metadata.get("identity", True):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                yield from identity(value, f"{prefix}{field.name}.")
            elif value != field.default:
                yield prefix + field.name, value


def fingerprint(config: "Config") -> str:
    """Twelve hex digits that identify this run.

    Only fields that differ from their defaults are hashed, without paths, logging or device fields, and a teacher
    enters by its own fingerprint; so a new field whose default is the old behaviour changes no fingerprint.
    """
    return digest(sorted(identity(config)))


def digest(items: Sequence[object]) -> str:
    """Twelve hex digits of a list of JSON values."""
    return hashlib.sha256(json.dumps(items, separators=(",", ":")).encode()).hexdigest()[:12]
