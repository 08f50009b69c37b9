"""When to do what: the next poll, the next attempt to sign in, how long to wait after which failure.

Pure: times are seconds of the caller's clock, and chance is a parameter. It does not wait; it says until when.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import growing_pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INTERVAL: Final = 300.0
"""Seconds from one reading to the next: the sensors' own rhythm."""
FULL_READ_EVERY: Final = 3600.0
"""Seconds between two polls that read all 24 hours, in case something was missed."""
REFRESH_EVERY: Final = 30.0
"""Seconds that have to pass between two polls that were asked for."""

_DELAY_FIRST: Final = 15.0  # most readings are readable 8 to 25 s after they were taken
_DELAY_BOUNDS: Final = (-295.0, 270.0)  # negative: stamped by a phone whose clock is ahead
_SPREAD_FIRST: Final = 4.0
_SPREAD_BOUNDS: Final = (1.0, 15.0)  # below a second, the jitter of the sensor's rhythm is all there is to see
_REQUEST: Final = 8.5
"""Seconds of waiting that one request more is worth."""
_QUICK: Final = (0.0, 1.6, 4.0)
"""When the quick tries come after the delay, in spreads."""
_SECOND_FINDS: Final = 0.8
"""The share of what the first try misses that the second is to find: with 1.6 spreads, the spread is a mean excess."""
_EVERY: Final = 45.0
"""Seconds between the tries after the quick ones, until the next reading is due."""
_CALM: Final = 30.0
"""Seconds by which a try is later than usual in a gap, where one has to find nearly every reading."""
_STEP: Final = 0.03  # of the delay, in spreads
_WIDEN: Final = 0.06  # of the spread, in parts of itself
_LATE_IN_A_ROW: Final = 8
_HITS_IN_A_ROW: Final = 6.0  # times as many as usual
_HALF_A_SECOND: Final = 0.5
_PROBE: Final = -20.0
"""When to ask once whether readings come before their own stamps, in seconds after the reading was due."""
_AHEAD: Final = 15.0
"""Seconds before its stamp at which a reading is found only if the phone's clock is ahead."""

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86400.0

LOCKED_OUT: Final = 20 * _MINUTE
"""Seconds without any sign-in after Share has locked an account: it does so for 15 to 20 minutes."""
WRONG_CLOCK: Final = 30.0
"""Seconds between two tries while this machine's wrong clock makes TLS fail."""
_BACKOFF_FIRST: Final = 5.0
_BACKOFF_MOST: Final = 300.0
_BACKOFF_SPREAD: Final = 0.2  # a day of failures is to cost no more requests than a day of readings

_RATE_LIMIT_DEFAULT: Final = 5 * _MINUTE
_RATE_LIMIT_LEAST: Final = _MINUTE
_RATE_LIMIT_MOST: Final = _HOUR

_UNKNOWN_FIRST: Final = _MINUTE
_UNKNOWN_MOST: Final = 30 * _MINUTE

_DEAD_AFTER: Final = 10 * _MINUTE
_RENEWED_AGAIN: Final = (30 * _MINUTE, _HOUR, 2 * _HOUR, 4 * _HOUR)
"""Seconds from one sign-in to the next while a session seems dead; the last one repeats."""

_RENEWALS_AN_HOUR: Final = 12
_ATTEMPTS_AN_HOUR: Final = 3
_ATTEMPTS_A_DAY: Final = 12
_AFTER_REJECTIONS: Final = (2 * _MINUTE, 20 * _MINUTE, 3 * _HOUR)
"""Seconds from one to the next: three in the first hour, then spread over the day rather than spent at once."""
_FOR_RESTARTS: Final = 2
"""How many attempts in an hour restarts may add, and how many of the day's are kept for them."""


