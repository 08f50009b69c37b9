"""One connection to the broker, by one client of paho, from its opening to its end.

Everything of paho is in this module and happens in one thread, so that its callbacks and its failures are seen where
they arise: the callbacks only record what they are told, and what follows from that happens outside of paho. Each
connection is a client of its own, so that nothing of an old one can follow. What it is used for, and whether there will
be another one, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import math
import select
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MessageType, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from dexcom2mqtt.clock import Stopped
from dexcom2mqtt.mqtt import codes, dialling, patience
from dexcom2mqtt.mqtt.outcome import Failure, Place
from dexcom2mqtt.mqtt.subscriptions import Subscriptions

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from paho.mqtt.reasoncodes import ReasonCode

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.outcome import Protocol, Refusal

_CONNACK_SECONDS: Final = 10.0
OPEN_SECONDS: Final = dialling.CONNECT_SECONDS + _CONNACK_SECONDS
"""How long it takes at most to open a connection, looking up the broker's name aside."""
_WINDOW: Final = 20
"""Messages on their way at once. paho would queue the rest, but does not count their expiry down."""
_OVERHEAD: Final = 16
"""Bytes of a PUBLISH beside its topic and payload: header, length, packet identifier, and the one property of ours."""
_POLL_SECONDS: Final = 1.0
"""How long paho works at most without a look at its keep-alive."""
_SILENT: Final = "{} takes connections but does not answer; is it overloaded or frozen?"
_JAMMED: Final = (
    "{} answers, but has acknowledged nothing for {:.0f} s: the connection is given up, so that nothing old is shown "
    "as current, and a new one follows"
)


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a subscription to a filter is one to a topic."""
    return paho.topic_matches_sub(topic_filter, topic)


class Received(NamedTuple):
    """A message of a subscription."""

    topic: str
    payload: bytes
    retained: bool


class Will(NamedTuple):
    """What the broker publishes when the connection ends without a farewell, and how it lets us."""

    message: Message
    qos: int = 1
    retain: bool = True


class Limits(NamedTuple):
    """What the broker takes, as it says when it lets us in."""

    window: int = _WINDOW
    """How many messages may be on their way."""
    qos: int = 1
    largest: float = math.inf
    """Bytes of a packet; mostly that is infinite."""
    retains: bool = True
    """Whether the broker keeps what is retained."""

    @classmethod
    def of(cls, properties: Properties | None) -> Limits:
        """Read the properties of a CONNACK; there are none in MQTT 3.1.1."""
        return cls(
            min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW)),
            getattr(properties, "MaximumQoS", 1),
            getattr(properties, "MaximumPacketSize", math.inf),
            bool(getattr(properties, "RetainAvailable", True)),
        )

    def most_bytes(self, topic: str) -> float:
        """Return how large a payload on this topic may be."""
        return self.largest - _OVERHEAD - len(topic.encode())


class _Client(paho.Client):
    """A client that works in our thread, can ask for a sign of life between two pings, and keeps what TLS says."""

    refusal: ssl.SSLError | None = None
    """With TLS 1.3 a broker refuses our certificate only after the handshake; paho has nothing of it but a log line."""

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except ssl.SSLError as error:
            self.refusal = error
            raise

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError:  # the broker has hung up already, but what it said before that can still be read
            with contextlib.suppress(OSError):
                self._sock_recv(1)
            raise

    def ping(self) -> None:
        """Send a PINGREQ that paho does not count: when the keep-alive ends a connection stays as it is."""
        self._send_simple_command(MessageType.PINGREQ)

    def send(self, message: Message, limits: Limits, left: float | None) -> paho.MQTTMessageInfo:
        """Publish a message as the broker takes it; after these seconds it expires, if it does."""
        properties = None
        if self._protocol == MQTTProtocolVersion.MQTTv5 and left is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = max(1, math.ceil(left))
        retain = message.retain and limits.retains
        return self.publish(message.topic, message.payload, limits.qos, retain, properties)

    def ask_for(self, filters: Sequence[str]) -> int | None:
        """Subscribe at QoS 0; return the identifier of the packet, None if it could not be sent."""
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            return self.subscribe([(topic, SubscribeOptions(qos=0)) for topic in filters])[1]
        return self.subscribe([(topic, 0) for topic in filters])[1]

    def wait(self, seconds: float, wake: socket.socket | None) -> tuple[bool, bool]:
        """Wait for the broker or for ``wake``; return whether there is something to read, and room to write."""
        sock = self.socket()
        if sock is None:
            return False, False
        poll = select.poll()  # unlike select, it takes any number of open files
        poll.register(sock, select.POLLIN | (select.POLLOUT if self.want_write() else 0))
        if wake is not None:
            poll.register(wake, select.POLLIN)
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = dict(poll.poll(0 if pending else math.ceil(min(max(seconds, 0), _POLL_SECONDS) * 1000)))
        if wake is not None and wake.fileno() in ready:
            wake.recv(4096)
        events = ready.get(sock.fileno(), 0)
        return pending or bool(events & ~select.POLLOUT), bool(events & select.POLLOUT)


def _new_client(mqtt: Mqtt, protocol: Protocol, tls: ssl.SSLContext | None, will: Will | None) -> _Client:
    client = _Client(
        CallbackAPIVersion.VERSION2,
        client_id=mqtt.client_id,
        protocol=MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
    )
    client.connect_timeout = dialling.CONNECT_SECONDS
    client.max_inflight_messages_set(_WINDOW)
    if will is not None:
        client.will_set(will.message.topic, will.message.payload, qos=will.qos, retain=will.retain)
    if mqtt.username is not None:
        password = None if mqtt.password is None else mqtt.password.get_secret_value()
        client.username_pw_set(mqtt.username.get_secret_value(), password)
    if tls is not None:
        client.tls_set_context(tls)
        client.tls_insecure_set(not tls.check_hostname)
    return client


class Connection:
    """One connection of one paho client, from its opening to its end."""

    def __init__(
        self, mqtt: Mqtt, clock: Clock, protocol: Protocol, tls: ssl.SSLContext | None, will: Will | None = None
    ) -> None:
        self._mqtt = mqtt
        self._clock = clock
        self.protocol = protocol
        self._place = f"the broker at {mqtt.host}:{mqtt.port}"
        self._answered = False
        self.limits = Limits()
        self.careful = False
        """Whether one thing is sent at a time, each only when the one before it is acknowledged."""
        self.on_their_way: dict[int, Message] = {}
        """The messages that are not acknowledged, by their identifiers."""
        self._received: list[Received] = []
        self._answers: list[tuple[Message, Refusal | None]] = []
        self.subscriptions = Subscriptions()
        self._heard_at = self._clock.now()
        self.failure: Failure | None = None
        self._patience = patience.Patience()
        self._client = client = _new_client(mqtt, protocol, tls, will)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def open(self) -> Failure | None:
        """Connect and wait for the broker's answer. Return why it came to nothing, or None."""
        try:
            self._client.connect(self._mqtt.host, self._mqtt.port, self._mqtt.keepalive)
        except (OSError, ValueError) as error:
            return codes.unreachable(error, self._place, self._mqtt.tls)
        until = self._clock.now() + _CONNACK_SECONDS * self._clock.speed
        while not self._answered and self.failure is None:
            left = self._clock.real(until - self._clock.now())
            if left <= 0:
                return Failure(_SILENT.format(self._place), ending="silent")
            if self._clock.stopped:
                raise Stopped
            self.work(left)
        return self.failure

    def leave(self) -> None:
        """Say goodbye, so that the will is not needed."""
        self._client.disconnect()

    @property
    def room(self) -> int:
        """How many more messages may be on their way."""
        if self.careful:
            return int(self.idle and self.subscribed and not self.subscriptions.probe)
        return self.limits.window - len(self.on_their_way)

    @property
    def idle(self) -> bool:
        """Whether every message that was sent is acknowledged."""
        return not self.on_their_way

    def publish(self, message: Message) -> None:
        """Send a message, with the expiry that is left to it; at QoS 1, unless the broker knows 0 alone."""
        expires_at = message.expires_at
        left = None if expires_at is None else self._clock.real(expires_at - self._clock.now())
        info = self._client.send(message, self.limits, left)
        if self.limits.qos:
            self.on_their_way[info.mid] = message
        elif not info.rc:  # there is no acknowledgement to wait for
            self._answers.append((message, None))
        self._heard_at = self._clock.now()

    def subscribe(self, filters: Iterable[str]) -> None:
        """Subscribe at QoS 0: with QoS 1, mosquitto would drop what goes beyond the queue of a client."""
        self.subscriptions.want(filters)
        self._send_subscriptions()

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Want no more of these."""
        for packet in self.subscriptions.drop(filters):
            self._client.unsubscribe(packet)

    @property
    def subscribed(self) -> bool:
        """Whether the broker has answered to every subscription, be it by a refusal."""
        return self.subscriptions.settled

    def _send_subscriptions(self) -> None:
        while filters := self.subscriptions.packet(careful=self.careful, idle=self.idle):
            self.subscriptions.sent(self._client.ask_for(filters), filters)

    def probe(self, topic: str) -> bool:
        """Publish to ourselves once the broker has confirmed every subscription; return whether it was published."""
        if self.subscribed:
            self._client.publish(topic, "probe", qos=0)
            self.subscriptions.probe = topic
        return self.subscribed

    def gave_up_probe(self) -> None:
        """Expect the probe no longer."""
        self.subscriptions.probe = ""

    def work(self, seconds: float, wake: socket.socket | None = None) -> None:
        """Let paho read and write for up to ``seconds``, but no longer than one; return early if something happened."""
        if self._client.socket() is None:
            self._end(Failure(f"the connection to {self._place} was lost", dialling.BROKE_OFF))
            return
        self._send_subscriptions()
        may_read, may_write = self._client.wait(0 if self._answers else seconds, wake)
        try:
            if may_read:
                self._client.loop_read()
                self._heard_at = self._clock.now()
                self._patience.alive()  # after what an acknowledgement that was read has done
            if may_write:
                self._client.loop_write()
            self._client.loop_misc()
        except Exception as error:  # noqa: BLE001  # of paho, on an answer that makes no sense: ours raise nothing
            text = f"{self._place} sent something that is no MQTT ({type(error).__name__})"
            self._end(Failure(text, ending=None if self._answered else "answered_wrongly"))

    def bear_with(self, seconds: float) -> None:
        """Count these seconds if an acknowledgement is owed, of a subscription too; end it if the broker jams."""
        if self.idle and not self.subscriptions.unanswered:
            return
        self._patience.passed(seconds)
        if self._patience.exhausted:
            self._end(Failure(_JAMMED.format(self._place, patience.SECONDS), ending="jammed"))
        elif self._patience.question_due:
            self._patience.asked()
            self._client.ping()

    def take_received(self) -> list[Received]:
        """Return the messages that came since the last call."""
        taken, self._received = self._received, []
        return taken

    def take_answers(self) -> list[tuple[Message, Refusal | None]]:
        """Return what the broker acknowledged since the last call; with the reason where it did not take it."""
        taken, self._answers = self._answers, []
        return taken

    def give_up(self, why: str) -> None:
        """End it, so that the will speaks: what must not stay current cannot be taken back otherwise."""
        self._end(Failure(why, ending="unprotected"))

    def _end(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = replace(failure, at=self._unanswered())

    def _unanswered(self) -> tuple[Place, ...]:
        return *(Place(message.topic) for message in self.on_their_way.values()), *self.subscriptions.places

    def _on_connect(
        self, _client: object, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._answered = True
        if not reason.is_failure:
            self.limits = Limits.of(properties)
        else:
            self._end(codes.of_connack(reason.value, str(reason), self._place, self.protocol, self._mqtt.client_id))

    def _on_disconnect(
        self, _client: object, _data: object, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        lost = f"the connection to {self._place} was lost"
        busy = bool(self._unanswered())
        if not self._answered:
            self._end(codes.of_no_answer(reason.value, self._place, self._mqtt.tls, self._client.refusal))
        elif flags.is_disconnect_packet_from_server:
            self._end(codes.of_disconnect(reason.value, f"{lost} ({reason})", busy=busy))
        else:
            idle = None if busy else self._clock.real(self._clock.now() - self._heard_at)
            self._end(codes.of_loss(reason.value, lost, idle))

    def _on_publish(self, _client: object, _data: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        message = self.on_their_way.pop(mid, None)
        if message is not None:
            self._patience.acknowledged()
            self._answers.append((message, codes.refusal(reason.value, str(reason))))

    def _on_subscribe(
        self, _client: object, _data: object, mid: int, reasons: Sequence[ReasonCode], *_: object
    ) -> None:
        self._patience.acknowledged()
        self.subscriptions.answered(mid, [codes.refusal(each.value, str(each)) for each in reasons])

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self.subscriptions.came(message.topic)
        self._received.append(Received(message.topic, bytes(message.payload), message.retain))
