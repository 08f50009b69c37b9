"""Turn Share's answers into messages for the broker: the readings of one account, and which of them is current.

It connects the ledger (what is new), the stamps (what can be trusted), the stream (every reading, once), the mirror
(the newest one) and the counting. It knows neither the session nor the schedule, and does not report the status.
"""

from __future__ import annotations

import logging
import math
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.account.ledger import Ledger
from dexcom2mqtt.account.report import Kept
from dexcom2mqtt.account.retained import NotYetError
from dexcom2mqtt.account.stamps import Stamps
from dexcom2mqtt.account.verdict import Found
from dexcom2mqtt.clock import DAY, local
from dexcom2mqtt.messages.history import History, parse_history
from dexcom2mqtt.messages.overview import Overview, overview_of
from dexcom2mqtt.messages.state import fresh_messages, stale_messages, state_of, summary, without_reading
from dexcom2mqtt.messages.unpublished import Offer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.account.counting import Counting
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.status import Past
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.share import Batch
    from dexcom2mqtt.share.server_time import ShareTime
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)

_READINGS_PER_HOUR: Final = 12  # 3600 / schedule.INTERVAL
_SEEN_LATELY: Final = 4 * 3600.0
_SAME_WITHIN: Final = 5.0  # seconds: each answer of Share refines the time a little


class _Published(NamedTuple):
    """What was published before the start: the history, not yet parsed, and what the status said about stamps."""

    history: bytes | None
    stamps: Past


