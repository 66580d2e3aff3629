"""One training run, supervised or (with --config.teacher.source=WORKDIR) distilled.

    python -m launch.train --config=configs/train.py:micro --workdir=runs/teacher --config.data.split=teacher
    python -m launch.train --config=configs/train.py:micro --workdir=runs/student --config.teacher.source=runs/teacher

micro (default)  27K parameters on 250K bytes of the State of the Union; about 10 s on one core; loss about 2.0
103M .. 12.6B    a row of the paper's ladder with the paper's recipe (section 4): context 4096, cosine, bfloat16,
                 20 tokens a parameter. Needs a tokenizer of 32,768 entries and text of your own
                 (--config.data.source=files ...) and a mesh (--config.mesh.fsdp=...).
"""

from ml_collections import ConfigDict

from configs import base
from distill.config import ConfigError, counts, ladder, nearest


def get_config(arg: str = "micro") -> ConfigDict:
    arg = arg or "micro"
    config = base.get_config()
    with config.unlocked():
        if arg == "micro":
            config.model.update(d_model=32, n_layers=2, d_head=16, d_ff_multiple=16, tied=False, unroll=2)
        elif arg in ladder.PAPER_LADDER:
            config.model.update(base.tree(ladder.paper_model(arg)))
            config.optim.update(schedule="cosine", warmup_steps=2000, base_width=256)
            config.seq_len, config.batch_size = (
                ladder.SEQ_LEN,
                256,
            )  # the paper does not give its batch: a million tokens
            config.tokens = 20 * counts.non_embedding(ladder.paper_model(arg))
            config.data.tokenizer.update(kind="bpe", vocab_size=ladder.VOCAB_SIZE)
            config.eval.tokens = 2**22
        else:
            names = ["micro", *ladder.PAPER_LADDER]
            raise ConfigError(f"configs/train.py: there is no preset {arg!r}.{nearest(arg, names)}")
    return config
