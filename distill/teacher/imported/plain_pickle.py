"""Reads pickles that hold nothing but plain values and arrays, as data: no name in them is looked up or called.

MaxText writes its records so, with NumPy, and Megatron-LM its logits, with torch.save. A pickle is a program for a
small stack machine; `pickletools` takes it apart without running it, and of its instructions those are followed that
make dicts, lists, tuples, numbers, texts, bytes, and arrays (from the three forms in which NumPy writes them, and the
two in which torch does, whose contents lie beside the pickle). Everything else is refused by name.
"""

import math
import pickletools
from collections.abc import Mapping
from typing import Final

import ml_dtypes
import numpy as np

from distill.teacher.imported.rows import BadRow

_MARK: Final = object()
_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_MOST, _DEEPEST = 1 << 20, 32  # values of a record with all that are named twice, and containers inside each other
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


# torch's kinds of storage; an untyped one is bytes, and the tensor names its dtype.
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
_UNTYPED = ("torch.storage", "UntypedStorage")
_UNTYPED_DTYPES = {"uint16": "u2", "uint32": "u4", "uint64": "u8"}


class _Name(tuple[str, str]):
    """A module and a name in it, which stay words."""


class _Array:
    """An array whose state is not known yet, or a dtype."""

    def __init__(self, dtype: np.dtype | None = None):
        self.dtype = dtype
        self.value: np.ndarray = np.zeros(0)


class _Storage:
    """What a tensor is a view of: bytes, and their dtype, None where the tensor has to name it."""

    def __init__(self, content: bytes, dtype: np.dtype | None):
        self.content, self.dtype = content, dtype


def load(content: bytes, storages: Mapping[str, bytes] | None = None) -> object:
    """The value of a pickle of plain values and arrays; `storages` are the contents of torch's tensors, by their keys.

    Raises BadRow for anything else.
    """
    try:
        return _Resolver().value(_run(content, storages or {}))
    except BadRow:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise BadRow(f"a record is no pickle of arrays ({error!r:.100})") from None


def _run(content: bytes, storages: Mapping[str, bytes]) -> object:
    stack: list[object] = []
    memo: dict[int, object] = {}
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack[-1]
        if name in _LITERALS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif name == "BINPERSID":
            stack.append(_stored(stack.pop(), storages))
        else:
            _step(name, argument, stack)
    raise BadRow("a record is a pickle that is cut off")


def _step(name: str, argument: object, stack: list[object]) -> None:
    """One instruction that makes a value of others."""
    if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)
    elif name in ("TUPLE", "SETITEMS", "APPENDS"):
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        values = stack[at + 1 :]
        del stack[at:]
        if name == "TUPLE":
            stack.append(tuple(values))
        else:
            _extend(stack[-1], values)
    elif name in ("SETITEM", "APPEND"):
        count = 2 if name == "SETITEM" else 1
        values = stack[-count:]
        del stack[-count:]
        _extend(stack[-1], values)
    elif name == "GLOBAL":
        stack.append(_Name(str(argument).split(" ", 1)))
    elif name == "STACK_GLOBAL":
        words = stack[-2:]
        del stack[-2:]
        stack.append(_Name(str(word) for word in words))
    elif name == "REDUCE":
        given, function = stack.pop(), stack.pop()
        stack.append(_made(function, given))
    elif name == "BUILD":
        state = stack.pop()
        _build(stack[-1], state)
    else:
        raise BadRow(f"a record is a pickle with the instruction {name}, wanted one of plain values and arrays")


def _extend(target: object, values: list[object]) -> None:
    if isinstance(target, dict):
        target |= dict(zip(values[::2], values[1::2]))
    elif isinstance(target, list):
        target += values
    else:
        raise BadRow(f"a record is a pickle that extends {type(target).__name__}")


