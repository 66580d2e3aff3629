"""A workdir in a bucket (gs://): the host works in a local folder and copies to the bucket what other hosts read.

A bucket's objects are written atomically and cannot be appended to or locked. So small files are uploaded whole, and
the lines of metrics.jsonl as numbered parts, each written once. Orbax writes checkpoints to the bucket itself.
"""

import hashlib
import importlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import ConfigError
from distill.system.files import atomic_file, atomic_write

FILES = ("config.txt", "result.json")
LINES = "metrics.jsonl"


def remote(path: object) -> bool:
    """Whether a path is a URL: a bucket or another file system that is not mounted."""
    return "://" in str(path)


def at(path: str | os.PathLike[str]) -> Any:
    """A pathlib.Path, or an epath.Path for a URL. Raises ConfigError if the package that reads it is not installed."""
    if not remote(path):
        return Path(path)
    kind = str(path).partition("://")[0]
    try:
        # A cached listing misses what other hosts wrote since: a file would be read at its former size.
        importlib.import_module("fsspec.config").conf.setdefault(kind, {}).setdefault("use_listings_cache", False)
        importlib.import_module("fsspec").get_filesystem_class(kind)
        return importlib.import_module("etils.epath").Path(str(path))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; for gs:// install the extra gcs (pip install gcsfs)") from None


def ranges(spans: Sequence[tuple[object, int, int]]) -> list[bytes]:
    """The bytes first..last of each (path, first, last + 1), requested concurrently. Raises OSError."""
    if not spans:
        return []
    system = importlib.import_module("fsspec").core.url_to_fs(str(spans[0][0]))[0]
    paths, starts, ends = zip(*spans)
    return system.cat_ranges([str(path) for path in paths], list(starts), list(ends), on_error="raise")


def cache(url: str) -> Path:
    """This host's local folder for a URL: below $DISTILL_CACHE, or ~/.cache/distill."""
    home = Path(os.environ.get("DISTILL_CACHE") or os.path.expanduser("~/.cache/distill"))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.partition("://")[2])[-60:].strip("-")
    return home / "buckets" / f"{name}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


class Workdir:
    """`path` is this host's working folder, `checkpoints` that of checkpoints; the same for a local workdir."""

    def __init__(self, workdir: str | Path):
        self._remote = at(str(workdir)) if remote(workdir) else None
        self.path = Path(workdir) if self._remote is None else cache(str(workdir))
        self._parts, self._sent, self._found = 0, 0, b""
        self._name = str(workdir)

    def __str__(self) -> str:
        return self._name

    @property
    def checkpoints(self) -> Any:
        return (self._remote or self.path) / "checkpoints"

    def pull(self) -> None:
        """Makes the local files match the bucket: downloads what it has and removes what it lacks."""
        if self._remote is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self._remote / name).exists():
                (self.path / name).write_bytes((self._remote / name).read_bytes())
            else:
                (self.path / name).unlink(missing_ok=True)
        parts = sorted(self._remote.glob("metrics-*.jsonl")) if self._remote.exists() else []
        self._found = b"".join(part.read_bytes() for part in parts)
        (self.path / LINES).write_bytes(self._found)
        self._parts = 1 + max((int(re.sub(r"\D", "", part.name)) for part in parts), default=-1)

    def push(self, name: str) -> None:
        """Uploads a small local file to the bucket."""
        if self._remote is not None:
            self._remote.mkdir(parents=True, exist_ok=True)
            (self._remote / name).write_bytes((self.path / name).read_bytes())

    def push_lines(self) -> None:
        """Uploads the lines added since the last call as a new part."""
        if self._remote is None:
            return
        content = (self.path / LINES).read_bytes()
        if len(content) > self._sent:
            (self._remote / f"metrics-{self._parts:06d}.jsonl").write_bytes(content[self._sent :])
            self._parts, self._sent = self._parts + 1, len(content)

    def rewind(self) -> None:
        """Replaces the parts by this host's lines, which end at the checkpoint that a run resumes from."""
        if self._remote is None:
            return
        if self._found == (content := (self.path / LINES).read_bytes()):
            self._sent = len(content)
            return
        for part in list(self._remote.glob("metrics-*.jsonl")):
            part.unlink()
        self._parts = self._sent = 0
        self.push_lines()


def local_copy_of_run(workdir: str | Path) -> Path:
    """A local folder with the config.txt and result.json of a finished run, wherever its workdir is."""
    run = Workdir(workdir)
    if remote(workdir):
        run.pull()
    return run.path


def local_copy_of_store(url: str, last: str = "manifest.json") -> Path:
    """A local copy of a folder that is complete when its file `last` exists; copied once, interrupted copies resume."""
    source, target = at(url), cache(url)
    if not (source / last).exists():
        raise ConfigError(f"{url}: there is no {last}; make the store on a local disk and copy the folder there")
    content = (source / last).read_bytes()
    if (target / last).exists() and (target / last).read_bytes() == content:
        return target
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        place = target / path.name
        if path.name != last and not (place.exists() and place.stat().st_size == path.stat().length):
            with atomic_file(place) as temporary, path.open("rb") as remote_file, open(temporary, "wb") as local_file:
                shutil.copyfileobj(remote_file, local_file, 2**24)
    atomic_write(target / last, content)
    return target
