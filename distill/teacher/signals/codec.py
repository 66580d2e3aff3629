"""Teacher signals of one window as few bytes, and back: NumPy, whole windows at a time, no loop over tokens.

Streams stand one after the other, each behind its length (u32). Small symbols are Huffman-coded (raw deflate, whose
tables follow the data every few thousand symbols); what is as good as random is kept in plain bits.

A window of sparse signals holds, for each of its S tokens, some ids of the vocabulary in rising rank (`order` says
which id has which rank: frequent ones first). A gap g between ranks is written as floor(log2(g)), Huffman-coded, and
the bits below its leading one, plain. Symbols of all tokens' first ids come first, then those of all second ids, and
so on, for they are alike.
"""

import struct
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.errors import SignalError

# Probabilities are kept as round(LEVELS p^(1/POWER)): the error in p grows with p^(2/3), so that likely tokens, whose
# errors weigh most in a gradient, are the most exact. Measured: docs/guide/signals.md.
LEVELS, POWER = 160, 3
REST_STEP = 0.02  # of -log of the mass of the tail
REST_MOST = 1023
# Stands in every recipe: a store of other numbers would be read wrongly.
NUMBERS = {"levels": LEVELS, "power": POWER, "rest_step": REST_STEP, "rest_most": REST_MOST}
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


class Ragged(NamedTuple):
    """Of each of S tokens its first `lengths` entries count; ids rise along a row."""

    lengths: NDArray[np.integer]  # [S]
    ranks: NDArray[np.integer]  # [S, K]
    symbols: NDArray[np.integer] | None = None  # [S, K], below 2^16; None where an id alone says all
    rest: NDArray[np.integer] | None = None  # [S], below 2^16: the mass of what is left out


def pack(window: Ragged) -> bytes:
    """The bytes of a window; ranks are below 2^24."""
    size, most = window.ranks.shape
    inside = np.arange(most)[:, None] < window.lengths[None]
    gaps = np.diff(window.ranks.astype(np.int64), axis=1, prepend=-1).T[inside]
    bits: NDArray[Any] = np.frexp(gaps)[1] - 1  # a gap of at least 1 has its leading one here
    streams = [_small(window.lengths), zip_bytes(bits.astype(np.uint8)), _plain_bits(gaps - (1 << bits), bits)]
    streams += [b"" if window.symbols is None else _small(window.symbols.T[inside])]
    streams += [b"" if window.rest is None else _small(window.rest)]
    return join(streams)


def unpack(payload: bytes, size: int, most: int) -> Ragged:
    """The window of `size` tokens that `pack` wrote, with `most` places a token; those beyond a length hold nothing."""
    packed, classes, plain, symbols, rest = split(payload, 5)
    lengths = _unsmall(packed, size)
    if lengths.max(initial=0) > most:
        raise SignalError(f"a record of up to {lengths.max()} entries a token, wanted {most}: it was written otherwise")
    full = not size or int(lengths.min()) == most
    count = int(lengths.sum())
    bits = unzip_bytes(classes, count)
    gaps = _from_plain_bits(plain, bits)
    if not full:
        inside = np.arange(most)[:, None] < lengths[None]

    def place(values: NDArray[Any]) -> NDArray[Any]:
        if full:
            return values.reshape(most, size)
        table = np.zeros((most, size), values.dtype)
        table[inside] = values
        return table

    ranks = np.cumsum(place(gaps), axis=0, dtype=np.int32) - 1
    found = place(_unsmall(symbols, count)).T if symbols else None
    return Ragged(lengths, ranks.T, found, _unsmall(rest, size) if rest else None)


def quantise(log_probs: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Probabilities as symbols, 1 to LEVELS."""
    return np.clip(np.rint(np.exp(log_probs / POWER) * LEVELS), 1, LEVELS).astype(np.uint8)


def quantise_rest(log_rest: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The log of the tail's mass as a symbol; the last one stands for none at all."""
    return np.clip(np.rint(-log_rest / REST_STEP), 0, REST_MOST).astype(np.uint16)


_LOG_LEVEL = (POWER * np.log(np.maximum(np.arange(LEVELS + 1), 1) / LEVELS)).astype(np.float32)
_LEVEL = np.exp(_LOG_LEVEL)


def log_probs(symbols: NDArray[np.integer], rest: NDArray[np.integer]) -> NDArray[np.float32]:
    """log p [S, K] from symbols (0 for an empty place), scaled so that p and the tail's mass add up to one."""
    if symbols.max(initial=0) > LEVELS or rest.max(initial=0) > REST_MOST:
        raise SignalError(f"a record with levels beyond {LEVELS} or rests beyond {REST_MOST}: it was written otherwise")
    level = _LEVEL.copy()
    level[0] = 0
    kept = -np.expm1(-REST_STEP * np.maximum(rest.astype(np.float64), 0.5))
    kept[rest == REST_MOST] = 1
    shift = np.log(kept) - np.log(level[symbols].sum(axis=1, dtype=np.float64))
    return _LOG_LEVEL[symbols] + shift.astype(np.float32)[:, None]


def pack_dense(values: NDArray[Any]) -> bytes:
    """An array of floats: the highest byte of each (sign and exponent) Huffman-coded, the others as they are."""
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize)
    return join([zip_bytes(planes[:, -1]), *(planes[:, i].tobytes() for i in range(planes.shape[1] - 1))])


