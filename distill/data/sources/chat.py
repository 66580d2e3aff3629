"""Chats through the templates of published models: the text, what of it is trained, and what people typed."""

import importlib.util
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from distill.data.documents import Part
from distill.data.sources import jinja_sandbox as sandbox
from distill.data.sources.messages import REASONING, Message, map_text, texts_in, with_reasoning
from distill.data.sources.template_files import DEFAULT, TOOL_USE, read_templates
from distill.data.sources.turns import Span, Turn, Unclear, Vanishing, align, find_turns
from distill.errors import DataError

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Fields of a message that tie it to a call, and may go unread.
_HARMLESS = ("id", "tool_call_id")
# What special tokens look like, where the tokenizer is not known.
_USUAL = r"<\|[^<>\s]{1,60}\|>|<｜[^<>\s]{1,60}｜>|</?(?:s|bos|eos|start_of_turn|end_of_turn)>|\[/?[A-Z_]{2,}\]"
# Characters for private use, one for each special token in messages; and one in place of a message.
_FORMS = 1024  # chats of different form that are remembered
_CHUNK = 1 << 20  # characters of messages that are rendered together
_PRIVATE, _STAND_INS = range(0x100000, 0x10FF00), range(0xF0000, 0xFFF00)


class ChatTemplate:
    """The chat template of a published model, with the variables that `apply_chat_template` of transformers defines.

    A template is untrusted code: it runs in Jinja's sandbox, in a separate process with bounded time and memory
    (jinja_sandbox.py). Special tokens are recognised in what the template writes, and not in what messages hold.
    """

    def __init__(self, path: str, special_tokens: Iterable[str] | None = None, today: str = ""):
        """path: a model folder, a GGUF or a .jinja file. special_tokens: those of the tokenizer; None: what looks like
        one. today: what strftime_now takes for now, in ISO format; '' is the machine's clock.

        Raises DataError where there is no template, or it reads special tokens that the files do not define.
        """
        self._path, self._today = path, today
        self._texts, self.special, unknown = read_templates(path)
        if not self._texts:
            raise DataError(f"{path}: there is no chat template; set data.columns.chat instead of template")
        if importlib.util.find_spec("jinja2") is None:
            raise DataError(f"{path}: its chat template needs jinja2; `pip install 'distill[interop]'`")
        self._forms: dict[str, tuple[str, list[Turn] | None]] = {}
        names = None if special_tokens is None else sorted(special_tokens, key=len, reverse=True)
        self._typed = re.compile(_USUAL if names is None else "|".join(map(re.escape, names)) or "(?!)")
        try:
            self.reads = {name: sandbox.names_read(text) for name, text in self._texts.items()}
        except sandbox.RenderError as error:
            raise DataError(f"{path}: its chat template is not Jinja ({' '.join(str(error).split()):.200})") from None
        for name in unknown:
            if any(name in reads for reads in self.reads.values()):
                raise DataError(
                    f"{path}: its chat template reads {name}, which no tokenizer_config.json beside it defines; put "
                    "the template into the model's folder, or define the token there (null: there is none)"
                )

    @property
    def text(self) -> str:
        """The template's own text; of several, that of the default, or of the first by name."""
        return self._texts.get(DEFAULT) or self._texts[min(self._texts)]

    def describe(self) -> dict[str, object]:
        """What besides `text` decides on the rendering."""
        others = {name: text for name, text in self._texts.items() if text != self.text}
        return {"special": dict(self.special), "today": self._today, "others": others}

    def render(self, messages: Sequence[Message], prompt: bool = False, **variables: object) -> str:
        """Renders the conversation; with `prompt`, up to the start of the assistant's next turn."""
        (rendered,) = self._render([(messages, prompt)], variables)
        if rendered.problem:
            raise self._error(f"fails on a conversation ({rendered.problem})")
        return rendered.text

    def parts(self, messages: Sequence[Message], **variables: object) -> list[Part]:
        """The conversation's text in parts; replies are trained, with what closes their turns.

        Where the template has {% generation %}, exactly what stands there is trained. Otherwise a reply that says
        nothing is not trained, its end included. `variables`: tools, documents, and others that the template reads.
        Raises DataError for a conversation of which something would vanish, or whose replies cannot be told apart.
        """
        if not messages:
            return []
        (rendered,) = self._render([(messages, False)], variables)
        if rendered.problem:
            raise self._error(f"fails on a conversation ({rendered.problem})")
        held = texts_in([list(messages), variables])
        try:
            self._check_read(messages, variables, rendered.text)
            typed = self._find_typed(messages, variables, held, rendered.text)
            turns = self._turns(messages, variables, rendered.text, held)
            trained = self._trained(rendered, turns, variables)
        except Unclear as error:
            raise self._error(f"{error}") from None
        # The places of contents that the template did not change: nothing in them is a control token.
        own = [turn.own for turn, message in zip(turns or [], messages) if _is_content(rendered.text, turn, message)]
        return _cut(rendered.text, trained, [*typed, *own])

    def _error(self, what: str) -> DataError:
        return DataError(f"{self._path}: its chat template {' '.join(what.split()):.300}")

    def _choose(self, variables: Mapping[str, object]) -> str:
        """The name of the template: that for tools where there are some, else the default."""
        for name in ((TOOL_USE,) if variables.get("tools") is not None else ()) + (DEFAULT,):
            if name in self._texts:
                return name
        if len(self._texts) == 1 and Path(self._path).suffix == ".jinja":
            return next(iter(self._texts))
        raise self._error(f"has several forms ({', '.join(sorted(self._texts))}) and none is named {DEFAULT!r}")

    def _render(
        self, asks: Sequence[tuple[Sequence[Message], bool]], variables: Mapping[str, object]
    ) -> list[sandbox.Rendered]:
        common = {**self.special, "tools": None, "documents": None, **variables}
        template, found = self._texts[self._choose(variables)], []
        for chunk in _chunks(asks):
            calls = [
                {"messages": with_reasoning(messages), "add_generation_prompt": prompt} for messages, prompt in chunk
            ]
            try:
                found += sandbox.render(template, common, calls, self._today)
            except sandbox.RenderError as error:
                raise self._error(f"fails on a conversation ({error})") from None
        return found

    def _check_read(self, messages: Sequence[Message], variables: Mapping[str, object], text: str) -> None:
        """Raises Unclear for a field of messages, or a column, that the template does not read."""
        if any(isinstance(m.get("content"), list) and str(m["content"]) in text for m in messages):
            raise Unclear("writes contents that are lists as Python does; give contents as text")
        name = self._choose(variables)
        words = set(re.findall(r"\w+", self._texts[name]))
        for variable, value in variables.items():
            if value and variable not in self.reads[name]:
                raise Unclear(f"does not read {variable!r}, which would vanish; leave it out of the records")
        fields = {key for message in messages for key, value in message.items() if value not in ("", [], {})}
        for field in sorted(fields - {"role", "content", *_HARMLESS}):
            if words & set(REASONING if field in REASONING else (field,)):
                continue
            without = [{key: value for key, value in message.items() if key != field} for message in messages]
            (rendered,) = self._render([(without, False)], variables)
            if rendered.text == text:
                raise Unclear(f"does not read {field!r} of messages, which would vanish; leave it out of the records")

    def _find_typed(
        self, messages: Sequence[Message], variables: Mapping[str, object], held: str, text: str
    ) -> list[Span]:
        """Where the text holds special tokens that messages or other variables hold.

        They are replaced by single characters, and looked for in the rendering. Raises Unclear where the template does
        more than write them.
        """
        names = sorted(set(self._typed.findall(held)))
        if not names:
            return []
        free = [chr(i) for i in _PRIVATE[: 2 * len(names) + len(held)] if chr(i) not in held][: len(names)]
        char_of = dict(zip(names, free))
        mark = lambda value: map_text(value, lambda piece: self._typed.sub(lambda m: char_of[m[0]], piece))
        (marked,) = self._render([([mark(m) for m in messages], False)], {k: mark(v) for k, v in variables.items()})
        name_of = {char: name for name, char in char_of.items()}
        pieces: list[str] = re.split(f"([{''.join(free)}])", marked.text)
        spans, at = [], 0
        for piece in pieces:
            size = len(name_of.get(piece, piece))
            spans += [(at, at + size)] if piece in name_of else []
            at += size
        if marked.problem or "".join(name_of.get(piece, piece) for piece in pieces) != text:
            raise Unclear(f"decides by special tokens in messages ({', '.join(names)}), which must stay text")
        return spans

    def _turns(
        self, messages: Sequence[Message], variables: Mapping[str, object], text: str, held: str
    ) -> list[Turn] | None:
        """The turns; None where they are not clear but the template itself says what is trained."""
        try:
            found = self._turns_by_form(messages, variables, text, held)
            free = next((chr(i) for i in reversed(_STAND_INS) if chr(i) not in held), "")
            render = lambda asks: self._render(asks, variables)
            return find_turns(render, messages, text, free, {}) if found is None else found
        except Unclear as error:
            if not isinstance(error, Vanishing) and _GENERATION.search(self._texts[self._choose(variables)]):
                return None
            raise

    def _turns_by_form(
        self, messages: Sequence[Message], variables: Mapping[str, object], text: str, held: str
    ) -> list[Turn] | None:
        """The turns of a chat whose contents the template writes as they are; None where it does more.

        They are those of the chat that has a character in place of each content. Many chats have the same.
        """
        chars = [chr(i) for i in _STAND_INS[: len(messages)]]
        if any(char in held for char in chars):
            return None
        contents = {char: m["content"] for char, m in zip(chars, messages) if _has_text(m)}
        bare = [m | {"content": char} if char in contents else m for char, m in zip(chars, messages)]
        key = json.dumps([bare, variables], sort_keys=True)
        if key not in self._forms:
            (rendered,) = self._render([(bare, False)], variables)
            if len(self._forms) >= _FORMS:
                self._forms.clear()
            turns = None
            if not rendered.problem and all(rendered.text.count(char) == 1 for char in contents):
                render = lambda asks: self._render(asks, variables)
                marks = {i: char for i, char in enumerate(chars) if char in contents}
                turns = find_turns(render, bare, rendered.text, chr(_STAND_INS[-1]), marks)
            self._forms[key] = rendered.text, turns
        form, turns = self._forms[key]
        at = align(form, text, contents)
        if turns is None or at is None:
            return None
        place = lambda span: (at[span[0]], at[span[1]])
        return [Turn(place(turn.own), turn.trained and place(turn.trained)) for turn in turns]

    def _trained(
        self, rendered: sandbox.Rendered, turns: Sequence[Turn] | None, variables: Mapping[str, object]
    ) -> list[Span]:
        if _GENERATION.search(self._texts[self._choose(variables)]):
            if rendered.generated is None:
                raise Unclear("has {% generation %} in a macro or a block that is kept, so its place cannot be told")
            return [(start, end) for start, end in rendered.generated]
        return [turn.trained for turn in turns or [] if turn.trained]


