"""Alignment by bytes: chunks are the smallest spans that begin and end at a token of both tokenizers."""

import itertools

import numpy as np
import pytest
from tokenizers import processors

from distill.data.align import Aligner, readable
from distill.data.documents import Part
from distill.data.tokenizers.spec import Spec
from distill.data.tokenizers.tokenizer import ByteTokenizer, SymbolTokenizer, load
from distill.errors import DataError
from distill.types import Batch
from tests import tokens

TEXT = "the thin man of Athens, \u00e9t\u00e9 \u65e5\u672c, an \U0001f600 ink in 1999;"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """place(library): a SubwordTokenizer of it, in a folder of its own."""
    count = itertools.count()
    root = tmp_path_factory.mktemp("tokenizers")
    return lambda made: load(Spec("json", str(tokens.save(made, root / f"t{next(count)}").parent)))


def batch(*rows, weight=None, **fields):
    rows = np.array(rows, np.int32)
    return Batch(rows, np.ones((len(rows), rows.shape[1] - 1), np.float32) if weight is None else weight, **fields)


def spelt(tokenizer, ids):
    pieces = tokenizer.pieces()
    return [b"" if pieces[i].kind == "special" else pieces[i].text for i in ids]


def chunks(student, teacher, aligned, row, ids):
    """For each chunk of a row, the bytes of the student's tokens and those of the teacher's, token by token."""
    mine, theirs = spelt(student, ids[1:]), spelt(teacher, aligned.tokens[row, 1:].tolist())
    found = {}
    for side, owners, pieces in ((0, aligned.chunk[row], mine), (1, aligned.teacher_chunk[row], theirs)):
        for owner, piece in zip(owners.tolist(), pieces, strict=True):
            if owner:
                found.setdefault(owner, ([], []))[side].append(piece)
    return found


def naive(mine, theirs):
    """Chunks of two lists of pieces by walking over both: the oracle."""
    out, a, b, i, j = [], b"", b"", 0, 0
    one, two = [], []
    while i < len(mine) or j < len(theirs):
        if len(a) <= len(b) and i < len(mine):
            a += mine[i]
            one.append(mine[i])
            i += 1
        else:
            b += theirs[j]
            two.append(theirs[j])
            j += 1
        if len(a) == len(b):
            out.append((one, two))
            one, two = [], []
    return out


