"""What follows from how an attempt to connect went: which protocol is next, after which pause, and what is said of it.

Pure: it is told what happened and how long it lasted, and returns what to do and what to log. It neither connects nor
waits nor logs, and chance is a parameter. How a connection ended is for ``connection`` to say; what that means for the
next one is decided here alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from dexcom2mqtt.clock import growing_pause
from dexcom2mqtt.mqtt import patience
from dexcom2mqtt.mqtt.outcome import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from dexcom2mqtt.mqtt.outcome import Ending, Failure, Protocol

_BACKOFF_FIRST: Final = 1.0
_BACKOFF_MOST: Final = 30.0
_BACKOFF_SPREAD: Final = 0.5
_TAKEN_OVER_WAIT: Final = 60.0
_SETTLED: Final = 30.0
"""Seconds after which a connection counts as a good one, and the next failure as a first."""
_TAKEN_OVER_MOST: Final = 600.0
_TAKEN_OVER_SETTLED: Final = 300.0
_UNANSWERED: Final = 2
_IDLE_CUTS: Final = 3
_IDLE_SAME: Final = 2.0
_IDLE_LEAST: Final = 15.0
_KEEPALIVE_LEAST: Final = 10


class Next(NamedTuple):
    """What follows from a failure: how many seconds to wait before the next attempt, and what to say, if anything."""

    pause: float
    line: Line | None


class Attempts:
    """The attempts to connect to one broker, and what was said of them.

    ``place`` is the broker in words, and ``chance`` gives a number from 0 to 1. All seconds are the caller's clock's.
    """

    def __init__(
        self, wanted: Literal["auto"] | Protocol, place: str, chance: Callable[[], float], keepalive: int = 60
    ) -> None:
        self.protocol: Protocol = "3.1.1" if wanted == "3.1.1" else "5"
        """The protocol of the next attempt, or of the connection that there is."""
        self.keepalive = keepalive
        """The keep-alive of the next attempt, in seconds."""
        self.will_qos, self.will_retain = 1, True
        """What the broker takes as a will."""
        self._place = place
        self._chance = chance
        self._decided = wanted != "auto"
        self._unanswered = 0  # how often MQTT 5 was, in a row
        self._falls_back = False  # whether 3.1.1 worked after 5 had failed without a word
        self._idle_cuts: list[float] = []  # after how many seconds of idleness it was cut, in a row
        self._take_overs = 0  # in a row, and certain
        self._failures = 0  # in a row
        self._trouble: str | None = None  # as it was said last, and is not yet over
        self._recurs: Ending | None = None  # what ended the last connection, and may end this

    def connected(self) -> Line | None:
        """Record that the broker let us in, and so takes this protocol; return what to say.

        What ends each connection in the same way is one line and not one for each time: so nothing is said until it
        stays away.
        """
        if self.protocol == "5":
            self._decided = True
        elif not self._decided:
            self._falls_back = True
        return None if self._recurs else self._all_is_well()

    def lasts(self, seconds: float, real_seconds: float, *, idle: bool) -> Line | None:
        """Record how long a connection has lasted, and whether nothing is on its way; return what to say.

        That is said once what ended the last connection has stayed away for long enough. A broker that jams at one
        message takes the others, and jams again: so nothing may be left unacknowledged.
        """
        stuck = self._recurs in {"jammed", "closed_busy", "unprotected"}
        unjammed = stuck and idle and real_seconds > patience.SECONDS
        if not unjammed and not (self._recurs == "taken_over" and seconds > _TAKEN_OVER_SETTLED):
            return None
        self._recurs = None
        return self._all_is_well()

    def suspects_another(self, failure: Failure) -> bool:
        """Return whether another client may be using our id although the broker did not say so: it is worth a look.

        A broker may also close a connection because it cannot stand what we sent. So this is suspected only if
        nothing was on its way, or if the last connection was taken over and the other client is back at once. A proxy
        that cuts what is idle is known by cutting after the same time again and again.
        """
        if failure.idle is not None and _same_cuts([*self._idle_cuts, failure.idle]):
            return False
        return failure.ending == "closed_idle" or (failure.ending == "closed_busy" and self._recurs == "taken_over")

    def failed(self, failure: Failure, lasted: float) -> Next:
        """Record why an attempt or its connection ended, so many seconds after it began; return what follows."""
        tried = self.protocol
        self._reconsider(failure)
        if self.protocol == "3.1.1" != tried and failure.ending in {"protocol_refused", "answered_wrongly"}:
            return Next(0.0, None)  # the other one is tried at once
        if failure.ending == "will_refused" and self._lower_the_will():
            return Next(0.0, None)
        if line := self._learn_from_idle(failure):
            return Next(self._pause(failure, lasted), line)
        line = self._say(failure, lasted)
        again = failure.ending == "closed_busy" and self._failures > 1 and lasted <= _SETTLED
        lasting = failure.ending in {"taken_over", "jammed", "unprotected"} or again
        self._recurs = failure.ending if lasting else None
        return Next(self._pause(failure, lasted), line)

    def _reconsider(self, failure: Failure) -> None:
        """Choose the protocol of the next attempt: 5 unless the broker refuses it, or cannot answer it and can 3.1.1.

        Once it has taken 5, it is not left for what may be the port of a broker that is just being restarted.
        """
        if self._decided:
            return
        if self.protocol == "3.1.1":  # that was no better
            self.protocol = "5"
            self._unanswered = 0
        elif failure.ending == "protocol_refused":
            self.protocol = "3.1.1"
            self._decided = True
        elif failure.ending == "answered_wrongly":
            self.protocol = "3.1.1"
        elif failure.ending in {"closed_without_answer", "silent"}:
            self._unanswered += 1
            if self._falls_back or self._unanswered >= _UNANSWERED:
                self.protocol = "3.1.1"

    def _lower_the_will(self) -> bool:
        """Ask less of the broker; return whether that is possible."""
        could = self.will_qos > 0 or self.will_retain
        self.will_qos, self.will_retain = 0, self.will_retain and self.will_qos > 0
        return could

    def _learn_from_idle(self, failure: Failure) -> Line | None:
        """Shorten the keep-alive if something on the way cuts what is idle; return what to say then."""
        if failure.idle is None or failure.idle < _IDLE_LEAST:
            self._idle_cuts = []
            return None
        self._idle_cuts = [*self._idle_cuts, failure.idle][-_IDLE_CUTS:]
        if not _same_cuts(self._idle_cuts):
            return None
        shorter = max(_KEEPALIVE_LEAST, int(min(self._idle_cuts) * 2 / 3))
        self._idle_cuts = []
        if shorter >= self.keepalive:
            return None
        self.keepalive = shorter
        self._trouble = None
        self._failures = 0
        return Line(
            logging.WARNING,
            f"the connection to {self._place} was cut {_IDLE_CUTS} times after {failure.idle:.0f} s without traffic, "
            f"as a proxy or a router does: from now on a sign of life is sent every {shorter} s. To make that "
            f"permanent, set mqtt.keepalive to {shorter}",
        )

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
            # Two programs that fight over one id: if that is certain, this one gives way for longer and longer.
            self._take_overs = self._take_overs + 1 if failure.certain and lasted <= _TAKEN_OVER_SETTLED else 1
            return min(_TAKEN_OVER_WAIT * 2.0 ** (min(self._take_overs, 8) - 1), _TAKEN_OVER_MOST)
        if failure.ending == "unprotected":
            return _TAKEN_OVER_WAIT
        if failure.pinned:  # it does not happen again just like that
            self._failures = 1
        return growing_pause(
            self._failures, self._chance, first=_BACKOFF_FIRST, most=_BACKOFF_MOST, spread=_BACKOFF_SPREAD
        )

    def _all_is_well(self) -> Line:
        self._trouble = None
        return Line(logging.INFO, f"connected to {self._place} with MQTT {self.protocol}")


def _same_cuts(seconds: list[float]) -> bool:
    """Return whether it was cut often enough after the same time without traffic."""
    last = seconds[-_IDLE_CUTS:]
    return len(last) == _IDLE_CUTS and min(last) >= _IDLE_LEAST and max(last) - min(last) <= 2 * _IDLE_SAME
