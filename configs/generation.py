"""What a model writes as training text: by the student itself, or by its teacher.

    python -m launch.train --config=configs/train.py:micro --workdir=runs/teacher --config.data.split=teacher
    python -m launch.train --config=configs/generation.py --workdir=runs/own --config.teacher.source=runs/teacher
    python -m launch.generate --teacher=runs/teacher --output=runs/hard --every=64 --decode.new_tokens=96
    python -m launch.train --config=configs/generation.py:hard_labels --workdir=runs/student

on_policy (default)  half of the steps are batches that the student writes; reverse KL to its teacher on all
hard_labels          a student of the teacher's completions in runs/hard/store, which alone count
"""

from ml_collections import ConfigDict

from configs import train
from distill.config import ConfigError, nearest

PRESETS = ("on_policy", "hard_labels")


def get_config(arg: str = "on_policy") -> ConfigDict:
    arg = arg or "on_policy"
    config = train.get_config("micro")
    with config.unlocked():
        if arg == "on_policy":
            config.objective.divergence = "reverse"
            config.on_policy.update(fraction=0.5, prompt_tokens=32)
        elif arg == "hard_labels":
            config.data.update(source="tokens", tokens="runs/hard/store", packing="documents", completions_only=True)
        else:
            raise ConfigError(f"configs/generation.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    return config
