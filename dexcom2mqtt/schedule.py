"""When to do what: the next poll, the next attempt to sign in, how long to wait after which failure.

Pure: times are seconds of the caller's clock, and chance is a parameter. It does not wait; it says until when.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INTERVAL: Final = 300.0
"""Seconds from one reading to the next: the sensors' own rhythm."""
FULL_READ_EVERY: Final = 3600.0
"""Seconds between two polls that read all 24 hours, in case something was missed."""
REFRESH_EVERY: Final = 30.0
"""Seconds that have to pass between two polls that were asked for."""

_DELAY_FIRST: Final = 15.0  # most readings are readable 8 to 25 s after they were taken
_DELAY_BOUNDS: Final = (1.0, 270.0)
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

_RENEWALS_AN_HOUR: Final = 12
_ATTEMPTS_AN_HOUR: Final = 3
_ATTEMPTS_A_DAY: Final = 12
_FOR_RESTARTS: Final = 2
"""How many attempts in an hour restarts may add, and how many of the day's are kept for them."""


class Rhythm:
    """When one account's readings become readable, learned from which try finds them, and when to ask next.

    A reading is first asked for when it is due: 300 s after its predecessor, and the delay. A first try that hits
    pulls the delay down a little; one that misses pushes it up by more, so that the two balance where asking earlier
    would cost as much in requests as it saves in waiting. Two quick tries follow; how far apart is the spread, which
    is learned too, so that the second try finds four in five of what the first missed. Then one comes every 45 s
    until the next reading is due, and from then on one each 5 minutes, somewhat later than usual.

    Readings later than the quick tries are late for reasons of their own, and teach nothing. But where eight in a row
    are so late, or far more in a row hit than usual, the delay itself has changed, and it moves on with each reading.
    """

    def __init__(self) -> None:
        self.delay = _DELAY_FIRST
        """Seconds after a reading was due when it is first asked for."""
        self.learned: float | None = None
        """The delay, once a reading has told something about it."""
        self._spread = _SPREAD_FIRST
        self._hits = 0  # in a row
        self._late = 0  # in a row

    def learn(self, missed: float, found: float) -> None:
        """Take note of how many seconds after a reading was taken it was asked for, last in vain, and then found.

        That is as many as after it was due, since the sensor keeps its rhythm. ``missed`` is negative where nobody
        asked in between.
        """
        first, second, third = self._quick_tries()
        slack = (second - first) / 2  # neither the sensor's rhythm nor the time of day is exact
        odds = 1 + _REQUEST / self._spread  # hits to a miss
        if missed < first - slack:
            self._late = 0
            if found >= second:
                return  # nobody asked when it was due
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
                return
            self.delay = third
        self.delay = self.learned = _within(_DELAY_BOUNDS, self.delay)
        self._spread = _within(_SPREAD_BOUNDS, self._spread)

    def next_poll(self, newest: float | None, now: float) -> float:
        """Return when to poll next, after a poll that worked, given when the newest reading was taken.

        It is never later than 5 minutes and the delay from now.
        """
        if newest is None:
            return now + INTERVAL
        due = newest + INTERVAL
        passed = now - due + _HALF_A_SECOND  # a try that came a moment early is not made again at once
        after = next((at for at in self._tries() if at > passed), None)
        if after is None:
            calm = self.delay + _CALM
            after = calm + INTERVAL * math.ceil((passed - calm) / INTERVAL)
        return min(due + after, now + INTERVAL + self.delay)

    def _quick_tries(self) -> list[float]:
        return [self.delay + spreads * self._spread for spreads in _QUICK]

    def _tries(self) -> list[float]:
        """Return when a reading is asked for after it was due, until its successor is."""
        tries = self._quick_tries()
        while tries[-1] + _EVERY < INTERVAL:
            tries.append(tries[-1] + _EVERY)
        return [*tries, INTERVAL + self.delay]


def _within(bounds: tuple[float, float], value: float) -> float:
    return min(max(value, bounds[0]), bounds[1])


