"""The status of one account: what is published on ``status``, its changes in the log, and a summary for systemd.

It owns the payload of the topic ``status``. It neither judges answers nor sends requests, and does not know the
schedule.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.account.rationed import Usage
from dexcom2mqtt.clock import local
from dexcom2mqtt.messages.status import DRIFTED, MALFORMED, REMEDIES, PastSignIns, Status, status_message
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.account.verdict import Verdict
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.status import Learned
    from dexcom2mqtt.share import Batch
    from dexcom2mqtt.share.server_time import ShareTime
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)

_FOR_LONG: Final = 3600.0
"""Seconds after which a lasting problem is logged once more, if there is more to say."""


class Kept(NamedTuple):
    """The facts about an account's readings that the status contains."""

    newest_at: float | None = None
    """When the newest one was taken, in Unix seconds."""
    ahead_until: int | None = None
    """The latest stamp of the last 24 hours that was first seen in the future, in Unix milliseconds."""
    restored: bool = False
    """Whether what was published before the start is included."""


class StatusReport:
    """The status of one account. The account's thread changes it; any thread may read it, and restore it once.

    Facts that must survive a restart, such as rejected sign-ins, go into the first status after it. So nothing is
    published until the last status from before the start has been read. Its facts are added until ``Usage`` and
    ``Kept`` include them.
    """

    def __init__(
        self, key: str, clock: Clock, time: ShareTime, topics: Topics, put: Callable[[Iterable[Message]], None]
    ) -> None:
        self._key = key
        self._clock = clock
        self._time = time
        self._topics = topics
        self._put = put
        self._status = self._full = Status()
        self._usage = Usage()
        self._kept = Kept()
        self._since = clock.now()
        self._lasts = False  # whether the lasting problem was logged again
        self._before: PastSignIns | None = None  # until it is read
        self._lock = threading.Lock()  # held while publishing, so that no older status follows a newer one

    @property
    def status(self) -> Status:
        """The status, including the facts from before the start; from any thread."""
        return self._full

    @property
    def well(self) -> bool:
        """Whether the account works; from any thread."""
        return self._status.well

    def summary(self, reading: str | None) -> str:
        """Return the status in words, as ``anna: 85 mg/dL → 2 min ago, next poll 14:03:12``; from any thread.

        ``reading`` is the current reading in words; None if there is none.
        """
        status, words = self._status, list[str]()
        if status.share != "ok" or reading is None:
            words.append(status.share)
        if reading is not None:
            words.append(reading)
        if status.next_poll_at is not None:
            words.append(f"next poll {local(status.next_poll_at)}")
        return f"{self._key}: {', '.join(words)}"

    def become(self, verdict: Verdict) -> None:
        """Change to a state, and log it if it differs from the last one."""
        before, now = self._status, self._clock.now()
        self._status = replace(before, share=verdict.share, message=verdict.message)
        if verdict.share != before.share:
            self._since, self._lasts = now, False
            self._status = replace(self._status, since=None)
            self._log(well_before=before.well)
        elif verdict.if_it_lasts and now - self._since >= _FOR_LONG:
            self._status = replace(self._status, message=f"{verdict.message} {verdict.if_it_lasts}")
            if not self._lasts:  # once more
                self._lasts = True
                self._log(well_before=before.well)

    def _log(self, *, well_before: bool) -> None:
        if not self._status.well:
            _log.warning("%s: %s: %s", self._key, self._status.share, self._status.message)
        elif not well_before:
            _log.info("%s: recovered", self._key)

    def publish(
        self, *, next_poll: float, last_success: float | None, learned: Learned | None, usage: Usage, kept: Kept
    ) -> None:
        """Publish the status with these facts; times are by the clock."""
        unix = self._time.unix
        with self._lock:
            self._usage, self._kept = usage, kept
            self._status = replace(
                self._status,
                since=self._status.since or unix(self._since),  # only once: Share's time becomes more precise later
                last_reading_at=kept.newest_at,
                last_success_at=None if last_success is None else unix(last_success),
                next_poll_at=unix(next_poll),
                delay=None if learned is None else round(learned.delay, 1),
                spread=None if learned is None else round(learned.spread, 1),
                requests_24h=usage.requests,
                logins_24h=usage.logins,
                rejected=usage.rejected,
                ahead_until=kept.ahead_until,
            )
            self._put_status()

    def restore(self, before: PastSignIns) -> None:
        """Resume from the status published before the start, and publish immediately; from any thread, once.

        It does not wait for the account's own thread, which may be busy with a call to Share.
        """
        with self._lock:
            self._before = before
            self._put_status()

    def released(self) -> list[Message]:
        """Return the last status without an owner, if several processes share the accounts and there was one."""
        with self._lock:
            known = self._before is not None and self._topics.bridge != ALONE
            return [status_message(self._topics, self._key, self._full, released=True)] if known else []

    def _put_status(self) -> None:
        before, full = self._before, self._status
        if before is None:
            self._full = full
            return
        full = replace(
            full,
            last_reading_at=full.last_reading_at or before.last_reading,
            last_success_at=full.last_success_at or before.stamps.last_success,
        )
        if full.delay is None and before.learned is not None:
            full = replace(full, delay=before.learned.delay, spread=before.learned.spread)
        if not self._kept.restored:
            full = replace(full, ahead_until=before.stamps.ahead_until)
        if not self._usage.restored:
            full = replace(full, rejected=(*before.rejected, *full.rejected))
            if before.locked_until is not None:
                locked = REMEDIES["locked_out"]
                full = replace(full, share="locked_out", message=locked, next_poll_at=before.locked_until)
        self._full = full
        self._put([status_message(self._topics, self._key, full)])


class Oddities:
    """Warns of odd records: once, and again only after a whole day of records had none."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._reported = set[str]()

    def report(self, batch: Batch, *, whole: bool) -> None:
        """Warn of odd records; ``whole`` is whether a whole day was read, since most polls read only minutes."""
        for words, count in ((MALFORMED, batch.malformed), (DRIFTED, batch.drifted)):
            if count and words not in self._reported:
                self._reported.add(words)
                _log.warning("%s: %s", self._key, words.format(count))
            elif whole and not count:
                self._reported.discard(words)
