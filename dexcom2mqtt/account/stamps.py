"""Whether a reading's stamp can be believed: it is made by the wearer's phone, whose clock may be wrong.

Pure: it is told what time it is, and neither fetches nor publishes. It decides which new readings are right and which
are doubtful. What is doubtful stays so, and is never current: rather nothing than an old value that looks new.
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
"""Seconds within which all readings lie that are uploaded as soon as they are taken, whoever uploads them."""
_LATE: Final = 360.0
"""Seconds by which a reading may usually be late when it is seen."""
_MOST: Final = 2 * 288
_Like = tuple[int, int]
"""What tells one record of Share from another: its date and its mg/dL."""


class Judged(NamedTuple):
    """What one answer of Share brought that was not seen before, oldest first."""

    right: tuple[Reading, ...] = ()
    doubtful: tuple[Reading, ...] = ()
    withheld: int = 0
    """How many are left for the next answer, since the time is not settled and some look like the future."""


class Stamps:
    """The doubtful readings of one account, and whether the phone's clock is known to be wrong now."""

    def __init__(self, stale_after: float) -> None:
        self._stale_after = stale_after
        self._doubtful: dict[int, list[Reading]] = {}  # by date
        self._waiting: list[Reading] = []
        self._past: Past | None = None  # until the first answer is judged
        self._ahead_until = 0
        self._seen_ahead = 0.0
        self._last_false = 0  # the latest stamp of the last answer that had some in the future
        self._suspicious = False  # whether that may still be hidden among right ones
        self.ahead: float | None = None
        """By how many seconds the phone's clock was ahead when that was last seen; None while its stamps are right."""

    def restore(self, doubtful: Iterable[Reading], past: Past, now: float) -> None:
        """Go on from what was published before a restart: its doubtful readings, and what its status tells."""
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
        """Sort out what is new in an answer; ``now`` is the time in Unix seconds, ``settled`` whether it is certain.

        ``known`` tells which readings were found right before. While the phone's clock is known to be wrong, a phone
        that was off may upload false stamps that have passed together with right ones: then all of those later than the
        last false one are doubtful, once, since such a phone uploads all that it missed.
        """
        given = tuple(readings)
        new = [reading for reading in self._not_doubtful(given) if not known(reading)]
        ahead = max((reading.date / 1000 - now for reading in new), default=0.0)
        if ahead > TOLERANCE and not settled:
            return Judged(withheld=len(new))
        past = self._past
        self._past = None if given else past  # an answer without readings told nothing
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
            self._suspicious = False  # what was hidden came with this answer: a phone uploads all that it missed
        return Judged(tuple(right), tuple(doubtful))

    def _measured(self, ahead: float) -> float:
        """Return by how much the phone is ahead: a reading that is seen late tells too little, but never too much."""
        if self.ahead is None or abs(ahead - self.ahead) > _LATE:
            return ahead
        return max(ahead, self.ahead)

    def doubt(self, readings: Iterable[Reading]) -> list[Reading]:
        """Return which readings, found right before the past was known, were doubtful before a restart."""
        past, self._past = self._past, None
        found = [each for each in readings if self._is_like_a_doubtful(each) or _was_doubtful(each, past)]
        unknown = [reading for reading in found if not self._is_like_a_doubtful(reading)]
        self._waiting += [reading for reading in unknown if self._remember(reading)]
        return found

    def passed(self, now: float) -> list[Reading]:
        """Return, once, the doubtful readings whose stamp has passed by now, oldest first."""
        due = sorted((each for each in self._waiting if each.date <= now * 1000), key=attrgetter("date"))
        self._waiting = [reading for reading in self._waiting if reading.date > now * 1000]
        return due

    def ahead_until(self, now: float) -> int | None:
        """Return the latest stamp, in Unix milliseconds, that was first seen in the future in the last 24 hours."""
        return self._ahead_until if self._ahead_until and now - self._seen_ahead <= DAY else None

    def _not_doubtful(self, readings: Iterable[Reading]) -> list[Reading]:
        """Leave out what was found doubtful before. A right reading may have the same stamp and value as one of those.

        So each doubtful one takes one record away, and not all that are like it.
        """
        left = Counter(_like(reading) for same in self._doubtful.values() for reading in same)
        others = []
        for reading in readings:
            if left[_like(reading)]:
                left[_like(reading)] -= 1
            else:
                others.append(reading)
        return others

    def _is_like_a_doubtful(self, reading: Reading) -> bool:
        return any(_like(reading) == _like(each) for each in self._doubtful.get(reading.date, ()))

    def _remember(self, reading: Reading) -> bool:
        """Keep a doubtful reading; return whether it is new, and no double of one that is kept."""
        double = any(
            abs(date - reading.date) <= _DOUBLE_MS and any(each.mg_dl == reading.mg_dl for each in same)
            for date, same in self._doubtful.items()
        )
        self._doubtful.setdefault(reading.date, []).append(replace(reading, json=None))
        return not double

    def _forget(self, now: float) -> None:
        """Keep a day, and no more than Share can give twice: stamps that are years ahead never pass."""
        # Not by the time alone: if Share tells one that is far ahead for a while, nothing is forgotten.
        oldest = min(max(self._doubtful, default=0), now * 1000) - (DAY + _SLACK) * 1000
        kept = sorted(date for date in self._doubtful if date >= oldest)[-_MOST:]
        self._doubtful = {date: self._doubtful[date] for date in kept}
        self._waiting = sorted(self._waiting, key=attrgetter("date"))[-_MOST:]


def _like(reading: Reading) -> _Like:
    return reading.date, reading.mg_dl


def _is_doubtful(reading: Reading, now: float, ahead: float) -> bool:
    """Return whether a stamp is certainly false, or may be as false as another one that lies so far ahead."""
    behind = now - reading.date / 1000
    return behind < -TOLERANCE or (ahead > TOLERANCE and behind < ahead)


def _was_doubtful(reading: Reading, past: Past | None) -> bool:
    """Return whether a reading may be one that was doubtful before the restart, and was not yet published.

    That is any stamped later than the last answer before it. If the phone's clock was known to be right by then, only
    those up to the latest false stamp.
    """
    if past is None or past.ahead_until is None:
        return False
    until = past.ahead_until if past.right else float("inf")
    return (past.last_success or 0.0) * 1000 < reading.date <= until


def _span(readings: Iterable[Reading]) -> float:
    dates = [reading.date for reading in readings]
    return (max(dates) - min(dates)) / 1000 if dates else 0.0
