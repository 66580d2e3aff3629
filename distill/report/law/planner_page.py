"""A self-contained interactive page of a law: `python -m launch.plan --page=planner.html`.

The browser computes what `distill.laws.planning` computes, with the same arithmetic: planner_laws.js the laws,
planner_search.js the search, planner_doubt.js intervals and warnings; planner.js is the page itself. The laws, their
resamples, what rolling forward has shown of them, the region and F(N) are inserted into the template as JSON, and a
Content-Security-Policy forbids any request.
"""

import dataclasses
import html
import re
from importlib import resources
from pathlib import Path

import numpy as np

from distill.config.chips import CHIPS, Chip
from distill.laws.fitting.fit import NOT_ASSESSED
from distill.laws.forms.law import Law, LawError
from distill.laws.forms.resampled import supervised_inside
from distill.laws.forms.students import paper
from distill.laws.planning import lawfile
from distill.laws.planning.intervals import FAILED, KNOWN, bootstrap_caveats, failure, predictions, trust
from distill.laws.planning.lawfile import LawFile
from distill.laws.planning.region import ANY
from distill.laws.planning.scenarios import Flops, PlanError, Prices
from distill.laws.uncertainty.bootstrap import MOST_FAILED
from distill.laws.uncertainty.calibration import normals
from distill.report import page as html_page
from distill.report.charts import web
from distill.system.files import atomic_write

_DRAWS = 512  # resampled laws in the page: as many as a plan uses
_NORMALS = 640  # of a run's noise: the resamples that a plan averages, rounded up by form
_SCRIPTS = ("planner_laws.js", "planner_search.js", "planner_doubt.js", "planner.js")
_KINDS = ("blue", "orange", "green", "purple", "ink", "soft")
FORMS = {
    "supervised": ("supervised", "chinchilla", "kaplan", "farseer", "data-constrained", "additive-penalty"),
    "distillation": ("distillation", "distillation-limit", "overtaking", "distillation-unique"),
}


def page(law: LawFile) -> str:
    """The page of a law, HTML. Raises LawError for a form that the page does not support."""
    trusted = trust(law.boot)
    laws = {"supervised": [law.supervised], "distillation": [law.distillation]}
    laws["distillation"] += [one.estimate for one in trusted.others] if trusted else []
    for role, forms in FORMS.items():
        for got in (one.name for one in laws[role] if one.name not in forms):
            raise LawError(f"{law.name}: the page knows {role} laws of the forms {', '.join(forms)}; got {got}.")
    prices = Prices()
    scripts = (*web.scripts(), *map(_file, _SCRIPTS))
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
    """The page's data: laws, F(N), ranges of the sliders and charts (decimal logarithms)."""
    return {
        "name": Path(law.name).name,
        "supervised": law.supervised.to_dict(),
        "distillation": law.distillation.to_dict(),
        **_doubt(law),
        **_given(),
        "colours": {name: web.colours(name) for name in _KINDS},
        "chip": Prices().chip or "h100",
        "chips": {chip.name: _chip(chip) for chip in CHIPS.values()},
        "flops": [float(law.flops.context), float(law.flops.vocabulary)],
        **_ranges(law),
    }


def _ranges(law: LawFile) -> dict[str, object]:
    """Where the runs are, and what the sliders and the charts span."""
    region = law.region
    sizes, teachers, losses, compute = (1e8, 1e11), (1e8, 1e11), (1.6, 2.8), (1e19, 1e25)
    if region is not None and law.name != "paper":
        sizes, teachers = (region.N_S[0] / 2, region.N_S[1] * 10), (region.teachers[0] / 2, region.teachers[1] * 10)
        ends = _losses(law.supervised, region.N_S, region.D_S) if region.L_T == ANY else region.L_T
        losses = (ends[0] * 0.9, ends[1] * 1.05)
        least, most = (3 * float(law.flops(N)) * D for N, D in zip(region.N_S, region.D_S))
        compute = (least, 100 * most)
    log = np.log10
    span = [float(log(compute[0])), float(log(compute[1]))]
    box = {name: list(getattr(region, name)) for name in ("N_S", "D_S", "L_T", "N_T", "D_T")} if region else None
    return {
        "region": box,
        "ranges": {"compute": span, "L_T": list(losses)},
        "sliders": {
            "N_S": [*_middle(log(sizes))],
            "compute": [*_middle(np.array(span))],
            "N_T": [*_middle(log(teachers))],
            "L_T": [losses[0], losses[1], round((losses[0] + losses[1]) / 2, 2)],
        },
    }


def _losses(law: Law, N: tuple[float, float], D: tuple[float, float]) -> tuple[float, float]:
    """The least and the largest supervised loss of the runs' sizes and tokens, each token read once."""
    low, high = (float(law(n, d, *((d,) if "U" in law.inputs else ()))) for n, d in zip(N[::-1], D[::-1]))
    return low, high


def _doubt(law: LawFile) -> dict[str, object]:
    """The resampled laws, what rolling forward has shown of them, and what a plan says of both."""
    boot, trusted = law.boot, trust(law.boot)
    tables = {"calibration": trusted and trusted.calibration, "below": trusted and trusted.below}
    return {
        "draws": _draws(boot.kept) if boot else None,
        "others": [
            {"distillation": one.estimate.to_dict(), "draws": _draws(one.kept)}
            for one in (trusted.others if trusted else ())
        ],
        **{name: table.to_dict() if table else None for name, table in tables.items()},
        "failure": failure(boot) if boot else 0.0,
        "predictions": predictions(boot),
        "caveats": list(law.caveats()),
        "doubts": bootstrap_caveats(boot),
    }


def _given() -> dict[str, object]:
    """What the page needs for a law file that a reader drops on it: the paper's law, texts, the noise of runs."""
    supervised, students = paper()
    return {
        "paper": students.values(),
        "paper_supervised": supervised.values(),
        "paper_kappa": float(students.kappa),
        "paper_flops": [float(part) for part in dataclasses.astuple(Flops.closed())],
        "normals": [[float(f"{x:.12g}") for x in normals(seed, _NORMALS)] for seed in (1, 2)],
        "most_failed": MOST_FAILED,
        "words": {
            "known": KNOWN,
            "failed": FAILED,
            "borrowed": lawfile.BORROWED,
            "papers": lawfile.PAPERS,
            "not_assessed": NOT_ASSESSED,
        },
    }


def _chip(chip: Chip) -> list[object]:
    """[peak FLOP/s, price of an hour or None, currency, where the price is from]."""
    price = chip.price
    source = f"list price of {price.date}: {price.source}" if price else ""
    return [chip.flops, price.hourly if price else None, price.currency if price else "USD", source]


def _draws(kept: Law) -> dict[str, dict[str, list[float]]]:
    """The first resampled laws by parameter, to twelve digits; a law that was not resampled is repeated."""
    inside = supervised_inside(kept)
    assert inside is not None  # page() refuses other laws
    count = max(np.size(values) for law in (kept, inside) for values in law.values().values())

    def columns(stack: Law) -> dict[str, list[float]]:
        values = {name: np.broadcast_to(value, count)[:_DRAWS] for name, value in stack.values().items()}
        return {name: [float(f"{x:.12g}") for x in column] for name, column in values.items()}

    return {"distillation": columns(kept), "supervised": columns(inside)}


def _middle(span: np.ndarray) -> list[float]:
    """[minimum, maximum, start] of a slider, which starts at a third of its range."""
    low, high = (round(float(x), 2) for x in span)
    return [low, high, round(low + (high - low) / 3, 2)]
