"""When to poll next, and how far back to read: after a reading, after a failure, while the time is in doubt.

Pure: times are seconds of the caller's clock, and chance is a parameter. It does not wait; it says until when.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import DAY, growing_pause

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL: Final = 300.0
"""Seconds from one reading to the next: the sensors' own rhythm."""
WHOLE_DAY: Final = DAY // 60
"""How far back Share remembers, in minutes."""
REFRESH_EVERY: Final = 30.0
"""Seconds that have to pass between two polls that were asked for."""

FULL_READ_EVERY: Final = 3600.0
"""Seconds between two polls that read all 24 hours, in case something was missed."""
_QUICK_TRIES: Final = 3

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

WRONG_CLOCK: Final = 30.0
"""Seconds between two tries while this machine's wrong clock makes TLS fail."""
_ASK_AGAIN: Final = 30.0
"""Seconds after which one more answer may settle a time that is in doubt."""
_ASKED_AGAIN_MOST: Final = 5
_BACKOFF_FIRST: Final = 5.0
_BACKOFF_MOST: Final = 300.0
_BACKOFF_SPREAD: Final = 0.2  # a day of failures is to cost no more requests than a day of readings


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


class Timetable:
    """The polls of one account: what each one asks for, and when the next one is due as far as it alone is concerned.

    ``chance`` gives a number from 0 to 1; it spreads out those who failed at the same moment.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._rhythm = Rhythm()
        self._asked: float | None = None  # when the last poll that worked asked
        self._whole_day_at: float | None = None
        self._failures = 0  # in a row
        self._asked_again = 0  # in a row, because the time was in doubt
        self.last_success: float | None = None
        """When a poll worked last."""

    @property
    def delay(self) -> float | None:
        """How many seconds after it was taken a reading becomes readable, as learned; None until then."""
        return self._rhythm.learned

    @property
    def tries(self) -> int:
        """How often to try in one poll: quick retries are for a service that worked a moment ago."""
        return _QUICK_TRIES if self.last_success is not None and self._failures == 0 else 1

    def minutes(self, now: float, needed: int | None) -> int:
        """Return how many minutes to read: ``needed``, but a whole day if nobody can tell, and once an hour."""
        return WHOLE_DAY if needed is None or self._is_whole_day_due(now) else needed

    def succeeded(self, began: float, now: float) -> None:
        """Record that Share answered a poll with a list; what came of that does not matter here."""
        if self._is_whole_day_due(began):
            self._whole_day_at = began
        self.last_success, self._failures = now, 0

    def after_batch(
        self, *, asked: float, now: float, newest: float | None, new: bool, settles_at: float | None
    ) -> float:
        """Learn from a poll that succeeded, and return when the next one is due.

        All times are of the clock: when it last ``asked``, and ended; when the ``newest`` reading was taken, ``new`` if
        this poll found it; from when on one more answer may settle the time, None if it is not in doubt.
        """
        before, self._asked = self._asked, asked
        if before is not None and newest is not None and new:
            self._rhythm.learn(missed=before - newest, found=asked - newest)
        due = self._rhythm.next_poll(newest, now)
        if newest is not None:
            due = min(due, self._rhythm.probe(newest, now))
        return min(due, self._ask_again_at(settles_at, now))

    def after_failure(self, now: float, *, wrong_clock: bool, limited: bool, sign_in_at: float) -> float:
        """Record a poll that failed, and return when the next one is due.

        ``limited`` is whether the server said itself for how long to leave it alone; ``sign_in_at`` is when to ask at
        the latest, since the session seems dead, if that is yet to come.
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
        """Return when to ask again because the time is in doubt: as soon as one more answer may settle it."""
        if settles_at is None:
            self._asked_again = 0
            return math.inf
        if settles_at >= now + 2 * _ASK_AGAIN or self._asked_again >= _ASKED_AGAIN_MOST:
            return math.inf
        self._asked_again += 1
        return max(settles_at, now + _ASK_AGAIN)
