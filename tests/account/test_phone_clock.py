"""A phone with a wrong clock, with the real poller and real HTTP, on a clock that jumps: days in seconds."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from dexcom2mqtt.demo import share_service as share
from tests.account.test_polling import BEGIN, HOUR, MINUTE, TOPICS, World, mean
from tests.support import share_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STALE_AFTER = 15 * MINUTE
W = TypeVar("W", bound=World)


class Watched(World):
    """A world that records what a subscriber would show as current, and how old that really is.

    Each reading's trend is the time when it was really taken: an unknown word stays as it was sent.
    """

    def __init__(self, **options: Any) -> None:
        self.phone: list[tuple[float, float, bool]] = [(-math.inf, 0.0, True)]  # since when, seconds ahead, whether on
        self.oldest = -math.inf  # the greatest true age in seconds of a current value
        self.current_for = 0.0
        self._shown: tuple[float, float, float] | None = None  # the true time of what is current, from when, until when
        super().__init__(**options)
        self.service.distort(self.upload)

    def set_phone(self, ahead: float = 0.0, *, on: bool = True) -> None:
        """From now on, the phone's clock is ahead by that many seconds, and the phone is on or off."""
        self.phone.append((self.unix, ahead, on))

    def restart(self, *, broker: bool = True) -> None:
        self._look(None)
        super().restart(broker=broker)

    @property
    def current(self) -> bool:
        """Whether a reading is current now."""
        return self._shown is not None and self._shown[2] > self.clock.now()

    def upload(self, records: list[share.Record]) -> list[share.Record]:
        return [self._uploaded(record) for record in records]

    def _uploaded(self, record: share.Record) -> share.Record:
        taken = record.taken / 1000
        _, ahead, _ = next(each for each in reversed(self.phone) if each[0] <= taken)
        on = [(max(since, taken) if is_on else math.inf) for since, _, is_on in self._since(taken)]
        arrives = max(min(on) + record.arrives - taken, record.arrives)
        return replace(record, taken=record.taken + round(ahead * 1000), arrives=arrives, trend=f"t{record.taken}")

    def _since(self, taken: float) -> list[tuple[float, float, bool]]:
        before = [each for each in self.phone if each[0] <= taken][-1:]
        return before + [each for each in self.phone if each[0] > taken]

    def _serve(self) -> None:
        now = self.clock.now()
        for message in self._mirror.take(now, 1000):
            self.retained[message.topic] = message.payload.encode()
            if message.topic == TOPICS.of("anna", "availability"):
                self._look((now, message.expires_at or math.inf) if message.payload == "online" else None)
        super()._serve()

    def _look(self, current: tuple[float, float] | None) -> None:
        """Record how long the last value was current, and what is current now."""
        if self._shown is not None:
            true, since, until = self._shown
            end = min(self.clock.now(), until)
            self.current_for += end - since
            self.oldest = max(self.oldest, BEGIN + end - true)
        if current is not None:
            state: dict[str, Any] = json.loads(self.retained[TOPICS.of("anna", "state")])
            self._shown = (int(state["direction"][1:]) / 1000, *current)
        else:
            self._shown = None

    def end(self) -> None:
        """Close the record: what is current at the end counts until then."""
        self.clock.time += HOUR
        self._look(None)


@contextmanager
def worlds(kind: Callable[..., W]) -> Iterator[Callable[..., W]]:
    """Make worlds, and end their services with this fixture."""
    with ExitStack() as stack:

        def make(**options: Any) -> W:
            world = kind(**options)
            stack.callback(world.service.__exit__, None, None, None)
            return world

        yield make


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    """Make worlds, and end their services with the test."""
    with worlds(Watched) as make:
        yield make


@pytest.mark.parametrize("minutes", [6, 14, 20, 60, 180])
def test_a_phone_that_is_ahead_shows_nothing_old(watched: Callable[..., Watched], minutes: int) -> None:
    """Set ahead while running, then off: nothing old is ever current, and the status says by how many minutes."""
    world = watched()
    world.live(2 * HOUR)
    world.set_phone(minutes * MINUTE)
    world.live(20 * MINUTE)
    assert not world.current
    assert world.status["share"] == "phone_clock"
    assert f"{minutes} min ahead" in world.status["message"]
    assert world.status["ahead_until"] > world.unix * 1000
    world.set_phone(minutes * MINUTE, on=False)
    world.live(minutes * MINUTE + HOUR)
    world.end()
    assert world.oldest <= STALE_AFTER + 1


