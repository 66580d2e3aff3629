"""Seeded chats: what datasets hold, and what they should not; and tokenizers for each family of templates."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.chats.templates import Family

Chat = dict[str, Any]  # messages, and perhaps tools, documents and chat_template_kwargs

_WORDS = ["the", "capital", "of", "France", "is", "Paris", "we", "people", "12", "3.14", "Grüße", "世界", "naïve", "😀",
          "e\u0301", "\u00a0",
          "don't", "<b>", "</b>", "{x}", "[1]", "a\tb", '"quoted"', "\\n", "C:\\x", "«", "ﬁ", "!", "\r"]  # fmt: skip
_BLANKS = [" ", " ", " ", " ", "\n", "\n\n", "  ", ""]
_CODE = [
    "```python\nprint('hi')\n```",
    "def f(x):\n    return x\n",
    "| a | b |\n|---|---|",
    "$x^2$",
    "### Instruction:",
    "USER: ",
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather of a town.", "parameters": {
        "type": "object", "properties": {"town": {"type": "string"}, "days": {"type": "integer", "default": None}},
        "required": ["town"]}}},
    {"type": "function", "function": {"name": "sum", "description": "a + b <sum> \"é\"", "parameters": {
        "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}}},
]  # fmt: skip
KINDS = ("plain", "plain", "plain", "system", "system", "reasoning", "thought", "tools", "tools", "documents", "empty",
         "typed", "odd", "blocks", "blank", "mode")  # fmt: skip


def text(rng: random.Random, longest: int = 12) -> str:
    """Words of several scripts with blanks between; sometimes code, or blanks at the ends."""
    words = "".join(rng.choice(_WORDS) + rng.choice(_BLANKS) for _ in range(rng.randrange(1, longest)))
    words = words.strip() or "yes"
    if rng.random() < 0.15:
        words += "\n" + rng.choice(_CODE)
    if rng.random() < 0.2:
        words = rng.choice(["", " ", "\n", "\t"]) + words + rng.choice(["", " ", "\n", "  \n\n"])
    return words


def draw(seed: int, special: tuple[str, ...] = ()) -> tuple[str, Chat]:
    """The kind of a chat, and the chat. `special`: the tokens that people type where the kind is 'typed'."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    messages = _talk(rng, rng.randrange(1, 4))
    chat: Chat = {"messages": messages}
    if kind in ("system", "mode") or rng.random() < 0.2:
        messages.insert(0, {"role": "system", "content": text(rng)})
    if kind == "tools":
        chat["messages"] = messages[: 1 + (messages[0]["role"] == "system")] + _calls(rng)
        chat["tools"] = TOOLS[: rng.randrange(1, 3)]
    if kind == "documents":
        chat["documents"] = [{"title": text(rng, 3), "text": text(rng)} for _ in range(rng.randrange(1, 3))]
    if kind == "mode":
        chat["chat_template_kwargs"] = {"enable_thinking": rng.random() < 0.5}
    replies = [message for message in chat["messages"] if message["role"] == "assistant"]
    for message in replies:
        if kind == "reasoning":
            message[rng.choice(["reasoning_content", "reasoning", "thinking"])] = text(rng)
        elif kind == "thought" and message.get("content"):
            message["content"] = f"<think>\n{text(rng)}\n</think>\n\n{message['content']}"
    if kind == "empty" and replies:
        rng.choice(replies)["content"] = rng.choice(["", "  ", "\n"])
    if kind == "blank":
        rng.choice(chat["messages"])["content"] += rng.choice([" ", "\n", "\n\n\n", "\u3000", "\u200b"])
    if kind == "typed" and special:
        message = rng.choice(chat["messages"])
        where = rng.randrange(len(message["content"]) + 1)
        message["content"] = message["content"][:where] + rng.choice(special) + message["content"][where:]
    if kind == "odd":
        _odd(rng, chat)
    if kind == "blocks":
        for message in chat["messages"]:
            message["content"] = [{"type": "text", "text": message["content"]}]
    return kind, json.loads(json.dumps(chat))


def _talk(rng: random.Random, rounds: int) -> list[dict[str, Any]]:
    roles = [role for _ in range(rounds) for role in ("user", "assistant")]
    return [{"role": role, "content": text(rng)} for role in roles]


def _calls(rng: random.Random) -> list[dict[str, Any]]:
    """A call of a tool, its answer, and a reply; perhaps a further question."""
    arguments: Any = {"town": text(rng, 3), "days": rng.randrange(9)} if rng.random() < 0.7 else {"a": 1, "b": 2.5}
    name = f"call{rng.randrange(10_000, 100_000)}"
    call = {
        "id": name,
        "type": "function",
        "function": {"name": rng.choice(["weather", "sum"]), "arguments": arguments},
    }
    calls = [call] * (1 + (rng.random() < 0.2))
    asked: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
    if rng.random() < 0.6:
        asked["content"] = rng.choice(["", "", text(rng, 4)])
    answer = {"role": "tool", "tool_call_id": name, "content": rng.choice(['{"sky": "blue"}', text(rng)])}
    if rng.random() < 0.3:
        answer["name"] = "weather"
    talk = [asked, *[answer] * len(calls), {"role": "assistant", "content": text(rng)}]
    return talk + (_talk(rng, 1) if rng.random() < 0.4 else [])


def _odd(rng: random.Random, chat: Chat) -> None:
    """One thing that many templates do not expect."""
    messages = chat["messages"]
    which = rng.randrange(8)
    if which == 0:
        messages.append({"role": "user", "content": text(rng)})
    elif which == 1:
        messages.insert(0, {"role": "assistant", "content": text(rng)})
    elif which == 2:
        messages.insert(1, dict(messages[0], content=text(rng)))
    elif which == 3:
        messages.append({"role": "system", "content": text(rng)})
    elif which == 4:
        messages[-1]["content"] = None
    elif which == 5:
        messages[0]["name"] = "Ada"
    elif which == 6:
        del messages[:-1]
    else:
        messages[0]["weight"] = 0


def tokenizer(family: Family, base: Tokenizer) -> Tokenizer:
    """The base with the added tokens of a family."""
    library = Tokenizer.from_str(base.to_str())
    library.add_special_tokens(
        [AddedToken(name, special=True, normalized=False, rstrip=family.rstrip) for name in family.special]
    )
    library.add_tokens([AddedToken(name, special=False, normalized=False) for name in family.plain])
    return library


def train_bases() -> dict[str, Tokenizer]:
    """Tokenizers of each kind, trained on the words of the chats."""
    rng = random.Random(0)
    words = [text(rng) for _ in range(400)]
    found = {}
    for name in ("bytes", "nfc", "first", "always"):
        library = Tokenizer(
            models.BPE(byte_fallback=True, unk_token="<unk>") if name in ("first", "always") else models.BPE()
        )
        alphabet: list[str] = []
        special = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
        if name in ("bytes", "nfc"):
            library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            library.decoder = decoders.ByteLevel()
            alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), []
            if name == "nfc":
                library.normalizer = normalizers.NFC()
        elif name == "first":  # a blank before the first word of a text
            library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:  # a blank before each stretch between special tokens
            library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(
            vocab_size=560, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        library.train_from_iterator(words, trainer)
        tree = json.loads(library.to_str())
        tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] == "<unk>"]
        found[name] = Tokenizer.from_str(json.dumps(tree))
    return found


BASES = Path(__file__).parent / "bases"


def read_bases() -> dict[str, Tokenizer]:
    return {path.stem: Tokenizer.from_file(str(path)) for path in sorted(BASES.glob("*.json"))}
