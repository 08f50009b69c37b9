"""Limits and faults of brokers, caused by a relay in front of a real mosquitto."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.mqtt.connection import Received
from tests.mqtt.conftest import STATE
from tests.support.processes import Mosquitto, Subscriber, eventually, retained
from tests.support.relay import DROP, HANG_UP, PASS, Answer, Fate, Instead, Packet, Relay, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mqtt.conftest import Running

both = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


def retained_below_test(port: int) -> dict[str, str]:
    return {topic: payload for topic, payload in retained(port).items() if topic.startswith("test/")}


# --- refused topics and filters ----------------------------------------------------------------------------


def hang_up_at(topic: str) -> Callable[[Packet], Fate]:
    return lambda packet: HANG_UP if packet.from_client and packet.topic == topic else PASS


@both
def test_a_hang_up_at_one_topic_affects_only_that_topic(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """After five ends it is found and left out; everything else arrives, and later it, too, once accepted."""
    with Relay(mosquitto.port, hang_up_at("test/a")) as relay:
        running = start(relay.port, protocol=protocol, speed=60)
        running.mirror.put([Message(f"test/many/{number}", "x") for number in range(30)])
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online", 30)
        assert retained_below_test(mosquitto.port).keys() == {"test/b", STATE, *(f"test/many/{n}" for n in range(30))}
        assert caplog.text.count("hangs up whenever something is published to test/a") == 1
        assert relay.connections == 6
        relay.rule = lambda _: PASS
        eventually(lambda: retained_below_test(mosquitto.port).get("test/a") == "1", 30)
        assert relay.connections == 6
    assert caplog.text.count("hangs up whenever") == 1


def test_a_hang_up_at_one_subscription_affects_only_that_subscription(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """It is found like a topic, and the log says what does not work."""

    def rule(packet: Packet) -> Fate:
        return HANG_UP if "test/+/refresh" in packet.filters else PASS

    with Relay(mosquitto.port, rule) as relay:
        running = start(relay.port, speed=60, subscriptions=("test/+/refresh",))
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online", 30)
        eventually(lambda: running.found, why="the read-back did not end")
        assert "hangs up at the subscription to test/+/refresh: nothing is asked for" in caplog.text


@pytest.mark.parametrize("code", [0x80, 0x87])
def test_a_refused_topic_is_tried_again(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """Not in each round, but as long as the broker refuses it; once accepted, it arrives."""
    caplog.set_level("INFO")

    def rule(packet: Packet) -> Fate:
        return refused(packet, code) if packet.from_client and packet.topic == "test/a" else PASS

    with Relay(mosquitto.port, rule) as relay:
        start(relay.port, speed=60)
        eventually(lambda: len(relay.came("PUBLISH", "test/a")) == 3, 10)
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        time.sleep(0.25)  # 15 s
        assert len(relay.came("PUBLISH", "test/a")) == 3
        relay.rule = lambda _: PASS
        eventually(lambda: retained_below_test(mosquitto.port).get("test/a") == "1", 30)
        eventually(lambda: "now accepts messages on test/a" in caplog.text)
    assert caplog.text.count("refuses messages on test/a") == 1
    assert relay.connections == 1


def test_a_quota_is_kept_to(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that accepts ten messages per second gets all of them, and the log names the quota."""
    taken: deque[float] = deque(maxlen=10)

    def rule(packet: Packet) -> Fate:
        if packet.kind != "PUBLISH" or not packet.from_client or "/sync/" in packet.topic:
            return PASS
        if len(taken) == 10 and packet.at - taken[0] < 1:
            return refused(packet, 0x97)
        taken.append(packet.at)
        return PASS

    with Relay(mosquitto.port, rule) as relay, Subscriber(mosquitto.port) as subscriber:
        running = start(relay.port)
        running.mirror.put([Message(f"test/many/{number}", "x") for number in range(30)])
        subscriber.wait_for(STATE, "online", 30)
        eventually(lambda: len(retained_below_test(mosquitto.port)) == 33, 30)
        assert relay.connections == 1
        assert len([packet for packet in relay.came("PUBLISH") if packet.from_client]) < 33 + 20 + 10
    assert "quota" not in caplog.text.replace("Quota exceeded", "")
    assert caplog.text.count("accepts no more messages for the moment (Quota exceeded)") == 1
    assert "access control" not in caplog.text


