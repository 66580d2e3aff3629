"""A campaign of cases against one reader, with a line in docs/campaigns/fuzz.jsonl.

    python -m tests.fuzz.campaign --reader=NAME [--cases=100000] [--seed=0] [--guide=atheris] [--out=FILE.jsonl]
    python -m tests.fuzz.campaign --list
    python -m tests.fuzz.campaign --summary=docs/campaigns/fuzz.jsonl

--guide=atheris (pip install -e '.[fuzz]') is led by the coverage of distill's own lines (libFuzzer, with our changes
of trees beside its own), --guide=seeded is a loop of our own. Inputs of bad outcomes are kept in --keep, one a kind.
Exits with 1 where there were any.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

BAD = ("foreign", "unnamed", "escape", "slow", "greedy", "wrong")  # how the outcomes begin that must not be


class Tally:
    """Outcomes of a campaign by kind, the worst of them, and the first input of every bad kind."""

    def __init__(self, name: str, keep: Path):
        self.kinds: Counter[str] = Counter()
        self.slowest, self.began, self.cases, self._keep, self._name = 0.0, time.monotonic(), 0, keep, name
        self._peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def add(self, case: bytes, outcome: Any) -> None:
        self.cases += 1
        self.kinds[outcome.kind] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        if outcome.bad and self.kinds[outcome.kind] == 1:
            self._keep.mkdir(parents=True, exist_ok=True)
            path = self._keep / f"{self._name}-{len(self.kinds)}"
            path.write_bytes(case)
            print(f"{outcome.kind}: {path}\n{outcome.detail}\n", file=sys.stderr, flush=True)

    def line(self, **known: Any) -> dict[str, Any]:
        seconds = time.monotonic() - self.began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._peak) / 1024
        return known | {
            "cases": self.cases, "seconds": round(seconds, 1), "per second": round(self.cases / seconds),
            "outcomes": dict(self.kinds.most_common()), "slowest": round(self.slowest, 4), "memory MB": round(grown, 1),
        }  # fmt: skip


def child(flags: argparse.Namespace) -> None:
    """The campaign itself; never returns, for libFuzzer would not."""
    folder = Path(flags.child)
    if flags.guide == "atheris":
        import atheris

        with atheris.instrument_imports(include=["distill"]):
            reader = _load(flags.reader)
    else:
        reader = _load(flags.reader)
    from distill.system import process
    from tests.fuzz import harness

    # What would take the machine with it fails as a MemoryError instead.
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 30), resource.RLIM_INFINITY))
    (folder / "work").mkdir()
    bench = harness.Bench(reader, folder / "work")
    tally = Tally(flags.reader, Path(flags.keep))
    known = {"reader": flags.reader, "seed": flags.seed, "commit": process.commit(), "guide": flags.guide}

    def one(case: bytes) -> None:
        (folder / "case").write_bytes(case)  # what a killed or crashed child was at
        tally.add(case, bench.judge(case))
        if tally.cases >= flags.cases or time.monotonic() - tally.began > flags.seconds:
            (folder / "line").write_text(json.dumps(tally.line(**known)))
            os._exit(0)

    if flags.guide == "seeded":
        for case in harness.random_cases(bench, flags.cases, flags.seed):
            one(case)
    (folder / "corpus").mkdir()
    for i, seed in enumerate(bench.seeds):
        (folder / "corpus" / str(i)).write_bytes(seed)

    def change(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.3:
            return atheris.Mutate(data, most)
        return harness.mutate(reader, data, chance.choice(bench.seeds), chance)[:most]

    libfuzzer = [f"-seed={flags.seed + 1}", f"-max_len={harness.LONGEST}", "-timeout=300", "-rss_limit_mb=0"]
    libfuzzer += ["-verbosity=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *libfuzzer, str(folder / "corpus")], one, custom_mutator=change)
    atheris.Fuzz()


def summarise(path: Path) -> None:
    """A line a reader: cases, read among them, the slowest, the largest; and what was found and mended since."""
    found: dict[str, Any] = {}
    for line in map(json.loads, path.read_text("utf-8").splitlines()):
        one = found.setdefault(line["reader"], {"cases": 0, "read": 0, "bad": 0, "slowest": 0.0, "memory MB": 0.0})
        one["cases"] += line["cases"]
        one["read"] += line["outcomes"].get("read", 0)
        one["bad"] += sum(count for kind, count in line["outcomes"].items() if kind.startswith(BAD))
        for name in ("slowest", "memory MB"):
            one[name] = max(one[name], line[name])
    print(f"{sum(one['cases'] for one in found.values()):,} cases, {len(found)} readers\n")
    print("| reader | cases | read | wrong, mended since | slowest (s) | memory (MB) |\n|---|---|---|---|---|---|")
    for name, one in sorted(found.items()):
        print(f"| {name} | {one['cases']:,} | {one['read']:,} | {one['bad']} | {one['slowest']} | {one['memory MB']} |")


def _load(name: str) -> Any:
    from tests.fuzz import readers

    return readers.READERS[name]


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz.campaign", allow_abbrev=False)
    parser.add_argument("--reader", default="")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="ends it before --cases; the line says how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guide", choices=("atheris", "seeded"), default="atheris")
    parser.add_argument("--keep", default="out/fuzz")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--summary", type=Path)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags)
    if flags.summary:
        summarise(flags.summary)
        return 0
    if flags.list:
        from tests.fuzz import readers

        print("\n".join(readers.READERS))
        return 0
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=base))
    try:
        environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        with open(folder / "log", "wb") as log:
            argv = [sys.executable, "-m", "tests.fuzz.campaign", *sys.argv[1:], f"--child={folder}"]
            ended = subprocess.run(argv, stdout=log, env=environment, check=False)
        if not (folder / "line").exists():
            Path(flags.keep).mkdir(parents=True, exist_ok=True)
            if (folder / "case").exists():
                shutil.copy(folder / "case", Path(flags.keep) / f"{flags.reader}-crash")
            print((folder / "log").read_text("utf-8", "replace")[-3000:], file=sys.stderr)
            print(
                f"{flags.reader}: the process ended with {ended.returncode}, its case is in {flags.keep}",
                file=sys.stderr,
            )
            return 1
        line = json.loads((folder / "line").read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(line))
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        with open(flags.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return int(any(kind.startswith(BAD) for kind in line["outcomes"]))


if __name__ == "__main__":
    sys.exit(main())
