"""Traces the training step of a config and prints its dearest operations.

    python -m launch.profile --out=DIR [--config=configs/train.py:micro] [--top=10] [--config.FIELD=VALUE ...]

The step is supervised and reads random tokens. The trace in DIR opens in XProf, TensorBoard's profile plugin or
Perfetto. An operation's time is the median of its runs; `share` is of the sum over all of them.
"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from distill.config import ConfigError, ExperimentConfig
from distill.system import process
from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    flags = {"out": None, "top": "10"}
    config, values = cli.configured(ExperimentConfig, argv, __doc__ or "", "configs/train.py", flags)
    if not values["top"].isdigit() or values["top"] == "0":
        raise ConfigError(f"--top={values['top']}: wanted a number of operations, at least 1")
    from distill.diagnostics import profile

    process.cache_compilations()
    console = Console()
    with Console(stderr=True).status("compiling and tracing"):
        found = profile.profile(config, values["out"])
    total = sum(one.microseconds for one in found)
    table = Table(title=f"{len(found)} operations, {total / 1e3:.3f} ms a step", title_justify="left")
    for name in ("us/step", "share", "runs/step"):
        table.add_column(name, justify="right")
    for name in ("operation", "result", "from"):
        table.add_column(name, overflow="fold")
    for one in found[: int(values["top"])]:
        share = f"{one.microseconds / total:.1%}"
        table.add_row(f"{one.microseconds:.1f}", share, f"{one.count:.1f}", one.name, one.shape, one.source)
    console.print(table)
    console.print(f"trace: {values['out']}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
