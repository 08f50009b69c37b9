"""Where a daemon serves its page, and whom it shows there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dexcom2mqtt.config.settings import Settings
from dexcom2mqtt.daemon import page
from tests.support.builders import account


def test_ingress_has_its_own_place() -> None:
    """It listens where configured, and answers only one address, without a token and under any name."""
    place = page.ingress("0.0.0.0 8099 172.30.32.2")
    assert place
    assert (place.host, place.port) == ("0.0.0.0", 8099)
    access = place.access
    assert (access.token, access.names, access.peers) == (None, None, frozenset({"172.30.32.2"}))


@pytest.mark.parametrize(
    "text",
    [
        *("8099", "0.0.0.0 8099", "0.0.0.0 8099 172.30.32.2 x", " "),
        *("0.0.0.0 0 172.30.32.2", "0.0.0.0 65536 172.30.32.2", "0.0.0.0 -1 172.30.32.2", "0.0.0.0 http 172.30.32.2"),
        *("0.0.0.0 8099 supervisor", "0.0.0.0 8099 172.30.32", "0.0.0.0 8099 172.30.32.0/23"),
    ],
)
def test_an_invalid_place_is_reported(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """There is no page for ingress then, and one line says why."""
    assert page.ingress(text) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("web: DEXCOM2MQTT_INGRESS must look like 0.0.0.0 8099 172.30.32.2")


def test_the_order_of_the_accounts_stays() -> None:
    """However accounts come and go, the page and the paths without a key are about the same ones as before."""
    keys = ("anna", "ben", "carla")
    settings = Settings(accounts=dict.fromkeys(keys, account()))
    served: Any = SimpleNamespace(configured={}, pollers={})
    shown = page.Shown(served, lambda: settings)
    for now in (["ben"], ["ben", "anna"], [], ["carla", "anna", "ben"]):
        served.configured = dict.fromkeys(now, account())
        served.pollers = {key: SimpleNamespace(seen=None, time=SimpleNamespace(now=None)) for key in now}
        assert list(shown.now()) == sorted(now)
        assert shown.first() == "anna"
    settings = replace(settings, accounts=dict.fromkeys(("ben", "carla"), account()), broken=("anna",))
    assert (list(shown.now()), shown.first()) == (list(keys), "anna")  # goes on as it was, but its file is broken
    settings = replace(settings, accounts=dict.fromkeys(("ben", "carla"), account()), broken=())
    assert shown.first() == "ben"
    settings = Settings()
    assert shown.first() is None
