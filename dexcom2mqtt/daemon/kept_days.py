"""The retained days for the statistics: which ones the broker has yet to send, and which topics to clear.

Share sends only one day again, and the statistics need 90. So if ``bridge/info`` says that the broker has days, but
they did not come with the other messages, the daemon waits for them and publishes nothing in their place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.messages.days import days_message
from dexcom2mqtt.messages.history import source_of
from dexcom2mqtt.messages.message import cleared
from dexcom2mqtt.mqtt.inbox import READ_BACK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from dexcom2mqtt.account.poller import Poller
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Settings
    from dexcom2mqtt.daemon.accounts import Accounts
    from dexcom2mqtt.messages.bridge import Info
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.topics import Topics

_PATIENCE: Final = 600.0


class KeptDays:
    """The days of all accounts, if statistics are configured. ``tick`` stops waiting for them after a time.

    ``reconnect`` makes a new connection to the broker, which gives it one more chance to send the days.
    """

    def __init__(  # noqa: PLR0913  # passed by name
        self,
        settings: Settings,
        topics: Topics,
        accounts: Accounts,
        *,
        clock: Clock,
        mirror: Mirror,
        reconnect: Callable[[], None],
    ) -> None:
        self._statistics = settings.statistics
        self.wanted = settings.statistics == "90d"
        """Whether to keep days."""
        self._topics = topics
        self._accounts = accounts
        self._clock = clock
        self._mirror = mirror
        self._reconnect = reconnect
        self._awaited: dict[str, Poller] = {}  # by topic
        self._until = math.inf
        self._asked = False  # whether a new connection was requested
        self._connected_at: float | None = None  # when the last new connection was made
        self._without_days: list[str] = []  # the accounts that have no days yet

    @property
    def awaited(self) -> tuple[str, ...]:
        """The topics to stay subscribed to; for any thread."""
        return tuple(self._awaited)

    def topics_of(self, keys: Iterable[str]) -> list[str]:
        """Return the topics to read back: those of the days, and those to clear if they have a message."""
        leaves = ("days", "statistics") if self._statistics == "off" else ("days",)
        return [self._topics.of(key, leaf) for key in keys for leaf in leaves]

    def read_back(self, info: Info | None, found: Mapping[str, bytes], keys: Collection[str]) -> dict[str, bool]:
        """Handle the retained messages of served accounts; return, by account, whether its days are awaited.

        For any thread, once for each account. ``info`` is None if ``bridge/info`` was not found: if a history was
        found, it is only late.
        """
        if not self.wanted:
            self._clear(info, found, keys)
            return {}
        late = info is None and any(self._topics.of(key, "history") in found for key in keys)
        known = keys if info is None else info.accounts
        days = {key: self._topics.of(key, "days") for key in keys}
        awaited = [key for key in known if key in days and days[key] not in found]
        if awaited and (late or (info is not None and info.days)):
            pollers = self._accounts.pollers
            self._awaited |= {days[key]: pollers[key] for key in awaited}
            self._asked, self._connected_at = False, None
            self._until = self._clock.now() + _PATIENCE
        self._without_days += [key for key in keys if days[key] not in found and days[key] not in self._awaited]
        return {key: days[key] in self._awaited for key in keys}

    def begun(self) -> list[Message]:
        """Return an empty message of days for each account without any, since ``bridge/info`` says there is one."""
        known = self._accounts.configured
        accounts = {key: known[key] for key in self._without_days if key in known}
        self._without_days = []
        sources = {key: source_of(each.region, each.user.get_secret_value()) for key, each in accounts.items()}
        return [days_message(self._topics, key, source, {}) for key, source in sources.items()]

    def forget(self, key: str) -> None:
        """Wait no longer for the days of an account whose loop has ended."""
        self._awaited.pop(self._topics.of(key, "days"), None)

    def connected(self) -> None:
        """Record that there is a new connection; for any thread."""
        if self._awaited:
            self._connected_at = self._clock.now()

    def take(self, topic: str, payload: bytes) -> bool:
        """Pass on a message if it has awaited days, and return whether it has; for any thread."""
        poller = self._awaited.pop(topic, None) if payload else None
        if poller is not None:
            poller.take_days(payload)
        return poller is not None

    def tick(self) -> float:
        """Do what is due now; return after how many seconds to call again, if nothing happens before that."""
        now = self._clock.now()
        if not self._awaited:
            return math.inf
        if now < self._until:
            return self._until - now
        if self._connected_at is None:
            if not self._asked:
                self._asked = True
                self._reconnect()
            return math.inf  # until ``connected``
        left = self._connected_at + READ_BACK_SECONDS * self._clock.speed - now
        if left > 0:
            return left
        for topic in self.awaited:
            poller = self._awaited.pop(topic, None)
            if poller is not None:
                poller.take_days(None)
        return math.inf

    def _clear(self, info: Info | None, found: Mapping[str, bytes], keys: Collection[str]) -> None:
        """Clear the retained days and statistics, which are no longer configured, of each earlier account."""
        for key in () if info is None else info.accounts:
            topics = [self._topics.of(key, leaf) for leaf in ("days", "statistics") if key in keys]
            self._mirror.put(cleared(topic) for topic in topics if topic in found)
