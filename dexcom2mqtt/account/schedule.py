"""When to poll next, and how far back to read: after a reading, after a failure, while the time is in doubt.

``Rhythm`` learns when readings become readable; ``Timetable`` uses it for the polls of one account. A reading is
*expected* ``INTERVAL`` after its predecessor. The *first try* for it is the poll at the expected time plus the delay.
The *next poll* is what the poller waits for. One poll may make several attempts (HTTP requests).

Pure: times are seconds of the caller's clock, and chance is a parameter. It never waits itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import DAY, growing_pause

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL: Final = 300.0
"""Seconds from one reading to the next, as the sensors take them.

Some numbers depend on it: in this module those marked so; ``_GAP`` in ``ledger``, ``_READINGS_PER_HOUR`` in ``feed``,
``_ONE_SLOT`` and ``_MOST`` in ``stamps``, ``_CADENCE_MIN`` in ``statistics``, ``NEAREST`` and ``FURTHEST`` in
``messages.delta``, ``MAX_COUNT`` in ``share.client``, and ``INTERVAL`` in ``bench/latency.py``.
"""
WHOLE_DAY: Final = DAY // 60
"""How far back Share keeps readings, in minutes."""
REFRESH_EVERY: Final = 30.0
"""The least number of seconds from the last poll to one requested through ``refresh()``."""

FULL_READ_EVERY: Final = 3600.0
"""Seconds between two polls that read all 24 hours, in case a reading was missed."""
_ATTEMPTS_PER_POLL: Final = 3

_DELAY_FIRST: Final = 15.0  # most readings are readable 8 to 25 s after they were taken
_DELAY_BOUNDS: Final = (5 - INTERVAL, INTERVAL - 30)  # negative: stamped by a phone whose clock is ahead
_SPREAD_FIRST: Final = 4.0
_SPREAD_BOUNDS: Final = (1.0, 15.0)  # below: only the sensor's jitter; at most: quick polls 36 s apart, < _EVERY
_REQUEST: Final = 8.5
"""How many seconds of waiting one more request must save. Smaller: asks earlier, waits less, needs more requests."""
_QUICK_POLLS: Final = (0.0, 1.6, 4.0)
"""When the first try and the two quick polls after it come, in spreads after the first try."""
_SECOND_FINDS: Final = 0.8
"""The part of the first try's misses that the second poll should find.

It is 1 - e^-1.6, since the second poll comes 1.6 spreads later: so if delays are exponential, their mean is the spread.
"""
_EVERY: Final = 45.0
"""Seconds between the polls after the quick ones, until the next reading's first try; depends on INTERVAL.

Smaller: late readings are found sooner, and cost more requests.
"""
_CALM: Final = 30.0
"""Seconds by which polls in a gap follow the delay; depends on INTERVAL.

There is only one poll per INTERVAL then, and it should find nearly every reading.
"""
# Larger steps follow a change sooner, but the result varies more with chance; bench/latency.py shows the effect.
_STEP: Final = 0.03  # of the delay after a hit, in spreads
_WIDEN: Final = 0.06  # of the spread, as a fraction of it
# Smaller numbers notice sooner that the delay has changed, but take chance for a change more often.
_LATE_IN_A_ROW: Final = 8
_HITS_IN_A_ROW: Final = 6.0  # as a multiple of the usual number, ``odds``
_HALF_A_SECOND: Final = 0.5
_PROBE: Final = -20.0
"""When to check whether readings arrive before their own stamps, in seconds after the expected time."""
_AHEAD: Final = 15.0
"""A reading found this many seconds before its stamp proves that the phone's clock is ahead."""

WRONG_CLOCK: Final = 30.0
"""Seconds between two polls while TLS fails because this machine's clock is wrong."""
_ASK_AGAIN: Final = 30.0
"""Seconds after which another answer may settle a time that is in doubt."""
_ASKED_AGAIN_MOST: Final = 5
_BACKOFF_FIRST: Final = 5.0
_BACKOFF_MOST: Final = INTERVAL
_BACKOFF_SPREAD: Final = 0.2  # a day of failures should cost no more requests than a day of readings


