"""Every reading arrives, and only once: the daemon as a process, a real mosquitto, the simulated Share."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.messages.history import source_of
from tests.support import share_faults
from tests.support.processes import (
    Mosquitto,
    Process,
    Subscriber,
    daemon,
    eventually,
    free_port,
    retained,
    write_config,
)
from tests.support.relay import PASS, Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPEED = 120.0
PASSWORD = "the password"
HISTORY_KEYS = ["date", "mg_dl", "direction", "offset_min"]


class System:
    """A simulated Share service that records which readings it sent, and daemons that poll it."""

    def __init__(self, stack: ExitStack, folder: Path, *keys: str, speed: float = SPEED) -> None:
        self._stack = stack
        self._folder = folder
        self._speed = speed
        self.settings: dict[str, Any] = {}  # of all daemons started from now on
        self.now = accelerated(speed)
        self.accounts = {key: SimulatedAccount(f"{key}@example.com", PASSWORD, seed=n) for n, key in enumerate(keys)}
        self.service = stack.enter_context(SimulatedShare(self.accounts.values(), self.now))
        self._given: dict[str, dict[int, float]] = {key: {} for key in keys}  # when each was first sent
        self._key_of = {account.username: key for key, account in self.accounts.items()}
        self.fault = share.no_fault
        self.service.fault = self._note

    def _note(self, request: share.Request, respond: share.Respond) -> share.Response:
        answer = self.fault(request, respond)
        if request.call == "read" and request.account and answer.status == 200:
            given = self._given[self._key_of[request.account.username]]
            for record in json.loads(answer.body):
                given.setdefault(int(record["WT"][5:-1]), request.time)
        return answer

    def given(self, key: str = "anna") -> list[int]:
        """Return the timestamps of the readings that Share has sent so far, oldest first."""
        return sorted(self._given[key].copy())

    def start(self, port: int, *, name: str = "daemon", **mqtt: Any) -> Process:
        """Start a daemon for all accounts; `name` names its files."""
        config = {
            "accounts": {
                key: {"username": account.username, "password": PASSWORD, "share_url": self.service.base_url}
                for key, account in self.accounts.items()
            },
            "mqtt": {"host": "127.0.0.1", "port": port, **mqtt},
            **self.settings,
        }
        file = write_config(self._folder / f"{name}.yaml", config)
        return self._stack.enter_context(daemon(file, self._folder / f"{name}.log", speed=self._speed))

    def subscribe(self, broker: Mosquitto, **options: Any) -> Subscriber:
        return self._stack.enter_context(Subscriber(broker.port, **options))


@pytest.fixture
def make_system(tmp_path: Path) -> Iterator[Callable[..., System]]:
    """Simulate Share for accounts with these keys; whatever is started ends with the test."""
    with ExitStack() as stack:
        yield lambda *keys, **options: System(stack, tmp_path, *keys, **options)


@pytest.fixture
def system(make_system: Callable[..., System]) -> System:
    """Return the system for Anna."""
    return make_system("anna")


def readings(subscriber: Subscriber, key: str = "anna", base: str = "dexcom2mqtt") -> list[dict[str, Any]]:
    """Return what was published on `reading`, in order."""
    return [json.loads(payload) for payload in subscriber.payloads(f"{base}/{key}/reading")]


def dates(subscriber: Subscriber, key: str = "anna", base: str = "dexcom2mqtt") -> list[int]:
    return [reading["date"] for reading in readings(subscriber, key, base)]


def history(broker: Mosquitto, key: str = "anna", base: str = "dexcom2mqtt") -> list[int]:
    """Return the timestamps of the readings in the retained history."""
    payload = retained(broker.port).get(f"{base}/{key}/history", '{"readings": []}')
    return [entry["date"] for entry in json.loads(payload)["readings"]]


def all_delivered(system: System, subscriber: Subscriber, broker: Mosquitto) -> list[int]:
    """Wait until everything that Share has sent is published and in the history; return it."""
    eventually(lambda: len(system.given()) > 240 and set(dates(subscriber)) >= set(system.given()))

    def saved() -> bool:
        given = system.given()
        return set(history(broker)) >= {date for date in given if date >= given[-1] - 86_400_000}

    eventually(saved)
    return system.given()


def once_each(subscriber: Subscriber, key: str = "anna", base: str = "dexcom2mqtt") -> bool:
    return set(Counter(dates(subscriber, key, base)).values()) == {1}


def retain(subscriber: Subscriber, topic: str, payload: bytes | str) -> None:
    subscriber.client.publish(topic, payload, qos=1, retain=True).wait_for_publish(5)


# --- the first start, and restarts -------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_first_start_publishes_a_whole_day(system: System, mosquitto: Mosquitto, protocol: str) -> None:
    """All 24 hours are published once: the current reading first, then the rest as backfill, oldest first."""
    began = system.now()
    subscriber = system.subscribe(mosquitto)
    system.start(mosquitto.port, protocol=protocol)
    given = all_delivered(system, subscriber, mosquitto)
    asked = next(request.time for request in system.service.requests if request.call == "read")
    day = share.series(system.accounts["anna"], began - 86_400, asked)
    arrived = {
        record.taken: record for record in day if record.arrives <= asked and record.taken > (asked - 86_400) * 1000
    }
    assert set(given) >= set(arrived)
    assert once_each(subscriber)

    published = [reading for reading in readings(subscriber) if reading["date"] in arrived]
    assert {reading["date"]: reading["mg_dl"] for reading in published} == {
        taken: record.value for taken, record in arrived.items()
    }
    backfill = [reading["date"] for reading in published if reading["backfill"]]
    current = [reading["date"] for reading in published if not reading["backfill"]]
    assert backfill == sorted(backfill)
    assert current == sorted(current)
    assert max(backfill) < min(current)
    assert [reading["date"] for reading in published] == current + backfill
    assert len(current) in {2, 3}
    assert max(current) == max(arrived)

    payload = json.loads(retained(mosquitto.port)["dexcom2mqtt/anna/history"])
    assert payload["source"] == source_of("us", "anna@example.com")
    assert all(list(entry) == HISTORY_KEYS for entry in payload["readings"])
    assert [entry["date"] for entry in payload["readings"]] == sorted(entry["date"] for entry in payload["readings"])
    newest = payload["readings"][-1]
    assert all(newest["date"] - entry["date"] <= 86_400_000 for entry in payload["readings"])


def test_no_password_goes_out_before_the_read_back(
    make_system: Callable[..., System], mosquitto: Mosquitto, stack: ExitStack
) -> None:
    """However slowly a broker sends its retained messages, no sign-in is made that they might forbid."""
    system = make_system("anna", speed=1)
    late = 5.0
    relay = stack.enter_context(Relay(mosquitto.port, lambda packet: late if packet.kind == "SUBACK" else PASS))
    system.start(relay.port)
    eventually(lambda: system.service.count(password=True), 25)
    (probe,) = (packet for packet in relay.came("PUBLISH", "dexcom2mqtt/bridge/sync/dexcom2mqtt") if packet.from_client)
    assert probe.at - relay.came("SUBSCRIBE")[0].at >= late
    assert time.monotonic() - probe.at < 5
    assert min(each.time for each in system.service.requests if each.password) >= time.time() - (
        time.monotonic() - probe.at
    )


def test_a_broker_that_cannot_be_reached_is_waited_for_10_seconds(make_system: Callable[..., System]) -> None:
    """Then nobody knows the earlier rejections, but values must arrive once there is a broker."""
    system = make_system("anna", speed=1)
    began = time.monotonic()
    system.start(free_port())
    eventually(lambda: system.service.count(password=True), 20)
    assert time.monotonic() - began >= 10


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_repeats_no_reading_and_misses_none(
    system: System, mosquitto: Mosquitto, how: signal.Signals
) -> None:
    """After a stop or a kill -9, the daemon publishes the readings that arrived meanwhile, and repeats none."""
    subscriber = system.subscribe(mosquitto)
    running = system.start(mosquitto.port)
    before = all_delivered(system, subscriber, mosquitto)
    # Not between a reading and its history, which may cause a repeat: so right after both were published.
    eventually(lambda: len(system.given()) > len(before))
    before = all_delivered(system, subscriber, mosquitto)
    running.signal(how)
    running.wait()
    known = set(dates(subscriber))
    time.sleep(450 / SPEED)  # at least one reading
    system.start(mosquitto.port, name="again")
    eventually(lambda: len(system.given()) > len(before))
    eventually(lambda: set(dates(subscriber)) == set(system.given()))
    missed = [reading for reading in readings(subscriber) if reading["date"] not in known]
    assert [reading["date"] for reading in missed] == sorted(reading["date"] for reading in missed)
    assert not any(reading["backfill"] for reading in missed)  # they were still current
    seen = len(system.given())
    eventually(lambda: len(system.given()) > seen)
    eventually(lambda: set(dates(subscriber)) == set(system.given()))
    assert once_each(subscriber)


def test_the_history_is_read_before_anything_is_published(system: System, mosquitto: Mosquitto) -> None:
    """It subscribes at QoS 0 and sends a probe; until that returns, neither `reading` nor `history` is published."""
    subscriber = system.subscribe(mosquitto)
    system.start(mosquitto.port)
    all_delivered(system, subscriber, mosquitto)
    log = mosquitto.log()
    probe = "dexcom2mqtt/bridge/sync/dexcom2mqtt"
    for leaf in ("bridge/info", "anna/history", "anna/status"):
        assert f"dexcom2mqtt 0 dexcom2mqtt/{leaf}\n" in log  # client, QoS, topic
    sent = log.index(f"Received PUBLISH from dexcom2mqtt (d0, q0, r0, m0, '{probe}'")
    back = log.index(f"Sending PUBLISH to dexcom2mqtt (d0, q0, r0, m0, '{probe}'")
    first = {leaf: log.index(f"dexcom2mqtt/anna/{leaf}', ... (", back) for leaf in ("reading", "history")}
    assert log.index(f"dexcom2mqtt 0 {probe}\n") < sent < back < first["reading"] < first["history"]
    for leaf in ("reading", "history"):
        assert f"Received PUBLISH from dexcom2mqtt (d0, q1, r{int(leaf == 'history')}" in log
        assert f"dexcom2mqtt/anna/{leaf}', ... (" not in log[:back]
    for topic in (probe, *(f"dexcom2mqtt/{leaf}" for leaf in ("bridge/info", "anna/history", "anna/status"))):
        assert f": \t{topic}\n" in log.split("Received UNSUBSCRIBE from dexcom2mqtt\n")[1]
    assert f"\t{probe}\n" in log[back:]
    assert probe not in retained(mosquitto.port)


def test_a_broker_that_denies_all_reading(
    make_system: Callable[..., System], start_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """If the probe does not return, the daemon continues after 10 s, as if there were no history."""
    (tmp_path / "acl").write_text("user daemon\ntopic write #\nuser reader\ntopic readwrite #\n")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    system = make_system("anna", speed=10)
    subscriber = system.subscribe(broker, login=("reader", ""))
    running = system.start(broker.port, username="daemon")
    connected = subscriber.wait_for("dexcom2mqtt/bridge/sync/dexcom2mqtt", "probe").at
    first = subscriber.wait_for("dexcom2mqtt/anna/reading", seconds=20)
    earliest = next(heard.at for heard in subscriber.heard if heard.topic == first.topic)
    assert 9 < earliest - connected < 14
    subscriber.wait_for("dexcom2mqtt/anna/value", seconds=3)
    eventually(lambda: len(system.given()) > 280 and set(dates(subscriber)) == set(system.given()))
    assert once_each(subscriber)
    assert "WARNING" not in running.text()
    assert "ERROR" not in running.text()


# --- foreign messages -------------------------------------------------------------------------------------


def history_of(system: System, key: str, **changes: Any) -> bytes:
    """Write the history of an account: everything that Share will send, with the given changes."""
    now = system.now()
    records = share.series(system.accounts[key], now - 86_000, now - 300)
    entries = [
        {"date": each.taken, "mg_dl": each.value, "direction": each.trend, "offset_min": -240} for each in records
    ]
    whole = {"version": 1, "source": source_of("us", f"{key}@example.com"), "readings": entries}
    if "entry" in changes:
        entries.append(entries[-1] | changes.pop("entry"))
    return json.dumps(whole | changes).encode()


FOREIGN_HISTORIES: dict[str, Callable[[System, str], bytes]] = {
    "old_version": lambda system, key: history_of(system, key, version=0),
    "new_version": lambda system, key: history_of(system, key, version=2),
    "somebody_else": lambda system, key: history_of(system, key, source="00000000"),
    "garbage": lambda _system, _key: b"{\x01",
    "half": lambda system, key: history_of(system, key)[:-10],
    "megabyte": lambda system, key: history_of(system, key).ljust(2**20),
    "nested": lambda _system, _key: b'{"readings":' + b"[" * 200_000,
    "future": lambda system, key: history_of(system, key, entry={"date": round((system.now() + 86_400) * 1000)}),
    "error_code": lambda system, key: history_of(system, key, entry={"mg_dl": 5}),
    "no_list": lambda system, key: history_of(system, key, readings={}),
    "words": lambda system, key: history_of(system, key, entry={"date": "yesterday"}),
}
FOREIGN_STATUSES = {
    "status_garbage": b"{\x01",
    "status_of_another": b'"ok"',
    "status_megabyte": b'{"rejected": []}'.ljust(2**20),
    "status_nested": b'{"rejected":' + b"[" * 200_000,
    "status_future": b'{"rejected": [99999999999]}',
    "status_words": b'{"rejected": ["yesterday"]}',
}


def test_foreign_messages_are_ignored_with_one_line(make_system: Callable[..., System], mosquitto: Mosquitto) -> None:
    """If a retained history or status is not plainly ours, the log says so in one line, and all readings arrive."""
    system = make_system("ours", *FOREIGN_HISTORIES, *FOREIGN_STATUSES)
    subscriber = system.subscribe(mosquitto)
    for key, write in FOREIGN_HISTORIES.items():
        retain(subscriber, f"dexcom2mqtt/{key}/history", write(system, key))
    for key, payload in FOREIGN_STATUSES.items():
        retain(subscriber, f"dexcom2mqtt/{key}/status", payload)
    ours = history_of(system, "ours")
    retain(subscriber, "dexcom2mqtt/ours/history", ours)
    kept = {entry["date"] for entry in json.loads(ours)["readings"]}
    running = system.start(mosquitto.port)

    def continued(key: str) -> bool:
        to_come = set(system.given(key)) - (kept if key == "ours" else set())
        return len(system.given(key)) > 280 and set(dates(subscriber, key)) >= to_come

    for key in system.accounts:
        eventually(lambda key=key: continued(key), 30, why=f"{key} did not continue")  # type: ignore[misc]
        assert once_each(subscriber, key)
    assert not kept & set(dates(subscriber, "ours"))
    seen = len(system.given("words"))
    eventually(lambda: len(system.given("words")) > seen)  # polled once more
    lines = running.text().splitlines()
    for key in FOREIGN_HISTORIES:
        assert sum(f"{key}: ignoring the retained history" in line for line in lines) == 1
    for key in FOREIGN_STATUSES:
        assert sum(f"{key}: ignoring the retained status" in line for line in lines) == 1
    assert sum("ignoring the retained" in line for line in lines) == len(FOREIGN_HISTORIES) + len(FOREIGN_STATUSES)
    assert "Traceback" not in running.text()


# --- late readings, refusals, brokers that lose messages ---------------------------------------------------


def test_late_readings_are_backfill(system: System, mosquitto: Mosquitto) -> None:
    """Readings that the phone uploads late are published in order and as backfill, and none is lost."""
    subscriber = system.subscribe(mosquitto)
    began = system.now()
    away = (began - 5000, began - 2500)
    system.service.distort(share_faults.during(*away, share_faults.missing))
    system.start(mosquitto.port)
    before = all_delivered(system, subscriber, mosquitto)
    system.service.distort(share.unchanged)
    expected = [record.taken for record in share.series(system.accounts["anna"], *away)]
    assert len(expected) in {8, 9}
    eventually(lambda: set(dates(subscriber)) >= set(expected))
    late = [reading for reading in readings(subscriber) if reading["date"] in expected]
    assert [reading["date"] for reading in late] == expected
    assert all(reading["backfill"] for reading in late)
    others = [reading for reading in readings(subscriber) if reading["date"] > before[-1]]
    assert not any(reading["backfill"] for reading in others)  # these came in time
    eventually(lambda: set(dates(subscriber)) == set(system.given()))
    assert once_each(subscriber)


def test_denied_readings_are_kept_until_they_are_allowed(
    system: System, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """If the broker denies `reading`, the log says so once and the rest works; once allowed, nothing is lost."""
    everything = "topic readwrite #\n"
    (tmp_path / "acl").write_text(f"topic deny +/+/reading\n{everything}")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    subscriber = system.subscribe(broker)
    running = system.start(broker.port)
    eventually(lambda: len(system.given()) > 280 and "refuses messages" in running.text())
    first = subscriber.wait_for("dexcom2mqtt/anna/date").payload
    eventually(lambda: subscriber.wait_for("dexcom2mqtt/anna/date").payload != first, 20)  # retained messages continue
    denied = broker.log().count("Denied PUBLISH from dexcom2mqtt")
    eventually(lambda: broker.log().count("Denied PUBLISH from dexcom2mqtt") > denied, 20)  # tried again, calmly
    assert running.text().count("refuses messages on dexcom2mqtt/anna/reading") == 1
    assert dates(subscriber) == []
    assert "dexcom2mqtt/anna/history" not in retained(broker.port)

    (tmp_path / "acl").write_text(everything)
    broker.reload()
    eventually(lambda: set(dates(subscriber)) == set(system.given()), 30)
    assert once_each(subscriber)
    eventually(lambda: "dexcom2mqtt/anna/history" in retained(broker.port))


def test_two_daemons_do_not_disturb_each_other(system: System, mosquitto: Mosquitto) -> None:
    """Each base topic has its own stream and history, on one broker and for the same account."""
    subscriber = system.subscribe(mosquitto)
    bases = ("home/glucose", "other")

    def whole(base: str) -> bool:
        """Return whether all arrived; readings a day old when one daemon polled may have been too old for the other."""
        given = system.given()
        return len(given) > 280 and set(given[-280:]) <= set(dates(subscriber, base=base)) <= set(given)

    running = [system.start(mosquitto.port, name=base.replace("/", "_"), base_topic=base) for base in bases]
    for base in bases:
        eventually(lambda base=base: whole(base))  # type: ignore[misc]
        eventually(lambda base=base: set(history(mosquitto, base=base)) >= set(system.given()[-280:]))  # type: ignore[misc]
    running[0].signal(signal.SIGTERM)
    running[0].wait()
    subscriber.wait_for("home/glucose/bridge/state", "offline")
    restarted = system.start(mosquitto.port, name="again", base_topic="home/glucose")
    subscriber.wait_for("home/glucose/bridge/state", "online")
    time.sleep(450 / SPEED)
    for base in bases:
        eventually(lambda base=base: whole(base))  # type: ignore[misc]
        assert once_each(subscriber, base=base)
    assert subscriber.latest()["other/bridge/state"] == "online"
    assert not any("offline" in heard.payload for heard in subscriber.heard if heard.topic == "other/anna/availability")
    assert all("WARNING" not in each.text() for each in (*running, restarted))


def test_a_broker_that_does_not_answer_costs_no_processor_time(system: System, mosquitto: Mosquitto) -> None:
    """While readings wait for their acknowledgement, whether few or many, the processor is idle."""
    subscriber = system.subscribe(mosquitto)
    began = system.now()
    system.service.distort(share_faults.during(began - 20_000, began - 10_000, share_faults.missing))
    running = system.start(mosquitto.port)
    before = all_delivered(system, subscriber, mosquitto)
    mosquitto.freeze()
    eventually(lambda: system.given()[-1] > before[-1])
    assert busy(running) < 0.3
    system.service.distort(share.unchanged)
    eventually(lambda: len(system.given()) > len(before) + 30)
    assert busy(running) < 0.3
    mosquitto.thaw()
    eventually(lambda: set(dates(subscriber)) == set(system.given()))


def busy(process: Process, seconds: float = 1.0) -> float:
    """Return the share of the next seconds in which a process uses the processor."""

    def worked() -> float:
        user, system_time = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system_time)) / os.sysconf("SC_CLK_TCK")

    before = worked()
    time.sleep(seconds)
    return (worked() - before) / seconds


@pytest.mark.parametrize("restarted", [False, True])
def test_a_broker_that_starts_empty_gets_the_history_again(
    system: System, mosquitto: Mosquitto, *, restarted: bool
) -> None:
    """A broker that starts empty gets the whole history again, also after a restart; no reading is repeated."""
    with Subscriber(mosquitto.port) as before:
        running = system.start(mosquitto.port)
        all_delivered(system, before, mosquitto)
        system.service.distort(share_faults.missing)  # no new reading that would publish the history
        known = system.service.count(call="read")
        eventually(lambda: system.service.count(call="read") > known)  # everything before that has been handled
        all_delivered(system, before, mosquitto)
        if restarted:
            running.signal(signal.SIGKILL)
            running.wait()
            known = system.service.count(call="read")
            running = system.start(mosquitto.port, name="again")
            eventually(lambda: system.service.count(call="read") > known)
            before.wait_for("dexcom2mqtt/bridge/state", "online")
            time.sleep(0.5)
        published = dates(before)
        whole = history(mosquitto)
    assert len(whole) > 280
    mosquitto.kill()
    mosquitto.start()
    eventually(lambda: history(mosquitto) == whole)
    after = system.subscribe(mosquitto)
    system.service.distort(share.unchanged)
    eventually(lambda: set(published) | set(dates(after)) >= set(system.given()) and dates(after))
    assert not set(published) & set(dates(after))
    assert once_each(after)
    assert running.running
