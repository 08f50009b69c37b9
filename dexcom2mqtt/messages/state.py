"""A reading as subscribers get it: ``state``, a topic for each of its keys, ``availability`` and ``reading``. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypedDict, cast

from dexcom2mqtt.messages.message import Message, cleared, to_json
from dexcom2mqtt.readings import convert_delta, range_of
from dexcom2mqtt.topics import RETAINED, STATE_KEYS

if TYPE_CHECKING:
    from collections.abc import Collection

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.readings import Reading, Unit
    from dexcom2mqtt.topics import Topics


_AVAILABILITY_FIRST: Final = 0.001
_LASTING: Final = ("measurement_timestamp", "date", "unit")


class State(TypedDict):
    """A reading as subscribers get it; if stale, most keys are null. The keys are ``STATE_KEYS``, in that order."""

    value: float | None
    unit: Unit
    mg_dl: int | None
    mmol_l: float | None
    out_of_range: str | None
    trend: str | None
    trend_number: int | None
    direction: str | None
    arrow: str | None
    description: str | None
    delta: float | None
    range: str | None
    measurement_timestamp: str | None
    date: int | None


def state_of(reading: Reading, delta_mg_dl: int | None, account: Account) -> State:
    """Return a reading with every key that subscribers get; the keys and their order are public."""
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


def summary(reading: Reading, unit: Unit) -> str:
    """Return a reading in words, such as ``85 mg/dL →``."""
    return " ".join(filter(None, (str(reading.value(unit)), unit, reading.arrow)))


def without_reading(account: Account) -> State:
    """Return the state of an account without any reading."""
    return cast("State", dict.fromkeys(STATE_KEYS) | {"unit": account.unit})


def stale(state: State) -> State:
    """Return a state whose reading is no longer current: every key is null except the unit and when it was taken."""
    return cast("State", {key: value if key in _LASTING else None for key, value in state.items()})


def fresh_messages(topics: Topics, account: str, state: State, expires_at: float) -> list[Message]:
    """Return the messages of a state that is current until ``expires_at``: first the values, then the availability.

    When they expire, the order is the reverse: first the availability goes offline, then the values become null.
    """
    nulls = {message.topic: message for message in _values(topics, account, stale(state))}
    values = [
        replace(message, expires_at=expires_at, successor=nulls[message.topic])
        for message in _values(topics, account, state)
    ]
    gone = unavailable(topics, account)
    return [*values, Message(gone.topic, "online", expires_at - _AVAILABILITY_FIRST, gone)]


def stale_messages(topics: Topics, account: str, state: State) -> list[Message]:
    """Return the messages that say that no reading is current, with what remains of ``state``."""
    return [unavailable(topics, account), *_values(topics, account, stale(state))]


def guarded(topics: Topics, message: Message, aside: Collection[str]) -> Message:
    """Return what to send in place of a message while the broker refuses the topics ``aside``.

    A value is current only if ``availability`` says so. If one of the two may hold something old, the other says that
    nothing is current.
    """
    account, leaf = topics.split(message.topic) if aside else ("", "")
    if leaf == "availability" and _values_of(topics, account) & set(aside):
        return unavailable(topics, account)
    if leaf in {"state", *STATE_KEYS} and topics.of(account, "availability") in aside:
        return message.successor or message
    return message


def unprotected(topics: Topics, aside: Collection[str]) -> bool:
    """Return whether only the last will on ``bridge/state`` can still say that nothing is current."""
    accounts = {topics.split(topic)[0] for topic in aside if topic.endswith("/availability")}
    return topics.bridge_state in aside or any(_values_of(topics, account) & set(aside) for account in accounts)


def _values_of(topics: Topics, account: str) -> set[str]:
    return {topics.of(account, leaf) for leaf in ("state", *STATE_KEYS)}


def unavailable(topics: Topics, account: str) -> Message:
    """Return the message that an account has no current reading."""
    return Message(topics.of(account, "availability"), "offline")


def account_cleared(topics: Topics, account: str) -> list[Message]:
    """Return the messages that remove everything retained for an account, its availability first."""
    return [cleared(topics.of(account, leaf)) for leaf in RETAINED]


def reading_message(topics: Topics, account: str, state: State, *, backfill: bool) -> Message:
    """Return the message for one reading of the stream, which is not retained."""
    return Message(topics.of(account, "reading"), to_json({**state, "backfill": backfill}), retain=False)


def _values(topics: Topics, account: str, state: State) -> list[Message]:
    whole = Message(topics.of(account, "state"), to_json(state))
    return [whole, *(Message(topics.of(account, key), _text(value)) for key, value in state.items())]


def _text(value: object) -> str:
    """Return one value as in the JSON, but without quotes; null is ``unknown``."""
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else json.dumps(value)
