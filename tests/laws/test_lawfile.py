"""Law files: what is written is what is read, and what `launch.fit` wrote before stays as it was."""

import json

import numpy as np
import pytest

from distill import laws
from distill.laws.planning import lawfile


@pytest.fixture(scope="module")
def stages():
    """Fits of a supervised law and of Eq. 8's limit form to runs that the paper's laws made."""
    generator = np.random.default_rng(0)
    supervised, distillation = laws.paper()
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 6), np.geomspace(2e9, 2e11, 6)))
    L_T = np.resize([2.6, 2.3, 2.1], 36)
    noise = np.exp(0.002 * generator.standard_normal((2, 36)))
    first = laws.fit("supervised", laws.from_arrays(N=N, D=D, L=supervised(N, D) * noise[0]), delta=1e-2)
    table = laws.from_arrays(N_S=N, D_S=D, L_T=L_T, L_S=distillation(N, D, L_T) * noise[1])
    fit = laws.fit("distillation-limit", table, supervised=first.law, delta=1e-2)
    return first, fit, laws.bootstrap((first, fit), resamples=600, seed=1)


def test_what_is_written_is_what_is_read(stages, tmp_path):
    first, fit, boot = stages
    path = tmp_path / "laws" / "law.json"
    lawfile.write(path, fit, boot, first=first, flops=laws.Flops(3.0, 5.0))
    file = lawfile.read(path)
    assert file.distillation.values() == fit.law.values() and file.supervised.values() == first.law.values()
    assert (file.flops.context, file.flops.vocabulary) == (3.0, 5.0)
    for name, ends in {"N_S": (1e8, 4e9), "D_S": (2e9, 2e11), "L_T": (2.1, 2.6), "N_T": (1e8, 4e9)}.items():
        assert getattr(file.region, name) == pytest.approx(ends)
    for name, values in file.boot.kept.values().items():
        np.testing.assert_array_equal(values, getattr(boot.kept, name)[: lawfile.DRAWS])
    for name, values in file.boot.kept.supervised.values().items():
        np.testing.assert_array_equal(values, getattr(boot.kept.supervised, name)[: lawfile.DRAWS])
    # A plan is as sure of itself from the file as from the bootstrap in memory.
    asked = {"N_S": 1e9, "tokens": 2e10, "flops": file.flops}
    ours, theirs = (laws.plan(first.law, fit.law, boot=one, **asked) for one in (boot, file.boot))
    assert ours.interval == theirs.interval and ours.probability == theirs.probability


def test_the_sections_of_a_file_and_their_order(stages, tmp_path):
    first, fit, boot = stages
    lawfile.write(tmp_path / "law.json", fit, boot, first=first)
    tree = json.loads((tmp_path / "law.json").read_text())
    assert list(tree)[-5:] == ["open", "bootstrap", "draws", "supervised_fit", "region"]
    assert list(tree["region"]) == ["N_S", "D_S", "L_T", "N_T", "D_T"]
    lawfile.write(tmp_path / "bare.json", fit)
    assert list(json.loads((tmp_path / "bare.json").read_text()))[-2:] == ["open", "region"]
    bare = lawfile.read(tmp_path / "bare.json")
    assert bare.boot is None and bare.region.N_T == (0.0, 1e30) and bare.flops == laws.Flops.closed()


@pytest.mark.parametrize(
    "draws", [{"supervised": 3}, {"A": [1.0]}, {"supervised": {"A": [1.0], "B": [1.0, 2.0]}}, {"A": "1"}]
)
def test_damaged_draws_are_refused(stages, tmp_path, draws):
    _, fit, boot = stages
    lawfile.write(tmp_path / "law.json", fit, boot)
    tree = json.loads((tmp_path / "law.json").read_text())
    (tmp_path / "law.json").write_text(json.dumps(tree | {"draws": draws}))
    with pytest.raises(laws.LawError, match="are damaged"):
        lawfile.read(tmp_path / "law.json")


def test_files_from_before_a_status_open_and_say_not_assessed(stages, tmp_path):
    first, fit, boot = stages
    path = tmp_path / "law.json"
    lawfile.write(path, fit, laws.calibrated(boot, resamples=64), first=first)
    tree = json.loads(path.read_text())
    assert {"apart", "factor"} <= set(tree["predictions"]) and {"status", "coefficients"} <= set(tree)

    def read(tree):
        path.write_text(json.dumps(tree))
        return lawfile.read(path)

    # The first calibrations had one factor, for the errors within forms and between them.
    before = read(tree | {"predictions": {k: v for k, v in tree["predictions"].items() if k != "apart"}})
    assert before.boot.calibration.apart == before.boot.calibration.factor == tree["predictions"]["factor"]
    # Before that there were no predictions, and one status or none.
    bare = {k: v for k, v in tree.items() if k not in ("predictions", "coefficients", "open", "supervised_fit")}
    for old in (bare, {k: v for k, v in bare.items() if k != "status"}):
        file = read(old)
        assert file.statuses() == {"coefficients": "not assessed", "predictions": "not assessed"}
        plan = laws.plan(file.supervised, file.distillation, boot=file.boot, N_S=1e9, tokens=2e10, flops=file.flops)
        assert plan.predictions == "not assessed" and plan.interval and not plan.bootstrap
        assert "predictions: not assessed" in laws.describe(plan)
