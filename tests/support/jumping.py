"""A clock whose waits end at once: the time jumps to their end, so that weeks pass in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexcom2mqtt.clock import Alarm, Clock, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable


class JumpingClock(Clock):
    """A clock for one thread, which stops at ``end``. ``before_wait`` is called at the beginning of every wait."""

    def __init__(self, end: float, begin: float = 5000.0) -> None:
        super().__init__()
        self.time = begin
        self.end = end
        self.before_wait: Callable[[], None] = lambda: None

    def now(self) -> float:
        """Return the time, which only waits change."""
        return self.time

    def alarm(self, back_by: Callable[[float], None] = lambda _: None) -> Alarm:
        """Return an alarm that makes the time jump."""
        return JumpingAlarm(self, back_by)


class JumpingAlarm(Alarm):
    """An alarm of such a clock."""

    def __init__(self, clock: JumpingClock, back_by: Callable[[float], None]) -> None:
        super().__init__(clock, back_by)
        self._jumping = clock

    def wait(self, seconds: float) -> bool:
        """Jump to the end of the wait, or return at once if it was rung before."""
        self._jumping.before_wait()
        self._back_by(self._jumping.time + seconds)
        rung = self._rung.is_set()
        self._rung.clear()
        if not rung:
            self._jumping.time += max(seconds, 0.001)  # otherwise the time might never pass
        if self._jumping.time >= self._jumping.end:
            raise Stopped
        return rung
