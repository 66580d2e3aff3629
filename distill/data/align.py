"""The same bytes in the tokens of two tokenizers: chunks, the smallest spans that begin and end at a token of both.

A chunk has one or more tokens of each side. A window of a student's tokens is spelt out as bytes, encoded by the
teacher's tokenizer, and cut wherever a token of both ends at the same byte, also inside of a character. No chunk
crosses a special token. What the teacher's tokenizer puts around a text stands around every text of a window.

Letters: S + 1 student's and T + 1 teacher's tokens of a window.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Part
from distill.data.store.encode import closing
from distill.data.tokenizers.tokenizer import Tokenizer
from distill.errors import DataError
from distill.types import Alignment, Batch

_PROBES = ("The quick brown fox, 1984.\n\nNa\u00efve caf\u00e9s \u2014 \u65e5\u672c\u8a9e, \U0001f600!", "a")


class Text(NamedTuple):
    """Bytes as text that can be encoded, and where its bytes lie in them.

    `at[k]` is the offset of the end of the first k bytes of the text's UTF-8; -1 inside of what replaces a byte that is
    no UTF-8.
    """

    text: str
    at: NDArray[np.int64]


def readable(data: bytes) -> Text:
    """Bytes that may begin or end inside a character: these parts are left out, other invalid bytes become U+FFFD."""
    begin = next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), min(len(data), 4))
    text = data[begin:].decode("utf-8", "surrogateescape")
    whole = len(text)
    # An unfinished character at the end: its bytes were escaped one by one.
    tail = len(text) - len(text.rstrip("".join(map(chr, range(0xDC80, 0xDD00)))))
    if 0 < tail <= 3 and data[len(data) - tail] >= 0xC0:
        whole -= tail
    points = np.frombuffer(text[:whole].encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
    escaped = (points >= 0xD800) & (points < 0xE000)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    ends = begin + np.cumsum(np.where(escaped, 1, sizes))
    at = np.repeat(ends, sizes) - (np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(sizes.sum()))
    inside = np.repeat(escaped, sizes) & (np.repeat(np.cumsum(sizes), sizes) - 1 != np.arange(sizes.sum()))
    at[inside] = -1
    shown = "".join("\ufffd" if lost else letter for letter, lost in zip(text, escaped)) if escaped.any() else text
    return Text(shown[:whole], np.concatenate([[begin], at]))


class _Row:
    """The teacher's tokens of one window while they are put together, and the chunk of every predicted token."""

    def __init__(self, size: int):
        self.tokens: list[int] = []
        self.owner: list[int] = []  # of each token its chunk: 1 + the place of the chunk's first student's label
        self.segment: list[int] = []
        self.position: list[int] = []
        self.chunk = np.zeros(size, np.int32)
        self._segment, self._begin = 0, 0

    def document(self) -> None:
        """What follows is another document, which sees nothing of what was before."""
        self._segment, self._begin = self._segment + 1, len(self.tokens)

    @property
    def seen(self) -> bool:
        """Whether the next token has one before it in its document, and so can be predicted."""
        return len(self.tokens) > self._begin

    def add(self, ids: Sequence[int] | NDArray[np.integer], owners: Sequence[int] | NDArray[np.integer]) -> None:
        self.position += range(len(self.tokens) - self._begin, len(self.tokens) - self._begin + len(ids))
        self.segment += [self._segment] * len(ids)
        self.tokens += np.asarray(ids).tolist()
        self.owner += np.asarray(owners).tolist()


