"""Waiting, being woken, being stopped, and the time of day as Share tells it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt.clock import Clock, Stopped, growing_pause, iso, parse_iso
from dexcom2mqtt.share.server_time import ShareTime, parse_http_date
from tests.support.builders import NOON, any_text, property_of

if TYPE_CHECKING:
    from collections.abc import Callable

FAST = 1000.0
"""Milliseconds of the machine are seconds of the clock."""
LONG = 5 * FAST
"""Longer than any wait that is interrupted takes on a slow machine."""
SOON = 0.02

PIECES = ["Sun,", "06", "31", "Nov", "2025", "94", "08:49:37", "8.49", "99:99:99", "GMT", "+0100", "-9999", "-", ":"]
PIECES += [",", "(", "\0", "٣", "1e9", "9" * 30]


class SetClock(Clock):
    """A clock that stands where it was set."""

    def __init__(self, at: float = 0.0) -> None:
        super().__init__()
        self.at = at

    def now(self) -> float:
        return self.at


def soon(do: Callable[[], None]) -> None:
    """Let another thread do something while this one waits."""
    timer = threading.Timer(SOON, do)
    timer.daemon = True
    timer.start()


# --- the clock ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [1.0, 60.0])
def test_counts_suspended_time(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    """The clock counts from the machine's start, suspended time included, times its speed."""
    monkeypatch.setattr("dexcom2mqtt.clock.time.clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)
    assert Clock(speed).now() == 7 * speed


def test_passes() -> None:
    """The clock goes on by itself, and never back."""
    clock = Clock(FAST)
    before = time.clock_gettime(time.CLOCK_BOOTTIME) * FAST
    times = [clock.now() for _ in range(1000)]
    assert before <= times[0] < times[-1]
    assert times == sorted(times)


def test_knows_how_long_it_takes_in_truth() -> None:
    """At sixty times the speed, a minute takes a second."""
    assert Clock(60.0).real(60.0) == 1.0
    assert Clock().real(60.0) == 60.0


# --- waiting -----------------------------------------------------------------------------------------------


def test_wait_ends_by_time() -> None:
    """A wait that nobody interrupts lasts as long as it was asked to, and says that it was not rung."""
    clock = Clock(FAST)
    before = clock.now()
    assert clock.alarm().wait(5.0) is False
    assert clock.now() >= before + 5.0


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_wait_for_no_time(seconds: float) -> None:
    """A wait for no time, or for a time that is over, ends at once."""
    assert Clock().alarm().wait(seconds) is False


def test_ring_ends_a_wait() -> None:
    """A ring from another thread ends the wait, which says so."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    before = clock.now()
    soon(alarm.ring)
    assert alarm.wait(LONG) is True
    assert clock.now() < before + LONG / 2


@pytest.mark.parametrize("seconds", [LONG, 0.0])
def test_ring_before_a_wait_is_not_lost(seconds: float) -> None:
    """A ring while nobody waits ends the next wait, and only that one, however often it was."""
    alarm = Clock(FAST).alarm()
    alarm.ring()
    alarm.ring()
    assert alarm.wait(seconds) is True
    assert alarm.wait(1.0) is False


def test_each_alarm_rings_for_itself() -> None:
    """A ring ends the waits of its own alarm only."""
    clock = Clock(FAST)
    one, other = clock.alarm(), clock.alarm()
    one.ring()
    assert other.wait(1.0) is False


@pytest.mark.parametrize("kind", ["wait", "sleep"])
def test_an_alarm_says_when_its_wait_will_be_over(kind: str) -> None:
    """Before each wait, and before one that goes on although it rang, whoever watches the thread is told."""
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
    """A wait looks at the clock in between, so that hours of suspension end it."""
    monkeypatch.setattr("dexcom2mqtt.clock._SLICE", SOON)
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


@pytest.mark.parametrize("stopped", [False, True])
def test_tells_whether_it_was_stopped(*, stopped: bool) -> None:
    """Whoever does not wait can ask whether the program is to end."""
    clock = Clock()
    if stopped:
        clock.stop()
    assert clock.stopped is stopped


def test_stop_matters_more_than_a_ring() -> None:
    """A wait that was rung and stopped is stopped."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    alarm.ring()
    clock.stop()
    with pytest.raises(Stopped):
        alarm.wait(LONG)


def test_handlers_of_errors_do_not_stop_the_stop() -> None:
    """The stop is no Exception, so that code which survives everything does not survive it."""
    assert not issubclass(Stopped, Exception)


# --- sleeping ----------------------------------------------------------------------------------------------


def test_sleep_ends_by_time() -> None:
    """A sleep lasts as long as it was asked to, and leaves no ring behind."""
    clock = Clock(FAST)
    alarm = clock.alarm()
    before = clock.now()
    alarm.sleep(5.0)
    assert clock.now() >= before + 5.0
    assert alarm.wait(1.0) is False


def test_sleep_ignores_rings_but_keeps_them() -> None:
    """Rings before and during a sleep do not shorten it, and end the wait after it."""
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


# --- the time of day ---------------------------------------------------------------------------------------

IGNORED = [
    None,
    "",
    " ",
    "0",
    "now",
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "Fri, 31 Dec 1999 23:59:59 GMT",
    "Fri, 01 Jan 2100 00:00:01 GMT",
    "Sun, 32 Nov 2025 08:49:37 GMT",
    "Sun, 06 Nov 2025 25:49:37 GMT",
    "Sun, 06 Nov 99999 08:49:37 GMT",
    "Sun, 06 Nov 2025",
    "2025-04-19T12:00:00Z",
]

latencies = st.tuples(st.floats(0, 20), st.floats(0, 20))
truths = st.floats(1e9, 2e9)
answers = st.lists(st.tuples(st.floats(0, 900), latencies), min_size=1, max_size=20)

ROUNDING = 1e-5


def header(unix: float) -> str:
    """Write a Date header, which is cut to whole seconds."""
    return format_datetime(datetime.fromtimestamp(int(unix), UTC), usegmt=True)


@dataclass
class World:
    """A clock that began at ``truth``, and Share, which knows the truth and answers after some latency."""

    truth: float
    clock: SetClock = field(default_factory=lambda: SetClock(1000.0))

    def __post_init__(self) -> None:
        self.share = ShareTime(self.clock)

    def answer(self, latency: tuple[float, float]) -> None:
        """Let a request take so long to Share, and its answer so long back."""
        there, back = latency
        sent = self.clock.at
        self.clock.at += there
        date = header(self.truth + self.clock.at)
        self.clock.at += back
        self.share.tell(date, sent)

    @property
    def offset(self) -> float:
        """What Share's time is believed to be where the clock began."""
        unix = self.share.unix(0.0)
        assert unix is not None
        return unix

    @property
    def error(self) -> float:
        """How far what is believed is off."""
        return abs(self.offset - self.truth)


def test_knows_no_time_before_share_has_told_it() -> None:
    """Until Share has told the time, nobody knows it."""
    share = ShareTime(SetClock(100.0))
    assert not share.known
    assert share.now() is None
    assert share.unix(1.0) is None
    assert share.at(NOON) is None


def test_turns_times_into_each_other() -> None:
    """Times of the clock become times of day and back."""
    clock = SetClock(100.0)
    share = ShareTime(clock)
    share.tell(header(NOON), 100.0)
    assert share.known
    assert share.now() == pytest.approx(NOON + 0.5, abs=0.5)
    assert share.unix(42.0) == pytest.approx(NOON + 0.5 - 58, abs=0.5)
    assert share.at(share.unix(42.0) or 0) == pytest.approx(42.0, abs=ROUNDING)
    clock.at += 60
    assert share.now() == pytest.approx(NOON + 60.5, abs=0.5)


@given(truth=truths, answers=answers)
@property_of
def test_each_answer_brings_the_time_nearer(truth: float, answers: list[tuple[float, tuple[float, float]]]) -> None:
    """No answer moves the time away from the truth, and after each it is off by its latency and a second at most."""
    world = World(truth)
    error = float("inf")
    for pause, latency in answers:
        world.clock.at += pause
        world.answer(latency)
        assert world.error <= error + ROUNDING
        assert world.error <= 1 + sum(latency) + ROUNDING
        error = world.error


@given(truth=truths, before=answers, after=answers)
@property_of
def test_one_quick_answer_settles_the_time(
    truth: float, before: list[tuple[float, tuple[float, float]]], after: list[tuple[float, tuple[float, float]]]
) -> None:
    """However slow the others are, before and after a quick answer: the time is right within a second."""
    world = World(truth)
    for answers in (before, [(0.0, (0.0, 0.0))], after):
        for pause, latency in answers:
            world.clock.at += pause
            world.answer(latency)
    assert world.error <= 1 + ROUNDING


@given(truth=truths)
@property_of
def test_first_answer_is_believed_in_its_middle(truth: float) -> None:
    """A first answer that comes at once leaves half a second in doubt."""
    world = World(truth)
    world.answer((0.0, 0.0))
    assert world.error <= 0.5 + ROUNDING


@given(truth=truths, answers=answers)
@property_of
def test_stands_still_where_nothing_contradicts(truth: float, answers: list[tuple[float, tuple[float, float]]]) -> None:
    """What was told once moves nothing when it is told again, to the last bit."""
    world = World(truth)
    for moved in (True, False):
        world.clock.at = 1000.0
        for pause, latency in answers:
            before = world.offset if world.share.known else None
            world.clock.at += pause
            world.answer(latency)
            assert moved or world.offset == before


def told(*answers: tuple[float, float]) -> tuple[World, list[int]]:
    """Let Share answer, each time so many seconds after the last and with a Date wrong by so many.

    Return by how much the time was wrong after each.
    """
    world, wrong = World(NOON), []
    for pause, off in answers:
        world.clock.at += pause
        world.share.tell(header(world.truth + world.clock.at + off), world.clock.at)
        wrong.append(round(world.offset - world.truth))
    return world, wrong


DAY = 86400


def test_is_settled_once_two_answers_half_a_minute_apart_agree() -> None:
    """One answer proves little, and another one right behind it no more."""
    world, _ = told((0, 0))
    assert not world.share.settled
    assert world.share.settles_at == world.clock.at + 30
    world, _ = told((0, 0), (29, 0))
    assert not world.share.settled
    world, _ = told((0, 0), (29, 0), (1, 0))
    assert world.share.settled
    assert world.share.settles_at is None


@pytest.mark.parametrize("off", [-DAY, -3600, -61, 62, 3600, DAY])
def test_a_single_wrong_date_changes_nothing(off: float) -> None:
    """Seconds to hours off, once: the time stays what two answers agreed on, but is not called settled meanwhile."""
    world, wrong = told((0, 0), (40, 0), (300, off))
    assert wrong == [0, 0, 0]
    assert not world.share.settled
    assert world.share.jumped
    world, wrong = told((0, 0), (40, 0), (300, off), (30, 0))
    assert wrong[-1] == 0
    assert world.share.settled
    assert not world.share.jumped


@pytest.mark.parametrize("off", [-3600, 3600])
def test_a_first_date_that_is_wrong_is_soon_forgotten(off: float) -> None:
    """As long as nothing was agreed on, the newest answer is as good as any."""
    world, wrong = told((0, off), (30, 0))
    assert wrong == [off, 0]
    assert not world.share.settled
    _, wrong = told((0, off), (30, 0), (30, 0))
    assert wrong[-1] == 0


def test_an_hour_of_dates_that_are_behind_changes_nothing() -> None:
    """Old readings would look new. Only after 75 minutes is it believed that the time before was wrong."""
    hour = [(300.0, -3600.0)] * 13
    world, wrong = told((0, 0), (40, 0), *hour)
    assert set(wrong) == {0}
    assert not world.share.settled
    world, wrong = told((0, 0), (40, 0), *hour, (300, 0))
    assert wrong[-1] == 0
    assert world.share.settled
    world, wrong = told((0, 0), (40, 0), *hour, *[(300.0, -3600.0)] * 3)
    assert wrong[-1] == -3600
    assert world.share.settled


def test_a_machine_that_stood_still_is_noticed_by_two_answers() -> None:
    """A virtual machine that was paused lost time: the later time counts once two answers agree, and not before."""
    world, wrong = told((0, 0), (40, 0), (300, 8 * 3600), (30, 8 * 3600))
    assert wrong == [0, 0, 0, 8 * 3600]
    assert world.share.settled


def test_a_time_that_was_agreed_on_before_needs_no_75_minutes() -> None:
    """After an hour of dates that are ahead, the right time is back half a minute after the first right answer."""
    _, wrong = told((0, 0), (40, 0), *[(300, 3600)] * 12, (300, 0), (30, 0))
    assert wrong[3] == 3600
    assert wrong[-2:] == [3600, 0]


def test_follows_a_clock_that_drifts() -> None:
    """Where the machine's clock runs slow by 100 parts in a million, the time stays right within a second or so."""
    world = World(NOON)
    for _ in range(2 * 288):
        world.clock.at += 300
        world.truth += 0.03
        world.answer((0.1, 0.1))
        assert world.error <= 1.2 + ROUNDING


@pytest.mark.parametrize("date", IGNORED)
def test_ignores_what_cannot_be_the_time(date: str | None) -> None:
    """A header that is missing, makes no sense, or is out of this century changes nothing."""
    world = World(NOON)
    world.share.tell(date, world.clock.at)
    assert not world.share.known
    world.answer((0.1, 0.1))
    before = world.offset
    world.share.tell(date, world.clock.at)
    assert world.offset == before


@given(st.one_of(any_text, st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join)), truths)
@example("Sun, 06 Nov 2025 08:49:37 +999999999999999999999", NOON)
@example("Sun, 06 Nov " + "9" * 5000 + " 08:49:37 GMT", NOON)
@property_of
def test_survives_any_header(date: str, truth: float) -> None:
    """Whatever stands in a header, nothing is raised, and the time is known or it is not."""
    world = World(truth)
    world.share.tell(date, world.clock.at)
    assert world.share.known is (world.share.now() is not None)


