import json

import pytest

from distill import data
from distill.config.data import DataConfig, FilesConfig

WORDS = ("we", "the", "people", "of", "a", "more", "perfect", "union", "establish", "justice", "insure", "peace")


def make_text(number: int) -> str:
    """A short document, another one for each number."""
    return f"{number}: " + " ".join(WORDS[(number * 7 + k * k) % len(WORDS)] for k in range(5 + number % 60))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    return data.open_store(DataConfig(), tmp_path_factory.mktemp("embedded"))


@pytest.fixture
def texts():
    return [make_text(i) for i in range(400)]


@pytest.fixture
def corpus(tmp_path, texts):
    """A folder of jsonl files with 400 documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, part in (("a.jsonl", texts[:150]), ("b.jsonl", texts[150:])):
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return folder


@pytest.fixture
def config(corpus):
    return DataConfig(source="files", files=FilesConfig(paths=(f"{corpus}/*.jsonl",)))


@pytest.fixture
def store(config, tmp_path):
    return data.open_store(config, tmp_path / "stores")
