"""The connection to the MQTT broker: protocol, TLS, will, retries, acknowledgements, subscriptions.

It keeps the broker equal to the mirror, for ever: whatever happens to a connection, another one follows. It
knows nothing of glucose. Everything of paho happens in one thread, so that its callbacks and its failures are
seen where they arise; each connection is a client of its own, so that nothing of an old one can follow.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import select
import socket
import ssl
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MessageType, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from dexcom2mqtt import patience
from dexcom2mqtt.clock import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from paho.mqtt.reasoncodes import ReasonCode

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Mqtt, Tls
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.mirror import Mirror
    from dexcom2mqtt.messages.stream import Stream

_log = logging.getLogger(__name__)

Protocol = Literal["5", "3.1.1"]
_T = TypeVar("_T")

_CONNECT_SECONDS: Final = 5.0
_CONNACK_SECONDS: Final = 10.0
_WINDOW: Final = 20
"""Messages on their way at once. paho would queue the rest, but does not count their expiry down."""
_BACKOFF_MOST: Final = 30.0
_TAKEN_OVER_WAIT: Final = 60.0
_SETTLED: Final = 30.0
"""Seconds after which a connection counts as a good one, and the next failure as a first."""
_TAKEN_OVER_SETTLED: Final = 300.0
_PROTOCOL_REFUSED: Final = 0x84
_SESSION_TAKEN_OVER: Final = 0x8E
_CLOSED: Final = 0x80  # paho's word for a connection that ended without one
_FAILURE: Final = 0x80
_CLOSED_WITHOUT_ANSWER: Final = 2
_READ_BACK_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 1.0
_FAREWELL_SECONDS: Final = 1.2

BAD_CREDENTIALS: Final = frozenset({0x86, 0x87, 0x8C})  # bad user name or password; not authorized; bad method


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a subscription."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What to read from the broker once after the start, before anything is published there.

    ``done`` is called with the retained payloads of ``topics``, as far as there are any, when ``probe`` has come
    back, or after 10 s: a broker that lets us write but not read returns nothing. The probe is sent once the broker
    has confirmed the subscriptions.
    """

    topics: Collection[str]
    probe: str
    done: Callable[[Mapping[str, bytes]], None]


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a connection came to nothing, or to an end, in words for a person."""

    text: str
    causes: tuple[str, ...] = ()
    protocol_refused: bool = False
    closed_without_answer: bool = False
    closed: Literal["idle", "busy"] | None = None  # by the broker, without a word
    taken_over: bool = False
    jammed: bool = False  # the broker was there, and acknowledged nothing


class BrokerError(Exception):
    """The broker cannot be used; the text says why, and what to look at."""

    def __init__(self, text: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.causes = causes
        """What may have led to it and what to do, the most frequent first; empty where the text says it all."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a broker's certificate says, as far as it is looked at."""

    subject: str
    issuer: str
    until: float
    """Unix seconds."""


class TlsFileError(Exception):
    """A file of the TLS settings is no good; the text names the key and the file."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Make a TLS context of its settings. Raises TlsFileError."""
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except OSError as error:
        raise TlsFileError(f"mqtt.tls.ca_file: {tls.ca_file} holds no certificate in PEM ({error})") from None
    if tls.cert_file:
        try:
            # An empty password makes an encrypted key an error; without it, OpenSSL would ask on the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
        except OSError as error:
            files = f"{tls.cert_file} and {tls.key_file}" if tls.key_file else tls.cert_file
            raise TlsFileError(
                f"mqtt.tls.cert_file, key_file: {files} are no certificate with its unencrypted key in PEM ({error})"
            ) from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def reach(mqtt: Mqtt) -> str:
    """Connect to the broker's port, and leave; return the address that took the connection. Raises BrokerError."""
    with _dialled(mqtt) as sock:
        return str(sock.getpeername()[0])


def certificate(mqtt: Mqtt, tls: Tls) -> Certificate | None:
    """Make an encrypted connection to the broker, and leave; return the certificate, None where it is not verified.

    Raises BrokerError and TlsFileError.
    """
    context = tls_context(tls)
    with (
        _dialled(mqtt) as sock,
        _explained(mqtt, tls=True),
        context.wrap_socket(sock, server_hostname=mqtt.host) as secured,
    ):
        shown: Any = secured.getpeercert()
    if not shown:
        return None
    subject, issuer = (dict(pair for part in shown[who] for pair in part) for who in ("subject", "issuer"))
    names = [name for _, name in shown.get("subjectAltName", ())]
    return Certificate(
        subject=subject.get("commonName") or ", ".join(names) or "nobody",
        issuer=issuer.get("organizationName") or issuer.get("commonName") or "nobody",
        until=ssl.cert_time_to_seconds(shown["notAfter"]),
    )


