"""When a sign-in is allowed, when a session seems dead, and how long a rate limit lasts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.account.limits import LOCKED_OUT, DeadSession, SignIns, rate_limit
from tests.support.builders import most_within, property_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MINUTE = 60
HOUR = 3600
DAY = 86400

START = 10_000_000.0

times = st.floats(0, 1e8) | st.integers(0, 10**12).map(lambda part: part / 9973)  # the latter have no round digits


@pytest.mark.parametrize(
    ("asked", "seconds"), [(None, 300), (0, 60), (-5, 60), (59, 60), (60, 60), (90, 90), (3600, 3600), (3601, 3600)]
)
def test_a_rate_limit_lasts_as_long_as_the_server_says(asked: float | None, seconds: float) -> None:
    """A rate limit lasts as long as the server asks for, between 60 s and 1 h, or 5 minutes if it does not say."""
    assert rate_limit(asked) == seconds


@given(st.floats(allow_nan=False) | st.none())
@property_of
def test_rate_limit_is_bounded(asked: float | None) -> None:
    """Whatever a server asks for, a rate limit lasts between 60 s and 1 h."""
    assert 60 <= rate_limit(asked) <= 3600


def be_rejected(sign_ins: SignIns, requests: Sequence[int], *, planned: int, lag: float = 0) -> list[float]:
    """Sign in as soon as allowed, always rejected after that many requests; return when each was sent."""
    sent: list[float] = []
    now = START
    for count in requests:
        now = max(now, sign_ins.allowed_at(planned)) + lag
        sign_ins.note(now, requests=count, accepted=False)
        sent += [now] * count
    return sent


def test_first_sign_in_need_not_wait() -> None:
    """The first sign-in is allowed immediately."""
    assert SignIns().allowed_at(1) <= START
    assert SignIns().allowed_at(2) <= START


@pytest.mark.parametrize("requests", [1, 2])
def test_credentials_that_never_worked_are_rationed(requests: int) -> None:
    """Always rejected: at most 3 requests with the password in any hour and 12 in any 24, but the tries continue."""
    sent = be_rejected(SignIns(), [requests] * 60, planned=requests)
    assert most_within(sent, HOUR) <= 3
    assert most_within(sent, DAY) <= 12
    assert sent[-1] - sent[0] <= 60 * requests / 12 * 1.5 * DAY


def test_first_rejection_is_followed_by_another_try_soon() -> None:
    """Share now and then rejects valid credentials: on the very first start the second try comes after 2 minutes."""
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
    """Whether the first or the second step is rejected, and however late the poll, the limits are kept."""
    sent = be_rejected(SignIns(), requests, planned=2, lag=lag)
    assert most_within(sent, HOUR) <= 3
    assert most_within(sent, DAY) <= 12


@pytest.mark.parametrize("answer", ["none", "locked out"])
def test_every_request_with_the_password_is_an_attempt(answer: str) -> None:
    """After a rejection, requests without an answer or to a locked account count towards the same limits."""
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


def test_credentials_that_worked_before_are_tried_less_often() -> None:
    """Rejected although they worked: again after 5 minutes, then every 30 minutes for 6 hours, then every 2 hours."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=True)
    sent = be_rejected(sign_ins, [1] * 60, planned=1)
    assert [after - before for before, after in pairwise(sent)] == [5 * MINUTE] + [30 * MINUTE] * 12 + [2 * HOUR] * 46


def test_a_successful_sign_in_ends_a_series_of_rejections() -> None:
    """After a successful sign-in, the next one is allowed immediately, and the next rejection counts as the first."""
    sign_ins = SignIns()
    for accepted in (True, False, False, True):
        sign_ins.note(START, requests=1, accepted=accepted)
    assert sign_ins.allowed_at(1) <= START
    sign_ins.note(START + HOUR, requests=1, accepted=False)
    assert sign_ins.allowed_at(1) == START + HOUR + 5 * MINUTE


