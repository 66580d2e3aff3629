"""The table that maps our parameters to names and shapes in a Hugging Face checkpoint; families change some names.

Letters are those of distill/types.py. 'hk d' is a matrix whose rows run over heads and their channels and whose
columns run over d. Our dims have the order of sharding.PARAM_SPECS. Layers are stacked in our parameters, and so are
the experts of a layer (a layout is that of one expert); both are separate in a checkpoint. Parameters of one name there
are parts of one fused tensor, in the order of this table.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from distill.config import ModelConfig
from distill.interop import families
from distill.interop.families import LAYER as _LAYER
from distill.interop.families import Family
from distill.interop.safetensors import Tensor
from distill.model.transformer import BLOCK_NORMS

# our parameter: (name in the checkpoint, dims in the checkpoint, our dims)
_TABLE = {
    "embed": ("model.embed_tokens.weight", "v d", "vd"),
    "blocks.attention_norm": (_LAYER + "input_layernorm.weight", "d", "d"),
    "blocks.query": (_LAYER + "self_attn.q_proj.weight", "hk d", "dhk"),
    "blocks.key": (_LAYER + "self_attn.k_proj.weight", "gk d", "dgk"),
    "blocks.value": (_LAYER + "self_attn.v_proj.weight", "gk d", "dgk"),
    "blocks.out": (_LAYER + "self_attn.o_proj.weight", "d hk", "hkd"),
    "blocks.query_norm": (_LAYER + "self_attn.q_norm.weight", "k", "k"),
    "blocks.key_norm": (_LAYER + "self_attn.k_norm.weight", "k", "k"),
    "blocks.query_bias": (_LAYER + "self_attn.q_proj.bias", "hk", "hk"),
    "blocks.key_bias": (_LAYER + "self_attn.k_proj.bias", "gk", "gk"),
    "blocks.value_bias": (_LAYER + "self_attn.v_proj.bias", "gk", "gk"),
    "blocks.out_bias": (_LAYER + "self_attn.o_proj.bias", "d", "d"),
    "blocks.feed_norm": (_LAYER + "post_attention_layernorm.weight", "d", "d"),
    "blocks.gate": (_LAYER + "mlp.gate_proj.weight", "f d", "df"),
    "blocks.up": (_LAYER + "mlp.up_proj.weight", "f d", "df"),
    "blocks.down": (_LAYER + "mlp.down_proj.weight", "d f", "fd"),
    "blocks.router": (_LAYER + "mlp.gate.weight", "x d", "dx"),
    "blocks.expert_gate": (_LAYER + "mlp.experts.{}.gate_proj.weight", "f d", "df"),
    "blocks.expert_up": (_LAYER + "mlp.experts.{}.up_proj.weight", "f d", "df"),
    "blocks.expert_down": (_LAYER + "mlp.experts.{}.down_proj.weight", "d f", "fd"),
    "blocks.router_bias": (_LAYER + "mlp.gate.bias", "x", "x"),
    "blocks.expert_gate_bias": (_LAYER + "mlp.experts.{}.gate_proj.bias", "f", "f"),
    "blocks.expert_up_bias": (_LAYER + "mlp.experts.{}.up_proj.bias", "f", "f"),
    "blocks.expert_down_bias": (_LAYER + "mlp.experts.{}.down_proj.bias", "d", "d"),
    "blocks.sink": (_LAYER + "self_attn.sinks", "h", "h"),
    "blocks.attention_post_norm": (_LAYER + "post_attention_layernorm.weight", "d", "d"),
    "blocks.feed_post_norm": (_LAYER + "post_feedforward_layernorm.weight", "d", "d"),
    "blocks.attention_norm_bias": (_LAYER + "input_layernorm.bias", "d", "d"),
    "blocks.feed_norm_bias": (_LAYER + "post_attention_layernorm.bias", "d", "d"),
    "blocks.gate_bias": (_LAYER + "mlp.gate_proj.bias", "f", "f"),
    "blocks.up_bias": (_LAYER + "mlp.up_proj.bias", "f", "f"),
    "blocks.down_bias": (_LAYER + "mlp.down_proj.bias", "d", "d"),
    "last_norm": ("model.norm.weight", "d", "d"),
    "last_norm_bias": ("model.norm.bias", "d", "d"),
    "head": ("lm_head.weight", "v d", "vd"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter: its name in the checkpoint, and how a checkpoint tensor becomes our array."""

    name: str  # with {} for the layer if the parameter is stacked, and another for the expert
    rows: str  # dims that form the rows of the checkpoint tensor
    columns: str
    ours: str
    sizes: dict[str, int]
    first: int = 0  # the row of the checkpoint tensor at which this part of it begins
    total: int = 0  # rows of the whole tensor; 0: this is all of it
    order: NDArray[np.int64] | None = None  # for each of our channels of a head the one there; None: the same
    factor: float = 1.0  # ours is what is stored times this
    offset: float = 0.0  # plus this

    @property
    def stacked(self) -> int:
        """How many of our array's first axes count tensors of a checkpoint: none, layers, or layers and experts."""
        return self.name.count("{}")

    @property
    def there(self) -> tuple[int, ...]:
        """The shape of the checkpoint tensor."""
        rows, *rest = self._own
        return (self.total or rows, *rest)

    @property
    def _own(self) -> tuple[int, ...]:
        """The shape of this part of it."""
        groups = [group for group in (self.rows, self.columns) if group]
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in groups)

    def row_range(self, index: tuple[slice, ...]) -> tuple[int, int]:
        """The checkpoint rows that hold the part `index` of our dims (without the layer)."""
        first = self.rows[0]
        start, stop, _ = index[self.ours.index(first)].indices(self.sizes[first])
        inner = math.prod(self.sizes[letter] for letter in self.rows[1:])
        return self.first + start * inner, self.first + stop * inner

    def import_part(self, rows: Tensor, index: tuple[slice, ...]) -> Tensor:
        """The part `index` of our array, from the rows that `row_range` named."""
        letters = self.rows + self.columns
        inner = [self.sizes[letter] for letter in letters[1:]]
        split = rows.reshape(-1, *inner).transpose([letters.index(letter) for letter in self.ours])
        if self.order is not None:
            split = np.take(split, self.order, axis=self.ours.index("k"))
        if self.factor != 1 or self.offset:
            split = (split.astype(np.float32) * np.float32(self.factor) + np.float32(self.offset)).astype(np.float32)
        rest = tuple(slice(None) if letter == self.rows[0] else part for letter, part in zip(self.ours, index))
        return split[rest]

    def export(self, array: Tensor) -> Tensor:
        """The rows of the checkpoint tensor that this is, from our array of one layer."""
        letters = self.rows + self.columns
        if self.order is not None:
            array = np.take(array, np.argsort(self.order), axis=self.ours.index("k"))
        if self.factor != 1 or self.offset:
            array = (array.astype(np.float32) - np.float32(self.offset)) / np.float32(self.factor)
        return array.transpose([self.ours.index(letter) for letter in letters]).reshape(self._own)


