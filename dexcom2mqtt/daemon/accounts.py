"""The accounts that this process serves: each has its loop, which may begin and end while the daemon runs.

It does not decide which accounts these are, nor what the broker holds about them.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import threads
from dexcom2mqtt.account.limits import RateLimits
from dexcom2mqtt.account.poller import poller_for
from dexcom2mqtt.account.rationed import client_of
from dexcom2mqtt.clock import Stopped
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dexcom2mqtt.account.poller import Poller
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account, Settings
    from dexcom2mqtt.daemon.health import Health
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.share import ShareClient

_LOOK: Final = 0.2
"""Real seconds until it looks again whether the last readings of an account are acknowledged."""
_SUMMARIES: Final = 10
"""The most accounts in systemd's status line: it is limited to 4096 bytes, and people read less."""


class Accounts:
    """The served accounts, at first all if this process is alone. One thread adds and ends them; any thread may read.

    ``may_ask`` says whether an account may ask Share now. ``polled`` is called before each wait of a loop, which may
    be the end of a poll; ``ended`` when a loop that should end has done so, and ``tick`` has something to do.
    Raises VariableError.
    """

    def __init__(  # noqa: PLR0913  # the parts that each loop needs, and functions by name
        self,
        settings: Settings,
        clock: Clock,
        mirror: Mirror,
        stream: Stream,
        health: Health,
        *,
        may_ask: Callable[[str], bool],
        polled: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._topics = settings.topics
        self._clock = clock
        self._mirror = mirror
        self._stream = stream
        self._health = health
        self._may_ask = may_ask
        self._polled = polled
        self._on_end = ended
        self._rate_limits = RateLimits()
        self._clocks: dict[str, Clock] = {}
        self._then: dict[str, Callable[[], None]] = {}  # what follows the end of a loop
        self._ended: deque[str] = deque()
        self.configured: Mapping[str, Account] = {}
        """The served accounts, as configured. It is replaced as a whole, like ``pollers``."""
        self.pollers: Mapping[str, Poller] = {}
        """The loops of the served accounts."""
        self.proxies: dict[str, None] = {}
        """The proxies through which Share is reached."""
        if self._topics.bridge == ALONE:
            self.add(settings.own_accounts)
        else:  # find out now what would prevent it later
            for account in settings.own_accounts.values():
                self._client(account, clock)

    def add(self, accounts: Mapping[str, Account]) -> None:
        """Make the loops of more accounts; ``start`` starts them. Raises VariableError."""
        made = {key: self._poller(key, account) for key, account in accounts.items()}
        self.configured, self.pollers = {**self.configured, **accounts}, {**self.pollers, **made}

    def start(self, key: str) -> None:
        """Start the loop of an account. Raises ThreadError."""
        poller = self.pollers[key]

        def run() -> None:
            with contextlib.suppress(Stopped):
                poller.run()
            self._ended.append(key)
            self._on_end()

        threads.start(key, run)

    def end(self, key: str, then: Callable[[], None]) -> None:
        """End the loop of an account, then call ``then`` in ``tick``. That may take as long as a call to Share."""
        self._then[key] = then
        self._clocks[key].stop()

    def tick(self) -> float:
        """Do what follows the end of loops that should end; return in how many seconds to call again.

        It waits for the acknowledgement of what was sent, so that the history has all that was published.
        """
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        for key in ended:
            if key not in self._then:
                continue
            if self._stream.is_on_its_way(key):
                self._ended.append(key)
            else:
                self._forget(key)
        return _LOOK * self._clock.speed if self._ended else math.inf

    def _forget(self, key: str) -> None:
        self._health.forget(_loop(key))
        self.configured = {other: each for other, each in self.configured.items() if other != key}
        self.pollers = {other: each for other, each in self.pollers.items() if other != key}
        self._clock.forget(self._clocks.pop(key))
        self._then.pop(key)()

    def refresh(self, topic: str) -> None:
        """Ask for a reading of the account whose topic ``refresh`` this is; ignore other topics. For any thread."""
        key, leaf = self._topics.split(topic)
        if leaf == "refresh" and key in self.pollers:
            self.pollers[key].refresh()

    def summary(self) -> str:
        """Return how the accounts are doing; if there are many, those in trouble come first. For any thread."""
        if not self.pollers:
            return "serves no account yet"
        ordered = sorted(self.pollers.values(), key=lambda poller: poller.well)
        more = [f"and {len(ordered) - _SUMMARIES} more"] if len(ordered) > _SUMMARIES else []
        return "; ".join([*(poller.summary() for poller in ordered[:_SUMMARIES]), *more])

    def _client(self, account: Account, clock: Clock) -> ShareClient:
        client = client_of(account, clock)
        if client.proxy:
            self.proxies[client.proxy] = None
        return client

    def _poller(self, key: str, account: Account) -> Poller:
        clock = self._clocks[key] = self._clock.branch()
        client = self._client(account, clock)
        watched = self._health.loop(_loop(key))

        def back_by(at: float) -> None:
            watched(at)
            self._polled()

        return poller_for(
            key,
            account,
            client,
            clock=clock,
            topics=self._topics,
            put=self._mirror.put,
            stream=self._stream,
            stale_after=self._settings.stale_after_seconds,
            rate_limits=self._rate_limits,
            statistics=self._settings.statistics,
            back_by=back_by,
            may_ask=lambda: self._may_ask(key),
        )


def _loop(key: str) -> str:
    return f"account {key}"
