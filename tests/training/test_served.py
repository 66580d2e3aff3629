"""A server as a teacher: a small one in this process answers as vLLM does, from a model of ours."""

import dataclasses
import http.server
import json
import threading

import jax
import numpy as np
import pytest

from distill.config import ConfigError, ExperimentConfig, MeshConfig
from distill.errors import SignalError
from distill.model import sharding
from distill.teacher import load, server
from distill.teacher.signals import manifest
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.spec import SignalSpec
from distill.training import cache, loop, served
from launch import cache as launch_cache
from launch.support import cli

K = 4
TOPK = SignalSpec(kind="topk", top_k=K)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make = loop.sharding.make
    monkeypatch.setattr(loop.sharding, "make", lambda config, devices=None: make(config, devices or jax.devices()[:1]))


@pytest.fixture(scope="module")
def student(tiny, tmp_path_factory):
    """A student's config with a trained teacher; its text is packed in segments, so a window has several prompts."""
    folder = tmp_path_factory.mktemp("served")
    config = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, cache=str(folder / "data"), packing="segments"),
        eval=dataclasses.replace(tiny.eval, tokens=256, batch_size=8),
        tokens=6 * 4 * 16,
    )
    make = loop.sharding.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))
        loop.train(
            dataclasses.replace(config, data=dataclasses.replace(config.data, split="teacher")), folder / "teacher"
        )
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, source=str(folder / "teacher")))


