"""The edge between a command line and the library: flags in, one-line errors out."""

import sys
from collections.abc import Callable, Sequence

from distill.config import DistillError


def guard(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs an entry point; a DistillError becomes one line on stderr and exit code 2, Ctrl-C becomes 130."""
    try:
        return main(argv) or 0
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
