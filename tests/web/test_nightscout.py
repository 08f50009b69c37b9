"""Readings in Nightscout's format, compared with what its own server declares and sends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dexcom2mqtt.readings import Reading
from dexcom2mqtt.web import nightscout
from dexcom2mqtt.web.query import Query
from tests.support.builders import NOON, account, reading

# The types in Nightscout's lib/server/swagger.yaml, version 14.2.2, for a sensor's entry.
SWAGGER_ENTRY: dict[str, Any] = {
    "type": str,
    "dateString": str,
    "date": (int, float),
    "sgv": (int, float),
    "direction": str,
}
SWAGGER_STATUS: dict[str, Any] = {"apiEnabled": bool, "name": str, "version": str, "settings": dict}
# The other keys that its server sends and clients read.
SENT: dict[str, Any] = {
    "_id": str,
    "device": str,
    "mills": int,
    "sysTime": str,
    "utcOffset": int,
    "trend": int,
    "delta": int,
}

TWO = [reading(100, seconds=-300), reading(97, direction="FortyFiveDown", offset_min=-300)]


def only(reading_: Reading) -> dict[str, Any]:
    (entry,) = nightscout.entries([reading_], Query(1))
    return entry


def test_an_entry() -> None:
    """An entry has the keys that clients read, whatever the account's unit."""
    newest, older = nightscout.entries(TWO, Query(10))
    assert newest == {
        "_id": f"{NOON * 1000:024x}",
        "type": "sgv",
        "device": "share2",
        "sgv": 97,
        "date": NOON * 1000,
        "mills": NOON * 1000,
        "dateString": "2025-04-19T12:00:00.000Z",
        "sysTime": "2025-04-19T12:00:00.000Z",
        "utcOffset": -300,
        "trend": 5,
        "direction": "FortyFiveDown",
        "delta": -3,
    }
    assert (older["sgv"], older["delta"]) == (100, 0)
    assert len(newest["_id"]) == 24
    assert int(newest["_id"], 16)


@pytest.mark.parametrize("reading_", [*TWO, reading(39, direction="None"), reading(401, direction="SomethingNew")])
def test_the_types_are_those_that_nightscout_declares(reading_: Reading) -> None:
    """Numbers are not sent as text, and no text is null."""
    entry = only(reading_)
    assert entry.keys() == (SWAGGER_ENTRY | SENT).keys()
    assert all(isinstance(entry[key], kind) for key, kind in (SWAGGER_ENTRY | SENT).items())


@pytest.mark.parametrize(
    ("share", "spelling", "trend"),
    [
        ("None", "NONE", 0),
        ("DoubleUp", "DoubleUp", 1),
        ("Flat", "Flat", 4),
        ("DoubleDown", "DoubleDown", 7),
        ("NotComputable", "NOT COMPUTABLE", 8),
        ("RateOutOfRange", "RATE OUT OF RANGE", 9),
        ("SomethingNew", "SomethingNew", 8),
    ],
)
def test_directions(share: str, spelling: str, trend: int) -> None:
    """Three directions are spelled differently from Share."""
    entry = only(reading(direction=share))
    assert (entry["direction"], entry["trend"]) == (spelling, trend)


def test_a_date_of_any_millisecond() -> None:
    """All three digits of the milliseconds are kept, including zeros."""
    assert only(Reading(100, "Flat", 1_700_000_000_007))["dateString"] == "2023-11-14T22:13:20.007Z"


@pytest.mark.parametrize(
    ("mmol", "sgv", "change"),
    [(False, "97", -3), (True, "5.4", "-0.2")],
)
def test_pebble(*, mmol: bool, sgv: str, change: float | str) -> None:
    """A watch gets the value as a text, and the change as a number, or as a text in mmol/L."""
    written = nightscout.pebble(TWO, Query(1), NOON + 60.0, mmol=mmol)
    assert written == {
        "status": [{"now": (NOON + 60) * 1000}],
        "bgs": [{"sgv": sgv, "trend": 5, "direction": "FortyFiveDown", "datetime": NOON * 1000, "bgdelta": change}],
        "cals": [],
    }


def test_an_unknown_change() -> None:
    """An unknown change is 0; in mmol/L it is a text without a sign."""
    assert nightscout.pebble(TWO[:1], Query(1), NOON, mmol=True)["bgs"][0]["bgdelta"] == "0.0"


@pytest.mark.parametrize(("unit", "units"), [("mg/dL", "mg/dl"), ("mmol/L", "mmol")])
def test_status(unit: Any, units: str) -> None:
    """The status has the unit as Nightscout writes it, the ranges in mg/dL, and whether a token is required."""
    status = nightscout.status(account(unit), "1.2.3", NOON + 0.5, needs_token=True)
    assert all(isinstance(status[key], kind) for key, kind in SWAGGER_STATUS.items())
    assert status["settings"] == {
        "units": units,
        "thresholds": {"bgLow": 54, "bgTargetBottom": 70, "bgTargetTop": 180, "bgHigh": 250},
        "authDefaultRoles": "denied",
    }
    assert (status["status"], status["version"], status["apiEnabled"]) == ("ok", "1.2.3", True)
    assert (status["serverTime"], status["serverTimeEpoch"]) == ("2025-04-19T12:00:00.500Z", NOON * 1000 + 500)
    free = nightscout.status(account(), "1.2.3", NOON, needs_token=False)
    assert free["settings"]["authDefaultRoles"] == "readable"
    assert json.loads(json.dumps(free)) == free
