"""What a command loads, since on a Raspberry Pi a library may take a second, and where it can write nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

LIBRARIES = {"paho", "pydantic", "requests", "tenacity", "urllib3", "yaml"}
PROGRAM = """
import json, sys
from dexcom2mqtt import cli
try:
    cli.main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""


def loaded(folder: Path, *arguments: str) -> set[str]:
    """Run a command and name all modules that are loaded at its end."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    # Not what this machine has: a run that finds a configuration goes on.
    environ = {"PYTHONPATH": str(ROOT), "DEXCOM2MQTT_CONFIG": str(folder / "missing.yaml")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environ, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--version"], set()),
        (["--help"], set()),
        (["--no-such-option"], set()),
        (["schema"], {"pydantic", "yaml"}),
        (["healthcheck"], {"pydantic", "yaml"}),
        (["run"], {"pydantic", "yaml"}),
        (["purge", "--account", "anna"], {"pydantic", "yaml"}),
    ],
)
def test_a_command_loads_only_the_libraries_that_it_needs(
    tmp_path: Path, arguments: list[str], needed: set[str]
) -> None:
    """Where there is no configuration, even run and purge end before they load what connects."""
    assert loaded(tmp_path, *arguments) & LIBRARIES == needed


def test_a_closed_output_is_no_failure() -> None:
    """Where there is no standard output at all, a command ends as it would otherwise."""
    command = f"exec {sys.executable} -m dexcom2mqtt schema >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
