"""Decoding through the cache beside one pass over all positions."""

import jax
import jax.numpy as jnp
import numpy as np

from distill.model import decode


def check_decoding(model):
    """The hidden states of a prompt, of one token and of several, are those of the whole."""
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, model.config.vocab_size)
    cache, pieces = decode.empty(model, 2, 24), []
    for start, stop in ((0, 9), (9, 10), (10, 24)):
        hidden, cache = jax.jit(decode.extend)(model, tokens[:, start:stop], cache, start)
        pieces.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), jax.jit(model.hidden)(tokens), atol=2e-5)
