"""A small world to break: the simulated Share service, a network, a broker, the daemon, and a subscriber.

Everything except Share is real, and all of it runs on a clock that is some hundred times too fast. The subscriber's
messages are compared with Share's readings; the module knows nothing of what the daemon says about itself.

`Page` compares the measured results with `docs/faults.md`.
"""

from __future__ import annotations

import json
import math
import select
import socket
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import Record, SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.share.server_time import parse_http_date
from tests.support import share_faults
from tests.support.processes import ROOT, Heard, Process, Subscriber, daemon, eventually, free_port, write_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import pytest

    from tests.support.processes import Mosquitto

ANNA: Final = SimulatedAccount("anna@example.com", "password of anna", seed=1)
BEN: Final = SimulatedAccount("ben@example.com", "password of ben", seed=2, zone_offset_min=60)

MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
STALE_AFTER: Final = 15 * MINUTE
MIB: Final = 1024 * 1024
GROWTH: Final = 4 * MIB
"""How much the daemon's memory may grow in a fault: only by what Python's allocator reserves."""

_BASE: Final = "dexcom2mqtt"
_LOOKS_EVERY: Final = 0.7  # real seconds between two late joiners


class Network:
    """The connection from the daemon to the broker: it can be closed, and cut in the middle of a message."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self.cuts = 0
        """How many connections were cut."""
        self.passes: Callable[[bytes], bool] = lambda _: True
        """Called with all data sent to the broker; if it returns false, the data is dropped and the connection ends."""
        self._to = to
        self._cut: tuple[bool, int] | None = None
        self._listener: socket.socket | None = None
        self.allow()

    def allow(self) -> None:
        """Accept connections from now on."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections from now on; existing ones stay."""
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def cut(self, *, up: bool, after: int) -> None:
        """Cut the connection that next carries more than ``after`` bytes in one direction, at that byte."""
        self._cut = (up, after)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                else:
                    threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, suppress(OSError):
            while True:
                for source in select.select([near, far], [], [])[0]:
                    data = source.recv(65536)
                    passing = self._passing(data, up=source is near)
                    (far if source is near else near).sendall(passing)
                    if not data or passing != data:
                        return

    def _passing(self, data: bytes, *, up: bool) -> bytes:
        if up and not self.passes(data):
            return b""
        if self._cut is None or self._cut[0] != up:
            return data
        left = self._cut[1]
        if len(data) <= left:
            self._cut = (up, left - len(data))
            return data
        self._cut = None
        self.cuts += 1
        return data[:left]


class Row(NamedTuple):
    """The effect of a fault, as the page shows it."""

    lost: int
    repeated: str
    stale: str
    whole: str


@dataclass(frozen=True)
class Fault:
    """A fault in everyday words, and its limits: how soon everything recovers, and how many readings may repeat.

    ``within`` is in seconds; ``repeats`` are readings for each time that a connection or the daemon ended.
    """

    words: str
    within: float
    repeats: int = 0


