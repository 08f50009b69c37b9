"""The sums of each of the last 90 days, on the topic ``days``: added up, written, and read back. Pure.

Share does not return a day that is over. So the broker keeps these sums, and the longer windows of ``statistics``
are calculated from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.history import TOLERANCE
from dexcom2mqtt.messages.message import ForeignError, FutureError, Message, parse_owned, to_json
from dexcom2mqtt.readings import LOW_MG_DL, RANGES, range_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dexcom2mqtt.config.settings import Ranges
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.topics import Topics

DAYS_VERSION: Final = 1
"""Of the payload; a daemon ignores days of another version."""
KEPT: Final = 90
"""How many days are kept, today included."""

_DAY_ONE: Final = date(1970, 1, 1).toordinal()
_EASTERNMOST: Final = 14 * 3600  # Kiribati
_MOST_READINGS: Final = 10_000  # in a day; each further device adds 288
_MOST_DAYS: Final = 2 * KEPT
_LARGEST_LIMIT: Final = 1000
_LARGEST: Final = 2000  # mg/dL, as for a reading

Limits = tuple[int, int, int, int]
"""The limits of very low, low, high and very high, in mg/dL."""


class Day(NamedTuple):
    """The sums of one day: the number of readings in each of the five ranges, their sum and the sum of their squares.

    ``number`` counts the days since 1970-01-01; values are in mg/dL.
    """

    number: int
    ranges: Limits
    bands: tuple[int, ...] = (0, 0, 0, 0, 0)
    total: int = 0
    squares: int = 0

    @property
    def readings(self) -> int:
        """The number of readings."""
        return sum(self.bands)

    def and_one(self, mg_dl: int) -> Day:
        """Return the same day with one more reading, sorted by the ranges of this day."""
        very_low, low, high, very_high = self.ranges
        name = range_of(mg_dl, very_low=very_low, low=low, high=high, very_high=very_high)
        bands = tuple(count + (name == each) for each, count in zip(RANGES, self.bands, strict=True))
        return self._replace(bands=bands, total=self.total + mg_dl, squares=self.squares + mg_dl**2)


Days = Mapping[int, Day]
"""Days by their number, in any order. Days without a reading are left out."""


def limits_of(ranges: Ranges) -> Limits:
    """Return the four limits of an account."""
    return (ranges.very_low, ranges.low, ranges.high, ranges.very_high)


def day_of(seconds: float, offset_min: int) -> int:
    """Return the number of the wearer's day at that Unix time, given the wearer's offset from UTC."""
    return math.floor(seconds + offset_min * 60) // DAY


def counted(days: Days, readings: Iterable[Reading], ranges: Limits) -> Days:
    """Add readings, each to the wearer's day on which it was taken; new days get these ranges.

    Days that are 90 or more before the latest are dropped.
    """
    sums = dict(days)
    for reading in readings:
        number = day_of(reading.date / 1000, reading.offset_min)
        sums[number] = (sums.get(number) or Day(number, ranges)).and_one(reading.mg_dl)
    return kept(sums, max(sums, default=0))


def kept(days: Days, today: int) -> Days:
    """Return the last 90 days up to today, and any later ones: after a journey west, today may be a day earlier."""
    return {number: day for number, day in days.items() if number > today - KEPT}


@dataclass(frozen=True, slots=True)
class Tally:
    """The count of one account, and whether an earlier count may still arrive that it must be added to."""

    ranges: Limits
    days: Days = field(default_factory=dict)
    closed: int = -1
    """Readings of this day and earlier ones are not counted: they already were."""
    waiting: tuple[tuple[Reading, ...] | None, tuple[Reading, ...]] | None = None
    """While an earlier count may arrive: the history that goes with it, if any, and the readings counted since."""

    def count(self, reading: Reading) -> Tally:
        """Return the tally with one more reading, which was not counted before."""
        if day_of(reading.date / 1000, reading.offset_min) <= self.closed:
            return self
        days = counted(self.days, [reading], self.ranges)
        if self.waiting is None:
            return replace(self, days=days)
        history, since = self.waiting
        return replace(self, days=days, waiting=(history, (*since, reading)))

    def joined(self, earlier: Days | None, today: int) -> Tally:
        """Stop waiting; add the readings counted since to the earlier count, if that arrived."""
        if self.waiting is None or earlier is None:
            return replace(self, waiting=None)
        history, since = self.waiting
        tally = resumed(earlier, history, self.ranges, today)
        for reading in since:
            tally = tally.count(reading)
        return tally


def resumed(earlier: Days | None, history: Iterable[Reading] | None, ranges: Limits, today: int) -> Tally:
    """Return the tally with which a restart continues: ``earlier`` is the count, ``history`` has the newest readings.

    Either is None if the broker had none. Without an earlier count, or if it is empty, the count begins with the
    history. If the ranges have changed, today is counted again from the history. Without a history, Share returns the
    readings of the last 24 hours once more: today is counted again from them, and earlier days stay unchanged.
    """
    known = tuple(history or ())
    if not earlier:
        return Tally(ranges, counted({}, known, ranges))
    days = dict(kept(earlier, today))
    if history is None:
        days.pop(today, None)
        return Tally(ranges, days, closed=max((number for number in days if number < today), default=-1))
    if today in days and days[today].ranges != ranges:
        del days[today]
        days |= counted({}, (each for each in known if day_of(each.date / 1000, each.offset_min) == today), ranges)
    return Tally(ranges, days)


def days_message(topics: Topics, account: str, source: str, days: Days, most_bytes: float = math.inf) -> Message:
    """Write the days, oldest first; if they exceed ``most_bytes``, the newest that fit."""
    entries = [_entry(days[number]) for number in sorted(days)]
    while True:
        payload = to_json({"version": DAYS_VERSION, "source": source, "days": entries})
        if len(payload.encode()) <= most_bytes or not entries:
            return Message(topics.of(account, "days"), payload)
        entries = entries[max(1, math.ceil((len(payload) - most_bytes) / (len(payload) / len(entries)))) :]


def _entry(day: Day) -> dict[str, object]:
    return {
        "day": date.fromordinal(_DAY_ONE + day.number).isoformat(),
        "ranges": list(day.ranges),
        "n": day.readings,
        "sum": day.total,
        "squares": day.squares,
        "bands": list(day.bands),
    }


def parse_days(payload: bytes, source: str, now: float) -> Days:
    """Read the days back; ``now`` is in Unix seconds. Raises ForeignError if any part is wrong."""
    entries = parse_owned(payload, DAYS_VERSION, source).get("days")
    if not isinstance(entries, list) or len(entries) > _MOST_DAYS:
        raise ForeignError("its days are not a list of a sensible length")
    days = [_parse_entry(entry) for entry in entries]
    if any(later.number <= day.number for day, later in pairwise(days)):
        raise ForeignError("its days are not in order")
    if days and days[-1].number > (now + TOLERANCE + _EASTERNMOST) // DAY:
        raise FutureError("some of its days are in the future")
    return {day.number: day for day in days}


def _parse_entry(entry: object) -> Day:
    if not isinstance(entry, dict):
        raise ForeignError("one of its days is not an object")
    n, total, squares = (entry.get(key) for key in ("n", "sum", "squares"))
    if not (type(n) is type(total) is type(squares) is int):
        raise ForeignError("one of its days lacks a number")
    very_low, low, high, very_high = _whole_numbers(entry.get("ranges"), 4)
    bands = _whole_numbers(entry.get("bands"), len(RANGES))
    sensible = 0 < very_low < low < high < very_high <= _LARGEST_LIMIT and 0 < n <= _MOST_READINGS and n == sum(bands)
    # Other sums are impossible: each reading is a value that a sensor can show, and by Cauchy-Schwarz.
    if not (sensible and n * LOW_MG_DL <= total <= n * _LARGEST and total**2 <= n * squares):
        raise ForeignError("one of its days makes no sense")
    if squares > total * _LARGEST:
        raise ForeignError("one of its days makes no sense")
    return Day(_parse_number(entry.get("day")), (very_low, low, high, very_high), bands, total, squares)


def _whole_numbers(found: object, length: int) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) != length:
        raise ForeignError("one of its days lacks a number")
    if not all(type(each) is int and each >= 0 for each in found):
        raise ForeignError("one of its days makes no sense")
    return tuple(found)


def _parse_number(day: object) -> int:
    try:
        parsed = date.fromisoformat(day) if isinstance(day, str) else None
    except ValueError:
        parsed = None
    if parsed is None or parsed.isoformat() != day or parsed.toordinal() < _DAY_ONE:
        raise ForeignError("one of its days is not a date")
    return parsed.toordinal() - _DAY_ONE
