"""What may be asked of Share, and when: with a scripted client, on a clock that is set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, cast

import pytest

from dexcom2mqtt.account.limits import LOCKED_OUT, RateLimits
from dexcom2mqtt.account.rationed import RationedClient, Usage, worth_a_quick_retry
from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.status import PastSignIns
from dexcom2mqtt.share import (
    Batch,
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    ShareClient,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)
from dexcom2mqtt.share.server_time import ShareTime
from tests.support.builders import NOON
from tests.support.jumping import JumpingClock

if TYPE_CHECKING:
    from collections.abc import Callable

BOOTED = 100_000.0
MINUTE = 60.0
HOUR = 3600.0
HOST = "share.example"
STUMBLED = UnavailableError("it broke off")
REJECTED = CredentialsRejectedError("share.example rejected the credentials")
FAULT = UnavailableError("share.example answered with status 500", answered=True)


@dataclass
class Answer:
    """One call's result and cost: how many requests it takes, and how many of them contain the password."""

    outcome: Batch | ShareError = Batch()  # noqa: RUF009  # it is frozen
    requests: int = 1
    logins: int = 0
    ends_session: bool = False


class ScriptedClient:
    """A client of Share with scripted answers, by default an empty list; it signs in when needed."""

    def __init__(self, clock: JumpingClock) -> None:
        self.host = HOST
        self.time = ShareTime(clock)
        self.requests = self.logins = self.sessions = 0
        self.signed_in = False
        self.sign_in_requests = 2
        self.script: list[Answer] = []
        self.calls: list[str] = []
        self.renewing: list[bool] = []
        self._clock = clock

    def fetch(self, minutes: int, *, renew: bool = True) -> Batch:
        self.calls.append(f"fetch {minutes}")
        self.renewing.append(renew)
        answer = self.script.pop(0) if self.script else Answer()
        if not self.signed_in:
            self._sign_in(answer.outcome)
        self.requests += answer.requests
        self.logins += answer.logins
        self.signed_in &= not answer.ends_session
        if isinstance(answer.outcome, ShareError):
            raise answer.outcome
        return answer.outcome

    def sign_in(self) -> None:
        self.calls.append("sign in")
        self._sign_in(None)

    def ask_time(self) -> None:
        self.calls.append("time")
        self.send_time()

    def send_time(self) -> None:
        self.time.update(formatdate(NOON + self._clock.now() - BOOTED, usegmt=True), self._clock.now())

    def _sign_in(self, outcome: Batch | ShareError | None) -> None:
        self.requests += 2
        self.logins += 2
        if isinstance(outcome, CredentialsRejectedError | LockedOutError):
            raise outcome
        self.sessions += 1
        self.signed_in = True


class Counter:
    """A rationed client, what it asks, and the times by which it says it will be back."""

    def __init__(self) -> None:
        self.clock = JumpingClock(end=math.inf, begin=BOOTED)
        self.share = ScriptedClient(self.clock)
        self.rate_limits = RateLimits()
        self.back_by: list[float] = []
        self.may_ask = True
        self.client = RationedClient(
            cast("ShareClient", self.share), self.clock, self.rate_limits, self.back_by.append, lambda: self.may_ask
        )

    def fetch(self, *answers: Batch | ShareError | Answer, minutes: int = 10, attempts: int = 1) -> Batch | ShareError:
        """Fetch with these answers; return the batch or the error."""
        self.share.script = [each if isinstance(each, Answer) else Answer(each) for each in answers]
        try:
            return self.client.fetch(minutes, attempts)
        except ShareError as error:
            return error

    @property
    def wait(self) -> float:
        """Return for how many seconds nothing may be fetched."""
        return max(self.client.not_before() - self.clock.now(), 0.0)


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def signed_in(counter: Counter) -> Counter:
    """Return a counter whose client is signed in and knows the time."""
    counter.share.send_time()
    counter.fetch(Batch())
    return counter


# --- what is asked -----------------------------------------------------------------------------------------


