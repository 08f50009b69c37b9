"""When a real poller asks the simulated Share service over real HTTP, on a clock that jumps: days in seconds."""

from __future__ import annotations

import itertools
import json
import logging
import math
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import pytest

from dexcom2mqtt.account.feed import Feed
from dexcom2mqtt.account.limits import RateLimits
from dexcom2mqtt.account.poller import Poller, poller_for
from dexcom2mqtt.account.rationed import client_of
from dexcom2mqtt.clock import Stopped, parse_iso
from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Account
from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from dexcom2mqtt.messages import status, unpublished
from dexcom2mqtt.messages.history import history_message, source_of
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.topics import Topics
from tests.support import share_faults
from tests.support.builders import most_within
from tests.support.jumping import JumpingClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dexcom2mqtt.config.values import Statistics

BEGIN = 1_772_323_200.0  # an instant in Unix seconds: 2026-03-01
MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0
TOPICS = Topics("dexcom2mqtt")
PASSWORD = "the password"


class World:
    """A poller, the service that it asks, and a stand-in for the broker that accepts everything immediately."""

    def __init__(self, password: str = PASSWORD, **account: Any) -> None:
        self.clock = JumpingClock(end=math.inf)
        self.account = SimulatedAccount("anna@example.com", PASSWORD, **account)
        self.service = SimulatedShare([self.account], lambda: self.unix)
        self.retained: dict[str, bytes] = {}
        self.publications: list[tuple[float, str]] = []  # when something was published, and on which topic
        self.statistics: Statistics = "90d"
        self.configured: dict[str, Any] = {}  # of the account, from the next restart on
        self.published: dict[int, float] = {}  # by date: when
        self.stream: dict[int, bool] = {}  # by date: whether it was backfill, when it came last
        self._back_by = math.inf
        self.late = -math.inf  # how many seconds late the poller was back
        self._password = password
        self.clock.before_wait = self._serve
        self.service.__enter__()
        self.rate_limits = RateLimits()
        self.may_ask = True
        self.restart()

    @property
    def unix(self) -> float:
        return BEGIN + self.clock.time

    def restart(self, *, broker: bool = True) -> None:
        """Restart the daemon, which knows only what is retained, and not even that without a broker."""
        self._mirror, self.outgoing = Mirror(last=TOPICS.bridge_state), Stream(TOPICS)
        given = {"username": "anna@example.com", "password": self._password, "share_url": self.service.base_url}
        account = build(Account, given | self.configured)
        self.poller = poller_for(
            "anna",
            account,
            client_of(account, self.clock),
            clock=self.clock,
            topics=TOPICS,
            put=self._mirror.put,
            stream=self.outgoing,
            stale_after=900,
            rate_limits=self.rate_limits,
            statistics=self.statistics,
            back_by=self._take_back_by,
            may_ask=lambda: self.may_ask,
        )
        if broker:
            self.read_back()

    def read_back(self, *, days_awaited: bool = False) -> None:
        """Hand the retained messages to the daemon, except the days if they are late."""
        history, before, days = (self.retained.get(TOPICS.of("anna", leaf)) for leaf in ("history", "status", "days"))
        self.poller.take_read_back(history, before, None if days_awaited else days, days_awaited=days_awaited)

    def live(self, seconds: float) -> None:
        """Let that many seconds pass."""
        self.clock.end = self.clock.time + seconds
        with suppress(Stopped):
            self.poller.run()
        self.clock.time = self.clock.end
        self._serve()

    def _take_back_by(self, at: float) -> None:
        self.late = max(self.late, self.clock.now() - self._back_by)
        self._back_by = at

    def _serve(self) -> None:
        now = self.clock.now()
        self._mirror.put(self.outgoing.histories(math.inf))
        while taken := self.outgoing.take(now, 20):
            for message in taken:
                reading = json.loads(message.payload)
                self.published.setdefault(reading["date"], self.unix)
                self.stream[reading["date"]] = reading["backfill"]
                self.outgoing.acknowledged(message)
            self._mirror.put(self.outgoing.histories(math.inf))
        for message in self._mirror.take(now, 1000):
            self.retained[message.topic] = message.payload.encode()
            self.publications.append((self.unix, message.topic))

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.retained[TOPICS.of("anna", "status")])
        return found

    def requests(self, since: float = -math.inf, until: float = math.inf, *, password: bool = False) -> list[float]:
        """Return when Share was asked, in Unix seconds; with `password`, only the requests that contain it."""
        log = self.service.requests
        return [each.time for each in log if since <= each.time < until and each.password >= password]

    def delays(self, since: float) -> dict[int, float]:
        """Return by date how many seconds after it was readable each reading taken since then was published."""
        records = {record.taken: record for record in share.series(self.account, since, self.unix)}
        return {date: at - records[date].arrives for date, at in self.published.items() if date in records}


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Make worlds, and end their services with the test."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(**options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.service.__exit__(None, None, None)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_nothing_is_asked_while_another_process_may_serve_the_account(make_world: Callable[..., World]) -> None:
    """It goes on seconds after it may ask again, with everything that it missed."""
    world = make_world()
    world.live(HOUR)
    world.may_ask = False
    since = world.unix
    world.live(HOUR)
    assert world.requests(since) == []
    world.may_ask = True
    again = world.unix
    world.live(10)
    assert len(world.requests(again)) == 1
    assert set(world.delays(again - HOUR - MINUTE)) >= set(world.delays(since))
    assert len(world.delays(since)) >= 11


