"""Discovery in Home Assistant: what the daemon sends, when it sends it again, and what it clears; real processes."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support import share_faults
from tests.support.discovery_rules import problems
from tests.support.processes import Mosquitto, Process, Subscriber, daemon, eventually, retained, write_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SPEED = 60.0
BIRTH = "homeassistant/status"
KEYS = ("anna", "ben", "carla")


def discovery(key: str, base: str = "dexcom2mqtt", prefix: str = "homeassistant") -> str:
    return f"{prefix}/device/{base.replace('/', '_')}_{key}/config"


@pytest.fixture
def service() -> Iterator[SimulatedShare]:
    """Return the simulated Share service, with its clock at the speed of the daemon's."""
    accounts = [SimulatedAccount(f"{key}@example.com", "password", seed=n) for n, key in enumerate(KEYS)]
    with SimulatedShare(accounts, accelerated(SPEED)) as service:
        yield service


@pytest.fixture
def start(tmp_path: Path, service: SimulatedShare) -> Iterator[Callable[..., Process]]:
    """Start a daemon for some of the accounts; each ends with the test."""
    with ExitStack() as stack:

        def start(
            port: int, *keys: str, base: str = "dexcom2mqtt", speed: float = SPEED, **home_assistant: Any
        ) -> Process:
            config = {
                "accounts": {
                    key: {"username": f"{key}@example.com", "password": "password", "share_url": service.base_url}
                    for key in keys
                },
                "mqtt": {"host": "127.0.0.1", "port": port, "base_topic": base},
                "home_assistant": home_assistant,
            }
            file = write_config(tmp_path / f"{base.replace('/', '_')}.yaml", config)
            return stack.enter_context(daemon(file, tmp_path / "daemon.log", speed=speed))

        yield start


@pytest.fixture
def subscriber(mosquitto: Mosquitto) -> Iterator[Subscriber]:
    with Subscriber(mosquitto.port) as subscriber:
        yield subscriber


def stop(process: Process) -> None:
    """Stop a daemon and check that it worked until then."""
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_discovery_comes_before_online(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process]
) -> None:
    """Each account's device is retained, follows the rules, and is sent before the bridge is online."""
    start(mosquitto.port, "anna", "ben", discovery_prefix="ha")
    subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
    order = [heard.topic for heard in subscriber.heard if heard.payload == "online" or "/device/" in heard.topic]
    assert order.index("dexcom2mqtt/bridge/state") > max(
        order.index(discovery(key, prefix="ha")) for key in ("anna", "ben")
    )
    kept = retained(mosquitto.port)
    for key in ("anna", "ben"):
        topic = discovery(key, prefix="ha")
        assert problems(topic, kept[topic]) == []


def test_discovery_comes_again_with_everything_else(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process]
) -> None:
    """A broker that lost everything gets the discovery again, before online."""
    start(mosquitto.port, "anna")
    subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
    mosquitto.kill()
    subscriber.forget()
    mosquitto.start()
    subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
    topics = [heard.topic for heard in subscriber.heard]
    assert topics.index(discovery("anna")) < topics.index("dexcom2mqtt/bridge/state")


def times(subscriber: Subscriber, topic: str) -> list[float]:
    return [heard.at for heard in subscriber.heard if heard.topic == topic]


def test_a_birth_brings_the_discovery_again(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process]
) -> None:
    """After Home Assistant's birth message, discovery follows within 3 s, and nothing else; many do not flood it."""
    start(mosquitto.port, "anna", "ben")
    subscriber.wait_for("dexcom2mqtt/anna/availability", "online")
    subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
    began = time.monotonic()
    while time.monotonic() < began + 10:
        subscriber.client.publish(BIRTH, "online", qos=1)
        time.sleep(0.05)
    time.sleep(3.5)
    for key in ("anna", "ben"):
        sent = times(subscriber, discovery(key))
        assert 4 <= len(sent) <= 6
        assert all(2.9 < later - earlier < 3.5 for earlier, later in pairwise(sent))
    again = [heard.payload for heard in subscriber.heard if heard.topic == "dexcom2mqtt/bridge/info"]
    assert len(set(again)) == len(again)


