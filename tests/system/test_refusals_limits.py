"""Brokers with lower limits than the daemon needs: fewer messages a second, smaller ones, fewer topics for now.

The daemon is a process, and mosquitto refuses, except for the quota, which it does not have.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from dexcom2mqtt.demo.share_service import SimulatedShare, accelerated
from tests.support import checking
from tests.support.checking import Bench, failed, remedies, steps
from tests.support.faults import FAULTS, HOUR, MINUTE, Page, Row, World
from tests.support.processes import retained
from tests.support.refusing import Quota
from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Mosquitto

ANNA: Final = "dexcom2mqtt/anna"
BRIDGE: Final = "dexcom2mqtt/bridge"
DISCOVERY: Final = "homeassistant/device/dexcom2mqtt_anna/config"
SMALL: Final = ("max_packet_size 20480", "message_size_limit 20480")
"""Settings of mosquitto; the history of a day is 24 kB."""

Build = Callable[..., World]
Record = Callable[[str, Row], None]


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Return a function that records a row for the page."""
    return lambda name, row: record_property(name, Page.line(FAULTS[name], row))


@pytest.fixture
def world(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Iterator[Build]:
    """Return a function that builds a world with a broker with these settings; it ends with the test."""
    worlds: list[World] = []

    def build(*settings: str, speed: float = 60.0, **options: Any) -> World:
        mosquitto = start_mosquitto("allow_anonymous true", *settings)
        worlds.append(World(tmp_path, mosquitto, speed, **options))
        return worlds[-1]

    yield build
    for each in worlds:
        each.close()


def log(here: World) -> str:
    """Return what the daemon has logged."""
    assert here.process
    return here.process.text()


def go(here: World, within: float = 10 * MINUTE) -> None:
    """Start the daemon and wait until all of Share's readings are published, and the newest is current."""
    since = here.now()
    here.start()
    here.wait(lambda: here.first_read(since=since) < here.now(), 10 * MINUTE, "Share is not asked")
    owed = here.owed(here.now(), since=here.first_read())
    here.wait(lambda: here.has_all(owed), within, f"{len(owed - set(here.received()))} readings are missing")


# Quota


@pytest.mark.faults
def test_a_quota_of_messages_a_second(world: Build, record: Record) -> None:
    """Everything arrives, including the 24 hours of a first start, and the log calls it a quota."""
    here = world(speed=20.0)
    quota = Quota(10, 1 / 20)
    with Relay(here.mosquitto.port, quota) as relay:
        here.mqtt |= {"port": relay.port, "protocol": "5"}
        go(here, within=HOUR)
        here.began = here.now()
        here.live(MINUTE)
        here.end()
        record("quota", here.row(FAULTS["quota"]))
        latest = here.subscriber.latest()
        assert quota.refused
        assert relay.connections == 1
    assert latest[f"{BRIDGE}/state"] == "online"
    assert latest[DISCOVERY]
    assert "accepts no more messages for the moment (Quota exceeded)" in log(here)
    assert "access control list" not in log(here)


# Size


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "protocol"), [(SMALL[0], "5"), (SMALL[0], "3.1.1"), (SMALL[1], "5"), (SMALL[1], "3.1.1")]
)
def test_a_broker_that_accepts_only_small_messages(world: Build, record: Record, setting: str, protocol: str) -> None:
    """The history of a day does not fit; the value is current anyway, and clean restarts repeat no reading.

    One case differs: with MQTT 3.1.1 mosquitto acknowledges a message larger than message_size_limit but drops it, as
    check reports. Then the readings that its retained history lacks are repeated.
    """
    here = world(setting, mqtt={"protocol": protocol}, JAM="0.5")
    in_silence = (setting, protocol) == (SMALL[1], "3.1.1")
    go(here)
    here.wait(lambda: in_silence or _saved(here), 20 * MINUTE, "the history does not come")
    here.live(5 * MINUTE)
    here.began, before, ends = here.now(), len(here.received()), here.connects()
    for _ in range(3):
        assert here.process
        here.process.signal(signal.SIGTERM)
        assert here.process.wait() == 0
        go(here)
        here.live(2 * MINUTE)
        assert here.subscriber.latest()[f"{BRIDGE}/state"] == "online"
    here.end()
    row = here.row(replace(FAULTS["small"], repeats=1000 if in_silence else FAULTS["small"].repeats), times=ends)
    print(log(here))  # noqa: T201  # shown if a test fails
    assert ends <= 8
    assert here.connects() == ends + 3
    if not in_silence:
        record("small", row)
        assert not set(here.received()[before:]) & set(here.received()[:before])


