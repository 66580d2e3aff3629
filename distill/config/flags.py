"""The one parser of every command line: `--name value` and `--name=value`, dashes and underscores alike.

A Parser is an argparse.ArgumentParser with one syntax for all commands and one help format. Every mistake raises a
one-line ConfigError that names the nearest valid flag, field or value. Standard library only.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypedDict, Unpack

from distill.config.tree import nearest, parse, parse_count, parse_number, paths
from distill.errors import ConfigError

# Other projects' names of a config field, and the field's name here.
_MEANT = {
    "lr": "optim.learning_rate",
    "wd": "optim.weight_decay",
    "warmup": "optim.warmup_steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "context": "seq_len",
    "context_length": "seq_len",
    "max_length": "seq_len",
    "width": "model.d_model",
    "hidden_size": "model.d_model",
    "layers": "model.n_layers",
    "depth": "model.n_layers",
    "heads": "model.n_heads",
    "tau": "objective.temperature",
    "alpha": "objective.lambda_",
    "lambda": "objective.lambda_",
    "teacher": "teacher.source",
    "data": "data.files.paths",
    "text": "data.files.paths",
    "dataset": "data.files.paths",
    "tokenizer": "data.tokenizer.path",
    "grad_accum": "microbatches",
    "gradient_accumulation_steps": "microbatches",
    "wandb": "loop.wandb",
    "grad_clip": "optim.clip",
}
# Other projects' names of a run's length, which is given in tokens here.
_LENGTHS = {
    "epochs": "epochs times the tokens of the text",
    "num_epochs": "epochs times the tokens of the text",
    "steps": "steps x batch_size x seq_len",
    "max_steps": "steps x batch_size x seq_len",
}
# A folder is --workdir if a command resumes in it, and --out if the command creates it.
_FOLDERS = ("workdir", "out", "output", "output_dir", "outdir", "dir", "folder", "work_dir")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def count(text: str) -> int:
    """A whole number as people write it: 250_000, 2.5e5, 250K, 1M, 2B. Raises ValueError."""
    return parse_count(text)


def number(text: str) -> float:
    """A number as people write it: 1e9, 1.5B, 546M, 7_000_000. Raises ValueError."""
    return parse_number(text)


_GROUPED = re.compile(r"\d{1,3}(,\d{3})+(\.\d*)?")


def money(text: str) -> float:
    """An amount as people write it: what `number` reads, $20K and 20,000 too. Raises ValueError."""
    plain = text.strip().removeprefix("$")
    return number(plain.replace(",", "") if _GROUPED.fullmatch(plain) else plain)


def at_least(least: float, read: Callable[[str], float] = count) -> Callable[[str], float]:
    """A type for `Parser`: the value that `read` returns, refused below `least`."""

    def bounded(text: str) -> float:
        value = read(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted at least {least:g}")
        return value

    bounded.__name__ = read.__name__
    return bounded


def between(low: float, high: float) -> Callable[[str], float]:
    """A type for `Parser`: a number between two others, neither of which it may be."""

    def bounded(text: str) -> float:
        value = number(text)
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number between {low:g} and {high:g}")
        return value

    bounded.__name__ = number.__name__
    return bounded


_WANTED = {
    "count": "a whole number such as 8, 64K or 2.5e5",
    "parse_count": "a whole number such as 8, 64K or 2.5e5",
    "number": "a number such as 0.5, 1e9 or 1.5B",
}


class _Format(argparse.RawDescriptionHelpFormatter):
    """Help that shows options as `--name=VALUE`, without aliases, and defaults once."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wraps paragraphs to the terminal's width; keeps those with indented lines (lists, examples) unchanged."""
        paragraphs = []
        for paragraph in text.split("\n\n"):
            plain = not any(line.startswith((" ", "-")) for line in paragraph.splitlines()[1:])
            lines = textwrap.wrap(" ".join(paragraph.split()), min(width, 100)) if plain else paragraph.splitlines()
            paragraphs.append("\n".join(f"{indent}{line}".rstrip() for line in lines))
        return "\n\n".join(paragraphs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return self._format_args(action, action.dest)
        name = next(name for name in action.option_strings if name.startswith("--"))
        if action.nargs == 0:
            return name
        value = self._format_args(action, action.dest.upper().replace("-", "_"))
        return f"{name} {value}" if action.nargs else f"{name}={value}"


class _Option(TypedDict, total=False):
    """The keyword arguments of argparse's add_argument."""

    action: str | type[argparse.Action]
    nargs: int | str | None
    const: object
    default: object
    type: Callable[[str], object]
    choices: Iterable[object]
    required: bool
    help: str
    metavar: str
    dest: str
    version: str


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    command: its name, as in `distill train`. about: its docstring, which `--help` shows. examples: whole command lines,
    which `--help` shows and tests parse. fields: a config class whose fields are also flags, each with one of the
    `prefixes` before its dotted path; a field that is not found is also looked up inside the group `within`. The given
    fields are in the result's `overrides`, as [(path, text)].
    """

    def __init__(
        self,
        command: str,
        about: str | None = None,
        *,
        examples: Sequence[str] = (),
        fields: type | None = None,
        prefixes: Sequence[str] = ("config.",),
        within: str = "",
        **_: object,  # accepted for argparse's sake and fixed by this parser: formatter_class, allow_abbrev
    ):
        self._needed: dict[str, str] = {}
        self.examples, self.fields, self._within = tuple(examples), fields, within
        self._prefixes = sorted(prefixes, key=len, reverse=True)
        self._paths = tuple(paths(fields)) if fields else ()
        shown = "\n".join(f"  {line}" for line in examples)
        super().__init__(
            f"distill {command}",
            description=(about or "").strip(),
            epilog=f"examples:\n{shown}" if examples else None,
            formatter_class=_Format,
            allow_abbrev=False,
            exit_on_error=False,
        )

    def field_flags(self) -> list[str]:
        """The flag of every config field, as help and completion spell it."""
        prefix = self._prefixes[-1] if self.fields else ""
        return [f"--{prefix}{path}" for path in self._paths]

    def group(self, title: str, description: str | None = None) -> Callable[..., argparse.Action]:
        """Starts a group of options in the help; returns its `add_argument`."""
        group = self.add_argument_group(title, description)
        return lambda *names, **how: self._add(group.add_argument, *names, **how)

    def add_argument(self, *names: str, **how: Unpack[_Option]) -> argparse.Action:  # type: ignore[override]
        return self._add(super().add_argument, *names, **how)

    def _add(self, add: Callable[..., argparse.Action], *names: str, **how: Unpack[_Option]) -> argparse.Action:
        """argparse's add_argument, with one-line errors for a missing `required` option and for an invalid choice
        (which name the nearest one), and with the default in the help."""
        if how.pop("required", False):
            self._needed[names[0]] = how.get("metavar") or "VALUE"
            how["help"] = f"{how.get('help', '')} (required)".strip()
        choices = tuple(how.pop("choices", ()))
        if choices:
            how |= {
                "type": _choice(choices, how.get("default")),
                "metavar": how.get("metavar", "|".join(map(str, choices))),
            }
        elif callable(read := how.get("type")):
            how["type"] = _reading(read)
        default = how.get("default")
        about = how.get("help") or ""
        if default not in (None, "", (), False, argparse.SUPPRESS) and "(default" not in about:
            shown = f"{default:g}" if isinstance(default, float) else default
            how["help"] = f"{about} (default {shown})".strip().replace("%", "%%")
        action = add(*names, **how)
        if choices:
            action.completer = lambda **_: [str(choice) for choice in choices]  # type: ignore[attr-defined]
        return action

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The flags of a command line as a Namespace. Raises ConfigError; `--help` prints and raises SystemExit(0)."""
        words, overrides = self._canonical(list(sys.argv[1:] if args is None else args))
        try:
            known = super().parse_args(words, namespace)
        except argparse.ArgumentError as error:
            raise ConfigError(f"{(error.argument_name or '').split('/')[0]}: {error.message}") from None
        for name, wanted in self._needed.items():
            if getattr(known, self._option_string_actions[name].dest) in (None, ()):
                raise ConfigError(f"{name}=... is missing; wanted {name}={wanted} (see --help)")
        known.overrides = overrides
        return known

    def format_help(self) -> str:
        positional = [action.metavar or action.dest for action in self._actions if not action.option_strings]
        needed = [f"{name}={value}" for name, value in self._needed.items()]
        self.usage = " ".join(
            [self.prog, *needed, *(f"[{name}]" for name in map(str, positional)), "[--name=value ...]"]
        )
        return super().format_help() + "\n"

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")

    def _canonical(self, words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """The command line normalised to `--name=value` for argparse, and separately the config fields."""
        spelled = {_plain(name): name for name in self._option_string_actions if name.startswith("--")}
        options: list[str] = []
        overrides: list[tuple[str, str]] = []
        strays: list[str] = []
        i = 0
        while i < len(words):
            word, i = words[i], i + 1
            if word == "-h":
                word = "--help"
            if not word.startswith("-") or word == "-":
                strays.append(word)
                continue
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(spelled.get(_plain(name), ""))
            path = None if action else self._path(name)
            if action is None and path is None:
                raise ConfigError(self._unknown(name, value if equals else None))
            name = self._name(action, spelled[_plain(name)]) if action else name
            if action and action.nargs == 0:
                if not equals or value.lower() in _TRUE:
                    options.append(name)
                elif value.lower() not in _FALSE:
                    raise ConfigError(f"{name}: got {value!r}, wanted no value, true or false")
                continue
            if action and action.nargs == "?" and (not equals or value.lower() in _TRUE + _FALSE):
                options += [name] * (value.lower() not in _FALSE)  # a switch that may have a value
                continue
            if not equals:
                if i >= len(words) or words[i].startswith("--"):
                    raise ConfigError(f"got {word!r} without a value, wanted {word}=VALUE (see --help)")
                value, i = words[i], i + 1
            if path is not None:
                overrides.append((path, value))
            elif action and action.nargs in ("+", "*"):
                options += [name, value]
                while i < len(words) and not words[i].startswith("-"):
                    options.append(words[i])
                    i += 1
            elif name in self._needed and not value.strip():
                raise ConfigError(
                    f"{name}= is empty, wanted {name}={self._needed[name]}; is a variable of the shell not set?"
                )
            else:
                options.append(f"{name}={value}")
        if strays and not any(not action.option_strings for action in self._actions):
            raise ConfigError(f"got {strays[0]!r}, wanted --name=value (see --help)")
        return [*options, *(["--", *strays] if strays else [])], overrides

    def _name(self, action: argparse.Action, given: str) -> str:
        """The first spelling of an option, as errors show it."""
        return next((name for name in action.option_strings if name.startswith("--")), given)

    def _path(self, name: str) -> str | None:
        """The dotted path of the config field that a flag names; None if it names no field."""
        if self.fields is None:
            return None
        bare = _plain(name)
        for prefix in self._prefixes:
            if not bare.startswith(prefix):
                continue
            path = bare.removeprefix(prefix)
            for candidate in (path, f"{path}_", f"{self._within}.{path}"):
                if candidate in self._paths:
                    return candidate
            groups = {path.split(".")[0] for path in self._paths}
            if prefix or path.split(".")[0] in groups:
                if (meant := self._field(path)) and path not in groups and path.split(".")[0] not in groups:
                    raise ConfigError(f"{name}: there is no such field. Did you mean --{prefix}{meant}?")
                return path  # the config's own check reports what is wrong with it
        return None

    def _field(self, name: str) -> str | None:
        """The path of the config field with this name in any group, or with this name in other projects."""
        last = name.rpartition(".")[2]
        if (meant := _MEANT.get(last)) in self._paths:
            return meant
        ends = [path for path in self._paths if path.rpartition(".")[2] in (last, f"{last}_")]
        return min(ends, key=lambda path: path.count("."), default=None)

    def _unknown(self, name: str, value: str | None) -> str:
        bare, given = _plain(name), "" if value is None else f" (value {value!r})"
        prefix = self._prefixes[-1] if self._prefixes else ""
        if self.fields and bare in _LENGTHS and "tokens" in self._paths:
            return f"there is no flag {name}{given}: a run is as long as --{prefix}tokens=N, {_LENGTHS[bare]}"
        for spelling in _FOLDERS if bare in _FOLDERS else ():
            if f"--{spelling}" in self._option_string_actions:
                return f"there is no flag {name}{given}. Did you mean --{spelling}?"
        if self.fields and "." not in bare and (meant := self._field(bare)):
            return f"there is no flag {name}{given}. Did you mean the config's field, --{prefix}{meant}?"
        names = {_plain(known): known for known in self._option_string_actions if known.startswith("--")}
        candidates = [*names, *(f"{prefix}{path}" for path in self._paths)]
        hint = nearest(bare, candidates)
        for known in candidates:
            hint = hint.replace(f"{known!r}", names.get(known, f"--{known}"))
        return f"there is no flag {name}{given}.{hint or ' See --help.'}"


def _plain(name: str) -> str:
    """'--dry-run' and '-dry_run' as 'dry_run'."""
    return name.lstrip("-").replace("-", "_")


def _choice(choices: Sequence[object], default: object) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices and text != default:
            wanted = ", ".join(map(str, choices))
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted one of {wanted}.{nearest(text, map(str, choices))}")
        return text

    return choose


def _reading(read: Callable[[str], object]) -> Callable[[str], object]:
    """`read` with an error that says what was wanted; int and float accept suffixes such as 64K."""
    read = {int: count, float: number}.get(read, read)  # type: ignore[call-overload]

    def convert(text: str) -> object:
        try:
            return read(text)
        except (ValueError, TypeError, OverflowError):
            wanted = _WANTED.get(getattr(read, "__name__", ""), "a value that can be read")
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}") from None

    return convert


def tree_of(overrides: Iterable[tuple[str, str]], cls: type) -> dict[str, Any]:
    """The overrides of a command line as a tree, for `build`. Raises ConfigError for an unknown path or value."""
    root: dict[str, Any] = {}
    for path, text in overrides:
        value = parse(cls, path, text)
        node = root
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return root
