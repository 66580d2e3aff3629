"""Several teachers as one: p(v) = sum_i w_i p_i(v), each p_i over the tokens that all of them have.

The mixture is what a student learns from, so whatever is done to a teacher's distribution (tau, top-k, draws) is done
to the mixture: it is tempered after it is mixed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill.config import ModelConfig
from distill.losses import fused, targets
from distill.losses.fused import FusedShape
from distill.model.transformer import Transformer
from distill.types import HiddenSignal, MixedSignal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherMixture:
    """Models of one tokenizer and their weights, which sum to 1. Called like a model, it gives log-probabilities."""

    models: tuple[Transformer, ...]
    weights: Float[Array, " teachers"]

    @property
    def config(self) -> ModelConfig:
        """The first model's, with the tokens that all of them have: of the mixture it says the vocabulary alone."""
        tokens = min(model.config.tokens for model in self.models)
        return dataclasses.replace(self.models[0].config, valid_vocab=tokens)

    def __call__(self, tokens: Int[Array, "B S"], **place: Any) -> Float[Array, "B S V"]:
        """log p, exactly: every p_i by its own normaliser, mixed by logsumexp; columns of padding hold nothing."""
        c = self.config
        each = [targets.align(model(tokens, **place), c.vocab_size, c.tokens) for model in self.models]
        log_w = jnp.log(self.weights)
        log_probs = [jax.nn.log_softmax(logits, axis=-1) + log_w[i] for i, logits in enumerate(each)]
        return functools.reduce(jnp.logaddexp, log_probs)

    def hidden_signal(self, tokens: Int[Array, "B S"], **place: Any) -> MixedSignal:
        """The same distribution as hidden states, heads and offsets: the logits never exist whole."""
        shape = FusedShape(kind="", tempered=False, tokens=self.config.tokens)
        parts, offsets = [], []
        for model, weight in zip(self.models, self.weights):
            hidden, head = model.hidden(tokens, **place), model.head_vd
            normaliser = fused.read(shape, hidden, head, jnp.zeros_like(tokens)[..., None], None).normaliser
            parts.append(HiddenSignal(hidden=hidden, head=head))
            offsets.append((jnp.log(weight) - normaliser)[..., None])
        return MixedSignal(parts=tuple(parts), offsets=tuple(offsets))
