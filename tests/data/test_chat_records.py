"""Records of chats: what each field and column becomes, whose words are trained, and what is refused by name.

Each of these went wrong without a word in commit 8546086, unless a docstring says otherwise.
"""

import json
import math
import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from distill import data
from distill.config.data import ColumnsConfig, DataConfig, FilesConfig, SplitConfig, TokenizerConfig
from distill.data.sources.columns import Columns
from distill.data.store.encode import encode
from distill.data.tokenizers.subword import train_bpe
from distill.data.tokenizers.tokenizer import ByteTokenizer
from distill.errors import DataError

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be kind"}
CALL = {"id": "a1", "type": "function", "function": {"name": "sky", "arguments": {"town": "Rome"}}}
TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"


def text(document, trained=False):
    return "".join(part.text for part in document.parts if part.trained or not trained)


def columns(folder, template, **config):
    folder.mkdir(exist_ok=True)
    tree = template if isinstance(template, dict) else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **tree}))
    return Columns(ColumnsConfig(messages="messages", template=str(folder), **config))


def document(folder, template, messages, beside=None, **config):
    return columns(folder, template, **config).document({"messages": messages, **(beside or {})}, "line 1")


# 11: whole messages and columns


# A template that writes all that it is given.
WHOLE = (
    "{% for t in tools or [] %}{{ t.function.name }},{% endfor %}"
    "{% for d in documents or [] %}{{ d.text }},{% endfor %}{{ style }}"
    "{% for m in messages %}[{{ m.role }}{{ ' ' + m.name if m.name }}]{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}[end]"
    "{% endfor %}"
)
WHYS = ("reasoning_content", "thinking", "reasoning")


@pytest.mark.parametrize(
    "messages, beside, want",
    [
        ([USER, {**REPLY, "tool_calls": [CALL]}], {}, '[user]Hi[end][assistant]Hello.sky({"town": "Rome"})[end]'),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], {}, '[user]Hi[end][assistant]sky({"town": "Rome"})[end]'),
        ([USER, REPLY], {"tools": TOOLS}, "sky,[user]Hi[end][assistant]Hello.[end]"),
        ([USER, REPLY], {"tools": json.dumps(TOOLS)}, "sky,[user]Hi[end][assistant]Hello.[end]"),
        ([USER, REPLY], {"documents": [{"text": "doc"}]}, "doc,[user]Hi[end][assistant]Hello.[end]"),
        *(([USER, {**REPLY, why: "so"}], {}, "[user]Hi[end][assistant]soHello.[end]") for why in WHYS),
        ([{**USER, "name": "Ada"}, REPLY], {}, "[user Ada]Hi[end][assistant]Hello.[end]"),
        ([USER, REPLY], {"chat_template_kwargs": {"style": "terse"}}, "terse[user]Hi[end][assistant]Hello.[end]"),
    ],
)
def test_templates_get_whole_messages_and_the_columns_beside_them(tmp_path, messages, beside, want):
    found = document(tmp_path / "m", WHOLE, messages, beside)
    assert text(found) == want
    assert text(found, trained=True) == want.split("[assistant]")[1]


@pytest.mark.parametrize(
    "messages, beside, lost",
    [
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], {}, "tool_calls"),
        ([USER, {**REPLY, "reasoning_content": "why"}], {}, "reasoning_content"),
        ([{**USER, "name": "Ada"}, REPLY], {}, "name"),
        ([USER, {**REPLY, "weight": 0.5}], {}, "weight"),
        ([USER, REPLY], {"tools": TOOLS}, "tools"),
        ([USER, REPLY], {"documents": [{"text": "d"}]}, "documents"),
        ([USER, REPLY], {"system": "Be kind"}, "system"),
    ],
)
def test_what_would_vanish_is_refused_by_name(tmp_path, messages, beside, lost):
    """By a template that does not read it, and by data.columns.chat."""
    for made in (columns(tmp_path / "m", PLAIN), Columns(ColumnsConfig(messages="messages"))):
        with pytest.raises(DataError, match=f"line 1.*'{lost}'.*vanish"):
            made.document({"messages": messages, **beside}, "line 1")


