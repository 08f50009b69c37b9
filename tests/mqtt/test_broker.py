"""The connection to the broker, against a real mosquitto that is killed, frozen, restarted and locked."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.config import Mqtt
from dexcom2mqtt.messages import Message
from dexcom2mqtt.mirror import Mirror
from dexcom2mqtt.mqtt.connection import Received
from dexcom2mqtt.mqtt.dialling import TlsFileError
from dexcom2mqtt.mqtt.link import BrokerLink, ReadBack
from dexcom2mqtt.mqtt.visit import Visit
from dexcom2mqtt.stream import Stream
from dexcom2mqtt.topics import Topics
from tests.support.processes import Mosquitto, Subscriber, eventually, free_port, listening, retained
from tests.support.relay import DROP, PASS, Packet, Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

STATE = "test/bridge/state"
ONLINE, OFFLINE = Message(STATE, "online"), Message(STATE, "offline")


class Running:
    """A BrokerLink in a thread, as the daemon runs it."""

    def __init__(self, port: int, *, speed: float = 1.0, subscriptions: tuple[str, ...] = (), **settings: Any) -> None:
        self.clock = Clock(speed)
        self.mirror = Mirror(last=STATE, changed=self.wake)
        self.stream = Stream(Topics("test"), changed=self.wake)
        self.found: list[Mapping[str, bytes]] = []
        self.protocols: list[str] = []
        self.received: list[Received] = []
        self.link = BrokerLink(
            Mqtt(host="127.0.0.1", port=port, base_topic="test", **settings),
            self.clock,
            self.mirror,
            self.stream,
            will=OFFLINE,
            read_back=ReadBack(("test/anna/history",), "test/bridge/sync/test", self.found.append),
            subscriptions=subscriptions,
            connected=self.protocols.append,
            received=self.received.append,
        )
        self.mirror.put([ONLINE, Message("test/a", "1"), Message("test/b", "2")])
        self.thread = threading.Thread(target=self.link.run, daemon=True)
        self.thread.start()

    def wake(self) -> None:
        self.link.wake()

    def stop(self) -> float:
        """Stop as the daemon does; return how many seconds it took."""
        began = time.monotonic()
        self.mirror.close([OFFLINE])
        self.clock.stop()
        self.link.join()
        return time.monotonic() - began


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a BrokerLink; it ends with the test."""
    started: list[Running] = []

    def start(*arguments: Any, **settings: Any) -> Running:
        started.append(Running(*arguments, **settings))
        return started[-1]

    yield start
    for running in started:
        running.clock.stop()
        running.link.wake()
        running.thread.join(12)
        assert not running.thread.is_alive()


@contextlib.contextmanager
def gatekeeper(port: int, answer: bytes) -> Iterator[tuple[int, list[int]]]:
    """Stand before a broker: answer a CONNECT of MQTT 5 with those bytes and hang up, and pass on all else.

    Yields the port to connect to, and the protocol levels that came.
    """
    levels: list[int] = []

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with client:
            connect = client.recv(4096)
            if len(connect) < 9:
                return
            levels.append(connect[8])  # behind a length of one byte and the name MQTT
            if connect[8] == 5:
                client.sendall(answer)
                return
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                upstream.sendall(connect)
                back = threading.Thread(target=pass_on, args=(upstream, client), daemon=True)
                back.start()
                pass_on(client, upstream)
                back.join()

    with listening(serve) as own_port:
        yield own_port, levels


def test_the_picture_is_retained_and_its_last_topic_comes_last(
    mosquitto: Mosquitto, start: Callable[..., Running]
) -> None:
    """After a connect everything in the mirror is on the broker, bridge/state after all else."""
    with Subscriber(mosquitto.port) as subscriber:
        start(mosquitto.port)
        subscriber.wait_for(STATE, "online")
        topics = [heard.topic for heard in subscriber.heard if "/sync/" not in heard.topic]
        assert topics[-3:] == ["test/a", "test/b", STATE]
    assert retained(mosquitto.port) == {"test/a": "1", "test/b": "2", STATE: "online"}


