"""Where a daemon serves its page."""

from __future__ import annotations

import pytest

from dexcom2mqtt.daemon import page


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
