"""DistillKit's packed log-probabilities: exact values, a polynomial, quantised residuals, and bit-packed ids.

The settings are compression_config.yaml, which `distillkit.sample_logits_vllm` writes beside its parquet files. Bits
stand from the highest down. With delta_encoding each value but the first is its difference to the one before it.
"""

import dataclasses
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.teacher.imported.rows import BadRow

_DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_MOST = 1 << 20  # entries of a position, or elements of a bin; more are a damaged config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """Residuals of some entries: `count` whole numbers of `bits` bits, times a scale of `dtype`."""

    dtype: np.dtype
    bits: int
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """How the bytes of a position are laid out; `of` reads it from the settings."""

    vocab_size: int
    k: int
    exact: int
    exact_dtype: np.dtype
    terms: tuple[int | str, ...]  # powers, or 'sqrt' and 'exp'
    term_dtype: np.dtype
    bins: tuple[Bin, ...]
    delta: bool
    unit: bool  # whether the polynomial's variable runs from 0 to 1

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> "Codec":
        """The codec of a compression_config.yaml. Raises BadRow for settings that it cannot have."""
        terms = settings.get("polynomial_terms") or []
        bins = settings.get("residual_bins") or []
        if not isinstance(terms, list) or not isinstance(bins, list):
            raise BadRow("polynomial_terms and residual_bins are no lists")
        codec = cls(
            vocab_size=_number(settings, "d", 2**31),
            k=_number(settings, "k", _MOST),
            exact=_number(settings, "exact_k", _MOST, least=0),
            exact_dtype=_dtype(settings, "exact_dtype"),
            terms=tuple(_term(term) for term in terms),
            term_dtype=_dtype(settings, "term_dtype"),
            bins=tuple(_bin(entry) for entry in bins),
            delta=bool(settings.get("delta_encoding", True)),
            unit=bool(settings.get("normalize_t", False)),
        )
        if codec.exact > codec.k or sum(b.count for b in codec.bins) > codec.k - codec.exact:
            raise BadRow("exact_k and the residual bins hold more than k entries")
        return codec

    @property
    def index_bits(self) -> int:
        return max(int(np.ceil(np.log2(np.float32(self.vocab_size)))), 1)

    def unpack(
        self, values: NDArray[np.uint8], indices: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Log-probabilities and ids [T, k] of bytes [T, ...]. Raises BadRow where the bytes do not fit."""
        sizes = [self.exact * self.exact_dtype.itemsize, len(self.terms) * self.term_dtype.itemsize]
        for b in self.bins:
            sizes += [b.dtype.itemsize, -(-b.bits * b.count // 8)]
        wanted = (sum(sizes), -(-self.k * self.index_bits // 8))
        if values.ndim != 2 or indices.ndim != 2 or (values.shape[1], indices.shape[1]) != wanted:
            raise BadRow(
                f"bytes of shape {values.shape} and {indices.shape}, wanted {wanted[0]} and {wanted[1]} a position by "
                "compression_config.yaml; give the config that the files were written with"
            )
        parts = iter(np.split(values, np.cumsum(sizes)[:-1], axis=1))
        exact, coefficients = _view(next(parts), self.exact_dtype), _view(next(parts), self.term_dtype)
        rest = np.zeros((len(values), self.k - self.exact), np.float32)
        at = 0
        for b in self.bins:
            scale, packed = _view(next(parts), b.dtype), next(parts)
            rest[:, at : at + b.count] = _signed(_bits(packed, b.bits, b.count), b.bits) * scale
            at += b.count
        if self.terms:
            rest = (coefficients @ self._powers().T).astype(np.float32) + rest
        log_probs = np.concatenate([exact, rest], axis=1)
        if self.delta:
            log_probs = np.cumsum(log_probs, axis=1, dtype=np.float32)
        return log_probs, _bits(indices, self.index_bits, self.k)

    def _powers(self) -> NDArray[np.float32]:
        """The polynomial's terms at each entry [k - exact, terms]."""
        count = self.k - self.exact
        at = (np.linspace(0, 1, count) if self.unit else np.arange(count)).astype(np.float32)
        functions = {"sqrt": np.sqrt, "exp": np.exp}
        columns = [np.asarray(functions[t](at) if isinstance(t, str) else at**t) for t in self.terms]
        return np.stack(columns, axis=1).astype(self.term_dtype).astype(np.float32)


def _view(part: NDArray[np.uint8], dtype: np.dtype) -> NDArray[np.float32]:
    return np.ascontiguousarray(part).view(dtype).astype(np.float32)


def _bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Whole numbers [T, count] of `bits` bits each, the highest bit first."""
    flat = np.unpackbits(packed, axis=1, count=bits * count).reshape(len(packed), count, bits)
    return flat.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def _signed(numbers: NDArray[np.int64], bits: int) -> NDArray[np.float32]:
    return (2 * numbers - 1 if bits == 1 else numbers - 2 ** (bits - 1)).astype(np.float32)


def _number(settings: Mapping[str, object], name: str, most: int, least: int = 1) -> int:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadRow(f"{name} is {value!r:.40}, wanted {least} to {most}")
    return value


def _dtype(settings: Mapping[str, object], name: str) -> np.dtype:
    value = settings.get(name, "float32")
    if not isinstance(value, str) or value not in _DTYPES:
        raise BadRow(f"{name} is {value!r:.40}, wanted one of {', '.join(_DTYPES)}")
    return _DTYPES[value]


def _term(term: object) -> int | str:
    if term in ("sqrt", "exp"):
        return str(term)
    if isinstance(term, bool) or not isinstance(term, int) or not -64 <= term <= 64:
        raise BadRow(f"polynomial_terms hold {term!r:.40}, wanted powers, 'sqrt' or 'exp'")
    return term


def _bin(entry: object) -> Bin:
    if not isinstance(entry, Mapping):
        raise BadRow(f"residual_bins hold {entry!r:.40}, wanted objects")
    return Bin(
        dtype=_dtype(entry, "scale_dtype"),
        bits=_number(entry, "element_bits", 62),
        count=_number(entry, "num_elements", _MOST),
    )