def unpack_dense(payload: bytes, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    """The array that `pack_dense` wrote."""
    count = int(np.prod(shape))
    high, *low = split(payload, dtype.itemsize)
    planes = np.empty((count, dtype.itemsize), np.uint8)
    planes[:, -1] = unzip_bytes(high, count)
    for i, stream in enumerate(low):
        planes[:, i] = _sized(np.frombuffer(stream, np.uint8), count)
    return planes.reshape(-1).view(dtype).reshape(shape)


def join(streams: list[bytes]) -> bytes:
    return b"".join(part for stream in streams for part in (struct.pack("<I", len(stream)), stream))


def split(payload: bytes, count: int) -> list[bytes]:
    """The streams of `join`. Raises SignalError where they are not what this payload holds."""
    found, at = [], 0
    for _ in range(count):
        size = struct.unpack_from("<I", payload, at)[0] if at + 4 <= len(payload) else len(payload)
        found.append(payload[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(payload):
        raise SignalError(f"a record of {len(payload)} bytes does not hold {count} streams: it was written otherwise")
    return found


def zip_bytes(symbols: NDArray[np.uint8]) -> bytes:
    """Bytes, Huffman-coded with a new table every 8192 of them."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, 7, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(symbols.tobytes()) + packer.flush()


def unzip_bytes(stream: bytes, count: int) -> NDArray[np.uint8]:
    try:
        # One more than wanted tells a stream that is too long, which is not unpacked to its end.
        return _sized(np.frombuffer(zlib.decompressobj(-15).decompress(stream, count + 1), np.uint8), count)
    except zlib.error as error:
        raise SignalError(f"a stream cannot be unpacked ({error}): it was written otherwise") from None


def _small(symbols: NDArray[np.integer]) -> bytes:
    """Symbols below 2^16, Huffman-coded; a second stream where one byte is not enough."""
    low = zip_bytes((symbols & 255).astype(np.uint8))
    high = zip_bytes((symbols >> 8).astype(np.uint8)) if symbols.size and symbols.max() > 255 else b""
    return join([low, high])


def _unsmall(stream: bytes, count: int) -> NDArray[np.integer]:
    low, high = split(stream, 2)
    symbols = unzip_bytes(low, count)
    return symbols | unzip_bytes(high, count).astype(np.uint16) << 8 if high else symbols


def _plain_bits(values: NDArray[Any], widths: NDArray[Any]) -> bytes:
    """Each value in its own number of bits, the lowest first."""
    starts = np.cumsum(widths) - widths
    place = np.arange(int(widths.sum())) - np.repeat(starts, widths)
    return np.packbits(((np.repeat(values, widths) >> place) & 1).astype(np.uint8), bitorder="little").tobytes()


def _from_plain_bits(stream: bytes, widths: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The values that `_plain_bits` wrote, with their leading ones back in place."""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if len(stream) != -(-total // 8) or (len(widths) and int(widths.max()) > 24):
        raise SignalError(f"{len(stream)} bytes of plain bits, wanted {-(-total // 8)}: a record was written otherwise")
    padded = np.frombuffer(stream + b"\0\0\0\0", np.uint8)
    # At every byte the 32 bits that begin there: a field has at most 24 and starts within the first 8.
    words = np.ndarray(len(stream) + 1, "<u4", padded, strides=(1,))
    starts = ends - widths
    one = np.left_shift(np.uint32(1), widths, dtype=np.uint32)
    fields = words[starts >> 3] >> (starts & 7).astype(np.uint32)
    return ((fields & (one - np.uint32(1))) | one).astype(np.int32)


def _sized(values: NDArray[Any], count: int) -> NDArray[Any]:
    if len(values) != count:
        raise SignalError(f"a stream of {len(values)} symbols, wanted {count}: it was written otherwise")
    return values
