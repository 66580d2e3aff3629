"""Recipes as config files that `launch.train` runs."""

from pathlib import Path

from distill import config_file
from distill.laws.planner import Plan
from distill.laws.recipe import TEACHER_WORKDIR, Recipe


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
        config_file.write(folder / name, config, what=f"{what} of a plan.", command=command, advice=advice)
        model = config.model
        lines.append(f"{command}  # d_model {model.d_model}, {model.n_layers} layers, {config.tokens:,} tokens")
    return "\n".join(lines)
