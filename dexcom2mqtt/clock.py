"""Time: what it is, and waiting for it to pass.

Two times are kept apart. ``Clock.now()`` counts seconds since the machine started and never jumps; everything
is scheduled by it. The time of day is Share's (``ShareTime``), since a Raspberry Pi has no clock of its own
and the system's may be years off. No other module reads a clock or sleeps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_SLICE: Final = 10.0
"""Real seconds after which a wait looks at the clock again: waiting itself does not count suspended time."""

_FIRST_PLAUSIBLE: Final = 946_684_800  # the year 2000 in Unix seconds
_LAST_PLAUSIBLE: Final = 4_102_444_800  # the year 2100

_AGREES: Final = 60.0
"""Seconds by which two answers may differ that agree on the time."""
_APART: Final = 30.0
"""Seconds between two answers that prove more than one does."""
_BACKWARDS: Final = 75 * 60.0
_REMEMBERED: Final = 8

_REAL_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Stopped(BaseException):
    """The program is to end. It derives from BaseException so that no handler of errors takes it for one."""


class Clock:
    """The time since the machine started, suspended time included, and the stop that ends every wait.

    ``speed`` makes a whole program run faster than real time, for demonstration and tests.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._stopped = False
        self._alarms: list[Alarm] = []

    def now(self) -> float:
        """Return the seconds since the machine started, times ``speed``."""
        return time.clock_gettime(_REAL_CLOCK) * self.speed

    def real(self, seconds: float) -> float:
        """Return how many real seconds ``seconds`` of this clock take."""
        return seconds / self.speed

    def alarm(self) -> Alarm:
        """Return a new alarm, for one thread to wait on."""
        alarm = Alarm(self)
        self._alarms.append(alarm)
        if self._stopped:
            alarm.ring()
        return alarm

    @property
    def stopped(self) -> bool:
        """Whether the program is to end."""
        return self._stopped

    def stop(self) -> None:
        """End every wait, now and from now on, with ``Stopped``."""
        self._stopped = True
        for alarm in self._alarms:
            alarm.ring()


class Alarm:
    """A wait of one thread, which ends by time, by ``ring`` from another thread, or by the stop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = threading.Event()

    def ring(self) -> None:
        """End the current wait, or the next one if there is none."""
        self._rung.set()

    def wait(self, seconds: float) -> bool:
        """Wait for ``seconds`` of the clock; return whether it was rung before that. Raises Stopped."""
        end = self._clock.now() + seconds
        rung = self._rung.is_set()
        while not rung and (left := self._clock.real(end - self._clock.now())) > 0:
            rung = self._rung.wait(min(left, _SLICE))
        if self._clock.stopped:
            raise Stopped
        if rung:
            self._rung.clear()
        return rung

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds`` whatever rings, for a library that wants to sleep. Raises Stopped."""
        end = self._clock.now() + seconds
        rung = False
        while (left := end - self._clock.now()) > 0:
            rung = self.wait(left) or rung
        if rung:
            self.ring()


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


def parse_iso(text: object) -> float | None:
    """Turn ISO 8601 with an offset into Unix seconds; None where it is none."""
    try:
        parsed = datetime.fromisoformat(text) if isinstance(text, str) else None
        return parsed.timestamp() if parsed is not None and parsed.tzinfo else None
    except (ValueError, OverflowError):
        return None


def system_time() -> float:
    """Return what this machine takes for the time of day, in Unix seconds; it may be years off."""
    return time.time()


def local(unix: float) -> str:
    """Write Unix seconds as a time of day in this machine's zone, such as ``14:03:12``."""
    return f"{datetime.fromtimestamp(unix, UTC).astimezone():%H:%M:%S}"


def day(unix: float) -> str:
    """Write Unix seconds as a day in UTC, such as ``2027-01-31``."""
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d}"


def iso(unix: float | None) -> str | None:
    """Write Unix seconds as ISO 8601 in UTC, in whole seconds; None stays None."""
    return None if unix is None else datetime.fromtimestamp(int(unix), UTC).isoformat()
