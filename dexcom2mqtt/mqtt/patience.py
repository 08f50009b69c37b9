"""How long a broker may go without acknowledging anything while it does everything else.

A broker that is slow, frozen or out of reach is waited for: the keep-alive ends that. One that answers and yet does not
acknowledge holds up everything behind what it owes, and looks well from outside. So what counts is the time in which
this process ran and the broker showed that it was there.

It neither sends nor reads a clock: it is told what happened, and says when to ask the broker for a sign of life.
"""

from __future__ import annotations

from typing import Final

SECONDS: Final = 30.0
_QUESTION_EVERY: Final = 15.0
_STEP_MOST: Final = 2.0
"""What one step counts at most: the loop takes a second, so all beyond is a process that was paused, or a machine."""


class Patience:
    """The patience with one connection, in real seconds. Each acknowledgement resets it."""

    def __init__(self) -> None:
        self.acknowledged()

    def acknowledged(self) -> None:
        """Begin again: the broker acknowledged a message."""
        self._waited = 0.0
        self._since_question = 0.0
        self._open = False  # whether a question is without an answer
        self._last = False  # whether the question was asked when all the time was over
        self.exhausted = False
        """Whether the broker, all that time later, has answered a question and still not acknowledged anything."""

    def passed(self, seconds: float) -> None:
        """Count seconds in which at least one message was without its acknowledgement.

        While a question is open, nobody knows whether the broker is there, and the wait stands still: one that was
        frozen has as much time left afterwards as it had before.
        """
        step = min(seconds, _STEP_MOST)
        self._since_question += step
        if not self._open:
            self._waited += step

    @property
    def question_due(self) -> bool:
        """Whether it is time to ask the broker for a sign of life."""
        return self._since_question >= _QUESTION_EVERY or (not self._open and self._waited >= SECONDS)

    def asked(self) -> None:
        """Take it that the broker was asked for a sign of life."""
        self._since_question = 0.0
        self._open = True
        self._last = self._waited >= SECONDS

    def alive(self) -> None:
        """Take anything from the broker but an acknowledgement for a sign of life."""
        if self._open:
            self.exhausted = self._last
            self._open = False
            self._since_question = 0.0
