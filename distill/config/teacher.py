"""Which model teaches, and how its signal reaches the student, as a frozen dataclass. Standard library only."""

import dataclasses
from typing import Literal

from distill.config.tree import Identity
from distill.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which finished run teaches, and how its signal reaches the student.

    `run` is the teacher's own fingerprint and enters the student's; `source` is the path of that run on this machine
    and does not. 'online' runs the teacher inside the step; 'memory' computes its log-probabilities once per window
    and keeps them (float16) for later epochs and students of the same process, up to `memory_gib`; 'stored' reads what
    launch.cache wrote to the folder `store`, and loads the teacher only to evaluate the student, if `source` is given.
    Several teachers are a `mixture` of 'WORKDIR@WEIGHT' in place of a source: their distributions are averaged with
    the normalised weights before any target is taken; `run` then names all of them.
    """

    run: str = ""  # the teacher's fingerprint, filled in from source
    # folder of its finished run, or of a published model
    source: str = dataclasses.field(default="", metadata=Identity.excluded)
    # several teachers, each 'WORKDIR@WEIGHT'
    mixture: tuple[str, ...] = dataclasses.field(default=(), metadata=Identity.excluded)
    stored: str = ""  # what a store holds of the teacher, as 'topk top_k=128'; filled in from the store
    # URL of a server with vLLM's completions, from which launch.cache fills a store; 'URL#MODEL' where it has several
    server: str = dataclasses.field(default="", metadata=Identity.excluded)
    # folder of a store of launch.cache, for signal 'stored'
    store: str = dataclasses.field(default="", metadata=Identity.excluded)
    # run it in the step, keep its log-probabilities in memory, or read a store
    signal: Literal["online", "memory", "stored"] = dataclasses.field(default="online", metadata=Identity.excluded)
    # of signals kept by 'memory', at most [GiB]
    memory_gib: float = dataclasses.field(default=1.0, metadata=Identity.excluded)
    # 'same': its tokenizer must be the text's; 'number': tokens are taken by number, for those who know that they are
    tokens: Literal["same", "number"] = dataclasses.field(default="same", metadata=Identity.excluded)
    # of its weights; int8 has a scale for every channel; *_products multiply in int8 or float8 too, activations rounded
    dtype: Literal["float32", "bfloat16", "int8", "int8_products", "float8_products"] = "float32"

    def __post_init__(self):
        if self.store and self.signal != "stored":
            raise ConfigError(
                f"teacher.store={self.store!r} with signal={self.signal!r}; set signal='stored' to read it"
            )
        if self.source and self.mixture:
            raise ConfigError("teacher: got both source and mixture; several teachers are mixture='A@0.7,B@0.3' alone")
        for i, part in enumerate(self.mixture):
            try:
                valid = float(part.rpartition("@")[2]) > 0 and part.rpartition("@")[0].strip()
            except ValueError:
                valid = ""
            if not valid:
                raise ConfigError(f"teacher.mixture[{i}]: got {part!r}, wanted 'WORKDIR@WEIGHT', the weight above 0")

    @property
    def sources(self) -> tuple[tuple[str, float], ...]:
        """The workdirs of all teachers and their weights, which sum to 1."""
        if self.source:
            return ((self.source, 1.0),)
        parts = [(part.rpartition("@")[0].strip(), float(part.rpartition("@")[2])) for part in self.mixture]
        total = sum(weight for _, weight in parts)
        return tuple((source, weight / total) for source, weight in parts)
