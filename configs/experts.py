"""Mixtures of experts: a micro model beside the dense one of equal work, and a large teacher with a dense student.

    python -m launch.train --config=configs/experts.py:micro --workdir=runs/experts
    python -m launch.dryrun --config=configs/experts.py:v5p --chip=v5p --teacher=Qwen3-30B-A3B/config.json

micro (default)  configs/train.py:micro with 8 experts a layer, 2 of them for each token, each half as wide as its
                 feed-forward: as much work a token but for the router (2% of N), with three times its weights
v5p              a dense student of Qwen3-8B's shape, for a teacher of Qwen3-30B-A3B's: 64 chips, fsdp=64
h100             the same on one node of 8 GPUs, fsdp=8

Qwen3-30B-A3B by its config.json at huggingface.co/Qwen/Qwen3-30B-A3B: 48 layers of width 2048, 32 heads of 128 in 4
groups, 128 experts of width 768, 8 a token, their shares summing to 1, 151,936 rows; MaxText's
configs/models/qwen3-30b-a3b.yml has the same. The student is Qwen3-8B by configs/models/qwen3-8b.yml there: 36 layers
of width 4096, 32 heads of 128 in 8 groups, feed-forward 12,288, an untied head.
"""

from ml_collections import ConfigDict

from configs import train
from distill.config import ConfigError, nearest

PRESETS = ("micro", "v5p", "h100")


def get_config(arg: str = "micro") -> ConfigDict:
    arg = arg or "micro"
    if arg not in PRESETS:
        raise ConfigError(f"configs/experts.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    config = train.get_config("micro")
    with config.unlocked():
        if arg == "micro":
            config.model.update(experts=8, experts_per_token=2)
            return config
        chips = 64 if arg == "v5p" else 8
        config.model.update(
            vocab_size=151_936, d_model=4096, n_layers=36, n_heads=32, n_kv_heads=8, d_head=128, d_ff=12_288,
            scaled_embedding=False, rope_base=1_000_000.0, dtype="bfloat16", remat="full", unroll=1,
        )  # fmt: skip
        config.teacher.dtype = "bfloat16"
        config.mesh.update(data=1, fsdp=chips, tensor=1)
        config.seq_len, config.batch_size, config.tokens = 4096, 4 * chips if arg == "v5p" else chips, 160 * 10**9
    return config
