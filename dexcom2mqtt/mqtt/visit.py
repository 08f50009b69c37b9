"""A command's short stay at the broker: what is retained there, and what the broker takes.

Unlike the daemon's link it tries once, and whatever goes wrong is an error for a person. It knows no topic of ours.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Self, TypeVar

from dexcom2mqtt.mqtt.connection import READ_BACK_SECONDS, Connection, Received
from dexcom2mqtt.mqtt.dialling import BrokerError
from dexcom2mqtt.mqtt.tls_files import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.connection import Failure, Protocol

_T = TypeVar("_T")


class Visit:
    """A short connection of a command, beside the daemon's and without a will, for use in a ``with``.

    ``name`` is added to the client id. Raises BrokerError where the broker cannot be reached or leaves, and
    TlsFileError.
    """

    def __init__(self, mqtt: Mqtt, clock: Clock, name: str) -> None:
        self._mqtt = mqtt.model_copy(update={"client_id": f"{mqtt.client_id}-{name}"})
        self._clock = clock
        self._tls = None if mqtt.tls is None else tls_context(mqtt.tls)

    def __enter__(self) -> Self:
        failure = self._connect("3.1.1" if self._mqtt.protocol == "3.1.1" else "5")
        no_mqtt_5 = failure is not None and failure.ending in {"protocol_refused", "closed_without_answer"}
        if no_mqtt_5 and self._mqtt.protocol == "auto":
            failure = self._connect("3.1.1")
        if failure is not None:
            raise BrokerError(failure.text, failure.causes)
        return self

    def _connect(self, protocol: Protocol) -> Failure | None:
        self._connection = Connection(self._mqtt, protocol, self._tls)
        failure = self._connection.open(self._clock)
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

    def retained(self, filters: Sequence[str], probe: str) -> dict[str, bytes]:
        """Return what the broker retains at these topics, which may have wildcards.

        What is retained has arrived once ``probe``, a topic of its own, has come back.
        """
        with self._subscribed(*filters):
            return {heard.topic: heard.payload for heard in self._heard_before(probe) if heard.retained}

    def try_out(self, message: Message, probe: str) -> tuple[bool, bool]:
        """Publish a message; return whether the broker takes it, and whether it sends it back to us.

        With MQTT 3.1.1 it seems to take everything. What is sent back has arrived before ``probe``.
        """
        with self._subscribed(message.topic):
            refused = self.publish([message])
            came_back = any(heard.topic == message.topic for heard in self._heard_before(probe))
        return not refused, came_back

    @contextlib.contextmanager
    def _subscribed(self, *filters: str) -> Iterator[None]:
        self._connection.subscribe(filters)
        self._until(lambda: self._connection.subscribed)
        yield
        self._connection.unsubscribe(filters)

    def _heard_before(self, probe: str) -> list[Received]:
        """Return what arrives until the probe comes back."""
        heard = list[Received]()
        with self._subscribed(probe):
            self._connection.probe(probe)
            while not any(received.topic == probe for received in heard):
                heard += self._until(self._connection.take_received)
        return heard

    def publish(self, messages: Sequence[Message]) -> list[str]:
        """Publish these, and wait until the broker has answered to all; return the topics that it refused.

        With MQTT 3.1.1 a broker cannot say so: it acknowledges, and drops.
        """
        waiting, refused = list(messages), list[str]()
        while waiting or not self._connection.idle:
            room = self._connection.room
            for message in waiting[:room]:
                self._connection.publish(message, self._clock)
            del waiting[:room]
            answers = self._until(self._connection.take_answers)
            refused += [message.topic for message, refusal in answers if refusal is not None]
        return refused

    def _until(self, take: Callable[[], _T]) -> _T:
        """Work until there is something to take, or something is true, and return it."""
        until = self._clock.now() + READ_BACK_SECONDS * self._clock.speed
        while not (taken := take()):
            self._connection.work(math.inf)
            if self._connection.failure is not None:
                raise BrokerError(self._connection.failure.text, self._connection.failure.causes)
            if self._clock.now() > until:
                raise BrokerError(
                    f"the broker at {self._mqtt.host}:{self._mqtt.port} does not answer. Either it is frozen, or its "
                    "access control list does not let the user of this daemon read and write all of its topics"
                )
        return taken
