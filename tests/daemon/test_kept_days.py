"""Which days are awaited from the broker, for how long, and which topics are cleared: on a clock that jumps."""

from __future__ import annotations

from types import SimpleNamespace
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
    from dexcom2mqtt.daemon.accounts import Accounts

TOPICS = Topics("dexcom2mqtt")
ANNA, BEN = TOPICS.of("anna", "days"), TOPICS.of("ben", "days")
WITH_DAYS = Info(("anna", "ben"), days=True)
PERSON = {"password": "hunter2"}


class PollerStub:
    """The part of a poller that receives the days."""

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
        self.pollers = {key: PollerStub() for key in accounts}
        settings = build(Settings, {"accounts": accounts, "statistics": statistics})
        served = SimpleNamespace(pollers=self.pollers, configured=settings.accounts)
        self.reconnects = 0
        self.days = KeptDays(
            settings,
            TOPICS,
            cast("Accounts", served),
            clock=self.clock,
            mirror=self.mirror,
            reconnect=self._reconnect,
        )

    def _reconnect(self) -> None:
        self.reconnects += 1

    def after(self, seconds: float) -> dict[str, list[bytes | None]]:
        """Return the days received after that time, ticking as often as the daemon does."""
        until = self.clock.time + seconds
        while self.clock.time < until:
            self.clock.time = min(self.clock.time + min(self.days.tick(), 1.0), until)
            self.days.tick()
        return {key: each.days for key, each in self.pollers.items() if each.days}

    def sent(self) -> dict[str, str]:
        return {message.topic: message.payload for message in self.mirror.take(0, 100)}


@pytest.mark.parametrize(
    ("info", "found", "awaited"),
    [
        (None, {}, set()),  # a first start
        (None, {TOPICS.of("ben", "history"): b"x"}, {ANNA, BEN}),  # then bridge/info is only late
        (Info(("anna", "ben")), {}, set()),  # an older daemon, which kept no days
        (WITH_DAYS, {}, {ANNA, BEN}),
        (WITH_DAYS, {ANNA: b"x"}, {BEN}),
        (Info(("anna",), days=True), {}, {ANNA}),  # Ben is new
        (Info(("anna", "carla"), days=True), {ANNA: b"x"}, set()),  # Carla is gone
        (Info(), {}, set()),  # not ours, so it does not count
    ],
)
def test_days_in_the_info_that_did_not_arrive_are_awaited(
    info: Info | None, found: dict[str, bytes], awaited: set[str]
) -> None:
    """Accounts whose days neither arrived nor are awaited begin with empty ones."""
    world = World()
    awaits = world.days.read_back(info, found, world.pollers)
    assert set(world.days.awaited) == awaited
    assert awaits == {"anna": ANNA in awaited, "ben": BEN in awaited}
    assert {message.topic for message in world.days.begun()} == {ANNA, BEN} - awaited - found.keys()


def test_late_days_are_passed_on_once() -> None:
    """Any other message is not theirs; an empty one does not count."""
    world = World()
    world.days.read_back(WITH_DAYS, {}, world.pollers)
    assert not world.days.take(ANNA, b"")
    assert not world.days.take(TOPICS.of("anna", "refresh"), b"x")
    assert world.days.take(ANNA, b"x")
    assert not world.days.take(ANNA, b"x")
    assert world.days.awaited == (BEN,)
    assert world.pollers["anna"].days == [b"x"]


def test_days_of_an_account_that_has_ended_are_not_awaited() -> None:
    """They neither reach its old loop nor cause a reconnect."""
    world = World()
    world.days.read_back(WITH_DAYS, {}, world.pollers)
    for key in ("anna", "anna", "ben"):
        world.days.forget(key)
    assert world.days.awaited == ()
    assert not world.days.take(ANNA, b"x")
    assert world.after(1000) == {}
    assert world.reconnects == 0


def test_the_wait_ends_after_ten_minutes_and_a_reconnect() -> None:
    """If there was no reconnect, the daemon makes one, and gives the broker ten more seconds after it."""
    world = World()
    world.days.connected()  # the first connection does not count
    world.days.read_back(WITH_DAYS, {}, world.pollers)
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


def test_a_reconnect_in_the_meantime_is_enough() -> None:
    """The daemon then makes no further one."""
    world = World()
    world.days.read_back(WITH_DAYS, {}, world.pollers)
    world.after(100)
    world.days.connected()
    assert world.after(498) == {}
    assert world.after(4) == {"anna": [None], "ben": [None]}
    assert world.reconnects == 0


@pytest.mark.parametrize(("statistics", "gone"), [("90d", set()), ("24h", {"days"}), ("off", {"days", "statistics"})])
def test_topics_of_statistics_switched_off_are_cleared(statistics: str, gone: set[str]) -> None:
    """For each known account that has a message there; then no days are awaited."""
    world = World(statistics)
    leaves = {"days", "statistics"} if statistics == "off" else {"days"}
    assert set(world.days.topics_of(world.pollers)) == {
        TOPICS.of(key, leaf) for key in ("anna", "ben") for leaf in leaves
    }
    found: dict[str, Any] = {TOPICS.of("anna", leaf): b"x" for leaf in leaves}
    world.days.read_back(WITH_DAYS, found, world.pollers)
    assert world.sent() == {TOPICS.of("anna", leaf): "" for leaf in gone}
    if statistics != "90d":
        assert (world.days.awaited, world.days.begun(), world.days.wanted) == ((), [], False)
