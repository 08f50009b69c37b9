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
from dexcom2mqtt.mqtt.connection import OPEN_SECONDS, Connection, Failure
from dexcom2mqtt.mqtt.inbox import Inbox
from dexcom2mqtt.mqtt.tls_files import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.mqtt.attempts import Line
    from dexcom2mqtt.mqtt.connection import Protocol, Received
    from dexcom2mqtt.mqtt.inbox import ReadBack

_log = logging.getLogger(__name__)

_FAREWELL_SECONDS: Final = 1.2


class BrokerLink:
    """Keeps the MQTT broker equal to ``mirror``, and brings it what ``stream`` has, until the clock stops.

    ``will`` is what the broker publishes if the connection ends without a farewell. ``connected`` is called
    with the protocol after each connect, before the picture is sent; ``received`` with each message of
    ``subscriptions``. Both are called in the broker's thread and must not block. ``back_by`` is called before each
    connect, round and pause, with the time when it should be over.

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
        subscriptions: Sequence[str] = (),
        connected: Callable[[Protocol], None] = lambda _: None,
        received: Callable[[Received], None] = lambda _: None,
        back_by: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._mqtt = mqtt
        self._clock = clock
        self._mirror = mirror
        self._stream = stream
        self._will = will
        self._inbox = Inbox(clock, read_back, subscriptions, received)
        self._connected = connected
        self._back_by = back_by
        self._tls = TlsFiles(mqtt.tls)
        self._alarm = clock.alarm(back_by)
        self._wake_out, self._wake_in = socket.socketpair()
        for end in (self._wake_out, self._wake_in):
            end.settimeout(0)
        self._ended = threading.Event()
        self._attempts = Attempts(mqtt.protocol, f"the broker at {mqtt.host}:{mqtt.port}", random.random)
        self._denied: set[str] = set()

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
        with Connection(self._mqtt, self._attempts.protocol, self._tls.context(), self._will) as connection:
            failure = connection.open(self._clock)
            if failure is not None:
                return failure
            self._denied.clear()
            self._say(self._attempts.connected())
            self._inbox.subscribe(connection)
            self._connected(connection.protocol)
            self._mirror.send_all()
            failure = self._serve(connection)
        self._stream.lost()
        if failure is not None and self._means_taken_over(failure):
            return self._taken_over()
        return failure

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
        with Connection(other, self._attempts.protocol, self._tls.context()) as connection:
            if connection.open(self._clock) is not None:
                return False
            connection.leave()
            return True

    def _taken_over(self) -> Failure:
        return Failure(
            f"the broker at {self._mqtt.host}:{self._mqtt.port} ended the connection, but takes others: most likely "
            f"another program has connected as {self._mqtt.client_id}. Stop it, or give this one an mqtt.client_id of "
            "its own; the next try is in a minute",
            ending="taken_over",
        )

    def _serve(self, connection: Connection) -> Failure | None:
        farewell_until = math.inf
        began = now = self._clock.now()
        while connection.failure is None:
            now = self._clock.now()
            self._back_by(now)
            self._settle(connection, now - began)
            self._mirror.put(self._stream.histories(now))
            for message in self._mirror.take(now, connection.room):
                connection.publish(message, self._clock)
            if not self._clock.stopped:
                for message in self._stream.take(now, connection.room):
                    connection.publish(message, self._clock)
            else:
                farewell_until = min(farewell_until, now + _FAREWELL_SECONDS * self._clock.speed)
                if connection.idle and not self._mirror.unsent:
                    connection.leave()
                    return None
                if now >= farewell_until:
                    return None  # the socket is closed without DISCONNECT, so that the will speaks
            until = min(self._mirror.next_expiry(), self._inbox.due, farewell_until)
            if connection.room:  # else an acknowledgement has to come first
                until = min(until, self._stream.next_at(now))
            connection.work(self._clock.real(until - now), self._wake_out)
            self._take_from(connection)
            if not self._clock.stopped:  # the farewell has a limit of its own
                connection.bear_with(self._clock.real(self._clock.now() - now))
        slept = self._clock.real(self._clock.now() - now) > self._mqtt.keepalive
        if slept and connection.failure.ending in {"closed_idle", "closed_busy"}:  # since it heard nothing of us
            return replace(connection.failure, ending=None)
        return connection.failure

    def _settle(self, connection: Connection, lasted: float) -> None:
        line = self._attempts.lasts(lasted, self._clock.real(lasted), idle=connection.idle)
        if line is not None:
            self._denied.clear()
            self._say(line)

    def _take_from(self, connection: Connection) -> None:
        now = self._clock.now()
        self._inbox.take(connection)
        for message, refusal in connection.take_answers():
            if refusal is None:
                self._stream.acknowledged(message)
            else:
                self._stream.refused(message, now)
                self._say_denied(message, refusal)

    @staticmethod
    def _say(line: Line | None) -> None:
        if line is not None:
            _log.log(line.level, "%s", line.text)

    def _say_denied(self, message: Message, reason: str) -> None:
        """Say once which readings are not taken, and of all that is retained, once below each first level."""
        where = message.topic.partition("/")[0] if message.retain else message.topic
        if where not in self._denied:
            self._denied.add(where)
            _log.error(
                "the broker does not take messages on %s (%s): its access control list must let the user of "
                "this daemon write there",
                message.topic,
                reason,
            )
