"""Recipes as config files that `launch.train` runs."""

import os
import tempfile
import textwrap
from pathlib import Path

from distill.config import ExperimentConfig, to_flat
from distill.laws.planner import Plan
from distill.laws.recipe import TEACHER_WORKDIR, Recipe
from distill.laws.scenarios import PlanError

_TEMPLATE = '''"""{what} of a plan.

{advice}

    {command}
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    config = base.get_config(arg)
    with config.unlocked():
{lines}
    return config
'''


def write(recipe: Recipe, plan: Plan, folder: Path) -> str:
    """Writes student.py and, where one is trained, teacher.py (or pretrain.py alone); returns what to tell the user."""
    advice = plan.sentence()
    if recipe.teacher is None and recipe.student.teacher.run == "" and not plan.teacher:
        files = {"pretrain.py": (recipe.student, "Supervised training")}
    else:
        files = {"student.py": (recipe.student, "The student")}
        if recipe.teacher is not None:
            files = {"teacher.py": (recipe.teacher, "The teacher"), **files}
    lines = [f"snapped: loss {recipe.L_S:.4f}, {recipe.paid:+.4f} against the plan; {recipe.bill.total:.4g} FLOPs"]
    for name, (config, what) in files.items():
        workdir = TEACHER_WORKDIR if name == "teacher.py" else f"runs/{Path(name).stem}"
        command = f"python -m launch.train --config={folder / name} --workdir={workdir}"
        _replace(folder / name, _text(config, what, advice, command))
        model = config.model
        lines.append(f"{command}  # d_model {model.d_model}, {model.n_layers} layers, {config.tokens:,} tokens")
    return "\n".join(lines)


def _text(config: ExperimentConfig, what: str, advice: str, command: str) -> str:
    """A config file that sets every field which differs from its default."""
    default = to_flat(ExperimentConfig())
    changed = {key: value for key, value in to_flat(config).items() if value != default[key]}
    lines = "\n".join(f"        config.{key} = {value!r}" for key, value in changed.items())
    advice = "\n".join(textwrap.wrap(advice, 110))
    return _TEMPLATE.format(what=what, advice=advice, command=command, lines=lines)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise PlanError(f"{path}: cannot be written ({error.strerror})") from error
