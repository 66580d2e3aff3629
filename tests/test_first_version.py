"""Files that the first version wrote stay readable, with the numbers that they had (golden/first/make.sh).

A format may grow; what is there is never written again. Where a test here fails, the reader is to be mended.
"""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import config as configs
from distill import laws
from distill.config import ExperimentConfig
from distill.data.store.store import TokenStore
from distill.laws.planning import lawfile
from distill.records import metrics
from distill.records.checkpoints import Checkpoints
from distill.records.predictions import PredictionTable
from distill.records.runs import CurveTable, RunTable, load_record
from distill.teacher import load
from distill.teacher.signals.reader import SignalStore
from distill.training import step
from distill.training.evaluate import evaluate

FIRST = Path(__file__).parent / "golden" / "first"
PARAMS, OPTIMIZER = 77.9422836303711, 216.50723266601562  # norms


@pytest.fixture(scope="module", autouse=True)
def untouched():
    """Reading changes no file."""
    sums = lambda: {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in FIRST.rglob("*") if p.is_file()}
    before = sums()
    yield
    assert sums() == before


@pytest.fixture(scope="module")
def texts():
    lines = (FIRST / "text.jsonl").read_text("utf-8").splitlines()
    return {record["question"]: record["answer"] for record in map(json.loads, lines)}


@pytest.fixture
def teacher():
    return load.load(FIRST / "run")


def test_the_checkpoint_says_what_it_said(teacher):
    evaluation = TokenStore(FIRST / "store").evaluation("validation", 16, 512)
    scores = evaluate(teacher.params, evaluation, 4)
    assert scores.loss == pytest.approx(1.1732582915574312, rel=1e-5)
    assert scores.bits_per_byte == pytest.approx(0.673902648897996, rel=1e-5)
    assert teacher.record == load_record(FIRST / "run" / "result.json") and teacher.record.run == "2f8592d62beb"


def test_the_run_still_has_its_name_and_its_optimiser():
    text = (FIRST / "run" / "config.txt").read_text("utf-8")
    config = configs.from_text(ExperimentConfig, text)
    assert configs.fingerprint(config) == "2f8592d62beb" and configs.trunk_fingerprint(config) == "efd63dfa44a0"
    state = step.init_state(config)
    with Checkpoints(FIRST / "run" / "checkpoints", readonly=True) as checkpoints:
        at, found = checkpoints.newest(state.stored())
    state = state.restored(found)
    assert at == int(state.step) == config.steps == 125
    size = lambda tree: float(sum(jnp.sum(jnp.square(leaf.astype(float))) for leaf in jax.tree.leaves(tree)) ** 0.5)
    assert size(state.params) == pytest.approx(PARAMS, rel=1e-6)
    assert size(found["optimizer"]) == pytest.approx(OPTIMIZER, rel=1e-6)


def test_the_tokens_are_the_text(texts):
    """Every document is a question and its answer, and the marks say which is which."""
    store = TokenStore(FIRST / "store")
    store.verify()
    tokenizer, seen = store.tokenizer(), []
    for split in store.splits.values():
        begin = 0
        for end in split.document_ends().tolist():
            ids, marks = split.read_span(begin, end), split.read_span(begin, end, "mask")
            question, answer = (tokenizer.decode(ids[marks == mark].tolist()) for mark in (0, 1))
            assert texts[question] == answer and ids[-1] == store.end_of_text
            seen.append(question)
            begin = end
    assert set(seen) == set(texts) and len(seen) == 240 and store.fingerprint.startswith("e4c703831c21")
    first = store.split("validation").read_span(0, 18).tolist()
    assert first == [273, 258, 277, 23, 280, 288, 18, 31, 270, 258, 290, 25, 12, 275, 272, 14, 199, 0]
    assert store.byte_lengths[[0, 273, 199]].tolist() == [0, 4, 1]


