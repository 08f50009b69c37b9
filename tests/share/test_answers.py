"""The client of Dexcom Share over real HTTP: it understands every answer, ends in time, and tells no secret."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.server
import itertools
import json
import logging
import re
import socket
import socketserver
import ssl
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote, quote_plus

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from dexcom2mqtt import share
from dexcom2mqtt.clock import Clock
from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.demo.share_service import Fault, Request, Respond, Response, SimulatedAccount, SimulatedShare
from dexcom2mqtt.logs import set_up_logging
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.share import (
    ArgumentError,
    Batch,
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    Region,
    ShareClient,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
    transport,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW: Final = 1_745_081_000.0
"""The service's time stands still, so that each of its answers is known."""
MIB: Final = 2**20

# Names and passwords with characters that each way of writing them down writes differently.
ANNA = SimulatedAccount("zoë.quokka+cgm@example.com", 'wörd & "p/ss\\%+', zone_offset_min=330)
QUINN = SimulatedAccount("quinn quokka", "qüokka=&päss", seed=2, legacy=True)
KIM = SimulatedAccount("+15550123456", "0123 ü/quokka", seed=3)
ACCOUNTS: Final = (ANNA, QUINN, KIM)

AUTHENTICATE, LOGIN, READ = "authenticate", "login", "read"
SIGN_IN = [AUTHENTICATE, LOGIN]

# No secret, however written

_ID: Final = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_WRITTEN: Final[list[Callable[[str], str]]] = [
    str,
    quote,
    quote_plus,
    lambda secret: quote(secret, safe=""),
    lambda secret: json.dumps(secret)[1:-1],
    lambda secret: repr(secret)[1:-1],
]


def secrets_in(text: str) -> set[str]:
    """Return what a text holds of user names, passwords and ids, also in base64; any id counts as a secret."""
    texts = [text, *_decoded(text)]
    known = {secret for account in ACCOUNTS for secret in (account.username, account.password)}
    found = {secret for secret in known for write in _WRITTEN if any(write(secret) in each for each in texts)}
    return found | {match.group() for each in texts for match in _ID.finditer(each)}


def _decoded(text: str) -> Iterator[str]:
    for run in _BASE64.findall(text):
        standard = run.translate({ord("-"): "+", ord("_"): "/"})
        for start in range(4):  # it may follow other characters that base64 uses too
            length = len(standard) - start
            padded = standard[start : len(standard) - (length % 4 == 1)] + "=" * (-length % 4 % 3)
            yield base64.b64decode(padded).decode("utf-8", "replace")


def check_silence(error: ShareError) -> None:
    """Check that nothing of an error tells a secret, nor leads to a library's error, which may at any time."""
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert not secrets_in("\n".join([str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]))


Error = TypeVar("Error", bound=ShareError)


