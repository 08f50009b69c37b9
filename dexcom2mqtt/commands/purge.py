"""The command that removes what the daemon left at the broker, before it is uninstalled or renamed.

It removes only what certainly belongs to the daemon: other programs may use topics below the same base.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.messages import homeassistant
from dexcom2mqtt.messages.bridge import parse_info
from dexcom2mqtt.messages.message import ForeignError, cleared, is_ours
from dexcom2mqtt.messages.state import account_cleared
from dexcom2mqtt.mqtt.visit import Visit
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Settings

_NAMED: Final = 3
_BRIDGE_SECONDS: Final = 2.0
"""How much later than the probe the bridge's messages may arrive; whether a daemon is online must be certain."""


class PurgeError(Exception):
    """Not everything was removed; the text says why, and what to do."""


def purge(
    settings: Settings,
    clock: Clock,
    *,
    account: str | None = None,
    base_topic: str | None = None,
    discovery_prefix: str | None = None,
) -> str:
    """Remove every retained message of the daemon, or of one account; return a summary for people.

    ``base_topic`` and ``discovery_prefix`` may be earlier ones. Raises PurgeError, BrokerError and TlsFileError.
    """
    topics = Topics(base_topic or settings.mqtt.base_topic)
    prefix = discovery_prefix or settings.home_assistant.discovery_prefix
    probe = topics.sync(f"{settings.connection.client_id}-purge")
    filters = [topics.of("+", "+"), homeassistant.discovery_topics(prefix)]
    with Visit(settings.connection, clock, "purge") as visit:
        bridge = _of_the_bridge(visit, topics, probe)
        listed = visit.retained(filters, probe)
        lists = not bridge or bool(listed.keys() & bridge.keys())
        found = {**listed, **bridge}
        known = {*settings.accounts, *accounts_in(found, topics, prefix)}
        ours = _owned(topics, prefix, known if account is None else {account})
        if account is None:
            ours.append(topics.bridge_state)
        if not lists:  # RabbitMQ, for one, sends no retained messages for wildcards
            filters = ours
            found |= visit.retained(filters, probe)
        # Messages that may not be read can still exist, so every topic is cleared, not only those found.
        refused = visit.publish([cleared(topic) for topic in ours])
        left = {*refused, *ours} & {*refused, *visit.retained(filters, probe)}
        if account is None and not left:  # last, because it names the accounts if a second purge is needed
            ours.append(topics.bridge_info)
            left = {*visit.publish([cleared(topics.bridge_info)])}
    if left:
        raise PurgeError(
            f"{len(left)} retained messages could not be removed ({_some(sorted(left))}): the broker's access control "
            "list must let this daemon's user write there. Fix that, and run purge again"
        )
    removed = sorted(found.keys() & set(ours))
    if removed:
        names = ", ".join(sorted(known))
        only = "" if lists else f"; this broker does not list them; accounts looked for: {names}"
        return f"removed {len(removed)} retained messages: {_some(removed)}{only}"
    return _nothing(f"of {account}" if account else "of dexcom2mqtt", topics, known)


def _of_the_bridge(visit: Visit, topics: Topics, probe: str) -> dict[str, bytes]:
    """Return the daemon's messages about itself, by exact topics. Raises PurgeError if it is online."""
    bridge = [topics.bridge_state, topics.bridge_info]
    there = visit.retained(bridge, probe, lambda found, _: 0.0 if len(found) == len(bridge) else _BRIDGE_SECONDS)
    if there.get(topics.bridge_state) == b"online":
        raise PurgeError(
            f"{topics.bridge_state} is online: stop the daemon first, or it would publish everything again. If none "
            "is running, it lost power together with its broker: start it once, and stop it"
        )
    return there


def _nothing(of: str, topics: Topics, known: Iterable[str]) -> str:
    return (
        f"nothing to remove: no retained messages {of} below {topics.base}; accounts known: {', '.join(sorted(known))}"
    )


def _owned(topics: Topics, prefix: str, accounts: Iterable[str]) -> list[str]:
    """Return the daemon's topics for these accounts, whether or not they hold a message."""
    leaves = [message.topic for key in accounts for message in account_cleared(topics, key)]
    return [*(homeassistant.discovery_topic(prefix, topics, key) for key in accounts), *leaves]


def accounts_in(found: Mapping[str, bytes], topics: Topics, prefix: str) -> set[str]:
    """Return the accounts that are the daemon's, judging by the retained messages."""
    accounts = set[str]()
    with contextlib.suppress(ForeignError):
        accounts.update(parse_info(found.get(topics.bridge_info, b"")).accounts)
    for topic, payload in found.items():
        account, _, leaf = topic.removeprefix(f"{topics.base}/").partition("/")
        if is_ours(account, leaf, payload):
            accounts.add(account)
        elif (described := homeassistant.account_of(prefix, topics, topic, payload)) is not None:
            accounts.add(described)
    return accounts


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
