"""The simulated Share service answers as the real one was recorded, and fails in every way it is told to."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import requests

from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.demo.share_service import Record, SimulatedAccount, SimulatedShare

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_745_064_000.0  # 2025-04-19 12:00:00 UTC
APPLICATION_ID = "d89443d2-327c-4a6f-89e5-496bbb0317db"
JAPANESE_ID = "d8665ade-9673-4e27-9ff6-92db4ce13d13"
ZERO = "00000000-0000-0000-0000-000000000000"
ANNA = SimulatedAccount("anna@example.com", "p@$$w0rd", "99999999-9999-9999-9999-999999999999", seed=1)
BEN = SimulatedAccount("+11234567890", "other", seed=2, zone_offset_min=330)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> float:
        return self.time


class Client:
    """Asks the service, as plainly as can be."""

    def __init__(self, share: SimulatedShare, account: SimulatedAccount = ANNA) -> None:
        self.share = share
        self.account = account
        self.http = requests.Session()
        self.session_id = ""

    def post(self, path: str, fields: object = None, **params: object) -> requests.Response:
        url = f"{self.share.base_url}/{path}"
        query = {name: str(value) for name, value in params.items()}
        return self.http.post(url, json=fields or {}, params=query, timeout=5)

    def authenticate(self, **changed: object) -> requests.Response:
        return self.post(
            "General/AuthenticatePublisherAccount", self.credentials("accountName", self.account.username, changed)
        )

    def login(self, **changed: object) -> requests.Response:
        answer = self.post(
            "General/LoginPublisherAccountById", self.credentials("accountId", self.account.account_id, changed)
        )
        if answer.status_code == 200 and answer.text:
            self.session_id = answer.json()
        return answer

    def credentials(self, key: str, user: str, changed: dict[str, object]) -> dict[str, object]:
        return {key: user, "password": self.account.password, "applicationId": APPLICATION_ID, **changed}

    def read(self, minutes: object = 1440, count: object = 288, session_id: str = "") -> requests.Response:
        return self.post(
            "Publisher/ReadPublisherLatestGlucoseValues",
            sessionId=session_id or self.session_id,
            minutes=minutes,
            maxCount=count,
        )

    def readings(self, minutes: object = 1440, count: object = 288) -> list[dict[str, Any]]:
        answer = self.read(minutes, count).json()
        assert isinstance(answer, list)
        return answer

    def times(self) -> list[int]:
        """Return WT of all readings, in Unix milliseconds."""
        return [wt(reading) for reading in self.readings()]


def wt(reading: dict[str, Any]) -> int:
    found = re.fullmatch(r"Date\((\d+)\)", reading["WT"])
    assert found
    return int(found[1])


def refused(answer: requests.Response) -> tuple[str, str]:
    """Return Code and Message of one of Share's errors, which all have the same form."""
    assert answer.status_code == 500
    error = answer.json()
    assert list(error) == ["Code", "Message", "SubCode", "TypeName"]
    assert error["TypeName"] == "FaultException"
    return error["Code"], error["Message"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def share(clock: Clock) -> Iterator[SimulatedShare]:
    with SimulatedShare([ANNA, BEN], clock) as service:
        yield service


@pytest.fixture
def anna(share: SimulatedShare) -> Iterator[Client]:
    client = Client(share)
    client.login()
    with client.http:
        yield client


@pytest.fixture
def ben(share: SimulatedShare) -> Iterator[Client]:
    client = Client(share, BEN)
    client.login()
    with client.http:
        yield client


# As recorded


def test_signs_in_in_two_steps(anna: Client) -> None:
    """The user name gives the account id, the id a session id, both bare JSON strings, and both are UUIDs."""
    assert anna.authenticate().text == '"99999999-9999-9999-9999-999999999999"'
    assert str(uuid.UUID(anna.login().json())) == anna.session_id
    assert len(anna.login().text) == 38


def test_gives_a_reading_as_recorded_in_2025(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """Every byte of a reading is as in the recording."""
    clock.time = 1745081100.0
    share.distort(sim.missing)
    share.add(ANNA.username, Record(1745081013817, 224))
    assert anna.read().text == (
        '[{"WT":"Date(1745081013817)","ST":"Date(1745081013817)",'
        '"DT":"Date(1745081013817-0400)","Value":224,"Trend":"Flat"}]'
    )


def test_gives_a_reading_as_recorded_in_2015(clock: Clock) -> None:
    """The older format is that of the recording too: slashes, trends as numbers, an ST that is an hour off."""
    account = SimulatedAccount("old", "pw", zone_offset_min=-420, legacy=True)
    with SimulatedShare([account], clock) as share:
        share.distort(sim.missing)
        share.add("old", Record(round(NOON * 1000), 101))
        client = Client(share, account)
        client.login()
        shown = round(NOON * 1000) - 23_000
        assert client.readings() == [
            {
                "DT": f"/Date({shown}-0700)/",
                "ST": f"/Date({shown + 3_600_000})/",
                "Trend": 4,
                "Value": 101,
                "WT": f"/Date({round(NOON * 1000)})/",
            }
        ]
        client.http.close()


def test_writes_zones_east_of_greenwich(ben: Client) -> None:
    """DT carries the wearer's own zone, half hours included."""
    assert ben.readings(count=1)[0]["DT"].endswith("+0530)")


def test_answers_nothing_for_zero_minutes(anna: Client) -> None:
    """No minutes and no count are an empty list, as recorded."""
    assert anna.read(0, 0).text == "[]"
    assert anna.read(0, 10).text == "[]"
    assert anna.read(10, 0).text == "[]"


@pytest.mark.parametrize("user", ["anna@example.com", "nobody", "11234567890"])
def test_rejects_what_it_does_not_know(anna: Client, user: str) -> None:
    """A wrong password, an unknown user and a phone number without its plus are the same error."""
    expected = ("AccountPasswordInvalid", "Publisher account password failed")
    assert refused(anna.authenticate(accountName=user, password="wrong")) == expected


def test_rejects_a_wrong_password_by_id(anna: Client) -> None:
    """The second step calls a wrong password what the first calls it."""
    assert refused(anna.login(password="wrong"))[0] == "AccountPasswordInvalid"


def test_rejects_an_unknown_account_id(anna: Client) -> None:
    """An unknown id is an internal error whose message says that it cannot authenticate."""
    unknown = "55555555-5555-5555-5555-555555555555"
    code, message = refused(anna.login(accountId=unknown))
    assert code == "SSO_InternalError"
    assert message == (
        f"Synchronization of SSO account during authenticate call failed Time out issue.  AccountId={unknown} "
        "Error encountered accessing Keycloak endpoint: UAM_ERROR: HttpStatus='401 UNAUTHORIZED(401)' "
        f"Msg=Cannot Authenticate by AccountId='{unknown}'"
    )


@pytest.mark.parametrize("account_id", [1, "1", "99999999999999999999999999999999"])
def test_rejects_a_malformed_account_id(anna: Client, account_id: object) -> None:
    """An id that is no UUID of 36 characters is an invalid argument, and the message says UUID."""
    code, message = refused(anna.login(accountId=account_id))
    assert code == "InvalidArgument"
    assert message == (
        "Missing required field(s): JSON parse error: Cannot deserialize value of type `java.util.UUID` "
        f'from String "{account_id}": UUID has to be represented by standard 36-char representation'
    )


@pytest.mark.parametrize("account_id", ["", ZERO])
def test_gives_the_zero_session_for_the_zero_account(anna: Client, account_id: str) -> None:
    """No account id, or the all-zero one, signs in to the all-zero session."""
    assert anna.login(accountId=account_id).text == f'"{ZERO}"'


def test_answers_nothing_at_all_to_the_zero_session(anna: Client) -> None:
    """A read with the all-zero session is 200 with an empty body."""
    answer = anna.read(session_id=ZERO)
    assert (answer.status_code, answer.content) == (200, b"")


def test_rejects_an_unknown_session(anna: Client) -> None:
    """A session that nobody knows is named in the message."""
    unknown = "33333333-3333-3333-3333-333333333333"
    assert refused(anna.read(session_id=unknown)) == (
        "SessionIdNotFound",
        f"Failed to find session object. [SessionId = {unknown}]",
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"accountName": ""}, "accountName"),
        ({"accountName": None}, "accountName"),
        ({"password": ""}, "password"),
        ({"applicationId": "another"}, "applicationId"),
    ],
)
def test_names_the_malformed_argument(anna: Client, changed: dict[str, object], named: str) -> None:
    """An argument that is missing or senseless is named in the message, and is no rejected password."""
    code, message = refused(anna.authenticate(**changed))
    assert code == "InvalidArgument"
    assert named in message