@contextlib.contextmanager
def _explained(mqtt: Mqtt, *, tls: bool) -> Iterator[None]:
    """Turn what can fail while connecting into a BrokerError."""
    try:
        yield
    except (OSError, ValueError) as error:
        why, causes = _explain(error, tls=tls)
        raise BrokerError(f"cannot connect to the broker at {mqtt.host}:{mqtt.port}: {why}", causes) from None


def _dialled(mqtt: Mqtt) -> socket.socket:
    with _explained(mqtt, tls=False):
        return socket.create_connection((mqtt.host, mqtt.port), _CONNECT_SECONDS)


class Broker:
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
        self._read_back: ReadBack | None = read_back
        self._found: dict[str, bytes] = {}
        self._read_back_until = math.inf
        self._probe_sent = False
        self._subscriptions = subscriptions
        self._connected = connected
        self._received = received
        self._back_by = back_by
        self._tls = None if mqtt.tls is None else tls_context(mqtt.tls)
        self._alarm = clock.alarm(back_by)
        self._wake_out, self._wake_in = socket.socketpair()
        for end in (self._wake_out, self._wake_in):
            end.settimeout(0)
        self._ended = threading.Event()
        self._protocol: Protocol = "3.1.1" if mqtt.protocol == "3.1.1" else "5"
        self._decided = mqtt.protocol != "auto"
        self._closed_without_answer = 0
        self._failures = 0
        self._trouble: str | None = None
        self._taken_over = False
        self._jammed = False
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
                protocol = self._protocol
                failure = self._connect_and_serve()
                if failure is not None and not (failure.protocol_refused and protocol != self._protocol):
                    now = self._clock.now()
                    self._alarm.wait(self._pause_after(failure, now - began))
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

    def _connect_and_serve(self) -> _Failure | None:
        """Make one connection and use it until it ends. Return why it ended; None after the farewell."""
        protocol = self._protocol
        self._back_by(self._clock.now() + (_CONNECT_SECONDS + _CONNACK_SECONDS) * self._clock.speed)
        with _Connection(self._mqtt, protocol, self._tls, self._will) as connection:
            failure = connection.open(self._clock)
            if failure is not None:
                self._reconsider(failure)
                return failure
            self._decided = True
            self._say_connected(protocol)
            connection.subscribe(self._subscriptions)
            self._begin_read_back(connection)
            self._connected(protocol)
            self._mirror.send_all()
            failure = self._serve(connection)
        self._stream.lost()
        if failure is not None and self._means_taken_over(failure):
            return self._taken_over_failure()
        return failure

    def _means_taken_over(self, failure: _Failure) -> bool:
        """Tell whether a connection ended because another client came with our id.

        A broker may also close a connection because it cannot stand what we sent. So this is a guess, made only where
        nothing was on its way, or where the last connection was taken over and the other client is back at once.
        """
        suspected = failure.closed == "idle" or (failure.closed == "busy" and self._taken_over)
        return failure.taken_over or (suspected and self._answers_others())

    def _answers_others(self) -> bool:
        """Tell whether the broker, right after it closed our connection, lets another client in.

        MQTT 3.1.1 and mosquitto before 2.1 do not say that a connection was taken over. But a broker that ends
        closes its port before its connections, and this comes at once: if it answers, it did not end.
        """
        other = self._mqtt.model_copy(update={"client_id": f"{self._mqtt.client_id}-probe"})
        with _Connection(other, self._protocol, self._tls) as connection:
            if connection.open(self._clock) is not None:
                return False
            connection.client.disconnect()
            return True

    def _taken_over_failure(self) -> _Failure:
        return _Failure(
            f"the broker at {self._mqtt.host}:{self._mqtt.port} ended the connection, but takes others: most likely "
            f"another program has connected as {self._mqtt.client_id}. Stop it, or give this one an mqtt.client_id of "
            "its own; the next try is in a minute",
            taken_over=True,
        )

    def _serve(self, connection: _Connection) -> _Failure | None:
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
                    connection.client.disconnect()
                    return None
                if now >= farewell_until:
                    return None  # the socket is closed without DISCONNECT, so that the will speaks
            until = min(self._mirror.next_expiry(), self._read_back_until, farewell_until)
            if connection.room:  # else an acknowledgement has to come first
                until = min(until, self._stream.next_at(now))
            connection.work(min(max(self._clock.real(until - now), 0), _POLL_SECONDS), self._wake_out)
            self._take_from(connection)
            if not self._clock.stopped:  # the farewell has a limit of its own
                connection.bear_with(self._clock.real(self._clock.now() - now))
        if self._clock.real(self._clock.now() - now) > self._mqtt.keepalive:
            return replace(connection.failure, closed=None)  # the machine slept, and so the broker gave it up
        return connection.failure

    def _settle(self, connection: _Connection, lasted: float) -> None:
        """Say that all is well again once what ended the last connection has stayed away for long enough.

        A broker that jams at one message takes the others, and jams again: so nothing may be left unacknowledged.
        """
        unjammed = self._jammed and connection.idle and self._clock.real(lasted) > patience.SECONDS
        if unjammed or (self._taken_over and lasted > _TAKEN_OVER_SETTLED):
            self._jammed = self._taken_over = False
            self._say_connected(connection.protocol)

    def _take_from(self, connection: _Connection) -> None:
        now = self._clock.now()
        self._send_probe(connection)
        for received in connection.take_received():
            if not self._take_read_back(connection, received):
                self._received(received)
        if self._read_back_until <= now:
            self._end_read_back(connection)
        for message, refusal in connection.take_answers():
            if refusal is None:
                self._stream.acknowledged(message)
            else:
                self._stream.refused(message, now)
                self._say_denied(message, refusal)

    def _begin_read_back(self, connection: _Connection) -> None:
        if self._read_back is None:
            return
        self._found.clear()
        self._read_back_until = self._clock.now() + _READ_BACK_SECONDS * self._clock.speed
        self._probe_sent = False
        connection.subscribe((*self._read_back.topics, self._read_back.probe))

    def _send_probe(self, connection: _Connection) -> None:
        """Send the probe of the read-back as soon as the broker has confirmed every subscription, and not before.

        MQTT promises no order between a SUBSCRIBE and what is published behind it: a broker that handles packets of
        one client side by side may take the probe first, and then it never comes back.
        """
        if self._read_back is not None and not self._probe_sent and connection.subscribed:
            self._probe_sent = True
            connection.client.publish(self._read_back.probe, "probe", qos=0)

    def _take_read_back(self, connection: _Connection, received: Received) -> bool:
        """Take a message if it belongs to the read-back; tell whether it did."""
        if self._read_back is None:
            return False
        if received.topic == self._read_back.probe:
            self._end_read_back(connection)
            return True
        if received.topic in self._read_back.topics:
            if received.retained:
                self._found[received.topic] = received.payload
            return True
        return False

    def _end_read_back(self, connection: _Connection) -> None:
        if self._read_back is not None:
            connection.unsubscribe((*self._read_back.topics, self._read_back.probe))
            self._read_back.done(self._found)
        self._read_back = None
        self._read_back_until = math.inf
        self._found = {}

    def _reconsider(self, failure: _Failure) -> None:
        """Choose the protocol of the next attempt: 5 unless the broker refuses it or keeps hanging up on it."""
        if self._decided:
            return
        if failure.protocol_refused and self._protocol == "5":
            self._protocol = "3.1.1"
            self._closed_without_answer = 0
        elif self._closed_without_answer >= _CLOSED_WITHOUT_ANSWER:  # that was 3.1.1, and no better
            self._protocol = "5"
            self._closed_without_answer = 0
        elif failure.closed_without_answer and self._protocol == "5":
            self._closed_without_answer += 1
            if self._closed_without_answer >= _CLOSED_WITHOUT_ANSWER:
                self._protocol = "3.1.1"

    def _pause_after(self, failure: _Failure, lasted: float) -> float:
        """Say what happened, once, and return how many seconds to wait before the next attempt."""
        if lasted > _TAKEN_OVER_SETTLED and not failure.jammed:
            self._trouble = None
        self._taken_over, self._jammed = failure.taken_over, failure.jammed
        if failure.text != self._trouble:
            _log.log(logging.ERROR if failure.taken_over else logging.WARNING, "%s", failure.text)
            self._trouble = failure.text
        self._failures = 1 if lasted > _SETTLED else self._failures + 1
        if failure.taken_over:
            return _TAKEN_OVER_WAIT
        most = min(2.0 ** min(self._failures - 1, 10), _BACKOFF_MOST)
        return most * random.uniform(0.5, 1.0)  # noqa: S311  # spreads out clients, guards nothing

    def _say_connected(self, protocol: Protocol) -> None:
        self._denied.clear()
        if self._taken_over or self._jammed:  # it will be back: that is one line, and not one for each time
            return  # until it stays away
        self._trouble = None
        _log.info("connected to the broker at %s:%s with MQTT %s", self._mqtt.host, self._mqtt.port, protocol)

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
        no_mqtt_5 = failure is not None and (failure.protocol_refused or failure.closed_without_answer)
        if no_mqtt_5 and self._mqtt.protocol == "auto":
            failure = self._connect("3.1.1")
        if failure is not None:
            raise BrokerError(failure.text, failure.causes)
        return self

    def _connect(self, protocol: Protocol) -> _Failure | None:
        self._connection = _Connection(self._mqtt, protocol, self._tls)
        failure = self._connection.open(self._clock)
        if failure is not None:
            with self._connection:  # which closes it
                pass
        return failure

    def __exit__(self, *_: object) -> None:
        with self._connection:
            self._connection.client.disconnect()

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
            self._connection.client.publish(probe, "probe", qos=0)
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
        until = self._clock.now() + _READ_BACK_SECONDS * self._clock.speed
        while not (taken := take()):
            self._connection.work(_POLL_SECONDS)
            if self._connection.failure is not None:
                raise BrokerError(self._connection.failure.text, self._connection.failure.causes)
            if self._clock.now() > until:
                raise BrokerError(
                    f"the broker at {self._mqtt.host}:{self._mqtt.port} does not answer. Either it is frozen, or its "
                    "access control list does not let the user of this daemon read and write all of its topics"
                )
        return taken


