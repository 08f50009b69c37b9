"""The daemon's link to the broker: whenever a connection ends, it connects again.

It keeps the broker in sync with the mirror, and publishes the readings of the stream. It runs in one thread, from the
first attempt to the farewell, and knows nothing about glucose or the meaning of a topic.
"""

from __future__ import annotations

import math
import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import Stopped
from dexcom2mqtt.mqtt.attempts import Attempts
from dexcom2mqtt.mqtt.connection import OPEN_SECONDS, Connection, Will
from dexcom2mqtt.mqtt.delivery import Delivery, say
from dexcom2mqtt.mqtt.inbox import Inbox, ReadBack
from dexcom2mqtt.mqtt.outcome import Place
from dexcom2mqtt.mqtt.tls_files import TlsFiles
from dexcom2mqtt.mqtt.trouble import Trouble
from dexcom2mqtt.waker import Waker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.mqtt.connection import Received
    from dexcom2mqtt.mqtt.inbox import Still
    from dexcom2mqtt.mqtt.outcome import Failure, Protocol

_FAREWELL_SECONDS: Final = 1.2
_CUT_AFTER: Final = 1.5
"""A broker ends a connection on which it has heard nothing for so many times the keep-alive (MQTT 5, 3.1.2.10)."""
_TRUST: Final = 1.25
"""For so many times the keep-alive after its last message, the broker has surely not ended the connection."""
_NO_READ_BACK: Final = (
    "the daemon cannot read back what it published before a restart, so it publishes readings again, forgets rejected "
    "sign-ins and starts the counts of days over"
)


