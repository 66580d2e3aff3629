"""Figures of fits, bootstraps and plans: the one place where laws load `distill.report`, when `.plot()` is called."""

from types import ModuleType


def figures() -> ModuleType:
    """distill.report.law.plots. The rooms run the other way; the import graph lists this import as its exception."""
    from distill.report.law import plots

    return plots
