"""The read-back and the messages of subscriptions, from a real mosquitto or a scripted connection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.config.settings import Mqtt
from dexcom2mqtt.mqtt.connection import Connection, Received
from dexcom2mqtt.mqtt.inbox import Gathering, Inbox, ReadBack
from dexcom2mqtt.mqtt.subscriptions import Subscriptions
from tests.mqtt.conftest import STATE, SUBACKS_LATE, is_late
from tests.support.jumping import JumpingClock
from tests.support.processes import Mosquitto, Subscriber, eventually
from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.mqtt.conftest import Running


def test_the_read_back_probes_once_its_subscriptions_are_confirmed(
    mosquitto: Mosquitto, start: Callable[..., Running]
) -> None:
    """A broker may handle a message before an earlier subscription: then the probe would never come back."""
    with Relay(mosquitto.port, is_late) as relay:
        running = start(relay.port, subscriptions=("test/refresh",))
        eventually(lambda: running.found)
        (probe,) = (packet for packet in relay.came("PUBLISH", "test/bridge/sync/test") if packet.from_client)
        assert probe.at >= max(packet.at for packet in relay.came("SUBACK")) + SUBACKS_LATE


def test_messages_of_subscriptions_are_handed_on(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """Messages on a subscribed topic are handed on with their retain flag, after every connect."""
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


class Script(Connection):
    """A scripted connection that sends nothing."""

    def __init__(self) -> None:
        super().__init__(Mqtt(), JumpingClock(end=1e9), "5", None)
        self.filters: set[str] = set()
        self.probes = 0
        self.confirmed = True
        self.coming: list[Received] = []
        self.subscriptions = Subscriptions()

    def subscribe(self, filters: Iterable[str]) -> None:
        self.filters |= {*filters}

    def unsubscribe(self, filters: Iterable[str]) -> None:
        self.filters -= {*filters}

    def probe(self, topic: str) -> bool:
        assert topic == "probe"
        self.probes += self.confirmed
        return self.confirmed

    @property
    def subscribed(self) -> bool:
        return self.confirmed

    def take_received(self) -> list[Received]:
        taken, self.coming = self.coming, []
        return taken


class Scripted:
    """An inbox that reads back ``history`` and ``status``, and subscribes to ``refresh``."""

    def __init__(self) -> None:
        self.clock = JumpingClock(end=1e9)
        self.found: list[Mapping[str, bytes]] = []
        self.received: list[Received] = []
        read_back = ReadBack(("history", "status"), "probe", self.found.append)
        self.inbox = Inbox(self.clock, read_back, ("refresh",), self.received.append)
        self.connection = self.connect()

    def connect(self) -> Script:
        self.connection = Script()
        self.inbox.subscribe(self.connection)
        return self.connection

    def take(self, *coming: Received) -> None:
        self.connection.coming = [*coming]
        self.inbox.take(self.connection)


HISTORY = Received("history", b"1", retained=True)
PROBE = Received("probe", b"probe", retained=False)
REFRESH = Received("refresh", b"", retained=False)


def test_the_read_back_ends_with_its_probe() -> None:
    """It finds messages retained before the probe, but no live messages of the same topics."""
    scripted = Scripted()
    assert scripted.connection.filters == {"history", "status", "probe", "refresh"}
    scripted.take(HISTORY, Received("status", b"live", retained=False), REFRESH)
    assert (scripted.found, scripted.received) == ([], [REFRESH])
    scripted.take(PROBE)
    assert scripted.found == [{"history": b"1"}]
    assert scripted.connection.filters == {"refresh"}
    scripted.take(HISTORY)
    assert scripted.received == [REFRESH, HISTORY]
    assert scripted.connect().filters == {"refresh"}
    scripted.take()
    assert scripted.connection.probes == 0
    assert len(scripted.found) == 1


def test_the_read_back_ends_after_ten_seconds() -> None:
    """A broker that lets us write but not read returns no probe: the messages received until then count."""
    scripted = Scripted()
    assert scripted.inbox.due == scripted.clock.now() + 10
    scripted.take(HISTORY)
    scripted.clock.time += 9.9
    scripted.take()
    assert not scripted.found
    scripted.clock.time = scripted.inbox.due
    scripted.take()
    assert scripted.found == [{"history": b"1"}]
    assert scripted.connection.filters == {"refresh"}
    scripted.clock.time += 100
    scripted.take(REFRESH)
    assert (len(scripted.found), scripted.received) == (1, [REFRESH])


def test_the_probe_is_sent_once_on_each_connection() -> None:
    """It is not sent until the subscriptions are confirmed."""
    scripted = Scripted()
    for _ in range(2):
        scripted.connect().confirmed = False
        scripted.take()
        assert scripted.connection.probes == 0
        scripted.connection.confirmed = True
        for _ in range(3):
            scripted.take()
        assert scripted.connection.probes == 1


def test_an_interrupted_read_back_starts_over() -> None:
    """The broker may have lost messages since the earlier connection; the ten seconds start over, too."""
    scripted = Scripted()
    scripted.take(HISTORY)
    scripted.clock.time += 9
    scripted.connect()
    assert scripted.inbox.due == scripted.clock.now() + 10
    scripted.take(Received("status", b"2", retained=True), PROBE)
    assert scripted.found == [{"status": b"2"}]


# A broker that sends in any order


class Unordered:
    """A gathering of ``info``, ``status`` and ``history`` from a broker that sends them at any time."""

    def __init__(self, *filters: str, still: dict[int, float] | None = None) -> None:
        self.clock = JumpingClock(end=1e9)
        self.connection = Script()
        waits = still or {}
        self.gathering = Gathering(
            self.connection,
            self.clock,
            filters or ("info", "status", "history"),
            "probe",
            lambda found, _: waits.get(len(found), 0.0),
        )

    def step(self, *coming: Received, after: float = 0.0) -> bool:
        self.clock.time += after
        self.gathering.step(coming)
        return self.gathering.over


def retained_at(topic: str) -> Received:
    return Received(topic, b"x", retained=True)


def test_messages_after_the_probe_are_waited_for() -> None:
    """It waits only as long as something is missing."""
    slow = Unordered(still={0: 2.0, 1: 10.0, 2: 10.0})
    assert not slow.step(PROBE)
    assert not slow.step(retained_at("status"), after=1.9)
    assert not slow.step(retained_at("info"), after=7)
    assert slow.step(retained_at("history"), after=1)
    assert slow.gathering.found.keys() == {"info", "status", "history"}
    assert slow.gathering.came_back


@pytest.mark.parametrize(("found", "seconds"), [((), 2.0), (("status",), 10.0)])
def test_missing_messages_are_waited_for_only_so_long(found: tuple[str, ...], seconds: float) -> None:
    """The time counts from the return of the probe."""
    slow = Unordered(still={0: 2.0, 1: 10.0})
    slow.step(after=3)
    assert not slow.step(PROBE, *map(retained_at, found))
    assert slow.gathering.due == slow.clock.time + seconds
    assert not slow.step(after=seconds - 0.1)
    assert slow.step(after=0.1)
    assert slow.gathering.due == math.inf


def test_the_probe_has_ten_seconds_once_it_was_sent() -> None:
    """Before that, the confirmation of the subscriptions has ten seconds, too."""
    slow = Unordered()
    slow.connection.confirmed = False
    assert not slow.step(after=9)
    slow.connection.confirmed = True
    assert not slow.step()
    assert not slow.step(after=9.9)
    assert slow.step(after=0.1)
    assert not slow.gathering.came_back


def test_a_late_confirmation_is_waited_for_if_patient() -> None:
    """In the daemon, the connection decides when to give up; a command gives up after ten seconds."""
    for patient in (True, False):
        clock, connection = JumpingClock(end=1e9), Script()
        gathering = Gathering(connection, clock, ["history"], "probe", lambda *_: 0.0, patient=patient)
        connection.confirmed = False
        clock.time += 12
        gathering.step([])
        assert gathering.over is not patient
    assert not gathering.came_back


def test_without_a_probe_the_confirmation_counts() -> None:
    """The wait for missing messages then counts from the confirmation."""
    clock, connection = JumpingClock(end=1e9), Script()
    gathering = Gathering(connection, clock, ["history"], None, lambda found, _: 0.0 if found else 2.0)
    assert connection.filters == {"history"}
    connection.confirmed = False
    gathering.step([])
    connection.confirmed = True
    gathering.step([])
    clock.time += 1.9
    over = []
    for coming in ([], [HISTORY]):
        gathering.step(coming)
        over.append(gathering.over)
    assert over == [False, True]
    assert connection.probes == 0


def test_many_topics_are_gathered_in_batches() -> None:
    """At most 40 filters and the probe at a time; each batch has its own probe, and everything is found."""
    topics = [f"topic/{number}" for number in range(100)]
    many = Unordered(*topics)
    for batch in (topics[:40], topics[40:80], topics[80:]):
        assert many.connection.filters == {*batch, "probe"}
        assert not many.step(*map(retained_at, batch))
        many.step(PROBE)
    assert many.gathering.over
    assert many.connection.probes == 3
    assert many.gathering.found.keys() == {*topics}


def test_a_broker_that_is_slow_in_one_batch_is_not_waited_for_in_each() -> None:
    """Otherwise a thousand accounts would take an hour."""
    many = Unordered(*(f"topic/{number}" for number in range(100)), still={0: 10.0})
    many.step(PROBE)
    many.step(after=10)
    assert not many.gathering.over
    many.step(PROBE)
    assert many.step(PROBE)


def test_messages_of_others_are_handed_back() -> None:
    """Filters may have wildcards; messages that match none are handed back."""
    slow = Unordered("a/+/status")
    assert slow.gathering.step([retained_at("a/anna/status"), REFRESH]) == [REFRESH]
    assert slow.gathering.found == {"a/anna/status": b"x"}
