"""What a Nightscout client asks for: the parameters of its query, read as Nightscout's server does. Pure.

Senseless and unknown parameters are ignored, because many clients send some.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dexcom2mqtt.readings import Reading

MOST: Final = 288
"""The readings of a day, and the most in one answer."""

_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_FIND: Final = re.compile(r"find\[(date|dateString|type)\](?:\[(\$\w+)\])?")
_MOST_FIELDS: Final = 50
_OFFSET: Final = re.compile(r" (\d\d:?\d\d)$", re.ASCII)
_WHOLE: Final = re.compile(r"\d{1,9}", re.ASCII)


class QueryError(ValueError):
    """A query with too many parameters."""


@dataclass(frozen=True, slots=True)
class Query:
    """The requested readings: ``count`` of them, within all ``bounds`` (Unix milliseconds); none without ``sgv``."""

    count: int
    bounds: tuple[tuple[Callable[[float, float], bool], float], ...] = ()
    sgv: bool = True

    def of(self, readings: Sequence[Reading]) -> list[Reading]:
        """Return the requested readings, newest first; ``readings`` is sorted, oldest first."""
        if not self.sgv:
            return []
        wanted = (
            reading
            for reading in reversed(readings)
            if all(compare(reading.date, bound) for compare, bound in self.bounds)
        )
        return [reading for reading, _ in zip(wanted, range(self.count), strict=False)]


def parameters(query: str) -> dict[str, str]:
    """Split a query; of a repeated parameter the last counts. Raises QueryError."""
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise QueryError("too many parameters") from None


def wanted(given: Mapping[str, str], default: int) -> Query:
    """Return which readings are requested; ``default`` is the count if none is given. 0 asks for the most."""
    asked = given.get("count", "")
    count = int(asked) if _WHOLE.fullmatch(asked) else default
    return Query(min(count or MOST, MOST), tuple(_bounds(given.items())), _is_sgv(given.items()))


def _bounds(given: Iterable[tuple[str, str]]) -> Iterable[tuple[Callable[[float, float], bool], float]]:
    for name, value in given:
        match = _FIND.fullmatch(name)
        compare = _COMPARISONS.get(match[2]) if match else None
        if match is None or compare is None or match[1] == "type":
            continue
        bound = _number(value) if match[1] == "date" else _instant(value)
        if bound is not None:
            yield compare, bound


def _is_sgv(given: Iterable[tuple[str, str]]) -> bool:
    """Return whether sensor readings are requested at all."""
    types = [
        value
        for name, value in given
        if (match := _FIND.fullmatch(name)) and match[1] == "type" and _is_equal(match[2])
    ]
    return all(value == "sgv" for value in types)


def _is_equal(comparison: str | None) -> bool:
    return comparison in {None, "$eq"}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _instant(text: str) -> float | None:
    """Turn ISO 8601 into Unix milliseconds; without an offset it is UTC. An unencoded + arrives as a blank."""
    try:
        parsed = datetime.fromisoformat(_OFFSET.sub(r"+\1", text))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000
    except (ValueError, OverflowError):
        return None
