"""Each kind of tokenizer in a store: round trips, exact bytes, special tokens, and files that do not fit."""

import json

import numpy as np
import pytest

from distill import data
from distill.config.data import ColumnsConfig, DataConfig, FilesConfig, SplitConfig, TokenizerConfig
from distill.data.documents import SPLITS, Part
from distill.data.tokenizers.subword import END_OF_TEXT, SubwordTokenizer, train_bpe
from distill.data.tokenizers.tokenizer import ByteTokenizer, SymbolTokenizer, load

HARD = ["", "a", "Grüße, 世界 😀!", "  two  blanks\n\ttab\r\n", f"with {END_OF_TEXT} in it", "é" * 50, "\u2028 \ufeff"]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "small.json"
    train_bpe(["we the people of the united states " * 3, "in order to form a more perfect union"], 290, path)
    return path


def tokenizers(bpe):
    return [ByteTokenizer(), SubwordTokenizer(str(bpe))]


@pytest.mark.parametrize("text", HARD)
def test_text_comes_back_and_its_bytes_add_up(bpe, text):
    for tokenizer in tokenizers(bpe):
        (ids,) = tokenizer.encode([Part(text)])
        assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode("utf-8"))
        assert tokenizer.end_of_text not in ids and tokenizer.byte_lengths[tokenizer.end_of_text] == 0


def test_special_tokens_are_recognised_in_templates_only(bpe):
    tokenizer = SubwordTokenizer(str(bpe))
    text, template = tokenizer.encode([Part(END_OF_TEXT), Part(END_OF_TEXT, template=True)])
    assert len(text) > 1 and template.tolist() == [tokenizer.end_of_text]


def test_a_tokenizer_loads_again_from_its_spec(bpe):
    for tokenizer in [*tokenizers(bpe), SymbolTokenizer(5)]:
        again = load(tokenizer.spec)
        assert (again.name, again.hash, again.vocab_size) == (tokenizer.name, tokenizer.hash, tokenizer.vocab_size)


def test_the_hash_is_of_the_content(bpe, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(json.loads(bpe.read_text())))  # the same, formatted otherwise
    tree = json.loads(bpe.read_text())
    tree["model"]["merges"].pop()
    (tmp_path / "less.json").write_text(json.dumps(tree))
    hashes = [SubwordTokenizer(str(path)).hash for path in (bpe, tmp_path / "other.json", tmp_path / "less.json")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_bpe_is_trained_on_the_training_splits_only(tmp_path, monkeypatch, texts):
    """A word that is frequent in validation text only, copies in training files included, never becomes a token."""
    held = [f"{text} " + "zyxwvut " * 50 for text in texts[:30]]
    for name, part in (("train", texts[30:] + held[:5]), ("held", held)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in part))
    config = DataConfig(
        source="files",
        files=FilesConfig(paths=(f"{tmp_path}/train.jsonl",), validation=(f"{tmp_path}/held.jsonl",)),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=400),
    )
    store = data.open_store(config, tmp_path / "s")
    vocabulary = json.loads((store.path / "tokenizer.json").read_text())["model"]["vocab"]
    assert any("people" in token for token in vocabulary) and not any("zyx" in token for token in vocabulary)
    assert store.manifest["counts"]["duplicates_across"] == 5
    assert store.tokenizer_name == f"bpe-{store.vocab_size}-{store.tokenizer_hash[:8]}"
    for name in SPLITS:
        split = store.split(name)
        assert split.bytes == split.token_bytes
        text = store.tokenizer().decode(split.read_span(0, int(split.document_ends()[0]) - 1))
        assert text in texts or text in held
    again = data.open_store(config, tmp_path / "s2", workers=1)
    assert again.tokenizer_hash == store.tokenizer_hash


def test_bits_per_byte_agree_across_tokenizers(config, tmp_path):
    """A model that spends the same nats on each byte of text has the same bits per byte whatever the tokens are."""
    import dataclasses

    bytes_store = data.open_store(config, tmp_path / "s")
    bpe = dataclasses.replace(config, tokenizer=TokenizerConfig(kind="bpe", vocab_size=300))
    for store in (bytes_store, data.open_store(bpe, tmp_path / "s")):
        evaluation = store.evaluation("validation", 16, 10**6)
        assert evaluation.exact_bytes
        nats = 0.7 * store.byte_lengths[np.asarray(evaluation.batch.labels)].sum()
        assert nats / evaluation.bytes == pytest.approx(0.7, abs=1e-12)
        split = store.split("validation")
        left_out = split.tokens - evaluation.batch.labels.size
        assert split.bytes - evaluation.bytes <= 20 * max(left_out, 1)


