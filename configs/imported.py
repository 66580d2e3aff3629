"""A student of signals that `distill import_signals` imported: its text, windows, vocabulary and target.

    python -m launch.import_signals --in=scored.jsonl --tokenizer=models/qwen --out=stores/qwen
    python -m launch.train --config=configs/imported.py:stores/qwen --workdir=runs/student

The argument is the folder of the import. The model is the micro one of configs/train.py with a row for each of the
teacher's tokens; set its size with --config.model.*. The target is as many tokens as the store keeps; the rest is one
outcome.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import train
from distill.config import ConfigError
from distill.teacher.imported.store import SIGNALS, TOKENS
from distill.teacher.signals import manifest


def get_config(arg: str = "") -> ConfigDict:
    if not arg:
        raise ConfigError("configs/imported.py: name the import's folder, as --config=configs/imported.py:stores/qwen")
    recipe = manifest.read(Path(arg) / SIGNALS)["recipe"]
    data = recipe["data"]
    config = train.get_config("micro")
    with config.unlocked():
        config.model.vocab_size = recipe["teacher"]["vocab_size"]
        config.data.update(
            source="tokens", tokens=str(Path(arg) / TOKENS), split=data["split"], packing=data["packing"],
            completions_only=data["completions_only"],
        )  # fmt: skip
        config.seq_len = data["seq_len"]
        config.objective.update(target="topk", top_k=int(recipe["signal"]["top_k"]))
        config.teacher.update(signal="stored", store=str(Path(arg) / SIGNALS))
    return config
