"""The fault matrix: whatever fails, no reading is lost, and no stale one is shown as current.

Each test causes one fault between the real daemon and a real broker, on a clock that is some hundred times too fast.
It proves by the log of the service or the broker that the fault happened, and measures what a subscriber saw of it.
The results are the rows of the table in ``docs/faults.md``:

    pytest -m faults -n 4                   fails, too, if a row differs from the page
    pytest -m faults -n 4 --write-faults    writes the page again
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from dexcom2mqtt.demo import share_service as share
from tests.support import share_faults
from tests.support.faults import ANNA, BEN, FAULTS, GROWTH, HOUR, MINUTE, Page, Row, World, stamped
from tests.support.processes import eventually, retained
from tests.support.relay import DROP, PASS, Packet, Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.demo.share_service import Request, Respond, Response
    from tests.support.processes import Mosquitto

SPEED: Final = 180.0

Build = Callable[..., World]
Record = Callable[[str, Row], None]


@pytest.fixture
def world(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Iterator[Build]:
    """Return a function that builds a world with a broker with these settings; it ends with the test."""
    worlds: list[World] = []

    def build(*settings: str, speed: float = SPEED, persistent: bool = False, **options: Any) -> World:
        mosquitto = start_mosquitto(*settings, persistent=persistent)
        worlds.append(World(tmp_path, mosquitto, speed, **options))
        return worlds[-1]

    yield build
    for each in worlds:
        each.close()


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Return a function that records a row for the page."""
    return lambda name, row: record_property(name, Page.line(FAULTS[name], row))


@pytest.fixture
def chance() -> random.Random:
    """Return random numbers; a failing test shows the seed, and ``FAULTS_SEED`` repeats it."""
    seed = os.environ.get("FAULTS_SEED") or os.urandom(4).hex()
    print(f"FAULTS_SEED={seed}")  # noqa: T201  # pytest shows it
    return random.Random(seed)  # noqa: S311  # not for cryptography


def test_the_page_has_a_row_for_each_fault() -> None:
    """The page has a row for each fault in these tests, in their order, and no other."""
    assert [row.split(" | ")[0].removeprefix("| ") for row in Page.rows()] == [fault.words for fault in FAULTS.values()]


# The broker


@pytest.mark.faults
def test_a_broker_that_is_killed(world: Build, record: Record) -> None:
    """A broker that is down for an hour and comes back empty gets all missed readings, and every other topic."""
    here = world(speed=120)
    here.begin()
    here.network.refuse()
    here.mosquitto.kill()
    here.live(HOUR)
    assert not here.mosquitto.running
    here.mosquitto.start()
    here.resubscribe()
    here.end()
    record("broker killed", here.row(FAULTS["broker killed"]))
    assert here.growth() < GROWTH
    assert here.mosquitto.log().count(" starting\n") == 2


@pytest.mark.faults
def test_a_broker_that_restarts_empty(world: Build, record: Record) -> None:
    """A broker that lost everything in a restart gets everything again."""
    here = world(speed=60)
    here.begin()
    here.network.refuse()
    here.mosquitto.stop()
    here.mosquitto.start()
    eventually(here.subscriber.subscribed.is_set)
    assert retained(here.mosquitto.port) == {}
    here.resubscribe()
    here.end()
    record("broker empty", here.row(FAULTS["broker empty"]))
    assert here.mosquitto.log().count(" starting\n") == 2
    assert {"dexcom2mqtt/anna/history", "dexcom2mqtt/anna/status"} <= set(retained(here.mosquitto.port))


@pytest.mark.faults
@pytest.mark.parametrize("name", ["broker old", "both old"])
def test_a_broker_that_comes_back_with_old_messages(world: Build, record: Record, name: str) -> None:
    """Old retained messages of a broker are not shown as current, and only readings it has forgotten repeat."""
    here = world(speed=120, persistent=True)
    here.begin()

    def history() -> str:
        return retained(here.mosquitto.port)["dexcom2mqtt/anna/history"]

    def saved() -> str | None:
        before = history()
        here.mosquitto.save()
        return before if history() == before else None  # otherwise a reading came in between

    then = eventually(saved)
    here.live(40 * MINUTE)
    here.network.refuse()
    if name == "both old":
        here.kill()
    here.mosquitto.kill()
    here.mosquitto.start()
    eventually(here.subscriber.subscribed.is_set)
    assert history() == then
    here.live(20 * MINUTE)
    here.resubscribe()
    if name == "both old":
        here.start()
    here.end()
    record(name, here.row(FAULTS[name], times=1))