FAULTS: Final = {
    "broker killed": Fault("The broker is killed and comes back an hour later with an empty memory", 6 * MINUTE),
    "broker empty": Fault("The broker is restarted and has forgotten everything", 6 * MINUTE),
    "broker old": Fault("The broker loses power and comes back with what it saved 40 minutes earlier", 6 * MINUTE),
    "both old": Fault("The same, and the daemon loses power as well", 6 * MINUTE, repeats=12),
    "broker slow": Fault("The broker freezes for 3 minutes", 6 * MINUTE),
    "broker frozen": Fault("The broker freezes for 15 minutes", 6 * MINUTE),
    "broker absent": Fault("The broker cannot be reached when the daemon starts, for an hour", 6 * MINUTE),
    "broker refuses": Fault("The broker refuses the daemon's credentials for an hour", 6 * MINUTE),
    "cut up": Fault("The connection is cut in the middle of a message to the broker, 40 times", 6 * MINUTE, repeats=21),
    "cut down": Fault("The connection is cut in the middle of the broker's answers, 40 times", 6 * MINUTE, repeats=21),
    "acks lost": Fault("The broker answers, but its acknowledgements are lost for 20 minutes", 10 * MINUTE, repeats=21),
    "hang-up": Fault(
        "The broker closes the connection whenever something is published to one topic", 25 * MINUTE, repeats=21
    ),
    "silence": Fault("The broker never acknowledges what is published to one topic", 25 * MINUTE, repeats=21),
    "refusal": Fault("The broker refuses what is published to one topic", 25 * MINUTE),
    "quota": Fault("The broker accepts 10 messages a second and refuses the rest", 10 * MINUTE),
    "small": Fault(
        "The broker accepts no message as large as a day's history, over 3 restarts", 10 * MINUTE, repeats=21
    ),
    "killed": Fault("The daemon is killed 50 times at random moments", 6 * MINUTE, repeats=21),
    "killed early": Fault(
        "The daemon is killed again and again while it sends the first 24 hours", 6 * MINUTE, repeats=21
    ),
    "killed between": Fault(
        "The daemon is killed 10 times after a reading reached the broker, before the history did",
        6 * MINUTE,
        repeats=21,
    ),
    "late": Fault("The phone has no network for an hour, then uploads what it missed", 10 * MINUTE),
    "doubles": Fault("Each reading is uploaded twice for an hour", 6 * MINUTE),
    "calibrations": Fault("Each reading is followed by a calibrated one for an hour", 6 * MINUTE),
    "gap": Fault("The sensor gives no readings for an hour", 10 * MINUTE),
    "error codes": Fault("The sensor gives error codes instead of readings for an hour", 10 * MINUTE),
    "refused": Fault("Share refuses connections for an hour", 10 * MINUTE),
    "500": Fault("Share answers with error 500 for an hour", 10 * MINUTE),
    "502": Fault("Share answers with error 502 for an hour", 10 * MINUTE),
    "503": Fault("Share answers with error 503 for an hour", 10 * MINUTE),
    "429 seconds": Fault("Share asks for fewer requests for an hour, each time for 10 minutes", 20 * MINUTE),
    "429 date": Fault("The same, with the time when it ends", 20 * MINUTE),
    "403": Fault("Share answers with an HTML page and error 403 for an hour", 10 * MINUTE),
    "html": Fault("Share answers with an HTML page for an hour", 10 * MINUTE),
    "empty": Fault("Share's answers are empty for an hour", 10 * MINUTE),
    "null": Fault("Share answers `null` for an hour", 10 * MINUTE),
    "truncated": Fault("Share's answers are cut in half for an hour", 10 * MINUTE),
    "drip": Fault("Share's answers arrive at one byte a second for an hour", 10 * MINUTE),
    "dropped": Fault("Share closes each connection without an answer for an hour", 10 * MINUTE),
    "cut off": Fault("Each connection to Share breaks in the middle of the answer for an hour", 10 * MINUTE),
    "zero": Fault("Share forgets the session and rejects the credentials for an hour", 40 * MINUTE),
    "sessions": Fault("Share forgets the session every 3 minutes for an hour", 10 * MINUTE),
    "dead session": Fault("The session is dead, and Share reports it in an unknown way", 10 * MINUTE),
    "mended": Fault(
        "A password that worked is rejected for 6 hours; then it is corrected, and the daemon restarted", HOUR
    ),
    "phone ahead": Fault(
        "The phone's clock is 62 minutes ahead for an hour (recovered once its last false timestamp has passed)",
        90 * MINUTE,
    ),
    "phone off": Fault(
        "The phone's clock is set 62 minutes ahead, then the phone is off for 2 hours and comes back corrected",
        10 * MINUTE,
    ),
    "date years": Fault("Share's clock is two years ahead for an hour", 15 * MINUTE),
    "date past": Fault("Share's clock is two years behind for an hour", 15 * MINUTE),
    "date hours": Fault("Share's clock is three hours ahead for an hour", 15 * MINUTE),
    "date back": Fault(
        "Share's clock jumps back three hours and forward again every 10 minutes for an hour", 15 * MINUTE
    ),
    "outage": Fault("Share is down for 23 hours", 30 * MINUTE),
    "clock off": Fault("This machine's clock is six years behind", 6 * MINUTE),
    "clock jumps": Fault("This machine's clock jumps by years every 5 minutes for an hour", 6 * MINUTE),
    "other hangs": Fault("The Share server of another account never answers, for an hour", 6 * MINUTE),
    "other bug": Fault("A bug stops the loop of another account twice", 6 * MINUTE),
}


