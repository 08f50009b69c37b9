"""No old value stays current, whatever the broker refuses: the link with the daemon's guards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.messages.message import Message
from tests.mqtt.conftest import OFFLINE, STATE
from tests.support.processes import Mosquitto, Subscriber, eventually, retained
from tests.support.relay import DROP, HANG_UP, PASS, Answer, Fate, Packet, Relay, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mqtt.conftest import Running

VALUE, AVAILABILITY = "test/anna/value", "test/anna/availability"
OLD = {VALUE: "300", AVAILABILITY: "online", STATE: "offline"}
"""Messages of an earlier daemon on a broker without expiry."""


def leave(mosquitto: Mosquitto) -> None:
    with Subscriber(mosquitto.port) as subscriber:
        for topic, payload in OLD.items():
            subscriber.client.publish(topic, payload, qos=1, retain=True)
            subscriber.wait_for(topic, payload)


def is_current(latest: dict[str, str]) -> bool:
    """Return whether a subscriber that follows the rule would see the old value as current."""
    return all(latest.get(topic) == payload for topic, payload in (OLD | {STATE: "online"}).items())


@pytest.mark.parametrize(
    ("protocol", "how"), [("5", "refuse"), ("5", "hang up"), ("3.1.1", "hang up"), ("3.1.1", "drop")]
)
def test_if_the_broker_refuses_the_value_and_its_availability_the_daemon_is_offline(
    mosquitto: Mosquitto,
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    how: str,
) -> None:
    """Nothing else marks an old value as not current: so it never says online, and tries again every minute."""
    monkeypatch.setattr("dexcom2mqtt.mqtt.patience.SECONDS", 0.5)
    monkeypatch.setattr("dexcom2mqtt.mqtt.connection._ROUND", 0.05)
    leave(mosquitto)

    def rule(packet: Packet) -> Fate:
        if not packet.from_client or packet.topic not in {VALUE, AVAILABILITY}:
            return PASS
        return refused(packet, 0x87) if how == "refuse" else HANG_UP if how == "hang up" else DROP

    with Relay(mosquitto.port, rule) as relay, Subscriber(mosquitto.port) as subscriber:
        running = start(relay.port, protocol=protocol, speed=60)
        running.mirror.put([Message(AVAILABILITY, "offline"), Message(VALUE, "unknown")])
        until = time.monotonic() + 6  # minutes of its clock
        while time.monotonic() < until:
            assert not is_current(subscriber.latest())
            time.sleep(0.01)
        assert relay.connections < 24  # two per minute, once it is known
        relay.rule = lambda _: PASS
        subscriber.wait_for(AVAILABILITY, "offline", 30)
        subscriber.wait_for(STATE, "online", 30)
        assert not is_current(subscriber.latest())


def test_online_is_sent_only_after_every_acknowledgement(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """It is not sent while earlier messages are unacknowledged."""
    leave(mosquitto)
    with Relay(mosquitto.port, lambda packet: DROP if packet.topic == AVAILABILITY else PASS) as relay:
        running = start(relay.port)
        running.mirror.put([Message(AVAILABILITY, "offline"), Message("test/other", "x")])
        eventually(lambda: retained(mosquitto.port).get("test/other"))
        time.sleep(1)
        assert retained(mosquitto.port)[STATE] == "offline"


@pytest.mark.parametrize("place", ["subscription", "publish"])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_hangs_up_at_the_probe_gets_no_probe(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture, protocol: str, place: str
) -> None:
    """It is found like any other topic, and the read-back ends without it."""
    probe = "test/bridge/sync/test"

    def rule(packet: Packet) -> Fate:
        there = (
            packet.filters == [probe] or (probe in packet.filters) if place == "subscription" else packet.topic == probe
        )
        return HANG_UP if packet.from_client and there else PASS

    with Relay(mosquitto.port, rule) as relay:
        running = start(relay.port, protocol=protocol, speed=60)
        eventually(lambda: running.found, 30)
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online", 30)
        assert {"test/a", "test/b"} <= retained(mosquitto.port).keys()
        assert relay.connections < 10
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert probe in errors[0]


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x95])
def test_a_disconnect_with_a_reason_is_pinned_to_its_topic(
    mosquitto: Mosquitto, start: Callable[..., Running], caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """Whatever the reason is, only that topic is affected."""

    def rule(packet: Packet) -> Fate:
        return (
            Answer(b"\xe0\x02" + bytes([code]) + b"\x00") if packet.from_client and packet.topic == "test/a" else PASS
        )

    with Relay(mosquitto.port, rule) as relay:
        start(relay.port, speed=60)
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online", 30)
        assert relay.connections <= 6
    assert "test/a" in "".join(record.getMessage() for record in caplog.records if record.levelname == "ERROR")


def test_a_rate_limit_that_ends_connections_is_respected(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """A broker that reports it with a DISCONNECT gets everything, more slowly."""
    came: list[float] = []

    def rule(packet: Packet) -> Fate:
        if packet.kind != "PUBLISH" or not packet.from_client:
            return PASS
        came.append(packet.at)
        return Answer(b"\xe0\x02\x96\x00") if len([at for at in came if at > packet.at - 1]) > 10 else PASS

    with Relay(mosquitto.port, rule) as relay:
        running = start(relay.port, speed=5)
        running.mirror.put([Message(f"test/many/{number}", "x") for number in range(30)])
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online", 60)
        assert len(retained(mosquitto.port).keys()) >= 33
        assert relay.connections < 8


@pytest.mark.parametrize("when", ["at the stop", "just before"])
def test_a_refused_offline_is_left_to_the_will(mosquitto: Mosquitto, start: Callable[..., Running], when: str) -> None:
    """If the refusal lasts, there is no DISCONNECT; if it is over, offline is published."""
    refusing = False

    def rule(packet: Packet) -> Fate:
        return refused(packet, 0x80) if refusing and packet.from_client and packet.topic == STATE else PASS

    with Relay(mosquitto.port, rule) as relay:
        running = start(relay.port)
        eventually(lambda: retained(mosquitto.port).get(STATE) == "online")
        refusing = True
        if when == "just before":
            running.mirror.put([Message(STATE, "online", running.clock.now() + 100)])
            eventually(lambda: len(relay.came("PUBLISH", STATE)) == 2)
            time.sleep(0.1)
            refusing = False
        assert running.stop() < 2
        eventually(lambda: retained(mosquitto.port).get(STATE) == OFFLINE.payload, 5)
        assert bool(relay.came("DISCONNECT")) == (when == "just before")
