"""When to poll, when to sign in, and how long to leave Share alone."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean as mean
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt import schedule
from dexcom2mqtt.schedule import DeadSession, Rhythm, SignIns, backoff, rate_limit
from tests.support.builders import property_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INTERVAL = 300
MINUTE = 60
HOUR = 3600
DAY = 86400

START = 10_000_000.0

times = st.floats(0, 1e8) | st.integers(0, 10**12).map(lambda part: part / 9973)  # the latter have no round digits


def most_within(events: Iterable[float], seconds: float) -> int:
    """Count the events of the fullest window of that many seconds."""
    events = sorted(events)
    return max(sum(start <= at < start + seconds for at in events) for start in events)


def test_keeps_the_intervals_that_were_promised() -> None:
    """A full read comes each hour, a refresh each 30 s at most, and a try each 30 s while the clock is wrong."""
    assert schedule.FULL_READ_EVERY == HOUR
    assert schedule.REFRESH_EVERY == 30
    assert schedule.WRONG_CLOCK == 30


# --- polling -----------------------------------------------------------------------------------------------


def polls_without_readings(newest: float | None, now: float, hours: float) -> list[float]:
    """Poll for so many hours in which no reading comes."""
    rhythm, polls = Rhythm(), [now]
    while polls[-1] < now + hours * HOUR:
        polls.append(rhythm.next_poll(newest, polls[-1]))
        assert polls[-1] > polls[-2]
    return polls


DELAY = Rhythm().delay
DUE = START + INTERVAL + DELAY


@pytest.mark.parametrize("since", [0.5, 10, 20, 200, 299, 314])
def test_asks_for_a_reading_when_it_is_due(since: float) -> None:
    """The next poll comes 300 s and the delay after the newest reading was taken."""
    assert Rhythm().next_poll(START, START + since) == DUE


def test_tries_a_few_times_where_a_reading_is_late() -> None:
    """A late reading is asked for at once again, twice, then every few tens of seconds, until the next one is due."""
    tries = [at for at in polls_without_readings(START, START + 20, 1) if DUE <= at <= DUE + INTERVAL]
    gaps = [after - before for before, after in pairwise(tries)]
    assert tries[0] == DUE
    assert tries[-1] == DUE + INTERVAL
    assert gaps[0] < gaps[1] < 15
    assert all(20 <= gap <= 60 for gap in gaps[2:])
    assert len(gaps) <= 10


def test_calms_down_where_readings_stay_away() -> None:
    """After the first late reading, one poll each 5 minutes goes on, within a minute after one would be readable."""
    later = [at for at in polls_without_readings(START, START + 20, 24) if at > DUE + INTERVAL]
    assert len(later) > 280
    assert all(0 < (at - DUE) % INTERVAL <= 45 for at in later)


def test_calms_down_where_there_never_was_a_reading() -> None:
    """Where no reading is known, one poll each 5 minutes waits for the first."""
    gaps = [after - before for before, after in pairwise(polls_without_readings(None, START, 24))]
    assert set(gaps) == {INTERVAL}


def test_hours_without_readings_are_cheap() -> None:
    """No hour without readings costs more than 13 polls, the tries of the first late reading aside."""
    polls = polls_without_readings(START, START + 20, 24)
    assert most_within(polls, HOUR) <= 22
    assert most_within([at for at in polls if at > DUE + INTERVAL], HOUR) <= 13


seconds_after = st.floats(-1e5, 1e5)
lessons = st.lists(st.tuples(seconds_after, st.floats(0, 1e4)), max_size=60)
"""What can be learned from, sensible or not: when it was asked for in vain, and how much later it was found."""


def taught(lessons: Iterable[tuple[float, float]]) -> Rhythm:
    rhythm = Rhythm()
    for missed, later in lessons:
        rhythm.learn(missed, missed + later)
    return rhythm


@given(newest=times | st.none(), passed=st.floats(-400, 1e6), lessons=lessons)
@property_of
def test_next_poll_is_near(newest: float | None, passed: float, lessons: list[tuple[float, float]]) -> None:
    """Whatever was learned, the next poll is in the future, and no later than 5 minutes and the delay from now."""
    rhythm = taught(lessons)
    now = max(0.0, (newest or 0.0) + passed)
    assert -295 <= rhythm.delay <= 270
    assert now < rhythm.next_poll(newest, now) <= now + INTERVAL + max(rhythm.delay, 0)


@given(newest=times, missed=st.integers(0, 1000))
@example(newest=120202.75402919942, missed=40)
@example(newest=7637.410903730602, missed=2)
@property_of
def test_polling_at_the_very_moment(newest: float, missed: int) -> None:
    """A poll that was made exactly when it was due, to the last bit, is followed by another one."""
    rhythm = Rhythm()
    now = newest + INTERVAL + DELAY + INTERVAL * missed
    assert now < rhythm.next_poll(newest, now) <= now + INTERVAL + DELAY


@given(newest=times, lessons=lessons, hours=st.integers(1, 5))
@property_of
def test_every_rhythm_is_cheap_without_readings(newest: float, lessons: list[tuple[float, float]], hours: int) -> None:
    """Whatever was learned, an hour without readings costs at most 13 polls after the first late reading's."""
    rhythm, polls = taught(lessons), [newest + 2 * INTERVAL + 271]
    while polls[-1] < polls[0] + hours * HOUR:
        polls.append(rhythm.next_poll(newest, polls[-1]))
    assert most_within(polls, HOUR) <= 13


