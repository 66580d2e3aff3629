"""Every package that setup.cfg asks for is in CONTRIBUTING's list, with the reason; and the list has no other."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def asked_for():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = "\n".join(lines).split("\n")
    return {re.split(r"[<>=\[; ]", line.strip())[0].lower() for line in lines if line.strip()}


def listed():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text[text.index("## Packages") :], re.MULTILINE)
    found = {}
    for names, reason in rows:
        if set(names) <= {"-"} or names == "package":
            continue
        for name in re.findall(r"[\w.-]+", names):
            found[name.lower()] = reason
    return found


def test_every_package_has_a_reason():
    reasons = listed()
    assert set(reasons) == asked_for()
    assert all(len(reason) > 20 for reason in reasons.values())