def test_a_message_that_a_template_leaves_out_is_refused(tmp_path):
    with pytest.raises(DataError, match="leaves out message 1"):
        document(
            tmp_path / "m",
            "{% for m in messages %}{% if m.role != 'system' %}" + PLAIN[26:-12] + "{% endif %}{% endfor %}",
            [SYSTEM, USER, REPLY],
        )


def test_tables_give_objects_the_fields_of_all_others_and_those_are_left_out(tmp_path):
    import pyarrow
    import pyarrow.parquet

    made = columns(tmp_path / "m", "{{ tools | tojson }}" + PLAIN)
    tools = [{"function": {"name": "a", "strict": True}}, {"function": {"name": "b", "strict": None}}]
    table = pyarrow.Table.from_pylist([{"messages": [USER, REPLY], "tools": tools, "other": 1}])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    from distill.data.sources.files import Files

    (found,) = Files(FilesConfig(paths=(str(tmp_path / "x.parquet"),)), made).read(0)
    assert text(found).startswith('[{"function": {"name": "a", "strict": true}}, {"function": {"name": "b"}}]')


# 12: the environment of transformers

ENVIRONMENT = [
    ("{% if tools is not none %}a header{% endif %}none", {}, "none"),
    ("{% if tools is defined and documents is none %}defined{% endif %}", {}, "defined"),
    ("{{ pad_token }}{{ unk_token }}", {"pad_token": "<pad>", "unk_token": {"content": "<unk>"}}, "<pad><unk>"),
    ("{{ image_token }}", {"image_token": "<image>"}, "<image>"),
    ("{{ audio }}", {"extra_special_tokens": {"audio": "<audio>"}}, "<audio>"),
    ("{% generation %}x{% endgeneration %}", {}, "x"),
    ("{{ strftime_now('%d %b %Y') }}", {}, "01 Jul 2026"),
    ("{% set d = dict(a=1) %}{{ d.a }}{% set n = namespace(b=2) %}{% set n.b = 3 %}{{ n.b }}", {}, "13"),
    ("{{ {'b': 'é<', 'a': 1} | tojson(sort_keys=true, separators=(',', ':')) }}", {}, '{"a":1,"b":"é<"}'),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", {}, "01"),
]


@pytest.mark.parametrize("template, fields, want", ENVIRONMENT)
def test_templates_find_what_transformers_defines(tmp_path, template, fields, want):
    """Eight of ten rendered otherwise or not at all."""
    more = {"today": "2026-07-01"} if "strftime" in template else {}
    tree = {"chat_template": template + PLAIN, **fields}
    assert text(document(tmp_path / "m", tree, [USER, REPLY], **more)).startswith(want + "[user]")


def test_special_tokens_map_and_templates_by_name(tmp_path):
    tree = {"chat_template": [{"name": "default", "template": "d{{ eos_token }}" + PLAIN},
                              {"name": "tool_use", "template": "t{{ tools | length }}" + PLAIN}]}  # fmt: skip
    made = tmp_path / "m"
    made.mkdir()
    (made / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert text(document(made, tree, [USER, REPLY])).startswith("d</s>[")
    assert text(document(made, tree, [USER, REPLY], {"tools": TOOLS})).startswith("t1[")
    (made / "additional_chat_templates").mkdir()
    (made / "additional_chat_templates" / "default.jinja").write_text("file" + PLAIN)
    assert text(document(made, tree, [USER, REPLY])).startswith("file[")
    with pytest.raises(DataError, match="none is named 'default'"):
        (made / "additional_chat_templates" / "default.jinja").rename(made / "additional_chat_templates" / "x.jinja")
        document(made, tree, [USER, REPLY])


def test_a_template_in_a_json_file_is_that_which_it_holds(tmp_path):
    """The file itself was taken for a template."""
    want = document(tmp_path / "m", PLAIN, [USER, REPLY])
    made = Columns(ColumnsConfig(messages="messages", template=str(tmp_path / "m" / "tokenizer_config.json")))
    assert made.document({"messages": [USER, REPLY]}, "") == want


def test_a_date_is_refused_until_it_is_given(tmp_path):
    with pytest.raises(DataError, match="data.columns.today"):
        columns(tmp_path / "m", "{{ strftime_now('%Y') }}" + PLAIN)


def test_special_tokens_that_no_file_defines_are_refused(tmp_path):
    """They rendered as nothing."""
    (tmp_path / "x.jinja").write_text("{{ bos_token }}" + PLAIN)
    with pytest.raises(DataError, match="reads bos_token"):
        Columns(ColumnsConfig(messages="messages", template=str(tmp_path / "x.jinja")))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null}')
    Columns(ColumnsConfig(messages="messages", template=str(tmp_path / "x.jinja")))


