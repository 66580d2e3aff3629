"""The study of tokenizers: one teacher of 2,048 subwords, students of bytes, of 512 subwords and of the teacher's own.

    python -m launch.train --config=configs/tokenizers.py:teacher --workdir=runs/tokenizers/teacher
    python -m launch.train --config=configs/tokenizers.py:bytes,likelihood --workdir=runs/tokenizers/bytes-likelihood \\
        --config.teacher.source=runs/tokenizers/teacher

TOKENIZER,OBJECTIVE with bytes, bpe512 or bpe2048 and text (no teacher), likelihood, projection or same (the ordinary
loss, for bpe2048, which is the teacher's tokenizer). lambda = 1/2 but for text. Every student reads 200 KB of the State
of the Union in steps of about 2 KB, whatever its tokens; docs/results/findings.md has what came out.

smollm2-bytes, smollm2-bpe8192 and smollm2-own (the teacher's tokenizer, and its 64 likeliest tokens) are for
SmolLM2-135M as the teacher, whose signals of 64 KB are stored and read eight times (the teacher itself comes from
launch.convert, see configs/smollm2.py):

    STUDENT=smollm2-bpe8192,likelihood
    python -m launch.cache --config=configs/tokenizers.py:$STUDENT --config.teacher.source=models/smollm2 --out=stores/a
    python -m launch.train --config=configs/tokenizers.py:$STUDENT --config.teacher.signal=stored \
        --config.teacher.store=stores/a --workdir=runs/tokenizers/a
"""

from ml_collections import ConfigDict

from configs import train
from configs.smollm2 import TEACHER
from distill.config import ConfigError, nearest

# Vocabulary (0: bytes), positions of a window, tokens of 200 KB, tokens of 200 KB of validation text; under SmolLM2,
# tokens of 512 KB (64 KB, eight times) and of 32 KB.
TOKENIZERS = {
    "bytes": (0, 256, 200_000, 200_704),
    "bpe512": (512, 112, 89_300, 89_600),
    "bpe2048": (2048, 72, 55_100, 55_296),
    "smollm2-bytes": (0, 256, 524_288, 32_768),
    "smollm2-bpe8192": (8192, 64, 131_072, 8_192),
    "smollm2-own": (49152, 56, 121_856, 7_616),
}
REPEATS = 8  # under SmolLM2
PRESETS = (
    "teacher",
    *(
        f"{name},{kind}"
        for name in ("bytes", "bpe512", "smollm2-bytes", "smollm2-bpe8192")
        for kind in ("text", "likelihood", "projection")
    ),
    *(f"{name},{kind}" for name in ("bpe2048", "smollm2-own") for kind in ("text", "same")),
)


def get_config(arg: str = "teacher") -> ConfigDict:
    arg = arg or "teacher"
    if arg not in PRESETS:
        raise ConfigError(f"configs/tokenizers.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    name, _, kind = ("bpe2048" if arg == "teacher" else arg).partition(",")
    vocabulary, seq_len, tokens, validation = TOKENIZERS[name]
    config = train.get_config("micro")
    with config.unlocked():
        config.model.update(d_model=64, vocab_size=vocabulary or 256)
        config.optim.learning_rate = 14e-3
        config.seq_len, config.batch_size, config.tokens = seq_len, 8, tokens
        config.eval.tokens = validation
        if name == "smollm2-own":
            config.data.tokenizer.update(kind="json", path=TEACHER)
        elif vocabulary:
            config.data.tokenizer.update(kind="bpe", vocab_size=vocabulary)
        if name.startswith("smollm2"):
            config.data.unique = tokens // REPEATS
        if arg == "teacher":
            config.model.d_model, config.data.split, config.tokens = 96, "teacher", 400_000  # 1.5 MB
        if kind in ("likelihood", "projection"):
            config.objective.cross_tokenizer = kind
        if kind in ("likelihood", "projection", "same"):
            config.objective.lambda_ = 0.5
        if arg == "smollm2-own,same":
            config.objective.update(target="topk", top_k=64)
    return config
