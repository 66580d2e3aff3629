"""Turns records into documents: a text column, a chat, or a prompt with its completion."""

import re
from collections.abc import Mapping
from typing import Any

from distill.config import nearest
from distill.config.data import ColumnsConfig
from distill.data.documents import Document, Part
from distill.data.sources.chat import ChatTemplate
from distill.errors import DataError

_FIELD = re.compile(r"\{(\w+)\}")


class Columns:
    """Turns the records of a source into documents. Templates may use braces only as {column}."""

    def __init__(self, config: ColumnsConfig):
        self._config = config
        if config.prompt and not config.completion:
            raise DataError("data.columns.prompt is set but data.columns.completion is not; give both templates")
        if config.messages and "{content}" not in config.chat:
            raise DataError(f"data.columns.chat is {config.chat!r}, wanted a template that holds {{content}}")
        self.template = ChatTemplate(config.template) if config.messages and config.template else None

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
            return Document(tuple(self._turns(record[config.messages], where)))
        if config.prompt:
            prompt = _fill(config.prompt, record, False, where)
            return Document((*prompt, *_fill(config.completion, record, True, where)))
        return Document((Part(_text(record[config.text], config.text, where)),))

    def _turns(self, messages: Any, where: str) -> list[Part]:
        parts: list[Part] = []
        for message in messages or []:
            if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
                raise DataError(f"{where}: got the message {message!r}, wanted an object with 'role' and 'content'")
        if self.template:
            return self.template.parts(
                [{k: _text(m[k], k, where) for k in ("role", "content")} for m in messages or []]
            )
        for message in messages or []:
            before, _, after = self._config.chat.partition("{content}")
            reply = message["role"] == "assistant"
            role = _text(message["role"], "role", where)
            parts.append(Part(before.replace("{role}", role), trained=False, template=True))
            parts.append(Part(_text(message["content"], "content", where), trained=reply))
            # The model must learn to close its own turn.
            parts.append(Part(after.replace("{role}", role), trained=reply, template=True))
        return [part for part in parts if part.text]


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
