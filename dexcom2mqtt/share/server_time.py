"""The time of day by a Share server, since a Raspberry Pi has no battery-backed clock.

It decides how far to trust the ``Date`` of an answer. It does not know what the time is used for.
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
"""How many seconds two answers that agree on the time may differ."""
_APART: Final = 30.0
"""Seconds between two answers that prove more than a single one."""
_BACKWARDS: Final = 75 * 60.0
_REMEMBERED: Final = 8


@dataclass(slots=True)
class _Estimate:
    """A time of day from Share: its offset from the clock, and since when (by the clock) Share has sent it."""

    offset: float
    since: float

    def agrees(self, earliest: float, latest: float) -> bool:
        return earliest - _AGREES <= self.offset <= latest + _AGREES

    def narrow(self, earliest: float, latest: float) -> None:
        self.offset = min(max(self.offset, earliest), latest)


class ShareTime:
    """The time of day by one Share server, from the ``Date`` headers of its answers.

    A header is truncated to whole seconds, so each gives only two bounds for the time. The estimate moves
    just far enough to lie within them: it settles within a fraction of a second and then stays the same.

    A single header may be wrong. Once two answers 30 s apart have agreed within a minute, by the clock that never
    jumps, a different time must be agreed on in the same way before it counts. A time before the present one must be
    sent for 75 minutes, since it would make old readings look new. A time that was agreed on earlier needs only 30 s.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._current: _Estimate | None = None
        self._agreed = False
        self._other: _Estimate | None = None
        self._earlier: deque[float] = deque(maxlen=_REMEMBERED)  # offsets that were agreed on

    def update(self, date: str | None, sent: float) -> None:
        """Update the time from the ``Date`` header of an answer just received, whose request was sent at ``sent``.

        A header that is missing or makes no sense is ignored.
        """
        instant = parse_http_date(date)
        if instant is None or not _FIRST_PLAUSIBLE < instant < _LAST_PLAUSIBLE:
            return
        now = self._clock.now()
        bounds = instant - now, instant + 1 - sent
        if self._current is not None and self._current.agrees(*bounds):
            self._current.narrow(*bounds)
            self._other = None
            self._agreed |= now >= self._current.since + _APART
        elif self._agreed and self._other is not None and self._other.agrees(*bounds):
            self._other.narrow(*bounds)
            if now >= self._proven_at(self._other):
                self._earlier += [] if self._current is None else [self._current.offset]
                self._current, self._other = self._other, None
        else:
            new = _Estimate(sum(bounds) / 2, now)
            if self._agreed:
                self._other = new
            else:
                self._current = new

    def _proven_at(self, other: _Estimate) -> float:
        """Return when a different time counts, if Share still sends it then."""
        known = any(abs(other.offset - offset) <= _AGREES for offset in self._earlier)
        forward = self._current is None or other.offset > self._current.offset
        return other.since + (_APART if known or forward else _BACKWARDS)

    @property
    def settled(self) -> bool:
        """Whether two answers agree on the time, and the last answer agrees too."""
        return self._agreed and self._other is None

    @property
    def settles_at(self) -> float | None:
        """When (by the clock) another answer may settle the time; None if it is settled or unknown."""
        if self._current is None or self.settled:
            return None
        return self._proven_at(self._other) if self._other else self._current.since + _APART

    @property
    def jumped(self) -> bool:
        """Whether the last answer had a different time from the one that was agreed on."""
        return self._other is not None

    @property
    def known(self) -> bool:
        """Whether the server has sent the time yet."""
        return self._current is not None

    def unix(self, at: float) -> float | None:
        """Convert a time of the clock to Unix seconds; None while the time is unknown."""
        return None if self._current is None else at + self._current.offset

    def at(self, unix: float) -> float | None:
        """Convert Unix seconds to a time of the clock; None while the time is unknown."""
        return None if self._current is None else unix - self._current.offset

    def now(self) -> float | None:
        """Return the time of day in Unix seconds; None while it is unknown."""
        return self.unix(self._clock.now())


def parse_http_date(text: str | None) -> float | None:
    """Convert the date of an HTTP header to Unix seconds; None if it is not a date."""
    try:
        parsed = parsedate_to_datetime(text or "")
        # An HTTP date is always in GMT, even if it does not say so.
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
