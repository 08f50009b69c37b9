"""The command that removes what the daemon left at the broker, before it is uninstalled or renamed.

It removes only what certainly belongs to the daemon: other programs may use topics below the same base.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.messages import homeassistant
from dexcom2mqtt.messages.bridge import Info, parse_info
from dexcom2mqtt.messages.message import ForeignError, cleared, is_ours
from dexcom2mqtt.messages.ownership import BRIDGE, owner_of
from dexcom2mqtt.messages.state import account_cleared
from dexcom2mqtt.mqtt.visit import Visit
from dexcom2mqtt.shards import bridge_name
from dexcom2mqtt.topics import ACCOUNT_KEY, ALONE, Topics

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
    with Visit(settings.connection, clock, "purge") as visit:
        search = _Search(visit, topics, prefix, probe, account)
        broken = filter(re.compile(ACCOUNT_KEY).fullmatch, settings.broken)  # others are no accounts
        search.run(_processes(settings.shard.count), {*settings.accounts, *broken})
        ours = search.owned()
        infos = [] if account else [topics.info_of(name) for name in search.processes]
        if account is None:
            ours += [topics.state_of(name) for name in search.processes]
        filters = search.filters if search.lists else ours
        # Messages that may not be read can still exist, so every topic is cleared, not only those found.
        refused = visit.publish([cleared(topic) for topic in ours])
        left = {*refused, *ours} & {*refused, *visit.retained(filters, probe)}
        if not left:  # last, because they name the accounts if a second purge is needed
            ours += infos
            left = {*visit.publish([cleared(topic) for topic in infos])}
    if left:
        raise PurgeError(
            f"{len(left)} retained messages could not be removed ({_some(sorted(left))}): the broker's access control "
            "list must let this daemon's user write there. Fix that, and run purge again"
        )
    removed = sorted(search.found.keys() & set(ours))
    if removed:
        names = ", ".join(sorted(search.accounts))
        only = "" if search.lists else f"; this broker does not list them; accounts looked for: {names}"
        return f"removed {len(removed)} retained messages: {_some(removed)}{only}"
    return _nothing(f"of {account}" if account else "of dexcom2mqtt", topics, search.accounts)


class _Search:
    """Finds the retained messages of the daemon: of one account, or of all. Raises PurgeError if it is online."""

    def __init__(self, visit: Visit, topics: Topics, prefix: str, probe: str, account: str | None) -> None:
        self._visit = visit
        self._topics = topics
        self._prefix = prefix
        self._probe = probe
        self._account = account
        self.filters = [topics.of("+", "+"), homeassistant.discovery_topics(prefix)]
        self.lists = True
        """Whether the broker sends retained messages for wildcards. RabbitMQ, for one, does not."""
        self.found: dict[str, bytes] = {}
        """The payloads, by topic; other programs' too."""
        self.processes = list[str]()
        """The names of the processes, whether or not they left a message."""
        self.accounts = set[str]()
        """The keys of the accounts, whether or not they have a message."""

    def run(self, processes: Iterable[str], accounts: Iterable[str]) -> None:
        """Look for these processes and accounts, and for all that the messages name."""
        self._look_at(processes)
        listed = self._visit.retained(self.filters, self._probe)
        self.lists = not self.found or bool(listed.keys() & self.found.keys())
        self.found = {**listed, **self.found}
        new = {*accounts, *accounts_in(self.found, self._topics, self._prefix)}
        while new:
            self.accounts |= new
            if not self.lists:
                self.found |= self._visit.retained(self._owned_of(new), self._probe)
            self._look_at(processes_in(self.found, self._topics) - {*self.processes})
            new = accounts_in(self.found, self._topics, self._prefix) - self.accounts

    def owned(self) -> list[str]:
        """Return the topics of the accounts, whether or not they hold a message."""
        return self._owned_of(self.accounts)

    def _owned_of(self, accounts: Iterable[str]) -> list[str]:
        return _owned(self._topics, self._prefix, accounts if self._account is None else {self._account})

    def _look_at(self, processes: Iterable[str]) -> None:
        """Find what these processes said about themselves, by exact topics. Raises PurgeError if one is online."""
        names, topics = sorted(processes), self._topics
        if not names:
            return
        self.processes += names
        asked = [topic for name in names for topic in (topics.state_of(name), topics.info_of(name))]
        self.found |= self._visit.retained(
            asked, self._probe, lambda found, asked: 0.0 if {*asked} <= found.keys() else _BRIDGE_SECONDS
        )
        online = [name for name in names if self.found.get(topics.state_of(name)) == b"online"]
        if online == [ALONE]:
            raise PurgeError(
                f"{topics.bridge_state} is online: stop the daemon first, or it would publish everything again. If "
                "none is running, it lost power together with its broker: start it once, and stop it"
            )
        if online:
            raise PurgeError(
                f"{_some([topics.state_of(name) for name in online])} {'is' if len(online) == 1 else 'are'} online: "
                "stop all processes first, or they would publish everything again. One that is not running lost "
                "power together with its broker: start it once, with the same shard.index, and stop it"
            )


def _processes(count: int) -> list[str]:
    """Return the names of all configured processes, and of the one that may have been alone before."""
    return list(dict.fromkeys([ALONE, *(bridge_name(index, count) for index in range(count))]))


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
    for topic, payload in found.items():
        account, leaf = topics.split(topic)
        if leaf == "info" and re.fullmatch(BRIDGE, account):
            accounts.update((_info(payload) or Info()).accounts)
        elif is_ours(account, leaf, payload):
            accounts.add(account)
        elif (described := homeassistant.account_of(prefix, topics, topic, payload)) is not None:
            accounts.add(described)
    return accounts


def processes_in(found: Mapping[str, bytes], topics: Topics) -> set[str]:
    """Return the processes that the retained messages come from, or that they name as the owner of an account."""
    processes = set[str]()
    for topic, payload in found.items():
        level, leaf = topics.split(topic)
        if re.fullmatch(BRIDGE, level):
            if (leaf == "state" and payload in {b"online", b"offline"}) or (leaf == "info" and _info(payload)):
                processes.add(level)
        elif leaf == "status" and (owner := owner_of(level, payload)):
            processes.add(owner)
    return processes


def _info(payload: bytes) -> Info | None:
    """Return how a process describes itself; None if the message is somebody else's."""
    try:
        return parse_info(payload)
    except ForeignError:
        return None


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
