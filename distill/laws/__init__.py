"""Scaling laws: from a table of runs to a law with uncertainty, and from the law to a plan.

Read the modules in this order; each imports only from those before it (`ORDER`, enforced by a test):
parameters (declarations), law (the base class), forms (the laws themselves), registry (laws by name and in files);
then the fit: objective, newton and solver (many small fits at once), table (runs in), progress, identify (what rows
fix), starts, fitting, uncertainty (bootstraps), profiles, joint (both laws at once), choice (which form), extrapolate,
approaches (Chinchilla's three), designs (which runs next), summary and figures (a fit on a page);
then the planner: minimise (grid and Newton), scenarios (who pays), allocation (the best split of a budget), crossover
(where supervised training catches up), problem (one student's plans), confidence and region
(how sure, and where a law extrapolates), planner (the advice),
lawfile (a law with its uncertainty, from disk), advice (as text), recipe and emit (as configs), paper_figures.

    >>> from distill import laws
    >>> supervised, distillation = laws.paper()
    >>> round(float(supervised(N=1e9, D=2e10)), 4), round(float(distillation(N_S=1e9, D_S=2e10, L_T=2.0)), 4)
    (2.3747, 2.2768)

Names load on first use, so `import distill.laws` costs jax, numpy and nothing more.
"""

import importlib
from typing import Any

ORDER = (
    "parameters",
    "law",
    "forms",
    "registry",
    "objective",
    "newton",
    "solver",
    "table",
    "progress",
    "identify",
    "starts",
    "fitting",
    "uncertainty",
    "profiles",
    "joint",
    "choice",
    "extrapolate",
    "approaches",
    "designs",
    "summary",
    "figures",
    "minimise",
    "scenarios",
    "allocation",
    "crossover",
    "problem",
    "confidence",
    "region",
    "planner",
    "lawfile",
    "advice",
    "recipe",
    "emit",
    "paper_figures",
)

_WHERE = {
    "parameters": ("bounded", "coefficient", "floor", "linked", "positive", "real"),
    "law": ("Law", "LawError"),
    "forms": (
        "Additive",
        "Chinchilla",
        "DataConstrained",
        "Distillation",
        "DistillationLimit",
        "Kaplan",
        "Overtaking",
        "PowerLaw",
        "Supervised",
        "paper",
    ),
    "registry": ("from_dict", "get", "load"),
    "objective": ("Objective",),
    "table": ("Table", "from_arrays", "load_table", "shipped"),
    "fitting": ("Fit", "Status", "fit"),
    "uncertainty": ("Bootstrap", "Prediction", "bootstrap"),
    "profiles": ("Profile", "profile"),
    "joint": ("JointFit", "fit_jointly"),
    "choice": ("Compared", "Nested", "compare", "nested"),
    "extrapolate": ("Holdout", "holdout", "roll_forward"),
    "designs": ("Design", "design"),
    "scenarios": ("SCENARIOS", "Flops", "PlanError", "Prices", "Scenario", "Teacher", "petaflops_days"),
    "allocation": ("Bounds", "allocate", "cheapest_teacher", "supervised_optimum"),
    "crossover": ("crossover_compute", "crossover_tokens"),
    "region": ("PAPER_REGION", "Region"),
    "planner": ("Plan", "plan"),
    "lawfile": ("LawFile", "read"),
    "advice": ("describe",),
    "recipe": ("Ladder", "Recipe", "ladder"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"distill.laws.{_HOME[name]}"), name)
    if name in ORDER:
        return importlib.import_module(f"distill.laws.{name}")
    raise AttributeError(f"module 'distill.laws' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
