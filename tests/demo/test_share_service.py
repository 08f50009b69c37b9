"""The simulated Share service answers as the recorded one, with sessions, lock-outs and a log."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import threading
import time
import uuid
from itertools import pairwise

import pytest
import requests

from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.demo.share_service import Record, SimulatedAccount, SimulatedShare
from tests.support import share_faults
from tests.support.plain_client import ANNA, APPLICATION_ID, BEN, JAPANESE_ID, NOON, ZERO, Client, Clock, refused

# As recorded


def test_signs_in_in_two_steps(anna: Client) -> None:
    """The user name gives the account id, and that a session id; both are UUIDs as JSON strings."""
    assert anna.authenticate().text == '"99999999-9999-9999-9999-999999999999"'
    assert str(uuid.UUID(anna.login().json())) == anna.session_id
    assert len(anna.login().text) == 38


def test_gives_a_reading_as_recorded_in_2025(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """A reading is byte for byte as in the recording."""
    clock.time = 1745081100.0
    share.distort(share_faults.missing)
    share.add(ANNA.username, Record(1745081013817, 224))
    assert anna.read().text == (
        '[{"WT":"Date(1745081013817)","ST":"Date(1745081013817)",'
        '"DT":"Date(1745081013817-0400)","Value":224,"Trend":"Flat"}]'
    )


def test_gives_a_reading_as_recorded_in_2015(clock: Clock) -> None:
    """The older format also matches the recording: slashes, numeric trends, an ST that is an hour off."""
    account = SimulatedAccount("old", "pw", zone_offset_min=-420, legacy=True)
    with SimulatedShare([account], clock) as share, Client(share, account) as client:
        share.distort(share_faults.missing)
        share.add("old", Record(round(NOON * 1000), 101))
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
    """DT has the wearer's own UTC offset, even with half hours."""
    assert ben.readings(count=1)[0]["DT"].endswith("+0530)")


def test_answers_nothing_for_zero_minutes(anna: Client) -> None:
    """Zero minutes or a zero count give an empty list, as recorded."""
    assert anna.read(0, 0).text == "[]"
    assert anna.read(0, 10).text == "[]"
    assert anna.read(10, 0).text == "[]"


@pytest.mark.parametrize("user", ["anna@example.com", "nobody", "11234567890"])
def test_rejects_unknown_credentials(anna: Client, user: str) -> None:
    """A wrong password, an unknown user and a phone number without its plus give the same error."""
    expected = ("AccountPasswordInvalid", "Publisher account password failed")
    assert refused(anna.authenticate(accountName=user, password="wrong")) == expected


def test_rejects_a_wrong_password_by_id(anna: Client) -> None:
    """The second step gives the same error for a wrong password as the first."""
    assert refused(anna.login(password="wrong"))[0] == "AccountPasswordInvalid"


def test_rejects_an_unknown_account_id(anna: Client) -> None:
    """An unknown id gives an internal error whose message says that it cannot authenticate."""
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
    """An id that is not a UUID of 36 characters is an invalid argument, and the message mentions UUID."""
    code, message = refused(anna.login(accountId=account_id))
    assert code == "InvalidArgument"
    assert message == (
        "Missing required field(s): JSON parse error: Cannot deserialize value of type `java.util.UUID` "
        f'from String "{account_id}": UUID has to be represented by standard 36-char representation'
    )


@pytest.mark.parametrize("account_id", ["", ZERO])
def test_gives_the_zero_session_for_the_zero_account(anna: Client, account_id: str) -> None:
    """An empty or all-zero account id gives the all-zero session."""
    assert anna.login(accountId=account_id).text == f'"{ZERO}"'


def test_answers_the_zero_session_with_an_empty_body(anna: Client) -> None:
    """A read with the all-zero session gives 200 with an empty body."""
    answer = anna.read(session_id=ZERO)
    assert (answer.status_code, answer.content) == (200, b"")


def test_rejects_an_unknown_session(anna: Client) -> None:
    """The message names an unknown session."""
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
    """The message names a missing or invalid argument, which does not count as a rejection."""
    code, message = refused(anna.authenticate(**changed))
    assert code == "InvalidArgument"
    assert named in message


def test_knows_the_applications_of_all_regions(anna: Client) -> None:
    """The service accepts Japan's own application id."""
    assert anna.login(applicationId=JAPANESE_ID).status_code == 200


def test_has_the_headers_of_the_real_one(anna: Client, clock: Clock) -> None:
    """Date is the service's time, Server is Cloudflare, and reads are chunked."""
    clock.time = NOON + 0.9
    answer = anna.read(count=1)
    assert answer.headers["Date"] == "Sat, 19 Apr 2025 12:00:00 GMT"
    assert answer.headers["server"] == "cloudflare"
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Transfer-Encoding"] == "chunked"


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip, deflate", "gzip"), ("identity", None)])
def test_compresses_when_asked(anna: Client, accepted: str, encoding: str | None) -> None:
    """Answers are compressed with gzip if the client accepts it."""
    anna.http.headers["Accept-Encoding"] = accepted
    answer = anna.read()
    assert answer.headers.get("Content-Encoding") == encoding
    assert len(answer.json()) > 280


