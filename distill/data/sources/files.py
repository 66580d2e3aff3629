"""Text files as a source: .txt, .jsonl, .parquet and .arrow (Hugging Face datasets), local or in a gs:// bucket."""

import codecs
import contextlib
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from distill.config.data import FilesConfig
from distill.data.documents import Document, Part
from distill.data.sources import arrow, storage
from distill.data.sources.columns import Columns
from distill.errors import DataError
from distill.system import cloud
from distill.system.files import loads

_PIECE = 1 << 20
# A .txt file without separators is cut at line ends into documents of about this many characters, so that a file
# need not fit in memory.
MAX_DOCUMENT = 4 << 20
_HEAD = 64 << 10  # bytes from which a file's encoding and line ends are detected
# Byte order marks; the longer ones first, for that of UTF-16 begins one of UTF-32.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}


class TextFormat(NamedTuple):
    """The encoding and line ends of a .txt file, as its first bytes show them."""

    encoding: str = "utf-8"
    newline: str = "\n"
    marked: bool = False  # a byte order mark before UTF-8


class Files:
    """Documents of all files that the globs match, in order of path; validation files come first.

    Raises DataError where no file matches, or the kind of a file is unknown.
    """

    def __init__(self, config: FilesConfig, columns: Columns):
        self._config, self._columns = config, columns
        # A shell passes '\n' as two characters.
        self._separator = re.sub(r"\\[ntr\\]", lambda escape: _ESCAPES[escape[0]], config.separator)
        if not config.paths and not config.validation:
            raise DataError(
                "data.files.paths is empty; give at least one file, folder or glob, e.g. "
                "data.files.paths='texts/**/*.txt'"
            )
        validation = storage.expand(config.validation)
        train = [path for path in storage.expand(config.paths) if path not in set(validation)]
        self._files = [(path, "validation") for path in validation] + [(path, "") for path in train]
        self.shards = [path for path, _ in self._files]
        self.explicit: tuple[str, ...] = ("validation",) if validation else ()
        for path in self.shards:
            kind(path)
        self.masked = columns.masked
        self._sizes = [storage.size(path) for path in self.shards]
        self._reading: tuple[int, IO[bytes] | None] = (0, None)  # the shard, and its file as stored
        self._formats: dict[str, TextFormat] = {}

    def describe(self) -> dict[str, object]:
        """Names, sizes and a hash of the head and tail of every file: hashing a whole corpus may take too long.

        An edit in the middle of a file over 128 KiB that keeps its size is not detected. Encodings other than UTF-8,
        byte order marks, and CRLF or CR where a separator contains a line end, are included, because they change how
        the bytes are read.
        """
        root = storage.common_root(self.shards)
        files: dict[str, dict[str, object]] = {}
        newlines: set[str] = set()
        marked = False
        for (path, split), size in zip(self._files, self._sizes):
            entry: dict[str, object] = {"size": size, "probe": storage.probe(path, size), "split": split or "by hash"}
            text = self._format(path)
            if text.encoding != "utf-8":
                entry["encoding"] = text.encoding
            newlines |= {text.newline} if "\n" in self._separator else set()
            marked |= text.marked
            files[path[len(root) :]] = entry
        described: dict[str, object] = {
            "source": "files",
            "separator": self._separator,
            "invalid_utf8": self._config.invalid_utf8,
            "files": files,
        }
        found = [name for name, newline in (("crlf", "\r\n"), ("cr", "\r")) if newline in newlines]
        described |= {"newlines": ", ".join(found)} if found else {}
        return described | ({"marks": "left out"} if marked else {})

    def _format(self, path: str) -> TextFormat:
        """The format of a .txt file, from its first bytes; other kinds are UTF-8."""
        if kind(path) != ".txt":
            return TextFormat()
        if path not in self._formats:
            with _readable(path), storage.open_bytes(path) as (file, _):
                head = file.read(_HEAD)
            encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")
            encoding = encoding or _utf32_without_mark(head) or _utf16_without_mark(head) or "utf-8"
            holds = lambda text: text.encode(encoding) in head
            newline = "\r\n" if holds("\r\n") else "\r" if holds("\r") and not holds("\n") else "\n"
            self._formats[path] = TextFormat(encoding, newline, head.startswith(codecs.BOM_UTF8))
        return self._formats[path]

    @property
    def share(self) -> float:
        """The fraction of all files' stored bytes that has been read."""
        shard, raw = self._reading
        done = sum(self._sizes[:shard]) + (0 if raw is None else self._sizes[shard] if raw.closed else raw.tell())
        return min(done / max(sum(self._sizes), 1), 1.0)

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        path, split = self._files[shard]
        readers = {
            ".txt": self._read_txt,
            ".jsonl": self._read_jsonl,
            ".parquet": self._read_parquet,
            ".arrow": self._read_arrow,
        }
        reader = readers[kind(path)]
        with _readable(path):
            for i, document in enumerate(reader(path, shard)):
                if i >= skip:
                    yield document._replace(split=split)

    def _read_txt(self, path: str, shard: int) -> Iterator[Document]:
        encoding, newline, marked = self._format(path)
        separator = re.escape(self._separator)
        if newline != "\n":  # each line end of the separator matches LF too
            separator = separator.replace("\\\n", "\r?\n" if newline == "\r\n" else "[\r\n]")
        # Invalid UTF-8 bytes are kept as surrogates until `_plain`; invalid UTF-16 and UTF-32 are replaced at once.
        decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if encoding == "utf-8" else "replace")
        rest, first = "", marked or encoding != "utf-8"
        with storage.open_bytes(path) as (file, raw):
            self._reading = shard, raw
            while piece := file.read(_PIECE):
                rest += decoder.decode(piece)
                if first:
                    rest, first = rest.removeprefix("\ufeff"), False
                if separator:
                    *whole, rest = re.split(separator, rest)
                    yield from (self._plain(text, path) for text in whole)
                while len(rest) > MAX_DOCUMENT:
                    cut = rest.rfind("\n", 0, MAX_DOCUMENT) + 1 or MAX_DOCUMENT
                    yield self._plain(rest[:cut], path)
                    rest = rest[cut:]
        rest += decoder.decode(b"", final=True)
        if rest or not separator:
            yield self._plain(rest, path)

    def _plain(self, text: str, where: str) -> Document:
        """A document of one text; bytes that are not UTF-8 (surrogates here) are handled by `invalid_utf8`."""
        try:
            text.encode("utf-8")
            return Document((Part(text),))
        except UnicodeEncodeError:
            return self._invalid(text.encode("utf-8", "surrogateescape"), where)

    def _invalid(self, raw: bytes, where: str) -> Document:
        """A document of bytes that are not UTF-8, handled by `invalid_utf8`."""
        if self._config.invalid_utf8 == "error":
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: not UTF-8 ({error}); convert the file, or set data.files.invalid_utf8 to "
                    "'replace' or 'skip'"
                ) from None
        if self._config.invalid_utf8 == "skip":
            return Document(broken=True)
        return Document((Part(raw.decode("utf-8", "replace")),), broken=True)

    def _read_jsonl(self, path: str, shard: int) -> Iterator[Document]:
        with storage.open_bytes(path) as (file, raw):
            self._reading = shard, raw
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if number == 1 and line[:2] in _MARKS:
                    raise DataError(f"{path}: is written in {_MARKS[line[:2]].upper()}, wanted UTF-8; convert the file")
                if not line.strip():
                    continue
                broken = False
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError:
                    replaced = self._invalid(line, where)
                    if not replaced.parts:
                        yield replaced
                        continue
                    text, broken = replaced.parts[0].text, True
                try:
                    record = loads(text.removeprefix("\ufeff"))
                except ValueError as error:
                    raise DataError(f"{where}: not a JSON object ({error})") from None
                if not isinstance(record, dict):
                    raise DataError(f"{where}: got {type(record).__name__}, wanted a JSON object a line")
                yield _without_surrogates(self._columns.document(record, where), broken)

    def _read_parquet(self, path: str, shard: int) -> Iterator[Document]:
        parquet = storage.optional("pyarrow.parquet", "pyarrow", path)
        library = storage.optional("pyarrow", "pyarrow", path)
        with cloud.at(path).open("rb") as raw:
            self._reading = shard, raw
            row = 0
            try:
                file = parquet.ParquetFile(raw)
                self._columns.check(file.schema_arrow.names, path)
                for batch in file.iter_batches(batch_size=1024, columns=self._columns.read(file.schema_arrow.names)):
                    records = batch.to_pylist()
                    for record in records:
                        row += 1
                        present = {name: _present(value) for name, value in record.items()}
                        yield _without_surrogates(self._columns.document(present, f"{path}, row {row}"), False)
            except (library.ArrowException, OSError, ValueError, OverflowError) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"{path}: not a parquet file, or damaged after row {row} ({reason:.200})") from None

    def _read_arrow(self, path: str, shard: int) -> Iterator[Document]:
        with cloud.at(path).open("rb") as raw:
            self._reading = shard, raw
            row = 0
            for batch in arrow.batches(raw, path, 1024):
                self._columns.check(batch.schema.names, path)
                for record in batch.select(self._columns.read(batch.schema.names)).to_pylist():
                    row += 1
                    present = {name: _present(value) for name, value in record.items()}
                    yield _without_surrogates(self._columns.document(present, f"{path}, row {row}"), False)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Adds the file's name to errors of damaged compression."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: the file is cut off or not what its name says ({error})") from None


