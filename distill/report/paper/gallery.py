"""Every figure by its number in the paper, and the page that shows them with a sentence each."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from distill.config import nearest
from distill.laws.planning.scenarios import PlanError
from distill.report.paper import kernel, mapping, optima, protocols, style, surfaces, tables
from distill.report.paper.scene import Scene
from distill.report.theme import LIGHT
from distill.system.progress import counter

FIGURES: dict[str, Callable[[Scene], Figure]] = {
    "1": protocols.figure_1,
    "2": protocols.figure_2,
    "3": protocols.figure_3,
    "4": protocols.figure_4,
    "5": protocols.figure_5,
    "6": surfaces.figure_6,
    "7": surfaces.figure_7,
    "8": optima.figure_8,
    "9": optima.figure_9,
    "10": kernel.figure_10,
    "13": surfaces.figure_13,
    "14": surfaces.figure_14,
    "15": surfaces.figure_15,
    "16": surfaces.figure_16,
    "17": optima.figure_17,
    "18": optima.figure_18,
    "19": optima.contour_of("best_case"),
    "20": optima.lines_of("best_case"),
    "21": optima.contour_of("teacher_inference"),
    "22": optima.lines_of("teacher_inference"),
    "23": optima.allocation_of("teacher_inference"),
    "24": optima.contour_of("teacher_pretraining"),
    "25": optima.lines_of("teacher_pretraining"),
    "26": optima.allocation_of("teacher_pretraining"),
    "27": optima.contour_of("pretraining_and_inference"),
    "28": optima.lines_of("pretraining_and_inference"),
    "29": optima.allocation_of("pretraining_and_inference"),
    "30": optima.figure_30,
    "31": optima.figure_31,
    "32": optima.figure_32,
    "33": optima.figure_33,
    "34": optima.figure_34,
    "36": protocols.figure_36,
    "37": protocols.figure_37,
    "38": protocols.figure_38,
    "39": protocols.figure_39,
    "40": surfaces.figure_40,
    "41": protocols.figure_41,
}
MAPPING = {"11": mapping.figure_11, "12": mapping.figure_12}  # take minutes, so they are drawn only on request
_APPLE_ONLY, _APPLE_N = ("1",), 1e9  # points of the paper's own runs: drawn for laws that reach their scale


def choose(only: Iterable[str]) -> list[str]:
    """The requested figure numbers. Raises PlanError that names the nearest valid one."""
    known = [*FIGURES, *MAPPING]
    for number in only:
        if number not in known:
            raise PlanError(f"figure {number!r}: wanted one of {', '.join(known)}.{nearest(number, known)}")
    return list(only)


def draw(scene: Scene, out: Path, only: Iterable[str] = (), with_mapping: bool = False) -> dict[str, str]:
    """Writes PNG files, tables and gallery.md under `out`; returns {figure: its sentence}."""
    wanted = choose(only) or [*FIGURES, *(MAPPING if with_mapping else ())]
    if scene.N[1] < _APPLE_N:
        wanted = [number for number in wanted if number not in _APPLE_ONLY]
    results = _mapping_results(out) if set(wanted) & set(MAPPING) else {}
    sentences = {}
    with counter("figures", len(wanted)) as advance, LIGHT.applied(style.SMALL_TEXT):
        for number in wanted:
            make: Any = MAPPING.get(number) or FIGURES[number]
            style.save(make(results if number in MAPPING else scene), out / f"figure_{int(number):02d}.png")
            sentences[number] = (make.__doc__ or "").split("\n")[0]
            advance(1)
    if not only:
        for number, table in tables.TABLES.items():
            rows = table(scene)
            style.write_text(out / f"table_{int(number):02d}.csv", tables.to_csv(rows))
            style.write_text(out / f"table_{int(number):02d}.md", tables.to_markdown(rows))
        style.write_text(out / "gallery.md", page(sentences, scene.law.name))
    return sentences


def _mapping_results(out: Path) -> mapping.Results:
    """The results of the MLP experiment, computed once and saved beside the figures."""
    path = out / "mapping.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    config = mapping.Mapping()
    with counter("mapping problem: students", len(config.widths) + len(config.long_steps)) as advance:
        results = mapping.run(config, lambda line: advance(1))
    style.write_text(path, json.dumps(results))
    return results


def page(sentences: dict[str, str], name: str) -> str:
    """A Markdown page of all figures and tables of one law."""
    lines = [f"# Figures of the law `{name}`", ""]
    for number, sentence in sorted(sentences.items(), key=lambda item: int(item[0])):
        lines += [f"## Figure {number}", "", sentence, "", f"![Figure {number}](figure_{int(number):02d}.png)", ""]
    lines += ["## Tables", ""]
    for number, table in tables.TABLES.items():
        stem = f"table_{int(number):02d}"
        lines.append(
            f"- Table {number}: {(table.__doc__ or '').split(chr(10))[0]} [Markdown]({stem}.md), [CSV]({stem}.csv)"
        )
    return "\n".join(lines) + "\n"
