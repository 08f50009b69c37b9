"""One account, for ever: when it is due, fetch, keep what is new, publish, say how it is going.

This is the only place where Share, the ledger, the schedule, the status and the messages meet; each of them
knows nothing of the others. It runs in a thread of its own, so that no account waits for another.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import traceback
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import tenacity

from dexcom2mqtt import messages, schedule, status
from dexcom2mqtt.clock import local
from dexcom2mqtt.ledger import Ledger
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
from dexcom2mqtt.status import Status
from dexcom2mqtt.stream import Offer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import SecretStr

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Account
    from dexcom2mqtt.messages import Message, State, Topics
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.stream import Stream

_log = logging.getLogger(__name__)

_DAY: Final = 86400.0
_WAIT_FOR_BROKER: Final = 3.0
_QUICK_TRIES: Final = 3
_AFTER_A_BUG: Final = 300.0
_BUGS_AN_HOUR: Final = 3
STATES: Final[dict[type[ShareError], str]] = {
    UnavailableError: "unavailable",
    CredentialsRejectedError: "credentials_rejected",
    LockedOutError: "locked_out",
    RateLimitedError: "rate_limited",
    UnexpectedResponseError: "unexpected_response",
}
"""What an account becomes by each error of Share."""


@dataclass(frozen=True, slots=True)
class _ReadBack:
    history: bytes | None


def worth_a_quick_retry(error: BaseException) -> bool:
    """Tell whether trying again within seconds may help and cannot harm: only where Share stumbled."""
    return isinstance(error, UnavailableError) and not error.wrong_clock


class Poller:
    """Polls one account and puts what is to be published, through ``put``, until the clock stops.

    ``rate_limits`` says until when each server wants to be left alone; the accounts share it. ``stale_after`` is
    in seconds. ``back_by`` is called before each wait and each fetch, with the time when it should be over.
    """

    def __init__(  # noqa: PLR0913  # by name, and each is a part that this one joins
        self,
        key: str,
        account: Account,
        *,
        clock: Clock,
        topics: Topics,
        put: Callable[[Iterable[Message]], None],
        stream: Stream,
        stale_after: float,
        rate_limits: dict[str, float],
        back_by: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.key = key
        self._account = account
        self._clock = clock
        self._topics = topics
        self._put = put
        self._stream = stream
        self._source = messages.source_of(account.region, account.user.get_secret_value())
        self._stale_after = stale_after
        self._rate_limits = rate_limits
        self._back_by = back_by
        self._alarm = clock.alarm()
        self._client = client_of(account, clock)
        self.time = self._client.time
        """The time of day, as this account's server tells it."""
        self.answered = threading.Event()
        """Set once the first poll is over, however it went."""
        self._ledger = Ledger()
        self._sign_ins = schedule.SignIns()
        self._rhythm = schedule.Rhythm()
        self._asked: float | None = None  # when the last poll that worked asked
        self._status = Status()
        self._since = clock.now()
        self._last_success: float | None = None
        self._next_poll = clock.now()
        self._last_poll = -schedule.REFRESH_EVERY
        self._last_full_read: float | None = None
        self._failures = 0
        self._latest_seen: float | None = None  # Unix seconds
        self._refresh_asked = False
        self._read_back: _ReadBack | None = None
        self._before = messages.Before()  # the start
        self._streaming = False
        self._shown: tuple[Reading, bool] | None = None  # and whether the time was known
        self._calls: deque[tuple[float, int, int]] = deque()  # when, requests, of them with the password

    def refresh(self) -> None:
        """Ask for a poll now; for any thread. It comes as soon as the limits allow."""
        self._refresh_asked = True
        self._alarm.ring()

    @property
    def well(self) -> bool:
        """Whether there is nothing to worry about; for any thread."""
        return self._status.well

    def in_words(self) -> str:
        """Say how the account is doing, such as ``anna: 85 mg/dL → 2 min ago, next poll 14:03:12``; for any thread."""
        status, unit, words = self._status, self._account.unit, list[str]()
        reading = self._shown and self._shown[0]
        fresh = reading is not None and self._clock.now() < self._fresh_until(reading)
        if status.share != "ok" or not fresh:
            words.append(status.share)
        if reading is not None and fresh:
            age = max((self.time.now() or 0.0) - reading.date / 1000, 0.0)
            words.append(
                " ".join(filter(None, (f"{reading.value(unit)} {unit}", reading.arrow, f"{age // 60:.0f} min ago")))
            )
        if status.next_poll_at is not None:
            words.append(f"next poll {local(status.next_poll_at)}")
        return f"{self.key}: {', '.join(words)}"

    def take_read_back(self, history: bytes | None, status: bytes | None) -> None:
        """Take what the broker retained of this account before the start; for any thread."""
        try:
            self._before = messages.parse_status(status) if status else messages.Before()
        except messages.ForeignError as why:
            _log.warning("%s: the status that the broker retained is not taken over: %s", self.key, why)
        self._read_back = _ReadBack(history)
        self._put_status()  # at once: a call to Share may take a while
        self._alarm.ring()

    def run(self) -> None:
        """Poll until the clock stops, then raise Stopped.

        An exception that nobody expected is a bug: it is logged without its text, which might hold a secret, and
        the account starts anew after five minutes. The third within an hour is raised.
        """
        bugs: list[float] = []
        while True:
            try:
                self._run()
            except Exception as error:
                now = self._clock.now()
                bugs = [at for at in bugs if at > now - 3600] + [now]
                _log.error("%s: a bug in dexcom2mqtt; please report it:\n%s", self.key, without_text(error))
                if len(bugs) >= _BUGS_AN_HOUR:
                    raise
                self._become("unexpected_response", status.BUG)
                self._publish_status(now + _AFTER_A_BUG)
                self.answered.set()
                self._sleep(_AFTER_A_BUG)

    def _run(self) -> None:
        self._await_read_back()
        while True:
            self._wait()
            self._last_poll = self._clock.now()
            wanted = self._poll()
            self._publish_status(max(wanted, self._not_before()))
            self.answered.set()

    def _await_read_back(self) -> None:
        """Wait a moment for what the broker retained: sign-ins that were rejected before a restart count on."""
        until = self._clock.now() + _WAIT_FOR_BROKER * self._clock.speed
        while self._read_back is None and (left := until - self._clock.now()) > 0:
            self._alarm.wait(left)

    def _wait(self) -> None:
        """Wait for the next poll, or for a refresh as far as it is allowed."""
        while (left := (until := max(self._next_poll, self._not_before())) - self._clock.now()) > 0:
            self._back_by(until)
            self._alarm.wait(left)
            if self._refresh_asked:
                self._refresh_asked = False
                self._next_poll = min(self._next_poll, self._last_poll + schedule.REFRESH_EVERY)
            self._recall()
            if self._read_back is not None and not self._streaming:
                self._continue_from_read_back()
                self._publish_status(max(self._next_poll, self._not_before()))

    def _not_before(self) -> float:
        """Return before when no poll may be made, whoever asks for it."""
        sign_in = 0.0 if self._client.signed_in else self._sign_ins.allowed_at(self._client.sign_in_requests)
        return max(sign_in, self._sign_ins.locked_until, self._rate_limits.get(self._client.host, 0.0))

    def _poll(self) -> float:
        """Fetch and publish. Return when to poll next, as far as this account alone is concerned."""
        try:
            if self._before != messages.Before() and not self.time.known and not self._client.signed_in:
                self._calls.append((self._clock.now(), 1, 0))
                self._client.ask_time()
            self._recall()
            batch = self._fetch()
        except ShareError as error:
            return self._take_failure(error)
        return self._take_batch(batch)

    def _recall(self) -> None:
        """Let count how signing in went before a restart, as soon as Share has told the time."""
        if self._before == messages.Before() or not self.time.known:
            return
        rejected = [at for unix in self._before.rejected if (at := self.time.at(unix)) is not None]
        locked_until = self._before.locked_until
        self._sign_ins.restore(rejected, self._clock.now(), locked_until and self.time.at(locked_until))
        self._before = messages.Before()

    def _fetch(self) -> Batch:
        now = self._clock.now()
        full = self._last_full_read is None or now - self._last_full_read >= schedule.FULL_READ_EVERY
        today = self.time.now()
        minutes = 1440 if full or today is None else self._ledger.minutes_to_read(today)
        tries = _QUICK_TRIES if self._last_success is not None and self._failures == 0 else 1
        logins = self._client.logins

        def enough(state: tenacity.RetryCallState) -> bool:
            """Tell whether to leave it at that: for a poll, one sign-in is enough, and limits are limits."""
            limited = self._client.logins > logins or self._not_before() > self._clock.now()
            return limited or state.attempt_number >= tries

        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception(worth_a_quick_retry),
            stop=enough,
            wait=tenacity.wait_exponential_jitter(initial=1, max=8),
            sleep=self._sleep,
            reraise=True,
        )
        batch: Batch = retry(self._fetch_once, minutes)
        _log.debug(
            "%s: the last %s min hold %s readings, %s error codes, %s malformed records",
            self.key,
            minutes,
            len(batch.readings),
            len(batch.error_codes),
            batch.malformed,
        )
        if full:
            self._last_full_read = now
        return batch

    def _sleep(self, seconds: float) -> None:
        """Wait for that long, whatever rings."""
        self._back_by(self._clock.now() + seconds)
        self._alarm.sleep(seconds)

    def _fetch_once(self, minutes: int) -> Batch:
        """Fetch, and take note of what it took: sign-ins are rationed, so each one counts."""
        client, now = self._client, self._clock.now()
        self._back_by(now)
        may_sign_in = self._sign_ins.allowed_at(client.sign_in_requests) <= now
        if not client.signed_in and not may_sign_in:
            raise self._too_early()
        requests, logins, sessions = client.requests, client.logins, client.sessions
        accepted: bool | None = None
        try:
            batch = client.fetch(minutes, renew=may_sign_in)
        except CredentialsRejectedError:
            accepted = False
            raise
        except LockedOutError:
            self._sign_ins.lock_out(self._clock.now())
            raise
        finally:
            self._calls.append((now, client.requests - requests, client.logins - logins))
            if client.logins > logins:
                accepted = True if client.sessions > sessions else accepted
                self._sign_ins.note(self._clock.now(), requests=client.logins - logins, accepted=accepted)
        return batch

    def _too_early(self) -> ShareError:
        """Say why no sign-in may be made, where the loop did not wait for it: after a restart, or a bug."""
        if self._sign_ins.locked_until > self._clock.now():
            return LockedOutError(f"{self._client.host} has locked the account for a while after failed sign-ins")
        if self._sign_ins.rejected:
            return CredentialsRejectedError(f"{self._client.host} did not accept the credentials before the restart")
        return UnavailableError(f"{self._client.host} has ended the session too often; the next sign-in has to wait")

    def _take_batch(self, batch: Batch) -> float:
        now = self._clock.now()
        self._failures = 0
        self._last_success = now
        if batch.readings:
            self._latest_seen = batch.readings[-1].date / 1000
        self._continue_from_read_back()
        today = self._today() or 0.0
        known = self._ledger.newest
        new = self._ledger.add(batch.readings, today)
        newest = self._ledger.newest
        self._learn(None if newest is known else newest)
        self._offer(new)
        self._log_new(new, newest_is_new=newest is not known)
        self._become(self._judge(batch, newest))
        if newest is None:
            return self._rhythm.next_poll(None, now)
        if new or self._shown != (newest, self.time.known):
            self._show(newest)
        return self._rhythm.next_poll(self.time.at(newest.date / 1000), now)

    def _learn(self, new: Reading | None) -> None:
        """Learn from a poll that worked, and from the reading that it found, when readings become readable."""
        before, asked = self._asked, self._calls[-1][0]
        self._asked = asked
        taken = None if new is None else self.time.at(new.date / 1000)
        if before is not None and taken is not None:
            self._rhythm.learn(missed=before - taken, found=asked - taken)

    def _today(self) -> float | None:
        """Return the time of day in Unix seconds; where Share tells none, it is no earlier than its readings."""
        return self.time.now() or self._latest_seen

    def _continue_from_read_back(self) -> None:
        """Continue from what was published before the start, as soon as it is there and the time is known."""
        today, found = self._today(), self._read_back
        if today is None or found is None or self._streaming:
            return
        history: list[Reading] = []
        try:
            history = messages.parse_history(found.history, self._source, today) if found.history else []
        except messages.ForeignError as why:
            _log.warning("%s: the history that the broker retained is not taken over: %s", self.key, why)
        self._ledger.restore(history, today)
        published = {reading.date for reading in history}
        self._stream.open(self.key, self._source, [r for r in self._ledger.readings if r.date in published])
        self._streaming = True
        self._offer([reading for reading in self._ledger.readings if reading.date not in published])

    def _offer(self, readings: list[Reading]) -> None:
        """Hand readings to the stream, once it is known what was published before."""
        if readings and self._streaming:
            offers = (Offer(reading, self._state_of(reading), self._fresh_until(reading)) for reading in readings)
            self._stream.offer(self.key, offers)

    def _state_of(self, reading: Reading) -> Callable[[], State]:
        """Return what writes the state of a reading, with the delta that it has now."""
        write = partial(messages.state_of, reading, self._ledger.delta(reading), self._account)
        write()  # a bug in it is to show here, in the account's own thread: in the broker's, it would end the daemon
        return write

    def _fresh_until(self, reading: Reading) -> float:
        """Return until when (by the clock) a reading is current: never, until Share has told the time."""
        taken = self.time.at(reading.date / 1000)
        return -math.inf if taken is None else taken + self._stale_after

    def _judge(self, batch: Batch, newest: Reading | None) -> str:
        if newest is not None and self._clock.now() < self._fresh_until(newest):
            return "ok"
        if batch.error_codes and (newest is None or batch.error_codes[-1] > newest.date):
            return "sensor_error"
        if batch.malformed and not batch.readings:
            return "unexpected_response"
        return "no_readings"

    def _take_failure(self, error: ShareError) -> float:
        now = self._clock.now()
        self._failures += 1
        share = STATES[type(error)]
        wrong_clock = isinstance(error, UnavailableError) and error.wrong_clock
        untried = isinstance(error, CredentialsRejectedError) and not self._client.logins
        self._become(share, status.tell(str(error), share, wrong_clock=wrong_clock, untried=untried))
        if isinstance(error, RateLimitedError):
            self._rate_limits[self._client.host] = now + schedule.rate_limit(error.retry_after)
            return now
        if wrong_clock:
            return now + schedule.WRONG_CLOCK
        return now + schedule.backoff(self._failures, random.random)

    def _show(self, newest: Reading) -> None:
        """Publish the newest reading; the mirror turns it into its stale form when, or if already, it is that."""
        self._shown = (newest, self.time.known)
        state, fresh_until = self._state_of(newest)(), self._fresh_until(newest)
        if fresh_until > self._clock.now():
            self._put(messages.fresh_messages(self._topics, self.key, state, fresh_until))
        else:
            self._put(messages.stale_messages(self._topics, self.key, state))

    def _become(self, share: str, message: str | None = None) -> None:
        """Take on a state, and log it if it is another one."""
        before = self._status
        self._status = replace(before, share=share, message=message or status.REMEDIES[share])
        if share == before.share:
            return
        self._since = self._clock.now()
        self._status = replace(self._status, since=None)
        if not self._status.well:
            _log.warning("%s: %s: %s", self.key, share, self._status.message)
        elif not before.well:
            _log.info("%s: well again", self.key)

    def _publish_status(self, next_poll: float) -> None:
        self._next_poll = next_poll
        now = self._clock.now()
        while self._calls and self._calls[0][0] <= now - _DAY:
            self._calls.popleft()
        newest = self._ledger.newest
        unix = self.time.unix
        self._status = replace(
            self._status,
            since=self._status.since or unix(self._since),  # once, for Share's time is told ever more exactly
            last_reading_at=None if newest is None else newest.date / 1000,
            last_success_at=None if self._last_success is None else unix(self._last_success),
            next_poll_at=unix(next_poll),
            delay=None if self._rhythm.learned is None else round(self._rhythm.learned, 1),
            requests_24h=sum(requests for _, requests, _ in self._calls),
            logins_24h=sum(logins for _, _, logins in self._calls),
            rejected=tuple(
                int(at)
                for rejected in self._sign_ins.rejected
                if rejected > now - _DAY and (at := unix(rejected)) is not None
            ),
        )
        self._put_status()

    def _put_status(self) -> None:
        """Publish the status, but not before the one of before the start was read: it has to go on from there."""
        if self._read_back is not None:
            full = replace(self._status, rejected=(*self._before.rejected, *self._status.rejected))
            if self._before.locked_until is not None:  # until it is recalled, it must not be forgotten
                until = self._before.locked_until
                full = replace(full, share="locked_out", message=status.REMEDIES["locked_out"], next_poll_at=until)
            self._put([messages.status_message(self._topics, self.key, full)])

    def _log_new(self, new: list[Reading], *, newest_is_new: bool) -> None:
        late = len(new)
        if newest_is_new:
            late -= 1
            reading, unit = new[-1], self._account.unit
            old = self._clock.now() >= self._fresh_until(reading)
            when = f"of {local(reading.date / 1000)}, not current" if old else ""
            words = filter(None, (str(reading.value(unit)), unit, reading.arrow, when))
            _log.info("%s: %s", self.key, " ".join(words))
        if late:
            _log.info("%s: %s earlier readings", self.key, late)


def client_of(account: Account, clock: Clock) -> ShareClient:
    """Make the client of an account."""
    return ShareClient(
        username=_plain(account.username),
        account_id=_plain(account.account_id),
        password=account.password.get_secret_value(),
        region=account.region,
        base_url=account.share_url,
        clock=clock,
    )


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def without_text(error: BaseException) -> str:
    """Write a traceback with the exception's type but not its text, which might hold a secret."""
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    return f"{frames}{type(error).__name__}"
