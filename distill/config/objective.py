"""A student's objective, as a frozen dataclass that refuses what cannot be estimated. Standard library only."""

import contextlib
import dataclasses
import itertools
import math
import re
from typing import Literal

from distill.config.exactness import DIVERGENCES, TABLE
from distill.config.tree import Identity
from distill.errors import ConfigError

_PAIR = r"\s*\d+\s*>\s*\d+\s*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """L = (1 - lambda) L_NTP + lambda L_KD + w L_F + z_loss Z (paper, Eq. 7 and Appendix).

    Without a teacher the run is supervised: lambda and the weight w = `feature_weight` have no effect.

    L_KD is tau^2 times a `divergence` of the student q from the teacher p, both softened by tau = `temperature`:
    'forward' KL(p || q) as a cross-entropy, 'reverse' KL(q || p), 'jensen_shannon' beta KL(p || m) + (1 - beta)
    KL(q || m) with m = beta p + (1 - beta) q (Agarwal et al. 2306.13649), or 'total_variation'.

    target: what is kept of the teacher's distribution at each token. 'soft' is all of it; 'topk' its `top_k` most
    likely tokens; 'topp' the fewest of those that hold `top_p` of the mass; 'sampled' `draws` tokens drawn from it;
    'argmax' its most likely token. tail: whether the tokens that 'topk' or 'topp' leaves out count as one more outcome
    ('bucket') or their mass goes to the others ('renormalise', as in the paper). distill/config/exactness.py says how
    exact each combination is.

    cross_tokenizer: what is compared with a teacher of another tokenizer, one chunk of equal bytes after the other: its
    'likelihood', or a 'projection' of both vocabularies (distill/losses/cross_tokenizer.py). With a teacher of the same
    tokenizer it changes nothing.

    schedule: lambda, temperature and beta move to their `_final` values over the run.

    features: pairs of layers 'student>teacher' whose hidden states L_F compares through a learned projection, by
    `feature_loss` (distill/losses/features.py): 0 is the embedding, i the residual stream after layer i. Their weight
    is independent of lambda, which divides between the labels and the teacher's distribution.

    balance, router_z: the weights of the two losses of a student's routers, where it has experts: the mean over layers
    and tokens (distill/model/experts.py).
    """

    lambda_: float = 1.0  # lambda: weight of the teacher's loss; the labels' is 1 - lambda
    temperature: float = 1.0  # tau: softens teacher and student
    z_loss: float = 1e-4  # weight of the squared log of the normaliser
    target: Literal["soft", "topk", "topp", "sampled", "argmax"] = "soft"  # what is read of the teacher for each token
    # of the student from the teacher
    divergence: Literal["forward", "reverse", "jensen_shannon", "total_variation"] = "forward"
    beta: float = 0.5  # of jensen_shannon
    top_k: int = 128  # of topk; at most so many of topp [tokens]
    top_p: float = 0.9  # of topp: the mass that is kept
    tail: Literal["bucket", "renormalise"] = "bucket"  # what becomes of the mass that topk and topp leave out
    draws: int = 1  # of sampled, a token [draws]
    # what is compared with a teacher of another tokenizer; none: such a teacher is refused
    cross_tokenizer: Literal["none", "likelihood", "projection"] = "none"
    # how lambda, temperature and beta move to their _final values
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    lambda_final: float = 1.0  # at the last step
    temperature_final: float = 1.0  # at the last step
    beta_final: float = 0.5  # at the last step
    features: tuple[str, ...] = ()  # pairs of layers to compare, 'student>teacher'
    feature_loss: Literal["mse", "cosine"] = "mse"  # of the hidden states
    feature_weight: float = 1.0  # w: weight of their loss, beside lambda
    balance: float = 0.01  # weight of the loss that spreads tokens over experts; without experts no effect
    router_z: float = 0.001  # weight of the squared log of the router's normaliser; without experts no effect
    # Where the loss is computed: 'dense' from whole logits, 'fused' in chunks, 'auto' by the size of the vocabulary.
    implementation: Literal["auto", "dense", "fused"] = dataclasses.field(default="auto", metadata=Identity.excluded)

    def __post_init__(self):
        ends = [("lambda_", "temperature", "beta")]
        if self.schedule != "constant":
            ends.append(("lambda_final", "temperature_final", "beta_final"))
        for lambda_, temperature, beta in ends:
            self._expect(lambda_, 0 <= getattr(self, lambda_) <= 1, "a number from 0 to 1")
            self._expect(temperature, 0 < getattr(self, temperature) < math.inf, "a finite number above 0, such as 2")
            self._expect(
                beta,
                0 < getattr(self, beta) < 1,
                "a number between 0 and 1, both excluded; at the ends the divergence over beta and over 1 - beta is "
                "divergence='forward' and 'reverse'",
            )
        self._expect("top_k", self.top_k > 0, "at least 1")
        self._expect("top_p", 0 < self.top_p <= 1, "a number above 0, at most 1")
        self._expect("draws", self.draws > 0, "at least 1")
        self._expect("z_loss", 0 <= self.z_loss < math.inf, "a finite number of at least 0, such as 1e-4")
        self._expect("balance", 0 <= self.balance < math.inf, "a finite number of at least 0, such as 0.01")
        self._expect("router_z", 0 <= self.router_z < math.inf, "a finite number of at least 0, such as 0.001")
        self._expect(
            "feature_weight", 0 < self.feature_weight < math.inf, "a number above 0; without features leave them out"
        )
        for i, pair in enumerate(self.features):
            if not re.fullmatch(_PAIR, pair):
                raise ConfigError(
                    f"objective.features[{i}]: got {pair!r}, wanted 'layer of the student>layer of the teacher', "
                    "e.g. '2>6'"
                )
        if self.cross_tokenizer != "none" and self.target != "soft":
            raise ConfigError(
                f"objective.cross_tokenizer={self.cross_tokenizer!r} with target={self.target!r}: tokens of the "
                "teacher are none of the student's; set target='soft'"
            )
        cell = TABLE[self.divergence, self.exactness_row, not self.tempered]
        if cell.verdict == "refused":
            tau = "a temperature other than 1" if self.tempered else "temperature 1"
            raise ConfigError(
                f"objective: divergence={self.divergence!r} of {self._signal_words} at {tau} is refused: "
                f"{cell.reason}; change target, divergence, tail or temperature (table: docs/guide/objectives.md)"
            )

    def _expect(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"objective.{name}: got {getattr(self, name)!r}, wanted {wanted}")

    @property
    def tempered(self) -> bool:
        """Whether the temperature differs from exactly 1 at any step."""
        return self.temperature != 1.0 or (self.schedule != "constant" and self.temperature_final != 1.0)

    @property
    def feature_pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs of compared layers: (student's, teacher's)."""
        return tuple((int(mine), int(theirs)) for mine, theirs in (re.findall(r"\d+", pair) for pair in self.features))

    @property
    def exactness_row(self) -> str:
        """The row of the exactness table that this target belongs to."""
        if self.target in ("topk", "topp"):
            return "truncated" if self.tail == "bucket" else "renormalised"
        return "full" if self.target == "soft" else self.target

    @property
    def _signal_words(self) -> str:
        tail = f" with tail={self.tail!r}" if self.target in ("topk", "topp") else ""
        return f"target={self.target!r}{tail}"


def every(**shared: object) -> dict[str, ObjectiveConfig]:
    """One config for each cell of the exactness table that builds, by name, for tests and benchmarks.

    `shared` fields, such as top_k or beta, are the same in all.
    """
    targets: tuple[dict[str, str], ...] = (
        {"target": "soft"},
        *({"target": target, "tail": tail} for target in ("topk", "topp") for tail in ("bucket", "renormalise")),
        {"target": "sampled"},
        {"target": "argmax"},
    )
    configs = {}
    for divergence, target, temperature in itertools.product(DIVERGENCES, targets, (1.0, 2.0)):
        with contextlib.suppress(ConfigError):
            config = ObjectiveConfig(divergence=divergence, temperature=temperature, **target, **shared)  # type: ignore
            configs["-".join([divergence, *target.values(), f"{temperature:g}"])] = config
    return configs
