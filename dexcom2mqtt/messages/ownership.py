"""Who serves an account, if several processes share the accounts: its ``status``, and the claims on it. Pure.

The owner is in the retained ``status`` of the account. Before a process serves an account that nobody serves, it claims
it, and waits for a moment: MQTT has no way to write a topic only if nobody else has.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.messages.message import ForeignError, Message, is_ours, parse_object, to_json
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from dexcom2mqtt.topics import Topics

BRIDGE: Final = "bridge(-(0|[1-9][0-9]{0,3}))?"
"""The pattern of a process's name."""

_MOST_KEYS: Final = 500
"""In one message, which then has a few kilobytes."""


class Claim(NamedTuple):
    """What a process says about accounts: those that it claims, and those that it serves, since another claims them."""

    bridge: str
    claims: frozenset[str] = frozenset()
    serves: frozenset[str] = frozenset()


def claim_messages(topics: Topics, claims: Iterable[str], number: int) -> list[Message]:
    """Claim these accounts; the number distinguishes this claim from earlier ones of the same process."""
    return [_message(topics, "claims", keys, number) for keys in _parts(claims)]


def serving_messages(topics: Topics, keys: Iterable[str]) -> list[Message]:
    """Say that this process serves these accounts, which another one claims."""
    return [_message(topics, "serves", part, 0) for part in _parts(keys)]


def parse_claim(payload: bytes) -> Claim | None:
    """Return what a process says about accounts; None if the message is of another kind."""
    try:
        said = parse_object(payload)
    except ForeignError:
        return None
    bridge, claims, serves = said.get("bridge"), said.get("claims", []), said.get("serves", [])
    if not isinstance(bridge, str) or not re.fullmatch(BRIDGE, bridge):
        return None
    if not isinstance(claims, list) or not isinstance(serves, list):
        return None
    return Claim(bridge, frozenset(filter(_is_text, claims)), frozenset(filter(_is_text, serves)))


def outranks(bridge: str, other: str) -> bool:
    """Return whether, of two processes that claim the same account at the same time, the first one gets it."""
    return _number(bridge) < _number(other)


def owner_of(account: str, status: bytes | None) -> str | None:
    """Return the process that serves an account, by its retained ``status``; None if none does.

    A process that is alone does not write its name there.
    """
    if not status or not is_ours(account, "status", status):
        return None
    owner = parse_object(status).get("bridge", ALONE)
    return owner if isinstance(owner, str) and re.fullmatch(BRIDGE, owner) else None


def was_shared(statuses: Mapping[str, bytes]) -> bool:
    """Return whether one of several processes wrote one of these retained ``status``, by account."""
    return any(is_ours(key, "status", status) and "bridge" in parse_object(status) for key, status in statuses.items())


def released(topics: Topics, account: str, status: bytes) -> Message:
    """Return a retained ``status`` of ours without an owner: it keeps the rejected sign-ins, and all the rest."""
    return Message(topics.of(account, "status"), to_json({**parse_object(status), "bridge": None}))


def _message(topics: Topics, what: str, keys: Collection[str], number: int) -> Message:
    payload = {"bridge": topics.bridge, what: sorted(keys), "number": number}
    return Message(topics.claims, json.dumps(payload), retain=False)


def _parts(keys: Iterable[str]) -> Iterator[list[str]]:
    ordered = sorted(keys)
    for start in range(0, len(ordered), _MOST_KEYS):
        yield ordered[start : start + _MOST_KEYS]


def _number(bridge: str) -> int:
    _, _, number = bridge.partition("-")
    return int(number) if number else -1


def _is_text(found: object) -> bool:
    return isinstance(found, str)
