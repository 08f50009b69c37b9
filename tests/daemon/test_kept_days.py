"""Which days are awaited from the broker, for how long, and what is cleared: on a clock that jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Settings
from dexcom2mqtt.daemon.kept_days import KeptDays
from dexcom2mqtt.messages.bridge import Info
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.topics import Topics
from tests.support.jumping import JumpingClock

if TYPE_CHECKING:
    from dexcom2mqtt.account.poller import Poller

TOPICS = Topics("dexcom2mqtt")
ANNA, BEN = TOPICS.of("anna", "days"), TOPICS.of("ben", "days")
WITH_DAYS = Info(("anna", "ben"), days=True)
PERSON = {"password": "hunter2"}


class Told:
    """A poller as far as the days are concerned."""

    def __init__(self) -> None:
        self.days: list[bytes | None] = []

    def take_days(self, days: bytes | None) -> None:
        self.days.append(days)


class World:
    """The days of Anna and Ben."""

    def __init__(self, statistics: str = "90d") -> None:
        accounts = {key: PERSON | {"username": f"{key}@example.com"} for key in ("anna", "ben")}
        self.clock = JumpingClock(end=1e9)
        self.mirror = Mirror(TOPICS.bridge_state)
        self.told = {key: Told() for key in accounts}
        self.reconnects = 0
        self.days = KeptDays(
            build(Settings, {"accounts": accounts, "statistics": statistics}),
            TOPICS,
            cast("dict[str, Poller]", self.told),
            clock=self.clock,
            mirror=self.mirror,
            reconnect=self._reconnect,
        )

    def _reconnect(self) -> None:
        self.reconnects += 1

    def after(self, seconds: float) -> dict[str, list[bytes | None]]:
        """Return what was told after that time, looking as often as the daemon does."""
        until = self.clock.time + seconds
        while self.clock.time < until:
            self.clock.time = min(self.clock.time + min(self.days.tick(), 1.0), until)
            self.days.tick()
        return {key: each.days for key, each in self.told.items() if each.days}

    def sent(self) -> dict[str, str]:
        return {message.topic: message.payload for message in self.mirror.take(0, 100)}


@pytest.mark.parametrize(
    ("info", "found", "awaited"),
    [
        (None, {}, set()),  # a first start
        (None, {TOPICS.of("ben", "history"): b"x"}, {ANNA, BEN}),  # then bridge/info is only late
        (Info(("anna", "ben")), {}, set()),  # an older daemon, which kept none
        (WITH_DAYS, {}, {ANNA, BEN}),
        (WITH_DAYS, {ANNA: b"x"}, {BEN}),
        (Info(("anna",), days=True), {}, {ANNA}),  # Ben is new
        (Info(("anna", "carla"), days=True), {ANNA: b"x"}, set()),  # Carla is gone
        (Info(), {}, set()),  # what is not ours says nothing
    ],
)
def test_what_is_promised_and_did_not_come_is_awaited(
    info: Info | None, found: dict[str, bytes], awaited: set[str]
) -> None:
    """And what neither came nor is awaited begins empty, so that the promise holds."""
    world = World()
    told = world.days.read_back(info, found)
    assert set(world.days.awaited) == awaited
    assert told == {"anna": ANNA in awaited, "ben": BEN in awaited}
    assert {message.topic for message in world.days.begun()} == {ANNA, BEN} - awaited - found.keys()


def test_days_that_come_late_are_handed_on_once() -> None:
    """Whatever else comes is somebody else's; an empty message is none."""
    world = World()
    world.days.read_back(WITH_DAYS, {})
    assert not world.days.take(ANNA, b"")
    assert not world.days.take(TOPICS.of("anna", "refresh"), b"x")
    assert world.days.take(ANNA, b"x")
    assert not world.days.take(ANNA, b"x")
    assert world.days.awaited == (BEN,)
    assert world.told["anna"].days == [b"x"]


def test_they_are_given_up_after_ten_minutes_and_a_reconnect() -> None:
    """Of which the daemon makes one if there was none, and gives the broker ten more seconds there."""
    world = World()
    world.days.connected()  # the first connection is none
    world.days.read_back(WITH_DAYS, {})
    assert world.after(599) == {}
    assert world.reconnects == 0
    assert world.after(60) == {}
    assert world.reconnects == 1
    world.days.connected()
    assert world.days.take(BEN, b"x")
    assert world.after(9) == {"ben": [b"x"]}
    assert world.after(2) == {"anna": [None], "ben": [b"x"]}
    assert world.after(1000) == {"anna": [None], "ben": [b"x"]}
    assert not world.days.take(ANNA, b"x")
    assert world.reconnects == 1


def test_a_connection_that_was_made_anew_is_enough() -> None:
    """The daemon makes none by itself then."""
    world = World()
    world.days.read_back(WITH_DAYS, {})
    world.after(100)
    world.days.connected()
    assert world.after(498) == {}
    assert world.after(4) == {"anna": [None], "ben": [None]}
    assert world.reconnects == 0


@pytest.mark.parametrize(("statistics", "gone"), [("90d", set()), ("24h", {"days"}), ("off", {"days", "statistics"})])
def test_what_is_not_wanted_is_cleared(statistics: str, gone: set[str]) -> None:
    """Of the accounts that the daemon knew, as far as it is there; and nothing is awaited then."""
    world = World(statistics)
    leaves = {"days", "statistics"} if statistics == "off" else {"days"}
    assert set(world.days.topics) == {TOPICS.of(key, leaf) for key in ("anna", "ben") for leaf in leaves}
    found: dict[str, Any] = {TOPICS.of("anna", leaf): b"x" for leaf in leaves}
    world.days.read_back(WITH_DAYS, found)
    assert world.sent() == {TOPICS.of("anna", leaf): "" for leaf in gone}
    if statistics != "90d":
        assert (world.days.awaited, world.days.begun(), world.days.wanted) == ((), [], False)
