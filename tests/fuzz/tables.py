"""Tables, laws and records: what a fit, a report and a study read."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill import laws
from distill.laws.fitting import rows, table
from distill.laws.forms.forms import Supervised
from distill.laws.planning import lawfile
from distill.records import logger, metrics, predictions, runs
from distill.report.study import results
from tests.fuzz.harness import FIRST, Reader

ROWS = 12
_HEAD = "model,N,D,loss,kind\n"
_CSV = _HEAD + "".join(f'"m{i}",{10**6 + i},{2 * 10**7},{3 - i / 10},supervised\n' for i in range(ROWS))
_WORDS = (
    *(b"nan", b"inf", b"1e999", b"-1", b"0", b'"', b'""', b"\xef\xbb\xbf", b"loss", b"N", b"D", b"kind", b"run,"),
    *(b"supervised", b"L_S", b"\n\n", b",,,", b"1e-320", b"0x10", b"1_0", b"\xc3\xa9"),
)


def _read(suffix: str) -> Callable[[Path], tuple[Callable[[bytes], Any], list[bytes]]]:
    """The whole way of a table into a fit: columns, a rule, units, doubles."""

    def prepare(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
        file = folder / f"case{suffix}"

        def call(case: bytes) -> Any:
            file.write_bytes(case)
            found = table.load_table(file)
            checked = rows.rows_of(Supervised, rows.select(Supervised, found))
            return [column.tolist() for column in checked.inputs]

        objects = [dict(zip(_HEAD.strip().split(","), line.split(","))) for line in _CSV.splitlines()[1:]]
        for entry in objects:
            entry |= {name: float(entry[name]) for name in ("N", "D", "loss")}  # type: ignore[arg-type]
        if suffix == ".csv":
            return call, [_CSV.encode(), b"\xef\xbb\xbf" + _CSV.replace("loss", "L").encode()]
        if suffix == ".jsonl":
            return call, ["".join(json.dumps(entry) + "\n" for entry in objects).encode()]
        return call, [_parquet(objects, codec) for codec in ("none", "snappy", "zstd")]

    return prepare


def _parquet(objects: list[dict[str, Any]], codec: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(objects), stream, compression=codec)
    return stream.getvalue()


def _rule(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    known = laws.load_table("apple")
    seeds = [b"L_S<=2.3", b"N_S >= 1e9 and D_S < 1e12", b"kind == distillation", b"kind != 'x' and L_S>2"]
    return lambda case: int(known.where(case.decode("utf-8", "replace")).lines.sum()), seeds


def _law(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    file = folder / "law.json"

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        found = lawfile.read(file)
        laws.load(file)
        results._law(file)  # what a report reads of it
        many = found.boot.kept(N_S=5e8, D_S=1e11, L_T=2.1) if found.boot else 0
        return found.distillation(N_S=5e8, D_S=1e11, L_T=2.1), many, found.region

    return call, [(FIRST / "law.json").read_bytes()]


def _csv(name: str, cls: Callable[[Path], runs.RecordTable]) -> Reader:
    def prepare(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
        file = folder / name

        def call(case: bytes) -> Any:
            file.write_bytes(case)
            return len(cls(file).load())

        return call, [(FIRST / name).read_bytes()]

    return Reader(name=name.replace(".", "_"), prepare=prepare, named=(name,), words=_WORDS)


def _record(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    file = folder / "result.json"

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        return runs.load_record(file)

    return call, [(FIRST / "run" / "result.json").read_bytes()]


def _metrics(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    file = folder / "metrics.jsonl"

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        found = metrics.read(file, ["ntp", "loss"], 3)
        metrics.last(file)
        return len(found), len(logger.read_metrics(file))

    return call, [(FIRST / "run" / "metrics.jsonl").read_bytes()]


_NOTE = {"command": "c", "planned": {"5e4b2ddfb84a": "a", "x": "b"}, "values": {"lambda_": ["0", "1"]}}
_NOTE |= {"ablated": {"fa73ee73baff": {"base": "b", "settings": [["lambda_", "0"]], "plain": False}}}


def _study(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    """What a report reads of a study: its note (0), its plan (1), its runs (2), its predictions (3)."""
    plan = {"bill": dict.fromkeys(("student", "logits", "teacher", "serving"), 1.0), "sentence": "s", "scenario": "x"}
    plan |= {"teacher": "", "N_S": 1e6, "L_S": 2.0, "supervised": {"L": 2.1, "compute": 3.0}, "constraint": "compute"}
    (folder / "laws").mkdir()
    files = [folder / "study.json", folder / "laws" / "plan.json", folder / "runs.csv", folder / "predictions.csv"]
    whole = [json.dumps(_NOTE).encode(), json.dumps(plan).encode()]
    whole += [(FIRST / name).read_bytes() for name in ("runs.csv", "predictions.csv")]
    shutil.copy(FIRST / "curves.csv", folder)
    for file, content in zip(files, whole):
        file.write_bytes(content)

    def call(case: bytes) -> Any:
        which = case[0] % len(files) if case else 0
        files[which].write_bytes(case[1:])
        try:
            return len(results.load(folder).runs)
        finally:
            files[which].write_bytes(whole[which])

    return call, [bytes([i]) + content for i, content in enumerate(whole)]


READERS = (
    Reader(name="table_csv", prepare=_read(".csv"), named=("case.csv",), words=_WORDS),
    Reader(name="table_jsonl", prepare=_read(".jsonl"), named=("case.jsonl",), words=_WORDS),
    Reader(name="table_parquet", prepare=_read(".parquet"), named=("case.parquet",)),
    Reader(name="rule", prepare=_rule, words=(b"and", b"<=", b"==", b"'", b"N_S", b"L_T", b"kind", b"nan", b" " * 99)),
    Reader(name="law_json", prepare=_law, named=("law.json",), tree=True),
    _csv("runs.csv", runs.RunTable),
    _csv("curves.csv", runs.CurveTable),
    _csv("predictions.csv", predictions.PredictionTable),
    Reader(name="result_json", prepare=_record, named=("result.json",), tree=True),
    Reader(name="metrics_jsonl", prepare=_metrics, named=("metrics.jsonl",), words=(b'"step": ', b'"ntp": ', b"NaN")),
    Reader(
        name="study", prepare=_study, named=("study.json", "plan.json", "runs.csv", "predictions.csv"), words=_WORDS
    ),
)
