"""Peak memory beside torch: the contender runs in a process of its own, and its arrays are in the figure."""

import pytest

from distill.bench import memory
from distill.config import ConfigError


@pytest.mark.slow
def test_a_larger_batch_takes_more():
    """Whole logits of 256 columns and the layers' activations: 64 times the tokens are hundreds of MiB more."""
    small, large = (memory.measured("ours", "micro", batch, 128) for batch in (4, 256))
    assert large[0] > small[0] + 100 and large[1] > small[1] + 100


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--shape=micr", "--shape=micr; wanted one of smollm2, micro. Did you mean 'micro'"),
        ("--batch=0", "--batch=0 --seq_len=512: wanted 1 or more of each"),
        ("--peers=jax", "--peers=jax; wanted torch, or nothing"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(flags, words):
    with pytest.raises(ConfigError, match=words):
        memory.main([flags])
