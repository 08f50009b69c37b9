"""Glucose readings: their values, trends, units and ranges, and the parsing of one record of Share.

Everything here is pure. It knows nothing about HTTP, MQTT, or the time.

Facts about the records come from recorded answers of the service and from other clients. The service is
undocumented, so the parser handles any input and raises only ``MalformedRecordError``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Unit = Literal["mg/dL", "mmol/L"]

MG_DL_PER_MMOL_L: Final = Decimal("18.01559")
"""Molar mass of glucose in g/mol ÷ 10; Nightscout, LoopFollow and xDrip use it too."""

LOW_MG_DL: Final = 39
"""What Share sends, in mg/dL, when the sensor shows LOW. Every lower value is an error code, not glucose."""

HIGH_MG_DL: Final = 401
"""What Share sends, in mg/dL, when the sensor shows HIGH."""

_LARGEST_MG_DL: Final = 2000
_LAST_MS: Final = 4_102_444_800_000  # the year 2100
_IGNORED_IN_SPELLING: Final = re.compile(r"[\s_]|(?<=\w)-")
_LARGEST_TREND: Final = 10**9  # Python refuses to format very large integers
_LONGEST_WORD: Final = 64
_WIDEST_OFFSET_MIN: Final = 14 * 60  # Kiribati
_DATE: Final = re.compile(r"/?Date\((\d{1,15})([+-]\d{4})?\)/?", re.ASCII)
_WHOLE: Final = re.compile(r"(-?(?:0|[1-9]\d{0,3}))(?:\.0+)?", re.ASCII)
"""A whole number as in JSON, with or without zeros after the decimal point; 0120 might be octal."""


class MalformedRecordError(ValueError):
    """A record that is not a reading: the instant or the value is missing or makes no sense."""


class _Direction(NamedTuple):
    word: str
    trend: str | None
    description: str | None
    arrow: str | None


_DIRECTIONS: Final = (  # the index is the number that Share may send, and that pydexcom calls the trend
    _Direction("None", None, None, None),
    _Direction("DoubleUp", "rising_quickly", "rising quickly", "↑↑"),
    _Direction("SingleUp", "rising", "rising", "↑"),
    _Direction("FortyFiveUp", "rising_slightly", "rising slightly", "↗"),
    _Direction("Flat", "steady", "steady", "→"),
    _Direction("FortyFiveDown", "falling_slightly", "falling slightly", "↘"),
    _Direction("SingleDown", "falling", "falling", "↓"),
    _Direction("DoubleDown", "falling_quickly", "falling quickly", "↓↓"),
    _Direction("NotComputable", None, "unable to determine trend", "?"),
    _Direction("RateOutOfRange", None, "trend unavailable", "-"),
)
_NO_DIRECTION: Final = 0
_UNKNOWN_DIRECTION: Final = 8
_NUMBER_OF_WORD: Final = {direction.word: number for number, direction in enumerate(_DIRECTIONS)}
_NUMBER_OF_SPELLING: Final = {
    spelling: number for word, number in _NUMBER_OF_WORD.items() for spelling in (word.casefold(), str(number))
}

TRENDS: Final = tuple(direction.trend for direction in _DIRECTIONS if direction.trend is not None)
"""The seven trends, from rising quickly to falling quickly."""

RANGES: Final = ("very_low", "low", "in_range", "high", "very_high")
"""The five ranges of the international consensus on time in range, from lowest to highest."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One glucose reading.

    ``mg_dl`` is as Share sends it: 39 means LOW, 401 means HIGH. ``direction`` is Share's own word. ``date`` is
    the instant in Unix milliseconds and identifies the reading. ``offset_min`` is the wearer's UTC offset in
    minutes, for display. ``json`` is the record as received; None if the reading did not come from Share.
    """

    mg_dl: int
    direction: str
    date: int
    offset_min: int = 0
    json: Mapping[str, object] | None = field(default=None, compare=False, repr=False)

    def checked(self) -> Reading:
        """Return this reading. Raises MalformedRecordError if Share could not have sent it."""
        glucose = LOW_MG_DL <= self.mg_dl <= _LARGEST_MG_DL
        words = self.direction == self.direction[:_LONGEST_WORD].encode(errors="replace").decode()
        if not (glucose and words and 0 < self.date < _LAST_MS and abs(self.offset_min) <= _WIDEST_OFFSET_MIN):
            raise MalformedRecordError("Share sends no reading with such values")
        return self

    @property
    def mmol_l(self) -> float:
        """Glucose in mmol/L: mg/dL ÷ 18.01559, one decimal, rounded half up."""
        return to_mmol_l(self.mg_dl)

    def value(self, unit: Unit) -> int | float:
        """Glucose in ``unit``: whole mg/dL, or mmol/L with one decimal."""
        return self.mg_dl if unit == "mg/dL" else self.mmol_l

    @property
    def out_of_range(self) -> Literal["low", "high"] | None:
        """``low`` or ``high`` if the number is a limit of the sensor rather than a measurement, else None."""
        if self.mg_dl <= LOW_MG_DL:
            return "low"
        return "high" if self.mg_dl >= HIGH_MG_DL else None

    @property
    def trend(self) -> str | None:
        """One of ``TRENDS``, or None if there is no trend."""
        direction = self._known_direction
        return direction and direction.trend

    @property
    def trend_number(self) -> int:
        """0 to 9 as in pydexcom; 8 for an unknown word, 0 if it was missing."""
        return _NUMBER_OF_WORD.get(self.direction, _UNKNOWN_DIRECTION)

    @property
    def description(self) -> str | None:
        """The trend in words, such as ``rising slightly``; None if Share sent none or an unknown word."""
        direction = self._known_direction
        return direction and direction.description

    @property
    def arrow(self) -> str | None:
        """The trend as an arrow, such as ``↗``; None if Share sent none or an unknown word."""
        direction = self._known_direction
        return direction and direction.arrow

    @property
    def time(self) -> datetime:
        """The instant as an aware datetime, in the wearer's time zone."""
        instant = datetime.fromtimestamp(self.date // 1000, UTC) + timedelta(milliseconds=self.date % 1000)
        return instant.astimezone(timezone(timedelta(minutes=self.offset_min)))

    @property
    def drifted(self) -> bool:
        """Whether the record has a format that Share did not use before: see ``parse_record``."""
        if self.json is None:
            return False
        return isinstance(self.json.get("Value"), str) or _parse_instant(self.json.get("WT")) is None

    @property
    def _known_direction(self) -> _Direction | None:
        number = _NUMBER_OF_WORD.get(self.direction)
        return None if number is None else _DIRECTIONS[number]


def to_mmol_l(mg_dl: int) -> float:
    """Convert mg/dL to mmol/L with one decimal, rounded half up."""
    return float((Decimal(mg_dl) / MG_DL_PER_MMOL_L).quantize(Decimal("0.1"), ROUND_HALF_UP))


def convert_delta(mg_dl: int, unit: Unit) -> int | float:
    """Convert a difference in mg/dL to ``unit``, rounded half away from zero, never ``-0``."""
    if unit == "mg/dL":
        return mg_dl
    return math.copysign(to_mmol_l(abs(mg_dl)), mg_dl) if to_mmol_l(abs(mg_dl)) else 0.0


def range_of(mg_dl: int, *, very_low: int, low: int, high: int, very_high: int) -> str:
    """Return the range (one of ``RANGES``) of a value, given the four limits in mg/dL.

    A limit itself belongs to the range nearer to the target: low is below ``low``, high is above ``high``.
    """
    if mg_dl < low:
        return "very_low" if mg_dl < very_low else "low"
    if mg_dl > high:
        return "very_high" if mg_dl > very_high else "high"
    return "in_range"


def parse_record(record: object) -> Reading:
    """Parse one record of Share, in today's format or the one before December 2021, and return its reading.

    WT is the instant; DT repeats it with the wearer's time zone, for display; ST has been off by an hour and is not
    used. Values below 39 are returned unchanged: the caller separates error codes from glucose.

    Two formats that were never seen are accepted too, since they are unambiguous: a value as decimal text, and
    DT with its zone as the instant if WT is missing or makes no sense. Such a reading is ``drifted``.

    Raises only MalformedRecordError, if the instant or the value makes no sense. If the trend or the zone makes none,
    only that is lost.
    """
    if not isinstance(record, dict):
        raise MalformedRecordError("the record is not an object")
    return Reading(
        mg_dl=_parse_value(record.get("Value")),
        direction=_parse_direction(record.get("Trend")),
        date=_parse_date(record.get("WT"), record.get("DT")),
        offset_min=_parse_offset(record.get("DT")) or 0,
        json=record,
    )


def _parse_value(value: object) -> int:
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value)):
        value = int(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedRecordError("Value is not a number")
    if not -_LARGEST_MG_DL <= value <= _LARGEST_MG_DL or value != int(value):
        raise MalformedRecordError("Value is not a whole number of mg/dL that a sensor could show")
    return int(value)


def _parse_date(wt: object, dt: object) -> int:
    date = _parse_instant(wt)
    if date is None and _parse_offset(dt) is not None:  # without a zone it might be local time
        date = _parse_instant(dt)
    if date is None:
        raise MalformedRecordError("neither WT nor DT with its zone is an instant")
    return date


def _parse_instant(text: object) -> int | None:
    match = _DATE.fullmatch(text) if isinstance(text, str) else None
    return int(match[1]) if match is not None and 0 < int(match[1]) < _LAST_MS else None


def _parse_offset(text: object) -> int | None:
    match = _DATE.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] is None:
        return None
    hours, minutes = divmod(int(match[2][1:]), 100)
    offset_min = hours * 60 + minutes
    if minutes >= 60 or offset_min > _WIDEST_OFFSET_MIN:  # noqa: PLR2004  # minutes in an hour
        return None
    return -offset_min if match[2][0] == "-" else offset_min


def _parse_direction(trend: object) -> str:
    if isinstance(trend, int) and not isinstance(trend, bool):
        trend = str(trend) if abs(trend) < _LARGEST_TREND else "unknown"
    if not isinstance(trend, str) or not trend.strip():
        return _DIRECTIONS[_NO_DIRECTION].word
    spelling = _IGNORED_IN_SPELLING.sub("", trend.casefold())
    number = _NUMBER_OF_SPELLING.get(spelling)
    if number is not None:
        return _DIRECTIONS[number].word
    return trend[:_LONGEST_WORD].encode(errors="replace").decode()  # replace what UTF-8 cannot encode
