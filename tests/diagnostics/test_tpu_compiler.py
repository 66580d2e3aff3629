"""Steps compiled for slices and pods by the real TPU compiler, which lies in a folder of its own.

Minutes and a download of libtpu, so slow; no TPU is needed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill.bench.compile import PROGRAMS
from distill.config.chips import CHIPS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def libtpu():
    """TPU_LIBRARY_PATH: libtpu beside, and not in, the environment of the tests; kept between runs."""
    if found := os.environ.get("TPU_LIBRARY_PATH"):
        return found
    folder = Path(os.path.expanduser("~/.cache/distill/libtpu"))
    library = folder / "libtpu" / "libtpu.so"
    if not library.exists():
        extra = (ROOT / "setup.cfg").read_text().split("tpu-compiler =\n")[1].split("\n")[0].strip()
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), extra]
        subprocess.run(install, check=True)
    return str(library)


def said_of(libtpu: str, chip: str, *flags: str) -> str:
    command = [sys.executable, "-m", "launch.dryrun", f"--chip={chip}"]
    command += flags or (f"--config=configs/scale.py:{chip}", "--teacher=12.6B")
    environment = {**os.environ, "TPU_LIBRARY_PATH": libtpu, "COLUMNS": "200", "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "gib"), [("v5e", 10.6), ("v5p", 24.1)])
def test_the_pair_fits_a_pod_and_sends_what_fsdp_needs(libtpu, chip, gib):
    """Within 1.2 of the bound; memory no more than it was when the docs were written, and a tenth.

    A gradient that the compiler does not scatter is all-reduced, so those two kinds are one sum.
    """
    said = said_of(libtpu, chip)
    assert "by the TPU compiler" in said
    total, limit = map(float, re.search(r"total a chip\s+([\d.]+) GiB of ([\d.]+) GiB: fits", said).groups())
    assert total < min(limit, 1.1 * gib)
    found = re.findall(r"(all-gather|reduce-scatter|all-reduce)\s+([\d.]+) GB sent .* FSDP needs ([\d.]+)", said)
    assert [kind for kind, _, _ in found] == ["all-gather", "reduce-scatter", "all-reduce"]
    (gathered, least), *gradients = [(float(sent), float(bound)) for _, sent, bound in found]
    assert gathered < 1.2 * least
    assert sum(sent for sent, _ in gradients) < 1.2 * sum(bound for _, bound in gradients)


@pytest.mark.slow
def test_several_slices_send_one_another_pieces_of_all_their_chips(libtpu, tmp_path):
    """Two of eight chips, two along fsdp: if only those had scattered their gradients, four times as much would cross.

    Gradients of the tables are float32, which the bound does not know.
    """
    flags = ["--config=configs/train.py:103M", "--config.model.n_layers=2", "--config.batch_size=16"]
    flags += ["--config.seq_len=1024", "--config.model.vocab_size=4096", "--mesh=data=8,fsdp=2", "--slices=2"]
    said = said_of(libtpu, "v5e", *flags, "--estimate", f"--json={tmp_path / 'found.json'}")
    assert "2 of 8 chips; assumed between them: 25 Gbit/s a chip" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0.9 < found["sent_between_slices_gb"] / found["least_between_slices_gb"] < 1.6
    assert re.search(r"exposed network +inside slices [\d.]+ s .* between them [\d.]+ s", said)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(16, 0, 0), (64, 2, 0), (96, 1, 300)])
def test_splash_compiles_for_a_tpu_and_keeps_no_scores(libtpu, heads):
    """Heads of several widths, grouped, with a window; 8 heads' scores of 4096 x 4096 are .5 GiB in float32."""
    width, groups, window = heads
    flags = [
        "--config=configs/train.py:micro",
        "--config.batch_size=8",
        "--config.seq_len=4096",
        "--mesh=data=8,fsdp=1",
    ]
    flags += ["--config.model.d_model=512", "--config.model.n_heads=8", f"--config.model.d_head={width}"]
    flags += [
        f"--config.model.n_kv_heads={groups}",
        f"--config.model.window={window}",
        "--config.data.packing=documents",
    ]

    def total(attention: str) -> float:
        said = said_of(libtpu, "v5e", *flags, f"--config.model.attention={attention}")
        return float(re.search(r"total a chip\s+([\d.]+) GiB", said)[1])

    assert total("auto") + 0.5 < total("xla")


@pytest.mark.slow
@pytest.mark.parametrize("program", [name for name, one in PROGRAMS.items() if CHIPS[one.chip].dims])
def test_no_figure_of_the_compiler_grows_by_a_tenth(libtpu, program):
    """Over docs/results/compiled.json; under other versions than those that it names nothing is held."""
    command = [sys.executable, "-m", "launch.bench", "compile", f"--programs={program}"]
    environment = {**os.environ, "TPU_LIBRARY_PATH": libtpu, "XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, "--against=docs/results/compiled.json"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {program} |" in done.stdout, done.stdout
    assert "splash" in done.stdout
