"""Chats under forty templates, against apply_chat_template of transformers: equal, or refused.

    python -m tests.chats.campaign --chats=300 --out=docs/campaigns/chats.jsonl
    python -m tests.chats.campaign --golden  # what tests/chats/test_chats.py holds without transformers

Each chat is drawn from its own seed. Each template is tried twice: with its {% generation %} tags, whose mask is that
of `return_assistant_tokens_mask`, and without them, where distill has to find the same by itself.
"""

import argparse
import collections
import datetime
import hashlib
import importlib.metadata
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from distill.config.data import ColumnsConfig
from distill.data.sources.columns import Columns
from distill.data.sources.messages import is_empty
from distill.data.store.encode import encode
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.errors import DataError
from tests.chats.draw import Chat, draw, read_bases, tokenizer
from tests.chats.templates import FAMILIES, Family

TODAY = "2026-07-01"
GOLDEN = Path(__file__).parent / "golden.jsonl"


class Answer(NamedTuple):
    """Ids and mask of one chat under one template, or why there are none."""

    ids: list[int]
    mask: list[int]
    problem: str = ""


class Subject:
    """distill, with one family's template and tokenizer in a folder."""

    def __init__(self, family: Family, folder: Path, tagged: bool):
        self.folder = folder
        write(family, folder, tagged)
        self.tokenizer = SubwordTokenizer(str(folder), "none")
        config = ColumnsConfig(messages="messages", template=str(folder), today=TODAY)
        self._columns = Columns(config, self.tokenizer.special_tokens.values())

    def answer(self, chat: Chat) -> Answer:
        try:
            document = self._columns.document(chat, "chat")
            encoded = encode(self.tokenizer, [document], np.dtype("uint16"), True)
        except DataError as error:
            return Answer([], [], str(error).replace(str(self.folder), "").removeprefix("chat: : its chat template "))
        assert encoded.mask is not None and encoded.bytes[0] >= 0
        return Answer(encoded.ids.tolist(), encoded.mask.tolist())


class Oracle:
    """transformers, with the same folder."""

    def __init__(self, folder: Path, tagged: bool):
        from transformers import PreTrainedTokenizerFast

        self._tokenizer, self._tagged = PreTrainedTokenizerFast.from_pretrained(str(folder)), tagged

    def answer(self, chat: Chat) -> Answer:
        more = chat.get("chat_template_kwargs") or {}
        try:
            out: Any = self._tokenizer.apply_chat_template(
                chat["messages"],
                tools=chat.get("tools"),
                documents=chat.get("documents"),
                return_dict=True,
                return_assistant_tokens_mask=self._tagged,
                **more,
            )
        except Exception as error:  # whatever a template raises
            return Answer([], [], f"{type(error).__name__}: {error!s:.100}")
        return Answer(out["input_ids"], out.get("assistant_masks", []))

    def typed(self, chat: Chat) -> Answer:
        """The same where special tokens of messages stay text: stretches between the template's own, one by one."""
        marked = self._tokenizer._mark_chat_inputs(
            self._tokenizer.get_chat_template(tools=chat.get("tools")), [chat["messages"]], chat.get("tools"),
            chat.get("documents"), {}, True, False,
        )  # fmt: skip
        text = self._tokenizer.apply_chat_template(marked[0][0], tools=marked[1], documents=marked[2], tokenize=False)
        special = [str(t) for t in self._tokenizer.added_tokens_decoder.values() if t.special]
        start, end = (re.findall(r"[\ue000-\uf8ff\U000f0000-\U0010ffff]", text) + ["", ""])[:2]
        rstrip = any(t.rstrip for t in self._tokenizer.added_tokens_decoder.values())
        control = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        ids: list[int] = []
        stretch = ""
        at = 0
        while at < len(text):
            typed = text.startswith(start, at) if start else False
            found = None if typed else control.match(text, at)
            if typed:
                stop = text.index(end, at + 1)
                stretch, at = stretch + text[at + 1 : stop], stop + 1
            elif found:
                ids += self._plain(stretch, not ids) + [self._tokenizer.convert_tokens_to_ids(found[0])]
                stretch, at = "", found.end()
                while rstrip and text[at : at + 1].isspace():
                    at += 1
            else:
                stretch, at = stretch + text[at], at + 1
        return Answer(ids + self._plain(stretch, not ids), [])

    def _plain(self, text: str, first: bool) -> list[int]:
        """Ids of a stretch without special tokens. The library's blank before a first word is for the first alone."""
        tree = json.loads(self._tokenizer.backend_tokenizer.to_str())
        if not first and "prepend_scheme" in (tree["pre_tokenizer"] or {}):
            tree["pre_tokenizer"]["prepend_scheme"] = "never"
        library = Tokenizer.from_str(json.dumps(tree))
        library.encode_special_tokens = True
        return library.encode(text, add_special_tokens=False).ids