def failure(kind: type[Error], call: Callable[[], object]) -> Error:
    """Return the error of exactly this kind that the call raises; nothing of it tells a secret."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    check_silence(error)
    # The frames would keep a broken connection open until the next collection of garbage.
    del caught
    error.__context__ = None
    return error.with_traceback(None)


@pytest.fixture(autouse=True)
def _no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log everything with the daemon's own settings; none of it tells a secret."""
    set_up_logging("debug")
    caplog.set_level(logging.DEBUG)
    yield
    for name in ("dexcom2mqtt", "urllib3"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    log = "\n".join(map(logging.Formatter().format, caplog.get_records("call")))
    assert not secrets_in(log)


# The service, and what can go wrong


@pytest.fixture
def service() -> Iterator[SimulatedShare]:
    with SimulatedShare(ACCOUNTS, lambda: NOW) as service:
        yield service


@pytest.fixture
def client(service: SimulatedShare) -> ShareClient:
    """Return a client that is signed in and has read once."""
    client = client_of(service)
    client.fetch()
    assert asked(service, client) == [*SIGN_IN, READ]
    return client


def client_of(service: SimulatedShare, account: SimulatedAccount = ANNA, **options: Any) -> ShareClient:
    who = {"username": account.username, "password": account.password, "base_url": service.base_url}
    return ShareClient(**(who | options))


def host(server: SimulatedShare | LittleServer) -> str:
    """Return how an error names a server: with its port."""
    return (server.base_url if isinstance(server, SimulatedShare) else server.url).split("/")[2]


def asked(service: SimulatedShare, client: ShareClient) -> list[str]:
    """Return the calls that the service got: exactly as many as the client counted."""
    log = service.requests
    assert client.requests == len(log)
    assert client.logins == sum(request.password for request in log)
    return [request.call for request in log]


def readings_of(account: SimulatedAccount, minutes: int = 1440) -> tuple[Reading, ...]:
    """Return what Share knows of an account, oldest first."""
    return tuple(
        Reading(record.value, record.trend, record.taken, account.zone_offset_min)
        for record in sim.series(account, NOW - minutes * 60, NOW)
        if record.arrives <= NOW
    )


def read(fault: Fault) -> Fault:
    """Let something go wrong with reads alone."""
    return sim.only(fault, call=READ)


def answer(content: bytes, status: int = 200, **headers: str | None) -> Fault:
    """Answer with exactly these bytes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request, _respond: Response(status, content, named, compress=False)


def raw(content: bytes, *, close: bool = False) -> Fault:
    """Put exactly these bytes on the connection in place of an answer."""

    def deliver(connection: socket.socket, _head: bytes, _content: bytes) -> bool:
        connection.sendall(content)
        return not close

    return lambda _request, _respond: Response(delivery=deliver)


def head(*lines: str, status: int = 200) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} As It Is", *lines, "", ""]).encode("latin-1")


def chunked(content: bytes) -> bytes:
    return head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


def without_end(piece: bytes) -> Fault:
    """Send the same again and again, until the client has enough."""

    def deliver(connection: socket.socket, _head: bytes, _content: bytes) -> bool:
        try:
            while True:
                connection.sendall(piece * 1000)
        except ConnectionError:
            return False

    return lambda _request, _respond: Response(delivery=deliver)


def fault_of(code: object, message: object = "", status: int = 500) -> Fault:
    content = {"Code": code, "Message": message, "SubCode": "{}", "TypeName": "FaultException"}
    return answer(json.dumps(content).encode(), status)


def listen(heard: list[Request]) -> Fault:
    """Answer as the service does, and remember what was asked."""

    def fault(request: Request, respond: Respond) -> Response:
        heard.append(request)
        return respond(request)

    return fault


@contextmanager
def takes(at_least: float, at_most: float) -> Iterator[None]:
    """Check how many real seconds it takes."""
    start = time.monotonic()
    yield
    assert at_least <= time.monotonic() - start <= at_most


# Signing in


@pytest.mark.parametrize(
    ("who", "account", "steps"),
    [
        pytest.param({"username": QUINN.username}, QUINN, SIGN_IN, id="user name"),
        pytest.param({"username": ANNA.username}, ANNA, SIGN_IN, id="e-mail"),
        pytest.param({"username": KIM.username}, KIM, SIGN_IN, id="phone number"),
        pytest.param({"account_id": ANNA.account_id}, ANNA, [LOGIN], id="account id"),
        pytest.param({"account_id": ANNA.account_id.upper()}, ANNA, [LOGIN], id="account id in capitals"),
    ],
)
def test_signs_in(service: SimulatedShare, who: dict[str, Any], account: SimulatedAccount, steps: list[str]) -> None:
    """A user name, an e-mail, a phone number or an account id opens a session, each in as few steps as it takes."""
    client = ShareClient(**who, password=account.password, base_url=service.base_url)
    assert client.sign_in_requests == len(steps)
    assert client.fetch().readings == readings_of(account)
    assert asked(service, client) == [*steps, READ]
    assert client.signed_in
    assert client.sign_in_requests == 1


@pytest.mark.parametrize(
    ("region", "url", "application_id"),
    [
        ("us", "https://share2.dexcom.com/ShareWebServices/Services", "d89443d2-327c-4a6f-89e5-496bbb0317db"),
        ("ous", "https://shareous1.dexcom.com/ShareWebServices/Services", "d89443d2-327c-4a6f-89e5-496bbb0317db"),
        ("jp", "https://share.dexcom.jp/ShareWebServices/Services", "d8665ade-9673-4e27-9ff6-92db4ce13d13"),
    ],
)
@pytest.mark.parametrize("given_url", [True, False])
def test_asks_the_servers_of_the_region(
    service: SimulatedShare,
    monkeypatch: pytest.MonkeyPatch,
    region: Region,
    url: str,
    application_id: str,
    given_url: bool,
) -> None:
    """Each region has its server, which another base URL may stand in for, and its application id."""
    assert share.BASE_URLS[region] == url
    assert ShareClient(username="a", password="b", region=region).host == url.split("/")[2]
    heard: list[Request] = []
    service.fault = listen(heard)
    monkeypatch.setitem(share.BASE_URLS, region, "http://region.invalid" if given_url else service.base_url)
    client = client_of(service, region=region, base_url=f"{service.base_url}/" if given_url else None)
    client.fetch(30, 5)
    secrets = {"password": ANNA.password, "applicationId": application_id}
    assert [(request.call, dict(request.fields)) for request in heard] == [
        (AUTHENTICATE, {"accountName": ANNA.username} | secrets),
        (LOGIN, {"accountId": ANNA.account_id} | secrets),
        (READ, {}),
    ]
    assert [sorted(request.query) for request in heard] == [[], [], ["maxCount", "minutes", "sessionId"]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"password": "b"},
        {"username": "a", "account_id": ANNA.account_id, "password": "b"},
        {"username": "", "password": "b"},
        {"username": "a", "password": ""},
        {"account_id": "", "password": "b"},
        {"account_id": "anna", "password": "b"},
        {"account_id": sim.ZERO_UUID, "password": "b"},
        {"account_id": ANNA.account_id.replace("-", ""), "password": "b"},
        {"username": "a", "password": "b", "region": "eu"},
        {"username": "a", "password": "b", "base_url": "share2.dexcom.com"},
        {"username": "a", "password": "b", "base_url": "ftp://share2.dexcom.com"},
        {"username": "a", "password": "b", "base_url": "https://[::1"},
        {"username": "a", "password": "b", "base_url": "https://localhost:99999"},
        {"username": "a", "password": "b", "base_url": "https:///Services"},
    ],
    ids=str,
)
def test_refuses_what_cannot_sign_in(arguments: dict[str, Any]) -> None:
    """Arguments that do not fit are refused at once, and as a ValueError too."""
    assert isinstance(failure(ArgumentError, lambda: ShareClient(**arguments)), ValueError)


def test_sends_nothing_before_it_is_asked_to(service: SimulatedShare) -> None:
    """Making a client sends nothing."""
    client = client_of(service)
    assert asked(service, client) == []
    assert not client.signed_in


REJECTIONS = [
    ("AccountPasswordInvalid", "Publisher account password failed"),
    ("SSO_InternalError", f"Time out issue. Msg=Cannot Authenticate by AccountName='{ANNA.username}'"),
    ("SSO_InternalError", f"Time out issue. Msg=Cannot Authenticate by AccountId='{ANNA.account_id}'"),
    ("InvalidArgument", f"Missing required field(s): accountName {ANNA.username}"),
    ("InvalidArgument", f"Missing required field(s): password {ANNA.password}"),
    ("InvalidArgument", f"Cannot deserialize UUID from String {ANNA.account_id}"),
    ("SSO_AuthenticateAccountNotFound", ""),
    ("SSO_AuthenticatePasswordInvalid", ""),
]


@pytest.mark.parametrize("call", SIGN_IN)
@pytest.mark.parametrize(
    "fault",
    [sim.zero_uuid(), *itertools.starmap(sim.error, REJECTIONS)],
    ids=["zero UUID", *(code for code, _ in REJECTIONS)],
)
def test_tells_rejected_credentials(service: SimulatedShare, fault: Fault, call: str) -> None:
    """Every way in which Share rejects credentials is understood, at either step, and costs no further request."""
    service.fault = sim.only(fault, call=call)
    client = client_of(service)
    failure(CredentialsRejectedError, client.fetch)
    assert asked(service, client) == SIGN_IN[: SIGN_IN.index(call) + 1]
    assert not client.signed_in


@pytest.mark.parametrize(
    "who",
    [
        {"password": f"not {ANNA.password}"},
        {"username": f"not {ANNA.username}"},
        {"username": KIM.username.removeprefix("+"), "password": KIM.password},
        {"username": None, "account_id": "11111111-1111-1111-1111-111111111111"},
        {"username": None, "account_id": ANNA.account_id, "password": KIM.password},
    ],
    ids=["password", "user name", "phone number without +", "account id", "password of another"],
)
def test_tells_wrong_credentials(service: SimulatedShare, who: dict[str, Any]) -> None:
    """A wrong user name, password, phone number or account id is one rejected request."""
    client = client_of(service, **who)
    failure(CredentialsRejectedError, client.fetch)
    assert (client.requests, client.logins) == (1, 1)


@pytest.mark.parametrize("call", SIGN_IN)
@pytest.mark.parametrize(
    "code",
    [
        "SSO_AuthenticateMaxAttemptsExceeded",
        "SSO_AuthenticateMaxAttemptsExceeed",
        "SSO_AUTHENTICATEMAXATTEMPTSEXCEEDED",
        "MaxAttempts",
    ],
)
def test_tells_a_lock_out(service: SimulatedShare, code: str, call: str) -> None:
    """A lock-out is told by MaxAttempts in the code, however the rest is spelt."""
    service.fault = sim.only(sim.error(code, "Maximum authentication attempts exceeded"), call=call)
    client = client_of(service)
    failure(LockedOutError, client.fetch)
    assert asked(service, client) == SIGN_IN[: SIGN_IN.index(call) + 1]


def test_is_locked_out_after_rejections(service: SimulatedShare) -> None:
    """Too many wrong passwords end in a lock-out, which the right password does not open."""
    wrong = client_of(service, password="wrong")
    for _ in range(5):
        failure(CredentialsRejectedError, wrong.fetch)
    failure(LockedOutError, wrong.fetch)
    failure(LockedOutError, client_of(service).fetch)


@pytest.mark.parametrize("call", [*SIGN_IN, READ])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("SSO_InternalError", "Synchronization of SSO account during authenticate call failed Time out issue."),
        ("SSO_InternalError", None),
        ("SSO_InternalError", ["Cannot Authenticate", "by"]),
        ("OnlineException", f"{ANNA.username} {ANNA.password} {ANNA.account_id}"),
        ("OnlineException", "Cannot Authenticate by AccountName"),
        ("accountpasswordinvalid?", ""),
        ("", ""),
        (None, None),
        (5, {}),
        ({"AccountPasswordInvalid": 1}, ""),
    ],
    ids=str,
)
def test_takes_other_errors_for_the_servers_own(
    service: SimulatedShare, call: str, code: object, message: object
) -> None:
    """An error that does not speak of the credentials is no rejection of them."""
    service.fault = sim.only(fault_of(code, message), call=call)
    client = client_of(service)
    failure(UnavailableError, client.fetch)
    assert asked(service, client)[-1] == call


@pytest.mark.parametrize("call", SIGN_IN)
@pytest.mark.parametrize(
    "fault",
    [
        *map(sim.body, [b"", b"null", b"[]", b"5", b'"', b'""', b'"anna"', b'{"id": 1}', b"\xff"]),
        answer(f'"{ANNA.account_id[:-1]}"'.encode()),
        answer(f'["{ANNA.account_id}"]'.encode()),
        answer(f'"{ANNA.account_id}&x=y"'.encode()),
        answer(f'"{{{ANNA.account_id}}}"'.encode()),
        sim.error("SessionIdNotFound"),
        sim.error("SessionNotValid"),
    ],
)
def test_signs_in_with_ids_alone(service: SimulatedShare, fault: Fault, call: str) -> None:
    """An answer to a sign-in that is no id is not taken for one, and not tried again."""
    service.fault = sim.only(fault, call=call)
    client = client_of(service)
    failure(UnexpectedResponseError, client.fetch)
    assert asked(service, client) == SIGN_IN[: SIGN_IN.index(call) + 1]
    assert not client.signed_in


def test_keeps_the_account_id_though_the_login_fails(service: SimulatedShare) -> None:
    """The first step is not repeated when it was the second that failed."""
    service.fault = sim.only(sim.html(503), call=LOGIN, times=1)
    client = client_of(service)
    failure(UnavailableError, client.fetch)
    assert client.sign_in_requests == 1
    client.fetch()
    assert asked(service, client) == [*SIGN_IN, LOGIN, READ]


# Sessions


def _answer_once(fault: Fault) -> Callable[[SimulatedShare], None]:
    def lose(service: SimulatedShare) -> None:
        service.fault = sim.only(fault, call=READ, times=1)

    return lose


LOSSES: Final[list[Any]] = [
    pytest.param(lambda service: service.drop_sessions(), id="SessionIdNotFound"),
    pytest.param(lambda service: service.expire_sessions(), id="SessionNotValid"),
    pytest.param(_answer_once(sim.error("SessionNotValid", "Error in the application.")), id="application"),
    pytest.param(_answer_once(sim.body(b"")), id="empty body"),
    pytest.param(_answer_once(sim.error(*REJECTIONS[0])), id="AccountPasswordInvalid"),
    pytest.param(_answer_once(sim.error("InvalidArgument", "UUID")), id="InvalidArgument"),
]


@pytest.mark.parametrize("lose", LOSSES)
def test_renews_a_lost_session(
    service: SimulatedShare, client: ShareClient, lose: Callable[[SimulatedShare], None]
) -> None:
    """A lost session costs one login and no second authentication, and the readings come all the same."""
    lose(service)
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[3:] == [READ, LOGIN, READ]
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[6:] == [READ]


@pytest.mark.parametrize("lose", LOSSES)
def test_renews_no_session_when_told_not_to(
    service: SimulatedShare, client: ShareClient, lose: Callable[[SimulatedShare], None]
) -> None:
    """Without leave to renew, a lost session is told after one request; the next fetch signs in by id."""
    lose(service)
    failure(UnavailableError, lambda: client.fetch(renew=False))
    assert asked(service, client)[3:] == [READ]
    assert not client.signed_in
    client.fetch(renew=False)
    assert asked(service, client)[4:] == [LOGIN, READ]


@pytest.mark.parametrize(
    "fault",
    [sim.error("SessionIdNotFound"), sim.error("SessionNotValid"), sim.body(b""), sim.error(*REJECTIONS[0])],
)
def test_renews_a_session_once(service: SimulatedShare, client: ShareClient, fault: Fault) -> None:
    """A session that is lost again at once is not renewed again."""
    service.fault = read(fault)
    failure(UnavailableError, client.fetch)
    assert asked(service, client)[3:] == [READ, LOGIN, READ]
    assert not client.signed_in
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[6:] == [LOGIN, READ]


def test_renews_the_session_of_a_known_account_id(service: SimulatedShare) -> None:
    """A client that was given the account id never authenticates."""
    client = client_of(service, username=None, account_id=ANNA.account_id)
    client.fetch()
    service.drop_sessions()
    client.fetch()
    assert asked(service, client) == [LOGIN, READ, READ, LOGIN, READ]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (sim.password_changed(), CredentialsRejectedError),
        (sim.error("SSO_AuthenticateMaxAttemptsExceeded"), LockedOutError),
        (sim.status(429), RateLimitedError),
        (sim.html(502), UnavailableError),
        (sim.body(b"{}"), UnexpectedResponseError),
    ],
)
def test_tells_why_a_session_could_not_be_renewed(
    service: SimulatedShare, client: ShareClient, fault: Fault, kind: type[ShareError]
) -> None:
    """What goes wrong while a session is renewed is told as at the first sign-in, after one try."""
    service.drop_sessions()
    service.fault = sim.only(fault, call=LOGIN)
    failure(kind, client.fetch)
    assert asked(service, client)[3:] == [READ, LOGIN]
    assert not client.signed_in


# Readings


@pytest.mark.parametrize("name", ["minutes", "max_count"])
def test_refuses_what_share_cannot_give(service: SimulatedShare, name: str) -> None:
    """What is no whole number within Share's bounds is refused, as a ValueError too, and nothing is sent."""
    client = client_of(service)
    too_many = {"minutes": 1441, "max_count": 289}[name]
    numbers: list[Any] = [0, -1, too_many, 2**70, True, False, 5.0, float("nan"), "5", b"5", None, [5]]
    for number in numbers:
        for call in (client.readings, client.fetch):
            error = failure(ArgumentError, partial(call, **{name: number}))
            assert isinstance(error, ValueError)
            assert str(error) == f"{name} must be a whole number from 1 to {too_many - 1}"
    assert asked(service, client) == []


@pytest.mark.parametrize(("minutes", "max_count"), [(1, 1), (1, 288), (1440, 1), (1440, 288), (10, 3)])
def test_asks_for_so_many_minutes_and_readings(
    service: SimulatedShare, client: ShareClient, minutes: int, max_count: int
) -> None:
    """The newest of the minutes asked for come, at most as many as asked for, newest first."""
    expected = list(reversed(readings_of(ANNA, minutes)))[:max_count]
    assert client.readings(minutes, max_count) == expected
    request = service.requests[-1]
    assert (request.minutes, request.max_count) == (minutes, max_count)


@pytest.mark.parametrize("account", ACCOUNTS, ids=["today", "before 2021-12", "west of Greenwich"])
def test_reads_both_formats(service: SimulatedShare, account: SimulatedAccount) -> None:
    """Value, direction, instant and zone are those of the sensor, in today's format and in the one before it."""
    client = client_of(service, account)
    batch = client.fetch()
    assert len(batch.readings) > 280
    assert batch == Batch(readings_of(account))
    newest = client.readings(1440, 1)[0]
    assert newest.json is not None
    assert newest.json["WT"] == ("/Date({})/" if account.legacy else "Date({})").format(newest.date)


def test_reads_the_recorded_records(service: SimulatedShare, client: ShareClient) -> None:
    """The records that were recorded from the service are read as what they are."""
    service.fault = read(
        sim.body(
            b'[{"WT":"Date(1745081013817)","ST":"Date(1745081013817)","DT":"Date(1745081013817-0400)",'
            b'"Value":224,"Trend":"Flat"},'
            b'{"DT":"/Date(1426292016000-0700)/","ST":"/Date(1426295616000)/","Trend":4,"Value":101,'
            b'"WT":"/Date(1426292039000)/"}]'
        )
    )
    assert client.fetch().readings == (
        Reading(101, "Flat", 1_426_292_039_000, -420),
        Reading(224, "Flat", 1_745_081_013_817, -240),
    )


def test_knows_the_latest_and_the_current_reading(client: ShareClient) -> None:
    """The latest reading is the newest of the day; the current one is the same while it is fresh."""
    newest = readings_of(ANNA)[-1]
    assert client.latest_reading() == newest
    assert client.current_reading() == newest


@pytest.mark.parametrize("minutes", [10, 23 * 60])
def test_knows_no_current_reading_where_the_newest_is_old(
    service: SimulatedShare, client: ShareClient, minutes: int
) -> None:
    """A reading of more than ten minutes ago is the latest, and not current."""
    begin = NOW - minutes * 60
    service.distort(sim.during(begin, NOW, sim.missing))
    assert client.latest_reading() == [each for each in readings_of(ANNA) if each.date < begin * 1000][-1]
    assert client.current_reading() is None


def test_takes_the_stamp_of_the_phone_for_the_time(service: SimulatedShare, client: ShareClient) -> None:
    """What a phone whose clock is an hour ahead uploaded an hour ago passes for current, as the docstring says."""
    service.distort(sim.missing)
    taken = round((NOW - 60) * 1000)
    service.add(ANNA.username, sim.Record(taken, 100, arrives=NOW - 3600))
    assert client.current_reading() == Reading(100, "Flat", taken, 330)
    assert "clock is wrong" in (ShareClient.current_reading.__doc__ or "")


def test_knows_that_nothing_is_shared(service: SimulatedShare, client: ShareClient) -> None:
    """That an account shares nothing is an answer without readings that says so, and the session stays."""
    service.fault = read(sim.error("MonitoredReceiverNotAssigned", "no receiver"))
    assert client.fetch() == Batch(nothing_shared=True)
    assert client.readings() == []
    assert client.latest_reading() is None
    assert client.current_reading() is None
    client.ask_time()
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)
    assert service.count(call=LOGIN) == 1


