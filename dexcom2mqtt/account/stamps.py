"""Whether a reading's stamp can be trusted: the wearer's phone makes it, and the phone's clock may be wrong.

Pure: the time is a parameter; it neither fetches nor publishes. It decides which new readings are right and which
are doubtful. A doubtful reading stays doubtful and is never current: no value is better than an old one that looks new.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.history import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.messages.status import Past
    from dexcom2mqtt.readings import Reading

_DOUBLE_MS: Final = 30_000
_SLACK: Final = 300.0
_ONE_SLOT: Final = 240.0
"""Readings uploaded as soon as they are taken, by any device, lie within this many seconds: under one INTERVAL."""
_LATE: Final = 360.0
"""How many seconds late a reading usually is at most when it is first seen."""
_MOST: Final = 2 * 288  # 288 readings a day, one each schedule.INTERVAL
_Identity = tuple[int, int]
"""What distinguishes one record of Share from another: its date and its mg/dL."""


class Judged(NamedTuple):
    """The new readings in one answer of Share, oldest first."""

    right: tuple[Reading, ...] = ()
    doubtful: tuple[Reading, ...] = ()
    withheld: int = 0
    """How many are left for the next answer, since the time is not settled and some seem to be in the future."""


class Stamps:
    """The doubtful readings of one account, and whether the phone's clock is known to be wrong now."""

    def __init__(self, stale_after: float) -> None:
        self._stale_after = stale_after
        self._doubtful: dict[int, list[Reading]] = {}  # by date
        self._waiting: list[Reading] = []
        self._past: Past | None = None  # from before the start, until the first answer is judged
        self._ahead_until = 0
        self._seen_ahead = 0.0
        self._last_false = 0  # the latest stamp of the last answer that had some in the future
        self._suspicious = False  # whether false stamps may hide among right ones
        self.ahead: float | None = None
        """How many seconds the phone's clock was last seen to be ahead; None while its stamps are right."""

    def restore(self, doubtful: Iterable[Reading], past: Past, now: float) -> None:
        """Resume from what was published before a restart: the doubtful readings, and the stamps in the status."""
        for reading in doubtful:
            self._remember(reading)
        if past.ahead_until is None or past.ahead_until <= (now - 2 * DAY) * 1000:
            return
        self._past = past
        self._ahead_until = self._last_false = max(self._ahead_until, past.ahead_until)
        seen = min(past.ahead_until / 1000, now) if past.last_success is None else min(past.last_success, now)
        self._seen_ahead = max(self._seen_ahead, seen)
        if not past.right or past.ahead_until > (now - self._stale_after) * 1000:
            self.ahead = max(past.ahead_until / 1000 - seen, TOLERANCE)
            self._suspicious = True

    def judge(
        self, readings: Iterable[Reading], now: float, *, settled: bool, known: Callable[[Reading], bool]
    ) -> Judged:
        """Sort the new readings of an answer; ``now`` is the time in Unix seconds, ``settled`` whether it is certain.

        ``known`` returns whether a reading was found right before. While the phone's clock is known to be wrong, a
        phone that was off may upload readings with false stamps, by now in the past, together with right ones. Then
        all readings after the last false stamp are doubtful, once, since such a phone uploads everything it missed.
        """
        given = tuple(readings)
        new = [reading for reading in self._without_doubtful(given) if not known(reading)]
        ahead = max((reading.date / 1000 - now for reading in new), default=0.0)
        if ahead > TOLERANCE and not settled:
            return Judged(withheld=len(new))
        past = self._past
        self._past = None if given else past  # an answer without readings proves nothing
        suspected = ahead <= TOLERANCE and self._suspicious and _span(new) > _ONE_SLOT
        doubtful = [
            reading
            for reading in new
            if _is_doubtful(reading, now, ahead)
            or _was_doubtful(reading, past)
            or (suspected and reading.date > self._last_false)
        ]
        right = [reading for reading in new if reading not in doubtful]
        self._waiting += [replace(reading, json=None) for reading in doubtful if self._remember(reading)]
        self._forget(now)
        if ahead > TOLERANCE:
            self.ahead, self._seen_ahead, self._suspicious = self._measured(ahead), now, True
            self._last_false = max(reading.date for reading in doubtful)
            self._ahead_until = max(self._ahead_until, self._last_false)
        elif past is None and any(now - reading.date / 1000 < self._stale_after for reading in right):
            self.ahead, self._suspicious = None, False
        elif suspected:
            self._suspicious = False  # any false ones were in this answer: a phone uploads everything it missed
        return Judged(tuple(right), tuple(doubtful))

    def _measured(self, ahead: float) -> float:
        """Return how many seconds the phone is ahead: a reading seen late gives too little, but never too much."""
        if self.ahead is None or abs(ahead - self.ahead) > _LATE:
            return ahead
        return max(ahead, self.ahead)

    def doubt(self, readings: Iterable[Reading]) -> list[Reading]:
        """Return those readings, found right before the past was known, that were doubtful before a restart."""
        past, self._past = self._past, None
        found = [each for each in readings if self._matches_doubtful(each) or _was_doubtful(each, past)]
        unknown = [reading for reading in found if not self._matches_doubtful(reading)]
        self._waiting += [reading for reading in unknown if self._remember(reading)]
        return found

    def passed(self, now: float) -> list[Reading]:
        """Return the doubtful readings whose stamp is now past, oldest first, each of them once."""
        due = sorted((each for each in self._waiting if each.date <= now * 1000), key=attrgetter("date"))
        self._waiting = [reading for reading in self._waiting if reading.date > now * 1000]
        return due

    def ahead_until(self, now: float) -> int | None:
        """Return the latest stamp, in Unix milliseconds, that was first seen in the future in the last 24 hours."""
        return self._ahead_until if self._ahead_until and now - self._seen_ahead <= DAY else None

    def _without_doubtful(self, readings: Iterable[Reading]) -> list[Reading]:
        """Return the readings without those already found doubtful.

        A right reading may have the stamp and value of a doubtful one. So each doubtful reading removes one record, not
        every record that matches it.
        """
        left = Counter(_identity(reading) for same in self._doubtful.values() for reading in same)
        others = []
        for reading in readings:
            if left[_identity(reading)]:
                left[_identity(reading)] -= 1
            else:
                others.append(reading)
        return others

    def _matches_doubtful(self, reading: Reading) -> bool:
        return any(_identity(reading) == _identity(each) for each in self._doubtful.get(reading.date, ()))

    def _remember(self, reading: Reading) -> bool:
        """Keep a doubtful reading; return whether it is new, and not a double of a kept one."""
        double = any(
            abs(date - reading.date) <= _DOUBLE_MS and any(each.mg_dl == reading.mg_dl for each in same)
            for date, same in self._doubtful.items()
        )
        self._doubtful.setdefault(reading.date, []).append(replace(reading, json=None))
        return not double

    def _forget(self, now: float) -> None:
        """Keep one day, and at most twice as many as Share can return: stamps years ahead never pass."""
        # Not by the time alone: if Share sends one far ahead for a while, nothing is forgotten.
        oldest = min(max(self._doubtful, default=0), now * 1000) - (DAY + _SLACK) * 1000
        kept = sorted(date for date in self._doubtful if date >= oldest)[-_MOST:]
        self._doubtful = {date: self._doubtful[date] for date in kept}
        self._waiting = sorted(self._waiting, key=attrgetter("date"))[-_MOST:]


def _identity(reading: Reading) -> _Identity:
    return reading.date, reading.mg_dl


def _is_doubtful(reading: Reading, now: float, ahead: float) -> bool:
    """Return whether a stamp is certainly false, or may be as false as one that is ``ahead`` seconds ahead."""
    behind = now - reading.date / 1000
    return behind < -TOLERANCE or (ahead > TOLERANCE and behind < ahead)


def _was_doubtful(reading: Reading, past: Past | None) -> bool:
    """Return whether a reading may be from before the restart, doubtful, and not yet published.

    That is any reading stamped after the last answer before the restart. If the phone's clock was known to be right by
    then, it is only those up to the latest false stamp.
    """
    if past is None or past.ahead_until is None:
        return False
    until = past.ahead_until if past.right else float("inf")
    return (past.last_success or 0.0) * 1000 < reading.date <= until


def _span(readings: Iterable[Reading]) -> float:
    dates = [reading.date for reading in readings]
    return (max(dates) - min(dates)) / 1000 if dates else 0.0
