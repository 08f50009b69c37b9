"""When Home Assistant gets the discovery of the accounts, when it gets it again, and when it is cleared.

It owns the discovery topics, and records when they were sent. ``messages.homeassistant`` decides what a discovery says.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import version
from dexcom2mqtt.messages import homeassistant
from dexcom2mqtt.messages.message import cleared

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account, Settings
    from dexcom2mqtt.daemon.accounts import Accounts
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.topics import Topics

_BIRTH_SPREAD: Final = 3.0
_AGAIN: Final = 3600.0
"""Seconds. A broker may lose its messages, or begin to let us write there, without saying so."""
_NO_BIRTH: Final = "after a restart of Home Assistant its devices may be missing for up to an hour"


class Discovery:
    """The discovery of the served accounts, if switched on. ``tick`` sends it again.

    ``connected`` and ``born`` only record.
    """

    def __init__(self, settings: Settings, topics: Topics, clock: Clock, mirror: Mirror, accounts: Accounts) -> None:
        self._settings = settings
        self._topics = topics
        self._clock = clock
        self._mirror = mirror
        self._accounts = accounts
        self._on = settings.home_assistant.discovery
        self._sent = -math.inf
        self._due = math.inf
        self._hourly = math.inf
        self._born = False  # whether Home Assistant has started since the last tick

    @property
    def subscriptions(self) -> dict[str, str]:
        """The topic on which Home Assistant reports its start, and what will not work if the broker refuses it."""
        return {self._settings.home_assistant.status_topic: _NO_BIRTH} if self._on else {}

    def leftovers_of(self, keys: Iterable[str]) -> list[str]:
        """Return the topics to read back: if discovery is switched off, those to clear if they have a message."""
        return [] if self._on else [self.topic_of(key) for key in keys]

    def put(self, accounts: Mapping[str, Account]) -> None:
        """Describe accounts to Home Assistant, if discovery is switched on."""
        if self._on:
            self._sent = self._clock.now()
            self._mirror.put(homeassistant.discovery_messages(self._settings, self._topics, version(), accounts))

    def clear_leftover(self, account: str, found: Container[str]) -> None:
        """Remove an account from Home Assistant if discovery was switched off."""
        topic = self.topic_of(account)
        if topic in found and not self._on:
            self._mirror.put([cleared(topic)])

    def connected(self) -> None:
        """Record that everything is sent now, since the broker is connected; for any thread."""
        self._sent, self._due = self._clock.now(), math.inf
        self._hourly = self._sent + _AGAIN

    def is_birth(self, topic: str, payload: bytes) -> bool:
        """Return whether a message is Home Assistant's report of its start."""
        return topic == self._settings.home_assistant.status_topic and payload == b"online"

    def born(self) -> None:
        """Record that Home Assistant has started; for any thread."""
        self._born = True

    def tick(self) -> float:
        """Send the discovery again if that is due; return after how many seconds to call again.

        It is due once an hour, and at a random moment in the 3 seconds after a birth message, so that not all programs
        answer at once. Two discoveries are at least 3 seconds apart: while Home Assistant still works on a device, it
        loses parts of the same device sent again.
        """
        now, spread = self._clock.now(), _BIRTH_SPREAD * self._clock.speed
        if self._born:
            self._born = False
            soon = now + random.uniform(0, spread)  # noqa: S311  # not for security
            self._due = min(self._due, max(soon, self._sent + spread))
        if now >= self._due:
            self._due = math.inf
            self._sent = now
            self._mirror.send_again(self._every_topic())
        if now >= self._hourly:
            self._sent, self._hourly = now, now + _AGAIN
            self._mirror.send_again([*self._every_topic(), self._topics.bridge_info])
        return min(self._due, self._hourly) - now

    def _every_topic(self) -> list[str]:
        return [self.topic_of(key) for key in self._accounts.pollers]

    def topic_of(self, account: str) -> str:
        """Return the discovery topic of an account."""
        return homeassistant.discovery_topic(self._settings.home_assistant.discovery_prefix, self._topics, account)
