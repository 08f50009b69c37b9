"""The retained days for the statistics: kills, brokers that lose them, and days that arrive late.

The daemon is a process, the broker a real mosquitto, Share simulated.
"""

from __future__ import annotations

import json
import random
import signal
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.messages.bridge import bridge_info
from dexcom2mqtt.messages.days import counted, day_of, days_message
from dexcom2mqtt.messages.history import source_of
from dexcom2mqtt.messages.stream import BACKFILL_A_SECOND
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.topics import Topics
from tests.support.processes import Mosquitto, Subscriber, eventually, retained
from tests.support.relay import DROP, PASS, Packet, Relay
from tests.system.test_delivery import System, all_delivered, make_system, retain, system

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

__all__ = ["make_system", "system"]  # the fixtures

DAYS, STATISTICS, INFO = (f"dexcom2mqtt/{leaf}" for leaf in ("anna/days", "anna/statistics", "bridge/info"))
OFFSET_MIN = -240
LIMITS = (54, 70, 180, 250)


def days(broker: Mosquitto) -> dict[str, int]:
    """Return how many readings the broker has counted, by day."""
    return {day["day"]: day["n"] for day in json.loads(retained(broker.port).get(DAYS, '{"days": []}'))["days"]}


def given_by_day(system: System) -> dict[str, int]:
    """Return how many readings Share has sent, by the wearer's day."""
    named = [f"{datetime.fromtimestamp(date / 1000 + OFFSET_MIN * 60, UTC):%Y-%m-%d}" for date in system.given()]
    return {day: named.count(day) for day in sorted(set(named))}


def difference(system: System, broker: Mosquitto) -> int:
    """Return by how many readings the days differ from those Share sent, once none is being delivered."""
    found, given = days(broker), given_by_day(system)
    return sum(abs(found.get(day, 0) - given.get(day, 0)) for day in found | given)


def settled(system: System, broker: Mosquitto, most: int) -> int:
    """Wait until all but so many of Share's readings are counted, and return the difference.

    Do not compute it again afterwards: by then Share may have sent the next reading, which is not counted yet.
    """
    seen: list[int] = []

    def is_settled() -> bool:
        seen.append(difference(system, broker))
        return seen[-1] <= most

    eventually(is_settled, why=f"{days(broker)} of {given_by_day(system)}")
    return seen[-1]


# --- kills, and brokers that lose messages -----------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_kill_loses_or_repeats_at_most_the_readings_of_one_second(
    system: System, mosquitto: Mosquitto, protocol: str
) -> None:
    """Whenever kill -9 comes, also in the middle of the backfill of a first start."""
    chance, kills = random.Random(protocol), 8  # noqa: S311  # the same moments each time
    subscriber = system.subscribe(mosquitto)
    for number in range(kills):
        running = system.start(mosquitto.port, name=f"daemon{number}", protocol=protocol)
        eventually(lambda: "connected to the broker" in running.text())  # noqa: B023  # it runs before the next round
        time.sleep(chance.uniform(0, 1.5))
        running.signal(signal.SIGKILL)
        running.wait()
    system.start(mosquitto.port, name="last", protocol=protocol)
    all_delivered(system, subscriber, mosquitto)
    assert settled(system, mosquitto, kills * BACKFILL_A_SECOND) <= kills * BACKFILL_A_SECOND
    before = difference(system, mosquitto)
    seen = len(system.given())
    eventually(lambda: len(system.given()) > seen + 2)
    settled(system, mosquitto, before)  # from then on each counts once


def test_a_clean_restart_loses_nothing(system: System, mosquitto: Mosquitto) -> None:
    """Each reading is counted once, also those that arrived meanwhile."""
    subscriber = system.subscribe(mosquitto)
    for number in range(3):
        running = system.start(mosquitto.port, name=f"daemon{number}")
        all_delivered(system, subscriber, mosquitto)
        settled(system, mosquitto, 0)
        running.signal(signal.SIGTERM)
        running.wait()
        time.sleep(5)
    system.start(mosquitto.port, name="last")
    all_delivered(system, subscriber, mosquitto)
    assert settled(system, mosquitto, 0) == 0
    eventually(lambda: json.loads(retained(mosquitto.port)[STATISTICS])["7d"]["readings"] >= len(system.given()) - 2)


def test_a_broker_that_starts_empty_gets_the_days_again(system: System, mosquitto: Mosquitto) -> None:
    """While the daemon runs, a broker that loses its messages loses no days."""
    subscriber = system.subscribe(mosquitto)
    system.start(mosquitto.port)
    all_delivered(system, subscriber, mosquitto)
    settled(system, mosquitto, 0)
    mosquitto.kill()
    mosquitto.start()
    eventually(lambda: days(mosquitto))
    settled(system, mosquitto, 0)


