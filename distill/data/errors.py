"""The one error of the data room."""

from distill.errors import DistillError


class DataError(DistillError):
    """Data that cannot be read, built or used as asked: where, got, wanted, what to do."""
