"""The readings of one account on their way to the broker: what waits, what was sent, what its history has. Pure.

``stream`` decides between the accounts. What is not acknowledged is still unpublished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Final, TypeVar

from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.days import days_message
from dexcom2mqtt.messages.history import shortened
from dexcom2mqtt.messages.state import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.messages.days import Days, Tally
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.state import State
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.topics import Topics

_HISTORY_EVERY: Final = 1.0
_LEAST: Final = 2048
"""Bytes: two hours of history, or two weeks of days. If the broker refuses so little, size is not the problem."""
_SHORTENED: Final = ("history", "days")
"""The topics whose payload is shortened to the size that the broker accepts."""
DAY_MS: Final = DAY * 1000
_T = TypeVar("_T")
Key = tuple[int, bool]
"""A reading's date, and whether it is doubtful."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A reading to publish: the parts of its payload, and until when (by the clock) it is current."""

    reading: Reading
    delta: int | None
    """How many mg/dL it is above the reading before it."""
    account: Account
    fresh_until: float
    doubtful: bool = False
    """Whether its stamp may be false. Such a reading is never current, and one with the same stamp may be right."""

    @property
    def key(self) -> Key:
        """Identifies it within its account."""
        return self.reading.date, self.doubtful

    def state(self) -> State:
        """Return its state. Made only for sending, because the states of a day take a quarter of a megabyte."""
        return state_of(self.reading, self.delta, self.account)


@dataclass(slots=True)
class _Room:
    """How much the broker accepts on one topic."""

    most_bytes: float = math.inf
    may_shorten: bool = True  # until shortening has proved useless

    def shorten(self, most_bytes: float) -> bool:
        """Limit the size; return whether that may help. If not, the full size is sent from now on."""
        self.may_shorten = most_bytes >= _LEAST
        self.most_bytes = most_bytes if self.may_shorten else math.inf
        return self.may_shorten


@dataclass(slots=True)
class Unpublished:
    """The readings of one account."""

    source: str
    published: dict[Key, Reading]  # in order
    unsaved: int  # how many of them are missing from the history as last sent
    waiting: dict[Key, Offer] = field(default_factory=dict)  # in order
    sent: set[Key] = field(default_factory=set)  # sent, but not yet acknowledged
    not_before: float = 0.0
    since: int = 0  # older readings count as published
    tally: Tally | None = None
    counted: Callable[[], None] = lambda: None
    rooms: dict[str, _Room] = field(default_factory=lambda: {leaf: _Room() for leaf in _SHORTENED})
    changed: set[str] = field(default_factory=set)  # since it was last sent
    history_sent: float = -math.inf
    backfill_first: tuple[bool, Key, str] | None = None  # what ``first`` found, until something changes

    @property
    def history_due(self) -> float:
        """When the history or the days may be sent next; infinity if neither has changed."""
        return self.history_sent + _HISTORY_EVERY if self.changed else math.inf

    def split(self) -> tuple[list[Reading], list[Reading]]:
        """Return the published readings: the right ones and the doubtful ones."""
        right = [reading for (_, doubtful), reading in self.published.items() if not doubtful]
        return right, [reading for (_, doubtful), reading in self.published.items() if doubtful]

    def save(self, topics: Topics, key: str, now: float) -> list[Message]:
        """Write what has changed, no larger than the broker accepts."""
        changed, self.changed, self.unsaved, self.history_sent = self.changed, set(), 0, now
        messages, (most, most_days) = [], (self.rooms[leaf].most_bytes for leaf in _SHORTENED)
        if "history" in changed:
            right, doubtful = self.split()
            messages.append(shortened(topics, key, self.source, right, doubtful, since=self.since, most_bytes=most))
        if "days" in changed and self.tally is not None:
            messages.append(days_message(topics, key, self.source, self.tally.days, most_days))
        return messages

    def settle(self, earlier: Days | None, today: int) -> None:
        """Add the readings counted so far to the earlier count, if there is one, and mark the days for sending."""
        if self.tally is not None:
            self.tally = self.tally.joined(earlier, today)
            self.note_days()

    def arrived(self, offer: Offer) -> None:
        """Record that the broker has a reading: it is published."""
        self.waiting.pop(offer.key, None)
        self._count(offer)
        self.published = of_the_last(DAY_MS, self.published | {offer.key: offer.reading})
        self.unsaved += 1
        self.changed.add("history")

    def _count(self, offer: Offer) -> None:
        """Count a reading for its day, the first time that it is published."""
        if self.tally is None or offer.doubtful or offer.key in self.published:
            return
        self.tally = self.tally.count(offer.reading)
        self.note_days()
        self.counted()

    def note_days(self) -> None:
        """Mark the days for sending, unless an earlier count may still arrive."""
        if self.tally is not None and self.tally.waiting is None:
            self.changed.add("days")

    def fit(self, topic: Callable[[str], str], most_bytes: Callable[[str], float]) -> bool:
        """Shorten the history and the days to what the broker accepts on their topics; return whether that was new."""
        smaller = {leaf: most for leaf in self.rooms if (most := most_bytes(topic(leaf))) < self.rooms[leaf].most_bytes}
        for leaf, most in smaller.items():
            self.rooms[leaf].most_bytes = most
            self.write_again(leaf)
        return bool(smaller)

    def write_again(self, leaf: str) -> None:
        """Write a history or the days again at once, because their size must change."""
        if leaf == "history":
            self.changed.add(leaf)
        else:
            self.note_days()
        self.history_sent = -math.inf

    @property
    def busy(self) -> bool:
        """Whether there is something to publish or to save, now or later."""
        return bool(self.waiting or self.changed)

    def first(self, key: str, now: float) -> tuple[bool, Key, str] | None:
        """Return its first reading to send, as ``in_order`` yields it; None if nothing may be sent.

        Backfill never becomes current again, so that result is kept.
        """
        if not self.waiting or self.not_before > now:
            return None
        first = self.backfill_first or next(in_order(key, self, now), None)
        if first is not None and first[0]:
            self.backfill_first = first
        return first


