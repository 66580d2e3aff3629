"""The paper's 7.75B student of its 12.6B teacher, on a pod.

    python -m launch.dryrun --config=configs/scale.py:v5e --teacher=12.6B --chip=v5e
    python -m launch.train --config=configs/scale.py:v5e --config.teacher.source=TEACHER --workdir=DIR ...
    python -m launch.dryrun --config=configs/scale.py:v5e-4 --teacher=12.6B --chip=v5e --slices=4

v5e (default)  256 chips: data=8, fsdp=32; one sequence of 4096 a chip
v5e-4          four slices of 256 chips: data=32, fsdp=32; a batch of 1024 sequences, with the same rate
v5p             64 chips: data=4, fsdp=16; four sequences a chip
h100            64 GPUs: data=8, fsdp=8, so that weights travel inside a node; four sequences a GPU

All else is that of configs/train.py:7.75B. Pieces of a weight's width (4352 / fsdp) that are a multiple of 8 are what
the TPU compiler scatters; with fsdp=256 it all-reduces whole gradients. docs/guide/scale.md has the reports.
"""

from ml_collections import ConfigDict

from configs import train
from distill.config import ConfigError, nearest

MESHES = {
    "v5e": {"data": 8, "fsdp": 32, "tensor": 1},
    "v5e-4": {"data": 32, "fsdp": 32, "tensor": 1},
    "v5p": {"data": 4, "fsdp": 16, "tensor": 1},
    "h100": {"data": 8, "fsdp": 8, "tensor": 1},
}
BATCHES = {"v5e-4": 1024}  # sequences, where a sequence a chip needs more than those of configs/train.py


def get_config(arg: str = "v5e") -> ConfigDict:
    arg = arg or "v5e"
    if arg not in MESHES:
        raise ConfigError(f"configs/scale.py: there is no preset {arg!r}.{nearest(arg, MESHES)}")
    config = train.get_config("7.75B")
    with config.unlocked():
        config.mesh.update(MESHES[arg])
        if arg in BATCHES:
            config.batch_size = BATCHES[arg]
    return config
