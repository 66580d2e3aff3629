"""The table that maps our parameters to names and shapes in a Hugging Face checkpoint.

Letters are those of distill/types.py. 'hk d' is a matrix whose rows run over heads and their channels and whose
columns run over d. Our dims have the order of sharding.PARAM_SPECS. Layers are stacked in our parameters and separate
in a checkpoint.
"""

import dataclasses
import math
from collections.abc import Iterator

from distill.config import ModelConfig
from distill.interop.safetensors import Tensor

_LAYER = "model.layers.{}."
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
    "last_norm": ("model.norm.weight", "d", "d"),
    "head": ("lm_head.weight", "v d", "vd"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter: its name in the checkpoint, and how a checkpoint tensor becomes our array."""

    name: str  # with {} for the layer if the parameter is stacked
    rows: str  # dims that form the rows of the checkpoint tensor
    columns: str
    ours: str
    sizes: dict[str, int]

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    @property
    def there(self) -> tuple[int, ...]:
        """The shape of the checkpoint tensor."""
        groups = [group for group in (self.rows, self.columns) if group]
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in groups)

    def row_range(self, index: tuple[slice, ...]) -> tuple[int, int]:
        """The checkpoint rows that hold the part `index` of our dims (without the layer)."""
        first = self.rows[0]
        start, stop, _ = index[self.ours.index(first)].indices(self.sizes[first])
        inner = math.prod(self.sizes[letter] for letter in self.rows[1:])
        return start * inner, stop * inner

    def import_part(self, rows: Tensor, index: tuple[slice, ...]) -> Tensor:
        """The part `index` of our array, from the rows that `row_range` named."""
        letters = self.rows + self.columns
        inner = [self.sizes[letter] for letter in letters[1:]]
        split = rows.reshape(-1, *inner).transpose([letters.index(letter) for letter in self.ours])
        rest = tuple(slice(None) if letter == self.rows[0] else part for letter, part in zip(self.ours, index))
        return split[rest]

    def export(self, array: Tensor) -> Tensor:
        """The checkpoint tensor, from our array of one layer."""
        letters = self.rows + self.columns
        return array.transpose([self.ours.index(letter) for letter in letters]).reshape(self.there)


def layouts(config: ModelConfig) -> dict[str, Layout]:
    """The layout of every parameter of a model with this config, by our name ('blocks.query')."""
    sizes = {"v": config.vocab_size, "d": config.d_model, "f": config.ff_dim}
    sizes |= {"h": config.n_heads, "g": config.kv_heads, "k": config.head_dim}
    absent = {"head"} if config.tied else set()
    if not config.qk_norm:
        absent |= {"blocks.query_norm", "blocks.key_norm"}
    if not config.qkv_bias:
        absent |= {"blocks.query_bias", "blocks.key_bias", "blocks.value_bias"}
    if not config.out_bias:
        absent |= {"blocks.out_bias"}
    by_name = {}
    for ours, (name, there, dims) in _TABLE.items():
        if ours not in absent:
            rows, _, columns = there.partition(" ")
            by_name[ours] = Layout(name, rows, columns, dims, sizes)
    return by_name


def expected(config: ModelConfig) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """Yields (checkpoint name, our name, layer or 0, checkpoint shape) of every tensor of a checkpoint."""
    for ours, layout in layouts(config).items():
        for layer in range(config.n_layers if layout.stacked else 1):
            yield layout.name.format(layer), ours, layer, layout.there
