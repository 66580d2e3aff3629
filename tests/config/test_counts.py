"""N and F against the real model, against the printed ladder, and against the matrix products that JAX traces."""

import dataclasses
import math
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ExperimentConfig, ModelConfig, counts
from distill.config.ladder import PAPER_LADDER, paper_model
from distill.model.transformer import Transformer

# The N (billions) that the paper prints beside each number of layers. Its row of 37 layers is left out: see below.
PRINTED = """
8 .1028 | 9 .1434 | 10 .1983 | 11 .2657 | 12 .3398 | 13 .4348 | 14 .546 | 15 .6636 | 16 .8096 | 17 .9755 | 18 1.147
19 1.355 | 20 1.586 | 21 1.821 | 22 2.102 | 23 2.41 | 24 2.718 | 25 3.082 | 26 3.478 | 27 3.87 | 28 4.329 | 29 4.823
30 5.309 | 31 5.873 | 32 6.476 | 33 7.066 | 34 7.747 | 35 8.47 | 36 9.173 | 38 10.84 | 39 11.66 | 40 12.61
"""

VARIANTS = {
    "tied": ModelConfig(),
    "untied": ModelConfig(tied=False),
    "grouped": ModelConfig(n_heads=8, n_kv_heads=2),
    "bias": ModelConfig(qkv_bias=True, n_heads=4, n_kv_heads=2),
    "head": ModelConfig(d_head=24, n_heads=3),
    "plain": ModelConfig(qk_norm=False, d_ff=40, n_layers=3),
    "sandwich": ModelConfig(norms="sandwich", n_layers=3),
    "wide": ModelConfig(norms="post", qk_norm_width="all", n_heads=4, n_kv_heads=2),
    "biased": ModelConfig(norm_kind="layer", gated=False, feed_bias=True, qkv_bias=True, out_bias=True),
    "gated": ModelConfig(norm_kind="layer", feed_bias=True),
    "experts": ModelConfig(experts=32, experts_per_token=2, expert_d_ff=24, n_layers=3, tied=False),
}


def parameters(model: ModelConfig) -> dict[str, int]:
    """Sizes of all parameters by name, of a model that is never allocated."""
    found = jax.eval_shape(lambda key: Transformer(model, key), jax.random.key(0))
    leaves, _ = jax.tree_util.tree_flatten_with_path(found)
    return {jax.tree_util.keystr(path): math.prod(leaf.shape) for path, leaf in leaves}


def check_counts(model: ModelConfig) -> None:
    sizes = parameters(model)
    assert counts.total(model) == sum(sizes.values())
    tables = [name for name in sizes if re.match(r"\.(embed|head)\b", name)]
    assert len(tables) == (1 if model.tied else 2)
    assert counts.stored(model) == sum(sizes.values()) - sum(sizes[name] for name in tables)
    experts = sum(size for name, size in sizes.items() if ".expert_" in name)
    unused = experts // model.experts * (model.experts - model.experts_per_token) if model.experts else 0
    assert counts.non_embedding(model) == counts.stored(model) - unused


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_those_of_the_model(name):
    check_counts(VARIANTS[name])


@pytest.mark.parametrize("name", PAPER_LADDER)
def test_counts_are_those_of_every_model_of_the_ladder(name):
    check_counts(paper_model(name))


def test_the_ladder_has_the_printed_number_of_parameters_to_every_digit():
    rows = dict(row.split() for row in re.split(r"[|\n]", PRINTED.strip()))
    assert {int(layers) for layers in rows} | {37} == set(PAPER_LADDER.values())
    for name, layers in PAPER_LADDER.items():
        if layers != 37:
            digits = len(rows[str(layers)].replace(".", ""))
            billions = counts.non_embedding(paper_model(name)) / 1e9
            assert float(f"{billions:.{digits}g}") == float(rows[str(layers)]), name


def test_names_are_the_number_of_parameters_to_three_digits_but_for_the_inconsistent_row():
    """The paper's row of 37 layers contradicts the rule that all others obey: that rule gives 9.98e9, not 10.0e9."""
    for name, layers in PAPER_LADDER.items():
        value, unit = float(name[:-1]), {"M": 1e6, "B": 1e9}[name[-1]]
        rounded = float(f"{counts.non_embedding(paper_model(name)):.3g}")
        assert (rounded == pytest.approx(value * unit)) == (layers != 37), name
    assert counts.non_embedding(paper_model("10B")) == 9_981_579_392