@pytest.mark.parametrize("call", SIGN_IN)
def test_a_sign_in_says_nothing_of_sharing(service: SimulatedShare, call: str) -> None:
    """The same words in answer to a sign-in are a fault like any other that nobody knows."""
    service.fault = sim.only(sim.error("MonitoredReceiverNotAssigned"), call=call)
    client = client_of(service)
    error = failure(UnavailableError, client.fetch)
    assert str(error) == f"{host(service)} answered with status 500"
    assert not client.signed_in


def test_knows_no_reading_where_there_is_none(service: SimulatedShare, client: ShareClient) -> None:
    """Where Share has nothing, there is nothing, and nothing is wrong."""
    service.distort(sim.missing)
    assert client.fetch() == Batch()
    assert client.readings() == []
    assert client.latest_reading() is None
    assert client.current_reading() is None


@pytest.mark.parametrize("value", [0, 5, 12, 38])
def test_sets_error_codes_apart(service: SimulatedShare, client: ShareClient, value: int) -> None:
    """Values below 39 are errors of the sensor and no readings; their times are told, oldest first."""
    expected = readings_of(ANNA)
    service.distort(sim.during(NOW - 3600, NOW, sim.valued(value)))
    before = [reading for reading in expected if reading.date < (NOW - 3600) * 1000]
    after = [reading.date for reading in expected if reading.date >= (NOW - 3600) * 1000]
    assert len(after) > 5
    assert client.fetch() == Batch(tuple(before), tuple(after))


