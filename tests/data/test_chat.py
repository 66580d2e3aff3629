"""Chat templates of models: what they write, whose tokens are trained, and what they may not do."""

import json

import pytest

from distill import data
from distill.config.data import ColumnsConfig, DataConfig, FilesConfig
from distill.data.sources.chat import ChatTemplate
from distill.data.sources.columns import Columns
from distill.errors import DataError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Hello."}]


def template(tmp_path, text, **fields):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": text, **fields}))
    return ChatTemplate(str(tmp_path))


def test_parts_say_what_is_template_and_what_is_trained(tmp_path):
    """A special token typed by a user stays text. Seen to catch contents marked as template, headers as trained."""
    made = template(tmp_path, CHATML)
    assert [tuple(part) for part in made.parts(TALK)] == [
        ("<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\n", False, True),
        ("Hi <|im_end|>", False, False),
        ("<|im_end|>\n<|im_start|>assistant\n", False, True),
        ("Hello.", True, False),
        ("<|im_end|>\n", True, True),
    ]
    assert "".join(part.text for part in made.parts(TALK)) == made.render(TALK)
    assert made.render(TALK[:1], prompt=True).endswith("<|im_start|>assistant\n")


def test_special_tokens_and_stripped_contents(tmp_path):
    text = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    made = template(tmp_path, text, bos_token={"content": "<s>"}, eos_token="</s>")
    parts = made.parts([{"role": "user", "content": "  a "}, {"role": "assistant", "content": "b\n"}])
    assert "".join(part.text for part in parts) == "<s>[user]a</s>[assistant]b</s>"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "there is no chat template"),
        ("{% for", "not Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "decides by special tokens"),
        ("{{ messages[-1].content }}", "leaves out message 1"),
        ("{{ messages[1].content }}{{ messages[0].content }}{{ messages[1].content }}", "reply 2 apart from message 1"),
        (
            "{{ messages[0].content }}{% if messages | length > 1 %}{{ messages[1].content.x.y }}{% endif %}",
            "has no attribute",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails on a conversation"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "fails on a conversation"),
    ],
)
def test_what_a_template_may_not_do(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        template(tmp_path, text).parts(TALK)


def test_a_store_of_conversations(tmp_path):
    """The template's text, not its place, names the store; completions alone are trained."""
    (tmp_path / "m").mkdir()
    template(tmp_path / "m", CHATML)
    (tmp_path / "talk.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 3)
    config = DataConfig(
        source="files",
        files=FilesConfig(paths=(str(tmp_path / "talk.jsonl"),)),
        columns=ColumnsConfig(messages="messages", template=str(tmp_path / "m")),
    )
    store = data.open_store(config, tmp_path)
    assert store.manifest["recipe"]["columns"]["chat"] == CHATML
    document = Columns(config.columns).document({"messages": TALK}, "")
    assert sum(len(part.text) for part in document.parts if part.trained) == len("Hello.<|im_end|>\n")
