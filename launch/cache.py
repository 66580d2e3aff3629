"""Stores a teacher's signal once, for every student that will learn from it.

--config is that of the students: its data, seq_len and tokens say which windows are stored, its objective what is
stored of them unless --kind says otherwise, and its mesh computes them. The same command resumes an interrupted store.

--kind=topk     the --top_k most probable tokens and the mass of the others
       topp     the fewest that hold --top_p of the mass, at least --floor and at most --top_k
       sampled  --draws tokens drawn from p^--proposal by --seed; the loss under them is unbiased
       hidden   the last hidden states, in --dtype, and the head: everything
       argmax   the most probable token
       full     the whole distribution
       chunks   of a teacher with another tokenizer (objective.cross_tokenizer=likelihood): every chunk's probability
       cells    of such a teacher (projection): the distribution over common cells

With --config.teacher.server=URL in place of a source, a server with vLLM's completions is asked for --kind=topk.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import ExperimentConfig
from distill.config.flags import Parser, at_least, number
from distill.system import process, progress
from launch.support import cli

if TYPE_CHECKING:
    from distill.teacher.signals.manifest import SignalManifest
    from distill.teacher.signals.spec import SignalSpec

EXAMPLES = (
    "distill cache --config=configs/signals.py:topk --config.teacher.source=runs/teacher --out=stores/topk",
    "distill cache --config.teacher.source=runs/teacher --kind=sampled --draws=20 --out=stores/sampled",
    "distill cache --config=configs/signals.py:topk --config.teacher.server=http://localhost:8000 --out=stores/served",
    "distill cache --out=stores/topk --verify",
)
_KINDS = ("topk", "topp", "sampled", "hidden", "argmax", "full", "chunks", "cells")
_NUMBERS = ("top_k", "top_p", "floor", "draws", "proposal", "seed", "dtype")


def parser() -> Parser:
    parser = cli.experiment_parser("cache", __doc__, EXAMPLES)
    add = parser.group("the store")
    add("--out", "--output", required=True, metavar="DIR", help="folder of the store")
    add(
        "--windows", default="run", choices=("run", "all"), help="those that a run of this config reads, or the split's"
    )
    add("--shard_tokens", type=at_least(1), default=262_144, metavar="N", help="tokens of one file")
    add("--verify", action="store_true", help="read every byte of the store at --out and compare every digest")
    add = parser.group("what is stored", "without --kind, what the config's objective asks for")
    add("--kind", choices=_KINDS, help="see above")
    add("--top_k", type=at_least(1), metavar="N", help="of topk and topp (default 128)")
    add("--top_p", type=number, metavar="P", help="of topp (default 0.9)")
    add("--floor", type=at_least(1), metavar="N", help="of topp (default 1)")
    add("--draws", type=at_least(1), metavar="N", help="of sampled (default 50)")
    add("--proposal", type=number, metavar="POWER", help="of sampled (default 1.0)")
    add("--seed", type=at_least(0), metavar="N", help="of sampled (default 0)")
    add("--dtype", choices=("float16", "bfloat16", "float32"), help="of hidden (default float16)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    config = cli.config_of(ExperimentConfig, flags)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.teacher.signals.reader import SignalStore
    from distill.teacher.signals.spec import SignalSpec

    if flags.verify:
        began = time.monotonic()
        store = SignalStore(flags.out)
        store.verify()
        print(f"{flags.out}: every record matches its digest ({time.monotonic() - began:.1f} s)")
        _describe(flags.out, store.manifest)
        return 0
    given = {name: value for name in ("kind", *_NUMBERS) if (value := getattr(flags, name)) is not None}
    signal = SignalSpec.of(config.objective, **given)
    process.cache_compilations()
    _describe(flags.out, _follow(config, signal, flags.out, flags.windows == "all", flags.shard_tokens))
    return 0


def _follow(
    config: ExperimentConfig, signal: "SignalSpec", out: str, every: bool, shard_tokens: int
) -> "SignalManifest":
    """Makes the store, and says how far it is."""
    from distill.training import cache, served

    make = served.cache_served if config.teacher.server else cache.cache_signals
    with progress.bar("asking the server" if config.teacher.server else "loading the teacher") as show:
        return make(config, signal, out, every=every, shard_tokens=shard_tokens, on_progress=show)


def _describe(out: str, manifest: "SignalManifest") -> None:
    from distill.teacher.signals import summary

    signal = manifest["recipe"]["signal"]
    numbers = " ".join(f"{name}={value}" for name, value in signal.items() if name != "kind")
    print(f"{Path(out)}: {signal['kind']} {numbers}".rstrip())
    print("\n".join(summary.describe(manifest)))


if __name__ == "__main__":
    sys.exit(cli.guard(main))
