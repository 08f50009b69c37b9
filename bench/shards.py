"""Thousands of accounts, shared by several processes: what it takes, and what a kill and one more process do to them.

    pip install '.[bench]'
    python bench/shards.py [--quick] [--accounts 4000] [--processes 4] [--seconds 300]

At real speed, with everything in processes of its own on this machine: the daemons (``dexcom2mqtt run``), a real
mosquitto, and a simulated Share (``crowd.py``). The accounts are files in a folder. At the beginning the broker holds
what a day leaves there: each account's history, 90 days of statistics, and status. Then

1. all processes start at once, until every account has a current value;
2. they run;
3. one is killed, and starts again in another folder;
4. one more process starts, with the larger number. It has to wait for its accounts. The others restart with that number
   one after the other, each once the accounts of the one before have a current value again.

A subscriber (``onlooker.py``) sees what happens to the accounts. Lost is a reading that Share had in all that time, and
that never reached the topic ``reading``. Without a value is an account by the rule for subscribers.

Ends with 1 if a reading was lost, or if accounts moved that should not have moved. Missed times are told, but this
machine may just be busy. ``--quick`` takes two minutes, with 200 accounts and two processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from bench import crowd
from bench.footprint import Watched, percentile
from bench.onlooker import Onlooker
from dexcom2mqtt import version
from dexcom2mqtt.config.settings import Ranges
from dexcom2mqtt.messages.bridge import bridge_info, bridge_offline
from dexcom2mqtt.messages.days import Day, counted, day_of, days_message, limits_of
from dexcom2mqtt.messages.history import history_message, source_of
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.shards import bridge_name, shard_of
from dexcom2mqtt.topics import Topics
from tests.support.processes import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from bench.crowd import Tally
    from bench.onlooker import Gap

TOPICS: Final = Topics("dexcom2mqtt")
PATIENCE: Final = 600.0
"""Seconds until a step that does not end has failed."""
LATE: Final = 420.0
"""Seconds after which a reading that has not come is lost: more than one poll later."""
CLEAN: Final = 60.0
"""The most seconds that an account should be without a value after a clean move."""
SPREAD: Final = 0.03
"""By how much the share of moved accounts may differ from the expected one: hashing is not exact."""
WAITING: Final = 60.0
"""Seconds for which the additional process is watched while it waits for its accounts."""


@dataclass(frozen=True)
class Plan:
    """How many accounts and processes, and for how many seconds each of the quiet times lasts."""

    accounts: int
    processes: int
    seconds: float
    settle: float
    """After the last restart; in more than 300 s, each account gets a reading."""
    waiting: float


@dataclass
class Phase:
    """A part of the run, in Unix seconds, and how often readings were read from Share in it.

    ``cpu`` has the CPU seconds a minute of each process that ran during all of it, ``starts`` the CPU seconds of each
    that started in it, and ``resident`` the MiB of each at its end.
    """

    since: float
    until: float = 0.0
    reads: int = 0
    cpu: dict[int, float] = field(default_factory=dict)
    starts: dict[int, float] = field(default_factory=dict)
    resident: dict[int, float] = field(default_factory=dict)

    def has(self, at: float) -> bool:
        """Return whether a time belongs to this phase."""
        return self.since <= at < self.until


class World:
    """Share, the broker, the folder with the accounts, and the processes that share them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keys = [crowd.key_of(number) for number in range(plan.accounts)]
        self.phases: dict[str, Phase] = {}
        self.running: dict[int, tuple[Watched, ExitStack]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            spawn = multiprocessing.get_context("spawn")
            self._pipe, end = spawn.Pipe()
            service = spawn.Process(target=crowd.serve, args=(self.plan.accounts, end), daemon=True)
            service.start()
            stack.callback(service.join, 10)
            stack.callback(self._pipe.send, "end")
            self._write_accounts(self._pipe.recv())
            # No limit on what may wait for a subscriber: a broker that drops messages would look like lost readings.
            settings = ("allow_anonymous true", "log_type none", "max_queued_messages 0", "sys_interval 1")
            self._mosquitto = Mosquitto(self._folder, *settings)
            stack.callback(self._mosquitto.kill)
            self.began = time.time()
            self._publish_leftovers()
            bridges = [bridge_name(index, self.plan.processes + 1) for index in range(self.plan.processes + 1)]
            self.onlooker = stack.enter_context(Onlooker(self._mosquitto.port, TOPICS, bridges))
            stack.callback(self._end_all)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _write_accounts(self, url: str) -> None:
        folder = self._folder / "accounts"
        folder.mkdir()
        for number, key in enumerate(self.keys):
            account = {"username": crowd.username_of(number), "password": crowd.PASSWORD, "share_url": url}
            (folder / f"{key}.yaml").write_text(yaml.safe_dump(account), encoding="utf-8")
            (folder / f"{key}.yaml").chmod(0o600)

    def _publish_leftovers(self) -> None:
        """Publish what a single process left at the broker a moment ago."""
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", self._mosquitto.port)
        client.loop_start()
        began = self.began
        info = bridge_info(TOPICS, version=version(), started_at=began - crowd.DAY, protocol="5", accounts=self.keys)
        for message in (info, bridge_offline(TOPICS)):
            client.publish(message.topic, message.payload, 1, retain=True).wait_for_publish(10)
        today, limits = day_of(began, crowd.OFFSET_MIN), limits_of(Ranges())
        bands = (2, 12, 230, 40, 4)
        past = {number: Day(number, limits, bands, 288 * 130, 288 * 19000) for number in range(today - 89, today)}
        for number, key in enumerate(self.keys):
            source = source_of("us", crowd.username_of(number))
            known = [
                Reading(each.mg_dl, "Flat", each.date, crowd.OFFSET_MIN)
                for each in crowd.readings(number, began - crowd.DAY, began)
            ]
            new = [each for each in known if day_of(each.date / 1000, each.offset_min) == today]
            for message in (
                history_message(TOPICS, key, source, known),
                days_message(TOPICS, key, source, {**past, **counted({}, new, limits)}),
                status_message(TOPICS, key, Status("ok", last_reading_at=known[-1].date / 1000)),
            ):
                client.publish(message.topic, message.payload, 1, retain=True).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()

    def start(self, index: int, count: int) -> None:
        """Start a process, in a folder of its own, and wait until it is ready."""
        config = self._folder / "config.yaml"
        if not config.exists():
            mqtt = {"port": self._mosquitto.port, "client_id": f"bench-{os.getpid()}"}  # of no other daemon here
            settings = {"accounts_dir": str(self._folder / "accounts"), "mqtt": mqtt}
            config.write_text(yaml.safe_dump(settings), encoding="utf-8")
            config.chmod(0o600)
        which = {"DEXCOM2MQTT_SHARD__INDEX": str(index), "DEXCOM2MQTT_SHARD__COUNT": str(count)}
        process = Watched(["-m", "dexcom2mqtt", "run", "--config", config], self._folder, **which)
        with ExitStack() as stack:
            self.running[index] = stack.enter_context(process), stack.pop_all()

    def start_all(self) -> None:
        """Start all processes at once."""
        count = self.plan.processes
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(self.start, range(count), [count] * count))

    def end(self, index: int) -> None:
        """Ask a process to end, and wait until it has."""
        _, stack = self.running.pop(index)
        stack.close()

    def kill(self, index: int) -> None:
        """Kill a process."""
        process, _ = self.running[index]
        os.kill(process.pid, signal.SIGKILL)
        self.end(index)

    def _end_all(self) -> None:
        for index in list(self.running):
            self.end(index)

    def tally(self) -> Tally:
        """Return what Share was asked so far."""
        self._pipe.send("tally")
        tally: Tally = self._pipe.recv()
        return tally

    def until_current(self) -> None:
        """Wait until every account has a current value."""
        wait(lambda: len(self.onlooker.current) == len(self.keys), "an account has no current value")

    def phase(self, name: str, *steps: Callable[[], object]) -> None:
        """Run these steps as one phase, and record what it took."""
        phase = self.phases[name] = Phase(time.time())
        reads = sum(self.tally().reads)
        before = {index: (process, process.cpu) for index, (process, _) in self.running.items()}
        for step in steps:
            step()
        phase.until, phase.reads = time.time(), sum(self.tally().reads) - reads
        for index, (process, _) in self.running.items():
            phase.resident[index] = process.resident
            known, cpu = before.get(index, (None, 0.0))
            if known is process:
                phase.cpu[index] = (process.cpu - cpu) / (phase.until - phase.since) * 60
            else:
                phase.starts[index] = process.cpu
        print(f"{name}: {phase.until - phase.since:.0f} s", file=sys.stderr, flush=True)

    def due(self, until: float) -> dict[str, set[int]]:
        """Return the dates of the readings that Share has had since the beginning, by account."""
        return {
            key: {each.date for each in crowd.readings(number, self.began, until)}
            for number, key in enumerate(self.keys)
        }


