"""The ways to run a step that `dryrun --tune` compiles, with a compiler that is made up."""

import dataclasses

import pytest

from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, counts
from distill.config.chips import CHIPS, GIB
from distill.config.ladder import paper_model
from distill.diagnostics.dryrun import compiler, estimate, report, tune

H100 = CHIPS["h100"]
STUDENT = dataclasses.replace(paper_model("7.75B"), dtype="bfloat16")
CONFIG = ExperimentConfig(
    model=STUDENT, batch_size=256, seq_len=4096, tokens=100 * 256 * 4096, mesh=MeshConfig(data=8, fsdp=8)
)


@pytest.fixture(autouse=True)
def one_device_mesh():
    """No mesh of one device here: abstract ones cannot be entered inside it."""


def test_choices_use_every_chip_divide_and_come_fastest_first():
    found = tune.choices(CONFIG, None, H100, 72 * GIB)
    assert len(found) > 20
    for one in found:
        m = one.mesh
        assert m.data * m.fsdp * m.tensor == 64 and m.tensor <= 8
        assert (one.batch_size, one.seq_len) == (256, 4096)
        assert one.batch_size // one.microbatches % (m.data * m.fsdp) == 0
    # A step that recomputes less makes fewer products, and one microbatch gathers once.
    assert found[0].microbatches == 1 and found[0].model.remat != "full"
    assert counts.total(STUDENT) * 12 / found[0].mesh.fsdp / found[0].mesh.tensor < 72 * GIB


def test_a_smaller_memory_leaves_only_what_recomputes_or_cuts():
    large, small = (tune.choices(CONFIG, None, H100, limit * GIB) for limit in (72, 20))
    assert len(small) < len(large)
    assert not any(one.model.remat == "none" and one.microbatches == 1 and one.mesh.tensor == 1 for one in small)
    with pytest.raises(ConfigError, match="--tune: no mesh, microbatches and remat of h100 are near 1 GiB"):
        list(tune.compare(CONFIG, None, H100, limit=GIB, count=3, kernels="."))


def test_the_best_of_those_compiled_are_printed(monkeypatch, tmp_path):
    """By the compiler's seconds, not by the order of the arithmetic; what does not fit is left out."""
    micro = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff=96, tied=False)
    small = ExperimentConfig(model=micro, batch_size=8, seq_len=16, tokens=10 * 8 * 16, mesh=MeshConfig(data=4))
    plain = report.dry_run(small, None, H100)
    seconds, seen = iter((3.0, None, 1.0, 2.0)), []

    def made_up(config, teacher, chip, *, estimated, kernels):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        (tmp_path / "splash.txt").write_text("of this program")
        took = next(seconds)
        if took is None:
            raise compiler.DoesNotFit("Ran out of memory")
        one = estimate.Operation(name="a", part="products", source="b", seconds=took, times=1)
        return dataclasses.replace(plain, estimate=estimate.Estimate(operations=[one], unknown={}))

    monkeypatch.setattr(report, "dry_run", made_up)
    found = list(tune.compare(small, None, H100, limit=GIB, count=4, kernels=str(tmp_path)))
    assert [one.seconds for one in found] == [3.0, float("inf"), 1.0, 2.0]
    assert seen == [[]] * 4, "kernels of one program are not those of the next"
    _, *lines = tune.rows(found, 2)
    assert [line[3] for line in lines] == ["1.000", "2.000"]
