"""The interface of resampled laws that plans and figures need, whether just made or read from a law file."""

from typing import Protocol

from distill.laws.forms.law import Law


class ResampledLaws(Protocol):
    """A stack of laws, one per resample of the runs; `laws.Bootstrap` and the `boot` of a law file implement it."""

    @property
    def kept(self) -> Law:
        """One Law whose parameters are arrays [resamples]; its nested supervised law is a stack or a single law."""


def supervised_inside(law: Law) -> Law | None:
    """The supervised law nested in a law of students (Lsup of Eq. 8), or None."""
    return getattr(law, "supervised", None)
