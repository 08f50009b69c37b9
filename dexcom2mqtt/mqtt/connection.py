"""One connection to the broker, through one paho client, from its opening to its end.

Only this module uses paho, in one thread, so that its callbacks and errors appear in one place. The callbacks only
record what happened; everything else happens outside of paho. Each connection has its own client, so that nothing of an
old connection carries over. Other modules decide what to send and whether to connect again.
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

from dexcom2mqtt.clock import LOOK_SECONDS, Stopped
from dexcom2mqtt.mqtt import codes, dialling, patience
from dexcom2mqtt.mqtt.outcome import Failure, Place
from dexcom2mqtt.mqtt.subscriptions import Subscriptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from paho.mqtt.reasoncodes import ReasonCode

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Mqtt
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.outcome import Protocol, Refusal
    from dexcom2mqtt.waker import Waker

_CONNACK_SECONDS: Final = 10.0
OPEN_SECONDS: Final = dialling.CONNECT_SECONDS + _CONNACK_SECONDS
"""The longest time to open a connection, without looking up the broker's name."""
_WINDOW: Final = 20
"""The most unacknowledged messages at once. paho would queue the rest, but not count down their expiry."""
_OVERHEAD: Final = 16
"""Bytes of a PUBLISH besides its topic and payload: header, length, packet identifier and our only property."""
_ROUND: Final = 1.0
"""The longest wait, in real seconds, while the broker owes an answer; ``patience`` counts in such steps."""
_SILENT: Final = "{} accepts connections but does not answer; is it overloaded or frozen?"
_JAMMED: Final = (
    "{} answers, but has acknowledged nothing for {:.0f} s. The daemon disconnects, so that no old value is shown as "
    "current, and connects again"
)


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a topic matches a filter."""
    return paho.topic_matches_sub(topic_filter, topic)


class Received(NamedTuple):
    """A message received through a subscription."""

    topic: str
    payload: bytes
    retained: bool


class Will(NamedTuple):
    """What the broker publishes if the connection ends without a farewell, with the QoS and retain flag it allows."""

    message: Message
    qos: int = 1
    retain: bool = True


class Limits(NamedTuple):
    """What the broker allows, as announced in its CONNACK."""

    window: int = _WINDOW
    """How many messages may be unacknowledged at once."""
    qos: int = 1
    largest: float = math.inf
    """Bytes of a packet; infinite with most brokers."""
    retains: bool = True
    """Whether the broker keeps retained messages."""
    keepalive: int = 0
    """The keepalive in seconds that the broker demands in place of ours; 0 if it demands none."""

    @classmethod
    def of(cls, properties: Properties | None) -> Limits:
        """Read the properties of a CONNACK; MQTT 3.1.1 has none."""
        return cls(
            min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW)),
            getattr(properties, "MaximumQoS", 1),
            getattr(properties, "MaximumPacketSize", math.inf),
            bool(getattr(properties, "RetainAvailable", True)),
            getattr(properties, "ServerKeepAlive", 0),
        )

    def most_bytes(self, topic: str) -> float:
        """Return how many bytes a payload on this topic may have."""
        return self.largest - _OVERHEAD - len(topic.encode())


class _Client(paho.Client):
    """A client that works in our thread, can send extra pings, and keeps the TLS error."""

    refusal: ssl.SSLError | None = None
    """With TLS 1.3 a broker refuses our certificate only after the handshake; paho only logs that."""

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
        except OSError:  # the broker has already hung up, but what it sent before can still be read
            with contextlib.suppress(OSError):
                self._sock_recv(1)
            raise

    def ping(self) -> None:
        """Send a PINGREQ that paho does not count, so that the keep-alive works as before."""
        self._send_simple_command(MessageType.PINGREQ)

    def send(self, message: Message, limits: Limits, left: float | None) -> paho.MQTTMessageInfo:
        """Publish a message within the broker's limits; it expires after ``left`` seconds, or never if None."""
        properties = None
        if self._protocol == MQTTProtocolVersion.MQTTv5 and left is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = max(1, math.ceil(left))
        retain = message.retain and limits.retains
        return self.publish(message.topic, message.payload, limits.qos, retain, properties)

    def ask_for(self, filters: Sequence[str]) -> int | None:
        """Subscribe at QoS 0; return the identifier of the packet, or None if it could not be sent."""
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            return self.subscribe([(topic, SubscribeOptions(qos=0)) for topic in filters])[1]
        return self.subscribe([(topic, 0) for topic in filters])[1]

    @property
    def rest(self) -> float:
        """Real seconds until paho sends its next ping, or ends the connection because a ping was not answered."""
        if not self._keepalive:
            return math.inf
        since = min(self._last_msg_out, self._last_bytes_received, self._ping_t or math.inf)
        return since + self._keepalive - paho.time_func()

    def wait(self, seconds: float, waker: Waker | None) -> tuple[bool, bool]:
        """Wait for the broker or ``waker``; return whether there is something to read, and whether we may write."""
        sock = self.socket()
        if sock is None:
            return False, False
        poll = select.poll()  # unlike select, it works with any number of open files
        poll.register(sock, select.POLLIN | (select.POLLOUT if self.want_write() else 0))
        if waker is not None:
            poll.register(waker, select.POLLIN)
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = dict(poll.poll(0 if pending else math.ceil(max(seconds, 0) * 1000)))
        if waker is not None and waker.fileno() in ready:
            waker.clear()
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
        self._place, self._answered = f"the broker at {mqtt.host}:{mqtt.port}", False
        self.limits = Limits()
        self.careful = False
        """Whether to send one packet at a time, each only once the previous one is acknowledged."""
        self.on_their_way: dict[int, Message] = {}
        """The messages that are not acknowledged, by identifier."""
        self._received: list[Received] = []
        self._answers: list[tuple[Message, Refusal | None]] = []
        self.subscriptions = Subscriptions()
        self._active_at = self.heard_at = self._clock.now()
        """When the broker was last heard, and when anything was last heard or sent."""
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
        """Connect and wait for the broker's answer. Return why it failed, or None."""
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
        """Send DISCONNECT, so that the broker does not publish the will."""
        self._client.disconnect()

    @property
    def room(self) -> int:
        """How many more messages may be sent now."""
        if self.careful:
            return int(self.idle and self.subscribed and not self.subscriptions.probe)
        return self.limits.window - len(self.on_their_way)

    @property
    def idle(self) -> bool:
        """Whether every sent message is acknowledged."""
        return not self.on_their_way

    def publish(self, message: Message) -> None:
        """Send a message with its remaining expiry; at QoS 1, unless the broker only supports QoS 0."""
        expires_at = message.expires_at
        left = None if expires_at is None else self._clock.real(expires_at - self._clock.now())
        info = self._client.send(message, self.limits, left)
        if self.limits.qos:
            self.on_their_way[info.mid] = message
        elif not info.rc:  # QoS 0 has no acknowledgement
            self._answers.append((message, None))
        self._active_at = self._clock.now()

    def subscribe(self, filters: Iterable[str]) -> None:
        """Subscribe at QoS 0: with QoS 1, Mosquitto drops messages that exceed a client's queue."""
        self.subscriptions.want(filters)
        self._send_subscriptions()

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe from these filters."""
        for packet in self.subscriptions.drop(filters):
            self._client.unsubscribe(packet)

    @property
    def subscribed(self) -> bool:
        """Whether the broker has accepted or refused every subscription."""
        return self.subscriptions.settled

    def _send_subscriptions(self) -> None:
        while filters := self.subscriptions.packet(careful=self.careful, idle=self.idle):
            self.subscriptions.sent(self._client.ask_for(filters), filters)

    def probe(self, topic: str) -> bool:
        """Publish to ourselves if the broker has answered every subscription; return whether it was published."""
        if self.subscribed:
            self._client.publish(topic, "probe", qos=0)
            self.subscriptions.probe = topic
        return self.subscribed

    @property
    def rest(self) -> float:
        """The longest wait, in real seconds, if nothing happens."""
        busy = not self._answered or self._answers or self._unacknowledged() or not self.subscribed
        return _ROUND if busy else min(self._client.rest, LOOK_SECONDS)

    def work(self, seconds: float, waker: Waker | None = None) -> None:
        """Let paho read and write for up to ``seconds``, at most ``rest``; return early if something happens."""
        if self._client.socket() is None:
            self._end(Failure(f"the connection to {self._place} was lost", dialling.BROKE_OFF))
            return
        self._send_subscriptions()
        may_read, may_write = self._client.wait(0 if self._answers else min(seconds, self.rest), waker)
        try:
            if may_read:
                self._client.loop_read()
                self._active_at = self.heard_at = self._clock.now()
                self._patience.alive()  # after the callbacks for any acknowledgement just read
            if may_write:
                self._client.loop_write()
            self._client.loop_misc()
        except Exception as error:  # noqa: BLE001  # from paho, on malformed packets; our callbacks raise nothing
            text = f"{self._place} sent something that is not MQTT ({type(error).__name__})"
            self._end(Failure(text, ending=None if self._answered else "answered_wrongly"))

    def bear_with(self, seconds: float) -> None:
        """Count these seconds if the broker owes an acknowledgement; end the connection if that is too long."""
        if self.idle and not self.subscriptions.unanswered:
            return
        self._patience.passed(seconds)
        if self._patience.exhausted:
            self._end(Failure(_JAMMED.format(self._place, patience.SECONDS), ending="jammed"))
        elif self._patience.question_due:
            self._patience.asked()
            self._client.ping()

    def take_received(self) -> list[Received]:
        """Return the messages received since the last call."""
        taken, self._received = self._received, []
        return taken

    def take_answers(self) -> list[tuple[Message, Refusal | None]]:
        """Return the messages that the broker answered since the last call; with the reason if it refused one."""
        taken, self._answers = self._answers, []
        return taken

    def give_up(self, why: str) -> None:
        """End the connection, so that the will marks values as not current, which nothing else can do."""
        self._end(Failure(why, ending="unprotected"))

    def _end(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = replace(failure, at=self._unacknowledged())

    def _unacknowledged(self) -> tuple[Place, ...]:
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
        busy = bool(self._unacknowledged())
        if not self._answered:
            self._end(codes.of_no_answer(reason.value, self._place, self._mqtt.tls, self._client.refusal))
        elif flags.is_disconnect_packet_from_server:
            self._end(codes.of_disconnect(reason.value, f"{lost} ({reason})", busy=busy))
        else:
            idle = None if busy else self._clock.real(self._clock.now() - self._active_at)
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
