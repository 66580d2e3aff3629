"""Studies: a matrix of runs, the laws fitted to them, a plan and a report.

    python -m launch.study --config=configs/study.py:smoke --workdir=runs/smoke

smoke (default)  46 runs of 7K to 56K parameters on 125K to 500K bytes each, 4 teachers of up to 101K; 165 s on two
                 cores with a cold cache; distilled losses from 1.56 to 2.24 nats a byte
micro            222 runs: two-layer models of 7K to 222K parameters (teachers to 620K), 250K to 8M bytes;
                 2.7e14 FLOPs, hours on two cores (not run yet: no loss is promised).
                 Reads 41 MB of public-domain prose, made before by
                     bash launch/corpus.sh
                     python -m launch.tokenize --output=stores/prose 'out/corpus/*.jsonl.xz'
entropy          65 runs on a random language whose entropy is known: how near does the fitted E come to it?
ablations        the paper's sensitivity studies on one student of 13K parameters: lambda, tau, the divergence, the
                 teacher's target, three seeds each, with KL and calibration of teacher and students
"""

from ml_collections import ConfigDict

from configs import base
from distill.config import ConfigError, StudyExperimentConfig, nearest

PRESETS = ("smoke", "micro", "entropy", "ablations")


def get_config(arg: str = "smoke") -> ConfigDict:
    arg = arg or "smoke"
    config = base.get_config(config=StudyExperimentConfig())
    with config.unlocked():
        # Width 16 a head; two layers throughout, because one-layer models sit off the law of deeper ones.
        config.model.update(d_head=16, d_ff_multiple=16, tied=False, unroll=2)
        config.teacher.update(signal="memory", memory_gib=1.0)
        if arg == "smoke":
            config.study.models = ("p = 16x2", "q = 24x2", "c = 32x2", "r = 48x2", "s = 64x2")
            config.study.teachers = ("c @ 250K 1M", "s @ 500K 1M")
            config.study.supervised = ("p q c r @ 125K 250K 500K",)
            config.study.distilled = (
                "c@250K c@1M s@500K s@1M > p c @ 125K 250K 500K",
                "c@250K s@1M > r @ 125K 250K 500K",
            )
        elif arg == "ablations":
            config.study.models = ("q = 24x2", "s = 64x2")
            config.study.teachers = ("s @ 1M",)
            config.study.supervised = ("q @ 250K",)
            config.study.distilled = ("s@1M > q @ 250K",)
            config.study.ablations = (
                "lambda_ = 0 0.25 0.5 0.75 1",
                "temperature = 0.5 1 2 4 10",
                "divergence = forward reverse jensen_shannon:0.5 total_variation",
                "target = soft topk:16 topk:4 topp:0.9 sampled:4 argmax",
            )
            config.study.seeds = (0, 1, 2)
            config.objective.tail = "renormalise"  # of what topk and topp leave out, as in the paper
        elif arg == "entropy":
            # 256 distributions over 256 symbols, of full rank: small widths cannot hold them. (With 1,024 contexts of
            # 32 symbols at depth 2 the smallest model stays at the frequencies of symbols: a plateau, not a law.)
            config.data.source = "generated"
            config.data.generated.update(symbols=256, depth=1, concentration=0.1)
            config.data.generated.update(tokens=10_000_000, validation_tokens=262_144)
            config.optim.learning_rate = 7e-3
            config.eval.tokens = 131_072
            config.study.models = ("p = 16x2", "q = 24x2", "c = 32x2", "r = 48x2", "s = 64x2")
            config.study.teachers = ("c @ 1M", "s @ 4M")
            config.study.supervised = ("p q c r s @ 250K 500K 1M 2M 4M",)
            config.study.distilled = ("c@1M s@4M > p q c r @ 250K 500K 1M 2M",)
            config.study.seeds = (0, 1)
        elif arg == "micro":
            config.study.models = (
                "p = 16x2", "q = 24x2", "c = 32x2", "r = 48x2", "s = 64x2", "t = 96x2", "u = 160x2",
            )  # fmt: skip
            config.study.teachers = ("c @ 250K 1M", "r @ 2M", "t @ 1M 8M", "u @ 8M", "c t @ 1M # 2 3")
            config.study.supervised = ("p q c r s t @ 250K 500K 1M 2M 4M 8M", "q r @ 250K 500K 1M 2M # 2 3")
            config.study.distilled = (
                "c@250K c@1M r@2M t@1M t@8M u@8M > p q c r s @ 250K 500K 1M 2M 4M 8M",
                "c@1M t@8M u@8M > t @ 250K 500K 1M 2M 4M 8M",
                "c@1M t@1M > q r @ 250K 500K 1M 2M # 2 3",
            )
            # Between what the small budgets (.01) and the large ones (.005) like best; 1% is at stake.
            config.optim.learning_rate = 7e-3
            config.study.seeds = (0, 1)  # of everything; two more at a few points
            config.teacher.memory_gib = 5.0  # 8M tokens of 256 log-probabilities are 4 GiB
            config.data.update(source="tokens", tokens="stores/prose")
        else:
            raise ConfigError(f"configs/study.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    return config
