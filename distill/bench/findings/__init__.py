"""The findings: every number of docs/results/findings.md, from the tables that ship.

python -m launch.bench findings                    # prints all sections
python -m launch.bench findings --part=signals     # one of them
python -m launch.bench findings --page=docs/results/findings.md --figures=docs/figures   # writes them into the page
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.config import ConfigError, nearest
from distill.config.flags import Parser
from distill.report.charts import picture
from distill.system.files import atomic_write

_HELPERS = ("cells",)


def parts() -> list[str]:
    """The findings by name: one module each, with a function `section`."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _HELPERS]


def section(part: str) -> str:
    """The tables of one finding, in Markdown."""
    make: Callable[[], str] = importlib.import_module(f"{__name__}.{part}").section
    return make()


def draw(part: str, folder: Path) -> None:
    """Writes the figures of a finding, if it has any, as FOLDER/NAME.png."""
    module = importlib.import_module(f"{__name__}.{part}")
    for chart in module.charts() if hasattr(module, "charts") else ():
        atomic_write(folder / f"{chart.name}.png", picture.image(chart))


def replaced(text: str, part: str, content: str) -> str:
    """The page with the tables of a finding put between its marks. Raises ConfigError where it has none."""
    begin, end = f"<!-- finding: {part} -->", f"<!-- end of {part} -->"
    head, opened, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (opened and closed):
        raise ConfigError(f"the page has no section between {begin} and {end}; wanted docs/results/findings.md")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the sections that were asked for, or writes them into a page."""
    parser = Parser("bench findings", __doc__)
    parser.add_argument("--part", default="", help=f"{', '.join(parts())}; all by default")
    parser.add_argument("--page", default="", help="the document whose sections are written anew")
    parser.add_argument("--figures", default="", help="a folder for the figures")
    flags = parser.parse_args(argv)
    if flags.part and flags.part not in parts():
        raise ConfigError(f"--part={flags.part}; wanted one of {', '.join(parts())}.{nearest(flags.part, parts())}")
    for part in [flags.part] if flags.part else parts():
        if flags.figures:
            draw(part, Path(flags.figures))
        content = section(part)
        if flags.page:
            page = Path(flags.page)
            atomic_write(page, replaced(page.read_text(encoding="utf-8"), part, content))
        else:
            print(f"## {part}\n\n{content}\n", flush=True)
    return 0
