"""When to poll next, and how far back to read: after a reading, after a failure, while the time is in doubt.

Pure: times are seconds of the caller's clock, and chance is a parameter. It never waits itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import DAY, growing_pause

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL: Final = 300.0
"""Seconds from one reading to the next, as the sensors take them."""
WHOLE_DAY: Final = DAY // 60
"""How far back Share keeps readings, in minutes."""
REFRESH_EVERY: Final = 30.0
"""The least number of seconds between two requested polls."""

FULL_READ_EVERY: Final = 3600.0
"""Seconds between two polls that read all 24 hours, in case a reading was missed."""
_QUICK_TRIES: Final = 3

_DELAY_FIRST: Final = 15.0  # most readings are readable 8 to 25 s after they were taken
_DELAY_BOUNDS: Final = (-295.0, 270.0)  # negative: stamped by a phone whose clock is ahead
_SPREAD_FIRST: Final = 4.0
_SPREAD_BOUNDS: Final = (1.0, 15.0)  # below a second, only the jitter of the sensor shows
_REQUEST: Final = 8.5
"""How many seconds of waiting one more request may save to be worth it."""
_QUICK: Final = (0.0, 1.6, 4.0)
"""When the quick tries follow the delay, in spreads."""
_SECOND_FINDS: Final = 0.8
"""The part of the first try's misses that the second should find; at 1.6 spreads, a spread is a mean excess."""
_EVERY: Final = 45.0
"""Seconds between the tries after the quick ones, until the next reading is due."""
_CALM: Final = 30.0
"""Seconds by which a try is later than usual in a gap, when a single try should find nearly every reading."""
_STEP: Final = 0.03  # of the delay, in spreads
_WIDEN: Final = 0.06  # of the spread, as a fraction of it
_LATE_IN_A_ROW: Final = 8
_HITS_IN_A_ROW: Final = 6.0  # as a multiple of the usual number
_HALF_A_SECOND: Final = 0.5
_PROBE: Final = -20.0
"""When to check, once, whether readings arrive before their own stamps, in seconds after a reading was due."""
_AHEAD: Final = 15.0
"""A reading found this many seconds before its stamp proves that the phone's clock is ahead."""

WRONG_CLOCK: Final = 30.0
"""Seconds between two tries while TLS fails because this machine's clock is wrong."""
_ASK_AGAIN: Final = 30.0
"""Seconds after which another answer may settle a time that is in doubt."""
_ASKED_AGAIN_MOST: Final = 5
_BACKOFF_FIRST: Final = 5.0
_BACKOFF_MOST: Final = 300.0
_BACKOFF_SPREAD: Final = 0.2  # a day of failures should cost no more requests than a day of readings


