"""The registry of forms by name, and the reader of laws in JSON."""

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

from distill.config import DistillError, nearest
from distill.laws.forms import forms, lambdas, published, repetition, scores, students
from distill.laws.forms.law import FORMS, Law, LawError, read_json

SHIPPED = (forms, students, repetition, lambdas, published, scores)  # modules; importing one registers its forms


def get(form: str | type[Law]) -> type[Law]:
    """The form of a name ("supervised"); a class is returned unchanged."""
    if isinstance(form, type) and issubclass(form, Law):
        return form
    if form in FORMS:
        return FORMS[str(form)]
    raise LawError(
        f"law form {form!r} is not known; wanted one of {', '.join(sorted(FORMS))}.{nearest(str(form), FORMS)} "
        "A form of your own must be imported first (--forms=FILE.py)."
    )


def import_forms(path: str | os.PathLike) -> list[str]:
    """Runs a user's Python file that defines forms as dataclasses, and returns their names. Raises LawError."""
    file = Path(path)
    spec = importlib.util.spec_from_file_location(f"forms_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise LawError(f"{path}: wanted a Python file (.py) with forms, subclasses of laws.Law.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up annotations there
    try:
        spec.loader.exec_module(module)
    except DistillError:
        raise
    except Exception as error:  # the user's file: report where it failed
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = f"line {where[-1].lineno}" if where else "unreadable"
        raise LawError(f"{path}: {type(error).__name__}: {error} ({line}).") from None
    names = sorted(name for name, form in FORMS.items() if vars(module).get(form.__name__) is form)
    if not names:
        raise LawError(f"{path}: defines no form; wanted a dataclass that subclasses laws.Law (docs/guide/laws.md).")
    return names


def from_dict(tree: object, where: str = "law") -> Law:
    """The law that `Law.to_dict` described; unknown keys are ignored. Raises LawError."""
    if not isinstance(tree, dict) or not isinstance(tree.get("form"), str):
        raise LawError(f"{where}: wanted an object with 'form' and 'parameters', got {_brief(tree)}.")
    try:
        cls = get(tree["form"])
    except LawError as error:
        raise LawError(f"{where}: {error}") from None
    wanted = list(cls.parameters())
    got = tree.get("parameters")
    if not isinstance(got, dict) or set(got) != set(wanted):
        raise LawError(f"{where}: parameters of {cls.name} are {', '.join(wanted)}; got {_brief(got)}.")
    for name, value in got.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise LawError(f"{where}: parameter {name} is {value!r}, wanted a finite number.")
        if cls.parameters()[name].sign == "positive" and value <= 0:
            raise LawError(f"{where}: parameter {name} is {value!r}, wanted a positive number.")
    inside = {name: from_dict(tree.get(name), f"{where}: {name}") for name in cls.given()}
    return cls(**{name: float(got[name]) for name in wanted}, **inside)


def load(path: str | os.PathLike) -> Law:
    """Reads a law from a JSON file written by `Law.save` or a fit. Raises LawError for anything else."""
    return from_dict(read_json(path), str(path))


def _brief(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
