"""When a real poller asks the simulated Share service over real HTTP, on a clock that jumps: days in seconds."""

from __future__ import annotations

import itertools
import json
import math
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from dexcom2mqtt import messages
from dexcom2mqtt.clock import Stopped
from dexcom2mqtt.config import Account
from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from dexcom2mqtt.messages import Topics
from dexcom2mqtt.mirror import Mirror
from dexcom2mqtt.poller import Poller
from dexcom2mqtt.stream import Stream
from tests.jumping import JumpingClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BEGIN = 1_772_323_200.0  # an instant in Unix seconds: 2026-03-01
MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0
TOPICS = Topics("dexcom2mqtt")
PASSWORD = "the password"


class World:
    """A poller, the service that it asks, and a stand-in for the broker that takes everything at once."""

    def __init__(self, password: str = PASSWORD, **account: Any) -> None:
        self.clock = JumpingClock(end=math.inf)
        self.account = SimulatedAccount("anna@example.com", PASSWORD, **account)
        self.service = SimulatedShare([self.account], lambda: self.unix)
        self.retained: dict[str, bytes] = {}
        self.published: dict[int, float] = {}  # by date: when
        self._back_by = math.inf
        self.late = -math.inf  # how many seconds later than it said the poller was back
        self._password = password
        self.clock.before_wait = self._serve
        self.service.__enter__()
        self.restart()

    @property
    def unix(self) -> float:
        return BEGIN + self.clock.time

    def restart(self) -> None:
        """Start the daemon anew, which knows nothing but what is retained."""
        self._mirror, self._stream = Mirror(last=TOPICS.bridge_state), Stream(TOPICS)
        given = {"username": "anna@example.com", "password": self._password, "share_url": self.service.base_url}
        self._poller = Poller(
            "anna",
            Account.model_validate(given),
            clock=self.clock,
            topics=TOPICS,
            put=self._mirror.put,
            stream=self._stream,
            stale_after=900,
            rate_limits={},
            back_by=self._take_back_by,
        )
        self._poller.take_read_back(*(self.retained.get(TOPICS.of("anna", leaf)) for leaf in ("history", "status")))

    def live(self, seconds: float) -> None:
        """Let so much time pass."""
        self.clock.end = self.clock.time + seconds
        with suppress(Stopped):
            self._poller.run()
        self.clock.time = self.clock.end
        self._serve()

    def _take_back_by(self, at: float) -> None:
        self.late = max(self.late, self.clock.now() - self._back_by)
        self._back_by = at

    def _serve(self) -> None:
        now = self.clock.now()
        while taken := self._stream.take(now, 20):
            for message in taken:
                self.published.setdefault(json.loads(message.payload)["date"], self.unix)
                self._stream.acknowledged(message)
            self._mirror.put(self._stream.histories(math.inf))
        for message in self._mirror.take(now, 1000):
            self.retained[message.topic] = message.payload.encode()

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.retained[TOPICS.of("anna", "status")])
        return found

    def requests(self, since: float = -math.inf, until: float = math.inf, *, password: bool = False) -> list[float]:
        """Return when Share was asked, in Unix seconds; with `password`, only the requests that carry it."""
        log = self.service.requests
        return [each.time for each in log if since <= each.time < until and each.password >= password]

    def delays(self, since: float) -> dict[int, float]:
        """Return by date how many seconds after it was readable each reading taken since then was published."""
        records = {record.taken: record for record in share.series(self.account, since, self.unix)}
        return {date: at - records[date].arrives for date, at in self.published.items() if date in records}


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Make worlds whose services end with the test."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(**options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.service.__exit__(None, None, None)


def most_within(events: Iterable[float], seconds: float) -> int:
    events = sorted(events)
    return max((sum(start <= at < start + seconds for at in events) for start in events), default=0)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("fixed", [8.0, 25.0])
def test_readings_come_seconds_after_they_exist(make_world: Callable[..., World], fixed: float) -> None:
    """After half a day of learning, a reading waits seconds at hardly more than one request, and the delay is told."""
    world = make_world(delay=share.usual_delay(fixed, 2.0))
    world.live(DAY / 2)
    learned_at = world.unix
    world.live(DAY)
    delays = world.delays(learned_at)
    assert len(delays) >= 285
    assert mean(delays.values()) < 5
    assert len(world.requests(learned_at)) / len(delays) < 1.6
    assert fixed < world.status["delay"] < fixed + 8


def test_an_answer_may_take_seconds(make_world: Callable[..., World]) -> None:
    """When a reading was asked for counts, and not when the answer came."""
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


def test_the_delay_is_null_until_it_is_learned(make_world: Callable[..., World]) -> None:
    """After the first poll nothing is known of the delay."""
    world = make_world()
    world.live(20)
    assert world.status["share"] == "ok"
    assert world.status["delay"] is None


@pytest.mark.parametrize("fault", [share.status(503), share.drop(), share.html(200)])
def test_a_day_without_share_is_cheap(make_world: Callable[..., World], fault: share.Fault) -> None:
    """24 hours out of order cost 350 requests at most, teach nothing, and 5 min 10 s after it all is back."""
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


