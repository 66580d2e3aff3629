"""The configuration of a study: the experiment that its runs share, and the matrix of models, budgets and teachers."""

import dataclasses

from distill.config.experiment import ExperimentConfig
from distill.config.tree import Identity


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A matrix of runs over models, budgets and teachers, one line a group.

    models      'name = width x layers', e.g. 'c = 32x2'; all other fields are those of the experiment's model
    supervised  'models @ budgets', e.g. 'p q c @ 125K 250K'; trained on the students' half of the text. A budget is a
                number of tokens, '20N' (20 a parameter) or 'C3e12' (FLOPs of training: an IsoFLOP profile); '1M/125K'
                repeats 125K unique tokens (`data.unique`)
    teachers    'models @ budgets'; trained on the teachers' half
    distilled   'teachers > models @ budgets', e.g. 'c@250K r@1M > p q @ 125K 250K'; a student of a line above may
                teach: 'c@1M > c @ 1M', then 'c@1M>c@1M > c @ 1M'. An ensemble teaches by the mean of its
                distributions: 'c@1M+r@1M' is both; '2*c@1M' is c@1M of seeds 2s and 2s + 1 for a student of seed s
                (study.teachers has them). L_T is measured of the ensemble; N_T and D_T are sums
    ablations   'field = values' of the objective, e.g. 'target = soft argmax topk:4': every distilled run with each
                setting in addition; such a study compares settings and fits no law
    places      'to PARAMETERS: hosts=4 mesh=data=4,fsdp=8 time=24h', e.g. 'to 1e9: slice=v5e:4x4': where runs run, by
                N of the larger of student and teacher (distill/study/places.py)
    A line that ends in '# 0 1 2' has these seeds, other lines `seeds`. A student has its teacher's seed.
    """

    models: tuple[str, ...] = ()  # 'name = width x layers'
    supervised: tuple[str, ...] = ()  # 'models @ budgets', on the students' half
    teachers: tuple[str, ...] = ()  # 'models @ budgets', on the teachers' half
    distilled: tuple[str, ...] = ()  # 'teachers > models @ budgets'
    ablations: tuple[str, ...] = ()  # 'field = values' of the objective
    places: tuple[str, ...] = dataclasses.field(default=(), metadata=Identity.excluded)  # 'to PARAMETERS: hosts=1 ...'
    seeds: tuple[int, ...] = (0,)  # of lines that name none
    workers: int = 2  # processes, each pinned to its share of the cores
    pack: int = 1  # runs of one shape that a worker trains together, under one vmapped step
    resamples: int = 512  # of the bootstrap
    ask_model: str = ""  # the student size of the closing advice; '': the largest student
    ask_tokens: int = 0  # its tokens; 0: twice the largest budget [tokens]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyExperimentConfig(ExperimentConfig):
    """A study: the experiment that its runs share, plus the matrix."""

    study: StudyConfig = StudyConfig()
