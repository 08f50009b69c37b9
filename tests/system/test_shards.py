"""Several processes that share the accounts: each account has one owner, whatever starts, stops and dies.

The daemons, the broker and the connections are real. Every test ends with ``World.check``: no two processes published
about an account or asked Share for it at the same time, no reading was lost, and no stale value shown as current.
"""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.shards import shard_of
from dexcom2mqtt.topics import Topics
from tests.support.processes import Mosquitto, eventually, retained
from tests.support.shards import BASE, PEOPLE, SPEED, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


POLL: Final = 300.0
"""Seconds between two polls."""

BOTH_WANT: Final = ("jon", "kim", "leo")
"""The accounts that both process 0 of 2 and process 4 of 5 serve."""


@pytest.fixture
def build(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Return a function that builds a world with a broker with these settings; it ends with the test."""
    worlds: list[World] = []

    def build(*settings: str, persistent: bool = False, **options: Any) -> World:
        worlds.append(World(tmp_path, start_mosquitto(*settings, persistent=persistent), **options))
        return worlds[-1]

    yield build
    for each in worlds:
        each.close()


def owners(count: int, keys: Iterable[str] = tuple(PEOPLE)) -> dict[str, str]:
    """Return the process of several that is to serve each account."""
    return {key: f"bridge-{shard_of(key, count)}" for key in keys}


def signed_in(here: World) -> dict[str, set[str]]:
    """Return which processes asked Share for each account."""
    asked = [entry for run in here.runs for entry in run.asked()]
    return {key: {entry.run.bridge for entry in asked if entry.key == key} for key in {entry.key for entry in asked}}


def status(bridge: str | None) -> str:
    """Return a status of an account as a process of this name publishes it, or one that nobody serves."""
    topics = Topics(BASE, bridge or "bridge-7")
    return status_message(topics, "anna", Status("ok", "", None), released=bridge is None).payload


def with_owner(found: dict[str, str], bridge: str) -> list[str]:
    return [key for key, owner in found.items() if owner == bridge]


# A change of the number of processes


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_fifth_process_takes_over_its_accounts_alone(build: Callable[..., World], protocol: str) -> None:
    """If one process is added and the others are restarted one by one, only its accounts move, and nothing is lost."""
    here = build(protocol=protocol)
    runs = [here.start(index, 4) for index in range(4)]
    expected = owners(4)
    here.wait_for_owners(expected)
    runs.append(here.start(4, 5))
    here.subscriber.wait_for(f"{BASE}/bridge-4/state", "online")
    assert not [said for said in runs[4].said() if said.key]
    for index in range(4):
        runs[index].stop()
        runs[index] = here.start(index, 5)
        expected |= {key: owner for key, owner in owners(5).items() if expected[key] == f"bridge-{index}"}
        here.wait_for_owners(expected)
    assert expected == owners(5)
    moved = {key for key, owner in owners(4).items() if owner != expected[key]}
    assert moved == {"anna", "jon", "kim", "leo"}
    assert {entry.key for entry in runs[4].asked()} == moved
    here.check()


# Start


def test_each_account_is_where_it_belongs(build: Callable[..., World]) -> None:
    """Four processes that start together serve each account once, and each describes only itself and its accounts."""
    here = build()
    for index in range(4):
        here.start(index, 4)
    here.wait_for_owners(owners(4))
    latest = here.latest()
    for index in range(4):
        bridge = f"bridge-{index}"
        assert latest[f"{BASE}/{bridge}/state"] == "online"
        assert sorted(json.loads(latest[f"{BASE}/{bridge}/info"])["accounts"]) == with_owner(owners(4), bridge)
    assert not {f"{BASE}/bridge/state", f"{BASE}/bridge/info"} & latest.keys()
    for key, bridge in owners(4).items():
        discovery = latest[f"homeassistant/device/{BASE}_{key}/config"]
        assert f"{BASE}/{bridge}/state" in discovery
        assert f"{BASE}/bridge/state" not in discovery
    here.check()
    assert signed_in(here) == {key: {owner} for key, owner in owners(4).items()}


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.0, 2.6])
def test_two_that_want_the_same_account(build: Callable[..., World], apart: float) -> None:
    """If two processes with different counts start at about the same time at an empty broker, one gets each account."""
    here = build()
    first = here.start(4, 5, BOTH_WANT)
    time.sleep(apart)
    second = here.start(0, 2, BOTH_WANT)
    eventually(lambda: all(map(here.current, BOTH_WANT)), 20, why=here.logs())
    assert {here.owners()[key] for key in BOTH_WANT} <= {first.bridge, second.bridge}
    here.check()
    assert all(len(bridges) == 1 for bridges in signed_in(here).values())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("goes", ["offline", "released"])
def test_an_account_of_another_bridge_is_left_alone(build: Callable[..., World], count: int, goes: str) -> None:
    """Whoever is online and named in the status serves the account: another process neither asks nor publishes."""
    here = build()
    client = here.subscriber.client
    client.publish(f"{BASE}/bridge-7/state", "online", qos=1, retain=True)
    client.publish(f"{BASE}/anna/status", status("bridge-7"), qos=1, retain=True)
    here.subscriber.wait_for(f"{BASE}/anna/status")
    run = here.start(count - 1, count, ["anna", "cara"])
    eventually(lambda: here.latest().get(f"{BASE}/{run.bridge}/state") == "online" and here.current("cara"), 20)
    time.sleep(1)
    assert not [event for event in run.did() if event.key == "anna"]
    if goes == "offline":
        client.publish(f"{BASE}/bridge-7/state", "offline", qos=1, retain=True)
    else:
        client.publish(f"{BASE}/anna/status", status(None), qos=1, retain=True)
    eventually(lambda: here.current("anna"), 10, why=here.logs())
    assert here.owners()["anna"] == (None if count == 1 else run.bridge)
    here.check()


# Stop and failure


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_successor_of_a_stopped_process(build: Callable[..., World], protocol: str) -> None:
    """If a process is stopped, another one that waits for its account takes it within seconds, without a repeat."""
    here = build(protocol=protocol)
    first = here.start(1, 2, ["anna"])
    here.wait_for_owners({"anna": "bridge-1"})
    second = here.start(4, 5, ["anna"])
    here.subscriber.wait_for(f"{BASE}/bridge-4/state", "online")
    time.sleep(6)  # there is another reading
    first.stop()
    stopped = time.monotonic()
    here.wait_for_owners({"anna": "bridge-4"})
    assert time.monotonic() - stopped < 8
    assert next(second.asked()).at > stopped + 2
    here.check()


def test_a_process_that_dies_for_good(build: Callable[..., World]) -> None:
    """The accounts of a dead process are served again once the others know of it, and nothing of it is left."""
    here = build()
    keys = ["hana", "leo", "cara", "ben"]
    runs = [here.start(index, 3, keys) for index in range(3)]
    here.wait_for_owners(owners(3, keys))
    assert with_owner(owners(3, keys), "bridge-2") == ["hana", "leo"]
    runs[2].kill()
    here.subscriber.wait_for(f"{BASE}/bridge-2/state", "offline")
    for index in range(2):
        runs[index].stop()
        here.start(index, 2, keys)
    here.wait_for_owners(owners(2, keys))
    eventually(lambda: not [topic for topic in retained(here.mosquitto.port) if "/bridge-2/" in topic], 10)
    here.check()


@pytest.mark.parametrize(
    ("protocol", "speed"),
    [
        ("3.1.1", SPEED),
        # So slow that the state of the frozen process does not expire before the broker ends its connection.
        pytest.param("5", 15.0, marks=pytest.mark.faults),
    ],
)
def test_a_process_that_is_frozen(build: Callable[..., World], protocol: str, speed: float) -> None:
    """A frozen process loses the account that another one waits for, and leaves it alone when it goes on."""
    here = build(protocol=protocol, speed=speed)
    first = here.start(0, 2, ["kim", "ben"], keepalive=5)
    here.wait_for_owners({"kim": "bridge-0", "ben": "bridge-0"})
    second = here.start(4, 5, ["kim"], keepalive=5)
    here.subscriber.wait_for(f"{BASE}/bridge-4/state", "online")
    first.process.signal(signal.SIGSTOP)
    here.breaks += 1
    here.wait_for_owners({"kim": "bridge-4"}, 30)
    first.process.signal(signal.SIGCONT)
    thawed = time.monotonic()
    here.subscriber.wait_for(f"{BASE}/bridge-0/state", "online", 30)
    here.wait_for_owners({"kim": "bridge-4", "ben": "bridge-0"}, 30)
    eventually(lambda: [event for event in second.asked() if event.at > thawed], 2 * POLL / speed)
    eventually(lambda: [event for event in first.asked() if event.key == "ben" and event.at > thawed], 2 * POLL / speed)
    assert not [event for event in first.did() if event.key == "kim" and event.at > thawed]
    here.check()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_broker_that_restarts(build: Callable[..., World], *, persistent: bool) -> None:
    """After the broker was restarted, each account has the same owner, and everything is published again."""
    here = build(persistent=persistent)
    keys = ["ben", "cara", "kim"]
    for index in range(2):
        here.start(index, 2, keys)
    here.wait_for_owners(owners(2, keys))
    topics = {topic for topic in retained(here.mosquitto.port) if "/sync/" not in topic}
    here.restart_broker()
    here.wait_for_owners(owners(2, keys), 40)
    eventually(lambda: topics <= retained(here.mosquitto.port).keys(), 20)
    here.check()
    assert signed_in(here) == {key: {owner} for key, owner in owners(2, keys).items()}


@pytest.mark.parametrize("persistent", [True, False])
def test_a_broker_that_restarts_while_another_process_waits(build: Callable[..., World], *, persistent: bool) -> None:
    """Whoever is faster then, each account has one owner."""
    here = build(persistent=persistent)
    keys = ["ben", "kim", "leo"]
    here.start(0, 2, keys)
    here.wait_for_owners(dict.fromkeys(keys, "bridge-0"))
    here.start(4, 5, keys)
    here.subscriber.wait_for(f"{BASE}/bridge-4/state", "online")
    here.restart_broker()
    here.subscriber.wait_for(f"{BASE}/bridge-0/state", "online", 40)
    here.subscriber.wait_for(f"{BASE}/bridge-4/state", "online", 40)
    eventually(lambda: all(map(here.current, keys)), 40, why=here.logs())
    time.sleep(6)
    here.check(keys)


# One process, or several


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_one_process_after_several_and_several_after_one(build: Callable[..., World], how: str) -> None:
    """One process alone takes over from several that are gone, and clears what they said; and the other way round."""
    here = build()
    keys = ["ben", "cara"]
    several = [here.start(index, 2, keys) for index in range(2)]
    here.wait_for_owners(owners(2, keys))
    for run in several:
        getattr(run, how)()
    alone = here.start(0, 1, keys)
    eventually(lambda: all("bridge" not in here.status(key) and here.current(key) for key in keys), 20)
    here.wait_for_readings(keys)
    eventually(lambda: not [topic for topic in retained(here.mosquitto.port) if "/bridge-" in topic], 10)
    getattr(alone, how)()
    here.subscriber.wait_for(f"{BASE}/bridge/state", "offline")
    for index in range(2):
        here.start(index, 2, keys)
    here.wait_for_owners(owners(2, keys))
    here.check()


def test_one_process_waits_for_several_that_are_still_there(build: Callable[..., World]) -> None:
    """One process alone serves an account only once the one of several that serves it is gone."""
    here = build()
    several = here.start(1, 2, ["cara"])
    here.wait_for_owners({"cara": "bridge-1"})
    alone = here.start(0, 1, ["cara", "ben"])
    eventually(lambda: here.current("ben"), 20)
    time.sleep(1)
    assert not [event for event in alone.did() if event.key == "cara"]
    several.stop()
    eventually(lambda: "bridge" not in here.status("cara") and here.current("cara"), 20, why=here.logs())
    here.check()


# Removed accounts


def test_an_account_that_was_removed(build: Callable[..., World]) -> None:
    """If an account is removed, its owner clears it when it restarts; another process does not."""
    here = build()
    runs = [here.start(index, 2, ["ben", "cara", "kim", "anna"]) for index in range(2)]
    here.wait_for_owners(owners(2, ["ben", "cara", "kim", "anna"]))

    def left(key: str) -> list[str]:
        return [topic for topic in retained(here.mosquitto.port) if f"{key}/" in topic]

    rest = ["kim", "anna"]
    runs[1].stop()
    here.start(1, 2, rest)
    eventually(lambda: not left("cara"), 20)
    here.wait_for_owners({"anna": "bridge-1"})
    assert here.current("ben")
    runs[0].stop()
    here.start(0, 2, rest)
    eventually(lambda: not left("ben"), 20)
    here.wait_for_owners(owners(2, rest))
    assert left("kim")
    here.check(rest)


# Rights


@pytest.mark.parametrize(("denied", "errors"), [("read", 1), ("all", 2)])
def test_a_broker_that_does_not_return_claims(
    build: Callable[..., World], tmp_path: Path, denied: str, errors: int
) -> None:
    """If the broker does not let the processes agree, the log says so once, and no account is served."""
    acl, claims = tmp_path / "acl", f"{BASE}/bridge/claims"
    others = [f"topic readwrite {BASE}/+/{leaf}" for leaf in ("state", "info", "status", "history", "refresh")]
    lines = [f"topic readwrite {BASE}/bridge/sync/#", *others, *([f"topic write {claims}"] * (denied == "read"))]
    acl.write_text("\n".join([*lines, ""]), encoding="utf-8")
    acl.chmod(0o644)
    here = build("allow_anonymous true", f"acl_file {acl}")
    run = here.start(0, 2, ["ben"])
    eventually(lambda: "no account can be served" in run.process.text(), 25, why=run.process.text())
    named = [line for line in run.process.text().splitlines() if "ERROR" in line and claims in line]
    assert len(named) == errors, run.process.text()  # with MQTT 5, a refusal has a line of its own
    assert run.process.running
    assert not [*run.asked()]


# The check itself


def test_the_check_notices_two_owners(build: Callable[..., World]) -> None:
    """Two processes of the same name, which nobody may start, take each other for themselves, and both serve."""
    here = build()
    for client_id in ("one", "other"):
        here.start(1, 2, ["anna"], client_id=client_id)
        here.wait_for_owners({"anna": "bridge-1"})
    first, second = here.runs
    eventually(lambda: list(second.asked()))
    eventually(lambda: any(event.at > next(second.asked()).at for event in first.did() if event.key == "anna"))
    with pytest.raises(AssertionError, match=r"anna: .* although .* serves it"):
        here.check()