class OnTheirWay:
    """The readings that were sent and are not yet acknowledged, by their messages, which may be identical."""

    def __init__(self) -> None:
        self._sent: dict[Message, list[tuple[str, Offer]]] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def add(self, message: Message, key: str, offer: Offer) -> None:
        """Record that a reading of an account was sent."""
        self._sent.setdefault(message, []).append((key, offer))

    def take(self, message: Message) -> tuple[str, Offer] | None:
        """Remove a message, and return its account and its reading; None if it is not one of these."""
        same = self._sent.get(message)
        if not same:
            return None
        if len(same) == 1:
            del self._sent[message]
        return same.pop(0)

    def forget(self, key: str) -> None:
        """Remove the messages of an account."""
        left = {message: [each for each in sent if each[0] != key] for message, sent in self._sent.items()}
        self._sent = {message: sent for message, sent in left.items() if sent}

    def clear(self) -> None:
        """Remove all."""
        self._sent.clear()


def in_order(key: str, account: Unpublished, now: float) -> Iterator[tuple[bool, Key, str]]:
    """Yield the readings of an account to send, current ones first: whether it is backfill, its key, and the account.

    Backfill is every reading that is no longer current, older than one sent before, or doubtful.
    """
    newest = max(_newest(reversed(account.published)), _newest(sorted(account.sent, reverse=True)))
    newer = takewhile(lambda which: which[0] > newest, filter(_is_right, reversed(account.waiting)))
    current = list(takewhile(lambda which: account.waiting[which].fresh_until > now, newer))
    yield from ((False, which, key) for which in reversed(current))
    yield from ((True, which, key) for which in account.waiting if which not in account.sent and which not in current)


def _is_right(which: Key) -> bool:
    return not which[1]


def _newest(keys: Iterable[Key]) -> int:
    """Return the date of the first reading that is not doubtful, 0 if there is none."""
    return next((date for date, doubtful in keys if not doubtful), 0)


def of_the_last(milliseconds: int, by_key: dict[Key, _T]) -> dict[Key, _T]:
    """Return, in order, the entries that are at most that much older than the newest."""
    oldest = max(by_key, default=(0, False))[0] - milliseconds
    return {key: by_key[key] for key in sorted(by_key) if key[0] >= oldest}
