"""The package: what is built is complete, small and typed, and works without anything else installed.

It is built only from the files in the repository, not from other files in this folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.documents import blocks_of, text_of
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e]

PROJECT: Final = tomllib.loads(text_of("pyproject.toml"))["project"]
VERSION: Final = PROJECT["version"]
NAME: Final = f"dexcom2mqtt-{VERSION}"
MINUTES_4: Final = 240


def run(*command: str | Path, cwd: Path, home: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot import this checkout by chance; it must end with this exit code."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DEXCOM2MQTT_"))}
    ran = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environ | ({"HOME": str(home)} if home else {}),
        capture_output=True,
        text=True,
        timeout=MINUTES_4,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ran.returncode == code, f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
    return ran


def tracked(*paths: str) -> list[str]:
    """List the files in the repository."""
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split("\0") if path and (ROOT / path).exists()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the files in the repository, as a clone has them."""
    folder = tmp_path_factory.mktemp("clone")
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return folder


@dataclass(frozen=True)
class Built:
    """The built files: the sdist, the wheel from the sdist, and the wheel made directly from the clone."""

    sdist: Path
    wheel: Path
    straight: Path


@pytest.fixture(scope="module")
def built(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build everything with a build front end."""
    folder = tmp_path_factory.mktemp("built")
    python = make_venv(folder / "venv")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "build", cwd=folder)
    run(python, "-m", "build", "--outdir", folder / "dist", clone, cwd=folder)
    run(python, "-m", "build", "--wheel", "--outdir", folder / "straight", clone, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (straight,) = (folder / "straight").glob("*.whl")
    return Built(sdist, wheel, straight)


def make_venv(folder: Path) -> Path:
    """Make a virtual environment and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, without extras, into an empty environment; return the folder of its commands."""
    folder = tmp_path_factory.mktemp("installed")
    python = make_venv(folder)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", built.wheel, cwd=folder)
    return python.parent


# --- contents -----------------------------------------------------------------------------------------------


def test_wheel_has_only_the_package(built: Built) -> None:
    """The wheel has every file of the package, the marker for types, the licence, and no test or bench."""
    names = {name for name in zipfile.ZipFile(built.wheel).namelist() if not name.endswith("/")}
    info = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    assert names - info == set(tracked("dexcom2mqtt"))
    assert "dexcom2mqtt/py.typed" in names
    assert {name.removeprefix(f"{NAME}.dist-info/") for name in info} == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_sdist_has_what_is_needed_and_nothing_private(built: Built) -> None:
    """The sdist has the repository's files except for the automation, and no others."""
    with tarfile.open(built.sdist) as sdist:
        names = {member.name.removeprefix(f"{NAME}/") for member in sdist.getmembers() if member.isfile()}
    assert names - set(tracked()) == {"PKG-INFO"}
    assert {name for name in set(tracked()) - names if not name.startswith((".ci/", ".github/"))} == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "config.example.yaml", "dexcom2mqtt/py.typed"} <= names


def test_sdist_builds_the_same_wheel(built: Built) -> None:
    """The wheel made from the sdist is, byte for byte, the one made from the clone."""
    assert built.wheel.name == built.straight.name
    assert built.wheel.read_bytes() == built.straight.read_bytes()


def test_metadata_matches_the_project(built: Built) -> None:
    """Version, Python, licence, extras and description match pyproject.toml and the README, and there is no URL."""
    metadata = Parser().parsestr(zipfile.ZipFile(built.wheel).read(f"{NAME}.dist-info/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("dexcom2mqtt", VERSION)
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert metadata.get_payload() == text_of("README.md")
    assert metadata.get_all("Project-URL") is None


def test_version_is_in_one_place() -> None:
    """The version is static and only in pyproject.toml; the changelog begins with the next version."""
    assert "dynamic" not in PROJECT
    code = [path for path in tracked("dexcom2mqtt", "systemd", "Dockerfile", "scripts") if path.count(".")]
    assert [path for path in code if VERSION in (ROOT / path).read_text(encoding="utf-8")] == []
    first = re.findall(r"(?m)^## (.+)$", text_of("CHANGELOG.md"))[0]
    assert first == "Unreleased" or re.fullmatch(rf"{re.escape(VERSION)}( - \d{{4}}-\d\d-\d\d)?", first)


# --- what it does ------------------------------------------------------------------------------------------


def test_it_runs_without_extras(installed: Path, tmp_path: Path) -> None:
    """The command prints its version and its schema, also as a module; the demo names the extra that it needs."""
    assert run(installed / "dexcom2mqtt", "--version", cwd=tmp_path).stdout == f"{VERSION}\n"
    assert run(installed / "python", "-m", "dexcom2mqtt", "--version", cwd=tmp_path).stdout == f"{VERSION}\n"
    assert json.loads(run(installed / "dexcom2mqtt", "schema", cwd=tmp_path).stdout)["properties"]["accounts"]
    refused = run(installed / "dexcom2mqtt", "demo", cwd=tmp_path, code=1)
    assert refused.stdout == ""
    assert "pip install '.[demo]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_it_is_typed(installed: Path, tmp_path: Path) -> None:
    """A type checker finds the types of the installed library."""
    (tmp_path / "uses.py").write_text(
        "from dexcom2mqtt.share import ShareClient\n"
        'client = ShareClient(username="anna", password="password")\n'
        "reveal_type(client.current_reading())\n",
        encoding="utf-8",
    )
    options = ("--strict", "--cache-dir", os.devnull, "--python-executable", installed / "python")
    said = run(sys.executable, "-m", "mypy", *options, "uses.py", cwd=tmp_path).stdout
    assert "dexcom2mqtt.readings.Reading | None" in said


def test_the_demo_runs_with_its_extra(installed: Path, clone: Path, tmp_path: Path) -> None:
    """The command that the demo names, in the clone, installs what it needs; then it shows readings."""
    refused = run(installed / "dexcom2mqtt", "demo", cwd=tmp_path, code=1)
    (command,) = re.findall(r"the extra demo, in the clone: (\S+/pip install '\.\[demo\]')", refused.stderr)
    run("sh", "-euc", command, cwd=clone)
    shown = run(installed / "dexcom2mqtt", "demo", "--duration", "8", cwd=tmp_path).stdout
    assert "/anna/state" in shown
    assert "mg_dl" in shown


def test_the_documents_install_it_without_root(clone: Path, tmp_path: Path) -> None:
    """The documented commands, word for word in a clone, install a command that prints its version."""
    (block,) = [block for block in blocks_of("docs/deployment.md") if block.reason == ("e2e", "package")]
    assert run("sh", "-euc", block.text, cwd=clone, home=tmp_path).stdout.endswith(f"\n{VERSION}\n")
    assert (tmp_path / "dexcom2mqtt-venv" / "bin" / "dexcom2mqtt").exists()