@pytest.mark.parametrize("fixed", [8.0, 25.0])
def test_readings_arrive_seconds_after_they_exist(make_world: Callable[..., World], fixed: float) -> None:
    """After half a day of learning, a reading waits seconds at little more than one request; the delay is published."""
    world = make_world(delay=share.usual_delay(fixed, 2.0))
    world.live(DAY / 2)
    learned_at = world.unix
    world.live(DAY)
    delays = world.delays(learned_at)
    assert len(delays) >= 285
    assert mean(delays.values()) < 5
    assert len(world.requests(learned_at)) / len(delays) < 1.6
    assert fixed < world.status["delay"] < fixed + 8


def test_slow_answers_do_not_shift_the_delay(make_world: Callable[..., World]) -> None:
    """The time of the request counts, not that of the answer."""
    world = make_world()

    def slow(request: share.Request, respond: share.Respond) -> share.Response:
        response = respond(request)
        world.clock.time += 10
        return response

    world.service.fault = slow
    world.live(DAY / 2)
    learned_at = world.unix
    world.live(DAY)
    assert world.status["delay"] < 13
    assert mean(world.delays(learned_at).values()) < 10 + 7
    assert len(world.requests(learned_at)) < 1.6 * 288


def test_slow_statistics_do_not_delay_a_poll(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed while waiting for the poll, as when a thousand accounts start together."""
    world = make_world()
    poll, late = Poller.poll, list[float]()

    def publish(_: Feed) -> float:
        world.clock.time += 2
        return math.inf

    def watched(poller: Poller) -> float:
        late.append(world.clock.now() - poller.due)
        return poll(poller)

    monkeypatch.setattr(Feed, "publish_statistics", publish)
    monkeypatch.setattr(Poller, "poll", watched)
    world.live(HOUR)
    assert len(late) > 12
    assert median(late) < 0.01


def test_what_was_learned_survives_a_restart(make_world: Callable[..., World]) -> None:
    """After a restart, readings come as soon as before it, and with as few requests, from the first one on."""
    world = make_world(delay=share.usual_delay(40.0, 6.0))
    world.live(DAY)
    learned = {key: world.status[key] for key in ("delay", "spread")}
    assert learned["delay"] > 40
    began = world.unix
    world.restart()
    world.live(2 * MINUTE)
    assert {key: world.status[key] for key in learned} == learned
    world.live(HOUR)
    delays = [delay for date, delay in world.delays(began).items() if date > (began + 5 * MINUTE) * 1000]
    assert len(delays) >= 10
    assert mean(delays) < 8
    assert len(world.requests(began)) < 2 * len(delays) + 4


def test_the_delay_is_null_until_it_is_learned(make_world: Callable[..., World]) -> None:
    """After the first poll the delay is still unknown."""
    world = make_world()
    world.live(20)
    assert world.status["share"] == "ok"
    assert world.status["delay"] is None


@pytest.mark.parametrize("fault", [share_faults.status(503), share_faults.drop(), share_faults.html(200)])
def test_a_day_without_share_is_cheap(make_world: Callable[..., World], fault: share.Fault) -> None:
    """24 hours out of order cost at most 350 requests, teach nothing, and end 5 min 10 s after Share is back."""
    world = make_world()
    world.live(DAY / 2)
    learned, began = world.status["delay"], world.unix
    world.service.fault = fault
    world.live(DAY)
    assert len(world.requests(began)) <= 350
    assert world.status["delay"] == learned
    world.service.fault = share.no_fault
    back = world.unix
    world.live(HOUR)
    assert min(at for at in world.published.values() if at >= back) <= back + 310
    known = [date / 1000 for date in world.published]
    due = share.series(world.account, back - DAY + 6 * MINUTE, world.unix - MINUTE)
    assert {record.taken / 1000 for record in due if record.arrives < world.unix - MINUTE} <= set(known)


@pytest.mark.parametrize("fault", [share_faults.status(503), share_faults.drop()])
def test_an_outage_never_speeds_polling_up(make_world: Callable[..., World], fault: share.Fault) -> None:
    """After the first minutes of an outage, no hour of it has more requests than one with readings may have."""
    world = make_world()
    world.live(HOUR)
    world.service.fault = fault
    began = world.unix
    world.live(6 * HOUR)
    assert most_within(world.requests(began + 10 * MINUTE), HOUR) <= 16


def test_hours_without_readings_are_cheap(make_world: Callable[..., World]) -> None:
    """A gap costs 13 requests an hour after its first late reading, and the old rhythm is met within a minute."""
    world = make_world()
    world.live(DAY / 2)
    began = world.unix
    world.service.distort(share_faults.during(began, began + 8 * HOUR, share_faults.missing))
    world.live(8 * HOUR)
    assert most_within(world.requests(began + 11 * MINUTE), HOUR) <= 13
    assert world.status["share"] == "no_readings"
    world.live(HOUR)
    first = min(world.delays(began + 8 * HOUR).items())
    assert first[1] <= 60


def test_a_new_rhythm_is_met_within_five_minutes(make_world: Callable[..., World]) -> None:
    """After a gap with another sensor, whose readings come at other times, the first one waits at most 5 minutes."""
    world = make_world()
    world.live(DAY / 2)
    began = world.unix
    until = began + 2 * HOUR

    def another_sensor(records: list[share.Record]) -> list[share.Record]:
        moved = [replace(each, taken=each.taken + 131_000, arrives=each.arrives + 131) for each in records]
        return [each for each in moved if each.taken >= until * 1000]

    world.service.distort(share_faults.during(began, math.inf, another_sensor))
    world.live(3 * HOUR)
    records = {each.taken: each for each in another_sensor(list(share.series(world.account, until - 300, world.unix)))}
    delays = {date: at - records[date].arrives for date, at in world.published.items() if date in records}
    assert min(delays.items())[1] <= 300
    assert mean(list(delays.values())[3:]) < 15


DISTORTIONS: dict[str, share.Distortion] = {
    "uploaded twice": share_faults.doubled(),
    "calibrated": share_faults.calibrated(by=7),
    "throttled phone": lambda records: [
        replace(each, arrives=each.arrives + 120 * (each.taken // 300_000 % 2)) for each in records
    ],
    "late batches": lambda records: [
        replace(each, arrives=max(each.arrives, math.ceil(each.taken / 3_600_000) * HOUR))
        if each.taken // 3_600_000 % 4 == 0
        else each
        for each in records
    ],
}


@pytest.mark.parametrize("name", DISTORTIONS)
def test_irregular_readings_do_no_harm(make_world: Callable[..., World], name: str) -> None:
    """Doubles, uneven gaps and late batches are all published with few requests, and the delay stays sensible."""
    world = make_world()
    world.service.distort(DISTORTIONS[name])
    world.live(DAY / 2)
    learned_at = world.unix
    world.live(DAY)
    own = list(share.series(world.account, learned_at, world.unix - 2 * HOUR))
    assert {record.taken for record in own} <= world.published.keys()
    assert len(world.requests(learned_at)) <= 4 * 288
    assert 1 <= world.status["delay"] <= 30


def test_a_wrong_password_with_a_restart_every_hour(make_world: Callable[..., World]) -> None:
    """For a day, no hour has more than 3 requests with the password, and the day at most 12 and one per restart."""
    world = make_world(password="wrong")
    for _ in range(24):
        world.live(HOUR)
        world.restart()
    attempts = world.requests(password=True)
    assert 3 <= len(attempts) <= 12 + 24
    assert most_within(attempts, HOUR) <= 3


def test_a_refresh_that_finds_nothing_teaches_nothing(make_world: Callable[..., World]) -> None:
    """Many requested polls in vain do not change when readings are first asked for."""
    world = make_world()
    world.live(DAY / 2)
    learned = world.status["delay"]
    for _ in range(120):
        world.poller.refresh()
        world.live(MINUTE)
    assert abs(world.status["delay"] - learned) < 4


def test_a_state_that_cannot_be_composed_fails_in_the_accounts_loop(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If composing a state fails, it fails in the account's loop, and nothing of it reaches the broker's."""
    world = make_world()

    def fail(*_: object) -> NoReturn:
        raise ArithmeticError

    monkeypatch.setattr(unpublished, "state_of", fail)
    world.live(MINUTE)
    assert world.status["share"] == "unexpected_response"
    assert world.outgoing.take(world.clock.now(), 20) == []  # as the broker's loop does


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def stamped(record: dict[str, Any]) -> float:
    """Return the Unix seconds of a record as Share sends it."""
    return int(record["WT"][5:-1]) / 1000


def spoilt(is_meant: Callable[[dict[str, Any]], bool], **changes: object) -> share.Fault:
    """Change the records for which ``is_meant`` is true."""
    return share_faults.only(
        share_faults.edited(lambda records: [{**each, **changes} if is_meant(each) else each for each in records]),
        call="read",
    )


@pytest.mark.parametrize("change", [{"Value": "110"}, {"WT": None}, {"WT": "soon", "Value": "110.0"}])
def test_a_new_format_is_read_and_logged_once(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    """Readings in a new format are published as usual, with one warning as long as a day contains any of them."""
    world = make_world()
    world.live(HOUR)
    began = world.unix
    world.service.fault = spoilt(lambda each: stamped(each) >= began, **change)
    world.live(5 * HOUR)
    assert world.status["share"] == "ok"
    assert len(world.delays(began)) >= 59
    (line,) = warnings(caplog)
    assert line.startswith("anna: Share sends readings in a new form")
    assert " (1 in the last answer)" in line
    ended = world.unix
    world.service.fault = spoilt(lambda each: began <= stamped(each) < ended, **change)
    world.live(20 * HOUR)  # the last of them is still there
    assert len(warnings(caplog)) == 1
    world.live(6 * HOUR)
    world.service.fault = spoilt(lambda _: True, **change)
    world.live(HOUR)
    assert len(warnings(caplog)) == 2


def test_a_malformed_record_is_logged_once(make_world: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    """A malformed record causes one warning in the whole day that Share keeps it; a later one causes another."""
    world = make_world()
    world.live(HOUR)
    began = world.unix
    world.service.fault = spoilt(lambda each: began <= stamped(each) < began + 5 * MINUTE, Value="many")
    world.live(DAY + 2 * HOUR)
    assert world.status["share"] == "ok"
    (line,) = warnings(caplog)
    assert line.startswith(
        "anna: Share sends records that make no sense (1 in the last answer). They are ignored; all others count"
    )
    began = world.unix
    world.service.fault = spoilt(lambda each: began <= stamped(each) < began + 5 * MINUTE, Value="many")
    world.live(HOUR)
    assert warnings(caplog) == [line, line]


def test_a_malformed_newest_record_is_reported_when_nothing_is_current(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """While a value is still current, the account works; then the message blames the newest record."""
    world = make_world()
    world.live(HOUR)
    began = world.unix
    world.service.fault = spoilt(lambda each: stamped(each) >= began, Value=None)
    world.live(9 * MINUTE)
    assert world.status["share"] == "ok"
    world.live(3 * HOUR)  # with polls of the whole day and shorter ones
    assert (world.status["share"], world.status["message"]) == ("unexpected_response", status.NEWEST_MALFORMED)
    kinds = [line.split(":")[1].split("(")[0].strip() for line in warnings(caplog)]
    assert kinds == ["Share sends records that make no sense", "unexpected_response"]
    world.service.fault = share.no_fault
    world.live(10 * MINUTE)
    assert world.status["share"] == "ok"


def test_a_malformed_older_record_is_not_blamed(make_world: Callable[..., World]) -> None:
    """If the newest record is good but old, there are no new readings, whatever came before it."""
    world = make_world()
    world.live(HOUR)
    began = world.unix
    world.service.distort(share_faults.during(began, math.inf, share_faults.missing))
    world.service.fault = spoilt(lambda each: stamped(each) < began - 10 * MINUTE, Value=None)
    world.live(HOUR)
    assert (world.status["share"], world.status["message"]) == ("no_readings", status.REMEDIES["no_readings"])


def test_only_malformed_records_are_an_unexpected_response(make_world: Callable[..., World]) -> None:
    """If all records are malformed, the message is that of an answer that is not understood."""
    world = make_world()
    world.service.fault = spoilt(lambda _: True, Value=None)
    world.live(HOUR)
    shown = (world.status["share"], world.status["message"])
    assert shown == ("unexpected_response", status.REMEDIES["unexpected_response"])


def test_error_codes_before_a_malformed_newest_record(make_world: Callable[..., World]) -> None:
    """If the sensor sends error codes, the status says so, even if the newest record is malformed."""
    world = make_world()
    world.live(HOUR)
    began = world.unix
    world.service.distort(share_faults.during(began, math.inf, share_faults.valued(5)))
    world.service.fault = spoilt(lambda each: stamped(each) >= began + 30 * MINUTE, Value=None)
    world.live(HOUR)
    assert world.status["share"] == "sensor_error"


def test_an_account_that_shares_nothing_says_so(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing shared is not an outage: few requests, one sign-in, one line, and a message of its own."""
    world = make_world()
    world.service.fault = share_faults.only(share_faults.error("MonitoredReceiverNotAssigned"), call="read")
    began = world.unix
    world.live(6 * HOUR)
    assert (world.status["share"], world.status["message"]) == ("no_readings", status.NOTHING_SHARED)
    assert warnings(caplog) == [f"anna: no_readings: {status.NOTHING_SHARED}"]
    assert world.status["logins_24h"] == 2  # one sign-in by user name
    assert most_within(world.requests(began + 10 * MINUTE), HOUR) <= 16
    world.service.fault = share.no_fault
    world.live(10 * MINUTE)
    assert world.status["share"] == "ok"


def test_a_current_value_stays_when_sharing_ends(make_world: Callable[..., World]) -> None:
    """When sharing is switched off, the newest value stays current until it is too old."""
    world = make_world()
    world.live(HOUR)
    world.service.fault = share_faults.only(share_faults.error("MonitoredReceiverNotAssigned"), call="read")
    world.live(9 * MINUTE)
    assert world.status["share"] == "ok"
    world.live(20 * MINUTE)
    assert (world.status["share"], world.status["message"]) == ("no_readings", status.NOTHING_SHARED)


@pytest.mark.parametrize("fault", ["nothing", "stumbles", "wrong password", "rate limit", "a bug"])
def test_a_poller_is_back_by_the_announced_time(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Before each wait, also between quick retries, a poller announces how long it will take."""
    world = make_world(password="wrong" if fault == "wrong password" else PASSWORD)
    if fault == "stumbles":
        world.live(3600)  # quick retries need a successful poll before
        world.service.fault = share_faults.status(503)
    if fault == "rate limit":
        world.service.fault = share_faults.status(429, {"Retry-After": "3600"})
    if fault == "a bug":
        poll, polls = Poller.poll, itertools.count()
        monkeypatch.setattr(Poller, "poll", lambda self: poll(self) if next(polls) % 20 else 1 / 0)
    waits: list[float] = []
    serve, began = world.clock.before_wait, world.clock.now()

    def note() -> None:
        waits.append(world.clock.now())
        serve()

    world.clock.before_wait = note
    world.live(DAY / 4)
    longest = max(after - before for before, after in itertools.pairwise([began, *waits]))
    least = {"nothing": 200, "stumbles": 200, "wrong password": 1200, "rate limit": 3500, "a bug": 290}
    assert longest >= least[fault]
    assert world.late < 1


def test_a_rate_limit_is_kept_even_if_another_account_gets_a_shorter_one(
    make_world: Callable[..., World],
) -> None:
    """An hour that Share asked of one account stays an hour, whatever it asks of another one a moment later."""
    world = make_world()
    world.live(HOUR)
    world.service.fault = share_faults.status(429, {"Retry-After": "3600"})
    world.live(10 * MINUTE)
    due = world.poller.due
    assert due > world.clock.now() + 45 * MINUTE
    world.rate_limits.limit(urlsplit(world.service.base_url).netloc, world.clock.now(), 60)
    assert world.poller.due == due


def test_a_bug_after_an_answer_does_not_make_the_answer_a_failure(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Share did answer, and the status says when; the bug is ours."""
    world = make_world()

    def fail(*_: object) -> NoReturn:
        raise ArithmeticError

    monkeypatch.setattr(unpublished, "state_of", fail)
    world.live(MINUTE)
    assert world.status["share"] == "unexpected_response"
    assert world.status["last_success_at"] is not None


def test_after_a_bug_the_account_waits_for_the_broker_again(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the earlier rejections are known, a restart of the account sends nothing."""
    world = make_world()
    world.restart(broker=False)
    polls: list[float] = []

    def poll(_: Poller) -> NoReturn:
        polls.append(world.clock.now())
        raise ArithmeticError

    monkeypatch.setattr(Poller, "poll", poll)
    began = world.clock.now()
    world.live(6 * MINUTE)
    assert polls == pytest.approx([began + 10, began + 10 + 300 + 10], abs=1)


def test_a_limit_that_is_read_back_late_is_published_before_the_history(
    make_world: Callable[..., World],
) -> None:
    """A history that seems to be in the future waits until the time is settled; the rest is published immediately."""
    world = make_world()
    world.restart(broker=False)
    ahead = Reading(100, "Flat", round((world.unix + HOUR) * 1000), 0)
    history = history_message(TOPICS, "anna", source_of("us", "anna@example.com"), [ahead]).payload.encode()
    locked = Status(share="locked_out", next_poll_at=world.unix + 600)
    before = status_message(TOPICS, "anna", locked).payload.encode()
    shown: list[str] = []
    serve = world.clock.before_wait

    def read_back() -> None:
        serve()
        if world.poller.answered.is_set() and not shown:
            world.poller.take_read_back(history, before)
            serve()
            shown.append(world.status["share"])

    world.clock.before_wait = read_back
    world.live(20)
    assert (shown, world.status["share"]) == (["locked_out"], "ok")
    assert parse_iso(world.status["next_poll_at"]) == pytest.approx(BEGIN + 5000 + 600, abs=5)
