"""Signals as other tools write them, and what an import of them holds."""

import gzip
import json

import numpy as np

from distill.data.store.store import TokenStore
from distill.teacher.imported.store import Import
from distill.teacher.signals.reader import SignalStore

V, K = 256, 6


def distributions(seed=0, rows=24):
    """Rows of (ids [T], log-probabilities [T, V]); row t of the latter is about token t, row 0 is never read."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        size = int(rng.integers(10, 40))
        logits = 3 * rng.standard_normal((size, V))
        made.append((rng.integers(1, V, size).tolist(), logits - np.log(np.exp(logits).sum(1, keepdims=True))))
    return made


def top(log_probs, k=K):
    ids = np.argsort(-log_probs, axis=1)[:, :k]
    return ids, np.take_along_axis(log_probs, ids, axis=1)


def vllm(ids, log_probs, k=K, texts=False):
    """As a server of vLLM answers: the token itself first, then the k likeliest; a null for the first token."""
    found = [None]
    for i, values in list(zip(ids, log_probs))[1:]:
        order = np.argsort(-values).tolist()
        found.append(
            {
                str(j): {
                    "logprob": float(values[j]),
                    "rank": order.index(j) + 1,
                    "decoded_token": chr(j) if texts and 32 < j < 127 else None,
                }
                for j in dict.fromkeys([i, *order[:k]])
            }
        )
    return {"prompt_token_ids": list(ids), "prompt_logprobs": found}


def said(ids, log_probs):
    return vllm(ids, log_probs)["prompt_logprobs"]


def sglang(ids, log_probs, k=K):
    ranked, values = top(log_probs, k)
    own = [[None if t == 0 else float(log_probs[t][i]), i, None] for t, i in enumerate(ids)]
    best = [None] + [[[float(x), int(j), None] for j, x in zip(*pair)] for pair in zip(ranked[1:], values[1:])]
    meta = {"prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": best}
    return {"text": "", "meta_info": meta}


def columns(ids, log_probs, k=K, names=("input_ids", "target_token_ids", "target_logprobs")):
    """As axolotl: row i is about token i + 1, and the last one about nothing."""
    ranked, values = (np.roll(x, -1, axis=0).tolist() for x in top(log_probs, k))
    return dict(zip(names, (list(ids), ranked, values)))


def write_lines(path, records):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def wanted(path, **changes):
    return Import(**{"paths": (path,), "tokenizer": "bytes", "validation": 0.1, **changes})


def content(out):
    """Every window's ids and log-probabilities [n, S, K], and its tokens and weights."""
    signals = SignalStore(out / "signals")
    recipe = signals.manifest["recipe"]
    (view,) = TokenStore(out / "tokens").views("student", recipe["data"]["seq_len"], packing="documents")
    windows = np.arange(recipe["windows"]["count"])
    read, batch = signals.read(windows), view.read(windows)
    return np.asarray(read.ids), np.asarray(read.log_probs), batch.tokens, batch.weight
