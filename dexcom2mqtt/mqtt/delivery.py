"""Sends the mirror's messages and the stream's readings to the broker, and handles its answers.

It decides what to send now, and when the last topic may be sent. ``trouble`` judges refusals; ``link`` owns the
connection.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from dexcom2mqtt.mqtt.outcome import Place, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.mqtt.connection import Connection
    from dexcom2mqtt.mqtt.outcome import Line
    from dexcom2mqtt.mqtt.trouble import Ruling, Trouble

_log = logging.getLogger(__name__)


def say(line: Line | None) -> None:
    """Log a line, if there is one."""
    if line is not None:
        _log.log(line.level, "%s", line.text)


class Delivery:
    """Sends the messages of ``mirror`` and ``stream`` that the broker accepts.

    ``last`` is the topic that is sent only once all topics that it vouches for are acknowledged.
    """

    def __init__(self, clock: Clock, mirror: Mirror, stream: Stream, trouble: Trouble, last: str) -> None:
        self._clock = clock
        self._mirror = mirror
        self._stream = stream
        self._trouble = trouble
        self._last = last
        self._once: deque[Message] = deque()  # for this connection alone
        self._before_last: frozenset[int] | None = None  # unacknowledged when only the last topic was left
        self.may_leave = True
        """Whether the broker accepted the newest message on the last topic; otherwise the will has to do its job."""

    def tell(self, messages: Iterable[Message]) -> None:
        """Send messages beside the mirror, once, unless the connection ends before; for any thread."""
        self._once.extend(messages)

    def try_again(self, now: float) -> None:
        """Try all topics again that were set aside; the last topic is not sent before that."""
        self._mirror.release(self._trouble.aside)
        self._trouble.try_again(self._trouble.aside, now)
        self._mirror.set_aside(self._trouble.aside)

    def begin(self, connection: Connection) -> None:
        """Send the whole mirror on a new connection, with messages no larger than the broker allows."""
        self._before_last = None
        self._once.clear()
        self._stream.fit(connection.limits.most_bytes)
        self._mirror.send_all()
        if not connection.limits.retains:
            say(self._trouble.no_retained_messages())

    def send(self, connection: Connection, now: float) -> None:
        """Send all messages that may be sent now."""
        if now >= self._trouble.quiet_until:
            self._send(connection, now, stream=True)
        if connection.idle and connection.subscribed and not self._mirror.unsent and self._stream.next_at(now) > now:
            self._trouble.settled()

    def say_goodbye(self, connection: Connection, now: float) -> None:
        """Send the rest of the mirror, but no more readings."""
        self._send(connection, now, stream=False)

    def next_at(self, connection: Connection, now: float) -> float:
        """Return when there is something to do next, if nothing happens before."""
        if now < self._trouble.quiet_until:
            return self._trouble.quiet_until
        until = self._mirror.next_at()
        if connection.room:  # otherwise an acknowledgement must come first
            until = min(until, self._stream.next_at(now))
        return until

    def take_answers(self, connection: Connection) -> None:
        """Record what the broker acknowledged, and what it refused."""
        for message, refusal in connection.take_answers():
            if refusal is None:
                self._stream.acknowledged(message)
                say(self._trouble.taken(Place(message.topic), self._clock.now()))
                self.may_leave |= message.topic == self._last
            else:
                self._refused(message, refusal)
        self._mirror.set_aside(self._trouble.aside)

    def _send(self, connection: Connection, now: float, *, stream: bool) -> None:
        self._mirror.put(self._stream.histories(now))
        while self._once and connection.room:
            self._publish(connection, self._once.popleft())
        for message in self._mirror.take(now, connection.room, last=self._may_end(connection, now)):
            self._publish(connection, message)
        if stream:
            for message in self._stream.take(now, connection.room):
                self._publish(connection, message)

    def _may_end(self, connection: Connection, now: float) -> bool:
        """Return whether the last topic may be sent: the topics it vouches for must be acknowledged, not only sent."""
        if self._clock.stopped:
            return True  # the message that nothing is current is never too early
        if self._before_last is None and self._mirror.only_last_is_left:
            self._before_last = frozenset(connection.on_their_way)
        acknowledged = self._before_last is not None and not self._before_last & connection.on_their_way.keys()
        undecided = self._trouble.undecided
        if self._last in undecided and self._stream.next_at(now) <= now:
            return False  # it may end the connection, so send the readings first
        return acknowledged and not any(self._mirror.size(topic) for topic in undecided - {self._last})

    def _publish(self, connection: Connection, message: Message) -> None:
        size = len(message.payload.encode())
        if size <= connection.limits.most_bytes(message.topic):
            connection.publish(message)
            if self._trouble.spacing:
                self._trouble.quiet_until = self._clock.now() + self._trouble.spacing * self._clock.speed
        else:
            text = f"{size} bytes; at most {connection.limits.most_bytes(message.topic):.0f} are allowed"
            self._refused(message, Refusal("size", text))

    def _refused(self, message: Message, refusal: Refusal) -> None:
        ruling = self._trouble.refused(Place(message.topic), refusal.reason, refusal.text, self._clock.now())
        self.may_leave &= message.topic != self._last
        if not message.retain:
            self._stream.refused(message, ruling.until)
        self.follow(ruling)

    def follow(self, ruling: Ruling | None) -> None:
        """Follow a ruling about a place: send nothing there for a while, or shorten its message."""
        if ruling is None:
            return
        topic = ruling.place.topic
        if ruling.too_large and self._stream.shorten(topic, self._mirror.size(topic) / 2):
            self._trouble.shortened(ruling.place, self._clock.now())
            return
        say(ruling.line)
        if ruling.place.kind == "publish":
            self._mirror.hold(topic, ruling.until)
            self._stream.hold(topic, ruling.until)
            self._mirror.set_aside(self._trouble.aside)