@both
def test_packets_are_no_larger_than_the_broker_allows(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    caplog: pytest.LogCaptureFixture,
    protocol: str,
) -> None:
    """MQTT 5 announces the limit; larger messages are named and not sent, and everything else continues."""
    broker = start_mosquitto("allow_anonymous true", "max_packet_size 2000")
    running = start(broker.port, protocol=protocol, speed=60)
    running.mirror.put([Message("test/large", "x" * 5000), Message("test/small", "x" * 1900)])
    eventually(lambda: retained(broker.port).get(STATE) == "online", 30)
    eventually(lambda: retained_below_test(broker.port).keys() == {"test/a", "test/b", "test/small", STATE}, 30)
    assert "test/large" in caplog.text
    assert ("too large" if protocol == "5" else "hangs up whenever") in caplog.text
    assert "access control" not in caplog.text or protocol == "3.1.1"
    if protocol == "5":
        assert len(running.protocols) == 1


# --- answers to CONNECT ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\x20\x02\x00\x00", id="in the form of 3.1.1"),
        pytest.param(b"\x20\x09\x00\x00\xff\xff\xff\xff\xff\xff\xff", id="garbage"),
    ],
)
def test_mqtt_5_that_is_answered_wrongly_is_given_up_at_once(
    mosquitto: Mosquitto, start: Callable[..., Running], answer: bytes
) -> None:
    """The link tries 3.1.1, and 5 again on the next connection, since the broker has not refused it."""
    versions: list[int] = []

    def rule(packet: Packet) -> Fate:
        if packet.kind != "CONNECT":
            return PASS
        versions.append(packet.body[6])
        return Answer(answer) if packet.body[6] == 5 else PASS

    with Relay(mosquitto.port, rule) as relay:
        running = start(relay.port, speed=60)
        eventually(lambda: running.protocols == ["3.1.1"])
        assert versions == [5, 4]
        relay.hang_up()
        eventually(lambda: running.protocols == ["3.1.1", "3.1.1"], 30)
        assert versions[-2:] == [5, 4]