class Rhythm:
    """When one account's readings become readable, learned from which try finds them, and when to ask next.

    A reading is first asked for when it is due: 300 s after its predecessor, and the delay. A first try that hits
    pulls the delay down a little; one that misses pushes it up by more, so that the two balance where asking earlier
    would cost as much in requests as it saves in waiting. Two quick tries follow; how far apart is the spread, which
    is learned too, so that the second try finds four in five of what the first missed. Then one comes every 45 s
    until the next reading is due, and from then on one each 5 minutes, somewhat later than usual.

    Readings later than the quick tries are late for reasons of their own, and teach nothing. But if eight in a row are
    so late, or far more in a row hit than usual, the delay itself has changed, and it moves on with each reading.

    A phone whose clock is a few minutes ahead stamps readings that can be read before their stamp: the delay is
    negative. Whoever asks after the stamp never notices. So once, at the start, somebody asks before it. If the
    reading is there, each one after it is asked for earlier, until one is not there yet.
    """

    def __init__(self) -> None:
        self.delay = _DELAY_FIRST
        """Seconds after a reading was due when it is first asked for."""
        self.learned: float | None = None
        """The delay, once a reading has told something about it."""
        self._spread = _SPREAD_FIRST
        self._hits = 0  # in a row
        self._late = 0  # in a row
        self._probe: float | None = _PROBE  # the delay to try once
        self._too_early: float | None = None  # while it is searched for: the latest delay that was too early

    def learn(self, missed: float, found: float) -> None:
        """Record how many seconds after a reading was taken it was asked for, last in vain, and then found.

        That is as many as after it was due, since the sensor keeps its rhythm. ``missed`` is negative where nobody
        asked in between.
        """
        if found < min(self.delay, 0.0) - _AHEAD:
            self._begin(found, too_early=-math.inf)
        elif self.delay < 0 <= found and found > self.delay + _EVERY:  # that phone is right again, or this one is late
            self._probe = self.delay
            self._begin(_DELAY_FIRST, too_early=None)
        elif self._too_early is not None:
            self._search(self._too_early, missed, found)
        elif not self._learn_by_tries(missed, found):
            return
        self.delay = self.learned = _within(_DELAY_BOUNDS, self.delay)
        self._spread = _within(_SPREAD_BOUNDS, self._spread)

    def _begin(self, delay: float, *, too_early: float | None) -> None:
        self.delay = delay
        self._too_early = too_early
        self._spread = _SPREAD_FIRST
        self._hits = self._late = 0

    def _search(self, too_early: float, missed: float, found: float) -> None:
        """Ask earlier by as much as tries are apart, until a reading is not there yet; then halve what is between."""
        if missed >= self.delay - _HALF_A_SECOND:
            too_early = missed
        if math.isinf(too_early):
            self.delay -= _EVERY
        elif found - too_early > 2 * _SPREAD_FIRST:
            self.delay, self._too_early = (too_early + found) / 2, too_early
        else:
            self.delay, self._too_early = found, None

    def _learn_by_tries(self, missed: float, found: float) -> bool:
        """Learn from which try found a reading; return whether that told anything."""
        first, second, third = self._quick_tries()
        slack = (second - first) / 2  # neither the sensor's rhythm nor the time of day is exact
        odds = 1 + _REQUEST / self._spread  # hits to a miss
        if missed < first - slack:
            self._late = 0
            if found >= second:
                return False  # nobody asked when it was due
            self._hits += 1
            self.delay -= self._spread * (_STEP if self._hits <= _HITS_IN_A_ROW * odds else 1)
        elif missed < third - slack:
            self._late = self._hits = 0
            self.delay += self._spread * _STEP * odds
            if found < third + slack:  # else a failure came between, which says nothing of the second try
                self._spread *= math.exp(_WIDEN * (_SECOND_FINDS - (found < third - slack)))
        else:
            self._late += 1
            if self._late < _LATE_IN_A_ROW:
                return False
            self.delay = third
        return True

    def probe(self, newest: float, now: float) -> float:
        """Return when to ask, once, whether readings come before their own stamps; infinity if there is no need."""
        at = math.inf if self._probe is None else newest + INTERVAL + self._probe
        self._probe = None
        return at if at > now else math.inf

    def next_poll(self, newest: float | None, now: float) -> float:
        """Return when to poll next, after a poll that worked, given when the newest reading was taken.

        It is never later than 5 minutes and the delay, if that is positive, from now.
        """
        if newest is None:
            return now + INTERVAL
        due = newest + INTERVAL
        passed = now - due + _HALF_A_SECOND  # a try that came a moment early is not made again at once
        after = next((at for at in self._tries() if at > passed), None)
        if after is None:
            calm = self.delay + _CALM
            after = calm + INTERVAL * math.ceil((passed - calm) / INTERVAL)
        return min(due + after, now + INTERVAL + max(self.delay, 0.0))

    def _quick_tries(self) -> list[float]:
        return [self.delay + spreads * self._spread for spreads in _QUICK]

    def _tries(self) -> list[float]:
        """Return when a reading is asked for after it was due, until its successor is."""
        tries = self._quick_tries()
        while tries[-1] + _EVERY < INTERVAL + min(self.delay, 0.0):
            tries.append(tries[-1] + _EVERY)
        return [*tries, INTERVAL + self.delay]


