"""When to poll, and how long to wait after a failure."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt.account import schedule
from dexcom2mqtt.account.schedule import Rhythm, Timetable, backoff
from tests.support.builders import most_within, property_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INTERVAL = 300
MINUTE = 60
HOUR = 3600
DAY = 86400

START = 10_000_000.0

times = st.floats(0, 1e8) | st.integers(0, 10**12).map(lambda part: part / 9973)  # the latter have no round digits


def test_keeps_the_documented_intervals() -> None:
    """A full read comes every hour, a refresh every 30 s at most, and a poll every 30 s while the clock is wrong."""
    assert schedule.FULL_READ_EVERY == HOUR
    assert schedule.REFRESH_EVERY == 30
    assert schedule.WRONG_CLOCK == 30


# --- polling -----------------------------------------------------------------------------------------------


def polls_without_readings(newest: float | None, now: float, hours: float) -> list[float]:
    """Poll for that many hours in which no reading arrives."""
    rhythm, polls = Rhythm(), [now]
    while polls[-1] < now + hours * HOUR:
        polls.append(rhythm.next_poll(newest, polls[-1]))
        assert polls[-1] > polls[-2]
    return polls


DELAY = Rhythm().delay
EARLIEST, LATEST = -295, 270  # the bounds of the delay
EXPECTED = START + INTERVAL
FIRST_TRY = EXPECTED + DELAY


@pytest.mark.parametrize("since", [0.5, 10, 20, 200, 299, 314])
def test_asks_for_a_reading_when_it_should_be_readable(since: float) -> None:
    """The first try for a reading comes 300 s plus the delay after the newest reading was taken."""
    assert Rhythm().next_poll(START, START + since) == FIRST_TRY


def test_polls_a_few_times_if_a_reading_is_late() -> None:
    """After the first try, a late reading is asked for twice quickly, then every 45 s until the next first try."""
    polls = [at for at in polls_without_readings(START, START + 20, 1) if FIRST_TRY <= at <= FIRST_TRY + INTERVAL]
    gaps = [after - before for before, after in pairwise(polls)]
    assert polls[0] == FIRST_TRY
    assert polls[-1] == FIRST_TRY + INTERVAL
    assert gaps[0] < gaps[1] < 15
    assert all(20 <= gap <= 60 for gap in gaps[2:])
    assert len(gaps) <= 10


def test_polls_less_often_if_readings_stay_away() -> None:
    """After the first late reading, there is one poll every 5 minutes, within a minute of a possible new reading."""
    later = [at for at in polls_without_readings(START, START + 20, 24) if at > FIRST_TRY + INTERVAL]
    assert len(later) > 280
    assert all(0 < (at - FIRST_TRY) % INTERVAL <= 45 for at in later)


def test_polls_less_often_if_there_never_was_a_reading() -> None:
    """If no reading is known, one poll every 5 minutes waits for the first."""
    gaps = [after - before for before, after in pairwise(polls_without_readings(None, START, 24))]
    assert set(gaps) == {INTERVAL}


def test_hours_without_readings_are_cheap() -> None:
    """No hour without readings costs more than 13 polls, apart from those for the first late reading."""
    polls = polls_without_readings(START, START + 20, 24)
    assert most_within(polls, HOUR) <= 22  # up to 10 for the late reading, and 12
    assert most_within([at for at in polls if at > FIRST_TRY + INTERVAL], HOUR) <= 13


seconds_after = st.floats(-1e5, 1e5)
lessons = st.lists(st.tuples(seconds_after, st.floats(0, 1e4)), max_size=60)
"""Possible lessons, sensible or not: the last poll without a reading, and how much later it was found."""


def taught(lessons: Iterable[tuple[float, float]]) -> Rhythm:
    rhythm = Rhythm()
    for missed, later in lessons:
        rhythm.learn(missed, missed + later)
    return rhythm


@given(newest=times | st.none(), passed=st.floats(-400, 1e6), lessons=lessons)
@property_of
def test_next_poll_is_near(newest: float | None, passed: float, lessons: list[tuple[float, float]]) -> None:
    """Whatever was learned, the next poll is in the future, and at most 5 minutes and the delay from now."""
    rhythm = taught(lessons)
    now = max(0.0, (newest or 0.0) + passed)
    assert EARLIEST <= rhythm.delay <= LATEST
    assert now < rhythm.next_poll(newest, now) <= now + INTERVAL + max(rhythm.delay, 0)


@given(newest=times, missed=st.integers(0, 1000))
@example(newest=120202.75402919942, missed=40)
@example(newest=7637.410903730602, missed=2)
@property_of
def test_polling_at_the_exact_moment(newest: float, missed: int) -> None:
    """A poll made exactly at the time of a first try, to the last bit, is followed by another one."""
    rhythm = Rhythm()
    now = newest + INTERVAL + DELAY + INTERVAL * missed
    assert now < rhythm.next_poll(newest, now) <= now + INTERVAL + DELAY


@given(newest=times, lessons=lessons, hours=st.integers(1, 5))
@property_of
def test_every_rhythm_is_cheap_without_readings(newest: float, lessons: list[tuple[float, float]], hours: int) -> None:
    """Whatever was learned, an hour without readings costs at most 13 polls after those for the first late one."""
    rhythm, polls = taught(lessons), [newest + 2 * INTERVAL + LATEST + 1]
    while polls[-1] < polls[0] + hours * HOUR:
        polls.append(rhythm.next_poll(newest, polls[-1]))
    assert most_within(polls, HOUR) <= 13  # 12, and one before they settle to every 5 minutes


def test_a_reading_of_the_future_does_not_delay_polling() -> None:
    """If a wrong clock puts the newest reading ahead, the next poll still comes within 5 minutes and the delay."""
    assert START < Rhythm().next_poll(START + 300, START) <= START + INTERVAL + DELAY


# --- learning ----------------------------------------------------------------------------------------------


def lived(rhythm: Rhythm, delays: Iterable[float], answer: float = 0.0) -> list[float]:
    """Poll for readings that are readable so many seconds after they were taken; return how much later each was found.

    Each answer takes ``answer`` seconds, which do not count.
    """
    asked, newest, waited = START + 20, START, []
    for number, delay in enumerate(delays, start=1):
        taken, before = START + number * INTERVAL, asked
        while asked < taken + delay:
            before, asked = asked, rhythm.next_poll(newest, asked + answer)
        waited.append(asked - taken - delay)
        rhythm.learn(missed=before - taken, found=asked - taken)
        newest = taken
    return waited


def exponential(fixed: float, mean: float, count: int) -> list[float]:
    """Return delays spread evenly over an exponential distribution, in shuffled order."""
    return [fixed - mean * math.log(1 - (number * 0.618034 + 0.5) % 1) for number in range(count)]


def test_nothing_is_learned_at_first() -> None:
    """Until a reading has revealed something, the delay is a guess and does not count as learned."""
    rhythm = Rhythm()
    assert not rhythm.has_learned
    lived(rhythm, [10.0])
    assert rhythm.has_learned


def test_it_resumes_from_what_was_learned() -> None:
    """After a restart, the first reading is asked for as before it, and nothing is probed again."""
    before, after = Rhythm(), Rhythm()
    lived(before, exponential(25, 8, 300))
    after.restore(before.delay, before.spread)
    assert after.has_learned
    for now in (START + 1.0, START + INTERVAL + before.delay + 0.1, START + INTERVAL + before.delay + 60):
        assert after.next_poll(START, now) == before.next_poll(START, now)
    assert after.take_probe(START, START) == math.inf


def test_what_was_learned_since_the_restart_is_newer() -> None:
    """What is read back late changes nothing once a reading has revealed something."""
    rhythm = Rhythm()
    lived(rhythm, [10.0])
    learned = rhythm.delay, rhythm.spread
    rhythm.restore(100.0, 12.0)
    assert (rhythm.delay, rhythm.spread) == learned


@pytest.mark.parametrize(("delay", "spread"), [(1e300, -1e300), (-1e300, 1e300), (0.0, 0.0)])
def test_impossible_numbers_from_before_a_restart_do_no_harm(delay: float, spread: float) -> None:
    """Whatever the broker retained, the next poll is in the future and not too late."""
    rhythm = Rhythm()
    rhythm.restore(delay, spread)
    for now in range(0, 1200, 7):
        assert START + now < rhythm.next_poll(START, START + now) <= START + now + 2 * INTERVAL


@pytest.mark.parametrize("delay", [5.0, 8.0, 12.0, 25.0, 40.0, 80.0])
def test_it_learns_when_readings_become_readable(delay: float) -> None:
    """Within a day it finds a steady delay, and then waits seconds at little more than one request."""
    rhythm = Rhythm()
    waited = lived(rhythm, [delay] * 288)
    assert delay - 0.5 <= rhythm.delay <= delay + 3
    assert max(waited[-100:]) < 6
    assert sum(waited[-100:]) / 100 < 2


@pytest.mark.parametrize(("before", "after"), [(8.0, 40.0), (40.0, 8.0), (12.0, 25.0), (25.0, 12.0)])
def test_it_follows_a_delay_that_changes(before: float, after: float) -> None:
    """Another phone, another delay: within half a day it is found, whether longer or shorter."""
    rhythm = Rhythm()
    lived(rhythm, [before] * 288 + [after] * 144)
    assert abs(rhythm.delay - after) < 4


@pytest.mark.parametrize("ahead", [20.0, 60.0, 130.0, 240.0, 290.0])
@pytest.mark.parametrize("phase", [1.0, 100.0, 200.0, 299.0])
def test_a_phone_that_is_ahead_is_as_fast_as_any(ahead: float, phase: float) -> None:
    """Stamps up to five minutes ahead: within 40 minutes readings are found seconds after they can be read."""
    waited = ahead_of_time(Rhythm(), [ahead] * 40, phase)
    assert max(waited[8:]) < 25
    assert mean(waited[20:]) < 8


@pytest.mark.parametrize("ahead", [60.0, 240.0])
def test_a_corrected_phone_is_noticed(ahead: float) -> None:
    """Set ahead while running, then corrected: each is learned within the hour, and the next delay is positive."""
    rhythm = Rhythm()
    waited = ahead_of_time(rhythm, [0.0] * 30 + [ahead] * 30 + [0.0] * 30, 50.0)
    assert max(waited[38:60]) < 25
    assert mean(waited[70:]) < 12
    assert 0 < rhythm.delay < 20


def ahead_of_time(rhythm: Rhythm, ahead: Sequence[float], phase: float) -> list[float]:
    """Poll for readings that can be read 10 s after they were taken, and are stamped that many seconds ahead.

    The first poll comes `phase` seconds after a reading; return how much later than readable each was found.
    """
    taken = [START + number * INTERVAL for number in range(len(ahead))]
    stamps = [at + by for at, by in zip(taken, ahead, strict=True)]
    asked, before, known, waited = START + 10 + phase, None, -1, []
    while known < len(taken) - 1:
        newest = max(number for number, at in enumerate(taken) if at + 10 <= asked)
        if newest > known:
            waited.append(asked - taken[newest] - 10)
            if before is not None:
                rhythm.learn(missed=before - stamps[newest], found=asked - stamps[newest])
            known = newest
        before = asked
        asked = min(rhythm.next_poll(stamps[known], asked), rhythm.take_probe(stamps[known], asked))
    return waited


def test_readings_that_are_late_for_other_reasons_teach_nothing() -> None:
    """Some readings that arrive minutes late, up to every other one, leave the delay unchanged."""
    rhythm = Rhythm()
    lived(rhythm, [8.0] * 288)
    learned = rhythm.delay
    lived(rhythm, [130.0, 8.0] * 300)
    assert abs(rhythm.delay - learned) < 4


@pytest.mark.parametrize(("delay", "bound"), [(-299.0, EARLIEST), (299.0, LATEST)])
def test_the_delay_stays_within_its_bounds(delay: float, bound: float) -> None:
    """However early or late all readings arrive, the delay stays within five minutes of the stamp."""
    rhythm = Rhythm()
    lived(rhythm, [delay] * 500)
    assert rhythm.delay == bound


@pytest.mark.parametrize("answer", [0.0, 2.0, 5.0])
def test_slow_answers_do_no_harm(answer: float) -> None:
    """If an answer takes seconds, a reading is asked for hardly later than if it is immediate."""
    rhythm = Rhythm()
    waited = lived(rhythm, exponential(8.0, 2.0, 2880), answer)
    assert mean(waited[288:]) < 5


def test_the_distance_of_the_quick_polls_follows_the_spread() -> None:
    """If delays vary by tens of seconds, the quick polls are further apart than if they vary by one."""

    def learned(spread: float) -> float:
        rhythm = Rhythm()
        lived(rhythm, exponential(20.0, spread, 2000))
        return second_poll(rhythm)

    assert 1 < learned(0.1) < 3 < learned(4) < 12 < learned(60) <= 30


def second_poll(rhythm: Rhythm) -> float:
    """Return how many seconds after the first try the second poll comes."""
    first = rhythm.next_poll(START, START)
    return rhythm.next_poll(START, first) - first


def test_failures_teach_nothing_about_the_spread() -> None:
    """If the polls after the first failed, it is unknown how much later the reading was readable."""
    rhythm = Rhythm()
    before = second_poll(rhythm)
    for _ in range(20):
        rhythm.learn(missed=rhythm.delay, found=280.0)
    assert second_poll(rhythm) == pytest.approx(before)


def test_a_poll_that_came_late_teaches_nothing() -> None:
    """If no poll came near the first try, nothing is known, and nothing counts as learned."""
    rhythm = Rhythm()
    rhythm.learn(missed=-200.0, found=200.0)
    assert not rhythm.has_learned
    lived(rhythm, [8.0] * 288)
    learned = rhythm.delay
    for _ in range(100):
        rhythm.learn(missed=-200.0, found=100.0)
    assert rhythm.delay == learned


def test_a_single_late_reading_teaches_nothing() -> None:
    """A first reading that arrived minutes late teaches nothing."""
    rhythm = Rhythm()
    rhythm.learn(missed=76.0, found=121.0)
    assert not rhythm.has_learned


# --- failures ----------------------------------------------------------------------------------------------


@given(failures=st.integers(1, 100_000), chance=st.floats(0, 1))
@property_of
def test_backoff_is_bounded(failures: int, chance: float) -> None:
    """However often polls fail and whatever the chance, the wait is at least seconds and at most 5 minutes."""
    assert 1 <= backoff(failures, lambda: chance) <= 300


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_backoff_grows_from_seconds(chance: float) -> None:
    """The first failure costs seconds, each further one more, up to minutes."""
    waits = [backoff(failures, lambda: chance) for failures in range(1, 20)]
    assert waits[0] <= 10
    assert all(before <= after for before, after in pairwise(waits))
    assert waits[1] > waits[0]
    assert waits[-1] >= 120


def test_backoff_is_spread_by_chance() -> None:
    """Chance spreads out accounts that failed at the same moment."""
    assert backoff(7, lambda: 0.0) < backoff(7, lambda: 0.5) < backoff(7, lambda: 1.0)


# --- the timetable of one account --------------------------------------------------------------------------


def always(chance: float = 1.0) -> Timetable:
    return Timetable(lambda: chance)


def polled(timetable: Timetable, now: float, **facts: Any) -> float:
    """Record a successful poll that began and asked a second earlier, and found nothing new."""
    defaults = {"asked": now - 1, "newest": None, "new": False, "settles_at": None}
    timetable.succeeded(began=now - 1, now=now)
    return timetable.after_batch(now=now, **(defaults | facts))


def failed(timetable: Timetable, now: float, **facts: Any) -> float:
    """Record a failed poll."""
    defaults = {"wrong_clock": False, "limited": False, "sign_in_at": math.inf}
    return timetable.after_failure(now, **(defaults | facts))


def test_a_whole_day_is_read_once_an_hour() -> None:
    """The first poll reads a whole day, then one each hour does; the others read what is needed, or all if unknown."""
    timetable = always()
    assert timetable.minutes(START, 5) == schedule.WHOLE_DAY == 1440
    polled(timetable, START + 1)
    read = [timetable.minutes(START + seconds, 5) for seconds in (1, HOUR - 1, HOUR)]
    assert read == [5, 5, 1440]
    assert timetable.minutes(START + 1, None) == 1440
    polled(timetable, START + HOUR + 1)
    assert timetable.minutes(START + HOUR + 2, 7) == 7


def test_a_whole_day_is_due_until_it_was_read() -> None:
    """A whole day is due until one has been read."""
    timetable = always()
    failed(timetable, START)
    assert timetable.minutes(START + 5, 5) == 1440


def test_retries_need_a_successful_poll_before() -> None:
    """The first poll makes one attempt, one after a success up to three, one after a failure one again."""
    timetable = always()
    attempts = [timetable.attempts]
    polled(timetable, START)
    attempts.append(timetable.attempts)
    failed(timetable, START + 300)
    attempts.append(timetable.attempts)
    polled(timetable, START + 305)
    attempts.append(timetable.attempts)
    assert attempts == [1, 3, 1, 3]


def test_knows_when_a_poll_last_succeeded() -> None:
    """It is part of the status; a failure does not change it."""
    timetable = always()
    assert timetable.last_success is None
    polled(timetable, START)
    failed(timetable, START + 300)
    assert [timetable.last_success] == [START]


def test_the_next_poll_comes_with_the_next_reading() -> None:
    """After a reading the next poll comes when the next one is readable; the first time, one poll comes 20 s early."""
    timetable = always()
    expected = START - 20 + INTERVAL
    assert polled(timetable, START, newest=START - 20) == expected - 20
    assert polled(timetable, START + 280, newest=START - 20) == expected + DELAY
    assert polled(timetable, START + 400) == START + 400 + INTERVAL  # no reading is known


def test_it_learns_from_new_readings_alone() -> None:
    """The delay is learned once a new reading follows a successful poll, not from one that was there before."""
    timetable = always()
    polled(timetable, START, newest=START - 100, new=True)
    assert timetable.learned is None  # no poll came before it
    polled(timetable, START + 220, newest=START - 100)
    assert [timetable.learned] == [None]
    polled(timetable, START + 216, newest=START + 200, new=True)
    assert timetable.learned == pytest.approx((DELAY, 4), abs=1)


@pytest.mark.parametrize(("failures", "seconds"), [(1, 5), (2, 10), (3, 20), (20, 300)])
def test_failures_in_a_row_double_the_wait(failures: int, seconds: float) -> None:
    """Each failure in a row doubles the wait, up to five minutes; after a success it starts over."""
    timetable = always()
    for _ in range(failures - 1):
        failed(timetable, START)
    assert failed(timetable, START) == START + seconds
    polled(timetable, START)
    assert failed(timetable, START) == START + 5


def test_a_rate_limit_and_a_wrong_clock_do_not_back_off() -> None:
    """A rate limit adds no wait of its own; a wrong clock is checked again soon, however often."""
    timetable = always()
    for _ in range(10):
        failed(timetable, START)
    assert failed(timetable, START, limited=True) == START
    assert failed(timetable, START, wrong_clock=True) == START + 30


def test_a_session_that_seems_dead_is_renewed_in_time() -> None:
    """A sign-in that should come before the next poll makes that earlier; an overdue one changes nothing."""
    timetable = always()
    for _ in range(10):
        failed(timetable, START)
    assert failed(timetable, START, sign_in_at=START + 60) == START + 60
    assert failed(timetable, START, sign_in_at=START + 900) == START + 300
    assert failed(timetable, START, sign_in_at=START) == START + 300


def test_a_time_in_doubt_is_asked_for_again_soon() -> None:
    """As soon as another answer may settle the time, but after at least half a minute, and five times in a row."""
    timetable = always()
    assert polled(timetable, START, settles_at=START + 45) == START + 45
    assert polled(timetable, START, settles_at=START + 5) == START + 30
    assert polled(timetable, START, settles_at=START + 60) == START + INTERVAL  # a usual poll comes soon enough
    rest = [polled(timetable, START, settles_at=START + 40) for _ in range(4)]
    assert rest == [START + 40] * 3 + [START + INTERVAL]
    polled(timetable, START)  # it is settled
    assert polled(timetable, START, settles_at=START + 40) == START + 40
