"""Turns the messages that a subscriber has received so far, and the time, into what a person is shown.

Owns the rule that a value is current only while ``bridge/state`` and ``availability`` are both ``online``, and the
words. Pure: it knows no terminal, no connection, and only the messages of the daemon. Anybody who reaches the broker
can publish anything, so nothing in a payload is taken for granted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import parse_iso
from dexcom2mqtt.demo.plot import Point
from dexcom2mqtt.readings import RANGES
from dexcom2mqtt.topics import RETAINED, Topics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dexcom2mqtt.config.values import Unit

MISSING: Final = "---"
"""Shown if no value is current."""

_ASCII_ARROWS: Final = {"↑↑": "^^", "↑": "^", "↗": "/^", "→": "->", "↘": "\\v", "↓": "v", "↓↓": "vv"}
_LIMITS: Final = {"low": "LOW", "high": "HIGH"}
_FIRST: Final = (
    "value",
    "arrow",
    "delta",
    "range",
    "trend",
    "availability",
    "status",
    "statistics",
    "reading",
    "history",
    "state",
)
_FAR: Final = 1e11  # Unix seconds; later times cannot be shown as a date
_SECONDS: Final = 600  # shorter durations are shown with seconds
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that a subscriber received, made printable; ``at`` is when, in Unix seconds by the viewer's clock."""

    topic: str
    payload: str
    at: float

    @classmethod
    def of(cls, topic: str, payload: bytes, at: float) -> Heard:
        """Make one from a received message; control characters become ``?``."""
        return cls(_printable(topic), _printable(payload.decode(errors="replace")), at)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was received so far: the last message of each topic, and the counts."""

    topics: Mapping[str, Heard] = field(default_factory=dict)
    readings: int = 0
    """New readings on the topic ``reading``."""
    earlier: int = 0
    """Backfilled readings on the topic ``reading``."""

    def then(self, messages: Iterable[Heard]) -> Seen:
        """Return this with further messages, in order."""
        topics, readings, earlier = dict(self.topics), self.readings, self.earlier
        for message in messages:
            topics[message.topic] = message
            if message.topic.endswith("/reading"):
                backfill = _object(message.payload).get("backfill") is True
                readings, earlier = readings + (not backfill), earlier + backfill
        # An empty payload clears a retained message.
        return replace(
            self, topics={topic: each for topic, each in topics.items() if each.payload}, readings=readings,
            earlier=earlier,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A topic below ``base_topic`` and its payload; ``new`` if it has just been received."""

    topic: str
    payload: str
    new: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """What a person is shown of one account at one moment; a text is empty if there is nothing to say."""

    name: str
    value: str
    """The number, ``LOW``, ``HIGH``, or ``---`` if none is current."""
    unit: Unit
    arrow: str
    range: str
    """One of `RANGES`, or empty if no value is current."""
    words: str
    """The range and the trend."""
    delta: str
    age: str
    in_range: str
    """The percentage of the last 24 hours in range, in words."""
    share: str
    daemon: tuple[str, ...]
    """Lines that say what the daemon does."""
    clock: str
    points: tuple[Point, ...]
    """The readings of the last 24 hours, oldest first."""
    now: float
    offset_min: int
    topics: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Viewer:
    """Shows one account below ``topics``.

    ``fresh_for`` is how long a message counts as new, in seconds of the viewer's clock.
    """

    account: str
    name: str
    topics: Topics
    fresh_for: float = 90.0

    def show(self, seen: Seen, now: float) -> Shown:
        """Return what to show at ``now``, Unix seconds by the viewer's clock."""
        state = _object(self._payload(seen, "state"))
        status = _object(self._payload(seen, "status"))
        points = _points(_object(self._payload(seen, "history")))
        offset = _offset_min(state)
        current = state if self._is_current(seen) else {}
        return Shown(
            name=self.name,
            value=_value(current),
            unit=_unit(state),
            arrow=_text(current, "arrow"),
            range=_range(current),
            words=_words(current),
            delta=_delta(current),
            age=_age(state, now, current=bool(current)),
            in_range=_in_range(_object(self._payload(seen, "statistics"))),
            share=_text(status, "share"),
            daemon=self._daemon(seen, status, now, offset),
            clock=_clock(now, offset),
            points=points,
            now=now,
            offset_min=offset,
            topics=self._lines(seen, now),
        )

    def _payload(self, seen: Seen, leaf: str) -> str:
        return _payload(seen, self.topics.of(self.account, leaf))

    def _is_current(self, seen: Seen) -> bool:
        said = {_payload(seen, self.topics.bridge_state), self._payload(seen, "availability")}
        return said == {"online"}

    def _daemon(self, seen: Seen, status: Mapping[str, object], now: float, offset: int) -> tuple[str, ...]:
        bridge = _payload(seen, self.topics.bridge_state) or "not seen yet"
        share = f"{_text(status, 'share') or '?'}: {_text(status, 'message')}" if status else "not seen yet"
        return (f"daemon {bridge}, Share {share}", *_plans(status, now, offset))

    def _lines(self, seen: Seen, now: float) -> tuple[Line, ...]:
        """List the topics, the most useful first, because a small terminal shows only a few."""
        bridge = [self.topics.bridge_state, *(self.topics.of(self.account, leaf) for leaf in _FIRST)]
        others = [self.topics.of(self.account, leaf) for leaf in RETAINED]
        known = [topic for topic in dict.fromkeys([*bridge, *others, self.topics.bridge_info]) if topic in seen.topics]
        return tuple(
            Line(
                topic.removeprefix(f"{self.topics.base}/"),
                seen.topics[topic].payload,
                now - seen.topics[topic].at < self.fresh_for,
            )
            for topic in known
        )


