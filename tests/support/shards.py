"""Several daemons that share the accounts, and what each of them published and asked Share for.

Each process has its own relay to the broker and its own Share service, so a test knows who did what. All services give
the same readings. ``World.check`` looks for what must never happen; it knows nothing of what the daemons say in logs.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.shards import bridge_name
from tests.support.processes import Mosquitto, Process, Subscriber, daemon, eventually, write_config
from tests.support.relay import HANG_UP, PASS, Packet, Relay

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from tests.support.processes import Heard

SPEED: Final = 60.0
MINUTE: Final = 60.0
DAY: Final = 24 * 3600.0
STALE_AFTER: Final = 15 * MINUTE
REPEATS: Final = 21
"""The most readings that repeat each time that a connection or a process ends without a farewell."""
BASE: Final = "dexcom2mqtt"
_NAMES: Final = ("anna", "ben", "cara", "hana", "jon", "kim", "leo", "mia")
PEOPLE: Final = {
    key: SimulatedAccount(f"{key}@example.com", f"password of {key}", seed=number)
    for number, key in enumerate(_NAMES, start=1)
}
_PROCESSES: Final = 12  # the most in one test


@dataclass(frozen=True)
class Said:
    """Something that a process published, when, by ``time.monotonic``."""

    at: float
    run: Run
    topic: str
    payload: str

    @property
    def key(self) -> str:
        """The account that it is about, if any."""
        level = self.topic.split("/")[1 if self.topic.startswith(f"{BASE}/") else -2]
        key = level.removeprefix(f"{BASE}_")
        return key if key in PEOPLE else ""


class Asked(NamedTuple):
    """A request to Share about an account."""

    at: float
    run: Run
    key: str
    sign_in: bool


class Run:
    """One process, from its start to its end."""

    def __init__(self, world: World, index: int, count: int, keys: Collection[str], mqtt: Mapping[str, Any]) -> None:
        self.bridge = bridge_name(index, count)
        self.share = world.free_share()
        self.relay = world.stack.enter_context(Relay(world.mosquitto.port))
        self.ended_at = math.inf
        self.killed = False
        number = len(world.runs)
        accounts = {
            key: {"username": PEOPLE[key].username, "password": PEOPLE[key].password, "share_url": self.share.base_url}
            for key in keys
        }
        config = {
            "accounts": accounts,
            "mqtt": {"host": "127.0.0.1", "port": self.relay.port, "protocol": world.protocol, **mqtt},
            "shard": {"index": index, "count": count},
        }
        self.began_at = time.monotonic()
        file = write_config(world.folder / f"config{number}.yaml", config)
        output = world.folder / f"daemon{number}.log"
        self.process: Process = world.stack.enter_context(daemon(file, output, speed=world.speed))
        self._world = world

    def __repr__(self) -> str:
        return f"<{self.process.output.name} {self.bridge}>"

    def stop(self) -> None:
        """End it as an operating system would, and wait for its end."""
        self.process.signal(signal.SIGTERM)
        assert self.process.wait() == 0
        self.ended_at = time.monotonic()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.killed = True
        self.process.kill()
        self.ended_at = time.monotonic()

    def said(self) -> Iterator[Said]:
        """Yield what it published and its broker may have got, oldest first."""
        for packet in self.relay.came("PUBLISH"):
            if packet.from_client:
                yield Said(packet.at, self, packet.topic, _payload(packet, five=self._world.protocol == "5"))

    def asked(self) -> Iterator[Asked]:
        """Yield its requests to Share, oldest first."""
        names = {account.username: key for key, account in PEOPLE.items()}
        for entry in self.share.requests:
            if entry.account is not None:
                yield Asked(self._world.real(entry.time), self, names[entry.account], entry.password)

    def did(self) -> list[Said | Asked]:
        """Return both, in order."""
        events: list[Said | Asked] = [*self.said(), *self.asked()]
        return sorted(events, key=lambda event: event.at)


class World:
    """The broker, the services, the processes, and a subscriber."""

    def __init__(self, folder: Path, mosquitto: Mosquitto, protocol: str = "5", speed: float = SPEED) -> None:
        self.folder = folder
        self.speed = speed
        self.mosquitto = mosquitto
        self.protocol = protocol
        self.stack = ExitStack()
        self.runs: list[Run] = []
        self.now = accelerated(speed)
        self._zero = self.now() - time.monotonic() * speed
        self._shares = deque(SimulatedShare(PEOPLE.values(), self.now) for _ in range(_PROCESSES))
        self.subscriber = self.stack.enter_context(
            Subscriber(mosquitto.port, set_up=lambda client: client.reconnect_delay_set(1, 1))
        )
        self.breaks = 0
        """How often connections of processes were broken, other than by the end of a process."""
        self._picture: dict[str, str] = {}
        self._dates: dict[str, list[int]] = {key: [] for key in PEOPLE}
        self._taken = 0

    def close(self) -> None:
        """End everything."""
        self.stack.close()

    def free_share(self) -> SimulatedShare:
        """Return a running service that no process has used."""
        return self.stack.enter_context(self._shares.popleft())

    def real(self, unix: float) -> float:
        """Turn a time of this world, in Unix seconds, into one of ``time.monotonic``."""
        return (unix - self._zero) / self.speed

    def start(self, index: int, count: int, keys: Collection[str] = tuple(PEOPLE), **mqtt: Any) -> Run:
        """Start a process with these accounts."""
        self.runs.append(Run(self, index, count, keys, mqtt))
        return self.runs[-1]

    def restart_broker(self) -> None:
        """Restart the broker; the subscriber connects first, so it gets everything."""
        self.breaks += 1
        for run in self.runs:
            run.relay.rule = lambda _: HANG_UP
        self.mosquitto.stop()
        eventually(lambda: not self.subscriber.subscribed.is_set())
        self.mosquitto.start()
        eventually(self.subscriber.subscribed.is_set)
        for run in self.runs:
            run.relay.rule = lambda _: PASS

    # What a subscriber knows

    def latest(self) -> dict[str, str]:
        """Return the latest payload of each topic."""
        heard = self.subscriber.heard
        for message in heard[self._taken :]:
            self._picture[message.topic] = message.payload
            key = message.topic.split("/")[-2]
            if message.topic.endswith("/reading"):
                self._dates[key].append(json.loads(message.payload)["date"])
        self._taken = len(heard)
        return self._picture

    def status(self, key: str) -> dict[str, Any]:
        """Return an account's status; an empty one if there is none."""
        return json.loads(self.latest().get(f"{BASE}/{key}/status") or "{}")  # type: ignore[no-any-return]

    def owners(self, keys: Iterable[str] = tuple(PEOPLE)) -> dict[str, str | None]:
        """Return the owner of each account by its status; none if that does not name one."""
        return {key: self.status(key).get("bridge") for key in keys}

    def current(self, key: str) -> bool:
        """Return whether an account has a current value by the rule for subscribers."""
        latest, owner = self.latest(), self.status(key).get("bridge", "bridge")
        states = latest.get(f"{BASE}/{owner}/state"), latest.get(f"{BASE}/{key}/availability")
        return states == ("online", "online") and json.loads(latest[f"{BASE}/{key}/state"])["value"] is not None

    def wait_for_owners(self, owners: Mapping[str, str], seconds: float = 20) -> None:
        """Wait until these processes serve these accounts, each with a current value and everything published."""
        eventually(lambda: self.owners(owners) == owners, seconds, why=f"not served like {owners}\n{self.logs()}")
        eventually(lambda: all(map(self.current, owners)), seconds, why=f"not current: {owners}\n{self.logs()}")
        self.wait_for_readings(owners)

    def wait_for_readings(self, keys: Iterable[str]) -> None:
        """Wait until every reading of these accounts that Share has now has arrived, and is in the history, too."""
        owed = {key: self.owed(key, self.now()) for key in keys}
        eventually(
            lambda: all(owed[key] <= set(self.dates(key)) for key in owed),
            why=f"readings are missing: {[*owed]}\n{self.logs()}",
        )
        day = (self.now() - DAY + 30 * MINUTE) * 1000
        recent = {key: {date for date in dates if date > day} for key, dates in owed.items()}
        eventually(
            lambda: all(recent[key] <= self._history(key) for key in recent),
            why=f"they are not in the history: {[*owed]}\n{self.logs()}",
        )

    def _history(self, key: str) -> set[int]:
        history = json.loads(self.latest().get(f"{BASE}/{key}/history") or '{"readings": []}')
        return {entry["date"] for entry in history["readings"]}

    def dates(self, key: str) -> list[int]:
        """Return the dates of an account's readings in the order of arrival."""
        self.latest()
        return self._dates[key]

    def owed(self, key: str, until: float) -> set[int]:
        """Return the dates of the readings that Share has had since 24 hours before it was first asked."""
        asked = [entry.at for run in self.runs for entry in run.asked() if entry.key == key and not entry.sign_in]
        since = min(asked, default=math.inf) * self.speed + self._zero - DAY
        records = share.series(PEOPLE[key], since, until) if asked else ()
        return {record.taken for record in records if record.arrives <= until}

    def said(self, topic: str = "") -> list[Said]:
        """Return what all processes published, or only on one topic, in order."""
        every = [said for run in self.runs for said in run.said() if topic in {"", said.topic}]
        return sorted(every, key=lambda said: said.at)

    def logs(self) -> str:
        """Return what all processes logged."""
        return "\n".join(f"{run}\n{run.process.text()}" for run in self.runs)

    # What must never happen

    def check(self, keys: Iterable[str] = tuple(PEOPLE)) -> None:
        """Wait until every reading has arrived, and check that nothing happened that never may."""
        self.wait_for_readings(keys)
        mistakes = [*self._others_accounts(), *self._repeats(keys), *self._stale()]
        assert not mistakes, "\n".join([*mistakes, self.logs()])
        assert "please report it" not in self.logs()

    def unix(self, at: float) -> float:
        """Turn a time of ``time.monotonic`` into one of this world."""
        return self._zero + at * self.speed

    def _others_accounts(self) -> Iterator[str]:
        """Yield what processes published or asked for about an account that another one served."""
        ledger = _Ledger(self.subscriber.heard)
        for event in sorted(chain(*(run.did() for run in self.runs)), key=lambda event: event.at):
            if event.key and (mistake := ledger.enter(event)):
                yield mistake

    def _repeats(self, keys: Iterable[str]) -> Iterator[str]:
        allowed = REPEATS * (self.breaks + sum(run.killed for run in self.runs))
        allowed += sum(not run.killed and run.ended_at < math.inf for run in self.runs)  # one on its way at a stop
        for key in keys:
            repeats = sum(count - 1 for count in Counter(self.dates(key)).values())
            if repeats > allowed:
                yield f"{key}: {repeats} readings were repeated, of at most {allowed}"

    def _stale(self) -> Iterator[str]:
        """Yield when an account's value was shown as current although its reading was too old.

        A subscriber looks at the owner in ``status``, and uses no message beyond its expiry. An expiry is in whole real
        seconds, rounded up, so a value may look current for that much longer.
        """
        picture: dict[str, Heard] = {}
        for message in self.subscriber.heard:
            for key in PEOPLE:
                shown = _shown(picture, key, message.at)
                late = 0.0 if shown is None else self.unix(message.at) - shown["date"] / 1000 - STALE_AFTER
                if shown is not None and late > 1.5 * self.speed:
                    yield f"{message.at}: {key}: {shown['value']} is shown {late:.0f} s too long"
            picture[message.topic] = message


