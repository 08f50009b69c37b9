"""Fixtures: the simulated Share service, a client that is signed in, and a log in which no secret may be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.demo.share_service import SimulatedShare
from dexcom2mqtt.logs import set_up_logging
from tests.support.share_client import ACCOUNTS, NOW, READ, SIGN_IN, asked, client_of, secrets_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.share import ShareClient


@pytest.fixture(autouse=True)
def _no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log everything with the daemon's own settings; none of it tells a secret."""
    set_up_logging("debug")
    caplog.set_level(logging.DEBUG)
    yield
    for name in ("dexcom2mqtt", "urllib3"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    log = "\n".join(map(logging.Formatter().format, caplog.get_records("call")))
    assert not secrets_in(log)


@pytest.fixture
def service() -> Iterator[SimulatedShare]:
    with SimulatedShare(ACCOUNTS, lambda: NOW) as service:
        yield service


@pytest.fixture
def client(service: SimulatedShare) -> ShareClient:
    """Return a client that is signed in and has read once."""
    client = client_of(service)
    client.fetch()
    assert asked(service, client) == [*SIGN_IN, READ]
    return client
