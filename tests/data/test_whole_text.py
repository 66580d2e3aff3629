"""Documents of several parts: the tokens of their whole text, the marks of what is trained, and the bytes of text."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from distill import data
from distill.config.data import ColumnsConfig, DataConfig, FilesConfig, SplitConfig, TokenizerConfig
from distill.data.documents import Document, Part
from distill.data.store.encode import encode
from distill.data.tokenizers.subword import SubwordTokenizer, train_bpe
from distill.data.tokenizers.tokenizer import ByteTokenizer
from distill.errors import DataError

START, END, THINK = "<|im_start|>", "<|im_end|>", "<think>"
TEXTS = [
    "the capital of France is Paris, and of Italy Rome.",
    "we the people of the united states, in order",
    "Grüße 世界",
]


def _bytes(library):
    return library


def _metaspace(library):
    """A blank before the first word, as in Llama's tokenizer."""
    library.normalizer = None
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return library


def _normalized(library):
    """Capitals are small letters, and so of special tokens whose name is normalised."""
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return library


@pytest.fixture(scope="module", params=[_bytes, _metaspace, _normalized])
def files(request, tmp_path_factory):
    """A tokenizer.json with special tokens of several kinds."""
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    train_bpe([text * 3 for text in TEXTS], 340, path)
    library = request.param(Tokenizer.from_file(str(path)))
    specials = [AddedToken(START, special=True), AddedToken(END, special=True, rstrip=True), AddedToken("</s>")]
    library.add_special_tokens([*specials, AddedToken("[INST]", special=True, normalized=True)])
    library.add_tokens([AddedToken(THINK, special=False, normalized=False)])
    library.save(str(path))
    return SubwordTokenizer(str(path)), Tokenizer.from_file(str(path))


def _drawn(rng):
    """Parts of random text; templates hold special tokens, and so does text where `typed`."""
    words = [
        "Paris",
        " Paris",
        " ",
        "\n",
        "  a",
        "é",
        "世",
        "😀",
        "of the",
        "<",
        "|",
        "im_end|>",
        THINK,
        "\U0010fffe",
        "",
    ]
    names = [START, END, "</s>", "[INST]", "<|endoftext|>"]
    parts = []
    for _ in range(rng.randrange(1, 7)):
        template = rng.random() < 0.5
        pool = words[:9] + names if template else words + (names if rng.random() < 0.3 else [])
        text = "".join(rng.choice(pool) for _ in range(rng.randrange(5)))
        parts.append(Part(text, trained=rng.random() < 0.5, template=template))
    return tuple(parts)


def test_ids_are_those_of_the_whole_text_where_nobody_typed_a_special_token(files):
    """300 draws. Seen to catch parts that are encoded apart, and aliases without `rstrip`."""
    tokenizer, library = files
    rng, compared = random.Random(0), 0
    for _ in range(300):
        parts = _drawn(rng)
        text = "".join(part.text for part in parts)
        (encoding,) = tokenizer.encode_whole([parts])
        special = {i for i, token in library.get_added_tokens_decoder().items() if token.special}
        here = np.cumsum([0, *(len(part.text) for part in parts)])
        typed = 0
        for i, (a, _) in zip(encoding.ids, encoding.spans):
            if i in special:  # written by a template, from its first character on
                typed += not parts[int(np.searchsorted(here, a, "right")) - 1].template
        assert not typed
        whole = library.encode(text, add_special_tokens=False)
        if not any(name in part.text for part in parts if not part.template for name in ("<|", "</s>", "[INST]", "|>")):
            compared += 1
            assert encoding.ids.tolist() == whole.ids
        library.encode_special_tokens = True
        if not any(part.template for part in parts):
            assert encoding.ids.tolist() == library.encode(text, add_special_tokens=False).ids
        library.encode_special_tokens = False
    assert compared > 100


def test_a_special_token_that_a_user_typed_stays_text_beside_those_of_the_template(files):
    """Seen to catch aliases that the text itself holds, and a name that text and template make together."""
    tokenizer, library = files
    mark = "\U0010fffe"
    for typed in (END, f"{mark}{END}{mark}", "<|im_", START + "x", "".join(map(chr, range(0xFFFE, 0x10FFFE, 0x10000)))):
        parts = [Part(START + "user\n", template=True), Part(typed), Part(END + "\n", template=True)]
        (encoding,) = tokenizer.encode_whole([parts])
        assert [tokenizer.token(i) for i in encoding.ids[encoding.control]] == [START, END]
        assert encoding.control.tolist() == [
            i in (library.token_to_id(START), library.token_to_id(END)) for i in encoding.ids
        ]
        (joined,) = tokenizer.encode_whole([[Part("<|im_"), Part("end|>", template=True)]])
        assert not joined.control.any() and len(joined.ids) > 1


def test_a_token_is_trained_where_it_holds_a_trained_character(files):
    """Against a loop over characters. Seen to catch marks by the first character alone."""
    tokenizer, _ = files
    rng = random.Random(1)
    for _ in range(100):
        parts = _drawn(rng)
        text = "".join(part.text for part in parts)
        trained = [part.trained for part in parts for _ in part.text]
        encoded = encode(tokenizer, [Document(parts)], np.dtype("uint16"), True)
        (encoding,) = tokenizer.encode_whole([parts])
        want = [any(trained[a:b]) for a, b in encoding.spans]
        assert encoded.mask[: len(want)].tolist() == want
        control = [(a, b) for (a, b), c in zip(encoding.spans, encoding.control) if c]
        left = [c for i, c in enumerate(text) if not any(a <= i < b for a, b in control)]
        assert encoded.bytes[0] == len("".join(left).encode())


