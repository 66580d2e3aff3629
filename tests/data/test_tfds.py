"""Datasets of TFDS: built, read without TensorFlow, and refused with the reason."""

import importlib
import json
import sys

import pytest

from distill import data
from distill.config.data import (
    ColumnsConfig,
    DataConfig,
    TfdsConfig,
)
from tests.data.test_sources import ALL_TRAIN, documents


@pytest.fixture(scope="module")
def tfds():
    return importlib.import_module("tensorflow_datasets")


@pytest.fixture(scope="module")
def speeches(tfds, tmp_path_factory):
    """A builder whose examples come from text files, registered under the name 'speeches'."""
    folder = tmp_path_factory.mktemp("speeches")
    for i in range(150):
        (folder / f"{i:03}.txt").write_text(f"speech {i}: " + "we the people " * (i % 9 + 1))

    class Speeches(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            turns = {"role": tfds.features.Text(), "content": tfds.features.Text()}
            features = {"text": tfds.features.Text(), "messages": tfds.features.Sequence(turns)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            files = sorted(folder.glob("*.txt"))
            return {"train": self._generate_examples(files[:120]), "test": self._generate_examples(files[120:])}

        def _generate_examples(self, files):
            for file in files:
                turns = [{"role": "user", "content": file.stem}, {"role": "assistant", "content": "yes"}]
                yield file.name, {"text": file.read_text(), "messages": turns}

    return [file.read_text() for file in sorted(folder.glob("*.txt"))]


def open_tfds(place, columns=None, splits=ALL_TRAIN, **fields):
    config = DataConfig(source="tfds", tfds=TfdsConfig(**fields), splits=splits, columns=columns or ColumnsConfig())
    return data.open_store(config, place)


def test_tfds_builds_and_reads_without_tensorflow(speeches, tmp_path):
    store = open_tfds(tmp_path / "s", name="speeches", data_dir=str(tmp_path / "tfds"), validation="test")
    assert sorted(documents(store)) == sorted(speeches[:120])
    assert sorted(documents(store, "validation")) == sorted(speeches[120:])
    assert "tensorflow" not in sys.modules
    again = open_tfds(tmp_path / "s", data_dir=str(tmp_path / "tfds/speeches/1.0.0"), validation="test")
    assert again.path == store.path
    part = open_tfds(tmp_path / "s", name="speeches", data_dir=str(tmp_path / "tfds"), train="train[:10%]")
    assert part.split("teacher").documents == 12


def test_tfds_chats(speeches, tmp_path):
    columns = ColumnsConfig(messages="messages", chat="{role}={content};")
    store = open_tfds(tmp_path / "s", columns, name="speeches", data_dir=str(tmp_path / "tfds"), train="test")
    assert sorted(documents(store))[0] == "user=120;assistant=yes;" and store.split("teacher").masked


def test_tfds_parquet_is_refused_with_the_reason(tfds, speeches, tmp_path):
    tfds.builder("speeches", data_dir=str(tmp_path / "tfds"), file_format="parquet").download_and_prepare()
    for fields in ({"name": "speeches", "data_dir": "tfds"}, {"data_dir": "tfds/speeches/1.0.0"}):
        fields["data_dir"] = str(tmp_path / fields["data_dir"])
        with pytest.raises(data.DataError, match="stored as parquet, wanted array_record: .*silently loses rows"):
            open_tfds(tmp_path / "s", **fields)


def test_tfds_tfrecord_is_refused_with_the_reason(tfds, speeches, tmp_path):
    tfds.builder("speeches", data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
    # Writing tfrecord needs TensorFlow; as far as opening goes, the info is what tells the formats apart.
    info = tmp_path / "tfds/speeches/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(data.DataError, match="stored as tfrecord, wanted array_record: reading it needs TensorFlow"):
        open_tfds(tmp_path / "s", name="speeches", data_dir=str(tmp_path / "tfds"))


def test_tfds_lost_rows_are_noticed(tfds, speeches, tmp_path):
    tfds.builder("speeches", data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
    info = tmp_path / "tfds/speeches/1.0.0/dataset_info.json"
    tree = json.loads(info.read_text())
    train = next(split for split in tree["splits"] if split["name"] == "train")
    train["shardLengths"] = ["121"]
    info.write_text(json.dumps(tree))
    with pytest.raises(data.DataError, match="'train' holds 120 records, its info says 121"):
        open_tfds(tmp_path / "s", name="speeches", data_dir=str(tmp_path / "tfds"))


def test_tfds_mistakes(speeches, tmp_path):
    with pytest.raises(data.DataError, match="TFDS knows no dataset 'no_such_thing'"):
        open_tfds(tmp_path, name="no_such_thing", data_dir=str(tmp_path))
    with pytest.raises(data.DataError, match="neither name nor data_dir is set"):
        open_tfds(tmp_path)
    with pytest.raises(data.DataError, match="there is no split 'dev', only"):
        open_tfds(tmp_path, name="speeches", data_dir=str(tmp_path / "tfds"), train="dev")
    with pytest.raises(data.DataError, match="no column 'txt', only"):
        open_tfds(tmp_path, ColumnsConfig(text="txt"), name="speeches", data_dir=str(tmp_path / "tfds"))
