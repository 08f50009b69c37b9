"""The picture of what the broker should hold, topic by topic, and what has to be sent to get there.

The broker mirrors this picture; it is not a queue of events. After a reconnect the whole picture is sent again, so that
nothing old can follow something new. An expired message is replaced by its successor here. So staleness, resending and
the expiry in MQTT 5 are one mechanism, without timers.

It neither connects nor knows the time: its caller asks what to send now.
"""

from __future__ import annotations

import math
import threading
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from dexcom2mqtt.messages.message import Message

_SAME_EXPIRY: Final = 1.0  # second: the resolution of MQTT


class Mirror:
    """The picture of all retained messages. Any thread may put; one thread takes.

    ``last`` is the topic that is sent only after all others. ``changed`` is called after a put that left something
    to send. ``guard`` returns what to send in place of a message while the broker refuses some topics, so that
    nothing stays current there by mistake; mostly that is the message itself.
    """

    def __init__(
        self,
        last: str,
        changed: Callable[[], None] = lambda: None,
        guard: Callable[[Message, Collection[str]], Message] = lambda message, _: message,
    ) -> None:
        self._last = last
        self._changed = changed
        self._guard = guard
        self._lock = threading.Lock()
        self._picture: dict[str, Message] = {}  # in the order of the puts
        self._announced: dict[str, Message] = {}  # as last queued to be sent
        self._unsent: dict[str, None] = {}  # topics, in the order of sending
        self._held: dict[str, float] = {}  # topics that must not be sent before that time
        self._aside: frozenset[str] = frozenset()
        self._withheld: frozenset[str] = frozenset()  # the levels above the topics that are not ours to send now
        self._closed = False
        self._next_expiry = math.inf  # no message expires before that

    def put(self, messages: Iterable[Message], *, only_missing: bool = False) -> None:
        """Change the picture, and queue what is different, in the order given.

        With ``only_missing``, topics that the picture already has stay unchanged.
        """
        self._put(messages, only_missing=only_missing, last=False)

    def close(self, messages: Iterable[Message]) -> None:
        """Put the last messages; later puts are ignored."""
        self._put(messages, only_missing=False, last=True)

    @property
    def unsent(self) -> bool:
        """Whether something is left to send that is not held back."""
        with self._lock:
            return bool(self._unsent.keys() - self._held.keys() - self._withheld_unsent())

    def hold(self, topic: str, until: float) -> None:
        """Send this topic again, but not before ``until``: the broker refused it."""
        with self._lock:
            if topic in self._picture:
                self._held[topic] = until
                self._unsent[topic] = None

    def size(self, topic: str) -> int:
        """Return the size of a topic's payload in bytes, 0 if there is none."""
        with self._lock:
            return len(self._picture[topic].payload.encode()) if topic in self._picture else 0

    def set_aside(self, topics: frozenset[str]) -> None:
        """Guard the picture against the topics that the broker refuses now, and send what that changes."""
        with self._lock:
            before, self._aside = self._aside, topics
            if before == topics:
                return
            for topic, message in self._picture.items():
                if self._guard(message, before) != self._guard(message, topics):
                    self._unsent[topic] = None

    def send_all(self) -> None:
        """Send the whole picture again, as after a connect; anything in flight may have been lost."""
        with self._lock:
            self._unsent = dict.fromkeys(self._picture)

    def send_again(self, topics: Iterable[str]) -> None:
        """Send these topics again although nothing changed, if the picture has them."""
        with self._lock:
            again = [topic for topic in topics if topic in self._picture and not self._closed]
            self._unsent |= dict.fromkeys(again)
        if again:
            self._changed()

    def release(self, topics: Collection[str]) -> None:
        """Stop holding these topics back."""
        with self._lock:
            for topic in topics:
                self._held.pop(topic, None)

    def withhold(self, levels: frozenset[str]) -> None:
        """Send nothing on the topics right below these levels, such as ``dexcom2mqtt/anna``, until the next call."""
        with self._lock:
            less, self._withheld = self._withheld - levels, levels
        if less:
            self._changed()

    def forget(self, levels: Collection[str]) -> None:
        """Remove the topics right below these levels from the picture, and send nothing there: another sends it."""
        with self._lock:
            for topic in [topic for topic in self._announced.keys() | self._picture if level_of(topic) in levels]:
                for topics in (self._picture, self._announced, self._unsent, self._held):
                    topics.pop(topic, None)

    @property
    def only_last_is_left(self) -> bool:
        """Whether the last topic is all that is left to send, apart from held ones."""
        with self._lock:
            return self._unsent.keys() - self._held.keys() - self._withheld_unsent() == {self._last}

    def take(self, now: float, most: int, *, last: bool = True) -> list[Message]:
        """Return at most that many messages to send now, the last topic only with ``last``, and count them as sent."""
        with self._lock:
            self._expire(now)
            held = self._still_held(now).keys() | self._withheld_unsent()
            ready = (topic for topic in self._unsent if topic != self._last and topic not in held)
            topics = list(islice(ready, most))
            if last and self._last in self._unsent and self._last not in held:
                waiting = len(self._unsent) - len(self._unsent.keys() & held) - 1
                if len(topics) == waiting < most:
                    topics.append(self._last)
            for topic in topics:
                del self._unsent[topic]
            if not self._unsent:
                self._unsent.clear()  # else it keeps the size of the largest picture, and every take walks through it
            return [self._guard(self._picture[topic], self._aside) for topic in topics]

    def next_at(self) -> float:
        """Return when to take again even without a put: nothing expires and nothing held is due before that."""
        with self._lock:
            return min(self._next_expiry, min(self._held.values(), default=math.inf))

    def _still_held(self, now: float) -> dict[str, float]:
        if self._held:
            self._held = {topic: until for topic, until in self._held.items() if until > now}
        return self._held

    def _withheld_unsent(self) -> set[str]:
        return {topic for topic in self._unsent if level_of(topic) in self._withheld} if self._withheld else set()

    def _put(self, messages: Iterable[Message], *, only_missing: bool, last: bool) -> None:
        changed = False
        with self._lock:
            for message in () if self._closed else messages:
                if last:
                    self._held.pop(message.topic, None)
                if only_missing and message.topic in self._picture:
                    continue
                self._show(message)
                if not _same(self._announced.get(message.topic), message):
                    self._send(message)
                    changed = True
            self._closed |= last
        if changed:
            self._changed()

    def _show(self, message: Message) -> None:
        """Add a message to the picture, behind all others; those put together expire in their order."""
        self._picture.pop(message.topic, None)
        self._picture[message.topic] = message
        if message.expires_at is not None:
            self._next_expiry = min(self._next_expiry, message.expires_at)

    def _send(self, message: Message) -> None:
        self._announced[message.topic] = message
        self._unsent.pop(message.topic, None)
        self._unsent[message.topic] = None

    def _expire(self, now: float) -> None:
        while self._next_expiry <= now:
            mortal = [(at, message) for message in self._picture.values() if (at := message.expires_at) is not None]
            self._next_expiry = math.inf
            for at, message in sorted(mortal, key=itemgetter(0)):
                if at > now:
                    self._next_expiry = min(self._next_expiry, at)
                elif message.successor is not None:
                    self._show(message.successor)
                    self._send(message.successor)
                else:
                    for topics in (self._picture, self._announced, self._unsent):
                        topics.pop(message.topic, None)


def level_of(topic: str) -> str:
    """Return the level right above a topic, with all levels before it."""
    return topic.rpartition("/")[0]


def _same(a: Message | None, b: Message) -> bool:
    if a is None or a.payload != b.payload or (a.expires_at is None) != (b.expires_at is None):
        return False
    return abs((a.expires_at or 0) - (b.expires_at or 0)) < _SAME_EXPIRY
