"""Tables that others published and that do not ship: $DISTILL_DATA names the folder that has them (docs/results)."""

import os
from pathlib import Path

MISSING = "DISTILL_DATA is not set: it names the folder with tables that others published, such as chinchilla/"


def folder() -> Path | None:
    """The folder of outside tables, or None where $DISTILL_DATA is not set or empty."""
    name = os.environ.get("DISTILL_DATA", "")
    return Path(name) if name else None
