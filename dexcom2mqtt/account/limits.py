"""What must not be asked of Share, and until when: sign-ins are rationed, and a server may want to be left alone.

Pure: times are seconds of the caller's clock. It neither asks nor waits; it says from when on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import DAY

if TYPE_CHECKING:
    from collections.abc import Iterable

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0

LOCKED_OUT: Final = 20 * _MINUTE
"""Seconds without any sign-in after Share has locked an account: it does so for 15 to 20 minutes."""
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
        self.rejected = [at for at in self.rejected if at > now - DAY]
        self._in_vain = [at for at in self._in_vain if at > now - DAY]
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
        earlier = sorted(at for at in rejected if now - DAY < at <= now)
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
                _room_at(self._in_vain, _ATTEMPTS_A_DAY, requests, DAY),
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
            _room_at(self._in_vain, _ATTEMPTS_A_DAY - _FOR_RESTARTS, requests, DAY),
        )


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


class RateLimits:
    """Until when each server wants to be left alone. All accounts share it: a server counts what one address asks."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # by host

    def until(self, host: str) -> float:
        """Return before when nothing may be asked of a server."""
        return self._until.get(host, 0.0)

    def limit(self, host: str, now: float, retry_after: float | None) -> None:
        """Record that a server asked to be left alone for so many seconds; None if it did not say for how many."""
        self._until[host] = now + rate_limit(retry_after)


def rate_limit(retry_after: float | None) -> float:
    """Return how many seconds to leave a server alone that asked for ``retry_after`` of them (None: no word)."""
    if retry_after is None:
        return _RATE_LIMIT_DEFAULT
    return min(max(retry_after, _RATE_LIMIT_LEAST), _RATE_LIMIT_MOST)


def _room_at(times: list[float], most: int, more: int, within: float) -> float:
    """Return from when on ``more`` fit beside ``times``, given that at most ``most`` may lie ``within``."""
    excess = len(times) + more - most
    return times[excess - 1] + within if excess > 0 else 0.0