@pytest.mark.parametrize("template, words", [
    ("{{ raise_exception('first: a question') }}", "first: a question"),
    ("{% macro say(m) %}: {% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}{% for m in messages %}"
     "{{ m.role }}{{ say(m) }}{% endfor %}", "place cannot be told"),
    ("{% set n = namespace() %}{% set n._x = 1 %}", "may not hold the name"),
])  # fmt: skip
def test_what_templates_say_and_may_not_do(tmp_path, template, words):
    with pytest.raises(DataError, match=words):
        document(tmp_path / "m", template, [USER, REPLY])


# 13: whose end is trained


def masks(document_):
    """What is trained of a document's bytes, and whether its end is."""
    encoded = encode(ByteTokenizer(), [document_], np.dtype("uint8"), True)
    return bytes(encoded.ids[:-1][encoded.mask[:-1] == 1]).decode("utf-8", "replace"), int(encoded.mask[-1])


@pytest.mark.parametrize("template", ["", PLAIN])
@pytest.mark.parametrize("messages, trained, end", [
    ([USER, REPLY], "Hello.", 1),
    ([USER, REPLY, USER], "Hello.", 0),
    ([USER], "", 0),
    ([SYSTEM, USER], "", 0),
    ([USER, {"role": "assistant", "content": ""}], "", 0),
    ([USER, {"role": "assistant", "content": " \n"}], "", 0),
    ([USER, {"role": "assistant", "content": None}], "", 0),
    ([USER, {"role": "assistant", "content": ""}, USER, REPLY], "Hello.", 1),
])  # fmt: skip
def test_the_end_is_trained_where_a_reply_is(tmp_path, template, messages, trained, end):
    close = "[end]" if template else "<|im_end|>\n"
    made = columns(tmp_path / "m", template) if template else Columns(ColumnsConfig(messages="messages"))
    assert masks(made.document({"messages": messages}, "line 1")) == (trained + close if trained else "", end)


@pytest.mark.parametrize("template", ["", PLAIN])
def test_roles_of_other_dialects_are_mapped_or_refused_by_name(tmp_path, template):
    made = columns(tmp_path / "m", template) if template else Columns(ColumnsConfig(messages="messages"))
    want = made.document({"messages": [USER, REPLY]}, "")
    for user, assistant in (("human", "gpt"), ("user", "model"), ("user", "bot")):
        messages = [{"role": user, "content": "Hi"}, {"role": assistant, "content": "Hello."}]
        share = [{"from": user, "value": "Hi"}, {"from": assistant, "value": "Hello."}]
        assert made.document({"messages": messages}, "") == made.document({"messages": share}, "") == want
    for role in ("critic", "Assistant", "observation", 3):
        with pytest.raises(DataError, match="line 7: got a message of the role .*would not be trained"):
            made.document({"messages": [USER, {"role": role, "content": "x"}]}, "line 7")


# 14: system turns that are joined, and templates that want a question

