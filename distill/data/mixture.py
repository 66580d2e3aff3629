"""Reads several token stores as one, in proportion to weights."""

import hashlib
import json
from collections.abc import Sequence

from distill.data.store.evaluation import Evaluation, Share, View, evaluation_set
from distill.data.store.store import TokenStore
from distill.data.tokenizers.same import difference
from distill.errors import DataError


class Mixture:
    """Stores with one tokenizer. A loader draws windows from them by weight, so small stores repeat more often."""

    def __init__(self, stores: Sequence[TokenStore], weights: Sequence[float]):
        """Raises DataError unless each store has a positive weight and all stores share a tokenizer."""
        if not stores or len(stores) != len(weights) or min(weights) <= 0:
            raise DataError(
                f"data.mixture: got {len(stores)} stores and the weights {tuple(weights)}, wanted one positive weight "
                "for each of at least one store"
            )
        first = stores[0]
        for store in stores[1:]:
            same = store.tokenizer_hash == first.tokenizer_hash
            if not same and (differs := difference(first.tokenizer(), store.tokenizer())):
                raise DataError(
                    f"data.mixture: {first.path} holds tokens of {first.tokenizer_name!r}, {store.path} of "
                    f"{store.tokenizer_name!r}: {differs}; tokenize both with the same tokenizer"
                )
            if store.special != first.special:
                raise DataError(
                    f"data.mixture: the text of {first.path} stands in {first.special!r} and that of {store.path} in "
                    f"{store.special!r} (data.tokenizer.special, '$A' is the text); tokenize both alike"
                )
        self.stores, self.weights = tuple(stores), tuple(weight / sum(weights) for weight in weights)
        self.tokenizer_name, self.tokenizer_hash = first.tokenizer_name, first.tokenizer_hash
        self.special = first.special
        self.vocab_size, self.end_of_text, self.byte_lengths = first.vocab_size, first.end_of_text, first.byte_lengths
        self.tokenizer, self.check_vocabulary = first.tokenizer, first.check_vocabulary
        parts = [[store.fingerprint, weight] for store, weight in zip(stores, self.weights)]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def views(
        self, split: str, seq_len: int, *, packing: str = "windows", completions_only: bool = False
    ) -> list[View]:
        """One view per store; see TokenStore.views."""
        return [
            view
            for store in self.stores
            for view in store.views(split, seq_len, packing=packing, completions_only=completions_only)
        ]

    def evaluation(
        self, split: str, seq_len: int, n_tokens: int, *, packing: str = "windows", completions_only: bool = False
    ) -> Evaluation:
        """Evenly spaced windows of every store; each store gets its weight's share of n_tokens."""
        views = self.views(split, seq_len, packing=packing, completions_only=completions_only)
        parts = [Share(view, weight, self.byte_lengths) for view, weight in zip(views, self.weights)]
        return evaluation_set(parts, n_tokens)

    def verify(self) -> None:
        for store in self.stores:
            store.verify()
