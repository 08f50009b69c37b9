"""The page's server in the real daemon: real HTTP, a real mosquitto, the simulated Share service."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support.processes import (
    BUSY,
    ROOT,
    Mosquitto,
    daemon,
    eventually,
    free_port,
    write_config,
)
from tests.support.web import Household, account, answers, get, refresh

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "Geheim42"


@pytest.fixture
def home(stack: ExitStack, mosquitto: Mosquitto, tmp_path: Path) -> Household:
    """Return Anna and Ben, the broker, and a daemon to start."""
    return Household(stack, mosquitto, tmp_path)


# --- contents ----------------------------------------------------------------------------------------------


def test_a_value_comes_and_goes_with_that_of_the_broker(home: Household) -> None:
    """The page shows and removes a value at the same moment as the broker."""
    date = home.add(885, 85)  # current for another 15 s
    subscriber = home.subscribe()
    port, _ = home.start()
    subscriber.wait_for("dexcom2mqtt/anna/availability", "online")
    shown = account(port)
    assert (shown["state"]["value"], shown["state"]["date"]) == (85, date)
    assert shown["state"] == json.loads(subscriber.payloads("dexcom2mqtt/anna/state")[-1])
    left = (shown["fresh_until"] - get(port, "/api/accounts").json["now"]) / 1000
    assert 5 < left <= 15
    gone = time.monotonic() + left
    assert get(port, "/api/v1/entries").json[0]["sgv"] == 85
    eventually(lambda: account(port)["state"]["value"] is None, left + 5)
    assert abs(time.monotonic() - gone) < 1
    subscriber.wait_for("dexcom2mqtt/anna/availability", "offline", 3)
    assert account(port)["state"] == json.loads(subscriber.payloads("dexcom2mqtt/anna/state")[-1])
    # Entries keep their true time, and the client judges their age.
    assert [entry["date"] for entry in get(port, "/api/v1/entries").json] == [date]


def test_readings_from_the_future_are_not_entries(home: Household) -> None:
    """Readings of a phone that is half an hour ahead are not shown, and the status says why."""
    right = home.add(400, 100)
    home.add(-1800, 85)
    port, _ = home.start()
    eventually(lambda: answers(port))
    eventually(lambda: account(port)["status"]["share"] == "phone_clock", 60)
    assert account(port)["state"]["value"] is None
    assert all(entry["date"] <= right for entry in get(port, "/api/v1/entries").json)
    assert "min ahead" in account(port)["status"]["message"]


def test_health_is_in_the_words_of_healthcheck(home: Household) -> None:
    """The page reports the daemon's health in the command's words, and needs no token for it."""
    name = f"web-{free_port()}"
    port, _ = home.start(web={"token": TOKEN}, NAMED="1", DEXCOM2MQTT_MQTT__CLIENT_ID=name)
    eventually(lambda: answers(port))
    asked = subprocess.run(
        [sys.executable, "-m", "dexcom2mqtt", "healthcheck", "--config", home.config],
        env={"DEXCOM2MQTT_MQTT__CLIENT_ID": name},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert get(port, "/health").body.decode() == asked.stdout == "healthy\n"
    assert get(port, "/").status == 401
    assert get(port, f"/?token={TOKEN}").status == 200


def test_an_invalid_ingress_affects_nothing_else(home: Household) -> None:
    """One line says what is wrong with it, and the page is served at its usual place."""
    port, process = home.start(DEXCOM2MQTT_INGRESS="8099")
    eventually(lambda: answers(port))
    eventually(lambda: "DEXCOM2MQTT_INGRESS" in process.text())
    assert process.text().count("the page is not served to ingress") == 1
    assert get(port, "/").status == 200


# --- clients of Nightscout ---------------------------------------------------------------------------------


def test_requests_of_real_clients(home: Household) -> None:
    """The exact requests of real clients get what these clients read."""
    for minutes in range(60, 0, -5):
        home.add(minutes * 60 - 30, 100 + minutes)
    port, _ = home.start(web={"token": TOKEN})
    sha1 = hashlib.sha1(TOKEN.encode(), usedforsecurity=False).hexdigest()
    eventually(lambda: answers(port))
    eventually(lambda: get(port, "/api/v1/entries", api_secret=sha1).json)
    now = round(time.time())
    # nightscout-clock: BGSourceNightscout.cpp
    clock = f"/api/v1/entries?find[date][$gt]={now - 3600}001&find[date][$lte]={now}000&count=30"
    entries = get(port, clock, Accept="application/json", api_secret=sha1).json
    assert [entry["sgv"] for entry in entries] == list(range(105, 165, 5))
    assert all(isinstance(entry["trend"], int) for entry in entries)
    # xDrip+ as a follower: NightscoutFollow.java
    xdrip = f"/api/v1/entries.json?count=10&rr={now}000"
    entries = get(port, xdrip, User_Agent="xDrip+ 1", Accept_Encoding="gzip", api_secret=sha1).json
    assert len(entries) == 10
    assert get(port, "/api/v1/treatments", User_Agent="xDrip+ 1", api_secret=sha1).json == []
    # M5 displays: M5_NightscoutMon.ino
    m5 = get(port, f"/api/v1/entries.json?find[type][$eq]=sgv&token={TOKEN}", User_Agent="ESP32HTTPClient").body
    assert [entry["sgv"] for entry in json.loads(m5)] == list(range(105, 155, 5))
    assert re.match(rb'.{0,400}"date": ?\d{13},', m5)
    assert get(port, f"/api/v2/properties/iob,cob,delta,basal?token={TOKEN}").status == 404
    # nightscout-clock keeps the path of its address, so it can be pointed at a child's own one.
    assert get(port, f"/ben{clock}", api_secret=sha1).json == []


PY_NIGHTSCOUT = """
import asyncio, sys
from py_nightscout import Api