@pytest.mark.faults
@pytest.mark.parametrize(("name", "minutes"), [("broker slow", 3), ("broker frozen", 15)])
def test_a_broker_that_freezes(world: Build, record: Record, name: str, minutes: float) -> None:
    """After a broker was frozen for minutes, noticed or not, everything continues as if nothing had happened."""
    here = world(speed=60, mqtt={"keepalive": 5})
    here.begin()
    here.mosquitto.freeze()
    here.live(minutes * MINUTE)
    assert here.mosquitto.frozen
    here.mosquitto.thaw()
    here.end()
    record(name, here.row(FAULTS[name], times=1))
    assert (here.connects() > 1) == (name == "broker frozen")


@pytest.mark.faults
def test_a_broker_that_is_absent_at_the_start(world: Build, record: Record) -> None:
    """A broker that can be reached only an hour after the start gets everything that Share has then."""
    here = world(speed=120)
    here.network.refuse()
    here.start()
    here.wait(lambda: here.share.count(call="read", outcome="ok") > 2, 20 * MINUTE, "Share is not asked")
    here.began = here.now()
    here.live(HOUR)
    assert here.connects() == 0
    here.network.allow()
    here.end()
    record("broker absent", here.row(FAULTS["broker absent"], since=here.ended + MINUTE))
    assert here.growth() < GROWTH


@pytest.mark.faults
def test_a_broker_that_refuses_the_credentials(world: Build, record: Record, tmp_path: Path) -> None:
    """A broker that refuses the credentials for an hour gets everything once it accepts them."""
    passwords = tmp_path / "passwords"

    def let_in(user: str) -> None:
        passwords.touch()
        subprocess.run(["/usr/bin/mosquitto_passwd", "-b", passwords, user, "password"], check=True)

    let_in("subscriber")
    here = world(
        "allow_anonymous false",
        f"password_file {passwords}",
        speed=120,
        login=("subscriber", "password"),
        mqtt={"username": "daemon", "password": "password"},
    )
    here.start()
    here.wait(lambda: here.share.count(call="read", outcome="ok") > 2, 20 * MINUTE, "Share is not asked")
    here.began = here.now()
    here.live(HOUR)
    assert here.connects() == 0
    assert here.mosquitto.log().count("not authorised") > 5
    let_in("daemon")
    here.mosquitto.reload()
    here.end()
    record("broker refuses", here.row(FAULTS["broker refuses"], since=here.ended + MINUTE))
    assert here.growth() < GROWTH


# The connection


@pytest.mark.faults
@pytest.mark.timeout(900)  # forty connections, each with its pauses: three minutes on an idle machine
@pytest.mark.parametrize(("name", "up", "most"), [("cut up", True, 60_000), ("cut down", False, 250)])
def test_a_connection_that_breaks(
    world: Build, record: Record, chance: random.Random, name: str, *, up: bool, most: int
) -> None:
    """A connection that is cut again and again, after any number of bytes, loses no reading."""
    here = world(speed=60)

    def cut() -> None:
        before = here.network.cuts
        here.network.cut(up=up, after=chance.randrange(most))
        here.wait(lambda: here.network.cuts > before, 30 * MINUTE, "the connection was not cut")

    here.start()
    for cuts in range(40):
        cut()
        if cuts % 8 == 0:
            here.look()
    here.end()
    record(name, here.row(FAULTS[name], times=40))
    assert here.network.cuts == 40
    assert here.connects() >= 20


# The daemon


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_daemon_that_is_killed_at_random(world: Build, record: Record, chance: random.Random) -> None:
    """A daemon killed fifty times at random moments, from its start on, loses nothing."""
    here = world(speed=120)
    for _ in range(50):
        here.start()
        time.sleep(chance.uniform(0.2, 1.6))
        here.kill()
        here.look()
    here.end()
    here.start()
    record("killed", here.row(FAULTS["killed"], times=50, since=here.asked_again()))
    assert here.connects() > 20


