"""Turns records into documents: a text column, a chat, or a prompt with its completion."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from distill.config import nearest
from distill.config.data import ColumnsConfig
from distill.data.documents import Document, Part
from distill.data.sources.chat import ChatTemplate
from distill.data.sources.messages import ASSISTANT, Message, is_empty, read_messages
from distill.errors import DataError
from distill.system.files import loads

_FIELD = re.compile(r"\{(\w+)\}")


# Columns beside the messages, which templates read as variables; the last holds variables by name, as TRL has them.
_BESIDE = ("tools", "documents", "chat_template_kwargs")
# Columns that hold a part of the chat itself in some datasets.
_OUTSIDE = ("system", "functions")


class Columns:
    """Turns the records of a source into documents. Templates may use braces only as {column}."""

    def __init__(self, config: ColumnsConfig, special_tokens: Collection[str] | None = None):
        """special_tokens: those of the tokenizer; None: what looks like one."""
        self._config = config
        if config.prompt and not config.completion:
            raise DataError("data.columns.prompt is set but data.columns.completion is not; give both templates")
        if config.messages and "{content}" not in config.chat:
            raise DataError(f"data.columns.chat is {config.chat!r}, wanted a template that holds {{content}}")
        self.template: ChatTemplate | None = None
        if config.messages and config.template:
            self.template = ChatTemplate(config.template, special_tokens, config.today)
            if not config.today and any("strftime_now" in reads for reads in self.template.reads.values()):
                raise DataError(
                    f"{config.template}: its chat template writes the date, and text must not depend on the day; "
                    "set data.columns.today, e.g. data.columns.today=2026-07-01"
                )

    @property
    def masked(self) -> bool:
        """Whether documents mark which of their parts are completions."""
        return bool(self._config.messages or self._config.prompt)

    def needed(self) -> list[str]:
        """The columns that `document` reads."""
        config = self._config
        if config.messages:
            return [config.messages]
        if config.prompt:
            return list(dict.fromkeys(_FIELD.findall(config.prompt + config.completion)))
        return [config.text]

    def read(self, found: Sequence[str]) -> list[str]:
        """The columns among those found that `document` reads where they are there."""
        beside = [*_BESIDE, *_OUTSIDE] if self._config.messages else []
        return self.needed() + [name for name in beside if name in found and name not in self.needed()]

    def check(self, found: list[str], where: str) -> None:
        """Raises DataError where a needed column is not among those found."""
        for name in self.needed():
            if name not in found:
                raise DataError(
                    f"{where}: there is no column {name!r}, only {', '.join(map(repr, found))}; set data.columns."
                    f"{nearest(name, found)}"
                )

    def document(self, record: Mapping[str, object], where: str) -> Document:
        """The document of one record; null text makes an empty document. Raises DataError where a value is not text."""
        self.check(list(record), where)
        config = self._config
        if config.messages:
            return Document(tuple(self._turns(record, where)))
        if config.prompt:
            prompt = _fill(config.prompt, record, False, where)
            return Document((*prompt, *_fill(config.completion, record, True, where)))
        return Document((Part(_text(record[config.text], config.text, where)),))

    def _turns(self, record: Mapping[str, object], where: str) -> list[Part]:
        messages = read_messages(record[self._config.messages], where)
        beside = {name: value for name in _BESIDE if (value := _parsed(record.get(name), name, where)) is not None}
        for name in _OUTSIDE:
            if name not in self.needed() and record.get(name):
                raise DataError(
                    f"{where}: column {name!r} stands beside the messages and would vanish; put it into "
                    f"{self._config.messages!r}, or leave it out of the records"
                )
        if self.template:
            more = beside.pop("chat_template_kwargs", None) or {}
            return self._through_template(messages, {**more, **beside}, where)
        lost = [name for name, value in beside.items() if value]
        lost += [key for message in messages for key in message if message[key] and key not in _WRITTEN]
        if lost:
            raise DataError(
                f"{where}: data.columns.chat writes role and content alone, and {lost[0]!r} would vanish; set "
                "data.columns.template to a model's chat template, or leave it out of the records"
            )
        return self._through_chat(messages, where)

    def _through_template(self, messages: list[Message], variables: dict[str, object], where: str) -> list[Part]:
        assert self.template is not None
        try:
            return self.template.parts(messages, **variables)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def _through_chat(self, messages: list[Message], where: str) -> list[Part]:
        parts: list[Part] = []
        before, _, after = self._config.chat.partition("{content}")
        for message in messages:
            content = message.get("content", "")
            if not isinstance(content, str):
                content = "".join(block["text"] for block in content)
            # The model must learn to close its own turn, if it said something.
            trained = message["role"] == ASSISTANT and not is_empty(message)
            parts.append(Part(before.replace("{role}", message["role"]), trained=False, template=True))
            parts.append(Part(content, trained=trained))
            parts.append(Part(after.replace("{role}", message["role"]), trained=trained, template=True))
        return [part for part in parts if part.text]


_WRITTEN = ("role", "content", "id", "tool_call_id")


def _parsed(value: object, name: str, where: str) -> Any:
    """A column beside the messages. Datasets whose tables cannot hold objects of any form give it as JSON text."""
    if isinstance(value, (str, bytes)):
        if not value.strip():
            return None
        try:
            value = loads(value if isinstance(value, str) else value.decode("utf-8", "replace"))
        except ValueError as error:
            raise DataError(f"{where}: column {name!r} holds text that is not JSON ({error}), wanted objects") from None
    form, objects = (dict, "an object") if name == "chat_template_kwargs" else (list, "a list of objects")
    items = value if isinstance(value, list) else []
    if value is not None and not (isinstance(value, form) and all(isinstance(item, dict) for item in items)):
        raise DataError(f"{where}: column {name!r} holds {value!r:.60}, wanted {objects}")
    return value


def _fill(template: str, record: Mapping[str, object], trained: bool, where: str) -> list[Part]:
    """The template's text and the record's values as separate parts. Column values are never parsed as templates."""
    parts = []
    for i, piece in enumerate(_FIELD.split(template)):
        text = _text(record[piece], piece, where) if i % 2 else piece
        if text:
            parts.append(Part(text, trained=trained, template=not i % 2))
    return parts


def _text(value: object, column: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):  # TFDS gives text as bytes
        return value.decode("utf-8", "replace")
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: column {column!r} holds {value!r:.60} ({type(value).__name__}), wanted text")