def closing(seen: Seen) -> str:
    """Return the last line of the demo: how many readings it showed."""
    many = "1 reading" if seen.readings == 1 else f"{seen.readings} readings"
    return f"the demo has ended: {many} shown as they arrived, and {seen.earlier} earlier ones"


def in_ascii(text: str) -> str:
    """Return an arrow, or any text, for a terminal that shows only ASCII."""
    return _ASCII_ARROWS.get(text, text.encode("ascii", "replace").decode())


def span(seconds: float) -> str:
    """Return a duration in words: ``45 s``, ``2 min 05 s``, ``12 min``, ``1 h 05 min``, ``2 days``."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _SECONDS:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < 2 * _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} days"


def _plans(status: Mapping[str, object], now: float, offset: int) -> tuple[str, ...]:
    """Say when the daemon asks next, what it has learned, and how many requests that took."""
    if not status:
        return ()
    next_poll, delay = parse_iso(status.get("next_poll_at")), _number(status, "delay")
    requests, sign_ins = _number(status, "requests_24h"), _number(status, "logins_24h")
    polls = "asks Share now"
    if next_poll is not None and next_poll > now:
        polls = f"asks Share in {span(next_poll - now)}, at {_clock(next_poll, offset)}"
    learned = "has not learned yet" if delay is None else f"has learned that a reading takes {delay:.1f} s to get there"
    return (polls, learned, f"24 hours: {requests or 0:g} requests, {sign_ins or 0:g} sign-ins")


def _value(current: Mapping[str, object]) -> str:
    value = _number(current, "value")
    if value is None:
        return MISSING
    written = f"{value:.1f}" if _unit(current) == "mmol/L" else f"{value:g}"
    return _LIMITS.get(_text(current, "out_of_range"), written)


def _delta(current: Mapping[str, object]) -> str:
    delta, unit = _number(current, "delta"), _unit(current)
    if delta is None:
        return ""
    return f"{delta:+.1f} {unit}" if unit == "mmol/L" else f"{delta:+g} {unit}"


def _range(current: Mapping[str, object]) -> str:
    name = _text(current, "range")
    return name if name in RANGES and _number(current, "value") is not None else ""


def _words(current: Mapping[str, object]) -> str:
    said = [_range(current).replace("_", " "), _text(current, "description")]
    return ", ".join(word for word in said if word)


def _age(state: Mapping[str, object], now: float, *, current: bool) -> str:
    date = _number(state, "date")
    if date is None:
        return "no reading yet"
    ago = f"{span(max(0.0, now - date / 1000))} ago"
    return ago if current else f"no current reading; the last was {ago}"


def _in_range(statistics: Mapping[str, object]) -> str:
    day = statistics.get("24h")
    part = _number(day, "in_range") if isinstance(day, dict) else None
    return "" if part is None else f"{part:.0f} % of 24 hours in range"


def _points(history: Mapping[str, object]) -> tuple[Point, ...]:
    readings = history.get("readings")
    found = [_point(entry) for entry in readings] if isinstance(readings, list) else []
    return tuple(sorted(point for point in found if point is not None))


def _point(entry: object) -> Point | None:
    if not isinstance(entry, dict):
        return None
    date, mg_dl = _number(entry, "date"), _number(entry, "mg_dl")
    return None if date is None or mg_dl is None else Point(date / 1000, round(mg_dl))


def _unit(state: Mapping[str, object]) -> Unit:
    return "mmol/L" if state.get("unit") == "mmol/L" else "mg/dL"


def _offset_min(state: Mapping[str, object]) -> int:
    """Return how many minutes east of UTC the wearer lives."""
    try:
        offset = datetime.fromisoformat(_text(state, "measurement_timestamp")).utcoffset()
    except ValueError:
        offset = None
    return 0 if offset is None else offset // timedelta(minutes=1)


def _clock(unix: float, offset_min: int) -> str:
    if unix > _FAR:
        return "?"
    return f"{datetime.fromtimestamp(unix + offset_min * 60, UTC):%H:%M:%S}"


def _payload(seen: Seen, topic: str) -> str:
    message = seen.topics.get(topic)
    return message.payload if message else ""


def _object(payload: str) -> dict[str, object]:
    try:
        parsed = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _text(of: Mapping[str, object], key: str) -> str:
    text = of.get(key)
    return text if isinstance(text, str) else ""


def _number(of: Mapping[str, object], key: str) -> float | None:
    number = of.get(key)
    plausible = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < _FAR * 1000
    return float(number) if plausible and isinstance(number, int | float) else None


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
