"""How soon a reading is published once it is readable, with how many requests: we, others, the best possible.

    .venv/bin/pip install -e '.[bench]'
    .venv/bin/python bench/latency.py [--days 20] [--seed N] [--plot docs/latency.png]

With the default days it takes 5 to 10 minutes on two cores. The targets are for ``--seed 1`` and the default days:
otherwise chance alone may miss them. Each missed target is printed, and the exit code is then 1.

The poller, its schedule, the ledger and the stream are the real ones, on a clock that jumps from one wait to the next.
Share and the broker are stand-ins that answer at once: the measured delay is from when a reading becomes readable
until it is passed to the broker. Of the other clients only the documented rules for when to ask are simulated,
in a few lines each. The oracle knows the distribution of a profile's delays and picks the best times to ask; no client
knows it. It also has no jitter of the sensor, so no client can reach its delay if delays vary by less than a second.

Each run lasts ``--days``, from a cold start, with the sensor's jitter and drift, and about every ten days a warm-up
without readings (27 minutes or 2 hours), after which readings come at other times. A request is one poll; each
session of 24 hours costs two more. For restarts, the same poller starts again every 6.3 hours with what it had
retained. Each of the three profiles runs with five seeds, each random one with one. No phone's clock is ahead here;
``ahead_of_time`` in ``tests/account/test_schedule.py`` simulates that.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import statistics
import sys
from bisect import bisect_right
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from dexcom2mqtt.account.limits import RateLimits
from dexcom2mqtt.account.poller import poller_for
from dexcom2mqtt.clock import Stopped
from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Account
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.share import Batch
from dexcom2mqtt.share.server_time import ShareTime
from dexcom2mqtt.topics import Topics
from tests.support.jumping import JumpingClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.share import ShareClient

DAY: Final = 86400.0
INTERVAL: Final = 300.0
BOOTED: Final = 5000.0  # the machine's clock at the start
BEGIN: Final = 1_772_323_200  # an instant in Unix seconds: 2026-03-01
SESSION: Final = DAY
PRICES: Final = (0.3, 0.6, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 45)  # seconds of delay for a request
SEEDS: Final = 5
RESTART_SEEDS: Final = 2  # each has some 70 restarts
# The targets, for --seed 1 and the default days:
TARGETS: Final = ((4, 1.45), (5, 1.6), (8, 1.7))  # mean delay in seconds, requests per reading, of the three profiles
HOUR: Final = 3600.0
RESTART_EVERY: Final = 6.3 * HOUR  # so that restarts come at all phases of the interval and of the session
RESTARTED: Final = 1.05  # the delay in the hour after a restart ÷ that of no restart
RATIO: Final = 1.4  # our delay ÷ the oracle's with as many requests, mean of the random profiles


# When readings become readable


@dataclass(frozen=True)
class Profile:
    """How many seconds after it was taken a reading becomes readable; a fraction ``tail`` takes 30 to 300 s."""

    base: float
    mean: float  # of the part above the base
    tail: float = 0.04
    shape: str = "exponential"

    def __str__(self) -> str:
        return f"{self.base:.3g} s + {self.shape} {self.mean:.2g} s, {self.tail:.0%} late"

    def draw(self, chance: random.Random) -> float:
        """Draw one delay."""
        if chance.random() < self.tail:
            return chance.uniform(30, 300)
        match self.shape:
            case "exponential":
                return self.base + chance.expovariate(1 / self.mean)
            case "gamma":
                return self.base + chance.gammavariate(3, self.mean / 3)
            case _:
                return self.base + self.mean * math.exp(chance.gauss(0, 0.8) - 0.32)

    def arrived(self, seconds: float) -> float:
        """Return the probability that a reading is readable so many seconds after it was taken."""
        late = min(max((seconds - 30) / 270, 0), 1)
        above = (seconds - self.base) / self.mean
        if above <= 0:
            usual = 0.0
        elif self.shape == "exponential":
            usual = 1 - math.exp(-above)
        elif self.shape == "gamma":
            usual = 1 - math.exp(-3 * above) * (1 + 3 * above + 4.5 * above**2)
        else:
            usual = 0.5 * (1 + math.erf((math.log(above) + 0.32) / (0.8 * math.sqrt(2))))
        return self.tail * late + (1 - self.tail) * usual


THREE: Final = (Profile(8, 2), Profile(12, 4), Profile(25, 8))


def random_profiles(seed: int, count: int = 20) -> list[Profile]:
    """Draw profiles of all shapes."""
    chance = random.Random(seed)
    shapes = ("exponential", "gamma", "lognormal")
    return [
        Profile(chance.uniform(4, 40), 0.5 * 24 ** chance.random(), chance.uniform(0, 0.1), shapes[number % 3])
        for number in range(count)
    ]


@dataclass(frozen=True)
class Arrival:
    """A reading: when it was taken, and when it becomes readable, in seconds of the clock."""

    taken: float
    readable: float


def arrivals(profile: Profile, days: float, seed: int) -> list[Arrival]:
    """Return the readings of some days, in the order in which they become readable."""
    chance = random.Random(seed)
    at = BOOTED - chance.uniform(0, INTERVAL)
    warm_up, next_warm_up = 27 * 60.0, BOOTED + chance.uniform(2, 8) * DAY
    found = []
    while at < BOOTED + days * DAY:
        if at > next_warm_up:
            at += warm_up + chance.uniform(0, INTERVAL)
            warm_up, next_warm_up = 2 * 3600.0, next_warm_up + 10 * DAY
        taken = at + chance.uniform(-0.5, 0.5)
        found.append(Arrival(taken, taken + profile.draw(chance)))
        at += INTERVAL + 0.02
    return sorted(found, key=lambda arrival: arrival.readable)


@dataclass(frozen=True)
class Result:
    """The result of a run: the delays in seconds, and the number of requests."""

    delays: Sequence[float]
    requests: int

    @property
    def mean(self) -> float:
        """The mean delay in seconds."""
        return statistics.fmean(self.delays)

    @property
    def requests_per_reading(self) -> float:
        """The requests per reading."""
        return self.requests / len(self.delays)

    def numbers(self) -> str:
        """Return mean, median and 95th percentile of the delay, and the requests per reading, as text."""
        ordered = sorted(self.delays)
        p95 = ordered[int(len(ordered) * 0.95)]
        return f"{self.mean:.1f} / {ordered[len(ordered) // 2]:.1f} / {p95:.0f} s at {self.requests_per_reading:.2f}"


def together(results: Sequence[Result]) -> Result:
    """Combine several runs into one result."""
    return Result([delay for result in results for delay in result.delays], sum(each.requests for each in results))


# dexcom2mqtt


class MemoryShare:
    """Replaces the client of Share: it returns a reading as soon as that is readable, and answers at once."""

    host = "share.example"
    sign_in_requests = 2

    def __init__(self, found: Sequence[Arrival], clock: Clock) -> None:
        self._readable = [arrival.readable for arrival in found]
        self._readings = [Reading(100, "Flat", round(unix(arrival.taken) * 1000), 0) for arrival in found]
        self._clock = clock
        self._session_ends = -math.inf
        self.time = ShareTime(clock)
        self.requests = self.logins = self.sessions = 0

    @property
    def signed_in(self) -> bool:
        """Whether there has been a session."""
        return self.sessions > 0

    def ask_time(self) -> None:
        """Do nothing: the first answer has the time."""

    def fetch(self, minutes: int, *, renew: bool) -> Batch:
        """Return the readable readings of the last minutes; count a sign-in if the session has ended."""
        del renew  # renewing is always allowed here
        now = self._clock.now()
        if now > self._session_ends:
            self.requests += 2  # sign-in by name and then by id; or a poll with the dead session, and a sign-in by id
            self.logins += 1
            self.sessions += 1
            self._session_ends = now + SESSION
        self.requests += 1
        self.time.update(http_date(unix(now)), now)
        by_now = bisect_right(self._readable, now)
        recent = self._readings[max(0, by_now - 400) : by_now]
        oldest = (unix(now) - minutes * 60) * 1000
        return Batch(tuple(sorted((each for each in recent if each.date >= oldest), key=lambda each: each.date)))


def unix(at: float) -> float:
    """Return a time of the clock in Unix seconds."""
    return BEGIN + at - BOOTED


def http_date(seconds: float) -> str:
    """Return a time as Share writes it, in whole seconds."""
    return formatdate(math.floor(seconds), usegmt=True)


class Ours:
    """The real poller beside a broker that accepts everything; ``delays`` are in seconds, by the reading."""

    def __init__(self, found: Sequence[Arrival]) -> None:
        self.delays: dict[Arrival, float] = {}
        self.requests = 0
        self._found = found
        self._arrivals = {round(unix(arrival.taken) * 1000): arrival for arrival in found}
        self._topics = Topics("dexcom2mqtt")
        self._retained: dict[str, bytes] = {}
        self._now = BOOTED

    def live(self, until: float) -> None:
        """Start with what the broker has retained, and run until then."""
        clock = JumpingClock(end=until, begin=self._now)
        share = MemoryShare(self._found, clock)
        stream, mirror = Stream(self._topics), Mirror(last=self._topics.bridge_state)

        def serve() -> None:
            """Act as the broker: accept everything, and acknowledge it."""
            while taken := stream.take(clock.now(), 20):
                for message in taken:
                    arrival = self._arrivals[json.loads(message.payload)["date"]]
                    self.delays.setdefault(arrival, clock.now() - max(arrival.readable, BOOTED))
                    stream.acknowledged(message)
                mirror.put(stream.histories(math.inf))
            self._retained |= {each.topic: each.payload.encode() for each in mirror.take(clock.now(), 1000)}

        clock.before_wait = serve
        given: dict[str, Any] = {"username": "anna@example.com", "password": "password"}
        anna = poller_for(
            "anna",
            build(Account, given),
            cast("ShareClient", share),
            clock=clock,
            topics=self._topics,
            put=mirror.put,
            stream=stream,
            stale_after=900,
            rate_limits=RateLimits(),
        )
        topics = (self._topics.of("anna", leaf) for leaf in ("history", "status", "days"))
        anna.take_read_back(*(self._retained.get(topic) for topic in topics))
        with suppress(Stopped):
            anna.run()
        serve()
        self._now = until
        self.requests += share.requests


def ours(found: Sequence[Arrival], days: float) -> Result:
    """Run the real poller; return its result."""
    poller = Ours(found)
    poller.live(BOOTED + days * DAY)
    return Result([*poller.delays.values()], poller.requests)


def after_restarts(profile: Profile, days: float, seed: int) -> tuple[list[float], list[float]]:
    """Run the real poller with and without restarts.

    Return the delays of the readings that became readable in the hour after a restart, and those of the same readings
    without restarts.
    """
    random.seed(seed)  # the poller uses this generator
    logging.basicConfig(level=logging.CRITICAL)
    found, end = arrivals(profile, days, seed), BOOTED + days * DAY
    restarted, steady = Ours(found), Ours(found)
    steady.live(end)
    restarts = np.arange(BOOTED + DAY, end, RESTART_EVERY)
    for at in (*restarts, end):
        restarted.live(float(at))
    places = np.searchsorted(restarts, [arrival.readable for arrival in found], side="right")
    since = {
        arrival: arrival.readable - restarts[place - 1] for arrival, place in zip(found, places, strict=True) if place
    }
    hour = [
        each for each, seconds in since.items() if seconds < HOUR and {each} <= restarted.delays.keys() & steady.delays
    ]
    return [restarted.delays[each] for each in hour], [steady.delays[each] for each in hour]


# The others: a rule gets the present time, the newest reading's time and a random generator; returns when to ask next


def every(seconds: float) -> Callable[[float, float, random.Random], float]:
    """Return a rule that always waits for the same time."""
    return lambda now, _newest, _chance: now + seconds


def nightscout_connect(now: float, newest: float, chance: random.Random) -> float:
    """Ask 318 to 336 s after the newest reading; if that is late, a minute later (an assumption)."""
    first_try = newest + 318 + chance.uniform(0, 18)
    return first_try if first_try > now else now + 60


def loop_follow(now: float, newest: float, _chance: random.Random) -> float:
    """Ask 310 s after the newest reading, then every 5 s, and then less and less often."""
    age = now - newest
    steps = ((420, 5), (600, 30), (1200, 60))
    return newest + 310 if age < 310 else now + next((seconds for until, seconds in steps if age < until), 300)


def xdrip(now: float, newest: float, _chance: random.Random) -> float:
    """Ask 300 s after the newest reading and again 20 s later, and the same every 300 s."""
    passed = (now - newest) % INTERVAL
    return now + (20 - passed if now - newest >= INTERVAL and passed < 19.9 else INTERVAL - passed)


def gluco_data_handler(now: float, newest: float, _chance: random.Random) -> float:
    """Ask 330 s after the newest reading, and then every minute."""
    return max(newest + 330, now + 60) if now - newest >= 330 else newest + 330


OTHERS: Final = {
    "Home Assistant dexcom": every(180),
    "share2nightscout-bridge": every(150),
    "nightscout-connect": nightscout_connect,
    "LoopFollow": loop_follow,
    "xDrip+": xdrip,
    "GlucoDataHandler": gluco_data_handler,
}


def another(
    rule: Callable[[float, float, random.Random], float], found: Sequence[Arrival], days: float, seed: int
) -> Result:
    """Run the rule of another client; return its result."""
    chance = random.Random(seed)
    now, newest, read, delays, requests = BOOTED, -math.inf, 0, list[float](), 0
    session_ends = -math.inf
    while now < BOOTED + days * DAY:
        requests += 1
        if now > session_ends:
            requests, session_ends = requests + 2, now + SESSION
        while read < len(found) and found[read].readable <= now:
            newest = max(newest, found[read].taken)
            delays.append(now - max(found[read].readable, BOOTED))
            read += 1
        now = max(rule(now, newest, chance), now + 1) if newest > -math.inf else now + 60
    return Result(delays, requests)


# The oracle


def oracle(profile: Profile, price: float) -> tuple[float, float]:
    """Return the mean delay and the requests per reading for the best times to ask, if a request has this price.

    Dynamic programming over the times of the polls, backwards from the last one: the first try for the next reading,
    which costs nothing more. Its time depends on the first try, so it is approximated in three rounds.
    """
    first = profile.base + profile.mean
    for _ in range(3):
        times = np.concatenate([np.arange(0, 100, 0.25), np.arange(100, INTERVAL + first, 2), [INTERVAL + first]])
        arrived = np.array([profile.arrived(at) for at in times])
        arrived[-1] = 1.0
        fine = np.linspace(0, 1, 9)
        areas = [
            np.trapezoid([profile.arrived(a + (b - a) * part) for part in fine], dx=(b - a) / 8)
            for a, b in pairwise(times)
        ]
        area = np.concatenate([[0.0], np.cumsum(areas)])  # under the curve of the probability of arrival
        last = len(times) - 1
        cost, following = np.zeros(last + 1), np.full(last + 1, last)
        for now in range(last - 1, -1, -1):
            waiting = area[now + 1 :] - area[now] - arrived[now] * (times[now + 1 :] - times[now])
            asking = np.full(last - now, price * (1 - arrived[now]))
            asking[-1] = 0.0
            total = waiting + asking + cost[now + 1 :]
            following[now] = now + 1 + int(np.argmin(total))
            cost[now] = total.min()
        polls = [0]
        while polls[-1] != last:
            polls.append(int(following[polls[-1]]))
        first = times[polls[1]] if polls[1] != last else first
    delay = sum(area[b] - area[a] - arrived[a] * (times[b] - times[a]) for a, b in pairwise(polls))
    requests = sum(1 - arrived[a] for a in polls[:-2]) if len(polls) > 2 else 1.0
    return float(delay), float(requests)


def frontier(profile: Profile) -> list[tuple[float, float]]:
    """Return the oracle's requests and delay for each price, the fewest requests first."""
    return sorted((requests, delay) for delay, requests in (oracle(profile, price) for price in PRICES))