_JOINED = (
    "{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% set talk = messages[1:] if s else messages %}"
    "{% if talk[0].role != 'user' %}{{ raise_exception('no question') }}{% endif %}"
    "{% for m in talk %}{% if m.role == 'user' %}[INST]{{ s if loop.first }}{{ m.content | trim }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)  # fmt: skip
_REWRITTEN = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}</>{% endfor %}"
)  # fmt: skip


@pytest.mark.parametrize("template, messages, whole, trained", [
    (_JOINED, [SYSTEM, USER, REPLY], "[INST]Be kind\n\nHi[/INST] Hello.</s>", " Hello.</s>"),
    (_JOINED, [USER, REPLY] * 2, "[INST]Hi[/INST] Hello.</s>" * 2, " Hello.</s>" * 2),
    (_REWRITTEN, [USER, {**REPLY, "content": "a</think>b"}, USER, {**REPLY, "content": "c</think>d"}],
     "<user>Hi</><assistant>b</><user>Hi</><assistant>c</think>d</>", "b</>c</think>d</>"),
])  # fmt: skip
def test_turns_that_are_joined_or_rewritten(tmp_path, template, messages, whole, trained):
    """Refused by commit 8546086, which rendered turn by turn."""
    found = document(tmp_path / "m", template, messages)
    assert text(found) == whole and text(found, trained=True) == trained


# 15: bits per byte, and the neighbours of all of these


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "tokenizer.json"
    train_bpe(["Hi there, Hello. assistant user system"] * 9, 290, path)
    library = Tokenizer.from_file(str(path))
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    library.save(str(path))
    return path


def test_bits_per_byte_count_the_text_alone(tmp_path, tokenizer_file):
    """A model that spends the same nats on each byte of text has the same bits per byte: 1.44, not 1.44 / 2.75."""
    rows = [{"messages": [USER, {**REPLY, "content": f"Hello {i}"}]} for i in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        source="files",
        files=FilesConfig(paths=(str(tmp_path / "x.jsonl"),)),
        columns=ColumnsConfig(messages="messages"),
        tokenizer=TokenizerConfig(kind="json", path=str(tokenizer_file)),
        splits=SplitConfig(validation=0.0, teacher=1.0),
    )
    store = data.open_store(config, tmp_path / "s")
    evaluation = store.evaluation("teacher", 16, 10**6)
    nats = store.byte_lengths[np.asarray(evaluation.batch.labels)].sum()
    assert evaluation.exact_bytes
    assert nats / evaluation.bytes / math.log(2) == pytest.approx(1 / math.log(2), abs=1e-9)


def test_random_chats_keep_every_word_and_train_the_replies_alone(tmp_path, tokenizer_file):
    """300 chats of any roles, blanks, scripts and empty turns, through a template and through data.columns.chat.

    An oracle of its own: the text by string operations, the trained part from the roles.
    """
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    made = [columns(tmp_path / "m", chatml), Columns(ColumnsConfig(messages="messages"))]
    rng = random.Random(0)
    words = ["a", " b", "\n", "  ", "é", "世界", "😀", "\u2028", "{{ x }}", "{% if %}", "<|im_end|>", "\\", '"', "\t"]
    for _ in range(300):
        messages = [
            {"role": rng.choice(["user", "assistant", "system", "tool", "developer"]),
             "content": "".join(rng.choice(words) for _ in range(rng.randrange(4)))}
            for _ in range(rng.randrange(1, 6))
        ]  # fmt: skip
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
        said = [m["role"] == "assistant" and bool(m["content"].strip()) for m in messages]
        for one in made:
            found = one.document({"messages": messages}, "")
            assert text(found) == "".join(turns)
            want = "".join(t.split("\n", 1)[1] for t, reply in zip(turns, said) if reply)
            assert text(found, trained=True) == want
            typed = sum(m["content"].count("<|im_end|>") for m in messages)
            assert sum(p.text.count("<|im_end|>") for p in found.parts if not p.template) == typed
