"""completions.jsonl: one line per completion, appended in batches that are either complete or absent."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypedDict, cast

from distill.errors import DistillError
from distill.system.files import loads, stay_open


class Record(TypedDict):
    """One completion, as a line of the journal."""

    prompt: str
    completion: str
    finish: Literal["stop", "length"]
    log_prob: float  # mean over the completion's tokens, in nats
    split: str
    document: int
    start: int  # of the prompt, in tokens of the split
    sample: int
    seed: int
    teacher: str
    temperature: float
    top_k: int
    top_p: float
    new_tokens: int
    prompt_ids: list[int]
    ids: list[int]


class Journal:
    """Appends batches of lines; opening truncates an incomplete batch that a kill left."""

    def __init__(self, path: Path, sizes: Sequence[int]):
        """`sizes`: the number of lines of every batch. `done` and `lines` count the complete batches and lines."""
        self.path, self.done, self.lines = path, 0, 0
        self._file = stay_open(path, "ab+")
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

    def append(self, records: Sequence[Record]) -> None:
        """Writes one batch and syncs it to the disk."""
        self._file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path: Path) -> Iterator[Record]:
    """Yields the records of a whole file. Raises DistillError, naming the line, where one is invalid."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"got {type(record).__name__}, wanted an object")
                yield cast(Record, record)
            except ValueError as error:
                raise DistillError(
                    f"{path}, line {number}: cannot be read ({error}); delete it to generate again"
                ) from None