def test_knows_the_applications_of_all_regions(anna: Client) -> None:
    """Japan has an application id of its own."""
    assert anna.login(applicationId=JAPANESE_ID).status_code == 200


def test_has_the_headers_of_the_real_one(anna: Client, clock: Clock) -> None:
    """Date is the service's time, Cloudflare stands in front, and reads are chunked."""
    clock.time = NOON + 0.9
    answer = anna.read(count=1)
    assert answer.headers["Date"] == "Sat, 19 Apr 2025 12:00:00 GMT"
    assert answer.headers["server"] == "cloudflare"
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Transfer-Encoding"] == "chunked"


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip, deflate", "gzip"), ("identity", None)])
def test_compresses_when_asked(anna: Client, accepted: str, encoding: str | None) -> None:
    """Answers are gzip for those who accept it, and plain for others."""
    anna.http.headers["Accept-Encoding"] = accepted
    answer = anna.read()
    assert answer.headers.get("Content-Encoding") == encoding
    assert len(answer.json()) > 280


def test_keeps_the_connection(share: SimulatedShare) -> None:
    """One call after the other goes over one connection, errors included."""
    connection = http.client.HTTPConnection(share.base_url.split("/")[2])
    sockets = set()
    for _ in range(3):
        connection.request("POST", "/ShareWebServices/Services/General/LoginPublisherAccountById", "{}")
        connection.getresponse().read()
        sockets.add(connection.sock)
    assert len(sockets) == 1
    assert None not in sockets
    connection.close()