MERGED = [*tokens.MERGES, ("\u00c3", "\u00a9"), ("\u00c3\u00a9", "t"), ("\u00e6", "\u0139"), ("m", "an")]
PAIRS = {
    "bytes from subwords": (None, tokens.MERGES),
    "other subwords": (tokens.MERGES[:4], MERGED),
    "subwords from bytes": (MERGED, None),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_chunks_are_those_of_a_walk_over_both(place, pair):
    """Chunks that end inside a character included: both sides split U+65E5 after its second byte."""
    student, teacher = (ByteTokenizer() if m is None else place(tokens.library(merges=m)) for m in PAIRS[pair])
    text = "x" + TEXT  # a first token that is not predicted, and is one on both sides
    ids, theirs = (t.encode([Part(text)])[0].tolist() for t in (student, teacher))
    aligned = Aligner(student, teacher).align(batch(ids), len(theirs) - 1)
    assert aligned.tokens[0].tolist() == theirs
    wanted = naive(spelt(student, ids), spelt(teacher, theirs))[1:]
    found = chunks(student, teacher, aligned, 0, ids)
    assert list(found.values()) == wanted and len(wanted) > 20
    firsts = np.cumsum([0, *(len(mine) for mine, _ in wanted)])[:-1] + 1
    assert list(found) == firsts.tolist()  # named by the place of their first predicted token


def test_equal_tokens_are_chunks_of_one(place):
    made = place(tokens.library())
    ids = made.encode([Part(TEXT)])[0].tolist()
    aligned = Aligner(made, made).align(batch(ids), len(ids) - 1)
    np.testing.assert_array_equal(aligned.tokens[0], ids)
    np.testing.assert_array_equal(aligned.chunk[0], 1 + np.arange(len(ids) - 1))
    np.testing.assert_array_equal(aligned.teacher_chunk, aligned.chunk)


def test_bos_stands_before_every_text_and_ends_mean_each_other(place):
    teacher, student = place(tokens.bos()), ByteTokenizer()
    data = list(b"of the\0thin ink\0in")
    aligned = Aligner(student, teacher).align(batch(data), 16)
    names = [teacher.token(i) for i in aligned.tokens[0]]
    assert names[:4] == ["<s>", "of", "\u0120the", "</s>"] and names.count("<s>") == 3
    found = chunks(student, teacher, aligned, 0, data)
    assert found[6] == ([b""], [b""])  # the end of the first text, which one token of each means
    assert found[7] == ([b"t", b"h"], [b"th"])  # the first word of a text is predicted from BOS
    assert not any(b"o" in mine for mine, _ in list(found.values())[:1])  # but not the window's first token


def test_a_students_own_bos_is_nobodys_chunk(place):
    student, teacher = place(tokens.bos()), place(tokens.library(merges=MERGED))
    ids = [*student.around.before, *student.encode([Part("the man")])[0].tolist()]
    aligned = Aligner(student, teacher).align(batch(ids), 8)
    assert aligned.chunk[0, 0] == 0  # the teacher has nothing before its first token
    assert (aligned.chunk[0, 1:] > 0).all()


def test_weights_segments_and_rows_that_are_too_long(place):
    student, teacher = ByteTokenizer(), place(tokens.bos())
    data = list(b"of the ink in the man")
    whole = Aligner(student, teacher).align(batch(data), 16)
    weight = np.ones((1, len(data) - 1), np.float32)
    weight[0, 4] = 0
    part = Aligner(student, teacher).align(batch(data, weight=weight), 16)
    lost = whole.chunk[0, 4]
    np.testing.assert_array_equal(part.chunk, np.where(whole.chunk == lost, 0, whole.chunk))
    np.testing.assert_array_equal(part.teacher_chunk, np.where(whole.teacher_chunk == lost, 0, whole.teacher_chunk))
    short = Aligner(student, teacher).align(batch(data), 3)
    assert set(short.chunk[0].tolist()) == {0, *short.teacher_chunk[0].tolist()} and short.chunk.max() > 0
    segment = np.array([[1] * 6 + [2] * 8 + [0] * 6])
    weight = np.where(np.arange(20) == 5, 0, 1.0)[None] * (segment > 0)
    packed = Aligner(student, teacher).align(batch(data, weight=weight, segment=segment), 16)
    assert packed.segment.max() == 2 and (packed.position[0, packed.segment[0] == 2][:3] == [0, 1, 2]).all()
    assert [teacher.token(i) for i in packed.tokens[0]].count("<s>") == 2
    assert (packed.chunk[segment == 0][1:] == 0).all()


def test_what_is_no_text():
    text, at = readable(b"\x80\xbfab\xffc\xe6\x97")
    assert text == "ab\ufffdc" and at.tolist() == [2, 3, 4, -1, -1, 5, 6]
    text, at = readable("\u65e5\u672c".encode()[1:])
    assert text == "\u672c" and at.tolist() == [2, 3, 4, 5]
    assert readable(b"").text == "" and readable(b"\xe6").text == ""


def test_a_window_of_any_bytes_aligns(place):
    """Random bytes and cuts: no chunk is torn, and what both say of it is the same where it is text."""
    teacher, student = place(tokens.bos()), ByteTokenizer()
    aligner, rng = Aligner(student, teacher), np.random.default_rng(3)
    texts = np.frombuffer((TEXT * 40).encode(), np.uint8)
    for _ in range(20):
        at = rng.integers(0, len(texts) - 60)
        row = texts[at : at + 60].copy()
        row[rng.integers(0, 60, rng.integers(0, 3))] = rng.integers(0, 256)
        aligned = aligner.align(batch(row), 64)
        for mine, theirs in chunks(student, teacher, aligned, 0, row.tolist()).values():
            assert mine and theirs
            assert b"".join(mine) == b"".join(theirs) or "\ufffd".encode() in b"".join(theirs)


def test_a_normaliser_changes_bytes_and_not_places(place):
    """A teacher that reads lower case: its tokens spell another text, and lie where its library says."""
    teacher = place(tokens.library(normalizer=tokens.LOWER))
    data = list("The Man \u00c9t\u00e9 of".encode())
    aligned = Aligner(ByteTokenizer(), teacher).align(batch(data), 20)
    found = list(chunks(ByteTokenizer(), teacher, aligned, 0, data).values())
    assert ([b" ", b"o", b"f"], [b" of"]) in found and ([b" "], [b" "]) in found
    assert all(
        b"".join(a).decode("utf-8", "replace").lower() == b"".join(b).decode("utf-8", "replace") for a, b in found
    )


def test_students_whose_tokens_keep_no_text_are_refused(place):
    lower = place(tokens.library(normalizer=tokens.LOWER))
    with pytest.raises(DataError, match="do not spell out their text"):
        Aligner(lower, ByteTokenizer())
    with pytest.raises((DataError, ValueError)):
        Aligner(SymbolTokenizer(8), ByteTokenizer())


def test_a_post_processor_is_no_token_of_a_text(place):
    made = tokens.library()
    made.post_processor = processors.Sequence([tokens.around(made, ["<s>"], ["</s>"])])
    teacher = place(made)
    aligned = Aligner(ByteTokenizer(), teacher).align(batch(list(b"an\0an")), 8)
    assert [teacher.token(i) for i in aligned.tokens[0]][:5] == ["<s>", "an", "</s>", "<s>", "an"]
