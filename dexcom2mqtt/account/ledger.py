"""The readings of one account over the last 24 hours: which are new, double or missing.

Pure: the time is a parameter; it neither fetches nor publishes.
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

_SLACK: Final = 300  # an answer takes a while, and Share's day is measured from the request
_DOUBLE: Final = 30  # seconds
_GAP: Final = 450  # seconds: 1.5 times schedule.INTERVAL


class Ledger:
    """The readings of one account, each kept for 24 hours. Times are Unix seconds by Share's clock."""

    def __init__(self) -> None:
        self._kept: dict[int, Reading] = {}  # by date, in order

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The kept readings, oldest first."""
        return tuple(self._kept.values())

    @property
    def newest(self) -> Reading | None:
        """The newest reading, or None."""
        return next(reversed(self._kept.values()), None)

    def has(self, reading: Reading) -> bool:
        """Return whether a reading is kept, or doubles a kept one."""
        near = self._between(reading.date - _DOUBLE * 1000, reading.date + _DOUBLE * 1000)
        return reading.date in self._kept or any(kept.mg_dl == reading.mg_dl for kept in near)

    def drop(self, readings: Iterable[Reading]) -> None:
        """Remove readings that were kept by mistake."""
        for reading in readings:
            self._kept.pop(reading.date, None)

    def add(self, readings: Iterable[Reading], now: float) -> list[Reading]:
        """Keep the new readings and return them, oldest first.

        A reading is identified by its date. It is a double, and dropped, if a kept one of equal value lies
        within 30 s of it: a watch and a phone on one sensor both upload it. A reading more than
        5 minutes in the future or more than a day old is dropped too.
        """
        new: list[Reading] = []
        for reading in sorted(readings, key=lambda reading: reading.date):
            at = reading.date / 1000
            if now - DAY - _SLACK <= at <= now + TOLERANCE and not self.has(reading):
                new.append(self._keep(reading))
        # Not by the time alone: if Share sends one far ahead for a while, nothing is forgotten.
        oldest = min(max(self._kept, default=0), now * 1000) - (DAY + _SLACK) * 1000
        self._kept = {date: reading for date, reading in self._kept.items() if date >= oldest}
        return new

    def restore(self, readings: Iterable[Reading], now: float) -> None:
        """Add the readings kept before a restart; they take precedence over those added since."""
        since, self._kept = self.readings, {}
        self.add(readings, now)
        self.add(since, now)

    def delta(self, reading: Reading) -> int | None:
        """Return the change in mg/dL from the reading about five minutes earlier to ``reading``, or None."""
        return delta(reading, self._between(reading.date - FURTHEST * 1000, reading.date - NEAREST * 1000))

    def minutes_to_read(self, now: float) -> int:
        """Return how many minutes to read so that every gap can still be filled.

        A gap is more than 7.5 minutes between readings; a phone that was away uploads them later.
        """
        if not self._kept:
            return DAY // 60
        dates = list(self._kept)
        since = next((a for a, b in pairwise(dates) if b - a > _GAP * 1000), dates[-1])
        return min(max(math.ceil((now - since / 1000) / 60) + 1, 1), DAY // 60)

    def _keep(self, reading: Reading) -> Reading:
        """Keep a reading and return it, without the record it came from, which takes five times the memory."""
        newest = self.newest
        reading = self._kept[reading.date] = replace(reading, json=None)
        if newest is not None and reading.date < newest.date:
            self._kept = dict(sorted(self._kept.items()))
        return reading

    def _between(self, since: int, until: int) -> Iterator[Reading]:
        """Return the readings taken between two dates, both included."""
        dates = list(self._kept)
        return (self._kept[date] for date in dates[bisect_left(dates, since) : bisect_right(dates, until)])
