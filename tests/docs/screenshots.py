"""Takes the screenshots of pages that the documents show: `python -m tests.docs.screenshots` (ten minutes at first).

The pages are made by the commands that the documents name, in the folder --pages: the smoke study, one run, the micro
study's table, the fit of a table, the planner of that fit. What lies there is used again; delete what a change of the
pages made old. Look at each picture before it is committed.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from distill.system.numbers import plural
from launch import fit, plan, report, study, train
from tests.report.conftest import BROWSER, FLAGS

ROOT = Path(__file__).parents[2]
_SETTLED = "[...document.querySelectorAll('figure.chart:has(script)')].every(f => f.dataset.drawn !== undefined)"
_ALL_DRAWN = (
    "document.querySelectorAll('figure.chart').forEach(f => f.querySelector('script') && !f.state && charts.show(f))"
)
_COLOURS = 256  # of the files: a page has few, and thin lines keep theirs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture of a page: who makes it, its size in pixels, the theme, and the panel under the pointer."""

    make: Callable[[Path], Path]
    width: int = 1280
    height: int = 1500
    scheme: str = "light"
    pointer: tuple[str, float, float] | None = None  # a frame, and where in it


def smoke(pages: Path) -> Path:
    """The page of the smoke study."""
    folder = pages / "smoke"
    _once(folder / "laws" / "plan.json", study.main, ["--config=configs/study.py:smoke", f"--workdir={folder}"])
    return _report(folder)


def micro(pages: Path) -> Path:
    """The page of the micro study, from its tables."""
    folder = pages / "micro"
    if not folder.exists():
        shutil.copytree(ROOT / "docs" / "study" / "micro", folder)
    return _report(folder)


def run(pages: Path) -> Path:
    """The page of the student of the guide to runs that is scored on held-out text along its way."""
    teacher, student = pages / "teacher", pages / "along"
    taught = [f"--config.teacher.source={teacher}", "--config.eval.along=6"]
    for folder, flags in ((teacher, ["--config.data.split=teacher", "--config.tokens=1M"]), (student, taught)):
        _once(folder / "result.json", train.main, [f"--workdir={folder}", *flags])
    return _report(student)


def law(pages: Path) -> Path:
    """The page of the paper's law, fitted to the runs of its figures."""
    flags = ["--table=apple", "--resamples=512", f"--out={pages / 'apple.json'}", f"--page={pages / 'apple.html'}"]
    _once(pages / "apple.html", fit.main, flags)
    return pages / "apple.html"


def planner(pages: Path) -> Path:
    """The planner's page of that fit."""
    law(pages)
    plan.main([f"--law={pages / 'apple.json'}", f"--page={pages / 'planner.html'}"])
    return pages / "planner.html"


SHOTS = {
    "page-study-smoke": Shot(make=smoke, height=2300, pointer=("#figure-students .u-over >> nth=1", 0.2, 0.2)),
    "page-study-phone": Shot(make=smoke, width=390, height=1900, scheme="dark"),
    "page-study-micro": Shot(make=micro, height=2300, scheme="dark"),
    "page-run": Shot(make=run, scheme="dark", pointer=("#figure-curves .u-over >> nth=1", 0.3, 0.8)),
    "page-fit": Shot(make=law, height=2500, pointer=("#figure-slices .u-over >> nth=1", 0.4, 0.5)),
    "planner_page": Shot(make=planner, pointer=("#by_compute .u-over", 0.4, 0.6)),
    "planner_page-phone": Shot(make=planner, width=390, height=1900, scheme="dark"),
}


def _once(made: Path, command: Callable[[list[str]], int], flags: list[str]) -> None:
    if not made.exists() and command(flags):
        raise SystemExit(f"{flags}: failed")


def _report(folder: Path) -> Path:
    _once(folder / "report" / "index.html", report.main, [f"--workdir={folder}"])
    return folder / "report" / "index.html"


def take(browser: Browser, shot: Shot, address: str, out: Path) -> None:
    """Writes one picture, once everything on the page is drawn."""
    size = {"width": shot.width, "height": shot.height}
    context = browser.new_context(viewport=size, color_scheme=shot.scheme)
    tab: Page = context.new_page()
    tab.set_default_timeout(600_000)
    tab.goto(address)
    tab.evaluate(_ALL_DRAWN)
    tab.wait_for_function(_SETTLED)
    if tab.locator("#numbers").count():
        tab.wait_for_selector("#numbers[data-state=done]")
    if shot.pointer:
        frame, across, down = shot.pointer
        box = tab.locator(frame).bounding_box()
        assert box is not None, frame
        tab.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    tab.screenshot(path=out)
    context.close()
    with Image.open(out) as picture:
        picture.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(out, optimize=True)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--pages", type=Path, default=ROOT / "out" / "pages", help="where the pages are made and kept")
    words.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="where the pictures go")
    words.add_argument("--only", choices=[*SHOTS, ""], default="", help="one picture")
    flags = words.parse_args()
    flags.pages.mkdir(parents=True, exist_ok=True)
    wanted = [flags.only] if flags.only else list(SHOTS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        for name in wanted:
            take(browser, SHOTS[name], SHOTS[name].make(flags.pages).resolve().as_uri(), flags.out / f"{name}.png")
        browser.close()
    print(f"{plural(len(wanted), 'picture')} in {flags.out}: look at each")


if __name__ == "__main__":
    main()