def test_knows_no_other_call(anna: Client) -> None:
    """Another path is 404, another method an error."""
    assert anna.post("General/SystemUtcTime").status_code == 404
    assert anna.http.get(anna.share.base_url, timeout=5).status_code >= 400


# Readings


def test_readings_come_every_five_minutes(anna: Client) -> None:
    """A day has 288 readings or one fewer, newest first, 300 s apart within a second."""
    times = anna.times()
    assert len(times) in (287, 288)
    assert all(299_000 <= newer - older <= 301_000 for newer, older in pairwise(times))
    assert times[0] > NOON * 1000 - 320_000


def test_readings_differ_only_between_accounts(anna: Client, ben: Client, clock: Clock) -> None:
    """Another service has the same readings for the same account; another account has others."""
    with SimulatedShare([ANNA], clock) as again:
        client = Client(again)
        client.login()
        assert client.readings() == anna.readings()
        client.http.close()
    assert [each["Value"] for each in anna.readings()] != [each["Value"] for each in ben.readings()]


def test_limits_by_minutes_and_count(anna: Client) -> None:
    """Both limits hold, whichever is reached first; the newest stay."""
    assert len(anna.readings(minutes=60)) in (11, 12)
    assert anna.readings(minutes=60, count=3) == anna.readings()[:3]


@pytest.mark.parametrize(("minutes", "count"), [(1441, 288), (1440, 289), (-1, 1), (10, "many")])
def test_refuses_limits_out_of_range(anna: Client, minutes: object, count: object) -> None:
    """More than a day, more than 288, and what is no number are invalid arguments."""
    assert refused(anna.read(minutes, count))[0] == "InvalidArgument"


def test_readings_arrive_some_seconds_late(anna: Client, clock: Clock) -> None:
    """A reading is there 8 s after it was taken at the earliest, and about 10 s after it on average."""
    delays = []
    for record in list(sim.series(ANNA, NOON, NOON + 3600)):
        clock.time = record.arrives - 0.001
        assert record.taken not in anna.times()
        clock.time = record.arrives
        assert anna.times()[0] == record.taken
        delays.append(record.arrives - record.taken / 1000)
    assert min(delays) >= 7.99
    assert 8 < sum(delays) / len(delays) < 14


def test_delay_is_the_accounts_own() -> None:
    """The delay is any function of a random number."""
    account = SimulatedAccount("far", "pw", delay=lambda u: 60 + 10 * u)
    delays = [each.arrives - each.taken / 1000 for each in sim.series(account, NOON, NOON + 86400)]
    assert min(delays) >= 59.9
    assert max(delays) <= 70.1
    assert len({round(delay, 3) for delay in delays}) > 200


