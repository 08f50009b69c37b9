"""Data about how connections and messages at the broker ended, for connection, attempts and trouble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Protocol = Literal["5", "3.1.1"]
Ending = Literal[
    "protocol_refused", "answered_wrongly", "closed_without_answer", "silent", "will_refused",
    "closed_idle", "closed_busy", "taken_over", "jammed", "unprotected",
]  # fmt: skip
"""How an attempt or a connection ended, if anything follows from it.

An attempt: ``answered_wrongly``, with something that is not MQTT; ``silent``, without an answer; ``will_refused``, as
the broker does not support QoS 1 or retained messages. A connection: ``closed_idle`` and ``closed_busy``, the broker
closed it with nothing or something unacknowledged; ``jammed``, the broker answered pings but acknowledged nothing;
``unprotected``, the broker refuses the topics that say whether a value is current.
"""

Reason = Literal["hang_up", "silence", "rights", "size", "quota", "other"]
"""Why something failed: the broker hung up, never acknowledged it, or gave a reason for refusing it."""


class Line(NamedTuple):
    """A log line and its level."""

    level: int
    text: str


class Place(NamedTuple):
    """A topic that is published to, or a filter that is subscribed to."""

    topic: str
    kind: Literal["publish", "subscribe"] = "publish"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection failed or ended, in words for the user."""

    text: str
    causes: tuple[str, ...] = ()
    ending: Ending | None = None
    at: tuple[Place, ...] = ()
    """What was unacknowledged, the oldest first."""
    idle: float | None = None
    """Real seconds since anything was sent or received, if that may be the reason for the end."""
    reason: Reason = "hang_up"
    """The broker's reason, if it gave one."""
    pinned: bool = False
    """Whether the place that caused it is known, so that it is left out next time."""
    certain: bool = False
    """Whether the broker itself said that another client has taken over."""


class Refusal(NamedTuple):
    """Why the broker refused something."""

    reason: Reason
    text: str