def write(family: Family, folder: Path, tagged: bool) -> None:
    """Writes the files of a model's folder that belong to its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(family, read_bases()[family.base]).save(str(folder / "tokenizer.json"))
    texts = {"default": family.text if tagged else family.untagged, **family.named_templates}
    template: Any = texts["default"] if len(texts) == 1 else [{"name": n, "template": t} for n, t in texts.items()]
    tree = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **family.named}
    (folder / "tokenizer_config.json").write_text(json.dumps(tree))


def freeze() -> None:
    """Lets transformers write the same date as distill is told to."""
    from transformers.utils import chat_template_utils

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Frozen":
            return cls.fromisoformat(TODAY)

    vars(chat_template_utils)["datetime"] = Frozen


def judge(got: Answer, want: Answer, mask: list[int]) -> str:
    """'equal', 'refused: why', 'refused by both: why' or 'DIFFERENT: in what'. mask: that has to be found, if known."""
    if got.problem:
        return f"refused{' by both' if want.problem else ''}: {_reason(got.problem)}"
    if want.problem:
        return f"DIFFERENT: transformers refuses, {want.problem}"
    if got.ids != want.ids:
        return "DIFFERENT: in ids"
    return "DIFFERENT: in the mask" if mask and got.mask != mask else "equal"


def _reason(problem: str) -> str:
    """The reason without what differs from chat to chat."""
    problem = re.sub(r"message \d+", "message N", re.sub(r"reply \d+", "reply N", problem))
    return re.sub(r"'\w+ object' has", "an object has", problem)[:160]


class Compared(NamedTuple):
    """One chat under one template."""

    seed: int
    kind: str
    verdict: str
    got: Answer
    want: Answer
    mask: list[int]  # that has to be found, where it is known


def compare(name: str, tagged: bool, seeds: Sequence[int], folder: Path) -> Iterator[Compared]:
    """Each chat under one template."""
    family = FAMILIES[name]
    subject, oracle = Subject(family, folder / f"{name}-{tagged}", tagged), Oracle(folder / f"{name}-{tagged}", tagged)
    write(family, folder / name, True)
    tags = oracle if tagged else Oracle(folder / name, True)
    for seed in seeds:
        kind, chat = draw(seed, family.special)
        got = subject.answer(chat)
        held = kind == "typed" and any(t in str(m.get("content")) for m in chat["messages"] for t in family.special)
        want = oracle.answer(chat)
        if held and not want.problem:
            want = oracle.typed(chat)
        empty = any(is_empty(m) for m in chat["messages"] if m["role"] == "assistant")
        known = tagged or not empty  # an empty reply is trained by tags alone
        mask = tags.answer(chat).mask if known and not held else []
        yield Compared(seed, kind, judge(got, want, mask), got, want, mask)


def digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:12]


def golden_seeds(place: int) -> range:
    """Eight chats for each template; all kinds come up."""
    return range(place * 8, place * 8 + 8)


def _run(flags: argparse.Namespace, folder: Path) -> Iterator[tuple[dict[str, Any], list[Compared]]]:
    for place, name in enumerate(FAMILIES):
        for tagged in (True, False):
            if flags.only and name not in flags.only.split(","):
                continue
            seeds = golden_seeds(place) if flags.golden else range(flags.chats)
            cases = list(compare(name, tagged, seeds, folder))
            counts = collections.Counter(case.verdict for case in cases)
            for case in cases:
                if case.verdict.startswith("DIFFERENT"):
                    print(name, tagged, *case, sep="\n  ", flush=True)
            row = {"template": name, "generation": tagged, **_summary(counts)}
            print(json.dumps({key: value for key, value in row.items() if key != "reasons"}), flush=True)
            yield row, cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=300)
    parser.add_argument("--out", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--golden", action="store_true")
    flags = parser.parse_args()
    freeze()
    with tempfile.TemporaryDirectory() as place:
        done = list(_run(flags, Path(place)))
    total = {key: sum(row[key] for row, _ in done) for key in ("equal", "refused by both", "refused", "different")}
    print(total)
    if flags.out:
        command = f"python -m tests.chats.campaign --chats={flags.chats} --out={flags.out}"
        version = importlib.metadata.version("transformers")
        head = {"command": command, "seeds": [0, flags.chats], "transformers": version, **total}
        Path(flags.out).write_text("".join(json.dumps(row) + "\n" for row in [head, *(row for row, _ in done)]))
    if flags.golden:
        GOLDEN.write_text("".join(json.dumps(_golden(row, cases)) + "\n" for row, cases in done))


def _golden(row: dict[str, Any], cases: Sequence[Compared]) -> dict[str, Any]:
    """Digests of transformers' ids, and of the mask where it is known; '' where distill refuses."""
    held = {
        case.seed: ["", ""] if case.got.problem else [digest(case.want.ids), digest(case.mask) if case.mask else ""]
        for case in cases
    }
    return {"template": row["template"], "generation": row["generation"], "chats": held}


def _summary(counts: collections.Counter[str]) -> dict[str, Any]:
    def count(start: str) -> int:
        return sum(n for verdict, n in counts.items() if verdict.split(":")[0] == start)

    kinds = {key.lower(): count(key) for key in ("equal", "refused by both", "refused", "DIFFERENT")}
    return {**kinds, "reasons": {verdict: n for verdict, n in counts.most_common() if verdict != "equal"}}


if __name__ == "__main__":
    main()
