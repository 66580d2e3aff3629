"""What the import of a model takes beside `transformers`, each in a process of its own (a part of `bench forward`).

From a loaded library to weights in memory, every page of them read; processes take turns, so that a busy machine slows
both. The time to import the library itself is not counted for either.
"""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from distill.bench import turns
from distill.config import ConfigError

DTYPES = ("float32", "bfloat16")

_MEASURED = """
import json, resource, sys, time
import numpy as np
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def measured(load):
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    arrays = load()
    for array in arrays:
        array.view(np.uint8).reshape(-1)[::4096].max()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    weights = sum(array.nbytes for array in arrays)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "above": peak() - before - weights}))
"""
_OURS = """
import jax
from distill.config import MeshConfig
from distill.interop.loaded import load as load_model
from distill.model import sharding
with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
    load = lambda: jax.block_until_ready(load_model(sys.argv[1], dtype=sys.argv[2]).params)
    measured(lambda: [np.asarray(leaf) for leaf in jax.tree.leaves(load())])
"""
_THEIRS = """
import torch, transformers
folder, more = sys.argv[1], {}
if folder.endswith(".gguf"):
    folder, _, name = folder.rpartition("/")
    folder, more = folder or ".", {"gguf_file": name}
found = transformers.AutoConfig.from_pretrained(folder, **more)
transformers.AutoModelForCausalLM._model_mapping[type(found)]  # loads the model's module before the clock runs
def load():
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, sys.argv[2]), **more)
    kept = {p.data_ptr(): p.detach().view(torch.uint8).numpy() for p in model.parameters()}
    return list(kept.values())
measured(load)
"""


def compare(path: str, repeats: int) -> None:
    """Prints a line a dtype: seconds, processor time and MiB above the weights, ours and the peer's in turns.

    Raises ConfigError where the model cannot be read.
    """
    peer = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if not peer:
        print("import: ours alone; the peer needs the extra parity: pip install -e '.[parity]'")
    scripts = {"ours": _OURS} | ({"theirs": _THEIRS} if peer else {})
    for dtype in DTYPES:
        runs = turns.take_turns({name: functools.partial(_run, s, path, dtype) for name, s in scripts.items()}, repeats)
        columns = {name: {key: [run[key] for run in these] for key in these[0]} for name, these in runs.items()}
        each = [
            f"{name} {turns.spread(c['seconds'])} s, processor time {turns.spread(c['cpu'])} s, "
            f"{max(c['above']) / 2**20:,.0f} MiB above the weights"
            for name, c in columns.items()
        ]
        ratio = turns.spread(turns.ratios(columns["ours"]["seconds"], columns["theirs"]["seconds"])) if peer else ""
        print(f"import as {dtype}: {'; '.join(each)}{'; ours / theirs ' if peer else ''}{ratio}", flush=True)


def _run(script: str, path: str, dtype: str) -> dict[str, float]:
    words = [sys.executable, "-c", _MEASURED + script, str(Path(path).absolute()), dtype]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"--model={path}: {(done.stderr.strip().splitlines() or ['ended'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
