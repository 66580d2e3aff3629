"""What is wrong with a model that somebody else made: where, got, wanted, what to do."""

from distill.errors import DistillError


class InteropError(DistillError):
    """A model directory or file that cannot be read here, or a model that cannot be written there."""