class _Ledger:
    """Who has served each account so far, and whether the next one may."""

    def __init__(self, heard: Iterable[Heard]) -> None:
        self._states = [message for message in heard if message.topic.endswith("/state")]
        self._latest: dict[str, Said | Asked] = {}
        self._released: dict[str, bool] = {}

    def enter(self, event: Said | Asked) -> str:
        """Record what a process did for an account; return what is wrong about it."""
        key = event.key
        before, self._latest[key] = self._latest.get(key), event
        other = None if before is None or before.run is event.run else before
        free = other is None or self._released[key] or self._is_gone(other, event.at)
        if isinstance(event, Said) and event.topic == f"{BASE}/{key}/status":
            status = json.loads(event.payload or "{}")
            self._released[key] = "bridge" in status and status["bridge"] is None
        elif before is None or other is not None:
            self._released[key] = False
        if free:
            return ""
        what = f"{event.topic} {event.payload[:100]}" if isinstance(event, Said) else f"sign-in: {event.sign_in}"
        return f"{event.at}: {key}: {event.run} although {other and other.run} serves it: {what}"

    def _is_gone(self, last: Said | Asked, at: float) -> bool:
        """Return whether, after what it did last, a process ended or was offline at the broker by then."""
        topic = f"{BASE}/{last.run.bridge}/state"
        offline = (each.at for each in self._states if each.topic == topic and each.payload == "offline")
        return last.run.ended_at < at or any(last.at < each <= at for each in offline)


def _shown(picture: Mapping[str, Heard], key: str, at: float) -> dict[str, Any] | None:
    """Return the state that a subscriber treats as current; None if there is none."""

    def payload(topic: str) -> str:
        message = picture.get(f"{BASE}/{topic}")
        gone = message is None or (message.expiry is not None and at >= message.at + message.expiry)
        return "" if message is None or gone else message.payload

    if payload(f"{key}/availability") != "online":
        return None
    owner = json.loads(payload(f"{key}/status") or "{}").get("bridge", "bridge")
    state = json.loads(payload(f"{key}/state") or '{"value": null}')
    return state if payload(f"{owner}/state") == "online" and state["value"] is not None else None


def _payload(packet: Packet, *, five: bool) -> str:
    """Return the payload of a PUBLISH."""
    rest = packet.body[2 + len(packet.topic.encode()) :]
    if packet.data[0] & 0x06:  # its packet identifier
        rest = rest[2:]
    if five:  # its properties, of less than 128 bytes
        rest = rest[1 + rest[0] :]
    return rest.decode()
