"""Stores what a teacher says, once, for every student that will learn from it.

    python -m launch.cache --config=configs/signals.py:topk --config.teacher.source=runs/teacher --out=stores/topk
    python -m launch.train --config=configs/signals.py:topk --config.teacher.store=stores/topk --workdir=runs/student

--config is that of the students: its data, seq_len and tokens say which windows are stored (--windows=all: all of the
split), its objective what is stored of them, unless --kind says otherwise; its mesh computes them. The same command
goes on with a store that was interrupted.

--kind=topk     the --top_k=128 likeliest tokens and the mass of the others
       topp     the fewest that hold --top_p=0.9, at least --floor=1 and at most --top_k=128
       sampled  --draws=50 tokens drawn from p^--proposal=1.0, by --seed=0; the loss under them is unbiased
       hidden   the last hidden states, in --dtype=float16, and the head: everything
       argmax, full

--verify reads every byte of the store at --out and compares every digest.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import ConfigError, ExperimentConfig, parse
from distill.system import process
from launch.support import cli, progress

if TYPE_CHECKING:
    from distill.teacher.signals.manifest import Manifest
    from distill.teacher.signals.spec import SignalSpec

_NUMBERS = ("top_k", "top_p", "floor", "draws", "proposal", "seed", "dtype")


def main(argv: Sequence[str] | None = None) -> int:
    flags: dict[str, str | None] = {"out": None, "kind": "", "windows": "run", "shard_tokens": "262144"}
    flags |= dict.fromkeys(_NUMBERS, "") | {"verify": "false"}
    config, values = cli.configured(ExperimentConfig, argv, __doc__ or "", "configs/train.py", flags)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.teacher.signals.reader import SignalStore
    from distill.teacher.signals.spec import SignalSpec

    if values["windows"] not in ("run", "all"):
        raise ConfigError(f"--windows={values['windows']}: wanted run (what a run of this config reads) or all")
    if values["verify"] == "true":
        began = time.monotonic()
        store = SignalStore(values["out"])
        store.verify()
        print(f"{values['out']}: every record matches its digest ({time.monotonic() - began:.1f} s)")
        _describe(values["out"], store.manifest)
        return 0
    given = {name: parse(SignalSpec, name, values[name]) for name in ("kind", *_NUMBERS) if values[name]}
    signal = SignalSpec.of(config.objective, **given)
    shard_tokens = parse(ExperimentConfig, "tokens", values["shard_tokens"])
    process.cache_compilations()
    _describe(values["out"], _follow(config, signal, values["out"], values["windows"] == "all", shard_tokens))
    return 0


def _follow(config: ExperimentConfig, signal: "SignalSpec", out: str, every: bool, shard_tokens: int) -> "Manifest":
    """Makes the store, and says how far it is."""
    from distill.training import cache

    with progress.bar("token", what="the teacher is loaded") as show:

        def tell(now: cache.Progress) -> None:
            show(now.tokens, now.total, f"{now.added / max(now.seconds, 1e-9):,.0f} tokens/s")

        return cache.make(config, signal, out, every=every, shard_tokens=shard_tokens, on_progress=tell)


def _describe(out: str, manifest: "Manifest") -> None:
    recipe, fidelity = manifest["recipe"], manifest["fidelity"]
    windows, signal = recipe["windows"], recipe["signal"]
    numbers = " ".join(f"{name}={value}" for name, value in signal.items() if name != "kind")
    print(f"{Path(out)}: {signal['kind']} {numbers}".rstrip())
    print(f"  teacher  {recipe['teacher']['run']}, loss {manifest['teacher']['validation']['loss']:.4f}")
    print(
        f"  windows  {windows['count']:,d} of {windows['of']:,d}, {recipe['data']['seq_len']} tokens each, "
        f"in {len(manifest['shards'])} shards"
    )
    print(f"  size     {manifest['bytes_per_token']:.1f} bytes a token")
    known = {name: "-" if value is None else f"{value:.5g}" for name, value in fidelity.items()}
    print(
        f"  fidelity KL(whole, stored) {known['kl']}, KL(stored, whole) {known['kl_back']} nats, "
        f"cosine of gradients {known['gradient_cosine']} (on {fidelity['tokens']} tokens)"
    )


if __name__ == "__main__":
    sys.exit(cli.guard(main))
