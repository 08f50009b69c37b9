"""The link to a real mosquitto that is killed, frozen, restarted, or refuses the credentials."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from typing import TYPE_CHECKING

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from dexcom2mqtt.messages.message import Message
from tests.mqtt.conftest import STATE
from tests.support.brokers import gatekeeper
from tests.support.processes import Mosquitto, Subscriber, eventually, free_port, retained
from tests.support.relay import DROP, PASS, Relay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.mqtt.conftest import Running


def test_the_mirror_is_retained_and_its_last_topic_comes_last(
    mosquitto: Mosquitto, start: Callable[..., Running]
) -> None:
    """After a connect, everything in the mirror is on the broker, with bridge/state sent last."""
    with Subscriber(mosquitto.port) as subscriber:
        start(mosquitto.port)
        subscriber.wait_for(STATE, "online")
        topics = [heard.topic for heard in subscriber.heard if "/sync/" not in heard.topic]
        assert topics[-3:] == ["test/a", "test/b", STATE]
    assert retained(mosquitto.port) == {"test/a": "1", "test/b": "2", STATE: "online"}


def test_messages_expire_at_the_broker_with_mqtt_5(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """With MQTT 5, messages carry their remaining expiry in real seconds, rounded up and at least one."""
    running = start(mosquitto.port, speed=10)
    running.mirror.put([Message("test/long", "x", running.clock.now() + 3000, Message("test/long", "gone"))])
    running.mirror.put([Message("test/short", "x", running.clock.now() + 5, Message("test/short", "gone"))])
    with Subscriber(mosquitto.port) as subscriber:
        assert subscriber.wait_for("test/long").expiry in range(290, 301)
        assert subscriber.wait_for("test/a").expiry is None
        subscriber.wait_for("test/short", "gone")
    assert "test/short" in retained(mosquitto.port)


def test_an_expired_message_is_replaced_by_its_successor(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """The successor is sent when the message expires, with 3.1.1 as well."""
    running = start(mosquitto.port, protocol="3.1.1")
    with Subscriber(mosquitto.port) as subscriber:
        running.mirror.put([Message("test/x", "1", running.clock.now() + 0.5, Message("test/x", "null"))])
        first = subscriber.wait_for("test/x", "1")
        assert first.expiry is None
        assert 0.3 < subscriber.wait_for("test/x", "null").at - first.at < 1.5


def test_a_broker_that_is_down_at_first_is_waited_for(
    start_mosquitto: Callable[..., Mosquitto], start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """That nothing listens is logged once; when the broker starts, everything is published."""
    port = free_port()
    with caplog.at_level(logging.INFO):
        running = start(port, speed=5)
        eventually(lambda: len(caplog.records) >= 1)
        time.sleep(0.8)  # several more attempts
        start_mosquitto(port=port)
        eventually(lambda: running.protocols)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "nothing listens there" in caplog.text
    eventually(lambda: retained(port).get(STATE) == "online")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_lost_everything_gets_everything_again(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """After a kill and an empty start, the mirror is published again, with its current values."""
    running = start(mosquitto.port, protocol=protocol, speed=5)
    eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
    mosquitto.kill()
    running.mirror.put([Message("test/a", "changed while it was away")])
    mosquitto.start()
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        assert subscriber.payloads("test/a") == ["changed while it was away"]
        assert subscriber.heard[-1].topic == STATE


def test_a_broker_that_was_frozen_gets_every_missed_message(
    mosquitto: Mosquitto, start: Callable[..., Running]
) -> None:
    """A broker that is frozen for a while still gets the whole mirror."""
    running = start(mosquitto.port)
    eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
    mosquitto.freeze()
    for number in range(100):  # more than may be unacknowledged at once
        running.mirror.put([Message(f"test/many/{number}", "x"), Message("test/a", str(number))])
    time.sleep(0.3)
    mosquitto.thaw()
    eventually(lambda: retained(mosquitto.port).get("test/a") == "99")
    assert len([topic for topic in retained(mosquitto.port) if topic.startswith("test/many/")]) == 100


def test_a_frozen_broker_is_given_up_and_tried_again(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that is frozen for longer than the keep-alive loses the connection and gets a new one."""
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
    """The link keeps trying calmly, and logs the refusal once, without the password."""
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
    """A take-over is one error line, the next attempt comes after 60 s, and a second take-over is not logged again."""
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


