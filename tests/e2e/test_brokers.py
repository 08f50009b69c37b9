"""The daemon and its commands with brokers of several makers: all must behave the same.

Each broker is the real one, with a user and a password; Share is simulated, and its clock and the daemon's run faster
if a test says so. Each test has its own base topic and discovery prefix, so that one broker serves them all.
docs/brokers.md has the results.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.messages.homeassistant import discovery_topic
from dexcom2mqtt.topics import RETAINED, Topics
from tests.support.faults import Network
from tests.support.processes import ROOT, Process, daemon, eventually, write_config
from tests.support.real_brokers import KINDS, PASSWORD, USER, Kind, RealBroker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from dexcom2mqtt.demo import share_service as share

pytestmark = [pytest.mark.e2e]

SPEED: Final = 30.0
SLOW: Final = 5.0
"""How fast the clocks run, so that an hour passes quickly, or a kill hits the first day while it is published."""
ONE_SECOND: Final = 21
"""How many readings may repeat after a kill: those of one second, 20 past ones and a current one."""
SIGN_INS_AN_HOUR: Final = 5
"""Three rejected sign-ins, and two more after restarts."""
OTHERS: Final = 3000
"""How many other messages the broker has: lamps, sensors, their discovery."""
GOOD: Final = "the password at Dexcom"
ACCOUNTS: Final = {
    "anna": SimulatedAccount("anna@example.com", GOOD, seed=1),
    "ben": SimulatedAccount("ben@example.com", GOOD, seed=2),
    "dora": SimulatedAccount("dora@example.com", GOOD, seed=4),
    "emil": SimulatedAccount("emil@example.com", GOOD, seed=5),
    "cleo": SimulatedAccount("cleo@example.com", "another one than she says", seed=3),
}


FAMILY: Final = ("anna", "ben", "dora", "emil")
"""The accounts. Four histories are more than a broker writes at once, so others may come in between."""


class House:
    """The broker, Share, a subscriber to everything, and daemons, all below one base topic."""

    def __init__(self, stack: ExitStack, folder: Path, broker: RealBroker, speed: float) -> None:
        self.broker = broker
        self.topics = Topics(f"house_{secrets.token_hex(4)}")
        self.prefix = f"{self.topics.base}_discovery"
        self.network = Network(broker.port)
        stack.callback(self.network.refuse)
        self._stack = stack
        self._folder = folder
        self._speed = speed
        self._given: dict[str, set[int]] = {key: set() for key in ACCOUNTS}
        # It locks no account, so that the tests count what the daemon itself allows.
        self.share = SimulatedShare(ACCOUNTS.values(), accelerated(speed), max_rejections=1000)
        self.share.fault = self._note
        stack.enter_context(self.share)
        self.subscriber = stack.enter_context(broker.subscriber(f"{self.topics.base}/#", f"{self.prefix}/#"))

    def _note(self, request: share.Request, respond: share.Respond) -> share.Response:
        answer = respond(request)
        if request.call == "read" and request.account and answer.status == 200:
            key = next(key for key, account in ACCOUNTS.items() if account == request.account)
            self._given[key] |= {int(record["WT"][5:-1]) for record in json.loads(answer.body)}
        return answer

    def given(self, key: str = "anna") -> set[int]:
        """Return the timestamps of the readings that Share has sent so far."""
        return set(self._given[key])

    def config(self, *keys: str, **mqtt: Any) -> Path:
        """Write a configuration with these accounts."""
        accounts = {
            key: {"username": ACCOUNTS[key].username, "password": GOOD, "share_url": self.share.base_url}
            for key in keys
        }
        login = {"username": USER, "password": PASSWORD, "base_topic": self.topics.base}
        settings = {
            "accounts": accounts,
            "mqtt": {"host": "127.0.0.1", "port": self.network.port, **login, **mqtt},
            "home_assistant": {"discovery_prefix": self.prefix, "status_topic": f"{self.prefix}/status"},
        }
        return write_config(self._folder / "config.yaml", settings)

    def start(self, *keys: str) -> Process:
        """Start a daemon with these accounts, and wait until it is online and has polled Share for each."""
        self.subscriber.forget_all_but("reading")
        log = self._folder / "daemon.log"
        running = self._stack.enter_context(daemon(self.config(*keys), log, speed=self._speed, LATE="2"))
        self.subscriber.wait_for(self.topics.bridge_state, "online", 40)
        for key in keys:
            self.subscriber.wait_for(self.topics.of(key, "status"), seconds=40)
            eventually(lambda key=key: self.status(key)["share"] != "starting", 40)  # type: ignore[misc]
        return running

    def stop(self, running: Process) -> None:
        running.signal(signal.SIGTERM)
        assert running.wait() == 0

    def command(self, *words: str, accounts: tuple[str, ...] = ("anna",), **mqtt: Any) -> Said:
        """Run one of the commands until it ends."""
        command = [sys.executable, "-m", "dexcom2mqtt", *words, "--config", str(self.config(*accounts, **mqtt))]
        environ = dict(os.environ) | {"COLUMNS": "1000"}
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=False, timeout=90, env=environ, cwd=ROOT
        )

    def status(self, key: str) -> dict[str, Any]:
        """Return the newest status of an account received so far."""
        found: dict[str, Any] = json.loads(self.subscriber.payloads(self.topics.of(key, "status"))[-1])
        return found

    def readings(self, key: str = "anna") -> list[dict[str, Any]]:
        """Return the messages on ``reading``, in order."""
        return [json.loads(payload) for payload in self.subscriber.payloads(self.topics.of(key, "reading"))]

    def times(self, key: str = "anna") -> Counter[int]:
        """Count how often each reading came."""
        return Counter(reading["date"] for reading in self.readings(key))

    def repeats(self, key: str = "anna") -> int:
        return self.times(key).total() - len(self.times(key))

    def counted(self, key: str = "anna") -> int:
        """Return how many readings are counted in the retained statistics."""
        topic = self.topics.of(key, "days")
        return sum(day["n"] for day in json.loads(self.broker.held([topic])[topic])["days"])

    def all_came(self, *keys: str) -> None:
        """Wait until Share's day is published and in the history, and nothing more is being sent."""
        for key in keys or ("anna",):
            eventually(
                lambda key=key: len(self.given(key)) > 240 and self.times(key).keys() >= self.given(key),  # type: ignore[misc]
                40,
                why=f"of {key} {len(self.given(key) - self.times(key).keys())} readings did not come",
            )
            eventually(lambda key=key: self._saved(key), 20, why=f"the history of {key} is incomplete")  # type: ignore[misc]

    def _saved(self, key: str) -> bool:
        payload = self.broker.held([topic := self.topics.of(key, "history")]).get(topic, '{"readings": []}')
        entries = {entry["date"] for entry in json.loads(payload)["readings"]}
        return entries >= {date for date in self.given(key) if date > max(self.given(key)) - 86_000_000}

    def picture(self, *keys: str) -> list[str]:
        """Return every topic of these accounts and of the daemon itself that is retained."""
        return [self.topics.bridge_state, self.topics.bridge_info, *self.account_topics(*keys)]

    def account_topics(self, *keys: str) -> list[str]:
        discovery = [discovery_topic(self.prefix, self.topics, key) for key in keys]
        return [*discovery, *(self.topics.of(key, leaf) for key in keys for leaf in RETAINED)]

    def complete(self, *keys: str) -> dict[str, str]:
        """Wait until the broker has every topic of these accounts, all of them current; return them."""

        def held() -> dict[str, str]:
            found = self.broker.held(self.picture(*keys))
            words = [self.topics.bridge_state, *(self.topics.of(key, "availability") for key in keys)]
            complete = set(found) == set(self.picture(*keys)) and all(found[topic] == "online" for topic in words)
            return found if complete else {}

        return eventually(held, 40, why="the picture is not complete")


