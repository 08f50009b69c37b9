"""The embedded broker does what the daemon needs, as seen by a real client."""

from __future__ import annotations

import logging
import queue
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from dexcom2mqtt.demo.embedded_broker import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 5.0


class Got(NamedTuple):
    topic: str
    payload: bytes
    retained: bool


class Client:
    """A client that collects the messages that it receives."""

    def __init__(self, port: int, name: str, *, will: tuple[str, str] | None = None) -> None:
        self.messages: queue.Queue[Got] = queue.Queue()
        self.events: queue.Queue[str] = queue.Queue()
        self.paho = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            name,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.paho.on_connect = lambda *_: self.events.put("connected")
        self.paho.on_subscribe = lambda *_: self.events.put("subscribed")
        self.paho.on_disconnect = lambda *_: self.events.put("disconnected")
        self.paho.on_message = lambda _client, _data, message: self.messages.put(
            Got(message.topic, bytes(message.payload), message.retain)
        )
        if will:
            self.paho.will_set(*will, qos=1, retain=True)
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        self.expect("connected")

    def expect(self, event: str) -> None:
        assert self.events.get(timeout=PATIENCE) == event

    def subscribe(self, topic: str) -> None:
        self.paho.subscribe(topic, qos=1)
        self.expect("subscribed")

    def publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """Publish with QoS 1, and wait for the acknowledgement."""
        self.paho.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE)

    def next(self) -> Got:
        return self.messages.get(timeout=PATIENCE)

    def vanish(self) -> None:
        """Close the connection without DISCONNECT."""
        connection = self.paho.socket()
        assert isinstance(connection, socket.socket)
        connection.shutdown(socket.SHUT_RDWR)
        self.paho.loop_stop()


@contextmanager
def connected(port: int, name: str, *, will: tuple[str, str] | None = None) -> Iterator[Client]:
    client = Client(port, name, will=will)
    try:
        yield client
    finally:
        client.paho.disconnect()
        client.paho.loop_stop()


@pytest.fixture
def port() -> Iterator[int]:
    with EmbeddedBroker() as broker:
        yield broker.port


def test_delivers_in_order(port: int) -> None:
    """A subscriber gets every message with QoS 1, in the order of publishing, and not marked as retained."""
    with connected(port, "daemon") as daemon, connected(port, "view") as view:
        view.subscribe("#")
        for number in range(100):
            daemon.publish("anna/reading", str(number))
        assert [view.next() for _ in range(100)] == [
            Got("anna/reading", str(number).encode(), retained=False) for number in range(100)
        ]


def test_retains_the_newest(port: int) -> None:
    """A later subscriber gets each topic's newest retained message, marked as retained; a cleared one is gone."""
    with connected(port, "daemon") as daemon, connected(port, "view") as view:
        for topic, payload in [("a", "old"), ("a", "new"), ("b", "gone"), ("b", ""), ("c", "kept")]:
            daemon.publish(topic, payload, retain=True)
        view.subscribe("+")
        assert {view.next(), view.next()} == {
            Got("a", b"new", retained=True),
            Got("c", b"kept", retained=True),
        }
        daemon.publish("end", "")
        assert view.next().topic == "end"


def test_publishes_the_will(port: int) -> None:
    """If a client vanishes, its will goes to present subscribers and, retained, to later ones."""
    daemon = Client(port, "daemon", will=("bridge/state", "offline"))
    with connected(port, "view") as view:
        view.subscribe("bridge/state")
        daemon.vanish()
        assert view.next() == Got("bridge/state", b"offline", retained=False)
    with connected(port, "late") as late:
        late.subscribe("bridge/state")
        assert late.next() == Got("bridge/state", b"offline", retained=True)


def test_a_proper_disconnect_publishes_no_will(port: int) -> None:
    """If a client disconnects properly, its will is not published."""
    with connected(port, "view") as view:
        view.subscribe("#")
        with connected(port, "daemon", will=("bridge/state", "offline")):
            pass
        view.publish("end", "")
        assert view.next().topic == "end"


def test_sends_nobody_the_messages_of_others_subscriptions(port: int) -> None:
    """A client without subscriptions gets nothing, even if others have subscribed."""
    with connected(port, "view") as view, connected(port, "daemon") as daemon:
        view.subscribe("#")
        daemon.publish("anna/state", "85", retain=True)
        with connected(port, "silent") as silent:
            silent.subscribe("other")
            daemon.publish("other", "end")
            assert silent.next().topic == "other"


def test_refuses_mqtt_5(port: int) -> None:
    """The broker refuses MQTT 5 as an unknown protocol, so that the client can try 3.1.1."""
    told: queue.Queue[str] = queue.Queue()
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        "five",
        protocol=MQTTProtocolVersion.MQTTv5,
        reconnect_on_failure=False,
    )
    client.on_connect = lambda _client, _data, _flags, reason, _properties: told.put(str(reason))
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert told.get(timeout=PATIENCE) == "Unsupported protocol version"
    client.loop_stop()


def test_ends_cleanly_during_traffic(caplog: pytest.LogCaptureFixture) -> None:
    """Closing the broker ends all connections and the thread within 3 s, and logs nothing."""
    caplog.set_level(logging.WARNING)
    broker = EmbeddedBroker()
    broker.start()
    clients = [Client(broker.port, f"client{number}", will=("will", "gone")) for number in range(5)]
    socket.create_connection(("127.0.0.1", broker.port)).close()
    for client in clients:
        client.subscribe("#")
        for number in range(20):
            client.paho.publish(f"topic/{number}", "x" * 500, qos=1, retain=True)
    closer = threading.Thread(target=broker.close)
    closer.start()
    closer.join(3)
    assert not closer.is_alive()
    for client in clients:
        client.expect("disconnected")
        client.paho.loop_stop()
    assert "broker" not in [thread.name for thread in threading.enumerate()]
    assert not caplog.records


def test_ends_without_a_log_line_if_a_connection_is_open(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that never sent CONNECT leaves no line in the log when the broker is closed."""
    with EmbeddedBroker() as broker, socket.create_connection(("127.0.0.1", broker.port)):
        with connected(broker.port, "later"):
            pass  # connections are accepted in order
        broker.close()
    assert not caplog.records


def test_starts_again_on_its_port_without_messages() -> None:
    """A closed broker starts again on its port, without its earlier messages."""
    broker = EmbeddedBroker()
    with broker, connected(broker.port, "daemon") as daemon:
        daemon.publish("anna/state", "85", retain=True)
        before = broker.port
    with broker, connected(broker.port, "view") as view:
        assert broker.port == before
        view.subscribe("#")
        view.publish("end", "")
        assert view.next().topic == "end"
    broker.close()


def test_a_port_in_use_is_an_error(port: int) -> None:
    """Starting a second broker on the same port fails."""
    with pytest.raises(OSError, match="address already in use"):
        EmbeddedBroker(port).start()


def test_cannot_be_imported_without_amqtt() -> None:
    """Without the extra, the import error names the missing package, which the command needs."""
    program = "import sys; sys.modules['amqtt.broker'] = None; import dexcom2mqtt.demo.embedded_broker"
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "amqtt" in ended.stderr.splitlines()[-1]
