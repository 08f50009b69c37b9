"""How much memory and CPU time the daemon takes, how fast it starts, and how it copes with a thousand accounts.

    pip install '.[bench]'
    python bench/footprint.py [--quick]

The daemon, the simulated Share service (over real HTTP) and a real mosquitto each run in their own process. Only the
daemon is measured, and for comparison the bare import of its libraries and a plain script with pydexcom and paho
(``plain.py``).

*One account*: the time until each is ready (the plain script: until it has published its first value), by turns. Then
all run at once for a simulated week, on clocks that run 3000 times too fast. The CPU time of waiting is measured at
real speed, while the service answers every request with 429: how often the processes wake up (the voluntary context
switches of all their threads), and the CPU time of it. A day's CPU time is that of a simulated day plus a real day's
waiting.

*Statistics*: what a reading adds to a poll, and what an account keeps for them (``counting.py``).

*Many accounts*, at real speed: each daemon starts with a broker that has every account's history; each sensor measures
at its own times. The delay of a poll is the time from when it is due, by the daemon's own schedule, until the request
has reached the service. The very first start publishes 24 hours of readings for each account at 20 readings a second,
which takes hours; only one minute of that is measured.

Ends with 1 if a target was missed. ``--quick`` takes three minutes, with fewer days, shorter windows, and targets that
even a busy machine reaches.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from bench.counting import measure_counting
from dexcom2mqtt import version
from dexcom2mqtt.config.settings import Ranges
from dexcom2mqtt.demo.share_service import Response, SimulatedAccount, SimulatedShare, series
from dexcom2mqtt.messages.bridge import bridge_info
from dexcom2mqtt.messages.days import counted, days_message, limits_of
from dexcom2mqtt.messages.history import history_message, source_of
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.topics import Topics
from tests.support.processes import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from dexcom2mqtt.demo.share_service import Request, Respond

BENCH: Final = Path(__file__).parent
MANY: Final = 1000
DAY: Final = 86400.0
SPEED: Final = 3000.0
PASSWORD: Final = "the password"  # noqa: S105  # of simulated accounts
TOPICS: Final = Topics("dexcom2mqtt")
OPEN_FILES: Final = 1024  # what systemd and a shell usually allow
NAMES: Final = {"bare": "the libraries alone, imported", "plain": "plain script", "daemon": "dexcom2mqtt"}
BARE: Final = """
import os, signal, socket
import paho.mqtt.client, requests, tenacity, yaml
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
NOTHING: Final = (0.0, 0.0)
HEALTHCHECK: Final = """
import sys, time
from dexcom2mqtt.cli import main
code = main(["healthcheck", "--config", sys.argv[1]])
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(code, time.process_time(), int(peak) / 1024)
"""


@dataclass(frozen=True)
class Plan:
    """How long to measure, and the targets."""

    starts: int
    days: int
    idle_seconds: float
    few: Sequence[int]  # accounts, measured while the one account runs for days
    settle_seconds: float
    window_seconds: float
    first_start: bool
    above_bare: float = 12.0  # MiB, of one account
    growth: float = 1.0  # MiB
    cpu_a_day: float = 12.0  # seconds, of one account
    wakeups: float = 0.4  # a second, of one account
    start_ratio: float = 3.0  # to the bare import
    resident: float = 38.0  # MiB, of one account
    start_cpu_ratio: float = 1.5  # to the plain script
    healthcheck_cpu: float = 0.08  # seconds
    healthcheck_peak: float = 20.0  # MiB
    late: float = 1.0  # seconds, 95th percentile with 1000 accounts
    core: float = 0.30  # with 1000 accounts
    counting_ms: float = 1.0  # of a reading
    counting_kb: float = 100.0  # of an account


FULL: Final = Plan(9, 8, 600, (1, 10, 100), 40, 300, first_start=True)
QUICK: Final = Plan(
    5, 3, 60, (), 45, 40, first_start=False,
    above_bare=14, growth=1.5, cpu_a_day=24, wakeups=0.8, start_ratio=4, late=2, core=0.60,
    resident=42, start_cpu_ratio=4, healthcheck_cpu=0.4, healthcheck_peak=24, counting_ms=4,
)  # fmt: skip


