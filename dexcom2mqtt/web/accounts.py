"""The page's data, as JSON: each account with its newest reading, its last 24 hours, and how it is doing. Pure.

``now``, ``taken_at`` and ``fresh_until`` are milliseconds of the daemon's own clock, which counts from the start of the
machine and never jumps: compare them only with each other. All other times are as in MQTT.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dexcom2mqtt.clock import DAY, iso
from dexcom2mqtt.messages.percent import percentages
from dexcom2mqtt.messages.state import stale
from dexcom2mqtt.readings import RANGES, range_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.messages.overview import Overview
    from dexcom2mqtt.messages.status import Status
    from dexcom2mqtt.readings import Reading


@dataclass(frozen=True, slots=True)
class PageAccount:
    """An account on the page: its configuration, what it shows now, and its time in Unix seconds."""

    settings: Account
    seen: Callable[[], tuple[Overview, Status]]
    unix: Callable[[], float | None]


def described(  # noqa: PLR0913  # passed by name, and each is part of the answer
    key: str, account: Account, overview: Overview, status: Status, *, fresh: bool, day: bool = True
) -> dict[str, Any]:
    """Return an account; with ``fresh`` its newest reading is current, without ``day`` no other reading is included."""
    readings = overview.readings if day else ()
    newest = readings[-1].date / 1000 if readings else 0.0
    return {
        "key": key,
        "name": account.name,
        "unit": account.unit,
        "ranges": asdict(account.ranges),
        "state": overview.state if fresh else stale(overview.state),
        "fresh_until": _milliseconds(overview.fresh_until) if fresh else None,
        "taken_at": None if overview.taken_at is None else _milliseconds(overview.taken_at),
        "readings": [[reading.date, reading.mg_dl] for reading in readings],
        "time_in_ranges": time_in_ranges(account, readings, newest),
        "status": {"share": status.share, "message": status.message, "since": iso(status.since)},
    }


def time_in_ranges(account: Account, readings: Sequence[Reading], until: float) -> dict[str, float] | None:
    """Return the percentage of readings in each range in the 24 hours before ``until`` (Unix seconds), or None."""
    limits = asdict(account.ranges)
    counts = dict.fromkeys(RANGES, 0)
    for reading in readings:
        if reading.date / 1000 > until - DAY:
            counts[range_of(reading.mg_dl, **limits)] += 1
    if not any(counts.values()):
        return None
    return dict(zip(RANGES, percentages(list(counts.values())), strict=True))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
