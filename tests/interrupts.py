"""Interrupts commands on a terminal at random moments, again and again, and shows that nothing is lost.

    nice -n 19 python -m tests.interrupts --count=100 --seed=1 --out=docs/campaigns/interrupts.jsonl

Three of four interrupts are a Ctrl-C that is typed, the fourth closes the terminal; half of all fall into the first
five seconds (imports, compilation). Each must end the command with exit code 130, or 75 where it saved itself, in one
line, without a traceback, the cursor visible. After a few of them in one folder the command runs to its end, which must
be that of a command that was left alone. Run again, the campaign adds what is missing in --out.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.bench import chaos
from distill.config.flags import Parser, at_least
from distill.system import interrupts, preemption
from tests import terminal

# Interrupts that one folder suffers before its command is left alone to finish.
IN_A_ROW = 5
_FIRST = 5.0  # seconds
_BAD = ("Traceback", "FATAL", "Exception ignored", "Segmentation", "Aborted", "core dumped")


def _law(folder: Path) -> Any:
    return json.loads((folder / "law.json").read_text("utf-8"))


FIT = chaos.ChaosScenario(
    name="fit",
    command=("-m", "launch.fit", "--table=micro", "--law=supervised", "--resamples=256", "--out=FOLDER/law.json"),
    result=_law,
)
SCENARIOS = {**chaos.SCENARIOS, FIT.name: FIT}


def wrong(ended: terminal.Result, closed: bool) -> str:
    """What is wrong with how an interrupted command ended; '' where nothing is."""
    if not ended.ready:  # Python itself was starting: no line of ours had run
        return ""
    if ended.returncode not in (0, interrupts.CODE, preemption.REQUEUE):
        return f"exit code {ended.returncode}"
    if bad := next((word for word in _BAD if word in ended.text), ""):
        return f"it printed {bad}"
    if closed or ended.returncode == 0:  # nobody reads a terminal that is closed
        return ""
    last = ended.text.strip().splitlines()[-1]
    if not (last == interrupts.LINE or "saved in" in ended.text.replace("\n", " ")):
        return f"its last line was {last!r}"
    if ended.output.rfind("\x1b[?25l") > ended.output.rfind("\x1b[?25h"):
        return "the cursor is hidden"
    return ""


def attack(scenario: chaos.ChaosScenario, count: int, seed: str, root: Path) -> Iterator[dict[str, Any]]:
    """Interrupts a scenario's command `count` times and yields a row for each; raises Lost for a wrong end."""
    chance = random.Random(f"{scenario.name} {seed}")
    inputs = root / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    scenario.prepare(inputs)

    def run(folder: Path, **how: Any) -> terminal.Result:
        words = [part.replace("FOLDER", str(folder)).replace("INPUTS", str(inputs)) for part in scenario.command]
        return terminal.run([sys.executable, *words], timeout=chaos.PATIENCE, **how)

    def finish(folder: Path) -> Any:
        ended = run(folder)
        if ended.returncode:
            raise chaos.Lost(f"{folder}: {scenario.name} ended with {ended.returncode}: {ended.text[-300:]}")
        return scenario.result(folder)

    began = time.monotonic()
    wanted = finish(root / "whole")
    duration, folder, landed, in_a_row = time.monotonic() - began, root / "0", 0, 0
    while landed < count:
        closed = chance.random() < 0.25
        after = chance.uniform(0.0, _FIRST if chance.random() < 0.5 else duration)
        started = time.monotonic()
        ended = run(folder, **{"hangup_after" if closed else "interrupt_after": after})
        if ended.returncode:  # else it had come to its end before
            landed, in_a_row = landed + 1, in_a_row + 1
            yield {
                "scenario": scenario.name, "seed": seed, "signal": "SIGHUP" if closed else "SIGINT",
                "after": round(after, 2), "ready": ended.ready, "code": ended.returncode,
                "seconds": round(time.monotonic() - started, 1),
            }  # fmt: skip
        if fault := wrong(ended, closed):
            raise chaos.Lost(f"{folder}: {scenario.name}, {after:.2f} s after its start: {fault}\n{ended.text[-600:]}")
        if in_a_row == IN_A_ROW or landed == count or not ended.returncode:
            if (found := finish(folder)) != wanted:
                raise chaos.Lost(f"{folder}: {scenario.name} ended otherwise than in {root / 'whole'}: {found}")
            folder, in_a_row = root / f"{folder.name}x", 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("interrupts", __doc__)
    add = parser.group("the campaign")
    add("--count", type=at_least(1), default=100, metavar="N", help="interrupts, shared among the scenarios")
    add("--seed", default="1", help="of their moments")
    add("--only", default=",".join(SCENARIOS), help="scenarios")
    add("--out", type=Path, metavar="FILE", help="a .jsonl to which a line an interrupt is added")
    flags = parser.parse_args(argv)
    names = flags.only.split(",")
    lines = flags.out.read_text("utf-8").splitlines() if flags.out and flags.out.exists() else []
    for i, name in enumerate(names):
        done = sum((row := json.loads(line))["scenario"] == name and row["seed"] == flags.seed for line in lines)
        share = flags.count // len(names) + (i < flags.count % len(names)) - done
        root = Path(tempfile.mkdtemp(prefix=f"interrupts-{name}-"))
        for row in attack(SCENARIOS[name], share, flags.seed, root) if share > 0 else ():
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            if flags.out:
                chaos.append(flags.out, [row])
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
