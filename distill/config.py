"""The experiment's configuration: frozen dataclasses, and the strict way in and out of them.

A config file (configs/*.py) returns a plain tree; `build` turns it once into frozen, hashable dataclasses or raises
an error that names the path, what it got, what it wanted and the nearest valid name. Inside `distill` only these
dataclasses travel, and a function takes the smallest one that it needs. Standard library only.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from distill.data.config import DataConfig
from distill.errors import ConfigError as ConfigError
from distill.errors import DistillError as DistillError
from distill.objective_config import ObjectiveConfig

T = TypeVar("T")


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the valid name closest to a misspelt one, or '' where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}, wanted at least 1")


class Identity:
    """Marks for dataclass fields: what a run *is* enters its fingerprint, how it is carried out does not."""

    excluded: Mapping[str, Any] = types.MappingProxyType({"identity": False})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The paper's decoder-only transformer (section 4 and Appendix I). A zero asks for the derived value.

    Sizes follow the glossary in distill/types.py: D = d_model, F = ff_dim, H = n_heads, G = kv_heads, K = head_dim.
    """

    vocab_size: int = 256  # rows of the embedding and the head
    valid_vocab: int = 0  # 0: vocab_size; fewer: the last rows are padding, which never has or gives probability
    d_model: int = 32
    n_layers: int = 2
    n_heads: int = 2
    n_kv_heads: int = 0  # 0: n_heads (MHA); fewer: grouped-query attention
    d_head: int = 0  # 0: d_model / n_heads
    d_ff: int = 0  # 0: 8/3 d_model, rounded up to a multiple of d_ff_multiple
    d_ff_multiple: int = 128
    tied: bool = True
    qk_norm: bool = True
    qkv_bias: bool = False
    rope_base: float = 500_000.0
    norm_eps: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and matmuls; parameters are float32
    remat: Literal["none", "dots", "full"] = dataclasses.field(default="none", metadata=Identity.excluded)
    unroll: int = dataclasses.field(default=1, metadata=Identity.excluded)  # layers per step of the layer scan

    def __post_init__(self):
        _check_positive(self, "vocab_size", "d_model", "n_layers", "n_heads", "d_ff_multiple", "unroll")
        if not self.d_head and self.d_model % self.n_heads:
            raise ConfigError(
                f"model: d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; "
                "change one of them or give d_head"
            )
        if self.n_heads % self.kv_heads:
            raise ConfigError(
                f"model: n_heads={self.n_heads} is not a multiple of n_kv_heads={self.kv_heads}; "
                "every key-value head serves the same number of query heads"
            )
        if not 0 <= self.valid_vocab <= self.vocab_size:
            raise ConfigError(f"model: valid_vocab={self.valid_vocab}, wanted at most vocab_size={self.vocab_size}")
        if self.head_dim % 2:
            raise ConfigError(f"model: head_dim={self.head_dim} is odd; rotary positions need pairs")

    @property
    def tokens(self) -> int:
        """How many columns of the head stand for a token."""
        return self.valid_vocab or self.vocab_size

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def ff_dim(self) -> int:
        return self.d_ff or -(-8 * self.d_model // (3 * self.d_ff_multiple)) * self.d_ff_multiple


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with independent weight decay under muP (simple); the paper's values (section 4).

    `wsd` is warmup, a constant rate, then a 1-sqrt decay to zero over the last `decay_fraction` of the steps: runs
    that differ only in their length share the constant part, which is what lets one trunk serve several budgets.
    """

    learning_rate: float = 1e-2
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup_steps: int = 40
    decay_fraction: float = 0.25  # wsd only
    final_ratio: float = 1e-3  # cosine only: the last rate over the peak
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip: float = 1.0  # of the gradient's global norm
    mup: bool = True
    base_width: int = 32  # the fan-in at which a linear layer trains at learning_rate itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which finished run teaches, and how its signal reaches the student.

    `run` is the teacher's own fingerprint and enters the student's; `source` is where that run lies on this machine
    and does not. 'online' runs the teacher inside the step; 'memory' computes its log-probabilities once a window and
    keeps them (float16) for every later epoch and student of the same process, up to `memory_gib`.
    """

    run: str = ""
    source: str = dataclasses.field(default="", metadata=Identity.excluded)
    signal: Literal["online", "memory"] = dataclasses.field(default="online", metadata=Identity.excluded)
    memory_gib: float = dataclasses.field(default=1.0, metadata=Identity.excluded)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The fixed validation set: `tokens` of them, in evenly spaced windows of the training length."""

    tokens: int = 65_536
    batch_size: int = dataclasses.field(default=16, metadata=Identity.excluded)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh; data=-1 takes all that the other axes leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the loop is carried out; nothing here changes which run it is."""

    steps_per_call: int = 16  # optimiser steps in one jitted call
    log_steps: int = 0  # steps a line of metrics.jsonl averages over; 0: about a hundred lines a run
    checkpoint_seconds: float = 60.0
    keep: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One training run: a supervised model, or a student of a teacher when `teacher.run` names one."""

    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=Identity.excluded)
    loop: LoopConfig = dataclasses.field(default=LoopConfig(), metadata=Identity.excluded)
    seed: int = 0
    tokens: int = 250_000  # D: the training budget, cut down to whole steps
    batch_size: int = 4  # sequences a step, over all hosts
    seq_len: int = 128
    microbatches: int = dataclasses.field(default=1, metadata=Identity.excluded)

    def __post_init__(self):
        _check_positive(self, "batch_size", "seq_len", "microbatches")
        if self.batch_size % self.microbatches:
            raise ConfigError(
                f"microbatches={self.microbatches} does not divide batch_size={self.batch_size}; choose a divisor"
            )
        if self.steps < 1:
            raise ConfigError(
                f"tokens={self.tokens} is less than one step of {self.batch_size} x {self.seq_len} tokens; "
                f"wanted at least {self.batch_size * self.seq_len}"
            )

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch_size * self.seq_len)

    @property
    def stable_steps(self) -> int:
        """The first step of the decay: up to it, runs of one trunk are the same run."""
        if self.optim.schedule != "wsd":
            return 0
        return self.steps - round(self.optim.decay_fraction * self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A matrix of runs over models, budgets and teachers, written as one line a group.

    models      'name = width x layers', e.g. 'c = 32x2'; everything else is taken from the experiment's model
    supervised  'models @ budgets', e.g. 'p q c @ 125K 250K'; trained on the students' half of the text
    teachers    'models @ budgets'; trained on the teachers' half
    distilled   'teachers > models @ budgets', e.g. 'c@250K r@1M > p q @ 125K 250K'
    """

    models: tuple[str, ...] = ()
    supervised: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    distilled: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    workers: int = 2  # processes, each pinned to its share of the cores
    resamples: int = 512  # of the bootstrap
    ask_model: str = ""  # the student size of the closing advice; '': the largest student
    ask_tokens: int = 0  # its tokens; 0: twice the largest budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyExperimentConfig(ExperimentConfig):
    """A study: the experiment that its runs share, plus the matrix."""

    study: StudyConfig = StudyConfig()


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a tuple of {typing.get_args(hint)[0].__name__}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(hint, hint.__name__)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """The value as its field wants it; ConfigError where that would change or lose something."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        item = typing.get_args(hint)[0]
        return tuple(_convert(v, item, f"{path}[{i}]") for i, v in enumerate(value))
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        suggestion = nearest(str(value), [str(v) for v in typing.get_args(hint)])
        raise ConfigError(f"{path}: got {value!r}, wanted {_type_name(hint)}.{suggestion}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, bool, str) and type(value) is hint:
        return value
    raise ConfigError(f"{path}: got {value!r} ({type(value).__name__}), wanted {_type_name(hint)}")


def build(cls: type[T], tree: Mapping[str, Any], path: str = "config") -> T:
    """A frozen dataclass from a plain tree, strictly.

    Raises ConfigError for an unknown name (with the nearest valid one), a wrong type or an impossible value.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: got {tree!r}, wanted a tree with the fields of {cls.__name__}")
    hints = _hints(cls)
    for name in tree:
        if name not in hints:
            raise ConfigError(f"{path}.{name}: there is no such field.{nearest(name, hints)}")
    return cls(**{name: _convert(value, hints[name], f"{path}.{name}") for name, value in tree.items()})


def parse(cls: type, path: str, text: str) -> Any:
    """The value that a command line's `--config.PATH=TEXT` means for that field of `cls`.

    Integers may be written 250_000, 2.5e5, 250K, 1M or 2B; tuples as comma-separated items. Raises ConfigError.
    """
    where = f"config.{path}"
    hint: Any = cls
    for i, name in enumerate(path.split(".")):
        if not dataclasses.is_dataclass(hint) or name not in _hints(typing.cast(type, hint)):
            known = _hints(typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else {}
            at = ".".join(["config", *path.split(".")[:i]])
            raise ConfigError(f"{where}: {at} has no field {name!r} (value {text!r}).{nearest(name, known)}")
        hint = _hints(typing.cast(type, hint))[name]
    if dataclasses.is_dataclass(hint):
        inside = ", ".join(_hints(typing.cast(type, hint)))
        raise ConfigError(f"{where}: got {text!r} for a group of fields; set one of {inside}")
    return _parse_text(text, hint, where)


def _parse_text(text: str, hint: Any, where: str) -> Any:
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if hint is int:
            return parse_count(text)
        if hint is float:
            return float(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: got {text!r}, wanted {_type_name(hint)}") from None
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_parse_text(part.strip(), item, where) for part in text.split(",") if part.strip())
    return _convert(text, hint, where)


def parse_count(text: str) -> int:
    """A whole number, with underscores, an exponent or a suffix: 250_000 = 2.5e5 = 250K; ValueError otherwise."""
    scale = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}.get(text[-1:].upper(), 1)
    number = text[:-1] if scale > 1 else text
    try:
        return int(number) * scale
    except ValueError:
        value = float(number) * scale
        if value % 1 != 0:  # true of inf and nan as well
            raise ValueError(text) from None
        return round(value)


def to_flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field as {'a.b.c': value}, in the order of the dataclasses."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= to_flat(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat


def to_text(config: Any) -> str:
    """`key = value` lines with JSON values: what stands beside every checkpoint, read back by `from_text`."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in to_flat(config).items())


def from_text(cls: type[T], text: str, where: str = "config.txt") -> T:
    """The config that `to_text` wrote; lines that start with # are skipped. Raises ConfigError."""
    tree: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, separator, value = line.partition(" = ")
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        try:
            node[last] = json.loads(value)
        except (json.JSONDecodeError, TypeError):
            raise ConfigError(f"{where}, line {number}: got {line!r}, wanted `key = JSON value`") from None
        if not separator:
            raise ConfigError(f"{where}, line {number}: got {line!r}, wanted `key = JSON value`")
    return build(cls, tree, where)


def identity(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields that make a run what it is and that differ from the defaults of their own class."""
    for field in dataclasses.fields(config):
        if field.metadata.get("identity", True):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                yield from identity(value, f"{prefix}{field.name}.")
            elif value != field.default:
                yield prefix + field.name, value


def fingerprint(config: Any) -> str:
    """Twelve hex digits that name what this run is.

    Only fields that differ from their defaults are hashed, without paths, logging or device fields, and a teacher
    enters by its own fingerprint; so a field added later, with the old behaviour as its default, orphans no run.
    """
    return _digest(sorted(identity(config)))


def trunk_fingerprint(config: ExperimentConfig) -> str:
    """Names the constant-rate part that runs share when they differ only in their number of tokens.

    Only a WSD schedule has one, and only under an objective that stays the same; any other run is a trunk of its own.
    Runs of one trunk have correlated errors, so this is also the cluster of the bootstrap.
    """
    if config.optim.schedule != "wsd" or config.objective.schedule != "constant":
        return fingerprint(config)
    return _digest(["trunk", *(item for item in sorted(identity(config)) if item[0] != "tokens")])


def _digest(items: list[Any]) -> str:
    return hashlib.sha256(json.dumps(items, separators=(",", ":")).encode()).hexdigest()[:12]