@pytest.mark.parametrize("fault", [share.status(503), share.drop()])
def test_an_outage_never_speeds_polling_up(make_world: Callable[..., World], fault: share.Fault) -> None:
    """After the first minutes of an outage, no hour of it has more requests than one with readings may have."""
    world = make_world()
    world.live(HOUR)
    world.service.fault = fault
    began = world.unix
    world.live(6 * HOUR)
    assert most_within(world.requests(began + 10 * MINUTE), HOUR) <= 16


def test_hours_without_readings_are_cheap(make_world: Callable[..., World]) -> None:
    """A gap costs 13 requests an hour after its first reading is late, and the old rhythm is met within a minute."""
    world = make_world()
    world.live(DAY / 2)
    began = world.unix
    world.service.distort(share.during(began, began + 8 * HOUR, share.missing))
    world.live(8 * HOUR)
    assert most_within(world.requests(began + 11 * MINUTE), HOUR) <= 13
    assert world.status["share"] == "no_readings"
    world.live(HOUR)
    first = min(world.delays(began + 8 * HOUR).items())
    assert first[1] <= 60


def test_a_new_rhythm_is_met_within_five_minutes(make_world: Callable[..., World]) -> None:
    """After a gap with another sensor, whose readings come at other moments, the first waits 5 minutes at most."""
    world = make_world()
    world.live(DAY / 2)
    began = world.unix
    until = began + 2 * HOUR

    def another_sensor(records: list[share.Record]) -> list[share.Record]:
        moved = [replace(each, taken=each.taken + 131_000, arrives=each.arrives + 131) for each in records]
        return [each for each in moved if each.taken >= until * 1000]

    world.service.distort(share.during(began, math.inf, another_sensor))
    world.live(3 * HOUR)
    records = {each.taken: each for each in another_sensor(list(share.series(world.account, until - 300, world.unix)))}
    delays = {date: at - records[date].arrives for date, at in world.published.items() if date in records}
    assert min(delays.items())[1] <= 300
    assert mean(list(delays.values())[3:]) < 15


DISTORTIONS: dict[str, share.Distortion] = {
    "uploaded twice": share.doubled(),
    "calibrated": share.calibrated(by=7),
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
def test_what_is_irregular_confuses_nothing(make_world: Callable[..., World], name: str) -> None:
    """Doubles, uneven gaps and late batches are all published, at few requests, and the delay stays sensible."""
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
    """For a day, no hour has more than 3 requests with the password, and the day no more than 12."""
    world = make_world(password="wrong")
    for _ in range(24):
        world.live(HOUR)
        world.restart()
    attempts = world.requests(password=True)
    assert 3 <= len(attempts) <= 12
    assert most_within(attempts, HOUR) <= 3


def test_a_refresh_that_finds_nothing_teaches_nothing(make_world: Callable[..., World]) -> None:
    """Somebody who asks all the time in vain does not shift when readings are first asked for."""
    world = make_world()
    world.live(DAY / 2)
    learned = world.status["delay"]
    for _ in range(120):
        world._poller.refresh()  # noqa: SLF001  # as a message would
        world.live(MINUTE)
    assert abs(world.status["delay"] - learned) < 4


def test_a_state_that_cannot_be_written_is_the_accounts_own_trouble(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where writing a reading down fails, it fails in the account's loop, and nothing of it gets to the broker's."""
    world = make_world()

    def fail(*_: object) -> NoReturn:
        raise ArithmeticError

    monkeypatch.setattr(messages, "state_of", fail)
    world.live(MINUTE)
    assert world.status["share"] == "unexpected_response"
    assert world._stream.take(world.clock.now(), 20) == []  # noqa: SLF001  # as the broker's loop does


@pytest.mark.parametrize("fault", ["nothing", "stumbles", "wrong password", "rate limit", "a bug"])
def test_however_long_it_waits_it_is_back_by_when_it_said(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Before each wait a poller says how long that is, also before those between quick retries."""
    world = make_world(password="wrong" if fault == "wrong password" else PASSWORD)
    if fault == "stumbles":
        world.live(3600)  # quick retries are for a poll whose predecessor succeeded
        world.service.fault = share.status(503)
    if fault == "rate limit":
        world.service.fault = share.status(429, {"Retry-After": "3600"})
    if fault == "a bug":
        poll, polls = Poller._poll, itertools.count()  # noqa: SLF001  # where it hurts
        monkeypatch.setattr(Poller, "_poll", lambda self: poll(self) if next(polls) % 20 else 1 / 0)
    waits: list[float] = []
    serve, began = world.clock.before_wait, world.clock.now()

    def note() -> None:
        waits.append(world.clock.now())
        serve()

    world.clock.before_wait = note
    world.live(DAY / 4)
    longest = max(after - before for before, after in itertools.pairwise([began, *waits]))
    least = {"nothing": 200, "stumbles": 200, "wrong password": 1200, "rate limit": 3600, "a bug": 290}
    assert longest >= least[fault]
    assert world.late < 1
