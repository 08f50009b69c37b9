"""The readings of one account over the last 24 hours: what is new, what is double, what is missing.

Pure: it is told what time it is, and neither fetches nor publishes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.delta import FURTHEST, NEAREST, delta
from dexcom2mqtt.messages.history import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dexcom2mqtt.readings import Reading

_SLACK: Final = 300  # the answer to a read takes a while, and Share's day ends when it was asked
_DOUBLE: Final = 30
_GAP: Final = 450


class Ledger:
    """The readings of one account, each kept for 24 hours. Times are Unix seconds as Share tells them."""

    def __init__(self) -> None:
        self._kept: dict[int, Reading] = {}  # by date, in order

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What is kept, oldest first."""
        return tuple(self._kept.values())

    @property
    def newest(self) -> Reading | None:
        """The newest reading, or None."""
        return next(reversed(self._kept.values()), None)

    def has(self, reading: Reading) -> bool:
        """Return whether a reading is kept, or is a double of one that is."""
        near = self._between(reading.date - _DOUBLE * 1000, reading.date + _DOUBLE * 1000)
        return reading.date in self._kept or any(kept.mg_dl == reading.mg_dl for kept in near)

    def drop(self, readings: Iterable[Reading]) -> None:
        """Keep these no longer: they were kept by mistake."""
        for reading in readings:
            self._kept.pop(reading.date, None)

    def add(self, readings: Iterable[Reading], now: float) -> list[Reading]:
        """Keep what is new and return it, oldest first.

        A reading is identified by its date. One is a double, and dropped, if a kept one of equal value lies
        within 30 s of it: a sensor worn with a watch and a phone is uploaded twice. One that is more than
        5 minutes in the future or more than a day old is dropped too.
        """
        new: list[Reading] = []
        for reading in sorted(readings, key=lambda reading: reading.date):
            at = reading.date / 1000
            if now - DAY - _SLACK <= at <= now + TOLERANCE and not self.has(reading):
                new.append(self._keep(reading))
        # Not by the time alone: if Share tells one that is far ahead for a while, nothing is forgotten.
        oldest = min(max(self._kept, default=0), now * 1000) - (DAY + _SLACK) * 1000
        self._kept = {date: reading for date, reading in self._kept.items() if date >= oldest}
        return new

    def restore(self, readings: Iterable[Reading], now: float) -> None:
        """Put what was kept before a restart under what has been added since."""
        since, self._kept = self.readings, {}
        self.add(readings, now)
        self.add(since, now)

    def delta(self, reading: Reading) -> int | None:
        """Return how many mg/dL ``reading`` is above the one about five minutes before it, or None."""
        return delta(reading, self._between(reading.date - FURTHEST * 1000, reading.date - NEAREST * 1000))

    def minutes_to_read(self, now: float) -> int:
        """Return how many minutes Share has to be asked for, so that every gap may still be filled.

        A gap is a distance of more than 7.5 minutes; a phone that was away uploads later what it missed.
        """
        if not self._kept:
            return DAY // 60
        dates = list(self._kept)
        since = next((a for a, b in pairwise(dates) if b - a > _GAP * 1000), dates[-1])
        return min(max(math.ceil((now - since / 1000) / 60) + 1, 1), DAY // 60)

    def _keep(self, reading: Reading) -> Reading:
        """Take a reading in and return it, without the record that it was made of: that takes five times as much."""
        newest = self.newest
        reading = self._kept[reading.date] = replace(reading, json=None)
        if newest is not None and reading.date < newest.date:
            self._kept = dict(sorted(self._kept.items()))
        return reading

    def _between(self, since: int, until: int) -> Iterator[Reading]:
        """Yield what was taken between two dates, both included."""
        dates = list(self._kept)
        return (self._kept[date] for date in dates[bisect_left(dates, since) : bisect_right(dates, until)])
