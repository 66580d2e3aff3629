"""Command lines and configs: flags, values, config.txt, the lines of a study."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import study as study_config
from distill import config as configs
from distill.config import ExperimentConfig, StudyExperimentConfig, build
from distill.study import matrix
from launch import fit, tokenize, train
from launch.support import cli
from tests.fuzz.harness import FIRST, Reader

_WORDS = (
    *(
        b"--",
        b"=",
        b"--config.",
        b"--config=configs/train.py:micro",
        b"--config.tokens=",
        b"optim.learning_rate",
        b"\n",
    ),
    *(
        b"model.d_model=",
        b"1e999",
        b"nan",
        b"inf",
        b"-1",
        b"250K",
        b"2.5e5",
        b"1_000",
        b"T",
        b",",
        b"true",
        b"teacher.",
    ),
    *(b"objective.target=", b"topk", b"data.files.paths=a,b", b"mesh.data=", b"1" * 400, b"9e99999999", b"."),
)


def _text(case: bytes) -> str:
    return case.decode("utf-8", "replace")


def _flags(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    """A line an argument, as launch.train reads them; --help is no case."""

    def call(case: bytes) -> Any:
        argv = [line for line in _text(case).split("\n") if line not in ("-h", "--help")]
        flags = train.parser().parse_args(argv)
        return configs.fingerprint(cli.config_of(ExperimentConfig, flags)), sorted(vars(flags).items())

    return call, [
        b"--workdir=w\n--config.tokens=250K\n--config.optim.learning_rate=5e-3\n--config.data.split=teacher",
        b"--config=configs/train.py:micro\n--workdir=w\n--dry-run\n--config.model.tied=true\n--config.mesh.data=2",
        b"--workdir=w\n--config.data.source=files\n--config.data.files.paths=a,b\n--config.objective.target=topk\n--config.objective.top_k=4",
    ]


def _config(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    def call(case: bytes) -> Any:
        found = configs.from_text(ExperimentConfig, _text(case), "config.txt")
        assert configs.from_text(ExperimentConfig, configs.to_text(found)) == found or "nan" in repr(found)
        return configs.fingerprint(found)

    return call, [(FIRST / "run" / "config.txt").read_bytes(), b"tokens = 500\nseq_len = 8\n"]


def _lines(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    """Lines of a study: the word before the colon says which field a line belongs to."""
    base: Any = build(StudyExperimentConfig, study_config.get_config("").to_dict())
    fields = ("models", "teachers", "supervised", "distilled", "ablations")

    def call(case: bytes) -> Any:
        found: dict[str, list[str]] = {name: [] for name in fields}
        for line in _text(case).split("\n"):
            name, _, text = line.partition(":")
            found.setdefault(name, []).append(text)
        wanted = {name: tuple(found[name]) for name in fields}
        study = dataclasses.replace(base.study, **wanted)
        return len(matrix.expand(dataclasses.replace(base, study=study), Path("w")))

    return call, [
        b"models:a = 16x1\nmodels:b = 32x2\nteachers:b @ 8K\nsupervised:a b @ 4K 8K\ndistilled:b@8K > a b @ 4K 8K",
        b"models:a = 16x1\nteachers:a @ 8K\ndistilled:a@8K > a @ 4K\nablations:lambda_ = 0 0.5 1\n"
        b"ablations:target = soft topk:4 argmax",
    ]


def _columns(folder: Path) -> tuple[Callable[[bytes], Any], list[bytes]]:
    """What launch.fit and launch.tokenize read on their command lines."""

    def call(case: bytes) -> Any:
        columns, deltas, *rest = [*_text(case).split("\n"), "1"] if b"\n" not in case else _text(case).split("\n")
        words = [word for word in rest if word not in ("-h", "--help")]
        flags = tokenize.parser().parse_args(["--out=store", "a.txt", *words])
        of_fit = fit.pairs("columns", columns, "N=params"), fit.deltas_of(deltas)
        return *of_fit, tokenize.read_config(flags.files, flags.overrides)

    return call, [
        b"N=params,D=tokens\n1e-3,1e-2\n--tokenizer.kind=bpe\n--tokenizer.vocab_size=300\n--columns.prompt={a} {b}",
        b"N=x,L=y\n1\n--splits.validation=0.5\n--files.separator=x",
    ]


READERS = (
    Reader(name="flags", prepare=_flags, words=_WORDS),
    Reader(name="config_txt", prepare=_config, named=("config.txt",), words=_WORDS),
    Reader(name="study_lines", prepare=_lines, named=("config.", "model", "tokens", "wanted"), words=(
        b"models:", b"teachers:", b"distilled:", b"ablations:", b" @ ", b" > ", b"8K", b"x", b"=", b"a@8K", b"1e30")),
    Reader(name="columns", prepare=_columns, words=(b"=", b",", b"--", b"{a}", b"N", b"1e-3")),
)  # fmt: skip
