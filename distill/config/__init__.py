"""What a run is: frozen dataclasses, how they are built, read, written and named. Standard library only.

config = build(ExperimentConfig, {"tokens": 1_000_000, "model": {"d_model": 64}})
fingerprint(config)                                     # names the run
"""

from distill.config.data import DataConfig as DataConfig
from distill.config.experiment import DecodeConfig as DecodeConfig
from distill.config.experiment import EvalConfig as EvalConfig
from distill.config.experiment import ExperimentConfig as ExperimentConfig
from distill.config.experiment import InitConfig as InitConfig
from distill.config.experiment import LoopConfig as LoopConfig
from distill.config.experiment import MeshConfig as MeshConfig
from distill.config.experiment import OnPolicyConfig as OnPolicyConfig
from distill.config.experiment import OptimConfig as OptimConfig
from distill.config.experiment import SamplingConfig as SamplingConfig
from distill.config.experiment import trunk_fingerprint as trunk_fingerprint
from distill.config.mixture import mixture_run as mixture_run
from distill.config.mixture import teachers_of as teachers_of
from distill.config.model import LoraConfig as LoraConfig
from distill.config.model import ModelConfig as ModelConfig
from distill.config.objective import ObjectiveConfig as ObjectiveConfig
from distill.config.study import StudyConfig as StudyConfig
from distill.config.study import StudyExperimentConfig as StudyExperimentConfig
from distill.config.teacher import TeacherConfig as TeacherConfig
from distill.config.tree import Identity as Identity
from distill.config.tree import build as build
from distill.config.tree import digest as digest
from distill.config.tree import fingerprint as fingerprint
from distill.config.tree import from_text as from_text
from distill.config.tree import identity as identity
from distill.config.tree import nearest as nearest
from distill.config.tree import parse as parse
from distill.config.tree import to_flat as to_flat
from distill.config.tree import to_text as to_text
from distill.errors import ConfigError as ConfigError
from distill.errors import DistillError as DistillError