def test_it_is_logged_when_the_other_client_stays_away(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """After a take-over and five quiet minutes, one line reports the connection."""
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
    """Protocol auto falls back if the broker refuses 5, or closes the connection twice without an answer."""
    with gatekeeper(mosquitto.port, answer) as (port, levels):
        running = start(port, speed=5)
        eventually(lambda: running.protocols == ["3.1.1"])
        assert levels == attempts
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        assert running.stop() < 2


def test_a_chosen_protocol_is_kept(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """Protocol 5 stays, however often the broker refuses it, and the attempts do not become more frequent."""
    with gatekeeper(mosquitto.port, b"\x20\x02\x00\x01") as (port, levels):
        running = start(port, protocol="5")
        eventually(lambda: len(levels) >= 2)
        time.sleep(0.5)
        assert set(levels) == {5}
        assert len(levels) <= 3
        assert not running.protocols
    assert "does not support MQTT 5" in caplog.text


def test_a_server_without_mqtt_does_not_end_it(start: Callable[..., Running]) -> None:
    """A web server's answer, or any garbage, is an ordinary failed attempt."""
    for garbage in (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\x02\x00\x55",
        b"\x20\xff\xff\xff\xff\xff",
        b"\x00" * 64,
    ):
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
            running = start(server.getsockname()[1], speed=50)
            for _ in range(2):  # it tries again
                client, _ = server.accept()
                with client:
                    client.recv(4096)
                    client.sendall(garbage)
            assert running.thread.is_alive()


def test_a_port_that_accepts_connections_but_stays_silent_is_given_up(
    start: Callable[..., Running], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer to CONNECT the attempt ends, and the log says so."""
    monkeypatch.setattr("dexcom2mqtt.mqtt.connection._CONNACK_SECONDS", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        start(server.getsockname()[1])
        eventually(lambda: "does not answer" in caplog.text, 5)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_stop_publishes_offline_and_disconnects(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """The broker does not publish the will."""
    running = start(mosquitto.port, protocol=protocol)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        assert running.stop() < 1
        subscriber.wait_for(STATE, "offline")
        eventually(lambda: "DISCONNECT" in mosquitto.log())
        assert subscriber.payloads(STATE).count("offline") == 1
    eventually(lambda: "Received DISCONNECT from test" in mosquitto.log(), 3)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_stop_with_a_frozen_broker_leaves_offline_to_the_will(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """If the broker does not acknowledge offline in time, there is no DISCONNECT, and the stop takes at most 2 s."""
    running = start(mosquitto.port, protocol=protocol)
    eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
    mosquitto.freeze()
    assert running.stop() < 2
    mosquitto.thaw()
    eventually(lambda: retained(mosquitto.port).get(STATE) == "offline")
    assert "Received DISCONNECT from test" not in mosquitto.log()


def test_without_a_disconnect_the_will_says_offline(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """If the connection breaks, the broker publishes offline."""
    running = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        # Closing a socket with unread data resets it, and then the broker may not see the DISCONNECT.
        eventually(lambda: mosquitto.log().count("Sending UNSUBACK to test\n") == 1)
        time.sleep(0.2)
        running.clock.stop()
        running.link.join()  # without a last put, nothing is unacknowledged, so it sends DISCONNECT
        assert subscriber.payloads(STATE) == ["online"]
    crashed = start(mosquitto.port, speed=0.001)  # it will not connect again within this test
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: crashed.protocols)
        for client in (other := paho.Client(CallbackAPIVersion.VERSION2, client_id="test"),):
            client.connect("127.0.0.1", mosquitto.port)
            client.loop_start()
        subscriber.wait_for(STATE, "offline")
        other.disconnect()
        other.loop_stop()


HASTE = 6.0
"""How many times faster than in reality the patience with a broker runs out in these tests."""
PATIENCE = 30 / HASTE


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the patience with a broker run out quickly."""
    monkeypatch.setattr("dexcom2mqtt.mqtt.patience.SECONDS", PATIENCE)
    monkeypatch.setattr("dexcom2mqtt.mqtt.patience._QUESTION_EVERY", PATIENCE / 2)
    monkeypatch.setattr("dexcom2mqtt.mqtt.connection._ROUND", 1 / HASTE)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_stops_acknowledging_gets_a_new_connection(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """It only answers pings: that is one line, the will says offline, and the next connection works."""
    caplog.set_level(logging.INFO)
    with Relay(mosquitto.port) as relay, Subscriber(mosquitto.port) as subscriber:
        running = start(relay.port, protocol=protocol)
        eventually(lambda: len(relay.came("PUBACK")) == 3)
        relay.rule = lambda packet: DROP if packet.kind == "PUBACK" and relay.connections < 3 else PASS
        for number in range(30):  # more than may be unacknowledged at once
            running.mirror.put([Message(f"test/many/{number}", "x")])
        jammed = time.monotonic()
        assert PATIENCE < subscriber.wait_for(STATE, "offline", 2 * PATIENCE).at - jammed < PATIENCE + 2
        eventually(lambda: relay.connections == 3, 2 * PATIENCE + 5, why="it did not happen again")
        assert logged(caplog) == ["INFO", "WARNING"]
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        assert len([topic for topic in retained(mosquitto.port) if topic.startswith("test/many/")]) == 30
        eventually(lambda: len(caplog.records) > 2, 2 * PATIENCE, why="the recovery is not logged")
        assert logged(caplog) == ["INFO", "WARNING", "INFO"]
        assert "answers, but has acknowledged nothing for" in caplog.text
        assert "Received DISCONNECT from test" not in mosquitto.log()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_is_slow_to_acknowledge_keeps_its_connection(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str
) -> None:
    """The link waits for acknowledgements that take 20 s each, and sends the waiting messages after them."""
    with Relay(mosquitto.port, lambda packet: 20 / HASTE if packet.kind == "PUBACK" else PASS) as relay:
        running = start(relay.port, protocol=protocol)
        running.mirror.put([Message(f"test/many/{number}", "x") for number in range(45)])  # more than twice the window
        eventually(lambda: len(relay.came("PUBACK")) == 48, 3 * PATIENCE)
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        assert relay.connections == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("protocol", "keepalive"), [("5", 60), ("3.1.1", 60), ("5", 30)])
def test_a_broker_that_is_frozen_for_a_while_keeps_its_connection(
    mosquitto: Mosquitto, start: Callable[..., Running], protocol: str, keepalive: int
) -> None:
    """A broker that is frozen for 40 s sends nothing, and gets as long as the keep-alive allows."""
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


def test_a_forbidden_topic_is_named_once(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If an access control list denies a topic, MQTT 5 reports it, and the log names the topic once."""
    (tmp_path / "acl").write_text("topic readwrite test/bridge/#\ntopic readwrite test/b\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    running = start(broker.port)
    eventually(lambda: "refuses messages on test/a" in caplog.text)
    running.mirror.put([Message("test/a", "again")])
    eventually(lambda: broker.log().count("Denied PUBLISH from test") >= 2)
    time.sleep(0.1)
    assert caplog.text.count("refuses messages on test/a") == 1