class World:
    """Share, the network, the broker, the daemon and a subscriber, at ``speed`` times the real time."""

    def __init__(
        self,
        folder: Path,
        mosquitto: Mosquitto,
        speed: float,
        *,
        accounts: Mapping[str, SimulatedAccount] | None = None,
        login: tuple[str, str] | None = None,
        mqtt: Mapping[str, Any] | None = None,
        **environ: str,
    ) -> None:
        self.folder = folder
        self.speed = speed
        self.mosquitto = mosquitto
        self.login = login
        self.accounts = dict(accounts or {"anna": ANNA})
        self.answers: list[tuple[share.Request, share.Response]] = []
        """Every read that Share answered in the usual form, and its answer."""
        self.dates: list[tuple[float, float]] = []
        """When Share was asked, and how wrong the Date of its answer was."""
        self.fault: share.Fault = share.no_fault
        self.began = 0.0
        self.ended = math.inf
        self.environ = environ
        self._stack = ExitStack()
        self._distortion: share.Distortion = share.unchanged
        now = accelerated(speed)
        self._at_zero = now() - time.monotonic() * speed
        self.born = now()
        self.share = self._stack.enter_context(SimulatedShare(self.accounts.values(), now))
        self.share.fault = self._answer
        self.others: dict[str, SimulatedShare] = {}
        self.network = Network(mosquitto.port)
        self._stack.callback(self.network.refuse)
        self.subscriber = self._stack.enter_context(
            Subscriber(mosquitto.port, login=login, set_up=lambda client: client.reconnect_delay_set(1, 1))
        )
        self.mqtt = {"host": "127.0.0.1", "port": self.network.port, **(mqtt or {})}
        self.process: Process | None = None
        self.seen: dict[str, list[int]] = {key: [] for key in self.accounts}
        """The dates of the messages on ``reading``, by account, in order."""
        self.memory: list[tuple[float, int]] = []
        """When the daemon's memory was measured, and its resident size in bytes."""
        self.looks = 0
        """How many late joiners have looked at the broker."""
        self.looked_stale = 0
        self._taken = 0
        self._picture: dict[str, Heard] = {}

    def close(self) -> None:
        """End everything, the daemon first; if it still runs, it must end with 0."""
        self._stack.close()

    # Time

    def now(self) -> float:
        """Return the time of day in this world, in Unix seconds."""
        return self.unix(time.monotonic())

    def unix(self, at: float) -> float:
        """Turn a time of the real clock into one of this world."""
        return self._at_zero + at * self.speed

    def live(self, seconds: float) -> None:
        """Let that much time of this world pass, and look at the broker and the daemon's memory now and then."""
        until = self.now() + seconds
        while (left := until - self.now()) > 0:
            time.sleep(min(left / self.speed, _LOOKS_EVERY))
            self.look()

    def wait(self, what: Callable[[], object], seconds: float, why: str) -> None:
        """Wait for something for that much time of this world, and on a slow machine as long again."""
        eventually(what, seconds / self.speed + 20, why=why)

    # Events

    def distort(self, distortion: share.Distortion) -> None:
        """Change Anna's readings before Share gets them."""
        self._distortion = distortion
        self.share.distort(distortion, ANNA.username)

    def another_share(self, key: str) -> SimulatedShare:
        """Return a separate Share service for one account."""
        service = self._stack.enter_context(SimulatedShare([self.accounts[key]], self.now))
        self.others[key] = service
        return service

    def start(self) -> Process:
        """Start the daemon."""
        accounts = {
            key: {
                "username": account.username,
                "password": account.password,
                "share_url": self.others.get(key, self.share).base_url,
            }
            for key, account in self.accounts.items()
        }
        config = write_config(self.folder / "config.yaml", {"accounts": accounts, "mqtt": self.mqtt})
        output = self.folder / "daemon.log"
        self.process = self._stack.enter_context(daemon(config, output, speed=self.speed, **self.environ))
        return self.process

    def kill(self) -> None:
        """End the daemon as a power cut would."""
        assert self.process
        self.process.kill()

    def begin(self) -> None:
        """Start the daemon, wait until everything works, and begin the fault."""
        self.start()
        self.wait(lambda: math.isfinite(self.first_read()), 10 * MINUTE, "the daemon does not poll Share")
        owed = self.owed(self.now())
        self.wait(lambda: self.has_all(owed), 10 * MINUTE, "the daemon publishes nothing current")
        self.live(10 * MINUTE)
        self.began = self.now()

    def end(self) -> None:
        """Record that the fault is over."""
        self.ended = self.now()

    def resubscribe(self) -> None:
        """Let the subscriber connect before the daemon does: otherwise messages would be sent to nobody."""
        eventually(self.subscriber.subscribed.is_set, why="the subscriber did not come back")
        self.network.allow()

    def look(self) -> None:
        """Record what a client sees that subscribes only now, and the size of the daemon."""
        with suppress(OSError, IndexError):  # there may be no daemon now
            pages = Path(f"/proc/{self.process.pid if self.process else 0}/statm").read_text(encoding="utf-8").split()
            self.memory.append((self.now(), int(pages[1]) * 4096))
        try:
            with Subscriber(self.mosquitto.port, login=self.login, seconds=0.5) as joiner:
                marker = f"test/{time.monotonic_ns()}"
                joiner.client.publish(marker, "end")
                joiner.wait_for(marker, seconds=1)
                at, heard = time.monotonic(), joiner.heard
        except (OSError, AssertionError):  # there may be no broker now
            return
        self.looks += 1
        self.looked_stale += self._stale(heard, at + 0.001) > 0

    # Results

    def owed(self, until: float, key: str = "anna", since: float | None = None) -> set[int]:
        """Return the dates of the readings that Share has sent by then, or could still send.

        Its 24 hours end at ``since``, by default at its first answer to a read.
        """
        first = self.first_read(key) if since is None else since
        account = self.accounts[key]
        taken = list(share.series(account, first - DAY, until))
        records = self._distortion(taken) if account is ANNA else taken
        known = [record for record in records if record.arrives <= until and record.taken > (first - DAY) * 1000]
        return {record.taken for record in _without_doubles(known) if record.value >= 39}

    def first_read(self, key: str = "anna", since: float = -math.inf) -> float:
        """Return when Share first answered a read of an account, from some time on."""
        log = self.others.get(key, self.share).requests
        reads = (entry.time for entry in log if entry.call == "read" and entry.outcome == "ok" and entry.time >= since)
        return next(reads, math.inf)

    def asked_again(self) -> float:
        """Wait until Share has answered a read after the fault; return when that was."""
        self.wait(lambda: math.isfinite(self.first_read(since=self.ended)), 10 * MINUTE, "Share is not polled again")
        return self.first_read(since=self.ended)

    def has_all(self, owed: set[int], key: str = "anna") -> bool:
        """Return whether all of these have arrived, and one as new as the newest of them is shown as current."""
        self._take()
        shown = _current(self._picture, time.monotonic(), key)
        return bool(owed) and shown is not None and shown["date"] >= max(owed) and owed <= set(self.seen[key])

    def recovery(self, fault: Fault, *, since: float | None = None) -> float:
        """Wait until everything has recovered; return how many seconds of this world after the fault that was."""
        owed = self.owed(self.ended, since=since)
        late = f"it has not recovered: {len(owed - set(self.seen['anna']))} readings are missing"
        self.wait(lambda: self.has_all(owed), 2 * fault.within, late)
        return self.now() - self.ended

    def row(self, fault: Fault, *, times: int = 0, since: float | None = None) -> Row:
        """Wait until everything has recovered, and check that all owed readings came, within the fault's limits.

        ``times`` is how often a connection or the daemon ended, since each time may cause repeats.
        """
        took = self.recovery(fault, since=since)
        self.live(6 * MINUTE)
        settled = self.now() - MINUTE  # readings that Share got only just now are still being delivered
        owed = self.owed(settled, since=since)
        self.wait(lambda: self.has_all(owed), 10 * MINUTE, "later readings are missing")
        seen = self.received()
        lost = owed - set(seen)
        repeats = len(seen) - len(set(seen))
        stale = self.stale()
        print(f"recovered after {took:.0f} s; repeated {repeats}, looks {self.looks}, shown stale {stale:.0f} s")  # noqa: T201  # shown if a test fails
        assert self.process
        assert self.process.running
        assert self.process.text().count("please report it") == (2 if "BUG_IN" in self.environ else 0)
        assert not lost, f"lost: {sorted(lost)}"
        assert not set(seen) - self.owed(self.now(), since=self.born), "something came that is not a reading"
        assert repeats <= fault.repeats * times
        assert stale == 0
        assert self.looked_stale == 0
        assert self.looks > 3
        assert took <= fault.within
        return Row(len(lost), f"at most {fault.repeats} each time" if fault.repeats else "0", "0", under(fault.within))

    def growth(self) -> int:
        """Return by how many bytes the daemon grew, after the first quarter of the fault or the first hour."""
        settled = self.began + min((self.ended - self.began) / 4, HOUR)
        sizes = [size for at, size in self.memory if settled <= at <= self.ended]
        assert len(sizes) > 5
        print(f"grew by {(sizes[-1] - sizes[0]) / MIB:.2f} MiB from {sizes[0] / MIB:.1f}")  # noqa: T201
        return sizes[-1] - sizes[0]

    def received(self) -> list[int]:
        """Return the dates of Anna's readings in the order of arrival."""
        self._take()
        return self.seen["anna"]

    def status(self, key: str = "anna") -> dict[str, Any]:
        """Return an account's status as the subscriber has it."""
        self._take()
        found: dict[str, Any] = json.loads(self._picture[f"{_BASE}/{key}/status"].payload)
        return found

    def connects(self) -> int:
        """Return how often the broker has accepted the daemon."""
        return self.mosquitto.log().count(" as dexcom2mqtt (")

    def lags(self, key: str) -> list[float]:
        """Return, for each reading taken since the fault began, how many seconds after Share got it it arrived."""
        came: dict[int, float] = {}
        for heard in self.subscriber.heard:
            if heard.topic == f"{_BASE}/{key}/reading":
                came.setdefault(json.loads(heard.payload)["date"], self.unix(heard.at))
        records = share.series(self.accounts[key], self.began, self.now())
        return [came.get(record.taken, math.inf) - record.arrives for record in records if record.arrives <= self.ended]

    def stale(self) -> float:
        """Return for how many seconds the subscriber was shown a stale value as current."""
        return self._stale(self.subscriber.heard, time.monotonic())

    def _answer(self, request: share.Request, respond: share.Respond) -> share.Response:
        response = self.fault(request, respond)
        date = response.headers.get("Date")
        self.dates.append((request.time, (parse_http_date(date) or request.time) - request.time))
        if request.call == "read" and response.outcome == "ok":
            self.answers.append((request, response))
        return response

    def _take(self) -> None:
        """Record what the subscriber has received since the last time."""
        heard = self.subscriber.heard
        for message in heard[self._taken :]:
            self._picture[message.topic] = message
            for key, dates in self.seen.items():
                if message.topic == f"{_BASE}/{key}/reading":
                    dates.append(json.loads(message.payload)["date"])
        self._taken = len(heard)

    def _stale(self, heard: Iterable[Heard], until: float) -> float:
        """Return for how many seconds Anna's value was shown as current although its reading was too old.

        A message's expiry is in whole real seconds, rounded up: so much longer than it should, a value may look
        current.
        """
        limit = STALE_AFTER + self.speed
        picture: dict[str, Heard] = {}
        total = 0.0
        end = Heard("", "", retained=False, expiry=None, at=until)
        for message, following in pairwise([*heard, end]):
            picture[message.topic] = message
            shown = _current(picture, message.at, "anna")
            if shown is not None:
                ends = min([following.at, *(part.at + part.expiry for part in _parts(picture, "anna") if part.expiry)])
                total += max(0.0, self.unix(ends) - max(self.unix(message.at), _taken(shown) + limit))
        return total