# Processes, and what they use


def compiled(folder: Path) -> dict[str, str]:
    """Return an environment in which Python keeps compiled bytecode for the next start, as in an installed package."""
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


class Watched:
    """A process that reports when it is ready, as systemd's services do; says what it uses."""

    def __init__(self, arguments: Sequence[str | Path], folder: Path, **environ: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = Path(tempfile.mkdtemp(dir=folder))
        self._socket.bind(str(name / "notify"))
        self._socket.settimeout(0.5)
        self._ready = threading.Event()
        self.cpu_until_ready = self.seconds_until_ready = 0.0
        python = {"PYTHONPATH": str(BENCH.parent), **compiled(folder)}
        began = time.monotonic()
        with (name / "output").open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  # our own programs
                [sys.executable, *map(str, arguments)],
                cwd=name,
                env=dict(os.environ) | python | environ | {"NOTIFY_SOCKET": str(name / "notify")},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
        self._listener = threading.Thread(target=self._listen, args=(began,), daemon=True)
        self._listener.start()
        is_ready = False
        try:
            is_ready = self._ready.wait(120)
        finally:
            if not is_ready:
                self._process.kill()
        if not is_ready:
            raise RuntimeError(f"it did not become ready: {(name / 'output').read_text()}")

    def _listen(self, began: float) -> None:
        while self._process.poll() is None:
            with suppress(TimeoutError):
                message = self._socket.recv(4096)
                if message.startswith(b"READY=1") and not self._ready.is_set():
                    self.seconds_until_ready, self.cpu_until_ready = time.monotonic() - began, self.cpu
                    self._ready.set()

    @property
    def cpu(self) -> float:
        """The CPU time that its threads have used so far, in seconds."""
        return time.clock_gettime(~self.pid << 3 | 2)  # clock_getcpuclockid(3): to the nanosecond, unlike /proc

    @property
    def wakeups(self) -> int:
        """How often its threads have waited for something and then gone on: their voluntary context switches."""
        texts = [(task / "status").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()]
        return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)

    @property
    def resident(self) -> float:
        """Its resident memory in MiB; shared memory counts in full."""
        return self._memory("Rss")

    @property
    def proportional(self) -> float:
        """The same, but shared memory counts in proportion."""
        return self._memory("Pss")

    def _memory(self, kind: str) -> float:
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return int(rollup.partition(f"\n{kind}:")[2].split()[0]) / 1024

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._listener.join()
        self._socket.close()


def boot_time() -> float:
    """Return the seconds since the machine started: the daemon's own clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def simulated(count: int) -> list[SimulatedAccount]:
    """Return so many accounts; their seeds spread the times of their sensors."""
    return [SimulatedAccount(f"user{n}@example.com", PASSWORD, seed=7919 * n + 7) for n in range(count)]


def serve(count: int, offset: float, speed: float, pipe: Connection) -> None:
    """Run the Share service; send a list of (account, time) of all requests when the pipe asks for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with SimulatedShare(simulated(count), lambda: boot_time() * speed + offset) as service:
        pipe.send(service.base_url)
        while (asked := pipe.recv()) != "end":
            if asked == "limit":
                service.fault = too_many
            pipe.send([(request.account, request.time) for request in service.requests])


def too_many(_request: Request, _respond: Respond) -> Response:
    """Answer that there were too many requests, as Share does; whoever follows that asks again in five minutes."""
    return Response(HTTPStatus.TOO_MANY_REQUESTS, headers={"Retry-After": "300"}, outcome="too_many")


