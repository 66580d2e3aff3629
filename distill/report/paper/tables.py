"""The paper's tables that need only the law and the counts, as rows; written as CSV and Markdown."""

import csv
import io
from typing import Any

import numpy as np

from distill.config import counts
from distill.config.ladder import PAPER_LADDER, SEQ_LEN, paper_model
from distill.laws.planning.crossover import crossover_compute
from distill.laws.planning.scenarios import SCENARIOS, bill
from distill.report.paper.scene import Scene

Rows = list[dict[str, Any]]


def table_3(scene: Scene) -> Rows:
    """Where the compute goes when all of it is paid: small and large students at small and large budgets."""
    rows = []
    split = scene.curves.optima["pretraining_and_inference"]
    for i in (0, len(scene.sizes) - 1):
        for j in (10, 50):
            cost = bill(
                SCENARIOS["pretraining_and_inference"],
                scene.flops,
                scene.sizes[i],
                split.D_S[i, j],
                split.N_T[i, j],
                split.D_T[i, j],
            )
            rows.append(
                {
                    "N_S": scene.sizes[i],
                    "compute": scene.budgets[j],
                    "student": cost.student / cost.total,
                    "logits": cost.logits / cost.total,
                    "teacher": cost.teacher / cost.total,
                }
            )
    return rows


def table_5(scene: Scene) -> Rows:
    """Scenarios by their weights, and the compute at which supervised training catches up, by student size."""
    rows = []
    for name, scenario in SCENARIOS.items():
        row: dict[str, Any] = {
            "scenario": name,
            "delta_logits": scenario.logits,
            "delta_pretraining": scenario.pretraining,
        }
        for N_S in scene.few_sizes:
            row[f"crossover at N_S = {N_S:.3g}"] = crossover_compute(
                scene.supervised, scene.distillation, N_S, scenario, flops=scene.flops
            )
        rows.append(row)
    return rows


def table_6(scene: Scene) -> Rows:
    """The coefficients, with 90% intervals where the law carries its bootstrap."""
    rows = []
    boot = scene.law.boot.kept if scene.law.boot else None
    for law, stack, which in (
        (scene.supervised, getattr(boot, "supervised", None), "supervised"),
        (scene.distillation, boot, "distillation"),
    ):
        for name, value in law.values().items():
            low, high = float("nan"), float("nan")
            if stack is not None and np.ndim(getattr(stack, name)):
                low, high = (float(x) for x in np.percentile(getattr(stack, name), [5, 95]))
            rows.append({"law": which, "parameter": name, "value": value, "low": low, "high": high})
    return rows


def table_9(scene: Scene) -> Rows:
    """Parameters of one model by part: the 1.82B of the ladder."""
    m = paper_model("1.82B")
    d, L = m.d_model, m.n_layers
    parts = {
        "attention (4 d^2)": 4 * d * d * L,
        "feed-forward (3 d d_ff)": 3 * d * m.ff_dim * L,
        "norms (2 d, and the last)": 2 * d * L + d,
        "QK norms (2 d_head)": 2 * m.head_dim * L,
        "embedding, tied (V d)": m.vocab_size * d,
    }
    return [{"part": part, "parameters": count} for part, count in parts.items()] + [
        {"part": "non-embedding N", "parameters": counts.non_embedding(m)},
        {"part": "total", "parameters": counts.total(m)},
    ]


def table_10(scene: Scene) -> Rows:
    """Forward FLOPs per token by part at a context of 4096: the 1.82B of the ladder."""
    m = paper_model("1.82B")
    d, L = m.d_model, m.n_layers
    parts = {
        "attention projections (8 d^2)": 8 * d * d * L,
        "causal scores and values (2 n_ctx d)": 2 * SEQ_LEN * d * L,
        "softmax (2.5 heads n_ctx)": 2.5 * m.n_heads * SEQ_LEN * L,
        "feed-forward (6 d d_ff)": 6 * d * m.ff_dim * L,
        "logits (2 V d)": 2 * m.vocab_size * d,
        "embedding (2 d)": 2 * d,
    }
    total = counts.forward_flops(m, SEQ_LEN)
    rows: Rows = [{"part": part, "FLOPs per token": count, "share": count / total} for part, count in parts.items()]
    return [*rows, {"part": "F", "FLOPs per token": total, "share": 1.0}]


def table_11(scene: Scene) -> Rows:
    """The closed form of F(N) against the exact count, over the ladder."""
    rows = []
    for name in PAPER_LADDER:
        m = paper_model(name)
        exact = counts.forward_flops(m, SEQ_LEN)
        closed = float(counts.forward_flops_closed(float(counts.non_embedding(m))))
        rows.append({"model": name, "exact F": exact, "closed F": closed, "error": closed / exact - 1})
    return rows


def table_12(scene: Scene) -> Rows:
    """The ladder: every dimension follows from the number of layers."""
    rows = []
    for name in PAPER_LADDER:
        m = paper_model(name)
        row = {"model": name, "layers": m.n_layers, "d_model": m.d_model, "d_ff": m.ff_dim, "heads": m.n_heads}
        rows.append(
            row | {"N": counts.non_embedding(m), "total": counts.total(m), "F": counts.forward_flops(m, SEQ_LEN)}
        )
    return rows


def table_13(scene: Scene) -> Rows:
    """Optimal students and teachers for every scenario, at six budgets and the four sizes of Figure 8."""
    rows = []
    for name, split in scene.few.optima.items():
        for i, N_S in enumerate(scene.few_sizes):
            for j in range(0, len(scene.budgets), 12):
                row = {"scenario": name, "N_S": N_S, "compute": scene.budgets[j]}
                row |= {k: getattr(split, k)[i, j] for k in ("D_S", "N_T", "D_T", "L_T", "L_S")}
                rows.append(row | {"supervised": scene.few.supervised_L[i, j]})
    return rows


TABLES = {str(n): globals()[f"table_{n}"] for n in (3, 5, 6, 9, 10, 11, 12, 13)}


def to_csv(rows: Rows) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _plain(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


def to_markdown(rows: Rows) -> str:
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_short(row[k]) for k in head) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> object:
    return repr(float(value)) if isinstance(value, (float, np.floating)) else value


def _short(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return "-" if np.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