def _parts(picture: Mapping[str, Heard], key: str) -> list[Heard]:
    """Return the messages that decide whether an account's value is current, as far as they exist."""
    topics = (f"{_BASE}/bridge/state", f"{_BASE}/{key}/availability", f"{_BASE}/{key}/state")
    return [picture[topic] for topic in topics if topic in picture]


def _current(picture: Mapping[str, Heard], at: float, key: str) -> dict[str, Any] | None:
    """Return the state that a subscriber following the rule treats as current; None if there is none."""
    parts = _parts(picture, key)
    alive = [part.payload for part in parts if part.expiry is None or at < part.at + part.expiry]
    if alive[:2] != ["online", "online"] or len(alive) < 3:
        return None
    state: dict[str, Any] = json.loads(alive[2])
    return None if state["value"] is None else state


def stamped(ahead: float) -> share.Distortion:
    """Let the phone's clock be ahead by that many seconds; the trend, an unknown word, contains the true time."""
    mark = share_faults.skewed(ahead)
    return lambda records: [
        replace(moved, trend=f"t{record.taken}") for record, moved in zip(records, mark(records), strict=True)
    ]


def _taken(state: Mapping[str, Any]) -> float:
    """Return when the reading of a state was really taken, in Unix seconds."""
    word = state["direction"]
    return int(word[1:] if word[1:].isdecimal() else state["date"]) / 1000


