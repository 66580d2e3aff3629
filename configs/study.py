"""Studies: a matrix of runs, the laws fitted to them, a plan and a report.

    python -m launch.study --config=configs/study.py:smoke --workdir=runs/smoke

smoke (default)  46 runs of 7K to 56K parameters on 125K to 500K bytes each, 4 teachers of up to 101K; 165 s on two
                 cores with a cold cache; distilled losses from 1.56 to 2.24 nats a byte
micro            532 runs: two-layer models of 7K to 222K parameters (teachers to 620K), 250K to 8M bytes, two seeds
                 and four at a few points; 92 minutes of two busy cores for the first seed and what has four
                 (292 runs), 74 for the second (docs/results/study.md)
                 Reads 41 MB of public-domain prose, made before by
                     bash launch/corpus.sh
                     python -m launch.tokenize --output=stores/prose 'out/corpus/*.jsonl.xz'
entropy          118 runs on a random language whose entropy is known: how near does the fitted E come to it?
knee             30 supervised runs on the same language, of widths up to its rank
lambda           376 runs: lambda by the teacher's strength by size by budget, two seeds, on the text of `micro`
stored           160 runs: top-k and random draws of a teacher's distribution beside the whole, over sizes and budgets
chains           96 runs: students of their teacher's size that teach the next, four times, on fresh and repeated text;
                 with --config.objective.lambda_=0.5, in a workdir of its own, students read the text as well
ensembles        88 runs: students of one, two and four teachers of their own size and budget, at lambda .5 and 1
repeats          152 runs: 1/16 to all of a budget is unique text, for teachers, students and supervised runs
teachers         138 runs: three losses L_T, each of teachers of three sizes, and students of three sizes: does a
                 teacher's size matter beyond its loss?
ablations        the paper's sensitivity studies on one student of 13K parameters: lambda, tau, the divergence, the
                 teacher's target, three seeds each, with KL and calibration of teacher and students

The paper's protocols (section 4.3), at the scale of `micro` or, as paper-NAME, on the paper's ladder and recipe;
paper-NAME-v5e and paper-NAME-h100 have places for these machines (docs/guide/clusters.md; --dry-run prints hours, money
and memory).
fixed-M, isoflop  supervised runs of 20 tokens a parameter, and of fixed FLOPs
A                 students of fixed FLOPs under teachers of 20 tokens a parameter
B                 students of 20 tokens a parameter under teachers of fixed FLOPs
C                 students of 20 to 320 tokens a parameter under teachers of 20
"""

from ml_collections import ConfigDict

from configs import base, train
from distill.config import ConfigError, StudyExperimentConfig, ladder, nearest
from distill.config.tree import parse_count

PROTOCOLS = ("fixed-M", "isoflop", "A", "B", "C")
PRESETS = (
    "smoke",
    "micro",
    "lambda",
    "stored",
    "chains",
    "ensembles",
    "repeats",
    "teachers",
    "entropy",
    "knee",
    "ablations",
    *PROTOCOLS,
    *(f"paper-{name}" for name in PROTOCOLS),
    *(f"paper-{name}-{chip}" for name in PROTOCOLS for chip in ("v5e", "h100")),
)
# By the larger of student and teacher; memory by the model of launch.dryrun.
PLACES = {
    "v5e": (
        "to 6e8: slice=v5e:8x8 mesh=data=8,fsdp=8 remat=full",
        "to 2e9: slice=v5e:8x16 mesh=data=8,fsdp=16 remat=full",
        "to 1e10: slice=v5e:16x16 mesh=data=8,fsdp=32 remat=full",
    ),
    "h100": (
        "to 6e8: slice=h100:8 mesh=fsdp=8 microbatches=4 remat=full",
        "to 2e9: slice=h100:16 mesh=data=2,fsdp=8 microbatches=4 remat=full",
        "to 1e10: slice=h100:64 mesh=data=8,fsdp=8 microbatches=4 remat=full",
    ),
}
MICRO = {"p": 16, "q": 24, "c": 32, "r": 48, "s": 64, "t": 96, "u": 160}  # widths; two layers


