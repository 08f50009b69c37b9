"""What goes to ``reading``, in which order and how fast, and the ``history`` that follows it.

Every reading goes out at least once: it counts as published when the broker has acknowledged it, and only then
moves into the history, which is what a restart continues from. A reading that is still current goes before
those that are only for the record.

The accounts offer readings from their threads; the broker's thread takes and acknowledges.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.messages import Message, State, Topics
    from dexcom2mqtt.readings import Reading

BACKFILL_A_SECOND: Final = 20
"""How many readings that are not current are published in one second at most, of all accounts together."""

_HISTORY_EVERY: Final = 1.0
_REFUSED_AGAIN: Final = 300.0
_DAY_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Offer:
    """A reading to publish: its payload, and until when (by the clock) it is current."""

    reading: Reading
    state: State
    fresh_until: float


@dataclass(slots=True)
class _Account:
    source: str
    published: dict[int, Reading]  # by date
    waiting: dict[int, Offer] = field(default_factory=dict)
    newest_sent: int = 0
    not_before: float = 0.0
    history_due: float = math.inf
    history_sent: float = -math.inf


class Stream:
    """The readings on their way to the broker, of all accounts. ``changed`` is called when there are new ones."""

    def __init__(self, topics: Topics, changed: Callable[[], None] = lambda: None) -> None:
        self._topics = topics
        self._changed = changed
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._on_their_way: dict[Message, tuple[str, int]] = {}
        self._backfilled: deque[float] = deque(maxlen=BACKFILL_A_SECOND)

    def open(self, key: str, source: str, history: Iterable[Reading]) -> None:
        """Begin with an account, of which ``history`` was published before. Nothing of it goes out until then."""
        published = {reading.date: reading for reading in history}
        with self._lock:
            self._accounts[key] = _Account(source, published, newest_sent=max(published, default=0))

    def offer(self, key: str, offers: Iterable[Offer]) -> None:
        """Publish these, too."""
        with self._lock:
            self._accounts[key].waiting.update({offer.reading.date: offer for offer in offers})
        self._changed()

    def take(self, now: float, most: int) -> list[Message]:
        """Return at most that many readings to send now: the current ones first, each group oldest first."""
        with self._lock:
            under_way = set(self._on_their_way.values())
            waiting = [
                (offer.fresh_until <= now or date < account.newest_sent, date, key)
                for key, account in self._accounts.items()
                if now >= account.not_before
                for date, offer in account.waiting.items()
                if (key, date) not in under_way
            ]
            taken = []
            for backfill, date, key in sorted(waiting)[:most]:
                if backfill and not self._may_backfill(now):
                    break
                taken.append(self._send(key, date, backfill=backfill))
            return taken

    def histories(self, now: float) -> list[Message]:
        """Return the histories that have changed and are due: at most one a second for each account."""
        with self._lock:
            due = [(key, account) for key, account in self._accounts.items() if account.history_due <= now]
            for _, account in due:
                account.history_due, account.history_sent = math.inf, now
            return [
                messages.history_message(self._topics, key, account.source, account.published.values())
                for key, account in due
            ]

    def next_at(self, now: float) -> float:
        """Return when there is something to take again, if nothing is offered or acknowledged before that."""
        with self._lock:
            times = [account.history_due for account in self._accounts.values()]
            times += [
                max(account.not_before, self._backfill_at(now))
                for account in self._accounts.values()
                if account.waiting
            ]
            return min(times, default=math.inf)

    def acknowledged(self, message: Message, now: float) -> None:
        """Take note that the broker has a message; those that are none of the stream's are ignored."""
        with self._lock:
            if message not in self._on_their_way:
                return
            key, date = self._on_their_way.pop(message)
            account = self._accounts[key]
            account.published[date] = account.waiting.pop(date).reading
            oldest = max(account.published) - _DAY_MS
            account.published = {at: account.published[at] for at in sorted(account.published) if at >= oldest}
            account.history_due = min(account.history_due, max(now, account.history_sent + _HISTORY_EVERY))

    def refused(self, message: Message, now: float) -> None:
        """Take note that the broker does not take a message: it stays unpublished, and is tried again calmly."""
        with self._lock:
            if message in self._on_their_way:
                key, _ = self._on_their_way.pop(message)
                self._accounts[key].not_before = now + _REFUSED_AGAIN

    def lost(self) -> None:
        """Take note that the connection ended: what was not acknowledged is unpublished."""
        with self._lock:
            self._on_their_way.clear()
            for account in self._accounts.values():
                account.newest_sent = max(account.published, default=0)

    def _send(self, key: str, date: int, *, backfill: bool) -> Message:
        account = self._accounts[key]
        message = messages.reading_message(self._topics, key, account.waiting[date].state, backfill=backfill)
        account.newest_sent = max(account.newest_sent, date)
        self._on_their_way[message] = (key, date)
        return message

    def _may_backfill(self, now: float) -> bool:
        if self._backfill_at(now) > now:
            return False
        self._backfilled.append(now)
        return True

    def _backfill_at(self, now: float) -> float:
        return now if len(self._backfilled) < BACKFILL_A_SECOND else self._backfilled[0] + 1.0