def wait(what: Callable[[], bool], failure: str, seconds: float = PATIENCE) -> None:
    """Wait until something is true; raises TimeoutError."""
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            raise TimeoutError(f"{failure} after {seconds:g} s")
        time.sleep(0.1)


def run(world: World) -> float:
    """Let everything happen; return the Unix time by which readings count."""
    plan, count = world.plan, world.plan.processes
    world.phase("start", world.start_all, world.until_current)
    world.phase("settle", lambda: time.sleep(plan.settle / 4))
    world.phase("run", lambda: time.sleep(plan.seconds))
    world.phase("kill", lambda: world.kill(1), lambda: world.start(1, count), world.until_current)
    world.phase("more", lambda: world.start(count, count + 1))
    world.phase("wait", lambda: time.sleep(plan.waiting))
    for index in range(count):
        restart = [lambda index=index: world.end(index), lambda index=index: world.start(index, count + 1)]
        world.phase(f"restart {index}", *restart, world.until_current)
    world.phase("end", lambda: time.sleep(plan.settle))
    until = time.time()
    due = world.due(until)
    try:
        wait(lambda: not world.onlooker.missing(due), "", LATE)
    except TimeoutError:
        print("some readings have not come", file=sys.stderr)
    return until


# The result


@dataclass(frozen=True)
class Target:
    """A number that should not be larger than ``most``. If it is, and the target is hard, the bench has failed."""

    what: str
    number: float
    most: float
    hard: bool = False


