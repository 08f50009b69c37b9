"""Whether a daemon is running, and how it describes itself: ``bridge/state`` and ``bridge/info``. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from dexcom2mqtt.clock import iso
from dexcom2mqtt.messages.message import ForeignError, Message, parse_object, to_json
from dexcom2mqtt.topics import ACCOUNT_KEY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from dexcom2mqtt.topics import Topics


SCHEMA_VERSION: Final = 1
"""Of the topics and payloads; increased when one changes in a way that a subscriber would notice."""

_MAX_ACCOUNTS: Final = 10_000


def bridge_online(topics: Topics, expires_at: float) -> Message:
    """Say that the daemon is running; the broker drops the message unless it is repeated before it expires."""
    return Message(topics.bridge_state, "online", expires_at)


def bridge_offline(topics: Topics) -> Message:
    """Say that the daemon is not running; also its last will."""
    return Message(topics.bridge_state, "offline")


def bridge_info(  # noqa: PLR0913  # passed by name, and each is a key of the payload
    topics: Topics,
    *,
    version: str,
    started_at: float | None,
    protocol: str | None,
    accounts: Iterable[str],
    days: bool = True,
) -> Message:
    """Describe the running daemon; ``started_at`` is in Unix seconds, ``protocol`` is ``5`` or ``3.1.1``.

    ``days`` is whether each account's ``days`` are kept.
    """
    info = {
        "version": version,
        "schema_version": SCHEMA_VERSION,
        "started_at": iso(started_at),
        "protocol": protocol,
        "accounts": list(accounts),
        "days": days,
    }
    return Message(topics.bridge_info, to_json(info))


class Info(NamedTuple):
    """The part of a daemon's ``bridge/info`` that matters to the next daemon."""

    accounts: tuple[str, ...] = ()
    days: bool = False
    """Whether it kept the ``days`` of each account."""


def parse_info(payload: bytes) -> Info:
    """Parse what a daemon left in ``bridge/info``. Raises ForeignError."""
    info = parse_object(payload)
    accounts = info.get("accounts")
    if info.get("schema_version") != SCHEMA_VERSION:
        raise ForeignError("it has another version")
    if not isinstance(accounts, list) or len(accounts) > _MAX_ACCOUNTS:
        raise ForeignError("its accounts are not a list of a sensible length")
    if not all(isinstance(key, str) and re.fullmatch(ACCOUNT_KEY, key) for key in accounts):
        raise ForeignError("its accounts have impossible names")
    return Info(tuple(accounts), info.get("days") is True)


def awaited(
    topics: Topics, found: Mapping[str, bytes], asked: Collection[str]
) -> Literal["anything", "the rest", "nothing"]:
    """Return which of the messages that a daemon left behind are still to come.

    ``found`` are those that came, ``asked`` the topics that are read back.
    ``bridge/info`` names the accounts; each has a ``status``, a ``history`` once it had a reading, and ``days`` if
    they are kept.
    """
    if topics.bridge_info not in found:
        return "anything"
    try:
        info = parse_info(found[topics.bridge_info])
    except ForeignError:
        return "nothing"
    missing = {*asked} - found.keys()
    for key in info.accounts:
        status, history, days = (topics.of(key, leaf) for leaf in ("status", "history", "days"))
        if status in missing or (history in missing and has_readings(found.get(status, b""))):
            return "the rest"
        if days in missing and info.days:
            return "the rest"
    return "nothing"


def has_readings(status: bytes) -> bool:
    """Return whether an account's retained status says that it has had readings."""
    try:
        return parse_object(status).get("last_reading_at") is not None
    except ForeignError:
        return False