def best_at(points: Sequence[tuple[float, float]], requests: float) -> float:
    """Return the oracle's delay with so many requests per reading."""
    return float(np.interp(requests, *zip(*points, strict=True)))


# The result


def plot(path: Path, rows: dict[str, list[Result]], frontiers: Sequence[list[tuple[float, float]]]) -> None:
    """Plot the delay over the requests for the three profiles."""
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and only the plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(THREE), figsize=(13, 4.2), sharey=True)
    for number, (profile, points, axis) in enumerate(zip(THREE, frontiers, axes, strict=True)):
        axis.plot(*zip(*points, strict=True), color="0.5", label="oracle: the best possible")
        for name, results in rows.items():
            of_us = name == "dexcom2mqtt"
            x, y = results[number].requests_per_reading, results[number].mean
            axis.plot(
                x, y, "*" if of_us else "o", ms=15 if of_us else 7, color="crimson" if of_us else None, label=name
            )
        axis.set(title=str(profile), xlabel="requests per reading", yscale="log", xscale="log")
        axis.set_xticks([1, 1.5, 2, 3, 5], ["1", "1.5", "2", "3", "5"])
        axis.set_xticks([], minor=True)
        axis.set_yticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean delay, seconds")
    axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def run(profile: Profile, days: float, seed: int) -> dict[str, Result]:
    """Run every client on the same readings; return the results by name."""
    random.seed(seed)  # the poller uses this generator
    logging.basicConfig(level=logging.CRITICAL)
    found = arrivals(profile, days, seed)
    others = {name: another(rule, found, days, seed) for name, rule in OTHERS.items()}
    return {"dexcom2mqtt": ours(found, days), **others}


