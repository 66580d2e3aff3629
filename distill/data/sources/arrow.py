"""Arrow files as Hugging Face `datasets` saves them (a stream), and Arrow's own file format (Feather)."""

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from distill.data.sources import storage
from distill.errors import DataError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_MAGIC = b"ARROW1"


def batches(file: IO[bytes], path: str, rows: int) -> Iterator["RecordBatch"]:
    """The record batches of a file, of at most so many rows. Raises DataError where it is damaged."""
    ipc = storage.optional("pyarrow.ipc", "pyarrow", path)
    arrow = storage.optional("pyarrow", "pyarrow", path)
    done = 0
    try:
        is_file = file.read(len(_MAGIC)) == _MAGIC
        file.seek(0)
        reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
        whole = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in whole:
            for start in range(0, batch.num_rows, rows):
                part = batch.slice(start, rows)
                yield part
                done += part.num_rows
    except (arrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not an Arrow file, or damaged after row {done} ({reason:.200})") from None
