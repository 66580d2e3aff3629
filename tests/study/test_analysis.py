"""What a study says of a run before it starts: a calibrated interval where budgets allow, else the bootstrap's."""

import dataclasses

import numpy as np
import pytest

from distill import laws
from distill.study import analysis

TRUE = laws.Chinchilla(A=480.0, B=2100.0, E=1.70, alpha=0.35, beta=0.37)


@pytest.fixture(scope="module")
def boot():
    """A form that is not quite right for its runs: rolled forward, it errs by more than the bootstrap knows."""
    generator = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 7), np.geomspace(2e9, 2e11, 7)))
    far = np.log(N * D / 1e19)
    table = laws.from_arrays(N=N, D=D, L=TRUE(N, D) * np.exp(0.004 * generator.standard_normal(49) + 0.003 * far**2))
    fit = laws.fit("chinchilla", table, delta=1e-2, start_count=16)
    return laws.calibrated(laws.bootstrap(fit, resamples=64))


def test_an_interval_is_the_calibrated_one_and_says_so(boot):
    at = {"N": 8e9, "D": 4e11}
    low, high, how = analysis.interval(boot, **at)
    plain = boot.predict(**at)
    assert how == analysis.CALIBRATED and low < boot.estimate(**at) < high
    assert np.log(high / low) > 1.5 * np.log(float(plain.high) / float(plain.low))
    # That of laws.extrapolate, from resamples instead of slopes.
    reach = laws.extrapolate(boot.fit).predict(**at)
    assert np.log(high / low) == pytest.approx(float(np.log(reach.high / reach.low)), rel=0.35)


def test_without_budgets_enough_it_is_the_bootstraps_and_says_so(boot):
    at = {"N": 8e9, "D": 4e11}
    plain = boot.predict(**at)
    unknown = dataclasses.replace(boot.calibration, kind="not assessed")
    for one in (dataclasses.replace(boot, calibration=unknown), dataclasses.replace(boot, calibration=None)):
        assert analysis.interval(one, **at) == (float(plain.low), float(plain.high), analysis.BOOTSTRAP)
