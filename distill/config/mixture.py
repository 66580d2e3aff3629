"""The name of several teachers that teach as one: what a student of a mixture, or of an ensemble, calls its teacher."""

import re
from collections.abc import Sequence


def mixture_run(parts: Sequence[tuple[str, float]]) -> str:
    """The fingerprint of one teacher; of a mixture, all fingerprints with their weights, whatever their order."""
    return parts[0][0] if len(parts) == 1 else "+".join(sorted(f"{run}@{weight:.6g}" for run, weight in parts))


def teachers_of(run: str) -> tuple[str, ...]:
    """The fingerprints that `mixture_run` joined; of one teacher, its own; of none (''), none."""
    parts = [part.rpartition("@") for part in run.split("+")]
    mixed = len(parts) > 1 and all(name and re.fullmatch(r"[0-9.]+(e-[0-9]+)?", weight) for name, _, weight in parts)
    return tuple(name for name, _, _ in parts) if mixed else (run,) if run else ()
