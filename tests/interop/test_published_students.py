"""A published student of a published teacher: described whole, trained from its weights, exported for its users."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from configs import student as student_config
from distill import interop
from distill.config import ConfigError, ExperimentConfig, ModelConfig, build
from distill.data.tokenizers.same import difference
from distill.errors import InteropError
from distill.interop import gguf_export
from distill.interop.source import open_source
from distill.interop.tokenizer_files import TokenizerFiles
from distill.model.transformer import Transformer
from distill.teacher import any_model
from distill.training import inputs, loop
from launch import convert
from launch import evaluate as launch_evaluate
from launch.support import cli
from tests.tokens import bos, library, publish, student_flags, text

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
ROWS = {"teacher": 304, "student": 288}  # both padded beyond the tokenizer's tokens, each in its own way
IDS = {"bos_token_id": 256 + 9, "eos_token_id": [256 + 10, *range(60, 160)], "pad_token_id": 256 + 12}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make = loop.sharding.make
    monkeypatch.setattr(loop.sharding, "make", lambda config, devices=None: make(config, devices or jax.devices()[:1]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of a teacher and of a student, with a text in files."""
    folder = tmp_path_factory.mktemp("published")
    with jax.set_mesh(loop.sharding.make(ExperimentConfig().mesh, jax.devices()[:1])):
        for seed, (name, rows) in enumerate(ROWS.items()):
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
            publish(
                folder / name, bos(), rows=rows, seed=seed,
                **{"tokenizer_config.json": settings | {"chat_template": TEMPLATE}, "special_tokens_map.json": {}},
            )  # fmt: skip
            tree = json.loads((folder / name / "config.json").read_text()) | IDS | {"max_position_embeddings": 4096}
            (folder / name / "config.json").write_text(json.dumps(tree))
            (folder / name / "README.md").write_text(f"---\nlicense: licence-of-{name}\ntags:\n- x\n---\n# {name}\n")
    rng = np.random.default_rng(0)
    (folder / "a.txt").write_text("\n\n".join(text(rng, 200) for _ in range(12)))
    (folder / "v.txt").write_text("\n\n".join(text(rng, 200) for _ in range(6)))
    return folder


def config_of(models, **optim):
    flags = [
        *student_flags(models),
        *("--config.tokens=128", "--config.eval.tokens=256"),
        *(f"--config.optim.{name}={value}" for name, value in optim.items()),
    ]
    return cli.resolve(ExperimentConfig, flags)


@pytest.fixture(scope="module")
def run(models):
    """A run of two steps that move nothing: the student as published."""
    make = loop.sharding.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config, devices=None: make(config, devices or jax.devices()[:1]))
        record = loop.train(config_of(models, learning_rate=1e-12), models / "run")
    return models / "run", record


def test_the_whole_model_is_described(models):
    config, published = config_of(models), open_source(models / "student")[1]
    tokens = bos().get_vocab_size()
    assert dataclasses.replace(config.model, valid_vocab=0) == published and config.model.valid_vocab == tokens < 288
    assert config.init.source == str(models / "student") and config.teacher.source == str(models / "teacher")
    assert not config.optim.mup and config.optim.learning_rate < 1e-4 and config.optim.warmup_steps
    other = publish(models / "narrow", library(), rows=260)
    with pytest.raises(ConfigError, match="wanted a row for each token in both"):
        student_config.get_config(f"{other},{models / 'student'}")


def test_it_begins_as_the_published_model(models, run, capsys):
    """The loss of the run whose steps move nothing is that of the folder, on the same windows; padding changes nothing.

    Seen to catch: rows of padding that get probability, muP's multipliers on published weights.
    """
    _, record = run
    words = [f"--model={models / 'student'}", f"--teacher={models / 'teacher'}", f"--text={models / 'v.txt'}"]
    words += ["--tokens=256", "--seq_len=32", f"--cache={models / 'cache'}", "--json", "--tokenizer.special=<s> $A"]
    assert cli.guard(launch_evaluate.main, words) == 0
    found = json.loads(capsys.readouterr().out)
    assert record.loss == pytest.approx(found["loss"], abs=0.1), "columns of padding have probability there"
    assert record.kind == "distillation" and record.kl is not None and found["kl"] > 0


