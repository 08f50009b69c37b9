"""Read-backs after the first one, while awaited topics come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexcom2mqtt.mqtt.connection import Received
from dexcom2mqtt.mqtt.inbox import Inbox, ReadBack
from tests.mqtt.test_inbox import HISTORY, PROBE, REFRESH
from tests.mqtt.test_inbox_late import Logged
from tests.support.jumping import JumpingClock

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE = Received("state", b"online", retained=True)


class More:
    """An inbox whose first read-back is of ``history``; a test adds others, and what is awaited."""

    def __init__(self) -> None:
        self.awaited: list[str] = []
        self.found: list[Mapping[str, bytes]] = []
        self.received: list[Received] = []
        first = ReadBack(("history",), "probe", self.found.append, awaited=lambda: self.awaited)
        self.inbox = Inbox(JumpingClock(end=1e9), first, ("refresh",), self.received.append)
        self.connection = self.connect()

    def connect(self) -> Logged:
        self.connection = Logged()
        self.inbox.subscribe(self.connection)
        return self.connection

    def read(self, *topics: str) -> None:
        self.inbox.read_back(ReadBack(topics, "probe", self.found.append))

    def take(self, *coming: Received) -> None:
        self.connection.coming = [*coming]
        self.inbox.take(self.connection)


def test_read_backs_follow_each_other() -> None:
    """Each subscribes only to its own topics, once those before are read, and reports what it found."""
    more = More()
    more.read("state")
    more.read("info", "history")
    assert more.connection.filters == {"refresh", "history", "probe"}
    more.take(HISTORY, PROBE)
    more.take()
    assert more.connection.filters == {"refresh", "state", "probe"}
    more.take(STATE, REFRESH, PROBE)
    more.take()
    more.take(HISTORY, PROBE)
    assert more.found == [{"history": b"1"}, {"state": b"online"}, {"history": b"1"}]
    assert more.received == [REFRESH]
    assert more.connection.filters == {"refresh"}
    more.take()
    assert more.connection.probes == 3


def test_a_later_read_back_ends_with_its_connection() -> None:
    """Whoever wants it asks again; else each short connection would add some more."""
    more = More()
    more.take(HISTORY, PROBE)
    more.read("state")
    more.take(STATE)
    assert more.connect().filters == {"refresh"}
    more.take(PROBE)
    assert more.found == [{"history": b"1"}]
    more.read("state")
    more.take()
    assert more.connection.filters == {"refresh", "state", "probe"}
    more.take(STATE, PROBE)
    assert more.found == [{"history": b"1"}, {"state": STATE.payload}]


def test_awaited_topics_come_and_go() -> None:
    """They are subscribed to as soon as they are awaited, and no longer once they are not, during a read-back, too."""
    more = More()
    more.take(HISTORY, PROBE)
    more.awaited = ["state", "status"]
    more.take()
    assert more.connection.filters == {"refresh", "state", "status"}
    more.take(STATE)
    assert more.received == [STATE]
    more.read("info")
    more.awaited = ["status"]
    more.take()
    assert more.connection.filters == {"refresh", "status", "info", "probe"}
    more.take(PROBE)
    assert more.connection.filters == {"refresh", "status"}
    assert more.connect().filters == {"refresh", "status"}


def test_an_awaited_topic_that_was_read_back_is_subscribed_to_again() -> None:
    """The broker then sends again what the read-back took for itself: it may have changed since."""
    more = More()
    more.take(HISTORY, PROBE)
    more.awaited = ["state"]
    more.take()
    more.read("state")
    more.take()
    more.take(STATE, PROBE)
    assert more.found[-1] == {"state": b"online"}
    assert more.received == []
    assert more.connection.log[-1] == ("subscribe", ["state"])
    assert "state" in more.connection.filters