def test_a_power_cut_of_both_counts_unsaved_readings_again(
    system: System, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    """The broker comes back with its messages of half an hour ago: history and days are from the same moment."""
    broker = start_mosquitto(persistent=True)
    subscriber = system.subscribe(broker)
    running = system.start(broker.port)
    all_delivered(system, subscriber, broker)
    settled(system, broker, 0)
    broker.save()
    seen = len(system.given())
    eventually(lambda: len(system.given()) > seen + 3, 20)
    broker.kill()
    running.signal(signal.SIGKILL)
    running.wait()
    broker.start()
    system.start(broker.port, name="again")
    eventually(lambda: len(system.given()) > seen + 4, 20)
    assert settled(system, broker, 1) <= 1


# --- late days ---------------------------------------------------------------------------------------------


def leave(system: System, broker: Mosquitto) -> dict[str, int]:
    """Leave what a daemon with days left long ago: its days, and an info that mentions them. Return the days."""
    topics, today = Topics("dexcom2mqtt"), day_of(system.now(), OFFSET_MIN)
    readings = [
        Reading(100, "Flat", ((today - n) * 86_400 + 43_200) * 1000 + slot, 0)
        for n in range(5, 30)
        for slot in range(n)
    ]
    sums = counted({}, readings, LIMITS)
    left = [
        days_message(topics, "anna", source_of("us", "anna@example.com"), sums),
        bridge_info(topics, version="1", started_at=None, protocol="5", accounts=["anna"], days=True),
    ]
    with Subscriber(broker.port) as subscriber:
        for message in left:
            retain(subscriber, message.topic, message.payload)
    return days(broker)


def is_days(packet: Packet) -> bool:
    return not packet.from_client and packet.topic == DAYS


LATE: dict[str, Callable[[Packet], float]] = {
    "after the probe": lambda packet: 1.0 if is_days(packet) else PASS,
    "after 11 s": lambda packet: 11.0 if is_days(packet) else PASS,
    "after a reconnect": lambda packet: DROP if is_days(packet) and packet.connection == 1 else PASS,
}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("when", LATE)
def test_days_that_come_late_are_joined(
    make_system: Callable[..., System], mosquitto: Mosquitto, stack: ExitStack, when: str, protocol: str
) -> None:
    """Until they arrive nothing is published in their place, and afterwards both parts are complete.

    If they do not come, the daemon reconnects after ten minutes, and gets them then.
    """
    system = make_system("anna", speed=60)
    left = leave(system, mosquitto)
    relay = stack.enter_context(Relay(mosquitto.port, LATE[when]))
    running = system.start(relay.port, protocol=protocol)
    eventually(lambda: set(left) < set(days(mosquitto)), 45)
    eventually(lambda: {day: days(mosquitto)[day] for day in given_by_day(system)} == given_by_day(system), 30)
    assert left.items() <= days(mosquitto).items()
    first = next(packet for packet in relay.came("PUBLISH", DAYS) if packet.from_client)
    came = next(packet for packet in relay.came("PUBLISH", DAYS) if LATE[when](packet) != DROP)
    assert came.at < first.at
    assert json.loads(first.data.partition(b"{")[2].join([b"{", b""]))["days"][0]["day"] == min(left)
    assert relay.connections == (2 if when == "after a reconnect" else 1)
    assert "starts over" not in running.text()
    assert "ERROR" not in running.text()


def test_days_that_never_come_start_over(
    make_system: Callable[..., System], mosquitto: Mosquitto, stack: ExitStack
) -> None:
    """After ten minutes and one reconnect, with one line."""
    system = make_system("anna", speed=60)
    left = leave(system, mosquitto)
    relay = stack.enter_context(Relay(mosquitto.port, lambda packet: DROP if is_days(packet) else PASS))
    began = time.monotonic()
    running = system.start(relay.port)
    eventually(lambda: not set(left) & set(days(mosquitto)), 60)
    assert time.monotonic() - began >= 10 + 600 / 60 + 10
    assert running.text().count("so counting starts over") == 1
    assert relay.connections == 2
    settled(system, mosquitto, 0)


# --- settings ----------------------------------------------------------------------------------------------


def test_statistics_that_are_switched_off_are_cleared(system: System, mosquitto: Mosquitto) -> None:
    """With 24h the days are cleared, with off the statistics, too; with 90d again, both begin with the history."""

    def holds(wanted: str) -> bool:
        """Return whether the broker has the topics of that setting; after a start each comes at its own time."""
        topics = retained(mosquitto.port)
        entities = json.loads(topics["homeassistant/device/dexcom2mqtt_anna/config"])["cmps"]
        return (
            {DAYS, STATISTICS} & topics.keys() == kept[wanted]
            and json.loads(topics[INFO])["days"] is (wanted == "90d")
            and (entities["gmi"] == {"p": "sensor"}) is (wanted != "90d")
            and (entities["time_in_range"] == {"p": "sensor"}) is (wanted == "off")
        )

    subscriber = system.subscribe(mosquitto)
    kept = {"90d": {DAYS, STATISTICS}, "24h": {STATISTICS}, "off": set[str]()}
    for number, wanted in enumerate(("90d", "24h", "off", "90d")):
        system.settings = {"statistics": wanted}
        running = system.start(mosquitto.port, name=f"daemon{number}")
        all_delivered(system, subscriber, mosquitto)
        eventually(lambda: holds(wanted))  # noqa: B023
        if wanted != "off":
            eventually(lambda: (json.loads(retained(mosquitto.port)[STATISTICS])["7d"] is None) is (wanted == "24h"))  # noqa: B023
            assert json.loads(retained(mosquitto.port)[STATISTICS])["24h"]["readings"] > 280
        running.signal(signal.SIGTERM)
        running.wait()
        assert "WARNING" not in running.text()
    assert sum(days(mosquitto).values()) > 280
