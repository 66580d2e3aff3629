"""The configuration of a generation: the teacher, the prompts, the sampling. Standard library only."""

import dataclasses
from typing import Literal

from distill.config import ConfigError, DecodeConfig, Identity, MeshConfig
from distill.config.data import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """`per_prompt` completions of every prompt from `data`, by the teacher in the workdir or model `teacher`.

    A prompt is the first `prompt_tokens` of a document; with `every`, another prompt starts every so many tokens. If
    the data mark completions, the prompt is the text before the first of them, and longer prompts are skipped.
    `data.split` selects the documents; those of the validation split are kept unchanged ('text'), or their prompts are
    completed too ('completions'): a student of the store is evaluated on them.
    """

    # folder of a finished run, or a published model
    teacher: str = dataclasses.field(default="", metadata=Identity.excluded)
    run: str = ""  # the teacher's own fingerprint, filled in
    data: DataConfig = DataConfig()
    decode: DecodeConfig = DecodeConfig()  # the end of text stops a completion, whatever else does
    prompt_tokens: int = 32  # first tokens of a document that make a prompt [tokens]
    every: int = 0  # a prompt begins again each so many tokens; 0: one a document [tokens]
    prompts: int = 0  # at most so many of a split; 0: all [prompts]
    per_prompt: int = 1  # completions of each prompt
    batch_size: int = 16  # completed at once [prompts]
    seed: int = 0  # of the draws
    held_out: Literal["text", "completions"] = "text"  # what becomes of the validation split
    # What of the completions enters the token store; the jsonl keeps all.
    min_log_prob: float = dataclasses.field(
        default=0.0, metadata=Identity.excluded
    )  # mean, nats per token; 0: any [nats]
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=Identity.excluded)

    def __post_init__(self):
        for name in ("prompt_tokens", "per_prompt", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        for name in ("every", "prompts"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: got {getattr(self, name)}, wanted 0 or more")
        if self.min_log_prob > 0:
            raise ConfigError(f"min_log_prob: got {self.min_log_prob}, wanted a log-probability below 0, or 0 for any")
