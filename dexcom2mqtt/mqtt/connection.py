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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MessageType, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from dexcom2mqtt.clock import Stopped
from dexcom2mqtt.mqtt import codes, dialling, patience
from dexcom2mqtt.mqtt.outcome import Failure, Place

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from paho.mqtt.reasoncodes import ReasonCode

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.outcome import Ending, Protocol, Refusal

_CONNACK_SECONDS: Final = 10.0
OPEN_SECONDS: Final = dialling.CONNECT_SECONDS + _CONNACK_SECONDS
"""How long it takes at most to open a connection, looking up the broker's name aside."""
_WINDOW: Final = 20
"""Messages on their way at once. paho would queue the rest, but does not count their expiry down."""
_CLOSED: Final = 0x80  # paho's word for a connection that ended without one
_NOT_UNDERSTOOD: Final = 0x82  # paho's word for one that it ended itself, since an answer made no sense
_FILTERS_A_PACKET: Final = 8
"""As many as AWS IoT Core takes in one SUBSCRIBE."""
_OVERHEAD: Final = 16
"""Bytes of a PUBLISH beside its topic and payload: header, length, packet identifier, and the one property of ours."""
_POLL_SECONDS: Final = 1.0
"""How long paho works at most without a look at its keep-alive."""


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a subscription to a filter is one to a topic."""
    return paho.topic_matches_sub(topic_filter, topic)


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a subscription."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when the connection ends without a farewell, and how it lets us."""

    message: Message
    qos: int = 1
    retain: bool = True


