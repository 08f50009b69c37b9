"""What goes to ``reading``, in which order and how fast, and the ``history`` that follows it.

Every reading is sent at least once. It counts as published once the broker has acknowledged it; only then does it
enter the history, from which a restart continues, and the count of its day. Readings that are still current go before
those that are only for the record.

The accounts' threads offer readings; the broker's thread takes and acknowledges them.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final, TypeVar

from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.days import days_message
from dexcom2mqtt.messages.history import shortened
from dexcom2mqtt.messages.state import reading_message, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.messages.days import Days, Tally
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.state import State
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.topics import Topics

BACKFILL_A_SECOND: Final = 20
"""The most readings that are published as backfill in one second, for all accounts together.

It is also the most that may be sent before a history has them: so many are repeated if everything stops just then.
"""

_HISTORY_EVERY: Final = 1.0
_LEAST: Final = 2048
"""Bytes: two hours of history, or two weeks of days. If the broker refuses so little, size is not the problem."""
_SHORTENED: Final = ("history", "days")
"""The topics whose payload is shortened to the size that the broker accepts."""
_DAY_MS: Final = DAY * 1000
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
class _Account:
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

    def count(self, offer: Offer) -> None:
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
        """Return its first reading to send, as ``_in_order`` yields it; None if nothing may be sent.

        Backfill never becomes current again, so that result is kept.
        """
        if not self.waiting or self.not_before > now:
            return None
        first = self.backfill_first or next(_in_order(key, self, now), None)
        if first is not None and first[0]:
            self.backfill_first = first
        return first


class Stream:
    """The readings of all accounts on their way to the broker. ``changed`` is called when there are new ones."""

    def __init__(self, topics: Topics, changed: Callable[[], None] = lambda: None) -> None:
        self._topics = topics
        self._changed = changed
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._busy: dict[str, _Account] = {}  # of a thousand, only a few have something to do at a time
        self._on_their_way: dict[Message, list[tuple[str, Offer]]] = {}  # two messages may be identical
        self._backfilled: deque[float] = deque(maxlen=BACKFILL_A_SECOND)

    def open(  # noqa: PLR0913  # the last two are passed by name
        self,
        key: str,
        source: str,
        history: Iterable[Reading],
        doubtful: Iterable[Reading] = (),
        since: int = 0,
        *,
        tally: Tally | None = None,
        counted: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin with an account; ``history`` and ``doubtful`` were published before. Nothing is sent before this call.

        Readings older than ``since`` (Unix milliseconds) count as published, too: the history had no room for them.
        The history is sent again, so that the picture has it, for a broker that loses its retained messages.
        ``tally`` is the count so far, if days are counted; ``counted`` is called for each further reading counted.
        """
        before = {(reading.date, False): reading for reading in history}
        published = _of_the_last(_DAY_MS, before | {(reading.date, True): reading for reading in doubtful})
        with self._lock:
            account = self._accounts[key] = _Account(source, published, unsaved=len(published), since=since)
            account.tally, account.counted = tally, counted
            account.changed = {"history"} if published else set()
            account.note_days()
            self._changed_in(key)

    def tally(self, key: str) -> Tally | None:
        """Return the count of an account so far; None if days are not counted, or the account has not begun."""
        with self._lock:
            return self._accounts[key].tally if key in self._accounts else None

    def settle(self, key: str, earlier: Days | None, today: int) -> None:
        """Stop waiting for the earlier count: add the readings counted since, and send the days from now on.

        ``today`` is the number of the wearer's day. Without an ``earlier`` count, counting starts over.
        """
        with self._lock:
            account = self._accounts[key]
            if account.tally is not None:
                account.tally = account.tally.joined(earlier, today)
                account.note_days()
                self._changed_in(key)
        self._changed()

    def offer(self, key: str, offers: Iterable[Offer]) -> None:
        """Publish these, too. If nothing can be sent for long, those two days older than the newest are dropped."""
        with self._lock:
            account = self._accounts[key]
            new = {offer.key: offer for offer in offers if offer.reading.date >= account.since}
            account.waiting = _of_the_last(2 * _DAY_MS, account.waiting | new)
            self._changed_in(key)
        self._changed()

    def take(self, now: float, most: int) -> list[Message]:
        """Return at most that many readings to send now: current ones first, each group oldest first."""
        with self._lock:
            taken, backfill = [], self._backfill_at(now) <= now
            firsts = [first for key, each in self._busy.items() if (first := each.first(key, now)) is not None]
            soon = heapq.nsmallest(most, (first for first in firsts if backfill or not first[0]))
            # Merged, not sorted: after a first start, hundreds of thousands of readings may wait for hours.
            waiting = heapq.merge(*(_in_order(key, self._accounts[key], now) for _, _, key in soon))
            for backfill, which, key in islice(waiting, most):
                if backfill:
                    if self._backfill_at(now) > now:
                        break
                    self._backfilled.append(now)
                taken.append(self._send(key, which, backfill=backfill))
            return taken

    def histories(self, now: float) -> list[Message]:
        """Return the changed histories and days that are due: at most once a second for each account.

        They are sent together, so that a restart finds the same readings published and counted.
        """
        with self._lock:
            accounts = self._busy.items()
            due = [(key, account) for key, account in accounts if account.changed and account.history_due <= now]
            messages = [message for key, account in due for message in account.save(self._topics, key, now)]
            for key, _ in due:
                self._changed_in(key)
            return messages

    def next_at(self, now: float) -> float:
        """Return when there is something to take next, if nothing is offered or acknowledged before."""
        with self._lock:
            accounts, backfill_at = self._busy.values(), self._backfill_at(now)
            times = [account.history_due for account in accounts]
            times += [
                max(account.not_before, backfill_at)
                for account in accounts
                if not account.waiting.keys() <= account.sent
            ]
            return min(times, default=math.inf)

    def acknowledged(self, message: Message) -> None:
        """Record that the broker has a message; messages that are not the stream's are ignored."""
        with self._lock:
            arrived = self._arrived(message)
            if arrived is None:
                return
            key, offer = arrived
            account = self._accounts[key]
            account.waiting.pop(offer.key, None)
            account.count(offer)
            account.published = _of_the_last(_DAY_MS, account.published | {offer.key: offer.reading})
            account.unsaved += 1
            account.changed.add("history")
            self._changed_in(key)

    def refused(self, message: Message, until: float) -> None:
        """Record that the broker refused a message: it stays unpublished, and is tried again after that time."""
        with self._lock:
            arrived = self._arrived(message)
            if arrived is not None:
                self._accounts[arrived[0]].not_before = until

    def hold(self, topic: str, until: float) -> None:
        """Publish no reading on this topic before that time: the broker refused one."""
        with self._lock:
            for key, account in self._accounts.items():
                if topic == self._topics.of(key, "reading"):
                    account.not_before = until

    def fit(self, most_bytes: Callable[[str], float]) -> None:
        """Shorten every history and all days to the size that this broker accepts on their topics."""
        with self._lock:
            for key, account in self._accounts.items():
                for leaf, room in account.rooms.items():
                    most = most_bytes(self._topics.of(key, leaf))
                    if most < room.most_bytes:
                        room.most_bytes = most
                        account.write_again(leaf)
                        self._changed_in(key)

    def shorten(self, topic: str, most_bytes: float) -> bool:
        """Shorten a history or days to that many bytes; return False if it is of no use, or for other topics."""
        with self._lock:
            for key, account in self._accounts.items():
                for leaf, room in account.rooms.items():
                    if topic == self._topics.of(key, leaf) and room.may_shorten:
                        account.write_again(leaf)
                        self._changed_in(key)
                        return room.shorten(most_bytes)
            return False

    def lost(self) -> None:
        """Record that the connection ended: unacknowledged readings count as unpublished."""
        with self._lock:
            self._on_their_way.clear()
            for key, account in self._accounts.items():
                account.sent.clear()
                self._changed_in(key)

    def _changed_in(self, key: str) -> None:
        """Update whether an account has something to do."""
        account = self._accounts[key]
        account.backfill_first = None
        if account.busy:
            self._busy[key] = account
        else:
            self._busy.pop(key, None)

    def _send(self, key: str, which: Key, *, backfill: bool) -> Message:
        account = self._accounts[key]
        offer = account.waiting[which]
        account.sent.add(which)
        self._changed_in(key)
        message = reading_message(self._topics, key, offer.state(), backfill=backfill)
        self._on_their_way.setdefault(message, []).append((key, offer))
        return message

    def _arrived(self, message: Message) -> tuple[str, Offer] | None:
        """Remove a message from those in flight; return its account and reading, None if it is not one of these."""
        same = self._on_their_way.get(message)
        if not same:
            return None
        if len(same) == 1:
            del self._on_their_way[message]
        key, offer = same.pop(0)
        self._accounts[key].sent.discard(offer.key)
        self._changed_in(key)
        return key, offer

    def _backfill_at(self, now: float) -> float:
        if len(self._on_their_way) + sum(account.unsaved for account in self._busy.values()) >= BACKFILL_A_SECOND:
            return math.inf  # wait for an acknowledgement or a history
        return now if len(self._backfilled) < BACKFILL_A_SECOND else self._backfilled[0] + 1.0


def _in_order(key: str, account: _Account, now: float) -> Iterator[tuple[bool, Key, str]]:
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


def _of_the_last(milliseconds: int, by_key: dict[Key, _T]) -> dict[Key, _T]:
    """Return, in order, the entries that are at most that much older than the newest."""
    oldest = max(by_key, default=(0, False))[0] - milliseconds
    return {key: by_key[key] for key in sorted(by_key) if key[0] >= oldest}