def test_mqtt_5_without_an_answer_is_given_up_after_two_attempts(
    mosquitto: Mosquitto, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that only answers 3.1.1 gets that; on later connections, 5 is tried once first."""
    monkeypatch.setattr("dexcom2mqtt.mqtt.connection._CONNACK_SECONDS", 0.5)
    versions: list[int] = []

    def rule(packet: Packet) -> Fate:
        if packet.kind != "CONNECT":
            return PASS
        versions.append(packet.body[6])
        return DROP if packet.body[6] == 5 else PASS

    with Relay(mosquitto.port, rule) as relay:
        running = start(relay.port, speed=60)
        eventually(lambda: running.protocols == ["3.1.1"])
        assert versions == [5, 5, 4]
        relay.hang_up()
        eventually(lambda: running.protocols == ["3.1.1", "3.1.1"], 30)
        assert versions[-2:] == [5, 4]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        pytest.param({"qos": 0}, {"test/a", "test/b", STATE}, id="no QoS 1"),
        pytest.param({"retain": False}, set(), id="nothing retained"),
    ],
)
def test_the_limits_in_connack_are_respected(
    mosquitto: Mosquitto,
    start: Callable[..., Running],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, object],
    left: set[str],
) -> None:
    """If QoS 1 or a retained will is refused, the will is lowered; messages use no QoS 1 or retain flag then."""
    property_, code = (b"\x24\x00", 0x9B) if "qos" in settings else (b"\x25\x00", 0x9A)

    def rule(packet: Packet) -> Fate:
        if packet.kind == "CONNECT":
            flags = packet.body[7]
            wants = flags & 0x18 if "qos" in settings else flags & 0x20
            return Answer(b"\x20\x03\x00" + bytes([code]) + b"\x00") if wants else PASS
        if packet.kind == "CONNACK":
            length = packet.body[2]
            body = packet.body[:2] + bytes([length + 2]) + property_ + packet.body[3:]
            return Instead(b"\x20" + bytes([len(body)]) + body)
        if packet.kind == "PUBLISH" and packet.from_client and "/sync/" not in packet.topic:
            assert not packet.data[0] & (0x06 if "qos" in settings else 0x01)
        return PASS

    with Relay(mosquitto.port, rule) as relay, Subscriber(mosquitto.port) as subscriber:
        running = start(relay.port)
        subscriber.wait_for(STATE, "online")
        assert {heard.topic for heard in subscriber.heard} >= {"test/a", "test/b"}
        assert retained_below_test(mosquitto.port).keys() == left
        assert ("keeps no retained messages" in caplog.text) == (not left)
        assert running.stop() < 1
        subscriber.wait_for(STATE, "offline")


# --- proxies in between, and other habits ------------------------------------------------------------------


@both
def test_a_proxy_that_cuts_idle_connections_gets_more_pings(
    mosquitto: Mosquitto,
    start: Callable[..., Running],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
) -> None:
    """After three cuts at the same idle time, the keep-alive becomes shorter than that, and the connection lasts."""
    monkeypatch.setattr("dexcom2mqtt.mqtt.attempts._IDLE_LEAST", 1.0)
    monkeypatch.setattr("dexcom2mqtt.mqtt.attempts._IDLE_SAME", 0.3)
    monkeypatch.setattr("dexcom2mqtt.mqtt.attempts._KEEPALIVE_LEAST", 1)
    with Relay(mosquitto.port) as relay:
        running = start(relay.port, protocol=protocol, keepalive=10, speed=60)

        def cut_what_is_idle() -> bool:
            if relay.packets and time.monotonic() - relay.packets[-1].at > 2:
                relay.hang_up()
            return "without traffic" in caplog.text

        eventually(cut_what_is_idle, 60)
        eventually(lambda: len(relay.came("CONNECT")) > len(running.protocols) - 1)
        known = relay.connections + 1
        until = time.monotonic() + 5
        while time.monotonic() < until:
            cut_what_is_idle()
            time.sleep(0.05)
        assert relay.connections <= known
        assert caplog.text.count("without traffic") == 1
        assert "sends a ping every 1 s" in caplog.text


def test_a_broker_that_marks_everything_as_retained(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """The probe shows it: then live messages count as live despite the mark."""

    def rule(packet: Packet) -> Fate:
        if packet.kind == "PUBLISH" and not packet.from_client:
            return Instead(bytes([packet.data[0] | 0x01]) + packet.data[1:])
        return PASS

    with Relay(mosquitto.port, rule) as relay, Subscriber(mosquitto.port) as subscriber:
        running = start(relay.port, subscriptions=("test/+/refresh",))
        eventually(lambda: running.found)
        subscriber.client.publish("test/anna/refresh", "now")
        eventually(lambda: running.received == [Received("test/anna/refresh", b"now", retained=False)])


def test_at_most_eight_filters_per_packet(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """AWS IoT Core accepts no more."""
    with Relay(mosquitto.port) as relay:
        running = start(relay.port, subscriptions=tuple(f"test/{number}/refresh" for number in range(20)))
        eventually(lambda: running.found)
        assert [len(packet.filters) for packet in relay.came("SUBSCRIBE")] == [8, 8, 4, 1, 1]


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_the_relay_reads_filters(mosquitto: Mosquitto, protocol: MQTTProtocolVersion) -> None:
    """The tests above depend on it, with both protocols."""
    with Relay(mosquitto.port) as relay, Subscriber(relay.port, protocol):
        assert [packet.filters for packet in relay.came("SUBSCRIBE")] == [["#"]]
