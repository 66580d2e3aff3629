"""Atomic file writes, and JSON parsing whose every error is a ValueError. Standard library only.

Every writer writes to a hidden temporary name beside the target (`.NAME.PID`), syncs it to disk and then renames it. A
killed process leaves the target as it was; an exception also removes the temporary file.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path for the block to write; renamed to `path` if the block ends without an exception.

    For files that a library writes itself, or that are too large for one `atomic_write`. Creates a missing folder.
    Raises OSError.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder for the block to fill; renamed to `path` if the block ends without an exception.

    `path` must not exist, or be an empty folder. Raises OSError.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir(exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes so that the file holds either its previous content or all of `content`.

    Creates a missing folder. Raises OSError.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def stay_open(path: Path, mode: str) -> IO[bytes]:
    """A binary file that stays open as long as the object that owns it, which closes it."""
    return cast(IO[bytes], open(path, mode))


def loads(text: str | bytes) -> Any:
    """json.loads that raises ValueError for every invalid text, too deep nesting included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
