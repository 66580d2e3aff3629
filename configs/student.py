"""A student of a model that you have: its tokenizer, a quarter of its width and layers, distilled online.

    python -m launch.train --config=configs/student.py:models/qwen --workdir=runs/student \\
        --config.data.source=files --config.data.files.paths='texts/*.txt' \\
        --config.data.files.validation='texts/v*.txt' --config.tokens=2M

The argument is a Hugging Face directory or a GGUF file. Head dimension, rotary positions, norms and biases are the
teacher's, so that `--config.init.source=models/qwen --config.init.width=slice` fits as well. Windows of 256 tokens, 8 a
step; the rate is not tuned. Padding of the teacher's head is left without probability.
"""

from ml_collections import ConfigDict

from configs import base
from distill.config import ConfigError
from distill.data.tokenizers.around import NONE
from distill.data.tokenizers.spec import spec_of
from distill.data.tokenizers.tokenizer import load
from distill.interop.source import open_source

SHARE = 4


def get_config(arg: str = "") -> ConfigDict:
    if not arg:
        raise ConfigError("configs/student.py: name the teacher, as --config=configs/student.py:models/qwen")
    teacher = open_source(arg)[1]
    config = base.get_config()
    groups = max(1, teacher.kv_heads // SHARE)
    heads = groups * max(1, min(teacher.n_heads // SHARE // groups, teacher.n_heads // teacher.kv_heads))
    spec = spec_of(arg, NONE)._replace(option=NONE)
    tokens = load(spec).vocab_size
    with config.unlocked():
        config.model.update(base.tree(teacher))
        config.model.update(
            d_model=teacher.d_model // SHARE, n_layers=max(1, teacher.n_layers // SHARE), n_heads=heads,
            n_kv_heads=groups, d_head=teacher.head_dim, d_ff=teacher.ff_dim // SHARE,
            valid_vocab=tokens if tokens < teacher.vocab_size else 0,
        )  # fmt: skip
        config.teacher.source = arg
        config.optim.update(learning_rate=5e-3, base_width=64)
        config.data.tokenizer.update(kind=spec.kind, path=arg)
        config.batch_size, config.seq_len, config.tokens = 8, 256, 2_000_000
    return config
