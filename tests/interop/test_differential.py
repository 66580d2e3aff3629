"""The campaign against transformers: what its table says, and a part of it made again."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.interop import differential

TABLE = Path(__file__).parents[2] / "docs" / "campaigns" / "differential.jsonl"


@pytest.fixture(scope="module")
def table():
    return [json.loads(line) for line in TABLE.read_text("utf-8").splitlines()]


def test_no_draw_of_the_campaign_ended_badly(table):
    assert [line["draw"] for line in table] == list(range(300)) and {line["seed"] for line in table} == {0}
    assert {line["outcome"] for line in table} <= set(differential.GOOD)
    assert all(line["off"] <= differential.TOLERANCE for line in table if line["outcome"] == "equal")
    assert all(len(line["said"]) > 20 and "\n" not in line["said"] for line in table if line["outcome"] != "equal")


def test_the_campaign_covers_what_it_says(table):
    families = Counter(line["family"] for line in table)
    assert all(families[family] >= 20 for family in differential.FAMILIES)
    for family in differential.FAMILIES:
        mine = [line for line in table if line["family"] == family]
        assert {line["outcome"] for line in mine} >= {"equal", "refused"}
        assert {line["tied"] for line in mine} == {True, False} and len({line["dtype"] for line in mine}) >= 3
        if not family.startswith("GGUF"):
            assert {line["shards"] for line in mine} == {True, False}
            assert {line["dialect"] for line in mine} == {"rope_parameters", "rope_theta"}
    # Two in five are models that both read: a campaign of refusals would say little.
    assert sum(line["outcome"] == "equal" for line in table) > 120


@pytest.mark.slow
def test_a_part_of_the_campaign_again(table, tmp_path, mesh_of):
    """Every sixth draw: the same facts, change and outcome."""
    pytest.importorskip("transformers", reason="the extra `parity` is not installed")
    for line in table[::6]:
        again = differential.draw(line["draw"], line["seed"], tmp_path)
        wanted = {name: value for name, value in line.items() if name not in ("off", "said")}
        assert {name: again[name] for name in wanted} == wanted