def backoff(failures: int, chance: Callable[[], float]) -> float:
    """Return how many seconds to wait after that many failed polls in a row: 4 or 5 at first, never above 300.

    ``chance`` gives a number from 0 to 1; it spreads out those who failed at the same moment.
    """
    most = min(_BACKOFF_FIRST * float(2 ** min(failures - 1, 10)), _BACKOFF_MOST)
    return most * (1 - _BACKOFF_SPREAD + _BACKOFF_SPREAD * chance())


def rate_limit(retry_after: float | None) -> float:
    """Return how many seconds to leave a server alone that asked for ``retry_after`` of them (None: no word)."""
    if retry_after is None:
        return _RATE_LIMIT_DEFAULT
    return min(max(retry_after, _RATE_LIMIT_LEAST), _RATE_LIMIT_MOST)


class SignIns:
    """The sign-ins of one account, and when the next one is allowed.

    Trying a wrong password again and again locks the account, and every further try renews the lock. So what
    never worked is tried 3 times in an hour and 12 times a day at most. After it has worked once, a rejection
    is no proof of a wrong password: the next try follows after 5 minutes, then one every 30 minutes. A session
    that keeps getting lost is renewed 12 times an hour at most.

    What was rejected before a restart counts on. Yet somebody may have mended the password before it, so that the
    first sign-in after it need not wait, up to twice an hour, as long as the day's tries are not used up.
    """

    def __init__(self) -> None:
        self.rejected: list[float] = []
        """When requests with the password were rejected, of the last 24 hours."""
        self._sign_ins: list[float] = []  # of the last hour, that opened a session
        self._in_vain: list[float] = []  # requests with the password since the first rejection, of the last 24 hours
        self._tried = False  # in this process
        self._worked = False
        self._rejections = 0  # in a row
        self._last_rejection = 0.0
        self.locked_until = 0.0
        """Until when Share has locked the account, as far as is known."""

    def note(self, now: float, *, requests: int, accepted: bool | None) -> None:
        """Take note of a sign-in with that many requests; ``accepted`` is None where Share did not say."""
        self._tried = True
        self._sign_ins = [at for at in self._sign_ins if at > now - _HOUR]
        self.rejected = [at for at in self.rejected if at > now - _DAY]
        self._in_vain = [at for at in self._in_vain if at > now - _DAY]
        if accepted:
            self._sign_ins.append(now)
            self._worked = True
            self._rejections = 0
        elif accepted is False:
            self.rejected += [now] * requests
            self._rejections += 1
            self._last_rejection = now
        if self._rejections:
            self._in_vain += [now] * requests

    def restore(self, rejected: Iterable[float], now: float, locked_until: float | None = None) -> None:
        """Take note of how signing in went before a restart: when it was rejected, until when it is locked.

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
        """Take note that Share has locked the account."""
        self.locked_until = now + LOCKED_OUT

    def allowed_at(self, requests: int) -> float:
        """Return from when on a sign-in is allowed that takes that many requests with the password."""
        earliest = [self.locked_until, _room_at(self._sign_ins, _RENEWALS_AN_HOUR, 1, _HOUR)]
        if self._rejections and self._worked:
            earliest.append(self._last_rejection + (5 if self._rejections == 1 else 30) * _MINUTE)
        elif self._rejections and not self._tried:
            earliest.append(_room_at(self._in_vain, _ATTEMPTS_AN_HOUR + _FOR_RESTARTS, requests, _HOUR))
            earliest.append(_room_at(self._in_vain, _ATTEMPTS_A_DAY, requests, _DAY))
        elif self._rejections:
            # Two more in the first hour, then spread over the day rather than spent at once.
            spread = 20 * _MINUTE if self._rejections < _ATTEMPTS_AN_HOUR else 3 * _HOUR
            earliest.append(self._last_rejection + spread)
            earliest.append(_room_at(self._in_vain, _ATTEMPTS_AN_HOUR, requests, _HOUR))
            earliest.append(_room_at(self._in_vain, _ATTEMPTS_A_DAY - _FOR_RESTARTS, requests, _DAY))
        return max(earliest)


def _room_at(times: list[float], most: int, more: int, within: float) -> float:
    """Return from when on ``more`` fit beside ``times``, given that at most ``most`` may lie ``within``."""
    excess = len(times) + more - most
    return times[excess - 1] + within if excess > 0 else 0.0
