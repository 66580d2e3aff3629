"""What a plan and a figure need of resampled laws, whether they were just made or read from a law file."""

from typing import Protocol

from distill.laws.forms.law import Law


class ResampledLaws(Protocol):
    """A stack of laws, one for each resample of the runs; `laws.Bootstrap` and the `boot` of a law file are such."""

    @property
    def kept(self) -> Law:
        """One Law whose parameters are arrays [resamples]; the supervised law inside it is a stack or a single law."""


def supervised_inside(law: Law) -> Law | None:
    """The supervised law inside a law of students (Lsup of Eq. 8), or None."""
    return getattr(law, "supervised", None)