Said = subprocess.CompletedProcess[str]
Build = Callable[..., House]


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, id=kind.name, marks=pytest.mark.xdist_group(kind.name)) for kind in KINDS],
)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBroker]:
    """Run one of the brokers for all its tests."""
    kind: Kind = request.param
    if why := kind.missing():
        pytest.skip(why)
    with RealBroker(kind, tmp_path_factory.mktemp(kind.name)) as running:
        furnish(running)
        yield running


def furnish(broker: RealBroker) -> None:
    """Fill it with messages of other things at home, among which it must find ours."""
    with broker.subscriber("test/end") as client:
        for number in range(OTHERS):
            client.client.publish(f"zigbee/lamp_{number}", '{"state": "OFF", "brightness": 254}', qos=1, retain=True)
        client.retain("zigbee/end", "here")


@pytest.fixture
def house(broker: RealBroker, stack: ExitStack, tmp_path: Path) -> Build:
    """Return a function that builds a house, at this speed; whatever it starts ends with the test."""
    if not broker.running:  # a test failed before it started the broker again
        broker.start()
    return lambda speed=SPEED: House(stack, tmp_path, broker, speed)


def test_the_first_start_publishes_a_day_once(house: Build) -> None:
    """All 24 hours are published once, the current reading first, then backfill; `online` comes after all topics."""
    here = house()
    here.start("anna")
    heard = here.subscriber.heard
    online = next(
        n for n, each in enumerate(heard) if (each.topic, each.payload) == (here.topics.bridge_state, "online")
    )
    later = {here.topics.of("anna", leaf) for leaf in ("history", "statistics")}
    assert {each.topic for each in heard[: online + 1]} >= set(here.picture("anna")) - later
    here.all_came()
    assert here.repeats() == 0
    current = [reading["date"] for reading in here.readings()[:250] if not reading["backfill"]]
    backfill = [reading["date"] for reading in here.readings()[:250] if reading["backfill"]]
    assert len(current) in {2, 3, 4}
    assert current == sorted(current)
    assert backfill == sorted(backfill)
    assert len(backfill) > 240
    held = here.complete("anna")
    assert json.loads(held[here.topics.bridge_info])["protocol"] == here.broker.kind.protocol


