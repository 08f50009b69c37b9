"""How things at the broker ended: the words in which its connection, its attempts and its trouble speak. Data alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Protocol = Literal["5", "3.1.1"]
Ending = Literal[
    "protocol_refused", "answered_wrongly", "closed_without_answer", "silent", "will_refused",
    "closed_idle", "closed_busy", "taken_over", "jammed", "unprotected",
]  # fmt: skip
"""What is known of an attempt's or a connection's end, as far as something follows from it.

Of an attempt: ``answered_wrongly``, with something that is not MQTT; ``silent``, not at all; ``will_refused``, since
the broker knows no QoS 1 or nothing retained. Of a connection: ``closed_idle`` and ``closed_busy``, the broker closed
it with nothing or with something on its way; ``jammed``, the broker was there, and acknowledged nothing;
``unprotected``, what must not stay current cannot be taken back there.
"""

Reason = Literal["hang_up", "silence", "rights", "size", "quota", "other"]
"""Why something was not taken: the broker hung up at it, never acknowledged it, or said why it refuses it."""


class Line(NamedTuple):
    """A line for the log, and its level."""

    level: int
    text: str


class Place(NamedTuple):
    """A topic that is published to, or a filter that is subscribed to."""

    topic: str
    kind: Literal["publish", "subscribe"] = "publish"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection came to nothing, or to an end, in words for a person."""

    text: str
    causes: tuple[str, ...] = ()
    ending: Ending | None = None
    at: tuple[Place, ...] = ()
    """What was on its way, the oldest first."""
    idle: float | None = None
    """For how many real seconds nothing had been sent or received, where the end may be due to that."""
    reason: Reason = "hang_up"
    """What the broker said of it, if it did."""
    pinned: bool = False
    """Whether it is known at which place it happened, so that something is left out next time."""
    certain: bool = False
    """Whether the broker itself said that another client has taken over."""


class Refusal(NamedTuple):
    """Why the broker did not take something."""

    reason: Reason
    text: str
