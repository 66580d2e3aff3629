"""Several teachers as one: p(v) = sum_i w_i p_i(v), each p_i over the tokens that all of them have.

The mixture is one distribution: whatever an objective does to a teacher's distribution (tau, top-k, draws) it does to
the mixture, so the temperature is applied after mixing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill.config import ModelConfig
from distill.losses import fused, targets
from distill.losses.fused import FusedSpec
from distill.model.transformer import Transformer
from distill.types import HiddenSignal, MixedSignal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherMixture:
    """Models of one tokenizer and their weights, which sum to 1. A call, as of a model, returns log-probabilities."""

    models: tuple[Transformer, ...]
    weights: Float[Array, " teachers"]

    @property
    def config(self) -> ModelConfig:
        """The first model's config with the tokens that all models share; only its vocabulary describes the mixture."""
        tokens = min(model.config.tokens for model in self.models)
        return dataclasses.replace(self.models[0].config, valid_vocab=tokens)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
        spans: int = 1,
    ) -> Float[Array, "B S V"]:
        """log p: every p_i by its own normaliser, mixed by logsumexp; padding columns have no probability."""
        c = self.config
        each = [targets.align(model(tokens, segment, position, spans), c.vocab_size, c.tokens) for model in self.models]
        log_w = jnp.log(self.weights)
        log_probs = [jax.nn.log_softmax(logits, axis=-1) + log_w[i] for i, logits in enumerate(each)]
        return functools.reduce(jnp.logaddexp, log_probs)

    def hidden_signal(
        self,
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
        spans: int = 1,
    ) -> MixedSignal:
        """The same distribution as hidden states, heads and offsets: whole logits never exist."""
        parts, offsets = [], []
        for model, weight in zip(self.models, self.weights):
            cap = model.config.logit_cap
            spec = FusedSpec(divergence="", tempered=False, tokens=self.config.tokens, cap=cap)
            hidden, head = model.hidden(tokens, segment, position, spans), model.head_vd
            log_z = fused.fused_losses(spec, hidden, head, jnp.zeros_like(tokens)[..., None], None).log_z
            parts.append(HiddenSignal(hidden=hidden, head=head, cap=cap))
            offsets.append((jnp.log(weight) - log_z)[..., None])
        return MixedSignal(parts=tuple(parts), offsets=tuple(offsets))