def _utf32_without_mark(head: bytes) -> str:
    """'utf-32-le' or 'utf-32-be' where two of every four bytes are almost all NUL, as in all scripts; else ''."""
    zeros = [head[i::4].count(0) / max(len(head[i::4]), 1) for i in range(4)]
    if len(head) < 16 or max(zeros[2:]) < 0.98 and max(zeros[:2]) < 0.98:
        return ""
    return "utf-32-le" if min(zeros[2:]) >= 0.98 else "utf-32-be" if min(zeros[:2]) >= 0.98 else ""


def _utf16_without_mark(head: bytes) -> str:
    """'utf-16-le' or 'utf-16-be' where every second byte is mostly NUL, as in Latin scripts; else ''.

    UTF-8 text contains no NULs, so 30 % of zero bytes on one side and almost none on the other are sufficient.
    """
    even, odd = head[0::2], head[1::2]
    if len(head) < 16:
        return ""
    zeros = even.count(0) / len(even), odd.count(0) / len(odd)
    if min(zeros) > 0.02 or max(zeros) < 0.3:
        return ""
    return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"


def kind(path: str) -> str:
    """'.txt', '.jsonl' or '.parquet'. Raises DataError for any other name."""
    name = path
    for suffix in storage.COMPRESSIONS:
        name = name.removesuffix(suffix)
    for suffix in storage.FORMATS:
        if name.endswith(suffix) and (suffix in (".txt", ".jsonl") or name == path):
            return suffix
    raise DataError(
        f"{path}: got a file of an unknown kind, wanted {', '.join(storage.FORMATS)} (the first two also as "
        f"{', '.join(storage.COMPRESSIONS)})"
    )


def _present(value: object) -> object:
    """The value without fields that are null: a table gives each object in a column the fields of all others."""
    if isinstance(value, list):
        return [_present(item) for item in value]
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return value


def _without_surrogates(document: Document, broken: bool) -> Document:
    """Replaces lone surrogates, which JSON can escape but are not text, by U+FFFD; the document counts as broken."""
    try:
        "".join(part.text for part in document.parts).encode("utf-8")
        return document._replace(broken=broken)
    except UnicodeEncodeError:
        texts = [part.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for part in document.parts]
        parts = tuple(part._replace(text=text) for part, text in zip(document.parts, texts))
        return document._replace(parts=parts, broken=True)