@pytest.mark.parametrize("worked_before", [True, False])
def test_survives_an_outage_after_a_rejection(worked_before: bool) -> None:
    """A sign-in without an answer more than a day after the last rejection is followed by another try."""
    sign_ins = SignIns()
    if worked_before:
        sign_ins.note(START, requests=1, accepted=True)
    sign_ins.note(START, requests=1, accepted=False)
    later = START + DAY + HOUR
    sign_ins.note(later, requests=1, accepted=None)
    assert sign_ins.rejected == []
    assert sign_ins.allowed_at(1) <= later + HOUR


def test_a_sign_in_without_an_answer_is_not_a_rejection() -> None:
    """If Share did not say, nothing was rejected, and the next sign-in need not wait."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=None)
    assert sign_ins.rejected == []
    assert sign_ins.allowed_at(2) <= START


@pytest.mark.parametrize("worked_before", [True, False])
def test_a_lock_out_is_waited_for(worked_before: bool) -> None:
    """A locked account gets no sign-in for 20 minutes."""
    sign_ins = SignIns()
    if worked_before:
        sign_ins.note(START - HOUR, requests=1, accepted=True)
    sign_ins.note(START, requests=1, accepted=None)
    sign_ins.lock_out(START)
    assert sign_ins.allowed_at(1) == START + 20 * MINUTE == START + LOCKED_OUT


def test_lock_out_does_not_shorten_another_wait() -> None:
    """After a lock-out, the limits on rejected sign-ins still apply."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=False)
    sign_ins.lock_out(START)
    assert sign_ins.allowed_at(2) >= START + HOUR