class Fake:
    """vLLM's server of a model: `url`; `failures` are answered before each right answer is given."""

    def __init__(self, params, names=("tiny",)):
        self.failures: list[int] = []
        self.asked, self.most, self._now, self.change = 0, 0, 0, lambda answer: answer
        self._lock, self._params, self._names = threading.Lock(), params, names
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, {"data": [{"id": name} for name in outer._names]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.asked, outer._now = outer.asked + 1, outer._now + 1
                    outer.most = max(outer.most, outer._now)
                    failure = outer.failures.pop() if outer.failures else 0
                try:
                    if failure == -1:
                        self.close_connection = True  # without a word
                    elif failure:
                        self.answer(failure, {"message": "prompt_logprobs beyond --max-logprobs"})
                    else:
                        self.answer(200, outer.change(outer._answer(body)))
                finally:
                    with outer._lock:
                        outer._now -= 1

            def answer(self, code, tree):
                content = json.dumps(tree).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, body):
        assert body["max_tokens"] == 1 and body["temperature"] == 1.0
        ids, k = body["prompt"], body["prompt_logprobs"]
        table = self._params(np.array(ids))
        said = [None]
        for i, values in zip(ids[1:], table):
            order = np.argsort(-values, kind="stable").tolist()
            said.append({str(j): {"logprob": float(values[j]), "rank": order.index(j) + 1} for j in {i, *order[:k]}})
        return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": said}]}

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def fake(student):
    mesh = sharding.make(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = load.load(student.teacher.source).params
    compiled = jax.jit(
        lambda model, ids: jax.nn.log_softmax(model.logits(model.hidden(ids))[0, :, : model.config.tokens])
    )

    def said(ids):
        with jax.set_mesh(mesh):
            padded = np.zeros((1, 16), np.int32)
            padded[0, : len(ids) - 1] = ids[:-1]
            return np.asarray(compiled(params, padded))[: len(ids) - 1]

    made = Fake(said)
    yield made
    made.close()


@pytest.fixture
def asking(student, fake):
    fake.failures, fake.asked, fake.change = [], 0, lambda answer: answer
    teacher = dataclasses.replace(student.teacher, source="", server=fake.url)
    return dataclasses.replace(student, teacher=teacher)


def test_a_server_fills_the_store_that_its_model_would(student, asking, fake, tmp_path):
    """Against launch.cache on the same model. Caught: prompts across the end of a document, wrong places."""
    want = cache.cache_signals(student, TOPK, tmp_path / "own", shard_tokens=7 * 16)
    got = served.cache_served(asking, TOPK, tmp_path / "served", shard_tokens=7 * 16)
    assert got["teacher"]["validation"] == pytest.approx(want["teacher"]["validation"], rel=1e-5)
    assert got["recipe"]["windows"] == want["recipe"]["windows"] and got["recipe"]["data"] == want["recipe"]["data"]
    windows = np.concatenate([np.arange(s["first"], s["first"] + 1) for s in want["shards"]])
    one, other = (SignalStore(tmp_path / name).read(windows) for name in ("own", "served"))
    np.testing.assert_array_equal(np.sort(one.ids), np.sort(other.ids))
    np.testing.assert_allclose(np.sort(np.exp(one.log_probs)), np.sort(np.exp(other.log_probs)), atol=1e-2)
    assert 1 < fake.most <= server.AT_ONCE, "several at once, and no more"
    assert 0 < got["coverage"]["covered"] < 1 and got["coverage"]["codec_kl"] < 1e-3

    objective = dataclasses.replace(student.objective, target="topk", top_k=K)
    teacher = dataclasses.replace(asking.teacher, signal="stored", store=str(tmp_path / "served"))
    record = loop.train(dataclasses.replace(asking, objective=objective, teacher=teacher), tmp_path / "student")
    assert record.kind == "distillation" and got["teacher"]["validation"]["loss"] == record.L_T
    assert record.N_T is None and record.kl is None, "of a server's model the size is not known"


def test_a_killed_filling_continues_and_ends_alike(asking, fake, tmp_path):
    whole = served.cache_served(asking, TOPK, tmp_path / "whole", shard_tokens=7 * 16)
    all_asked, fake.asked = fake.asked, 0

    def stop(progress):
        if progress.done >= 16 * 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        served.cache_served(asking, TOPK, tmp_path / "out", shard_tokens=7 * 16, on_progress=stop)
    assert not (tmp_path / "out" / "manifest.json").exists()
    before, fake.asked = fake.asked, 0
    again = served.cache_served(asking, TOPK, tmp_path / "out", shard_tokens=7 * 16)
    same = lambda one: manifest.text(one) == manifest.text(whole)  # with NaN, which equals nothing
    assert same(again) and 0 < fake.asked < all_asked and before < all_asked
    fake.asked = 0
    assert same(served.cache_served(asking, TOPK, tmp_path / "out", shard_tokens=7 * 16)) and not fake.asked


def test_failures_that_pass_are_asked_again_and_others_are_said(asking, fake):
    waited = []
    teacher = server.Server(fake.url + "/v1/", K, 32, sleep=waited.append)
    fake.failures = [503, -1, 429]
    assert len(teacher.score([[1, 2, 3]])) == 1 and waited == [2.0, 4.0, 8.0]
    fake.failures = [400]
    with pytest.raises(SignalError, match="refuses: 400 .*max-logprobs of at least --top_k"):
        teacher.score([[1, 2, 3]])
    fake.failures = [500] * 20
    with pytest.raises(SignalError, match="no answer after 6 attempts.*continues where it stopped"):
        teacher.score([[1, 2, 3]])
    fake.failures = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"choices": [{"text": "x"}]}, "no prompt_logprobs"),
        (lambda a: {"choices": []}, "not one object"),
        (
            lambda a: {"choices": [{"prompt_logprobs": a["choices"][0]["prompt_logprobs"][:-1]}]},
            "positions for 3 tokens",
        ),
        (lambda a: {"choices": [{"prompt_logprobs": [None] + [{"1": -0.1}] * 2}]}, "fewer than 4"),
        (
            lambda a: {"choices": [{"prompt_logprobs": [None] + [{str(i): -3 for i in (20, 21, 22, 23)}] * 2}]},
            "read other tokens than were sent",
        ),
        (lambda a: {"choices": [{"prompt_logprobs": [None] + [{str(i): -3 for i in range(40)}] * 2}]}, "0 to 31"),
    ],
)
def test_an_answer_of_no_use_is_refused(change, message, asking, fake):
    fake.change = change
    with pytest.raises(SignalError, match=message):
        server.Server(fake.url, K, 32).score([[1, 2, 3]])


def test_mistakes_are_one_line(asking, fake, tmp_path, capsys, monkeypatch):
    with pytest.raises(SignalError, match=r"wanted a URL, such as http://localhost:8000"):
        server.Server("localhost", K, 32)
    monkeypatch.setattr(fake, "_names", ("a", "b"))
    with pytest.raises(SignalError, match="the models a, b; name one as"):
        server.Server(fake.url, K, 32)
    assert server.Server(fake.url + "#b", K, 32).model == "b"
    with pytest.raises(ConfigError, match="give --kind=topk"):
        served.cache_served(asking, SignalSpec(kind="hidden"), tmp_path / "out")
    with pytest.raises(ConfigError, match="a server teaches through a store"):
        loop.train(asking, tmp_path / "run")
    words = [f"--config.teacher.server={fake.url}#c", f"--out={tmp_path / 'x'}", "--kind=topk", "--top_k=4"]
    assert cli.guard(launch_cache.main, words) == 2 and "#MODEL" in capsys.readouterr().err


def test_the_field_changes_no_fingerprint():
    from distill import config

    plain = ExperimentConfig()
    served_config = dataclasses.replace(plain, teacher=dataclasses.replace(plain.teacher, server="http://x"))
    assert config.fingerprint(plain) == config.fingerprint(served_config)
