"""Slurm's lists of nodes: 'node[001-004,9],rack[0-1]n[3-4].cluster.local' names thirteen hosts."""

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator

from distill.errors import ConfigError

_LONGEST = 10_000  # characters
_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\],\s]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def first(nodes: str) -> str:
    """The first host of a list, by `scontrol show hostnames` where that is, else by `hosts`. Raises ConfigError."""
    if shutil.which("scontrol"):
        try:
            argv = ["scontrol", "show", "hostnames", nodes]
            said = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            said = None
        # Some versions refuse what others write, as a suffix behind a bracket.
        if said and said.returncode == 0 and said.stdout.split():
            return said.stdout.split()[0]
    return next(hosts(nodes))


def hosts(nodes: str) -> Iterator[str]:
    """Yields the hosts of a list in order; of several brackets the last one runs fastest. Raises ConfigError."""
    if len(nodes) > _LONGEST:
        raise ConfigError(
            f"the list of nodes {nodes:.40}... has {len(nodes):,} characters, wanted at most {_LONGEST:,}"
        )
    entries = [_entry(nodes, text) for text in re.split(r",(?![^\[]*\])", nodes) if text]
    if not entries:
        raise ConfigError(f"the list of nodes is {nodes!r}, wanted names such as node7 or node[001-004,9]")
    for pieces in entries:
        for parts in itertools.product(*pieces):
            yield "".join(parts)


def _entry(nodes: str, text: str) -> list[list[str]]:
    """The alternatives of each piece of one entry: a name as it is, or the numbers of a bracket."""
    found, at = [], 0
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None:
            raise ConfigError(f"the list of nodes {nodes!r:.100} cannot be read at {text[at:]!r:.40}")
        found.append([match[2]] if match[1] is None else list(_numbers(nodes, match[1])))
        at = match.end()
    return found


def _numbers(nodes: str, inside: str) -> Iterator[str]:
    """The numbers of a bracket ('001-004,9'), each as wide as the first of its range."""
    for part in inside.split(","):
        match = _RANGE.fullmatch(part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match and len(part) < 40 else (1, 0)
        if match is None or not low <= high < low + 100_000:
            raise ConfigError(f"the list of nodes {nodes!r:.100} has the range {part!r:.40}, wanted one as 001-004")
        for number in range(low, high + 1):
            yield f"{number:0{len(match[1])}d}"