@pytest.mark.parametrize("minutes", [14, 60, 180])
def test_a_phone_that_is_ahead_at_the_first_start_shows_nothing(watched: Callable[..., Watched], minutes: int) -> None:
    """It is detected half a minute after the first answer; a reading an hour old is not current before that either."""
    world = watched()
    world.phone = [(-math.inf, minutes * MINUTE, True)]
    world.live(25)
    assert world.status["share"] == "no_readings"
    assert "from the future" in world.status["message"]
    world.live(20)
    assert world.status["share"] == "phone_clock"
    world.live(2 * HOUR)
    assert world.current_for == 0
    world.set_phone(minutes * MINUTE, on=False)
    world.live(4 * HOUR)
    assert world.current_for == 0


@pytest.mark.parametrize("hours", [1, 2])
@pytest.mark.parametrize("constant", [True, False])
def test_a_corrected_phone_is_current_immediately(
    watched: Callable[..., Watched], hours: int, *, constant: bool
) -> None:
    """The first reading with the right time is shown despite later false stamps, and no right one is lost."""
    world = watched()
    if constant:
        world.service.distort(share_faults.together(share_faults.valued(100), world.upload))
    world.live(2 * HOUR)
    world.set_phone(HOUR)
    world.live(hours * HOUR)
    right_since = world.unix
    world.set_phone(0.0)
    world.live(11 * MINUTE)
    assert world.current
    assert world.status["share"] == "ok"
    world.live(3 * HOUR)
    assert world.status["share"] == "ok"
    own = {record.taken for record in share.series(world.account, right_since, world.unix - MINUTE)}
    assert own - {right for right, backfill in world.stream.items() if not backfill} <= {min(own)}
    world.end()
    assert world.oldest <= STALE_AFTER + 1


@pytest.mark.parametrize("minutes", [2, 4])
def test_a_phone_up_to_five_minutes_ahead_is_as_fast_as_any(watched: Callable[..., Watched], minutes: int) -> None:
    """Its readings are current, and within the hour they are shown seconds after they can be read."""
    world = watched()
    world.phone = [(-math.inf, minutes * MINUTE, True)]
    world.live(HOUR)
    learned_at = world.unix
    world.live(3 * HOUR)
    assert world.status["share"] == "ok"
    assert world.status["delay"] == pytest.approx(10 - minutes * MINUTE, abs=8)
    waits = [
        at - record.arrives
        for record in share.series(world.account, learned_at, world.unix - MINUTE)
        if (at := world.published.get(record.taken + minutes * 60_000)) is not None
    ]
    assert len(waits) >= 34
    assert mean(waits) < 8
    assert len(world.requests(learned_at)) < 1.8 * 36
    world.oldest = -math.inf
    world.live(HOUR)
    world.set_phone(minutes * MINUTE, on=False)
    world.live(HOUR)
    world.end()
    assert STALE_AFTER < world.oldest <= STALE_AFTER + MINUTE  # counted from when it was seen, not from its stamp


@pytest.mark.parametrize("minutes", [16, 60])
def test_a_phone_that_is_behind_is_distinguished_from_one_that_is_off(
    watched: Callable[..., Watched], minutes: int
) -> None:
    """Readings arrive, but each is too old to be current, and the status says so."""
    world = watched()
    world.phone = [(-math.inf, -minutes * MINUTE, True)]
    world.live(20 * MINUTE)
    assert world.status["share"] == "no_readings"
    assert "New readings arrive" in world.status["message"]
    assert world.current_for == 0
    world.set_phone(-minutes * MINUTE, on=False)
    world.live(HOUR)
    assert "has no new reading" in world.status["message"]


def test_a_phone_14_minutes_behind_is_current_for_a_minute(watched: Callable[..., Watched]) -> None:
    """Its readings are current for the one minute that they have left."""
    world = watched()
    world.phone = [(-math.inf, -14 * MINUTE, True)]
    world.live(2 * HOUR)
    assert world.current_for > 0
    world.end()
    assert world.oldest <= STALE_AFTER


@pytest.mark.parametrize("pause", [1, 40 * MINUTE, 58 * MINUTE, 62 * MINUTE, 90 * MINUTE])
@pytest.mark.parametrize("before", [20 * MINUTE, 3 * HOUR])
def test_a_restart_remembers_that_the_phone_was_ahead(
    watched: Callable[..., Watched], pause: float, before: float
) -> None:
    """A doubtful reading stays doubtful after a restart while the phone is off, however much time has passed."""
    world = watched()
    world.live(2 * HOUR)
    world.set_phone(HOUR)
    world.live(before)
    world.set_phone(HOUR, on=False)
    world.clock.time += pause
    world.restart()
    world.live(2 * HOUR)
    world.end()
    assert world.oldest <= STALE_AFTER + 1
    world.set_phone(0.0)
    world.live(15 * MINUTE)
    assert world.current