def _made(function: object, given: object) -> object:
    """What NumPy's constructors make of plain arguments; no other function is known here."""
    if isinstance(function, _Name) and isinstance(given, tuple):
        module, name = function
        if (module, name) == ("numpy", "dtype"):
            kind = given[0]
            if isinstance(kind, _Name) and kind == ("ml_dtypes", "bfloat16"):
                return _Array(np.dtype(ml_dtypes.bfloat16))
            return _Array(_number(kind))
        if module in _CORES and name == "_reconstruct":
            return _Array()
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return _tensor(given)
        if (module, name) == ("collections", "OrderedDict") and not given:
            return {}
        if module in _NUMERIC and name == "_frombuffer" and isinstance(given[1], _Array):
            made = _Array()
            _fill(made, given[2], given[1], given[3] == "F", given[0])
            return made
    raise BadRow(f"a record is a pickle that calls {function!r:.80}, wanted plain values and arrays")


def _stored(key: object, storages: Mapping[str, bytes]) -> _Storage:
    """The storage that torch names by ('storage', kind, key, device, elements)."""
    if isinstance(key, tuple) and len(key) == 5 and key[0] == "storage" and isinstance(key[1], _Name):
        (module, kind), name = key[1], key[2]
        dtype = _STORAGES.get(kind, "") if module == "torch" else ""
        if name in storages and (dtype or key[1] == _UNTYPED):
            return _Storage(storages[str(name)], np.dtype(dtype) if dtype else None)
    raise BadRow(f"a record is a pickle that names {key!r:.80}, wanted a storage of torch.save beside it")


def _tensor(given: tuple[object, ...]) -> _Array:
    """(storage, offset, shape, strides, ...) in elements, as an array; the seventh is the dtype where untyped."""
    storage, offset, shape, strides = given[:4]
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise BadRow("a record holds a tensor without a storage, wanted one of torch.save")
    dtype = storage.dtype
    if dtype is None:
        named = given[6] if len(given) > 6 else None
        dtype = np.dtype(_UNTYPED_DTYPES[named[1]] if isinstance(named, _Name) and named[0] == "torch" else "")
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise BadRow(f"a record holds a tensor of the shape {shape!r:.40} with the strides {strides!r:.40}")
    if math.prod(shape) * dtype.itemsize > len(storage.content):
        raise BadRow(f"a record holds a tensor of the shape {shape!r:.40} in {len(storage.content):,} bytes")
    made, size = _Array(), dtype.itemsize
    if math.prod(shape):
        made.value = np.ndarray(shape, dtype, storage.content, int(str(offset)) * size, [n * size for n in strides])
    else:
        made.value = np.zeros(shape, dtype)
    return made


def _number(kind: object) -> np.dtype:
    dtype = np.dtype(kind) if isinstance(kind, str) and len(kind) < 8 else np.dtype(object)
    if dtype.kind not in "biuf":
        raise BadRow(f"a record holds an array of {kind!r:.40}, wanted numbers")
    return dtype


def _build(target: object, state: object) -> None:
    if not isinstance(target, _Array) or not isinstance(state, tuple):
        raise BadRow("a record is a pickle that sets the state of something other than an array")
    if target.dtype is not None:  # (version, byte order, ...)
        if state[1] == ">":
            target.dtype = target.dtype.newbyteorder(">")
        return
    _, shape, dtype, fortran, content = state
    _fill(target, shape, dtype, bool(fortran), content)


def _fill(target: _Array, shape: object, dtype: object, fortran: bool, content: object) -> None:
    if not isinstance(dtype, _Array) or dtype.dtype is None or not isinstance(content, (bytes, bytearray)):
        raise BadRow("a record holds an array of objects, wanted numbers")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRow(f"a record holds an array of the shape {shape!r:.40}")
    target.value = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran else "C")


class _Resolver:
    """Puts arrays in their places, in a copy of bounded size: a pickle may name a list in itself, or very often."""

    def __init__(self) -> None:
        self._count = 0

    def value(self, value: object, depth: int = 0) -> object:
        """The value; names and dtypes alone are nothing that a record may hold."""
        self._count += 1
        if self._count > _MOST or depth > _DEEPEST:
            raise BadRow(f"a record is a pickle of over {_MOST:,} values or {_DEEPEST} levels, wanted arrays")
        if isinstance(value, dict):
            return {key: self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)) and not isinstance(value, _Name):
            return [self.value(item, depth + 1) for item in value]
        if isinstance(value, _Array) and value.dtype is None:
            return value.value
        if isinstance(value, (_Name, _Array, _Storage)) or value is _MARK:
            raise BadRow("a record holds a name, wanted plain values and arrays")
        return value