@pytest.mark.parametrize("value", [39, 40, 401])
def test_keeps_low_and_high(service: SimulatedShare, client: ShareClient, value: int) -> None:
    """39, which means LOW, and 401, which means HIGH, are readings."""
    service.distort(sim.valued(value))
    batch = client.fetch()
    assert [reading.mg_dl for reading in batch.readings] == [value] * len(readings_of(ANNA))
    assert batch.error_codes == ()


GOOD: Final = {"WT": "Date(1745081013817)", "DT": "Date(1745081013817-0400)", "Value": 224, "Trend": "Flat"}
NO_ZONE: Final = {**GOOD, "DT": "Date(1745081013817)"}
MALFORMED: Final[list[object]] = [
    *(None, 5, "Date(5)", [], [GOOD], {}),
    {key: value for key, value in GOOD.items() if key != "Value"},
    {key: value for key, value in NO_ZONE.items() if key != "WT"},
    *({**NO_ZONE, "WT": instant} for instant in (None, 1745081013817, "", "Date()", "Date(x)", "Date(99999999999999)")),
    *({**GOOD, "Value": number} for number in (None, " 224", True, 224.5, float("nan"), float("inf"), -1e300, 99999)),
]


@pytest.mark.parametrize("malformed", MALFORMED, ids=repr)
def test_a_malformed_record_costs_itself_alone(service: SimulatedShare, client: ShareClient, malformed: object) -> None:
    """A record that makes no sense is counted, and every other reading of the answer is kept."""
    service.fault = read(sim.edited(lambda records: [malformed, *records[:50], malformed, *records[50:], malformed]))
    assert client.fetch() == Batch(readings_of(ANNA), malformed=3, newest_malformed=True)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        pytest.param(lambda records: [None, *records[1:]], True, id="the newest"),
        pytest.param(lambda records: [None, None, *records[2:]], True, id="the two newest"),
        pytest.param(lambda records: [records[0], None, *records[2:]], False, id="the one before it"),
        pytest.param(lambda records: [*records[:-1], None], False, id="the oldest"),
        pytest.param(lambda records: [None] * len(records), False, id="all"),
        pytest.param(lambda _: [], False, id="none there"),
        pytest.param(lambda records: records, False, id="none malformed"),
        pytest.param(lambda records: [None, {**records[1], "Value": 5}], True, id="before an error code"),
    ],
)
def test_tells_that_the_newest_record_is_malformed(
    service: SimulatedShare, client: ShareClient, edit: Callable[[Any], object], told: bool
) -> None:
    """That the first record makes no sense is told, as long as any other does."""
    service.fault = read(sim.edited(edit))
    assert client.fetch().newest_malformed is told


def as_text(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "Value": str(record["Value"])}


def in_dt_alone(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "WT": None}


@pytest.mark.parametrize("change", [as_text, in_dt_alone, lambda record: as_text(in_dt_alone(record))])
def test_reads_a_form_that_is_new(
    service: SimulatedShare, client: ShareClient, change: Callable[[dict[str, Any]], object]
) -> None:
    """Values as text and instants in DT alone are read as what they are, and how many there are is told."""
    service.fault = read(sim.edited(lambda records: [*map(change, records[:9]), *records[9:]]))
    assert client.fetch() == Batch(readings_of(ANNA), drifted=9)
    assert client.latest_reading() == readings_of(ANNA)[-1]


def test_error_codes_stay_error_codes_as_text(service: SimulatedShare, client: ShareClient) -> None:
    """A value below 39 is no reading either if it comes as text."""
    service.distort(sim.valued(38))
    service.fault = read(sim.edited(lambda records: [as_text(record) for record in records]))
    dates = tuple(reading.date for reading in readings_of(ANNA))
    assert client.fetch() == Batch(error_codes=dates, drifted=len(dates))


def test_a_number_without_end_costs_its_record_alone(service: SimulatedShare, client: ShareClient) -> None:
    """A number that Python refuses to read is as wrong as any other that no sensor shows."""
    digits = "9" * 5000
    record = json.dumps(GOOD)
    service.fault = read(answer(f'[{digits}, {{"Value": {digits}}}, {record}, {{"WT": -{digits}}}]'.encode()))
    good = (Reading(224, "Flat", 1_745_081_013_817, -240),)
    assert client.fetch() == Batch(good, malformed=3, newest_malformed=True)


def test_sorts_what_comes_in_any_order(service: SimulatedShare, client: ShareClient) -> None:
    """Readings are put in order, whatever order they come in."""
    service.fault = read(sim.edited(lambda records: records[::2] + records[::-2]))
    assert client.fetch().readings == readings_of(ANNA)
    assert client.readings() == list(reversed(readings_of(ANNA)))


# Answers


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("in_chunks", [True, False], ids=["chunked", "of known length"])
def test_reads_every_way_of_sending(
    service: SimulatedShare, client: ShareClient, in_chunks: bool, compress: bool
) -> None:
    """The answer may be compressed or not, in chunks or not: the client says that it can take both."""
    heard: list[Request] = []

    def sent(request: Request, respond: Respond) -> Response:
        return replace(respond(request), chunked=in_chunks, compress=compress)

    service.fault = sim.chain(listen(heard), read(sent))
    assert client.fetch().readings == readings_of(ANNA)
    assert [request.accepts_gzip for request in heard] == [True]


@pytest.mark.parametrize(
    "content",
    [
        head("Content-Length: 2") + b"[]",
        head("Connection: close") + b"[]",
        head("Transfer-Encoding: chunked") + b"1\r\n[\r\n1;x=y\r\n]\r\n0\r\nX: y\r\n\r\n",
        head(status=100) * 3 + head("Content-Length: 2") + b"[]",
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n[]",
        head("Content-Length: 2", "Set-Cookie: =;;; Expires=x; Domain=.", "Content-Type: x; charset") + b"[]",
        head("Content-Length: 4") + b" [] ",
        head("Content-Length: 5") + b"\xef\xbb\xbf[]",
    ],
)
def test_reads_a_plain_answer(service: SimulatedShare, client: ShareClient, content: bytes) -> None:
    """No reading, however it is sent, is no reading and no error."""
    service.fault = read(raw(content, close=b"Length" not in content))
    assert client.fetch() == Batch()


