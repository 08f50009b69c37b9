"""The loop of one account: wait until a poll is due, ask Share, publish, report the status.

Only here do Share, the readings, the schedule and the status meet; none of them knows the others. Each account has
its own thread, so that none waits for another.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.account import verdict
from dexcom2mqtt.account.counting import Counting
from dexcom2mqtt.account.feed import Feed
from dexcom2mqtt.account.rationed import RationedClient
from dexcom2mqtt.account.report import Oddities, StatusReport
from dexcom2mqtt.account.schedule import REFRESH_EVERY, WHOLE_DAY, Timetable
from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.messages import status
from dexcom2mqtt.messages.message import ForeignError
from dexcom2mqtt.messages.status import Learned, PastSignIns, Status, parse_status
from dexcom2mqtt.share import RateLimitedError, ShareError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.account.limits import RateLimits
    from dexcom2mqtt.clock import Alarm, Clock
    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.config.values import Statistics
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.overview import Overview
    from dexcom2mqtt.messages.stream import Stream
    from dexcom2mqtt.share import Batch, ShareClient
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)

_WAIT_FOR_BROKER: Final = 10.0
_LOOK: Final = 5.0
"""Real seconds until it looks again whether it may ask Share, unless it is woken before."""
_AFTER_A_BUG: Final = 300.0
_BUGS_PER_HOUR: Final = 3


def poller_for(  # noqa: PLR0913  # by name, and each is a part that it connects
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
    statistics: Statistics = "90d",
    back_by: Callable[[float], None] = lambda _: None,
    may_ask: Callable[[], bool] = lambda: True,
) -> Poller:
    """Make the poller of an account, and the parts that only it uses.

    ``client`` is for this account alone; all accounts share ``rate_limits``. ``stale_after`` is in seconds. ``put``
    publishes messages. ``back_by`` is for the watchdog, see ``RationedClient``. ``may_ask`` says whether to ask Share
    now: if several processes share the accounts, only while this one surely serves this account.
    """
    alarm = clock.alarm(back_by)
    time = client.time
    counting = Counting(
        key, account, statistics, clock=clock, time=time, topics=topics, put=put, stream=stream, counted=alarm.ring
    )
    feed = Feed(
        key,
        account,
        clock=clock,
        time=time,
        topics=topics,
        put=put,
        stream=stream,
        stale_after=stale_after,
        counting=counting,
    )
    report = StatusReport(key, clock, time, topics, put)
    rationed = RationedClient(client, clock, rate_limits, back_by, may_ask)
    return Poller(key, clock, rationed, feed, counting, report, alarm, may_ask)


class Poller:
    """Polls one account until the clock stops."""

    def __init__(  # noqa: PLR0913, PLR0917  # only poller_for makes it
        self,
        key: str,
        clock: Clock,
        client: RationedClient,
        feed: Feed,
        counting: Counting,
        report: StatusReport,
        alarm: Alarm,
        may_ask: Callable[[], bool],
    ) -> None:
        self.key = key
        self.time = client.time
        self.answered = threading.Event()
        """Set once the first poll is over, whether it succeeded or failed."""
        self._clock = clock
        self._alarm = alarm
        self._may_ask = may_ask
        self._client = client
        self._feed = feed
        self._counting = counting
        self._report = report
        self._oddities = Oddities(key)
        self._timetable = Timetable(random.random)
        self._due = clock.now()
        self._last_poll = self._due - REFRESH_EVERY
        self._refresh_asked = False
        self._read_back = _ReadBack(clock)
        self._learned: Learned | None = None  # before the start, and not yet used

    def refresh(self) -> None:
        """Request a poll as soon as the limits allow; from any thread."""
        self._refresh_asked = True
        self._alarm.ring()

    @property
    def well(self) -> bool:
        """Whether the account works; from any thread."""
        return self._report.well

    def summary(self) -> str:
        """Return the status in words, as ``anna: 85 mg/dL → 2 min ago, next poll 14:03:12``; from any thread."""
        return self._report.summary(self._feed.summary())

    def seen(self) -> tuple[Overview, Status]:
        """Return what the page shows of the account, and its status; from any thread."""
        return self._feed.overview, self._report.status

    def look(self) -> None:
        """Look again whether it may ask Share; from any thread."""
        self._alarm.ring()

    def released(self) -> list[Message]:
        """Return the message that nobody serves this account, if several processes share them; from any thread."""
        return self._report.released()

    def expect_read_back(self) -> None:
        """Wait longer for the retained messages, since the broker is sending them now; from any thread."""
        self._read_back.has_begun = True
        self._alarm.ring()

    def take_read_back(
        self,
        history: bytes | None,
        retained_status: bytes | None,
        days: bytes | None = None,
        *,
        days_awaited: bool = False,
    ) -> None:
        """Hand over what the broker retained for this account before the start; from any thread, once.

        ``days_awaited`` is whether there should be days, but none arrived; they may still arrive, see ``take_days``.
        """
        before = _read(self.key, retained_status)
        self._counting.restore(days, awaited=days_awaited)
        self._client.restore(before)
        self._feed.restore(history, before.stamps)
        self._report.restore(before)
        self._learned = before.learned
        self._read_back.is_over = True
        self._alarm.ring()

    def take_days(self, days: bytes | None) -> None:
        """Hand over the days from before the start that arrived late; None if they are given up.

        From any thread, once.
        """
        self._counting.take_late(days)
        self._alarm.ring()

    def run(self) -> None:
        """Poll until the clock stops, then raise Stopped.

        An unexpected exception is a bug: it is logged without its text, which might contain a secret, and
        the account restarts after five minutes. The third one within an hour is raised.
        """
        bugs: list[float] = []
        while True:
            try:
                self._run()
            except Exception as error:
                now = self._clock.now()
                bugs = [at for at in bugs if at > now - 3600] + [now]
                _log.error("%s: a bug in dexcom2mqtt; please report it:\n%s", self.key, redacted_traceback(error))
                if len(bugs) >= _BUGS_PER_HOUR:
                    raise
                self._report.become(verdict.Verdict("unexpected_response", status.BUG))
                self._plan(now + _AFTER_A_BUG)
                self.answered.set()
                self._alarm.sleep(_AFTER_A_BUG)

    def _run(self) -> None:
        began = self._clock.now()
        while (left := self._read_back.left(began)) > 0:
            self._alarm.wait(left)
        while True:
            self._wait()
            self._last_poll = self._clock.now()
            self._plan(self.poll())
            self.answered.set()

    @property
    def due(self) -> float:
        """When (by the clock) the next poll is due, within every limit."""
        return max(self._due, self._client.not_before())

    def _wait(self) -> None:
        """Wait until the next poll is due, or a refresh is allowed, and it may ask Share."""
        while self._seconds_left() > 0:
            statistics_due = self._feed.publish_statistics()  # takes seconds when a thousand accounts start
            self._alarm.wait(min(self._seconds_left(), statistics_due))
            if self._refresh_asked:
                self._refresh_asked = False
                self._due = min(self._due, self._last_poll + REFRESH_EVERY)
            if self._read_back.is_over and not self._feed.kept().restored:
                self._resume()
                self._plan(self._due)  # even if it cannot resume yet: there may be new limits

    def _seconds_left(self) -> float:
        """Return for how many seconds not to ask Share."""
        left = self.due - self._clock.now()
        return left if self._may_ask() else max(left, _LOOK * self._clock.speed)

    def poll(self) -> float:
        """Ask Share and publish the result. Return when the next poll is due, regardless of the limits."""
        began, timetable = self._clock.now(), self._timetable
        minutes = timetable.minutes(began, self._feed.minutes_to_read())
        try:
            batch = self._client.fetch(minutes, timetable.attempts)
        except ShareError as error:
            return self._handle_failure(error)
        timetable.succeeded(began, self._clock.now())
        _log_fetched(self.key, minutes, batch)
        self._oddities.report(batch, whole=minutes == WHOLE_DAY)
        found = self._feed.take(batch)
        self._resume()
        self._report.become(verdict.of_batch(batch, found))
        return timetable.after_batch(
            asked=self._client.asked_at,
            now=self._clock.now(),
            newest=None if found.newest is None else self.time.at(found.newest.date / 1000),
            new=found.new,
            settles_at=self.time.settles_at if found.withheld or self.time.jumped else None,
        )

    def _handle_failure(self, error: ShareError) -> float:
        self._resume()
        self._report.become(verdict.of_error(error, untried=not self._client.tried))
        return self._timetable.after_failure(
            self._clock.now(),
            wrong_clock=isinstance(error, UnavailableError) and error.wrong_clock,
            limited=isinstance(error, RateLimitedError),
            sign_in_at=self._client.sign_in_at,
        )

    def _resume(self) -> None:
        """Resume from what was published before the start, once that is possible."""
        if self._learned is not None:
            self._timetable.restore(*self._learned)
            self._learned = None
        self._feed.resume()
        if self._feed.published_before:
            self._client.worked_before()

    def _plan(self, due: float) -> None:
        """Make the next poll due at that time (by the clock), or when the limits allow it; publish the status."""
        self._due = max(due, self._client.not_before())  # a limit that is known applies, whatever follows
        self._report.publish(
            next_poll=self._due,
            last_success=self._timetable.last_success,
            learned=None if self._timetable.learned is None else Learned(*self._timetable.learned),
            usage=self._client.usage(),
            kept=self._feed.kept(),
        )


class _ReadBack:
    """The wait for what the broker retained: sign-ins rejected before a restart still count.

    Until it is over, the password is not sent. It takes at most 10 s if the broker cannot be reached, and 20 s while
    the broker sends its retained messages.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.has_begun = False
        self.is_over = False

    def left(self, began: float) -> float:
        """Return how many more seconds of the clock to wait, if the wait began at ``began``."""
        most = _WAIT_FOR_BROKER * self._clock.speed * (2 if self.has_begun else 1)
        return 0.0 if self.is_over else began + most - self._clock.now()


def _read(key: str, retained_status: bytes | None) -> PastSignIns:
    """Parse a retained status; return an empty past if there is none, or if it is not ours."""
    try:
        return parse_status(retained_status) if retained_status else PastSignIns()
    except ForeignError as why:
        _log.warning("%s: ignoring the retained status: %s", key, why)
        return PastSignIns()


def _log_fetched(key: str, minutes: int, batch: Batch) -> None:
    _log.debug(
        "%s: the last %s min hold %s readings, %s error codes, %s malformed records",
        key,
        minutes,
        len(batch.readings),
        len(batch.error_codes),
        batch.malformed,
    )
