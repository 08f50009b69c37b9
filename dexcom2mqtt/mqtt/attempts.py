"""Decides after each attempt to connect which protocol to try next, after which pause, and what to log.

Pure: it gets what happened and how long it lasted, and returns what to do and what to log. It does not connect, wait or
log, and randomness is a parameter. ``connection`` says how a connection ended; only this module decides what follows.
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
"""After this many seconds a connection counts as good, and the next failure as the first."""
_TAKEN_OVER_MOST: Final = 600.0
_TAKEN_OVER_SETTLED: Final = 300.0
_UNANSWERED: Final = 2
_IDLE_CUTS: Final = 3
_IDLE_SAME: Final = 2.0
_IDLE_LEAST: Final = 15.0
_KEEPALIVE_LEAST: Final = 10


class Next(NamedTuple):
    """What follows a failure: the seconds to wait before the next attempt, and what to log, if anything."""

    pause: float
    line: Line | None


class Attempts:
    """The attempts to connect to one broker, and what was logged about them.

    ``place`` names the broker, and ``chance`` returns a number from 0 to 1. Seconds are those of the caller's clock.
    """

    def __init__(
        self, wanted: Literal["auto"] | Protocol, place: str, chance: Callable[[], float], keepalive: int = 60
    ) -> None:
        self.protocol: Protocol = "3.1.1" if wanted == "3.1.1" else "5"
        """The protocol of the next attempt, or of the current connection."""
        self.keepalive = keepalive
        """The keep-alive of the next attempt, in seconds."""
        self.will_qos, self.will_retain = 1, True
        """The QoS and retain flag of the will that the broker accepts."""
        self._place = place
        self._chance = chance
        self._decided = wanted != "auto"
        self._unanswered = 0  # attempts with MQTT 5 in a row
        self._falls_back = False  # whether 3.1.1 worked after 5 had failed without an answer
        self._idle_cuts: list[float] = []  # the idle seconds before each cut, in a row
        self._take_overs = 0  # in a row, each confirmed by the broker
        self._failures = 0  # in a row
        self._trouble: str | None = None  # the last logged problem, until it is over
        self._recurs: Ending | None = None  # what ended the last connection, and may end this one

    def connected(self) -> Line | None:
        """Record that the broker accepted the connection, and thus this protocol; return what to log.

        If every connection ends in the same way, that is one line in total: so nothing is logged here until such an end
        has stayed away (see ``lasts``).
        """
        if self.protocol == "5":
            self._decided = True
        elif not self._decided:
            self._falls_back = True
        return None if self._recurs else self._connected_line()

    @property
    def unsettled(self) -> bool:
        """Whether there is something to say once what ended the last connection has stayed away for long enough."""
        return self._recurs is not None

    def lasts(self, seconds: float, real_seconds: float, *, idle: bool) -> Line | None:
        """Record how long a connection has lasted, and whether everything is acknowledged; return what to log.

        The recovery is logged once the problem that ended the last connection has not returned for long enough. A
        broker that jams at one message accepts the others first: so everything must be acknowledged.
        """
        stuck = self._recurs in {"jammed", "closed_busy", "unprotected"}
        unjammed = stuck and idle and real_seconds > patience.SECONDS
        if not unjammed and not (self._recurs == "taken_over" and seconds > _TAKEN_OVER_SETTLED):
            return None
        self._recurs = None
        return self._connected_line()

    def suspects_another(self, failure: Failure) -> bool:
        """Return whether another client may be using our id although the broker did not say so: worth a check.

        A broker may also close a connection because of a message. So we suspect this only if nothing was
        unacknowledged, or if the last connection was taken over and this one ended, too. A proxy that cuts idle
        connections cuts each after the same time.
        """
        if failure.idle is not None and _same_cuts([*self._idle_cuts, failure.idle]):
            return False
        return failure.ending == "closed_idle" or (failure.ending == "closed_busy" and self._recurs == "taken_over")

    def failed(self, failure: Failure, lasted: float) -> Next:
        """Record why an attempt or its connection ended, ``lasted`` seconds after it began; return what to do."""
        tried = self.protocol
        self._reconsider(failure)
        if self.protocol == "3.1.1" != tried and failure.ending in {"protocol_refused", "answered_wrongly"}:
            return Next(0.0, None)  # try the other one at once
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
        """Choose the protocol of the next attempt: 5, unless the broker refuses it or only answers 3.1.1.

        Once the broker has accepted 5, it stays: a missing answer may come from a broker that is being restarted.
        """
        if self._decided:
            return
        if self.protocol == "3.1.1":  # it did not work either
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
        """Lower the QoS of the will, then drop its retain flag; return whether that was possible."""
        could = self.will_qos > 0 or self.will_retain
        self.will_qos, self.will_retain = 0, self.will_retain and self.will_qos > 0
        return could

    def _learn_from_idle(self, failure: Failure) -> Line | None:
        """Shorten the keep-alive if a proxy or router cuts idle connections; return what to log then."""
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
            f"probably by a proxy or router: from now on the daemon sends a ping every {shorter} s. To make that "
            f"permanent, set mqtt.keepalive to {shorter}",
        )

    def _say(self, failure: Failure, lasted: float) -> Line | None:
        """Return the line about a failure, or None if it was logged before."""
        if lasted > _TAKEN_OVER_SETTLED and failure.ending != "jammed":
            self._trouble = None
        if failure.text == self._trouble:
            return None
        self._trouble = failure.text
        return Line(logging.ERROR if failure.ending == "taken_over" else logging.WARNING, failure.text)

    def _pause(self, failure: Failure, lasted: float) -> float:
        self._failures = 1 if lasted > _SETTLED else self._failures + 1
        if failure.ending == "taken_over":
            # Two programs compete for one id: if the broker confirms that, this one waits longer each time.
            self._take_overs = self._take_overs + 1 if failure.certain and lasted <= _TAKEN_OVER_SETTLED else 1
            return min(_TAKEN_OVER_WAIT * 2.0 ** (min(self._take_overs, 8) - 1), _TAKEN_OVER_MOST)
        if failure.ending == "unprotected":
            return _TAKEN_OVER_WAIT
        if failure.pinned:  # it is left out next time
            self._failures = 1
        return growing_pause(
            self._failures, self._chance, first=_BACKOFF_FIRST, most=_BACKOFF_MOST, spread=_BACKOFF_SPREAD
        )

    def _connected_line(self) -> Line:
        self._trouble = None
        return Line(logging.INFO, f"connected to {self._place} with MQTT {self.protocol}")


def _same_cuts(seconds: list[float]) -> bool:
    """Return whether the last connections were cut after about the same idle time, and often enough."""
    last = seconds[-_IDLE_CUTS:]
    return len(last) == _IDLE_CUTS and min(last) >= _IDLE_LEAST and max(last) - min(last) <= 2 * _IDLE_SAME