class BrokerLink:
    """Keeps the MQTT broker in sync with ``mirror``, and publishes what ``stream`` has, until the clock stops.

    The broker publishes ``will`` if the connection ends without a farewell. ``connected`` is called with the protocol
    after each connect, before the mirror is sent; ``received`` with each message of ``subscriptions``, which map each
    filter to what does not work without it. Both are called in the broker's thread and must not block. ``back_by`` is
    called before each connect, round and pause, with the time when it should be over. ``unprotected`` gets the topics
    that the broker refuses, and says whether only the will can then mark a value as no longer current.

    Raises TlsFileError.
    """

    def __init__(  # noqa: PLR0913  # all by name, and each is needed
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
        self._inbox = Inbox(clock, read_back, tuple(subscriptions or ()), received)
        self._unprotected = unprotected
        self._connected = connected
        self._back_by = back_by
        self._tls = TlsFiles(mqtt.tls)
        self._alarm = clock.alarm(back_by)
        self._waker = Waker()
        clock.at_stop(self._waker.wake)
        self._ended = threading.Event()
        self._renewal = threading.Event()  # whether a new connection is wanted
        place = f"the broker at {mqtt.host}:{mqtt.port}"
        self._attempts = Attempts(mqtt.protocol, place, random.random, mqtt.keepalive)
        self._trouble = Trouble(place, dict(subscriptions or {}), otherwise=_NO_READ_BACK)
        self._trusted_until = -math.inf
        self._delivery = Delivery(clock, mirror, stream, self._trouble, will.topic)

    @property
    def trusted(self) -> bool:
        """Whether the broker surely still has our connection, as it answered a short time ago; for any thread."""
        return self._clock.now() < self._trusted_until

    def tell(self, messages: Iterable[Message]) -> None:
        """Publish messages beside the mirror, once, unless the connection ends before; for any thread."""
        self._delivery.tell(messages)
        self.wake()

    def read_back(self, topics: Sequence[str], done: Callable[[Mapping[str, bytes]], None], still: Still) -> None:
        """Read more retained messages, unless the connection ends before, see ``ReadBack``; for any thread."""
        self._inbox.read_back(ReadBack(topics, self._probe, done, still))
        self.wake()

    def wake(self) -> None:
        """Make the link look at the mirror now; may be called from any thread."""
        self._waker.wake()

    def reconnect(self) -> None:
        """Disconnect and connect again once everything is acknowledged; may be called from any thread."""
        self._renewal.set()
        self.wake()

    def run(self) -> None:
        """Connect again and again until the clock stops; return when the farewell is over."""
        try:
            while not self._clock.stopped:
                began = self._clock.now()
                failure = self._connect_and_serve()
                if failure is not None:
                    following = self._attempts.failed(failure, self._clock.now() - began)
                    say(following.line)
                    if following.pause:
                        self._alarm.wait(following.pause)
        except Stopped:
            pass
        finally:
            self._waker.close()
            self._ended.set()

    def join(self) -> None:
        """Wait for the end of the farewell, at most as long as one may take."""
        self._ended.wait(_FAREWELL_SECONDS + 0.2)

    def _connect_and_serve(self) -> Failure | None:
        """Make one connection and use it until it ends. Return why it ended; None after the farewell."""
        self._back_by(self._clock.now() + OPEN_SECONDS * self._clock.speed)
        attempts = self._attempts
        mqtt = replace(self._mqtt, keepalive=attempts.keepalive)
        will = Will(self._will, attempts.will_qos, attempts.will_retain)
        with Connection(mqtt, self._clock, attempts.protocol, self._tls.context(), will) as connection:
            failure = connection.open()
            if failure is not None:
                self._trouble.unreachable()
                return failure
            say(attempts.connected())
            self._begin(connection)
            failure = self._serve(connection)
        self._trusted_until = -math.inf
        self._stream.lost()
        if failure is not None and self._means_taken_over(failure):
            return _taken_over(failure, self._mqtt)
        if failure is not None and failure.ending in {"closed_busy", "jammed"}:
            reason = "silence" if failure.ending == "jammed" else failure.reason
            ruling = self._trouble.ended(failure.at, reason, self._clock.now())
            self._delivery.follow(ruling)
            if self._unprotected(self._trouble.aside):
                return replace(failure, ending="unprotected")
            return replace(failure, pinned=ruling is not None)
        return failure

    def _begin(self, connection: Connection) -> None:
        """Subscribe and send the whole mirror on a new connection."""
        now = self._clock.now()
        if self._unprotected(self._trouble.aside):  # try the refused topics again, and do not say online before that
            self._delivery.try_again(now)
        connection.careful = self._trouble.careful(now)
        but = self._trouble.unsubscribed(now)
        self._inbox.subscribe(connection, but=but, probes=self._probe not in but | self._trouble.aside)
        self._connected(connection.protocol)
        self._delivery.begin(connection)

    def _means_taken_over(self, failure: Failure) -> bool:
        if self._attempts.suspects_another(failure):
            return _answers_others(self._mqtt, self._clock, self._attempts.protocol, self._tls)
        return failure.ending == "taken_over"

    def _serve(self, connection: Connection) -> Failure | None:
        farewell_until = math.inf
        began = now = self._clock.now()
        while connection.failure is None:
            now = self._clock.now()
            connection.careful = self._trouble.careful(now)
            if connection.subscribed and not self._clock.stopped:  # try refused filters again when they are due
                connection.subscribe(self._trouble.overdue(now) & self._subscriptions)
            idle = connection.idle and connection.subscribed
            say(self._attempts.lasts(now - began, self._clock.real(now - began), idle=idle))
            if self._clock.stopped:
                farewell_until = min(farewell_until, now + _FAREWELL_SECONDS * self._clock.speed)
                self._delivery.say_goodbye(connection, now)
                if connection.idle and not self._mirror.unsent:
                    if self._delivery.may_leave:
                        connection.leave()
                    return None
                if now >= farewell_until:
                    return None  # close the socket without DISCONNECT, so that the broker publishes the will
            else:
                self._delivery.send(connection, now)
                if self._renewal.is_set() and connection.idle and connection.subscribed:
                    self._renewal.clear()
                    connection.leave()
                    return None
            self._rest(connection, now, farewell_until)
            self._trusted_until = _trusted_until(connection, self._attempts.keepalive, self._clock.speed)
            self._take_from(connection)
            if not self._clock.stopped:  # the farewell has its own limit
                connection.bear_with(self._clock.real(self._clock.now() - now))
        slept = self._clock.real(self._clock.now() - now) > _CUT_AFTER * self._attempts.keepalive
        if slept and connection.failure.ending in {"closed_idle", "closed_busy"}:  # the broker heard nothing from us
            return replace(connection.failure, ending=None, idle=None)
        return connection.failure

    def _rest(self, connection: Connection, now: float, until: float) -> None:
        """Wait for the broker, for news, and for what is due next, but not beyond ``until``."""
        until = min(until, self._delivery.next_at(connection, now), self._inbox.due)
        if connection.subscribed:
            until = min(until, self._trouble.resubscribe_at(self._subscriptions))
        if self._attempts.unsettled:
            until = min(until, now + self._clock.speed)
        seconds = min(self._clock.real(until - now), connection.rest)
        self._back_by(now + seconds * self._clock.speed)
        connection.work(seconds, self._waker)

    def _take_from(self, connection: Connection) -> None:
        self._inbox.take(connection)
        if self._inbox.has_read_back and not self._inbox.reads_back:
            self._trouble.forget_subscriptions(self._subscriptions)
        for topic, refusal in connection.subscriptions.take_answers():
            place = Place(topic, "subscribe")
            if refusal is None:
                say(self._trouble.taken(place, self._clock.now()))
            else:
                say(self._trouble.refused(place, refusal.reason, refusal.text, self._clock.now()).line)
        self._delivery.take_answers(connection)
        if self._unprotected(self._trouble.aside):
            connection.give_up(
                f"the broker at {self._mqtt.host}:{self._mqtt.port} refuses the topics that say whether a value is "
                "current. The daemon disconnects, so that no old value is shown as current, and tries again in a minute"
            )


def _answers_others(mqtt: Mqtt, clock: Clock, protocol: Protocol, tls: TlsFiles) -> bool:
    """Return whether the broker, right after it closed our connection, accepts another client.

    MQTT 3.1.1 and Mosquitto before 2.1 do not report that a connection was taken over. But a broker that shuts
    down closes its port before its connections, and this check follows at once: if it answers, it is still running.
    """
    other = replace(mqtt, client_id=f"{mqtt.client_id}-probe")
    with Connection(other, clock, protocol, tls.context()) as connection:
        if connection.open() is not None:
            return False
        connection.leave()
        return True


def _trusted_until(connection: Connection, keepalive: int, speed: float) -> float:
    """Return until when the broker surely still has a connection, unless it is heard again."""
    return connection.heard_at + _TRUST * (connection.limits.keepalive or keepalive) * speed


def _taken_over(failure: Failure, mqtt: Mqtt) -> Failure:
    text = (
        f"the broker at {mqtt.host}:{mqtt.port} ended the connection: most likely another program has connected as "
        f"{mqtt.client_id}. Stop that program, or give this daemon a different mqtt.client_id. The next attempt is in "
        "1 to 10 minutes"
    )
    return replace(failure, text=text, ending="taken_over")