def test_not_all_answer_a_birth_at_once(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process]
) -> None:
    """Several daemons answer one birth message at different moments in the next 3 s."""
    bases = [f"base{number}" for number in range(6)]
    for base in bases:
        start(mosquitto.port, "anna", base=base)
    for base in bases:
        subscriber.wait_for(f"{base}/bridge/state", "online", 30)
    time.sleep(3)
    subscriber.forget()
    born = time.monotonic()
    subscriber.client.publish(BIRTH, "online", qos=1)
    answered = [subscriber.wait_for(discovery("anna", base)).at - born for base in bases]
    assert max(answered) < 3.5
    assert max(answered) - min(answered) > 0.2


def test_a_birth_is_answered_while_share_hangs(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process], service: SimulatedShare
) -> None:
    """To answer a birth message, the daemon needs neither Share nor to be online."""
    service.fault = share_faults.hang()
    start(mosquitto.port, "anna", speed=1.0)
    subscriber.wait_for("dexcom2mqtt/bridge/state", "offline")
    time.sleep(3)
    subscriber.client.publish(BIRTH, "online", qos=1)
    eventually(lambda: len(times(subscriber, discovery("anna"))) == 2, 3.5)
    assert subscriber.payloads("dexcom2mqtt/bridge/state") == ["offline"]


def test_a_reconnect_answers_a_birth(mosquitto: Mosquitto, start: Callable[..., Process]) -> None:
    """After a birth message and a reconnect, discovery is sent once: the reconnect sends everything anyway."""
    start(mosquitto.port, "anna")
    eventually(lambda: retained(mosquitto.port).get("dexcom2mqtt/bridge/state") == "online")
    time.sleep(3)
    with Subscriber(mosquitto.port, set_up=lambda client: client.reconnect_delay_set(1, 1)) as subscriber:
        subscriber.forget()
        subscriber.client.publish(BIRTH, "online", qos=1)
        subscriber.wait_for(BIRTH)
        mosquitto.kill()
        subscriber.forget()
        mosquitto.start()
        eventually(lambda: times(subscriber, discovery("anna")))
        time.sleep(3.5)
        assert len(times(subscriber, discovery("anna"))) == 1


def test_other_messages_bring_no_discovery(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process]
) -> None:
    """A retained birth message is old, a last will is not one, and other topics do not count."""
    subscriber.client.publish("elsewhere/status", "online", qos=1, retain=True)
    start(mosquitto.port, "anna", status_topic="elsewhere/status")
    subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
    for topic, payload in (("elsewhere/status", "offline"), (BIRTH, "online"), ("elsewhere/status", "")):
        subscriber.client.publish(topic, payload, qos=1)
    time.sleep(3.5)
    assert len(times(subscriber, discovery("anna"))) == 1
    subscriber.client.publish("elsewhere/status", "online", qos=1)
    eventually(lambda: len(times(subscriber, discovery("anna"))) == 2)


def test_a_removed_account_is_cleared(mosquitto: Mosquitto, start: Callable[..., Process]) -> None:
    """An account removed from the configuration is removed from the broker; nothing else changes."""
    running = start(mosquitto.port, "anna", "ben")
    eventually(lambda: '"ben"' in retained(mosquitto.port).get("dexcom2mqtt/bridge/info", ""))
    eventually(lambda: {"dexcom2mqtt/ben/history", "dexcom2mqtt/ben/value"} <= retained(mosquitto.port).keys())
    stop(running)
    foreign = {"dexcom2mqtt/ben/note": "mine", "dexcom2mqtt/carla/value": "7", discovery("carla"): "{}"}
    with Subscriber(mosquitto.port) as other:
        for topic, payload in foreign.items():
            other.client.publish(topic, payload, qos=1, retain=True)
            other.wait_for(topic, payload)
        other.forget()
        start(mosquitto.port, "anna")
        other.wait_for("dexcom2mqtt/bridge/state", "online")
        empty = [heard.topic for heard in other.heard if not heard.payload]
        online = [heard.topic for heard in other.heard if heard.payload == "online"]
    assert empty[0] == discovery("ben")
    assert len(empty) == len(set(empty)) == 21
    assert online[-1] == "dexcom2mqtt/bridge/state"
    kept = retained(mosquitto.port)
    assert {topic for topic in kept if "ben" in topic} == {"dexcom2mqtt/ben/note"}
    assert foreign.items() <= kept.items()
    assert json.loads(kept["dexcom2mqtt/bridge/info"])["accounts"] == ["anna"]


