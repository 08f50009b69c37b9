"""The first steps of a newcomer, on today's and the next Debian, and with their Pythons.

The two commands of the README, word for word, in a clone on a Debian with only the packages that the README names; and
the whole suite with a Python that this machine does not have.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.debian import Debian, needs
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.e2e]

BARE = ("git", "python3", "python3-venv")
CLONE = Path("/srv/dexcom2mqtt")
NODE_RED = ROOT / ".node-red"
PY_NIGHTSCOUT = ROOT / ".py-nightscout"
SUITE_SECONDS = 900
PYTHON_OF = {"bookworm": "3.11", "trixie": "3.13", "forky": "3.14", "sid": "3.14"}
NAMED = re.compile(r"^\d+ tests: .* is not installed; (install the package [\w-]+|run npm install) ", re.MULTILINE)
"""The form of a skip reason that names a missing package."""


@contextmanager
def cloned(packages: Sequence[str], *suites: str) -> Iterator[Debian]:
    """Make a Debian of the first of these suites that is available today, with a fresh clone of the project in it."""
    needs()
    with tempfile.TemporaryDirectory(prefix="dexcom2mqtt-") as name:
        debian = first_of(Path(name), packages, suites)
        subprocess.run(["git", "clone", "--quiet", "--no-local", ROOT, debian.inside(CLONE)], check=True)
        yield debian


def first_of(folder: Path, packages: Sequence[str], suites: Sequence[str]) -> Debian:
    reasons = []
    for suite in suites:
        try:
            return Debian(folder / suite, suite, packages)
        except pytest.skip.Exception as why:
            reasons.append(f"{suite}: {why.msg}")
    pytest.skip("; ".join(reasons))


def in_the_clone(debian: Debian, *commands: str, seconds: float) -> str:
    """Run shell lines there, with only the variables that packages need in the environment; return the output."""
    return debian.run("sh", "-ec", f"cd {CLONE}\n" + "\n".join(commands), seconds=seconds).stdout


def readme_commands() -> list[str]:
    """Return the two commands of the README, word for word."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```sh\n(scripts/demo.*\n)(scripts/test.*\n)```", readme, re.MULTILINE)
    assert block
    return [line.strip() for line in block.groups()]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_bare_debian_runs_the_two_commands_of_the_readme(suite: str) -> None:
    """On Debian 12 and 13 the demo shows readings and the tests pass; each skipped test names its missing package."""
    with cloned(BARE, suite) as debian:
        demo, test = readme_commands()
        assert f"Python {PYTHON_OF[suite]}." in debian.run("python3", "--version").stdout
        # Word for word, except that the demo ends by itself instead of at Ctrl-C.
        shown = in_the_clone(debian, demo.replace("scripts/demo", "scripts/demo --duration 10", 1), seconds=300)
        assert re.search(r"^dexcom2mqtt/anna/value \d+$", shown, re.MULTILINE), shown
        assert "dexcom2mqtt/bridge/state online" in shown
        said = in_the_clone(debian, test, seconds=SUITE_SECONDS)
        reasons = [line for line in said.splitlines() if re.match(r"\d+ tests: ", line)]
        assert [line for line in reasons if not NAMED.match(line)] == []
        assert re.search(r"= \d+ passed, \d+ skipped", said)
        assert "install the package mosquitto " in said


def test_python_3_14_passes_the_suite() -> None:
    """The whole suite passes with Python 3.14, on the next Debian, and no test is skipped."""
    packages = (*BARE, "mosquitto", "mosquitto-clients", "faketime", "nodejs", "apparmor")
    with cloned(packages, "forky", "sid") as debian:
        if f"Python {PYTHON_OF['forky']}." not in (version := debian.run("python3", "--version").stdout):
            pytest.skip(f"it has {version.strip()}")
        if NODE_RED.exists():
            shutil.copytree(NODE_RED, debian.inside(CLONE / ".node-red"), symlinks=True)
        clients = [  # not copied, because they contain modules compiled for one Python
            f".venv/bin/python -m pip install --quiet --target .py-nightscout/{version} py-nightscout=={version}"
            for version in sorted(folder.name for folder in PY_NIGHTSCOUT.glob("*"))
        ]
        said = in_the_clone(debian, ". scripts/venv", *clients, "scripts/test --reruns 1", seconds=SUITE_SECONDS)
        assert re.search(r"= \d+ passed(, \d+ rerun)? in ", said)