def run_restarts(days: float, seed: int) -> list[float]:
    """Return, for the three profiles, the mean delay in the hour after a restart ÷ that of no restart."""
    worlds = [(profile, days, seed + number) for profile in THREE for number in range(RESTART_SEEDS)]
    with ProcessPoolExecutor() as processes:
        pairs = list(processes.map(after_restarts, *zip(*worlds, strict=True)))
    found = []
    for first in range(0, len(pairs), RESTART_SEEDS):
        after, without = (
            list(chain.from_iterable(each)) for each in zip(*pairs[first : first + RESTART_SEEDS], strict=True)
        )
        found.append(statistics.fmean(after) / statistics.fmean(without))
    return found


def run_all(worlds: Sequence[tuple[Profile, float, int]]) -> list[dict[str, Result]]:
    """Run them in parallel."""
    with ProcessPoolExecutor() as processes:
        return list(processes.map(run, *zip(*worlds, strict=True)))


def missed_targets(us: Sequence[Result], ratio: float, ahead: int, restarts: Sequence[float]) -> list[str]:
    """Return each missed target in words: of the three profiles, the ratio to the oracle, the others, and restarts."""
    missed = []
    for profile, result, (delay, requests) in zip(THREE, us, TARGETS, strict=True):
        if result.mean > delay:
            missed.append(f"{profile}: mean {result.mean:.2f} s, at most {delay} s")
        if result.requests_per_reading > requests:
            missed.append(f"{profile}: {result.requests_per_reading:.3f} requests per reading, at most {requests}")
    if ratio > RATIO:
        missed.append(f"ratio to the oracle: {ratio:.3f}, at most {RATIO}")
    if ahead:
        missed.append(f"others ahead in both delay and requests: {ahead}, at most 0")
    for profile, after in zip(THREE, restarts, strict=True):
        if after > RESTARTED:
            missed.append(f"{profile}: {after:.3f} times the delay in the hour after a restart, at most {RESTARTED}")
    return missed


