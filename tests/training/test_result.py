"""The row of a run: none for a run that ended far above the uniform distribution."""

import math

import pytest

from distill.config import ExperimentConfig, ModelConfig
from distill.errors import DistillError
from distill.training import result


@pytest.mark.parametrize("vocab", [2, 256, 32768])
def test_a_run_that_learnt_nothing_is_a_result_and_one_that_diverged_is_none(vocab):
    config = ExperimentConfig(model=ModelConfig(vocab_size=vocab))
    result.check_learned(config, math.log(vocab) + 0.5)
    with pytest.raises(DistillError, match=r"validation loss of 1.094e\+04 nats a token, and guessing among its"):
        result.check_learned(config, 10935.0)