def test_a_reading_of_the_future_does_not_put_polling_off() -> None:
    """Where a wrong clock puts the newest reading ahead, the next poll still comes within 5 minutes and the delay."""
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
    """Return delays that are spread evenly over an exponential distribution, in no order."""
    return [fixed - mean * math.log(1 - (number * 0.618034 + 0.5) % 1) for number in range(count)]


def test_it_knows_nothing_until_it_learned() -> None:
    """Until a reading has told something, the delay is a guess and is not called learned."""
    rhythm = Rhythm()
    assert rhythm.learned is None
    lived(rhythm, [10.0])
    assert rhythm.learned == rhythm.delay


@pytest.mark.parametrize("delay", [5.0, 8.0, 12.0, 25.0, 40.0, 80.0])
def test_it_learns_when_readings_come(delay: float) -> None:
    """Within a day it has found a steady delay, and then waits seconds at hardly more than one request."""
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
def test_a_phone_that_is_ahead_is_asked_as_soon_as_any(ahead: float, phase: float) -> None:
    """Stamps up to five minutes ahead: within 40 minutes readings are found seconds after they can be read."""
    waited = ahead_of_time(Rhythm(), [ahead] * 40, phase)
    assert max(waited[8:]) < 25
    assert mean(waited[20:]) < 8


@pytest.mark.parametrize("ahead", [60.0, 240.0])
def test_a_phone_that_is_set_right_again_is_noticed(ahead: float) -> None:
    """Set ahead while running, and right again: each is learned within the hour, and the next delay is positive."""
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
        asked = min(rhythm.next_poll(stamps[known], asked), rhythm.probe(stamps[known], asked))
    return waited


def test_readings_that_are_late_for_reasons_of_their_own_teach_nothing() -> None:
    """Some readings that come minutes late, up to every other one, leave the delay where it was."""
    rhythm = Rhythm()
    lived(rhythm, [8.0] * 288)
    learned = rhythm.delay
    lived(rhythm, [130.0, 8.0] * 300)
    assert abs(rhythm.delay - learned) < 4


@pytest.mark.parametrize(("delay", "bound"), [(-299.0, -295), (299.0, 270)])
def test_the_delay_stays_within_its_bounds(delay: float, bound: float) -> None:
    """However early or late all readings come, the delay stays within five minutes before and after the stamp."""
    rhythm = Rhythm()
    lived(rhythm, [delay] * 500)
    assert rhythm.delay == bound


@pytest.mark.parametrize("answer", [0.0, 2.0, 5.0])
def test_slow_answers_spoil_nothing(answer: float) -> None:
    """Where an answer takes seconds, a reading is asked for hardly later than where it comes at once."""
    rhythm = Rhythm()
    waited = lived(rhythm, exponential(8.0, 2.0, 2880), answer)
    assert mean(waited[288:]) < 5


def test_the_quick_tries_are_as_far_apart_as_the_delays_are_spread() -> None:
    """Where delays vary by tens of seconds, the tries after the first are wider than where they vary by one."""

    def learned(spread: float) -> float:
        rhythm = Rhythm()
        lived(rhythm, exponential(20.0, spread, 2000))
        return second_try(rhythm)

    assert 1 < learned(0.1) < 3 < learned(4) < 12 < learned(60) <= 30


