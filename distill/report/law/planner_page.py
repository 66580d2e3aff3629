"""A self-contained interactive page of a law: `python -m launch.plan --page=planner.html`.

The browser computes what `distill.laws.planning.planner` computes, with the same arithmetic; the law, its region and
F(N) are inserted into the template as JSON, and a Content-Security-Policy forbids any request.
"""

import dataclasses
import html
import re
from importlib import resources
from pathlib import Path

import numpy as np

from distill.config.chips import CHIPS, Chip
from distill.laws.forms.law import Law, LawError
from distill.laws.forms.resampled import supervised_inside
from distill.laws.forms.students import paper
from distill.laws.planning.allocation import Bounds
from distill.laws.planning.intervals import bootstrap_caveats
from distill.laws.planning.lawfile import LawFile, StoredLaws
from distill.laws.planning.scenarios import Flops, PlanError, Prices
from distill.laws.uncertainty.calibration import CalibratedLaws
from distill.report import page as html_page
from distill.report.charts import web
from distill.system.files import atomic_write

_DRAWS = 512  # resampled laws in the page: as many as a plan uses
# The warning of a plan whose supervised law was not resampled, for a law file that a reader drops on the page.
_CAVEAT = bootstrap_caveats(StoredLaws(kept=paper()[1]))[0]
_UNCALIBRATED = (
    "this law file is calibrated for runs beyond its own; the intervals and the probability of this page are those of "
    "its resampled laws alone, and narrower than those of `distill plan`"
)
_KINDS = ("blue", "orange", "green", "purple", "ink", "soft")
FORMS = {
    "supervised": ("supervised", "chinchilla"),
    "distillation": ("distillation", "distillation-limit", "overtaking"),
}


def page(law: LawFile) -> str:
    """The page of a law, HTML. Raises LawError for a form that the page does not support."""
    for role, forms in FORMS.items():
        got = getattr(law, role).name
        if got not in forms:
            raise LawError(f"{law.name}: the page knows {role} laws of the forms {', '.join(forms)}; got {got}.")
    prices = Prices()
    scripts = (*web.scripts(), _file("planner.js"))
    parts = {
        "LAW": html_page.encode(data(law)),
        "POLICY": html_page.policy(scripts),
        "STYLE": html_page.page_style() + web.style(),
        "COLOURS": _colours(),
        "MFU": f"{100 * prices.mfu:g}",
        "ACCELERATORS": f"{prices.accelerators}",
        "BY_COMPUTE": web.empty_figure(
            "by_compute", "Loss against compute for each scenario and for supervised training."
        ),
        "DIFFERENCE": web.empty_figure("difference", "Loss of distilling minus that of pretraining against compute."),
        "BY_TEACHER": web.empty_figure("by_teacher", "Student loss against teacher loss at the plan's student tokens."),
        "COLOPHON": web.colophon(),
        "SCRIPTS": "".join(f"<script>{script}</script>" for script in scripts),
    }
    return re.sub("__([A-Z_]+)__", lambda name: parts[name.group(1)], _file("planner.html"))


def _file(name: str) -> str:
    return resources.files("distill.report.law").joinpath(name).read_text("utf-8")


def _colours() -> str:
    """Classes of the theme's colours."""
    pairs = {name: web.colours(name) for name in _KINDS}
    light, dark = (
        "".join(f".part-{name} {{ background: {pair[i]}; }} " for name, pair in pairs.items()) for i in (0, 1)
    )
    return f"{light}@media (prefers-color-scheme: dark) {{ {dark}}}"


def write(law: LawFile, path: Path) -> None:
    """Writes the page, atomically. Raises LawError, or PlanError if the file cannot be written."""
    text = page(law)
    try:
        atomic_write(path, text)
    except OSError as error:
        raise PlanError(f"{path}: cannot be written ({error.strerror})") from error


def frame(law: LawFile, height: int = 1150) -> str:
    """The page inside an iframe, for a notebook."""
    return f'<iframe srcdoc="{html.escape(page(law))}" width="100%" height="{height}" style="border:0"></iframe>'


def data(law: LawFile) -> dict[str, object]:
    """The page's data: laws, F(N), bounds of the search, ranges of the sliders and charts (decimal logarithms)."""
    region = law.region
    sizes, teachers, losses, compute = (1e8, 1e11), (1e8, 1e11), (1.6, 2.8), (1e19, 1e25)
    if region is not None and law.name != "paper":
        sizes, teachers = (region.N_S[0] / 2, region.N_S[1] * 10), (region.teachers[0] / 2, region.teachers[1] * 10)
        losses = (region.L_T[0] * 0.9, region.L_T[1] * 1.05)
        least, most = (3 * float(law.flops(N)) * D for N, D in zip(region.N_S, region.D_S))
        compute = (least, 100 * most)
    log = np.log10
    span = [float(log(compute[0])), float(log(compute[1]))]
    return {
        "name": Path(law.name).name,
        "supervised": law.supervised.to_dict(),
        "distillation": law.distillation.to_dict(),
        "draws": _draws(law),
        "caveats": [*bootstrap_caveats(law.boot), *([_UNCALIBRATED] if _calibrated(law) else [])],
        "uncalibrated": _UNCALIBRATED,
        "caveat": _CAVEAT,
        "paper_flops": [float(part) for part in dataclasses.astuple(Flops.closed())],
        "colours": {name: web.colours(name) for name in _KINDS},
        "chip": Prices().chip or "h100",
        "chips": {chip.name: _chip(chip) for chip in CHIPS.values()},
        "flops": [float(law.flops.context), float(law.flops.vocabulary)],
        "bounds": vars(Bounds(low=min(1e6, sizes[0] / 1e3))),
        "region": {name: list(getattr(region, name)) for name in ("N_S", "D_S", "L_T", "N_T", "D_T")}
        if region
        else None,
        "ranges": {"compute": span, "L_T": list(losses)},
        "sliders": {
            "N_S": [*_middle(log(sizes))],
            "compute": [*_middle(np.array(span))],
            "N_T": [*_middle(log(teachers))],
            "L_T": [losses[0], losses[1], round((losses[0] + losses[1]) / 2, 2)],
        },
    }


def _calibrated(law: LawFile) -> bool:
    boot = law.boot
    return isinstance(boot, CalibratedLaws) and bool(boot.calibration or boot.below or boot.others)


def _chip(chip: Chip) -> list[object]:
    """[peak FLOP/s, price of an hour or None, currency, where the price is from]."""
    price = chip.price
    source = f"list price of {price.date}: {price.source}" if price else ""
    return [chip.flops, price.hourly if price else None, price.currency if price else "USD", source]


def _draws(law: LawFile) -> dict[str, dict[str, list[float]]] | None:
    """The first resampled laws by parameter, to ten digits; a law that was not resampled is repeated."""
    if law.boot is None:
        return None
    count = max(np.size(values) for values in law.boot.kept.values().values())

    def columns(stack: Law) -> dict[str, list[float]]:
        values = {name: np.broadcast_to(value, count)[:_DRAWS] for name, value in stack.values().items()}
        return {name: [float(f"{x:.10g}") for x in column] for name, column in values.items()}

    inside = supervised_inside(law.boot.kept)
    assert inside is not None  # page() refuses other laws
    return {"distillation": columns(law.boot.kept), "supervised": columns(inside)}


def _middle(span: np.ndarray) -> list[float]:
    """[minimum, maximum, start] of a slider, which starts at a third of its range."""
    low, high = (round(float(x), 2) for x in span)
    return [low, high, round(low + (high - low) / 3, 2)]
