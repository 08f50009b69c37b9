"""Fixtures: the simulated Share service, a signed-in client, and a check that the log contains no secret."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trustme

from dexcom2mqtt import share
from dexcom2mqtt.demo.share_service import SimulatedShare
from dexcom2mqtt.logs import set_up_logging
from dexcom2mqtt.share import transport
from tests.support.proxy import forget_variables
from tests.support.share_client import ACCOUNTS, NOW, READ, SIGN_IN, asked, client_of, secrets_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dexcom2mqtt.share import ShareClient


@pytest.fixture(autouse=True)
def _no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log everything with the daemon's own settings; no log line contains a secret."""
    set_up_logging("debug")
    caplog.set_level(logging.DEBUG)
    yield
    for name in ("dexcom2mqtt", "urllib3"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    log = "\n".join(map(logging.Formatter().format, caplog.get_records("call")))
    assert not secrets_in(log)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_variables(monkeypatch)


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


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit a call to half a second instead of 20 s."""
    assert share.CALL_SECONDS == 20
    monkeypatch.setattr(transport, "CALL_SECONDS", 0.5)


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[trustme.CA]:
    """Return an authority that this machine trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    adapter = transport.adapter  # the whole process shares one context, which can only be replaced
    adapter.cache_clear()
    yield authority
    adapter().close()
    adapter.cache_clear()
