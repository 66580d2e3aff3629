"""A teacher of other tokens: students of bytes, of 512 subwords and of their teacher's 2,048, in bits a byte."""

from distill import laws
from distill.bench.findings.cells import Cells, count, difference, markdown, spread

TABLE = "tokenizers"
_WORDS = {
    "text": "the text alone",
    "likelihood": "`likelihood` of chunks",
    "projection": "`projection`",
    "same": "the ordinary loss (equal tokens)",
}


def section() -> str:
    """Bits a byte of each student, and what its teacher changed, seed by seed."""
    table = laws.load_table(TABLE).where("kind != teacher")
    cells = Cells.of(table, ("tokens", "objective"), "bits_per_byte")
    read = Cells.of(table, ("tokens", "objective"), "D")
    header = ["student's tokens", "D", "learns from", "bits a byte", "seed by seed", "against the text alone"]
    rows, pairs = [], []
    for key in cells:
        tokens, objective = key
        alone = cells[tokens, "text"]
        each = ", ".join(f"{value:.4f}" for _, value in sorted(cells[key].items()))
        change = ""
        if objective != "text":
            pairs.append((cells[key], alone))
            change = f"{difference(cells[key], alone):+.4f}"
        shown = [str(tokens), count(read.mean(key)), _WORDS[str(objective)], f"{cells.mean(key):.4f}", each, change]
        rows.append(shown)
    rows.append(["", "", "", "", "standard error", f"{spread(pairs):.4f}"])
    return markdown(header, rows)
