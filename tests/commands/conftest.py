"""Fixtures: the simulated Share service with two accounts, and the check command with a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.demo.share_service import SimulatedShare, accelerated
from tests.support.checking import ANNA, BEN, Bench
from tests.support.proxy import forget_variables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_variables(monkeypatch)


@pytest.fixture
def share() -> Iterator[SimulatedShare]:
    """Return a running Share service with two accounts."""
    with SimulatedShare([ANNA, BEN], accelerated(1)) as service:
        yield service


@pytest.fixture
def bench(tmp_path: Path, share: SimulatedShare) -> Bench:
    """Return a configuration and the command for it."""
    return Bench(tmp_path, share)
