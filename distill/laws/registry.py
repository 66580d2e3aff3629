"""Laws by name, and laws at rest: the registry of forms and the reader of law files."""

import json
import math
import os
from typing import Any

from distill.config import nearest
from distill.laws import forms as forms  # registers the forms that ship
from distill.laws.law import FORMS, Law, LawError, read_json


def get(form: str | type[Law]) -> type[Law]:
    """The form of a name ("supervised"), or the class itself."""
    if isinstance(form, type) and issubclass(form, Law):
        return form
    if form in FORMS:
        return FORMS[str(form)]
    raise LawError(
        f"law form {form!r} is not known; wanted one of {', '.join(sorted(FORMS))}.{nearest(str(form), FORMS)} "
        "A form of your own must be imported before it is named."
    )


def from_dict(tree: Any, where: str = "law") -> Law:
    """The law that `Law.to_dict` described; everything unknown beside it is ignored. Raises LawError."""
    if not isinstance(tree, dict) or not isinstance(tree.get("form"), str):
        raise LawError(f"{where}: wanted an object with 'form' and 'parameters', got {_brief(tree)}.")
    cls = get(tree["form"])
    wanted = list(cls.parameters())
    got = tree.get("parameters")
    if not isinstance(got, dict) or set(got) != set(wanted):
        raise LawError(f"{where}: parameters of {cls.name} are {', '.join(wanted)}; got {_brief(got)}.")
    for name, value in got.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise LawError(f"{where}: parameter {name} is {value!r}, wanted a finite number.")
        if cls.parameters()[name].sign == "positive" and value <= 0:
            raise LawError(f"{where}: parameter {name} is {value!r}, wanted a positive number.")
    inside = {name: from_dict(tree.get(name), f"{where}: {name}") for name in cls.given()}
    return cls(**{name: float(got[name]) for name in wanted}, **inside)


def load(path: str | os.PathLike) -> Law:
    """Reads a law from a JSON file written by `Law.save` or a fit. Raises LawError for anything else."""
    return from_dict(read_json(path), str(path))


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