def test_what_expires_tells_the_broker_so_on_mqtt_5(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """On MQTT 5 the freshness that is left goes along, in real seconds, rounded up and at least one."""
    running = start(mosquitto.port, speed=10)
    running.mirror.put([Message("test/long", "x", running.clock.now() + 3000, Message("test/long", "gone"))])
    running.mirror.put([Message("test/short", "x", running.clock.now() + 5, Message("test/short", "gone"))])
    with Subscriber(mosquitto.port) as subscriber:
        assert subscriber.wait_for("test/long").expiry in range(290, 301)
        assert subscriber.wait_for("test/a").expiry is None
        subscriber.wait_for("test/short", "gone")
    assert "test/short" in retained(mosquitto.port)


def test_what_expires_turns_into_its_successor_without_a_timer(
    mosquitto: Mosquitto, start: Callable[..., Running]
) -> None:
    """The successor is sent when the message expires, on 3.1.1 as well."""
    running = start(mosquitto.port, protocol="3.1.1")
    with Subscriber(mosquitto.port) as subscriber:
        running.mirror.put([Message("test/x", "1", running.clock.now() + 0.5, Message("test/x", "null"))])
        first = subscriber.wait_for("test/x", "1")
        assert first.expiry is None
        assert 0.3 < subscriber.wait_for("test/x", "null").at - first.at < 1.5


def test_a_broker_that_is_down_at_first_is_waited_for(
    start_mosquitto: Callable[..., Mosquitto], start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing listens, which is said once; when the broker comes, everything is there."""
    port = free_port()
    with caplog.at_level(logging.INFO):
        running = start(port, speed=5)
        eventually(lambda: len(caplog.records) >= 1)
        time.sleep(0.8)  # several more tries
        start_mosquitto(port=port)
        eventually(lambda: running.protocols)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "nothing listens there" in caplog.text
    eventually(lambda: retained(port).get(STATE) == "online")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_forgot_everything_gets_everything_again(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """Killed and started empty: the picture is back, as it is now and not as it was."""
    running = start(mosquitto.port, protocol=protocol, speed=5)
    eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
    mosquitto.kill()
    running.mirror.put([Message("test/a", "changed while it was away")])
    mosquitto.start()
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        assert subscriber.payloads("test/a") == ["changed while it was away"]
        assert subscriber.heard[-1].topic == STATE


def test_a_broker_that_was_frozen_gets_what_it_missed(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """A broker that stands still for a while loses nothing of the picture."""
    running = start(mosquitto.port)
    eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
    mosquitto.freeze()
    for number in range(100):  # more than may be on their way at once
        running.mirror.put([Message(f"test/many/{number}", "x"), Message("test/a", str(number))])
    time.sleep(0.3)
    mosquitto.thaw()
    eventually(lambda: retained(mosquitto.port).get("test/a") == "99")
    assert len([topic for topic in retained(mosquitto.port) if topic.startswith("test/many/")]) == 100


def test_a_frozen_broker_is_given_up_and_tried_again(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that stands still for longer than the keep-alive loses the connection and gets a new one."""
    running = start(mosquitto.port, keepalive=5, speed=2)
    eventually(lambda: running.protocols == ["5"])
    mosquitto.freeze()
    running.mirror.put([Message("test/a", "new")])
    eventually(lambda: mosquitto.log().count("New client connected") == 1)
    # Twice the keep-alive: one until the ping, one until its answer is overdue.
    eventually(lambda: "was lost" in caplog.text, 20)
    mosquitto.thaw()
    eventually(lambda: running.protocols == ["5", "5"], 20)
    eventually(lambda: retained(mosquitto.port).get("test/a") == "new")


def test_refused_credentials_do_not_end_it(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broker that refuses the credentials is asked again calmly, and said to do so once, without the password."""
    (tmp_path / "passwords").write_text("", encoding="utf-8")
    locked = start_mosquitto("allow_anonymous false", f"password_file {tmp_path}/passwords")
    with caplog.at_level(logging.DEBUG):
        running = start(locked.port, username="the-user", password="the-secret", speed=10)
        eventually(lambda: locked.log().count("not authorised") >= 2, why=locked.log())
        locked.kill()
        start_mosquitto(port=locked.port)
        eventually(lambda: running.protocols)
    refusals = [record for record in caplog.records if "refuses this daemon" in record.getMessage()]
    assert len(refusals) == 1
    assert "check mqtt.username and mqtt.password" in caplog.text
    assert "the-secret" not in caplog.text
    assert "the-user" not in caplog.text


def test_another_client_of_the_same_id_is_left_alone_for_a_minute(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """Taken over: one error line, the next try after 60 s, no war; and no second line when it happens again."""
    running = start(mosquitto.port, speed=20)
    # So much that the second take-over comes while all of it is being sent.
    running.mirror.put([Message(f"test/{number}", "x" * 100_000) for number in range(300)])
    eventually(lambda: len(retained(mosquitto.port)) > 300)
    other = paho.Client(CallbackAPIVersion.VERSION2, client_id="test", protocol=MQTTProtocolVersion.MQTTv5)
    for times in (1, 2):
        other.connect("127.0.0.1", mosquitto.port)
        taken = time.monotonic()
        eventually(lambda: other.loop(0.1) == paho.MQTT_ERR_SUCCESS and other.is_connected())
        eventually(lambda: other.loop(0.1) != paho.MQTT_ERR_SUCCESS, why="it never came back")
        assert 2.5 < time.monotonic() - taken < 5  # 60 s of its clock
        eventually(lambda times=times: len(running.protocols) == 1 + times)  # type: ignore[misc]
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelname for record in errors] == ["ERROR"]
    assert "another program has connected" in caplog.text


def test_it_is_said_when_the_other_client_stays_away(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """After a take-over and five minutes of quiet, one line says that all is well again."""
    caplog.set_level(logging.INFO)
    running = start(mosquitto.port, speed=200)
    eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
    other = paho.Client(CallbackAPIVersion.VERSION2, client_id="test")
    other.connect("127.0.0.1", mosquitto.port)
    eventually(lambda: other.loop(0.1) == paho.MQTT_ERR_SUCCESS and other.is_connected())
    eventually(lambda: other.loop(0.1) != paho.MQTT_ERR_SUCCESS)
    eventually(lambda: len(running.protocols) == 2)
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
    eventually(lambda: len(caplog.records) > 2, 5)
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR", "INFO"]
    assert caplog.records[2].getMessage() == caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("answer", "attempts"),
    [
        pytest.param(b"\x20\x02\x00\x01", [5, 4], id="refused as 3.1.1 brokers do"),
        pytest.param(b"\x20\x03\x00\x84\x00", [5, 4], id="refused as MQTT 5 brokers do"),
        pytest.param(b"", [5, 5, 4], id="hung up on"),
    ],
)
def test_a_broker_without_mqtt_5_gets_3_1_1(
    mosquitto: Mosquitto, start: Callable[..., Running], answer: bytes, attempts: list[int]
) -> None:
    """Protocol auto falls back where the broker refuses 5, or closes twice without an answer."""
    with gatekeeper(mosquitto.port, answer) as (port, levels):
        running = start(port, speed=5)
        eventually(lambda: running.protocols == ["3.1.1"])
        assert levels == attempts
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        assert running.stop() < 2


def test_a_chosen_protocol_is_kept(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """Protocol 5 is not left for another, however often the broker refuses it, and the tries stay calm."""
    with gatekeeper(mosquitto.port, b"\x20\x02\x00\x01") as (port, levels):
        running = start(port, protocol="5")
        eventually(lambda: len(levels) >= 2)
        time.sleep(0.5)
        assert set(levels) == {5}
        assert len(levels) <= 3
        assert not running.protocols
    assert "does not take MQTT 5" in caplog.text


def test_a_server_that_speaks_no_mqtt_does_not_end_it(start: Callable[..., Running]) -> None:
    """A web server's answer, or any garbage, is a failed attempt like another."""
    for garbage in (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\x02\x00\x55",
        b"\x20\xff\xff\xff\xff\xff",
        b"\x00" * 64,
    ):
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
            running = start(server.getsockname()[1], speed=50)
            for _ in range(2):  # it comes again
                client, _ = server.accept()
                with client:
                    client.recv(4096)
                    client.sendall(garbage)
            assert running.thread.is_alive()


def test_a_port_that_takes_connections_and_says_nothing_is_given_up(
    start: Callable[..., Running], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer to CONNECT the attempt ends, and the log says what it looks like."""
    monkeypatch.setattr("dexcom2mqtt.mqtt.connection._CONNACK_SECONDS", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        start(server.getsockname()[1])
        eventually(lambda: "does not answer" in caplog.text, 5)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_stop_says_offline_and_leaves_politely(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """The stop publishes offline and disconnects, so that the will is not needed."""
    running = start(mosquitto.port, protocol=protocol)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        assert running.stop() < 1
        subscriber.wait_for(STATE, "offline")
        eventually(lambda: "DISCONNECT" in mosquitto.log())
        assert subscriber.payloads(STATE).count("offline") == 1
    eventually(lambda: "Received DISCONNECT from test" in mosquitto.log(), 3)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_stop_with_a_frozen_broker_lets_the_will_speak(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """Where the broker does not acknowledge offline in time, there is no DISCONNECT, and it all ends in 2 s."""
    running = start(mosquitto.port, protocol=protocol)
    eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
    mosquitto.freeze()
    assert running.stop() < 2
    mosquitto.thaw()
    eventually(lambda: retained(mosquitto.port).get(STATE) == "offline")
    assert "Received DISCONNECT from test" not in mosquitto.log()


def test_without_a_goodbye_the_will_says_offline(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """When the connection breaks, the broker publishes offline by itself."""
    running = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        # A socket that is closed with something unread is reset, and then the broker may not see the DISCONNECT.
        eventually(lambda: mosquitto.log().count("Sending UNSUBACK to test\n") == 2)
        time.sleep(0.2)
        running.clock.stop()
        running.link.join()  # without a last put: there is nothing to acknowledge, so it leaves politely
        assert subscriber.payloads(STATE) == ["online"]
    crashed = start(mosquitto.port, speed=0.001)  # it will not be back within this test
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: crashed.protocols)
        for client in (other := paho.Client(CallbackAPIVersion.VERSION2, client_id="test"),):
            client.connect("127.0.0.1", mosquitto.port)
            client.loop_start()
        subscriber.wait_for(STATE, "offline")
        other.disconnect()
        other.loop_stop()


SUBACKS_LATE = 0.3


def is_late(packet: Packet) -> float:
    return SUBACKS_LATE if packet.kind == "SUBACK" else PASS


def test_the_read_back_probes_once_its_subscriptions_are_confirmed(
    mosquitto: Mosquitto, start: Callable[..., Running]
) -> None:
    """A broker may take a message before a subscription that was sent earlier: then the probe would never be back."""
    with Relay(mosquitto.port, is_late) as relay:
        running = start(relay.port, subscriptions=("test/refresh",))
        eventually(lambda: running.found)
        (probe,) = (packet for packet in relay.came("PUBLISH", "test/bridge/sync/test") if packet.from_client)
        assert probe.at >= max(packet.at for packet in relay.came("SUBACK")) + SUBACKS_LATE


def test_a_visit_probes_once_its_subscriptions_are_confirmed(mosquitto: Mosquitto) -> None:
    """What check and purge read waits for the same."""
    with Subscriber(mosquitto.port) as other, Relay(mosquitto.port, is_late) as relay:
        other.client.publish("test/a", "1", qos=1, retain=True)
        other.wait_for("test/a", "1")
        mqtt = Mqtt(host="127.0.0.1", port=relay.port, base_topic="test")
        with Visit(mqtt, Clock(), "purge") as visit:
            assert visit.retained(["test/a"], "test/probe") == {"test/a": b"1"}
        (probe,) = (packet for packet in relay.came("PUBLISH", "test/probe") if packet.from_client)
        assert len(relay.came("SUBACK")) == 2
        assert probe.at >= max(packet.at for packet in relay.came("SUBACK")) + SUBACKS_LATE


HASTE = 6.0
"""How many times as fast as in reality the patience with a broker runs out in these tests."""
PATIENCE = 30 / HASTE


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the patience with a broker run out fast."""
    monkeypatch.setattr("dexcom2mqtt.mqtt.patience.SECONDS", PATIENCE)
    monkeypatch.setattr("dexcom2mqtt.mqtt.patience._QUESTION_EVERY", PATIENCE / 2)
    monkeypatch.setattr("dexcom2mqtt.mqtt.connection._POLL_SECONDS", 1 / HASTE)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_acknowledges_nothing_any_more_is_left_to_the_will(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """It answers pings alone: one line, however often, the will says offline, and the next connection works."""
    caplog.set_level(logging.INFO)
    with Relay(mosquitto.port) as relay, Subscriber(mosquitto.port) as subscriber:
        running = start(relay.port, protocol=protocol)
        eventually(lambda: len(relay.came("PUBACK")) == 3)
        relay.rule = lambda packet: DROP if packet.kind == "PUBACK" and relay.connections < 3 else PASS
        for number in range(30):  # more than may be on their way at once
            running.mirror.put([Message(f"test/many/{number}", "x")])
        jammed = time.monotonic()
        assert PATIENCE < subscriber.wait_for(STATE, "offline", 2 * PATIENCE).at - jammed < PATIENCE + 2
        eventually(lambda: relay.connections == 3, 2 * PATIENCE + 5, why="it did not happen again")
        assert logged(caplog) == ["INFO", "WARNING"]
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        assert len([topic for topic in retained(mosquitto.port) if topic.startswith("test/many/")]) == 30
        eventually(lambda: len(caplog.records) > 2, 2 * PATIENCE, why="it is not said that all is well again")
        assert logged(caplog) == ["INFO", "WARNING", "INFO"]
        assert "answers, but has acknowledged nothing for" in caplog.text
        assert "Received DISCONNECT from test" not in mosquitto.log()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_is_slow_to_acknowledge_keeps_its_connection(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """Acknowledgements that come after 20 s each are waited for, and what waits behind them goes out after them."""
    with Relay(mosquitto.port, lambda packet: 20 / HASTE if packet.kind == "PUBACK" else PASS) as relay:
        running = start(relay.port, protocol=protocol)
        running.mirror.put(
            [Message(f"test/many/{number}", "x") for number in range(45)]
        )  # more than twice what may be out
        eventually(lambda: len(relay.came("PUBACK")) == 48, 3 * PATIENCE)
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        assert relay.connections == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("protocol", "keepalive"), [("5", 60), ("3.1.1", 60), ("5", 30)])
def test_a_broker_that_is_frozen_for_a_while_keeps_its_connection(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str, keepalive: int
) -> None:
    """A broker that stands still for 40 s says nothing at all, and is given as long as the keep-alive gives it."""
    with Relay(mosquitto.port) as relay:
        running = start(relay.port, protocol=protocol, keepalive=int(keepalive / HASTE))
        eventually(lambda: len(relay.came("PUBACK")) == 3)
        mosquitto.freeze()
        running.mirror.put([Message("test/a", "new")])
        time.sleep(40 / HASTE)
        assert relay.came("PINGREQ")
        mosquitto.thaw()
        eventually(lambda: len(relay.came("PUBACK")) == 4)
        eventually(lambda: len(relay.came("PINGRESP")) == len(relay.came("PINGREQ")))
        time.sleep(5 / HASTE)
        assert relay.connections == 1
        assert retained(mosquitto.port).get("test/a") == "new"


def test_a_topic_that_may_not_be_written_is_named_once(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where an access control list denies a topic, MQTT 5 says so; the log names the topic, once."""
    (tmp_path / "acl").write_text("topic readwrite test/bridge/#\ntopic readwrite test/b\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    running = start(broker.port)
    eventually(lambda: "does not take messages on test/a" in caplog.text)
    running.mirror.put([Message("test/a", "again")])
    eventually(lambda: broker.log().count("Denied PUBLISH from test") >= 2)
    time.sleep(0.1)
    assert caplog.text.count("does not take messages on test/a") == 1


def test_messages_of_subscriptions_are_handed_on(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """What arrives on a subscribed topic is handed on, with whether it was retained, after every connect."""
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.client.publish("test/anna/refresh", "old", qos=1, retain=True)
        subscriber.wait_for("test/anna/refresh")
        running = start(mosquitto.port, subscriptions=("test/anna/refresh",), speed=5)
        eventually(lambda: Received("test/anna/refresh", b"old", retained=True) in running.received)
        subscriber.client.publish("test/anna/refresh", "now")
        eventually(lambda: Received("test/anna/refresh", b"now", retained=False) in running.received)
        subscriber.client.publish("test/other", "no")
    mosquitto.kill()
    mosquitto.start()
    eventually(lambda: len(running.protocols) == 2)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE)
        subscriber.client.publish("test/anna/refresh", "again")
        eventually(lambda: Received("test/anna/refresh", b"again", retained=False) in running.received)
    assert len(running.received) == 3


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    """Return a certificate authority and the file with its certificate."""
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


def secure(folder: Path, authority: trustme.CA, ca_file: Path, *names: str, client: bool = False) -> list[str]:
    """Return the lines that let mosquitto serve TLS under those names."""
    server = authority.issue_cert(*(names or ("127.0.0.1",)))
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    lines = [f"cafile {ca_file}", f"certfile {folder}/server.pem", f"keyfile {folder}/server.key"]
    return [*lines, "require_certificate true", "use_identity_as_username true"] if client else lines


def login(folder: Path, user: str, password: str) -> list[str]:
    """Return the lines that let nobody in but that user."""
    import subprocess  # noqa: PLC0415

    file = folder / "passwords"
    file.touch()
    subprocess.run(["/usr/bin/mosquitto_passwd", "-b", str(file), user, password], check=True)
    return ["allow_anonymous false", f"password_file {file}"]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_tls_with_an_authority_and_a_password(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    protocol: str,
) -> None:
    """TLS with the broker's own authority, user name and password."""
    ca, ca_file = authority
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file), *login(tmp_path, "anna", "pässword"))
    running = start(broker.port, tls={"ca_file": ca_file}, username="anna", password="pässword", protocol=protocol)
    eventually(lambda: running.protocols == [protocol])
    running.mirror.put([Message("test/large", "x" * 200_000)])  # many records of TLS
    eventually(lambda: "test/large" in broker.log())
    assert running.stop() < 1
    eventually(lambda: "Received DISCONNECT from test" in broker.log(), 3)


def test_tls_with_a_client_certificate(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broker that wants a certificate gets it; without one, the log says that the encrypted connection fails."""
    ca, ca_file = authority
    mine = ca.issue_cert("anna@example.org", common_name="anna")
    mine.private_key_pem.write_to_path(str(tmp_path / "my.key"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "my.pem"))
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    tls = {"ca_file": ca_file, "cert_file": tmp_path / "my.pem", "key_file": tmp_path / "my.key"}
    running = start(broker.port, tls=tls)
    eventually(lambda: running.protocols)
    assert not caplog.records
    start(broker.port, tls={"ca_file": ca_file}, client_id="without")
    eventually(lambda: caplog.records)


@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")  # paho leaves a failed handshake to the collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("names", "trusted", "verify", "said"),
    [
        pytest.param((), False, True, "its certificate is not accepted", id="unknown authority"),
        pytest.param(("other.example",), True, True, "its certificate is not accepted", id="another name"),
        pytest.param(("other.example",), False, False, None, id="verify: false"),
    ],
)
def test_certificates_are_verified(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, ...],
    trusted: bool,
    verify: bool,
    said: str | None,
) -> None:
    """A certificate of an unknown authority, or of another name, is not accepted, unless verify is false."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file, *names))
    running = start(broker.port, tls={"ca_file": ca_file if trusted else None, "verify": verify})
    if said:
        eventually(lambda: said in caplog.text)
        assert not running.protocols
    else:
        eventually(lambda: running.protocols)


def test_a_tls_file_that_is_none_is_named(tmp_path: Path, authority: tuple[trustme.CA, Path]) -> None:
    """A file that holds no certificate, and a key that is encrypted or another's, are mistakes with their names."""
    _, ca_file = authority
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing", encoding="utf-8")
    with pytest.raises(TlsFileError, match=r"ca_file.*nothing\.pem"):
        Running(1, tls={"ca_file": nothing})
    with pytest.raises(TlsFileError, match=r"cert_file.*ca\.pem"):
        Running(1, tls={"ca_file": ca_file, "cert_file": ca_file, "key_file": nothing})
