"""Every topic and every payload. Pure: it neither connects nor waits, and knows no time of day of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import iso
from dexcom2mqtt.readings import convert_delta, range_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dexcom2mqtt.config import Account
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.status import Status

SCHEMA_VERSION: Final = 1
"""Of the topics and payloads; it grows when one changes in a way that a subscriber would notice."""

_AVAILABILITY_FIRST: Final = 0.001
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


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics below one ``base_topic``."""

    base: str

    @property
    def bridge_state(self) -> str:
        """``online`` or ``offline``: whether the daemon is connected and alive."""
        return f"{self.base}/bridge/state"

    @property
    def bridge_info(self) -> str:
        """Facts about the running daemon."""
        return f"{self.base}/bridge/info"

    def of(self, account: str, leaf: str) -> str:
        """Name a topic of one account."""
        return f"{self.base}/{account}/{leaf}"


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


STATE_KEYS: Final = (
    "value",
    "unit",
    "mg_dl",
    "mmol_l",
    "out_of_range",
    "trend",
    "trend_number",
    "direction",
    "arrow",
    "description",
    "delta",
    "range",
    "measurement_timestamp",
    "date",
)
"""The keys of ``state``, each with a topic of its own."""


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
