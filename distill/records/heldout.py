"""heldout.jsonl: what a run scored on held-out text at some of its steps, a line each, with samples of its text."""

import dataclasses
import json
from pathlib import Path

from distill.errors import DistillError
from distill.system.files import atomic_write

FILE = "heldout.jsonl"


class HeldOutError(DistillError):
    """A heldout.jsonl that cannot be read: which line, and what was wanted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Scores of a run at a step: loss and kl in nats per token; kl and agreement with a teacher only.

    scores: on tasks (eval.tasks), by 'task:metric'; None where none was scored here
    sample: how the model continues `prompt`, the beginning of a held-out text, by its likeliest tokens.
    """

    step: int
    tokens: int
    loss: float
    loss_se: float = 0.0
    bits_per_byte: float = 0.0
    ece: float = 0.0
    kl: float | None = None
    agreement: float | None = None
    scores: dict[str, float] | None = None
    prompt: str = ""
    sample: str = ""


def load(path: Path) -> list[HeldOut]:
    """The lines in the order of their steps, [] where there is no file; a torn last line is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    found = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            one = _line(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HeldOutError(f"{path}, line {number}: {error}; wanted an object with step, tokens and loss") from None
        found[one.step] = one
    return [found[step] for step in sorted(found)]


def keep(path: Path, done: int) -> None:
    """Drops the lines of steps after `done`, which will be made again; of a run that begins anew, all of them."""
    kept = [one for one in load(path) if 0 < done >= one.step]
    if path.exists():
        lines = (json.dumps({k: v for k, v in dataclasses.asdict(one).items() if v is not None}) for one in kept)
        atomic_write(path, "".join(f"{line}\n" for line in lines))


def _line(tree: dict[str, object]) -> HeldOut:
    number = lambda name: float(str(tree.get(name, 0.0)))
    known = lambda name: float(str(tree[name])) if name in tree else None
    return HeldOut(
        step=int(str(tree["step"])),
        tokens=int(str(tree["tokens"])),
        loss=float(str(tree["loss"])),
        loss_se=number("loss_se"),
        bits_per_byte=number("bits_per_byte"),
        ece=number("ece"),
        kl=known("kl"),
        agreement=known("agreement"),
        scores=_scores(tree.get("scores")),
        prompt=str(tree.get("prompt", "")),
        sample=str(tree.get("sample", "")),
    )


def _scores(found: object) -> dict[str, float] | None:
    return {str(name): float(str(value)) for name, value in found.items()} if isinstance(found, dict) else None
