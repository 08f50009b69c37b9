"""The topics and filters that the broker refuses, so that one of them does not block the others.

A broker may hang up at one topic, refuse it, or never acknowledge it, and accept all the others. Which topic it is can
be seen only if nothing else is unacknowledged: so after two lost connections with an unknown cause, one message is sent
at a time. A place that fails three times in a row is set aside: the daemon leaves it out, tries it again now and then,
and continues with everything else.

Pure: it gets how connections ended and what the broker said, and returns what to do and what to log. It does not know
the meaning of topics; ``messages.state`` decides which values must not be shown as current because of it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.mqtt.outcome import Line, Place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dexcom2mqtt.mqtt.outcome import Reason

_TIMES: Final = 3
_UNKNOWN_ENDS: Final = 2
_CAREFUL: Final = 3600.0
"""How many seconds messages are sent one at a time, once the broker has shown that it is necessary."""
_SOON: Final = (2.0, 10.0)
"""Seconds until a refused message is tried again, the first and the second time."""
_CALM: Final = 300.0
_CALM_MOST: Final = 3600.0
_QUOTA_MOST: Final = 60.0
_SPACING: Final = 0.2
_SPACING_MOST: Final = 2.0


class Ruling(NamedTuple):
    """What to do about a place: send nothing there until then, and what to log, if anything."""

    place: Place
    until: float
    line: Line | None
    too_large: bool
    """Whether the message may be too large: the broker says so, or the place was set aside without a reason."""


@dataclass(slots=True)
class _Case:
    reason: Reason
    times: int = 0  # in a row
    until: float = -math.inf
    aside: bool = False
    pauses: int = 0  # since it was set aside
    ended: bool = False  # whether it ended a connection
    tried_again: bool = False  # whether it was set aside before; then one more failure is enough


@dataclass(slots=True)
class Trouble:
    """What one broker refuses. ``broker`` names it; ``purposes`` says what does not work without each subscription.

    ``otherwise`` says that for all subscriptions that ``purposes`` does not have.

    All times are in seconds of the caller's clock. A failure counts for a place if nothing else was unacknowledged.
    """

    broker: str
    purposes: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = ""
    quiet_until: float = -math.inf
    """Send nothing before this time: the broker's quota is used up."""
    spacing: float = 0.0
    """Seconds between two messages, once the broker has hung up because of its quota."""
    _cases: dict[Place, _Case] = field(default_factory=dict)
    _said: dict[tuple[str, Reason], set[Place]] = field(default_factory=dict)
    _unknown: int = 0  # lost connections in a row without a known place
    _careful_until: float = -math.inf
    _quota: int = 0  # refusals in a row

    def careful(self, now: float) -> bool:
        """Return whether to send one packet at a time, each only once the previous one is acknowledged."""
        on_trial = any(case.aside and case.until <= now for case in self._cases.values())
        return on_trial or now < self._careful_until

    @property
    def aside(self) -> frozenset[str]:
        """The topics that are set aside."""
        return frozenset(place.topic for place, case in self._cases.items() if case.aside and place.kind == "publish")

    @property
    def undecided(self) -> frozenset[str]:
        """The topics that failed and will be tried again before they are set aside."""
        cases = self._cases.items()
        return frozenset(place.topic for place, case in cases if not case.aside and place.kind == "publish")

    def unsubscribed(self, now: float) -> frozenset[str]:
        """Return the filters to leave out when subscribing now."""
        places = [(place, case) for place, case in self._cases.items() if place.kind == "subscribe"]
        return frozenset(place.topic for place, case in places if case.aside and case.until > now)

    def overdue(self, now: float) -> frozenset[str]:
        """Return the refused filters that are due for another attempt."""
        cases = self._cases.items()
        return frozenset(place.topic for place, case in cases if place.kind == "subscribe" and case.until <= now)

    def resubscribe_at(self, filters: frozenset[str]) -> float:
        """Return when the next of these filters is ``overdue``; infinity if none of them was refused."""
        cases = [self._cases.get(Place(topic, "subscribe")) for topic in filters]
        return min((case.until for case in cases if case is not None), default=math.inf)

    def no_retained_messages(self) -> Line | None:
        """Record that the broker keeps no retained messages; return what to log."""
        return self._name(("", "other"), Place(""), logging.ERROR, f"{self.broker} {_KEEPS_NOTHING}")

    def ended(self, at: Sequence[Place], reason: Reason, now: float) -> Ruling | None:
        """Record that a connection ended while these places were unacknowledged; return what to do."""
        if reason == "quota":
            self._careful_until = now + _CAREFUL
            self.spacing = min(max(2 * self.spacing, _SPACING), _SPACING_MOST)
            return None
        if not at:
            return None
        if len(at) > 1:
            self._unknown += 1
            if self._unknown >= _UNKNOWN_ENDS:
                self._careful_until = now + _CAREFUL
            return None
        self._unknown = 0
        self._forget_ends_elsewhere(at[0])
        return self._count(at[0], reason, "", now, ended=True)

    def refused(self, place: Place, reason: Reason, words: str, now: float) -> Ruling:
        """Record that the broker refused something, with its words; return what to do."""
        if reason == "quota" and now >= self.quiet_until:  # else it was sent together with the first refused one
            self._quota += 1
            self._careful_until = now + _CAREFUL
            self.quiet_until = now + min(2.0 ** (self._quota - 1), _QUOTA_MOST)
        case = self._cases.get(place)
        if case is not None and case.until > now:  # it was sent together with the message just refused
            return Ruling(place, case.until, None, too_large=False)
        return self._count(place, reason, words, now, ended=False)

    def taken(self, place: Place, now: float) -> Line | None:
        """Record that the broker accepted something; return what to log."""
        self._quota = 0
        if now >= self._careful_until:
            self.spacing = 0.0
        self._cases.pop(place, None)
        for key, places in tuple(self._said.items()):
            places.discard(place)
            if not places and key[1] == "quota":  # each reading may use it up: log it at most once an hour
                if now >= self._careful_until:
                    del self._said[key]
            elif not places:
                del self._said[key]
                return Line(logging.INFO, f"{self.broker} now accepts {_named(place)}")
        return None

    def shortened(self, place: Place, now: float) -> None:
        """Record that the message there is shorter from now on; if it fails once more on its own, it is set aside."""
        self.taken(place, now)
        self._cases[place] = _Case("size", times=_TIMES - 1)
        self._careful_until = now + _CAREFUL

    def forget_subscriptions(self, but: frozenset[str]) -> None:
        """Forget all subscriptions except these."""
        for place in tuple(self._cases):
            if place.kind == "subscribe" and place.topic not in but:
                del self._cases[place]

    def settled(self) -> None:
        """Record that everything is sent and acknowledged."""
        self._unknown = 0

    def unreachable(self) -> None:
        """Record that the next connection failed as well: then no place was the reason for the last end."""
        self._unknown = 0
        self._forget_ends_elsewhere(None)

    def try_again(self, topics: frozenset[str], now: float) -> None:
        """Try these topics again, one at a time; the next failure sets them aside again."""
        for place, case in self._cases.items():
            if place.topic in topics and case.aside:
                case.aside, case.until, case.times, case.pauses = False, -math.inf, _TIMES - 1, 0
                case.tried_again = True
                self._careful_until = now + _CAREFUL

    def _forget_ends_elsewhere(self, here: Place | None) -> None:
        """Reset the counts of other places, since their failures were not in a row."""
        for place, case in tuple(self._cases.items()):
            if place != here and not case.aside and case.ended and not case.tried_again:
                del self._cases[place]

    def _count(self, place: Place, reason: Reason, words: str, now: float, *, ended: bool) -> Ruling:
        case = self._cases.get(place)
        if case is None:
            case = self._cases[place] = _Case(reason, times=_TIMES - 1 if ended and self._has_kin_aside(place) else 0)
        case.reason, case.ended = reason, ended
        case.times += 1
        if case.times >= _TIMES:
            case.aside = True
            case.pauses += 1
            case.until = now + _calm(reason, case.pauses, ended=ended)
        elif reason == "quota" or ended:
            case.until = now
        else:
            case.until = now + _SOON[case.times - 1]
        line = self._say(place, reason, words) if case.aside or not ended else None
        silent = reason in {"hang_up", "silence"} and case.aside
        return Ruling(place, case.until, line, too_large=reason == "size" or silent)

    def _has_kin_aside(self, place: Place) -> bool:
        """Return whether the same topic of another account is set aside."""
        return any(case.aside and case.ended and _kin(other) == _kin(place) for other, case in self._cases.items())

    def _say(self, place: Place, reason: Reason, words: str) -> Line | None:
        """Return the line for a place, once; of retained topics that fail alike, only the first of each group."""
        group = place.topic.partition("/")[0] if reason in {"rights", "quota"} else _kin(place)
        if place.kind == "subscribe":
            purpose = self.purposes.get(place.topic, self.otherwise)
            text = f"{self.broker} {_SUBSCRIPTION[reason]} {place.topic}{_told(words)}: {purpose}. {_READ[reason]}"
            return self._name((purpose, reason), place, logging.ERROR, text)
        text = f"{self.broker} {_PUBLISH[reason].format(place.topic, _told(words))} {_WRITE[reason]}"
        return self._name((group, reason), place, logging.WARNING if reason == "quota" else logging.ERROR, text)

    def _name(self, key: tuple[str, Reason], place: Place, level: int, text: str) -> Line | None:
        said_before = key in self._said
        self._said.setdefault(key, set()).add(place)
        return None if said_before else Line(level, text)


