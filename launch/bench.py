"""Runs one benchmark: python -m launch.bench NAME [--flag=value ...]; without a name it lists them."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import distill.bench
from distill.config import ConfigError, nearest
from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatches to distill.bench.NAME.main with the remaining flags."""
    argv = list(sys.argv[1:] if argv is None else argv)
    names = [m.name for m in pkgutil.iter_modules(distill.bench.__path__) if not m.name.endswith("_peers")]
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n\nbenchmarks: {', '.join(names)}")
        return 0
    if argv[0] not in names:
        raise ConfigError(f"benchmark {argv[0]!r}; wanted one of {', '.join(names)}.{nearest(argv[0], names)}")
    return importlib.import_module(f"distill.bench.{argv[0]}").main(argv[1:]) or 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
