"""A simulated month of one account in minutes, in which everything goes wrong now and then.

    python bench/soak.py [--days 30] [--seed N]

The poller, the ledger, the schedule, the stream, the mirror and the client of Share are the real ones, in one
thread, on a clock that jumps from one event to the next. Share is the simulated service over real HTTP, so that
sign-ins, lost sessions and broken answers pass through the real client. It runs in its own process, so that its memory
is not counted, and reads the time from shared memory. The broker is a stand-in without sockets: it retains messages,
acknowledges, and forgets or disconnects when the plan says so.

The seed decides before the start what goes wrong and when; it is printed with the result.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from dexcom2mqtt.account.limits import RateLimits
from dexcom2mqtt.account.poller import poller_for
from dexcom2mqtt.account.rationed import client_of
from dexcom2mqtt.clock import Alarm, Clock, Stopped
from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Account
from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.topics import Topics
from tests.support import share_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from dexcom2mqtt.messages.message import Message

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
BEGIN: Final = 1_772_323_200.0  # an instant in Unix seconds: 2026-03-01
BOOTED: Final = 5000.0  # the machine's clock then
STALE_AFTER: Final = 900.0
SETTLE: Final = 2 * HOUR  # at the end, without faults, so that everything still arrives
CUT: Final = 0.005  # probability of a failure at the worst moment: before an acknowledgement, or before the history
ANSWERS_AFTER: Final = 0.03  # seconds until the broker acknowledges
ACCOUNT: Final = SimulatedAccount("anna@example.com", "the password", seed=7)
TOPICS: Final = Topics("dexcom2mqtt")

FAULTS: Final = {
    "unavailable (503)": share_faults.status(503),
    "an HTML page": share_faults.html(200),
    "connection closed": share_faults.drop(),
    "connection reset": share_faults.reset(),
    "cut in the middle": share_faults.cut(),
    "half the JSON": share_faults.truncated(),
    "null": share_faults.body(b"null"),
    "empty": share_faults.body(b""),
    "too many requests": share_faults.status(429, {"Retry-After": "600"}),
    "no Date": share_faults.header("Date", None),
}


# What goes wrong, and when


@dataclass(frozen=True)
class Span:
    """A fault between two Unix times."""

    what: str
    since: float
    until: float


@dataclass
class Plan:
    """All faults, each kind in order of time."""

    end: float
    outages: list[Span] = field(default_factory=list)
    late: list[Span] = field(default_factory=list)
    doubles: list[Span] = field(default_factory=list)
    lost_sessions: list[float] = field(default_factory=list)
    broker_away: list[Span] = field(default_factory=list)
    broker_forgets: list[float] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """The number of faults of each kind."""
        return {name: len(value) for name, value in vars(self).items() if isinstance(value, list)}


def make_plan(days: float, seed: int) -> Plan:
    """Distribute faults over the days, each kind at its own rate per day."""
    chance = random.Random(seed)
    plan = Plan(BEGIN + days * DAY)

    def times(a_day: float) -> Iterator[float]:
        at = BEGIN + HOUR
        while (at := at + chance.expovariate(a_day / DAY)) < plan.end - SETTLE:
            yield at

    def spans(what: list[str], a_day: float, shortest: float, longest: float) -> list[Span]:
        """Return spans; shorter ones are more frequent."""
        found = []
        for at in times(a_day):
            lasting = shortest * (longest / shortest) ** chance.random()
            found.append(Span(chance.choice(what), at, min(at + lasting, plan.end - SETTLE)))
        return found

    plan.outages = spans(list(FAULTS), 3, 20, 8 * HOUR)
    plan.late = spans(["late"], 1, 600, 6 * HOUR)
    plan.doubles = spans(["doubles"], 0.5, HOUR, 4 * HOUR)
    plan.lost_sessions = list(times(4))
    plan.broker_away = spans(["away"], 3, 1, 4 * HOUR)
    plan.broker_forgets = list(times(0.5))
    plan.restarts = list(times(2))
    return plan


def distortion(plan: Plan) -> share.Distortion:
    """Return the distortion of the readings that the plan contains."""
    spans = [share_faults.during(span.since, span.until, share_faults.late(span.until)) for span in plan.late]
    return share_faults.together(
        *(share_faults.during(span.since, span.until, share_faults.doubled()) for span in plan.doubles), *spans
    )


# Share, in a process of its own


def serve(plan: Plan, now: ctypes.c_double, pipe: Connection) -> None:
    """Run the service until the pipe says so; send its base URL first, and at the end a count of the outcomes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    to_lose = list(plan.lost_sessions)

    def lose_sessions(request: share.Request, respond: share.Respond) -> share.Response:
        while to_lose and to_lose[0] <= request.time:
            del to_lose[0]
            service.drop_sessions()
        return respond(request)

    with SimulatedShare([ACCOUNT], lambda: now.value) as service:
        outages = (share_faults.only(FAULTS[span.what], since=span.since, until=span.until) for span in plan.outages)
        service.fault = share_faults.chain(lose_sessions, *outages)
        service.distort(distortion(plan))
        pipe.send(service.base_url)
        pipe.recv()
        pipe.send(Counter(request.outcome for request in service.requests))