async def main():
    api = Api(sys.argv[1], api_secret=sys.argv[2])
    status = await api.get_server_status()
    sgvs = await api.get_sgvs()
    assert await api.get_treatments() == []
    assert (await api.get_profiles()).profile_definitions == []
    print(status.status, status.name, status.apiEnabled, status.settings["units"])
    for sgv in sgvs:
        print(sgv.sgv, sgv.delta, sgv.direction, sgv.device, sgv.date.isoformat())

asyncio.run(main())
"""


@pytest.mark.parametrize("version", ["1.2.2", "1.3.3"])
@pytest.mark.parametrize("token", [TOKEN, f"token={TOKEN}"])
def test_py_nightscout(home: Household, version: str, token: str) -> None:
    """The unmodified library of Home Assistant's Nightscout integration reads status and readings."""
    library = ROOT / ".py-nightscout" / version
    if not library.exists():
        pytest.skip(f"py-nightscout {version} is not there; .ci/run puts it into .py-nightscout")
    if version == "1.2.2" and token != TOKEN:
        token = TOKEN  # it supports no other way
    home.add(320, 90)
    date = home.add(20, 85)
    port, _ = home.start(web={"token": TOKEN})
    eventually(lambda: get(port, f"/api/v1/entries?token={TOKEN}").json if answers(port) else [])
    done = subprocess.run(
        [sys.executable, "-c", PY_NIGHTSCOUT, f"http://127.0.0.1:{port}/anna/", token],
        env={"PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "ok dexcom2mqtt True mg/dl"
    assert lines[1].startswith("85 -5 Flat share2 ")
    assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(date // 1000)) in lines[1]


# --- independence of the daemon ----------------------------------------------------------------------------


def test_a_page_that_always_fails_affects_nothing_else(home: Household) -> None:
    """If every request ends in an exception, readings keep arriving, and the log says so once."""
    home.add(310, 100)
    subscriber = home.subscribe()
    port, process = home.start(WEB_BROKEN="1")
    subscriber.wait_for("dexcom2mqtt/anna/value", "100")
    assert {get(port, target).status for target in ("/", "/api/accounts", "/api/v1/entries", "/health")} == {500}
    home.add(0, 101)
    refresh(subscriber)
    subscriber.wait_for("dexcom2mqtt/anna/value", "101", 40)
    assert process.running
    assert process.text().count("a bug in dexcom2mqtt") == 1
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_port_in_use_is_tried_again(home: Household) -> None:
    """The daemon runs without its page, says so once, and serves it as soon as the port is free."""
    home.add(10, 100)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, process = home.start(web={"port": taken.getsockname()[1]}, WEB_AGAIN="0.5")
        line = f"web: cannot listen at 127.0.0.1 port {port} (Address already in use); trying again every minute"
        eventually(lambda: line in process.text())
        time.sleep(2)
        assert process.text().count("cannot listen") == 1
        assert process.running
    eventually(lambda: answers(port))
    assert f"web: listening at 127.0.0.1 port {port}" in process.text()
    eventually(lambda: account(port)["state"]["value"] == 100)


@pytest.mark.parametrize(("host", "reason"), [("192.0.2.1", "Cannot assign requested address")])
def test_an_address_that_does_not_exist(home: Household, host: str, reason: str) -> None:
    """The address may appear with the network; until then one line says so."""
    _, process = home.start(web={"host": host})
    eventually(lambda: f"web: cannot listen at {host} port" in process.text())
    assert reason in process.text()
    assert process.running


def test_no_token_reaches_the_log(home: Household) -> None:
    """Right or wrong, well formed or not, at every log level: no line contains a token."""
    home.add(10, 100)
    port, process = home.start("--log-level", "debug", web={"token": TOKEN})
    eventually(lambda: answers(port))
    for target in (f"/?token={TOKEN}", "/?token=Canary1", "/api/v1/entries?secret=Canary1", "/%zz?token=Canary1"):
        get(port, target, api_secret="Canary1")
        get(port, target, "POST", Authorization=f"Bearer {TOKEN}")
    for raw in (
        b"GET /?token=Canary1\r\n\r\n",
        b"GET /?token=Canary1 HTTP/9.9\r\n\r\n",
        b"GET /?token=Canary1 HTTP/1.1\r\nContent-Length: x\r\napi-secret: Canary1\r\n\r\n",
        b"GET /?token=Canary1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Canary1\r\n\r\n",
        b"\x00Canary1\xff\r\n\r\n" + b"Canary1" * 2000,
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock, suppress(OSError):
            sock.sendall(raw)
            sock.settimeout(2)
            sock.recv(100)
    assert get(port, f"/?token={TOKEN}").status == 200
    assert TOKEN not in process.text()
    assert "Canary1" not in process.text()


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n", b"413"),
        (b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: example.com\r\n\r\n", b"421"),
        (b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"200"),
        (b"\xff\xfe\r\n\r\n", b"400"),
    ],
)
def test_requests_that_are_too_large_or_malformed(home: Household, raw: bytes, status: bytes) -> None:
    """They are refused for their size, their form, or the name that they ask for."""
    port, _ = home.start()
    eventually(lambda: answers(port))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(raw)
        assert sock.recv(4096).split()[1] == status


def lateness(file: Path, speed: float) -> list[float]:
    """Return by how many real seconds polls were late since the file was emptied."""
    return [float(line) / speed for line in file.read_text(encoding="ascii").splitlines()]


def test_polls_stay_on_time_while_the_page_is_attacked(stack: ExitStack, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """With 200 connections, 40 of them sending byte by byte, a hundred accounts are polled as punctually as before."""
    speed, due = 20.0, tmp_path / "due"
    accounts = [SimulatedAccount(f"user{n}@example.com", f"password {n}", seed=n) for n in range(100)]
    service = stack.enter_context(SimulatedShare(accounts, accelerated(speed)))
    people = {
        f"user{n}": {"username": each.username, "password": each.password, "share_url": service.base_url}
        for n, each in enumerate(accounts)
    }
    port = free_port()
    config = {"accounts": people, "mqtt": {"host": "127.0.0.1", "port": mosquitto.port}, "web": {"port": port}}
    file = write_config(tmp_path / "config.yaml", config)
    process = stack.enter_context(daemon(file, tmp_path / "daemon.log", speed=speed, DUE=str(due)))
    eventually(lambda: answers(port), 30)
    time.sleep(20)  # until the hundred first polls are over
    due.write_text("", encoding="ascii")
    time.sleep(16)
    before = lateness(due, speed)
    stop = threading.Event()
    threads = [threading.Thread(target=drip, args=(port, stop)) for _ in range(40)]
    threads += [threading.Thread(target=crowd, args=(port, stop)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    due.write_text("", encoding="ascii")
    time.sleep(16)
    during = lateness(due, speed)
    stop.set()
    for thread in threads:
        thread.join()
    logging.getLogger(__name__).info("late before %s, while attacked %s", *map(in_words, (before, during)))
    assert len(during) > 0.8 * len(before) > 70
    assert statistics.median(during) < statistics.median(before) + 0.05 * BUSY
    assert process.running


def in_words(late: list[float]) -> str:
    return f"{statistics.median(late):.3f} s, at most {max(late):.3f} s, of {len(late)} polls"


def drip(port: int, stop: threading.Event) -> None:
    """Send a byte of a request every half second."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        while not stop.wait(0.5):
            sock.sendall(b"a")


def crowd(port: int, stop: threading.Event) -> None:
    """Keep 40 connections that ask again and again."""
    socks = []
    with ExitStack() as stack:
        for _ in range(40):
            with suppress(OSError):
                socks.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.05)))
        while not stop.wait(0.05):
            for sock in socks:
                with suppress(OSError):
                    sock.sendall(b"GET /api/v1/entries?count=288 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    sock.recv(65536)
