"""Models under EleutherAI's lm-evaluation-harness (extra lm_eval).

from lm_eval import simple_evaluate
from distill.training.lm_eval import Harness

simple_evaluate(model=Harness(params, tokenizer, context=512), tasks=["lambada_openai"])
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from distill.config import ConfigError
from distill.data.documents import Part
from distill.data.tokenizers.tokenizer import Tokenizer
from distill.losses.divergences import argmax_token, cross_entropy
from distill.model import sharding
from distill.model.transformer import Transformer


@jax.jit
def _score(params: Transformer, tokens: Int[Array, "B S"]) -> tuple[Float[Array, "B S-1"], Bool[Array, "B S-1"]]:
    """Log-probability of each token after the first, and whether it was the most likely one."""
    logits = params(tokens[:, :-1])
    hit = argmax_token(jax.sharding.reshard(logits, sharding.ACT_BSD)) == tokens[:, 1:]
    return -cross_entropy(logits, tokens[:, 1:]), hit


class Harness(LM):
    """A model on the current mesh, with its tokenizer.

    Texts are cut on the left to `context` + 1 tokens; one shape is compiled for each power of two. They begin with what
    the tokenizer's files put before a text (BOS); an empty context is that, or else the end-of-text token.
    Raises ConfigError for a tokenizer with more tokens than the model has.
    """

    def __init__(self, params: Transformer, tokenizer: Tokenizer, *, context: int, batch_size: int = 8):
        super().__init__()
        if tokenizer.vocab_size > params.config.tokens:
            raise ConfigError(
                f"lm_eval: the tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} tokens and the model "
                f"{params.config.tokens}: the ids from there on have no row in its embedding and head; give its own"
            )
        devices = jax.sharding.get_mesh().size
        self._params, self._tokenizer, self._context = params, tokenizer, context
        self._begin = tokenizer.around.before
        self._rows = -(-batch_size // devices) * devices

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode([Part(text)])[0].tolist() if text else []
        return [*self._begin, *ids] if self._begin or ids else [max(self._tokenizer.end_of_text, 0)]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The tokens of both, and how many at the end are the continuation's; encoded as one, since merges cross."""
        blanks = len(context) - len(context.rstrip())
        if blanks:  # blanks are tokenized with the text that follows
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        head, whole = self._encode(context), self._encode(context + continuation)
        if not context and not self._begin:
            whole = head + whole
        return whole[-self._context - 1 :], min(max(len(whole) - len(head), 0), self._context)

    def loglikelihood(self, requests: list[Instance], **_: object) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether greedy decoding would write it) of each request."""
        return self._scores([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance], **_: object) -> list[float]:
        """log p(text) of each request, in adjacent windows; each begins with the last token of the previous one."""
        pieces, owner = [], []
        for i, request in enumerate(requests):
            ids = self._encode(request.args[0]) if self._begin else [*self._encode(""), *self._encode(request.args[0])]
            for start in range(0, len(ids) - 1, self._context):
                window = ids[start : start + self._context + 1]
                pieces.append((window, len(window) - 1))
                owner.append(i)
        log_probs = [0.0] * len(requests)
        for i, scored in zip(owner, self._scores(pieces)):
            log_probs[i] += scored[0]
        return log_probs

    def _scores(self, pieces: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pieces)
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i][0]))  # similar lengths share a batch
        for start in range(0, len(order), self._rows):
            batch = order[start : start + self._rows]
            width = max(2, *(len(pieces[i][0]) for i in batch))
            width = min(1 << (width - 2).bit_length(), self._context) + 1
            tokens = np.zeros((self._rows, width), np.int32)
            for row, i in enumerate(batch):
                tokens[row, : len(pieces[i][0])] = pieces[i][0]
            placed = sharding.place(tokens, jax.sharding.get_mesh())
            scores, is_argmax = (np.asarray(array) for array in _score(self._params, placed))
            for row, i in enumerate(batch):
                ids, count = pieces[i]
                last = slice(len(ids) - 1 - count, len(ids) - 1)
                results[i] = float(scores[row, last].sum()), bool(is_argmax[row, last].all())
        return results

    def generate_until(self, requests: list[Instance], **_: object) -> list[str]:
        """Greedy continuations, up to the first of `until`, the end of text, or `max_gen_toks` (64)."""
        return [self._continue(*request.args) for request in requests]

    def _continue(self, context: str, options: dict[str, object]) -> str:
        given = options.get("until") or []
        until = [given] if isinstance(given, str) else list(given)  # type: ignore[call-overload]  # as the harness says
        ids = self._encode(context)
        made: list[int] = []
        while len(made) < int(str(options.get("max_gen_toks", 64))):
            recent = (ids + made)[-self._context :]
            width = min(1 << (len(recent) - 1).bit_length(), self._context)
            tokens = np.zeros((self._rows, width), np.int32)
            tokens[:, : len(recent)] = recent
            logits = _last(self._params, sharding.place(tokens, jax.sharding.get_mesh()), len(recent) - 1)
            token = int(np.argmax(np.asarray(logits)[0, : self._tokenizer.vocab_size]))
            if token == self._tokenizer.end_of_text:
                break
            made.append(token)
            text = self._tokenizer.decode(made)
            if any(stop in text for stop in until):
                break
        text = self._tokenizer.decode(made)
        for stop in until:
            text = text.split(stop)[0]
        return text


@jax.jit
def _last(params: Transformer, tokens: Int[Array, "B S"], position: Int[Array, ""] | int) -> Float[Array, "B V"]:
    """The logits at one position."""
    hidden = jax.lax.dynamic_slice_in_dim(params.hidden(tokens), position, 1, axis=1)
    return params.logits(hidden)[:, 0]
