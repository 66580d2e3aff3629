"""Packs the teacher signals of one window into few bytes and unpacks them: NumPy, no loop over tokens.

A record is a sequence of streams, each preceded by its length (u32). Small symbols are Huffman-coded (raw deflate,
whose code tables adapt every few thousand symbols); incompressible bits are stored as they are.

A window of sparse signals holds, for each of its S tokens, ids of the vocabulary in rising rank (the file ORDER maps
ranks to ids, frequent ids first). A gap g between ranks is stored as floor(log2(g)), Huffman-coded, followed by the
bits below its leading one, plain. Symbols are stored column by column (all tokens' first ids, then all second ids),
because a column's symbols are similar to each other.
"""

import struct
import zlib
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.errors import SignalError

# Probabilities are stored as round(LEVELS p^(1/POWER)): the error in p grows with p^(2/3), so the relative error is
# smallest for likely tokens, which dominate the gradient. Measured: docs/results/signals.md.
LEVELS, POWER = 160, 3
REST_STEP = 0.02  # quantisation step of -log(mass of the tail)
REST_MOST = 1023
# Part of every recipe, because a store written with other constants would be decoded to wrong values.
CONSTANTS = {"levels": LEVELS, "power": POWER, "rest_step": REST_STEP, "rest_most": REST_MOST}
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
_MISMATCH = "the record does not match the codec; the file is corrupt or from another version"


class Ragged(NamedTuple):
    """Entries of S tokens: the first `lengths[s]` of row s are valid, and ranks rise along a row."""

    lengths: NDArray[np.integer]  # [S]
    ranks: NDArray[np.integer]  # [S, K]
    symbols: NDArray[np.integer] | None = None  # [S, K], below 2^16; None for kinds that store ids only
    rest: NDArray[np.integer] | None = None  # [S], below 2^16: the mass of the tokens that are left out


def pack(window: Ragged) -> bytes:
    """Encodes a window as bytes; ranks must be below 2^24."""
    size, most = window.ranks.shape
    inside = np.arange(most)[:, None] < window.lengths[None]
    ranks = np.pad(window.ranks.astype(np.int64), ((0, 0), (1, 0)), constant_values=-1)
    gaps = np.diff(ranks, axis=1).T[inside]
    bits = np.frexp(gaps)[1].astype(np.int32) - 1  # the position of the leading one; a gap is at least 1
    streams = [_small(window.lengths), zip_bytes(bits.astype(np.uint8)), _plain_bits(gaps - (1 << bits), bits)]
    streams += [b"" if window.symbols is None else _small(window.symbols.T[inside])]
    streams += [b"" if window.rest is None else _small(window.rest)]
    return join(streams)


def unpack(payload: bytes, size: int, most: int) -> Ragged:
    """Decodes a window of `size` tokens that `pack` wrote into arrays [size, most]; entries past a length are empty.

    Raises SignalError for bytes that `pack` cannot have written.
    """
    packed, classes, plain, symbols, rest = split(payload, 5)
    lengths = _unsmall(packed, size)
    if lengths.max(initial=0) > most:
        raise SignalError(f"a record of up to {lengths.max()} entries a token, wanted at most {most}: {_MISMATCH}")
    full = not size or int(lengths.min()) == most
    count = int(lengths.sum())
    bits = unzip_bytes(classes, count)
    gaps = _from_plain_bits(plain, bits)
    if not full:
        inside = np.arange(most)[:, None] < lengths[None]

    def to_table(values: NDArray[np.integer]) -> NDArray[np.integer]:
        if full:
            return values.reshape(most, size)
        table = np.zeros((most, size), values.dtype)
        table[inside] = values
        return table

    ranks = np.cumsum(to_table(gaps), axis=0, dtype=np.int32) - 1
    table = to_table(_unsmall(symbols, count)).T if symbols else None
    return Ragged(lengths, ranks.T, table, _unsmall(rest, size) if rest else None)


