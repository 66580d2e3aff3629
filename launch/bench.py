"""Runs one benchmark, beside its named peers in one run; without a name it lists them."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import distill.bench
from distill.config import ConfigError, nearest
from distill.config.flags import Parser
from launch.support import cli

EXAMPLES = (
    "distill bench",
    "distill bench step --shapes=micro-25K --rounds=3",
    "distill bench fit --help",
)
# Modules of the room that are parts of a benchmark or campaigns with a command of their own.
_NOT_BENCHES = ("chaos", "lambdas", "museum", "museum_page", "ours", "outside", "public", "refits", "turns")


def names() -> list[str]:
    """The benchmarks, in the order of the alphabet."""
    modules = (module.name for module in pkgutil.iter_modules(distill.bench.__path__))
    return [name for name in modules if not name.endswith("_peers") and name not in _NOT_BENCHES]


def parser() -> Parser:
    parser = Parser("bench", __doc__, examples=EXAMPLES)
    parser.group("the benchmark", ", ".join(names()))("name", nargs="?", metavar="NAME", help="one of these")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatches to distill.bench.NAME.main with the remaining flags."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-"):
        parser().parse_args(argv)
        print(f"{__doc__}\n\nbenchmarks: {', '.join(names())}")
        return 0
    if argv[0] not in names():
        raise ConfigError(
            f"there is no benchmark {argv[0]!r}; wanted one of {', '.join(names())}.{nearest(argv[0], names())}"
        )
    return importlib.import_module(f"distill.bench.{argv[0]}").main(argv[1:]) or 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
