"""Every payload. Pure: it neither connects nor waits, and knows no time of day of its own."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import iso, parse_iso
from dexcom2mqtt.readings import MalformedRecordError, Reading, convert_delta, range_of
from dexcom2mqtt.topics import ACCOUNT_KEY, RETAINED, STATE_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dexcom2mqtt.config import Account
    from dexcom2mqtt.status import Status
    from dexcom2mqtt.topics import Topics

SCHEMA_VERSION: Final = 1
"""Of the topics and payloads; it grows when one changes in a way that a subscriber would notice."""

HISTORY_VERSION: Final = 1
"""Of the history; a daemon takes over none of another version."""

_AVAILABILITY_FIRST: Final = 0.001
_FUTURE: Final = 300
_ROUNDING: Final = 2.0  # times are written in whole seconds, and Share tells the time in them
_ABSURD_SIZE: Final = 262_144
_ABSURD_COUNT: Final = 1000
_ABSURD_ACCOUNTS: Final = 10_000
_ABSURD_TIME: Final = 4_102_444_800  # the year 2100
_CLOCK_IS_RIGHT: Final = frozenset({"ok", "no_readings", "sensor_error"})  # else it would be phone_clock
_LASTING: Final = ("measurement_timestamp", "date", "unit")

State = dict[str, object]


@dataclass(frozen=True, slots=True)
class Message:
    """What a topic is to hold. At ``expires_at`` (a time of the clock) it turns into its successor.

    MQTT 5 tells the broker the same time, so that it drops the message even if the daemon is gone by then.
    """

    topic: str
    payload: str
    expires_at: float | None = None
    successor: Message | None = None
    retain: bool = True


def bridge_online(topics: Topics, expires_at: float) -> Message:
    """Say that the daemon is alive; the broker forgets it unless it is repeated before it expires."""
    return Message(topics.bridge_state, "online", expires_at)


def bridge_offline(topics: Topics) -> Message:
    """Say that the daemon is not there; also its last will."""
    return Message(topics.bridge_state, "offline")


def bridge_info(
    topics: Topics, *, version: str, started_at: float | None, protocol: str | None, accounts: Iterable[str]
) -> Message:
    """Describe the running daemon; ``started_at`` is in Unix seconds, ``protocol`` is ``5`` or ``3.1.1``."""
    info = {
        "version": version,
        "schema_version": SCHEMA_VERSION,
        "started_at": iso(started_at),
        "protocol": protocol,
        "accounts": list(accounts),
    }
    return Message(topics.bridge_info, _json(info))


def state_of(reading: Reading, delta_mg_dl: int | None, account: Account) -> State:
    """Write a reading with every key that subscribers get; the keys and their order are public."""
    return {
        "value": reading.value(account.unit),
        "unit": account.unit,
        "mg_dl": reading.mg_dl,
        "mmol_l": reading.mmol_l,
        "out_of_range": reading.out_of_range,
        "trend": reading.trend,
        "trend_number": reading.trend_number,
        "direction": reading.direction,
        "arrow": reading.arrow,
        "description": reading.description,
        "delta": None if delta_mg_dl is None else convert_delta(delta_mg_dl, account.unit),
        "range": range_of(
            reading.mg_dl,
            very_low=account.ranges.very_low,
            low=account.ranges.low,
            high=account.ranges.high,
            very_high=account.ranges.very_high,
        ),
        "measurement_timestamp": reading.time.isoformat(timespec="milliseconds"),
        "date": reading.date,
    }


def cleared(topic: str) -> Message:
    """Take away what the broker keeps at a topic."""
    return Message(topic, "")


def account_cleared(topics: Topics, account: str) -> list[Message]:
    """Take away everything that the broker keeps of an account; first, that anything of it is current."""
    return [cleared(topics.of(account, leaf)) for leaf in RETAINED]


def without_reading(account: Account) -> State:
    """Write the state of an account of which no reading is known."""
    return dict.fromkeys(STATE_KEYS, None) | {"unit": account.unit}


def stale(state: State) -> State:
    """Write what remains of a state when its reading is no longer current: when it was, and the unit."""
    return {key: value if key in _LASTING else None for key, value in state.items()}


def fresh_messages(topics: Topics, account: str, state: State, expires_at: float) -> list[Message]:
    """Publish a state that is current until ``expires_at``: first the values, then that they are there.

    When they expire it is the other way round: first that they are gone, then the values.
    """
    nulls = {message.topic: message for message in _values(topics, account, stale(state))}
    values = [
        replace(message, expires_at=expires_at, successor=nulls[message.topic])
        for message in _values(topics, account, state)
    ]
    gone = unavailable(topics, account)
    return [*values, Message(gone.topic, "online", expires_at - _AVAILABILITY_FIRST, gone)]


def stale_messages(topics: Topics, account: str, state: State) -> list[Message]:
    """Publish that no reading is current, with what remains of ``state``."""
    return [unavailable(topics, account), *_values(topics, account, stale(state))]


def unavailable(topics: Topics, account: str) -> Message:
    """Say that an account has no current reading."""
    return Message(topics.of(account, "availability"), "offline")


def reading_message(topics: Topics, account: str, state: State, *, backfill: bool) -> Message:
    """Write one reading of the stream, which is not retained."""
    return Message(topics.of(account, "reading"), _json(state | {"backfill": backfill}), retain=False)


def source_of(region: str, user: str) -> str:
    """Name a person without telling who it is: the first 8 hex digits of SHA-256 over region and user."""
    return hashlib.sha256(f"{region}:{user.strip().casefold()}".encode()).hexdigest()[:8]


def history_message(
    topics: Topics, account: str, source: str, readings: Iterable[Reading], doubtful: Iterable[Reading] = ()
) -> Message:
    """Write the readings of the last 24 hours, oldest first, which is also what a restart continues from."""
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
    history = {"version": HISTORY_VERSION, "source": source, "readings": entries}
    return Message(topics.of(account, "history"), _json(history))


class ForeignError(ValueError):
    """A retained message that is not plainly ours; the text says why, and quotes nothing of it."""


class FutureError(ForeignError):
    """A retained message with times of the future; or the present time is wrong."""


@dataclass(frozen=True, slots=True)
class History:
    """What a history tells after a restart."""

    readings: tuple[Reading, ...] = ()
    doubtful: tuple[Reading, ...] = ()
    """Those whose stamp may be false."""


def parse_history(payload: bytes, source: str, now: float) -> History:
    """Read a history back; ``now`` is in Unix seconds. Raises ForeignError, and takes all of it or nothing."""
    history = _parse_object(payload)
    if history.get("version") != HISTORY_VERSION:
        raise ForeignError("it has another version")
    if history.get("source") != source:
        raise ForeignError("it belongs to another person")
    entries = history.get("readings")
    if not isinstance(entries, list):
        raise ForeignError("its readings are no list")
    readings = [(_parse_entry(entry), entry.get("doubtful", False)) for entry in entries]
    if any(reading.date > (now + _FUTURE) * 1000 for reading, _ in readings):
        raise FutureError("it has readings of the future")
    if not all(isinstance(doubtful, bool) for _, doubtful in readings):
        raise ForeignError("one of its readings makes no sense")
    return History(
        tuple(reading for reading, doubtful in readings if not doubtful),
        tuple(reading for reading, doubtful in readings if doubtful),
    )


def parse_info(payload: bytes) -> list[str]:
    """Read back from ``bridge/info`` which accounts there were. Raises ForeignError."""
    info = _parse_object(payload)
    accounts = info.get("accounts")
    if info.get("schema_version") != SCHEMA_VERSION:
        raise ForeignError("it has another version")
    if not isinstance(accounts, list) or len(accounts) > _ABSURD_ACCOUNTS:
        raise ForeignError("its accounts are no list of a sensible length")
    if not all(isinstance(key, str) and re.fullmatch(ACCOUNT_KEY, key) for key in accounts):
        raise ForeignError("its accounts have names that none can have")
    return accounts


_MARKS: Final = {
    "status": {"share", "message", "since", "requests_24h", "logins_24h", "rejected"},
    "history": {"version", "source", "readings"},
}


def is_ours(account: str, leaf: str, payload: bytes) -> bool:
    """Tell whether a retained message can be nobody else's: a status or a history, by its keys."""
    if leaf not in _MARKS or not re.fullmatch(ACCOUNT_KEY, account):
        return False
    try:
        return _MARKS[leaf] <= _parse_object(payload).keys()
    except ForeignError:
        return False