def quantise(log_probs: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Quantises probabilities to symbols 1 to LEVELS."""
    return np.clip(np.rint(np.exp(log_probs / POWER) * LEVELS), 1, LEVELS).astype(np.uint8)


def quantise_rest(log_rest: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Quantises the log of the tail's mass; the symbol REST_MOST means that the tail has no mass."""
    return np.clip(np.rint(-log_rest / REST_STEP), 0, REST_MOST).astype(np.uint16)


_LOG_LEVEL = (POWER * np.log(np.maximum(np.arange(LEVELS + 1), 1) / LEVELS)).astype(np.float32)
_LEVEL = np.exp(_LOG_LEVEL)


def log_probs(symbols: NDArray[np.integer], rest: NDArray[np.integer]) -> NDArray[np.float32]:
    """Decodes symbols (0: empty entry) to log p [S, K], normalised so that p and the tail's mass sum to one."""
    if symbols.max(initial=0) > LEVELS or rest.max(initial=0) > REST_MOST:
        raise SignalError(f"a record with levels beyond {LEVELS} or rests beyond {REST_MOST}: {_MISMATCH}")
    level = _LEVEL.copy()
    level[0] = 0
    kept = -np.expm1(-REST_STEP * np.maximum(rest.astype(np.float64), 0.5))
    kept[rest == REST_MOST] = 1
    shift = np.log(kept) - np.log(level[symbols].sum(axis=1, dtype=np.float64))
    return _LOG_LEVEL[symbols] + shift.astype(np.float32)[:, None]


def pack_dense(values: NDArray[np.floating] | NDArray[np.int32]) -> bytes:
    """Encodes an array of floats or of int32: the highest byte of each Huffman-coded, the others plain."""
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize)
    return join([zip_bytes(planes[:, -1]), *(planes[:, i].tobytes() for i in range(planes.shape[1] - 1))])


def unpack_dense(payload: bytes, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[np.floating]:
    """Decodes the array that `pack_dense` wrote. Raises SignalError where the bytes do not fit the shape."""
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
    """The inverse of `join`. Raises SignalError unless the payload is exactly `count` streams."""
    streams, at = [], 0
    for _ in range(count):
        size = struct.unpack_from("<I", payload, at)[0] if at + 4 <= len(payload) else len(payload)
        streams.append(payload[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(payload):
        raise SignalError(f"a record of {len(payload)} bytes does not hold {count} streams: {_MISMATCH}")
    return streams


def zip_bytes(symbols: NDArray[np.uint8]) -> bytes:
    """Huffman-codes bytes, with a new code table for every 8192 of them."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, 7, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(symbols.tobytes()) + packer.flush()


def unzip_bytes(stream: bytes, count: int) -> NDArray[np.uint8]:
    try:
        # Decompresses at most one byte more than wanted, which is enough to detect a stream that is too long.
        return _sized(np.frombuffer(zlib.decompressobj(-15).decompress(stream, count + 1), np.uint8), count)
    except zlib.error as error:
        raise SignalError(f"a stream cannot be unpacked ({error}): {_MISMATCH}") from None


def _small(symbols: NDArray[np.integer]) -> bytes:
    """Huffman-codes symbols below 2^16: their low bytes, and a second stream of high bytes where any is nonzero."""
    low = zip_bytes((symbols & 255).astype(np.uint8))
    high = zip_bytes((symbols >> 8).astype(np.uint8)) if symbols.size and symbols.max() > 255 else b""
    return join([low, high])


def _unsmall(stream: bytes, count: int) -> NDArray[np.integer]:
    low, high = split(stream, 2)
    symbols = unzip_bytes(low, count)
    return symbols | unzip_bytes(high, count).astype(np.uint16) << 8 if high else symbols


def _plain_bits(values: NDArray[np.integer], widths: NDArray[np.integer]) -> bytes:
    """Each value in its own number of bits, lowest bit first."""
    starts = np.cumsum(widths) - widths
    bit = np.arange(int(widths.sum())) - np.repeat(starts, widths)
    return np.packbits(((np.repeat(values, widths) >> bit) & 1).astype(np.uint8), bitorder="little").tobytes()


def _from_plain_bits(stream: bytes, widths: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The values that `_plain_bits` wrote, with their leading ones restored."""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if len(stream) != -(-total // 8) or (len(widths) and int(widths.max()) > 24):
        raise SignalError(f"a record with {len(stream)} bytes of plain bits, wanted {-(-total // 8)}: {_MISMATCH}")
    padded = np.frombuffer(stream + b"\0\0\0\0", np.uint8)
    # words[i] is the 32 bits from byte i on. A field has at most 24 bits and starts within the first 8 of its word.
    words = np.ndarray(len(stream) + 1, "<u4", padded, strides=(1,))
    starts = ends - widths
    one = np.left_shift(np.uint32(1), widths, dtype=np.uint32)
    fields = words[starts >> 3] >> (starts & 7).astype(np.uint32)
    return ((fields & (one - np.uint32(1))) | one).astype(np.int32)


def _sized(values: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    if len(values) != count:
        raise SignalError(f"a stream of {len(values)} symbols, wanted {count}: {_MISMATCH}")
    return values