class _Client(paho.Client):
    """A client that can ask the broker for a sign of life between those of the keep-alive."""

    def ping(self) -> None:
        """Send a PINGREQ that paho does not count: when the keep-alive ends a connection stays as it is."""
        self._send_simple_command(MessageType.PINGREQ)


class _Connection:
    """One connection of one paho client, from its opening to its end."""

    def __init__(self, mqtt: Mqtt, protocol: Protocol, tls: ssl.SSLContext | None, will: Message | None = None) -> None:
        self._mqtt = mqtt
        self.protocol = protocol
        self._place = f"the broker at {mqtt.host}:{mqtt.port}"
        self._answered = False
        self._window = _WINDOW
        self._on_their_way: dict[int, Message] = {}
        self._received: list[Received] = []
        self._answers: list[tuple[Message, str | None]] = []
        self._unconfirmed: set[int | None] = set()
        self.failure: _Failure | None = None
        self._patience = patience.Patience()
        self.client = client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=mqtt.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _CONNECT_SECONDS
        client.max_inflight_messages_set(_WINDOW)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        if mqtt.username is not None:
            password = None if mqtt.password is None else mqtt.password.get_secret_value()
            client.username_pw_set(mqtt.username.get_secret_value(), password)
        if tls is not None:
            client.tls_set_context(tls)
            client.tls_insecure_set(not tls.check_hostname)
        # The callbacks only take note: what follows from it happens outside of paho, where it can be seen.
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sock = self.client.socket()
        if sock is not None:
            sock.close()

    def open(self, clock: Clock) -> _Failure | None:
        """Connect and wait for the broker's answer. Return why it came to nothing, or None."""
        try:
            self.client.connect(self._mqtt.host, self._mqtt.port, self._mqtt.keepalive)
        except (OSError, ValueError) as error:
            why, causes = _explain(error, tls=self._mqtt.tls is not None)
            return _Failure(f"cannot connect to {self._place}: {why}", causes)
        until = clock.now() + _CONNACK_SECONDS * clock.speed
        while not self._answered and self.failure is None:
            left = clock.real(until - clock.now())
            if left <= 0:
                return _Failure(f"{self._place} takes connections but does not answer; is it overloaded or frozen?")
            if clock.stopped:
                raise Stopped
            self.work(min(left, _POLL_SECONDS))
        return self.failure

    @property
    def room(self) -> int:
        """How many more messages may be on their way."""
        return self._window - len(self._on_their_way)

    @property
    def idle(self) -> bool:
        """Whether every message that was sent is acknowledged."""
        return not self._on_their_way

    def publish(self, message: Message, clock: Clock) -> None:
        """Send a message, QoS 1, with the expiry that is left to it."""
        properties = None
        if self.protocol == "5" and message.expires_at is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            left = clock.real(message.expires_at - clock.now())
            properties.MessageExpiryInterval = max(1, math.ceil(left))
        info = self.client.publish(message.topic, message.payload, 1, message.retain, properties)
        self._on_their_way[info.mid] = message

    def subscribe(self, filters: Iterable[str]) -> None:
        """Subscribe at QoS 0: with QoS 1, mosquitto would drop what goes beyond the queue of a client."""
        for topic in filters:
            self._unconfirmed.add(self.client.subscribe(topic, qos=0)[1])

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Want no more of these."""
        for topic in filters:
            self.client.unsubscribe(topic)

    @property
    def subscribed(self) -> bool:
        """Whether the broker has answered to every subscription, be it by a refusal."""
        return not self._unconfirmed

    def work(self, seconds: float, wake: socket.socket | None = None) -> None:
        """Let paho read and write for up to ``seconds``; return early where something happened."""
        sock = self.client.socket()
        if sock is None:
            self._end(_Failure(f"the connection to {self._place} was lost", _BROKE_OFF))
            return
        poll = select.poll()  # unlike select, it takes any number of open files
        poll.register(sock, select.POLLIN | (select.POLLOUT if self.client.want_write() else 0))
        if wake is not None:
            poll.register(wake, select.POLLIN)
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = dict(poll.poll(0 if pending else math.ceil(seconds * 1000)))
        if wake is not None and wake.fileno() in ready:
            wake.recv(4096)
        events = ready.get(sock.fileno(), 0)
        try:
            if pending or events & ~select.POLLOUT:
                self.client.loop_read()
                self._patience.alive()  # after what an acknowledgement that was read has done
            if events & select.POLLOUT:
                self.client.loop_write()
            self.client.loop_misc()
        except Exception as error:  # noqa: BLE001  # of paho, on an answer that makes no sense: ours raise nothing
            self._end(_Failure(f"{self._place} sent something that is no MQTT ({type(error).__name__})"))

    def bear_with(self, seconds: float) -> None:
        """Count these seconds if an acknowledgement is owed, and end the connection if the broker jams."""
        if self.idle:
            return
        self._patience.passed(seconds)
        if self._patience.exhausted:
            text = (
                f"{self._place} answers, but has acknowledged nothing for {patience.SECONDS:.0f} s: the connection is "
                "given up, so that nothing old is shown as current, and a new one follows"
            )
            self._end(_Failure(text, jammed=True))
        elif self._patience.question_due:
            self._patience.asked()
            self.client.ping()

    def take_received(self) -> list[Received]:
        """Return the messages that came since the last call."""
        taken, self._received = self._received, []
        return taken

    def take_answers(self) -> list[tuple[Message, str | None]]:
        """Return what the broker acknowledged since the last call; with the reason where it did not take it."""
        taken, self._answers = self._answers, []
        return taken

    def _end(self, failure: _Failure) -> None:
        if self.failure is None:
            self.failure = failure

    def _on_connect(
        self, _client: object, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._answered = True
        if not reason.is_failure:
            self._window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
        elif reason.value == _PROTOCOL_REFUSED:
            self._end(_Failure(f"{self._place} does not take MQTT {self.protocol}", _OTHER_MQTT, protocol_refused=True))
        elif reason.value in BAD_CREDENTIALS:
            text = f"{self._place} refuses this daemon ({reason}): check mqtt.username and mqtt.password"
            self._end(_Failure(text, _REFUSED))
        else:
            self._end(_Failure(f"{self._place} refuses the connection ({reason}); its log says why"))

    def _on_disconnect(
        self, _client: object, _data: object, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        lost = f"the connection to {self._place} was lost"
        if not self._answered:
            text = f"{self._place} closed the connection without an answer; is mqtt.port the right one?"
            causes = _NO_MQTT if self._mqtt.tls is None else (_OUR_CERTIFICATE, _NO_MQTT[1])
            self._end(_Failure(text, causes, closed_without_answer=True))
        elif flags.is_disconnect_packet_from_server:
            self._end(_Failure(f"{lost} ({reason})", _BROKE_OFF, taken_over=reason.value == _SESSION_TAKEN_OVER))
        else:
            closed: Literal["idle", "busy"] = "idle" if self.idle else "busy"
            self._end(_Failure(lost, _BROKE_OFF, closed=closed if reason.value == _CLOSED else None))

    def _on_publish(self, _client: object, _data: object, mid: int, reason: ReasonCode, _properties: object) -> None:
        message = self._on_their_way.pop(mid, None)
        if message is not None:
            self._patience.acknowledged()
            self._answers.append((message, str(reason) if reason.value >= _FAILURE else None))

    def _on_subscribe(self, _client: object, _data: object, mid: int, *_: object) -> None:
        self._unconfirmed.discard(mid)

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self._received.append(Received(message.topic, bytes(message.payload), message.retain))


_NOT_THERE: Final = (
    "The broker does not run, or not on that machine: on it, look at `systemctl status mosquitto`.",
    "Mosquitto 2 takes connections of its own machine alone until its configuration has a line `listener 1883`.",
    "In a container, localhost is the container itself: write the name of the broker's container or machine.",
    "A firewall is between, or the port is another one: mqtt.port; with TLS it is mostly 8883.",
)
_NO_NAME: Final = (
    "The name is misspelt, or known to some machines only: try the broker's address in its place, as 192.168.1.2.",
    "This machine has no network or no name server yet: then other names cannot be looked up either.",
)
_NOT_TRUSTED: Final = (
    "The broker has a certificate of an authority of your own: name that authority's file in mqtt.tls.ca_file.",
    "mqtt.host has to be a name that the certificate is made for; an address works only if the certificate has it.",
    "The certificate is out of date, or this machine's clock is wrong.",
)
_OUR_CERTIFICATE: Final = "The broker wants a certificate of this client: mqtt.tls.cert_file and key_file."
_NO_TLS: Final = (
    "Behind that port the broker does not speak TLS: with TLS it is mostly 8883, without it 1883.",
    _OUR_CERTIFICATE,
    "The broker is frozen or overloaded.",
)
_NO_MQTT: Final = (
    "The broker wants TLS at that port: write tls: {} below mqtt:, or take the port without TLS, mostly 1883.",
    "Something else listens there: MQTT over WebSockets (mostly 9001) and web pages are of no use.",
)
_REFUSED: Final = (
    "mqtt.username or mqtt.password is wrong or missing; with Mosquitto, mosquitto_passwd makes users.",
    "With the broker inside Home Assistant, it is the name and password of one of its users.",
    "The broker admits certain client ids only: mqtt.client_id, to which check and purge add a word.",
)
_OTHER_MQTT: Final = ("Write protocol: auto below mqtt:, or leave it out: then the other one is tried, too.",)
_BROKE_OFF: Final = (
    "The broker was restarted, or the network broke: try again.",
    "It does not take something that was sent, such as retained messages: its log says what.",
)


def _explain(error: Exception, *, tls: bool) -> tuple[str, tuple[str, ...]]:
    """Say what failed while connecting, and what may have led to it and what to do, the most frequent first.

    ``tls`` is whether that may have been the encryption.
    """
    told: tuple[str, tuple[str, ...]]
    match error:
        case socket.gaierror():
            told = "its name cannot be looked up; check mqtt.host", _NO_NAME
        case ConnectionRefusedError():
            told = "nothing listens there; is the broker running? check mqtt.host and mqtt.port", _NOT_THERE
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not accepted ({error.verify_message}); check mqtt.tls and this machine's clock"
            told = why, _NOT_TRUSTED
        case ssl.SSLError() | ConnectionResetError() | BrokenPipeError() if tls:
            reason = getattr(error, "reason", None) or "closed"
            told = f"the encrypted connection fails ({reason}); check mqtt.port and mqtt.tls", _NO_TLS
        case TimeoutError():
            why = "no answer; check mqtt.host, mqtt.port, and any firewall between"
            told = why, _NO_TLS if tls else _NOT_THERE
        case OSError():
            told = f"{error.strerror or type(error).__name__}; check mqtt.host and this machine's network", _NOT_THERE
        case _:
            told = f"{type(error).__name__}; check mqtt.host and mqtt.port", _NO_NAME
    return told
