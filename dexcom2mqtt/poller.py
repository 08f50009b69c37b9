"""One account, for ever: when it is due, fetch, keep what is new, publish, say how it is going.

This is the only place where Share, the ledger, the schedule, the status and the messages meet; each of them
knows nothing of the others. It runs in a thread of its own, so that no account waits for another.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import tenacity

from dexcom2mqtt import schedule
from dexcom2mqtt.clock import local
from dexcom2mqtt.ledger import Ledger
from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.messages import status
from dexcom2mqtt.messages.history import History, parse_history, source_of
from dexcom2mqtt.messages.message import ForeignError, FutureError
from dexcom2mqtt.messages.state import fresh_messages, stale_messages, state_of, without_reading
from dexcom2mqtt.messages.status import Before, Status, parse_status, status_message
from dexcom2mqtt.messages.stream import Offer
from dexcom2mqtt.share import (
    MAX_MINUTES,
    Batch,
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    ShareClient,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)
from dexcom2mqtt.stamps import Judged, Stamps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import SecretStr

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Account
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.status import ShareState
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)

_DAY: Final = 86400.0
_WAIT_FOR_BROKER: Final = 10.0
_QUICK_TRIES: Final = 3
_AN_HOUR: Final = 12  # readings
_SEEN_LATELY: Final = 4 * 3600.0
_ASK_AGAIN: Final = 30.0
_ASKED_AGAIN_MOST: Final = 5
_SAME: Final = 5.0  # seconds: each answer tells the time a little more exactly
_AFTER_A_BUG: Final = 300.0
_BUGS_AN_HOUR: Final = 3
STATES: Final[dict[type[ShareError], ShareState]] = {
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
    before: Before


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
        self._source = source_of(account.region, account.user.get_secret_value())
        self._stale_after = stale_after
        self._rate_limits = rate_limits
        self._back_by = back_by
        self._alarm = clock.alarm(back_by)
        self._client = client_of(account, clock)
        self.time = self._client.time
        """The time of day, as this account's server tells it."""
        self.answered = threading.Event()
        """Set once the first poll is over, however it went."""
        self._ledger = Ledger()
        self._stamps = Stamps(stale_after)
        self._first_seen: dict[int, float] = {}  # by date: when, of the latest
        self._sign_ins = schedule.SignIns()
        self._session = schedule.DeadSession()
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
        self._late_at = -math.inf  # when a new reading came last that was too old to be current
        self._asked_again = 0  # in a row, because the time was in doubt
        self._refresh_asked = False
        self._read_back: _ReadBack | None = None
        self._reading_back = False
        self._before = Before()  # the start
        self._streaming = False
        self._shown: tuple[Reading, float] | None = None  # and until when it is current
        self._told: set[str] = set()  # what is odd about the records, and in the log
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

    def expect_read_back(self) -> None:
        """Wait for what the broker retained, since it is being read now; for any thread."""
        self._reading_back = True
        self._alarm.ring()

    def take_read_back(self, history: bytes | None, status: bytes | None) -> None:
        """Take what the broker retained of this account before the start; for any thread."""
        try:
            self._before = parse_status(status) if status else Before()
        except ForeignError as why:
            _log.warning("%s: the status that the broker retained is not taken over: %s", self.key, why)
        self._read_back = _ReadBack(history, self._before)
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
                _log.error("%s: a bug in dexcom2mqtt; please report it:\n%s", self.key, redacted_traceback(error))
                if len(bugs) >= _BUGS_AN_HOUR:
                    raise
                self._become("unexpected_response", status.BUG)
                self._publish_status(now + _AFTER_A_BUG)
                self.answered.set()
                self._alarm.sleep(_AFTER_A_BUG)

    def _run(self) -> None:
        self._await_read_back()
        while True:
            self._wait()
            self._last_poll = self._clock.now()
            wanted = self._poll()
            self._publish_status(max(wanted, self._not_before()))
            self.answered.set()

    def _await_read_back(self) -> None:
        """Wait for what the broker retained: sign-ins that were rejected before a restart count on.

        Until then nothing is sent that carries the password. A broker that cannot be reached is waited for 10 s.
        """
        began, most = self._clock.now(), _WAIT_FOR_BROKER * self._clock.speed
        while self._read_back is None:
            left = began + (2 * most if self._reading_back else most) - self._clock.now()
            if left <= 0:
                return
            self._alarm.wait(left)

    def _wait(self) -> None:
        """Wait for the next poll, or for a refresh as far as it is allowed."""
        while (left := max(self._next_poll, self._not_before()) - self._clock.now()) > 0:
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
            rationed = self._before.rejected or self._before.locked_until is not None
            if rationed and not self.time.known and not self._client.signed_in:
                self._calls.append((self._clock.now(), 1, 0))
                self._client.ask_time()
            self._recall()
            batch = self._fetch()
        except ShareError as error:
            return self._take_failure(error)
        return self._take_batch(batch)

    def _recall(self) -> None:
        """Let count how signing in went before a restart, as soon as Share has told the time."""
        if not self.time.known:
            return
        before, self._before = self._before, Before()
        rejected = [at for unix in before.rejected if (at := self.time.at(unix)) is not None]
        locked_until = before.locked_until
        if rejected or locked_until is not None:
            self._sign_ins.restore(rejected, self._clock.now(), locked_until and self.time.at(locked_until))

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
            sleep=self._alarm.sleep,
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
        self._tell_oddities(batch, whole=minutes == MAX_MINUTES)
        if full:
            self._last_full_read = now
        return batch

    def _tell_oddities(self, batch: Batch, *, whole: bool) -> None:
        """Warn of odd records once, until a ``whole`` day has none: most polls look back but a few minutes."""
        for words, count in ((status.MALFORMED, batch.malformed), (status.DRIFTED, batch.drifted)):
            if count and words not in self._told:
                self._told.add(words)
                _log.warning("%s: %s", self.key, words.format(count))
            elif whole and not count:
                self._told.discard(words)

    def _fetch_once(self, minutes: int) -> Batch:
        """Fetch, and record what it took: sign-ins are rationed, so each one counts."""
        client, now = self._client, self._clock.now()
        self._back_by(now)
        may_sign_in = self._sign_ins.allowed_at(client.sign_in_requests) <= now
        may_renew = self._sign_ins.allowed_at(client.sign_in_requests, understood=True) <= now
        if not client.signed_in and not may_sign_in:
            raise self._too_early()
        seems_dead = client.signed_in and may_sign_in and self._session.sign_in_at <= now
        requests, logins, sessions = client.requests, client.logins, client.sessions
        accepted, answered = None, False
        try:
            if seems_dead:
                client.sign_in()
            batch = client.fetch(minutes, renew=may_renew and not seems_dead)
        except CredentialsRejectedError:
            accepted = False
            raise
        except LockedOutError:
            self._sign_ins.lock_out(self._clock.now())
            raise
        except (UnavailableError, UnexpectedResponseError) as error:
            answered = isinstance(error, UnexpectedResponseError) or error.answered
            if answered and client.signed_in and client.logins == logins:
                self._session.fault(self._clock.now())
            raise
        finally:
            self._calls.append((now, client.requests - requests, client.logins - logins))
            if seems_dead and client.logins > logins:
                self._session.renewed(now)
            if client.logins > logins:
                accepted = True if client.sessions > sessions else accepted
                used = client.logins - logins
                self._sign_ins.note(self._clock.now(), requests=used, accepted=accepted, answered=answered)
        self._session.listed()
        return batch

    def _too_early(self) -> ShareError:
        """Say why no sign-in may be made, where the loop did not wait for it: after a restart, or a bug."""
        if self._sign_ins.locked_until > self._clock.now():
            return LockedOutError(f"{self._client.host} has locked the account for a while after failed sign-ins")
        if self._sign_ins.rejected:
            return CredentialsRejectedError(f"{self._client.host} did not accept the credentials before the restart")
        return UnavailableError(f"{self._client.host} has ended the session too often; the next sign-in has to wait")

    def _take_batch(self, batch: Batch) -> float:
        now, first = self._clock.now(), self._last_success is None
        self._failures = 0
        self._last_success = now
        if batch.readings:
            self._latest_seen = batch.readings[-1].date / 1000
        self._continue_from_read_back()
        today = self._today() or 0.0
        known = self._ledger.newest
        settled = self.time.settled or not self.time.known
        judged = self._stamps.judge(batch.readings, today, settled=settled, known=self._ledger.has)
        new = self._ledger.add(judged.right, today)
        self._note_first_seen(new, now)
        newest = self._ledger.newest
        self._learn(None if newest is known else newest)
        self._offer(new)
        self._offer_doubtful(today)
        self._log_new(new, newest_is_new=newest is not known)
        if newest is not None and newest is not known and not first:
            self._late_at = -math.inf if now < self._fresh_until(newest) else now
        self._become(*self._judge(batch, judged, newest))
        if newest is not None and (new or not self._is_shown(newest)):
            self._show(newest)
        return min(self._next_poll_after(newest, now), self._asked_again_at(judged, now))

    def _next_poll_after(self, newest: Reading | None, now: float) -> float:
        taken = None if newest is None else self.time.at(newest.date / 1000)
        after = self._rhythm.next_poll(taken, now)
        return after if taken is None else min(after, self._rhythm.probe(taken, now))

    def _asked_again_at(self, judged: Judged, now: float) -> float:
        """Return when to ask again because the time is in doubt: as soon as one more answer may settle it."""
        settles_at = self.time.settles_at
        if settles_at is None or not (judged.withheld or self.time.jumped):
            self._asked_again = 0
            return math.inf
        if settles_at >= now + 2 * _ASK_AGAIN or self._asked_again >= _ASKED_AGAIN_MOST:
            return math.inf
        self._asked_again += 1
        return max(settles_at, now + _ASK_AGAIN)

    def _note_first_seen(self, new: list[Reading], now: float) -> None:
        """Record when the latest were first seen: they are current from then on at most, whatever their stamps say."""
        self._first_seen = {date: at for date, at in self._first_seen.items() if at > now - _SEEN_LATELY}
        self._first_seen |= {reading.date: now for reading in new[-_AN_HOUR:]}

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
        history = History()
        try:
            history = parse_history(found.history, self._source, today) if found.history else history
        except ForeignError as why:
            if isinstance(why, FutureError) and self.time.known and not self.time.settled:
                return  # it is the time that may be wrong: the next answer of Share tells more
            _log.warning("%s: the history that the broker retained is not taken over: %s", self.key, why)
        if any(reading.date >= (today - _DAY) * 1000 for reading in (*history.readings, *history.doubtful)):
            self._sign_ins.worked_before()
        self._stamps.restore(history.doubtful, found.before.stamps, today)
        published = {reading.date for reading in history.readings}
        if self._ledger.newest is not None:  # Share was faster than the broker
            fresh = [reading for reading in self._ledger.readings if reading.date not in published]
            self._ledger.drop(self._stamps.doubt(fresh))
            self._show_what_is_left()
        self._ledger.restore(history.readings, today)
        self._stream.open(
            self.key, self._source, [r for r in self._ledger.readings if r.date in published], history.doubtful
        )
        self._streaming = True
        self._offer([reading for reading in self._ledger.readings if reading.date not in published])

    def _offer(self, readings: list[Reading]) -> None:
        """Hand readings to the stream, once it is known what was published before."""
        if readings and self._streaming:
            self._stream.offer(self.key, [self._offer_of(reading) for reading in readings])

    def _offer_doubtful(self, today: float) -> None:
        """Hand over the doubtful readings whose stamp has passed: they are only for the record."""
        passed = self._stamps.passed(today) if self._streaming else []
        if passed:
            offers = [Offer(reading, None, self._account, -math.inf, doubtful=True) for reading in passed]
            self._stream.offer(self.key, offers)

    def _offer_of(self, reading: Reading) -> Offer:
        """Offer a reading with the delta that it has now."""
        offer = Offer(reading, self._ledger.delta(reading), self._account, self._fresh_until(reading))
        offer.state()  # a bug in it is to show here, in the account's own thread: in the broker's, it ends the daemon
        return offer

    def _fresh_until(self, reading: Reading) -> float:
        """Return until when (by the clock) a reading is current.

        Never, until Share has told the time, or while the phone's clock is known to be wrong.
        """
        taken = self.time.at(reading.date / 1000)
        if taken is None or self._stamps.ahead is not None:
            return -math.inf
        return min(taken, self._first_seen.get(reading.date, math.inf)) + self._stale_after

    def _judge(self, batch: Batch, judged: Judged, newest: Reading | None) -> tuple[ShareState, str | None]:
        """Return the state that a batch means and, if it is not the state's own, the message."""
        now, ahead = self._clock.now(), self._stamps.ahead
        last = 0 if newest is None else newest.date
        verdicts: tuple[tuple[bool, ShareState, str | None], ...] = (
            (ahead is not None, "phone_clock", status.phone_clock(ahead or 0.0)),
            (newest is not None and now < self._fresh_until(newest), "ok", None),
            (judged.withheld > 0, "no_readings", status.UNSETTLED),
            (batch.nothing_shared, "no_readings", status.NOTHING_SHARED),
            (max(batch.error_codes, default=0) > last, "sensor_error", None),
            (batch.newest_malformed, "unexpected_response", status.NEWEST_MALFORMED),
            (batch.malformed > 0 and not batch.readings, "unexpected_response", None),
            (now < self._late_at + self._stale_after, "no_readings", status.LATE),
            (True, "no_readings", None),
        )
        return next((share, message) for holds, share, message in verdicts if holds)

    def _take_failure(self, error: ShareError) -> float:
        now = self._clock.now()
        self._failures += 1
        self._recall()
        self._continue_from_read_back()
        share = STATES[type(error)]
        wrong_clock = isinstance(error, UnavailableError) and error.wrong_clock
        untried = isinstance(error, CredentialsRejectedError) and not self._client.logins
        self._become(share, status.tell(str(error), share, wrong_clock=wrong_clock, untried=untried))
        if isinstance(error, RateLimitedError):
            self._rate_limits[self._client.host] = now + schedule.rate_limit(error.retry_after)
            return now
        if wrong_clock:
            return now + schedule.WRONG_CLOCK
        after, sign_in_at = now + schedule.backoff(self._failures, random.random), self._session.sign_in_at
        return min(after, sign_in_at) if sign_in_at > now else after

    def _is_shown(self, newest: Reading) -> bool:
        """Return whether a reading is what is published, current for as long: Share's time may have changed."""
        if self._shown is None or self._shown[0] is not newest:
            return False
        before, now = self._shown[1], self._fresh_until(newest)
        return before == now or abs(before - now) <= _SAME * self._clock.speed

    def _show_what_is_left(self) -> None:
        """Show the newest reading, should the one that is shown have turned out to be doubtful."""
        newest = self._ledger.newest
        if newest is not None:
            self._show(newest)
        elif self._shown is not None:
            self._shown = None
            nothing = without_reading(self._account)
            self._put(stale_messages(self._topics, self.key, nothing))

    def _show(self, newest: Reading) -> None:
        """Publish the newest reading; the mirror turns it into its stale form when, or if already, it is that."""
        fresh_until = self._fresh_until(newest)
        state = state_of(newest, self._ledger.delta(newest), self._account)
        self._shown = (newest, fresh_until)
        if fresh_until > self._clock.now():
            self._put(fresh_messages(self._topics, self.key, state, fresh_until))
        else:
            self._put(stale_messages(self._topics, self.key, state))

    def _become(self, share: ShareState, message: str | None = None) -> None:
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
            ahead_until=self._stamps.ahead_until(self.time.now() or 0.0),
        )
        self._put_status()

    def _put_status(self) -> None:
        """Publish the status, but not before the one of before the start was read: it has to go on from there."""
        if self._read_back is not None:
            now, before = self._status, self._read_back.before
            full = replace(
                now,
                rejected=(*self._before.rejected, *now.rejected),
                last_reading_at=now.last_reading_at or before.last_reading,
                last_success_at=now.last_success_at or before.stamps.last_success,
                ahead_until=now.ahead_until if self._streaming else before.stamps.ahead_until,
            )
            if self._before.locked_until is not None:  # until it is recalled, it must not be forgotten
                until = self._before.locked_until
                full = replace(full, share="locked_out", message=status.REMEDIES["locked_out"], next_poll_at=until)
            self._put([status_message(self._topics, self.key, full)])

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
