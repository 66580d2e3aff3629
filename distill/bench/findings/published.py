"""SmolLM2-135M as the teacher of students of bytes, of 8,192 subwords and of its own tokens, in bits a byte."""

from distill import laws
from distill.bench.findings.cells import Cells, count, markdown

TABLE = "tokenizers-smollm2"
_TOKENS = {"bytes": "bytes", "bpe8192": "8,192 subwords", "own": "the teacher's own"}
_WORDS = {
    "text": "the text alone",
    "likelihood": "the text, and `likelihood` of chunks",
    "projection": "the text, and `projection`",
    "same": "the text, and the 64 likeliest tokens",
    "written": "what the teacher wrote",
}


def section() -> str:
    """Bits a byte of each student after 1, 2, 4 and 8 passes over its text, and the best of them."""
    table = laws.load_table(TABLE)
    cells = Cells.of(table, ("tokens", "objective", "passes"), "bits_per_byte")
    error = Cells.of(table, ("tokens", "objective", "passes"), "bits_se")
    passes = sorted({float(key[2]) for key in cells})
    header = ["student's tokens", "learns from", *(f"{count(each)} pass{'es' * (each > 1)}" for each in passes), "best"]
    rows = []
    for tokens, objective in dict.fromkeys(key[:2] for key in cells):
        keys = {each: key for each in passes if (key := (tokens, objective, each)) in cells}
        best = min(keys.values(), key=cells.mean)
        shown = [f"{cells.mean(keys[each]):.3f}" if each in keys else "" for each in passes]
        rows.append(
            [_TOKENS[str(tokens)], _WORDS[str(objective)], *shown, f"{cells.mean(best):.3f} ± {error.mean(best):.3f}"]
        )
    return markdown(header, rows)
