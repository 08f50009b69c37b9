"""The simulated Share service produces every fault that it is set to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from itertools import pairwise

import pytest
import requests

from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.demo.share_service import SimulatedShare
from tests.support import share_faults
from tests.support.plain_client import ANNA, BEN, NOON, ZERO, Client, Clock, refused, wt

# Readings


def test_phone_off_is_a_late_batch(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """While the phone is off no reading arrives; when it is on again, all missed ones arrive at once."""
    back = NOON + 3600
    share.distort(share_faults.during(NOON, back, share_faults.late(until=back)))
    clock.time = back - 1
    assert max(anna.times()) < NOON * 1000
    clock.time = back + 30
    assert len([each for each in anna.times() if each >= NOON * 1000]) in (11, 12, 13)


def test_warm_up_has_no_readings(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """There are no readings during a sensor's warm-up, except for other accounts."""
    share.distort(share_faults.during(NOON - 7200, NOON, share_faults.missing), ANNA.username)
    clock.time = NOON + 1800
    assert not [each for each in anna.times() if NOON - 7200 <= each / 1000 < NOON]
    with Client(share, BEN) as other:
        other.login()
        assert [each for each in other.times() if NOON - 7200 <= each / 1000 < NOON]


def test_two_devices_double_each_reading(anna: Client, share: SimulatedShare) -> None:
    """A watch and a phone upload each value twice, 9.5 s apart, so 288 records cover half a day."""
    share.distort(share_faults.doubled())
    newest = anna.readings()
    assert len(newest) == 288
    times = [wt(each) for each in newest]
    twins = [index for index, (newer, older) in enumerate(pairwise(times)) if newer - older == 9500]
    assert len(twins) in (143, 144)
    assert all(newest[index]["Value"] == newest[index + 1]["Value"] for index in twins)


def test_calibration_puts_a_second_value_into_the_slot(anna: Client, share: SimulatedShare) -> None:
    """A second reading with another value arrives within the same five minutes."""
    share.distort(share_faults.calibrated(by=30, after=60))
    second, first = anna.readings(minutes=20)[-2:]
    assert wt(second) - wt(first) == 60_000
    assert second["Value"] - first["Value"] == 30


@pytest.mark.parametrize("value", [5, 39, 401])
def test_gives_error_codes_and_limits(anna: Client, share: SimulatedShare, value: int) -> None:
    """The value can be replaced by an error code, LOW or HIGH, and the trend by any word."""
    share.distort(share_faults.together(share_faults.valued(value), share_faults.trending("Sideways")))
    newest = anna.readings(count=1)[0]
    assert (newest["Value"], newest["Trend"]) == (value, "Sideways")


def test_distortion_can_be_undone(anna: Client, share: SimulatedShare) -> None:
    """Setting a distortion replaces the previous one."""
    before = anna.readings()
    share.distort(share_faults.missing)
    assert anna.readings() == []
    share.distort(sim.unchanged)
    assert anna.readings() == before


# Answers


def test_changed_password_counts_as_wrong(anna: Client, share: SimulatedShare) -> None:
    """After a password change, reads continue to work, and sign-ins are rejected until the lock-out."""
    share.fault = share_faults.password_changed()
    assert anna.read().status_code == 200
    codes = [refused(anna.login())[0] for _ in range(6)]
    assert codes[0] == "AccountPasswordInvalid"
    assert "MaxAttempts" in codes[-1]


def test_rate_limit_says_how_long(anna: Client, share: SimulatedShare) -> None:
    """429 carries the given Retry-After, in seconds or as a date."""
    share.fault = share_faults.status(429, {"Retry-After": "120"})
    assert (anna.read().status_code, anna.read().headers["Retry-After"]) == (429, "120")
    share.fault = share_faults.status(429, {"Retry-After": sim.http_date(NOON + 60)})
    assert anna.login().headers["Retry-After"] == "Sat, 19 Apr 2025 12:01:00 GMT"


@pytest.mark.parametrize("code", [403, 502, 503, 504])
def test_html_pages(anna: Client, share: SimulatedShare, code: int) -> None:
    """Cloudflare's pages are HTML, with any status."""
    share.fault = share_faults.html(code)
    answer = anna.read()
    assert answer.status_code == code
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<html>" in answer.text


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"not JSON"])
def test_any_body(anna: Client, share: SimulatedShare, content: bytes) -> None:
    """The service can answer 200 with any body."""
    share.fault = share_faults.body(content)
    answer = anna.read()
    assert (answer.status_code, answer.content) == (200, content)


def test_any_error(anna: Client, share: SimulatedShare) -> None:
    """The service can answer with any of Share's errors, whatever the credentials are."""
    share.fault = share_faults.error("SSO_AuthenticatePasswordInvalid", "old spelling")
    assert refused(anna.login()) == ("SSO_AuthenticatePasswordInvalid", "old spelling")


def test_zero_uuid(anna: Client, share: SimulatedShare) -> None:
    """A sign-in gets the all-zero UUID, while reads work as usual."""
    share.fault = share_faults.only(share_faults.zero_uuid(), call="login")
    assert anna.read().json()
    assert anna.login().json() == ZERO


def test_edited_and_truncated_answers(anna: Client, share: SimulatedShare) -> None:
    """An answer can have one invalid reading among valid ones, or only half of its JSON."""
    share.fault = share_faults.edited(lambda readings: [{"WT": "nonsense"}, *reversed(readings)])
    spoiled = anna.readings(minutes=60)
    assert spoiled[0] == {"WT": "nonsense"}
    assert wt(spoiled[1]) < wt(spoiled[2])
    share.fault = share_faults.truncated()
    with pytest.raises(requests.exceptions.JSONDecodeError):
        anna.read().json()


