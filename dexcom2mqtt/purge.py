"""The command that removes from the broker what the daemon left there; for when it is to go, or to be renamed.

It removes only what is the daemon's beyond doubt: others may have topics below the same one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import homeassistant, messages
from dexcom2mqtt.broker import Visit
from dexcom2mqtt.messages import Topics

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Settings

_NAMED: Final = 3


class PurgeError(Exception):
    """It was not removed; the text says why, and what to do."""


def purge(
    settings: Settings,
    clock: Clock,
    *,
    account: str | None = None,
    base_topic: str | None = None,
    discovery_prefix: str | None = None,
) -> str:
    """Remove every retained message of the daemon, or of one account; return what was done, in words.

    ``base_topic`` and ``discovery_prefix`` are for values of the past. Raises PurgeError, BrokerError and
    TlsFileError.
    """
    topics = Topics(base_topic or settings.mqtt.base_topic)
    prefix = discovery_prefix or settings.home_assistant.discovery_prefix
    probe = topics.sync(f"{settings.mqtt.client_id}-purge")
    everything = topics.of("+", "+")
    with Visit(settings.mqtt, clock, "purge") as visit:
        found = visit.retained([everything], probe)
        if found.get(topics.bridge_state) == b"online":
            raise PurgeError(
                f"{topics.bridge_state} is online: stop the daemon first, for it would publish everything again. If "
                "none runs, its broker lost power with it: start it once, and stop it"
            )
        known = {*settings.accounts, *accounts_in(found, topics)}
        ours = _owned(topics, prefix, known if account is None else {account}, bridge=account is None)
        filters = [everything, *sorted(topic for topic in ours if topic.startswith(f"{prefix}/device/"))]
        there = sorted(ours & visit.retained(filters, probe).keys())
        visit.publish([messages.cleared(topic) for topic in there])
        left = sorted(ours & visit.retained(filters, probe).keys())
    if left:
        raise PurgeError(
            f"{len(left)} of {len(there)} retained messages are still there ({_some(left)}): the broker's access "
            "control list must let the user of this daemon write there"
        )
    if there:
        return f"removed {len(there)} retained messages: {_some(there)}"
    of = f"of {account}" if account else "of dexcom2mqtt"
    return (
        f"nothing to remove: nothing {of} is retained below {topics.base}; accounts known: {', '.join(sorted(known))}"
    )


def _owned(topics: Topics, prefix: str, accounts: Collection[str], *, bridge: bool) -> set[str]:
    """Return the topics that are the daemon's, whether or not there is something."""
    ours = {message.topic for key in accounts for message in messages.account_cleared(topics, key)}
    ours |= {homeassistant.discovery_topic(prefix, topics, key) for key in accounts}
    return ours | ({topics.bridge_state, topics.bridge_info} if bridge else set())


def accounts_in(found: Mapping[str, bytes], topics: Topics) -> set[str]:
    """Return the accounts of which retained messages tell that they are the daemon's."""
    accounts = set()
    with contextlib.suppress(messages.ForeignError):
        accounts.update(messages.parse_info(found.get(topics.bridge_info, b"")))
    for topic, payload in found.items():
        account, _, leaf = topic.removeprefix(f"{topics.base}/").partition("/")
        if messages.is_ours(account, leaf, payload):
            accounts.add(account)
    return accounts


def _some(names: Collection[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(list(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")
