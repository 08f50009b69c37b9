"""The whole daemon as a process: real HTTP to the simulated Share service, a real mosquitto, real signals."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support import share_faults
from tests.support.processes import (
    BUSY,
    Mosquitto,
    Process,
    Subscriber,
    daemon,
    eventually,
    free_port,
    retained,
    write_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANNA = SimulatedAccount("anna@example.com", 'päss/w+rd "of" anna', seed=1)
BEN = SimulatedAccount("+15550001111", "password of ben", seed=2, zone_offset_min=60)
SPEED = 120.0

STATE_TYPES: dict[str, tuple[type, ...]] = {
    "value": (int, float),
    "unit": (str,),
    "mg_dl": (int,),
    "mmol_l": (float,),
    "out_of_range": (str, type(None)),
    "trend": (str, type(None)),
    "trend_number": (int,),
    "direction": (str,),
    "arrow": (str, type(None)),
    "description": (str, type(None)),
    "delta": (int, float, type(None)),
    "range": (str,),
    "measurement_timestamp": (str,),
    "date": (int,),
}
STATUS_TYPES: dict[str, tuple[type, ...]] = {
    "share": (str,),
    "message": (str,),
    "since": (str, type(None)),
    "last_reading_at": (str, type(None)),
    "last_success_at": (str, type(None)),
    "next_poll_at": (str, type(None)),
    "delay": (float, int, type(None)),
    "spread": (float, int, type(None)),
    "requests_24h": (int,),
    "logins_24h": (int,),
    "rejected": (list,),
    "ahead_until": (int, type(None)),
}


@pytest.fixture
def service(stack: ExitStack) -> SimulatedShare:
    """Return the simulated Share service, with its clock at the speed of the daemon's."""
    return stack.enter_context(SimulatedShare([ANNA, BEN], accelerated(SPEED)))


