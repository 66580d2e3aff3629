"""One preset for every way in which a teacher's word reaches the micro student of configs/train.py.

    python -m launch.train --config=configs/train.py:micro --workdir=runs/teacher --config.data.split=teacher
    python -m launch.cache --config=configs/signals.py:topk --config.teacher.source=runs/teacher --out=stores/topk
    python -m launch.train --config=configs/signals.py:topk --config.teacher.store=stores/topk --workdir=runs/topk

online   the teacher runs inside the step (--config.teacher.source=runs/teacher)
topk     its 32 likeliest of 256 tokens and the mass of the others, from a store
sampled  50 draws, from a store
hidden   its last hidden states and head, from a store

With --config.teacher.source=runs/teacher as well, a student of a store is compared with its teacher at the end.
docs/results/signals.md says what each is worth. 10 to 15 s a preset on one core, compilation included.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import train
from distill.config import ConfigError, nearest

# What of `config.objective` each sets.
PRESETS: dict[str, dict[str, Any]] = {
    "online": {},
    "topk": {"target": "topk", "top_k": 32},
    "sampled": {"target": "sampled", "draws": 50},
    "hidden": {},
}


def get_config(arg: str = "online") -> ConfigDict:
    arg = arg or "online"
    if arg not in PRESETS:
        raise ConfigError(f"configs/signals.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    config = train.get_config("micro")
    with config.unlocked():
        config.objective.update(PRESETS[arg])
        config.teacher.signal = "online" if arg == "online" else "stored"
    return config
