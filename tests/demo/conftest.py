"""Fixtures: the simulated Share service with a clock that tests set, and a client for each account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.demo.share_service import SimulatedShare
from tests.support.plain_client import ANNA, BEN, Client, Clock

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def share(clock: Clock) -> Iterator[SimulatedShare]:
    with SimulatedShare([ANNA, BEN], clock) as service:
        yield service


@pytest.fixture
def anna(share: SimulatedShare) -> Iterator[Client]:
    with Client(share) as client:
        client.login()
        yield client


@pytest.fixture
def ben(share: SimulatedShare) -> Iterator[Client]:
    with Client(share, BEN) as client:
        client.login()
        yield client
