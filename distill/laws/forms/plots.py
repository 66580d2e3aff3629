"""Figures of fits, bootstraps and plans: the only laws module that loads `distill.report`, when `.plot()` is called."""

from types import ModuleType


def figures() -> ModuleType:
    """Imports distill.report.law.plots, from a room above this one: the import graph lists it as an exception."""
    from distill.report.law import plots

    return plots