def second_try(rhythm: Rhythm) -> float:
    """Return how many seconds after the first try the second comes."""
    first = rhythm.next_poll(START, START)
    return rhythm.next_poll(START, first) - first


def test_failures_do_not_tell_how_delays_are_spread() -> None:
    """Where the tries after the first failed, nothing is known of how much later the reading was readable."""
    rhythm = Rhythm()
    before = second_try(rhythm)
    for _ in range(20):
        rhythm.learn(missed=rhythm.delay, found=280.0)
    assert second_try(rhythm) == pytest.approx(before)


def test_a_poll_that_came_late_teaches_nothing() -> None:
    """Where nobody asked when the reading was due, nothing is known, and nothing is called learned."""
    rhythm = Rhythm()
    rhythm.learn(missed=-200.0, found=200.0)
    assert rhythm.learned is None
    lived(rhythm, [8.0] * 288)
    learned = rhythm.delay
    for _ in range(100):
        rhythm.learn(missed=-200.0, found=100.0)
    assert rhythm.delay == learned


def test_a_late_reading_alone_is_not_called_learned() -> None:
    """A first reading that came minutes late has taught nothing."""
    rhythm = Rhythm()
    rhythm.learn(missed=76.0, found=121.0)
    assert rhythm.learned is None


# --- failures ----------------------------------------------------------------------------------------------


@given(failures=st.integers(1, 100_000), chance=st.floats(0, 1))
@property_of
def test_backoff_is_bounded(failures: int, chance: float) -> None:
    """However often polls fail and whatever chance says, the wait is at least seconds and at most 5 minutes."""
    assert 1 <= backoff(failures, lambda: chance) <= 300


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_backoff_grows_from_seconds(chance: float) -> None:
    """The first failure costs seconds, each further one more, until it costs minutes."""
    waits = [backoff(failures, lambda: chance) for failures in range(1, 20)]
    assert waits[0] <= 10
    assert all(before <= after for before, after in pairwise(waits))
    assert waits[1] > waits[0]
    assert waits[-1] >= 120


def test_backoff_is_spread_by_chance() -> None:
    """Chance spreads out those who failed at the same moment."""
    assert backoff(7, lambda: 0.0) < backoff(7, lambda: 0.5) < backoff(7, lambda: 1.0)


@pytest.mark.parametrize(
    ("asked", "seconds"), [(None, 300), (0, 60), (-5, 60), (59, 60), (60, 60), (90, 90), (3600, 3600), (3601, 3600)]
)
def test_rate_limit_waits_as_told(asked: float | None, seconds: float) -> None:
    """A rate limit lasts as long as the server asks for, from 60 s to 1 h, and 5 minutes where it does not say."""
    assert rate_limit(asked) == seconds


@given(st.floats(allow_nan=False) | st.none())
@property_of
def test_rate_limit_is_bounded(asked: float | None) -> None:
    """Whatever a server asks for, it is left alone for 60 s to 1 h."""
    assert 60 <= rate_limit(asked) <= 3600


# --- signing in --------------------------------------------------------------------------------------------


def be_rejected(sign_ins: SignIns, requests: Sequence[int], *, planned: int, lag: float = 0) -> list[float]:
    """Sign in as soon as allowed, and be rejected with so many requests each time; return when each was sent."""
    sent: list[float] = []
    now = START
    for count in requests:
        now = max(now, sign_ins.allowed_at(planned)) + lag
        sign_ins.note(now, requests=count, accepted=False)
        sent += [now] * count
    return sent


def test_first_sign_in_is_free() -> None:
    """Nothing holds the first sign-in back."""
    assert SignIns().allowed_at(1) <= START
    assert SignIns().allowed_at(2) <= START


@pytest.mark.parametrize("requests", [1, 2])
def test_credentials_that_never_worked_are_rationed(requests: int) -> None:
    """Always rejected: at most 3 requests with the password in any hour and 12 in any 24, and yet it goes on."""
    sent = be_rejected(SignIns(), [requests] * 60, planned=requests)
    assert most_within(sent, HOUR) <= 3
    assert most_within(sent, DAY) <= 12
    assert sent[-1] - sent[0] <= 60 * requests / 12 * 1.5 * DAY


