"""One import, to which those of all other forms are compared."""

import pytest

from distill.teacher.imported.store import import_signals
from tests.teacher.imported.written import content, distributions, vllm, wanted, write_lines


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The import of vLLM's lines, to which all other forms are compared."""
    folder = tmp_path_factory.mktemp("reference")
    made = distributions()
    import_signals(wanted(write_lines(folder / "a.jsonl", [vllm(*row) for row in made])), folder / "out")
    return made, content(folder / "out")
