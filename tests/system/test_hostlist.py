"""Lists of nodes against what they were made of, and against Slurm's own reader where it is installed."""

import itertools
import random
import shutil
import subprocess

import pytest

from distill.errors import ConfigError
from distill.system import hostlist

CASES = 250


def make(chance):
    """A random list, and its hosts in order."""
    entries, want = [], []
    for _ in range(chance.randint(1, 3)):
        text, pieces = "", []
        for _ in range(chance.randint(1, 3)):
            name = "".join(chance.choices("abcxyz-.0", k=chance.randint(1, 4))).strip("-.0") or "n"
            numbers, ranges = [], []
            for _ in range(chance.randint(0, 2)):
                low, width = chance.randint(0, 120), chance.choice([1, 1, 2, 3, 4])
                high = low + chance.choice([0, 0, 1, 5])
                first = f"{low:0{width}d}"
                ranges.append(first if high == low else f"{first}-{high:0{width}d}")
                numbers += [f"{number:0{len(first)}d}" for number in range(low, high + 1)]
            text += name + (f"[{','.join(ranges)}]" if ranges else "")
            pieces += [[name]] + ([numbers] if ranges else [])
        if chance.random() < 0.3:
            text, pieces = text + ".cluster.local", [*pieces, [".cluster.local"]]
        entries.append(text)
        want += ["".join(parts) for parts in itertools.product(*pieces)]
    return ",".join(entries), want


def test_a_list_names_the_hosts_that_it_was_made_of(monkeypatch):
    """Seen to catch: a suffix dropped, the first bracket running fastest, widths lost, commas in brackets that part."""
    monkeypatch.setattr(hostlist.shutil, "which", lambda name: None)
    for seed in range(CASES):
        nodes, want = make(random.Random(seed))
        assert list(hostlist.hosts(nodes)) == want, nodes
        assert hostlist.first(nodes) == want[0], nodes


@pytest.mark.skipif(not shutil.which("scontrol"), reason="Slurm is not installed")
def test_slurm_reads_the_same_hosts(tmp_path, monkeypatch):
    """Where it reads them: not every version knows a suffix, and it orders three brackets in a way of its own."""
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    read = 0
    for seed in range(CASES):
        nodes, want = make(random.Random(seed))
        done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.split():
            read += 1
            assert sorted(done.stdout.split()) == sorted(want), nodes
            assert done.stdout.split()[0] == want[0] == hostlist.first(nodes)
        assert hostlist.first(nodes) == want[0]
    assert read > CASES / 4


@pytest.mark.parametrize(
    "nodes", ["", ",", "n[1", "n]", "n[]", "n[3-1]", "n[a-b]", "n[1-999999999]", "n[[1]]", "a b", "n" * 20_000]
)
def test_what_is_no_list_is_refused(nodes, monkeypatch):
    monkeypatch.setattr(hostlist.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="list of nodes"):
        hostlist.first(nodes)


def test_a_scontrol_that_fails_or_hangs_is_done_without(tmp_path, monkeypatch):
    for script in ("exit 1", "echo n9; exit 1", "true"):
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        assert hostlist.first("n[1-2].local") == "n1.local"
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'first\\nsecond\\n'\n")
    assert hostlist.first("n[1-2]") == "first"
