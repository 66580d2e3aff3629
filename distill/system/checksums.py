"""Content hashes of a directory, written when it is complete and compared before it is read again."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from distill.system.files import loads

NAME = "sha256.json"
_CHUNK = 2**24  # bytes read at once


def write_checksums(directory: epath.Path) -> None:
    """Writes NAME: {file: [bytes, sha256]} of every file below `directory`. Must be the last file written there."""
    files = sorted(str(path.relative_to(directory)) for path in _files(directory))
    checksums = {name: list(each) for name, each in zip(files, _measure(directory, files))}
    (directory / NAME).write_text(json.dumps(checksums, indent=1) + "\n")


def first_mismatch(directory: epath.Path, part: tuple[int, int] = (0, 1)) -> str:
    """The first file that differs from the checksums, as 'FILE: got, wanted'; '' where none does.

    Missing or unreadable checksums count as damage, because they are written last. Files that they do not list are not
    read. Of n processes that check together, number i reads every n-th file: part=(i, n).
    """
    try:
        wanted = {name: (int(size), str(digest)) for name, (size, digest) in loads(_text(directory)).items()}
    except FileNotFoundError:
        return f"{NAME}: is missing, so the directory was never complete"
    except (ValueError, TypeError, AttributeError):
        return f"{NAME}: is not readable as {{file: [bytes, sha256]}}"
    names = sorted(wanted)
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        return f"{NAME}: names a file outside of its directory"
    names = names[part[0] :: part[1]]
    for name in names:
        if not (directory / name).exists():
            return f"{name}: is missing"
        if (size := (directory / name).stat().length) != wanted[name][0]:
            return f"{name}: has {size:,d} bytes, wanted {wanted[name][0]:,d}"
    for name, (_, digest) in zip(names, _measure(directory, names)):
        if digest != wanted[name][1]:
            return f"{name}: sha256 {digest[:12]}, wanted {wanted[name][1][:12]}"
    return ""


def _text(directory: epath.Path) -> str:
    return (directory / NAME).read_text()


def _files(directory: epath.Path) -> list[epath.Path]:
    files = []
    for path in directory.iterdir():
        files += _files(path) if path.is_dir() else [path]
    return files


def _measure(directory: epath.Path, names: list[str]) -> list[tuple[int, str]]:
    def one(name: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with (directory / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(one, names))
