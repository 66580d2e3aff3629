"""Eight chats under each of forty templates, with and without {% generation %}: the ids and masks of transformers.

`python -m tests.chats.campaign --golden` asked transformers 5.24 and wrote golden.jsonl; nothing here needs it. The
whole campaign (300 chats under each template) is in docs/campaigns/chats.jsonl.
"""

import json

import pytest

from distill.data.sources.messages import is_empty
from tests.chats.campaign import GOLDEN, Subject, digest
from tests.chats.draw import draw
from tests.chats.templates import FAMILIES

ROWS = [json.loads(line) for line in GOLDEN.read_text().splitlines()]


def test_the_file_holds_every_template_and_most_of_its_chats_are_equal():
    assert {(row["template"], row["generation"]) for row in ROWS} == {(n, t) for n in FAMILIES for t in (True, False)}
    cases = [ids for row in ROWS for ids, _ in row["chats"].values()]
    assert len(cases) > 600 and sum(map(bool, cases)) > 380


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['template']}-{row['generation']}")
def test_ids_and_masks_are_those_of_transformers(row, tmp_path):
    """Seen to catch a mask without what closes a turn, and `tools` that is undefined."""
    family = FAMILIES[row["template"]]
    subject = Subject(family, tmp_path, row["generation"])
    for seed, (ids, mask) in row["chats"].items():
        _, chat = draw(int(seed), family.special)
        got = subject.answer(chat)
        assert ("" if got.problem else digest(got.ids)) == ids, (seed, got.problem)
        assert not mask or digest(got.mask) == mask, seed


@pytest.mark.parametrize("name", ["qwen3.5", "mistral-tools", "gpt-oss", "llama-2", "phi-3-end"])
def test_replies_are_found_where_the_tags_say_that_they_are(name, tmp_path):
    """Sixty more chats: the mask without tags is that with them, or there is a reason why not.

    Seen to catch a call in an earlier turn, whose reasoning is not repeated.
    """
    family, compared = FAMILIES[name], 0
    with_tags, without = Subject(family, tmp_path / "a", True), Subject(family, tmp_path / "b", False)
    for seed in range(1000, 1060):
        _, chat = draw(seed, family.special)
        if any(is_empty(m) for m in chat["messages"] if m["role"] == "assistant"):
            continue  # an empty reply is trained by tags alone
        want, got = with_tags.answer(chat), without.answer(chat)
        assert "does not write reply" not in got.problem, seed
        assert got.problem or got.ids == want.ids and got.mask == want.mask, seed
        compared += bool(got.ids)
    assert compared >= 30