def _has_text(message: Message) -> bool:
    return isinstance(message.get("content"), str) and bool(message["content"].strip())


def _chunks(asks: Sequence[tuple[Sequence[Message], bool]]) -> Iterator[list[tuple[Sequence[Message], bool]]]:
    """The asks in groups whose texts fit into the memory of the process that renders them."""
    group: list[tuple[Sequence[Message], bool]] = []
    size = 0
    for ask in asks:
        more = len(texts_in(list(ask[0])))
        if group and size + more > _CHUNK:
            yield group
            group, size = [], 0
        group.append(ask)
        size += more
    if group:
        yield group


def _is_content(text: str, turn: Turn, message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, str) and text[slice(*turn.own)] in (content, content.strip())


def _cut(text: str, trained: Sequence[Span], typed: Sequence[Span]) -> list[Part]:
    """The text in parts of one kind each."""
    edges = sorted({0, len(text), *(edge for span in (*trained, *typed) for edge in span)})
    inside = lambda at, spans: any(start <= at < end for start, end in spans)
    pieces = [(text[a:b], inside(a, trained), not inside(a, typed)) for a, b in zip(edges, edges[1:])]
    groups = itertools.groupby(pieces, lambda piece: piece[1:])
    return [Part("".join(piece[0] for piece in group), *kind) for kind, group in groups]
