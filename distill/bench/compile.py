"""Steps compiled for TPUs and GPUs that are not there: the compilers' estimates of seconds, MFU, memory and traffic.

    python -m launch.bench compile [--programs=NAME;NAME | --chips=v5e,h100 | --small] [--with=FLAGS;FLAGS]
        [--out=FILE] [--against=FILE] [--peers=maxtext]

Each program is one `launch.dryrun --estimate` in a process of its own, because a compiler reads its settings once.
Prints a table. Nothing here was ever measured; compare the lines of one compiler. --out writes the figures as JSON,
beside those of other programs that the file already has. --with compiles each program with other flags of the dry run,
such as --with='--config.model.remat=none;--config.model.remat=dots': a line each, named by the flags. --against
compares with such a file: exit code 1 where seconds, memory or a kind of traffic grew by more than a tenth, under the
same versions; under others it only prints. --peers=maxtext adds MaxText's step at the same shape, by the same
instrument, to each program of a TPU; MAXTEXT_PYTHON names the interpreter of its environment (docs/guide/scale.md).
A chip whose compiler is not installed is left out in one line. Minutes a program, on one core.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from distill.bench import maxtext_peers
from distill.config import ConfigError, nearest
from distill.config.chips import CHIPS
from distill.config.flags import Parser
from distill.system import progress
from distill.system.files import atomic_write, loads

Figures: TypeAlias = dict[str, Any]  # report.figures, and the command's `flags`

PEERS = ("maxtext",)
GROWTH = 1.10  # of a figure, beyond which --against fails
LEAST_GB = 0.05  # traffic below this is not compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A step and the chip that it is compiled for, as flags of `launch.dryrun`; small ones take a minute."""

    chip: str
    flags: tuple[str, ...]
    small: bool = False

    @property
    def command(self) -> list[str]:
        return [f"--chip={self.chip}", *self.flags]


def _scale(chip: str, *flags: str) -> Program:
    return Program(chip=chip, flags=(f"--config=configs/scale.py:{chip}", *flags))


def _rung(model: str, chip: str, mesh: str, batch: int, *flags: str, small: bool = False) -> Program:
    config = f"--config=configs/train.py:{model}", f"--config.batch_size={batch}", f"--mesh={mesh}"
    return Program(chip=chip, flags=(*config, *flags), small=small)


_TEACHER = "--teacher=12.6B"
PROGRAMS = {
    "7.75B supervised, 256 v5e": _scale("v5e"),
    "7.75B from 12.6B, 256 v5e": _scale("v5e", _TEACHER),
    "7.75B from 12.6B, 64 v5p": _scale("v5p", _TEACHER),
    "1.15B supervised, 8 v6e": _rung("1.15B", "v6e", "fsdp=8", 32),
    "7.75B from 12.6B, 64 h100": _scale("h100", _TEACHER),
    "103M supervised, 8 h100": _rung("103M", "h100", "fsdp=8", 64, small=True),
    "103M from 143M, 8 h100": _rung("103M", "h100", "fsdp=8", 64, "--teacher=143M", small=True),
    "103M supervised, 4 v5e": _rung("103M", "v5e", "fsdp=4", 16, small=True),
    "103M from 143M, 4 v6e": _rung("103M", "v6e", "fsdp=4", 32, "--teacher=143M", small=True),
}


def changed(name: str, flags: str) -> tuple[str, Program]:
    """A program with more flags: '103M supervised, 4 v5e + model.remat=dots'."""
    more = flags.split()
    one = PROGRAMS[name]
    said = " ".join(flag.removeprefix("--config.").removeprefix("--") for flag in more)
    return f"{name} + {said}", dataclasses.replace(one, flags=(*one.flags, *more))


