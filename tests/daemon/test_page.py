"""Where a daemon serves its page."""

from __future__ import annotations

import pytest

from dexcom2mqtt.daemon import page


def test_ingress_has_a_place_of_its_own() -> None:
    """It listens where it is told, and answers one address, without a token and under any name."""
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
def test_a_place_that_is_none_is_said(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody may ask then, and one line says why."""
    assert page.ingress(text) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("web: DEXCOM2MQTT_INGRESS is not of the form 0.0.0.0 8099 172.30.32.2")
