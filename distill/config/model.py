"""The configuration of the model (distill/config/experiment.py has the rest). Standard library only."""

import dataclasses
from typing import Literal

from distill.config.tree import Identity
from distill.errors import ConfigError


def check_positive(config: object, *names: str) -> None:
    """Raises ConfigError for the first of these fields that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}, wanted at least 1")


MAPS = ("query", "key", "value", "out", "gate", "up", "down")  # the linear maps of a layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, Hu et al. 2106.09685), which alone are trained; config.init names what they adapt."""

    rank: int = 0  # of each adapter; 0: no adapters, the whole model is trained
    alpha: float = 16.0  # adapters count alpha / rank times
    maps: tuple[str, ...] = MAPS  # which linear maps of a layer have one

    def __post_init__(self):
        if not (0 <= self.rank <= 4096 and 0 < self.alpha < 1e6):
            raise ConfigError(
                f"model.lora: got rank={self.rank}, alpha={self.alpha}; wanted a rank of at least 0, such as 16, and "
                "an alpha above 0"
            )
        if not self.maps or not set(self.maps) <= set(MAPS) or len(set(self.maps)) < len(self.maps):
            raise ConfigError(f"model.lora.maps: got {self.maps}, wanted some of {', '.join(MAPS)}, each once")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The paper's decoder-only transformer (section 4 and Appendix I). A size of 0 means its derived value.

    Sizes follow the glossary in distill/types.py: D = d_model, F = ff_dim, H = n_heads, G = kv_heads, K = head_dim.
    """

    vocab_size: int = 256  # rows of the embedding and the head
    valid_vocab: int = 0  # 0: vocab_size; fewer: the last rows are padding, which never has or gives probability
    d_model: int = 32  # D: width of the residual stream
    n_layers: int = 2  # layers of attention and feed-forward
    n_heads: int = 2  # H: query heads
    n_kv_heads: int = 0  # 0: n_heads (MHA); fewer: grouped-query attention
    d_head: int = 0  # 0: d_model / n_heads
    d_ff: int = 0  # 0: 8/3 d_model, rounded up to a multiple of d_ff_multiple
    d_ff_multiple: int = 128  # what a derived d_ff is rounded up to
    tied: bool = True  # the head is the embedding, transposed
    qk_norm: bool = True  # queries and keys are normalised, with a gain each
    qkv_bias: bool = False  # of the attention's first projections
    out_bias: bool = False  # of the attention's last projection
    scaled_embedding: bool = True  # a tied embedding times sqrt(D) where it is looked up; false in published models
    window: int = 0  # positions that a query sees, its own included; 0: all before it [positions]
    rope_base: float = 500_000.0  # of the rotary angles
    # how angles are stretched for longer contexts
    rope_scaling: Literal["none", "linear", "llama3", "yarn", "longrope", "dynamic"] = "none"
    rope_factor: float = 1.0  # by how much
    rope_low: float = 1.0  # llama3, yarn; as rope_high: turns within rope_context below which an angle is stretched
    rope_high: float = 4.0  # and above which it is left alone
    rope_context: int = 8192  # not linear: the context before it was extended [positions]
    norm_eps: float = 1e-6  # added to the mean square in every RMSNorm
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and matmuls; parameters are float32
    # what the backward pass computes again: nothing, attention's scores, all but linear maps (which stay on the device,
    # or wait in the host's memory), every layer
    remat: Literal["none", "attention", "dots", "offload", "full"] = dataclasses.field(
        default="none", metadata=Identity.excluded
    )
    unroll: int = dataclasses.field(default=1, metadata=Identity.excluded)  # layers in a turn of their loop, at most
    sequence: bool = dataclasses.field(default=False, metadata=Identity.excluded)  # mesh.residual: split over tensor
    # which kernel computes it; auto: the fastest that the device has
    attention: Literal["auto", "xla", "splash", "cudnn"] = dataclasses.field(default="auto", metadata=Identity.excluded)
    # What other families have (docs/guide/models.md); each default is the paper's model.
    global_layers: tuple[int, ...] = ()  # layers, from 0, that see all positions in spite of a window
    unrotated_layers: tuple[int, ...] = ()  # layers, from 0, without rotary positions
    local_rope_base: float = 0.0  # rope base of the layers with a window, unscaled; 0: as in the others
    rope_channels: int = 0  # channels of a head that are rotated, the first of each half; 0: all
    rope_amplitude: float = 1.0  # of the rotated channels (the attention factor of yarn and longrope)
    rope_truncate: bool = True  # yarn only: the pairs between which it interpolates are whole numbers
    rope_short: tuple[float, ...] = ()  # longrope only: a divisor for each rotated pair, up to rope_context positions
    rope_long: tuple[float, ...] = ()  # longrope only: and beyond
    norms: Literal["pre", "post", "sandwich"] = "pre"  # of a block: before its two parts, after them, or both
    norm_kind: Literal["rms", "layer"] = "rms"  # layer: the mean is subtracted, and there is a bias
    qk_norm_width: Literal["head", "all"] = "head"  # over what queries and keys are normalised: each head, or all
    # of the feed-forward's gate; clipped_swiglu: gpt-oss's, which also clips both maps (distill/model/units.py)
    activation: Literal["silu", "gelu", "gelu_tanh", "clipped_swiglu"] = "silu"
    gated: bool = True  # the feed-forward has a gate; false: the activation of one map
    feed_bias: bool = False  # of the feed-forward's maps, or of the router's and the experts'
    attention_scale: float = 0.0  # of the scores; 0: 1 / sqrt(K)
    attention_cap: float = 0.0  # scores become cap tanh(score / cap); 0: no cap
    logit_cap: float = 0.0  # likewise of the logits
    lora: LoraConfig = LoraConfig()  # adapters, which are then trained alone
    # feed-forwards of a layer, of which a router chooses some for each token; 0: one, without a router
    experts: int = 0
    experts_per_token: int = 2  # how many it chooses
    expert_d_ff: int = 0  # width of an expert; 0: ff_dim / experts_per_token, as much work as one feed-forward
    expert_norm: bool = True  # the shares of a token's experts sum to 1; false: they are the router's probabilities
    attention_sinks: bool = False  # each query head has a score that belongs to no key (gpt-oss)
    # what the forward pass of a layer's linear maps multiplies, those of experts left out: numbers of `dtype`, or both
    # operands rounded (distill/model/products.py); gradients multiply `dtype`
    products: Literal["full", "int8", "float8"] = "full"

    def __post_init__(self):
        check_positive(self, "vocab_size", "d_model", "n_layers", "n_heads", "d_ff_multiple", "unroll")
        if min(self.experts, self.expert_d_ff) < 0:
            raise ConfigError(f"model: experts={self.experts}, expert_d_ff={self.expert_d_ff}; wanted at least 0")
        if not self.d_head and self.d_model % self.n_heads:
            raise ConfigError(
                f"model: d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; "
                "change one of them or give d_head"
            )
        if self.n_heads % self.kv_heads:
            raise ConfigError(
                f"model: n_heads={self.n_heads} is not a multiple of n_kv_heads={self.kv_heads}; "
                "every key-value head serves the same number of query heads"
            )
        if not 0 <= self.valid_vocab <= self.vocab_size:
            raise ConfigError(f"model: valid_vocab={self.valid_vocab}, wanted at most vocab_size={self.vocab_size}")
        if self.head_dim % 2:
            raise ConfigError(f"model: head_dim={self.head_dim} is odd; rotary positions need pairs")
        if self.window < 0 or self.rope_factor <= 0 or self.rope_low >= self.rope_high:
            raise ConfigError(
                f"model: window={self.window}, rope_factor={self.rope_factor}, rope_low={self.rope_low}, rope_high="
                f"{self.rope_high}; wanted a window of at least 0, a factor above 0, and rope_low below rope_high"
            )
        self._check_layers()
        if self.lora.rank and not set(self.lora.maps) & set(self.linear_maps):
            raise ConfigError(
                f"model.lora.maps={self.lora.maps}: a layer of this model has none of them; wanted some of "
                f"{', '.join(self.linear_maps)}"
            )
        if self.experts:
            self._check_experts()

    def _check_experts(self) -> None:
        """Raises ConfigError for numbers of experts, or a kind of feed-forward, that there is not."""
        if not 1 <= self.experts_per_token <= self.experts:
            raise ConfigError(
                f"model.experts_per_token={self.experts_per_token}: wanted 1 to experts={self.experts}; experts=0 is a "
                "model without a router"
            )
        if not self.expert_d_ff and self.ff_dim % self.experts_per_token:
            raise ConfigError(
                f"model: ff_dim={self.ff_dim} is not a multiple of experts_per_token={self.experts_per_token}; give "
                "expert_d_ff, the width of an expert"
            )
        if not self.gated:
            raise ConfigError(f"model.experts={self.experts} with gated=False: experts have a gate; set gated=true")

    def _check_layers(self) -> None:
        """Raises ConfigError for a layer that there is not, or rotary settings that contradict each other."""
        for name in ("global_layers", "unrotated_layers"):
            layers = getattr(self, name)
            if list(layers) != sorted({i for i in layers if 0 <= i < self.n_layers}):
                raise ConfigError(f"model.{name}={layers}: wanted rising layers from 0 to {self.n_layers - 1}")
        if self.global_layers and not self.window:
            raise ConfigError(f"model.global_layers={self.global_layers} with window=0: all layers see all; set window")
        if self.rotated % 2 or not 2 <= self.rotated <= self.head_dim:
            raise ConfigError(
                f"model.rope_channels={self.rope_channels}: wanted an even number up to head_dim={self.head_dim}"
            )
        for name in ("rope_short", "rope_long"):
            if self.rope_scaling == "longrope" and len(getattr(self, name)) != self.rotated // 2:
                raise ConfigError(
                    f"model.{name}: got {len(getattr(self, name))} divisors, wanted {self.rotated // 2}, one for each "
                    "rotated pair"
                )
        if self.activation == "clipped_swiglu" and not self.gated:
            raise ConfigError("model.activation='clipped_swiglu' with gated=False: it clips a gate; set gated=true")
        if min(self.local_rope_base, self.attention_scale, self.attention_cap, self.logit_cap) < 0:
            raise ConfigError(
                f"model: local_rope_base={self.local_rope_base}, attention_scale={self.attention_scale}, attention_cap="
                f"{self.attention_cap}, logit_cap={self.logit_cap}; wanted at least 0"
            )

    @property
    def linear_maps(self) -> tuple[str, ...]:
        """The linear maps of a layer, of MAPS; those of experts are not among them."""
        absent = ("gate", "up", "down") if self.experts else () if self.gated else ("gate",)
        return tuple(name for name in MAPS if name not in absent)

    @property
    def tokens(self) -> int:
        """The number of columns of the head that are tokens (the rest is padding)."""
        return self.valid_vocab or self.vocab_size

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def rotated(self) -> int:
        """The number of channels of a head that are rotated."""
        return self.rope_channels or self.head_dim

    @property
    def ff_dim(self) -> int:
        return self.d_ff or -(-8 * self.d_model // (3 * self.d_ff_multiple)) * self.d_ff_multiple

    @property
    def expert_dim(self) -> int:
        """The width of an expert."""
        return self.expert_d_ff or self.ff_dim // self.experts_per_token
