"""ASCII replacements for characters that a terminal or pipe without UTF-8 cannot encode."""

import codecs
import sys

_ERRORS = "distill.plain"
# Curves, boxes and signs; every other character that cannot be encoded becomes a question mark.
_PLAIN = dict(zip("▁▂▃▄▅▆▇█", "_.-=+*%#")) | {
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{PLUS-MINUS SIGN}": "+-",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{HORIZONTAL ELLIPSIS}": "...", "\N{LESS-THAN OR EQUAL TO}": "<=", "\N{GREATER-THAN OR EQUAL TO}": ">=",
    "\N{MULTIPLICATION SIGN}": "x", "\N{ALMOST EQUAL TO}": "~", "\N{BULLET}": "*",
    **dict.fromkeys("─━╌╍┄┅═╴╶╸╺", "-"), **dict.fromkeys("│┃╎╏┆┇║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰╞╡╪┏┓┗┛┡┩╇╈┢┪┳┻╋╒╕╘╛", "+"),
    **dict(zip("ταβλρωκδ", ("tau", "alpha", "beta", "lambda", "rho", "omega", "kappa", "delta"))),
}  # fmt: skip


def install() -> None:
    """Makes stdout and stderr replace what they cannot encode, where Python would raise UnicodeEncodeError."""
    codecs.register_error(_ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # One character for one wherever a table's alignment depends on it; only letters have longer replacements.
    text = "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end])
    return text.encode(error.encoding, "replace").decode(error.encoding), error.end