def test_keeps_the_connection(share: SimulatedShare) -> None:
    """Several calls can use one connection, even after errors."""
    sockets = set()
    with contextlib.closing(http.client.HTTPConnection(share.base_url.split("/")[2])) as connection:
        for _ in range(3):
            connection.request("POST", "/ShareWebServices/Services/General/LoginPublisherAccountById", "{}")
            connection.getresponse().read()
            sockets.add(connection.sock)
    assert len(sockets) == 1
    assert None not in sockets


def test_knows_no_other_call(anna: Client) -> None:
    """Another path gives 404, and another method an error."""
    assert anna.post("General/SystemUtcTime").status_code == 404
    assert anna.http.get(anna.share.base_url, timeout=5).status_code >= 400


# Readings


def test_readings_come_every_five_minutes(anna: Client) -> None:
    """A day has 287 or 288 readings, newest first, 300 s apart to within a second."""
    times = anna.times()
    assert len(times) in (287, 288)
    assert all(299_000 <= newer - older <= 301_000 for newer, older in pairwise(times))
    assert times[0] > NOON * 1000 - 320_000


def test_readings_differ_only_between_accounts(anna: Client, ben: Client, clock: Clock) -> None:
    """Every service has the same readings for the same account; another account has different ones."""
    with SimulatedShare([ANNA], clock) as again, Client(again) as client:
        client.login()
        assert client.readings() == anna.readings()
    assert [each["Value"] for each in anna.readings()] != [each["Value"] for each in ben.readings()]


def test_limits_by_minutes_and_count(anna: Client) -> None:
    """Both limits apply, and the newest readings are returned."""
    assert len(anna.readings(minutes=60)) in (11, 12)
    assert anna.readings(minutes=60, count=3) == anna.readings()[:3]


@pytest.mark.parametrize(("minutes", "count"), [(1441, 288), (1440, 289), (-1, 1), (10, "many")])
def test_refuses_limits_out_of_range(anna: Client, minutes: object, count: object) -> None:
    """More than a day, more than 288, and anything but a number are invalid arguments."""
    assert refused(anna.read(minutes, count))[0] == "InvalidArgument"


def test_readings_arrive_some_seconds_late(anna: Client, clock: Clock) -> None:
    """A reading arrives at least 8 s after it was taken, and about 10 s on average."""
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
    """The delay can be any function of a random number."""
    account = SimulatedAccount("far", "pw", delay=lambda u: 60 + 10 * u)
    delays = [each.arrives - each.taken / 1000 for each in sim.series(account, NOON, NOON + 86400)]
    assert min(delays) >= 59.9
    assert max(delays) <= 70.1
    assert len({round(delay, 3) for delay in delays}) > 200


def test_readings_begin_a_day_before_the_service(anna: Client, clock: Clock) -> None:
    """There are always 24 hours of readings, even at the start."""
    clock.time = NOON + 3 * 86400
    anna.login()
    assert len(anna.times()) in (287, 288)


