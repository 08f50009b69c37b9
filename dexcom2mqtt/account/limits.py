"""When requests to Share are allowed: sign-ins are rationed, and a server may limit the rate of requests.

Pure: times are seconds of the caller's clock. It sends nothing and never waits; it returns the earliest time allowed.
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
"""Seconds without any sign-in after Share has locked an account: the lock lasts 15 to 20 minutes."""
_RATE_LIMIT_DEFAULT: Final = 5 * _MINUTE
_RATE_LIMIT_LEAST: Final = _MINUTE
_RATE_LIMIT_MOST: Final = _HOUR
_UNKNOWN_FIRST: Final = _MINUTE
_UNKNOWN_MOST: Final = 30 * _MINUTE
_DEAD_AFTER: Final = 10 * _MINUTE
_RENEWAL_PAUSES: Final = (30 * _MINUTE, _HOUR, 2 * _HOUR, 4 * _HOUR)
"""Seconds from one sign-in to the next while a session seems dead; the last one repeats."""
_RENEWALS_PER_HOUR: Final = 12
_ATTEMPTS_PER_HOUR: Final = 3
_ATTEMPTS_PER_DAY: Final = 12
"""Including those reserved for restarts."""
_AFTER_REJECTIONS: Final = (2 * _MINUTE, 20 * _MINUTE, 3 * _HOUR)
"""Seconds from one rejection to the next try: three tries in the first hour, the others spread over the day."""
_EXTRA_PER_HOUR: Final = 2
"""How many attempts restarts may add to those of an hour."""
_RESERVED_PER_DAY: Final = 2
"""How many of the day's attempts are reserved for restarts."""


class SignIns:
    """The sign-ins of one account, and when the next one is allowed.

    Repeated tries with a wrong password lock the account, and every further try renews the lock. So credentials that
    never worked are tried at most 3 times an hour and 10 times a day: again after 2 minutes, since Share now and then
    rejects valid credentials, then less often. Once they have worked, a rejection does not prove a wrong
    password: the next try follows after 5 minutes, then one every 30 minutes, and every 2 hours after 6 hours. A
    session that keeps ending is renewed at most 12 times an hour. A sign-in with an unknown answer is not repeated
    immediately either.

    Rejections before a restart still count. But somebody may have corrected the password, so the first sign-in after
    a restart need not wait, up to 5 tries in an hour and 12 in a day altogether. It never waits longer than 30 minutes
    after the last rejection.
    """

    def __init__(self) -> None:
        self.rejected: list[float] = []
        """When requests with the password were rejected in the last 24 hours."""
        self._sign_ins: list[float] = []  # those of the last hour that opened a session
        self._attempts: list[float] = []  # requests with the password since the first rejection, in the last 24 hours
        self._tried = False  # in this process
        self._worked = False
        self._rejections = 0  # in a row
        self._streak = list[float]()  # first and last of the rejections in a row, in this process
        self._last_rejection = 0.0
        self._unknown = 0  # unknown answers in a row
        self._last_unknown = 0.0
        self.locked_until = 0.0
        """Until when Share has locked the account, as far as known."""

    def note(self, now: float, *, requests: int, accepted: bool | None, answered: bool = False) -> None:
        """Record a sign-in that took ``requests`` requests.

        ``accepted`` is None if Share did not say; ``answered`` is whether it answered at all in that case.
        """
        self._tried = True
        self._sign_ins = [at for at in self._sign_ins if at > now - _HOUR]
        self.rejected = [at for at in self.rejected if at > now - DAY]
        self._attempts = [at for at in self._attempts if at > now - DAY]
        self._unknown = self._unknown + 1 if accepted is None and answered else 0
        self._last_unknown = now
        if accepted:
            self._sign_ins.append(now)
            self._worked = True
            self._rejections = 0
            self._streak.clear()
        elif accepted is False:
            self.rejected += [now] * requests
            self._rejections += 1
            self._streak = [*self._streak[:1], now]
            self._last_rejection = now
        if self._rejections:
            self._attempts += [now] * requests

    def worked_before(self) -> None:
        """Record that these credentials opened a session in the last 24 hours, before a restart."""
        self._worked = True

    def restore(self, rejected: Iterable[float], now: float, locked_until: float | None = None) -> None:
        """Record the rejections before a restart, and until when the account is locked.

        Rejections older than a day, or later than ``now``, are ignored.
        """
        self.locked_until = max(self.locked_until, min(locked_until or 0.0, now + LOCKED_OUT))
        earlier = sorted(at for at in rejected if now - DAY < at <= now)
        if earlier:
            self.rejected = sorted(earlier + self.rejected)
            self._attempts = sorted(earlier + self._attempts)
            self._rejections += 0 if self._worked else len(earlier)
            self._last_rejection = max(self._last_rejection, earlier[-1])

    def lock_out(self, now: float) -> None:
        """Record that Share has locked the account."""
        self.locked_until = now + LOCKED_OUT

    def allowed_at(self, requests: int, *, understood: bool = False) -> float:
        """Return the earliest time for a sign-in that takes that many requests with the password.

        ``understood`` is whether Share has just said in a known way that the session is over: then Share works.
        """
        earliest = [self.locked_until, _room_at(self._sign_ins, _RENEWALS_PER_HOUR, 1, _HOUR)]
        if self._unknown and not understood:
            pause = min(_UNKNOWN_FIRST * 2.0 ** min(self._unknown - 1, 10), _UNKNOWN_MOST)
            earliest.append(self._last_unknown + pause)
        if self._rejections:
            earliest.append(self._after_rejections(requests))
        return max(earliest)

    def _after_rejections(self, requests: int) -> float:
        if not self._tried:
            room = max(
                _room_at(self._attempts, _ATTEMPTS_PER_HOUR + _EXTRA_PER_HOUR, requests, _HOUR),
                _room_at(self._attempts, _ATTEMPTS_PER_DAY, requests, DAY),
            )
            return min(room, self._last_rejection + 30 * _MINUTE)
        if self._worked:
            last = self._last_rejection
            first = self._streak[0] if self._streak else last
            pause = 5 * _MINUTE if first == last else 30 * _MINUTE if last < first + 6 * _HOUR else 2 * _HOUR
            return last + pause
        pause = _AFTER_REJECTIONS[min(self._rejections, len(_AFTER_REJECTIONS)) - 1]
        return max(
            self._last_rejection + pause,
            _room_at(self._attempts, _ATTEMPTS_PER_HOUR, requests, _HOUR),
            _room_at(self._attempts, _ATTEMPTS_PER_DAY - _RESERVED_PER_DAY, requests, DAY),
        )