@dataclass(frozen=True, slots=True)
class Past:
    """What a status tells about stamps after a restart. Times are Unix seconds; ``ahead_until`` is Unix milliseconds.

    ``right`` is whether the phone's clock was known to be right when it was written.
    """

    ahead_until: int | None = None
    last_success: float | None = None
    right: bool = False


@dataclass(frozen=True, slots=True)
class Before:
    """What a status tells after a restart: of sign-ins and readings, in Unix seconds, and of stamps."""

    rejected: tuple[int, ...] = ()
    locked_until: float | None = None
    last_reading: float | None = None
    stamps: Past = Past()  # it is frozen


def parse_status(payload: bytes) -> Before:
    """Read back from a status what still matters after a restart. Raises ForeignError."""
    status = _parse_object(payload)
    rejected = status.get("rejected")
    if not isinstance(rejected, list) or len(rejected) > _ABSURD_COUNT:
        raise ForeignError("its rejected sign-ins are no list of a sensible length")
    if not all(type(at) is int and 0 <= at < _ABSURD_TIME for at in rejected):
        raise ForeignError("its rejected sign-ins are no times")
    ahead_until = status.get("ahead_until")
    if ahead_until is not None and not (type(ahead_until) is int and 0 <= ahead_until < _ABSURD_TIME * 1000):
        raise ForeignError("its latest stamp in the future is not a time")
    last_reading, last_success, next_poll = (
        _parse_time(status.get(key)) for key in ("last_reading_at", "last_success_at", "next_poll_at")
    )
    share = status.get("share")
    came_later = ahead_until is not None and (last_reading or 0) * 1000 > ahead_until
    return Before(
        tuple(rejected),
        next_poll + _ROUNDING if share == "locked_out" and next_poll is not None else None,
        last_reading,
        Past(ahead_until, last_success, right=share in _CLOCK_IS_RIGHT or came_later),
    )


