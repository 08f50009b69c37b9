"""The accounts that a process serves or wants, and whether it may publish about each now."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from dexcom2mqtt.messages.ownership import owner_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterable, Mapping

    from dexcom2mqtt.daemon.round import Round, Wanted
    from dexcom2mqtt.daemon.serving import Serving
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)


class Holdings:
    """The accounts by their condition; ``freed`` is called when the loop of one that should end has ended.

    ``owned`` are served from the start. Whoever changes something holds ``lock``; ``owned`` is replaced as a whole.
    """

    def __init__(
        self, serving: Serving, owned: Iterable[str], lock: threading.RLock, freed: Callable[[], None]
    ) -> None:
        self._serving = serving
        self._lock = lock
        self._freed = freed
        self.wanted: dict[str, Wanted] = {}
        """What to do with each account once nobody else serves it; those that are served stay here."""
        self.owned = frozenset(owned)
        """Those that this process surely serves."""
        self.unsure = frozenset[str]()
        """Those that it served before the connection was lost: another process may serve them now."""
        self._tried: set[str] = set()  # to release or to clear
        self._ending = frozenset[str]()  # their loops have to end before they can be served again

    @property
    def left(self) -> list[str]:
        """The wanted accounts that are to be taken, or taken again."""
        others = self.owned | self._ending
        return [key for key in self.wanted if key not in others]

    def serves(self, key: str) -> bool:
        """Return whether an account has a loop that should go on."""
        return key in self.owned | self.unsure

    def doubt(self) -> None:
        """Publish nothing about any account until it is known whether another process serves it."""
        self.unsure, self.owned = self.unsure | self.owned, frozenset()
        self._withhold()

    def takeable(self, keys: Collection[str]) -> frozenset[str]:
        """Return those of the accounts whose loop need not end first."""
        return frozenset(keys) - self._ending

    def leave_to_others(self, this: Round) -> frozenset[str]:
        """Want no longer to release or clear what others serve, or what is done; return these accounts."""
        over = frozenset(key for key in this.keys if self._is_over(key, this))
        self.wanted = {key: each for key, each in self.wanted.items() if key not in over}
        self._tried -= over
        return over

    def _is_over(self, key: str, this: Round) -> bool:
        match self.wanted[key].purpose:
            case "serve":
                return False
            case "release":
                return this.owners[key] != this.topics.bridge
            case "clear":
                return key in this.others or (key in self._tried and not this.statuses[key])

    def tried(self, key: str) -> str:
        """Record that an account is being released or cleared, and return which; the next look shows whether it is."""
        self._tried.add(key)
        return self.wanted[key].purpose

    def keep(self, keys: Collection[str]) -> None:
        """Serve these accounts from now on, or again."""
        self.owned |= frozenset(keys)
        self.unsure -= frozenset(keys)
        self._withhold()

    def end(self, key: str, how: Callable[[str, Callable[[], None]], None]) -> None:
        """End the loop of an account; ``how`` calls its second argument after that."""
        self.owned, self.unsure, self._ending = self.owned - {key}, self.unsure - {key}, self._ending | {key}
        self._withhold()
        how(key, partial(self._ended, key))

    def _ended(self, key: str) -> None:
        with self._lock:
            self._ending -= {key}
            self._withhold()
            self._freed()

    def _withhold(self) -> None:
        self._serving.withhold(self.unsure | self._ending)


class Waiting:
    """The wanted accounts that other processes still serve."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._owners: dict[str, str] = {}
        self.watched: Mapping[str, str] = {}
        """The topics that change when one of them becomes free, each with its process; replaced as a whole."""

    def update(self, owners: dict[str, str]) -> None:
        """Wait for these accounts, each with the process that serves it; log what has changed."""
        if owners == self._owners:
            return
        self._owners = owners
        for owner, count in sorted(Counter(owners.values()).items()):
            _log.info("%s still serves %s of this process's accounts", owner, count)
        statuses = {self._topics.of(key, "status"): owner for key, owner in owners.items()}
        self.watched = statuses | {self._topics.state_of(owner): owner for owner in sorted(set(owners.values()))}

    def is_over(self, topic: str, payload: bytes) -> bool:
        """Return whether a message on a watched topic means that an account may be free; for any thread.

        Most don't: each account's status comes after each poll, and the broker sends the retained ones after each look.
        """
        owner = self.watched.get(topic, "")
        if topic == self._topics.state_of(owner):
            return payload != b"online"
        key, _ = self._topics.split(topic)
        return owner_of(key, payload) != owner
