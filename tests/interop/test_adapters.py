"""A LoRA student of a published model: trained by the command's config, exported merged and for PEFT, used again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import interop
from distill.config import ExperimentConfig, InitConfig, LoraConfig, ObjectiveConfig, OptimConfig
from distill.errors import InteropError
from distill.interop import adapters, safetensors
from distill.interop.source import open_source
from distill.model import adapted, lora
from distill.teacher import load
from distill.training import loop, step
from distill.types import Batch
from launch import convert
from launch.support import cli
from tests.tokens import library, publish, student_flags, text


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    with jax.set_mesh(loop.sharding.make(ExperimentConfig().mesh, jax.devices()[:1])):
        for seed, name in enumerate(("teacher", "student")):
            publish(folder / name, library(), rows=272, seed=seed)
    rng = np.random.default_rng(0)
    (folder / "a.txt").write_text("\n\n".join(text(rng, 200) for _ in range(12)))
    (folder / "v.txt").write_text("\n\n".join(text(rng, 200) for _ in range(6)))
    return folder


def config_of(models, *more):
    flags = [
        *student_flags(models),
        *("--config.tokens=256", "--config.eval.tokens=128"),
        *("--config.model.lora.rank=4", "--config.model.lora.alpha=8", "--config.optim.learning_rate=1e-2"),
        *("--config.optim.warmup_steps=1", *more),
    ]
    return cli.resolve(ExperimentConfig, flags)


def trained(models, folder, *more):
    make = loop.sharding.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config, devices=None: make(config, devices or jax.devices()[:1]))
        return loop.train(config_of(models, *more), folder)


@pytest.fixture(scope="module")
def run(models):
    trained(models, models / "run")
    return models / "run"


def logits(params, tokens):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda m, t: m(t))(params, tokens))


TOKENS = np.random.default_rng(0).integers(0, 260, (1, 24), np.int32)


def test_the_whole_student_is_exported_with_its_adapters_merged(models, run, tmp_path, capsys):
    assert convert.main([f"--in={run}", f"--out={tmp_path / 'out'}", "--verify"]) == 0
    assert "bit-equal" in capsys.readouterr().out
    student = load.load(run)
    assert student.config.model.lora.rank == 4
    base, back = (interop.load(path).params for path in (models / "student", tmp_path / "out"))
    ours, theirs = logits(student.params, TOKENS), logits(back, TOKENS)
    rows = theirs.shape[-1]  # the export has no rows of padding
    np.testing.assert_allclose(theirs, ours[..., :rows], atol=2e-5 * np.abs(theirs).max())
    moved = np.abs(logits(base, TOKENS)[..., :rows] - theirs).max()
    assert moved > 1e-2 * np.abs(theirs).max(), "training moved it"
    assert np.array_equal(base.embed[...][:rows], back.embed[...]), "what has no adapter is as published"


def test_its_adapters_alone_are_what_peft_reads(models, run, tmp_path):
    out = tmp_path / "adapter"
    assert convert.main([f"--in={run}", f"--out={out}", "--adapter"]) == 0
    tree = json.loads((out / "adapter_config.json").read_text())
    assert (tree["r"], tree["lora_alpha"], tree["peft_type"]) == (4, 8.0, "LORA")
    assert tree["base_model_name_or_path"] == str(models / "student")
    entries = safetensors.read_head(out / adapters.TENSORS)
    a = entries["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    b = entries["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    published = open_source(models / "student")[0]
    assert (b.shape[0], a.shape[1]) == published.shapes["model.layers.0.self_attn.q_proj.weight"]
    product = safetensors.read_rows(b, 0, b.shape[0]) @ safetensors.read_rows(a, 0, a.shape[0])
    before = published.read("model.layers.0.self_attn.q_proj.weight", 0, b.shape[0])
    assert convert.main([f"--in={run}", f"--out={tmp_path / 'whole'}"]) == 0
    after = open_source(tmp_path / "whole")[0].read("model.layers.0.self_attn.q_proj.weight", 0, b.shape[0])
    np.testing.assert_allclose(before + 8 / 4 * product, after, atol=1e-6)
    assert "PeftModel" in (out / "README.md").read_text()
    with pytest.raises(InteropError, match="something already"):
        convert.main([f"--in={run}", f"--out={out}", "--adapter"])
    with pytest.raises(InteropError, match="without --dtype"):
        convert.main([f"--in={run}", f"--out={tmp_path / 'x'}", "--adapter", "--dtype=bfloat16"])


def test_a_student_with_adapters_teaches_and_is_where_another_begins(models, run):
    """As the teacher of a run, and as init.source of one without adapters, which begins with the merged weights."""
    plain = ["--config.model.lora.rank=0", f"--config.init.source={run}", f"--config.teacher.source={run}"]
    record = trained(models, models / "again", *plain, "--config.optim.learning_rate=1e-9")
    assert record.loss == pytest.approx(load.load(run).record.loss, abs=1e-4)
    assert record.kl == pytest.approx(0, abs=1e-4)


def test_what_has_no_published_base_has_no_adapter_directory(models, run, tmp_path):
    with pytest.raises(InteropError, match=r"lora.rank=0\); leave --adapter out"):
        convert.main([f"--in={models / 'student'}", f"--out={tmp_path / 'x'}", "--adapter"])
    text = (run / "config.txt").read_text()
    try:
        (run / "config.txt").write_text(text.replace(f'"{models / "student"}"', '"gone"'))
        with pytest.raises(InteropError, match="belong to gone, which is no published model here"):
            convert.main([f"--in={run}", f"--out={tmp_path / 'x'}", "--adapter"])
    finally:
        (run / "config.txt").write_text(text)


def test_bfloat16_weights_come_back_from_a_checkpoint(models):
    record = trained(models, models / "narrow", "--config.model.dtype=bfloat16")
    student = load.load(models / "narrow")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adapted.trained(student.params))} == {"float32"}
    assert np.isfinite(record.loss)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["llama", "qwen3", "qwen2"])
def test_one_step_is_that_of_peft(variant, reference, saved, tokens):
    """Loss, gradients and adapters after one step of AdamW: PEFT's on torch against ours, and its logits."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    rate, rank, alpha = 1e-3, 4, 8.0
    path = saved(variant)
    theirs = peft.get_peft_model(
        reference(variant),
        peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).train()
    published, weights = open_source(path)[1], interop.load(path).params
    model = dataclasses.replace(published, lora=LoraConfig(rank=rank, alpha=alpha))
    config = ExperimentConfig(
        model=model, init=InitConfig(source=str(path)), seq_len=tokens.shape[1] - 1, batch_size=len(tokens),
        tokens=tokens.size, objective=ObjectiveConfig(z_loss=0.0),
        optim=OptimConfig(mup=False, learning_rate=rate, schedule="constant", warmup_steps=0, weight_decay=0.0,
                          clip=1e9),
    )  # fmt: skip
    random = np.random.default_rng(0)
    state = step.init_state(config)
    student = adapted.adapt(state.params, weights)
    moved = lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32)
    student = adapted.with_trained(student, jax.tree.map(moved, adapted.trained(student)))
    layer = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
    layer |= {"out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    parts = {}
    for name in lora.adapted_maps(model):
        for part, array in zip("AB", student.blocks.lora.pair(name), strict=True):
            for i in range(model.n_layers):
                key = f"base_model.model.model.layers.{i}.{layer[name]}.lora_{part}.default.weight"
                parts[key] = (name, part, i)
                with torch.no_grad():
                    theirs.get_parameter(key).copy_(torch.from_numpy(np.array(array[i]).T))
    names = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert names == parts.keys()

    ids = torch.from_numpy(tokens).long()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    loss = theirs(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    batch = Batch(tokens[None], np.ones((1, len(tokens), tokens.shape[1] - 1), np.float32))
    with jax.default_matmul_precision("highest"):
        after, sums = step.train_steps(
            step.step_spec(config),
            dataclasses.replace(state, params=student),
            None,
            jax.tree.map(jnp.asarray, batch),
            1,
        )
    assert float(sums["ntp"]) == pytest.approx(loss.item(), rel=1e-5)
    for key, (name, part, i) in parts.items():
        ours = np.asarray(after.params.blocks.lora.pair(name)["AB".index(part)][i]).T
        np.testing.assert_allclose(ours, theirs.get_parameter(key).detach().numpy(), atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_peft_loads_the_adapters(models, run, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    assert convert.main([f"--in={run}", f"--out={tmp_path / 'adapter'}", "--adapter"]) == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(models / "student", dtype=torch.float32)
    both = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = both(torch.from_numpy(TOKENS).long()).logits.numpy()
    ours = logits(load.load(run).params, TOKENS)
    np.testing.assert_allclose(ours[..., :260], theirs[..., :260], atol=5e-5 * np.abs(theirs).max())
