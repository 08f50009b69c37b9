"""Tests of the configuration do not find this machine's own."""

from pathlib import Path

import pytest

from dexcom2mqtt.config import sources


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's own configuration out of the tests."""
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    monkeypatch.setattr(sources, "DEFAULT_FILES", (Path("config.yaml"), empty / "etc.yaml"))
    monkeypatch.setattr(sources, "DOCKER_SECRETS", empty / "secrets")
