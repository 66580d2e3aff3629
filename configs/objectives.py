"""One preset for every objective: the micro student of configs/train.py under that objective.

    python -m launch.train --config=configs/train.py:micro --workdir=runs/teacher --config.data.split=teacher
    python -m launch.train --config=configs/objectives.py:reverse --workdir=runs/reverse \\
        --config.teacher.source=runs/teacher

(mixture takes --config.teacher.mixture=runs/teacher@0.7,runs/other@0.3 in place of a source; cross_likelihood and
cross_projection are for a teacher with another tokenizer, docs/guide/tokenizers.md.) 10 to 15 s a preset on one core,
compilation included.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import train
from distill.config import ConfigError, nearest

# What of `config.objective` each sets; docs/results/objectives.md says what each is worth.
PRESETS: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"divergence": "reverse"},
    "jensen_shannon": {"divergence": "jensen_shannon", "beta": 0.5},
    "total_variation": {"divergence": "total_variation"},
    "tempered": {"temperature": 2.0},
    "mixed": {"lambda_": 0.5},
    "scheduled": {"schedule": "linear", "lambda_": 0.0, "temperature": 4.0},
    "topk": {"target": "topk", "top_k": 8},
    "topk_renormalised": {"target": "topk", "top_k": 8, "tail": "renormalise"},
    "topp": {"target": "topp", "top_p": 0.9},
    "topp_renormalised": {"target": "topp", "top_p": 0.9, "tail": "renormalise"},
    "sampled": {"target": "sampled", "draws": 4},
    "argmax": {"target": "argmax"},
    "labels": {"lambda_": 0.0},
    "cross_likelihood": {"cross_tokenizer": "likelihood", "lambda_": 0.5},
    "cross_projection": {"cross_tokenizer": "projection", "lambda_": 0.5},
    "features_mse": {"features": ("1>1", "2>2"), "feature_loss": "mse"},
    "features_cosine": {"features": ("1>1", "2>2"), "feature_loss": "cosine"},
    "mixture": {},
    "fused": {"implementation": "fused"},
    "fused_jensen_shannon": {"implementation": "fused", "divergence": "jensen_shannon", "temperature": 2.0},
}


def get_config(arg: str = "forward") -> ConfigDict:
    arg = arg or "forward"
    if arg not in PRESETS:
        raise ConfigError(f"configs/objectives.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    config = train.get_config("micro")
    with config.unlocked():
        config.objective.update(PRESETS[arg])
    return config
