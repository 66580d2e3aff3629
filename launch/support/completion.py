"""Completion of commands and flags by the shell's tab key, through argcomplete."""

import argparse
import importlib
import os
from collections.abc import Mapping

from distill.config import ConfigError
from distill.config.flags import Parser

SHELLS = ("bash", "zsh")


def script(shell: str) -> str:
    """What the shell evaluates to complete `distill`. Raises ConfigError for a shell that is not supported."""
    import argcomplete

    if shell not in SHELLS:
        raise ConfigError(f"--completion={shell}: wanted one of {', '.join(SHELLS)}")
    return str(argcomplete.shellcode(["distill"], shell=shell))


def answer(commands: Mapping[str, str]) -> None:
    """Answers the shell, which has put its line into the environment, and ends the process."""
    import argcomplete

    argcomplete.autocomplete(
        _parser(commands, os.environ.get("COMP_LINE", "").split()[1:2]), always_complete_options="long"
    )


def _parser(commands: Mapping[str, str], words: list[str]) -> argparse.ArgumentParser:
    """All commands as argparse has them; only the one that stands on the line is imported."""
    top = argparse.ArgumentParser("distill")
    subparsers = top.add_subparsers(parser_class=argparse.ArgumentParser)
    for name, about in commands.items():
        parents = []
        if words == [name]:
            module = importlib.import_module(f"launch.{name}.__main__" if name == "gke" else f"launch.{name}")
            parents = [_with_fields(module.parser())]
        subparsers.add_parser(name, help=about, parents=parents, add_help=not parents)
    return top


def _with_fields(parser: Parser) -> Parser:
    """The parser with an option for every config field, which it otherwise reads by itself."""
    for name in parser.field_flags():
        parser.add_argument(name, metavar="VALUE")
    return parser
