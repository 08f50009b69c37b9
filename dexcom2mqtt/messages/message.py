"""What one topic is to hold; and of what a broker retained, whether it can be read, and is plainly ours. Pure."""

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
    """What a topic is to hold. At ``expires_at`` (a time of the clock) it turns into its successor.

    MQTT 5 tells the broker the same time, so that it drops the message even if the daemon is gone by then.
    """

    topic: str
    payload: str
    expires_at: float | None = None
    successor: Message | None = None
    retain: bool = True


def cleared(topic: str) -> Message:
    """Take away what the broker keeps at a topic."""
    return Message(topic, "")


class ForeignError(ValueError):
    """A retained message that is not plainly ours; the text says why, and quotes nothing of it."""


class FutureError(ForeignError):
    """A retained message with times of the future; or the present time is wrong."""


def is_ours(account: str, leaf: str, payload: bytes) -> bool:
    """Return whether a retained message is plainly ours, such as a status or a history, by its keys."""
    if leaf not in _MARKS or not re.fullmatch(ACCOUNT_KEY, account):
        return False
    try:
        return _MARKS[leaf] <= parse_object(payload).keys()
    except ForeignError:
        return False


def parse_object(payload: bytes) -> dict[str, object]:
    """Read a JSON object that a broker retained. Raises ForeignError."""
    if len(payload) > _MAX_SIZE:
        raise ForeignError("it is absurdly large")
    try:
        parsed = json.loads(payload)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ForeignError("it is no JSON object")
    return parsed


def parse_owned(payload: bytes, version: int, source: str) -> dict[str, object]:
    """Read a JSON object of this version that belongs to this person (``source``). Raises ForeignError."""
    found = parse_object(payload)
    if found.get("version") != version:
        raise ForeignError("it has another version")
    if found.get("source") != source:
        raise ForeignError("it belongs to another person")
    return found


def to_json(payload: Mapping[str, object]) -> str:
    """Write a payload, with arrows and names as they are. Raises ValueError for what JSON cannot say."""
    return json.dumps(payload, ensure_ascii=False, allow_nan=False)
