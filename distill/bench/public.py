"""Tables that others published, read as published where they lie in $DISTILL_DATA (docs/results/laws.md says where).

A reader yields a Specimen for every table of its that the folder has: columns under the laws' names, in parameters,
tokens and nats per token (Farseer's losses are bits per byte); duplicates are runs of their own; a sweep keeps the
best run of each size and budget. `trunk` names the run of checkpoints that share one.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill import laws

SUPERVISED = ("chinchilla", "supervised", "kaplan", "farseer")
REPEATED = ("chinchilla", "data-constrained", "additive-penalty")
_WORST = 5  # points of Chinchilla's figure that Epoch leaves out as well
# Gemstones' tables with a published optimum of Chinchilla's form (parameters_delta-3 of their repository).
GEMSTONES = ("hot_100b+", "hot_120b+_only", "cool_end", "hot_sampled_like_chinchilla", "slim_chinchilla")
# Parameters without embeddings of the rungs of OLMo's ladder, by the name of their files.
OLMO_SIZES = {"190M": 190354176, "370M": 371262464, "760M": 758220288, "1B": 1279395840}
_OLMO_LOSS = "eval/c4_en-validation/CrossEntropyLoss"

Columns = Mapping[str, str]  # the law's name of a column to the file's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specimen:
    """A table of runs, the forms that are fitted to it and their objective; `given` is Lsup of students.

    `held` are runs that its authors hold out, with the same columns.
    """

    name: str
    table: laws.Table
    forms: tuple[str, ...] = SUPERVISED
    given: laws.Law | None = None
    objective: laws.Objective = laws.Objective()
    held: laws.Table | None = None

    @property
    def all(self) -> laws.Table:
        """Its runs and those held out."""
        if self.held is None:
            return self.table
        names = self.table.columns
        joined = runs(**{name: np.concatenate([self.table[name], self.held[name]]) for name in names})
        return laws.as_table(joined, best_of=self.table.best_of)


def specimens(folder: Path) -> Iterator[Specimen]:
    """Every table that the folder has, the small ones first."""
    for reader in READERS:
        yield from reader(folder)


def _lines(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _objects(path: Path) -> list[dict[str, object]]:
    """The objects of a JSONL file; none where there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _columns(rows: Sequence[Mapping[str, object]], names: Columns) -> dict[str, np.ndarray]:
    return {own: np.array([float(str(row[name])) for row in rows]) for own, name in names.items()}


def runs(**columns: np.ndarray) -> laws.Table:
    """A table whose repeated inputs are runs of their own."""
    return laws.as_table(laws.from_arrays(**columns), duplicates="keep")


def _best(rows: Sequence[Mapping[str, object]], **names: str) -> laws.Table:
    """The lowest loss of each size and budget, as of a sweep of learning rates."""
    return laws.as_table(runs(**_columns(rows, names)), best_of=("N", "D"))


def chinchilla(folder: Path) -> Iterator[Specimen]:
    """245 points read off Figure 4 of 2203.15556, without the five of highest loss (2404.10102); D = C / 6N."""
    rows = _lines(folder / "chinchilla/svg_extracted_data.csv")
    if rows:
        have = _columns(rows, {"N": "Model Size", "C": "Training FLOP", "L": "loss"})
        kept = np.sort(np.argsort(have["L"])[:-_WORST])
        N, C, L = (have[name][kept] for name in ("N", "C", "L"))
        yield Specimen(name="chinchilla", table=runs(N=N, D=C / 6 / N, L=L))


def _openathena(folder: Path) -> Iterator[Specimen]:
    """IsoFLOPs of Llama 3 (raw loss) and Marin on three texts (2603.22339), every row as published."""
    rows = _lines(folder / "openathena/isoflops.csv")
    names = {"llama_3__raw_loss": "llama 3"} | {
        f"marin_202603__{text}__llama_2": f"marin {text}" for text in ("comma", "dclm", "nemotron")
    }
    for experiment, name in names.items():
        mine = [row for row in rows if row["experiment"] == experiment]
        if mine:
            yield Specimen(name=name, table=runs(**_columns(mine, {"N": "params", "D": "tokens", "L": "loss"})))


def _gadre(folder: Path) -> Iterator[Specimen]:
    """Overtrained models on three texts, C4 validation loss (2403.08540)."""
    rows = [row for row in _lines(folder / "gadre_overtraining/runs_long.csv") if row["eval"].startswith("c4_val")]
    for text in sorted({row["train_set"] for row in rows}):
        mine = [row for row in rows if row["train_set"] == text]
        yield Specimen(name=f"gadre {text}", table=_best(mine, N="N_no_emb", D="D", L="loss"))


def _misfitting(folder: Path) -> Iterator[Specimen]:
    """The best learning rate of each size and budget (2502.18969)."""
    rows = _lines(folder / "misfitting/scaling_results_last_ckpt_only.csv")
    if rows:
        yield Specimen(name="misfitting", table=_best(rows, N="N_no_emb", D="D", L="loss"))


def _steplaw(folder: Path) -> Iterator[Specimen]:
    """The best learning rate and batch size of each size and budget (2503.04715)."""
    rows = _lines(folder / "steplaw/dense_lr_bs_loss.csv")
    if rows:
        yield Specimen(name="steplaw", table=_best(rows, N="N", D="D", L="smooth loss"))


