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
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.messages.state import reading_message
from dexcom2mqtt.messages.unpublished import DAY_MS, OnTheirWay, Unpublished, in_order, of_the_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.messages.days import Days, Tally
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.unpublished import Key, Offer
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.topics import Topics

BACKFILL_A_SECOND: Final = 20
"""The most readings that are published as backfill in one second, for all accounts together.

It is also the most that may be sent before a history has them: so many are repeated if everything stops just then.
"""


class Stream:
    """The readings of all accounts on their way to the broker. ``changed`` is called when there are new ones."""

    def __init__(self, topics: Topics, changed: Callable[[], None] = lambda: None) -> None:
        self._topics = topics
        self._changed = changed
        self._lock = threading.Lock()
        self._accounts: dict[str, Unpublished] = {}
        self._withheld = frozenset[str]()
        self._busy: dict[str, Unpublished] = {}  # of a thousand, only a few have something to do at a time
        self._on_their_way = OnTheirWay()
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
        published = of_the_last(DAY_MS, before | {(reading.date, True): reading for reading in doubtful})
        with self._lock:
            account = self._accounts[key] = Unpublished(source, published, unsaved=len(published), since=since)
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
            self._accounts[key].settle(earlier, today)
            self._changed_in(key)
        self._changed()

    def offer(self, key: str, offers: Iterable[Offer]) -> None:
        """Publish these, too. If nothing can be sent for long, those two days older than the newest are dropped."""
        with self._lock:
            account = self._accounts[key]
            new = {offer.key: offer for offer in offers if offer.reading.date >= account.since}
            account.waiting = of_the_last(2 * DAY_MS, account.waiting | new)
            self._changed_in(key)
        self._changed()

    def take(self, now: float, most: int) -> list[Message]:
        """Return at most that many readings to send now: current ones first, each group oldest first."""
        with self._lock:
            taken, backfill = [], self._backfill_at(now) <= now
            mine = [(key, each) for key, each in self._busy.items() if key not in self._withheld]
            firsts = [first for key, each in mine if (first := each.first(key, now)) is not None]
            soon = heapq.nsmallest(most, (first for first in firsts if backfill or not first[0]))
            # Merged, not sorted: after a first start, hundreds of thousands of readings may wait for hours.
            waiting = heapq.merge(*(in_order(key, self._accounts[key], now) for _, _, key in soon))
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
            accounts, backfill_at = self._busy.items(), self._backfill_at(now)
            times = [account.history_due for _, account in accounts]
            times += [
                max(account.not_before, backfill_at)
                for key, account in accounts
                if key not in self._withheld and not account.waiting.keys() <= account.sent
            ]
            return min(times, default=math.inf)

    def acknowledged(self, message: Message) -> None:
        """Record that the broker has a message; messages that are not the stream's are ignored."""
        with self._lock:
            if (arrived := self._arrived(message)) is not None:
                key, offer = arrived
                self._accounts[key].arrived(offer)
                self._changed_in(key)

    def refused(self, message: Message, until: float) -> None:
        """Record that the broker refused a message: it stays unpublished, and is tried again after that time."""
        with self._lock:
            if (arrived := self._arrived(message)) is not None:
                self._accounts[arrived[0]].not_before = until

    def hold(self, topic: str, until: float) -> None:
        """Publish no reading on this topic before that time: the broker refused one."""
        key, leaf = self._topics.split(topic)
        with self._lock:
            if leaf == "reading" and key in self._accounts:
                self._accounts[key].not_before = until

    def withhold(self, keys: frozenset[str]) -> None:
        """Publish no readings of these accounts until the next call."""
        self._withheld = keys
        self._changed()

    def is_on_its_way(self, key: str) -> bool:
        """Return whether a reading of an account was sent and is not yet acknowledged."""
        with self._lock:
            return key in self._accounts and bool(self._accounts[key].sent)

    def forget(self, key: str) -> None:
        """Remove an account whose loop has ended."""
        with self._lock:
            for accounts in (self._accounts, self._busy):
                accounts.pop(key, None)
            self._on_their_way.forget(key)

    def fit(self, most_bytes: Callable[[str], float]) -> None:
        """Shorten every history and all days to the size that this broker accepts on their topics."""
        with self._lock:
            for key, account in self._accounts.items():
                if account.fit(partial(self._topics.of, key), most_bytes):
                    self._changed_in(key)

    def shorten(self, topic: str, most_bytes: float) -> bool:
        """Shorten a history or days to that many bytes; return False if it is of no use, or for other topics."""
        key, leaf = self._topics.split(topic)
        with self._lock:
            room = self._accounts[key].rooms.get(leaf) if key in self._accounts else None
            if room is None or not room.may_shorten:
                return False
            self._accounts[key].write_again(leaf)
            self._changed_in(key)
            return room.shorten(most_bytes)

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
        self._on_their_way.add(message, key, offer)
        return message

    def _arrived(self, message: Message) -> tuple[str, Offer] | None:
        arrived = self._on_their_way.take(message)
        if arrived is not None:
            key, offer = arrived
            self._accounts[key].sent.discard(offer.key)
            self._changed_in(key)
        return arrived

    def _backfill_at(self, now: float) -> float:
        if len(self._on_their_way) + sum(account.unsaved for account in self._busy.values()) >= BACKFILL_A_SECOND:
            return math.inf  # wait for an acknowledgement or a history
        return now if len(self._backfilled) < BACKFILL_A_SECOND else self._backfilled[0] + 1.0