class Aligner:
    """Aligns a student's windows with the tokens of a teacher's tokenizer."""

    def __init__(self, student: Tokenizer, teacher: Tokenizer):
        """Raises DataError where the student's tokens do not spell out the text that they came from."""
        self.student, self.teacher = student, teacher
        pieces = student.pieces()
        self._bytes = [piece.text if piece.kind in ("text", "byte") else b"" for piece in pieces]
        self._special = np.array([piece.kind == "special" for piece in pieces])
        self._teacher_bytes = [piece.text if piece.kind in ("text", "byte") else b"" for piece in teacher.pieces()]
        self._blank = self._added_blank(student)
        theirs = {p.text: i for i, p in reversed(list(enumerate(teacher.pieces()))) if p.kind == "special"}
        self._counterpart: dict[int, tuple[int, ...]] = {
            i: (theirs[p.text],) for i, p in enumerate(pieces) if p.kind == "special" and p.text in theirs
        }
        for i in student.around.before:
            self._counterpart.pop(i, None)  # the teacher's own stand there
        if student.end_of_text >= 0:
            self._counterpart[student.end_of_text] = closing(teacher.around.after, teacher.end_of_text)
            self._special[student.end_of_text] = True

    def _added_blank(self, student: Tokenizer) -> bool:
        """Whether the student's first token of a text begins with a blank that the text does not have."""
        added = []
        for text, ids in zip(_PROBES, student.encode([Part(text) for text in _PROBES])):
            spelt = b"".join(self._bytes[i] for i in ids.tolist())
            added.append(spelt == b" " + text.encode())
            if not added[-1] and spelt != text.encode():
                raise DataError(
                    f"tokenizer {student.name}: its tokens do not spell out their text ({text[:24]!r} becomes "
                    f"{spelt.decode('utf-8', 'replace')[:24]!r}), so they cannot be aligned with another tokenizer's "
                    "by bytes; give the student a tokenizer that keeps text as it is, such as bytes (data.tokenizer)"
                )
        return all(added)

    @property
    def names(self) -> tuple[list[bytes], list[bytes]]:
        """What each token is, of the student and of the teacher: equal where tokens mean the same.

        A text token is its bytes; a special token is named where one of the other side stands for it, else b''.
        """
        student, teacher = list(self._bytes), list(self._teacher_bytes)
        for i, theirs in self._counterpart.items():
            if len(theirs) == 1:
                student[i] = teacher[theirs[0]] = b"\xff" + str(theirs[0]).encode()
        return student, teacher

    def align(self, batch: Batch, length: int) -> Alignment:
        """The alignment of a batch of NumPy arrays, in rows of length + 1 teacher's tokens; what is longer is cut off.

        A chunk counts where all its student's tokens are predicted with a weight above 0, and all its teacher's tokens
        are predicted and not cut off.
        """
        rows = self._rows(batch)
        shape = (len(rows), length + 1)
        tokens, owner = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        segment, position = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        chunk = np.stack([row.chunk for row in rows])
        for i, row in enumerate(rows):
            kept = min(len(row.tokens), length + 1)
            for array, values in (
                (tokens, row.tokens),
                (owner, row.owner),
                (segment, row.segment),
                (position, row.position),
            ):
                array[i, :kept] = values[:kept]
            lost = np.unique(row.owner[kept:])
            chunk[i, np.isin(chunk[i], lost)] = 0
            owner[i, np.isin(owner[i], lost)] = 0
        segmented = batch.segment is not None
        return Alignment(
            tokens=_as_array(tokens),
            chunk=_as_array(chunk),
            teacher_chunk=_as_array(owner[:, 1:]),
            segment=_as_array(segment[:, :-1]) if segmented else None,
            position=_as_array(position[:, :-1]) if segmented else None,
        )

    def length(self, batch: Batch) -> tuple[int, int]:
        """The most tokens that the teacher predicts in a row of a batch, and the most positions that it counts there.

        Documents that do not see each other are counted from zero each.
        """
        rows = self._rows(batch)
        longest = max(len(row.tokens) for row in rows) - 1
        return longest, longest if batch.segment is None else max(max(row.position, default=0) for row in rows)

    def _rows(self, batch: Batch) -> list[_Row]:
        """The rows of a batch, not yet cut to one length."""
        tokens, weight = np.asarray(batch.tokens), np.asarray(batch.weight)
        segment = np.ones_like(tokens) if batch.segment is None else np.asarray(batch.segment)
        if batch.segment is not None:  # the last token is no input and has no segment of its own
            segment = np.concatenate([segment, segment[:, -1:]], axis=1)
        runs = [(row, run) for row in range(len(tokens)) for run in self._runs(tokens[row], segment[row])]
        texts = {(row, run): self._text(tokens[row], run) for row, run in runs if not run.special}
        parts = [Part(text.text) for text in texts.values()]
        encoded = dict(zip(texts, zip(self.teacher.encode(parts), parts)))
        rows = [_Row(weight.shape[1]) for _ in tokens]
        for (i, run), (_, before) in zip(runs, [(-1, _NONE), *runs]):
            row = rows[i]
            fresh = before is _NONE or run.start == 0 or run.segment != before.segment
            if fresh:
                row.document()
            if run.special:
                self._special_token(row, int(tokens[i, run.start]), run.start - 1, weight[i])
                continue
            if fresh or before.special and int(tokens[i, before.start]) in self._between:
                around = self.teacher.around.before
                row.add(around, [0] * len(around))
            self._chunks(row, tokens[i], run, texts[i, run], *encoded[i, run], weight[i])
        return rows

    @property
    def _between(self) -> tuple[int, ...]:
        """Student's tokens that stand between two texts."""
        return (self.student.end_of_text, *self.student.around.before, *self.student.around.after)

    def _runs(self, tokens: NDArray[np.integer], segment: NDArray[np.integer]) -> list["_Run"]:
        """The special tokens of a row and the texts between them; padding (segment 0) is left out."""
        special = self._special[tokens]
        new = np.concatenate([[True], special[1:] | special[:-1] | (segment[1:] != segment[:-1])])
        starts = np.flatnonzero(new).tolist()
        runs = zip(starts, [*starts[1:], len(tokens)])
        return [_Run(a, b, int(segment[a]), bool(special[a])) for a, b in runs if segment[a]]

    def _text(self, tokens: NDArray[np.integer], run: "_Run") -> Text:
        data = b"".join(self._bytes[i] for i in tokens[run.start : run.stop].tolist())
        text = readable(data)
        if self._blank and text.text.startswith(" ") and text.at[0] == 0:
            return Text(text.text[1:], text.at[1:])
        return text

    def _special_token(self, row: _Row, token: int, label: int, weight: NDArray[np.floating]) -> None:
        """A special token and the teacher's tokens that mean the same, if it has any."""
        theirs = self._counterpart.get(token, ())
        counts = label >= 0 and weight[label] > 0 and bool(theirs) and row.seen
        if counts:
            row.chunk[label] = label + 1
        row.add(theirs, [label + 1 if counts else 0] * len(theirs))

    def _chunks(
        self,
        row: _Row,
        tokens: NDArray[np.integer],
        run: "_Run",
        text: Text,
        theirs: NDArray[np.int32],
        part: Part,
        weight: NDArray[np.floating],
    ) -> None:
        """The chunks of a text: student's tokens run.start..run.stop of the row, and the teacher's tokens of it."""
        ours = np.cumsum([len(self._bytes[i]) for i in tokens[run.start : run.stop].tolist()])
        ends = text.at[self._ends(theirs, part)] if len(theirs) else np.zeros(0, np.int64)
        # A token that ends inside of what replaces an invalid byte ends, for this purpose, where the next one does.
        ends = np.minimum.accumulate(np.where(ends < 0, np.iinfo(np.int64).max, ends)[::-1])[::-1]
        common = np.intersect1d(ours, ends)
        label = np.arange(run.start, run.stop) - 1
        mine, his = np.searchsorted(common, ours), np.searchsorted(common, ends)
        count = len(common)
        counts = np.ones(count + 1, bool)
        counts[count] = False  # behind the last common end
        counts[mine[(label < 0) | (weight[np.maximum(label, 0)] <= 0)]] = False
        counts[:1] &= row.seen and int(text.at[0]) <= int(self._blank)
        first = np.full(count + 1, -1)
        first[mine[::-1]] = label[::-1]
        first = np.where(counts, first + 1, 0)
        row.chunk[label[label >= 0]] = first[mine][label >= 0]
        row.add(theirs, first[his])

    def _ends(self, ids: NDArray[np.int32], part: Part) -> NDArray[np.int64]:
        """How many bytes of the text's UTF-8 each teacher's token and those before it stand for.

        Exact where the tokens spell out the text, but for a blank before it; elsewhere (a normaliser) a token that
        shares its characters with the next one ends where that does.
        """
        sizes = np.array([len(self._teacher_bytes[i]) for i in ids.tolist()])
        spelt, data = b"".join(self._teacher_bytes[i] for i in ids.tolist()), part.text.encode("utf-8")
        if spelt in (data, b" " + data):
            return np.maximum(np.cumsum(sizes) - (len(spelt) - len(data)), 0)
        spans = self.teacher.encode_whole([(part,)])[0]
        if len(spans.ids) != len(ids) or (spans.ids != ids).any():
            return np.full(len(ids), len(data), np.int64)  # one chunk
        letters = np.concatenate([[0], np.cumsum([len(c.encode("utf-8")) for c in part.text])])
        starts = np.append(spans.spans[1:, 0], len(part.text))
        ends = np.where(spans.spans[:, 1] <= starts, spans.spans[:, 1], len(part.text))
        return letters[np.minimum.accumulate(ends[::-1])[::-1]]


def _as_array(array: NDArray[np.int32]) -> jax.Array:
    """Types a NumPy array as a JAX array: batches hold NumPy arrays until the mesh places them on devices."""
    return cast(jax.Array, array)


class _Run(NamedTuple):
    """Tokens start..stop of a row: one special token, or a text."""

    start: int
    stop: int
    segment: int
    special: bool


_NONE = _Run(0, 0, 0, True)