def spread(numbers: Collection[float], unit: str, digits: int = 1) -> str:
    """Return median, 95th percentile and maximum of some numbers."""
    ordered = sorted(numbers)
    if not ordered:
        return "none"
    return f"{' / '.join(f'{percentile(ordered, part):.{digits}f}' for part in (0.5, 0.95, 1))} {unit}"


class Result:
    """What was seen, put in words."""

    def __init__(self, world: World, until: float) -> None:
        plan, self._world, self._seen = world.plan, world, world.onlooker
        self._count = count = plan.processes
        due = world.due(until)
        self._due = sum(map(len, due.values()))
        self._lost = self._seen.missing(due)
        self._killed = {key for key in world.keys if shard_of(key, count) == 1}
        self._should = {key for key in world.keys if shard_of(key, count) != shard_of(key, count + 1)}
        allowed = {key: {bridge_name(shard_of(key, each), each) for each in (count, count + 1)} for key in world.keys}
        self._moved = {key for key in world.keys if len(self._seen.owners[key]) > 1}
        self._astray = {key for key in world.keys if self._seen.owners[key] - allowed[key]}
        restarts = [phase for name, phase in world.phases.items() if name.startswith("restart")]
        self._restarts = Phase(restarts[0].since, restarts[-1].until)

    def targets(self) -> Iterator[Target]:
        """Yield what should be true of it."""
        moved = [gap.until - gap.since for gap in self._gaps(self._restarts, self._should)]
        expected = 1 / (self._count + 1)
        yield Target("readings lost", self._lost, 0, hard=True)
        yield Target("accounts that moved without need", len(self._astray | self._moved - self._should), 0, hard=True)
        yield Target("accounts that did not move", len(self._should - self._moved), 0, hard=True)
        yield Target("of all accounts moved", len(self._moved) / len(self._world.keys), expected + SPREAD, hard=True)
        yield Target("reads by two processes at once", sum(self._world.tally().outdated), 0, hard=True)
        yield Target("seconds without a value, the longest of a move", max(moved, default=0), CLEAN)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the rows of the table."""
        world, seen, count = self._world, self._seen, self._count
        phases, now = world.phases, world.tally()
        began = phases["start"].since
        yield "accounts and processes", f"{len(world.keys)} on {count}, then on {count + 1}"
        yield "all start: until an account has a value", spread([at - began for at in seen.first.values()], "s")
        quiet = phases["run"]
        yield "CPU of a process until then", spread(phases["start"].starts.values(), "s")
        yield "CPU of a process running, a minute", spread(quiet.cpu.values(), "s")
        yield "CPU of the one that waits for its accounts, a minute", f"{phases['wait'].cpu[count]:.1f} s"
        yield "memory of a process, after the start", spread(phases["start"].resident.values(), "MiB", 0)
        yield "memory of a process, at the end", spread(phases["end"].resident.values(), "MiB", 0)
        yield "MQTT packets to the broker, running", spread(self._rates(quiet.since, quiet.until), "a second", 0)
        yield "MQTT packets to the broker, at worst", self._worst()
        late = [at - arrived for at, arrived in self._delays(quiet)]
        yield "from Share to the broker, running", spread(late, "s")
        yield "requests per reading, running", f"{self._requests(quiet):.2f}"
        kill = phases["kill"]
        yield "killed: without a value", self._without(kill, self._killed)
        yield "one more: accounts that moved", f"{len(self._moved)} ({len(self._moved) / len(world.keys):.1%})"
        released = {sight.key for sight in seen.released if self._restarts.has(sight.at)}
        yield "released by the restarting processes", f"{len(released)} of {len(world.keys)} accounts"
        yield "moved: without a value", self._without(self._restarts, self._should)
        yield "restarted in place: without a value", self._without(self._restarts, set(world.keys) - self._should)
        others = [gap for gap in seen.gaps if not kill.has(gap.since) and not self._restarts.has(gap.since)]
        still = set(world.keys) - seen.current
        yield "without a value at any other time", f"{len({gap.key for gap in others} | still)} accounts"
        yield "readings, and lost", f"{self._due}, {self._lost}"
        yield "repeated after the kill, and after the restarts", self._repeats(kill.since, self._restarts.since)
        yield "sign-ins of an account", spread(now.sign_ins, "", 0)

    def _gaps(self, phase: Phase, keys: Collection[str]) -> list[Gap]:
        return [gap for gap in self._seen.gaps if phase.has(gap.since) and gap.key in keys]

    def _without(self, phase: Phase, keys: Collection[str]) -> str:
        gaps = self._gaps(phase, keys)
        return f"{spread([gap.until - gap.since for gap in gaps], 's')} ({len({gap.key for gap in gaps})} accounts)"

    def _rates(self, since: float, until: float) -> list[float]:
        pairs = pairwise(self._seen.counts)
        return [(more - count) / (at - before) for (before, count), (at, more) in pairs if since <= before < until]

    def _worst(self) -> str:
        worst = {
            name: max(self._rates(phase.since, phase.until), default=0) for name, phase in self._world.phases.items()
        }
        name = max(worst, key=lambda each: worst[each])
        return f"{worst[name]:.0f} a second ({name})"

    def _delays(self, phase: Phase) -> Iterator[tuple[float, float]]:
        """Yield when each reading came that arrived at Share in this phase, and when it arrived."""
        for number, key in enumerate(self._world.keys):
            for each in crowd.readings(number, phase.since, phase.until):
                if each.date in self._seen.seen[key]:
                    yield self._seen.seen[key][each.date], each.arrives

    def _requests(self, phase: Phase) -> float:
        return phase.reads / max(1, len(list(self._delays(phase))))

    def _repeats(self, kill: float, restarts: float) -> str:
        counts = [0, 0, 0]
        for sight in self._seen.repeats:
            counts[(sight.at >= kill) + (sight.at >= restarts)] += 1
        return f"{counts[1]}, {counts[2]} ({counts[0]} before)"


def report(result: Result) -> int:
    """Print the table and the targets; return 1 if a hard one was missed."""
    print("| what | median / 95th / most |\n|---|---|")
    for what, found in result.rows():
        print(f"| {what} | {found} |")
    print()
    targets = list(result.targets())
    for target in targets:
        is_met = target.number <= target.most
        verdict = "ok    " if is_met else "missed"
        print(f"{verdict} {target.number:.4g} {target.what} (at most {target.most:.4g})", flush=True)
    return 1 if any(target.hard and target.number > target.most for target in targets) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print the result; return 1 if a hard target was missed."""
    parser = argparse.ArgumentParser(description="Thousands of accounts, shared by several processes.")
    parser.add_argument("--accounts", type=int, default=None, help="default: 4000")
    parser.add_argument("--processes", type=int, default=None, help="at the beginning (default: 4)")
    parser.add_argument("--seconds", type=float, default=None, help="of undisturbed running (default: 300)")
    parser.add_argument("--quick", action="store_true", help="two minutes: 200 accounts, two processes, 20 s")
    options = parser.parse_args(arguments)
    accounts, processes, seconds = (200, 2, 20) if options.quick else (4000, 4, 300)
    plan = Plan(
        options.accounts or accounts,
        options.processes or processes,
        options.seconds or seconds,
        settle=20 if options.quick else 330,
        waiting=10 if options.quick else WAITING,
    )
    if plan.processes < 2 or plan.accounts < plan.processes:
        parser.error("it takes two processes, and an account for each")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with World(plan) as world:
        until = run(world)
        return report(Result(world, until))


if __name__ == "__main__":
    sys.exit(main())