@pytest.fixture
def start(stack: ExitStack, service: SimulatedShare, tmp_path: Path) -> Callable[..., Process]:
    """Start the daemon for Anna, or for the accounts given, with a broker on that port."""

    def start(
        port: int,
        accounts: dict[str, Any] | None = None,
        *arguments: str,
        speed: float = SPEED,
        mqtt: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Process:
        connection = {"host": "127.0.0.1", "port": port} | (mqtt or {})
        config = {"accounts": accounts or {"anna": anna(service)}, "mqtt": connection, **settings}
        file = write_config(tmp_path / "config.yaml", config)
        return stack.enter_context(daemon(file, tmp_path / "daemon.log", *arguments, speed=speed))

    return start


def anna(service: SimulatedShare, **more: Any) -> dict[str, Any]:
    return {"username": ANNA.username, "password": ANNA.password, "share_url": service.base_url} | more


def ben(service: SimulatedShare, **more: Any) -> dict[str, Any]:
    return {"account_id": BEN.account_id, "password": BEN.password, "share_url": service.base_url, **more}


def topics_of(account: str) -> set[str]:
    return {
        f"dexcom2mqtt/{account}/{leaf}"
        for leaf in ("availability", "state", "status", "history", "statistics", "days", "reading", *STATE_TYPES)
    }


def states(subscriber: Subscriber, account: str) -> list[dict[str, Any]]:
    """Return the states that held a reading, oldest first."""
    heard = map(json.loads, subscriber.payloads(f"dexcom2mqtt/{account}/state"))
    return [state for state in heard if state["value"] is not None]


def current(latest: dict[str, str], account: str = "anna") -> bool:
    """Return whether a subscriber may take the account's value as current."""
    return (
        latest.get("dexcom2mqtt/bridge/state") == "online"
        and latest.get(f"dexcom2mqtt/{account}/availability") == "online"
    )


def ended(process: Process) -> tuple[int, float]:
    """Return a process's exit code and how many seconds it took to end."""
    began = time.monotonic()
    return process.wait(), time.monotonic() - began


def test_two_hours_put_every_promised_topic_on_the_broker(
    mosquitto: Mosquitto, stack: ExitStack, tmp_path: Path
) -> None:
    """For two simulated hours each reading of Share arrives, with the documented keys, types and values."""
    speed, hours = 400.0, 2
    service = stack.enter_context(SimulatedShare([ANNA, BEN], now := accelerated(speed)))
    accounts = {"anna": anna(service), "ben": ben(service, unit="mmol/L", ranges={"low": 100})}
    config = {"accounts": accounts, "mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}
    began = now()
    subscriber = stack.enter_context(Subscriber(mosquitto.port))
    stack.enter_context(daemon(write_config(tmp_path / "c.yaml", config), tmp_path / "daemon.log", speed=speed))
    time.sleep(hours * 3600 / speed)
    whole_until = now() - 60
    latest = subscriber.latest()

    bridge = {f"dexcom2mqtt/bridge/{leaf}" for leaf in ("state", "info", "sync/dexcom2mqtt")}
    devices = {f"homeassistant/device/dexcom2mqtt_{key}/config" for key in accounts}
    assert set(latest) == bridge | topics_of("anna") | topics_of("ben") | devices
    for key, account, low in (("anna", ANNA, 70), ("ben", BEN, 100)):
        taken = {record.taken: record for record in share.series(account, began - 700, whole_until)}
        seen = states(subscriber, key)
        shown = [state["date"] for state in seen]
        expected = [date for date in taken if date >= shown[0] and taken[date].arrives < whole_until]
        assert len(expected) >= 21
        every = [json.loads(payload)["date"] for payload in subscriber.payloads(f"dexcom2mqtt/{key}/reading")]
        # If the machine stalls for a second, two readings come at once: the newer first, and only that one is shown.
        assert sorted(date for date in every if date >= shown[0])[: len(expected)] == expected
        assert [date for date in every if date in shown] == shown
        assert len(shown) >= 15
        for state in seen[1:]:  # the reading before the first is not in taken
            if state["date"] in taken:
                check_state(state, taken, account, low)
        last = [json.loads(heard.payload) for heard in subscriber.heard if heard.topic == f"dexcom2mqtt/{key}/state"][
            -1
        ]
        for name, value in last.items():
            bare = "unknown" if value is None else value if isinstance(value, str) else json.dumps(value)
            assert subscriber.payloads(f"dexcom2mqtt/{key}/{name}")[-1] == bare
        status = json.loads(latest[f"dexcom2mqtt/{key}/status"])
        assert list(status) == list(STATUS_TYPES)
        assert all(isinstance(status[name], kinds) for name, kinds in STATUS_TYPES.items())
        assert status["share"] == "ok"
        assert status["logins_24h"] == (2 if key == "anna" else 1)
        assert status["rejected"] == []
        for name in ("since", "last_reading_at", "last_success_at", "next_poll_at"):
            assert datetime.fromisoformat(status[name]).utcoffset() is not None
    info = json.loads(latest["dexcom2mqtt/bridge/info"])
    assert list(info) == ["version", "schema_version", "started_at", "protocol", "accounts", "days"]
    assert info["days"] is True
    assert (info["schema_version"], info["protocol"], info["accounts"]) == (1, "5", ["anna", "ben"])
    assert abs(datetime.fromisoformat(info["started_at"]).timestamp() - began) < 5 * speed


def check_state(state: dict[str, Any], taken: dict[int, share.Record], account: SimulatedAccount, low: int) -> None:
    """Compare a state with the reading that the service sent, by rules written here a second time."""
    assert list(state) == list(STATE_TYPES)
    for name, kinds in STATE_TYPES.items():
        assert isinstance(state[name], kinds), name
    record = taken[state["date"]]
    mmol = state["unit"] == "mmol/L"
    assert state["unit"] == ("mg/dL" if account is ANNA else "mmol/L")
    assert state["mg_dl"] == record.value
    assert abs(state["mmol_l"] - record.value / 18.01559) <= 0.0501
    assert state["value"] == (state["mmol_l"] if mmol else state["mg_dl"])
    assert state["direction"] == record.trend
    earlier = next((taken[date] for date in reversed(taken) if 250_000 < state["date"] - date < 350_000), None)
    if earlier:
        assert state["delta"] == pytest.approx((record.value - earlier.value) / (18.01559 if mmol else 1), abs=0.0501)
    bounds = [("very_low", 54), ("low", low), ("in_range", 181), ("high", 251), ("very_high", 999)]
    assert state["range"] == next(name for name, below in bounds if record.value < below)
    stamp = datetime.fromisoformat(state["measurement_timestamp"])
    assert round(stamp.timestamp() * 1000) == state["date"]
    assert stamp.utcoffset().total_seconds() == account.zone_offset_min * 60  # type: ignore[union-attr]
    assert re.search(r"\.\d{3}[+-]", state["measurement_timestamp"])


def test_kill_9_leads_to_offline_by_the_will(mosquitto: Mosquitto, start: Callable[..., Process]) -> None:
    """When the process is killed, its last will makes the broker publish offline."""
    running = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
        running.signal(signal.SIGKILL)
        subscriber.wait_for("dexcom2mqtt/bridge/state", "offline", 5)
    assert retained(mosquitto.port)["dexcom2mqtt/bridge/state"] == "offline"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_publishes_that_nothing_is_current(
    mosquitto: Mosquitto, start: Callable[..., Process], number: signal.Signals
) -> None:
    """SIGTERM and SIGINT: first availability, then bridge/state become offline; exit 0, within 2 s, no will."""
    running = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: current(subscriber.latest()))
        running.signal(number)
        code, seconds = ended(running)
        assert (code, seconds < 2) == (0, True)
        subscriber.wait_for("dexcom2mqtt/bridge/state", "offline")
        # A busy machine may still be publishing the readings of the past day.
        assert [heard.topic for heard in subscriber.heard if not heard.topic.endswith("/reading")][-2:] == [
            "dexcom2mqtt/anna/availability",
            "dexcom2mqtt/bridge/state",
        ]
    eventually(lambda: "Received DISCONNECT from dexcom2mqtt" in mosquitto.log(), 3)


def test_a_stop_in_time_with_the_broker_frozen_and_share_hanging(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """Whatever hangs, a stop takes at most 2 s and exits with 0; then the will is published."""
    running = start(mosquitto.port, {"anna": anna(service), "ben": ben(service)})
    eventually(lambda: retained(mosquitto.port).get("dexcom2mqtt/bridge/state") == "online")
    hung: list[share.Request] = []

    def hang(request: share.Request, respond: share.Respond) -> share.Response:
        hung.append(request)
        return share_faults.hang()(request, respond)

    service.fault = hang
    eventually(lambda: hung)
    mosquitto.freeze()
    running.signal(signal.SIGTERM)
    code, seconds = ended(running)
    mosquitto.thaw()
    assert (code, seconds < 2) == (0, True)
    eventually(lambda: retained(mosquitto.port)["dexcom2mqtt/bridge/state"] == "offline")
    assert "Received DISCONNECT from dexcom2mqtt" not in mosquitto.log()


def test_a_stop_in_time_without_broker_and_share(service: SimulatedShare, start: Callable[..., Process]) -> None:
    """Without a broker and without Share, a stop is just as quick."""
    service.close()
    running = start(free_port())
    eventually(lambda: "nothing listens there" in running.text())
    running.signal(signal.SIGTERM)
    code, seconds = ended(running)
    assert (code, seconds < 2) == (0, True)


def test_a_broker_that_comes_later_gets_everything(
    start_mosquitto: Callable[..., Mosquitto], start: Callable[..., Process]
) -> None:
    """A daemon keeps running if the broker is down at the start; once the broker is up, it gets all topics."""
    port = free_port()
    running = start(port)
    eventually(lambda: "nothing listens there" in running.text())
    time.sleep(0.5)
    start_mosquitto(port=port)
    with Subscriber(port) as subscriber:
        eventually(lambda: current(subscriber.latest()))
    eventually(lambda: topics_of("anna") - {"dexcom2mqtt/anna/reading"} <= set(retained(port)))


def test_nothing_is_current_until_a_reading_is_known_to_be(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """After a power cut the broker may still have online for an old value; the daemon changes that before all else.

    With Share hanging, it declares the account unavailable after 10 s, and only then itself online.
    """
    with Subscriber(mosquitto.port) as subscriber:
        for leaf in ("bridge/state", "anna/availability"):
            subscriber.client.publish(f"dexcom2mqtt/{leaf}", "online", qos=1, retain=True)
        subscriber.client.publish("dexcom2mqtt/anna/state", '{"value": 85}', qos=1, retain=True)
        eventually(lambda: len(subscriber.heard) == 3)
        service.fault = share_faults.hang()
        began = time.monotonic()
        start(mosquitto.port, speed=1)
        offline = subscriber.wait_for("dexcom2mqtt/bridge/state", "offline", 5)
        subscriber.forget()
        online = subscriber.wait_for("dexcom2mqtt/bridge/state", "online", 15)
        assert online.at - began > 9
        assert online.at - offline.at < 10 + BUSY
        aside = {"dexcom2mqtt/anna/status", "dexcom2mqtt/bridge/sync/dexcom2mqtt"}
        aside |= {topic for topic in subscriber.latest() if topic.startswith("homeassistant/")}
        topics = [heard.topic for heard in subscriber.heard if heard.topic not in aside]
        assert topics[0] == "dexcom2mqtt/anna/availability"
        assert topics[1] == "dexcom2mqtt/anna/state"
        assert topics[-1] == "dexcom2mqtt/bridge/state"
        latest = subscriber.latest()
        assert latest["dexcom2mqtt/anna/availability"] == "offline"
        state = json.loads(latest["dexcom2mqtt/anna/state"])
        assert list(state) == list(STATE_TYPES)
        assert {name for name, value in state.items() if value is not None} == {"unit"}
        assert latest["dexcom2mqtt/anna/value"] == "unknown"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_reading_becomes_stale_and_readings_return(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process], protocol: str
) -> None:
    """Stale: first unavailable, then the nulls, which never expire. Recovered: first the state, then available."""
    start(mosquitto.port, mqtt={"protocol": protocol}, stale_after=10)
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: current(subscriber.latest()))
        service.distort(share_faults.missing)
        newest = json.loads(subscriber.wait_for("dexcom2mqtt/anna/state").payload)
        subscriber.forget()
        subscriber.wait_for("dexcom2mqtt/anna/availability", "offline", 20)
        subscriber.wait_for("dexcom2mqtt/anna/date")
        gone = [heard for heard in subscriber.heard if heard.topic in topics_of("anna") - {"dexcom2mqtt/anna/status"}]
        assert [heard.topic.rpartition("/")[2] for heard in gone][-16:-13] == ["availability", "state", "value"]
        assert all(heard.expiry is None for heard in gone[-16:])
        state = json.loads(subscriber.latest()["dexcom2mqtt/anna/state"])
        kept = {name: value for name, value in state.items() if value is not None}
        assert set(kept) == {"measurement_timestamp", "date", "unit"}
        assert kept["date"] >= newest["date"]
        subscriber.wait_for("dexcom2mqtt/anna/range", "unknown")
        eventually(lambda: json.loads(subscriber.latest()["dexcom2mqtt/anna/status"])["share"] == "no_readings", 20)
        service.distort(share.unchanged)
        subscriber.forget()
        available = subscriber.wait_for("dexcom2mqtt/anna/availability", "online", 20)
        back = [heard.topic.rpartition("/")[2] for heard in subscriber.heard if heard.at <= available.at]
        assert back.index("availability") > max(back.index(leaf) for leaf in ("state", *STATE_TYPES))
        if protocol == "5":
            assert available.expiry
            assert available.expiry <= 10 * 60 / SPEED


def test_the_heartbeat_comes_every_minute_and_expires_after_three(
    mosquitto: Mosquitto, start: Callable[..., Process]
) -> None:
    """`online` is sent again every 60 s; with MQTT 5 it expires after 180 s, and values when they become stale."""
    start(mosquitto.port, speed=20)
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: len(subscriber.payloads("dexcom2mqtt/bridge/state")) >= 5, 20)
        beats = [heard for heard in subscriber.heard if heard.payload == "online" and "bridge" in heard.topic][-3:]
        for beat, following in pairwise(beats):
            assert 2.5 < following.at - beat.at < 4  # 60 s by its clock
            assert following.expiry == 9
        values = [
            heard for heard in subscriber.heard if heard.topic.endswith(("/value", "anna/availability", "/state"))
        ]
        assert {heard.topic: 1 <= (heard.expiry or 0) <= 15 * 60 / 20 for heard in values} == {
            f"dexcom2mqtt/{leaf}": True for leaf in ("anna/value", "anna/state", "anna/availability", "bridge/state")
        }


