"""The table of chips: what JAX's names of devices mean, and that every reader takes its figures from here."""

import pytest

from distill import laws
from distill.config import ConfigError, MeshConfig, chips


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_a_device_is_recognised_by_what_jax_calls_it(kind, name):
    assert chips.recognise(kind).name == name


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L4", "TPU v3"])
def test_another_device_is_no_chip_of_the_table(kind):
    assert chips.recognise(kind) is None


def test_plans_start_from_the_peak_of_an_h100():
    assert laws.Prices().peak_flops == chips.find("h100").flops == 989e12


def test_every_chip_is_whole_and_every_price_says_what_and_when():
    for name, chip in chips.CHIPS.items():
        assert chip.name == name
        assert 1e14 < chip.flops < 1e16 and chip.memory > 15e9 and 5e11 < chip.bandwidth < 1e13
        assert (
            chip.link > chip.beyond and bool(chip.node) == bool(chip.beyond) and bool(chip.dims) == bool(chip.largest)
        )
        if chip.price:
            assert chip.price.hourly > 0 and chip.price.currency == "USD" and chip.price.date and chip.price.source
    assert [name for name, chip in chips.CHIPS.items() if not chip.price] == [
        "v4"
    ]  # money works for all that people rent


def test_between_slices_a_group_has_the_slow_network():
    """A group may lie in one slice whole; with data alone crossing, one that is longer does not."""
    pods = chips.several(chips.find("v5e"), MeshConfig(data=32, fsdp=32), slices=4)
    nodes = chips.several(chips.find("h100"), MeshConfig(data=32, fsdp=8), slices=4, gbit=100)
    assert [pods.seconds(90e9, span) for span in (256, 257)] == [1.0, pytest.approx(90e9 / 3.125e9)]
    assert [nodes.seconds(450e9, span) for span in (8, 64, 65)] == [1.0, 9.0, pytest.approx(36.0)]
    assert chips.several(chips.find("h100"), MeshConfig(data=32), slices=1) == chips.find("h100")


def test_an_unknown_chip_names_the_nearest():
    with pytest.raises(ConfigError, match="--chip=v5pp: wanted one of .* Did you mean 'v5p'"):
        chips.find("v5pp")