def _openeurollm(folder: Path) -> Iterator[Specimen]:
    """The best learning rate and batch size of each size and budget, after annealing (OpenEuroLLM's dense models)."""
    rows = _lines(folder / "openeurollm/loss_all_exps_post_annealing.csv")
    if rows:
        yield Specimen(name="openeurollm", table=_best(rows, N="N", D="D", L="loss"))


def _olmo_ladder(folder: Path) -> Iterator[Specimen]:
    """The last evaluation on C4 of each rung of OLMo's ladder (2412.04403): NAME-1xC.csv, tokens = step x batch."""
    ends = []
    for name, N in OLMO_SIZES.items():
        for path in sorted((folder / "olmo_ladder").glob(f"{name}-*xC.csv")):
            rows = [row for row in _lines(path) if row[_OLMO_LOSS]]
            last = max(rows, key=lambda row: float(row["_step"]))
            tokens = float(last["_step"]) * float(last["batch_size_in_tokens"])
            ends.append({"N": N, "D": tokens, "L": last[_OLMO_LOSS]})
    if ends:
        yield Specimen(name="olmo ladder", table=runs(**_columns(ends, {"N": "N", "D": "D", "L": "L"})))


def _gemstones(folder: Path) -> Iterator[Specimen]:
    """The Gemstones (2502.06857), points along 22 runs: losses on two texts, and the tables that their authors fit."""
    files = {f"fineweb_{text}_losses_combined": f"gemstones {text}" for text in ("dclm", "edu")}
    files |= {f"wandb_df_for_fitting_{part}": f"gemstones {part}" for part in GEMSTONES}
    names = {"N": "params_active_precise", "D": "tokens", "L": "final_loss"}
    for file, name in files.items():
        rows = _objects(folder / "gemstones" / f"{file}.jsonl")
        if rows:
            # Points sampled as Chinchilla's are of no run.
            trunk = {"trunk": np.array([str(row["run_name"]) for row in rows])} if "run_name" in rows[0] else {}
            yield Specimen(name=name, table=runs(**_columns(rows, names), **trunk))


def scalebench(folder: Path, task: str, names: Columns) -> tuple[laws.Table, laws.Table] | None:
    """The runs to fit and those held out of one of ScaleBench's tasks (2604.22753); None where it is not there."""
    paths = [folder / "scalebench" / task / f"{part}.parquet" for part in ("train", "test")]
    if not all(path.exists() for path in paths):
        return None
    parts = (laws.load_table(path) for path in paths)
    fitted, held = (runs(**{own: part.numbers(name) for own, name in names.items()}) for part in parts)
    return fitted, held


# ScaleBench's tasks that a form of ours reads as they stand: the columns, the forms, the specimen's name.
SCALEBENCH: Mapping[str, tuple[Columns, tuple[str, ...], str]] = {
    "data_constrained": ({"N": "params", "D": "tokens", "U": "unique_tokens", "L": "loss"}, REPEATED, "muennighoff"),
    "moe": (
        {"N": "dense_parameter_count", "experts": "num_experts", "L": "loss_validation"},
        ("routed-experts",),
        "scalebench experts",
    ),
    "farseer": ({"N": "N", "D": "D", "L": "loss"}, SUPERVISED, "farseer"),
    "lr_bsz": ({"N": "non_embedding_param_size", "D": "data_size", "L": "lm_loss"}, SUPERVISED, "scalebench lr_bsz"),
}


def _scalebench(folder: Path) -> Iterator[Specimen]:
    """ScaleBench's tasks but two: `sparsity` below; losses of `vocab` are relative to a unigram model and negative."""
    for task, (names, forms, name) in SCALEBENCH.items():
        parts = scalebench(folder, task, names)
        if parts is not None:
            if task == "lr_bsz":
                parts = tuple(laws.as_table(part, best_of=("N", "D")) for part in parts)
            yield Specimen(name=name, table=parts[0], held=parts[1], forms=forms)


def _sparsity(folder: Path) -> Iterator[Specimen]:
    """ScaleBench's sparse models made of dense ones, by the tokens of further training (D2, in billions).

    Its fourth law, A/P**a + B/N_active**b + E, is Chinchilla's form with the sparsity P in the tokens' place.
    """
    parts = scalebench(folder, "sparsity", {"N": "N_active", "D": "P", "L": "loss", "D2": "D2"})
    for tokens in np.unique(parts[0]["D2"]) if parts else ():
        fitted, held = (part.where(part["D2"] == tokens) for part in parts or ())
        name = f"scalebench sparsity {tokens:.2f}B"
        yield Specimen(name=name, table=fitted, held=held, forms=("chinchilla",))


def _on_policy(folder: Path) -> Iterator[Specimen]:
    """Peaks of on-policy distillation, plain and with a changed loss (2609.32722); least squares of log error rates."""
    path = folder / "opd/law.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    for method in sorted({cell["method"] for cell in cells}):
        mine = [cell for cell in cells if cell["method"] == method]
        have = _columns(mine, {"N_S": "s", "N_T": "t", "score_T": "gt", "peak": "peak"})
        sizes = {name: have[name] * 1e9 for name in ("N_S", "N_T")}
        table = runs(**sizes, error_T=1 - have["score_T"], error_S=1 - have["peak"])
        yield Specimen(name=method, table=table, forms=("on-policy-peak",), objective=laws.Objective(kind="log-mse"))


READERS: tuple[Callable[[Path], Iterator[Specimen]], ...] = (
    _on_policy, _scalebench, _sparsity, _steplaw, _openeurollm, _olmo_ladder, _gadre, _openathena, chinchilla,
    _misfitting, _gemstones,
)  # fmt: skip
