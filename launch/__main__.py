# PYTHON_ARGCOMPLETE_OK
"""The command `distill`, which is `python -m launch`: runs one of the commands, or lists them."""

import importlib
import os
import sys
from collections.abc import Sequence

import distill
from distill.config import ConfigError, nearest
from launch.support import cli

GROUPS: dict[str, dict[str, str]] = {
    "train and distil": {
        "train": "train one run, supervised or from a teacher",
        "sweep": "train a config with some of its fields varied",
        "study": "train a matrix of runs, fit the laws, write the report",
        "evaluate": "measure a model on any text, beside a teacher",
    },
    "teachers and text": {
        "tokenize": "make a token store of text",
        "cache": "store a teacher's signal for many students",
        "import_signals": "make a store of signals that others wrote",
        "generate": "let a teacher complete prompts: hard labels",
        "convert": "write any model as a Hugging Face directory",
        "corpus": "extract public-domain prose from packages",
    },
    "laws": {
        "fit": "fit a scaling law to a table of runs",
        "plan": "distil or pretrain, from which teacher, at what cost",
        "figures": "draw the paper's figures and tables from a law",
    },
    "looking at runs": {
        "watch": "show live curves in the terminal",
        "report": "write the page of a study or a run",
        "replay": "compute one step of a run again, in detail",
        "profile": "trace the training step",
        "dryrun": "tell what a step costs on machines that are not there",
    },
    "machines": {
        "gke": "run a command as a JobSet on GKE",
    },
    "this project": {
        "bench": "measure beside named peers",
        "chaos": "kill commands at random and show that nothing is lost",
        "notebooks": "run the notebooks and keep their outputs",
    },
}
COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}


def listing() -> str:
    """The commands by group, a line each."""
    lines = [f"distill {distill.__version__}: logit distillation and its scaling law, in JAX", ""]
    lines += ["usage: distill COMMAND [--name=value ...]      (python -m launch.COMMAND is the same)", ""]
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<14} {about}" for name, about in commands.items()), ""]
    lines += [
        "distill COMMAND --help lists its flags with defaults and examples; distill --version prints the version;"
    ]
    lines += ['eval "$(distill --completion=bash)", or zsh, completes commands and flags with the tab key.']
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command's own main with the remaining words. Raises ConfigError for a name that is none."""
    if "_ARGCOMPLETE" in os.environ:
        from launch.support import completion

        completion.answer(COMMANDS)
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        print(listing())
        return 0
    if first in ("-V", "--version", "version"):
        print(f"distill {distill.__version__}")
        return 0
    if first.startswith("--completion"):
        from launch.support import completion

        print(completion.script(first.partition("=")[2] or "".join(words[1:2])))
        return 0
    if first.startswith("-"):
        raise ConfigError(f"got {first!r} before a command, wanted distill COMMAND {first}; distill alone lists them")
    first = first.replace("-", "_")
    if first not in COMMANDS:
        raise ConfigError(
            f"there is no command {first!r}.{nearest(first, COMMANDS) or ' Run distill alone for a list.'}"
        )
    name = "launch.gke.__main__" if first == "gke" else f"launch.{first}"
    return importlib.import_module(name).main(words[1:]) or 0


def run() -> int:
    """The entry point of the console command."""
    return cli.guard(main)


if __name__ == "__main__":
    sys.exit(run())
