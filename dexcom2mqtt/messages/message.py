"""What one topic should hold; and whether a retained message can be read and is clearly ours. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.topics import ACCOUNT_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping


_MAX_SIZE: Final = 262_144
_MARKS: Final = {
    "status": {"share", "message", "since", "requests_24h", "logins_24h", "rejected"},
    "history": {"version", "source", "readings"},
    "statistics": {"version", "unit", "24h", "90d"},
    "days": {"version", "source", "days"},
}


@dataclass(frozen=True, slots=True)
class Message:
    """What a topic should hold. At ``expires_at`` (a time of the clock) its successor replaces it.

    With MQTT 5 the broker gets the same expiry, so that it drops the message even if the daemon has stopped.
    """

    topic: str
    payload: str
    expires_at: float | None = None
    successor: Message | None = None
    retain: bool = True


def cleared(topic: str) -> Message:
    """Return the message that removes what the broker retains on a topic."""
    return Message(topic, "")


class ForeignError(ValueError):
    """A retained message that is not clearly ours; the text says why, and quotes nothing from it."""


class FutureError(ForeignError):
    """A retained message with times in the future; or the present time is wrong."""


def is_ours(account: str, leaf: str, payload: bytes) -> bool:
    """Return whether the keys of a retained message, such as a status or a history, show that it is ours."""
    if leaf not in _MARKS or not re.fullmatch(ACCOUNT_KEY, account):
        return False
    try:
        return _MARKS[leaf] <= parse_object(payload).keys()
    except ForeignError:
        return False


def parse_object(payload: bytes) -> dict[str, object]:
    """Parse a JSON object that a broker retained. Raises ForeignError."""
    if len(payload) > _MAX_SIZE:
        raise ForeignError("it is far too large")
    try:
        parsed = json.loads(payload)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ForeignError("it is not a JSON object")
    return parsed


def parse_owned(payload: bytes, version: int, source: str) -> dict[str, object]:
    """Parse a JSON object of this version that belongs to this person (``source``). Raises ForeignError."""
    found = parse_object(payload)
    if found.get("version") != version:
        raise ForeignError("it has another version")
    if found.get("source") != source:
        raise ForeignError("it belongs to another person")
    return found


def to_json(payload: Mapping[str, object]) -> str:
    """Return a payload as JSON, with characters unescaped. Raises ValueError for what JSON cannot express."""
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)
