"""Claims of several processes at a simulated broker, which gives all messages one order and delays them."""

from __future__ import annotations

import heapq
import itertools
import json
import random
from typing import TYPE_CHECKING, Final

import pytest

from dexcom2mqtt.daemon.claiming import SETTLE_SECONDS, Claiming
from dexcom2mqtt.messages.ownership import claim_messages, serving_messages
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dexcom2mqtt.messages.message import Message

KEYS: Final = ("anna", "ben", "cara")
QUICK: Final = SETTLE_SECONDS / 3
"""The longest delay of one way with which a claim, its return and an objection surely fit into the time to settle."""
SEEDS: Final = pytest.mark.parametrize("seed", range(5))
WITHIN: Final = pytest.mark.parametrize("within", [0.0, 1.0, 8.0])


class Broker:
    """Gives the messages of all processes one order; each way takes up to ``delay`` seconds."""

    def __init__(self, chance: random.Random, delay: float) -> None:
        self.now = 0.0
        self.chance = chance
        self.processes: list[Process] = []
        self.overlaps = 0
        """How often an account was served by two processes, at the end of a claim."""
        self._delay = delay
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], object]]] = []

    def at(self, when: float, do: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), do))

    def later(self, after: float) -> float:
        """Return when a message arrives that follows one that arrives at ``after``."""
        return max(after, self.now + self.chance.uniform(0, self._delay))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, do = heapq.heappop(self._events)
            do()
        self.now = until

    def publish(self, payload: bytes) -> None:
        for process in self.processes:
            if process.subscribed:
                process.arrives_at = self.later(process.arrives_at)
                self.at(process.arrives_at, lambda process=process: process.hear(payload))  # type: ignore[misc]

    def servers(self, key: str) -> list[int]:
        return [process.number for process in self.processes if key in process.serves]


