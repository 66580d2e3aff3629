"""What `pip install` leaves in a new environment, by links to the packages of the interpreter that runs this.

    stand_in_pip.py new VENV                     puts a `pip` of this kind into an environment
    stand_in_pip.py pip VENV install -e '.[x]'   links the packages of setup.cfg and of the extra x, and what these need

A package that is not there is an error, and so is any other use of pip.
"""

import configparser
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def new(venv: Path) -> int:
    """Gives the environment its `pip`."""
    script = venv / "bin" / "pip"
    script.write_text(f'#!/bin/bash\nexec {sys.executable} {__file__} pip {venv.absolute()} "$@"\n')
    script.chmod(0o755)
    return 0


def install(venv: Path, arguments: list[str]) -> int:
    """`pip install -e .` or `pip install -e '.[x,y]'` in the project's folder."""
    words = [a for a in arguments if a not in ("--quiet", "-q", "--disable-pip-version-check")]
    match = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", words[2]) if len(words) == 3 else None
    if words[:2] not in (["install", "-e"], ["install", "--editable"]) or match is None:
        print(f"error: pip {' '.join(arguments)}: wanted pip install -e .", file=sys.stderr)
        return 2
    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    extras = setup["options.extras_require"]
    lines = setup["options"]["install_requires"]
    for extra in filter(None, (match[1] or "").split(",")):
        if extra not in extras:
            print(f"error: setup.cfg has no extra {extra!r}", file=sys.stderr)
            return 2
        lines += "\n" + extras[extra]
    wanted = [Requirement(line) for line in lines.splitlines() if line.strip()]
    packages = next(venv.glob("lib/python*/site-packages"))
    link(closure(wanted), packages, venv / "bin")
    (packages / "distill-clone.pth").write_text(f"{Path.cwd()}\n")
    for line in setup.get("options.entry_points", "console_scripts", fallback="").split("\n"):
        if line.strip():
            program(venv / "bin", *(word.strip() for word in line.split("=")))
    return 0


def closure(wanted: list[Requirement]) -> dict[str, metadata.Distribution]:
    """These packages and all that they need, by name. Raises SystemExit for one that is not there, or too old."""
    done: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(wanted)
    while queue:
        requirement = queue.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            done[name] = distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise SystemExit(f"error: {requirement} is not installed here") from None
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise SystemExit(f"error: {requirement}, but {distribution.version} is installed here")
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in {"", *requirement.extras}):
                queue.append(needed)
    return done


def link(distributions: dict[str, metadata.Distribution], packages: Path, programs: Path) -> None:
    """Links what the packages consist of, and writes the programs that they bring."""
    for distribution in distributions.values():
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
            target = Path(str(distribution.locate_file(top)))
            if target.exists() and not (packages / top).exists():
                (packages / top).symlink_to(target)
        for entry in distribution.entry_points.select(group="console_scripts"):
            program(programs, entry.name, entry.value.partition(" ")[0])


def program(folder: Path, name: str, target: str) -> None:
    """The script that pip writes for an entry point such as `package.module:main`."""
    module, _, attribute = target.partition(":")
    call = f"import sys; from {module} import {attribute.split('.')[0]}; sys.exit({attribute}())"
    (folder / name).write_text(f"#!{folder / 'python'}\n{call}\n")
    (folder / name).chmod(0o755)


if __name__ == "__main__":
    action, place, *rest = sys.argv[1:]
    sys.exit(new(Path(place)) if action == "new" else install(Path(place), rest))