class World:
    """The Share service, a broker, and daemons. All clocks run at the same speed."""

    def __init__(self, count: int, speed: float = 1.0) -> None:
        self.accounts = simulated(count)
        self.speed = speed
        # The time begins a minute after the first account's newest reading, four minutes before the next.
        newest = max(record.taken for record in series(self.accounts[0], time.time() - 900, time.time() - 300))
        self.offset = newest / 1000 + 60 - boot_time() * speed

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            spawn = multiprocessing.get_context("spawn")
            self._pipe, end = spawn.Pipe()
            service = spawn.Process(target=serve, args=(len(self.accounts), self.offset, self.speed, end), daemon=True)
            service.start()
            stack.callback(service.join, 10)
            stack.callback(self._pipe.send, "end")
            self.url = self._pipe.recv()
            self._mosquitto = Mosquitto(self.folder, "allow_anonymous true", "log_type none")
            stack.callback(self._mosquitto.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def now(self) -> float:
        """Return the service's time, in Unix seconds."""
        return boot_time() * self.speed + self.offset

    def requests(self) -> list[tuple[str, float]]:
        """Return the user name and time of each request."""
        self._pipe.send("requests")
        return list(self._pipe.recv())

    def limit(self) -> None:
        """Let the service answer every request with 429 from now on."""
        self._pipe.send("limit")
        self._pipe.recv()

    def daemon(self, program: Sequence[str | Path] = (BENCH / "launch.py",)) -> Watched:
        """Start the daemon for all accounts, by default with this world's clock."""
        accounts = {
            f"a{n}": {"username": account.username, "password": PASSWORD, "share_url": self.url}
            for n, account in enumerate(self.accounts)
        }
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump({"accounts": accounts, "mqtt": {"port": self._mosquitto.port}}))
        config.chmod(0o600)
        hooks = {"SPEED": str(self.speed), "DUE": str(self.folder / "due")}
        return Watched([*program, "run", "--config", config], self.folder, **hooks)

    def plain(self) -> Watched:
        """Start the plain script for the first account."""
        where = {"BASE_URL": self.url, "PORT": str(self._mosquitto.port), "SPEED": str(self.speed)}
        who = {"USERNAME": self.accounts[0].username, "PASSWORD": PASSWORD}
        return Watched([BENCH / "plain.py"], self.folder, **where, **who)

    def bare(self) -> Watched:
        """Start a process that only imports the daemon's libraries."""
        return Watched(["-c", BARE], self.folder)

    def due(self) -> list[tuple[str, float]]:
        """Return the user name and due time of each poll, by the service's time."""
        lines = (line.split() for line in (self.folder / "due").read_text().splitlines())
        return [(self.accounts[int(key[1:])].username, float(at) + self.offset) for key, at in lines]

    def publish_leftovers(self) -> None:
        """Publish what a daemon leaves on the broker: its accounts, and each one's history, days and status."""
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", self._mosquitto.port)
        client.loop_start()
        now, keys = self.now(), [f"a{n}" for n in range(len(self.accounts))]
        left = [bridge_info(TOPICS, version=version(), started_at=now - DAY, protocol="5", accounts=keys)]
        for key, account in zip(keys, self.accounts, strict=True):
            known = [record for record in series(account, now - DAY, now) if record.arrives <= now]
            readings = [Reading(each.value, each.trend, each.taken, account.zone_offset_min) for each in known]
            source = source_of("us", account.username)
            left.append(history_message(TOPICS, key, source, readings))
            left.append(days_message(TOPICS, key, source, counted({}, readings, limits_of(Ranges()))))
            left.append(status_message(TOPICS, key, Status("ok", last_reading_at=readings[-1].date / 1000)))
        for message in left:
            client.publish(message.topic, message.payload, 1, retain=True).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()


# One account


def measure_starts(rounds: int) -> tuple[dict[str, tuple[float, float]], tuple[float, float]]:
    """Return, for each program, the median seconds and CPU seconds until it is ready; and the same for healthcheck.

    For healthcheck: the median of its CPU seconds, and its largest memory in MiB.
    """
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    asked: list[tuple[float, float]] = []
    with World(1) as world:
        kinds = {"bare": world.bare, "plain": world.plain, "daemon": lambda: world.daemon(("-m", "dexcom2mqtt"))}
        for _ in range(rounds):
            for name, start in kinds.items():
                with start() as process:
                    found[name].append((process.seconds_until_ready, process.cpu_until_ready))
                    if name == "daemon":
                        asked.append(healthcheck(world.folder / "config.yaml"))
    starts = {
        name: (statistics.median(seconds for seconds, _ in each), statistics.median(cpu for _, cpu in each))
        for name, each in found.items()
    }
    return starts, (statistics.median(cpu for cpu, _ in asked), max(peak for _, peak in asked))


