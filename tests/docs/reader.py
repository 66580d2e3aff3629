"""A reader of the documents: a clean clone, one fresh .venv, and every block typed as it stands.

The clone holds what git would hold (tracked files, and new ones that it does not ignore), in a folder with nothing
beside it and with a home of its own, so that no store, run or compiled program of the machine helps. Blocks are typed
into shells that keep the folder and the variables of the one before.

A real installation downloads 700 MB. So `python3 -m venv` and `pip install -e '.[extra]'` are typed as they stand,
but by default answered by stand-ins: `pip` links, out of the running interpreter's packages, those that setup.cfg asks
for and what these need, and no others. A page that runs before it installs, or that needs an extra which it does not
name, fails as it would for a reader. `Reader(..., real=True)` downloads (the slow suite); .ci/run installs through the
quickstart.
"""

import contextlib
import dataclasses
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import Block, difference

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# A tiny Hugging Face directory, made by the project's own commands.
_MODEL = """
python -m launch.train --workdir=made/run --config.tokens=4096 --config.model.d_model=32 --config.model.n_heads=2 \\
  --config.model.n_layers=2 --config.eval.tokens=2048 --config.seq_len=64 --config.data.tokenizer.kind=bpe \\
  --config.data.tokenizer.vocab_size=384 --config.model.vocab_size=384
python -m launch.convert --in=made/run --out=models/qwen
"""
_TEXTS = """
import pathlib
from distill.data.sources import embedded
folder = pathlib.Path("texts")
folder.mkdir(exist_ok=True)
for address in embedded.addresses():
    if address.name >= "1985":
        kind = "v" if address.split == "validation" else "t"
        (folder / f"{kind}-{address.name}.txt").write_text(address.text)
"""
# The tools of clusters: they take what they are given, and a TPU slice is ready at once. What the commands hand to them
# is tested in tests/launch/test_clusters.py.
_TOOLS = {
    "sbatch": "cat >/dev/null; echo Submitted batch job 1",
    "gcloud": 'case "$*" in *describe*) echo READY ;; *distill.code*) echo 0 ;; esac',
    "kubectl": '[ "$1 $2 $3" != "apply -f -" ] || cat >/dev/null',
    "docker": "exit 0",
}
_CLUSTER = "\n".join(
    f"printf '#!/bin/bash\\n%s\\n' {shlex.quote(text)} >\"$TOOLS/{name}\"" for name, text in _TOOLS.items()
)
# What a block may need that the reader makes: name -> (command, a path that shows that it is there).
PROVIDED = {
    "cluster": (f'{_CLUSTER}\nchmod +x "$TOOLS"/*; mkdir -p made; touch made/cluster', "made/cluster"),
    "model": (_MODEL + f"python - <<'END'\n{_TEXTS}END\n", "models/qwen/config.json"),
    "texts": (f"python - <<'END'\n{_TEXTS}END\n", "texts"),
}
# What it may need that no test has; such blocks are not run.
ABSENT = ("hours", "network", "download")


class Failed(Exception):
    """A block ended with an error, or printed something other than its page shows."""


@dataclasses.dataclass
class Reader:
    """Reads pages in `folder` / clone. `timeout`: seconds for one block."""

    folder: Path
    timeout: float = 600
    real: bool = False
    source: Path = ROOT

    def __post_init__(self):
        self.clone, self.home = self.folder / "clone", self.folder / "home"
        self._state = self.folder / "state.sh"
        self.home.mkdir(parents=True)
        copy(self.source, self.clone)
        self._saved: set[str] = set()
        self.seconds: dict[str, float] = {}  # of processor time, by page
        self._environment = {
            "HOME": str(self.home),
            "PATH": f"{self._stand_ins()}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "JAX_PLATFORMS": "cpu",
            "COLUMNS": "200",
            "TOOLS": str(self.folder / "bin"),
        }
        self.forget()

    def forget(self) -> None:
        """A new terminal in the clone, in its .venv if there is one."""
        activate = self.clone / ".venv" / "bin" / "activate"
        self._state.write_text(f"cd {self.clone}\n[ ! -f {activate} ] || . {activate}\n")

    def read(self, block: Block) -> str:
        """Types a block and returns what it printed. Raises Failed, also where its page shows another output."""
        if block.needs in PROVIDED:
            command, made = PROVIDED[block.needs]
            if not (self.clone / made).exists():
                self._type(block, command)
        if block.file:
            path = self.clone / block.file
            before = path.read_text("utf-8") + "\n\n" if block.file in self._saved else ""
            path.write_text(before + block.text, "utf-8")
            self._saved.add(block.file)
            return ""
        if block.language == "python":
            script = self.folder / "block.py"
            script.write_text(block.text, "utf-8")
            output = self._type(block, f"PYTHONPATH=. python {script}")
        else:
            output = self._type(block, block.text, dict(block.variables))
        if block.output is not None and (lost := difference(block.output, output)):
            raise Failed(f"{block}: {lost}\n\nall of it:\n{output[-6000:]}")
        return output

    def _type(self, block: Block, text: str, variables: dict[str, str] | None = None) -> str:
        """Runs lines of bash that stop at the first error; the next call begins with their folder and variables."""
        script, before = self.folder / "block.sh", resource.getrusage(resource.RUSAGE_CHILDREN)
        save = f"{{ export -p; echo cd \"'$PWD'\"; }} >{self._state}"
        script.write_text(f". {self._state}\ntrap {shlex.quote(save)} EXIT\nset -ae\n{text}", "utf-8")
        with (self.folder / "output").open("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=self._environment | (variables or {}), cwd=self.clone, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:  # nothing that a block started outlives it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            printed = output.read()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.seconds[block.page] = self.seconds.get(block.page, 0.0) + used
        if code != 0:
            how = f"not finished after {self.timeout:.0f} s" if code is None else f"exit code {code}"
            raise Failed(f"{block}: {how}\n\n{text}\n{printed[-6000:]}")
        return printed

    def _stand_ins(self) -> Path:
        """A folder with the python3 of this machine, which makes environments as `real` says."""
        folder = self.folder / "bin"
        folder.mkdir()
        base = Path(sys.base_prefix) / "bin" / "python3"
        if self.real:
            (folder / "python3").symlink_to(base)
            return folder
        lines = [
            "#!/bin/bash",
            f'[ "$1 $2" = "-m venv" ] || exec {base} "$@"',
            f'{base} -m venv --without-pip "$3"',
            f'exec {sys.executable} {HERE / "stand_in_pip.py"} new "$3"',
        ]
        (folder / "python3").write_text("\n".join(lines) + "\n")
        (folder / "python3").chmod(0o755)
        return folder


def copy(source: Path, target: Path) -> None:
    """A repository with what a clone of `source` would hold if all that is new were committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=source, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        path = source / name
        if path.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / name, follow_symlinks=False)
    who = ["-c", "user.name=reader", "-c", "user.email=reader@localhost"]
    for words in (["init"], ["add", "--all"], [*who, "commit", "--no-verify", "--message=clone"]):
        subprocess.run(["git", *words], cwd=target, capture_output=True, check=True)