class Rhythm:
    """When one account's readings become readable, learned from which try finds them, and when to poll next.

    The first try for a reading comes 300 s plus the delay after the previous one. If it finds the reading, the delay
    shrinks a little; if not, it grows by more. The two balance when asking earlier would cost as much in requests as
    it saves in waiting. Two quick tries follow. Their distance depends on the spread, which is learned too, so that
    the second try finds four in five of the readings that the first missed. Then there is a try every 45 s
    until the next reading is due, and after that one every 5 minutes, somewhat later than usual.

    Readings later than the quick tries are late for other reasons, and teach nothing. But if eight in a row are that
    late, or far more first tries in a row succeed than usual, the delay itself has changed, and each reading moves it.

    If the phone's clock is a few minutes ahead, readings can be read before their own stamp: the delay is negative.
    Asking after the stamp never reveals that. So one poll at the start comes before the stamp. If it finds the
    reading, each following one is asked for earlier, until one is not there yet.
    """

    def __init__(self) -> None:
        self.delay = _DELAY_FIRST
        """When a reading is first asked for, in seconds after it was due."""
        self.learned: float | None = None
        """The delay, once a reading has revealed something about it."""
        self._spread = _SPREAD_FIRST
        self._hits = 0  # in a row
        self._late = 0  # in a row
        self._probe: float | None = _PROBE  # the delay to try once
        self._too_early: float | None = None  # during the search: the latest delay that was too early

    def learn(self, missed: float, found: float) -> None:
        """Learn from the seconds between a reading and the last try that missed it, and the try that found it.

        They also count from when it was due, since the sensor is regular. ``missed`` is negative if no try came before
        the one that found it.
        """
        if found < min(self.delay, 0.0) - _AHEAD:
            self._begin(found, too_early=-math.inf)
        elif self.delay < 0 <= found and found > self.delay + _EVERY:  # the phone is right again, or this reading late
            self._probe = self.delay
            self._begin(_DELAY_FIRST, too_early=None)
        elif self._too_early is not None:
            self._search(self._too_early, missed, found)
        elif not self._learn_by_tries(missed, found):
            return
        self.delay = self.learned = _clamped(_DELAY_BOUNDS, self.delay)
        self._spread = _clamped(_SPREAD_BOUNDS, self._spread)

    def _begin(self, delay: float, *, too_early: float | None) -> None:
        self.delay = delay
        self._too_early = too_early
        self._spread = _SPREAD_FIRST
        self._hits = self._late = 0

    def _search(self, too_early: float, missed: float, found: float) -> None:
        """Ask 45 s earlier each time until a reading is not there yet; then halve the interval in between."""
        if missed >= self.delay - _HALF_A_SECOND:
            too_early = missed
        if math.isinf(too_early):
            self.delay -= _EVERY
        elif found - too_early > 2 * _SPREAD_FIRST:
            self.delay, self._too_early = (too_early + found) / 2, too_early
        else:
            self.delay, self._too_early = found, None

    def _learn_by_tries(self, missed: float, found: float) -> bool:
        """Learn from which try found a reading; return whether that revealed anything."""
        first, second, third = self._quick_tries()
        slack = (second - first) / 2  # neither the sensor nor the time of day is exact
        odds = 1 + _REQUEST / self._spread  # hits to a miss
        if missed < first - slack:
            self._late = 0
            if found >= second:
                return False  # no poll came when it was due
            self._hits += 1
            self.delay -= self._spread * (_STEP if self._hits <= _HITS_IN_A_ROW * odds else 1)
        elif missed < third - slack:
            self._late = self._hits = 0
            self.delay += self._spread * _STEP * odds
            if found < third + slack:  # else a failure came between, so the second try proves nothing
                self._spread *= math.exp(_WIDEN * (_SECOND_FINDS - (found < third - slack)))
        else:
            self._late += 1
            if self._late < _LATE_IN_A_ROW:
                return False
            self.delay = third
        return True

    def probe(self, newest: float, now: float) -> float:
        """Return when to check, once, whether readings arrive before their stamps; infinity if there is no need."""
        at = math.inf if self._probe is None else newest + INTERVAL + self._probe
        self._probe = None
        return at if at > now else math.inf

    def next_poll(self, newest: float | None, now: float) -> float:
        """Return when to poll next after a successful poll, given when the newest reading was taken.

        That is at most 5 minutes from now, plus the delay if it is positive.
        """
        if newest is None:
            return now + INTERVAL
        due = newest + INTERVAL
        passed = now - due + _HALF_A_SECOND  # a try that came a moment early is not repeated immediately
        after = next((at for at in self._tries() if at > passed), None)
        if after is None:
            calm = self.delay + _CALM
            after = calm + INTERVAL * math.ceil((passed - calm) / INTERVAL)
        return min(due + after, now + INTERVAL + max(self.delay, 0.0))

    def _quick_tries(self) -> list[float]:
        return [self.delay + spreads * self._spread for spreads in _QUICK]

    def _tries(self) -> list[float]:
        """Return the times of the tries, in seconds after a reading was due, until the next one is due."""
        tries = self._quick_tries()
        while tries[-1] + _EVERY < INTERVAL + min(self.delay, 0.0):
            tries.append(tries[-1] + _EVERY)
        return [*tries, INTERVAL + self.delay]


def _clamped(bounds: tuple[float, float], value: float) -> float:
    return min(max(value, bounds[0]), bounds[1])


def backoff(failures: int, chance: Callable[[], float]) -> float:
    """Return how many seconds to wait after that many failed polls in a row: 4 to 5 at first, at most 300.

    ``chance`` returns a number from 0 to 1; it spreads out accounts that failed at the same moment.
    """
    return growing_pause(failures, chance, first=_BACKOFF_FIRST, most=_BACKOFF_MOST, spread=_BACKOFF_SPREAD)


class Timetable:
    """The polls of one account: how many minutes each one reads, and when the next one is due, regardless of limits.

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
    def delay(self) -> float | None:
        """How many seconds after it was taken a reading becomes readable; None until that is learned."""
        return self._rhythm.learned

    @property
    def tries(self) -> int:
        """How many tries one poll has: quick retries are for a service that worked at the last poll."""
        return _QUICK_TRIES if self.last_success is not None and self._failures == 0 else 1

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
        """Learn from a successful poll, and return when the next one is due.

        All times are by the clock: ``asked`` when it last sent a request, ``now`` when it ended, ``newest`` when the
        newest reading was taken, which is ``new`` if this poll found it. ``settles_at`` is from when another answer may
        settle the time; None if the time is not in doubt.
        """
        before, self._asked = self._asked, asked
        if before is not None and newest is not None and new:
            self._rhythm.learn(missed=before - newest, found=asked - newest)
        due = self._rhythm.next_poll(newest, now)
        if newest is not None:
            due = min(due, self._rhythm.probe(newest, now))
        return min(due, self._ask_again_at(settles_at, now))

    def after_failure(self, now: float, *, wrong_clock: bool, limited: bool, sign_in_at: float) -> float:
        """Record a failed poll, and return when the next one is due.

        ``limited`` is whether a rate limit of the server decides instead. ``sign_in_at`` is when to sign in because
        the session seems dead: if that is still to come, the next poll is due by then.
        """
        self._failures += 1
        if limited:
            return now
        if wrong_clock:
            return now + WRONG_CLOCK
        due = now + backoff(self._failures, self._chance)
        return min(due, sign_in_at) if sign_in_at > now else due

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