def _saved(here: World) -> bool:
    """Return whether the broker's history has the newest reading."""
    history = retained(here.mosquitto.port).get(f"{ANNA}/history", '{"readings": []}')
    dates = [entry["date"] for entry in json.loads(history)["readings"]]
    return max(here.received()) in dates


# What changes


@pytest.mark.faults
@pytest.mark.parametrize(("protocol", "within"), [("5", 12 * MINUTE), ("3.1.1", 65 * MINUTE)])
def test_an_acl_that_is_corrected(world: Build, tmp_path: Path, protocol: str, within: float) -> None:
    """Denied messages come by themselves: within minutes if the broker reports it, and otherwise within the hour."""
    acl = tmp_path / "acl"
    denied = ["homeassistant/#", f"{ANNA}/status", f"{BRIDGE}/info", f"{ANNA}/value"]
    acl.write_text("topic readwrite #\n" + "".join(f"topic deny {topic}\n" for topic in denied), encoding="utf-8")
    here = world(f"acl_file {acl}", speed=120.0, mqtt={"protocol": protocol})
    topics = {DISCOVERY, f"{ANNA}/status", f"{BRIDGE}/info", f"{ANNA}/value"}
    since = here.now()
    here.start()
    here.wait(lambda: here.first_read(since=since) < here.now(), 10 * MINUTE, "Share is not asked")
    here.live(8 * MINUTE)
    assert not topics & here.subscriber.latest().keys()
    assert len(here.received()) > 280
    acl.write_text("topic readwrite #\n", encoding="utf-8")
    here.mosquitto.reload()
    here.end()
    here.wait(lambda: topics <= here.subscriber.latest().keys(), within, "something does not come")
    print(here.now() - here.ended, log(here))  # noqa: T201
    owed = here.owed(here.now() - MINUTE)
    here.wait(lambda: here.has_all(owed), within, "it has not recovered")
    assert here.now() - here.ended <= within
    assert here.connects() == 1


@pytest.mark.faults
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_is_wiped_under_a_living_connection(world: Build, protocol: str) -> None:
    """Another client deletes all retained messages: the value is back with the next reading, the rest in an hour."""
    here = world(speed=240.0, mqtt={"protocol": protocol})
    here.begin()
    before = set(retained(here.mosquitto.port))
    assert {DISCOVERY, f"{BRIDGE}/info", f"{ANNA}/history", f"{ANNA}/unit"} <= before
    for topic in before:
        here.subscriber.client.publish(topic, "", retain=True)
    here.wait(lambda: not retained(here.mosquitto.port).keys() & {DISCOVERY}, MINUTE, "it is not wiped")
    wiped = here.now()
    here.wait(lambda: before <= retained(here.mosquitto.port).keys(), 62 * MINUTE, "something does not come back")
    assert here.now() - wiped < 62 * MINUTE
    assert here.connects() == 1


# What check says of them


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a configuration, and the command check with it."""
    with SimulatedShare([checking.ANNA], accelerated(1)) as service:
        yield Bench(tmp_path, service)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("setting", SMALL)
def test_check_names_the_size(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], setting: str, protocol: str
) -> None:
    """If a broker accepts less than the history of a day, check names the settings that change it."""
    mosquitto = start_mosquitto("allow_anonymous true", setting)
    done = bench.check(mosquitto.port, protocol=protocol)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    assert "the size of a day's history" in said
    assert "max_packet_size and message_size_limit" in remedies(done.stdout)[0]


def test_check_names_the_quota(bench: Bench, mosquitto: Mosquitto) -> None:
    """If a broker refuses part of what is sent at once for a reading, check says so, and that the daemon copes."""
    with Relay(mosquitto.port, Quota(10)) as relay:
        done = bench.check(relay.port, protocol="5")
    notes = [text for verdict, text in steps(done.stdout) if verdict == "note"]
    assert any("refuses some of 20 messages sent at once" in text for text in notes)
    assert any("Allow this client 20 messages per second" in text for text in remedies(done.stdout))
    assert "access control" not in done.stdout
    assert not failed(done.stdout)