def _without_doubles(records: Iterable[Record]) -> Iterator[Record]:
    """Leave out readings that come again with the same value within half a minute."""
    kept: list[Record] = []
    for record in sorted(records, key=lambda record: record.taken):
        if not any(record.taken - each.taken <= 30_000 and record.value == each.value for each in kept[-3:]):
            kept.append(record)
            yield record


def under(seconds: float) -> str:
    """Return a time limit in words."""
    return f"under {seconds / HOUR:g} h" if seconds >= HOUR else f"under {seconds / MINUTE:g} min"


class Page:
    """The page with the table, which must have the rows that the tests measured.

    It is a plugin of pytest, in the process that gets all reports; with ``write`` it writes the page again, and rows
    that were not measured stay unchanged.
    """

    PATH: Final = ROOT / "docs" / "faults.md"

    def __init__(self, *, write: bool) -> None:
        self._write = write
        self._measured: dict[str, str] = {}
        self._differing: list[str] = []

    @staticmethod
    def line(fault: Fault, row: Row) -> str:
        return f"| {fault.words} | {' | '.join(map(str, row))} |"

    @classmethod
    def rows(cls) -> list[str]:
        """Return the rows of the page's table."""
        return [line for line in cls.text().splitlines() if line.startswith("| ")][1:]

    @classmethod
    def text(cls) -> str:
        """Return the page's present text."""
        return cls.PATH.read_text(encoding="utf-8") if cls.PATH.exists() else ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            measured = {str(name): str(line) for name, line in report.user_properties if name in FAULTS}
            self._measured.update(measured)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._measured:
            return
        held = {row.split(" | ")[0].removeprefix("| "): row for row in self.rows()}
        rows = [self._measured.get(name) or held.get(fault.words) for name, fault in FAULTS.items()]
        page = _HEAD + "".join(f"{row}\n" for row in rows if row)
        if self._write:
            self.PATH.write_text(page, encoding="utf-8")
        elif page != self.text():
            self._differing = [row for row in self._measured.values() if row not in held.values()] or ["(its text)"]
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._differing:
            terminalreporter.section("docs/faults.md differs from what was measured; see --write-faults", red=True)
            terminalreporter.write_line("\n".join(self._differing))


