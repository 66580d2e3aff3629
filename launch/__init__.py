"""Entry points: each parses its flags, builds its config and makes one call into distill."""

import os
import sys


def _is_command() -> bool:
    """Whether this process is one of the commands: `distill ...` or `python -m launch...`, and not a worker of one."""
    module = sys.argv[:1] == ["-m"] and any(word.split(".")[0] == "launch" for word in sys.orig_argv[1:4])
    return "__mp_main__" not in sys.modules and (module or os.path.basename((sys.argv or [""])[0]) == "distill")


if _is_command():
    from distill.system import encoding, interrupts

    interrupts.install()
    encoding.install()
