"""What comes from the broker: what it has retained, which is read back once, and the messages of subscriptions.

It knows what is subscribed to and who gets what comes, but not what that means. All of it is done anew on each
connection until the read-back is over, and from then on the subscriptions alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dexcom2mqtt.mqtt.connection import READ_BACK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.mqtt.connection import Connection, Received


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What to read from the broker once after the start, before anything is published there.

    ``done`` is called with the retained payloads of ``topics``, as far as there are any, when ``probe`` has come
    back, or after 10 s: a broker that lets us write but not read returns nothing. The probe is sent once the broker
    has confirmed the subscriptions.
    """

    topics: Collection[str]
    probe: str
    done: Callable[[Mapping[str, bytes]], None]


class Inbox:
    """Subscribes to what ``read_back`` wants and to ``subscriptions``, and hands on what comes.

    ``received`` is called with each message that is not part of the read-back.
    """

    def __init__(
        self,
        clock: Clock,
        read_back: ReadBack,
        subscriptions: Sequence[str],
        received: Callable[[Received], None],
    ) -> None:
        self._clock = clock
        self._subscriptions = subscriptions
        self._received = received
        self._read_back: ReadBack | None = read_back  # until it is over
        self._found: dict[str, bytes] = {}
        self._probed = False
        self.due = math.inf
        """When to ``take`` although nothing came."""

    def subscribe(self, connection: Connection) -> None:
        """Begin on a new connection."""
        connection.subscribe(self._subscriptions)
        if self._read_back is not None:
            self._found.clear()
            self._probed = False
            self.due = self._clock.now() + READ_BACK_SECONDS * self._clock.speed
            connection.subscribe((*self._read_back.topics, self._read_back.probe))

    def take(self, connection: Connection) -> None:
        """Hand on what came since the last call, and end the read-back if its probe is back or its time is over."""
        now = self._clock.now()
        if self._read_back is not None and not self._probed:
            self._probed = connection.probe(self._read_back.probe)
        for received in connection.take_received():
            if not self._reads_back(connection, received):
                self._received(received)
        if self.due <= now:
            self._end(connection)

    def _reads_back(self, connection: Connection, received: Received) -> bool:
        """Take a message if it belongs to the read-back; tell whether it did."""
        if self._read_back is None:
            return False
        if received.topic == self._read_back.probe:
            self._end(connection)
            return True
        if received.topic in self._read_back.topics:
            if received.retained:
                self._found[received.topic] = received.payload
            return True
        return False

    def _end(self, connection: Connection) -> None:
        if self._read_back is not None:
            connection.unsubscribe((*self._read_back.topics, self._read_back.probe))
            self._read_back.done(self._found)
        self._read_back = None
        self._found = {}
        self.due = math.inf
