"""Waiting, rings, the stop, and how times are written."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.clock import Clock, Stopped, growing_pause, iso, parse_iso
from tests.support.builders import NOON
from tests.support.set_clock import SetClock

if TYPE_CHECKING:
    from collections.abc import Callable

FAST = 1000.0
"""Milliseconds of the machine are seconds of the clock."""
LONG = 5 * FAST
"""Longer than any interrupted wait takes on a slow machine."""
SOON = 0.02


def soon(do: Callable[[], None]) -> None:
    """Call a function in another thread while this one waits."""
    timer = threading.Timer(SOON, do)
    timer.daemon = True
    timer.start()


# --- the clock ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [1.0, 60.0])
def test_counts_suspended_time(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    """The clock counts from the machine's start, including suspended time, times its speed."""
    monkeypatch.setattr("dexcom2mqtt.clock.time.clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)
    assert Clock(speed).now() == 7 * speed


def test_advances() -> None:
    """The clock advances by itself, and never goes back."""
    clock = Clock(FAST)
    before = time.clock_gettime(time.CLOCK_BOOTTIME) * FAST
    times = [clock.now() for _ in range(1000)]
    assert before <= times[0] < times[-1]
    assert times == sorted(times)


def test_converts_to_real_seconds() -> None:
    """At sixty times the speed, a minute takes a second."""
    assert Clock(60.0).real(60.0) == 1.0
    assert Clock().real(60.0) == 60.0


# --- waiting -----------------------------------------------------------------------------------------------


def test_wait_ends_by_time() -> None:
    """An uninterrupted wait lasts as long as requested, and returns that it was not rung."""
    clock = Clock(FAST)
    before = clock.now()
    assert clock.alarm().wait(5.0) is False
    assert clock.now() >= before + 5.0


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_wait_for_no_time(seconds: float) -> None:
    """A wait for no time, or for a negative time, ends immediately."""
    assert Clock().alarm().wait(seconds) is False


def test_ring_ends_a_wait() -> None:
    """A ring from another thread ends the wait, which returns that."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    before = clock.now()
    soon(alarm.ring)
    assert alarm.wait(LONG) is True
    assert clock.now() < before + LONG / 2


@pytest.mark.parametrize("seconds", [LONG, 0.0])
def test_ring_before_a_wait_is_not_lost(seconds: float) -> None:
    """A ring while nobody waits ends the next wait, and only that one, however often it rang."""
    alarm = Clock(FAST).alarm()
    alarm.ring()
    alarm.ring()
    assert alarm.wait(seconds) is True
    assert alarm.wait(1.0) is False


def test_each_alarm_rings_for_itself() -> None:
    """A ring ends only the waits of its own alarm."""
    clock = Clock(FAST)
    one, other = clock.alarm(), clock.alarm()
    one.ring()
    assert other.wait(1.0) is False


@pytest.mark.parametrize("kind", ["wait", "sleep"])
def test_an_alarm_announces_when_its_wait_will_be_over(kind: str) -> None:
    """Before each wait, and before each continued one after a ring, the observer of the thread is informed."""
    clock, said = Clock(FAST), list[float]()
    alarm = clock.alarm(said.append)
    began = clock.now()
    getattr(alarm, kind)(20.0)
    assert len(said) == 1
    assert said[0] == pytest.approx(began + 20, abs=LONG)
    alarm.ring()
    getattr(alarm, kind)(20.0)
    assert len(said) == (2 if kind == "wait" else 3)


def test_wait_notices_suspended_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait checks the clock in between, so that hours of suspension end it."""
    monkeypatch.setattr("dexcom2mqtt.clock.LOOK_SECONDS", SOON)
    clock = SetClock()
    before = time.monotonic()

    def suspend() -> None:
        clock.at += 3600

    soon(suspend)
    assert clock.alarm().wait(3600.0) is False
    assert time.monotonic() - before < 5


# --- stopping ----------------------------------------------------------------------------------------------


def test_stop_ends_a_wait() -> None:
    """A stop from another thread ends the wait with Stopped."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    before = clock.now()
    soon(clock.stop)
    with pytest.raises(Stopped):
        alarm.wait(LONG)
    assert clock.now() < before + LONG / 2


def test_stop_ends_every_wait_from_then_on() -> None:
    """After a stop no wait begins, neither of old alarms nor of new ones, however short or often."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    clock.stop()
    before = clock.now()
    for waiting in (alarm, alarm, clock.alarm()):
        for seconds in (LONG, 0.0):
            with pytest.raises(Stopped):
                waiting.wait(seconds)
        with pytest.raises(Stopped):
            waiting.sleep(LONG)
    assert clock.now() < before + LONG / 2


def test_stop_wakes_what_waits_otherwise() -> None:
    """A function is called at the stop, or at once if the program is already stopping."""
    clock, woken = Clock(), list[str]()
    clock.at_stop(lambda: woken.append("before"))
    assert woken == []
    clock.stop()
    clock.at_stop(lambda: woken.append("after"))
    assert woken == ["before", "after"]


def test_a_part_can_end_before_the_whole() -> None:
    """Stopping a branch ends only its own waits; stopping the clock ends those of every branch."""
    clock = Clock(FAST)
    anna, ben = clock.branch(), clock.branch()
    assert abs(anna.now() - clock.now()) < FAST
    anna.stop()
    with pytest.raises(Stopped):
        anna.alarm().wait(LONG)
    assert (anna.stopped, ben.stopped, clock.stopped) == (True, False, False)
    clock.forget(anna)
    clock.stop()
    with pytest.raises(Stopped):
        ben.alarm().wait(LONG)


@pytest.mark.parametrize("stopped", [False, True])
def test_knows_whether_it_was_stopped(*, stopped: bool) -> None:
    """Code that does not wait can check whether the program should end."""
    clock = Clock()
    if stopped:
        clock.stop()
    assert clock.stopped is stopped


def test_stop_takes_precedence_over_a_ring() -> None:
    """A wait that was both rung and stopped raises Stopped."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    alarm.ring()
    clock.stop()
    with pytest.raises(Stopped):
        alarm.wait(LONG)


def test_handlers_of_errors_do_not_catch_the_stop() -> None:
    """Stopped is not an Exception, so that code which handles every error does not catch it."""
    assert not issubclass(Stopped, Exception)


# --- sleeping ----------------------------------------------------------------------------------------------


def test_sleep_ends_by_time() -> None:
    """A sleep lasts as long as requested, and leaves no ring behind."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    before = clock.now()
    alarm.sleep(5.0)
    assert clock.now() >= before + 5.0
    assert alarm.wait(1.0) is False


def test_sleep_ignores_rings_but_keeps_them() -> None:
    """Rings before and during a sleep do not shorten it, but end the wait after it."""
    clock = Clock(FAST)
    for ring in (lambda alarm: alarm.ring(), lambda alarm: soon(alarm.ring)):
        alarm = clock.alarm()
        before = clock.now()
        ring(alarm)
        alarm.sleep(2 * SOON * FAST)
        assert clock.now() >= before + 2 * SOON * FAST
        assert alarm.wait(LONG) is True
        assert alarm.wait(1.0) is False


def test_stop_ends_a_sleep() -> None:
    """A stop from another thread ends the sleep with Stopped."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    before = clock.now()
    soon(clock.stop)
    with pytest.raises(Stopped):
        alarm.sleep(LONG)
    assert clock.now() < before + LONG / 2


# --- dates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "chance", "pause"),
    [(1, 1.0, 2.0), (2, 1.0, 4.0), (3, 1.0, 8.0), (4, 1.0, 10.0), (100_000, 1.0, 10.0), (1, 0.0, 1.5), (4, 0.5, 8.75)],
)
def test_a_pause_grows_up_to_a_limit_and_is_spread_by_chance(failures: int, chance: float, pause: float) -> None:
    """Each further failure doubles the pause, up to the limit, and chance shortens it by up to a fraction."""
    assert growing_pause(failures, lambda: chance, first=2.0, most=10.0, spread=0.25) == pause


@pytest.mark.parametrize(
    ("unix", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00+00:00"),
        (NOON, "2025-04-19T12:00:00+00:00"),
        (NOON + 0.999, "2025-04-19T12:00:00+00:00"),
    ],
)
def test_writes_times_in_utc(unix: float | None, text: str | None) -> None:
    """Times are ISO 8601 in UTC, truncated to whole seconds, and null if unknown."""
    assert iso(unix) == text


@pytest.mark.parametrize("unix", [0, NOON, 4_000_000_000])
def test_reads_the_times_that_it_writes(unix: float) -> None:
    """A time written as ISO 8601 is read back unchanged."""
    assert parse_iso(iso(unix)) == unix


@pytest.mark.parametrize("text", [None, 3, [], "", "soon", "2025-04-19", "2025-04-19T12:00:00"])
def test_reads_nothing_that_is_not_a_time(text: object) -> None:
    """Text that is not a time, or has no offset, gives None."""
    assert parse_iso(text) is None
