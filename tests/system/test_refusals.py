"""A message that a broker refuses affects nothing else: a matrix of places and faults, and brokers with limits.

As in the fault matrix, the daemon is a process, its broker a mosquitto, and its clock is too fast. Between them is a
relay that hangs up, is silent or refuses at one topic or subscription, like some other brokers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.faults import FAULTS, HOUR, MINUTE, Page, Row, World
from tests.support.refusing import Refusing
from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Heard, Mosquitto
    from tests.support.refusing import Kind

SPEED: Final = 120.0
JAM: Final = "0.25"
"""Real seconds that an acknowledgement may take: 30 by this clock."""
ANNA: Final = "dexcom2mqtt/anna"
BRIDGE: Final = "dexcom2mqtt/bridge/state"
DISCOVERY: Final = "homeassistant/device/dexcom2mqtt_anna/config"
BIRTH: Final = "homeassistant/status"
ON_AND_OFF: Final = (f"{ANNA}/state", f"{ANNA}/value", f"{ANNA}/availability", BRIDGE)
"""The messages that make a value current, or stale."""
OTHERS: Final = (f"{ANNA}/history", f"{ANNA}/reading", f"{ANNA}/status", DISCOVERY)
WAYS: Final[list[tuple[Kind, str]]] = [
    ("hang-up", "5"),
    ("hang-up", "3.1.1"),
    ("silence", "5"),
    ("silence", "3.1.1"),
    ("refusal", "5"),
]
NAMED: Final[dict[Kind, str]] = {
    "hang-up": "hangs up whenever something is published to {}:",
    "silence": "never acknowledges what is published to {}:",
    "refusal": "refuses messages on {} (",
}
ROWS: Final[dict[Kind, str]] = {"hang-up": "hang-up", "silence": "silence", "refusal": "refusal"}

Record = Callable[[str, Row], None]


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Return a function that records a row for the page."""
    return lambda name, row: record_property(name, Page.line(FAULTS[name], row))


@dataclass
class Trial:
    """A world, the relay in it, and what its broker refuses."""

    here: World
    relay: Relay
    fault: Refusing

    def begin(self) -> None:
        """Start the daemon, wait until everything works, and begin the fault."""
        self.here.start()
        self.here.wait(lambda: math.isfinite(self.here.first_read()), 10 * MINUTE, "Share is not asked")
        owed = self.here.owed(self.here.now())
        self.here.wait(lambda: self.here.has_all(owed), 10 * MINUTE, "the daemon publishes nothing current")
        self.here.wait(lambda: self.here.status()["share"] == "ok", 10 * MINUTE, "the daemon publishes nothing current")
        self.fault.on = True
        self.here.began = self.here.now()

    def begin_with_it(self) -> None:
        """Start the daemon with the fault present from the beginning."""
        self.fault.on = True
        self.here.start()
        self.here.wait(lambda: math.isfinite(self.here.first_read()), 10 * MINUTE, "Share is not asked")
        self.here.began = self.here.now()

    def end(self) -> dict[str, str]:
        """End the fault; return what the subscriber has then."""
        latest = self.here.subscriber.latest()
        self.fault.on = False
        self.here.end()
        return latest

    def log(self) -> str:
        """Return what the daemon has logged."""
        assert self.here.process
        return self.here.process.text()

    def connects(self, since: float, until: float) -> int:
        """Return how often the daemon connected, between two times since the beginning of the fault."""
        times = [self.here.unix(packet.at) - self.here.began for packet in self.relay.came("CONNECT")]
        return sum(since < time <= until for time in times)

    def newest(self, topic: str, until: float) -> int:
        """Return the date of the newest reading published on a topic by then."""
        heard = [each for each in self.here.subscriber.heard if each.topic == topic and self.here.unix(each.at) < until]
        return max((_date(each) for each in heard), default=0)

    def known(self, until: float) -> int:
        """Return the date of the newest reading that Share had by then."""
        return max(self.here.owed(until))


def _date(heard: Heard) -> int:
    """Return the date of the newest reading in a message; some messages give it only to the second."""
    content: dict[str, Any] = json.loads(heard.payload)
    if "readings" in content:
        return int(content["readings"][-1]["date"])
    if "last_reading_at" in content:
        return int(datetime.fromisoformat(content["last_reading_at"] or "1970-01-01T00:00:00+00:00").timestamp() * 1000)
    return int(content["date"] or 0)


