"""Readings in the format of Nightscout's API, version 1, as its clients read it. Pure.

The types are from its ``lib/server/swagger.yaml``; what clients need beyond that is from their sources.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.messages.delta import FURTHEST, NEAREST, delta
from dexcom2mqtt.readings import convert_delta, to_mmol_l

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.web.query import Query

_DIRECTIONS: Final = {
    "None": "NONE",
    "NotComputable": "NOT COMPUTABLE",
    "RateOutOfRange": "RATE OUT OF RANGE",
}
"""The directions that Nightscout spells differently from Share."""


def entries(readings: Sequence[Reading], query: Query) -> list[dict[str, Any]]:
    """Return the requested readings as entries, newest first. ``readings`` has the oldest first."""
    return [_entry(reading, _delta(reading, readings)) for reading in query.of(readings)]


def pebble(readings: Sequence[Reading], query: Query, now: float, *, mmol: bool) -> dict[str, Any]:
    """Return the requested readings for a watch; ``now`` is in Unix seconds."""
    bgs = [_for_watch(reading, _delta(reading, readings), mmol=mmol) for reading in query.of(readings)]
    return {"status": [{"now": round(now * 1000)}], "bgs": bgs, "cals": []}


def status(account: Account, version: str, now: float, *, needs_token: bool) -> dict[str, Any]:
    """Return what this server is and how the account is configured; ``now`` is in Unix seconds."""
    ranges = account.ranges
    return {
        "status": "ok",
        "name": "dexcom2mqtt",
        "version": version,
        "serverTime": _iso(round(now * 1000)),
        "serverTimeEpoch": round(now * 1000),
        "apiEnabled": True,
        "settings": {
            "units": "mg/dl" if account.unit == "mg/dL" else "mmol",
            "thresholds": {
                "bgLow": ranges.very_low,
                "bgTargetBottom": ranges.low,
                "bgTargetTop": ranges.high,
                "bgHigh": ranges.very_high,
            },
            "authDefaultRoles": "denied" if needs_token else "readable",
        },
    }


def _entry(reading: Reading, delta_mg_dl: int | None) -> dict[str, Any]:
    return {
        "_id": f"{reading.date:024x}",
        "type": "sgv",
        "device": "share2",
        "sgv": reading.mg_dl,
        "date": reading.date,
        "mills": reading.date,
        "dateString": _iso(reading.date),
        "sysTime": _iso(reading.date),
        "utcOffset": reading.offset_min,
        "trend": reading.trend_number,
        "direction": _direction(reading),
        "delta": delta_mg_dl or 0,
    }


def _for_watch(reading: Reading, delta_mg_dl: int | None, *, mmol: bool) -> dict[str, Any]:
    change = delta_mg_dl or 0
    return {
        "sgv": f"{to_mmol_l(reading.mg_dl):.1f}" if mmol else str(reading.mg_dl),
        "trend": reading.trend_number,
        "direction": _direction(reading),
        "datetime": reading.date,
        "bgdelta": f"{convert_delta(change, 'mmol/L'):.1f}" if mmol else change,
    }


def _delta(reading: Reading, readings: Sequence[Reading]) -> int | None:
    since = bisect_left(readings, reading.date - FURTHEST * 1000, key=_date)
    until = bisect_right(readings, reading.date - NEAREST * 1000, key=_date)
    return delta(reading, readings[since:until])


def _date(reading: Reading) -> int:
    return reading.date


def _direction(reading: Reading) -> str:
    return _DIRECTIONS.get(reading.direction, reading.direction)


def _iso(ms: int) -> str:
    """Return Unix milliseconds as ISO 8601 with milliseconds and Z."""
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03}Z"
