"""Laws without the rest: `pip install jax numpy scipy matplotlib` and `pip install --no-deps` of a checkout."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("jax", "numpy", "scipy", "matplotlib")

WORK = """
import tempfile, pathlib
import numpy as np
from distill import laws
from distill.laws.planning import lawfile
from distill.report.law import fit_figure, planner_page
true = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)
N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 4), np.geomspace(2e9, 2e11, 4)))
noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(16))
table = laws.from_arrays(N=N, D=D, L=true(N, D) * noise)
fit = laws.fit("chinchilla", table, delta=1e-2)
boot = laws.bootstrap(fit, resamples=10)
assert len(laws.load_table("apple")) == 354
plan = laws.plan(*laws.paper(), N_S=1e9, compute=1e22)
for one in (table, fit, boot, plan):
    assert one._repr_html_().startswith("<")
for one in (fit, boot, plan):
    assert one.plot()._repr_png_().startswith(b"\\x89PNG")
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "law.json"
    lawfile.write(path, fit, boot)
    planner_page.write(laws.read("paper"), path.with_suffix(".html"))
    fit_figure.draw(path.with_suffix(".png"), fit, boot)
    assert laws.load(path).values() == fit.law.values()
print("fitted", round(fit.law.E, 2))
"""

ALONE = """
import importlib.metadata, sys
allowed = set(sys.argv[1].split(","))
tops = {top: set(names) for top, names in importlib.metadata.packages_distributions().items()}
class Refuses:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in tops and top not in ("distill", "configs", "launch") and not tops[top] & allowed:
            raise ImportError(f"{name} is not among the four packages")
sys.meta_path.insert(0, Refuses())
"""


def needed(names):
    """The packages that these ones require, themselves included, by the names that pip knows."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            if "extra ==" not in line:
                try:
                    left.append(importlib.metadata.metadata(re.split(r"[^\w.-]", line)[0])["Name"])
                except importlib.metadata.PackageNotFoundError:
                    continue  # of another platform or Python
    return found


def run(python, code, *arguments, cwd):
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_laws_need_four_packages():
    """Every other package refuses to be imported; `import rich` at the top of distill/laws/__init__.py was seen."""
    out = run(sys.executable, ALONE + WORK, ",".join(needed(PACKAGES)), cwd=ROOT)
    assert out.returncode == 0 and out.stdout.startswith("fitted 1."), out.stderr


@pytest.mark.slow
def test_the_two_lines_of_pip(tmp_path):
    """The documented lines in an environment of their own; without a network there is nothing to test."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    pip = lambda *arguments: subprocess.run(
        [python, "-m", "pip", "install", "-q", *arguments], capture_output=True, text=True, check=False
    )
    if pip(*PACKAGES).returncode:
        pytest.skip("no network: pip cannot install jax numpy scipy matplotlib")
    built = pip("--no-deps", str(ROOT))
    assert built.returncode == 0, built.stderr
    out = run(python, WORK, cwd=tmp_path)
    assert out.returncode == 0 and out.stdout.startswith("fitted 1."), out.stderr
