"""Every field of an experiment at its default: what the other configs build on.

A config file is a Python file with `get_config(arg)`, called with what stands behind the colon of
`--config=FILE:arg`. It returns a locked ConfigDict, which flags override: `--config.optim.learning_rate=5e-3`.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from distill.config import ExperimentConfig


def tree(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass as nested dicts."""
    return {
        field.name: tree(value) if dataclasses.is_dataclass(value := getattr(config, field.name)) else value
        for field in dataclasses.fields(config)
    }


def get_config(arg: str = "", config: Any = None) -> ConfigDict:
    """The defaults of ExperimentConfig, or those of `config`; it takes no argument."""
    del arg
    return ConfigDict(tree(config or ExperimentConfig())).lock()
