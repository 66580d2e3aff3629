"""Random languages with an exactly known entropy: a ground truth that real text cannot give.

A language is a unifilar hidden Markov model: in state q it emits symbol x with probability emission[q, x] and moves
to successor[q, x]. A Markov chain of depth k is the case whose states are the last k symbols. Because state and
symbol determine the next state, the entropy rate is exact (Shannon 1948, section 7):

    h = - sum_q pi(q) sum_x emission[q, x] log emission[q, x]     nats per symbol, pi the stationary distribution

A model that sees only a window does not know the state at its start, so its best possible loss on that window is
above h. `predict` computes that optimum too, token by token, by the forward algorithm.
"""

import bisect
import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.config.data import GeneratedConfig
from distill.data.documents import Document
from distill.errors import DataError

MAX_STATES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Language:
    """emission: float64 [Q, V], rows sum to 1; successor: int64 [Q, V] with values in [0, Q)."""

    emission: NDArray[np.float64]
    successor: NDArray[np.int64]

    @property
    def vocab_size(self) -> int:
        return self.emission.shape[1]

    def stationary(self) -> NDArray[np.float64]:
        """pi [Q], by iterating the lazy chain (which has the same fixed point and cannot oscillate)."""
        pi = np.full(len(self.emission), 1 / len(self.emission))
        for _ in range(100_000):
            moved = np.bincount(self.successor.ravel(), (pi[:, None] * self.emission).ravel(), len(pi))
            step = (moved - pi) / 2
            pi = pi + step
            if np.abs(step).sum() < 1e-15:
                break
        return pi / pi.sum()

    def entropy_rate(self) -> float:
        """h in nats per symbol, exact up to rounding."""
        return float(-(self.stationary()[:, None] * _xlogx(self.emission)).sum())

    def sample(self, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """A text of `length` symbols; the first state is drawn from pi."""
        cumulative = np.cumsum(self.emission, axis=1)
        # The last symbol with positive probability takes what rounding leaves of the unit interval.
        last = self.vocab_size - 1 - (self.emission[:, ::-1] > 0).argmax(axis=1)
        cumulative[np.arange(self.vocab_size) >= last[:, None]] = 2.0
        tables, successors = cumulative.tolist(), self.successor.tolist()
        state = int(rng.choice(len(self.emission), p=self.stationary()))
        text = []
        for u in rng.random(length).tolist():
            symbol = bisect.bisect_right(tables[state], u)
            text.append(symbol)
            state = successors[state][symbol]
        return np.array(text, np.int64)

    def predict(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """log p(. | tokens[:, :t]) for t = 0..T-1 [B, T, V]: the best prediction from the window alone.

        Forward algorithm from pi. Row t = 0 is the stationary distribution of symbols.
        """
        tokens = np.asarray(tokens)
        rows, length = tokens.shape
        states = len(self.emission)
        belief: NDArray[np.float64] = np.tile(self.stationary(), (rows, 1))
        logs = np.empty((rows, length, self.vocab_size))
        offset = np.arange(rows)[:, None] * states
        with np.errstate(divide="ignore"):
            for t in range(length):
                logs[:, t] = np.log(belief @ self.emission)
                x = tokens[:, t]
                joint = belief * self.emission.T[x]
                moved = np.bincount((offset + self.successor.T[x]).ravel(), joint.ravel(), rows * states)
                belief = moved.reshape(rows, states) / moved.reshape(rows, states).sum(axis=1, keepdims=True)
        return logs


def _xlogx(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return p * np.log(np.where(p > 0, p, 1.0))


def markov(symbols: int, depth: int, concentration: float, seed: int) -> Language:
    """A chain of the given depth; the distribution after each context is a Dirichlet draw."""
    if symbols < 2 or depth < 0 or symbols**depth > MAX_STATES:
        raise DataError(
            f"generated language: symbols={symbols} and depth={depth} give {symbols**depth} contexts, wanted at least "
            f"2 symbols and at most {MAX_STATES} contexts"
        )
    states = symbols**depth
    emission = np.random.default_rng((seed, 0)).dirichlet(np.full(symbols, concentration), states)
    successor = (np.arange(states)[:, None] * symbols + np.arange(symbols)) % states
    return Language(emission, successor)


def hidden(symbols: int, states: int, concentration: float, seed: int) -> Language:
    """A unifilar hidden Markov model with random successors; symbol 0 visits all states, so all are reachable."""
    if symbols < 2 or not 1 <= states <= MAX_STATES:
        raise DataError(
            f"generated language: got symbols={symbols}, states={states}, wanted at least 2 symbols and "
            f"1..{MAX_STATES} states"
        )
    rng = np.random.default_rng((seed, 1))
    emission = rng.dirichlet(np.full(symbols, concentration), states)
    # Symbol 0 needs positive probability in every state, because its transitions connect the states.
    emission = 0.99 * emission + 0.01 / symbols
    successor = rng.integers(states, size=(states, symbols))
    successor[:, 0] = (np.arange(states) + 1) % states
    return Language(emission, successor)


def make_language(config: GeneratedConfig) -> Language:
    """The language of a config; equal configs give equal languages."""
    if config.kind == "markov":
        return markov(config.symbols, config.depth, config.concentration, config.seed)
    return hidden(config.symbols, config.states, config.concentration, config.seed)


class Generated:
    """Texts of a language with known entropy: validation first, then teacher and student alternately."""

    explicit: tuple[str, ...] = ("validation", "teacher", "student")
    masked = False
    share = 0.0

    def __init__(self, config: GeneratedConfig):
        self._config = config
        self._language = make_language(config)
        self.shards = [f"{config.kind} language"]
        sizes = {
            "validation": config.validation_tokens,
            "teacher": config.tokens // 2,
            "student": config.tokens - config.tokens // 2,
        }
        self._plan = [(n, split) for split, size in sizes.items() for n in _lengths(size, config.document_tokens)]

    def describe(self) -> dict[str, object]:
        return {"source": "generated", **dataclasses.asdict(self._config)}

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        for i, (length, split) in enumerate(self._plan[skip:], skip):
            self.share = (i + 1) / len(self._plan)
            rng = np.random.default_rng((self._config.seed, 2, i))
            yield Document(ids=self._language.sample(length, rng), split=split)


def _lengths(total: int, most: int) -> list[int]:
    """Lengths of documents that sum to `total`: each is `most` tokens, the last one the remainder."""
    return [min(most, total - start) for start in range(0, total, most)]