class Rhythm:
    """When one account's readings become readable, learned from which poll finds them, and when to poll next.

    If the first try finds the reading, the delay shrinks a little; if not, it grows by more. The two balance when
    asking earlier would cost as much in requests as it saves in waiting. Two quick polls follow. Their distance depends
    on the spread, which is learned too, so that the second poll finds four in five of the readings that the first
    missed. Then there is a poll every 45 s until the next reading's first try, and after that one every 5 minutes,
    30 s later than the first try would be.

    Readings later than the quick polls are late for other reasons, and teach nothing. But if eight in a row are that
    late, or far more first tries in a row succeed than usual, the delay itself has changed, and each reading moves it.

    If the phone's clock is a few minutes ahead, readings can be read before their own stamp: the delay is negative.
    Asking after the stamp never reveals that. So one poll at the start, and one when such a clock looks right again,
    comes before the stamp. If it finds the reading, a search for the delay begins, see ``_search``.
    """

    def __init__(self) -> None:
        self.delay = _DELAY_FIRST
        """The delay in use: when the first try comes, in seconds after the expected time."""
        self.has_learned = False
        """Whether a reading has revealed something about it."""
        self.spread = _SPREAD_FIRST
        """The unit of the distances between the quick polls, in seconds."""
        self._hits = 0  # in a row
        self._late = 0  # in a row
        self._probe: float | None = _PROBE  # the offset to check next, once
        self._too_early: float | None = None  # during the search: the latest delay that was too early

    def learn(self, missed: float, found: float) -> None:
        """Learn from how a reading was found.

        ``missed`` is the last poll without it, ``found`` the poll that found it, both in seconds after its timestamp,
        which is about the expected time. A ``missed`` far below the first try means that nobody asked in time.
        """
        if found < min(self.delay, 0.0) - _AHEAD:
            self._begin(found, too_early=-math.inf)
        elif self.delay < 0 <= found and found > self.delay + _EVERY:  # the phone is right again, or this reading late
            self._probe = self.delay
            self._begin(_DELAY_FIRST, too_early=None)
        elif self._too_early is not None:
            self._search(self._too_early, missed, found)
        elif not self._learn_from_polls(missed, found):
            return
        self.has_learned = True
        self.delay = _clamped(_DELAY_BOUNDS, self.delay)
        self.spread = _clamped(_SPREAD_BOUNDS, self.spread)

    def restore(self, delay: float, spread: float) -> None:
        """Resume from what was learned before a restart, unless a reading has already revealed something since."""
        if not self.has_learned:
            self.has_learned, self._probe = True, None
            self.delay, self.spread = _clamped(_DELAY_BOUNDS, delay), _clamped(_SPREAD_BOUNDS, spread)

    def _begin(self, delay: float, *, too_early: float | None) -> None:
        self.delay = delay
        self._too_early = too_early
        self.spread = _SPREAD_FIRST
        self._hits = self._late = 0

    def _search(self, too_early: float, missed: float, found: float) -> None:
        """Take a step of the search for a negative delay; each new reading allows one.

        1. Ask 45 s earlier for each reading, until a first try misses it: ``too_early`` is finite from then on.
        2. Ask in the middle between ``too_early``, the latest miss, and the poll that found the reading.
        3. Once those are at most 8 s apart, use the latter as the delay. The search is over.
        """
        if missed >= self.delay - _HALF_A_SECOND:
            too_early = missed
        if math.isinf(too_early):
            self.delay -= _EVERY
        elif found - too_early > 2 * _SPREAD_FIRST:
            self.delay, self._too_early = (too_early + found) / 2, too_early
        else:
            self.delay, self._too_early = found, None

    def _learn_from_polls(self, missed: float, found: float) -> bool:
        """Learn from which poll found a reading; return whether that revealed anything."""
        first, second, third = self._quick_polls()
        slack = (second - first) / 2  # neither the sensor nor the time of day is exact
        # Hits to a miss at the best delay: with exponential delays, asking t s later lets each hit wait t s longer, and
        # saves t / spread of the misses, each worth a request and a spread of waiting. Larger: asks later and less.
        odds = 1 + _REQUEST / self.spread
        if missed < first - slack:
            self._late = 0
            if found >= second:
                return False  # no poll came in time
            self._hits += 1
            self.delay -= self.spread * (_STEP if self._hits <= _HITS_IN_A_ROW * odds else 1)
        elif missed < third - slack:
            self._late = self._hits = 0
            self.delay += self.spread * _STEP * odds
            if found < third + slack:  # else a failure came between, so the second poll proves nothing
                self.spread *= math.exp(_WIDEN * (_SECOND_FINDS - (found < third - slack)))
        else:
            self._late += 1
            if self._late < _LATE_IN_A_ROW:
                return False
            self.delay = third
        return True

    def take_probe(self, newest: float, now: float) -> float:
        """Return when to check whether readings arrive before their stamps; infinity if that is not needed.

        There is at the start, and when a phone's clock that was ahead looks right again. Calling this clears the need.
        """
        at = math.inf if self._probe is None else newest + INTERVAL + self._probe
        self._probe = None
        return at if at > now else math.inf

    def next_poll(self, newest: float | None, now: float) -> float:
        """Return when to poll next after a successful poll, given when the newest reading was taken.

        That is at most ``now + INTERVAL + max(delay, 0)``.
        """
        if newest is None:
            return now + INTERVAL
        expected = newest + INTERVAL
        passed = now - expected + _HALF_A_SECOND  # a poll that came a moment early is not repeated immediately
        after = next((at for at in self._poll_times() if at > passed), None)
        if after is None:
            calm = self.delay + _CALM
            after = calm + INTERVAL * math.ceil((passed - calm) / INTERVAL)
        return min(expected + after, now + INTERVAL + max(self.delay, 0.0))

    def _quick_polls(self) -> list[float]:
        """Return the first try and the two quick polls after it, in seconds after the expected time."""
        return [self.delay + spreads * self.spread for spreads in _QUICK_POLLS]

    def _poll_times(self) -> list[float]:
        """Return when to poll for one reading, in seconds after the expected time, up to the successor's first try."""
        times = self._quick_polls()
        while times[-1] + _EVERY < INTERVAL + min(self.delay, 0.0):
            times.append(times[-1] + _EVERY)
        return [*times, INTERVAL + self.delay]