def test_the_closed_form_is_the_exact_count_of_the_ladder_to_half_a_percent():
    """Appendix H drops the embedding, norms and softmax and rounds the feed-forward up; so it may be a little off."""
    for name in PAPER_LADDER:
        model = paper_model(name)
        closed = counts.forward_flops_closed(counts.non_embedding(model))
        assert closed == pytest.approx(counts.forward_flops(model, 4096), rel=2.5e-3), name


def test_the_closed_form_takes_arrays_and_gives_the_papers_value():
    n = np.array([1e8, 1e9, 1e10])
    np.testing.assert_array_equal(
        counts.forward_flops_closed(n), [counts.forward_flops_closed(float(value)) for value in n]
    )
    assert counts.forward_flops_closed(1e9) == pytest.approx(2.45439e9, rel=1e-5)
    assert jax.grad(counts.forward_flops_closed)(1e9) > 2


def products(jaxpr, times: int = 1) -> int:
    """FLOPs of every dot_general in a traced program, bodies of scans counted as often as they run."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            found += 2 * times * size * math.prod(equation.outvars[0].aval.shape)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += products(inner, times * equation.params.get("length", 1))
    return found


def test_layers_without_a_window_see_the_whole_context():
    """As many keys as layers, kinds and windows say: one layer of 32 positions, two of 5."""
    mixed, one, other = (
        ModelConfig(n_layers=n, window=w, global_layers=g) for n, w, g in ((3, 5, (1,)), (1, 0, ()), (2, 5, ()))
    )
    head = 2 * mixed.vocab_size * mixed.d_model + 2 * mixed.d_model
    flops = [counts.forward_flops(model, 32) - head for model in (mixed, one, other)]
    assert (
        flops[0] == flops[1] + flops[2] != counts.forward_flops(dataclasses.replace(mixed, global_layers=()), 32) - head
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_flops_are_the_traced_matrix_products(name):
    """All but three terms are products of matrices; of attention the program computes the masked half as well."""
    model, seq = VARIANTS[name], 8
    shapes = jax.eval_shape(lambda key: Transformer(model, key), jax.random.key(0))
    traced = jax.make_jaxpr(lambda m, tokens: m(tokens))(shapes, jnp.zeros((2, seq), jnp.int32))
    masked = 2 * seq * model.n_heads * model.head_dim * model.n_layers
    softmax = 2.5 * model.n_heads * seq * model.n_layers
    embedding = 2 * model.d_model
    per_token = products(traced.jaxpr) / (2 * seq)
    assert counts.forward_flops(model, seq) == per_token - masked + softmax + embedding


def test_xla_counts_the_same_once_layers_are_unrolled():
    """Beyond the products XLA counts norms, rotations, the mask and the activation: a few percent at this width.

    Left in a scan, it counts one layer of the six.
    """
    seq = 32  # shorter than attention in two halves, which leaves out a quarter of the masked scores
    model = ModelConfig(d_model=128, n_heads=2, n_layers=6, unroll=6)

    def counted(model):
        params = jax.eval_shape(lambda key: Transformer(model, key), jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((1, seq), jnp.int32)
        return jax.jit(lambda m, t: m(t)).lower(params, tokens).compile().cost_analysis()["flops"]

    masked = 2 * seq * model.n_heads * model.head_dim * model.n_layers
    exact = seq * (counts.forward_flops(model, seq) + masked)
    assert 1.0 < counted(model) / exact < 1.05
    assert counted(dataclasses.replace(model, unroll=1)) < exact / 3


def test_a_run_costs_three_forwards_a_token_and_its_teacher_is_counted_apart():
    config = ExperimentConfig(tokens=10_000, batch_size=4, seq_len=128)
    teacher = ModelConfig(d_model=64)
    assert counts.training_tokens(config) == 19 * 4 * 128  # whole steps only
    flops = counts.run_flops(config, teacher, teacher_tokens=1000)
    assert flops.student == 3 * counts.forward_flops(config.model, 128) * 9728
    assert flops.teacher_forward == counts.forward_flops(teacher, 128) * 9728
    assert flops.teacher_training == 3 * counts.forward_flops(teacher, 128) * 1000
    alone = counts.run_flops(config)
    assert (alone.student, alone.teacher_forward, alone.teacher_training) == (flops.student, 0, 0)
