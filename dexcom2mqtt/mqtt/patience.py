"""How long to wait for acknowledgements from a broker that otherwise answers.

For a broker that is slow, frozen or out of reach, the keep-alive decides. One that answers pings but acknowledges
nothing blocks all later messages, and looks healthy from outside. So only the time counts in which this process ran and
the broker was known to be alive.

It neither sends nor reads a clock: it is told what happened, and says when to ping the broker.
"""

from __future__ import annotations

from typing import Final

SECONDS: Final = 30.0
_QUESTION_EVERY: Final = 15.0
_STEP_MOST: Final = 2.0
"""The most seconds that one step counts: a round takes a second, so more means that the process or machine slept."""


class Patience:
    """The wait for acknowledgements on one connection, in real seconds. Each acknowledgement resets it."""

    def __init__(self) -> None:
        self.acknowledged()

    def acknowledged(self) -> None:
        """Start over, as the broker acknowledged a message."""
        self._waited = 0.0
        self._since_question = 0.0
        self._open = False  # whether a ping is unanswered
        self._last = False  # whether the last ping was sent after the full time
        self.exhausted = False
        """Whether the broker answered a ping after the full time, but still has not acknowledged anything."""

    def passed(self, seconds: float) -> None:
        """Count seconds in which at least one message was unacknowledged.

        They do not count while a ping is unanswered, as the broker may be frozen: after that, it has as much time left
        as before.
        """
        step = min(seconds, _STEP_MOST)
        self._since_question += step
        if not self._open:
            self._waited += step

    @property
    def question_due(self) -> bool:
        """Whether to ping the broker now."""
        return self._since_question >= _QUESTION_EVERY or (not self._open and self._waited >= SECONDS)

    def asked(self) -> None:
        """Record that the broker was pinged."""
        self._since_question = 0.0
        self._open = True
        self._last = self._waited >= SECONDS

    def alive(self) -> None:
        """Record that the broker sent something other than an acknowledgement."""
        if self._open:
            self.exhausted = self._last
            self._open = False
            self._since_question = 0.0
