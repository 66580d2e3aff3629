"""The errors that a user can fix; everything that raises one on purpose raises a subclass of DistillError."""


class DistillError(Exception):
    """A mistake that the user can fix; entry points print it as one line and exit with code 2."""


class ConfigError(DistillError):
    """A configuration that cannot be built: where, got, wanted, what to do."""


class DataError(DistillError):
    """Data that cannot be read, built or used as asked: where, got, wanted, what to do."""


class SignalError(DistillError):
    """A store of teacher signals that is damaged, missing, or made for something else: which file, what was wanted."""


class InteropError(DistillError):
    """A published model that cannot be read here, or a model that cannot be written for others."""


class ReportError(DistillError):
    """A report, page or figure that cannot be made: what is missing or damaged, and what makes it."""