class Process:
    """Claims accounts until it serves them, as ``Ownership`` does; if ``informed``, not those that others serve."""

    def __init__(
        self, broker: Broker, number: int, wanted: Iterable[str] = KEYS, *, deaf: bool = False, informed: bool = False
    ) -> None:
        self.number = number
        self.topics = Topics("b", f"bridge-{number}")
        self.claiming = Claiming(self.topics, 1.0)
        self.serves = frozenset[str]()
        self.wanted = frozenset(wanted)
        self.subscribed = False
        self.arrives_at = 0.0  # the last message from the broker
        self.deaf = deaf
        self.informed = informed
        self._broker = broker
        self._sent_at = 0.0
        broker.processes.append(self)

    def start(self) -> None:
        self.subscribed = not self.deaf
        self.claim()

    def claim(self) -> None:
        left = {key for key in self.wanted - self.serves if not (self.informed and self._broker.servers(key))}
        if left:
            self._tell(self.claiming.begin(left, self._broker.now))
            self._wait()
        elif self.wanted - self.serves:
            self._broker.at(self._broker.now + 5, self.claim)

    def hear(self, payload: bytes) -> None:
        answers, lost = self.claiming.hear(payload, self.serves, self._broker.now)
        self._tell(answers)
        if lost:
            self.serves -= lost
            self._broker.at(self._broker.now + 5, self.claim)
        self._wait()

    def _wait(self) -> None:
        ends_at = self.claiming.ends_at
        if ends_at < float("inf"):
            self._broker.at(ends_at, self._end)

    def _end(self) -> None:
        if self._broker.now < self.claiming.ends_at:
            return
        self.claiming.end()
        won = self.claiming.settle()
        self._broker.overlaps += sum(bool(self._broker.servers(key)) for key in won)
        self.serves |= won
        self._tell(serving_messages(self.topics, won))
        if self.wanted - self.serves:
            self._broker.at(self._broker.now + 5, self.claim)

    def _tell(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._sent_at = self._broker.later(self._sent_at)
            payload = message.payload.encode()
            self._broker.at(self._sent_at, lambda payload=payload: self._broker.publish(payload))  # type: ignore[misc]


def together(seed: int, turn: int, delay: float, within: float) -> Broker:
    """Start up to five processes within some seconds of each other."""
    chance = random.Random(f"{seed}/{turn}")  # noqa: S311  # not for cryptography
    broker = Broker(chance, delay)
    for number in chance.sample(range(12), chance.randint(2, 5)):
        informed = delay > QUICK  # else it would win again and again, before it hears the objection
        process = Process(broker, number, chance.sample(KEYS, chance.randint(1, 3)), informed=informed)
        broker.at(chance.uniform(0, within), process.start)
    return broker


@SEEDS
@WITHIN
def test_two_processes_never_win_the_same_account(seed: int, within: float) -> None:
    """As long as messages take no more than a third of the time to settle, each account has one winner, for good."""
    for broker in (together(seed, turn, QUICK, within) for turn in range(60)):
        broker.run(120)
        assert broker.overlaps == 0
        assert each_is_served_once(broker)


@SEEDS
@WITHIN
def test_slow_messages_leave_one_winner(seed: int, within: float) -> None:
    """If messages take so long that two processes win the same account, one of them soon loses it again."""
    for broker in (together(seed, turn, SETTLE_SECONDS, within) for turn in range(60)):
        broker.run(120)
        assert each_is_served_once(broker)


def each_is_served_once(broker: Broker) -> bool:
    wanted = {key for process in broker.processes for key in process.wanted}
    return all(len(broker.servers(key)) == 1 for key in wanted)


@SEEDS
def test_of_two_claims_the_lower_number_wins(seed: int) -> None:
    """If all claim at the same time, the lowest number gets everything, also compared with two digits."""
    broker = Broker(random.Random(seed), QUICK)  # noqa: S311  # not for cryptography
    for number in (10, 9, 2):
        broker.at(0, Process(broker, number).start)
    broker.run(30)
    assert {key: broker.servers(key) for key in KEYS} == {key: [2] for key in KEYS}


@SEEDS
@pytest.mark.parametrize("number", [0, 7])
def test_a_process_that_serves_objects(seed: int, number: int) -> None:
    """A late process gets only what nobody serves, even if its number is lower."""
    broker = Broker(random.Random(seed), QUICK)  # noqa: S311  # not for cryptography
    broker.at(0, Process(broker, 3, ["anna", "ben"]).start)
    broker.at(10, Process(broker, number).start)
    broker.run(60)
    assert {key: broker.servers(key) for key in KEYS} == {"anna": [3], "ben": [3], "cara": [number]}


@pytest.mark.parametrize("others", [0, 1])
def test_a_claim_that_does_not_return_wins_nothing(others: int) -> None:
    """A process to which the broker sends nothing does not know who else claims the accounts."""
    broker = Broker(random.Random(1), QUICK)  # noqa: S311  # not for cryptography
    deaf = Process(broker, 1, deaf=True)
    broker.at(0, deaf.start)
    for number in range(others):
        broker.at(0, Process(broker, 5 + number).start)
    broker.run(9.9)
    assert not deaf.claiming.returned
    broker.run(60)
    assert not deaf.serves
    assert broker.servers("anna") == [5][:others]


def test_another_message_is_not_the_return_of_a_claim() -> None:
    """An earlier claim of the same process does not count, and neither does what another one says."""
    topics = Topics("b", "bridge-1")
    claiming = Claiming(topics, 1.0)
    (earlier,) = claiming.begin(["anna"], 0.0)
    (latest,) = claiming.begin(["anna"], 0.5)
    assert claiming.hear(earlier.payload.encode(), frozenset(), 1.0) == ([], frozenset())
    assert claiming.hear(b"{", frozenset(), 1.0) == ([], frozenset())
    assert (claiming.returned, claiming.ends_at) == (False, 10.5)
    claiming.hear(latest.payload.encode(), frozenset(), 1.0)
    assert claiming.ends_at == 1.0 + SETTLE_SECONDS
    assert claiming.end() == {"anna"}
    assert claiming.end() == frozenset()


def test_a_won_account_is_defended_before_it_is_served() -> None:
    """While a process reads back what is retained, it objects to other claims, and gives up what another serves."""
    claiming = Claiming(Topics("b", "bridge-5"), 1.0)
    (claim,) = claiming.begin(["anna", "ben"], 0.0)
    claiming.hear(claim.payload.encode(), frozenset(), 0.1)
    assert claiming.end() == {"anna", "ben"}
    (theirs,) = claim_messages(Topics("b", "bridge-1"), ["anna"], 1)
    answers, lost = claiming.hear(theirs.payload.encode(), frozenset(), 3.0)
    assert [json.loads(answer.payload)["serves"] for answer in answers] == [["anna"]]
    (objection,) = serving_messages(Topics("b", "bridge-9"), ["ben"])
    assert claiming.hear(objection.payload.encode(), frozenset(), 3.0) == ([], frozenset())
    assert not lost
    assert claiming.settle() == {"anna"}
    assert claiming.settle() == frozenset()


def test_large_claims_return_in_parts() -> None:
    """A claim of a thousand accounts is several messages, and all of them have to return."""
    claiming = Claiming(Topics("b", "bridge-1"), 60.0)
    keys = [f"a{number}" for number in range(1001)]
    parts = claiming.begin(keys, 0.0)
    assert len(parts) == 3
    for part in parts:
        assert not claiming.returned
        claiming.hear(part.payload.encode(), frozenset(), 60.0)
    assert claiming.ends_at == 60.0 + 60.0 * SETTLE_SECONDS
    assert claiming.end() == {*keys}
