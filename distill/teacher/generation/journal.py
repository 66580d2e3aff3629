"""completions.jsonl: a line a completion, in batches that are there as a whole or not at all."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.system.files import loads


class Journal:
    """Appends batches of lines; what a kill left of an unfinished batch is cut off when it is opened again."""

    def __init__(self, path: Path, sizes: Sequence[int]):
        """`sizes` are the lines of every batch to come. `done` says how many batches are there."""
        self.path, self.done, self.lines = path, 0, 0
        self._file = open(path, "ab+")  # noqa: SIM115 - held as long as this
        self._file.seek(0)
        end = 0
        for size in sizes:
            lines = [self._file.readline() for _ in range(size)]
            if not all(line.endswith(b"\n") for line in lines):
                break
            self.done, self.lines, end = self.done + 1, self.lines + size, self._file.tell()
        self._file.truncate(end)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Writes one batch and sees it to the disk."""
        self._file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a whole file. DistillError, naming the line, where one cannot be read."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = loads(line)
                if not isinstance(record, dict):
                    raise ValueError("no object")
                yield record
            except ValueError as error:
                raise DistillError(
                    f"{path}, line {number}: cannot be read ({error}); delete it to generate again"
                ) from None
