"""A clock that a test sets by hand."""

from __future__ import annotations

from dexcom2mqtt.clock import Clock


class SetClock(Clock):
    """A clock that stays where it was set."""

    def __init__(self, at: float = 0.0) -> None:
        super().__init__()
        self.at = at

    def now(self) -> float:
        return self.at
