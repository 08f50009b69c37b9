"""What comes from the broker, a real mosquitto or a script: what is read back, and the messages of subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexcom2mqtt.config import Mqtt
from dexcom2mqtt.mqtt.connection import Connection, Received
from dexcom2mqtt.mqtt.inbox import Inbox, ReadBack
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
    """A broker may take a message before a subscription that was sent earlier: then the probe would never be back."""
    with Relay(mosquitto.port, is_late) as relay:
        running = start(relay.port, subscriptions=("test/refresh",))
        eventually(lambda: running.found)
        (probe,) = (packet for packet in relay.came("PUBLISH", "test/bridge/sync/test") if packet.from_client)
        assert probe.at >= max(packet.at for packet in relay.came("SUBACK")) + SUBACKS_LATE


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


class Script(Connection):
    """A connection on which happens what a test says, and nothing is sent."""

    def __init__(self) -> None:
        super().__init__(Mqtt(), JumpingClock(end=1e9), "5", None)
        self.filters: set[str] = set()
        self.probes = 0
        self.confirmed = True
        self.coming: list[Received] = []

    def subscribe(self, filters: Iterable[str]) -> None:
        self.filters |= {*filters}

    def unsubscribe(self, filters: Iterable[str]) -> None:
        self.filters -= {*filters}

    def probe(self, topic: str) -> bool:
        assert topic == "probe"
        self.probes += self.confirmed
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
    """What was retained before the probe is found, live messages of the same topics are not; and then it is over."""
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
    """A broker that lets us write but not read returns no probe: what is there by then is all."""
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
    """It waits until the subscriptions are confirmed."""
    scripted = Scripted()
    for _ in range(2):
        scripted.connect().confirmed = False
        scripted.take()
        assert scripted.connection.probes == 0
        scripted.connection.confirmed = True
        for _ in range(3):
            scripted.take()
        assert scripted.connection.probes == 1


def test_a_read_back_that_was_interrupted_begins_anew() -> None:
    """What the broker had on an earlier connection it may have forgotten since; the ten seconds begin again, too."""
    scripted = Scripted()
    scripted.take(HISTORY)
    scripted.clock.time += 9
    scripted.connect()
    assert scripted.inbox.due == scripted.clock.now() + 10
    scripted.take(Received("status", b"2", retained=True), PROBE)
    assert scripted.found == [{"status": b"2"}]
