"""What follows from how an attempt to connect went: which protocol is next, after which pause, and what is said of it.

Pure: it is told what happened and how long it lasted, and returns what to do and what to log. It neither connects nor
waits nor logs, and chance is a parameter. How a connection ended is for ``connection`` to say; what that means for the
next one is decided here alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from dexcom2mqtt.clock import growing_pause
from dexcom2mqtt.mqtt import patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from dexcom2mqtt.mqtt.connection import Failure, Protocol

_BACKOFF_FIRST: Final = 1.0
_BACKOFF_MOST: Final = 30.0
_BACKOFF_SPREAD: Final = 0.5
_TAKEN_OVER_WAIT: Final = 60.0
_SETTLED: Final = 30.0
"""Seconds after which a connection counts as a good one, and the next failure as a first."""
_TAKEN_OVER_SETTLED: Final = 300.0
_CLOSED_WITHOUT_ANSWER: Final = 2


@dataclass(frozen=True, slots=True)
class Line:
    """A line for the log, and its level."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Next:
    """What follows from a failure: how many seconds to wait before the next attempt, and what to say, if anything."""

    pause: float
    line: Line | None


class Attempts:
    """The attempts to connect to one broker, and what was said of them.

    ``place`` is the broker in words, and ``chance`` gives a number from 0 to 1. All seconds are the caller's clock's.
    """

    def __init__(self, wanted: Literal["auto"] | Protocol, place: str, chance: Callable[[], float]) -> None:
        self.protocol: Protocol = "3.1.1" if wanted == "3.1.1" else "5"
        """The protocol of the next attempt, or of the connection that there is."""
        self._place = place
        self._chance = chance
        self._decided = wanted != "auto"
        self._closed_without_answer = 0  # how often MQTT 5 was
        self._failures = 0  # in a row
        self._trouble: str | None = None  # as it was said last, and is not yet over
        self._recurs: Literal["taken_over", "jammed"] | None = None  # what ended the last connection, and may end this

    def connected(self) -> Line | None:
        """Record that the broker let us in, and so takes this protocol; return what to say.

        What ends each connection in the same way is one line and not one for each time: so nothing is said until it
        stays away.
        """
        self._decided = True
        return None if self._recurs else self._all_is_well()

    def lasts(self, seconds: float, real_seconds: float, *, idle: bool) -> Line | None:
        """Record how long a connection has lasted, and whether nothing is on its way; return what to say.

        That is said once what ended the last connection has stayed away for long enough. A broker that jams at one
        message takes the others, and jams again: so nothing may be left unacknowledged.
        """
        unjammed = self._recurs == "jammed" and idle and real_seconds > patience.SECONDS
        if not unjammed and not (self._recurs == "taken_over" and seconds > _TAKEN_OVER_SETTLED):
            return None
        self._recurs = None
        return self._all_is_well()

    def suspects_another(self, failure: Failure) -> bool:
        """Return whether another client may be using our id although the broker did not say so: it is worth a look.

        A broker may also close a connection because it cannot stand what we sent. So this is suspected only if
        nothing was on its way, or if the last connection was taken over and the other client is back at once.
        """
        return failure.ending == "closed_idle" or (failure.ending == "closed_busy" and self._recurs == "taken_over")

    def failed(self, failure: Failure, lasted: float) -> Next:
        """Record why an attempt or its connection ended, so many seconds after it began; return what follows."""
        refused = self.protocol
        self._reconsider(failure)
        if failure.ending == "protocol_refused" and self.protocol != refused:
            return Next(0.0, None)  # the other one is tried at once
        line = self._say(failure, lasted)
        self._recurs = failure.ending if failure.ending in {"taken_over", "jammed"} else None
        return Next(self._pause(failure, lasted), line)

    def _reconsider(self, failure: Failure) -> None:
        """Choose the protocol of the next attempt: 5 unless the broker refuses it or keeps hanging up on it."""
        if self._decided:
            return
        if failure.ending == "protocol_refused" and self.protocol == "5":
            self.protocol = "3.1.1"
        elif self._closed_without_answer >= _CLOSED_WITHOUT_ANSWER:  # that was 3.1.1, and no better
            self.protocol = "5"
            self._closed_without_answer = 0
        elif failure.ending == "closed_without_answer" and self.protocol == "5":
            self._closed_without_answer += 1
            if self._closed_without_answer >= _CLOSED_WITHOUT_ANSWER:
                self.protocol = "3.1.1"

    def _say(self, failure: Failure, lasted: float) -> Line | None:
        """Return what happened, unless it is what was said before."""
        if lasted > _TAKEN_OVER_SETTLED and failure.ending != "jammed":
            self._trouble = None
        if failure.text == self._trouble:
            return None
        self._trouble = failure.text
        return Line(logging.ERROR if failure.ending == "taken_over" else logging.WARNING, failure.text)

    def _pause(self, failure: Failure, lasted: float) -> float:
        self._failures = 1 if lasted > _SETTLED else self._failures + 1
        if failure.ending == "taken_over":
            return _TAKEN_OVER_WAIT
        return growing_pause(
            self._failures, self._chance, first=_BACKOFF_FIRST, most=_BACKOFF_MOST, spread=_BACKOFF_SPREAD
        )

    def _all_is_well(self) -> Line:
        self._trouble = None
        return Line(logging.INFO, f"connected to {self._place} with MQTT {self.protocol}")