class Feed:
    """The readings of one account. Only its own thread uses it, except for ``restore``, ``summary`` and ``overview``.

    ``stale_after`` is in seconds. Nothing goes to the stream until the past before the start is known.
    """

    def __init__(  # noqa: PLR0913  # by name, and each is a part that this class connects
        self,
        key: str,
        account: Account,
        *,
        clock: Clock,
        time: ShareTime,
        topics: Topics,
        put: Callable[[Iterable[Message]], None],
        stream: Stream,
        stale_after: float,
        counting: Counting,
    ) -> None:
        self._key = key
        self._account = account
        self._counting = counting
        self._clock = clock
        self._time = time
        self._topics = topics
        self._put = put
        self._stream = stream
        self._stale_after = stale_after
        self._ledger = Ledger()
        self._stamps = Stamps(stale_after)
        self._first_seen: dict[int, float] = {}  # by date, of the latest readings only
        self._latest_seen: Reading | None = None
        self._late_at = -math.inf  # when a new reading last arrived too old to be current
        self._listed = False  # whether Share has answered with a list yet
        self._published: _Published | None = None
        self._streaming = False
        self._shown: tuple[Reading, float] | None = None  # with the time until which it is current
        self._unproven: int | None = None  # the newest date in the first list; later stamps are judged
        self.overview = Overview(without_reading(account))
        """What the page shows; safe to read from any thread, since it is replaced as a whole."""
        self.published_before = False
        """Whether readings of the last 24 hours were published before the start."""

    def summary(self) -> str | None:
        """Return the current reading in words, such as ``85 mg/dL → 2 min ago``, or None. From any thread."""
        shown = self._shown
        if shown is None or self._clock.now() >= self._current_until(shown[0]):
            return None
        age = max((self._time.now() or 0.0) - shown[0].date / 1000, 0.0)
        return f"{summary(shown[0], self._account.unit)} {age // 60:.0f} min ago"

    def kept(self) -> Kept:
        """Return what the status reports about the readings."""
        newest = self._ledger.newest
        return Kept(
            newest_at=None if newest is None else newest.date / 1000,
            ahead_until=self._stamps.ahead_until(self._time.now() or 0.0),
            restored=self._streaming,
        )

    def minutes_to_read(self) -> int | None:
        """Return how many minutes to read so that every gap can still be filled; None while the time is unknown."""
        today = self._time.now()
        return None if today is None else self._ledger.minutes_to_read(today)

    def restore(self, history: bytes | None, stamps: Past) -> None:
        """Hand over what was published before the start, to resume from it; from any thread, once."""
        self._published = _Published(history, stamps)

    def take(self, batch: Batch) -> Found:
        """Publish the new readings in an answer of Share."""
        now, first, self._listed = self._clock.now(), not self._listed, True
        if batch.readings:
            self._latest_seen = batch.readings[-1]
            self._unproven = batch.readings[-1].date if self._unproven is None else self._unproven
        self.resume()
        today = self._today() or 0.0
        known = self._ledger.newest
        settled = self._time.settled or not self._time.known
        judged = self._stamps.judge(batch.readings, today, settled=settled, known=self._ledger.has)
        new = self._ledger.add(judged.right, today)
        self._note_first_seen(new, now)
        newest = self._ledger.newest
        newest_is_new = newest is not known
        self._offer(new)
        self._offer_doubtful(today)
        current = newest is not None and now < self._current_until(newest)
        _log_new(self._key, self._account, newest if newest_is_new else None, len(new) - newest_is_new, current=current)
        if newest_is_new and not first:
            self._late_at = -math.inf if current else now
        if new or not self._is_shown(newest):
            self._show(newest)
        self.overview = self._overview()
        return Found(
            newest=newest,
            new=newest_is_new,
            current=current,
            ahead=self._stamps.ahead,
            withheld=judged.withheld > 0,
            late=now < self._late_at + self._stale_after,
        )

    def resume(self) -> None:
        """Resume from what was published before the start, once that is read back and the time is known."""
        today, published = self._today(), self._published
        if today is None or published is None or self._streaming:
            return
        try:
            found = self._counting.retained.read("history", published.history, parse_history, today)
            tally = self._counting.begin(found, today, _offset_min(found, self._latest_seen))
        except NotYetError:
            return
        history = found or History()
        self.published_before = any(
            reading.date >= (today - DAY) * 1000 for reading in (*history.readings, *history.doubtful)
        )
        self._stamps.restore(history.doubtful, published.stamps, today)
        dates = {reading.date for reading in history.readings}
        if self._ledger.newest is not None:  # Share answered before the broker
            unpublished = [reading for reading in self._ledger.readings if reading.date not in dates]
            self._ledger.drop(self._stamps.doubt(unpublished))
            self._show(self._ledger.newest)
        self._ledger.restore(history.readings, today)
        kept = self._ledger.readings
        known = [reading for reading in kept if reading.date in dates]
        source, counted = self._counting.retained.source, self._counting.counted
        self._stream.open(self._key, source, known, history.doubtful, history.since, tally=tally, counted=counted)
        self._streaming = True
        self._offer([reading for reading in kept if reading.date not in dates])
        self.overview = self._overview()

    def publish_statistics(self) -> float:
        """Publish the statistics if they are due; return the seconds until they are due next."""
        return self._counting.publish(self._ledger.readings, self._time.now()) if self._streaming else math.inf

    def _today(self) -> float | None:
        """Return the time of day in Unix seconds; until Share has sent it, the stamp of its newest reading."""
        latest = self._latest_seen
        return self._time.now() or (None if latest is None else latest.date / 1000)

    def _note_first_seen(self, new: list[Reading], now: float) -> None:
        """Record when the latest readings were first seen; that limits how long they are current."""
        self._first_seen = {date: at for date, at in self._first_seen.items() if at > now - _SEEN_LATELY}
        self._first_seen |= {reading.date: now for reading in new[-_READINGS_PER_HOUR:]}

    def _current_until(self, reading: Reading) -> float:
        """Return until when (by the clock) a reading is current.

        No reading is current until Share has sent the time, or while the phone's clock is known to be wrong.
        """
        taken = self._time.at(reading.date / 1000)
        if taken is None or self._stamps.ahead is not None:
            return -math.inf
        return min(taken, self._first_seen.get(reading.date, math.inf)) + self._stale_after

    def _offer(self, readings: list[Reading]) -> None:
        """Hand readings to the stream, once the past before the start is known."""
        if readings and self._streaming:
            self._stream.offer(self._key, [self._offer_of(reading) for reading in readings])

    def _offer_of(self, reading: Reading) -> Offer:
        """Make the offer of a reading, with its present delta."""
        offer = Offer(reading, self._ledger.delta(reading), self._account, self._current_until(reading))
        offer.state()  # a bug in it should fail here, in the account's thread: in the broker's, it ends the daemon
        return offer

    def _offer_doubtful(self, today: float) -> None:
        """Hand over the doubtful readings whose stamp is now past; they only complete the history."""
        passed = self._stamps.passed(today) if self._streaming else []
        if passed:
            offers = [Offer(reading, None, self._account, -math.inf, doubtful=True) for reading in passed]
            self._stream.offer(self._key, offers)

    def _is_shown(self, newest: Reading | None) -> bool:
        """Return whether a reading is the published one and current for as long; Share's time may have changed."""
        if self._shown is None or newest is None or self._shown[0] is not newest:
            return self._shown is None and newest is None
        before, now = self._shown[1], self._current_until(newest)
        return before == now or abs(before - now) <= _SAME_WITHIN * self._clock.speed

    def _show(self, newest: Reading | None) -> None:
        """Publish the newest reading, as stale if it already is; the mirror makes it stale later.

        ``newest`` is None if the one shown has turned out to be doubtful and there is no other.
        """
        if newest is None:
            self._shown = None
            self._put(stale_messages(self._topics, self._key, without_reading(self._account)))
            return
        state, current_until = state_of(newest, self._ledger.delta(newest), self._account), self._current_until(newest)
        self._shown = (newest, current_until)
        if current_until > self._clock.now():
            self._put(fresh_messages(self._topics, self._key, state, current_until))
        else:
            self._put(stale_messages(self._topics, self._key, state))

    def _overview(self) -> Overview:
        # Until the past before the start is known, some readings of the first list may be doubtful.
        after = 0 if self._streaming else self._unproven or 0
        return overview_of(self._account, self._ledger.readings, after, self._shown, self._time.at)


def _offset_min(history: History | None, listed: Reading | None) -> int:
    """Return the wearer's offset from UTC in minutes, as in the newest reading."""
    known = [*(history.readings[-1:] if history else ()), *([listed] if listed else ())]
    return max(known, key=attrgetter("date")).offset_min if known else 0


def _log_new(key: str, account: Account, newest: Reading | None, earlier: int, *, current: bool) -> None:
    if newest is not None:
        when = "" if current else f" of {local(newest.date / 1000)}, not current"
        _log.info("%s: %s%s", key, summary(newest, account.unit), when)
    if earlier:
        _log.info("%s: %s earlier readings", key, earlier)