def test_is_not_misled_by_what_follows_an_answer(service: SimulatedShare, client: ShareClient) -> None:
    """Bytes that come after the end of an answer are not taken for the answer to what is asked next."""
    two = head("Content-Length: 2") + b"[]"
    service.fault = read(raw(two * 2))
    assert client.fetch() == Batch()
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)


DEEP: Final = b"[" * 100_000
DIGITS: Final = b"9" * 5000
BOMB: Final = gzip.compress(bytes(10 * MIB))
NOT_UNDERSTOOD: Final = {
    "null": sim.body(b"null"),
    "object": sim.body(b"{}"),
    "fault with 200": fault_of("AccountPasswordInvalid", status=200),
    "text": sim.body(b'"[]"'),
    "number": sim.body(b"5"),
    "true": sim.body(b"true"),
    "words": sim.body(b"Service is down"),
    "blank": sim.body(b" "),
    "HTML": sim.html(200),
    "half the JSON": sim.truncated(),
    "more than the JSON": sim.body(b"[]]"),
    "invalid UTF-8": sim.body(b'["\xff"]'),
    "half a character": sim.body("[1]".encode("utf-16")[:-1]),
    "deep": sim.body(DEEP),
    "deep objects": sim.body(b'{"":' * 100_000),
    "id": sim.zero_uuid(),
    "half of gzip": answer(gzip.compress(b"[]" * 1000)[:-12], Content_Encoding="gzip"),
    "gzip bomb": answer(BOMB, Content_Encoding="gzip"),
    "gzip bomb in gzip": answer(gzip.compress(BOMB), Content_Encoding="gzip, gzip"),
    "gzip bomb with 500": answer(BOMB, 500, Content_Encoding="gzip"),
    "gzip bomb with a redirect": answer(BOMB, 302, Content_Encoding="gzip", Location="/x"),
    "long": answer(b" " * (MIB + 1)),
    "long with 503": answer(b" " * (MIB + 1), 503),
    "long in chunks": raw(chunked(b" " * (MIB + 1))),
    "long in small chunks": raw(head("Transfer-Encoding: chunked") + b"1\r\n \r\n" * (MIB // 5)),
    "long without length": raw(head() + b" " * (MIB + 1)),
    "long headers": raw(head(*[f"X-{number}: {'y' * 60_000}" for number in range(20)])),
    "long trailers": raw(head("Transfer-Encoding: chunked") + b"0\r\n" + (b"X: " + b"y" * 60_000 + b"\r\n") * 20),
    "100 without end": without_end(head(status=100)),
    "blanks without end": without_end(head() + b" "),
}
OUT_OF_ORDER: Final = {
    **{f"HTML with {status}": sim.html(status) for status in (400, 401, 403, 404, 500, 502, 503, 504, 520)},
    **{f"nothing with {status}": sim.status(status) for status in (201, 204, 304, 500, 503)},
    "null with 500": sim.status(500, content=b"null"),
    "list with 500": sim.status(500, content=b'["AccountPasswordInvalid"]'),
    "deep with 500": sim.status(500, content=DEEP),
    "deep code": sim.status(500, content=b'{"Code": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "long number with 500": sim.status(500, content=b'{"Code": ' + DIGITS + b"}"),
    "invalid UTF-8 with 500": sim.status(500, content=b'{"Code": "\xff"}'),
    "broken gzip": answer(b"[]", Content_Encoding="gzip"),
    "broken middle of gzip": answer(gzip.compress(b"[]" * 1000)[:15] + b"quokka" * 9, Content_Encoding="gzip"),
    "broken deflate": answer(b"\xff[]", Content_Encoding="deflate"),
    "too many encodings": answer(b"[]", Content_Encoding="gzip, " * 30),
    "closed before the answer": sim.drop(),
    "closed in the body": sim.cut(),
    "closed in the status line": raw(b"HTTP/1.1 2", close=True),
    "closed in a body of known length": raw(head("Content-Length: 9") + b"[]", close=True),
    "closed between chunks": raw(head("Transfer-Encoding: chunked") + b"2\r\n[]\r\n", close=True),
    "reset": sim.reset(),
    "no HTTP": raw(b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n", close=True),
    "HTTP/0.9": raw(b"[]", close=True),
    "no status": raw(b"HTTP/1.1 OK\r\n\r\n[]", close=True),
    "no such status": raw(b"HTTP/1.1 99999 OK\r\n\r\n[]", close=True),
    "negative status": raw(b"HTTP/1.1 -200 OK\r\n\r\n[]", close=True),
    "another protocol": raw(b"ICY 200 OK\r\n\r\n[]", close=True),
    "HTTP/9.9": raw(b"HTTP/9.9 200 OK\r\n\r\n[]", close=True),
    "long chunk size": raw(head("Transfer-Encoding: chunked") + b"0" * (MIB + 1)),
    "long line": raw(head("X: " + "y" * 70_000)),
    "many headers": raw(head(*["X: y"] * 200)),
    "two lengths": raw(head("Content-Length: 2, 3") + b"[]"),
    "no chunk": raw(head("Transfer-Encoding: chunked") + b"quokka\r\n[]"),
    "negative chunk": raw(head("Transfer-Encoding: chunked") + b"-5\r\n[]"),
    "chunk longer than memory": raw(head("Transfer-Encoding: chunked") + b"f" * 15 + b"\r\n[]", close=True),
    "length longer than memory": raw(head("Content-Length: " + "9" * 15) + b"[]", close=True),
    "switching protocols": raw(head(status=101)),
}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *(pytest.param(fault, UnexpectedResponseError, id=name) for name, fault in NOT_UNDERSTOOD.items()),
        *(pytest.param(fault, UnavailableError, id=name) for name, fault in OUT_OF_ORDER.items()),
    ],
)
def test_survives_every_answer(
    service: SimulatedShare, client: ShareClient, fault: Fault, kind: type[ShareError]
) -> None:
    """No answer costs more than one request, one error and little memory; the next good answer is as good as ever."""
    service.fault = read(fault)
    with grows_by_at_most(4 * MIB), takes(0, 10):
        failure(kind, client.fetch)
    assert asked(service, client)[3:] == [READ]
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[4:] == [READ]


@contextmanager
def grows_by_at_most(size: int) -> Iterator[None]:
    """Check how much memory is taken at any time, the test's own share of it included."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "calls"),
    [
        (b"HTTP/1.1 200", [READ, LOGIN, READ]),
        (head()[:-2], [READ, LOGIN, READ]),
        (head("Content-Length: 9")[:-2], [READ]),
        (head("Transfer-Encoding: chunked")[:-2], [READ]),
    ],
)
def test_a_head_that_breaks_off_is_no_batch(
    service: SimulatedShare, client: ShareClient, content: bytes, calls: list[str]
) -> None:
    """An answer that breaks off within its head is an error; where it looks empty, the session is renewed first."""
    service.fault = read(raw(content, close=True))
    failure(UnavailableError, client.fetch)
    assert asked(service, client)[3:] == calls


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_takes_an_answer_of_nearly_one_mebibyte(service: SimulatedShare, client: ShareClient, compress: bool) -> None:
    """A long answer is fine up to the limit, which for a compressed one holds unpacked too."""
    service.fault = read(sim.padded(MIB if compress else MIB - 1000, compress=compress))
    assert client.fetch().readings == readings_of(ANNA)
    service.fault = read(sim.padded(MIB + 1, compress=compress))
    error = failure(UnexpectedResponseError, client.fetch)
    assert "more than 1 MiB" in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [*SIGN_IN, READ])
def test_follows_no_redirect(service: SimulatedShare, status: int, call: str) -> None:
    """A redirect is an error: neither the password nor the session goes to where it points."""
    with SimulatedShare(ACCOUNTS, lambda: NOW) as other:
        path = {
            AUTHENTICATE: "General/AuthenticatePublisherAccount",
            LOGIN: "General/LoginPublisherAccountById",
            READ: "Publisher/ReadPublisherLatestGlucoseValues",
        }[call]
        service.fault = sim.only(sim.status(status, {"Location": f"{other.base_url}/{path}"}), call=call)
        client = client_of(service)
        failure(UnavailableError, client.fetch)
        assert asked(service, client) == [*SIGN_IN, READ][: [*SIGN_IN, READ].index(call) + 1]
        assert other.requests == []


@pytest.mark.parametrize("location", ["http://[::1", "//", "\xff\xfe", "", "http://localhost:99999/"])
def test_looks_at_no_redirect(service: SimulatedShare, client: ShareClient, location: str) -> None:
    """A redirect to what is no address is an error like any other status."""
    service.fault = read(sim.status(302, {"Location": location}))
    assert str(failure(UnavailableError, client.fetch)) == f"{host(service)} answered with status 302"


def test_tells_a_refused_connection(service: SimulatedShare, client: ShareClient) -> None:
    """A server that is down is told as such; when it is back, the session goes on."""
    at = host(service)
    service.close()
    failure(UnavailableError, client_of(service).fetch)
    assert str(failure(UnavailableError, client.fetch)) == f"no answer from {at}: the connection was refused"
    assert client.requests == 4
    service.start()
    assert client.fetch().readings == readings_of(ANNA)
    assert client.logins == 2


def test_tells_an_unknown_host() -> None:
    """A host that cannot be looked up is unavailable, and the error says so."""
    client = ShareClient(username="a", password="b", base_url="https://share.invalid/Services")
    error = failure(UnavailableError, client.fetch)
    assert str(error) == "no answer from share.invalid: its name could not be looked up"
    assert not error.wrong_clock
    assert (client.requests, client.logins) == (1, 0)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".invalid", "*"])
def test_tells_an_impossible_host(host: str) -> None:
    """A host that cannot be is unavailable, too: only the asking tells."""
    failure(UnavailableError, ShareClient(username="a", password="b", base_url=f"http://{host}").fetch)


def test_tries_every_address_of_a_host(service: SimulatedShare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first addresses of a host refuse the connection, the next one serves."""
    port = int(service.base_url.split(":")[2].split("/")[0])
    resolve(monkeypatch, "many.test", [("127.0.0.2", port), ("::1", port), ("127.0.0.1", port)])
    client = client_of(service, base_url=service.base_url.replace("127.0.0.1", "many.test"))
    assert client.fetch().readings == readings_of(ANNA)


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, addresses: list[tuple[str, int]]) -> None:
    """Let a name have these addresses."""
    look_up = socket.getaddrinfo

    def resolved(host: str, *arguments: Any, **options: Any) -> list[Any]:
        if host != name:
            return look_up(host, *arguments, **options)
        return [info for address in addresses for info in look_up(*address, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


# Time limits


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call have half a second instead of 20."""
    assert share.CALL_SECONDS == 20
    monkeypatch.setattr(transport, "CALL_SECONDS", 0.5)


def dripping(content: bytes | None = None) -> Fault:
    """Send the whole answer, or this one, byte by byte: every read of the client brings something in time."""

    def fault(request: Request, respond: Respond) -> Response:
        slow = sim.drip(0.05)(request, respond)
        return replace(
            slow, delivery=lambda connection, top, rest: slow.delivery(connection, b"", content or top + rest)
        )

    return fault


SLOW: Final = {
    "no answer": sim.hang(),
    "byte by byte": dripping(),
    "body byte by byte": sim.drip(0.05),
    "body of known length byte by byte": dripping(b"  [          ]" + b" " * 200),
    "one header without end": dripping(head("X: " + "y" * 1000)),
    "100 again and again": dripping(head(status=100) * 100),
    "chunk by chunk": dripping(head("Transfer-Encoding: chunked") + b"1\r\n \r\n" * 200),
}


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("fault", SLOW.values(), ids=SLOW)
def test_a_call_ends_in_time(service: SimulatedShare, client: ShareClient, fault: Fault) -> None:
    """A call that would take too long ends when its time is over, also while something keeps coming."""
    service.fault = read(fault)
    with takes(0.4, 4):
        error = failure(UnavailableError, client.fetch)
    assert str(error) == f"no answer from {host(service)}: it took too long"
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("call", SIGN_IN)
def test_a_sign_in_ends_in_time(service: SimulatedShare, call: str) -> None:
    """Each step of a sign-in has its time limit as well."""
    service.fault = sim.only(dripping(), call=call)
    with takes(0.4, 4):
        failure(UnavailableError, client_of(service).fetch)


@pytest.mark.usefixtures("short_calls")
def test_a_call_has_its_time_in_real_seconds(service: SimulatedShare) -> None:
    """A clock that runs fast makes no call shorter: the network does not run faster."""
    client = client_of(service, clock=Clock(speed=10_000))
    assert client.fetch().readings == readings_of(ANNA)
    service.fault = sim.hang()
    with takes(0.4, 4):
        failure(UnavailableError, client.fetch)


@pytest.fixture
def full_server() -> Iterator[int]:
    """Yield the port of some addresses from 127.0.0.2 on that let connections wait for ever."""
    with contextlib.ExitStack() as stack:
        port = 0
        for number in range(2, 6):
            server = stack.enter_context(socket.socket())
            server.bind((f"127.0.0.{number}", port))
            server.listen(0)
            port = server.getsockname()[1]
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.settimeout(0)
                waiting.connect_ex(server.getsockname())
        yield port


@pytest.mark.usefixtures("short_calls")
def test_connecting_ends_in_time(full_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with several addresses, none of which answers, has no more time than any other."""
    resolve(monkeypatch, "many.test", [(f"127.0.0.{number}", full_server) for number in range(2, 6)])
    client = ShareClient(username="a", password="b", base_url=f"http://many.test:{full_server}")
    with takes(0.4, 4):
        error = failure(UnavailableError, client.fetch)
    assert str(error) == f"no answer from many.test:{full_server}: it took too long"


@pytest.mark.usefixtures("short_calls")
def test_a_handshake_ends_in_time() -> None:
    """A server that accepts the connection and never says a word of TLS is given up in time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with takes(0.4, 4):
            failure(UnavailableError, ShareClient(username="a", password="b", base_url=url).fetch)


@pytest.mark.usefixtures("short_calls")
def test_threads_share_no_limit(service: SimulatedShare) -> None:
    """Calls in one thread neither prolong nor shorten a call in another, which ends in its own time."""
    service.fault = sim.only(dripping(), account=QUINN.username)
    slow = threading.Thread(target=failure, args=(UnavailableError, client_of(service, QUINN).fetch))
    client, fetched = client_of(service), 0
    with takes(0.4, 4):
        slow.start()
        while slow.is_alive() and fetched < 1000:
            assert client.fetch().readings == readings_of(ANNA)
            fetched += 1
        slow.join()
    assert fetched > 3


# The time


def test_asks_for_the_time_without_the_password(service: SimulatedShare) -> None:
    """Share tells the time to somebody who has not signed in, and a session is neither needed nor lost."""
    client = client_of(service)
    for _ in range(2):
        client.ask_time()
        assert client.time.known
    assert asked(service, client) == [READ, READ]
    assert client.fetch().readings == readings_of(ANNA)
    client.ask_time()
    client.fetch()
    assert client.logins == 2


@pytest.mark.parametrize("code", ["SessionIdNotFound", "SessionNotValid", "AccountPasswordInvalid"])
def test_the_time_is_in_a_refusal_too(service: SimulatedShare, code: str) -> None:
    """An answer that does not know the session of zeros tells the time as well."""
    client = client_of(service)
    service.fault = sim.error(code)
    client.ask_time()
    assert client.time.known


# Rate limits


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": sim.http_date(NOW + 90)}, 90.0),
        ({"Retry-After": sim.http_date(NOW - 90)}, 0.0),
        ({"Retry-After": sim.http_date(NOW + 990), "Date": sim.http_date(NOW + 900)}, 90.0),
        ({"Retry-After": sim.http_date(NOW + 90), "Date": None}, None),
        ({"Retry-After": sim.http_date(NOW + 90), "Date": "today"}, None),
        ({}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "+5"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "\xb2"}, None),
        ({"Retry-After": "Mon, 99 Foo 99999999999 99:99:99 +9999"}, None),
        ({"Retry-After": "120, 120"}, None),
    ],
)
def test_tells_a_rate_limit(
    service: SimulatedShare, client: ShareClient, headers: dict[str, str | None], seconds: float | None
) -> None:
    """A rate limit says for how many seconds, by the server's own time, or that it does not know."""
    service.fault = lambda _request, _respond: Response(429, b"{}", headers)
    assert failure(RateLimitedError, client.fetch).retry_after == seconds
    assert asked(service, client)[3:] == [READ]


def test_tells_a_rate_limit_of_any_length(service: SimulatedShare, client: ShareClient) -> None:
    """A wait that no float can hold is a long wait and no error."""
    service.fault = sim.status(429, {"Retry-After": "9" * 400})
    wait = failure(RateLimitedError, client.fetch).retry_after
    assert wait is not None
    assert 1e8 < wait < float("inf")


@pytest.mark.parametrize("call", SIGN_IN)
def test_tells_a_rate_limit_of_a_sign_in(service: SimulatedShare, call: str) -> None:
    """A rate limit of a sign-in is no rejection, whatever the body says."""
    content = json.dumps({"Code": "AccountPasswordInvalid"}).encode()
    service.fault = sim.only(sim.status(429, {"Retry-After": "60"}, content), call=call)
    client = client_of(service)
    assert failure(RateLimitedError, client.fetch).retry_after == 60
    assert asked(service, client) == SIGN_IN[: SIGN_IN.index(call) + 1]


# The time of day


class HandClock(Clock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0

    def now(self) -> float:
        return self.time


def test_the_server_tells_the_time(service: SimulatedShare) -> None:
    """The time of day is the server's, to within the second to which its header is cut."""
    clock = HandClock()
    client = client_of(service, clock=clock)
    assert not client.time.known
    client.fetch()
    told = client.time.now()
    assert told is not None
    assert NOW <= told <= NOW + 1
    clock.time += 60
    assert client.time.now() == told + 60


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (sim.html(503), UnavailableError),
        (sim.status(429), RateLimitedError),
        (sim.body(b"x"), UnexpectedResponseError),
        (sim.error(*REJECTIONS[0]), CredentialsRejectedError),
    ],
)
def test_an_error_tells_the_time_too(service: SimulatedShare, fault: Fault, kind: type[ShareError]) -> None:
    """The header of an answer that is an error tells the time as well."""
    service.fault = fault
    client = client_of(service)
    failure(kind, client.fetch)
    assert client.time.now() == pytest.approx(NOW, abs=2)


@pytest.mark.parametrize(
    "date",
    [
        *(None, "", "yesterday", "0", "\xff", "Sat, 19 Apr 1925 16:43:20 GMT", "Sat, 19 Apr 9999 16:43:20 GMT"),
        *("Mon, 99 Foo 99999999999 99:99:99 +9999", "1" * 5000, "Thu, 01 Jan 1970 00:00:00 GMT", "," * 50),
    ],
)
def test_a_date_that_makes_no_sense_tells_nothing(service: SimulatedShare, date: str | None) -> None:
    """A header that is missing or garbage leaves the time unknown, and the readings good."""
    service.fault = sim.header("Date", date)
    client = client_of(service)
    assert client.fetch().readings == readings_of(ANNA)
    assert not client.time.known


# Connections


def noting_peers(peers: list[object], *, then: Callable[[socket.socket], bool] = lambda _: True) -> Fault:
    """Answer as the service does, and note from which port of the client's each request comes."""

    def deliver(connection: socket.socket, top: bytes, content: bytes) -> bool:
        peers.append(connection.getpeername())
        connection.sendall(top + content)
        return then(connection)

    return lambda request, respond: replace(respond(request), delivery=deliver)


def test_keeps_the_connection(service: SimulatedShare) -> None:
    """Sign-in and reads, errors among them, take one connection."""
    peers: list[object] = []
    client = client_of(service)
    for fault in (sim.no_fault, sim.html(503), sim.status(429), sim.error("X"), sim.truncated(), sim.no_fault):
        service.fault = sim.chain(noting_peers(peers), read(fault))
        with contextlib.suppress(ShareError):
            client.fetch()
    assert len(peers) == 8
    assert len(set(peers)) == 1


def test_connects_anew_where_the_connection_was_closed(service: SimulatedShare) -> None:
    """A server that closes the connection while nothing is asked costs no error."""
    peers: list[object] = []
    closed = threading.Semaphore(0)

    def close(connection: socket.socket) -> bool:
        connection.shutdown(socket.SHUT_RDWR)
        closed.release()
        return False

    client = client_of(service)
    client.fetch()
    service.fault = noting_peers(peers, then=close)
    for _ in range(3):
        assert client.fetch().readings == readings_of(ANNA)
        assert closed.acquire(timeout=5)
    assert len(set(peers)) == 3


def test_connects_anew_where_the_server_was_restarted(service: SimulatedShare, client: ShareClient) -> None:
    """A server that was away while nothing was asked costs no error, and not the session."""
    service.close()
    service.start()
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[3:] == [READ]


def test_a_connection_serves_every_thread(service: SimulatedShare, client: ShareClient) -> None:
    """A connection that one thread has opened serves another, with that one's limits."""
    peers: list[object] = []
    service.fault = noting_peers(peers)
    client.fetch()
    batches: list[Batch] = []
    thread = threading.Thread(target=lambda: batches.append(client.fetch()))
    thread.start()
    thread.join()
    assert batches == [Batch(readings_of(ANNA))]
    assert len(set(peers)) == 1


def test_sends_cookies_back_to_their_account_alone() -> None:
    """A cookie of one account's answers goes with that account's requests, and with no other's."""
    with LittleServer() as server:
        anna, quinn = client_to(server), client_to(server)
        anna.fetch()
        quinn.fetch()
        anna.fetch()
    assert server.cookies == ["", "n=1", "n=2", "", "n=4", "n=5", "n=3"]


# TLS


class LittleServer(socketserver.ThreadingTCPServer):
    """Signs everybody in and has no readings; over TLS where it has a certificate."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, certificate: trustme.LeafCert | None = None, *, drip: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.drip = drip
        self.cookies: list[str] = []
        """What each request brought along."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that goes away is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LittleServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.cookies.append(self.headers.get("Cookie", ""))
        content = b"[]" if "Read" in self.path else json.dumps(ANNA.account_id).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + 100 * self.server.drip))
        self.send_header("Set-Cookie", f"n={len(self.server.cookies)}; path=/")
        self.end_headers()
        self.wfile.write(content)
        for _ in range(100 * self.server.drip):
            time.sleep(0.05)
            self.wfile.write(b" ")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in http.server
        """Say nothing."""


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[trustme.CA]:
    """Return an authority that this machine trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    adapter = transport._adapter  # noqa: SLF001  # one context for the whole process, which has no other way to change
    adapter.cache_clear()
    yield authority
    adapter.cache_clear()


def test_trusts_the_authorities_of_the_machine(authority: trustme.CA) -> None:
    """A certificate of an authority in SSL_CERT_FILE is good."""
    with LittleServer(authority.issue_cert("127.0.0.1")) as server:
        client = client_to(server)
        assert client.fetch() == Batch()
        assert client.time.known
        assert (client.requests, client.logins) == (3, 2)


def client_to(server: LittleServer) -> ShareClient:
    return ShareClient(username=ANNA.username, password=ANNA.password, base_url=server.url)


WEEK = timedelta(days=7)


@pytest.mark.parametrize(
    ("name", "begins", "ends", "wrong_clock", "why"),
    [
        pytest.param("127.0.0.1", -2 * WEEK, -WEEK, True, "outside its dates", id="expired"),
        pytest.param("127.0.0.1", WEEK, 2 * WEEK, True, "outside its dates", id="not yet valid"),
        pytest.param("localhost", -WEEK, WEEK, False, "not one this machine trusts", id="of another host"),
    ],
)
def test_tells_a_certificate_that_is_not_good(
    authority: trustme.CA, name: str, begins: timedelta, ends: timedelta, wrong_clock: bool, why: str
) -> None:
    """Where only the dates of a certificate are wrong, it may be this machine's clock; else it is not."""
    today = datetime.now(UTC)
    certificate = authority.issue_cert(name, not_before=today + begins, not_after=today + ends)
    with LittleServer(certificate) as server:
        error = failure(UnavailableError, client_to(server).fetch)
    assert error.wrong_clock is wrong_clock
    assert str(error) == f"the certificate of {host(server)} is {why}"
    assert server.cookies == []


@pytest.mark.usefixtures("authority")
def test_trusts_no_other_authority() -> None:
    """A certificate of an unknown authority is not trusted, nothing is sent, and the clock is not to blame."""
    with LittleServer(trustme.CA().issue_cert("127.0.0.1")) as server:
        error = failure(UnavailableError, client_to(server).fetch)
    assert not error.wrong_clock
    assert str(error) == f"the certificate of {host(server)} is not one this machine trusts"
    assert server.cookies == []


def test_trusts_the_usual_authorities_everywhere(authority: trustme.CA) -> None:
    """The authorities of certifi are trusted although the machine names others."""
    del authority
    context = transport._adapter().poolmanager.connection_pool_kw["ssl_context"]  # noqa: SLF001  # no other way to look
    assert len(context.get_ca_certs()) > 50


def test_tells_a_server_that_speaks_no_tls(service: SimulatedShare) -> None:
    """A server that does not speak TLS where it should is unavailable, and the clock is not to blame."""
    client = client_of(service, base_url=service.base_url.replace("http:", "https:"))
    error = failure(UnavailableError, client.fetch)
    assert not error.wrong_clock
    assert str(error) == f"no answer from {host(service)}: the encrypted connection failed"
    assert service.requests == []


@pytest.mark.usefixtures("short_calls")
def test_a_call_over_tls_ends_in_time(authority: trustme.CA) -> None:
    """The time limit holds over TLS as well, while byte after byte comes."""
    with LittleServer(authority.issue_cert("127.0.0.1"), drip=True) as server, takes(0.4, 4):
        error = failure(UnavailableError, client_to(server).fetch)
    assert str(error) == f"no answer from {host(server)}: it took too long"
    assert not error.wrong_clock


# Secrets


@pytest.mark.parametrize("write", [*_WRITTEN, lambda text: base64.b64encode(f"x{text}y".encode()).decode()])
@pytest.mark.parametrize("secret", [ANNA.username, KIM.password, ANNA.account_id])
def test_the_search_for_secrets_finds_them(secret: str, write: Callable[[str], str]) -> None:
    """The search that every test here relies on finds a secret however it is written, and nothing else."""
    assert secrets_in(f"/{write(secret)} and more") == {secret}
    assert secrets_in("https://share2.dexcom.com/ShareWebServices/Services/General answered with status 500") == set()


MALFORMED_HEADERS: Final = head("Content-Length: 2", "no header", "Date: x") + b"[]"


def test_the_library_would_log_the_session(
    service: SimulatedShare, client: ShareClient, caplog: pytest.LogCaptureFixture
) -> None:
    """urllib3 writes the URL with the session id into its log, as a warning too: the daemon has to silence it."""
    service.fault = read(raw(MALFORMED_HEADERS, close=True))
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    client.fetch()
    assert secrets_in(caplog.text)
    caplog.clear()


def test_the_log_tells_no_secret(
    service: SimulatedShare, client: ShareClient, caplog: pytest.LogCaptureFixture
) -> None:
    """With the daemon's settings nothing is logged of calls, good or bad."""
    service.fault = read(raw(MALFORMED_HEADERS, close=True))
    client.fetch()
    for fault in (sim.drop(), sim.error("X"), sim.no_fault):
        service.fault = fault
        with contextlib.suppress(ShareError):
            client.fetch()
    assert caplog.text == ""


# Anything

ReadWith = Callable[[Fault], Batch | ShareError]


@pytest.fixture(scope="module")
def read_with() -> Iterator[ReadWith]:
    """Yield a way to read what a fault answers, with one client and one server for all of it."""
    with SimulatedShare([ANNA], lambda: NOW) as service:
        client = client_of(service)

        def fetch(fault: Fault) -> Batch | ShareError:
            service.fault = read(fault)
            try:
                return client.fetch()
            except ShareError as error:
                check_silence(error)
                return error

        yield fetch


anything = settings(max_examples=200, deadline=None, database=None)
"""No deadline, since what an example takes is the network's affair; no file of examples left behind."""

JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=10,
)
DATES: Final = st.from_regex(r"/?Date\([0-9]{1,15}([+-][0-9]{4})?\)/?", fullmatch=True)
RECORDS: Final = st.fixed_dictionaries(
    {},
    optional={
        "WT": DATES | JSON,
        "DT": DATES | JSON,
        "Value": st.integers(-10, 500) | st.integers(-10, 500).map(str) | JSON,
        "Trend": st.integers(-1, 11) | st.sampled_from(["Flat", "NOT COMPUTABLE", "", "Sideways"]) | JSON,
    },
)
NAMES: Final = st.sampled_from(
    [
        *("Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive"),
        *("Date", "Retry-After", "Location", "Set-Cookie", "Server", "X"),
    ]
)
VALUES: Final = st.binary(max_size=30) | st.sampled_from(
    [
        *(b"gzip", b"deflate, gzip", b"br", b"zstd", b"chunked", b"gzip, chunked", b"close", b"0", b"2", b"-1"),
        *(b"9999999", b"text/html; charset", b"text/html; charset=x", b"http://[::1", b"n=1; expires=x; max-age=z"),
    ]
)