def _absent(config: ModelConfig) -> set[str]:
    """The parameters of the table that a model of this config does not have."""
    absent = {"head"} if config.tied else set()
    if not config.qk_norm:
        absent |= {"blocks.query_norm", "blocks.key_norm"}
    if not config.qkv_bias:
        absent |= {"blocks.query_bias", "blocks.key_bias", "blocks.value_bias"}
    if not config.out_bias:
        absent |= {"blocks.out_bias"}
    maps = {"blocks.gate", "blocks.up", "blocks.down"}
    routed = {"blocks.router", "blocks.expert_gate", "blocks.expert_up", "blocks.expert_down"}
    absent |= {name + part for name in (maps if config.experts else routed) for part in ("", "_bias")}
    if not config.gated:
        absent |= {"blocks.gate", "blocks.gate_bias"}
    if not config.feed_bias:
        absent |= {f"{name}_bias" for name in maps | routed}
    if not config.attention_sinks:
        absent |= {"blocks.sink"}
    norms = {f"blocks.{name}" for name in BLOCK_NORMS["sandwich"]}
    absent |= norms - {f"blocks.{name}" for name in BLOCK_NORMS[config.norms]}
    if config.norm_kind != "layer":
        absent |= {f"{name}_bias" for name in (*norms, "last_norm")}
    return absent


def _channels(config: ModelConfig, interleaved: bool) -> NDArray[np.int64] | None:
    """For each channel of a head here the one there: ours rotate as (i, i + K/2), theirs as halves or neighbours.

    None where both are the same.
    """
    if not interleaved and config.rotated == config.head_dim:
        return None
    half, pairs = config.rotated // 2, config.head_dim // 2
    firsts, seconds = (np.arange(half) * 2, np.arange(half) * 2 + 1) if interleaved else (
        np.arange(half), np.arange(half) + half)  # fmt: skip
    rest = np.arange(config.rotated, config.head_dim)
    order = np.concatenate([firsts, rest[: pairs - half], seconds, rest[pairs - half :]])
    return None if np.array_equal(order, np.arange(config.head_dim)) else order


_ROTATED = {f"blocks.{kind}{part}" for kind in ("query", "key") for part in ("", "_bias", "_norm")}


def layouts(
    config: ModelConfig, family: Family | None = None, folded: Mapping[str, float] | None = None
) -> dict[str, Layout]:
    """The layout of every parameter of a model with this config, by our name ('blocks.query').

    family: of the checkpoint; None: that as which such a model is exported. folded: what parameters are multiplied by
    when they are read (Family.folded).
    """
    family = family or families.fitting(config) or families.FAMILIES[0]
    sizes = {"v": config.vocab_size, "d": config.d_model, "x": config.experts}
    sizes["f"] = config.expert_dim if config.experts else config.ff_dim
    sizes |= {"h": config.n_heads, "g": config.kv_heads, "k": config.head_dim}
    absent, order = _absent(config), _channels(config, family.interleaved)
    found: dict[str, Layout] = {}
    filled: dict[str, int] = {}  # rows of each tensor that earlier parameters are
    for ours, (usual, there, dims) in _TABLE.items():
        if ours in absent:
            continue
        name = family.tensors.get(ours, usual)
        if ours in ("blocks.query_norm", "blocks.key_norm") and config.qk_norm_width == "all":
            there = dims = "hk" if "query" in ours else "gk"
        rows, _, columns = there.partition(" ")
        found[ours] = Layout(
            name, rows, columns, dims, sizes, first=filled.get(name, 0),
            order=order if ours in _ROTATED else None, factor=(folded or {}).get(ours, 1.0),
            offset=family.gain_offset if "norm" in ours else 0.0,
        )  # fmt: skip
        filled[name] = filled.get(name, 0) + math.prod(sizes[letter] for letter in rows)
    return {ours: dataclasses.replace(layout, total=filled[layout.name]) for ours, layout in found.items()}


def expected(
    config: ModelConfig, family: Family | None = None
) -> Iterator[tuple[str, str, tuple[int, ...], tuple[int, ...]]]:
    """Yields (checkpoint name, our name, index, checkpoint shape) of every parameter of a checkpoint.

    The index is that of the tensor in our array: (), (layer,) or (layer, expert). A fused tensor comes once for each of
    its parts.
    """
    for ours, layout in layouts(config, family).items():
        for index in itertools.product(*map(range, (config.n_layers, config.experts)[: layout.stacked])):
            yield layout.name.format(*index), ours, index, layout.there
