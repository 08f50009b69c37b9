"""Reading the time, and waiting.

There are two kinds of time. ``Clock.now()`` counts the seconds since the machine started and never jumps; everything
is scheduled by it. The time of day is Share's (``ShareTime``), since a Raspberry Pi has no battery-backed clock, and
the system time may be years off. No other module reads a clock or sleeps.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DAY: Final = 24 * 3600
"""Seconds in a day, which is also how long Share keeps readings."""

LOOK_SECONDS: Final = 60.0
"""Real seconds after which a wait checks the clock again: a wait of the system does not count suspended time."""


_REAL_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Stopped(BaseException):
    """The program should end. Derived from BaseException so that no handler of errors catches it."""


class Clock:
    """The time since the machine started, including suspended time, and a stop that ends every wait.

    ``speed`` makes the whole program run faster than real time, for demonstrations and tests.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._stopped = False
        self._at_stop: list[Callable[[], None]] = []

    def now(self) -> float:
        """Return the seconds since the machine started, times ``speed``."""
        return time.clock_gettime(_REAL_CLOCK) * self.speed

    def real(self, seconds: float) -> float:
        """Return how many real seconds ``seconds`` of this clock last."""
        return seconds / self.speed

    def alarm(self, back_by: Callable[[float], None] = lambda _: None) -> Alarm:
        """Return a new alarm that one thread can wait on.

        ``back_by`` is called before each wait, with the time (by the clock) when it will be over. The watchdog uses
        that to notice a thread that hangs.
        """
        alarm = Alarm(self, back_by)
        self.at_stop(alarm.ring)
        return alarm

    def at_stop(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` when the program should end, for a thread that waits for something other than an alarm."""
        self._at_stop.append(wake)
        if self._stopped:
            wake()

    def branch(self) -> Clock:
        """Return a clock with the same time that ends with this one, and may be stopped before: a part may end."""
        branch = Clock(self.speed)
        self.at_stop(branch.stop)
        return branch

    def forget(self, branch: Clock) -> None:
        """Forget a branch that has been stopped."""
        self._at_stop.remove(branch.stop)

    @property
    def stopped(self) -> bool:
        """Whether the program should end."""
        return self._stopped

    def stop(self) -> None:
        """End every wait, now and from now on, with ``Stopped``."""
        self._stopped = True
        for wake in self._at_stop:
            wake()


class Alarm:
    """Lets one thread wait until its time is over, another thread calls ``ring``, or the clock stops."""

    def __init__(self, clock: Clock, back_by: Callable[[float], None] = lambda _: None) -> None:
        self._clock = clock
        self._back_by = back_by
        self._rung = threading.Event()

    def ring(self) -> None:
        """End the current wait, or the next one if there is none."""
        self._rung.set()

    def wait(self, seconds: float) -> bool:
        """Wait for ``seconds`` of the clock; return whether a ring ended the wait. Raises Stopped."""
        end = self._clock.now() + seconds
        self._back_by(end)
        rung = self._rung.is_set()
        while not rung and (left := self._clock.real(end - self._clock.now())) > 0:
            rung = self._rung.wait(min(left, LOOK_SECONDS))
        if self._clock.stopped:
            raise Stopped
        if rung:
            self._rung.clear()
        return rung

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds`` regardless of rings, for a library that sleeps. Raises Stopped."""
        end = self._clock.now() + seconds
        rung = False
        while (left := end - self._clock.now()) > 0:
            rung = self.wait(left) or rung
        if rung:
            self.ring()


def growing_pause(failures: int, chance: Callable[[], float], *, first: float, most: float, spread: float) -> float:
    """Return how many seconds to wait after that many failures in a row: ``first``, doubled after each further failure.

    It is at most ``most``. ``chance`` returns a number from 0 to 1, which shortens the pause by up to the fraction
    ``spread`` of it, so that clients that failed at the same moment do not try again at the same moment.
    """
    pause = min(first * 2.0 ** min(failures - 1, 10), most)
    return pause * (1 - spread + spread * chance())


def parse_iso(text: object) -> float | None:
    """Convert ISO 8601 with an offset to Unix seconds; None for anything else."""
    try:
        parsed = datetime.fromisoformat(text) if isinstance(text, str) else None
        return parsed.timestamp() if parsed is not None and parsed.tzinfo else None
    except (ValueError, OverflowError):
        return None


def system_time() -> float:
    """Return the system time in Unix seconds; it may be years off."""
    return time.time()


def local(unix: float) -> str:
    """Format Unix seconds as a time of day in this machine's time zone, such as ``14:03:12``."""
    return f"{datetime.fromtimestamp(unix, UTC).astimezone():%H:%M:%S}"


def day(unix: float) -> str:
    """Format Unix seconds as a day in UTC, such as ``2027-01-31``."""
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d}"


def iso(unix: float | None) -> str | None:
    """Format Unix seconds as ISO 8601 in UTC, in whole seconds; None stays None."""
    return None if unix is None else datetime.fromtimestamp(int(unix), UTC).isoformat()