def get_config(arg: str = "smoke") -> ConfigDict:
    arg = arg or "smoke"
    name, _, chip = arg.removeprefix("paper-").rpartition("-")
    if arg.startswith("paper-") and name in PROTOCOLS and chip in PLACES:
        config = _protocol(name, paper=True)
        with config.unlocked():
            config.study.places = PLACES[chip]
        return config
    if arg.removeprefix("paper-") in PROTOCOLS:
        return _protocol(arg.removeprefix("paper-"), arg.startswith("paper-"))
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
        elif arg in ("entropy", "knee"):
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
            if arg == "knee":
                config.study.models = ("s = 64x2", "t = 96x2", "u = 128x2")
                config.study.teachers = config.study.distilled = ()
                config.study.supervised = ("s t u @ 250K 500K 1M 2M 4M",)
        elif arg == "lambda":
            config.study.models = _micro_models()
            config.study.teachers = ("c @ 250K 500K 1M", "t @ 1M 4M")
            config.study.supervised = ("p c s @ 250K 1M 4M",)  # lambda = 0: the same whoever teaches
            # The largest student is far below the weak teachers at 4M: one seed of those.
            weak = "c@250K c@500K c@1M"
            config.study.distilled = (
                "t@1M t@4M > p c s @ 250K 1M 4M",
                f"{weak} > p c @ 250K 1M 4M",
                f"{weak} > s @ 250K 1M",
                f"{weak} > s @ 4M # 0",
            )
            config.study.ablations = ("lambda_ = 0.25 0.5 0.75 1",)
            config.study.seeds = (0, 1)
            config.optim.learning_rate = 14e-3  # the best on every budget
            config.teacher.memory_gib = 2.5  # 4M tokens of 256 log-probabilities are 2 GiB
            config.data.update(source="tokens", tokens="stores/prose")
        elif arg == "stored":
            config.study.models = _micro_models()
            config.study.teachers = ("c @ 1M", "t @ 4M")
            config.study.supervised = ("p c s @ 250K 1M",)
            config.study.distilled = ("c@1M t@4M > p c s @ 250K 1M",)
            config.study.ablations = ("target = soft topk:4 topk:16 topk:64 sampled:4 sampled:12",)
            config.objective.tail = "renormalise"
            config.study.seeds = (0, 1)
            config.optim.learning_rate = 14e-3
            config.teacher.memory_gib = 1.0
            config.data.update(source="tokens", tokens="stores/prose")
        elif arg == "chains":
            budgets = ("250K", "250K/31.25K", "1M", "1M/125K")
            cells = [f"{name}@{budget}" for name in "cs" for budget in budgets]
            chains = [">".join([cell] * k) for k in range(1, 5) for cell in cells]
            config.study.models = _micro_models()
            config.study.teachers = tuple(cell.replace("@", " @ ") for cell in cells)
            config.study.supervised = config.study.teachers
            config.study.distilled = tuple(
                f"{chain} > {chain.rpartition('>')[2].replace('@', ' @ ')}" for chain in chains
            )
            _on_prose(config)
        elif arg == "ensembles":
            config.study.models = _micro_models()
            config.study.teachers = ("c s @ 250K 1M # 0 1 2 3 4 5 6 7",)
            config.study.supervised = ("c s @ 250K 1M",)
            cells = [f"{name}@{budget}" for name in "cs" for budget in ("250K", "1M")]
            config.study.distilled = tuple(f"{cell} 2*{cell} 4*{cell} > {cell.replace('@', ' @ ')}" for cell in cells)
            config.study.ablations = ("lambda_ = 0.5 1",)
            _on_prose(config)
        elif arg == "repeats":
            config.study.models = _micro_models()
            cells = [f"{budget}/{unique}" for budget in ("500K", "2M") for unique in _shares(budget)]
            taught = [f"c@1M/{unique}" for unique in _shares("1M")]
            config.study.teachers = ("t @ 4M", "c @ 1M", *(label.replace("@", " @ ") for label in taught))
            config.study.supervised = (f"p c s @ 500K 2M {' '.join(cells)}",)
            config.study.distilled = (
                f"t@4M > p c s @ 500K 2M {' '.join(cells)}",
                f"c@1M {' '.join(taught)} > p c @ 500K",
            )
            _on_prose(config)
        elif arg == "teachers":
            # Budgets by the supervised law of `lambda` and `repeats`: losses of 1.90, 1.80 and 1.66 nats a byte.
            levels = ("p@3.62M c@604K s@360K", "q@3.83M r@728K t@456K", "c@8.7M s@1.41M u@715K")
            config.study.models = _micro_models()
            config.study.teachers = tuple(label.replace("@", " @ ") for level in levels for label in level.split())
            config.study.supervised = ("p c s @ 250K 1M",)
            config.study.distilled = tuple(f"{level} > p c s @ 250K 1M" for level in levels)
            _on_prose(config)
        elif arg == "micro":
            config.study.models = _micro_models()
            config.study.teachers = ("c @ 250K 1M", "r @ 2M", "t @ 1M 8M", "u @ 8M", "c t @ 1M # 2 3")
            config.study.supervised = ("p q c r s t @ 250K 500K 1M 2M 4M 8M", "q r @ 250K 500K 1M 2M # 2 3")
            config.study.distilled = (
                "c@250K c@1M r@2M t@1M t@8M u@8M > p q c r s @ 250K 500K 1M 2M 4M 8M",
                "c@1M t@8M u@8M > t @ 250K 500K 1M 2M 4M 8M",
                "c@1M t@1M > q r @ 250K 500K 1M 2M # 2 3",
            )
            # The rate of the published runs. Half of the best one, as measured later (docs/results/study.md).
            config.optim.learning_rate = 7e-3
            config.study.seeds = (0, 1)  # of everything; two more at a few points
            config.teacher.memory_gib = 5.0  # 8M tokens of 256 log-probabilities are 4 GiB
            config.data.update(source="tokens", tokens="stores/prose")
        else:
            raise ConfigError(f"configs/study.py: there is no preset {arg!r}.{nearest(arg, PRESETS)}")
    return config