def test_clean_restarts_repeat_nothing_and_forget_nothing(house: Build) -> None:
    """After three clean restarts no reading was repeated, none is missing, and rejected sign-ins are remembered."""
    here = house()
    running = here.start(*FAMILY, "cleo")
    here.all_came(*FAMILY)
    rejected = here.status("cleo")["rejected"]
    assert rejected
    for _ in range(3):
        here.stop(running)
        running = here.start(*FAMILY, "cleo")
        here.all_came(*FAMILY)
        # Share sends its time again, as precise as its answer is fast.
        held = here.status("cleo")["rejected"][: len(rejected)]
        assert held == pytest.approx(rejected, abs=SPEED)
    assert {key: here.repeats(key) for key in FAMILY} == dict.fromkeys(FAMILY, 0)
    assert here.times().keys() == here.given()
    here.stop(running)
    assert {key: here.counted(key) for key in FAMILY} == {key: len(here.times(key)) for key in FAMILY}


def test_a_wrong_password_across_restarts_costs_few_sign_ins(house: Build) -> None:
    """However often the daemon restarts, there are at most five rejected sign-ins in an hour."""
    here = house(SLOW)
    for _ in range(7):
        here.stop(here.start("cleo"))
    requests = [entry for entry in here.share.requests if entry.password]
    assert requests[-1].time - requests[0].time < 3600
    assert 1 < len(requests) <= SIGN_INS_AN_HOUR


def test_a_kill_repeats_at_most_a_second_and_loses_nothing(house: Build) -> None:
    """Killed in the middle of the first day, and again later, the daemon continues from the retained messages."""
    here = house(SLOW)
    for kills, enough in enumerate((100, 287), 1):
        running = here.start("anna")
        eventually(lambda enough=enough: len(here.times()) >= enough, 40)  # type: ignore[misc]
        before = here.repeats()
        running.kill()
        again = here.start("anna")
        here.all_came()
        assert here.repeats() - before <= ONE_SECOND
        here.stop(again)
        assert abs(here.counted() - len(here.times())) <= kills * ONE_SECOND
    assert here.times().keys() >= here.given()


def test_a_killed_daemon_is_offline_for_everybody(house: Build) -> None:
    """Its last will reaches current subscribers and later ones."""
    here = house()
    running = here.start("anna")
    running.kill()
    here.subscriber.wait_for(here.topics.bridge_state, "offline", 5)
    assert here.broker.held([here.topics.bridge_state]) == {here.topics.bridge_state: "offline"}


def test_stale_values_disappear_by_themselves(house: Build) -> None:
    """With MQTT 5 the broker drops the values of a daemon that is gone; with 3.1.1 only the will says so."""
    here = house(60.0)  # so that a value is current for 15 s
    running = here.start("anna")
    here.complete("anna")
    running.kill()
    fresh = [here.topics.of("anna", leaf) for leaf in ("state", "value", "availability")]
    if here.broker.kind.protocol == "5":
        eventually(lambda: not here.broker.held(fresh), 20, why="an old value is still there")
    else:
        assert set(here.broker.held(fresh)) == set(fresh)


