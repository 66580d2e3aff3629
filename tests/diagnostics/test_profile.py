"""The table of the most expensive operations: of a program text and events made here, and of a real step."""

import dataclasses

import jax

from distill.diagnostics import profile

HLO = """
  %loop.1 = (f32[2]{0}) while(%tuple), body=%b, metadata={op_name="jit(train_steps)/while"}
  %dot.7 = f32[4,8]{1,0} dot(%a, %b), metadata={op_name="jit(train_steps)/while/body/transpose(jvp(bsd,df->bsf))/dot_general"}
  ROOT %fusion.2 = f32[4]{0} fusion(%dot.7), kind=kLoop, metadata={op_name="jit(train_steps)/while/body/jvp()/closed_call/exp"}
"""  # noqa: E501


def test_operations_are_medians_a_step_costliest_first_and_loops_are_not_counted():
    events = [("dot.7", 1000.0), ("dot.7", 1000.0), ("dot.7", 9000.0), ("dot.7", 1000.0), ("loop.1", 1e9)]
    events += [("fusion.2", 5000.0)] * 2 + [("python", 1e9)]
    first, second = profile.operations(HLO, events, steps=2)
    assert (first.name, first.shape, first.source) == ("fusion.2", "f32[4]", "exp")
    assert (first.microseconds, first.count) == (5.0, 1.0)
    assert (second.name, second.source) == ("dot.7", "backward bsd,df->bsf/dot_general")
    assert (second.microseconds, second.count) == (2.0, 2.0)  # the outlier counts for nothing


def test_a_step_has_its_products_among_its_operations(tiny, tmp_path, monkeypatch):
    make = profile.sharding.make
    monkeypatch.setattr(profile.sharding, "make", lambda config: make(config, jax.devices()[:1]))
    config = dataclasses.replace(tiny, loop=dataclasses.replace(tiny.loop, steps_per_call=5))
    found = profile.profile(config, tmp_path, calls=2)
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert any("dot_general" in one.source and one.source.startswith("backward") for one in found)
    assert all(a.microseconds >= b.microseconds for a, b in zip(found, found[1:]))
