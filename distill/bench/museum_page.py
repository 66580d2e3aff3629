"""The museum's page: a section of docs/results/laws.md, from the committed results alone."""

from collections.abc import Sequence
from pathlib import Path

from distill.bench import extrapolation
from distill.config import ConfigError
from distill.system.files import atomic_write

BEGIN = "<!-- museum: python -m launch.bench tables --part=page -->"
END = "<!-- end of the museum -->"

Entry = dict[str, object]


def section(entries: Sequence[Entry], forecasts: Sequence[dict] = ()) -> str:
    """The tables of the section, in markdown: every form on every table, which wins, and the bias of Approach 2.

    `forecasts` are the entries of the campaign of held-out budgets (extrapolation.py): coverage by form.
    """
    names = list(dict.fromkeys(str(entry["table"]) for entry in entries))
    lines = [
        "| table | rows | form | parameters | in the sample | rolled forward | held out by its authors "
        "| 90% intervals hold (width) | status |",
        "|" + "---|" * 9,
    ]
    for name in names:
        mine = [entry for entry in entries if entry["table"] == name]
        best = min((_number(e, "rolled") for e in mine if "rolled" in e), default=float("nan"))
        for at, entry in enumerate(mine):
            first = (name, str(entry["rows"])) if at == 0 else ("", "")
            error = _percent(entry, "rolled")
            if len(mine) > 1 and "rolled" in entry and _number(entry, "rolled") == best:
                error = f"**{error}**"
            held = f"{_number(entry, 'held'):.2%} of {entry['held_rows']}" if "held" in entry else ""
            counted = extrapolation.coverage(forecasts, name, str(entry["form"]))
            inside = f"{counted[0]:.0%} ({counted[1]:.2f})" if counted else ""
            cells = (*first, f"`{entry['form']}`", str(entry["parameters"]), _percent(entry, "in_sample"), error)
            lines.append(f"| {' | '.join((*cells, held, inside, _status(entry)))} |")
    return "\n".join([*lines, "", _wins(entries, names), "", *_bias(entries)])


def _status(entry: Entry) -> str:
    """The status of the coefficients, and whether the form describes the runs."""
    return str(entry["coefficients"]) + (", lack of fit" if entry["predictions"] == "lack of fit" else "")


def _wins(entries: Sequence[Entry], names: Sequence[str]) -> str:
    """How often each form has the lowest rolled error, among tables where at least two forms were rolled."""
    wins: dict[str, list[str]] = {}
    for name in names:
        mine = [e for e in entries if e["table"] == name and "rolled" in e]
        if len(mine) > 1:
            wins.setdefault(str(min(mine, key=lambda e: _number(e, "rolled"))["form"]), []).append(name)
    ranked = sorted(wins.items(), key=lambda item: -len(item[1]))
    return "Lowest rolled error: " + "; ".join(f"`{form}` on {', '.join(tables)}" for form, tables in ranked) + "."


def _bias(entries: Sequence[Entry]) -> list[str]:
    """A table of Approach 2's bias."""
    lines = ["| table | exponent a of Approach 2, less the law's | N* at 100 x the largest budget, over the law's |"]
    lines.append("|---|---|---|")
    for entry in entries:
        if "approach_2_exponent" in entry:
            shift, ratio = _number(entry, "approach_2_exponent"), _number(entry, "approach_2_size")
            lines.append(f"| {entry['table']} | {shift:+.3f} | {ratio:.2f} |")
    return lines


def _number(entry: Entry, key: str) -> float:
    value = entry[key]
    assert isinstance(value, int | float)
    return float(value)


def _percent(entry: Entry, key: str) -> str:
    return f"{_number(entry, key):.2%}" if key in entry else "too few rows"


def write(entries: Sequence[Entry], page: Path, forecasts: Sequence[dict] = ()) -> None:
    """Puts the section between its two comments. Raises ConfigError if the page has none."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{page}: no section between {BEGIN} and {END}; wanted docs/results/laws.md")
    atomic_write(page, f"{head}{BEGIN}\n{section(entries, forecasts)}\n{END}{tail}")
