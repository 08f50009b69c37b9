"""The daemon's link to the broker: whatever happens to a connection, another one follows.

It keeps the broker equal to the mirror, and brings it the readings of the stream. It runs in one thread, from the first
attempt to the farewell, and knows neither glucose nor what a topic means.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import Stopped
from dexcom2mqtt.mqtt.attempts import Attempts
from dexcom2mqtt.mqtt.connection import OPEN_SECONDS, Connection, Will
from dexcom2mqtt.mqtt.inbox import Inbox
from dexcom2mqtt.mqtt.outcome import Place, Refusal
from dexcom2mqtt.mqtt.tls_files import TlsFiles
from dexcom2mqtt.mqtt.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.mqtt.connection import Received
    from dexcom2mqtt.mqtt.inbox import ReadBack
    from dexcom2mqtt.mqtt.outcome import Failure, Line, Protocol
    from dexcom2mqtt.mqtt.trouble import Ruling

_log = logging.getLogger(__name__)

_FAREWELL_SECONDS: Final = 1.2
_NO_READ_BACK: Final = (
    "what was published before a restart cannot be read, so readings are published again and rejected sign-ins are "
    "forgotten"
)


class BrokerLink:
    """Keeps the MQTT broker equal to ``mirror``, and brings it what ``stream`` has, until the clock stops.

    ``will`` is what the broker publishes if the connection ends without a farewell. ``connected`` is called
    with the protocol after each connect, before the picture is sent; ``received`` with each message of
    ``subscriptions``, which map each filter to what will not work without it. Both are called in the broker's thread
    and must not block. ``back_by`` is called before each connect, round and pause, with the time when it should be
    over. ``unprotected`` says whether nothing but the will can take back what is current, given the topics that the
    broker does not take.

    Raises TlsFileError.
    """

    def __init__(  # noqa: PLR0913  # by name, and each has its user
        self,
        mqtt: Mqtt,
        clock: Clock,
        mirror: Mirror,
        stream: Stream,
        *,
        will: Message,
        read_back: ReadBack,
        subscriptions: Mapping[str, str] | None = None,
        unprotected: Callable[[frozenset[str]], bool] = lambda _: False,
        connected: Callable[[Protocol], None] = lambda _: None,
        received: Callable[[Received], None] = lambda _: None,
        back_by: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._mqtt = mqtt
        self._clock = clock
        self._mirror = mirror
        self._stream = stream
        self._will = will
        self._subscriptions = frozenset(subscriptions or ())
        self._probe = read_back.probe
        self._before_last: frozenset[int] | None = None  # what was on its way when only the last topic was left
        self._may_leave = True  # unless the broker refused to take what the will says
        self._inbox = Inbox(clock, read_back, tuple(subscriptions or ()), received)
        self._unprotected = unprotected
        self._connected = connected
        self._back_by = back_by
        self._tls = TlsFiles(mqtt.tls)
        self._alarm = clock.alarm(back_by)
        self._wake_out, self._wake_in = socket.socketpair()
        for end in (self._wake_out, self._wake_in):
            end.settimeout(0)
        self._ended = threading.Event()
        place = f"the broker at {mqtt.host}:{mqtt.port}"
        self._attempts = Attempts(mqtt.protocol, place, random.random, mqtt.keepalive)
        purposes = dict.fromkeys((*read_back.topics, read_back.probe), _NO_READ_BACK) | dict(subscriptions or {})
        self._trouble = Trouble(place, purposes)

    def wake(self) -> None:
        """Look at the mirror now; for any thread."""
        with contextlib.suppress(OSError):  # it is full of such calls already, or all is over
            self._wake_in.send(b".")

    def run(self) -> None:
        """Connect, and connect again, until the clock stops; returns when the farewell is over."""
        try:
            while not self._clock.stopped:
                began = self._clock.now()
                failure = self._connect_and_serve()
                if failure is not None:
                    following = self._attempts.failed(failure, self._clock.now() - began)
                    self._say(following.line)
                    if following.pause:
                        self._alarm.wait(following.pause)
        except Stopped:
            pass
        finally:
            self._wake_in.close()
            self._wake_out.close()
            self._ended.set()

    def join(self) -> None:
        """Wait until the farewell is over, but no longer than it may take."""
        self.wake()
        self._ended.wait(_FAREWELL_SECONDS + 0.2)

    def _connect_and_serve(self) -> Failure | None:
        """Make one connection and use it until it ends. Return why it ended; None after the farewell."""
        self._back_by(self._clock.now() + OPEN_SECONDS * self._clock.speed)
        attempts = self._attempts
        mqtt = self._mqtt.model_copy(update={"keepalive": attempts.keepalive})
        will = Will(self._will, attempts.will_qos, attempts.will_retain)
        with Connection(mqtt, self._clock, attempts.protocol, self._tls.context(), will) as connection:
            failure = connection.open()
            if failure is not None:
                self._trouble.unreachable()
                return failure
            self._say(attempts.connected())
            self._begin(connection)
            failure = self._serve(connection)
        self._stream.lost()
        if failure is not None and self._means_taken_over(failure):
            return self._taken_over(failure)
        if failure is not None and failure.ending in {"closed_busy", "jammed"}:
            reason = "silence" if failure.ending == "jammed" else failure.reason
            ruling = self._trouble.ended(failure.at, reason, self._clock.now())
            self._follow(ruling)
            if self._unprotected(self._trouble.aside):
                return replace(failure, ending="unprotected")
            return replace(failure, pinned=ruling is not None)
        return failure

    def _begin(self, connection: Connection) -> None:
        """Subscribe, and send the whole picture, on a new connection."""
        now = self._clock.now()
        if self._unprotected(self._trouble.aside):  # it is tried once more, and until then it does not say online
            self._mirror.release(self._trouble.aside)
            self._trouble.try_again(self._trouble.aside, now)
            self._mirror.set_aside(self._trouble.aside)
        self._before_last = None
        connection.careful = self._trouble.careful(now)
        but = self._trouble.unsubscribed(now)
        self._inbox.subscribe(connection, but=but, probes=self._probe not in but | self._trouble.aside)
        self._connected(connection.protocol)
        self._stream.fit(connection.most_bytes)
        self._mirror.send_all()
        if not connection.retains:
            self._say(self._trouble.keeps_nothing())

    def _means_taken_over(self, failure: Failure) -> bool:
        if self._attempts.suspects_another(failure):
            return self._answers_others()
        return failure.ending == "taken_over"

    def _answers_others(self) -> bool:
        """Tell whether the broker, right after it closed our connection, lets another client in.

        MQTT 3.1.1 and mosquitto before 2.1 do not say that a connection was taken over. But a broker that ends
        closes its port before its connections, and this comes at once: if it answers, it did not end.
        """
        other = self._mqtt.model_copy(update={"client_id": f"{self._mqtt.client_id}-probe"})
        with Connection(other, self._clock, self._attempts.protocol, self._tls.context()) as connection:
            if connection.open() is not None:
                return False
            connection.leave()
            return True

    def _taken_over(self, failure: Failure) -> Failure:
        text = (
            f"the broker at {self._mqtt.host}:{self._mqtt.port} ended the connection, but takes others: most likely "
            f"another program has connected as {self._mqtt.client_id}. Stop it, or give this one an mqtt.client_id of "
            "its own; the next try is in a minute"
        )
        return replace(failure, text=text, ending="taken_over")

    def _serve(self, connection: Connection) -> Failure | None:
        farewell_until = math.inf
        began = now = self._clock.now()
        while connection.failure is None:
            now = self._clock.now()
            self._back_by(now)
            self._settle(connection, now)
            idle = connection.idle and connection.subscribed
            self._say(self._attempts.lasts(now - began, self._clock.real(now - began), idle=idle))
            if self._clock.stopped:
                farewell_until = min(farewell_until, now + _FAREWELL_SECONDS * self._clock.speed)
                self._send(connection, now, stream=False)
                if connection.idle and not self._mirror.unsent:
                    if self._may_leave:
                        connection.leave()
                    return None
                if now >= farewell_until:
                    return None  # the socket is closed without DISCONNECT, so that the will speaks
            elif now >= self._trouble.quiet_until:
                self._send(connection, now, stream=True)
            connection.work(self._clock.real(min(self._next_at(connection, now), farewell_until) - now), self._wake_out)
            self._take_from(connection)
            if not self._clock.stopped:  # the farewell has a limit of its own
                connection.bear_with(self._clock.real(self._clock.now() - now))
        slept = self._clock.real(self._clock.now() - now) > self._attempts.keepalive
        if slept and connection.failure.ending in {"closed_idle", "closed_busy"}:  # since it heard nothing of us
            return replace(connection.failure, ending=None, idle=None)
        return connection.failure

    def _next_at(self, connection: Connection, now: float) -> float:
        """Return when there is something to do, if nothing happens before that."""
        if now < self._trouble.quiet_until:
            return min(self._inbox.due, self._trouble.quiet_until)
        until = min(self._mirror.next_at(), self._inbox.due)
        if connection.room:  # else an acknowledgement has to come first
            until = min(until, self._stream.next_at(now))
        return until

    def _settle(self, connection: Connection, now: float) -> None:
        """Record how the connection is, and subscribe once more to what was not taken, if it is time."""
        connection.careful = self._trouble.careful(now)
        if connection.subscribed and not self._clock.stopped:
            connection.subscribe(self._trouble.overdue(now) & self._subscriptions)
        if connection.idle and connection.subscribed and not self._mirror.unsent and self._stream.next_at(now) > now:
            self._trouble.settled()

    def _send(self, connection: Connection, now: float, *, stream: bool) -> None:
        self._mirror.put(self._stream.histories(now))
        for message in self._mirror.take(now, connection.room, last=self._may_end(connection, now)):
            self._publish(connection, message)
        if stream:
            for message in self._stream.take(now, connection.room):
                self._publish(connection, message)

    def _may_end(self, connection: Connection, now: float) -> bool:
        """Return whether the last topic may be sent: what it vouches for has to be acknowledged, not only sent."""
        if self._clock.stopped:
            return True  # to say that nothing is current is never too early
        if self._before_last is None and self._mirror.only_last_is_left:
            self._before_last = connection.on_their_way
        acknowledged = self._before_last is not None and not self._before_last & connection.on_their_way
        undecided = self._trouble.undecided
        if self._will.topic in undecided and self._stream.next_at(now) <= now:
            return False  # it may be the end of the connection, so the readings go first
        return acknowledged and not any(self._mirror.size(topic) for topic in undecided - {self._will.topic})

    def _publish(self, connection: Connection, message: Message) -> None:
        size = len(message.payload.encode())
        if size <= connection.most_bytes(message.topic):
            connection.publish(message)
            if self._trouble.spacing:
                self._trouble.quiet_until = self._clock.now() + self._trouble.spacing * self._clock.speed
        else:
            most = f"{size} bytes, and no more than {connection.most_bytes(message.topic):.0f} are allowed"
            self._refused(message, Refusal("size", most))

    def _take_from(self, connection: Connection) -> None:
        self._inbox.take(connection)
        if self._inbox.has_read_back:
            self._trouble.forget_subscriptions(self._subscriptions)
        for topic, refusal in connection.take_subscriptions():
            place = Place(topic, "subscribe")
            if refusal is None:
                self._say(self._trouble.taken(place, self._clock.now()))
            else:
                self._say(self._trouble.refused(place, refusal.reason, refusal.text, self._clock.now()).line)
        for message, refusal in connection.take_answers():
            if refusal is None:
                self._stream.acknowledged(message)
                self._say(self._trouble.taken(Place(message.topic), self._clock.now()))
                self._may_leave |= message.topic == self._will.topic
            else:
                self._refused(message, refusal)
        self._mirror.set_aside(self._trouble.aside)
        if self._unprotected(self._trouble.aside):
            connection.give_up(
                f"the broker at {self._mqtt.host}:{self._mqtt.port} does not take what says that a value is no longer "
                "current: the connection is ended, so that nothing old is shown as current; the next try is in a minute"
            )

    def _refused(self, message: Message, refusal: Refusal) -> None:
        ruling = self._trouble.refused(Place(message.topic), refusal.reason, refusal.text, self._clock.now())
        self._may_leave &= message.topic != self._will.topic
        if not message.retain:
            self._stream.refused(message, ruling.until)
        self._follow(ruling)

    def _follow(self, ruling: Ruling | None) -> None:
        """Do what was ruled of a place: leave it alone for a while, or send less there."""
        if ruling is None:
            return
        topic = ruling.place.topic
        if ruling.too_large and self._stream.shorten(topic, self._mirror.size(topic) / 2):
            self._trouble.shortened(ruling.place, self._clock.now())
            return
        self._say(ruling.line)
        if ruling.place.kind == "publish":
            self._mirror.hold(topic, ruling.until)
            self._stream.hold(topic, ruling.until)
            self._mirror.set_aside(self._trouble.aside)

    @staticmethod
    def _say(line: Line | None) -> None:
        if line is not None:
            _log.log(line.level, "%s", line.text)
