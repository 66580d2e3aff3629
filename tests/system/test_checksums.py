"""Seals: every change of a sealed file is named, and nothing outside of the folder is touched."""

import json
import random

import pytest
from etils import epath

from distill.system import checksums


@pytest.fixture
def folder(tmp_path):
    folder = epath.Path(tmp_path / "sealed")
    (folder / "d").mkdir(parents=True)
    (folder / "a").write_bytes(bytes(range(256)) * 5)
    (folder / "d" / "b").write_bytes(b"")
    checksums.write_checksums(folder)
    return folder


def test_what_was_not_changed_is_whole(folder):
    assert checksums.first_mismatch(folder) == ""
    (folder / "of another program").write_text("is not looked at")
    assert checksums.first_mismatch(folder) == ""


def test_every_flipped_bit_is_found(folder):
    chance, whole = random.Random(0), (folder / "a").read_bytes()
    for _ in range(50):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (folder / "a").write_bytes(bytes(data))
        assert checksums.first_mismatch(folder).startswith("a: sha256 ")
    (folder / "a").write_bytes(whole)
    assert checksums.first_mismatch(folder) == ""


def test_a_file_that_is_gone_longer_or_shorter_is_named(folder):
    (folder / "d" / "b").write_bytes(b"x")
    assert checksums.first_mismatch(folder) == "d/b: has 1 bytes, wanted 0"
    (folder / "d" / "b").unlink()
    assert checksums.first_mismatch(folder) == "d/b: is missing"


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": ["x", "y"]}', "{", '{"a": null}']
)
def test_a_seal_that_cannot_be_read_is_damage(folder, text):
    (folder / checksums.NAME).write_text(text)
    assert "is not readable" in checksums.first_mismatch(folder)


def test_a_missing_seal_is_damage(folder):
    (folder / checksums.NAME).unlink()
    assert "never complete" in checksums.first_mismatch(folder)
    assert "never complete" in checksums.first_mismatch(folder / "nowhere")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "d/../../outside"])
def test_a_seal_names_nothing_outside(folder, name):
    (folder.parent / "outside").write_text("secret")
    (folder / checksums.NAME).write_text(json.dumps({name: [6, "0" * 64]}))
    assert "outside of its directory" in checksums.first_mismatch(folder)