def test_fetches(counter: Counter) -> None:
    """A fetch returns the client's batch and counts its cost."""
    batch = Batch(malformed=3)
    assert counter.wait == 0
    tried = [counter.client.tried]
    assert counter.fetch(batch, minutes=1440) is batch
    assert [*tried, counter.client.tried] == [False, True]
    assert (counter.share.calls, counter.share.renewing) == (["fetch 1440"], [True])
    assert counter.client.usage() == Usage(requests=3, logins=2)
    assert counter.client.asked_at == BOOTED
    assert counter.back_by == [BOOTED]


def test_usage_is_of_24_hours(signed_in: Counter) -> None:
    """Older requests and rejections are not counted."""
    assert signed_in.client.usage() == Usage(requests=3, logins=2)
    signed_in.clock.time += DAY - 1
    signed_in.fetch()
    assert signed_in.client.usage() == Usage(requests=4, logins=2)
    signed_in.clock.time += 1
    assert signed_in.client.usage() == Usage(requests=1)


def test_rejected_sign_ins_are_in_unix_seconds(counter: Counter) -> None:
    """Each request with the password counts for 24 hours; without Share's time, nobody knows when it was."""
    assert counter.fetch(REJECTED) is REJECTED
    assert counter.client.usage().rejected == ()
    counter.share.send_time()
    assert counter.client.usage() == Usage(requests=2, logins=2, rejected=(NOON, NOON))
    counter.clock.time += DAY
    assert counter.client.usage() == Usage()


# --- quick retries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (STUMBLED, True),
        (FAULT, True),
        (UnavailableError("its certificate is not valid yet", wrong_clock=True), False),
        (REJECTED, False),
        (LockedOutError("locked"), False),
        (RateLimitedError("too often", 1.0), False),
        (UnexpectedResponseError("nonsense"), False),
        (ValueError(), False),
    ],
)
def test_which_errors_are_retried(signed_in: Counter, error: Exception, *, worth: bool) -> None:
    """Only if Share is unavailable may trying again within seconds help and do no harm."""
    assert worth_a_quick_retry(error) is worth
    if isinstance(error, ShareError):
        before = signed_in.clock.now()
        outcome = signed_in.fetch(error, Batch(), attempts=3)
        assert outcome == (Batch() if worth else error)
        assert (signed_in.clock.now() > before) is worth


def test_no_more_attempts_than_allowed(signed_in: Counter) -> None:
    """The last error is raised, after waits of seconds, each of which is announced."""
    signed_in.back_by.clear()
    assert signed_in.fetch(FAULT, FAULT, STUMBLED, Batch(), attempts=3) is STUMBLED
    assert signed_in.share.calls[1:] == ["fetch 10"] * 3
    waited = signed_in.clock.now() - BOOTED
    assert 1 <= waited <= 8
    assert signed_in.back_by[-2] == signed_in.back_by[-1] == signed_in.clock.now()  # the wait, and then the request


def test_a_fetch_signs_in_once(counter: Counter) -> None:
    """An attempt that signed in is not repeated, whatever the read after it returned."""
    assert counter.fetch(STUMBLED, Batch(), attempts=3) is STUMBLED
    assert counter.share.calls == ["fetch 10"]


def test_it_tries_again_only_while_it_may(signed_in: Counter) -> None:
    """Another process may serve the account by then."""
    signed_in.may_ask = False
    assert signed_in.fetch(STUMBLED, Batch(), attempts=3) is STUMBLED


def test_a_limit_ends_the_attempts(signed_in: Counter) -> None:
    """Another account's rate limit at the same server applies between two attempts."""
    signed_in.rate_limits.limit(HOST, signed_in.clock.now(), HOUR)
    assert signed_in.fetch(STUMBLED, Batch(), attempts=3) is STUMBLED


