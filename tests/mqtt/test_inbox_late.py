"""Late retained messages: their topics stay subscribed after the read-back and on new connections, until they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexcom2mqtt.mqtt.connection import Received
from dexcom2mqtt.mqtt.inbox import Inbox, ReadBack
from tests.mqtt.test_inbox import HISTORY, PROBE, REFRESH, Script
from tests.support.jumping import JumpingClock
from tests.support.processes import Mosquitto, Subscriber, eventually, retained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.mqtt.conftest import Running

DAYS = Received("days", b"2", retained=True)


class Logged(Script):
    """A scripted connection that logs its subscriptions in order."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, list[str]]] = []

    def subscribe(self, filters: Iterable[str]) -> None:
        wanted = list(filters)
        super().subscribe(wanted)
        self.log.append(("subscribe", wanted))

    def unsubscribe(self, filters: Iterable[str]) -> None:
        unwanted = list(filters)
        super().unsubscribe(unwanted)
        self.log.append(("unsubscribe", unwanted))


class Late:
    """An inbox that reads back ``history`` and ``days``, and awaits the days until a test clears ``awaited``."""

    def __init__(self) -> None:
        self.awaited: list[str] = []
        self.received: list[Received] = []
        read_back = ReadBack(
            ("history", "days"), "probe", lambda _: self.awaited.append("days"), awaited=lambda: self.awaited
        )
        self.inbox = Inbox(JumpingClock(end=1e9), read_back, ("refresh",), self.received.append)
        self.connection = self.connect()

    def connect(self, *, but: tuple[str, ...] = ()) -> Logged:
        self.connection = Logged()
        self.inbox.subscribe(self.connection, but=but)
        return self.connection

    def take(self, *coming: Received) -> None:
        self.connection.coming = [*coming]
        self.inbox.take(self.connection)


def test_awaited_topics_stay_subscribed() -> None:
    """They are not unsubscribed, but subscribed again, so that the broker sends their retained messages."""
    late = Late()
    late.take(HISTORY, PROBE)
    assert late.connection.filters == {"refresh", "days"}
    assert [asked for asked in late.connection.log if asked[0] == "unsubscribe"] == [
        ("unsubscribe", ["history", "probe"])
    ]
    assert late.connection.log[-1] == ("subscribe", ["days"])
    late.take(DAYS)
    assert late.received == [DAYS]


def test_topics_no_longer_awaited_are_unsubscribed() -> None:
    """New connections do not subscribe to them either."""
    late = Late()
    late.take(HISTORY, PROBE)
    late.take()
    late.awaited.clear()
    late.take(DAYS)
    assert late.connection.filters == {"refresh"}
    late.take(REFRESH)
    assert late.connection.log[-1] == ("unsubscribe", ["days"])
    assert late.connect().filters == {"refresh"}


def test_a_new_connection_subscribes_to_awaited_topics_again() -> None:
    """Unless the broker refuses the subscription."""
    late = Late()
    late.take(HISTORY, PROBE)
    assert late.connect().filters == {"refresh", "days"}
    late.take(DAYS)
    assert late.received == [DAYS]
    assert late.connect(but=("days",)).filters == {"refresh"}
    late.awaited.clear()
    assert late.connect().filters == {"refresh"}


def test_reconnecting_on_request(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """The link disconnects without a will, and publishes everything again."""
    running = start(mosquitto.port)
    eventually(lambda: retained(mosquitto.port).get("test/bridge/state") == "online")
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for("test/bridge/state")
        subscriber.forget()
        running.link.reconnect()
        eventually(lambda: len(running.protocols) == 2)
        subscriber.wait_for("test/bridge/state", "online")
        assert subscriber.latest().keys() >= {"test/a", "test/b"}
        assert subscriber.payloads("test/bridge/state") == ["online"]
    running.stop()
    assert len(running.protocols) == 2
