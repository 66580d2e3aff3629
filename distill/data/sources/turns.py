"""Where each message of a chat stands in its rendered text, and which of that text the model has to learn.

A template may rewrite earlier turns, join a system message to the first question, trim contents or refuse a chat
without a question. So turns are not rendered one after another: the whole chat is rendered, and rendered again with a
stand-in for one message. What differs is that message's place. A reply begins where the prompt for it ends, and it ends
with what the template writes after it both there and at the end of a chat.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from distill.data.sources.jinja_sandbox import Rendered
from distill.data.sources.messages import ASSISTANT, REASONING, Message, is_empty, map_text

Span = tuple[int, int]  # the first character, and the one after the last
Render = Callable[[Sequence[tuple[Sequence[Message], bool]]], list[Rendered]]

# A name that begins in the text that two endings share is written by neither.
_NAME = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]+\]")
_WRAPPED = re.compile(r"(\s*<[^<>\s]+>\s*).+(</[^<>\s]+>\s*)", re.DOTALL)


class Unclear(Exception):
    """Why the turns of a chat cannot be told apart."""


class Vanishing(Unclear):
    """What the rendered text leaves out."""


class Turn(NamedTuple):
    """The place of one message's own text, and of what is trained; None where nothing is."""

    own: Span
    trained: Span | None


def find_turns(
    render: Render, messages: Sequence[Message], text: str, stand_in: str, marks: Mapping[int, str]
) -> list[Turn]:
    """The turns of a chat whose rendering is `text`; `stand_in` is a character that no text of it holds.

    render: renders chats, each with or without the prompt for a reply. marks: the characters that are the whole
    contents of some messages, by their number, and in no other text. Raises Unclear where a message vanishes, or a
    reply cannot be told from the other messages.
    """
    said = [i for i, message in enumerate(messages) if not is_empty(message)]
    replies = [i for i in said if messages[i]["role"] == ASSISTANT]
    asks: dict[tuple[str, int], tuple[Sequence[Message], bool]] = {}
    for i in said:
        other = _replaced(messages[i], stand_in)
        if i not in marks:
            asks["other", i] = [*messages[:i], other, *messages[i + 1 :]], False
        if i in replies:  # where nothing is before it, a question stands in
            before = messages[:i] or [{"role": "user", "content": stand_in}]
            asks["prompt", i], asks["no prompt", i] = (before, True), (before, False)
            asks["ended", i], asks["then prompt", i] = (messages[: i + 1], False), (messages[: i + 1], True)
        if i in replies and i not in marks:
            asks["ended other", i] = [*messages[:i], other], False
        if i in replies and (i not in marks or set(messages[i]) != {"role", "content"}):
            asks["plain", i] = [*messages[:i], {"role": ASSISTANT, "content": stand_in}], False
    drawn = dict(zip(asks, render(list(asks.values()))))
    turns = []
    for i in range(len(messages)):
        own, trained = (0, 0), None
        here = {kind: rendered for (kind, at), rendered in drawn.items() if at == i}
        if i in said:
            own = _own(text, here.get("other"), marks.get(i, ""), i)
        if i in replies:
            trained = _reply(text, own, here, marks.get(i, ""), i)
        turns.append(Turn(own, trained))
    _check_apart(turns)
    return turns


def _own(text: str, other: Rendered | None, mark: str, i: int) -> Span:
    """The place of message `i` in a text: of its mark, or of what differs with another message in its place."""
    if other is None:
        at = text.find(mark)
        own = (at, at + 1) if at >= 0 else (len(text), len(text))
    else:
        own = _difference(text, _needed(other, i))
    if own == (len(text), len(text)):
        raise Vanishing(f"leaves out message {i + 1}, which would vanish")
    return own


def align(form: str, text: str, contents: Mapping[str, str]) -> list[int] | None:
    """Where each character of `form`, and its end, stands in `text`; None if `text` is not of that form.

    contents: the text for which each of some characters of `form` stands. It may be written without the blanks at its
    ends, or as JSON.
    """
    if any(form.count(char) != 1 for char in contents):
        return None
    pieces = re.split(f"([{''.join(contents)}])", form) if contents else [form]
    places, at = [], 0
    for piece, after in zip(pieces, [*pieces[1:], ""]):
        if piece in contents:
            whole = contents[piece]
            written = (
                whole,
                whole.strip(),
                whole.lstrip(),
                whole.rstrip(),
                json.dumps(whole, ensure_ascii=False)[1:-1],
            )
            size = next((len(w) for w in written if text.startswith(w + after, at)), -1)
            if size < 0:
                return None
            places.append(at)
            at += size
        elif not text.startswith(piece, at):
            return None
        else:
            places += range(at, at + len(piece))
            at += len(piece)
    return [*places, at] if at == len(text) else None


def _needed(rendered: Rendered, i: int) -> str:
    if rendered.problem:
        raise Unclear(f"fails where message {i + 1} is looked for ({rendered.problem})")
    return rendered.text