def main() -> int:
    """Run everything, print the tables, draw the plot; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description="How soon readings are published, and with how many requests.")
    parser.add_argument("--days", type=float, default=20.0, help="simulated days of each run (default: 20)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random profiles and all runs")
    parser.add_argument("--plot", type=Path, help="file for the plot (PNG)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    days = options.days
    print(f"seed {seed}, {days:g} days a run; mean / median / 95th percentile of the delay at requests per reading\n")

    runs = run_all([(profile, days, seed + number) for profile in THREE for number in range(SEEDS)])
    of_profile = [runs[first : first + SEEDS] for first in range(0, len(runs), SEEDS)]
    rows = {name: [together([each[name] for each in results]) for results in of_profile] for name in runs[0]}
    frontiers = [frontier(profile) for profile in THREE]
    print(f"| client | {' | '.join(map(str, THREE))} |\n|---|{'---|' * len(THREE)}")
    for name, results in rows.items():
        print(f"| {name} | {' | '.join(result.numbers() for result in results)} |")
    us = rows["dexcom2mqtt"]
    at_ours = [best_at(points, result.requests_per_reading) for points, result in zip(frontiers, us, strict=True)]
    print(f"| oracle, at our requests | {' | '.join(f'{delay:.1f} s' for delay in at_ours)} |\n")

    print("| random profile | delay at requests per reading | oracle | ratio |\n|---|---|---|---|")
    profiles = random_profiles(seed)
    randoms = run_all([(profile, days, seed + number) for number, profile in enumerate(profiles)])
    ratios = []
    for profile, results in zip(profiles, randoms, strict=True):
        here = results["dexcom2mqtt"]
        delay = best_at(frontier(profile), here.requests_per_reading)
        ratios.append(here.mean / delay)
        print(f"| {profile} | {here.numbers()} | {delay:.1f} s | {ratios[-1]:.2f} |")
    ratio = statistics.fmean(ratios)
    ahead = sum(
        peer.mean <= each["dexcom2mqtt"].mean and peer.requests <= each["dexcom2mqtt"].requests
        for each in [*runs, *randoms]
        for name, peer in each.items()
        if name != "dexcom2mqtt"
    )
    print(f"\nratio to the oracle, mean of the random profiles: {ratio:.2f} (worst {max(ratios):.2f})")
    print(f"others ahead in both delay and requests, in all {len(runs) + len(randoms)} runs: {ahead}")
    restarts = run_restarts(days, seed)
    times = " / ".join(f"{after:.2f}" for after in restarts)
    print(f"mean delay in the hour after a restart ÷ that of no restart, the three profiles: {times}")
    if options.plot:
        plot(options.plot, rows, frontiers)
    missed = missed_targets(us, ratio, ahead, restarts)
    for target in missed:
        print(f"missed target (for --seed 1 and 20 days): {target}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
