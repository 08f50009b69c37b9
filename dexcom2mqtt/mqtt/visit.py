"""A command's short connection to the broker: reads retained messages, and tests what the broker accepts.

Unlike the daemon's link it tries once, and every problem is an error for the user. It does not know our topics.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, TypeVar

from dexcom2mqtt.mqtt.connection import Connection
from dexcom2mqtt.mqtt.dialling import CLIENT_ID, BrokerError
from dexcom2mqtt.mqtt.inbox import READ_BACK_SECONDS, Gathering
from dexcom2mqtt.mqtt.tls_files import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.inbox import Still
    from dexcom2mqtt.mqtt.outcome import Failure, Protocol, Refusal

_T = TypeVar("_T")
_NO_MQTT_5: Final = frozenset({"protocol_refused", "answered_wrongly", "closed_without_answer", "silent"})
_QUOTA_TRIES: Final = 5
_LATE_SECONDS: Final = 0.5
"""How many seconds after the probe retained messages may come, unless more is known."""


class Visit:
    """A command's short connection, beside the daemon's and without a will, for use in a ``with``.

    ``name`` is appended to the client id. Raises BrokerError if the connection fails or ends, and TlsFileError.
    """

    def __init__(self, mqtt: Mqtt, clock: Clock, name: str) -> None:
        self._mqtt = replace(mqtt, client_id=f"{mqtt.client_id}-{name}")
        self._clock = clock
        self._tls = None if mqtt.tls is None else tls_context(mqtt.tls)

    def __enter__(self) -> Self:
        failure = self._connect("3.1.1" if self._mqtt.protocol == "3.1.1" else "5")
        no_mqtt_5 = failure is not None and failure.ending in _NO_MQTT_5
        if no_mqtt_5 and self._mqtt.protocol == "auto":
            failure = self._connect("3.1.1")
        if failure is not None:
            # Brokers that allow only certain client ids (AWS IoT Core) hang up at others.
            hung_up = failure.ending == "closed_without_answer"
            raise BrokerError(failure.text, (*failure.causes, CLIENT_ID) if hung_up else failure.causes)
        return self

    def mend(self) -> None:
        """Connect again if the broker has hung up. Raises BrokerError."""
        if self._connection.failure is not None:
            with self._connection:
                failure = self._connect(self.protocol)
            if failure is not None:
                raise BrokerError(failure.text, failure.causes)

    def _connect(self, protocol: Protocol) -> Failure | None:
        self._connection = Connection(self._mqtt, self._clock, protocol, self._tls)
        failure = self._connection.open()
        if failure is not None:
            with self._connection:  # which closes it
                pass
        return failure

    def __exit__(self, *_: object) -> None:
        with self._connection:
            self._connection.leave()

    @property
    def protocol(self) -> Protocol:
        """The protocol of the connection."""
        return self._connection.protocol

    @property
    def most_bytes(self) -> Callable[[str], float]:
        """How many bytes a payload on a topic may have, as the broker announced; infinite with most brokers."""
        return self._connection.limits.most_bytes

    @property
    def keeps_retained(self) -> bool:
        """Whether the broker keeps retained messages, unless it announced otherwise."""
        return self._connection.limits.retains

    def retained(self, filters: Sequence[str], probe: str, still: Still | None = None) -> dict[str, bytes]:
        """Return the retained payloads at these topics, which may have wildcards.

        ``probe`` is a separate topic, and ``still`` says how long to wait once it is back (see Gathering); by default,
        a moment if a topic is still missing.
        """
        gathering = Gathering(self._connection, self._clock, filters, probe, still or _a_moment)
        while not gathering.over:
            self._work(gathering.due)
            gathering.step(self._connection.take_received())
        gathering.end()
        if not gathering.came_back:
            raise self._no_answer()
        return gathering.found

    def try_out(self, message: Message) -> tuple[bool, bool]:
        """Publish a message; return whether the broker accepts it, and whether it sends it back to us.

        With MQTT 3.1.1 it always seems to accept it.
        """
        with self._subscribed(message.topic):
            refused = self.publish([message])
            until = self._clock.now() + _LATE_SECONDS * self._clock.speed
            came_back = False
            while not (came_back or refused) and self._clock.now() < until:
                came_back = any(heard.topic == message.topic for heard in self._connection.take_received())
                if not came_back:
                    self._work(until)
        return not refused, came_back

    @contextlib.contextmanager
    def _subscribed(self, *filters: str) -> Iterator[None]:
        self._connection.subscribe(filters)
        self._until(lambda: self._connection.subscribed)
        yield
        self._connection.unsubscribe(filters)

    def publish(self, messages: Sequence[Message], *, tries: int = _QUOTA_TRIES) -> list[str]:
        """Publish these, wait until the broker has answered all of them, and return the topics that it refused.

        Messages refused because of a quota are sent again, a second later each time. With MQTT 3.1.1 a broker cannot
        refuse: it acknowledges messages and drops them.
        """
        refused, left = list[str](), list(messages)
        for number in range(tries):
            if number:
                self._rest(1.0)
            refusals = self._publish(left)
            refused += [message.topic for message, refusal in refusals if refusal.reason != "quota"]
            left = [message for message, refusal in refusals if refusal.reason == "quota"]
            if not left:
                break
        return refused + [message.topic for message in left]

    def _publish(self, messages: Sequence[Message]) -> list[tuple[Message, Refusal]]:
        waiting = list(messages)
        refused: list[tuple[Message, Refusal]] = []
        while waiting or not self._connection.idle:
            room = self._connection.room
            for message in waiting[:room]:
                self._connection.publish(message)
            del waiting[:room]
            answers = self._until(self._connection.take_answers)
            refused += [(message, refusal) for message, refusal in answers if refusal is not None]
        return refused

    def _rest(self, seconds: float) -> None:
        until = self._clock.now() + seconds * self._clock.speed
        while self._clock.now() < until:
            self._work(until)

    def _until(self, take: Callable[[], _T]) -> _T:
        """Work until ``take`` returns something true, and return that."""
        until = self._clock.now() + READ_BACK_SECONDS * self._clock.speed
        while not (taken := take()):
            self._work(math.inf)
            if self._clock.now() > until:
                raise self._no_answer()
        return taken

    def _no_answer(self) -> BrokerError:
        return BrokerError(
            f"the broker at {self._mqtt.host}:{self._mqtt.port} does not answer. Either it is frozen, or its access "
            "control list does not let the user of this daemon read and write all of its topics"
        )

    def _work(self, until: float) -> None:
        self._connection.work(self._clock.real(until - self._clock.now()))
        if self._connection.failure is not None:
            raise BrokerError(self._connection.failure.text, self._connection.failure.causes)


def _a_moment(found: Mapping[str, bytes], asked: Collection[str]) -> float:
    return 0.0 if all(topic in found for topic in asked) else _LATE_SECONDS