def test_readings_begin_a_day_before_the_service(anna: Client, clock: Clock) -> None:
    """There is a day of readings from the first moment on, and always a day after that."""
    clock.time = NOON + 3 * 86400
    anna.login()
    assert len(anna.times()) in (287, 288)


def test_gives_explicit_readings_as_they_are(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """A reading put in by hand is there from its arrival on: late, or in the future, whatever is distorted."""
    share.distort(sim.missing)
    late = Record(round(NOON - 3600) * 1000, 100, "SingleUp", arrives=NOON + 60)
    future = Record(round(NOON + 7200) * 1000, 120)
    share.add(ANNA.username, late, future)
    assert anna.times() == [future.taken]
    clock.time = NOON + 60
    assert anna.times() == [future.taken, late.taken]


def test_forgets_old_explicit_readings(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """Readings of weeks are not kept."""
    for day in range(30):
        clock.time = NOON + day * 86400
        share.add(ANNA.username, Record(round(clock.time) * 1000, 100))
    share.distort(sim.missing)
    anna.login()
    assert len(anna.times()) == 1
    assert len(share._publishers[ANNA.username].added) <= 3  # noqa: SLF001  # memory is the point


def test_phone_off_is_a_late_batch(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """While the phone is off nothing arrives; when it is on again, all that was missed arrives at once."""
    back = NOON + 3600
    share.distort(sim.during(NOON, back, sim.late(until=back)))
    clock.time = back - 1
    assert max(anna.times()) < NOON * 1000
    clock.time = back + 30
    assert len([each for each in anna.times() if each >= NOON * 1000]) in (11, 12, 13)


def test_warm_up_has_no_readings(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """The readings of a sensor's warm-up never come, and those of another account do."""
    share.distort(sim.during(NOON - 7200, NOON, sim.missing), ANNA.username)
    clock.time = NOON + 1800
    assert not [each for each in anna.times() if NOON - 7200 <= each / 1000 < NOON]
    other = Client(share, BEN)
    other.login()
    assert [each for each in other.times() if NOON - 7200 <= each / 1000 < NOON]
    other.http.close()


def test_two_devices_double_each_reading(anna: Client, share: SimulatedShare) -> None:
    """A watch and a phone give the same value twice, 9.5 s apart, so that 288 reach back half a day."""
    share.distort(sim.doubled())
    newest = anna.readings()
    assert len(newest) == 288
    times = [wt(each) for each in newest]
    twins = [index for index, (newer, older) in enumerate(pairwise(times)) if newer - older == 9500]
    assert len(twins) in (143, 144)
    assert all(newest[index]["Value"] == newest[index + 1]["Value"] for index in twins)


def test_calibration_puts_a_second_value_into_the_slot(anna: Client, share: SimulatedShare) -> None:
    """Within the slot comes a second reading, with another value."""
    share.distort(sim.calibrated(by=30, after=60))
    second, first = anna.readings(minutes=20)[-2:]
    assert wt(second) - wt(first) == 60_000
    assert second["Value"] - first["Value"] == 30


@pytest.mark.parametrize("value", [5, 39, 401])
def test_gives_error_codes_and_limits(anna: Client, share: SimulatedShare, value: int) -> None:
    """An error code, LOW and HIGH stand where the value stands; with another distortion so does the trend."""
    share.distort(sim.together(sim.valued(value), sim.trending("Sideways")))
    newest = anna.readings(count=1)[0]
    assert (newest["Value"], newest["Trend"]) == (value, "Sideways")


def test_distortion_can_be_undone(anna: Client, share: SimulatedShare) -> None:
    """The last distortion set is the one that counts."""
    before = anna.readings()
    share.distort(sim.missing)
    assert anna.readings() == []
    share.distort(sim.unchanged)
    assert anna.readings() == before


# Sessions and lock-outs


def test_sessions_end_after_a_day(anna: Client, clock: Clock) -> None:
    """A session lives for its lifetime, and is then called not valid; a new sign-in helps."""
    clock.time = NOON + 86399
    assert anna.read().status_code == 200
    clock.time = NOON + 86400
    code, message = refused(anna.read())
    assert code == "SessionNotValid"
    assert message == f"Session not active or timed out. [SessionId = {anna.session_id}]"
    anna.login()
    assert anna.read().status_code == 200


def test_sessions_can_be_dropped(anna: Client, ben: Client, share: SimulatedShare) -> None:
    """Sessions are forgotten or ended for one account or for all."""
    share.drop_sessions(ANNA.username)
    assert refused(anna.read())[0] == "SessionIdNotFound"
    assert ben.read().status_code == 200
    share.expire_sessions(BEN.username)
    assert refused(ben.read())[0] == "SessionNotValid"
    share.drop_sessions()
    assert refused(ben.read())[0] == "SessionIdNotFound"


def test_sessions_are_not_kept_for_ever(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """Signing in four times a day for a month leaves no month of sessions."""
    for quarter in range(4 * 30):
        clock.time = NOON + quarter * 6 * 3600
        anna.login()
    assert len(share._sessions) < 12  # noqa: SLF001  # memory is the point


def test_locks_after_five_rejections(anna: Client, clock: Clock) -> None:
    """After five wrong passwords even the right one is refused, for 15 minutes."""
    for _ in range(5):
        assert refused(anna.login(password="wrong"))[0] == "AccountPasswordInvalid"
    assert "MaxAttempts" in refused(anna.authenticate())[0]
    clock.time = NOON + 900
    assert anna.login().status_code == 200


def test_each_try_renews_the_lock(anna: Client, clock: Clock) -> None:
    """Who keeps trying stays locked out."""
    for _ in range(5):
        anna.login(password="wrong")
    for minutes in (10, 20, 30):
        clock.time = NOON + minutes * 60
        assert "MaxAttempts" in refused(anna.login())[0]
    clock.time = NOON + 45 * 60
    assert anna.login().status_code == 200


def test_success_forgets_rejections(anna: Client, ben: Client) -> None:
    """A right password in between starts the count anew, and the account next door is untouched."""
    for _ in range(3):
        for _ in range(4):
            anna.login(password="wrong")
        assert anna.login().status_code == 200
    assert ben.login().status_code == 200


def test_lock_is_configurable(clock: Clock) -> None:
    """Number and length are the test's to choose."""
    with SimulatedShare([ANNA], clock, max_rejections=2, lock_seconds=60) as share:
        client = Client(share)
        client.login(password="wrong")
        client.login(password="wrong")
        assert "MaxAttempts" in refused(client.login())[0]
        clock.time += 60
        assert client.login().status_code == 200
        client.http.close()


def test_changed_password_counts_as_wrong(anna: Client, share: SimulatedShare) -> None:
    """With the password changed meanwhile, reads go on, and sign-ins lead to the lock."""
    share.fault = sim.password_changed()
    assert anna.read().status_code == 200
    codes = [refused(anna.login())[0] for _ in range(6)]
    assert codes[0] == "AccountPasswordInvalid"
    assert "MaxAttempts" in codes[-1]


# Faults


def test_rate_limit_says_how_long(anna: Client, share: SimulatedShare) -> None:
    """429 carries what it is told to, seconds or a date."""
    share.fault = sim.status(429, {"Retry-After": "120"})
    assert (anna.read().status_code, anna.read().headers["Retry-After"]) == (429, "120")
    share.fault = sim.status(429, {"Retry-After": sim.http_date(NOON + 60)})
    assert anna.login().headers["Retry-After"] == "Sat, 19 Apr 2025 12:01:00 GMT"


@pytest.mark.parametrize("code", [403, 502, 503, 504])
def test_pages_for_people(anna: Client, share: SimulatedShare, code: int) -> None:
    """Cloudflare's pages are HTML."""
    share.fault = sim.html(code)
    answer = anna.read()
    assert answer.status_code == code
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<html>" in answer.text


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"not JSON"])
def test_any_body(anna: Client, share: SimulatedShare, content: bytes) -> None:
    """200 with any body."""
    share.fault = sim.body(content)
    answer = anna.read()
    assert (answer.status_code, answer.content) == (200, content)


def test_any_error(anna: Client, share: SimulatedShare) -> None:
    """Any of Share's errors, whatever the credentials are."""
    share.fault = sim.error("SSO_AuthenticatePasswordInvalid", "old spelling")
    assert refused(anna.login()) == ("SSO_AuthenticatePasswordInvalid", "old spelling")


def test_zero_uuid(anna: Client, share: SimulatedShare) -> None:
    """A sign-in is answered with the all-zero UUID, while reads are as ever."""
    share.fault = sim.only(sim.zero_uuid(), call="login")
    assert anna.read().json()
    assert anna.login().json() == ZERO


def test_edited_and_truncated_answers(anna: Client, share: SimulatedShare) -> None:
    """One reading is spoiled among good ones; half the JSON arrives as if it were all."""
    share.fault = sim.edited(lambda readings: [{"WT": "nonsense"}, *reversed(readings)])
    spoiled = anna.readings(minutes=60)
    assert spoiled[0] == {"WT": "nonsense"}
    assert wt(spoiled[1]) < wt(spoiled[2])
    share.fault = sim.truncated()
    with pytest.raises(requests.exceptions.JSONDecodeError):
        anna.read().json()


@pytest.mark.parametrize("compress", [True, False])
def test_large_answers(anna: Client, share: SimulatedShare, *, compress: bool) -> None:
    """More than a mebibyte of good JSON, which compressed is next to nothing on the way."""
    share.fault = sim.padded(2**20 + 1, compress=compress)
    answer = anna.read(count=1)
    assert len(answer.content) == 2**20 + 1
    assert len(answer.json()) == 1
    assert ("Content-Encoding" in answer.headers) == compress


def test_wrong_and_missing_headers(anna: Client, share: SimulatedShare) -> None:
    """The date is off by as much as told, or not there at all."""
    share.fault = sim.date_offset(-3600)
    assert anna.read().headers["Date"] == "Sat, 19 Apr 2025 11:00:00 GMT"
    share.fault = sim.header("Date", None)
    assert "Date" not in anna.read().headers


@pytest.mark.parametrize("fault", [sim.drop(), sim.reset(), sim.cut()], ids=["drop", "reset", "cut"])
def test_broken_connections(anna: Client, share: SimulatedShare, fault: sim.Fault) -> None:
    """The connection ends before the answer or within it, and the next one is good again."""
    share.fault = sim.only(fault, times=1)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        anna.read()
    assert anna.read().status_code == 200


def test_cut_leaves_half_a_body(anna: Client, share: SimulatedShare) -> None:
    """The head and half the body arrive before the connection ends."""
    share.fault = sim.cut()
    with raw(anna) as connection:
        answer = read_all(connection)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert content
    assert not content.endswith(b"0\r\n\r\n")


def test_drip_never_times_out_a_read(anna: Client, share: SimulatedShare) -> None:
    """The body comes byte by byte, as slowly as told, and whole in the end."""
    share.fault = sim.drip(interval=0.02)
    with raw(anna, minutes=0) as connection:
        connection.settimeout(0.5)
        began = time.monotonic()
        pieces: list[bytes] = []
        while not b"".join(pieces).endswith(b"0\r\n\r\n"):
            pieces.append(connection.recv(4096))
    assert len(pieces) > 5
    assert time.monotonic() - began > 0.1


def test_hang_says_nothing(anna: Client, share: SimulatedShare) -> None:
    """The request is in the log, and the client waits for as long as it likes."""
    share.fault = sim.hang()
    with pytest.raises(requests.ReadTimeout):
        anna.http.post(f"{share.base_url}/Publisher/ReadPublisherLatestGlucoseValues", json={}, timeout=0.1)
    assert share.requests[-1].outcome == "hang"


@pytest.mark.parametrize("fault", [sim.hang(), sim.drip(interval=30)], ids=["hang", "drip"])
def test_close_ends_what_hangs(clock: Clock, fault: sim.Fault) -> None:
    """Closing the service takes less than a second, whatever hangs, and leaves no thread behind."""
    before = threading.active_count()
    with SimulatedShare([ANNA], clock) as share:
        client = Client(share)
        client.login()
        share.fault = fault
        connections = [raw(client) for _ in range(5)]
        while share.count(call="read") < 5:
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    for connection in connections:
        connection.close()
    client.http.close()
    deadline = time.monotonic() + 1
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_hanging_ends_when_the_client_goes(anna: Client, share: SimulatedShare) -> None:
    """A client that gives up leaves no thread waiting in the service."""
    share.fault = sim.only(sim.hang(), call="read")
    before = threading.active_count()
    raw(anna).close()
    while not share.count(outcome="hang"):
        time.sleep(0.01)
    deadline = time.monotonic() + 1
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_outage_is_close_and_start(anna: Client, share: SimulatedShare) -> None:
    """Closed, the service refuses connections; started again it is the same one at the same place."""
    before = anna.readings()
    share.close()
    with pytest.raises(requests.ConnectionError):
        anna.read()
    share.start()
    assert anna.readings() == before


def test_faults_only_where_they_are_meant(anna: Client, ben: Client, clock: Clock, share: SimulatedShare) -> None:
    """A fault can be kept to an account, a call, a time, and a number of requests."""
    fault = sim.status(503)
    share.fault = sim.only(fault, call="read", account=ANNA.username, since=NOON + 10, until=NOON + 20, times=2)

    def statuses() -> list[int]:
        return [anna.read().status_code, ben.read().status_code, anna.login().status_code]

    assert statuses() == [200, 200, 200]
    clock.time = NOON + 10
    assert statuses() == [503, 200, 200]
    assert statuses() == [503, 200, 200]
    assert statuses() == [200, 200, 200]
    share.fault = sim.only(fault, until=NOON + 20)
    clock.time = NOON + 20
    assert statuses() == [200, 200, 200]


def test_faults_are_chained(anna: Client, share: SimulatedShare) -> None:
    """Several faults act together, the first one last."""
    share.fault = sim.chain(sim.header("Date", None), sim.only(sim.status(502), call="login"), sim.padded(5000))
    assert "Date" not in anna.read().headers
    assert len(anna.read(count=1).content) == 5000
    assert anna.login().status_code == 502
    share.fault = sim.no_fault
    assert anna.login().status_code == 200


# The log


def test_logs_every_request(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """The log tells when, who, what for, how far back, and what came of it."""
    clock.time = NOON + 5
    anna.read(minutes=30, count=7)
    anna.authenticate(accountName="nobody")
    share.fault = sim.status(429)
    anna.read()
    read, rejected, limited = share.requests[-3:]
    assert read == sim.LoggedRequest(NOON + 5, "read", ANNA.username, 30, 7, False, 200, "ok")  # noqa: FBT003  # a whole entry
    assert (rejected.call, rejected.account, rejected.outcome) == ("authenticate", None, "AccountPasswordInvalid")
    assert (limited.status, limited.outcome) == (429, "429")


def test_counts_requests(anna: Client, ben: Client, clock: Clock, share: SimulatedShare) -> None:
    """Requests are counted by any of their properties: those that carried a password, for one."""
    anna.read()
    clock.time = NOON + 60
    ben.read()
    anna.login(password="wrong")
    assert share.count() == 5
    assert share.count(password=True) == 3
    assert share.count(call="read", account=ANNA.username) == 1
    assert share.count(since=NOON + 60) == 2
    assert share.count(outcome="AccountPasswordInvalid", status=500) == 1


def test_serves_many_at_once(clock: Clock) -> None:
    """A hundred accounts sign in and read a day each in the same moment, and nothing is lost."""
    accounts = [SimulatedAccount(f"user{number}", "pw", seed=number) for number in range(100)]
    lengths: list[int] = []

    def use(share: SimulatedShare, account: SimulatedAccount) -> None:
        client = Client(share, account)
        with client.http:
            client.authenticate()
            client.login()
            lengths.append(len(client.times()))

    with SimulatedShare(accounts, clock) as share:
        threads = [threading.Thread(target=use, args=(share, account)) for account in accounts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert share.count(outcome="ok") == 300
    assert min(lengths) >= 287
    assert len(lengths) == 100


# Alone, as a process


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_runs_as_a_process(stop: signal.Signals) -> None:
    """The process prints its base URL when it is ready, has a fast clock, and ends on a signal with 0."""
    command = [sys.executable, "-m", "dexcom2mqtt.demo.share_service", "--speed", "3600"]
    account = ["--username", "anna", "--password", "pw", "--account-id", ANNA.account_id]
    with subprocess.Popen([*command, *account], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        login = {"accountId": ANNA.account_id, "password": "pw", "applicationId": APPLICATION_ID}
        answer = requests.post(f"{url}/General/LoginPublisherAccountById", json=login, timeout=5)
        assert str(uuid.UUID(answer.json())) == answer.json()
        process.send_signal(stop)
        assert process.wait(5) == 0


def test_clock_runs_faster() -> None:
    """An accelerated clock begins with the real time, and leaves it behind."""
    now = sim.accelerated(1000)
    assert now() == pytest.approx(time.time(), abs=60)
    began = now()
    time.sleep(0.05)
    assert 50 <= now() - began < 1000


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
