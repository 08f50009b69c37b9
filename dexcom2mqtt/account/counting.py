"""Counting one account's readings by day: resuming from the retained days, and when to publish ``statistics``.

The formulas are in ``statistics``. The counts are in ``stream``, which adds each reading when it counts as published.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.account.retained import NotYetError, Retained
from dexcom2mqtt.account.statistics import statistics_of
from dexcom2mqtt.messages.days import Tally, day_of, limits_of, parse_days, resumed
from dexcom2mqtt.messages.history import source_of
from dexcom2mqtt.messages.message import Message, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.config.values import Statistics
    from dexcom2mqtt.messages.days import Days
    from dexcom2mqtt.messages.history import History
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.share.server_time import ShareTime
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)

_SETTLE_SECONDS: Final = 2.0
"""How long to wait for more changes: the broker acknowledges several new readings one by one."""
_EVERY: Final = 60.0
_AT_LEAST_EVERY: Final = 3600.0


class Counting:
    """Counts one account's readings by day and publishes its statistics, depending on ``kind``.

    Only the account's own thread calls it, except for ``restore`` and ``take_late``. ``counted`` is called, from any
    thread, whenever a reading has been counted.
    """

    def __init__(  # noqa: PLR0913  # by name, and each is a part that this class connects
        self,
        key: str,
        account: Account,
        kind: Statistics,
        *,
        clock: Clock,
        time: ShareTime,
        topics: Topics,
        put: Callable[[Iterable[Message]], None],
        stream: Stream,
        counted: Callable[[], None],
    ) -> None:
        self._key = key
        self._account = account
        self._ranges = limits_of(account.ranges)
        self._kind = kind
        self._clock = clock
        self.retained = Retained(key, source_of(account.region, account.user.get_secret_value()), time)
        """Reads the payloads that the broker retained for this account."""
        self._topics = topics
        self._put = put
        self._stream = stream
        self.counted = counted
        self._days: bytes | None = None  # as the broker retained them
        self._awaited = False  # whether they may still arrive
        self._settled = True  # whether they are known, or given up
        self._seen: tuple[object, ...] = ()  # the inputs of the statistics at the last check
        self._changed_at = math.inf
        self._published_at = -math.inf

    def restore(self, days: bytes | None, *, awaited: bool) -> None:
        """Hand over the days that the broker retained; from any thread, once.

        ``awaited`` is whether the broker should have some that did not arrive.
        """
        self._days, self._awaited = days, awaited

    def take_late(self, days: bytes | None) -> None:
        """Hand over days that arrived late; None if they are given up. From any thread."""
        if days is None:
            _log.warning(
                "%s: the broker did not send the days that were counted before the restart, so counting starts over",
                self._key,
            )
        self._days, self._awaited = days, False

    def begin(self, history: History | None, today: float, offset_min: int) -> Tally | None:
        """Return the tally to continue from; None if days are not counted.

        ``today`` is in Unix seconds, ``offset_min`` the wearer's offset from UTC. Raises NotYetError.
        """
        if self._kind != "90d":
            return None
        waits = self._awaited
        days = self._read(today)
        known = None if history is None else history.readings
        tally = resumed(days, known, self._ranges, day_of(today, offset_min))
        self._settled = not waits
        return replace(tally, waiting=(known, ())) if waits else tally

    def publish(self, readings: Sequence[Reading], today: float | None) -> float:
        """Publish the statistics if they are due; return the seconds until they are due next.

        ``readings`` are those of the last 24 hours. ``today`` is in Unix seconds, or None while the time is unknown.
        """
        if self._kind == "off" or today is None:
            return math.inf
        offset_min = readings[-1].offset_min if readings else 0
        days = self._current_days(today, offset_min)
        now, seen = self._clock.now(), (len(readings), readings[-1:], days)
        if seen != self._seen:
            self._seen, self._changed_at = seen, min(self._changed_at, now)
        due = max(self._changed_at + _SETTLE_SECONDS, self._published_at + _EVERY)
        if self._published_at != -math.inf:
            due = min(due, self._published_at + _AT_LEAST_EVERY)
        if now < due:
            return due - now
        self._changed_at, self._published_at = math.inf, now
        payload = statistics_of(readings, days, self._account, today, offset_min)
        self._put([Message(self._topics.of(self._key, "statistics"), to_json(payload))])
        return _AT_LEAST_EVERY

    def _current_days(self, today: float, offset_min: int) -> Days | None:
        """Return the days counted so far, joined with those that arrived late, if any."""
        if not self._settled and not self._awaited:
            try:
                days = self._read(today)
            except NotYetError:
                pass
            else:
                self._settled = True
                self._stream.settle(self._key, days, day_of(today, offset_min))
        tally = self._stream.tally(self._key)
        return None if tally is None else tally.days

    def _read(self, today: float) -> Days | None:
        return self.retained.read("record of days", self._days, parse_days, today)