def _clamped(bounds: tuple[float, float], value: float) -> float:
    return min(max(value, bounds[0]), bounds[1])


def backoff(failures: int, chance: Callable[[], float]) -> float:
    """Return how many seconds to wait after that many failed polls in a row: 4 to 5 at first, at most 300.

    ``chance`` returns a number from 0 to 1; it spreads out accounts that failed at the same moment.
    """
    return growing_pause(failures, chance, first=_BACKOFF_FIRST, most=_BACKOFF_MOST, spread=_BACKOFF_SPREAD)


class Timetable:
    """The polls of one account: how many minutes each one reads, and when the next one comes, regardless of limits.

    ``chance`` returns a number from 0 to 1; it spreads out accounts that failed at the same moment.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._rhythm = Rhythm()
        self._asked: float | None = None  # when the last successful poll sent its request
        self._whole_day_at: float | None = None
        self._failures = 0  # in a row
        self._asked_again = 0  # in a row, because the time was in doubt
        self.last_success: float | None = None
        """When the last successful poll ended."""

    @property
    def learned(self) -> tuple[float, float] | None:
        """The delay and the spread, in seconds; None until a reading has revealed something about them."""
        return (self._rhythm.delay, self._rhythm.spread) if self._rhythm.has_learned else None

    def restore(self, delay: float, spread: float) -> None:
        """Resume from the delay and the spread learned before a restart."""
        self._rhythm.restore(delay, spread)

    @property
    def attempts(self) -> int:
        """How many attempts one poll has: quick retries are for a service that worked at the last poll."""
        return _ATTEMPTS_PER_POLL if self.last_success is not None and self._failures == 0 else 1

    def minutes(self, now: float, needed: int | None) -> int:
        """Return how many minutes to read: ``needed``, or a whole day if that is unknown, and once an hour."""
        return WHOLE_DAY if needed is None or self._is_whole_day_due(now) else needed

    def succeeded(self, began: float, now: float) -> None:
        """Record that Share answered a poll with a list, whatever it contained."""
        if self._is_whole_day_due(began):
            self._whole_day_at = began
        self.last_success, self._failures = now, 0

    def after_batch(
        self, *, asked: float, now: float, newest: float | None, new: bool, settles_at: float | None
    ) -> float:
        """Learn from a successful poll, and return when the next one comes. All times are by the clock.

        - ``asked``: when the poll last sent a request.
        - ``now``: when it ended.
        - ``newest``: when the newest reading was taken; None if there is none.
        - ``new``: whether this poll found the newest reading.
        - ``settles_at``: from when another answer may settle the time; None if the time is not in doubt.
        """
        before, self._asked = self._asked, asked
        if before is not None and newest is not None and new:
            self._rhythm.learn(missed=before - newest, found=asked - newest)
        next_poll = self._rhythm.next_poll(newest, now)
        if newest is not None:
            next_poll = min(next_poll, self._rhythm.take_probe(newest, now))
        return min(next_poll, self._ask_again_at(settles_at, now))

    def after_failure(self, now: float, *, wrong_clock: bool, limited: bool, sign_in_at: float) -> float:
        """Record a failed poll, and return when the next one comes.

        ``limited`` is whether a rate limit of the server decides instead. ``sign_in_at`` is when to sign in because
        the session seems dead: if that is still to come, the next poll is not later.
        """
        self._failures += 1
        if limited:
            return now
        if wrong_clock:
            return now + WRONG_CLOCK
        next_poll = now + backoff(self._failures, self._chance)
        return min(next_poll, sign_in_at) if sign_in_at > now else next_poll

    def _is_whole_day_due(self, now: float) -> bool:
        return self._whole_day_at is None or now - self._whole_day_at >= FULL_READ_EVERY

    def _ask_again_at(self, settles_at: float | None, now: float) -> float:
        """Return when to ask again because the time is in doubt: as soon as another answer may settle it."""
        if settles_at is None:
            self._asked_again = 0
            return math.inf
        if settles_at >= now + 2 * _ASK_AGAIN or self._asked_again >= _ASKED_AGAIN_MOST:
            return math.inf
        self._asked_again += 1
        return max(settles_at, now + _ASK_AGAIN)
