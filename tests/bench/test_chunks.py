"""The bench of the fused loss's chunks: what it refuses, before any compiler is asked."""

import pytest

from distill.bench import chunks
from distill.config import ConfigError


@pytest.mark.parametrize("flag", ["--rows=0", "--ids=0"])
def test_no_rows_and_no_ids_are_refused(flag):
    with pytest.raises(ConfigError, match=f"{flag}: wanted at least 1"):
        chunks.main(["--chip=v5e", flag])
