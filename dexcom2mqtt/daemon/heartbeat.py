"""Publishes that the daemon is alive: ``bridge/state``, repeated as long as it is, and ``bridge/info``.

It decides when the daemon is online: once the retained messages have been read back, and Share has answered or taken
too long.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import version
from dexcom2mqtt.messages.bridge import bridge_info, bridge_offline, bridge_online
from dexcom2mqtt.messages.state import stale_messages, without_reading

if TYPE_CHECKING:
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.daemon.accounts import Accounts
    from dexcom2mqtt.daemon.holdings import Holdings
    from dexcom2mqtt.daemon.kept_days import KeptDays
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.mqtt.outcome import Protocol
    from dexcom2mqtt.topics import Topics

_WAIT_FOR_SHARE: Final = 10.0
_EVERY: Final = 60.0
_EXPIRY: Final = 180.0


class Heartbeat:
    """Publishes that the daemon is alive, in ``tick``; ``connected`` and ``read_back`` mostly record.

    It is offline as long as nothing may be published about some accounts, since it is unknown who serves them: the
    broker still has their old values.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # the parts that it looks at
        self,
        topics: Topics,
        clock: Clock,
        mirror: Mirror,
        accounts: Accounts,
        kept_days: KeptDays,
        holdings: Holdings,
    ) -> None:
        self._topics = topics
        self._clock = clock
        self._mirror = mirror
        self._accounts = accounts
        self._kept_days = kept_days
        self._holdings = holdings
        self._started = clock.now()
        self._started_at: float | None = None  # Unix seconds, once an account's server has sent its time
        self._protocol: Protocol | None = None
        self._may_poll_since = 0.0  # since when the accounts may sign in, by the clock
        self._online = False
        self._next = 0.0
        self.has_read_back = False
        """Whether the retained messages have been read back; of several processes, those of the accounts it took."""

    def start(self) -> None:
        """Publish offline first. If broker and daemon lost power together, the broker still has online."""
        self._started = self._clock.now()
        self._mirror.put([bridge_offline(self._topics)])

    def connected(self, protocol: Protocol) -> None:
        """Record that the broker is connected; for any thread."""
        self._protocol = protocol
        if self._online:
            self._put_info()
        if self._holdings.unsure:
            self._mirror.put([bridge_offline(self._topics)])

    def read_back(self) -> None:
        """Record that the retained messages have been read back, which counts only once; for any thread."""
        if not self.has_read_back:
            self.has_read_back = True
            self._may_poll_since = self._clock.now()

    @property
    def awaits_share(self) -> bool:
        """Whether an answer of Share, or its time, may be the reason for a ``tick``; for any thread."""
        return not self._online or self._started_at is None

    def tick(self) -> float:
        """Do what is due now; return in how many seconds to call again, if nothing happens before that."""
        now = self._clock.now()
        if not self._online:
            if (left := self._until_online(now)) > 0:
                return left
            self._online = True
            self._put_missing()
        self._put_info()
        if self._holdings.unsure:
            self._next = now
            return math.inf
        if now >= self._next:
            self._next = now + _EVERY
            self._mirror.put([bridge_online(self._topics, now + _EXPIRY)])
            if self._holdings.unsure:  # only now, and the new connection may have said offline before this
                self._mirror.put([bridge_offline(self._topics)])
        return self._next - now

    def _until_online(self, now: float) -> float:
        """Return for how many seconds to wait for Share; infinity before the retained messages are read back."""
        if not self.has_read_back:
            return math.inf
        if all(poller.answered.is_set() for poller in self._accounts.pollers.values()):
            return 0.0
        return max(self._started, self._may_poll_since) + _WAIT_FOR_SHARE * self._clock.speed - now

    def _put_missing(self) -> None:
        """Publish every account without a current reading as stale: the broker's retained messages may be old."""
        for key, account in self._accounts.configured.items():
            self._mirror.put(stale_messages(self._topics, key, without_reading(account)), only_missing=True)
        self._mirror.put(self._kept_days.begun(), only_missing=True)

    def _put_info(self) -> None:
        if self._started_at is None:
            times = (poller.time.unix(self._started) for poller in self._accounts.pollers.values())
            self._started_at = next((at for at in times if at is not None), None)
        info = bridge_info(
            self._topics,
            version=version(),
            started_at=self._started_at,
            protocol=self._protocol,
            accounts=self._accounts.pollers,
            days=self._kept_days.wanted,
        )
        self._mirror.put([info])