@pytest.mark.parametrize("readings", ["some are right", "all are false"])
def test_a_broker_that_connects_later_corrects_old_values(watched: Callable[..., Watched], readings: str) -> None:
    """If Share answers before the broker, the retained messages later correct what only seemed current."""
    world = watched()
    if readings == "some are right":
        world.live(2 * HOUR)
    else:
        world.service.distort(
            share_faults.together(share_faults.during(-math.inf, BEGIN, share_faults.missing), world.upload)
        )
    world.set_phone(HOUR)
    world.live(20 * MINUTE)
    world.set_phone(HOUR, on=False)
    world.clock.time += 57 * MINUTE
    world.restart(broker=False)
    world.live(30)
    shown = world.current
    assert shown
    world.read_back()
    world.live(2)
    assert not world.current
    assert json.loads(world.retained[TOPICS.of("anna", "state")])["value"] is None
    world.live(HOUR)
    assert world.oldest < STALE_AFTER + HOUR  # nobody ever saw it: there was no broker
    assert world.status["share"] == "phone_clock"
    given = share.series(world.account, world.phone[-2][0], world.phone[-1][0])
    false = {record.taken + 3_600_000 for record in given if record.arrives < world.phone[-1][0]}
    assert len(false) >= 3
    assert false <= world.stream.keys()


def test_a_restart_with_a_corrected_phone_is_not_delayed(watched: Callable[..., Watched]) -> None:
    """Hours after the clock was corrected, a restart shows the newest reading with its first answer."""
    world = watched()
    world.live(HOUR)
    world.set_phone(HOUR)
    world.live(HOUR)
    world.set_phone(0.0)
    world.live(4 * HOUR)
    world.restart()
    world.live(5)
    assert world.current


@pytest.mark.parametrize("off", [-HOUR, -6 * MINUTE, 6 * MINUTE, HOUR, 5 * HOUR])
@pytest.mark.parametrize("first", [True, False])
def test_a_single_wrong_date_makes_nothing_doubtful(
    watched: Callable[..., Watched], off: float, *, first: bool
) -> None:
    """Share's own clock was wrong: no reading is doubtful, and a minute later everything is as before."""
    world = watched()
    if not first:
        world.live(HOUR)
    requests = len(world.requests())
    wrong = share_faults.only(share_faults.date_offset(off), times=3 if first else 1)
    world.service.fault = wrong
    # Readings that look old are no reason to ask again soon, so this takes until the next one is due.
    world.live(40 if first and off < 0 else 6 * MINUTE)
    assert len(world.requests()) > requests
    assert world.status["share"] == "ok"
    assert world.current
    assert world.status["ahead_until"] is None
    world.live(HOUR)
    assert "doubtful" not in world.retained[TOPICS.of("anna", "history")].decode()


@pytest.mark.parametrize("off", [-HOUR, HOUR])
def test_an_hour_of_wrong_dates_makes_nothing_doubtful(watched: Callable[..., Watched], off: float) -> None:
    """Nothing is doubtful, nothing old is current, and the first right answer brings recovery within a minute."""
    world = watched()
    world.live(HOUR)
    world.service.fault = share_faults.date_offset(off)
    world.live(HOUR)
    world.service.fault = share.no_fault
    world.live(6 * MINUTE)
    assert world.status["share"] == "ok"
    assert world.current
    world.live(HOUR)
    assert "doubtful" not in world.retained[TOPICS.of("anna", "history")].decode()
    world.end()
    assert world.oldest <= STALE_AFTER + 1


def test_doubtful_readings_complete_the_history(watched: Callable[..., Watched]) -> None:
    """Each is published as backfill once its stamp is past, marked in the history, and none is lost."""
    world = watched()
    world.live(HOUR)
    began = world.unix
    world.set_phone(HOUR)
    world.live(30 * MINUTE)
    world.set_phone(HOUR, on=False)
    false = {record.taken + 3_600_000 for record in share.series(world.account, began, began + 25 * MINUTE)}
    assert not false & world.stream.keys()
    world.live(90 * MINUTE)
    assert false <= world.stream.keys()
    assert all(world.stream[date] for date in false)
    history = json.loads(world.retained[TOPICS.of("anna", "history")])["readings"]
    assert false <= {entry["date"] for entry in history if entry.get("doubtful")}
    assert [entry["date"] for entry in history] == sorted(entry["date"] for entry in history)