def test_a_refresh_polls_now_but_not_too_often(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """A message on `refresh` causes a poll now, at most every 30 s; a retained one is old and does not count."""
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.client.publish("dexcom2mqtt/anna/refresh", "x", qos=1, retain=True)
        subscriber.wait_for("dexcom2mqtt/anna/refresh")
        start(mosquitto.port, speed=10)
        eventually(lambda: current(subscriber.latest()))
        time.sleep(3.2)  # 32 s by its clock
        before = service.count(call="read")
        assert before <= 2  # the first, and perhaps one that was due
        for _ in range(10):
            subscriber.client.publish("dexcom2mqtt/anna/refresh", "")
            time.sleep(0.05)
        # At once; or in 3 s, which are 30 s by its clock, if the poll that was due has come just now.
        eventually(lambda: service.count(call="read") > before, 2 if before == 1 else 5)
        subscriber.client.publish("dexcom2mqtt/anna/refresh", "")  # all ten may have come before that poll
        time.sleep(1)
        assert service.count(call="read") <= before + 2
        eventually(lambda: service.count(call="read") >= before + 2, 5)


def test_one_account_with_a_wrong_password_leaves_the_other_alone(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """Rejected credentials: named in the status, with what to do; few sign-ins; the other account works."""
    start(mosquitto.port, {"anna": anna(service), "ben": ben(service, password="wrong")})
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: current(subscriber.latest()))
        eventually(lambda: "dexcom2mqtt/ben/status" in subscriber.latest())
        status = json.loads(subscriber.latest()["dexcom2mqtt/ben/status"])
        assert status["share"] == "credentials_rejected"
        assert "region" in status["message"]
        assert len(status["rejected"]) == status["logins_24h"]
        assert not current(subscriber.latest(), "ben")
        time.sleep(900 / SPEED)  # a quarter of an hour: the second try comes after two minutes, the third after 20 more
        assert service.count(account=BEN.username, password=True) == 2


def test_a_pause_of_the_whole_process_does_no_harm(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """A daemon that is paused and continued, as by a suspend or a container's pause, keeps running."""
    running = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: current(subscriber.latest()))
        for _ in range(3):
            running.signal(signal.SIGSTOP)
            time.sleep(1.3)
            running.signal(signal.SIGCONT)
            time.sleep(0.2)
        assert running.running
        before = service.count(call="read")
        eventually(lambda: service.count(call="read") > before)
        eventually(lambda: current(subscriber.latest()))


def test_a_stop_in_time_while_nobody_reads_the_log(
    mosquitto: Mosquitto, service: SimulatedShare, tmp_path: Path
) -> None:
    """If standard error accepts nothing more, a stop takes at most 2 s and exits with 0."""
    config = {"accounts": {"anna": anna(service)}, "mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}
    file = write_config(tmp_path / "config.yaml", config)
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-m", "dexcom2mqtt", "--config", file], stderr=writer)
    try:
        eventually(lambda: retained(mosquitto.port).get("dexcom2mqtt/bridge/state") == "online")
        # Opened a second time, since the daemon's end must keep blocking.
        full = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full, b"x")
        os.close(full)
        process.terminate()
        assert process.wait(2.5) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


def test_without_answers_it_still_polls_every_five_minutes(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """While Share does not answer sign-ins for 45 minutes, the daemon keeps trying, at least every 5 minutes."""
    service.fault = share_faults.drop()
    start(mosquitto.port)
    began = eventually(lambda: service.requests)[0].time
    eventually(lambda: service.requests[-1].time - began > 2700, 2700 / SPEED + 10)
    times = [entry.time for entry in service.requests]
    assert max(later - earlier for earlier, later in pairwise(times)) < 300 + SPEED
    service.fault = share.no_fault
    eventually(lambda: current(retained(mosquitto.port)), 300 / SPEED + 10)


def test_sessions_that_end_at_once_are_renewed_sparingly(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """If Share knows no session, not even a new one, there are at most 12 sign-ins an hour."""
    start(mosquitto.port)
    eventually(lambda: current(retained(mosquitto.port)))
    service.fault = share_faults.only(share_faults.error("SessionIdNotFound"), call="read")
    time.sleep(4500 / SPEED)
    logins = [entry.time for entry in service.requests if entry.call == "login"]
    assert len(logins) > 5
    assert all(later - earlier > 3600 - SPEED for earlier, later in zip(logins, logins[12:], strict=False))


def test_a_poll_signs_in_once(mosquitto: Mosquitto, stack: ExitStack, start: Callable[..., Process]) -> None:
    """If the new session is unknown, too, no quick retry signs in again: that waits for the next poll."""
    service = stack.enter_context(SimulatedShare([ANNA], accelerated(10)))
    start(mosquitto.port, {"anna": anna(service)}, speed=10)
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: current(subscriber.latest()))
        time.sleep(3)  # the least time between two refreshes
        service.fault = share_faults.only(share_faults.error("SessionIdNotFound"), call="read")
        began = service.requests[-1].time
        subscriber.client.publish("dexcom2mqtt/anna/refresh", "")
        eventually(lambda: service.count(since=began, call="login") >= 3)
    logins = [entry.time for entry in service.requests if entry.call == "login" and entry.time > began]
    assert min(later - earlier for earlier, later in pairwise(logins)) > 2.3  # a quick retry takes 1 to 2 s


def test_restarts_do_not_lock_an_account(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """With a wrong password, restarts add at most two tries an hour; after that hour the right one is accepted."""
    topic = "dexcom2mqtt/ben/status"
    counts = []
    with Subscriber(mosquitto.port) as subscriber:

        def said() -> dict[str, Any]:
            """Return the latest status since the start, if there is one besides starting."""
            status: dict[str, Any] = json.loads((subscriber.payloads(topic) or ["{}"])[-1])
            return status if status.get("share") != "starting" else {}

        for _ in range(8):
            subscriber.forget()
            running = start(mosquitto.port, {"ben": ben(service, password="wrong")})
            status = eventually(said)
            running.signal(signal.SIGTERM)
            running.wait()
            assert status["share"] == "credentials_rejected"
            counts.append((len(status["rejected"]), service.count(password=True)))
            assert ("have not been tried yet" in status["message"]) is (len(counts) > 5)
    assert counts == [(attempts, attempts) for attempts in (1, 2, 3, 4, 5, 5, 5, 5)]
    start(mosquitto.port, {"ben": ben(service)})
    time.sleep(600 / SPEED)
    assert service.count(password=True) == 5
    eventually(lambda: service.count(call="login", outcome="ok"), 3600 / SPEED)


def test_a_restart_does_not_prolong_a_lock_out(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """A restart while Share has locked the account waits for the end of the lock."""
    service.fault = share_faults.error("SSO_AuthenticateMaxAttemptsExceeded")
    first = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: '"locked_out"' in subscriber.latest().get("dexcom2mqtt/anna/status", ""))
        first.kill()
        service.close()  # a start while Share cannot be reached forgets nothing either
        subscriber.forget()
        second = start(mosquitto.port)
        eventually(lambda: '"locked_out"' in subscriber.latest().get("dexcom2mqtt/anna/status", ""))
        eventually(lambda: "anna: unavailable: " in second.text())
        second.kill()
        service.start()
        service.fault = share.no_fault
        subscriber.forget()
        (attempt,) = (entry.time for entry in service.requests if entry.password)
        start(mosquitto.port)
        eventually(lambda: '"locked_out"' in subscriber.latest().get("dexcom2mqtt/anna/status", ""))
        eventually(lambda: current(subscriber.latest()))
    again = next(entry.time for entry in service.requests if entry.password and entry.time > attempt)
    assert again - attempt >= 20 * 60


@pytest.mark.parametrize(
    ("fault", "share_says"),
    [
        (share_faults.status(503), "unavailable"),
        (share_faults.drop(), "unavailable"),
        (share_faults.status(429, {"Retry-After": "120"}), "rate_limited"),
        (share_faults.html(200), "unexpected_response"),
        (share_faults.error("SSO_AuthenticateMaxAttemptsExceeded"), "locked_out"),
    ],
)
def test_each_failure_has_its_status_and_passes(
    mosquitto: Mosquitto,
    service: SimulatedShare,
    start: Callable[..., Process],
    fault: share.Fault,
    share_says: str,
) -> None:
    """A failure of Share is named in `status` with a remedy, logged once, and readings return after it."""
    service.fault = fault
    running = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:

        def status() -> dict[str, Any]:
            return json.loads(subscriber.latest().get("dexcom2mqtt/anna/status", "{}"))  # type: ignore[no-any-return]

        eventually(lambda: status().get("share") == share_says)
        assert len(status()["message"]) > 40
        assert not current(subscriber.latest())
        time.sleep(0.5)
        service.fault = share.no_fault
        eventually(lambda: status().get("share") == "ok", 30)
        eventually(lambda: current(subscriber.latest()))
    assert running.text().count(f"anna: {share_says}") == 1
    assert running.text().count("anna: recovered") == 1


def test_no_secret_reaches_a_log_or_a_topic(
    mosquitto: Mosquitto, service: SimulatedShare, start: Callable[..., Process]
) -> None:
    """At debug level, through success and every kind of failure, no secret is written or published in any form."""
    session_ids: set[str] = set()
    faults = [
        share.no_fault,
        share_faults.status(503),
        share_faults.html(200),
        share_faults.error("AccountPasswordInvalid", "Publisher account password failed"),
        share_faults.error("SessionIdNotFound", "Failed to find session object."),
        share_faults.zero_uuid(),
        share_faults.body(b"{"),
        share_faults.cut(),
        share_faults.reset(),
        share_faults.header("X-Bad\r\n header", "without a colon"),
        share_faults.status(302, {"Location": "http://127.0.0.1:1/"}),
        share_faults.status(429),
    ]

    def note(request: share.Request, respond: share.Respond) -> share.Response:
        session_ids.add(request.query.get("sessionId", ANNA.account_id))
        return faults[0](request, respond)

    service.fault = note
    secret_user = {"username": "the-broker-user", "password": "the-broker-password"}
    accounts = {"anna": anna(service), "ben": ben(service, password="a wrong password")}
    running = start(mosquitto.port, accounts, "--log-level", "debug", mqtt=secret_user)
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: current(subscriber.latest()))
        for fault in faults:
            seen = len(service.requests)
            faults[0] = fault
            subscriber.client.publish("dexcom2mqtt/anna/refresh", "now")
            eventually(lambda seen=seen: len(service.requests) > seen, 30)  # type: ignore[misc]
        written = running.text()
        said = "\n".join(f"{heard.topic} {heard.payload}" for heard in subscriber.heard)
    with open(f"/proc/{running.pid}/cmdline", "rb") as file:  # noqa: PTH123  # not one of our files
        written += file.read().decode()
    assert "anna: unavailable" in written
    assert "polled" in written or "min hold" in written  # the level is debug
    assert len(session_ids) >= 2
    secrets = {ANNA.username, ANNA.password, ANNA.account_id, BEN.account_id, BEN.password, "a wrong password"}
    secrets |= session_ids | set(secret_user.values())
    for secret in secrets:
        for form in forms(secret):
            assert form not in written
            assert form not in said


def forms(secret: str) -> set[str]:
    """Return a secret unchanged, and in the forms that libraries give it."""
    raw = secret.encode()
    return {
        secret,
        urllib.parse.quote(secret),
        urllib.parse.quote_plus(secret),
        base64.b64encode(raw).decode().rstrip("="),
        json.dumps(secret)[1:-1],
        repr(raw)[2:-1],
    }


def test_the_environment_alone_is_enough(
    mosquitto: Mosquitto, service: SimulatedShare, tmp_path: Path, stack: ExitStack
) -> None:
    """Without a file, the environment is the configuration."""
    environ = {
        "DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": ANNA.username,
        "DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD": ANNA.password,
        "DEXCOM2MQTT_ACCOUNTS__ANNA__SHARE_URL": service.base_url,
        "DEXCOM2MQTT_MQTT__HOST": "127.0.0.1",
        "DEXCOM2MQTT_MQTT__PORT": str(mosquitto.port),
        "DEXCOM2MQTT_MQTT__BASE_TOPIC": "home/glucose",
    }
    stack.enter_context(Process([sys.executable, "-m", "dexcom2mqtt"], tmp_path / "log", environ))
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for("home/glucose/bridge/state", "online")
        assert subscriber.latest()["home/glucose/anna/availability"] == "online"
    assert "as home_glucose " in mosquitto.log()


def test_more_accounts_than_open_files_are_allowed_at_the_start(stack: ExitStack, tmp_path: Path) -> None:
    """If many accounts ask at once, each has a connection: the daemon raises its limit of open files."""
    accounts = [SimulatedAccount(f"user{number}@example.com", "the password") for number in range(60)]
    service = stack.enter_context(SimulatedShare(accounts, time.time))
    asking = threading.Barrier(len(accounts))

    def wait_for_all(request: share.Request, respond: share.Respond) -> share.Response:
        asking.wait(15)
        return respond(request)

    service.fault = share_faults.only(wait_for_all, call="authenticate")
    settings = {
        account.username.partition("@")[0]: anna(service, username=account.username, password=account.password)
        for account in accounts
    }
    file = write_config(tmp_path / "config.yaml", {"accounts": settings, "mqtt": {"port": free_port()}})
    limited = ["sh", "-c", 'ulimit -S -n 50 && exec "$0" "$@"', sys.executable, "-m", "tests.support.launcher"]
    process = stack.enter_context(Process([*limited, "--config", file], tmp_path / "daemon.log", {"SPEED": "1"}))
    eventually(lambda: service.count(call="read", outcome="ok") >= len(accounts), 25, why=process.text())
    assert "unavailable" not in process.text()