def _parse_time(text: object) -> float | None:
    at = parse_iso(text)
    if at is not None and not 0 <= at < _ABSURD_TIME:
        raise ForeignError("one of its times makes no sense")
    return at


def _parse_object(payload: bytes) -> dict[str, object]:
    if len(payload) > _ABSURD_SIZE:
        raise ForeignError("it is absurdly large")
    try:
        parsed = json.loads(payload)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ForeignError("it is no JSON object")
    return parsed


def _parse_entry(entry: object) -> Reading:
    if not isinstance(entry, dict):
        raise ForeignError("one of its readings is no object")
    mg_dl, direction, date, offset = (entry.get(key) for key in ("mg_dl", "direction", "date", "offset_min"))
    if not (type(mg_dl) is type(date) is type(offset) is int and isinstance(direction, str)):
        raise ForeignError("one of its readings lacks a value")
    try:
        return Reading(mg_dl=mg_dl, direction=direction, date=date, offset_min=offset).checked()
    except MalformedRecordError:
        raise ForeignError("one of its readings makes no sense") from None


def status_message(topics: Topics, account: str, status: Status) -> Message:
    """Publish how an account is doing."""
    payload = {
        "share": status.share,
        "message": status.message,
        "since": iso(status.since),
        "last_reading_at": iso(status.last_reading_at),
        "last_success_at": iso(status.last_success_at),
        "next_poll_at": iso(status.next_poll_at),
        "delay": status.delay,
        "requests_24h": status.requests_24h,
        "logins_24h": status.logins_24h,
        "rejected": list(status.rejected),
        "ahead_until": status.ahead_until,
    }
    return Message(topics.of(account, "status"), _json(payload))


def _values(topics: Topics, account: str, state: State) -> list[Message]:
    whole = Message(topics.of(account, "state"), _json(state))
    return [whole, *(Message(topics.of(account, key), _text(value)) for key, value in state.items())]


def _text(value: object) -> str:
    """Write one value bare, as it stands in the JSON but for the quotes; null is ``unknown``."""
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else json.dumps(value)


def _json(payload: Mapping[str, object]) -> str:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)
