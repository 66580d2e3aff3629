"""Writes an experiment as a config file that `launch.train` runs."""

import textwrap
from pathlib import Path

from distill.config import ConfigError, ExperimentConfig, to_flat
from distill.system.files import atomic_write

_TEMPLATE = '''"""{what}

{advice}    {command}
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    config = base.get_config(arg)
    with config.unlocked():
{lines}
    return config
'''


def write(path: Path, config: ExperimentConfig, *, what: str, command: str, advice: str = "") -> None:
    """Writes every field that differs from its default, atomically. Raises ConfigError if the file is not writable."""
    default = to_flat(ExperimentConfig())
    changed = {key: value for key, value in to_flat(config).items() if value != default[key]}
    lines = "\n".join(f"        config.{key} = {value!r}" for key, value in changed.items())
    advice = "".join(f"{line}\n" for line in textwrap.wrap(advice, 110)) + ("\n" if advice else "")
    try:
        atomic_write(path, _TEMPLATE.format(what=what, advice=advice, command=command, lines=lines))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