def test_a_part_of_a_published_model_is_refused(models):
    config = config_of(models)
    part = dataclasses.replace(config, model=dataclasses.replace(config.model, valid_vocab=0, vocab_size=256))
    with pytest.raises(ConfigError, match=r"vocab_size=256: .* describes a part of it.*student.py:TEACHER"):
        inputs.resolve(part)
    inputs.resolve(dataclasses.replace(part, init=dataclasses.replace(config.init, tokens="number")))
    deep = dataclasses.replace(inputs.load.read_info(models / "student").config.model, n_layers=30)
    info = dataclasses.replace(
        inputs.load.read_info(models / "student"), config=dataclasses.replace(config, model=deep)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs.load, "read_info", lambda _: info)
        shallow = dataclasses.replace(config, model=dataclasses.replace(config.model, n_layers=2))
        with pytest.raises(ConfigError, match=r"n_layers=2: .* has 30 layers and .* part of it"):
            inputs.resolve(shallow)
        inputs.resolve(dataclasses.replace(shallow, init=dataclasses.replace(config.init, layers="first")))


def test_the_export_has_all_that_its_user_needs(models, run, tmp_path):
    out = tmp_path / "out"
    assert convert.main([f"--in={run[0]}", f"--out={out}", "--verify"]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (out / name).read_bytes() == (models / "student" / name).read_bytes(), "whole, as published"
    tree, generation = (json.loads((out / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert {name: tree[name] for name in IDS} == {name: generation[name] for name in IDS} == IDS
    assert tree["max_position_embeddings"] == 4096 and tree["dtype"] == "float32"
    assert tree["vocab_size"] == bos().get_vocab_size()
    card = (out / "README.md").read_text()
    assert "license: licence-of-student\n" in card and run[1].run in card and "KL(teacher, student)" in card


def test_a_run_whose_models_are_gone_is_exported_all_the_same(models, run, tmp_path, monkeypatch):
    shutil.copytree(run[0], tmp_path / "run")
    config = (tmp_path / "run" / "config.txt").read_text().replace(str(models / "student"), "gone")
    (tmp_path / "run" / "config.txt").write_text(config.replace(str(models / "teacher"), "gone"))
    model = any_model.load(str(tmp_path / "run"))
    assert model.origin == "" and model.licence == ""


def logits(params, tokens):
    return np.asarray(jax.jit(lambda m, t: m(t))(params, tokens))


SHAPE = ModelConfig(vocab_size=64, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_head=32, d_ff=96, norm_eps=1e-5)
FAMILIES = {
    "qwen3": SHAPE,
    "qwen2": dataclasses.replace(SHAPE, qk_norm=False, qkv_bias=True),
    "llama": dataclasses.replace(SHAPE, qk_norm=False, rope_scaling="llama3", rope_factor=8.0, tied=False),
    "linear": dataclasses.replace(SHAPE, qk_norm=False, rope_scaling="linear", rope_factor=4.0),
}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_of_every_family(family, kind, tmp_path):
    pytest.importorskip("gguf")
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(np.asarray(x) + random.uniform(-0.2, 0.2, x.shape).astype(np.float32), x.sharding),
        Transformer(FAMILIES[family], jax.random.key(0)),
    )
    said = gguf_export.write(tmp_path / "m.gguf", params, TokenizerFiles({}), context=64, kind=kind)
    assert "left out: there is no tokenizer.json" in said
    source, _ = open_source(tmp_path / "m.gguf")
    assert source.dtypes["model.layers.1.mlp.up_proj.weight"] == kind
    tokens = np.random.default_rng(1).integers(0, 64, (1, 40), np.int32)
    want, got = logits(params, tokens), logits(interop.load(tmp_path / "m.gguf").params, tokens)
    near = {"F32": 1e-5, "F16": 3e-3, "Q8_0": 5e-2}[kind]
    np.testing.assert_allclose(got, want, atol=near * np.abs(want).max())


# transformers reads no size of heads from a GGUF file of these: it takes 128 for Qwen3, and D / heads for Qwen2.
HEADS = {"qwen3": 128, "qwen2": 16, "llama": 32}
PLAIN = {name: dataclasses.replace(FAMILIES[name], rope_scaling="none", d_head=size) for name, size in HEADS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize("family", PLAIN)
def test_gguf_and_transformers_open_what_is_written(family, kind, tmp_path):
    """The `gguf` package's own reader gives our numbers, and transformers, which reads through it, our logits."""
    gguf, torch, transformers = (pytest.importorskip(name) for name in ("gguf", "torch", "transformers"))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(np.asarray(x) + random.uniform(-0.2, 0.2, x.shape).astype(np.float32), x.sharding),
        Transformer(PLAIN[family], jax.random.key(0)),
    )
    gguf_export.write(tmp_path / "m.gguf", params, TokenizerFiles({}), context=64, kind=kind)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    down = found["blk.1.ffn_down.weight"]
    assert down.tensor_type.name == kind and found["output_norm.weight"].tensor_type.name == "F32"
    source, name = open_source(tmp_path / "m.gguf")[0], "model.layers.1.mlp.down_proj.weight"
    values = gguf.dequantize(down.data, down.tensor_type)
    np.testing.assert_allclose(source.read(name, 0, source.shapes[name][0]), values, rtol=1e-6)
    ours = interop.load(tmp_path / "m.gguf").params
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    assert type(model).__name__.lower() == f"{family}forcausallm"
    tokens = random.integers(0, 64, (1, 40))
    with torch.no_grad():
        want = model(torch.tensor(tokens)).logits.numpy()
    assert np.std(want) > 0.1
    np.testing.assert_allclose(logits(ours, tokens.astype(np.int32)), want, atol=1e-4 * np.abs(want).max() + 1e-4)


def test_what_llama_cpp_has_no_name_for_is_refused(tmp_path):
    pytest.importorskip("gguf")
    params = Transformer(dataclasses.replace(SHAPE, window=8), jax.random.key(0))
    with pytest.raises(InteropError, match="llama.cpp has no architecture for a model of Qwen3 with window=8"):
        gguf_export.write(tmp_path / "m.gguf", params, TokenizerFiles({}), context=64, kind="F16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
def test_a_gguf_file_is_read_back(models, run, tmp_path, dtype):
    """Against the run's own logits, tokens and special tokens. Seen to catch: queries and keys not interleaved."""
    pytest.importorskip("gguf")
    out = tmp_path / "student.gguf"
    assert convert.main([f"--in={run[0]}", f"--out={out}", f"--dtype={dtype}"]) == 0
    source, config = open_source(out)
    assert set(source.dtypes.values()) == {"F16", "F32"}, "rows of 16 are no blocks of Q8_0"
    assert config == dataclasses.replace(open_source(models / "student")[1], vocab_size=bos().get_vocab_size())
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 24), np.int32)
    ours, back = (any_model.load(str(place)) for place in (run[0], out))
    want, got = (
        np.asarray(jax.jit(lambda m, t: m(t))(m.params, tokens))[..., : config.vocab_size] for m in (ours, back)
    )
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())
    assert difference(ours.tokenizer(), back.tokenizer()) == ""
    assert back.tokenizer().around == ours.tokenizer().around and source.tree["eos_token_id"] == IDS["eos_token_id"][0]
    assert convert.main([f"--in={run[0]}", f"--out={tmp_path / 'x'}"]) == 0
    with pytest.raises(InteropError, match="something already"):
        convert.main([f"--in={run[0]}", f"--out={out}"])
    with pytest.raises(InteropError, match="wanted float16, q8_0, float32, without --verify"):
        convert.main([f"--in={run[0]}", f"--out={tmp_path / 'y.gguf'}", "--verify"])


@pytest.mark.slow
def test_transformers_chats_with_the_export_and_stops(models, run, tmp_path):
    transformers, torch = (pytest.importorskip(name) for name in ("transformers", "torch"))
    assert convert.main([f"--in={run[0]}", f"--out={tmp_path / 'out'}"]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the man"}], tokenize=False)
    assert prompt == "<s>user: the man</s>"
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    torch.manual_seed(0)
    said = model.generate(ids, max_new_tokens=200, do_sample=True)[0, ids.shape[1] :].tolist()
    assert len(said) < 200 and said[-1] in IDS["eos_token_id"] and not set(said[:-1]) & set(IDS["eos_token_id"])


def test_the_preset_is_a_config(models):
    build(ExperimentConfig, student_config.get_config(f"{models / 'teacher'},{models / 'student'}").to_dict())
