"""What the import of a model takes beside `transformers`, each in a process of its own (a part of `bench forward`).

Seconds of the whole process, which a user waits for, libraries and all; and of the load alone, once the libraries and
the model's module are there, until every page of the weights was touched. Processes take turns, so that a busy machine
slows both. transformers maps a file of the same dtype and reads no byte of it that is not asked for; ours reads all,
turns matrices (inputs come first here) and looks for values that are not finite.
"""

import functools
import importlib.util
import json
import subprocess
import sys
import time
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
            f"{name} {turns.spread(c['whole'])} s, of it the load {turns.spread(c['seconds'])} s "
            f"({turns.spread(c['cpu'])} s of processor time), {max(c['above']) / 2**20:,.0f} MiB above the weights"
            for name, c in columns.items()
        ]
        print(f"import as {dtype}: {'; '.join(each)}", flush=True)
        if peer:
            of = lambda key: turns.spread(turns.ratios(columns["ours"][key], columns["theirs"][key]))
            print(f"  ours / theirs: whole {of('whole')}, load {of('seconds')}", flush=True)


def _run(script: str, path: str, dtype: str) -> dict[str, float]:
    words = [sys.executable, "-c", _MEASURED + script, str(Path(path).absolute()), dtype]
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    whole = time.perf_counter() - began
    if done.returncode:
        raise ConfigError(f"--model={path}: {(done.stderr.strip().splitlines() or ['ended'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"whole": whole}