def test_requests_reach_the_daemon(house: Build) -> None:
    """A message on `refresh` causes a poll at once, and Home Assistant's birth message brings discovery again."""
    here = house(SLOW)  # so that it polls by itself only once a minute
    here.start("anna")
    asked = here.share.count(call="read")
    here.subscriber.client.publish(here.topics.of("anna", "refresh"), "now")
    eventually(lambda: here.share.count(call="read") > asked, 10)
    here.subscriber.forget_all_but("reading")
    here.subscriber.client.publish(f"{here.prefix}/status", "online")
    here.subscriber.wait_for(discovery_topic(here.prefix, here.topics, "anna"), seconds=5)


def test_a_removed_account_is_cleared(house: Build) -> None:
    """After the next start, the messages of an account that is no longer configured are gone, and no others."""
    here = house()
    running = here.start(*FAMILY)
    here.all_came(*FAMILY)
    here.complete(*FAMILY)
    here.stop(running)
    *rest, gone = FAMILY
    here.start(*rest)
    held = here.complete(*rest)
    assert json.loads(held[here.topics.bridge_info])["accounts"] == rest
    eventually(lambda: not here.broker.held(here.account_topics(gone)), 20, why="it is still there")


def test_check_reports_the_truth(house: Build) -> None:
    """Beside a running daemon all is well; check describes the broker correctly, and leaves nothing there."""
    here = house(1.0)
    here.start("anna")
    said = here.command("check")
    assert (said.returncode, said.stderr) == (0, ""), said.stdout
    assert "All is well." in said.stdout
    assert f"It speaks MQTT {here.broker.kind.protocol} and accepts our user name and password." in said.stdout
    base = here.topics.base
    for topics in (f"{base}/bridge/#", f"{base}/anna/#", f"{here.prefix}/device/+/config"):
        assert f"Publishing to {topics} is allowed." in said.stdout
    assert f"A daemon is online below {base}." in said.stdout
    tried = {heard.topic for heard in here.subscriber.heard}
    assert here.broker.held(tried - set(here.picture("anna"))) == {}


def test_check_says_whether_wildcards_get_retained_messages(house: Build) -> None:
    """If a broker sends no retained messages for wildcards, check says so, and only then."""
    here = house(1.0)
    assert ("wildcard" in here.command("check").stdout) is not here.broker.kind.wildcards


def test_check_says_that_the_broker_refuses_the_password(house: Build) -> None:
    """With a wrong password for the broker it fails, and says that the broker refused it."""
    said = house(1.0).command("check", password="wrong")
    assert said.returncode == 1
    failed = [line for line in said.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "refuses" in failed[0]
    assert "password" in failed[0]


def test_purge_waits_for_the_daemon_and_leaves_nothing(house: Build) -> None:
    """It refuses while the daemon is online; then all our messages are removed, also of unknown accounts."""
    here = house()
    running = here.start(*FAMILY)
    here.all_came(*FAMILY)
    here.subscriber.retain(note := f"{here.topics.base}/anna/note", "mine")
    said = here.command("purge")
    assert said.returncode == 1, said.stdout
    assert "online" in said.stderr
    here.complete(*FAMILY)
    here.stop(running)
    said = here.command("purge")
    assert (said.returncode, said.stderr) == (0, ""), said.stdout
    assert here.broker.held([*here.picture(*FAMILY), note]) == {note: "mine"}
    assert "nothing to remove" in here.command("purge").stdout


def test_a_broker_that_is_killed_under_the_daemon(house: Build) -> None:
    """After a kill and a restart it soon has all topics and every reading, whether or not it kept them."""
    here = house()
    here.start("anna")
    here.all_came()
    before = here.given()
    here.network.refuse()
    here.broker.kill()
    eventually(lambda: here.given() - before, 30)
    here.broker.start()
    eventually(here.subscriber.subscribed.is_set, 30)  # otherwise messages would be sent to nobody
    here.network.allow()
    here.all_came()
    here.complete("anna")
    assert here.repeats() <= ONE_SECOND


def test_a_broker_and_a_daemon_that_are_stopped_and_return(house: Build) -> None:
    """If the broker kept the retained messages, no reading is repeated; otherwise the whole day is, once."""
    here = house()
    running = here.start("anna")
    here.all_came()
    here.stop(running)
    history = here.topics.of("anna", "history")
    held = here.broker.held([history])
    here.broker.stop()
    here.broker.start()
    eventually(here.subscriber.subscribed.is_set, 30)
    assert here.broker.held([history]) == (held if here.broker.kind.keeps else {})
    here.start("anna")
    here.all_came()
    here.complete("anna")
    if here.broker.kind.keeps:
        assert here.repeats() == 0
    else:
        assert max(here.times().values()) == 2