def _within(bounds: tuple[float, float], value: float) -> float:
    return min(max(value, bounds[0]), bounds[1])


def backoff(failures: int, chance: Callable[[], float]) -> float:
    """Return how many seconds to wait after that many failed polls in a row: 4 or 5 at first, never above 300.

    ``chance`` gives a number from 0 to 1; it spreads out those who failed at the same moment.
    """
    return growing_pause(failures, chance, first=_BACKOFF_FIRST, most=_BACKOFF_MOST, spread=_BACKOFF_SPREAD)


def rate_limit(retry_after: float | None) -> float:
    """Return how many seconds to leave a server alone that asked for ``retry_after`` of them (None: no word)."""
    if retry_after is None:
        return _RATE_LIMIT_DEFAULT
    return min(max(retry_after, _RATE_LIMIT_LEAST), _RATE_LIMIT_MOST)


class DeadSession:
    """Whether a session is dead although Share does not say so in known words, and when to sign in because of it.

    A session that worked and brings nothing but faults for ten minutes may be dead, or Share may be out of order: both
    look the same. So one sign-in is tried, then ever more rarely, until a list of readings comes again.
    """

    def __init__(self) -> None:
        self._worked = False
        self._renewals = 0
        self.sign_in_at = math.inf
        """From when on to sign in."""

    def listed(self) -> None:
        """Record that a read brought a list, be it empty."""
        self._worked = True
        self._renewals = 0
        self.sign_in_at = math.inf

    def fault(self, now: float) -> None:
        """Record that a read was answered, but with no list and in no words that are known."""
        if self._worked and math.isinf(self.sign_in_at):
            self.sign_in_at = now + _DEAD_AFTER

    def renewed(self, now: float) -> None:
        """Record a sign-in that was made because of it, however it went."""
        self.sign_in_at = now + _RENEWED_AGAIN[min(self._renewals, len(_RENEWED_AGAIN) - 1)]
        self._renewals += 1