def _kin(place: Place) -> str:
    """Return what a place shares with the same topic of other accounts: its first and last level."""
    first, _, rest = place.topic.partition("/")
    return f"{place.kind} {first}/{rest.rpartition('/')[2]}"


def _calm(reason: Reason, pauses: int, *, ended: bool) -> float:
    """Return for how many seconds to leave a place alone: longer each time if each attempt ends a connection."""
    if ended:
        return min(_CALM * 2.0 ** min(pauses - 1, 8), _CALM_MOST)
    return _QUOTA_MOST if reason == "quota" else _CALM


def _named(place: Place) -> str:
    return f"messages on {place.topic}" if place.kind == "publish" else f"the subscription to {place.topic}"


def _told(words: str) -> str:
    return f" ({words})" if words else ""


_PUBLISH: Final[dict[Reason, str]] = {
    "hang_up": "hangs up whenever something is published to {0}: the daemon leaves it out and tries again later.",
    "silence": "never acknowledges what is published to {0}: the daemon leaves it out and tries again later.",
    "rights": "refuses messages on {0}{1}:",
    "size": "refuses the message on {0}{1}: it is too large.",
    "quota": "accepts no more messages for the moment{1}: the daemon sends them again, more slowly.",
    "other": "refuses messages on {0}{1}: the daemon tries again.",
}
_KEEPS_NOTHING: Final = (
    "keeps no retained messages: subscribers see a value only when it is published, and each restart publishes the "
    "readings of 24 hours again"
)
_SUBSCRIPTION: Final[dict[Reason, str]] = {
    "hang_up": "hangs up at the subscription to",
    "silence": "never confirms the subscription to",
    "rights": "refuses the subscription to",
    "size": "refuses the subscription to",
    "quota": "refuses the subscription to",
    "other": "refuses the subscription to",
}
_ACL: Final = "its access control list must let the user of this daemon"
_LOG: Final = "The broker's log may say why."
_WRITE: Final[dict[Reason, str]] = {
    "hang_up": f"Most likely {_ACL} write there, or the message is too large for it; its log says why.",
    "silence": _LOG,
    "rights": f"{_ACL} write there",
    "size": "Allow larger messages (in Mosquitto: max_packet_size and message_size_limit).",
    "quota": "Allow this client about 20 messages in a burst.",
    "other": _LOG,
}
_READ: Final[dict[Reason, str]] = {
    "hang_up": f"Most likely {_ACL} read there.",
    "silence": _LOG,
    "rights": f"{_ACL[:1].upper()}{_ACL[1:]} read there.",
    "size": _LOG,
    "quota": "Allow this client about 50 subscriptions.",
    "other": f"{_ACL[:1].upper()}{_ACL[1:]} read there.",
}