# --- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "seconds"), [(None, 5 * MINUTE), (120.0, 120.0)])
def test_a_rate_limit_applies_to_the_server(signed_in: Counter, asked: float | None, seconds: float) -> None:
    """After a rate limit, no account asks that server for as long as it said."""
    signed_in.fetch(RateLimitedError("too often", asked))
    assert signed_in.wait == seconds
    assert signed_in.rate_limits.until(HOST) == signed_in.clock.now() + seconds
    assert signed_in.rate_limits.until("other.example") == 0


def test_rejected_credentials_are_rationed(counter: Counter) -> None:
    """After a rejection the next sign-in has to wait; an early one fails here, and nothing is sent."""
    counter.share.sign_in_requests = 1
    counter.fetch(REJECTED)
    assert counter.wait == 2 * MINUTE
    refused = counter.fetch()
    assert isinstance(refused, CredentialsRejectedError)
    assert counter.share.calls == ["fetch 10"]
    counter.clock.time += 2 * MINUTE
    assert counter.fetch() == Batch()


def test_a_locked_account_gets_no_requests(counter: Counter) -> None:
    """After a lock-out nothing is sent for 20 minutes, and the error says so."""
    counter.fetch(LockedOutError("share.example has locked the account"))
    assert counter.wait == LOCKED_OUT
    refused = counter.fetch()
    assert isinstance(refused, LockedOutError)
    assert "locked" in str(refused)
    assert counter.share.calls == ["fetch 10"]


def test_sessions_that_keep_ending_are_rationed(counter: Counter) -> None:
    """The thirteenth sign-in within an hour waits, and counts as unavailable rather than rejected."""
    for _ in range(12):
        counter.fetch(Answer(ends_session=True))
        counter.clock.time += 1
    assert counter.wait > HOUR - 20
    refused = counter.fetch()
    assert isinstance(refused, UnavailableError)
    assert "ended the session too often" in str(refused)


def test_a_sign_in_with_an_unknown_answer_is_not_repeated_immediately(counter: Counter) -> None:
    """Whether it was accepted is unknown; the next one waits for a minute."""
    answer = Answer(UnexpectedResponseError("nonsense"), logins=2)
    counter.share.sign_in_requests = 2
    counter.share.signed_in = True  # in the same call, the client finds that it is over and signs in again
    assert counter.fetch(answer) is answer.outcome
    counter.share.signed_in = False
    assert counter.wait == MINUTE


def test_a_sign_in_without_an_answer_need_not_wait(counter: Counter) -> None:
    """If there was no answer, nothing is known: the schedule waits, the ration does not."""
    counter.share.signed_in = True
    counter.fetch(Answer(STUMBLED, logins=2))
    counter.share.signed_in = False
    assert counter.wait == 0


def test_a_client_may_not_renew_while_sign_ins_are_rationed(counter: Counter) -> None:
    """An existing session is used; but if it turns out to be over, no sign-in follows yet."""
    counter.fetch(REJECTED)
    counter.share.signed_in = True
    assert counter.fetch() == Batch()
    assert counter.share.renewing == [True, False]


# --- sessions that are dead in unknown words ---------------------------------------------------------------


def test_a_dead_session_is_renewed(signed_in: Counter) -> None:
    """After ten minutes of only faults a sign-in comes first, and the read after it may not renew again."""
    signed_in.fetch(FAULT)
    died = signed_in.clock.now()
    assert signed_in.client.sign_in_at == died + 10 * MINUTE
    signed_in.clock.time = died + 10 * MINUTE - 1
    signed_in.fetch(FAULT)
    assert "sign in" not in signed_in.share.calls
    signed_in.clock.time = died + 10 * MINUTE
    signed_in.fetch(FAULT)
    assert signed_in.share.calls[-2:] == ["sign in", "fetch 10"]
    assert signed_in.share.renewing[-1] is False
    assert signed_in.client.sign_in_at == signed_in.clock.now() + 30 * MINUTE
    signed_in.fetch(Batch())
    assert signed_in.client.sign_in_at == math.inf


