"""One account, for ever: wait until it is due, ask Share, publish, say how it is going.

This is the only place where Share, the readings, the schedule and the status meet; each of them knows nothing of the
others. It runs in a thread of its own, so that no account waits for another.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.account import verdict
from dexcom2mqtt.account.feed import Feed
from dexcom2mqtt.account.rationed import RationedClient
from dexcom2mqtt.account.report import StatusReport
from dexcom2mqtt.account.schedule import REFRESH_EVERY, WHOLE_DAY, Timetable
from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.messages import status
from dexcom2mqtt.messages.message import ForeignError
from dexcom2mqtt.messages.status import Before, parse_status
from dexcom2mqtt.share import RateLimitedError, ShareError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.account.limits import RateLimits
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config import Account
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.share import Batch, ShareClient
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)

_WAIT_FOR_BROKER: Final = 10.0
_AFTER_A_BUG: Final = 300.0
_BUGS_AN_HOUR: Final = 3


class Poller:
    """Polls one account and puts what is to be published, through ``put``, until the clock stops.

    ``client`` is used by nobody else. ``rate_limits`` is shared by the accounts. ``stale_after`` is in seconds.
    ``back_by`` is called before each wait and each request, with the time when it should be over.
    """

    def __init__(  # noqa: PLR0913  # by name, and each is a part that this one joins
        self,
        key: str,
        account: Account,
        client: ShareClient,
        *,
        clock: Clock,
        topics: Topics,
        put: Callable[[Iterable[Message]], None],
        stream: Stream,
        stale_after: float,
        rate_limits: RateLimits,
        back_by: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.key = key
        self.time = client.time
        """The time of day, as this account's server tells it."""
        self.answered = threading.Event()
        """Set once the first poll is over, however it went."""
        self._clock = clock
        self._alarm = clock.alarm(back_by)
        self._client = RationedClient(client, clock, rate_limits, back_by)
        self._feed = Feed(
            key,
            account,
            clock=clock,
            time=client.time,
            topics=topics,
            put=put,
            stream=stream,
            stale_after=stale_after,
        )
        self._report = StatusReport(key, clock, client.time, topics, put)
        self._timetable = Timetable(random.random)
        self._due = clock.now()  # as far as this account alone is concerned
        self._last_poll = self._due - REFRESH_EVERY
        self._refresh_asked = False
        self._reading_back = threading.Event()
        self._read_back = threading.Event()

    def refresh(self) -> None:
        """Ask for a poll now; for any thread. It comes as soon as the limits allow."""
        self._refresh_asked = True
        self._alarm.ring()

    @property
    def well(self) -> bool:
        """Whether there is nothing to worry about; for any thread."""
        return self._report.well

    def summary(self) -> str:
        """Say how the account is doing, such as ``anna: 85 mg/dL → 2 min ago, next poll 14:03:12``; for any thread."""
        return self._report.summary(self._feed.summary())

    def expect_read_back(self) -> None:
        """Wait for what the broker retained, since it is being read now; for any thread."""
        self._reading_back.set()
        self._alarm.ring()

    def take_read_back(self, history: bytes | None, retained_status: bytes | None) -> None:
        """Take what the broker retained of this account before the start; for any thread, once."""
        before = Before()
        try:
            before = parse_status(retained_status) if retained_status else before
        except ForeignError as why:
            _log.warning("%s: the status that the broker retained is not taken over: %s", self.key, why)
        self._client.restore(before)
        self._feed.restore(history, before.stamps)
        self._report.restore(before)
        self._read_back.set()
        self._alarm.ring()

    def run(self) -> None:
        """Poll until the clock stops, then raise Stopped.

        An exception that nobody expected is a bug: it is logged without its text, which might hold a secret, and
        the account starts anew after five minutes. The third within an hour is raised.
        """
        bugs: list[float] = []
        while True:
            try:
                self._run()
            except Exception as error:
                now = self._clock.now()
                bugs = [at for at in bugs if at > now - 3600] + [now]
                _log.error("%s: a bug in dexcom2mqtt; please report it:\n%s", self.key, redacted_traceback(error))
                if len(bugs) >= _BUGS_AN_HOUR:
                    raise
                self._report.become(verdict.Verdict("unexpected_response", status.BUG))
                self._publish_status(now + _AFTER_A_BUG)
                self.answered.set()
                self._alarm.sleep(_AFTER_A_BUG)

    def _run(self) -> None:
        self._await_read_back()
        while True:
            self._wait()
            self._last_poll = self._clock.now()
            self._publish_status(self.poll())
            self.answered.set()

    def _await_read_back(self) -> None:
        """Wait for what the broker retained: sign-ins that were rejected before a restart count on.

        Until then nothing is sent that carries the password. A broker that cannot be reached is waited for 10 s.
        """
        began, most = self._clock.now(), _WAIT_FOR_BROKER * self._clock.speed
        while not self._read_back.is_set():
            left = began + (2 * most if self._reading_back.is_set() else most) - self._clock.now()
            if left <= 0:
                return
            self._alarm.wait(left)

    @property
    def due(self) -> float:
        """When (by the clock) the next poll is due, within every limit."""
        return max(self._due, self._client.not_before())

    def _wait(self) -> None:
        """Wait for the next poll, or for a refresh as far as it is allowed."""
        while (left := self.due - self._clock.now()) > 0:
            self._alarm.wait(left)
            if self._refresh_asked:
                self._refresh_asked = False
                self._due = min(self._due, self._last_poll + REFRESH_EVERY)
            if self._go_on():
                self._publish_status(self._due)

    def poll(self) -> float:
        """Ask Share, and publish what came of it. Return when the next poll is due, without the limits."""
        began, timetable = self._clock.now(), self._timetable
        minutes = timetable.minutes(began, self._feed.minutes_to_read())
        try:
            batch = self._client.fetch(minutes, timetable.tries)
        except ShareError as error:
            return self._take_failure(error)
        self._say_fetched(minutes, batch)
        found = self._feed.take(batch, whole=minutes == WHOLE_DAY)
        self._go_on()
        self._report.become(verdict.of_batch(batch, found))
        in_doubt = found.withheld or self.time.jumped
        return timetable.after_batch(
            began=began,
            asked=self._client.asked_at,
            now=self._clock.now(),
            newest=None if found.newest is None else self.time.at(found.newest.date / 1000),
            new=found.new,
            settles_at=self.time.settles_at if in_doubt else None,
        )

    def _take_failure(self, error: ShareError) -> float:
        self._go_on()
        self._report.become(verdict.of_error(error, untried=not self._client.tried))
        return self._timetable.after_failure(
            self._clock.now(),
            wrong_clock=isinstance(error, UnavailableError) and error.wrong_clock,
            limited=isinstance(error, RateLimitedError),
            sign_in_at=self._client.signs_in_at,
        )

    def _go_on(self) -> bool:
        """Go on from what was published before the start, once that is possible; return whether it was just now."""
        gone_on = self._feed.go_on()
        if self._feed.published_before:
            self._client.worked_before()
        return gone_on

    def _publish_status(self, due: float) -> None:
        self._due = due
        self._report.publish(
            next_poll=self.due,
            last_success=self._timetable.last_success,
            delay=self._timetable.delay,
            usage=self._client.usage(),
            kept=self._feed.kept(),
        )

    def _say_fetched(self, minutes: int, batch: Batch) -> None:
        _log.debug(
            "%s: the last %s min hold %s readings, %s error codes, %s malformed records",
            self.key,
            minutes,
            len(batch.readings),
            len(batch.error_codes),
            batch.malformed,
        )
