"""Files written whole or not at all, and JSON read so that whatever is wrong with it is a ValueError.

Standard library only: configs and laws stand on it.
"""

import json
import os
from pathlib import Path
from typing import Any


def atomic_write(path: str | Path, text: str) -> None:
    """Writes `text` so that the file holds what it held or all of it, whatever happens in between.

    The folder is made where it is missing. Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def loads(text: str | bytes) -> Any:
    """json.loads, all of whose refusals are ValueErrors, that of deep nesting too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