def test_the_signals_are_what_the_teacher_says(teacher):
    windows = np.array([2, 26, 83])
    tokens = jnp.asarray(TokenStore(FIRST / "store").split("student").read(windows * 16, 16).astype(np.int32))
    whole = np.asarray(jax.nn.log_softmax(teacher.params(tokens)))
    stores = {kind: SignalStore(FIRST / f"signals-{kind}") for kind in ("topk", "sampled", "hidden")}
    for store in stores.values():
        store.verify()
    hidden = stores["hidden"].read(windows).hidden.astype(np.float32)
    assert hidden[0, 3, :4].tolist() == pytest.approx([-1.088, -1.681, 0.918, 1.952], abs=5e-4)
    assert np.allclose(hidden, np.asarray(teacher.params.hidden(tokens)), atol=2e-3)
    assert np.allclose(stores["hidden"].head, np.asarray(teacher.params.head_vd), atol=1e-6)
    top = stores["topk"].read(windows)
    assert top.ids.shape == (3, 16, 32)
    assert top.ids[0, 3, :5].tolist() == [280, 16, 23, 19, 24]
    assert top.log_probs[0, 3, :5].tolist() == pytest.approx(
        [-11.070323, -9.391476, -8.321451, -8.035521, -9.853928], rel=1e-6
    )
    told = np.take_along_axis(whole, top.ids, -1)
    assert np.abs(np.exp(top.log_probs) - np.exp(told)).max() < 0.01
    drawn = stores["sampled"].read(windows)
    counts = np.exp(drawn.log_probs) * 50
    assert np.allclose(counts, np.rint(counts), atol=1e-3) and np.allclose(counts.sum(-1), 50)
    assert drawn.ids[0, 3, 0] == 273 and counts[0, 3, 0] == pytest.approx(50)


def test_the_law_predicts_what_it_predicted():
    law = laws.load(FIRST / "law.json")
    assert law(N_S=5e8, D_S=1e11, L_T=2.1) == pytest.approx(2.29452518752262, rel=1e-12)
    assert law(N_S=3e9, D_S=5e10, L_T=2.4) == pytest.approx(2.4006435587229706, rel=1e-12)
    file = lawfile.read(FIRST / "law.json")
    draws = file.boot.kept(N_S=5e8, D_S=1e11, L_T=2.1)
    assert draws.shape == (16,) and draws[[0, 15]].tolist() == pytest.approx([2.29463028, 2.28940638], rel=1e-8)
    assert file.region.N_S == (143e6, 1.82e9) and file.flops.context == pytest.approx(155.06095725500927)


def test_the_tables_hold_what_they_held():
    rows = RunTable(FIRST / "runs.csv").load()
    assert len(rows) == 13 and [row.kind for row in rows].count("distillation") == 6
    (row,) = (row for row in rows if row.run == "fa73ee73baff")
    assert (row.N, row.D, row.teacher, row.model, row.seed) == (3408, 7936, "254ef6137762", "16x1", 0)
    assert (row.loss, row.L_T, row.kl, row.tau) == (2.77260822057724, 2.675211474299431, 0.09976222703699023, 1.0)
    assert row.machine == "1 x cpu x86_64, 2 cores" and row.commit == "6f7e93a5f"
    point = CurveTable(FIRST / "curves.csv").load()[0]
    assert (point.run, point.step, point.tokens) == ("5e4b2ddfb84a", 16, 2048)
    assert (point.flops, point.loss) == (278200320.0, 4.375942230224609)
    said = PredictionTable(FIRST / "predictions.csv").by_run()["7efb7d1f7d60"]
    assert (said.predicted, said.lower, said.upper) == (2.0068811929985566, 1.9335283797866654, 2.1229030687044657)
    # Runs of then are rows of a fit of now.
    table = laws.load_table(FIRST / "runs.csv").where("kind == distillation")
    assert table.numbers("L_T").tolist() == [row.L_T for row in rows if row.kind == "distillation"]


def test_the_log_of_metrics_is_a_curve():
    found = metrics.read(FIRST / "run" / "metrics.jsonl", ["ntp"])
    assert found.at["step"][-1] == 125 and found.mean["ntp"][-1] == 1.095172119140625