def healthcheck(config: Path) -> tuple[float, float]:
    """Run a health check of the running daemon; return its CPU time in seconds, and its largest memory in MiB."""
    command = [sys.executable, "-c", HEALTHCHECK, config]
    environ = dict(os.environ) | compiled(config.parent)
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=BENCH.parent, env=environ)  # noqa: S603  # ours
    code, cpu, peak = done.stdout.splitlines()[-1].split()
    if code != "0":
        raise RuntimeError(f"the daemon is not healthy: {done.stdout}{done.stderr}")
    return float(cpu), float(peak)


@dataclass(frozen=True)
class Life:
    """What a process uses: memory in MiB, CPU time in seconds a day."""

    resident: float
    proportional: float
    growth: float
    cpu_a_day: float
    wakeups: float
    """A second, when nothing happens."""


def measure_lives(plan: Plan) -> dict[str, Life]:
    """Run the three programs for days at once; memory is measured after the first day, and its growth from then on."""
    with ExitStack() as stack:
        slow, fast = stack.enter_context(World(1)), stack.enter_context(World(1, SPEED))
        idle = {"plain": slow.plain(), "daemon": slow.daemon(("-m", "dexcom2mqtt"))}
        living = {"bare": fast.bare(), "plain": fast.plain(), "daemon": fast.daemon()}
        for process in (*idle.values(), *living.values()):
            stack.enter_context(process)
        time.sleep(DAY / SPEED)  # the first day, in which the slow daemon also publishes its backfill
        first = {name: (process.resident, process.cpu) for name, process in living.items()}
        memory = {name: (process.resident, process.proportional) for name, process in living.items()}
        slow.limit()
        before = {name: (process.cpu, process.wakeups) for name, process in idle.items()}
        time.sleep(plan.idle_seconds)
        idling = {
            name: ((process.cpu - cpu) / plan.idle_seconds, (process.wakeups - wakeups) / plan.idle_seconds)
            for (name, process), (cpu, wakeups) in zip(idle.items(), before.values(), strict=True)
        }
        days = plan.days - 1
        time.sleep(max(days * DAY / SPEED - plan.idle_seconds, 0))
        return {
            name: Life(
                *memory[name],
                growth=process.resident - first[name][0],
                cpu_a_day=(process.cpu - first[name][1]) / days + idling.get(name, NOTHING)[0] * (DAY - DAY / SPEED),
                wakeups=idling.get(name, NOTHING)[1],
            )
            for name, process in living.items()
        }


# Many accounts


@dataclass(frozen=True)
class Scale:
    """A daemon with many accounts: ``core`` is the share of one core, memory is in MiB, times are in seconds."""

    accounts: int
    ready: float
    resident: float
    core: float
    late: Sequence[float]


def measure_scale(count: int, plan: Plan) -> Scale:
    """Start a daemon with so many accounts, and measure it once it has settled."""
    with World(count) as world:
        world.publish_leftovers()
        with world.daemon() as daemon:
            time.sleep(plan.settle_seconds)
            began, before = world.now(), daemon.cpu
            time.sleep(plan.window_seconds)
            core = (daemon.cpu - before) / (world.now() - began)
            time.sleep(3)  # for polls that were due last
            late = lateness(world.due(), world.requests(), began)
            return Scale(count, daemon.seconds_until_ready, daemon.resident, core, sorted(late))


def measure_first_start(count: int, plan: Plan) -> float:
    """Return the share of a core that a first start uses, while it publishes 24 hours of each account."""
    with World(count) as world, world.daemon() as daemon:
        time.sleep(plan.settle_seconds)
        before, began = daemon.cpu, time.monotonic()
        time.sleep(plan.settle_seconds)
        return (daemon.cpu - before) / (time.monotonic() - began)