def compiled(program: Program) -> Figures:
    """The figures of one program. Raises ConfigError with the compiler's words where it cannot be compiled."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "launch.dryrun", *program.command, "--estimate", f"--json={path}"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
        if not path.exists():
            said = (done.stdout + done.stderr).strip().splitlines() or [f"ended with {done.returncode}"]
            raise ConfigError(f"launch.dryrun {' '.join(program.command)}: {said[-1]}")
        return {"flags": program.command, **loads(path.read_text("utf-8"))}


def table(found: Mapping[str, Figures]) -> str:
    """Markdown: a line a program, and one after it for its peer."""
    titles = ["program", "s a step", "MFU", "products", "attention", "loss", "elementwise, copies", "optimizer"]
    titles += ["exposed network", "GiB", "gathered / scattered / all-reduced, GB"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lined = [line for name, one in found.items() for line in ((name, one), *_peers(name, one))]
    for name, one in lined:
        parts, sent = one["estimated_parts"], one["sent_gb"]
        values = [name, f"{one['estimated_seconds']:.3f}", f"{100 * one['estimated_mfu']:.1f}%"]
        values += [f"{parts[part]:.3f}" for part in ("products", "attention", "loss")]
        values += [f"{parts['elementwise'] + parts['copies']:.3f}", f"{parts['optimizer']:.3f}"]
        values += [f"{parts['network']:.3f}", f"{one['gib']:.2f}"]
        kinds = ("all-gather", "reduce-scatter", "all-reduce")
        values.append(" / ".join(f"{sent.get(kind, 0.0):.2f}" for kind in kinds))
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def _peers(name: str, one: Figures) -> list[tuple[str, Figures]]:
    """The peers of a program's figures: 'MaxText 0.2.5: 103M supervised, 4 v5e'."""
    return [(f"{peer}: {name}", figures) for peer, figures in one.get("peers", {}).items()]


def _peers_of(before: Figures, now: Figures) -> Figures:
    """The peers that a file has of a program whose flags are still the same."""
    return {"peers": before["peers"]} if "peers" in before and before["flags"] == now["flags"] else {}


def _beside(name: str, ours: Figures) -> Figures:
    """Figures with those of MaxText's step at the same shape; as they were, in one line, where it has none."""
    if reason := maxtext_peers.unlike(ours):
        print(f"{name}: MaxText is left out: {reason}", flush=True)
        return ours
    with progress.bar(f"MaxText: {name}: compiled (minutes)", transient=True):
        peer, figures = maxtext_peers.compiled(ours)
    return ours | {"peers": {peer: figures}}


def grown(new: Figures, old: Figures) -> list[str]:
    """What is larger by more than a tenth: 'estimated seconds 2.3 (committed: 2.0)'."""

    def compared(one: Figures) -> dict[str, float]:
        sent = {f"{kind}, GB": gb for kind, gb in one["sent_gb"].items() if gb > LEAST_GB}
        return {"estimated seconds": one["estimated_seconds"], "GiB": one["gib"], **sent}

    before = compared(old)
    return [
        f"{what} {value} (committed: {before.get(what, 0.0)})"
        for what, value in compared(new).items()
        if value > GROWTH * before.get(what, 0.0)
    ]


def same_versions(new: Figures, old: Figures) -> bool:
    """Whether the same compiler made both, from the same JAX."""
    return all(new[name] == old[name] for name in ("compiler", "jax"))


def read(path: Path) -> dict[str, Figures]:
    """The programs of a file of figures. Raises ConfigError."""
    try:
        found = loads(path.read_text("utf-8"))["programs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a file that `bench compile --out` wrote: {error}") from None
    return dict(found)


def _place(item: tuple[str, Figures]) -> int:
    """Where a program stands in a file: in the order of PROGRAMS, its changes after it, others last."""
    name = item[0].partition(" + ")[0]
    return list(PROGRAMS).index(name) if name in PROGRAMS else len(PROGRAMS)


def _written(out: Path, kept: Mapping[str, Figures], name: str, now: Figures) -> dict[str, Figures]:
    """The programs of a file with these figures of one, and writes them."""
    programs = {**kept, name: _peers_of(kept.get(name, {}), now) | now}
    atomic_write(out, json.dumps({"programs": dict(sorted(programs.items(), key=_place))}, indent=1) + "\n")
    return programs