def _on_prose(config: ConfigDict) -> None:
    """Two seeds at the rate that is best on every budget, on the text of `micro`."""
    config.study.seeds = (0, 1)
    config.optim.learning_rate = 14e-3
    config.teacher.memory_gib = 1.0
    config.data.update(source="tokens", tokens="stores/prose")


def _shares(budget: str) -> list[str]:
    """1/2 to 1/16 of a budget."""
    return [f"{parse_count(budget) // share:d}" for share in (2, 4, 8, 16)]


def _micro_models() -> tuple[str, ...]:
    return tuple(f"{name} = {width}x2" for name, width in MICRO.items())


def _protocol(name: str, paper: bool) -> ConfigDict:
    """One of PROTOCOLS: teachers and students are rows of the paper's ladder, or of MICRO."""
    config = base.get_config(config=StudyExperimentConfig())
    with config.unlocked():
        if paper:
            given = train.get_config("546M")  # the recipe; a study's models have their own sizes
            for field in ("model", "optim", "data", "seq_len", "batch_size", "tokens", "eval"):
                config[field] = given[field]
            config.model.update(d_head=ladder.HEAD_DIM)
            config.study.models = tuple(f"{n} = {ladder.HEAD_DIM * k}x{k}" for n, k in ladder.PAPER_LADDER.items())
            teachers, students = (
                "546M 975M 1.82B 2.72B 3.87B 4.82B 7.75B",
                "143M 266M 546M 975M 1.82B 3.08B 4.82B 7.75B",
            )
            flops, fixed = "C3e19 C1e20 C3e20 C1e21", "143M 546M 975M 1.82B"
        else:
            config.model.update(d_head=16, d_ff_multiple=16, tied=False, unroll=2)
            config.teacher.update(signal="memory", memory_gib=5.0)
            config.optim.learning_rate = 7e-3
            config.data.update(source="tokens", tokens="stores/prose")
            config.study.models = _micro_models()
            teachers, students = "q c r s t", "p q c r s"
            flops, fixed = "C3e10 C1e11 C3e11 C1e12", "p c s"
        study = config.study
        if name == "fixed-M":
            study.supervised = (f"{students} @ 20N",)
        elif name == "isoflop":
            study.supervised = (f"{students} @ {flops}",)
        elif name == "B":
            study.teachers = (f"{teachers} @ {flops}",)
            labels = " ".join(f"{teacher}@{budget}" for teacher in teachers.split() for budget in flops.split())
            study.distilled = (f"{labels} > {fixed} @ 20N",)
        else:
            study.teachers = (f"{teachers} @ 20N",)
            labels = " ".join(f"{teacher}@20N" for teacher in teachers.split())
            study.distilled = (f"{labels} > {students} @ {flops if name == 'A' else '20N 40N 80N 160N 320N'}",)
    return config