@pytest.fixture
def trial(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes a trial, for use in a ``with``."""

    @contextmanager
    def build(
        kind: Kind, where: str, protocol: str, *, speed: float = SPEED, subscription: bool = False, expires: bool = True
    ) -> Iterator[Trial]:
        mosquitto = start_mosquitto()
        fault = Refusing(kind, where, protocol, subscription=subscription, expires=expires)
        with Relay(mosquitto.port, fault) as relay:
            here = World(tmp_path, mosquitto, speed, mqtt={"port": relay.port, "protocol": protocol}, JAM=JAM)
            try:
                yield Trial(here, relay, fault)
            finally:
                here.close()

    return build


def goes_on(each: Trial, *but: str) -> None:
    """Check that readings which Share got during the fault came on all other topics within minutes."""
    here = each.here
    for topic in (f"{ANNA}/{leaf}" for leaf in ("reading", "history", "status", "state")):
        if topic not in but and not (topic == f"{ANNA}/history" and f"{ANNA}/reading" in but):  # the published ones
            known = each.known(here.ended - 5 * MINUTE)
            assert each.newest(topic, here.ended) >= known - 1000, f"{topic} has nothing new"


def is_calm(each: Trial, first_most: int = 12, later_most: int = 5) -> None:
    """Check that the daemon connects rarely, in the first ten minutes and later, and reports the problem once.

    Eight times are usual: two while the place is unknown, three at the known one, and one for each try with less in it.
    The rest is for a busy machine, on which an answer takes longer than this clock allows.
    """
    first, later = each.connects(0, 10 * MINUTE), each.connects(10 * MINUTE, each.here.ended - each.here.began)
    print(f"connects: {first}, then {later}; hits: {len(each.fault.hits)}")  # noqa: T201  # shown if a test fails
    print(each.log())  # noqa: T201
    assert each.fault.hits
    assert first <= first_most
    assert later <= later_most
    text = NAMED[each.fault.kind].format(each.fault.where)
    assert each.log().count(text) == 1
    assert "please report" not in each.log()


def is_whole_again(each: Trial, within: float) -> None:
    """Check that everything arrives after the fault, and that nothing was lost or shown as current when stale."""
    here = each.here
    here.wait(lambda: each.log().count("now accepts ") >= 1, 2 * within, "it is not tried again")
    owed = here.owed(here.now() - 2 * MINUTE)
    here.wait(lambda: here.has_all(owed), 2 * within, "it has not recovered")
    here.wait(lambda: holds(each, owed), 10 * MINUTE, f"{each.fault.where} is not right again")
    assert here.now() - here.ended <= within
    assert here.stale() == 0
    assert here.looked_stale == 0
    assert here.looks > 3


def is_online(each: Trial) -> bool:
    """Return whether the account has a current value."""
    latest = each.here.subscriber.latest()
    return (latest[BRIDGE], latest[f"{ANNA}/availability"]) == ("online", "online")


def holds(each: Trial, owed: set[int]) -> bool:
    """Return whether the topic of the fault has the right message now."""
    topic, latest = each.fault.where, each.here.subscriber.latest()
    if topic == DISCOVERY:
        return bool(latest.get(topic))
    if topic == f"{ANNA}/value":
        return latest[topic] == str(json.loads(latest[f"{ANNA}/state"])["value"])
    if topic == f"{ANNA}/history":
        recent = {date for date in owed if date > max(owed) - 23 * HOUR * 1000}
        return recent <= {entry["date"] for entry in json.loads(latest.get(topic, '{"readings": []}'))["readings"]}
    if topic.startswith(ANNA) and topic != f"{ANNA}/availability":
        return each.newest(topic, each.here.now()) >= max(owed) - 1000
    return latest[topic] == "online"


@pytest.mark.parametrize("kind", ["hang-up", "silence", "refusal"])
def test_one_topic_of_each_kind(trial: Callable[..., Any], kind: Kind) -> None:
    """Only the value is refused: it is named, nothing is current, the readings come, and later everything works."""
    with trial(kind, f"{ANNA}/value", "5") as each:
        here = each.here
        each.begin_with_it()
        here.wait(lambda: NAMED[kind].format(f"{ANNA}/value") in each.log(), 10 * MINUTE, "it is not named")
        here.wait(lambda: len(set(here.received())) > 280, 10 * MINUTE, "the readings do not come")
        here.wait(lambda: here.subscriber.latest().get(BRIDGE) == "online", 10 * MINUTE, "it is not online")
        assert here.subscriber.latest().get(f"{ANNA}/availability", "offline") == "offline"
        each.fault.on = False
        owed = here.owed(here.now())
        here.wait(lambda: here.has_all(owed), 15 * MINUTE, "it has not recovered")
        assert each.log().count("now accepts ") == 1


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "protocol"), WAYS)
@pytest.mark.parametrize("where", OTHERS)
def test_a_topic_beside_the_value(trial: Callable[..., Any], where: str, kind: Kind, protocol: str) -> None:
    """It is named and left out, from the very first start on; the value becomes current and stale as usual."""
    with trial(kind, where, protocol) as each:
        each.begin_with_it()
        each.here.live(12 * MINUTE)
        each.here.wait(lambda: is_online(each), 3 * MINUTE, "it is not online")  # another try may end a connection
        latest = each.end()
        goes_on(each, where)
        is_calm(each)
        assert (latest[BRIDGE], latest[f"{ANNA}/availability"]) == ("online", "online")
        assert json.loads(latest[f"{ANNA}/state"])["value"] is not None
        is_whole_again(each, 25 * MINUTE)


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "protocol", "expires"), [*((*way, True) for way in WAYS), ("hang-up", "5", False)])
@pytest.mark.parametrize("leaf", ["state", "value", "availability"])
def test_a_topic_that_makes_a_value_current(
    trial: Callable[..., Any], record: Record, leaf: str, kind: Kind, protocol: str, *, expires: bool
) -> None:
    """A refused topic keeps no old value current: the other half says that nothing is current until it is accepted."""
    where = f"{ANNA}/{leaf}"
    with trial(kind, where, protocol, expires=expires) as each:
        each.begin()
        each.here.live(24 * MINUTE)
        latest = each.end()
        is_calm(each)
        assert latest[BRIDGE] == "online"
        if leaf == "availability":
            assert json.loads(latest[f"{ANNA}/state"])["value"] is None
            assert latest[f"{ANNA}/value"] == "unknown"
        else:
            assert latest.get(f"{ANNA}/availability", "offline") == "offline"
        goes_on(each, where)
        is_whole_again(each, 25 * MINUTE)
        assert json.loads(each.here.subscriber.latest()[f"{ANNA}/state"])["value"] is not None
        if leaf == "state" and protocol == "5" and expires:
            record(ROWS[kind], each.here.row(FAULTS[ROWS[kind]], times=each.relay.connections))


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "protocol"), WAYS)
def test_a_bridge_that_cannot_say_online(trial: Callable[..., Any], kind: Kind, protocol: str) -> None:
    """The will says offline, and a new connection tries again at most once a minute; then everything works again."""
    with trial(kind, BRIDGE, protocol) as each:
        each.begin()
        each.here.live(22 * MINUTE)
        latest = each.end()
        goes_on(each)
        is_calm(each, first_most=16, later_most=14)  # each minute
        assert latest[BRIDGE] == "offline"
        assert not each.relay.came("DISCONNECT")
        is_whole_again(each, 25 * MINUTE)


# Subscriptions


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "protocol"), [*WAYS, ("refusal", "3.1.1")])
@pytest.mark.parametrize("where", ["dexcom2mqtt/+/refresh", BIRTH, f"{ANNA}/history"])
def test_a_subscription(trial: Callable[..., Any], where: str, kind: Kind, protocol: str) -> None:
    """It is named with what will not work without it, the rest works, and later it works as well."""
    with trial(kind, where, protocol, subscription=True) as each:
        here = each.here
        each.begin_with_it()
        here.live(12 * MINUTE)
        latest = each.end()
        goes_on(each)
        first, later = each.connects(-HOUR, 10 * MINUTE), each.connects(10 * MINUTE, 12 * MINUTE)
        print(f"connects: {first}, then {later}; hits: {len(each.fault.hits)}")  # noqa: T201
        print(each.log())  # noqa: T201
        assert each.fault.hits
        assert each.log().count("has acknowledged nothing for") <= 2
        assert first <= 12
        assert later <= 2
        assert (latest[BRIDGE], latest[f"{ANNA}/availability"]) == ("online", "online")
        assert each.log().count(f"the subscription to {where}") == 1
        assert here.stale() == 0
        if where == f"{ANNA}/history":
            return  # it is read once, after a start
        here.wait(lambda: works(each), 65 * MINUTE, "the subscription does not work although it is allowed")


def works(each: Trial) -> bool:
    """Return whether the broker passes messages on that topic to the daemon, by requesting a refresh."""
    topic = each.fault.where.replace("+", "anna")
    each.here.subscriber.client.publish(topic, "online")
    return any(packet.topic == topic and not packet.from_client for packet in tuple(each.relay.packets))