# Time


class SoakClock(Clock):
    """A clock with the world's time; waiting on it advances the world."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def now(self) -> float:
        """Return the world's time, as seconds since the machine started."""
        return self.world.unix - BEGIN + BOOTED

    def alarm(self, back_by: Callable[[float], None] = lambda _: None) -> Alarm:
        """Return an alarm whose waits advance the world."""
        return SoakAlarm(self, back_by)


class SoakAlarm(Alarm):
    """An alarm of the `SoakClock`."""

    def __init__(self, clock: SoakClock, back_by: Callable[[float], None]) -> None:
        super().__init__(clock, back_by)
        self._world = clock.world
        self._rings = False

    def ring(self) -> None:
        """End the current wait, or the next one."""
        self._rings = True

    def wait(self, seconds: float) -> bool:
        """Advance the world for so many seconds, or until the alarm rings; return whether it rang."""
        end = self._world.unix + seconds
        while not self._rings:
            self._world.advance(end)  # at least once: the end may be too close to distinguish from now
            if self._world.unix >= end:
                break
        rang, self._rings = self._rings, False
        return rang


# The broker, and everything else around the account


class Restarted(Stopped):
    """The daemon was killed."""


class Over(Stopped):
    """The time is over."""


class World:
    """The time, the broker, and what its subscribers received."""

    def __init__(self, plan: Plan, seed: int, shared_now: ctypes.c_double, base_url: str) -> None:
        self.unix = BEGIN
        self.published: Counter[int] = Counter()  # by date
        self.may_repeat = 0  # published, but not acknowledged or not in the history when something ended
        self.requests = self.logins = self.cut = self.killed = 0
        self._chance = random.Random(seed)
        self._plan = plan
        self._shared_now = shared_now
        self._base_url = base_url
        self._restarts = list(plan.restarts)
        self._forgets = list(plan.broker_forgets)
        self._away = list(plan.broker_away)
        self._retained: dict[str, Message] = {}
        self._connected = False
        self._on_their_way: list[Message] = []
        self.memory: list[tuple[float, int]] = []

    def run_daemon(self) -> None:
        """Run one daemon from its start; raises Restarted when it is killed, and Over when the time is over."""
        self._mirror = Mirror(last=TOPICS.bridge_state)
        self._stream = Stream(TOPICS)
        self._clock = SoakClock(self)
        self._connected = False
        self._on_their_way = []
        self._read_back = False
        given = {"username": ACCOUNT.username, "password": ACCOUNT.password, "share_url": self._base_url}
        account = build(Account, given)
        self._client = client_of(account, self._clock)
        self.poller = poller_for(
            "anna",
            account,
            self._client,
            clock=self._clock,
            topics=TOPICS,
            put=self._mirror.put,
            stream=self._stream,
            stale_after=STALE_AFTER,
            rate_limits=RateLimits(),
        )
        self.poller.run()

    def advance(self, until: float) -> None:
        """Advance the time to the next event, but not beyond ``until``."""
        self._shared_now.value = self.unix
        self._fail()
        self._serve()
        offset = BEGIN - BOOTED
        coming = [until, self._plan.end]
        if self._connected:
            coming += [self._mirror.next_at() + offset, self._stream.next_at(self._clock.now()) + offset]
        if self._on_their_way:
            coming.append(self.unix + ANSWERS_AFTER)
        coming += [times[0] for times in (self._restarts, self._forgets) if times]
        coming += [at for span in self._away[:1] for at in (span.since, span.until) if at > self.unix]
        self.unix = max(min(coming), self.unix + 0.001)
        self._shared_now.value = self.unix
        if not self.memory or self.unix - self.memory[-1][0] >= HOUR:
            self.memory.append((self.unix, resident()))

    def _fail(self) -> None:
        """Cause the faults that are due."""
        if self.unix >= self._plan.end:
            raise Over
        if self._forgets and self._forgets[0] <= self.unix:
            del self._forgets[0]
            self._retained.clear()
            self._hang_up()
        while self._away and self._away[0].until <= self.unix:
            del self._away[0]
        if self._away and self._away[0].since <= self.unix:
            self._hang_up()
        if self._restarts and self._restarts[0] <= self.unix:
            del self._restarts[0]
            self._kill()

    def _kill(self) -> None:
        kept = self._retained.get(TOPICS.of("anna", "history"))
        saved = set() if kept is None else {entry["date"] for entry in json.loads(kept.payload)["readings"]}
        oldest = max(self.published, default=0) - DAY * 1000
        self.may_repeat += sum(date >= oldest and date not in saved for date in self.published)
        raise Restarted

    def _hang_up(self) -> None:
        if self._connected:
            self.may_repeat += len(self._on_their_way)
            self._connected = False
            self._on_their_way = []
            self._stream.lost()

    def _connect(self) -> None:
        self._connected = True
        self._mirror.send_all()
        if not self._read_back:
            self._read_back = True
            kept = (self._retained.get(TOPICS.of("anna", leaf)) for leaf in ("history", "status", "days"))
            self.poller.take_read_back(*(None if message is None else message.payload.encode() for message in kept))

    def _serve(self) -> None:
        """Accept the daemon's messages, and acknowledge those of the last call."""
        if not self._connected:
            if self._away and self._away[0].since <= self.unix:
                return
            self._connect()
        now = self._clock.now()
        if self._on_their_way and self._chance.random() < CUT:
            self.cut += 1
            self._hang_up()
            return
        for message in self._on_their_way:
            self._stream.acknowledged(message)
        if self._on_their_way and self._chance.random() < CUT:
            self.killed += 1
            self._kill()
        self._on_their_way = []
        self._mirror.put(self._stream.histories(now))
        for message in self._mirror.take(now, 1000):
            self._retained[message.topic] = message
        for message in self._stream.take(now, 20):
            self.published[json.loads(message.payload)["date"]] += 1
            self._on_their_way.append(message)

    @property
    def repeated(self) -> int:
        """How many publications were repetitions."""
        return sum(self.published.values()) - len(self.published)

    def add_up(self) -> None:
        """Add up the ended daemon's requests and sign-ins."""
        self.requests += self._client.requests
        self.logins += self._client.logins