def test_first_rejection_is_followed_by_another_try_soon() -> None:
    """Share rejects right credentials now and then: on a very first start the second try comes after 2 minutes."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=1, accepted=False)
    assert sign_ins.allowed_at(1) == START + 2 * MINUTE
    assert sign_ins.allowed_at(2) == START + 2 * MINUTE


@given(
    st.lists(st.integers(1, 2), min_size=20, max_size=40),
    st.floats(0, 4000),
)
@property_of
def test_any_mix_of_rejected_sign_ins_is_rationed(requests: list[int], lag: float) -> None:
    """Whether the first or the second step is rejected, and however late the poll, the budgets hold."""
    sent = be_rejected(SignIns(), requests, planned=2, lag=lag)
    assert most_within(sent, HOUR) <= 3
    assert most_within(sent, DAY) <= 12


@pytest.mark.parametrize("answer", ["none", "locked out"])
def test_every_request_with_the_password_is_an_attempt(answer: str) -> None:
    """Once rejected, requests that get no answer or find the account locked use up the same budgets."""
    sign_ins = SignIns()
    now = START
    sign_ins.note(now, requests=1, accepted=False)
    sent = [now]
    while now < START + 20 * HOUR:
        now = max(now + 5 * MINUTE, sign_ins.allowed_at(1))
        sign_ins.note(now, requests=1, accepted=None)
        if answer == "locked out":
            sign_ins.lock_out(now)
        sent.append(now)
    assert most_within(sent, HOUR) <= 3
    assert most_within(sent, DAY) <= 12


def test_credentials_that_worked_before_are_tried_calmly() -> None:
    """Rejected although they worked: again after 5 minutes, then every 30 minutes for 6 hours, then every 2 hours."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=True)
    sent = be_rejected(sign_ins, [1] * 60, planned=1)
    assert [after - before for before, after in pairwise(sent)] == [5 * MINUTE] + [30 * MINUTE] * 12 + [2 * HOUR] * 46


def test_acceptance_ends_a_row_of_rejections() -> None:
    """Once accepted, the next sign-in is free, and the next rejection counts as a first."""
    sign_ins = SignIns()
    for accepted in (True, False, False, True):
        sign_ins.note(START, requests=1, accepted=accepted)
    assert sign_ins.allowed_at(1) <= START
    sign_ins.note(START + HOUR, requests=1, accepted=False)
    assert sign_ins.allowed_at(1) == START + HOUR + 5 * MINUTE


@pytest.mark.parametrize("worked_before", [True, False])
def test_survives_an_outage_after_a_rejection(worked_before: bool) -> None:
    """A sign-in that gets no answer more than a day after the last rejection is followed by another try."""
    sign_ins = SignIns()
    if worked_before:
        sign_ins.note(START, requests=1, accepted=True)
    sign_ins.note(START, requests=1, accepted=False)
    later = START + DAY + HOUR
    sign_ins.note(later, requests=1, accepted=None)
    assert sign_ins.rejected == []
    assert sign_ins.allowed_at(1) <= later + HOUR


def test_sign_in_without_an_answer_is_no_rejection() -> None:
    """Where Share did not say, nothing was rejected, and the next sign-in need not wait."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=None)
    assert sign_ins.rejected == []
    assert sign_ins.allowed_at(2) <= START


@pytest.mark.parametrize("worked_before", [True, False])
def test_lock_out_is_sat_out(worked_before: bool) -> None:
    """A locked account is left alone for 20 minutes."""
    sign_ins = SignIns()
    if worked_before:
        sign_ins.note(START - HOUR, requests=1, accepted=True)
    sign_ins.note(START, requests=1, accepted=None)
    sign_ins.lock_out(START)
    assert sign_ins.allowed_at(1) == START + 20 * MINUTE == START + schedule.LOCKED_OUT


def test_lock_out_does_not_shorten_another_wait() -> None:
    """After a lock-out the budgets hold as well."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=False)
    sign_ins.lock_out(START)
    assert sign_ins.allowed_at(2) >= START + HOUR


