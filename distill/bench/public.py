"""Tables of supervised runs that others published, read where they lie in $DISTILL_DATA: N, D, L and what runs share.

chinchilla/svg_extracted_data.csv                      Epoch's points of Chinchilla's Figure 4 (the five worst left out)
gadre_overtraining/runs_long.csv                       C4 validation, a table for each training set
misfitting/scaling_results_last_ckpt_only.csv          the best learning rate of each size and budget
steplaw/dense_lr_bs_loss.csv                           the best learning rate and batch of each size and budget
openathena/isoflops.csv                                IsoFLOP runs of Llama 3 (raw loss) and three of Marin
gemstones/fineweb_{dclm,edu}_losses_combined.jsonl     points along 22 runs; `trunk` is the run
scalebench/data_constrained/{train,test}.parquet       Muennighoff's runs with U unique tokens
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill import laws

_MARIN = ("comma", "dclm", "nemotron")
_WORST = 5  # points of Chinchilla's figure that Epoch leaves out as well


def tables(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    """(name, table) of every table that the folder has."""
    readers = (_chinchilla, _gadre, _misfitting, _steplaw, _isoflops, _gemstones, _repeated)
    for reader in readers:
        yield from reader(folder)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def _chinchilla(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    cells = _rows(folder / "chinchilla/svg_extracted_data.csv")
    if cells:
        N, C, L = (np.array([float(row[name]) for row in cells]) for name in ("Model Size", "Training FLOP", "loss"))
        kept = np.sort(np.argsort(L)[:-_WORST])
        yield "chinchilla", laws.from_arrays(N=N[kept], D=(C / 6 / N)[kept], L=L[kept])


def _gadre(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    cells = [row for row in _rows(folder / "gadre_overtraining/runs_long.csv") if row["eval"].startswith("c4_val")]
    for kind in sorted({row["train_set"] for row in cells}):
        yield f"gadre {kind}", _best([row for row in cells if row["train_set"] == kind], "N_no_emb", "D", "loss")


def _misfitting(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    cells = _rows(folder / "misfitting/scaling_results_last_ckpt_only.csv")
    if cells:
        yield "misfitting", _best(cells, "N_no_emb", "D", "loss")


def _steplaw(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    cells = _rows(folder / "steplaw/dense_lr_bs_loss.csv")
    if cells:
        yield "steplaw", _best(cells, "N", "D", "smooth loss")


def _isoflops(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    cells = _rows(folder / "openathena/isoflops.csv")
    wanted = {"llama_3__raw_loss": "llama 3"} | {f"marin_202603__{kind}__llama_2": f"marin {kind}" for kind in _MARIN}
    for key, name in wanted.items():
        mine = [row for row in cells if row["experiment"] == key]
        if mine:
            columns = {"N": "params", "D": "tokens", "L": "loss"}
            arrays = {want: np.array([float(row[have]) for row in mine]) for want, have in columns.items()}
            yield name, _kept_duplicates(laws.from_arrays(**arrays))


def _gemstones(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    for kind in ("dclm", "edu"):
        path = folder / f"gemstones/fineweb_{kind}_losses_combined.jsonl"
        if path.exists():
            cells = [json.loads(line) for line in path.read_text().splitlines()]
            columns = {"N": "params_active_precise", "D": "tokens", "L": "final_loss", "trunk": "run_name"}
            arrays = {want: [row[have] for row in cells] for want, have in columns.items()}
            yield f"gemstones {kind}", _kept_duplicates(laws.from_arrays(**arrays))


def _repeated(folder: Path) -> Iterator[tuple[str, laws.Table]]:
    paths = [folder / f"scalebench/data_constrained/{part}.parquet" for part in ("train", "test")]
    if all(path.exists() for path in paths):
        parts = [
            laws.load_table(path, {"N": "params", "D": "tokens", "L": "loss", "U": "unique_tokens"}) for path in paths
        ]
        arrays = {name: np.concatenate([part.numbers(name) for part in parts]) for name in ("N", "D", "U", "L")}
        yield "data-constrained", _kept_duplicates(laws.from_arrays(**arrays))


def _kept_duplicates(table: laws.Table) -> laws.Table:
    """The table whose runs of equal inputs are repeated measurements."""
    return laws.as_table(table, duplicates="keep")


def _best(cells: Sequence[Mapping[str, str]], N: str, D: str, loss: str) -> laws.Table:
    """The lowest loss of each size and budget."""
    best: dict[tuple[float, float], float] = {}
    for row in cells:
        key = float(row[N]), float(row[D])
        best[key] = min(best.get(key, np.inf), float(row[loss]))
    return laws.from_arrays(N=[k[0] for k in best], D=[k[1] for k in best], L=list(best.values()))