class _Client(paho.Client):
    """A client that can ask the broker for a sign of life between those of the keep-alive, and keeps what TLS says."""

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
        self._window = _WINDOW
        self._qos = 1
        self._largest = math.inf
        self.retains = True
        """Whether the broker keeps what is retained."""
        self.careful = False
        """Whether one thing is sent at a time, each only when the one before it is acknowledged."""
        self._on_their_way: dict[int, Message] = {}
        self._received: list[Received] = []
        self._answers: list[tuple[Message, Refusal | None]] = []
        self._wanted: list[str] = []  # filters to subscribe to
        self._probing = ""  # the topic of a probe that is not back
        self._unconfirmed: dict[int | None, list[str]] = {}
        self._subscriptions: list[tuple[str, Refusal | None]] = []
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
            why, causes = dialling.explain(error, tls=self._mqtt.tls)
            return Failure(f"cannot connect to {self._place}: {why}", causes)
        until = self._clock.now() + _CONNACK_SECONDS * self._clock.speed
        while not self._answered and self.failure is None:
            left = self._clock.real(until - self._clock.now())
            if left <= 0:
                text = f"{self._place} takes connections but does not answer; is it overloaded or frozen?"
                return Failure(text, ending="silent")
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
            return int(self.idle and self.subscribed and not self._probing)
        return self._window - len(self._on_their_way)

    @property
    def idle(self) -> bool:
        """Whether every message that was sent is acknowledged."""
        return not self._on_their_way

    @property
    def on_their_way(self) -> frozenset[int]:
        """The identifiers of the messages that are not acknowledged."""
        return frozenset(self._on_their_way)

    def most_bytes(self, topic: str) -> float:
        """Return how large a payload on this topic may be, as the broker said; mostly that is infinite."""
        return self._largest - _OVERHEAD - len(topic.encode())

    def publish(self, message: Message) -> None:
        """Send a message, with the expiry that is left to it; at QoS 1, unless the broker knows 0 alone."""
        properties = None
        if self.protocol == "5" and message.expires_at is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            left = self._clock.real(message.expires_at - self._clock.now())
            properties.MessageExpiryInterval = max(1, math.ceil(left))
        retain = message.retain and self.retains
        info = self._client.publish(message.topic, message.payload, self._qos, retain, properties)
        if self._qos:
            self._on_their_way[info.mid] = message
        elif not info.rc:  # there is no acknowledgement to wait for
            self._answers.append((message, None))
        self._heard_at = self._clock.now()

    def subscribe(self, filters: Iterable[str]) -> None:
        """Subscribe at QoS 0: with QoS 1, mosquitto would drop what goes beyond the queue of a client."""
        self._wanted += filters
        self._send_subscriptions()

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Want no more of these."""
        wanted = list(filters)
        self._wanted = [topic for topic in self._wanted if topic not in wanted]
        for start in range(0, len(wanted), _FILTERS_A_PACKET):
            self._client.unsubscribe(wanted[start : start + _FILTERS_A_PACKET])

    @property
    def subscribed(self) -> bool:
        """Whether the broker has answered to every subscription, be it by a refusal."""
        return not self._unconfirmed and not self._wanted

    def take_subscriptions(self) -> list[tuple[str, Refusal | None]]:
        """Return the filters that the broker answered to since the last call; with the reason if it refused one."""
        taken, self._subscriptions = self._subscriptions, []
        return taken

    def _send_subscriptions(self) -> None:
        """Send what is wanted, as many in a packet as any broker takes; if careful, one, when nothing is on its way."""
        most = 1 if self.careful else _FILTERS_A_PACKET
        while self._wanted and not (self.careful and (self._unconfirmed or not self.idle)):
            filters, self._wanted = self._wanted[:most], self._wanted[most:]
            asked = [(topic, SubscribeOptions(qos=0)) for topic in filters] if self.protocol == "5" else None
            self._unconfirmed[self._client.subscribe(asked or [(topic, 0) for topic in filters])[1]] = filters

    def probe(self, topic: str) -> bool:
        """Publish to ourselves once the broker has confirmed every subscription; return whether it was published.

        MQTT promises no order between a SUBSCRIBE and what is published behind it: a broker that handles packets of
        one client side by side may take the probe first, and then it never comes back.
        """
        if self.subscribed:
            self._client.publish(topic, "probe", qos=0)
            self._probing = topic
        return self.subscribed

    def gave_up_probe(self) -> None:
        """Expect the probe no longer."""
        self._probing = ""

    def work(self, seconds: float, wake: socket.socket | None = None) -> None:
        """Let paho read and write for up to ``seconds``, but no longer than one; return early if something happened."""
        sock = self._client.socket()
        if sock is None:
            self._end(Failure(f"the connection to {self._place} was lost", dialling.BROKE_OFF))
            return
        poll = select.poll()  # unlike select, it takes any number of open files
        poll.register(sock, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        if wake is not None:
            poll.register(wake, select.POLLIN)
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        at_once = pending or bool(self._answers)
        self._send_subscriptions()
        ready = dict(poll.poll(0 if at_once else math.ceil(min(max(seconds, 0), _POLL_SECONDS) * 1000)))
        if wake is not None and wake.fileno() in ready:
            wake.recv(4096)
        events = ready.get(sock.fileno(), 0)
        try:
            if pending or events & ~select.POLLOUT:
                self._client.loop_read()
                self._heard_at = self._clock.now()
                self._patience.alive()  # after what an acknowledgement that was read has done
            if events & select.POLLOUT:
                self._client.loop_write()
            self._client.loop_misc()
        except Exception as error:  # noqa: BLE001  # of paho, on an answer that makes no sense: ours raise nothing
            ending: Ending | None = None if self._answered else "answered_wrongly"
            text = f"{self._place} sent something that is no MQTT ({type(error).__name__})"
            self._end(Failure(text, ending=ending))

    def bear_with(self, seconds: float) -> None:
        """Count these seconds if an acknowledgement is owed, of a subscription too; end it if the broker jams."""
        if self.idle and not self._unconfirmed:
            return
        self._patience.passed(seconds)
        if self._patience.exhausted:
            text = (
                f"{self._place} answers, but has acknowledged nothing for {patience.SECONDS:.0f} s: the connection is "
                "given up, so that nothing old is shown as current, and a new one follows"
            )
            self._end(Failure(text, ending="jammed"))
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
            places = [Place(message.topic) for message in self._on_their_way.values()]
            places += [Place(topic, "subscribe") for filters in self._unconfirmed.values() for topic in filters]
            places += [Place(self._probing)] if self._probing else []
            self.failure = replace(failure, at=tuple(places))

    def _on_connect(
        self, _client: object, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._answered = True
        if not reason.is_failure:
            self._window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
            self._qos = getattr(properties, "MaximumQoS", 1)
            self._largest = getattr(properties, "MaximumPacketSize", math.inf)
            self.retains = bool(getattr(properties, "RetainAvailable", True))
        else:
            self._end(codes.of_connack(reason.value, str(reason), self._place, self.protocol, self._mqtt.client_id))

    def _on_disconnect(
        self, _client: object, _data: object, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        lost = f"the connection to {self._place} was lost"
        busy = bool(self._on_their_way or self._unconfirmed or self._probing)
        if not self._answered and self._client.refusal is not None:
            why, causes = dialling.explain(self._client.refusal, tls=self._mqtt.tls)
            self._end(Failure(f"cannot connect to {self._place}: {why}", causes))
        elif not self._answered:
            text = f"{self._place} closed the connection without an answer; is mqtt.port the right one?"
            causes = dialling.NO_MQTT if self._mqtt.tls is None else dialling.NO_MQTT_OVER_TLS
            ending: Ending = "closed_without_answer" if reason.value == _CLOSED else "answered_wrongly"
            self._end(Failure(text, causes, ending))
        elif flags.is_disconnect_packet_from_server:
            self._end(codes.of_disconnect(reason.value, f"{lost} ({reason})", busy=busy))
        elif busy and reason.value == _NOT_UNDERSTOOD:
            # mosquitto 2.0 refuses what is larger than its message_size_limit with a code that no PUBACK may have.
            self._end(Failure(f"{lost}: it sent an answer that MQTT does not allow", dialling.BROKE_OFF, "closed_busy"))
        elif reason.value == _CLOSED:
            idle = None if busy else self._clock.real(self._clock.now() - self._heard_at)
            self._end(Failure(lost, dialling.BROKE_OFF, "closed_busy" if busy else "closed_idle", idle=idle))
        else:
            self._end(Failure(lost, dialling.BROKE_OFF))

    def _on_publish(self, _client: object, _data: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        message = self._on_their_way.pop(mid, None)
        if message is not None:
            self._patience.acknowledged()
            self._answers.append((message, codes.refusal(reason.value, str(reason))))

    def _on_subscribe(
        self, _client: object, _data: object, mid: int, reasons: Sequence[ReasonCode], _properties: object
    ) -> None:
        self._patience.acknowledged()
        filters = self._unconfirmed.pop(mid, [])
        self._subscriptions += (
            (topic, codes.refusal(each.value, str(each))) for topic, each in zip(filters, reasons, strict=False)
        )

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic == self._probing:
            self._probing = ""
        self._received.append(Received(message.topic, bytes(message.payload), message.retain))
