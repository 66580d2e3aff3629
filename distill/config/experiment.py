"""The experiment's configuration: frozen dataclasses, built and named by distill/config/tree.py.

Code in `distill` passes only these around, and a function takes the smallest one it needs. Standard library only.
"""

import dataclasses
import math
from typing import Literal

from distill.config.data import DataConfig
from distill.config.model import ModelConfig, check_positive
from distill.config.objective import ObjectiveConfig
from distill.config.teacher import TeacherConfig
from distill.config.tree import Identity, digest, fingerprint, identity
from distill.errors import ConfigError

MOST_TOKENS = 10**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with independent weight decay under muP (simple); the paper's values (section 4).

    `wsd` is warmup, a constant rate, then a 1-sqrt decay to zero over the last `decay_fraction` of the steps: runs
    that differ only in their length share the constant part, so one trunk serves several budgets.
    """

    learning_rate: float = 1e-2  # the peak of the schedule, at base_width
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"  # of the rate over the steps
    warmup_steps: int = 40  # over which the rate rises from 0 [steps]
    decay_fraction: float = 0.25  # wsd only
    final_ratio: float = 1e-3  # cosine only: the last rate over the peak
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 1e-4  # a step, independent of the rate
    clip: float = 1.0  # of the gradient's global norm
    spike: float = 0.0  # updates whose gradient norm exceeds this many times the running mean are not made; 0: all are
    mup: bool = True  # rates and initial scales that stay right as the width grows
    base_width: int = 32  # the fan-in at which a linear layer trains at learning_rate itself

    def __post_init__(self):
        if self.spike != 0 and not self.spike > 1:
            raise ConfigError(f"optim.spike: got {self.spike}, wanted 0 (off) or a factor above 1, such as 10")
        # AdamW moves every weight by about the rate in each step: at a rate of 10 no such network trains.
        self._expect("learning_rate", 0 < self.learning_rate < 10, "above 0 and below 10, such as 1e-2")
        self._expect("warmup_steps", self.warmup_steps >= 0, "at least 0")
        self._expect("decay_fraction", 0 <= self.decay_fraction <= 1, "a share of the steps, from 0 to 1")
        self._expect("final_ratio", 0 <= self.final_ratio <= 1, "a share of the peak rate, from 0 to 1")
        self._expect("b1", 0 <= self.b1 < 1, "from 0 to below 1, such as 0.9")
        self._expect("b2", 0 <= self.b2 < 1, "from 0 to below 1, such as 0.95")
        self._expect("eps", 0 <= self.eps < math.inf, "a finite number of at least 0, such as 1e-8")
        self._expect("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number of at least 0, such as 1e-4")
        self._expect("clip", self.clip > 0, "above 0, such as 1")
        self._expect("base_width", self.base_width >= 1, "at least 1")

    def _expect(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"optim.{name}: got {getattr(self, name)!r}, wanted {wanted}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn: temperature 0 is greedy; top_k 0 and top_p 1 leave the distribution whole.

    With both, the nucleus of `top_p` is taken among the `top_k`. A sequence ends at the first of its `stop` tokens.
    """

    temperature: float = 1.0  # of the draws; 0: greedy
    top_k: int = 0  # draw from so many of the most probable tokens; 0: all [tokens]
    top_p: float = 1.0  # draw from the fewest that hold this mass; 1: all
    stop: tuple[int, ...] = ()  # ids of tokens that end a sequence

    def __post_init__(self):
        wanted = {
            "temperature": (0 <= self.temperature < math.inf, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "a number above 0, at most 1"),
        }
        for name, (holds, text) in wanted.items():
            if not holds:
                raise ConfigError(f"{name} of sampling: got {getattr(self, name)!r}, wanted {text}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig(SamplingConfig):
    """How long a completion may be, and how its tokens are drawn."""

    new_tokens: int = 64  # of a completion, at most [tokens]

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "new_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(SamplingConfig):
    """Batches that the student samples and the teacher scores (generalised distillation, Agarwal et al. 2306.13649).

    A step is on-policy with probability `fraction`: the student continues the first `prompt_tokens` of each row, and
    only its own tokens count. They are not labels, so lambda is 1 in such a step.
    """

    fraction: float = 0.0  # of the steps whose batch the student writes
    prompt_tokens: int = 16  # of each row that it continues [tokens]

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"on_policy.fraction: got {self.fraction}, wanted a number from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """The weights that a run starts from instead of random ones: those of a finished run or of a published model.

    From a deeper source, 'every' takes layers evenly spaced from the first, 'first' the first ones, 'influence' those
    that change their input most; from a wider one, 'slice' takes the leading part of every dimension, 'importance' the
    channels, units and heads that do most (distill/model/warm_start.py). Both are measured on the run's own text. Rows
    of embedding and head belong to tokens: 'same' wants the source's tokenizer, 'text' carries the rows of the tokens
    that both have and draws the others with their mean and spread, 'number' takes rows by number, whatever they meant.
    """

    # folder of a finished run or a published model; '': random weights
    source: str = dataclasses.field(default="", metadata=Identity.excluded)
    run: str = ""  # the source's own name, filled in
    layers: Literal["every", "first", "influence"] = "every"  # which of a deeper source's layers
    # of a wider source: 'slice' takes the leading part, 'importance' what does most
    width: Literal["same", "slice", "importance"] = "same"
    calibration: int = 16_384  # of the run's text, on which importance and influence are measured [tokens]
    tokens: Literal["same", "text", "number"] = "same"  # which row of the source becomes a token's

    def __post_init__(self):
        if self.calibration < 1:
            raise ConfigError(f"init.calibration: got {self.calibration}, wanted at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The fixed validation set: `tokens` tokens in evenly spaced windows of the training length; and tasks."""

    tokens: int = 65_536  # of the validation set [tokens]
    batch_size: int = dataclasses.field(default=16, metadata=Identity.excluded)  # computed at once [windows]
    # evaluations between a run's first and last step, which are scored and sampled too; 0: the end alone, without a
    # sample
    along: int = dataclasses.field(default=0, metadata=Identity.excluded)
    tasks: tuple[str, ...] = ()  # of the lm-evaluation-harness, by name: their scores are columns of runs.csv
    # folder of task files (.yaml) of your own, in which tasks are looked for before the harness's own
    task_files: str = dataclasses.field(default="", metadata=Identity.excluded)
    # which of the evaluations along the run score the tasks: each n-th; 0: none, the end alone
    tasks_every: int = dataclasses.field(default=1, metadata=Identity.excluded)

    def __post_init__(self):
        for name, least in (("tokens", 1), ("batch_size", 1), ("along", 0), ("tasks_every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"eval.{name}: got {getattr(self, name)}, wanted at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh; data=-1 takes all devices that the other axes leave."""

    data: int = -1  # along which batches are split; -1: all that is left [devices]
    fsdp: int = 1  # along which weights and batches are split [devices]
    tensor: int = 1  # along which heads and widths are split [devices]
    context: int = 1  # neighbours along fsdp that share each sequence, where there are fewer sequences [devices]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the training loop runs; no field here changes the run's fingerprint."""

    steps_per_call: int = 16  # optimiser steps in one jitted call [steps]
    log_steps: int = 0  # steps a line of metrics.jsonl averages over; 0: about a hundred lines a run [steps]
    checkpoint_seconds: float = 60.0  # between checkpoints [seconds]
    # updates in a row (at most a quarter of all) that may be rejected before the run is stopped [steps]
    patience: int = 50
    keep: int = 2  # checkpoints on disk
    wandb: str = ""  # the project of Weights & Biases that is told too (pip install wandb)

    def __post_init__(self):
        check_positive(self, "steps_per_call", "patience")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One training run: a supervised model, or a student of a teacher when `teacher.run` names one."""

    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    teacher: TeacherConfig = TeacherConfig()
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    on_policy: OnPolicyConfig = OnPolicyConfig()
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=Identity.excluded)
    loop: LoopConfig = dataclasses.field(default=LoopConfig(), metadata=Identity.excluded)
    seed: int = 0  # of the initial weights and of what is drawn
    forked: str = ""  # 'RUN@STEP': the other run whose whole state this one began with (launch.train --fork)
    tokens: int = 250_000  # D: the training budget, cut down to whole steps; those of a fork's origin included [tokens]
    batch_size: int = 4  # sequences a step, over all hosts [sequences]
    seq_len: int = 128  # context of a sequence [tokens]
    # parts of a batch whose gradients are added before a step
    microbatches: int = dataclasses.field(default=1, metadata=Identity.excluded)

    def __post_init__(self):
        check_positive(self, "batch_size", "seq_len", "microbatches")
        if self.tokens > MOST_TOKENS:
            raise ConfigError(f"tokens={self.tokens:.3g}, wanted at most {MOST_TOKENS:.0e}; the largest runs have 1e14")
        if self.batch_size % self.microbatches:
            raise ConfigError(
                f"microbatches={self.microbatches} does not divide batch_size={self.batch_size}; choose a divisor"
            )
        if self.steps < 1:
            raise ConfigError(
                f"tokens={self.tokens} is less than one step of {self.batch_size} x {self.seq_len} tokens; "
                f"wanted at least {self.batch_size * self.seq_len}"
            )
        if self.on_policy.fraction:
            self._check_on_policy()
        if self.objective.features:
            self._check_features()
        if self.objective.cross_tokenizer != "none":
            self._check_cross_tokenizer()
        if self.mesh.context != 1:
            self._check_context()

    def _check_context(self) -> None:
        mesh, parts = self.mesh, 2 * self.mesh.context
        if mesh.context < 1 or mesh.fsdp % mesh.context:
            raise ConfigError(
                f"mesh.context={mesh.context} with mesh.fsdp={mesh.fsdp}: devices that share a sequence are neighbours "
                "along fsdp; wanted a divisor of fsdp"
            )
        if self.seq_len % parts:
            raise ConfigError(
                f"seq_len={self.seq_len} with mesh.context={mesh.context}: a sequence is cut into {parts} equal spans; "
                f"wanted a multiple of {parts} (of {128 * parts} for a TPU's attention kernel)"
            )
        if self.model.experts and self.objective.balance:
            raise ConfigError(
                f"mesh.context={mesh.context} with model.experts={self.model.experts}: objective.balance is by whole "
                "sequences, which no device has; set mesh.context=1, or objective.balance=0"
            )
        if self.on_policy.fraction or self.objective.cross_tokenizer != "none":
            raise ConfigError(
                f"mesh.context={mesh.context} with on_policy.fraction or objective.cross_tokenizer: a sequence that "
                "devices share is read from a store, by a teacher of the same tokens; set mesh.context=1"
            )

    def _check_cross_tokenizer(self) -> None:
        refused = {
            f"teacher.signal={self.teacher.signal!r}": self.teacher.signal == "memory",
            "teacher.mixture": bool(self.teacher.mixture),
            "objective.features": bool(self.objective.features),
            "on_policy.fraction": bool(self.on_policy.fraction),
        }
        for name, found in refused.items():
            if found:
                raise ConfigError(
                    f"objective.cross_tokenizer={self.objective.cross_tokenizer!r} with {name}: wanted one teacher "
                    "that runs in the step or whose signals are stored (launch.cache), on the tokens of the text"
                )

    def _check_features(self) -> None:
        deepest = max(mine for mine, _ in self.objective.feature_pairs)
        if deepest > self.model.n_layers:
            raise ConfigError(
                f"objective.features={self.objective.features}: the student has {self.model.n_layers} layers, got "
                f"layer {deepest}; wanted 0 (the embedding) to {self.model.n_layers}"
            )
        if self.teacher.signal != "online":
            raise ConfigError(
                f"objective.features with teacher.signal={self.teacher.signal!r}: a kept signal holds distributions "
                "and no hidden states; set teacher.signal='online'"
            )
        if self.teacher.mixture:
            raise ConfigError("objective.features with teacher.mixture: layers are those of one teacher; give source")

    def _check_on_policy(self) -> None:
        prompt, signal = self.on_policy.prompt_tokens, self.teacher.signal
        if not 1 <= prompt <= self.seq_len:
            raise ConfigError(
                f"on_policy.prompt_tokens: got {prompt}, wanted 1 to seq_len={self.seq_len}; the student writes the "
                "rest of a row"
            )
        if signal != "online":
            raise ConfigError(
                f"on_policy.fraction={self.on_policy.fraction} with teacher.signal={signal!r}: what the student writes "
                "was never stored; set teacher.signal='online'"
            )
        if self.data.packing != "windows" or self.data.completions_only:
            raise ConfigError(
                f"on_policy.fraction={self.on_policy.fraction} with data.packing={self.data.packing!r}, "
                f"data.completions_only={self.data.completions_only}: prompts are the first tokens of plain windows; "
                "set packing='windows' and completions_only=false"
            )

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch_size * self.seq_len)

    @property
    def stable_steps(self) -> int:
        """The first step of the decay: before it, runs of one trunk are the same run."""
        if self.optim.schedule != "wsd":
            return 0
        return self.steps - round(self.optim.decay_fraction * self.steps)


def trunk_fingerprint(config: ExperimentConfig) -> str:
    """The fingerprint of the constant-rate part that runs share when they differ only in their number of tokens.

    Runs share a trunk only under a WSD schedule and a constant objective; any other run is its own trunk. Runs of one
    trunk have correlated errors, so this is also the cluster of the bootstrap.
    """
    if config.optim.schedule != "wsd" or config.objective.schedule != "constant":
        return fingerprint(config)
    return digest(["trunk", *(item for item in sorted(identity(config)) if item[0] != "tokens")])