def test_sentencepiece_models(tmp_path, texts):
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "sp"), vocab_size=120, byte_fallback=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    config = DataConfig(
        source="files",
        files=FilesConfig(paths=(f"{tmp_path}/text.txt",), separator="\n"),
        tokenizer=TokenizerConfig(kind="sentencepiece", path=str(tmp_path / "sp.model")),
        splits=SplitConfig(validation=0.0, teacher=1.0),
    )
    store = data.open_store(config, tmp_path / "s")
    split = store.split("teacher")
    ends = split.document_ends().astype(int)
    decoded = [store.tokenizer().decode(split.read_span(a, b - 1).tolist()) for a, b in zip([0, *ends], ends)]
    assert decoded == texts
    # The model writes a blank before each text: one byte a document too many, which the evaluation scales away.
    assert split.token_bytes == split.bytes + split.documents
    evaluation = store.evaluation("teacher", 8, 10**6)
    assert not evaluation.exact_bytes and evaluation.bytes == pytest.approx(split.bytes, rel=0.01)


def test_published_layout_of_a_hugging_face_folder(tmp_path, bpe, config):
    """A tokenizer.json with truncation, padding, a post-processor and a chat token, as model folders have it."""
    import dataclasses

    from tokenizers import AddedToken, Tokenizer, processors

    library = Tokenizer.from_file(str(bpe))
    library.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    start = ("<|im_start|>", 290)
    library.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[start])
    library.enable_truncation(8)
    library.enable_padding(length=8)
    (tmp_path / "model").mkdir()
    library.save(str(tmp_path / "model/tokenizer.json"))
    path = str(tmp_path / "model/tokenizer.json")
    tokenizer = SubwordTokenizer(path)
    (ids,) = tokenizer.encode([Part("we the people " * 20)])
    assert len(ids) > 8 and 290 not in ids and tokenizer.name.startswith("model-292-")
    records = [{"messages": [{"role": "assistant", "content": f"<|im_end|> {i}"}]} for i in range(50)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    config = dataclasses.replace(
        config,
        files=FilesConfig(paths=(f"{tmp_path}/x.jsonl",)),
        columns=ColumnsConfig(messages="messages"),
        tokenizer=TokenizerConfig(kind="json", path=path),
    )
    split = data.open_store(config, tmp_path / "s").split("teacher")
    tokens = split.read_span(0, split.tokens)
    assert (tokens == 290).sum() == (tokens == 291).sum() == split.documents  # the template's, never the content's


def test_store_keeps_its_tokenizer(tmp_path, bpe, config):
    import dataclasses
    import shutil

    copy = shutil.copy(bpe, tmp_path / "gone.json")
    config = dataclasses.replace(config, tokenizer=TokenizerConfig(kind="json", path=str(copy)))
    store = data.open_store(config, tmp_path / "s")
    (tmp_path / "gone.json").unlink()
    store = data.TokenStore(store.path)
    assert store.tokenizer().hash == store.tokenizer_hash and store.tokenizer_name.startswith("gone-290-")


BAD = [
    (dict(kind="json", path="nowhere.json"), "nowhere.json: there is no such file; set data.tokenizer.path"),
    (dict(kind="sentencepiece", path="nowhere.model"), "nowhere.model: there is no such file"),
    (dict(kind="json", path="{bad}"), "not a tokenizer.json"),
    (dict(kind="sentencepiece", path="{bad}"), "not a SentencePiece model"),
    (dict(kind="json", path="{bpe}", end_of_text="<|endoftex|>"), "no token.*Did you mean '<.endoftext.>'"),
    (dict(kind="bpe", vocab_size=256), "needs at least 257"),
]


@pytest.mark.parametrize("fields, message", BAD)
def test_tokenizers_that_do_not_fit(tmp_path, bpe, config, fields, message):
    import dataclasses

    (tmp_path / "bad").write_text("{}")
    if "path" in fields:
        fields = fields | {"path": fields["path"].format(bad=tmp_path / "bad", bpe=bpe)}
    with pytest.raises(data.DataError, match=message.replace("|", r"\|")):
        data.open_store(dataclasses.replace(config, tokenizer=TokenizerConfig(**fields)), tmp_path / "s")