class DeadSession:
    """Whether a session seems dead without Share saying so, and when to sign in again because of it.

    If a session that worked returns only faults for ten minutes, either it is dead or Share is out of order: both
    look the same. So one sign-in is tried, then further ones less and less often, until Share lists readings again.
    """

    def __init__(self) -> None:
        self._worked = False
        self._renewals = 0
        self.sign_in_at = math.inf
        """The earliest time to sign in again."""

    def listed(self) -> None:
        """Record that a read returned a list, even an empty one."""
        self._worked = True
        self._renewals = 0
        self.sign_in_at = math.inf

    def fault(self, now: float) -> None:
        """Record that a read got an answer that is neither a list nor a known error."""
        if self._worked and math.isinf(self.sign_in_at):
            self.sign_in_at = now + _DEAD_AFTER

    def renewed(self, now: float) -> None:
        """Record a sign-in for a session that seemed dead, whatever its result."""
        self.sign_in_at = now + _RENEWAL_PAUSES[min(self._renewals, len(_RENEWAL_PAUSES) - 1)]
        self._renewals += 1


class RateLimits:
    """Until when each server refuses requests. Shared by all accounts: a server counts per internet address."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # by host

    def until(self, host: str) -> float:
        """Return the earliest time for a request to a server."""
        return self._until.get(host, 0.0)

    def limit(self, host: str, now: float, retry_after: float | None) -> None:
        """Record a rate limit; ``retry_after`` is in seconds, None if the server did not say how long."""
        self._until[host] = now + rate_limit(retry_after)


def rate_limit(retry_after: float | None) -> float:
    """Return how many seconds to send nothing to a server that asked for ``retry_after``; None if it did not say."""
    if retry_after is None:
        return _RATE_LIMIT_DEFAULT
    return min(max(retry_after, _RATE_LIMIT_LEAST), _RATE_LIMIT_MOST)


def _room_at(times: list[float], most: int, more: int, within: float) -> float:
    """Return when ``more`` can be added to ``times``, if at most ``most`` are allowed in ``within`` seconds."""
    excess = len(times) + more - most
    return times[excess - 1] + within if excess > 0 else 0.0
