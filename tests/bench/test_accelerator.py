"""The bench of an accelerator, on a CPU: right numbers, every part, resumed, and its page."""

import json

import jax
import pytest

from distill.bench import accelerator
from distill.config import ConfigError, MeshConfig
from distill.model import sharding

ABOUT = {"device": "d", "versions": "v", "shape": "s", "date": "2026-01-01"}


@pytest.fixture(autouse=True)
def one_device_mesh():
    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
        yield


def test_what_is_compared_agrees():
    """Kernel and our own attention are as far from float32; the fused losses and decoding are exact."""
    setting = accelerator.choose("micro-7K", 0.01)
    found = accelerator.attention(setting)
    for rows in ("whole rows", "packed documents"):
        assert 1e-4 < found[f"{rows}: the kernel"] < 2 * found[f"{rows}: our own"] < 0.1
    assert accelerator.fused(setting)["largest relative error of a gradient"] < 1e-5
    assert accelerator.decoding(setting)["same tokens"] == 1
    rounded = accelerator.bfloat16(setting)
    assert 0 < rounded["KL, nats"] < 1e-3 and 1e-4 < rounded["relative error of the logits"] < 0.05


def test_parts_are_kept_and_what_is_missing_is_done(tmp_path, monkeypatch, capsys):
    done = []
    parts = {name: lambda setting, name=name: done.append(name) or {"value": 1.5} for name in ("first", "second")}
    monkeypatch.setattr(accelerator, "PARTS", parts)
    out, page = tmp_path / "a.json", tmp_path / "a.md"
    flags = [f"--out={out}", f"--page={page}", "--shape=micro-7K", "--only=first,second"]
    accelerator.main([*flags, "--minutes=-1"])
    assert not done and "first: not begun" in capsys.readouterr().out and "the time was up" in page.read_text()
    accelerator.main([*flags[:-1], "--only=first"])
    accelerator.main(flags)
    assert done == ["first", "second"]
    assert json.loads(out.read_text())["second"] == {"value": 1.5}
    assert "| second | value | 1.5 |" in page.read_text()
    with pytest.raises(ConfigError, match="was measured with shape 'micro-7K"):
        accelerator.main([f"--out={out}", "--shape=micro-25K"])
    with pytest.raises(ConfigError, match="no part 'frist'.*Did you mean 'first'"):
        accelerator.main([f"--out={out}", "--only=frist"])


def test_rates_are_those_of_the_arithmetic(monkeypatch):
    """A step of two seconds on half of the peak."""
    from distill.config import chips

    monkeypatch.setattr(chips, "recognise", lambda kind: chips.find("h100"))
    found = accelerator._rates(2.0, 1000.0, 989e12)
    assert found == {"tokens/s": 500.0, "TFLOP/s": pytest.approx(494.5), "MFU": pytest.approx(0.5)}