def _chosen(programs: str, chips: str, small: bool) -> list[str]:
    names = [name for name, one in PROGRAMS.items() if one.small] if small else list(PROGRAMS)
    if programs:
        names = [name.strip() for name in programs.split(";")]
        for name in names:
            if name not in PROGRAMS:
                raise ConfigError(f"--programs: there is no {name!r}; wanted some of {'; '.join(PROGRAMS)}."
                                  f"{nearest(name, PROGRAMS)}")  # fmt: skip
    known = list(dict.fromkeys(one.chip for one in PROGRAMS.values()))
    wanted = chips.split(",") if chips else known
    for chip in wanted:
        if chip not in known:
            raise ConfigError(f"--chips: no program is of {chip!r}, only of {', '.join(known)}.{nearest(chip, known)}")
    return [name for name in names if PROGRAMS[name].chip in wanted]


def _installed(programs: Mapping[str, Program]) -> dict[str, Program]:
    """Those whose compiler is here; says which are left out."""
    from distill.diagnostics.dryrun import compiler

    kept, said = dict[str, Program](), set[str]()
    for name, one in programs.items():
        reason = compiler.missing(CHIPS[one.chip])
        if not reason:
            kept[name] = one
        elif reason not in said:
            said.add(reason)
            print(f"{one.chip} is left out: {reason}", flush=True)
    return kept


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a program; 1 where a figure grew beyond those of --against."""
    parser = Parser("bench compile", __doc__)
    parser.add_argument("--programs", default="", help=f"names with ';' between them: {'; '.join(PROGRAMS)}")
    parser.add_argument("--chips", default="", help="only programs of these chips")
    parser.add_argument("--small", action="store_true", help="only those that take about a minute")
    parser.add_argument(
        "--with",
        default="",
        dest="more",
        metavar="FLAGS;FLAGS",
        help="flags of the dry run that change each program, ';' between one change and the next",
    )
    parser.add_argument("--out", default="", metavar="FILE", help="JSON of figures; programs already in it stay")
    parser.add_argument("--against", default="", metavar="FILE", help="the figures that must not grow by a tenth")
    parser.add_argument("--peers", default="", choices=PEERS, help="whose step at the same shape is set beside ours")
    flags = parser.parse_args(argv)
    names = _chosen(flags.programs, flags.chips, flags.small)
    changes = [one for one in flags.more.split(";") if one.strip()]
    programs = dict(changed(name, one) for name in names for one in changes) or {name: PROGRAMS[name] for name in names}
    before = read(Path(flags.against)) if flags.against else {}
    out = Path(flags.out) if flags.out else None
    kept = read(out) if out and out.exists() else {}
    os.environ["JAX_PLATFORMS"] = "cpu"
    absent = maxtext_peers.missing() if flags.peers else ""
    if absent:
        print(f"MaxText is left out: {absent}", flush=True)
    found, worse = dict[str, Figures](), False
    for name, program in _installed(programs).items():
        with progress.bar(f"{name}: compiled (minutes)", transient=True):
            found[name] = compiled(program)
        if out:  # after each, for the next may be killed
            kept = _written(out, kept, name, found[name])
        if flags.peers and not absent:
            found[name] = _beside(name, found[name])
            kept = _written(out, kept, name, found[name]) if out else kept
    print(table(found))
    if any("peers" in one for one in found.values()):
        print(f"\n{maxtext_peers.beside(found)}")
    for name, one in found.items():
        print(f"{name}: {one['compiler']}, jax {one['jax']}; attention: {one.get('attention') or 'as configured'}")
        for peer, other in _peers(name, one):
            alike = (
                ""
                if other["compiler"] == one["compiler"]
                else " (another compiler than ours: their ratio says nothing)"
            )
            print(f"{peer}: {other['compiler']}{alike}, jax {other['jax']}; attention: {other['attention']}")
        if name in before and (larger := grown(one, before[name])):
            same = same_versions(one, before[name])
            worse = worse or same
            print(f"{name}: {'GREW' if same else 'grew, under other versions'}: {', '.join(larger)}")
    print("seconds and MFU are estimates of the compilers, never measured")
    return int(worse)