def _reply(text: str, own: Span, drawn: Mapping[str, Rendered], mark: str, i: int) -> Span:
    """What is trained of reply `i`, whose own text is `own`: from the end of its prompt to what closes it."""
    ended = _needed(drawn["ended"], i)
    at, to = _own(ended, drawn.get("ended other"), mark, i)
    header = _added(drawn["prompt"], drawn["no prompt"])
    latest = min(at, _common(ended, _needed(drawn["plain"], i))) if "plain" in drawn else at
    start = _after_prompt(ended, latest, drawn["prompt"].text, header, first=i == 0)
    if text[:start] != ended[:start]:  # earlier turns are written otherwise once this one is not the last
        start = _before(text, own[0], ended[start:at], header, i)
    tails = [ended[to:]]
    going_on = drawn["then prompt"].text
    if header and going_on.startswith(ended[:to]) and going_on.endswith(header):
        tails.append(going_on[to : -len(header)])
    end = max(_shared_end(text, own[1], tail) for tail in tails)
    return min(start, own[1]), end


def _added(prompt: Rendered, without: Rendered) -> str:
    """What a prompt for a reply adds to a chat; '' where that cannot be told."""
    known = not prompt.problem and not without.problem and prompt.text.startswith(without.text)
    return prompt.text[len(without.text) :] if known else ""


def _after_prompt(ended: str, latest: int, prompt: str, header: str, first: bool) -> int:
    """Where the prompt for a reply ends in the chat that ends with that reply, at the `latest` where its text begins.

    header: what the prompt adds; where it adds nothing, blanks before a reply are its own, and other text is not.
    first: nothing is before the reply, and the prompt is that of a question.
    """
    if first:
        found = ended.find(header) if header else -1
        return min(latest, found + len(header)) if found >= 0 else latest
    shared = _common(ended, prompt)
    if not header:
        return shared if shared == len(prompt) and ended[shared:latest].isspace() else latest
    return min(latest, shared) if shared >= len(prompt) - len(header) else latest


def _before(text: str, own: int, lead: str, header: str, i: int) -> int:
    """Where a reply begins whose own text begins at `own`: before the text that leads to it, or after its header.

    The header may be shorter than in a prompt, and the lead too, as those of a reply whose reasoning is not repeated.
    """
    shared = _common(lead[::-1], text[max(own - len(lead), 0) : own][::-1])
    if shared == len(lead):
        return own - shared
    for size in range(len(header), 3, -1):
        at = text.rfind(header[:size], 0, own) + size
        if size <= at and own - at <= shared:
            return at
    raise Unclear(f"does not write reply {i + 1} in the chat as it does at its end")


def _shared_end(text: str, start: int, tail: str) -> int:
    """Where the text from `start` on ceases to be that of `tail`; not inside of a name in which they part."""
    end = start + _common(tail, text[start:])
    for name in _NAME.finditer(text, start):
        if name.start() < end < name.end():
            return name.start()
    return end


def _check_apart(turns: Sequence[Turn]) -> None:
    """Raises Unclear where what is trained of one turn overlaps another's own text."""
    for i, turn in enumerate(turns):
        for j, other in enumerate(turns):
            if i != j and turn.trained and max(turn.trained[0], other.own[0]) < min(turn.trained[1], other.own[1]):
                raise Unclear(f"does not write reply {i + 1} apart from message {j + 1}")


def _replaced(message: Message, stand_in: str) -> Message:
    """The message with another text in each of its fields, of the same form."""

    def other(text: str) -> str:
        # A reply in tags (<tool_response>) decides in some templates what counts as a question.
        wrapped = _WRAPPED.fullmatch(text) if message["role"] != ASSISTANT else None
        return f"{wrapped[1]}{stand_in}{wrapped[2]}" if wrapped else stand_in if text.strip() else text

    changed: dict[str, Any] = {
        name: map_text(message[name], other) for name in ("content", *REASONING) if name in message
    }
    if isinstance(changed.get("content"), list):
        changed["content"] = [block | {"text": other(block["text"])} for block in message["content"]]
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [_replaced_call(call, stand_in) for call in calls]
    return message | changed


def _replaced_call(call: Any, stand_in: str) -> Any:
    """Another call of a tool, with the same ids, types and names of arguments."""
    if not isinstance(call, dict):
        return call
    changed = {k: map_text(call[k], lambda _: stand_in) for k in ("name", "arguments") if k in call}
    function = call.get("function")
    return call | changed | ({"function": _replaced_call(function, stand_in)} if isinstance(function, dict) else {})


def _common(one: str, other: str) -> int:
    """Characters at the beginning in which two texts agree."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _difference(one: str, other: str) -> Span:
    """The part of `one` that is not common to both texts at their beginnings and ends."""
    start = _common(one, other)
    low, high = 0, min(len(one), len(other)) - start
    while low < high:
        middle = (low + high + 1) // 2
        same = one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]
        low, high = (middle, high) if same else (low, middle - 1)
    return start, len(one) - low
