"""The errors that a user can mend; everything that raises one on purpose raises a subclass of DistillError."""


class DistillError(Exception):
    """A mistake that the user can mend; entry points print it as one line and exit with code 2."""


class ConfigError(DistillError):
    """A configuration that cannot be built: where, got, wanted, what to do."""