@pytest.mark.parametrize("error", [STUMBLED, RateLimitedError("too often", None)])
def test_errors_unrelated_to_the_session_do_not_end_it(signed_in: Counter, error: ShareError) -> None:
    """A failure that never reached the session does not make it suspect."""
    signed_in.fetch(error)
    assert signed_in.client.sign_in_at == math.inf


def test_a_session_that_never_worked_is_not_suspected(counter: Counter) -> None:
    """A fault right after the first sign-in is Share's, not the session's."""
    counter.fetch(FAULT)
    assert counter.client.sign_in_at == math.inf


# --- restarts ----------------------------------------------------------------------------------------------


def test_rejections_before_a_restart_count(counter: Counter) -> None:
    """Before the password is sent, Share is asked for just the time: only that decides whether it is allowed."""
    counter.client.restore(PastSignIns(rejected=tuple(NOON - 60 * n for n in range(1, 13))))
    assert not counter.client.usage().restored
    refused = counter.fetch()
    assert isinstance(refused, CredentialsRejectedError)
    assert "before the restart" in str(refused)
    assert counter.share.calls == ["time"]
    assert not counter.client.tried
    usage = counter.client.usage()
    assert (usage.requests, usage.logins, usage.restored) == (1, 0, True)
    assert len(usage.rejected) == 12
    assert counter.wait > 0


def test_a_lock_before_a_restart_counts(counter: Counter) -> None:
    """An account that was locked when the daemon ended stays locked until the same time."""
    counter.client.restore(PastSignIns(locked_until=NOON + 600.0))
    assert isinstance(counter.fetch(), LockedOutError)
    assert counter.share.calls == ["time"]
    assert counter.wait == pytest.approx(600, abs=2)
    counter.clock.time += counter.wait
    assert counter.fetch() == Batch()


@pytest.mark.parametrize("known", [True, False])
def test_a_past_without_rejections_costs_nothing(counter: Counter, *, known: bool) -> None:
    """If there is nothing to count, Share is not asked for the time, and the past counts once the time is known."""
    if known:
        counter.share.send_time()
    counter.client.restore(PastSignIns())
    assert counter.fetch() == Batch()
    assert counter.share.calls == ["fetch 10"]
    assert counter.client.usage().restored is known


@pytest.mark.parametrize("ask", [lambda counter: counter.client.not_before(), lambda counter: counter.fetch(STUMBLED)])
def test_a_late_status_counts_with_the_next_request(signed_in: Counter, ask: Callable[[Counter], object]) -> None:
    """A status that is read after the first poll counts with the next request, even if that fails."""
    signed_in.client.restore(PastSignIns(rejected=(NOON - 60,)))
    assert signed_in.client.usage().rejected == ()
    ask(signed_in)
    assert signed_in.client.usage().rejected == (NOON - 60,)
    assert signed_in.share.calls.count("time") == 0


def test_the_past_counts_with_the_first_answer(counter: Counter) -> None:
    """If the first fetch brings the time, the past counts in the status that follows."""
    counter.client.restore(PastSignIns())
    fetch = counter.share.fetch

    def answering(minutes: int, *, renew: bool = True) -> Batch:
        counter.share.send_time()
        return fetch(minutes, renew=renew)

    counter.share.fetch = answering  # type: ignore[method-assign]
    counter.fetch()
    assert counter.client.usage().restored


def test_earlier_success_does_not_hide_later_rejections(counter: Counter) -> None:
    """If both arrive late, the earlier rejections count first: the password must not be sent immediately."""
    counter.share.send_time()
    counter.client.restore(PastSignIns(rejected=(NOON - 120,) * 5))
    counter.client.worked_before()
    assert counter.wait > 20 * MINUTE


def test_credentials_that_worked_before_are_trusted_longer(counter: Counter) -> None:
    """If credentials worked before the restart, the try after a rejection follows after 5 minutes, not 2."""
    counter.client.worked_before()
    counter.fetch(REJECTED)
    assert counter.wait == 5 * MINUTE