@anything
@given(content=st.binary(), status=st.sampled_from([200, 500, 429, 302]))
def test_survives_any_bytes(read_with: ReadWith, content: bytes, status: int) -> None:
    """Whatever bytes an answer consists of: they are readings, or an error of the family."""
    outcome = read_with(answer(content, status))
    assert isinstance(outcome, ShareError) or status == 200


@settings(anything, max_examples=100)
@given(content=JSON, status=st.sampled_from([200, 500]))
def test_survives_any_json(read_with: ReadWith, content: object, status: int) -> None:
    """Only a list with 200 is a batch; every other JSON is an error of the family."""
    outcome = read_with(answer(json.dumps(content).encode(), status))
    assert isinstance(outcome, Batch) == (status == 200 and isinstance(content, list))


@settings(anything, max_examples=100)
@given(records=st.lists(RECORDS | JSON, max_size=5), place=st.integers(0, 5))
def test_survives_any_records(read_with: ReadWith, records: list[object], place: int) -> None:
    """Among any records the good one is found, and each of them is counted once."""
    records.insert(place, GOOD)
    batch = read_with(answer(json.dumps(records).encode()))
    assert isinstance(batch, Batch)
    assert Reading(224, "Flat", 1_745_081_013_817, -240) in batch.readings
    assert len(batch.readings) + len(batch.error_codes) + batch.malformed == len(records)
    assert batch.drifted < len(records)


@settings(anything, max_examples=100)
@given(lines=st.lists(st.tuples(NAMES, VALUES), max_size=6), content=st.binary(max_size=50))
def test_survives_any_headers(read_with: ReadWith, lines: list[tuple[str, bytes]], content: bytes) -> None:
    """Whatever headers an answer has: they end in readings or in an error of the family."""
    written = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in lines)
    outcome = read_with(raw(b"HTTP/1.1 200 OK\r\n" + written + b"\r\n" + content, close=True))
    assert isinstance(outcome, Batch | ShareError)


@settings(anything, max_examples=100)
@given(content=st.binary())
def test_survives_any_connection(read_with: ReadWith, content: bytes) -> None:
    """Whatever comes in place of HTTP is an error of the family."""
    assert isinstance(read_with(raw(content, close=True)), ShareError)