class SignIns:
    """The sign-ins of one account, and when the next one is allowed.

    Trying a wrong password again and again locks the account, and every further try renews the lock. So what
    never worked is tried 3 times in an hour and 12 times a day at most: once more after 2 minutes, since Share rejects
    right credentials now and then, and more calmly after that. After it has worked once, a rejection does not prove a
    wrong password: the next try follows after 5 minutes, then one every 30 minutes, and every 2 hours after 6 hours. A
    session that keeps getting lost is renewed 12 times an hour at most. A sign-in that Share answers in words that
    nobody knows is not repeated at once either.

    What was rejected before a restart counts on. Yet somebody may have mended the password before it, so that the
    first sign-in after it need not wait, up to twice an hour and as long as the day's tries are not used up; and not
    longer than until 30 minutes after the last rejection.
    """

    def __init__(self) -> None:
        self.rejected: list[float] = []
        """When requests with the password were rejected, of the last 24 hours."""
        self._sign_ins: list[float] = []  # of the last hour, that opened a session
        self._in_vain: list[float] = []  # requests with the password since the first rejection, of the last 24 hours
        self._tried = False  # in this process
        self._worked = False
        self._rejections = 0  # in a row
        self._here = list[float]()  # when sign-ins were rejected in a row, of this process
        self._last_rejection = 0.0
        self._unknown = 0  # answers in a row that nobody knows
        self._last_unknown = 0.0
        self.locked_until = 0.0
        """Until when Share has locked the account, as far as is known."""

    def note(self, now: float, *, requests: int, accepted: bool | None, answered: bool = False) -> None:
        """Record a sign-in with that many requests.

        ``accepted`` is None where Share did not say; ``answered`` is whether it answered all the same.
        """
        self._tried = True
        self._sign_ins = [at for at in self._sign_ins if at > now - _HOUR]
        self.rejected = [at for at in self.rejected if at > now - _DAY]
        self._in_vain = [at for at in self._in_vain if at > now - _DAY]
        self._unknown = self._unknown + 1 if accepted is None and answered else 0
        self._last_unknown = now
        if accepted:
            self._sign_ins.append(now)
            self._worked = True
            self._rejections = 0
            self._here.clear()
        elif accepted is False:
            self.rejected += [now] * requests
            self._rejections += 1
            self._here = [*self._here[:1], now]
            self._last_rejection = now
        if self._rejections:
            self._in_vain += [now] * requests

    def worked_before(self) -> None:
        """Record that these credentials opened a session in the last 24 hours, before a restart."""
        self._worked = True

    def restore(self, rejected: Iterable[float], now: float, locked_until: float | None = None) -> None:
        """Record how signing in went before a restart: when it was rejected, until when it is locked.

        Rejections older than a day, or later than ``now``, are ignored.
        """
        self.locked_until = max(self.locked_until, min(locked_until or 0.0, now + LOCKED_OUT))
        earlier = sorted(at for at in rejected if now - _DAY < at <= now)
        if earlier:
            self.rejected = sorted(earlier + self.rejected)
            self._in_vain = sorted(earlier + self._in_vain)
            self._rejections += 0 if self._worked else len(earlier)
            self._last_rejection = max(self._last_rejection, earlier[-1])

    def lock_out(self, now: float) -> None:
        """Record that Share has locked the account."""
        self.locked_until = now + LOCKED_OUT

    def allowed_at(self, requests: int, *, understood: bool = False) -> float:
        """Return from when on a sign-in is allowed that takes that many requests with the password.

        ``understood`` is whether Share has just said in known words that the session is over: then it is in order.
        """
        earliest = [self.locked_until, _room_at(self._sign_ins, _RENEWALS_AN_HOUR, 1, _HOUR)]
        if self._unknown and not understood:
            pause = min(_UNKNOWN_FIRST * 2.0 ** min(self._unknown - 1, 10), _UNKNOWN_MOST)
            earliest.append(self._last_unknown + pause)
        if self._rejections:
            earliest.append(self._after_rejections(requests))
        return max(earliest)

    def _after_rejections(self, requests: int) -> float:
        if not self._tried:
            room = max(
                _room_at(self._in_vain, _ATTEMPTS_AN_HOUR + _FOR_RESTARTS, requests, _HOUR),
                _room_at(self._in_vain, _ATTEMPTS_A_DAY, requests, _DAY),
            )
            return min(room, self._last_rejection + 30 * _MINUTE)
        if self._worked:
            last = self._last_rejection
            first = self._here[0] if self._here else last
            pause = 5 * _MINUTE if first == last else 30 * _MINUTE if last < first + 6 * _HOUR else 2 * _HOUR
            return last + pause
        pause = _AFTER_REJECTIONS[min(self._rejections, len(_AFTER_REJECTIONS)) - 1]
        return max(
            self._last_rejection + pause,
            _room_at(self._in_vain, _ATTEMPTS_AN_HOUR, requests, _HOUR),
            _room_at(self._in_vain, _ATTEMPTS_A_DAY - _FOR_RESTARTS, requests, _DAY),
        )


def _room_at(times: list[float], most: int, more: int, within: float) -> float:
    """Return from when on ``more`` fit beside ``times``, given that at most ``most`` may lie ``within``."""
    excess = len(times) + more - most
    return times[excess - 1] + within if excess > 0 else 0.0
