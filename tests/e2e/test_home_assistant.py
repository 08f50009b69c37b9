"""The blueprints in a real Home Assistant: the oldest supported version, and the newest available.

Home Assistant needs a Python that this machine does not have, so it gets its own Debian. It is installed with the
fixtures of its own tests, as they are packaged for custom integrations; these move its clock.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.debian import Debian, needs
from tests.support.processes import ROOT

pytestmark = [pytest.mark.e2e]

PLAY = Path("/srv/tests/e2e/home_assistant/play_blueprints.py")
INSTALLED = Path("/srv/home-assistant")


@dataclass(frozen=True)
class Release:
    """A Home Assistant: its version, its fixtures' version, the requirements of its integrations, and its Debian."""

    version: str
    fixtures: str
    needed: tuple[str, ...]
    suite: str
    python: str
    packages: tuple[str, ...] = ()


OLDEST = Release(
    "2025.10.4",
    "0.13.289",
    # The first is what the others of that release still expect; Home Assistant's own constraints say so, too.
    ("pycares<5", "PyTurboJPEG==1.8.0", "hassil==3.2.0", "home-assistant-intents==2025.10.1", "PyNaCl==1.6.0"),
    "trixie",
    "3.13",
    ("gcc", "libc6-dev", "python3-dev"),  # lru-dict has no wheel for it
)
NEWEST = Release(
    "2026.10.4",
    "0.13.375",
    (
        "PyTurboJPEG==1.8.3",
        "hassil==3.12.1",
        "home-assistant-intents==2026.10.6",
        "PyNaCl==1.6.2",
        "gazetteer-matcher==1.1.0",
    ),
    "forky",
    "3.14",
)
EVERYWHERE = ("paho-mqtt==2.1.0", "mutagen", "ha-ffmpeg==3.2.2")


@pytest.mark.parametrize("release", [OLDEST, NEWEST], ids=lambda release: release.version.replace(".", "_"))
def test_the_blueprints_play_through(release: Release) -> None:
    """Every alert rings, repeats, is acknowledged, snoozed, withdrawn and begins again as documented."""
    needs()
    with tempfile.TemporaryDirectory(prefix="dexcom2mqtt-") as name:
        debian = Debian(Path(name), release.suite, ("python3", "python3-venv", *release.packages))
        if f"Python {release.python}." not in (version := debian.run("python3", "--version").stdout):
            pytest.skip(f"Home Assistant {release.version} needs Python {release.python}, and it has {version.strip()}")
        debian.run("python3", "-m", "venv", INSTALLED)
        fixtures = f"pytest-homeassistant-custom-component=={release.fixtures}"
        debian.run(INSTALLED / "bin/pip", "install", "--quiet", fixtures, *release.needed, *EVERYWHERE)
        for folder in ("examples", "tests/e2e/home_assistant", "tests/messages/golden"):
            shutil.copytree(ROOT / folder, debian.inside(Path("/srv") / folder))
        play = ("-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-c", "/dev/null", "-o", "asyncio_mode=auto")
        played = debian.run(
            INSTALLED / "bin/python", *play, "-p", "no:logging", "--tb=short", "--show-capture=no", PLAY
        )
        assert " passed in " in played.stdout, played.stdout
        listed = debian.run(INSTALLED / "bin/pip", "list").stdout.split()
        assert listed[listed.index("homeassistant") + 1] == release.version
