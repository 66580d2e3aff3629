"""The edge between a command line and the library: flags in, one-line errors out."""

import argparse
import errno
import importlib.util
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from distill.config import (
    ConfigError,
    DistillError,
    ExperimentConfig,
    ModelConfig,
    build,
    counts,
    flags,
    nearest,
    parse,
)
from distill.config.tree import parse_number
from distill.system import distributed, interrupts, preemption

T = TypeVar("T")

# File-system errors that the user can fix: one line each, with what was wanted.
_FILES = {
    errno.EACCES: "wanted one that may be read and written",
    errno.EPERM: "wanted one that may be read and written",
    errno.EROFS: "wanted a place that can be written",
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EEXIST: "wanted a folder",
    errno.ENOTDIR: "wanted a folder",
    errno.EISDIR: "wanted a file",
    errno.ENOENT: "wanted one that is there",
    errno.ENAMETOOLONG: "wanted a shorter name",
    errno.ELOOP: "wanted a link that leads somewhere",
}

# Where `--config=configs/...` is looked up when the current folder has no such file.
INSTALLED = Path(__file__).resolve().parents[2]

NVIDIA_DRIVER = Path("/proc/driver/nvidia")

DEFAULT = "configs/train.py"  # the config of a command line that names none


def join(given: argparse.Namespace) -> None:
    """Makes this process one of several, where its flags say so; call it before JAX is used."""
    values = given.cluster, given.coordinator, given.processes, given.process
    if any(values):
        distributed.join(distributed.find(*values))


def guard(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs an entry point; a DistillError becomes one line on stderr and exit code 2, Ctrl-C becomes 130.

    A run that saved itself when the system asked it to end exits with preemption.REQUEUE (75). One of several processes
    ends with the others; where they do not come to an end, at once, for JAX would wait for them at the exit.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_without_traceback)
    if not NVIDIA_DRIVER.exists():
        logging.getLogger("jax._src.xla_bridge").addFilter(_not_of_a_plugin)
    sys.unraisablehook = _unraisable
    message = ""
    try:
        code = main(argv) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except preemption.Preempted as notice:
        # Saved and ending: a launcher that ends all tasks at the first one's end would turn 75 into 143.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code, message = preemption.REQUEUE, str(notice)
    except KeyboardInterrupt:
        code, message = interrupts.CODE, interrupts.LINE
    except BaseException as error:
        if distributed.several() and distributed.lost(error):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            distributed.exit_now(distributed.LOST, f"error: another process has ended ({reason}); {distributed.AGAIN}")
        if isinstance(error, DistillError):
            code, message = 2, f"error: {error}"
        elif isinstance(error, OSError) and error.errno in _FILES and error.filename:
            code, message = 2, f"error: {error.filename}: {error.strerror}; {_FILES[error.errno]} ({_place(error)})"
        elif distributed.several():
            distributed.exit_now(1, traceback.format_exc())
        else:
            raise
    if distributed.several():
        return distributed.exit_together(code, message)
    if message:
        print(message, file=sys.stderr)
    return code


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Orbax leaves coroutines behind where a saving fails, a traceback each; everything else is reported as usual."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Orbax's threads log a traceback of what the main thread also raises, where it becomes one line."""
    return not record.exc_info


def _not_of_a_plugin(record: logging.LogRecord) -> bool:
    """Drops JAX's traceback about its GPU plugin where there is no GPU: it was installed to compile (launch.dryrun)."""
    return "plugin configuration error" not in str(record.msg)


def _place(error: BaseException) -> str:
    """The last line of the project's own that an error came through, such as study.py:41."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(INSTALLED / "distill")]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def experiment_parser(
    command: str, about: str | None, examples: Sequence[str], cls: type = ExperimentConfig, default: str = DEFAULT
) -> flags.Parser:
    """The parser of a command whose subject is a config: --config=FILE[:PRESET] and a flag for each field."""
    parser = flags.Parser(command, about, examples=examples, fields=cls)
    config = parser.group(
        "the config", "any field is a flag: --config.optim.learning_rate=5e-3 (docs/guide/config.md lists them)"
    )
    config("--config", default=default, metavar="FILE[:PRESET]", help="a config file, and one of its presets")
    return parser


def add_processes(parser: flags.Parser) -> None:
    """The flags of a command that may run as several processes."""
    add = parser.group("several processes", "as launch/local.sh, slurm.sh, tpu_pod.sh and `distill gke` start them")
    add("--cluster", default="", choices=distributed.CLUSTERS, help="where to ask for the other processes")
    add("--coordinator", default="", metavar="HOST:PORT", help="where process 0 listens")
    add("--processes", default="", metavar="N", help="how many there are")
    add("--process", default="", metavar="I", help="which of them this one is, from 0")


def resolve(cls: type[T], argv: Sequence[str], default: str = DEFAULT) -> T:
    """The frozen config of a command line that has no other flags. Raises ConfigError."""
    return config_of(cls, experiment_parser("", "", (), cls, default).parse_args(argv))


def config_of(cls: type[T], given: argparse.Namespace) -> T:
    """The frozen config of parsed flags: the file's, with what the command line overrides. Raises ConfigError.

    --config.tokens=20N means 20 tokens a non-embedding parameter of the config's model.
    """
    tree, per_parameter = read(given.config), 0.0
    with tree.unlocked():
        for path, text in given.overrides:
            if path == "tokens":
                per_parameter = _per_parameter(text)
                if per_parameter:
                    continue
            value = parse(cls, path, text)
            *parents, last = path.split(".")
            node = tree
            for parent in parents:
                node = node[parent]
            node[last] = value
        if per_parameter:
            model = build(ModelConfig, tree.model.to_dict(), "config.model")
            tree.tokens = round(per_parameter * counts.non_embedding(model))
    return build(cls, tree.to_dict())


def _per_parameter(text: str) -> float:
    """20 of '20N'; 0 for a text of another form, which is the parser's to read."""
    try:
        return parse_number(text[:-1]) if text[-1:] == "N" else 0.0
    except ValueError:
        return 0.0


def _is_workdir(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.txt", "runs.csv", "metrics.jsonl"))


def read(source: str) -> ConfigDict:
    """The ConfigDict of `FILE[:ARG]`, looked up from the current folder, then beside the installed package."""
    file, _, argument = source.partition(":")
    try:
        path = next((p for p in (Path(file), INSTALLED / file) if p.is_file()), None)
        folder = Path(file).is_dir()
    except OSError:  # a name that is too long to be one
        path, folder = None, False
    if folder:
        inside = " `distill watch` and `distill report` read it as --workdir." if _is_workdir(Path(file)) else ""
        raise ConfigError(
            f"--config={source}: got a folder, wanted a Python file with get_config, such as configs/train.py or "
            f"configs/study.py:smoke.{inside}"
        )
    if path is None:
        shipped = [f"configs/{p.name}" for p in sorted((INSTALLED / "configs").glob("*.py")) if p.name[0] != "_"]
        raise ConfigError(f"--config={source}: there is no file {file!r:.200}.{nearest(file, shipped)}")
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"--config={source}: got {file!r}, which is not a Python file; wanted one with get_config, such as "
            "configs/train.py (a run's config.txt is a record: its lines are flags, --config.FIELD=VALUE)"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config: Any = module.get_config(argument)
    except DistillError:
        raise
    except Exception as error:  # the user's own file: say where it went wrong
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}:{line.lineno}"
        raise ConfigError(f"--config={source}: {type(error).__name__}: {error} ({where})") from None
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={source}: get_config returned {type(config).__name__}, wanted a ConfigDict")
    return config