def test_former_accounts_are_found_at_a_broker_that_starts_later(
    start_mosquitto: Callable[..., Mosquitto], start: Callable[..., Process]
) -> None:
    """The list of accounts is read before it is written, and removed accounts are cleared before online."""
    broker = start_mosquitto("allow_anonymous true", persistent=True)
    info = {"version": "1", "schema_version": 1, "started_at": None, "protocol": "5", "accounts": ["anna", "ben"]}
    with Subscriber(broker.port) as subscriber:
        subscriber.client.publish("dexcom2mqtt/bridge/info", json.dumps(info), qos=1, retain=True)
        subscriber.client.publish("dexcom2mqtt/ben/value", "85", qos=1, retain=True)
        subscriber.wait_for("dexcom2mqtt/ben/value")
    broker.stop()
    start(broker.port, "anna")
    time.sleep(11)  # longer than the daemon waits for Share at the start
    broker.start()
    eventually(lambda: retained(broker.port).get("dexcom2mqtt/bridge/state") == "online")
    log = broker.log()
    cleared = log.index("'dexcom2mqtt/ben/value', ... (0 bytes)")
    assert cleared < log.index("'dexcom2mqtt/bridge/state', ... (6 bytes)")
    kept = retained(broker.port)
    assert json.loads(kept["dexcom2mqtt/bridge/info"])["accounts"] == ["anna"]
    assert "dexcom2mqtt/ben/value" not in kept


def test_discovery_that_is_switched_off_is_cleared(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process]
) -> None:
    """Without discovery the devices are removed, the values stay, and a birth message has no effect."""
    running = start(mosquitto.port, "anna", "ben", base="home/glucose")
    eventually(lambda: "home/glucose/bridge/info" in retained(mosquitto.port))
    assert {discovery("anna", "home/glucose"), discovery("ben", "home/glucose")} <= retained(mosquitto.port).keys()
    stop(running)
    running = start(mosquitto.port, "anna", "ben", base="home/glucose", discovery=False)
    subscriber.wait_for("home/glucose/bridge/state", "online")
    kept = retained(mosquitto.port)
    assert not [topic for topic in kept if topic.startswith("homeassistant/")]
    assert "home/glucose/anna/value" in kept
    subscriber.client.publish(BIRTH, "online", qos=1)
    time.sleep(3.5)
    assert subscriber.payloads(discovery("anna", "home/glucose"))[1:] == [""]
    stop(running)
    subscriber.forget()
    start(mosquitto.port, "anna", "ben", base="home/glucose", discovery=False)
    subscriber.wait_for("home/glucose/bridge/state", "online")
    assert not [heard for heard in subscriber.heard if "/device/" in heard.topic]  # cleared once, not again


@pytest.mark.parametrize(
    "info",
    [
        "garbage",
        '{"schema_version": 2, "accounts": ["ben"]}',
        '{"schema_version": 1, "accounts": ["#"]}',
        '{"schema_version": 1, "accounts": "ben"}',
        '{"schema_version": 1, "accounts": ["ben", "bridge"]}',
    ],
)
def test_foreign_info_clears_nothing(
    mosquitto: Mosquitto, subscriber: Subscriber, start: Callable[..., Process], info: str
) -> None:
    """If the list of accounts is not plainly the daemon's, nothing is cleared, and the log says so in one line."""
    subscriber.client.publish("dexcom2mqtt/bridge/info", info, qos=1, retain=True)
    subscriber.client.publish("dexcom2mqtt/ben/value", "mine", qos=1, retain=True)
    subscriber.wait_for("dexcom2mqtt/ben/value", "mine")
    running = start(mosquitto.port, "anna")
    subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
    assert retained(mosquitto.port)["dexcom2mqtt/ben/value"] == "mine"
    assert running.text().count("ignoring the retained bridge/info") == 1
