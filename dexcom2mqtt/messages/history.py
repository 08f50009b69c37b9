"""The readings of the last 24 hours, on the topic ``history``: written, and read back after a restart. Pure."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.message import ForeignError, FutureError, Message, parse_owned, to_json
from dexcom2mqtt.readings import MalformedRecordError, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dexcom2mqtt.topics import Topics


HISTORY_VERSION: Final = 1
"""Of the payload; a daemon ignores a history of another version."""
TOLERANCE: Final = 300.0
"""Seconds by which a stamp may be ahead of Share's time: clocks are set by hand, and so little does no harm."""


def source_of(region: str, user: str) -> str:
    """Identify a person without revealing who it is: the first 8 hex digits of SHA-256 over region and user."""
    return hashlib.sha256(f"{region}:{user.strip().casefold()}".encode()).hexdigest()[:8]


def shortened(  # noqa: PLR0913  # passed by name, and each is used
    topics: Topics,
    account: str,
    source: str,
    readings: Sequence[Reading],
    doubtful: Sequence[Reading] = (),
    *,
    since: int = 0,
    most_bytes: float = math.inf,
) -> Message:
    """Write a history of at most ``most_bytes``, with the newest readings that fit.

    From ``since`` (Unix milliseconds) on, the given readings are complete.
    """
    while True:
        newest = max((reading.date for reading in (*readings, *doubtful)), default=since)
        complete = since if since > newest - DAY * 1000 else 0  # after a day, nothing older is kept anyway
        message = history_message(topics, account, source, readings, doubtful, since=complete)
        excess = len(message.payload.encode()) - most_bytes
        if excess <= 0 or not (readings or doubtful):
            return message
        dates = sorted(reading.date for reading in (*readings, *doubtful))
        dropped = min(math.ceil(excess / (len(message.payload) / len(dates))), len(dates))
        since = dates[dropped] if dropped < len(dates) else dates[-1] + 1
        readings = [reading for reading in readings if reading.date >= since]
        doubtful = [reading for reading in doubtful if reading.date >= since]


def history_message(  # noqa: PLR0913  # passed by name, and each is used
    topics: Topics,
    account: str,
    source: str,
    readings: Iterable[Reading],
    doubtful: Iterable[Reading] = (),
    *,
    since: int = 0,
) -> Message:
    """Write the readings of the last 24 hours, oldest first. A restart continues from them.

    A shortened history is complete from ``since`` (Unix milliseconds) on.
    """
    marked: list[tuple[Reading, dict[str, bool]]] = [(reading, {}) for reading in readings]
    if false := [(reading, {"doubtful": True}) for reading in doubtful]:
        marked = sorted(marked + false, key=lambda pair: pair[0].date)
    entries = [
        {
            "date": reading.date,
            "mg_dl": reading.mg_dl,
            "direction": reading.direction,
            "offset_min": reading.offset_min,
            **mark,
        }
        for reading, mark in marked
    ]
    shorter = {"since": since} if since else {}
    history = {"version": HISTORY_VERSION, "source": source, **shorter, "readings": entries}
    return Message(topics.of(account, "history"), to_json(history))


class History(NamedTuple):
    """A history, as read back after a restart."""

    readings: tuple[Reading, ...] = ()
    doubtful: tuple[Reading, ...] = ()
    """Those whose stamp may be false."""
    since: int = 0
    """Unix milliseconds from which it is complete; older readings count as published."""


def parse_history(payload: bytes, source: str, now: float) -> History:
    """Read a history back; ``now`` is in Unix seconds. Raises ForeignError if any part is wrong."""
    history = parse_owned(payload, HISTORY_VERSION, source)
    entries = history.get("readings")
    if not isinstance(entries, list):
        raise ForeignError("its readings are not a list")
    since = history.get("since", 0)
    if type(since) is not int:
        raise ForeignError("its start time makes no sense")
    if since > (now + TOLERANCE) * 1000:
        raise FutureError("its start time is in the future")
    readings = [(_parse_entry(entry), entry.get("doubtful", False)) for entry in entries]
    if any(reading.date > (now + TOLERANCE) * 1000 for reading, _ in readings):
        raise FutureError("some of its readings are in the future")
    if not all(isinstance(doubtful, bool) for _, doubtful in readings):
        raise ForeignError("one of its readings makes no sense")
    return History(
        tuple(reading for reading, doubtful in readings if not doubtful),
        tuple(reading for reading, doubtful in readings if doubtful),
        since,
    )


def _parse_entry(entry: object) -> Reading:
    if not isinstance(entry, dict):
        raise ForeignError("one of its readings is not an object")
    mg_dl, direction, date, offset = (entry.get(key) for key in ("mg_dl", "direction", "date", "offset_min"))
    if not (type(mg_dl) is type(date) is type(offset) is int and isinstance(direction, str)):
        raise ForeignError("one of its readings lacks a value")
    try:
        return Reading(mg_dl=mg_dl, direction=direction, date=date, offset_min=offset).checked()
    except MalformedRecordError:
        raise ForeignError("one of its readings makes no sense") from None