@pytest.mark.parametrize("compress", [True, False])
def test_large_answers(anna: Client, share: SimulatedShare, *, compress: bool) -> None:
    """An answer can have more than a mebibyte of valid JSON, which is tiny when compressed."""
    share.fault = share_faults.padded(2**20 + 1, compress=compress)
    answer = anna.read(count=1)
    assert len(answer.content) == 2**20 + 1
    assert len(answer.json()) == 1
    assert ("Content-Encoding" in answer.headers) == compress


def test_wrong_and_missing_headers(anna: Client, share: SimulatedShare) -> None:
    """The Date header can be wrong by any amount, or missing."""
    share.fault = share_faults.date_offset(-3600)
    assert anna.read().headers["Date"] == "Sat, 19 Apr 2025 11:00:00 GMT"
    share.fault = share_faults.header("Date", None)
    assert "Date" not in anna.read().headers


# Connections


@pytest.mark.parametrize(
    "fault", [share_faults.drop(), share_faults.reset(), share_faults.cut()], ids=["drop", "reset", "cut"]
)
def test_broken_connections(anna: Client, share: SimulatedShare, fault: sim.Fault) -> None:
    """The connection breaks before or during the answer, and the next one works."""
    share.fault = share_faults.only(fault, times=1)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        anna.read()
    assert anna.read().status_code == 200


def test_cut_leaves_half_a_body(anna: Client, share: SimulatedShare) -> None:
    """The head and half of the body arrive before the connection ends."""
    share.fault = share_faults.cut()
    with raw(anna) as connection:
        answer = read_all(connection)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert content
    assert not content.endswith(b"0\r\n\r\n")


def test_drip_never_times_out_a_read(anna: Client, share: SimulatedShare) -> None:
    """The body arrives byte by byte, as slowly as set, and complete in the end."""
    share.fault = share_faults.drip(interval=0.02)
    with raw(anna, minutes=0) as connection:
        connection.settimeout(0.5)
        began = time.monotonic()
        pieces: list[bytes] = []
        while not b"".join(pieces).endswith(b"0\r\n\r\n"):
            pieces.append(connection.recv(4096))
    assert len(pieces) > 5
    assert time.monotonic() - began > 0.1


def test_hang_never_answers(anna: Client, share: SimulatedShare) -> None:
    """The request is in the log, and the client gets no answer."""
    share.fault = share_faults.hang()
    with pytest.raises(requests.ReadTimeout):
        anna.http.post(f"{share.base_url}/Publisher/ReadPublisherLatestGlucoseValues", json={}, timeout=0.1)
    assert share.requests[-1].outcome == "hang"


@pytest.mark.parametrize("fault", [share_faults.hang(), share_faults.drip(interval=30)], ids=["hang", "drip"])
def test_close_ends_hanging_requests(clock: Clock, fault: sim.Fault) -> None:
    """Closing the service takes less than a second even with hanging requests, and leaves no thread."""
    before = threading.active_count()
    with contextlib.ExitStack() as connections:
        with SimulatedShare([ANNA], clock) as share:
            client = connections.enter_context(Client(share))
            client.login()
            share.fault = fault
            for _ in range(5):
                connections.enter_context(raw(client))
            while share.count(call="read") < 5:
                time.sleep(0.01)
            began = time.monotonic()
        assert time.monotonic() - began < 1
    deadline = time.monotonic() + 1
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_hanging_ends_when_the_client_disconnects(anna: Client, share: SimulatedShare) -> None:
    """After a client gives up, no thread of the service keeps waiting."""
    share.fault = share_faults.only(share_faults.hang(), call="read")
    before = threading.active_count()
    raw(anna).close()
    while not share.count(outcome="hang"):
        time.sleep(0.01)
    deadline = time.monotonic() + 1
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def raw(client: Client, minutes: int = 1440) -> socket.socket:
    """Send a read without waiting for its answer."""
    host, port = client.share.base_url.split("/")[2].split(":")
    path = f"/ShareWebServices/Services/Publisher/ReadPublisherLatestGlucoseValues?minutes={minutes}&maxCount=5"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"POST {path}&sessionId={client.session_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the service closes the connection."""
    connection.settimeout(5)
    pieces = []
    while piece := connection.recv(4096):
        pieces.append(piece)
    return b"".join(pieces)


# Several faults


def test_faults_can_be_limited(anna: Client, ben: Client, clock: Clock, share: SimulatedShare) -> None:
    """A fault can be limited to an account, a call, a time, and a number of requests."""
    fault = share_faults.status(503)
    share.fault = share_faults.only(
        fault, call="read", account=ANNA.username, since=NOON + 10, until=NOON + 20, times=2
    )

    def statuses() -> list[int]:
        return [anna.read().status_code, ben.read().status_code, anna.login().status_code]

    assert statuses() == [200, 200, 200]
    clock.time = NOON + 10
    assert statuses() == [503, 200, 200]
    assert statuses() == [503, 200, 200]
    assert statuses() == [200, 200, 200]
    share.fault = share_faults.only(fault, until=NOON + 20)
    clock.time = NOON + 20
    assert statuses() == [200, 200, 200]


def test_faults_are_chained(anna: Client, share: SimulatedShare) -> None:
    """Several faults can be combined; the first one is applied last."""
    share.fault = share_faults.chain(
        share_faults.header("Date", None),
        share_faults.only(share_faults.status(502), call="login"),
        share_faults.padded(5000),
    )
    assert "Date" not in anna.read().headers
    assert len(anna.read(count=1).content) == 5000
    assert anna.login().status_code == 502
    share.fault = sim.no_fault
    assert anna.login().status_code == 200
