"""What stands around a text (BOS, EOS): as the tokenizer's files say, in every store that is built from now on.

The oracle is the `tokenizers` library, which applies the post-processor itself.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from distill import config as configs
from distill import data
from distill.config import ExperimentConfig
from distill.config.data import ColumnsConfig, DataConfig, FilesConfig, SplitConfig, TokenizerConfig
from distill.data.corpus import make_recipe
from distill.data.documents import Document, Part
from distill.data.mixture import Mixture
from distill.data.store.encode import encode
from distill.data.store.store import MANIFEST
from distill.data.tokenizers import gguf
from distill.data.tokenizers.around import Around, read_around, write_around
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.errors import DataError
from distill.interop import tokenizer_files
from tests import tokens

TEXTS = ["the thin man", "of Athens, in an inn", "été naïve 日本 <s>"] * 20


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"{t} {i}"}) + "\n" for i, t in enumerate(TEXTS)))
    return DataConfig(
        source="files",
        files=FilesConfig(paths=(str(tmp_path / "texts.jsonl"),)),
        splits=SplitConfig(validation=0.2, teacher=0.5),
    )


def of(corpus, path, **fields):
    return dataclasses.replace(corpus, tokenizer=TokenizerConfig(kind="json", path=str(path), **fields))


def rows(store, name="student"):
    split = store.split(name)
    ends = split.document_ends().astype(int).tolist()
    return [split.read_span(a, b).tolist() for a, b in zip([0, *ends], ends)]


def test_a_store_holds_what_the_library_writes(corpus, tmp_path):
    """BOS and all. On the code before, the post-processor was not applied."""
    made = tokens.bos()
    store = data.open_store(of(corpus, tokens.save(made, tmp_path / "m")), tmp_path / "s")
    end = made.token_to_id("</s>")
    written = {f"{t} {i}": made.encode(f"{t} {i}").ids for i, t in enumerate(TEXTS)}
    # The library takes a typed <s> for the token; in a store what people typed is text.
    written = [ids for text, ids in written.items() if "<s>" not in text]
    plain = [row for row in rows(store) if [*row[:-1]] in written]
    assert len(plain) > 5 and all(row[0] == made.token_to_id("<s>") and row[-1] == end for row in rows(store))
    assert store.special == "<s> $A" and store.manifest["tokenizer"]["special"] == "<s> $A"
    again = data.TokenStore(store.path)
    assert again.tokenizer().around == Around((made.token_to_id("<s>"),), ())
    assert data.open_store(of(corpus, tmp_path / "m"), tmp_path / "s2", workers=1).fingerprint == store.fingerprint


# What a library's post-processor may put around a text, and how it says so.
NAMES = tokens.SPECIALS


def processor(rng, made):
    """A random post-processor, with the names that it puts before and after a text."""
    before = [str(n) for n in rng.choice(NAMES, rng.integers(0, 3))]
    after = [str(n) for n in rng.choice(NAMES, rng.integers(0, 3))]
    pair = lambda name: (name, made.token_to_id(name))
    level = processors.ByteLevel(trim_offsets=bool(rng.integers(2)))
    kind = rng.integers(6)
    if kind == 0:
        return None, [], []
    if kind == 1:
        return level, [], []
    if kind == 2:
        return processors.BertProcessing(pair("</s>"), pair("<s>")), ["<s>"], ["</s>"]
    if kind == 3:
        return processors.RobertaProcessing(pair("</s>"), pair("<s>")), ["<s>"], ["</s>"]
    template = tokens.around(made, before, after)
    return (template if kind == 4 else processors.Sequence([level, template])), before, after


@pytest.mark.parametrize("seed", range(12))
def test_every_post_processor_is_applied_as_the_library_does(seed, tmp_path):
    """25 draws a seed of post-processors, ends and settings. Seen to catch BOS after the text, and two ends."""
    rng = np.random.default_rng(seed)
    for case in range(25):
        made = tokens.library(order=rng.permutation(len(tokens.LETTERS) + len(tokens.MERGES) + len(NAMES)))
        made.post_processor, before, after = processor(rng, made)
        folder = tokens.save(made, tmp_path / str(case)).parent
        end = str(rng.choice(["", "none", "</s>", "<mask>"]))
        ids = made.get_vocab()
        last = {"": ids["</s>"], "none": None}.get(end, ids.get(end))
        own = str(rng.choice(["model", "none", "<pad> $A", "$A <mask> </s>"]))
        if own != "model":
            before, after = ([], []) if own == "none" else (part.split() for part in own.split("$A"))
        tokenizer = SubwordTokenizer(str(folder), end, own)
        texts = [" ".join(rng.choice(tokens.WORDS[:12], 9)) for _ in range(3)]
        bare = [made.encode(text, add_special_tokens=False).ids for text in texts]
        want = [[*(ids[n] for n in before), *one, *(ids[n] for n in after)] for one in bare]
        if own == "model":
            assert want == [made.encode(text).ids for text in texts]
        closed = [
            [*one, *([last] if last is not None and one[len(one) - len(after) :][-1:] != [last] else [])]
            for one in want
        ]
        got = encode(tokenizer, [Document((Part(text),)) for text in texts], np.dtype(np.uint16), True)
        assert got.ids.tolist() == sum(closed, [])
        assert got.mask.tolist() == sum(([0] * len(before) + [1] * (len(one) - len(before)) for one in closed), [])
        # What was resolved makes the same tokenizer in another process, and in another folder without the files.
        again = SubwordTokenizer(str(folder), end, tokenizer.spec.special)
        assert again.around == tokenizer.around == Around(tuple(ids[n] for n in before), tuple(ids[n] for n in after))
        # What is published says what was trained on.
        said = Tokenizer.from_str(tokenizer_files.of_tokenizer(tokenizer).files["tokenizer.json"].decode())
        assert [said.encode(text).ids for text in texts] == want


def test_what_a_template_writes_and_ids_that_were_drawn_stay_as_they_are(tmp_path):
    tokenizer = SubwordTokenizer(str(tokens.save(tokens.bos(), tmp_path)))
    chat = Document((Part("<s>", False, template=True), Part("the man"), Part("</s>", template=True)))
    drawn = Document(ids=np.array([7, 8, 9]))
    asked = Document((Part("the man:", False), Part(" in")))
    ids = tokenizer.encode([Part("the man"), Part("the man: in")])
    begin, end = tokenizer.around.before[0], tokenizer.end_of_text
    got = encode(tokenizer, [chat, drawn, asked], np.dtype(np.uint16), True)
    want = [[begin, *ids[0], end], [7, 8, 9], [begin, *ids[1], end]]
    assert got.ids.tolist() == sum(want, []) and got.lengths.tolist() == [len(one) for one in want]
    assert got.mask.tolist()[-len(want[2]) :] == [0] * (len(want[2]) - 2) + [1, 1]


# Made by the version before `data.tokenizer.special`, with the recipes of `corpus` and these tokenizers.
GOLDEN = {
    "bos": "46ac947202a2e3e43922c2d7cdfea0dce311eec49fb0c778b87dbe070ffc3b90",
    "plain": "616ddb48436a53354e90d098b768d3d473026b2afb0d1f85aa23bf5c1e51737a",
}


def fixed(corpus, monkeypatch, tmp_path, made):
    """The recipe of `corpus` by relative names, which alone enter a fingerprint."""
    monkeypatch.chdir(tmp_path)
    tokens.save(made, tmp_path / "model")
    return of(dataclasses.replace(corpus, files=FilesConfig(paths=("texts.jsonl",))), "model")


@pytest.mark.parametrize("kind", GOLDEN)
def test_earlier_stores_and_runs_keep_their_names(corpus, monkeypatch, tmp_path, kind):
    made = tokens.bos() if kind == "bos" else tokens.library()
    config = fixed(corpus, monkeypatch, tmp_path, made)
    bare = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, special="none"))
    assert make_recipe(bare).fingerprint == GOLDEN[kind]
    assert (make_recipe(config).fingerprint == GOLDEN[kind]) == (kind == "plain")
    names = [configs.fingerprint(ExperimentConfig(data=one)) for one in (config, bare)]
    assert names[0] == names[1]  # the store's own name tells such runs apart


def test_a_store_without_the_record_is_kept_as_it_is(corpus, monkeypatch, tmp_path, caplog):
    config = fixed(corpus, monkeypatch, tmp_path, tokens.bos())
    bare = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, special="none"))
    old = data.open_store(bare, tmp_path / "s")
    assert data.open_store(config, tmp_path / "s").fingerprint != old.fingerprint  # this version's: told apart
    for folder in (tmp_path / "s").iterdir():
        if folder != old.path and (folder / MANIFEST).exists():
            shutil.rmtree(folder)
    manifest = json.loads((old.path / MANIFEST).read_text())
    del manifest["tokenizer"]["special"]  # as an earlier version wrote it
    (old.path / MANIFEST).write_text(json.dumps(manifest))
    assert "an earlier version" not in caplog.text
    kept = data.open_store(config, tmp_path / "s")
    assert "an earlier version built it, without what" in caplog.text
    assert (kept.path, kept.fingerprint, kept.special) == (old.path, GOLDEN["bos"], "none")
    assert kept.tokenizer().around == Around() and rows(kept) == rows(old)
    asked = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, special="<s> $A"))
    assert data.open_store(asked, tmp_path / "s").special == "<s> $A"
    # A finished store is taken with what it has, unless the config asks for something.
    finished = dataclasses.replace(DataConfig(source="tokens", tokens=str(old.path)), tokenizer=config.tokenizer)
    assert data.open_store(finished, tmp_path / "s").special == "none"
    with pytest.raises(DataError, match="its text stands in 'none', data.tokenizer.special is '<s> .A'"):
        data.open_store(dataclasses.replace(finished, tokenizer=asked.tokenizer), tmp_path / "s")
    with pytest.raises(DataError, match="stands in.*tokenize both alike"):
        Mixture([kept, data.open_store(asked, tmp_path / "s")], [1, 1])


def test_what_a_template_of_tokens_may_be(tmp_path):
    names = {"<s>": 4, "</s>": 5, "a b": 6, "7": 8}
    name = {i: token for token, i in names.items()}
    for around in (Around(), Around((4,), ()), Around((4, 6), (5, 8)), Around((), (8,))):
        assert read_around(write_around(around, name.__getitem__), names, "x") == around
    for wrong, said in (
        ("<s>", "wanted 'model'"),
        ("$A $A", "wanted 'model'"),
        ("<bos> $A", "no token"),
        ("99 $A", "no token"),
    ):
        with pytest.raises(DataError, match=said):
            read_around(wrong, names, "x")
    with pytest.raises(DataError, match="has no special tokens but the end of text"):
        data.open_store(DataConfig(tokenizer=TokenizerConfig(special="<s> $A")), tmp_path)


def test_a_post_processor_that_does_more_is_refused(tmp_path):
    made = tokens.library()
    made.post_processor = processors.TemplateProcessing(single="$A <s> $A", special_tokens=[("<s>", 265)])
    tokens.save(made, tmp_path / "a")
    with pytest.raises(DataError, match="set data.tokenizer.special to 'none'"):
        SubwordTokenizer(str(tmp_path / "a"))
    assert SubwordTokenizer(str(tmp_path / "a"), around="none").around == Around()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3000)])
    tokens.save(made, tmp_path / "b")
    with pytest.raises(DataError, match="puts tokens .3000. around a text and has ids up to 268"):
        SubwordTokenizer(str(tmp_path / "b"))


@pytest.mark.parametrize(
    "cut, fields, want",
    [
        ("llama-bpe", {}, Around((1,), ())),  # as llama.cpp: Llama 3 alone has BOS unless the file says otherwise
        ("llama-bpe", {"add_bos_token": False}, Around()),
        ("gpt-2", {}, Around()),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, Around((1,), (2,))),
    ],
)
def test_gguf_says_it_in_fields(tmp_path, cut, fields, want):
    library = pytest.importorskip("gguf")
    writer = library.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(["a", "<s>", "</s>"])
    writer.add_token_types([1, 3, 3])
    writer.add_token_merges(["a a"][:0] or [])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in fields.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert gguf.around(tmp_path / "m.gguf") == want and gguf.end_of_text(tmp_path / "m.gguf") == "</s>"


def test_a_prompt_and_its_columns_begin_alike(corpus, tmp_path):
    """Prompt and completion are one text: BOS before the prompt, trained from the completion on."""
    (tmp_path / "asks.jsonl").write_text(
        "".join(json.dumps({"q": f"the man {i}", "a": f" in {i}"}) + "\n" for i in range(60))
    )
    config = dataclasses.replace(
        of(corpus, tokens.save(tokens.bos(), tmp_path / "m")),
        files=FilesConfig(paths=(str(tmp_path / "asks.jsonl"),)),
        columns=ColumnsConfig(prompt="{q}", completion="{a}"),
    )
    store = data.open_store(config, tmp_path / "s")
    split = store.split("student")
    begin = int(split.document_ends()[0])
    ids, mask = split.read_span(0, begin), split.read_span(0, begin, "mask")
    assert ids[0] == store.tokenizer().around.before[0] and mask[0] == 0 and mask[-1] == 1