@pytest.mark.faults
def test_a_daemon_that_is_killed_in_the_first_backfill(world: Build, record: Record, chance: random.Random) -> None:
    """A daemon killed repeatedly before the first 24 hours are published continues, and publishes all of them."""
    here = world(speed=20)

    def kill() -> None:
        before = len(here.received())
        here.start()
        eventually(lambda: len(here.received()) > before)
        time.sleep(chance.uniform(0, 0.1))
        here.kill()
        here.look()

    kills = 0
    while len(set(here.received())) < 200:  # early enough that a slow machine does not reach the end
        kill()
        kills += 1
    assert len(set(here.received())) < 288
    here.end()
    here.start()
    record("killed early", here.row(FAULTS["killed early"], times=kills, since=here.asked_again()))
    assert kills >= 5


@pytest.mark.faults
def test_a_daemon_that_is_killed_between_reading_and_history(world: Build, record: Record) -> None:
    """A daemon killed between a reading's acknowledgement and its history repeats only that reading."""
    here = world(speed=120)
    here.begin()
    before = here.received()
    assert len(before) == len(set(before))

    def kill() -> None:
        known = len(here.received())

        def passes(data: bytes) -> bool:
            if b'"source"' not in data or len(here.received()) == known:  # a start sends the history again
                return True
            here.kill()  # the history is being sent, and does not arrive
            return False

        here.network.passes = passes
        here.wait(lambda: here.process and not here.process.running, 20 * MINUTE, "there was no history")
        here.network.passes = lambda _: True
        here.start()
        owed = here.owed(here.now())
        here.wait(lambda: here.has_all(owed), 20 * MINUTE, "it has not recovered")
        here.wait(lambda: max(owed) in saved(), 20 * MINUTE, "the history does not follow")

    def saved() -> list[int]:
        history = json.loads(here.subscriber.latest()["dexcom2mqtt/anna/history"])
        return [entry["date"] for entry in history["readings"]]

    for _ in range(10):
        kill()
    here.end()
    record("killed between", here.row(FAULTS["killed between"], times=10))
    repeats = len(here.received()) - len(set(here.received()))
    assert repeats >= 10


# Share


def known(here: World) -> list[list[dict[str, Any]]]:
    """Return Share's answers to the reads during the fault, as records."""
    return [
        json.loads(response.body)
        for request, response in here.answers
        if here.began <= request.time < here.began + HOUR
    ]


def instants(records: list[dict[str, Any]]) -> list[int]:
    return sorted(int(record["WT"][5:-1]) for record in records)


def none_of_the_hour(here: World) -> bool:
    """Return whether no answer had a reading from the time of the fault."""
    answers = known(here)
    return bool(answers) and not any(at >= here.began * 1000 for records in answers for at in instants(records))


def two_within(seconds: float, *, alike: bool) -> Callable[[World], bool]:
    """Return whether an answer had two readings this close together, with the same value or not."""

    def proof(here: World) -> bool:
        pairs = [pair for records in known(here) for pair in pairwise(records)]
        near = [(a, b) for a, b in pairs if abs(instants([a])[0] - instants([b])[0]) <= seconds * 1000]
        return any((a["Value"] == b["Value"]) == alike for a, b in near)

    return proof


def valued(value: int) -> Callable[[World], bool]:
    return lambda here: any(record["Value"] == value for records in known(here) for record in records)


