"""What Home Assistant is told of the accounts, when it is told again, and what is taken back.

It owns the discovery topics, and what it remembers of when they were sent. What a discovery says is decided by
``messages.homeassistant``.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import version
from dexcom2mqtt.messages import homeassistant
from dexcom2mqtt.messages.message import cleared

if TYPE_CHECKING:
    from collections.abc import Container

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Settings
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.topics import Topics

_BIRTH_SPREAD: Final = 3.0
_AGAIN: Final = 3600.0
"""A broker may forget what it had, or begin to let us write there, and never say so."""
_NO_BIRTH: Final = "after a restart of Home Assistant its devices may be missing for up to an hour"


class Discovery:
    """The discovery of all accounts, if it is switched on. ``tick`` sends; ``connected`` and ``born`` only record."""

    def __init__(self, settings: Settings, topics: Topics, clock: Clock, mirror: Mirror) -> None:
        self._settings = settings
        self._topics = topics
        self._clock = clock
        self._mirror = mirror
        self._on = settings.home_assistant.discovery
        self._sent = -math.inf
        self._due = math.inf
        self._hourly = math.inf
        self._born = False  # Home Assistant, and not yet seen by tick
        self.topics = [self._topic(key) for key in settings.accounts]
        """The discovery topic of each account."""

    @property
    def subscriptions(self) -> dict[str, str]:
        """What to subscribe to, with what will not work without: where Home Assistant says that it has started."""
        return {self._settings.home_assistant.status_topic: _NO_BIRTH} if self._on else {}

    @property
    def leftovers(self) -> tuple[str, ...]:
        """What to read back: topics that are to be cleared if there is something, since discovery is switched off."""
        return () if self._on else tuple(self.topics)

    def put(self) -> None:
        """Describe the accounts to Home Assistant, unless it is not to know of them."""
        if self._on:
            self._mirror.put(homeassistant.discovery_messages(self._settings, self._topics, version()))

    def clear(self, account: str, found: Container[str]) -> None:
        """Take an account back from Home Assistant if it is one no more, or if discovery is switched off."""
        topic = self._topic(account)
        if account not in self._settings.accounts or (topic in found and not self._on):
            self._mirror.put([cleared(topic)])

    def connected(self) -> None:
        """Record that everything is sent now, as after a connect; for any thread."""
        self._sent, self._due = self._clock.now(), math.inf
        self._hourly = self._sent + _AGAIN

    def is_birth(self, topic: str, payload: bytes) -> bool:
        """Return whether a message says that Home Assistant has started."""
        return topic == self._settings.home_assistant.status_topic and payload == b"online"

    def born(self) -> None:
        """Record that Home Assistant has started; for any thread."""
        self._born = True

    def tick(self) -> float:
        """Send the discovery again once an hour, and after a birth message: at some moment of the next 3 seconds.

        Then not all programs answer at once. It never follows the last time closer than that either: while Home
        Assistant still works on a device, it loses parts of the same device sent again. Return after how many seconds
        to come again.
        """
        now, spread = self._clock.now(), _BIRTH_SPREAD * self._clock.speed
        if self._born:
            self._born = False
            soon = now + random.uniform(0, spread)  # noqa: S311  # spreads out clients, guards nothing
            self._due = min(self._due, max(soon, self._sent + spread))
        if now >= self._due:
            self._due = math.inf
            self._sent = now
            self._mirror.send_again(self.topics)
        if now >= self._hourly:
            self._sent, self._hourly = now, now + _AGAIN
            self._mirror.send_again([*self.topics, self._topics.bridge_info])
        return min(self._due, self._hourly) - now

    def _topic(self, account: str) -> str:
        return homeassistant.discovery_topic(self._settings.home_assistant.discovery_prefix, self._topics, account)