# --- dates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 -0000",
        "Sun, 06 Nov 1994 09:49:37 +0100",
    ],
)
def test_reads_every_form_of_an_http_date(text: str) -> None:
    """The three forms of HTTP are read, in GMT also where they do not say so."""
    assert parse_http_date(text) == 784111777


@pytest.mark.parametrize(
    ("failures", "chance", "pause"),
    [(1, 1.0, 2.0), (2, 1.0, 4.0), (3, 1.0, 8.0), (4, 1.0, 10.0), (100_000, 1.0, 10.0), (1, 0.0, 1.5), (4, 0.5, 8.75)],
)
def test_a_pause_grows_up_to_a_limit_and_is_spread_by_chance(failures: int, chance: float, pause: float) -> None:
    """Each failure more doubles the pause, up to the limit, and chance takes off up to a part of it."""
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
    """Times are ISO 8601 in UTC, cut to whole seconds, and null where they are unknown."""
    assert iso(unix) == text


@pytest.mark.parametrize("unix", [0, NOON, 4_000_000_000])
def test_reads_the_times_that_it_writes(unix: float) -> None:
    """A time that was written as ISO 8601 comes back."""
    assert parse_iso(iso(unix)) == unix


@pytest.mark.parametrize("text", [None, 3, [], "", "soon", "2025-04-19", "2025-04-19T12:00:00"])
def test_reads_no_time_that_is_none(text: object) -> None:
    """What is no time, or has no offset, is none."""
    assert parse_iso(text) is None