_HEAD: Final = """\
# Failures it recovers from by itself

The tests cause each fault in this table. They run the real daemon with a real broker (mosquitto), a real network
connection between them, and a simulated Share service, on a clock that runs 20 to 1200 times too fast, so that an hour
takes seconds. The service's or the broker's own log proves that the fault really happened. A subscriber records every
message, and the test compares these with the readings that Share had.

- **lost**: readings that Share still had (it keeps 24 hours, and 288 readings) and that never arrived on the topic
  `reading`. Readings that come twice within half a minute with the same value, and the sensor's error codes, don't
  count.
- **repeated**: readings that arrived more than once on `reading`. This may happen when a connection or the daemon ends
  before the broker has acknowledged a reading, or the history that follows it: at most what is sent in one second,
  which is 20 readings and the current one. It may also happen when the broker has forgotten its history while the
  daemon was down. A repeated reading has the same `date`.
- **shown stale**: seconds during which a subscriber that follows the rule (a value is current only while `bridge/state`
  and `availability` are both `online`, and nothing is used beyond its expiry) would have shown a value as current
  although its reading was older than `stale_after`. Other subscribers, which connected in the middle of the fault, also
  looked. MQTT counts an expiry in whole seconds of the real clock, so one such second is allowed for.
- **recovered**: how long after the end of the fault the newest reading was shown as current and none was missing. If
  the phone or the sensor was at fault, this includes the wait for the next reading; if Share asked for fewer requests,
  the rest of that time. The bounds are generous: on a fast clock, a slow machine's delay counts many times over, most
  of all in the outage of 23 hours.

In every fault that lasts an hour or more, the daemon's memory grows by less than 4 MiB.

`pytest -m faults -n 4 --write-faults` makes the table, and `pytest -m faults -n 4` fails if it differs from what was
measured.

| fault | lost | repeated | shown stale | recovered |
|---|---|---|---|---|
"""