def lateness(due: Sequence[tuple[str, float]], requests: Sequence[tuple[str, float]], since: float) -> list[float]:
    """Return, for each poll that was due since a time, how many seconds later its first request came."""
    asked: dict[str, list[float]] = defaultdict(list)
    for username, at in requests:
        asked[username].append(at)
    late = []
    for username, at in due:
        times = asked[username]
        first = bisect_left(times, at)
        if at >= since:
            late.append(times[first] - at if first < len(times) else float("inf"))
    return late


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which that part of the sorted numbers lies."""
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


# The result


def main() -> int:
    """Measure everything, print the tables; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description="Memory, CPU time, start, and a thousand accounts.")
    parser.add_argument("--quick", action="store_true", help="three minutes, with generous targets")
    plan = QUICK if parser.parse_args().quick else FULL

    counting = measure_counting()
    starts, asked = measure_starts(plan.starts)
    with ThreadPoolExecutor() as threads:
        living = threads.submit(measure_lives, plan)
        scales = list(threads.map(measure_scale, plan.few, [plan] * len(plan.few)))
        lives = living.result()
    scales.append(measure_scale(MANY, plan))

    print(f"a healthcheck takes {asked[0]:.3f} s of CPU and {asked[1]:.1f} MiB at most")
    print(f"statistics take {counting[0]:.2f} ms of CPU a reading and {counting[1]:.0f} kB an account\n")
    days = plan.days - 1
    print(
        f"| one account | resident (proportional) | growth in {days} days | CPU a day | wake-ups a second | start | "
        "CPU of the start |\n|---|---|---|---|---|---|---|"
    )
    for name, words in NAMES.items():
        life, (seconds, cpu) = lives[name], starts[name]
        print(
            f"| {words} | {life.resident:.1f} ({life.proportional:.1f}) MiB | {life.growth:+.2f} MiB | "
            f"{life.cpu_a_day:.1f} s | {life.wakeups:.2f} | {seconds:.2f} s | {cpu:.2f} s |",
            flush=True,
        )
    print(
        "\n| accounts | delay of polls: median / 95th / worst | resident | of a core | start |\n|---|---|---|---|---|"
    )
    for scale in scales:
        late = " / ".join(f"{percentile(scale.late, part) * 1000:.0f}" for part in (0.5, 0.95, 1))
        print(
            f"| {scale.accounts} | {late} ms ({len(scale.late)} polls) | {scale.resident:.0f} MiB | {scale.core:.2%} | "
            f"{scale.ready:.2f} s |",
            flush=True,
        )
    if plan.first_start:
        print(f"\na first start of {MANY} accounts takes {measure_first_start(MANY, plan):.0%} of a core")
    return judge(plan, starts, asked, counting, lives, scales[-1])


def judge(  # noqa: PLR0913, PLR0917  # each was measured separately
    plan: Plan,
    starts: dict[str, tuple[float, float]],
    asked: tuple[float, float],
    counting: tuple[float, float],
    lives: dict[str, Life],
    scale: Scale,
) -> int:
    """Compare the results with the targets and print that; return 1 if one was missed."""
    daemon, bare = lives["daemon"], lives["bare"]
    found: dict[str, tuple[float, float]] = {
        "MiB above the bare import": (daemon.resident - bare.resident, plan.above_bare),
        "MiB with one account": (daemon.resident, plan.resident),
        "seconds of CPU a day": (daemon.cpu_a_day, plan.cpu_a_day),
        "wake-ups a second when nothing happens": (daemon.wakeups, plan.wakeups),
        "MiB of growth": (daemon.growth, plan.growth),
        "times the start of the bare import": (starts["daemon"][0] / starts["bare"][0], plan.start_ratio),
        "times the plain script's CPU at the start": (starts["daemon"][1] / starts["plain"][1], plan.start_cpu_ratio),
        "seconds of CPU of a healthcheck": (asked[0], plan.healthcheck_cpu),
        "MiB of a healthcheck": (asked[1], plan.healthcheck_peak),
        "ms of CPU of the statistics, a reading": (counting[0], plan.counting_ms),
        "kB of the statistics, an account": (counting[1], plan.counting_kb),
        f"seconds late, 95th percentile of {scale.accounts} accounts": (percentile(scale.late, 0.95), plan.late),
        f"of a core, {scale.accounts} accounts": (scale.core, plan.core),
    }
    print()
    for what, (is_now, most) in found.items():
        print(f"{'ok    ' if is_now <= most else 'MISSED'} {is_now:.2f} {what} (at most {most:g})")
    return 0 if all(is_now <= most for is_now, most in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
