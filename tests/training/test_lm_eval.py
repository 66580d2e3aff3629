"""lm_eval on a local task file, without network: our numbers are those of the model's own logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ModelConfig
from distill.data.documents import Part
from distill.data.tokenizers.tokenizer import ByteTokenizer
from distill.model.transformer import Transformer

pytestmark = pytest.mark.slow
CONFIG = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=24)

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
ROWS = [{"question": f"The sky at {hour} is", "choices": ["blue", "red"], "answer": hour % 2} for hour in range(6)]


def test_a_local_task(tmp_path, monkeypatch):
    """Accuracy by hand, from log-probabilities that are summed token by token. Seen to catch a shift by one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    lm_eval = pytest.importorskip("lm_eval", reason="the extra `lm_eval` is not installed")
    from lm_eval.tasks import TaskManager

    from distill.training.lm_eval import Harness

    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "rows.json"))
    model = Transformer(CONFIG, jax.random.key(3))
    tokenizer = ByteTokenizer()
    found = lm_eval.simple_evaluate(
        model=Harness(model, tokenizer, context=64, batch_size=4),
        tasks=["colours"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )

    def log_prob(question, choice):
        ids = np.array(tokenizer.encode([Part(f"{question} {choice}")])[0])
        logp = np.asarray(jax.nn.log_softmax(jax.jit(lambda m, t: m(t))(model, jnp.asarray(ids[None]))[0], axis=-1))
        start = len(question)
        return sum(logp[i - 1, ids[i]] for i in range(start, len(ids)))

    scores = [[log_prob(row["question"], choice) for choice in row["choices"]] for row in ROWS]
    want = np.mean([np.argmax(score) == row["answer"] for score, row in zip(scores, ROWS)])
    assert found["results"]["colours"]["acc,none"] == pytest.approx(want)
    got = [[response[0][0] for response in sample["resps"]] for sample in found["samples"]["colours"]]
    np.testing.assert_allclose(got, scores, atol=1e-3)


def test_texts_longer_than_the_context_and_continuations():
    pytest.importorskip("lm_eval", reason="the extra `lm_eval` is not installed")
    from lm_eval.api.instance import Instance

    from distill.training.lm_eval import Harness

    model, text = Transformer(CONFIG, jax.random.key(3)), "one two three four"
    harness = Harness(model, ByteTokenizer(), context=8)
    ask = lambda *args: Instance(request_type="", doc={}, arguments=args, idx=0)
    ids, want = [0, *text.encode()], 0.0
    run = jax.jit(lambda m, t: jax.nn.log_softmax(m(t)[0], axis=-1))
    for start in range(0, len(ids) - 1, 8):
        window = ids[start : start + 9]
        logp = run(model, jnp.asarray([window[:-1]]))
        want += sum(float(logp[i, token]) for i, token in enumerate(window[1:]))
    assert harness.loglikelihood_rolling([ask(text)])[0] == pytest.approx(want, abs=1e-3)
    made = harness.generate_until([ask("one", {"until": ["\n"], "max_gen_toks": 5})])[0]
    assert len(made.encode("utf-8", "replace")) <= 20 and "\n" not in made
