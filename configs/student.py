"""A student of a model that you have: new and smaller, or a published one, distilled online.

    python -m launch.train --config=configs/student.py:models/qwen --workdir=runs/student \\
        --config.data.source=files --config.data.files.paths='texts/*.txt' \\
        --config.data.files.validation='texts/v*.txt' --config.tokens=2M

The argument is a Hugging Face directory or a GGUF file. The student has the teacher's tokenizer and a quarter of its
width and layers, evenly spaced. Head dimension, rotary positions, norms and biases are the teacher's, so that
`--config.init.source=models/qwen --config.init.width=slice` fits as well. Windows of 256 tokens, 8 a step; the rate is
not tuned. Padding of the teacher's head is left without probability.

    python -m launch.train --config=configs/student.py:models/qwen-7b,models/qwen-0.5b --workdir=runs/student ...

With two, separated by a comma, the second is the student as published: its shape, weights, tokenizer and rotary
positions, and the precision that it is stored in. Its weights go on from where they are, so the optimiser is AdamW
(no muP, no decay) at a peak of 2e-5, warmed up over 48 steps and falling as a cosine to a tenth; not tuned either.
"""

from ml_collections import ConfigDict

from configs import base
from distill.config import ConfigError, InitConfig
from distill.data.tokenizers.around import NONE
from distill.data.tokenizers.spec import spec_of
from distill.data.tokenizers.tokenizer import load
from distill.interop.source import open_source
from distill.model.warm_start import layers

SHARE = 4


def get_config(arg: str = "") -> ConfigDict:
    if not arg:
        raise ConfigError("configs/student.py: name the teacher, as --config=configs/student.py:models/qwen")
    if "," in arg:
        return _published(*arg.split(",", 1))
    teacher = open_source(arg)[1]
    config = base.get_config()
    groups = max(1, teacher.kv_heads // SHARE)
    heads = groups * max(1, min(teacher.n_heads // SHARE // groups, teacher.n_heads // teacher.kv_heads))
    spec = spec_of(arg, NONE)._replace(option=NONE)
    tokens = load(spec).vocab_size
    n_layers = max(1, teacher.n_layers // SHARE)
    taken = layers(InitConfig(), n_layers, teacher.n_layers)
    with config.unlocked():
        config.model.update(base.tree(teacher))
        config.model.update(
            d_model=teacher.d_model // SHARE, n_layers=n_layers, n_heads=heads,
            n_kv_heads=groups, d_head=teacher.head_dim, d_ff=teacher.ff_dim // SHARE,
            expert_d_ff=teacher.expert_d_ff // SHARE,
            valid_vocab=tokens if tokens < teacher.vocab_size else 0,
            **{name: tuple(i for i, layer in enumerate(taken) if layer in getattr(teacher, name))
               for name in ("global_layers", "unrotated_layers")},
        )  # fmt: skip
        config.teacher.source = arg
        config.optim.update(learning_rate=5e-3, base_width=64)
        config.data.tokenizer.update(kind=spec.kind, path=arg)
        config.batch_size, config.seq_len, config.tokens = 8, 256, 2_000_000
    return config


def _published(teacher: str, student: str) -> ConfigDict:
    """A published student of a published teacher."""
    source, model = open_source(student)
    spec = spec_of(student, NONE)._replace(option=NONE)
    tokens = load(spec).vocab_size
    teaching, taught = open_source(teacher)
    if tokens > min(model.tokens, taught.tokens):
        raise ConfigError(
            f"configs/student.py: the tokenizer of {student} has {tokens} tokens, the student {model.tokens} and the "
            f"teacher in {teacher} {taught.tokens}; wanted a row for each token in both"
        )
    config = base.get_config()
    with config.unlocked():
        config.model.update(base.tree(model))
        config.model.update(
            valid_vocab=0 if tokens == model.vocab_size == taught.vocab_size else tokens,
            dtype="bfloat16" if set(source.dtypes.values()) == {"BF16"} else "float32",
        )
        config.init.source, config.teacher.source = student, teacher
        config.teacher.dtype = "bfloat16" if set(teaching.dtypes.values()) == {"BF16"} else "float32"
        config.data.tokenizer.update(kind=spec.kind, path=student)
        config.batch_size, config.seq_len, config.tokens = 8, 256, 2_000_000
        config.optim.update(
            mup=False,
            learning_rate=2e-5,
            schedule="cosine",
            final_ratio=0.1,
            warmup_steps=48,
            weight_decay=0.0,
        )
    return config