@pytest.mark.parametrize("requests", [1, 2])
def test_renewals_are_rationed(requests: int) -> None:
    """A session that is lost again and again is renewed at most 12 times an hour."""
    sign_ins = SignIns()
    renewed: list[float] = []
    for now in (START + 10 * second for second in range(DAY // 10)):
        if sign_ins.allowed_at(requests) <= now:
            sign_ins.note(now, requests=requests, accepted=True)
            renewed.append(now)
    assert most_within(renewed, HOUR) == 12
    assert len(renewed) >= 12 * 24 - 12


def test_remembers_the_rejected_requests_of_a_day() -> None:
    """The rejected requests of the last 24 hours are recorded one by one, and older ones are forgotten."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=2, accepted=False)
    sign_ins.note(START + HOUR, requests=1, accepted=False)
    assert sign_ins.rejected == [START, START, START + HOUR]
    sign_ins.note(START + DAY + MINUTE, requests=1, accepted=False)
    assert sign_ins.rejected == [START + HOUR, START + DAY + MINUTE]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(0, 8000)), min_size=1, max_size=12),
    st.sampled_from([1, 2]),
)
@property_of
def test_restarts_hardly_raise_the_limits(lives: list[tuple[int, float]], requests: int) -> None:
    """Restarts add two sign-ins an hour, another one 30 min after a rejection, and one each beyond the day's 12."""
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
    """Somebody may have corrected the password: the first sign-in need not wait; then the usual limits apply."""
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
def test_a_restart_half_an_hour_after_the_last_rejection_tries_immediately(requests: int) -> None:
    """Whatever was rejected before a restart, the next sign-in waits at most 30 minutes after the last rejection."""
    rejected = [START + number * 30 * MINUTE for number in range(11)] * 3
    for after in (30 * MINUTE, 31 * MINUTE, 5 * HOUR):
        sign_ins = SignIns()
        sign_ins.restore(rejected, rejected[-1] + after)
        assert sign_ins.allowed_at(requests) <= max(rejected) + 30 * MINUTE
    too_soon = SignIns()
    too_soon.restore(rejected, max(rejected) + MINUTE)
    assert too_soon.allowed_at(requests) == max(rejected) + 30 * MINUTE


def test_credentials_that_worked_before_a_restart_are_tried_again_after_5_minutes() -> None:
    """One rejection right after a restart proves nothing if the credentials worked within the last day."""
    sign_ins = SignIns()
    sign_ins.worked_before()
    sent = be_rejected(sign_ins, [1] * 3, planned=1)
    assert [after - before for before, after in pairwise(sent)] == [5 * MINUTE, 30 * MINUTE]


@pytest.mark.parametrize("answered", [True, False])
def test_an_inconclusive_first_sign_in_after_a_restart_is_repeated(*, answered: bool) -> None:
    """It worked, was rejected before a restart, and the first try after it gets an unknown answer or none."""
    sign_ins = SignIns()
    sign_ins.restore([START - HOUR, START - 30 * MINUTE], START)
    sign_ins.worked_before()
    sign_ins.note(START, requests=1, accepted=None, answered=answered)
    assert START - HOUR <= sign_ins.allowed_at(1) <= START + MINUTE


def test_a_sign_in_with_an_unknown_answer_backs_off() -> None:
    """The wait grows from 1 to 30 minutes; a missing answer has its own, shorter waits; a known answer ends it."""
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


def signed_in(session: DeadSession, until: float) -> list[float]:
    """Return one fault each minute; return when a sign-in was made because of it."""
    made, now = [], START
    while now < until:
        if now >= session.sign_in_at:
            session.renewed(now)
            made.append(now)
        session.fault(now)
        now += MINUTE
    return made


def test_a_session_with_only_faults_is_renewed_less_and_less_often() -> None:
    """After 10 minutes, then after 30 minutes, 1 hour, 2 hours, and every 4 hours."""
    session = DeadSession()
    session.listed()
    made = [(at - START) / MINUTE for at in signed_in(session, START + DAY)]
    assert made == [10, 40, 100, 220, 460, 700, 940, 1180, 1420]


def test_a_list_ends_the_suspicion() -> None:
    """Any list, even an empty one, proves that the session is alive; later faults start the ten minutes over."""
    session = DeadSession()
    session.listed()
    assert len(signed_in(session, START + HOUR)) == 2
    session.listed()
    assert math.isinf(session.sign_in_at)
    session.fault(START)
    assert session.sign_in_at == START + 10 * MINUTE


def test_a_session_that_never_worked_is_not_dead() -> None:
    """Faults from the first read on are Share's: a sign-in would not help."""
    session = DeadSession()
    assert signed_in(session, START + DAY) == []


@pytest.mark.parametrize(("until", "expected"), [(10 * MINUTE, 10 * MINUTE), (DAY, 20 * MINUTE), (-MINUTE, -MINUTE)])
def test_a_restart_does_not_forget_a_lock_out(until: float, expected: float) -> None:
    """An account that was locked before a restart stays locked, but no longer than Share locks any account."""
    sign_ins = SignIns()
    sign_ins.restore([], START, START + until)
    assert sign_ins.allowed_at(1) == START + expected


def test_restores_the_rejections_of_a_day() -> None:
    """Of the rejections before a restart, those of the last 24 hours count, and none from the future."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=1, accepted=False)
    sign_ins.restore([START + 1, START - HOUR, START - DAY - 1, START - 2 * HOUR], START)
    assert sign_ins.rejected == [START - 2 * HOUR, START - HOUR, START]
    sign_ins.restore([START + 5 * DAY], START)
    assert sign_ins.rejected == [START - 2 * HOUR, START - HOUR, START]


@pytest.mark.parametrize("rejected", [[], [START + HOUR], [START - DAY - 1]])
def test_first_sign_in_after_a_day_without_rejections_need_not_wait(rejected: list[float]) -> None:
    """If no rejections of the last 24 hours are restored, the first sign-in is allowed immediately."""
    sign_ins = SignIns()
    sign_ins.restore(rejected, START)
    assert sign_ins.allowed_at(2) <= START


def test_success_since_the_restart_outweighs_earlier_rejections() -> None:
    """Credentials that worked in this process are not rationed because of rejections before it."""
    sign_ins = SignIns()
    sign_ins.note(START, requests=1, accepted=True)
    sign_ins.restore([START - HOUR / 2] * 3, START)
    assert sign_ins.allowed_at(1) <= START
