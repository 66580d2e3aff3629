"""docs/guide/config.md is what the sources say, and every field has a line."""

from pathlib import Path

import pytest

from distill.config import StudyExperimentConfig, reference
from distill.config.generation import GenerationConfig
from distill.config.tree import paths

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "config.md"


def test_the_page_is_what_the_sources_say():
    assert PAGE.read_text("utf-8") == reference.page(), "run: python -m distill.config.reference > docs/guide/config.md"


@pytest.mark.parametrize("cls", [StudyExperimentConfig, GenerationConfig])
def test_every_field_has_a_line(cls):
    lines = list(reference.lines(cls))
    assert [line.path for line in lines] == list(paths(cls))
    assert not [line.path for line in lines if not line.about]
    assert all(f"`{line.path}`" in reference.page() for line in lines)


def test_units_and_marks():
    lines = {line.path: line for line in reference.lines(StudyExperimentConfig)}
    assert (lines["tokens"].unit, lines["loop.checkpoint_seconds"].unit) == ("tokens", "seconds")
    assert (lines["loop.keep"].identity, lines["optim.b1"].identity) == (False, True)
    assert lines["data.split"].kind == "`teacher`, `student`"
    assert lines["tokens"].default == "`250,000`"
