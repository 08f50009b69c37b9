"""What it takes to begin serving an account while the daemon runs, and to stop: its loop, and its topics.

``ownership`` decides which accounts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dexcom2mqtt.messages.message import cleared
from dexcom2mqtt.messages.mirror import level_of
from dexcom2mqtt.messages.ownership import released
from dexcom2mqtt.messages.state import account_cleared, stale_messages, unavailable, without_reading
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.daemon.accounts import Accounts
    from dexcom2mqtt.daemon.discovery import Discovery
    from dexcom2mqtt.daemon.kept_days import KeptDays
    from dexcom2mqtt.messages.bridge import Info
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.topics import Topics


class Serving:
    """Begins to serve accounts, and stops. One thread at a time.

    ``once`` publishes messages about accounts that are not served. If several processes share the accounts, these must
    not be sent again on a later connection, when another process may serve them.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # the parts that it connects
        self,
        topics: Topics,
        mirror: Mirror,
        stream: Stream,
        accounts: Accounts,
        discovery: Discovery,
        kept_days: KeptDays,
        once: Callable[[Iterable[Message]], None],
    ) -> None:
        self._topics = topics
        self._mirror = mirror
        self._stream = stream
        self._accounts = accounts
        self._discovery = discovery
        self._kept_days = kept_days
        self._once = once
        self.keeps_days = kept_days.wanted
        """Whether the days of the accounts are kept at the broker."""

    def topics_of(self, keys: Collection[str]) -> list[str]:
        """Return the topics to read back before ``take``."""
        kept = [self._topics.of(key, leaf) for key in keys for leaf in ("history", "status")]
        return [*kept, *self._kept_days.topics_of(keys), *self._discovery.leftovers_of(keys)]

    def take(self, accounts: Mapping[str, Account], found: Mapping[str, bytes], infos: Mapping[str, Info]) -> None:
        """Begin to serve accounts that nobody serves.

        ``found`` is what the broker retains for them, and ``infos`` how the former owner of each described itself. Old
        values are withdrawn before the status says whose the accounts are now.
        """
        self._accounts.add(accounts)
        for key, account in accounts.items():
            self._mirror.put(stale_messages(self._topics, key, without_reading(account)))
            self._discovery.clear_leftover(key, found)
        self._discovery.put(accounts)
        awaited: dict[str, bool] = {}
        for key in accounts:
            awaited |= self._kept_days.read_back(infos.get(key), found, [key])
        self._mirror.put(self._kept_days.begun())
        self.hand_over(accounts, found, awaited)
        for key in accounts:
            self._accounts.start(key)

    def hand_over(self, keys: Collection[str], found: Mapping[str, bytes], awaited: Mapping[str, bool]) -> None:
        """Hand each loop what the broker retains for its account; ``awaited`` is whether its days may come later."""
        for key in keys:
            history, status, days = (found.get(self._topics.of(key, leaf)) for leaf in ("history", "status", "days"))
            self._accounts.pollers[key].take_read_back(history, status, days, days_awaited=awaited.get(key, False))

    def withhold(self, keys: Collection[str]) -> None:
        """Publish nothing about these accounts, and about all others again."""
        self._mirror.withhold(frozenset(level for key in keys for level in self._levels(key)))
        self._stream.withhold(frozenset(keys))

    def go_on(self, keys: Collection[str]) -> None:
        """Let the loops of accounts ask Share again."""
        for key in keys:
            self._accounts.pollers[key].look()

    def lose(self, key: str, then: Callable[[], None]) -> None:
        """End the loop of an account that another process serves now, without a message; then call ``then``."""

        def forget() -> None:
            self._forget(key)
            self._mirror.forget(self._levels(key))
            then()

        self._accounts.end(key, forget)

    def restart(self, key: str, then: Callable[[], None]) -> None:
        """End the loop of an account whose configuration changed, so no value is current; then call ``then``."""
        gone = stale_messages(self._topics, key, without_reading(self._accounts.configured[key]))
        if self._topics.bridge != ALONE:  # now, while the account surely is this process's
            levels, saved = self._levels(key), self._stream.histories(math.inf)
            self._mirror.put(message for message in saved if level_of(message.topic) not in levels)
            self._once([*(message for message in saved if level_of(message.topic) in levels), *gone])
            self.lose(key, then)
            return

        def withdraw() -> None:
            self._mirror.put([*self._stream.histories(math.inf), *gone])
            self._forget(key)
            then()

        self._accounts.end(key, withdraw)

    def leave(self, key: str, found: Mapping[str, bytes], *, removed: bool) -> None:
        """Clear an account that was removed, or its discovery if that was switched off."""
        if removed:
            self.clear(key)
        else:
            self._discovery.clear_leftover(key, found)

    def clear(self, key: str) -> None:
        """Clear the topics of an account that is not configured."""
        self._once([cleared(self._discovery.topic_of(key)), *account_cleared(self._topics, key)])

    def release(self, key: str, status: bytes) -> None:
        """Say that nobody serves an account that this process served before it started, and that it has no value."""
        self._once([unavailable(self._topics, key), released(self._topics, key, status)])

    def farewell(self, keys: Collection[str]) -> list[Message]:
        """Return the last messages about served accounts: no value is current, and another process may take them."""
        served = {key: poller for key, poller in self._accounts.pollers.items() if key in keys}
        gone = [unavailable(self._topics, key) for key in served]
        return [*gone, *(message for poller in served.values() for message in poller.released())]

    def _forget(self, key: str) -> None:
        """Forget what still waits for an account whose loop has ended."""
        self._stream.forget(key)
        self._kept_days.forget(key)

    def _levels(self, key: str) -> set[str]:
        """Return the levels right above the topics of an account."""
        return {level_of(self._topics.of(key, "status")), level_of(self._discovery.topic_of(key))}
