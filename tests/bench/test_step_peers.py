"""The workers of the bench of steps get their job as a line of JSON."""

import dataclasses
import json

import pytest

from distill.bench.step import SHAPES
from distill.bench.step_peers import Job


@pytest.mark.parametrize("shape", SHAPES)
def test_a_job_arrives_as_it_was_sent(shape):
    model, batch, length = SHAPES[shape]
    job = Job(kind="ours", cores=(0, 1), model=model, batch_size=batch, seq_len=length, quick=True)
    assert Job.read(json.dumps(dataclasses.asdict(job))) == job
