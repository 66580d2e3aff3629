"""What CI, pre-commit and the citation file say agrees with what the project has."""

import configparser
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def parts():
    """The parts of .ci/run that it runs one after the other when none is named."""
    text = (ROOT / ".ci" / "run").read_text("utf-8")
    every = text.partition("  *)\n")[2].partition(";;")[0]
    return [line.split()[0] for line in every.splitlines() if line.strip()]


def test_the_public_workflow_runs_every_part():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    job = workflow["jobs"]["part"]
    steps = "\n".join(step.get("run", "") for step in job["steps"])
    assert "bash .ci/run ${{ matrix.part }}" in steps and "bash .ci/run debian" in steps
    assert set(job["strategy"]["matrix"]["part"]) | {"debian"} == set(parts()) and len(parts()) == 6


def test_the_paths_that_ci_names_are_there():
    named = re.findall(r"\b(tests/[\w/.-]+\.py|launch/[\w/.-]+\.sh)", (ROOT / ".ci" / "run").read_text("utf-8"))
    assert len(named) > 4 and not [path for path in named if not (ROOT / path).exists()]


def test_pre_commit_checks_style_as_ci_does():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "hooks of other repositories would be downloaded"
    entries = "\n".join(hook["entry"] for hook in hooks[0]["hooks"])
    style = (ROOT / "launch/test.sh").read_text("utf-8").partition('echo "ruff')[2].partition('echo "pytest')[0]
    commands = re.findall(r'^"\$bin/(\w+)"([\w ./-]*)', style, re.MULTILINE)
    assert {name for name, _ in commands} == {"ruff", "mypy", "shellcheck"}
    for name, arguments in commands:
        wanted = f".venv/bin/{name}" + ("" if name == "shellcheck" else arguments.rstrip())
        assert wanted in entries, f"launch/test.sh runs {wanted}; no hook does"


def test_the_citation_has_this_project_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert citation["title"] == setup["metadata"]["name"] and citation["license"] == setup["metadata"]["license"]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2502.08606"


def test_the_site_is_built_from_packages_of_the_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = setup["options.extras_require"]["docs"]
    plugins = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["plugins"]
    assert "mkdocs-material" in extra and all(
        name in extra for entry in plugins if isinstance(entry, dict) for name in entry
    )
