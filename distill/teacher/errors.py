"""What is wrong with stored signals."""

from distill.errors import DistillError


class SignalError(DistillError):
    """A store of signals that is damaged, missing, or not of what asks for it: which file, what was wanted."""
