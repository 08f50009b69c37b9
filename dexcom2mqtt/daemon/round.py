"""One look at the accounts that a process wants: who serves each, which are free, and what is kept about them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from dexcom2mqtt.messages.bridge import Info, has_readings, parse_info
from dexcom2mqtt.messages.message import ForeignError
from dexcom2mqtt.messages.ownership import owner_of
from dexcom2mqtt.mqtt.inbox import READ_BACK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.topics import Topics

MOMENT_SECONDS: Final = 2.0
"""Real seconds to wait for one that may exist."""


class Wanted(NamedTuple):
    """What to do with an account once nobody serves it: serve it, release it for another process, or clear it."""

    purpose: Literal["serve", "release", "clear"]
    account: Account | None = None


@dataclass(slots=True)
class Round:
    """A look at these accounts. ``topics`` also has the name of this process, and ``days`` is whether it keeps them."""

    topics: Topics
    keys: list[str]
    days: bool
    statuses: dict[str, bytes] = field(default_factory=dict)
    """The retained status of each account, empty if there is none."""
    owners: dict[str, str | None] = field(default_factory=dict)
    """The process that each status names."""
    others: dict[str, str] = field(default_factory=dict)
    """Of these, the other processes that are online, by account."""
    free: frozenset[str] = frozenset()
    """The accounts that no other process serves, as far as this one knows."""

    def status_topics(self) -> list[str]:
        """Return what to read first."""
        return [self.topics.of(key, "status") for key in self.keys]

    def take_statuses(self, found: Mapping[str, bytes]) -> list[str]:
        """Record who serves each account; return the topics of the states of these processes, to read next."""
        self.statuses = {key: found.get(self.topics.of(key, "status"), b"") for key in self.keys}
        self.owners = {key: owner_of(key, status) for key, status in self.statuses.items()}
        return [self.topics.state_of(owner) for owner in self._other_owners(self.keys)]

    def take_states(self, found: Mapping[str, bytes]) -> None:
        """Record which of these processes are online."""
        states = {owner: found.get(self.topics.state_of(owner)) for owner in self._other_owners(self.keys)}
        online = {owner for owner, state in states.items() if state == b"online"}
        self.others = {key: owner for key, owner in self.owners.items() if owner in online}
        self.free = frozenset(self.keys) - self.others.keys()

    def kept_topics(self, keys: Collection[str]) -> list[str]:
        """Return the topics on which the former owners of accounts describe themselves."""
        return [self.topics.info_of(owner) for owner in self._other_owners(keys)]

    def still(self, found: Mapping[str, bytes], asked: Collection[str]) -> float:
        """Return for how many real seconds to wait for what is kept about the accounts; see ``Gathering``."""
        missing = {*asked} - found.keys()
        if any(topic in missing for topic in self.kept_topics(self.free)):
            return MOMENT_SECONDS
        infos = self.infos(found)
        for key in self.free:
            status, history, days = (self.topics.of(key, leaf) for leaf in ("status", "history", "days"))
            had_readings = has_readings(self.statuses[key])
            expected = (self.statuses[key], status), (had_readings, history), (key in infos and infos[key].days, days)
            if any(exists and topic in missing for exists, topic in expected):
                return READ_BACK_SECONDS
        return 0.0

    def infos(self, found: Mapping[str, bytes]) -> dict[str, Info]:
        """Return how the former owner of each account described itself."""
        others = {owner: _info(found.get(self.topics.info_of(owner))) for owner in self._other_owners(self.keys)}
        infos = {key: Info((key,), self.days) for key, owner in self.owners.items() if owner == self.topics.bridge}
        return infos | {key: info for key, owner in self.owners.items() if owner and (info := others.get(owner))}

    def confirm(self, found: Mapping[str, bytes]) -> None:
        """Keep only those free whose status has not changed hands since it was first read."""
        topics = {key: self.topics.of(key, "status") for key in self.free}
        now = {key: owner_of(key, found[topic]) for key, topic in topics.items() if topic in found}
        known = {None, self.topics.bridge}
        taken = {key for key, owner in now.items() if owner not in known and owner != self.owners[key]}
        self.free -= taken

    def _other_owners(self, keys: Collection[str]) -> list[str]:
        owners = {self.owners.get(key) for key in keys} - {None, self.topics.bridge}
        return sorted(filter(None, owners))


def _info(payload: bytes | None) -> Info | None:
    """Return how a process described itself; None if it did not, and an empty one if it is not ours."""
    try:
        return parse_info(payload) if payload else None
    except ForeignError:
        return Info()


def a_moment(found: Mapping[str, bytes], asked: Collection[str]) -> float:
    """Return for how many real seconds to wait for messages that may not exist; see ``Gathering``."""
    return 0.0 if {*asked} <= found.keys() else MOMENT_SECONDS
