"""Several ``Ownership`` at a simulated broker, while processes start, stop, crash and lose their connections at random.

Only ``Serving`` and the link are stand-ins. The broker gives all messages one order, and each takes some time.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.daemon.ownership import Ownership
from dexcom2mqtt.daemon.round import Wanted
from dexcom2mqtt.messages.ownership import owner_of
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.mqtt.inbox import ReadBack
from dexcom2mqtt.shards import bridge_name, shard_of
from dexcom2mqtt.topics import ALONE, Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.daemon.serving import Serving
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.inbox import Still
    from dexcom2mqtt.mqtt.link import BrokerLink

KEYS: Final = ("anna", "ben", "cara", "hana", "jon", "kim", "leo", "mia")
CALM: Final = 120.0
"""Seconds without an event after which every account must be served: some looks of 30 s."""
_ACCOUNT: Final = cast("Account", object())


class Events(Clock):
    """The time, and what happens when."""

    def __init__(self, seed: object, delay: float) -> None:
        super().__init__()
        self.time = 1000.0
        self.chance = random.Random(str(seed))  # noqa: S311  # not for cryptography
        self._delay = delay
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], object]]] = []

    def now(self) -> float:
        return self.time

    def at(self, when: float, do: Callable[[], object]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), do))

    def later(self, after: float = 0.0) -> float:
        """Return when a message arrives that follows one that arrives at ``after``."""
        return max(after, self.time + self.chance.uniform(0, self._delay))

    def run(self, seconds: float, check: Callable[[], None]) -> None:
        until = self.time + seconds
        while self._queue and self._queue[0][0] <= until:
            self.time, _, do = heapq.heappop(self._queue)
            do()
            check()
        self.time = until


class Broker:
    """Retains messages, and hands all messages to the connected processes in one order."""

    def __init__(self, seed: object, delay: float = 0.3) -> None:
        self.events = Events(seed, delay)
        self.retained: dict[str, bytes] = {}
        self.processes: list[Process] = []
        self.said: list[tuple[str, str, str]] = []
        """Who published what about an account, of those that were no claims: the process, the account, the message."""
        self.doubles: list[str] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain:
            self.retained[topic] = payload
        for process in self.processes:
            process.receive(topic, payload)

    def serving(self, key: str) -> list[Process]:
        """Return the processes that surely serve an account and are connected."""
        return [each for each in self.processes if each.connected and key in each.ownership.holdings.owned]

    def check(self) -> None:
        for key in KEYS:
            names = [process.name for process in self.serving(key)]
            if len(names) > 1:
                self.doubles.append(f"{self.events.time:.1f}: {key}: {names}")

    def run(self, seconds: float) -> None:
        self.events.run(seconds, self.check)


class Process:
    """A process with its ``Ownership``; it stands in for its link and its ``Serving``, and records what they do."""

    def __init__(self, broker: Broker, index: int, count: int, keys: Collection[str] = KEYS) -> None:
        self.broker = broker
        self.events = broker.events
        self.name = bridge_name(index, count)
        self.topics = Topics("b", self.name)
        self.mine = [key for key in keys if shard_of(key, count) == index]
        self.connected = self.running = True
        self.did: list[tuple[str, str]] = []
        """What ``Serving`` was told to do, with which account."""
        self.withheld = frozenset[str]()
        self.keeps_days = False
        self._connection = 0
        self._sent_at = self._got_at = 0.0
        self._watched: Mapping[str, None] = {}
        self.ownership = Ownership(
            self.topics,
            self.events,
            cast("Serving", self),
            owned=(),
            link=lambda: cast("BrokerLink", self),
            changed=lambda: None,
            over=lambda: None,
        )
        broker.processes.append(self)
        before = [key for key in KEYS if owner_of(key, broker.retained.get(f"b/{key}/status")) == self.name]
        self._release = [key for key in before if key not in self.mine]
        self.say(self.topics.bridge_state, b"offline")
        self.begin()

    def begin(self) -> None:
        self.ownership.connected()
        wanted = {key: Wanted("release") for key in self._release}
        self.ownership.begin(wanted | {key: Wanted("serve", _ACCOUNT) for key in self.mine})
        self.say(self.topics.bridge_state, b"online")
        self._tick()

    # What happens to it

    def stop(self) -> None:
        for key in self.ownership.holdings.owned:
            self.say_status(key, released=True)
        self.say(self.topics.bridge_state, b"offline")
        self.running = self.connected = False

    def crash(self) -> None:
        self.running = False
        self._lose_connection()

    def disconnect(self, seconds: float) -> None:
        self._lose_connection()
        self.events.at(self.events.time + seconds, self._reconnect)

    def _lose_connection(self) -> None:
        self.connected = False
        self._connection += 1
        self.broker.publish(self.topics.bridge_state, b"offline", retain=True)

    def _reconnect(self) -> None:
        if self.running and not self.connected:
            self.connected = True
            self._watched = {}
            self._sent_at = self._got_at = self.events.time
            self.ownership.connected()
            self.say(self.topics.bridge_state, b"online")
            self._tick()

    def receive(self, topic: str, payload: bytes) -> None:
        if self.connected and (topic == self.topics.claims or topic in self._watched):
            self._got_at = self.events.later(self._got_at)
            self.events.at(self._got_at, partial(self._on_connection, self._connection, self._take, topic, payload))

    def _take(self, topic: str, payload: bytes) -> None:
        self.ownership.heard(topic, payload)
        self._tick()

    def _on_connection(self, connection: int, do: Callable[..., object], *arguments: object) -> None:
        if self.running and connection == self._connection:
            do(*arguments)

    def _tick(self) -> None:
        if self.running:
            left = self.ownership.tick()
            if left < float("inf"):
                self.events.at(self.events.time + max(left, 0.01), self._tick_if_due)
            watched = self.ownership.waiting.watched
            for topic in watched.keys() - self._watched.keys() if self.connected else ():
                self._watched = {**self._watched, topic: None}
                self.receive(topic, self.broker.retained.get(topic, b""))
            self._watched = {topic: None for topic in watched if topic in self._watched}

    def _tick_if_due(self) -> None:
        if self.running:
            left = self.ownership.tick()
            if 0.001 < left < float("inf"):
                return
            self._tick()

    # The link

    def tell(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.say(message.topic, message.payload.encode(), retain=message.retain)

    def say(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        if self.connected:
            self._sent_at = self.events.later(self._sent_at)
            publish = partial(self.broker.publish, topic, payload, retain=retain)
            self.events.at(self._sent_at, publish if not self.running else self._if(self._connection, publish))

    def _if(self, connection: int, publish: Callable[[], None]) -> Callable[[], None]:
        def do() -> None:
            if connection == self._connection:
                publish()

        return do

    def say_status(self, key: str, *, released: bool = False) -> None:
        message = status_message(self.topics, key, Status(), released=released)
        self.say(message.topic, message.payload.encode())

    def read_back(self, topics: Sequence[str], done: Callable[[Mapping[str, bytes]], None], still: Still) -> None:
        read_back = ReadBack(topics, "probe", done, still)
        if self.connected:
            self.events.at(self.events.later(), partial(self._on_connection, self._connection, self._read, read_back))

    def _read(self, read_back: ReadBack, *, waited: bool = False) -> None:
        found = {topic: self.broker.retained[topic] for topic in read_back.topics if topic in self.broker.retained}
        seconds = read_back.still(found, read_back.topics)
        if seconds and not waited:
            again = partial(self._read, read_back, waited=True)
            self.events.at(self.events.time + seconds, partial(self._on_connection, self._connection, again))
            return
        read_back.done(found)
        self._tick()

    # Serving

    def topics_of(self, keys: Collection[str]) -> list[str]:
        return [self.topics.of(key, "status") for key in keys]

    def take(self, accounts: Mapping[str, Any], *_: object) -> None:
        for key in accounts:
            self.did.append(("take", key))
            self.say_status(key)

    def withhold(self, keys: Collection[str]) -> None:
        self.withheld = frozenset(keys)

    def go_on(self, keys: Collection[str]) -> None:
        self.did += [("go on", key) for key in keys]
        for key in keys:
            self.say_status(key)

    def lose(self, key: str, then: Callable[[], None]) -> None:
        self.did.append(("lose", key))

        def end() -> None:
            then()
            self._tick()

        self.events.at(self.events.time + self.events.chance.uniform(0, 20), end)

    restart = lose

    def clear(self, key: str) -> None:
        self.did.append(("clear", key))
        self.say(self.topics.of(key, "status"), b"")

    def release(self, key: str, _: bytes) -> None:
        self.did.append(("release", key))
        self.say_status(key, released=True)


def start(broker: Broker, index: int, count: int) -> None:
    """Start a process, unless one of its name is running."""
    if all(each.name != bridge_name(index, count) for each in broker.processes if each.running):
        Process(broker, index, count)


def something(broker: Broker) -> None:
    """Start a process, or let something happen to a running one."""
    chance = broker.events.chance
    running = [each for each in broker.processes if each.running]
    what = chance.choice(["start", "start", "stop", "crash", "disconnect", "disconnect"])
    if what == "start" or not running:
        count = chance.choice([2, 3, 4])
        start(broker, chance.randrange(count), count)
        return
    process = chance.choice(running)
    if what == "disconnect":
        process.disconnect(chance.choice([0.1, 1.0, 3.0, 20.0]))
    else:
        getattr(process, what)()


@pytest.mark.parametrize("seed", range(40))
def test_each_account_has_one_owner_whatever_happens(seed: int) -> None:
    """No two processes serve an account at the same time, and once it is calm, each is served by who should do so."""
    broker = Broker(seed)
    for _ in range(30):
        something(broker)
        broker.run(broker.events.chance.choice([0.0, 0.5, 3.0, 10.0]))
    for process in broker.processes:
        if process.running:
            process.stop()
    broker.run(20)
    for index in range(3):
        start(broker, index, 3)
        broker.run(broker.events.chance.uniform(0, 3))
    broker.run(CALM)
    assert not broker.doubles
    owners = {key: [process.name for process in broker.serving(key)] for key in KEYS}
    assert owners == {key: [bridge_name(shard_of(key, 3), 3)] for key in KEYS}
    assert {key: owner_of(key, broker.retained[f"b/{key}/status"]) for key in KEYS} == {
        key: names[0] for key, names in owners.items()
    }


@pytest.mark.parametrize("seed", range(40))
def test_mixed_counts_leave_no_account_alone(seed: int) -> None:
    """In the middle of a change of the count, each account that a running process wants has one owner."""
    broker = Broker(f"mixed {seed}")
    for _ in range(20):
        something(broker)
        broker.run(broker.events.chance.choice([0.5, 3.0]))
    broker.run(CALM)
    assert not broker.doubles
    wanted = {key for process in broker.processes if process.running for key in process.mine}
    assert Counter({key: len(broker.serving(key)) for key in wanted}) == Counter(dict.fromkeys(wanted, 1))


def test_a_process_releases_what_it_served_before_and_no_other() -> None:
    """After a crash and a restart with another count, accounts of others are neither taken nor touched."""
    broker = Broker("release")
    for index in range(2):
        Process(broker, index, 2)
    broker.run(20)
    broker.processes[1].crash()
    again = Process(broker, 1, 5)
    broker.run(20)
    left = {key for key in KEYS if shard_of(key, 2) == 1 and shard_of(key, 5) != 1}
    assert {key for what, key in again.did if what == "release"} == left
    assert {key for what, key in again.did if what == "take"} == {key for key in KEYS if shard_of(key, 5) == 1}
    assert all(owner_of(key, broker.retained[f"b/{key}/status"]) is None for key in left)


def test_an_account_without_configuration_is_cleared_only_by_its_owner() -> None:
    """Another process may still be configured to serve it."""
    broker = Broker("clear")
    first, second = (Process(broker, index, 2) for index in range(2))
    broker.run(20)
    second.ownership.want("ben", Wanted("clear"))  # which the first one serves
    second.ownership.drop("cara")
    second._tick()  # noqa: SLF001  # as the daemon's loop does
    broker.run(60)
    assert ("clear", "ben") not in second.did
    assert ("clear", "cara") in second.did
    assert "ben" in first.ownership.holdings.owned
    assert "ben" not in second.ownership.holdings.wanted


def test_a_reconnect_withholds_until_the_claim_is_settled() -> None:
    """After a lost connection another process may serve an account, so nothing is published about it."""
    broker = Broker("reconnect")
    process = Process(broker, 0, 2)
    broker.run(20)
    assert process.ownership.holdings.owned == {*process.mine}
    process.disconnect(1.0)
    broker.run(1.1)
    assert process.ownership.holdings.owned == frozenset()
    assert process.withheld == {*process.mine}
    broker.run(20)
    assert process.withheld == frozenset()
    assert {key for what, key in process.did if what == "go on"} == {*process.mine}
    assert [what for what, _ in process.did].count("take") == len(process.mine)


def test_an_owner_that_is_alone_is_waited_for() -> None:
    """A status without the key ``bridge`` is of the one process that serves all accounts."""
    broker = Broker("alone")
    status = json.loads(status_message(Topics("b"), "ben", Status()).payload)
    assert "bridge" not in status
    broker.retained |= {"b/ben/status": json.dumps(status).encode(), f"b/{ALONE}/state": b"online"}
    process = Process(broker, 0, 2)
    broker.run(100)
    assert "ben" not in process.ownership.holdings.owned
    assert process.ownership.holdings.owned
    broker.publish(f"b/{ALONE}/state", b"offline", retain=True)
    broker.run(10)
    assert "ben" in process.ownership.holdings.owned