@pytest.mark.parametrize("requests", [1, 2])
def test_renewals_are_rationed(requests: int) -> None:
    """A session that is lost again and again is renewed 12 times an hour, and no more."""
    sign_ins = SignIns()
    renewed: list[float] = []
    for now in (START + 10 * second for second in range(DAY // 10)):
        if sign_ins.allowed_at(requests) <= now:
            sign_ins.note(now, requests=requests, accepted=True)
            renewed.append(now)
    assert most_within(renewed, HOUR) == 12
    assert len(renewed) >= 12 * 24 - 12


def test_remembers_the_rejected_requests_of_a_day() -> None:
    """The rejected requests of the last 24 hours are known one by one, and older ones are forgotten."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=False)
    sign_ins.note(START + HOUR, requests=1, accepted=False)
    assert sign_ins.rejected == [START, START, START + HOUR]
    sign_ins.note(START + DAY + MINUTE, requests=1, accepted=False)
    assert sign_ins.rejected == [START + HOUR, START + DAY + MINUTE]


# --- restarts ----------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(0, 8000)), min_size=1, max_size=12),
    st.sampled_from([1, 2]),
)
@property_of
def test_restarts_hardly_widen_the_budgets(lives: list[tuple[int, float]], requests: int) -> None:
    """Restarts add two sign-ins an hour, one more 30 min after a rejection, and beyond the day's 12 one for each."""
    sent: list[float] = []
    rejected: list[float] = []
    now = START
    for attempts, pause in lives:
        now += pause
        sign_ins = SignIns()
        sign_ins.restore(rejected, now)
        for _ in range(attempts):
            now = max(now, sign_ins.allowed_at(requests))
            sign_ins.note(now, requests=requests, accepted=False)
            sent += [now] * requests
        rejected = sign_ins.rejected
    assert most_within(sent, HOUR) <= 3 + 3 * requests
    assert most_within(sent, DAY) <= 12 + requests * len(lives)


@pytest.mark.parametrize("requests", [1, 2])
def test_a_restart_adds_one_sign_in(requests: int) -> None:
    """Somebody may have mended the password: the first sign-in need not wait; then all is as without a restart."""
    sent = be_rejected(SignIns(), [requests] * (12 // requests), planned=requests)
    now = sent[-1] + 1
    sign_ins = SignIns()
    sign_ins.restore(sent, now)
    assert sign_ins.allowed_at(requests) <= now
    for _ in range(20):
        now = max(now, sign_ins.allowed_at(requests))
        sign_ins.note(now, requests=requests, accepted=False)
        sent += [now] * requests
    assert most_within(sent, HOUR) <= 3 + requests
    assert most_within(sent, DAY) <= 12 + requests


def test_a_day_of_hourly_restarts() -> None:
    """With a wrong password and a restart every hour, there are 3 attempts in any hour, and one each beyond the 12."""
    sent: list[float] = []
    for life in range(24):
        now = START + life * HOUR
        sign_ins = SignIns()
        sign_ins.restore(sent, now)
        while (now := max(now, sign_ins.allowed_at(2))) < START + (life + 1) * HOUR:
            sign_ins.note(now, requests=1, accepted=False)
            sent.append(now)
    assert most_within(sent, HOUR) <= 3
    assert len(sent) <= 12 + 24


@pytest.mark.parametrize("requests", [1, 2])
def test_what_was_mended_is_tried_at_once_half_an_hour_after_the_last_rejection(requests: int) -> None:
    """However much was rejected before a restart, the sign-in after it waits for 30 minutes after that at most."""
    rejected = [START + number * 30 * MINUTE for number in range(11)] * 3
    for after in (30 * MINUTE, 31 * MINUTE, 5 * HOUR):
        sign_ins = SignIns()
        sign_ins.restore(rejected, rejected[-1] + after)
        assert sign_ins.allowed_at(requests) <= max(rejected) + 30 * MINUTE
    too_soon = SignIns()
    too_soon.restore(rejected, max(rejected) + MINUTE)
    assert too_soon.allowed_at(requests) == max(rejected) + 30 * MINUTE


def test_what_worked_before_a_restart_is_tried_again_after_5_minutes() -> None:
    """One rejection right after a restart proves nothing where the credentials worked within the last day."""
    sign_ins = SignIns()
    sign_ins.worked_before()
    sent = be_rejected(sign_ins, [1] * 3, planned=1)
    assert [after - before for before, after in pairwise(sent)] == [5 * MINUTE, 30 * MINUTE]


@pytest.mark.parametrize("answered", [True, False])
def test_a_first_sign_in_that_comes_to_nothing_after_a_restart_is_repeated(*, answered: bool) -> None:
    """It worked, was rejected before a restart, and the first try after that is not understood or not answered."""
    sign_ins = SignIns()
    sign_ins.restore([START - HOUR, START - 30 * MINUTE], START)
    sign_ins.worked_before()
    sign_ins.note(START, requests=1, accepted=None, answered=answered)
    assert START - HOUR <= sign_ins.allowed_at(1) <= START + MINUTE


def test_a_sign_in_that_is_answered_in_unknown_words_backs_off() -> None:
    """From 1 to 30 minutes; a line that is down has its own, shorter waits; and a known answer ends it."""
    sign_ins, now, gaps = SignIns(), START, []
    for _ in range(8):
        sign_ins.note(now, requests=1, accepted=None, answered=True)
        gaps.append(sign_ins.allowed_at(2) - now)
        now = sign_ins.allowed_at(2)
    assert gaps == [MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE, 16 * MINUTE, *[30 * MINUTE] * 3]
    sign_ins.note(now, requests=1, accepted=None)
    assert sign_ins.allowed_at(2) <= now
    sign_ins.note(now, requests=1, accepted=None, answered=True)
    sign_ins.note(now, requests=2, accepted=True)
    assert sign_ins.allowed_at(2) <= now


# --- sessions that are dead in words nobody knows ------------------------------------------------------------


def signed_in(session: DeadSession, until: float) -> list[float]:
    """Let each minute bring a fault; return when a sign-in was made because of it."""
    made, now = [], START
    while now < until:
        if now >= session.sign_in_at:
            session.renewed(now)
            made.append(now)
        session.fault(now)
        now += MINUTE
    return made


def test_a_session_with_faults_alone_is_renewed_ever_more_rarely() -> None:
    """After 10 minutes, then after 30 minutes, 1 hour, 2 hours, and every 4 hours."""
    session = DeadSession()
    session.listed()
    made = [(at - START) / MINUTE for at in signed_in(session, START + DAY)]
    assert made == [10, 40, 100, 220, 460, 700, 940, 1180, 1420]


def test_a_list_ends_it() -> None:
    """A list of readings, be it empty, proves that the session lives; faults after it begin their ten minutes again."""
    session = DeadSession()
    session.listed()
    assert len(signed_in(session, START + HOUR)) == 2
    session.listed()
    assert math.isinf(session.sign_in_at)
    session.fault(START)
    assert session.sign_in_at == START + 10 * MINUTE


def test_a_session_that_never_worked_is_not_dead() -> None:
    """Faults from the first read on are Share's: a sign-in would mend nothing."""
    session = DeadSession()
    assert signed_in(session, START + DAY) == []


@pytest.mark.parametrize(("until", "expected"), [(10 * MINUTE, 10 * MINUTE), (DAY, 20 * MINUTE), (-MINUTE, -MINUTE)])
def test_a_restart_does_not_forget_a_lock_out(until: float, expected: float) -> None:
    """An account that was locked before a restart stays locked, but no longer than Share locks any."""
    sign_ins = SignIns()
    sign_ins.restore([], START, START + until)
    assert sign_ins.allowed_at(1) == START + expected


def test_restores_what_was_rejected_within_a_day() -> None:
    """Of what was rejected before a restart, the last 24 hours count, and nothing of the future does."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=1, accepted=False)
    sign_ins.restore([START + 1, START - HOUR, START - DAY - 1, START - 2 * HOUR], START)
    assert sign_ins.rejected == [START - 2 * HOUR, START - HOUR, START]
    sign_ins.restore([START + 5 * DAY], START)
    assert sign_ins.rejected == [START - 2 * HOUR, START - HOUR, START]


@pytest.mark.parametrize("rejected", [[], [START + HOUR], [START - DAY - 1]])
def test_first_sign_in_after_a_calm_day_is_free(rejected: list[float]) -> None:
    """Where nothing of the last 24 hours is restored, nothing holds the first sign-in back."""
    sign_ins = SignIns()
    sign_ins.restore(rejected, START)
    assert sign_ins.allowed_at(2) <= START


def test_what_worked_since_the_restart_counts_more() -> None:
    """Credentials that worked in this process are not rationed for what was rejected before it."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=1, accepted=True)
    sign_ins.restore([START - HOUR / 2] * 3, START)
    assert sign_ins.allowed_at(1) <= START