def test_returns_added_readings_unchanged(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """An added reading is returned from its arrival on, even if it is late or in the future, and is never distorted."""
    share.distort(share_faults.missing)
    late = Record(round(NOON - 3600) * 1000, 100, "SingleUp", arrives=NOON + 60)
    future = Record(round(NOON + 7200) * 1000, 120)
    share.add(ANNA.username, late, future)
    assert anna.times() == [future.taken]
    clock.time = NOON + 60
    assert anna.times() == [future.taken, late.taken]


def test_drops_old_added_readings(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """Old added readings are dropped."""
    for day in range(30):
        clock.time = NOON + day * 86400
        share.add(ANNA.username, Record(round(clock.time) * 1000, 100))
    share.distort(share_faults.missing)
    anna.login()
    assert len(anna.times()) == 1
    assert len(share._publishers[ANNA.username].added) <= 3  # noqa: SLF001  # memory is the point


# Sessions and lock-outs


def test_sessions_end_after_a_day(anna: Client, clock: Clock) -> None:
    """After its lifetime a session is not valid; a new sign-in gives another."""
    clock.time = NOON + 86399
    assert anna.read().status_code == 200
    clock.time = NOON + 86400
    code, message = refused(anna.read())
    assert code == "SessionNotValid"
    assert message == f"Session not active or timed out. [SessionId = {anna.session_id}]"
    anna.login()
    assert anna.read().status_code == 200


def test_sessions_can_be_dropped(anna: Client, ben: Client, share: SimulatedShare) -> None:
    """Sessions can be forgotten or ended for one account or for all."""
    share.drop_sessions(ANNA.username)
    assert refused(anna.read())[0] == "SessionIdNotFound"
    assert ben.read().status_code == 200
    share.expire_sessions(BEN.username)
    assert refused(ben.read())[0] == "SessionNotValid"
    share.drop_sessions()
    assert refused(ben.read())[0] == "SessionIdNotFound"


def test_old_sessions_are_dropped(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """After four sign-ins a day for a month, only recent sessions are kept."""
    for quarter in range(4 * 30):
        clock.time = NOON + quarter * 6 * 3600
        anna.login()
    assert len(share._sessions) < 12  # noqa: SLF001  # memory is the point


def test_locks_after_five_rejections(anna: Client, clock: Clock) -> None:
    """After five wrong passwords even the correct one is rejected for 15 minutes."""
    for _ in range(5):
        assert refused(anna.login(password="wrong"))[0] == "AccountPasswordInvalid"
    assert "MaxAttempts" in refused(anna.authenticate())[0]
    clock.time = NOON + 900
    assert anna.login().status_code == 200


def test_each_try_renews_the_lock(anna: Client, clock: Clock) -> None:
    """Every further try renews the lock-out."""
    for _ in range(5):
        anna.login(password="wrong")
    for minutes in (10, 20, 30):
        clock.time = NOON + minutes * 60
        assert "MaxAttempts" in refused(anna.login())[0]
    clock.time = NOON + 45 * 60
    assert anna.login().status_code == 200


def test_success_resets_rejections(anna: Client, ben: Client) -> None:
    """A correct password resets the count, and other accounts are not affected."""
    for _ in range(3):
        for _ in range(4):
            anna.login(password="wrong")
        assert anna.login().status_code == 200
    assert ben.login().status_code == 200


def test_lock_is_configurable(clock: Clock) -> None:
    """The number of rejections and the length of the lock-out can be chosen."""
    with SimulatedShare([ANNA], clock, max_rejections=2, lock_seconds=60) as share, Client(share) as client:
        client.login(password="wrong")
        client.login(password="wrong")
        assert "MaxAttempts" in refused(client.login())[0]
        clock.time += 60
        assert client.login().status_code == 200
        client.http.close()


# The log


def test_logs_every_request(anna: Client, clock: Clock, share: SimulatedShare) -> None:
    """The log has the time, the account, the call, its limits, and the outcome."""
    clock.time = NOON + 5
    anna.read(minutes=30, count=7)
    anna.authenticate(accountName="nobody")
    share.fault = share_faults.status(429)
    anna.read()
    read, rejected, limited = share.requests[-3:]
    assert read == sim.LoggedRequest(NOON + 5, "read", ANNA.username, 30, 7, False, 200, "ok")  # noqa: FBT003  # a whole entry
    assert (rejected.call, rejected.account, rejected.outcome) == ("authenticate", None, "AccountPasswordInvalid")
    assert (limited.status, limited.outcome) == (429, "429")


def test_counts_requests(anna: Client, ben: Client, clock: Clock, share: SimulatedShare) -> None:
    """Requests can be counted by any of their properties, such as whether they carried a password."""
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
    """A hundred accounts can sign in and read a day at the same moment."""
    accounts = [SimulatedAccount(f"user{number}", "pw", seed=number) for number in range(100)]
    lengths: list[int] = []

    def use(share: SimulatedShare, account: SimulatedAccount) -> None:
        with Client(share, account) as client:
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


def test_outage_is_close_and_start(anna: Client, share: SimulatedShare) -> None:
    """A closed service refuses connections; started again it is the same one on the same port."""
    before = anna.readings()
    share.close()
    with pytest.raises(requests.ConnectionError):
        anna.read()
    share.start()
    assert anna.readings() == before


# As a process of its own


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_runs_as_a_process(stop: signal.Signals) -> None:
    """The process prints its base URL when ready, runs a fast clock, and ends with 0 on a signal."""
    command = [sys.executable, "-m", "dexcom2mqtt.demo.share_service", "--speed", "3600"]
    account = ["--username", "anna", "--password", "pw", "--account-id", ANNA.account_id]
    with subprocess.Popen([*command, *account], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        login = {"accountId": ANNA.account_id, "password": "pw", "applicationId": APPLICATION_ID}
        answer = requests.post(f"{url}/General/LoginPublisherAccountById", json=login, timeout=5)
        assert str(uuid.UUID(answer.json())) == answer.json()
        process.send_signal(stop)
        assert process.wait(20) == 0


def test_clock_runs_faster() -> None:
    """An accelerated clock begins at the real time and runs faster."""
    now = sim.accelerated(1000)
    assert now() == pytest.approx(time.time(), abs=60)
    began = now()
    time.sleep(0.05)
    assert 50 <= now() - began < 1000