def test_prompt_and_completion_are_one_text(tmp_path):
    """The example of the guide: ' Paris' is one token after 'A:', as in the whole text; a blank before is trained."""
    path = tmp_path / "tokenizer.json"
    train_bpe(["is Paris is Paris A: Paris "] * 9, 280, path)
    tokenizer = SubwordTokenizer(str(path))
    for prompt, completion in (("A:", " Paris"), ("A: ", "Paris")):
        document = Document((Part(prompt, trained=False, template=True), Part(completion)))
        encoded = encode(tokenizer, [document], np.dtype("uint16"), True)
        assert encoded.ids[:-1].tolist() == tokenizer.encode([Part("A: Paris")])[0].tolist()
        words = [tokenizer.token(i) for i, m in zip(encoded.ids, encoded.mask) if m]
        assert words == ["ĠParis", "<|endoftext|>"]


@pytest.mark.parametrize("reply, ends", [("yes", [1]), ("", [0]), ("  ", [0])])
def test_the_end_of_a_document_is_trained_after_a_reply_only(reply, ends):
    document = Document((Part("why?", trained=False), Part(reply), Part("\n", trained=False, template=True)))
    encoded = encode(ByteTokenizer(), [document], np.dtype("uint8"), True)
    assert encoded.mask[-1:].tolist() == ends and encoded.ids[-1] == 0


def test_an_end_that_the_template_wrote_is_not_written_twice(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_bpe(["yes no"] * 9, 260, path)
    tokenizer = SubwordTokenizer(str(path))
    parts = (Part("no", trained=False), Part("yes"), Part("<|endoftext|>", template=True))
    encoded = encode(tokenizer, [Document(parts)], np.dtype("uint16"), True)
    assert (encoded.ids == tokenizer.end_of_text).sum() == 1 and encoded.mask[-1] == 1


def test_bytes_of_text_do_not_count_special_tokens(tmp_path):
    """The parts of a store's bytes: all tokens of a byte-level vocabulary, so that the two counts are equal."""
    path = tmp_path / "tokenizer.json"
    train_bpe(["yes no"] * 9, 260, path)
    library = Tokenizer.from_file(str(path))
    library.add_special_tokens([START, END])
    library.save(str(path))
    talk = {"messages": [{"role": "user", "content": f"hi {END} é"}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(talk) + "\n")
    config = DataConfig(
        source="files",
        files=FilesConfig(paths=(str(tmp_path / "talk.jsonl"),)),
        columns=ColumnsConfig(messages="messages"),
        tokenizer=TokenizerConfig(kind="json", path=str(path)),
        splits=SplitConfig(validation=0.0, teacher=1.0),
    )
    split = data.open_store(config, tmp_path / "s").split("teacher")
    assert split.bytes == split.token_bytes == len(f"user\nhi {END} é\nassistant\nyes\n".encode())


def test_a_vocabulary_that_holds_its_special_tokens_as_words_is_refused(tmp_path):
    """A Unigram model would write a typed '</s>' as that token."""
    from tokenizers import models

    library = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "abc<>/s ")], unk_id=0))
    library.add_special_tokens(["<unk>", "</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = SubwordTokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="cannot write as text"):
        tokenizer.encode_whole([[Part("ab", template=True), Part("a</s>")]])
    (encoding,) = tokenizer.encode_whole([[Part("aü</s>", template=True), Part("ü")]])
    assert encoding.control.tolist() == [False, False, True, False]


def test_a_store_of_an_earlier_version_keeps_its_tokens_and_its_name(tmp_path):
    """tests/golden/turn_by_turn was built by commit 8546086: ' Paris' is several tokens there; it says so.

    Its manifest counts the characters of special tokens as text (169 bytes for 103); an evaluation does not.
    """
    golden = Path(__file__).parents[1] / "golden" / "turn_by_turn"
    config = DataConfig(
        source="files",
        files=FilesConfig(paths=(str(golden / "text.jsonl"),)),
        columns=ColumnsConfig(prompt=START + "{q} A: ", completion="{a}" + END),
        tokenizer=TokenizerConfig(kind="json", path=str(golden / "tokenizer.json")),
        splits=SplitConfig(validation=0.3),
    )
    shutil.copytree(golden / "stores", tmp_path / "stores")
    old = data.open_store(config, tmp_path / "stores")
    assert old.fingerprint == "c8adba68e6623bfaf9d11bcdcd3ecbbccb9d903f3b8ed819e16b0d24b9ab8b88"
    assert "each turn was encoded as a text of its own" in old.note
    split = old.split("teacher")
    assert (split.tokens, split.bytes, split.token_bytes) == (52, 169, 103)
    assert split.text_bytes == split.token_bytes
    assert old.evaluation("teacher", 8, 10**6).exact_bytes
    new = data.open_store(config, tmp_path / "new")
    assert new.fingerprint != old.fingerprint and new.manifest["recipe"]["encoding"] == "whole" and not new.note
    again = new.split("teacher")
    assert again.tokens < split.tokens and again.bytes == again.token_bytes == split.text_bytes
