"""Messages of chats in the dialects that datasets have, as the templates of published models expect them."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.config import nearest
from distill.errors import DataError

Message = dict[str, Any]

ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool", "function", "ipython")
# What ShareGPT and others call them.
_ALIASES = {"human": "user", "gpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT, "chatgpt": ASSISTANT}
# Older names of an assistant's reasoning; templates read the first, and those of gpt-oss the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


def read_messages(value: object, where: str) -> list[Message]:
    """The messages of one chat: objects with 'role' and 'content', or with ShareGPT's 'from' and 'value'.

    Fields that are null are left out. Raises DataError for roles that are not known, by name: a reply under another
    name would not be trained.
    """
    if value is not None and not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise DataError(f"{where}: got the messages {value!r:.60}, wanted a list of objects with 'role' and 'content'")
    return [_message(message, where) for message in value or []]


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{where}: got the message {message!r:.200}, wanted an object with 'role' and 'content'")
    known = {str(key): item for key, item in message.items() if item is not None}
    if "from" in known and "role" not in known:
        known = {{"from": "role", "value": "content"}.get(key, key): item for key, item in known.items()}
    if "role" not in known or "content" not in message and "value" not in message and len(known) == 1:
        raise DataError(f"{where}: got the message {message!r:.200}, wanted an object with 'role' and 'content'")
    role = known["role"].decode("utf-8", "replace") if isinstance(known["role"], bytes) else known["role"]
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise DataError(
            f"{where}: got a message of the role {role!r:.60}, wanted {', '.join(ROLES)} (or {', '.join(_ALIASES)}); "
            f"rename it: a reply under another name would not be trained.{nearest(str(role), ROLES)}"
        )
    content = known.get("content")
    if isinstance(content, bytes):  # TFDS gives text as bytes
        content = content.decode("utf-8", "replace")
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        content = str(content)
    elif isinstance(content, list):
        content = [_block(block, where) for block in content]
    elif content is not None and not isinstance(content, str):
        raise DataError(f"{where}: column 'content' holds {content!r:.60} ({type(content).__name__}), wanted text")
    return known | {"role": role} | ({} if content is None else {"content": content})


def _block(block: object, where: str) -> Mapping[str, Any]:
    """A piece of a content that is a list. Only text can be trained on."""
    if isinstance(block, Mapping) and isinstance(block.get("text"), str) and block.get("type", "text") == "text":
        return {str(key): item for key, item in block.items() if item is not None}
    raise DataError(
        f"{where}: a content holds {block!r:.60}, wanted text, or a list of {{'type': 'text', 'text': ...}}"
    )


def with_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Messages whose reasoning stands under each name that templates read, as transformers gives them."""
    found = []
    for message in messages:
        reasoning = next((message[name] for name in REASONING if name in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning} | message | {"reasoning_content": reasoning}
        found.append(message)
    return found


def is_empty(message: Message) -> bool:
    """Whether nothing is said: no text but blanks, no reasoning and no call of a tool."""
    content = message.get("content") or ""
    blocks = content if isinstance(content, list) else [{"text": content}]
    return not any(block["text"].strip() for block in blocks) and not any(
        message.get(name) for name in ("tool_calls", "function_call", *REASONING)
    )


def map_text(value: Any, change: Any) -> Any:
    """The value with `change` applied to each text in it, the names of objects' fields excepted."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: map_text(item, change) for key, item in value.items()}
    return value


def texts_in(value: Any) -> str:
    """All text in the value, names of fields included, separated by NULs."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\0".join(map(texts_in, value))
    if isinstance(value, dict):
        return "\0".join([*map(str, value), *map(texts_in, value.values())])
    return ""