READINGS: Final[dict[str, tuple[Callable[[float], share.Distortion], Callable[[World], bool]]]] = {
    # what happens to the readings of the hour, given its end; and how Share's answers show it
    "late": (share_faults.late, none_of_the_hour),
    "doubles": (lambda _: share_faults.doubled(), two_within(10, alike=True)),
    "calibrations": (lambda _: share_faults.calibrated(by=14), two_within(60, alike=False)),
    "gap": (lambda _: share_faults.missing, none_of_the_hour),
    "error codes": (lambda _: share_faults.valued(12), valued(12)),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", READINGS)
def test_readings_that_are_not_as_they_should_be(world: Build, record: Record, name: str) -> None:
    """Late, duplicate, calibrated and missing readings and error codes for an hour: each real one arrives once."""
    here = world()
    here.begin()
    distortion, proof = READINGS[name]
    until = here.began + HOUR
    here.distort(share_faults.during(here.began, until, distortion(until)))
    here.live(until - here.now())
    here.end()
    record(name, here.row(FAULTS[name]))
    assert proof(here)
    assert here.growth() < GROWTH


@pytest.mark.faults
def test_acknowledgements_that_are_lost(world: Build, record: Record) -> None:
    """The connection is closed, the will says offline, and nothing stays current too long, with MQTT 3.1.1 either."""
    lost: list[Packet] = []

    def lose(packet: Packet) -> float:
        if packet.kind != "PUBACK" or packet.from_client or not losing:
            return PASS
        lost.append(packet)
        return DROP

    losing = False
    here = world(speed=20)
    with Relay(here.mosquitto.port, lose) as relay:
        here.mqtt |= {"port": relay.port, "protocol": "3.1.1"}
        here.begin()
        losing = True
        here.live(20 * MINUTE)
        losing = False
        here.end()
        ended = relay.connections - 1
        record("acks lost", here.row(FAULTS["acks lost"], times=relay.connections))
    assert lost
    assert ended >= 1
    assert "offline" in [heard.payload for heard in here.subscriber.heard if heard.topic == "dexcom2mqtt/bridge/state"]
    assert here.process
    assert here.process.text().count("has acknowledged nothing for 30 s") == 1


AHEAD: Final = 62 * MINUTE


def seen_ahead(here: World) -> bool:
    """Return whether Share's answers had timestamps in the future."""
    stamps = [
        int(record["WT"][5:-1]) / 1000 - request.time
        for request, response in here.answers
        for record in json.loads(response.body)
    ]
    return max(stamps) > AHEAD - 2 * MINUTE


@pytest.mark.faults
def test_a_phone_that_is_ahead_for_an_hour(world: Build, record: Record) -> None:
    """Nothing old is shown, the status names the clock, and the first correct reading is current at once."""
    here = world()
    here.begin()
    until = here.began + HOUR
    here.distort(share_faults.during(here.began, until, stamped(AHEAD)))
    here.live(until - here.now())
    here.end()
    assert here.status()["share"] == "phone_clock"
    here.wait(lambda: here.status()["share"] == "ok", 11 * MINUTE, "nothing is current although the phone is right")
    record("phone ahead", here.row(FAULTS["phone ahead"]))
    assert seen_ahead(here)


@pytest.mark.faults
def test_a_phone_that_is_ahead_and_then_off(world: Build, record: Record) -> None:
    """Readings stamped an hour ahead stay hidden when that hour has passed, even if the daemon restarts."""
    here = world()
    here.begin()
    off, back = here.began + 15 * MINUTE, here.began + 2 * HOUR + 15 * MINUTE
    away = share_faults.during(off, back, share_faults.missing)
    here.distort(share_faults.together(away, share_faults.during(here.began, off, stamped(AHEAD))))
    here.live(50 * MINUTE)
    assert here.status()["share"] == "phone_clock"
    here.kill()
    here.start()
    here.live(back - here.now())
    here.end()
    record("phone off", here.row(FAULTS["phone off"], times=1))
    assert seen_ahead(here)


@pytest.mark.faults
def test_a_session_that_is_dead_in_unknown_words(world: Build, record: Record) -> None:
    """After ten minutes of errors there is one sign-in, and no reading is missed."""
    here = world()
    here.begin()
    here.share.spoil_sessions(share_faults.error("InternalServerError"))
    here.live(20 * MINUTE)
    here.end()
    record("dead session", here.row(FAULTS["dead session"]))
    assert here.share.count(since=here.began, outcome="InternalServerError") >= 3
    assert here.share.count(since=here.began, call="login") == 1


@pytest.mark.faults
def test_a_password_that_is_corrected(world: Build, record: Record) -> None:
    """After hours of rejections, the right password is tried within half an hour of the last one; nothing is lost."""
    here = world(speed=2 * SPEED)
    here.begin()
    here.fault = share_faults.only(share_faults.error("AccountPasswordInvalid"), call="login")
    here.share.drop_sessions()
    here.live(6 * HOUR)
    assert here.process
    here.process.signal(signal.SIGTERM)
    here.process.wait()
    here.fault = share.no_fault
    here.end()
    here.start()
    record("mended", here.row(FAULTS["mended"]))
    assert 8 <= here.share.count(since=here.began, outcome="AccountPasswordInvalid") <= 16


def limited_until(request: Request, respond: Respond) -> Response:
    """Answer 429 with a Retry-After of ten minutes."""
    return share_faults.status(429, {"Retry-After": share.http_date(request.time + 600)})(request, respond)


ANSWERS: Final = {  # the fault, its name in the service's log, and how often it must at least occur
    "500": (share_faults.status(500), "500", 10),
    "502": (share_faults.status(502), "502", 10),
    "503": (share_faults.status(503), "503", 10),
    "429 seconds": (share_faults.status(429, {"Retry-After": "600"}), "429", 5),
    "429 date": (limited_until, "429", 5),
    "403": (share_faults.html(403), "403", 10),
    "html": (share_faults.html(200), "200", 10),
    "empty": (share_faults.only(share_faults.body(b""), call="read"), "body", 10),
    "null": (share_faults.only(share_faults.body(b"null"), call="read"), "body", 10),
    "truncated": (share_faults.truncated(), "truncated", 10),
    "drip": (share_faults.drip(0.1), "drip", 5),
    "dropped": (share_faults.drop(), "drop", 10),
    "cut off": (share_faults.cut(), "cut", 10),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", ANSWERS)
def test_useless_answers(world: Build, record: Record, name: str) -> None:
    """An hour of useless answers loses no reading that Share still has after it."""
    here = world(CALL_SECONDS="1")
    here.begin()
    fault, outcome, times = ANSWERS[name]
    here.fault = fault
    here.live(HOUR)
    here.fault = share.no_fault
    here.end()
    record(name, here.row(FAULTS[name]))
    entries = [entry for entry in here.share.requests if here.began <= entry.time < here.ended]
    assert sum(entry.outcome == outcome for entry in entries) >= times
    assert here.growth() < GROWTH


@pytest.mark.faults
def test_a_share_that_refuses_connections(world: Build, record: Record) -> None:
    """An hour in which Share's address refuses connections loses no reading that Share still has after it."""
    here = world()
    here.begin()
    here.share.close()
    here.live(HOUR)
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", int(here.share.base_url.split(":")[2].split("/")[0])))
    here.share.start()
    here.end()
    record("refused", here.row(FAULTS["refused"]))
    assert here.growth() < GROWTH


@pytest.mark.faults
def test_a_share_that_rejects_all_credentials(world: Build, record: Record) -> None:
    """Working credentials are rejected for an hour: few tries, and then readings again."""
    here = world()
    here.begin()
    here.fault = share_faults.only(share_faults.zero_uuid(), call="login")
    here.share.drop_sessions()
    here.live(HOUR)
    here.fault = share.no_fault
    here.end()
    record("zero", here.row(FAULTS["zero"]))
    assert 2 <= here.share.count(since=here.began, call="login", outcome="body") <= 4
    assert here.growth() < GROWTH


@pytest.mark.faults
def test_sessions_that_are_dropped_every_few_minutes(world: Build, record: Record) -> None:
    """Sessions that end every few minutes are renewed, at most twelve times an hour, and no reading is missed."""
    here = world()
    here.begin()
    for _ in range(20):
        here.share.drop_sessions()
        here.live(3 * MINUTE)
    here.end()
    record("sessions", here.row(FAULTS["sessions"]))
    assert here.share.count(since=here.began, outcome="SessionIdNotFound") >= 8
    sign_ins = [entry.time for entry in here.share.requests if entry.password and entry.time >= here.began]
    assert all(later - earlier > HOUR - SPEED for earlier, later in zip(sign_ins, sign_ins[12:], strict=False))
    assert here.growth() < GROWTH


def jumping(request: Request, respond: Respond) -> Response:
    """Answer with a Date that is three hours behind for ten minutes, correct for ten, and so on."""
    return share_faults.date_offset(-3 * HOUR if request.time // 600 % 2 else 0)(request, respond)


YEAR: Final = 365 * 24 * HOUR


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "off", "fault"),
    [
        ("date years", 2 * YEAR, share_faults.date_offset(2 * YEAR)),
        ("date past", -2 * YEAR, share_faults.date_offset(-2 * YEAR)),
        ("date hours", 3 * HOUR, share_faults.date_offset(3 * HOUR)),
        ("date back", -3 * HOUR, jumping),
    ],
    ids=["date years", "date past", "date hours", "date back"],
)
def test_a_share_whose_clock_is_wrong(world: Build, record: Record, name: str, off: float, fault: share.Fault) -> None:
    """A wrong Date for an hour loses no reading, repeats none, and makes no old one current."""
    here = world()
    here.begin()
    here.fault = fault
    here.live(HOUR)
    here.fault = share.no_fault
    here.end()
    record(name, here.row(FAULTS[name]))
    wrong = [offset for at, offset in here.dates if here.began <= at < here.ended and abs(offset) > HOUR]
    assert len(wrong) >= 4
    assert all(abs(offset - off) < MINUTE for offset in wrong)
    assert here.growth() < GROWTH


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_share_that_is_out_of_order_for_23_hours(world: Build, record: Record) -> None:
    """After 23 hours out of order, Share still has all those readings, and all arrive."""
    here = world(speed=1200)
    here.begin()
    here.fault = share_faults.status(503)
    here.live(23 * HOUR)
    here.fault = share.no_fault
    here.end()
    record("outage", here.row(FAULTS["outage"]))
    assert here.share.count(since=here.began, outcome="503") > 200
    assert here.growth() < GROWTH


# The machine's clock


FAKETIME: Final = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.fixture
def wrong_clock(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Return the file that sets how wrong the system's clock is, and the environment for it."""
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed; install the package faketime to run them")
    says = tmp_path / "clock"
    return says, {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(says),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def year_in(environ: dict[str, str]) -> int:
    return int(subprocess.run(["/bin/date", "+%Y"], env=environ, capture_output=True, check=True, text=True).stdout)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["clock off", "clock jumps"])
def test_a_machine_whose_clock_is_wrong(
    world: Build, record: Record, wrong_clock: tuple[Path, dict[str, str]], name: str
) -> None:
    """A system clock that is years off, from the start or jumping, changes nothing: the time comes from Share."""
    says, environ = wrong_clock
    says.write_text("-6y\n", encoding="utf-8")
    here = world(**environ)
    here.begin()
    this_year = time.gmtime().tm_year
    years = []
    for off in (4, -9, 1, -3) * 3:
        if name == "clock jumps":
            says.write_text(f"{off:+}y\n", encoding="utf-8")
        here.live(5 * MINUTE)
        years.append(year_in(environ) - this_year)
    here.end()
    record(name, here.row(FAULTS[name]))
    assert here.growth() < GROWTH
    assert here.process
    written = here.process.text()
    if name == "clock jumps":
        assert years[:4] == [4, -9, 1, -3]
        assert all(f"\n{this_year + off}-" in written for off in (4, -9))
    else:
        assert set(years) == {-6}
        assert written.startswith(str(this_year - 6))


# Two accounts


@pytest.mark.faults
def test_another_account_whose_server_hangs(world: Build, record: Record) -> None:
    """While the server of one account hangs, the other's readings arrive as promptly as ever."""
    here = world(speed=120, accounts={"anna": ANNA, "ben": BEN})
    other = here.another_share("ben")
    here.begin()
    other.fault = share_faults.hang()
    here.live(HOUR)
    other.fault = share.no_fault
    here.end()
    record("other hangs", here.row(FAULTS["other hangs"]))
    assert other.count(since=here.began, outcome="hang") >= 1
    assert here.growth() < GROWTH
    assert max(here.lags("anna")) < 5 * MINUTE
    here.wait(lambda: here.has_all(here.owed(here.ended, "ben"), "ben"), 3 * HOUR, "ben has not recovered")


@pytest.mark.faults
def test_another_account_with_a_bug(world: Build, record: Record) -> None:
    """An unexpected exception in one account's loop does not affect the other; the first continues later."""
    here = world(speed=120, accounts={"anna": ANNA, "ben": BEN}, BUG_IN="ben")
    here.begin()
    here.live(40 * MINUTE)
    here.end()
    record("other bug", here.row(FAULTS["other bug"]))
    assert max(here.lags("anna")) < 5 * MINUTE
    here.wait(lambda: here.has_all(here.owed(here.ended, "ben"), "ben"), HOUR, "ben has not recovered")