def resident() -> int:
    """Return the resident memory of this process, in KiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


# The result


def compare(plan: Plan, published: Counter[int]) -> tuple[int, int, int]:
    """Return how many readings were due, how many of them are lost, and how many unexpected ones arrived.

    Of two readings with the same value less than 30 s apart, only one is published.
    """
    records = distortion(plan)(list(share.series(ACCOUNT, BEGIN - DAY, plan.end)))
    groups: list[list[share.Record]] = []
    for record in sorted(records, key=lambda record: record.taken):
        before = groups[-1][-1] if groups else None
        if before and record.taken - before.taken <= 30_000 and record.value == before.value:
            groups[-1].append(record)
        else:
            groups.append([record])

    def arrived(group: list[share.Record]) -> int:
        return sum(record.taken in published for record in group)

    due = [group for group in groups if min(record.arrives for record in group) <= plan.end - 600]
    due = [group for group in due if group[0].taken >= (BEGIN - DAY + 60) * 1000]  # earlier ones were just too old
    unexpected = sum(max(0, arrived(group) - 1) for group in groups)
    unexpected += len(published.keys() - {record.taken for record in records})
    return len(due), sum(not arrived(group) for group in due), unexpected


def main() -> int:
    """Run the soak and print its table; return 1 if a reading was lost, unexpected or wrongly repeated."""
    parser = argparse.ArgumentParser(description="A simulated month in minutes.")
    parser.add_argument("--days", type=float, default=30.0, help="simulated days (default: 30)")
    parser.add_argument("--seed", type=int, default=None, help="decides what goes wrong (default: by chance)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    random.seed(seed)
    logging.basicConfig(level=logging.CRITICAL)
    plan = make_plan(options.days, seed)
    began = time.monotonic()

    spawn = multiprocessing.get_context("spawn")
    shared_now = spawn.RawValue(ctypes.c_double, BEGIN)
    pipe, end_of_service = spawn.Pipe()
    service = spawn.Process(target=serve, args=(plan, shared_now, end_of_service), daemon=True)
    service.start()
    world = World(plan, seed, shared_now, pipe.recv())
    over = False
    while not over:
        try:
            world.run_daemon()
        except Restarted:
            pass
        except Over:
            over = True
        world.add_up()
    pipe.send("end")
    outcomes = pipe.recv()
    service.join(10)

    report(plan, seed, world, outcomes, time.monotonic() - began)
    _, lost, unexpected = compare(plan, world.published)
    return 1 if lost or unexpected or world.repeated > world.may_repeat else 0


def report(plan: Plan, seed: int, world: World, outcomes: Counter[str], seconds: float) -> None:
    """Print the table."""
    due, lost, unexpected = compare(plan, world.published)
    first = [kib for at, kib in world.memory if BEGIN + HOUR <= at < BEGIN + DAY] or [0]
    last = [kib for at, kib in world.memory if at >= plan.end - DAY] or [0]
    rows = {
        "seed": seed,
        "simulated days": f"{(plan.end - BEGIN) / DAY:g}",
        "went wrong": ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in plan.counts.items()),
        "readings to deliver": due,
        "requests per reading": f"{world.requests / (plan.end - BEGIN) * 300:.2f}",
        "answers that were faults": sum(count for outcome, count in outcomes.items() if outcome != "ok"),
        "sign-ins (requests with the password)": world.logins,
        "published": len(world.published),
        "connections cut before the acknowledgement": world.cut,
        "killed before the history": world.killed,
        "repeated (allowed)": f"{world.repeated} ({world.may_repeat})",
        "lost": lost,
        "published, but unexpected": unexpected,
        "resident memory, first day": f"{max(first) / 1024:.1f} MiB",
        "resident memory, last day": f"{max(last) / 1024:.1f} MiB",
        "wall time": f"{seconds:.0f} s",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    sys.exit(main())
