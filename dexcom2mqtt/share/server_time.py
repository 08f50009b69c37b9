"""The time of day as a Share server tells it, since a Raspberry Pi has no clock of its own.

It owns what an answer's ``Date`` is worth. It knows nothing of what is dated by it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dexcom2mqtt.clock import Clock

_FIRST_PLAUSIBLE: Final = 946_684_800  # the year 2000 in Unix seconds
_LAST_PLAUSIBLE: Final = 4_102_444_800  # the year 2100
_AGREES: Final = 60.0
"""Seconds by which two answers may differ that agree on the time."""
_APART: Final = 30.0
"""Seconds between two answers that prove more than one does."""
_BACKWARDS: Final = 75 * 60.0
_REMEMBERED: Final = 8


@dataclass(slots=True)
class _Told:
    """A time of day as Share tells it: how far it is from the clock, and since when (by the clock) it is told."""

    offset: float
    since: float

    def agrees(self, earliest: float, latest: float) -> bool:
        return earliest - _AGREES <= self.offset <= latest + _AGREES

    def narrow(self, earliest: float, latest: float) -> None:
        self.offset = min(max(self.offset, earliest), latest)


class ShareTime:
    """The time of day as one Share server tells it in the ``Date`` header of its answers.

    A header is cut to whole seconds, so each only says between which two bounds the time lies. The estimate is
    moved no further than into those bounds: it settles within a fraction of a second and then keeps still.

    A single header may be wrong. Once two answers 30 s apart have agreed within a minute, by the clock that never
    jumps, another time has to be agreed on likewise before it counts. One that lies before the present one has to be
    told for 75 minutes: it would make old readings look new. A time that was agreed on earlier needs no such proof.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: _Told | None = None
        self._agreed = False
        self._other: _Told | None = None
        self._earlier: deque[float] = deque(maxlen=_REMEMBERED)  # offsets that were agreed on

    def tell(self, date: str | None, sent: float) -> None:
        """Take a ``Date`` header of an answer to what was sent at ``sent`` and has just been received.

        A header that is missing or makes no sense is ignored.
        """
        instant = parse_http_date(date)
        if instant is None or not _FIRST_PLAUSIBLE < instant < _LAST_PLAUSIBLE:
            return
        now = self._clock.now()
        bounds = instant - now, instant + 1 - sent
        if self._told is not None and self._told.agrees(*bounds):
            self._told.narrow(*bounds)
            self._other = None
            self._agreed |= now >= self._told.since + _APART
        elif self._agreed and self._other is not None and self._other.agrees(*bounds):
            self._other.narrow(*bounds)
            if now >= self._proven_at(self._other):
                self._earlier += [] if self._told is None else [self._told.offset]
                self._told, self._other = self._other, None
        else:
            new = _Told(sum(bounds) / 2, now)
            if self._agreed:
                self._other = new
            else:
                self._told = new

    def _proven_at(self, other: _Told) -> float:
        """Return from when on another time counts, if it is still told then."""
        known = any(abs(other.offset - offset) <= _AGREES for offset in self._earlier)
        forward = self._told is None or other.offset > self._told.offset
        return other.since + (_APART if known or forward else _BACKWARDS)

    @property
    def settled(self) -> bool:
        """Whether two answers agree on the time, and the last one does as well."""
        return self._agreed and self._other is None

    @property
    def settles_at(self) -> float | None:
        """From when on (by the clock) one more answer may settle the time; None if it is settled or unknown."""
        if self._told is None or self.settled:
            return None
        return self._proven_at(self._other) if self._other else self._told.since + _APART

    @property
    def jumped(self) -> bool:
        """Whether the last answer told another time than the one that was agreed on."""
        return self._other is not None

    @property
    def known(self) -> bool:
        """Whether the server has told the time yet."""
        return self._told is not None

    def unix(self, at: float) -> float | None:
        """Turn a time of the clock into Unix seconds; None while the time is unknown."""
        return None if self._told is None else at + self._told.offset

    def at(self, unix: float) -> float | None:
        """Turn Unix seconds into a time of the clock; None while the time is unknown."""
        return None if self._told is None else unix - self._told.offset

    def now(self) -> float | None:
        """Return the time of day in Unix seconds; None while it is unknown."""
        return self.unix(self._clock.now())


def parse_http_date(text: str | None) -> float | None:
    """Turn the date of an HTTP header into Unix seconds; None where it is none."""
    try:
        parsed = parsedate_to_datetime(text or "")
        # An HTTP date is always in GMT, also where it does not say so.
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
