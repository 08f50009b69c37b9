"""What Share's answers mean: readings, or the error that says what to do next, whatever the bytes."""

from __future__ import annotations

import gzip
import itertools
import json
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.demo.share_service import Fault, Response, SimulatedAccount, SimulatedShare
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.share import (
    Batch,
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    ShareClient,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)
from tests.support import share_faults
from tests.support.share_client import (
    ACCOUNTS,
    ANNA,
    KIM,
    MIB,
    NOW,
    READ,
    REJECTIONS,
    SIGN_IN,
    answer,
    asked,
    check_silence,
    client_of,
    failure,
    fault_of,
    head,
    host,
    raw,
    read,
    readings_of,
    takes,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


# Signing in


@pytest.mark.parametrize("call", SIGN_IN)
@pytest.mark.parametrize(
    "fault",
    [share_faults.zero_uuid(), *itertools.starmap(share_faults.error, REJECTIONS)],
    ids=["zero UUID", *(code for code, _ in REJECTIONS)],
)
def test_recognizes_rejected_credentials(service: SimulatedShare, fault: Fault, call: str) -> None:
    """Every way in which Share rejects credentials is recognized, at either step, and costs no further request."""
    service.fault = share_faults.only(fault, call=call)
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
def test_recognizes_wrong_credentials(service: SimulatedShare, who: dict[str, Any]) -> None:
    """A wrong user name, password, phone number or account id costs one rejected request."""
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
def test_recognizes_a_lock_out(service: SimulatedShare, code: str, call: str) -> None:
    """A lock-out is recognized by MaxAttempts in the code, however the rest is spelled."""
    service.fault = share_faults.only(share_faults.error(code, "Maximum authentication attempts exceeded"), call=call)
    client = client_of(service)
    failure(LockedOutError, client.fetch)
    assert asked(service, client) == SIGN_IN[: SIGN_IN.index(call) + 1]


def test_is_locked_out_after_rejections(service: SimulatedShare) -> None:
    """Too many wrong passwords end in a lock-out, which the right password does not lift."""
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
def test_other_errors_are_the_servers_own(service: SimulatedShare, call: str, code: object, message: object) -> None:
    """An error that is not about the credentials does not count as a rejection."""
    service.fault = share_faults.only(fault_of(code, message), call=call)
    client = client_of(service)
    failure(UnavailableError, client.fetch)
    assert asked(service, client)[-1] == call


@pytest.mark.parametrize("call", SIGN_IN)
@pytest.mark.parametrize(
    "fault",
    [
        *map(share_faults.body, [b"", b"null", b"[]", b"5", b'"', b'""', b'"anna"', b'{"id": 1}', b"\xff"]),
        answer(f'"{ANNA.account_id[:-1]}"'.encode()),
        answer(f'["{ANNA.account_id}"]'.encode()),
        answer(f'"{ANNA.account_id}&x=y"'.encode()),
        answer(f'"{{{ANNA.account_id}}}"'.encode()),
        share_faults.error("SessionIdNotFound"),
        share_faults.error("SessionNotValid"),
    ],
)
def test_signs_in_only_with_ids(service: SimulatedShare, fault: Fault, call: str) -> None:
    """An answer to a sign-in that is not an id is an error, and is not retried."""
    service.fault = share_faults.only(fault, call=call)
    client = client_of(service)
    failure(UnexpectedResponseError, client.fetch)
    assert asked(service, client) == SIGN_IN[: SIGN_IN.index(call) + 1]
    assert not client.signed_in


@pytest.mark.parametrize("call", SIGN_IN)
def test_a_sign_in_proves_nothing_about_sharing(service: SimulatedShare, call: str) -> None:
    """The same words in answer to a sign-in are an ordinary unknown fault."""
    service.fault = share_faults.only(share_faults.error("MonitoredReceiverNotAssigned"), call=call)
    client = client_of(service)
    error = failure(UnavailableError, client.fetch)
    assert str(error) == f"{host(service)} answered with status 500"
    assert not client.signed_in


# Readings


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
    """The recorded records of the service are read correctly."""
    service.fault = read(
        share_faults.body(
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


@pytest.mark.parametrize("value", [0, 5, 12, 38])
def test_separates_error_codes(service: SimulatedShare, client: ShareClient, value: int) -> None:
    """Values below 39 are errors of the sensor, not readings; their times are returned, oldest first."""
    expected = readings_of(ANNA)
    service.distort(share_faults.during(NOW - 3600, NOW, share_faults.valued(value)))
    before = [reading for reading in expected if reading.date < (NOW - 3600) * 1000]
    after = [reading.date for reading in expected if reading.date >= (NOW - 3600) * 1000]
    assert len(after) > 5
    assert client.fetch() == Batch(tuple(before), tuple(after))


@pytest.mark.parametrize("value", [39, 40, 401])
def test_keeps_low_and_high(service: SimulatedShare, client: ShareClient, value: int) -> None:
    """39, which means LOW, and 401, which means HIGH, are readings."""
    service.distort(share_faults.valued(value))
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
def test_a_malformed_record_costs_only_itself(service: SimulatedShare, client: ShareClient, malformed: object) -> None:
    """A malformed record is counted, and every other reading of the answer is kept."""
    service.fault = read(
        share_faults.edited(lambda records: [malformed, *records[:50], malformed, *records[50:], malformed])
    )
    assert client.fetch() == Batch(readings_of(ANNA), malformed=3, newest_malformed=True)


@pytest.mark.parametrize(
    ("edit", "reported"),
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
def test_reports_a_malformed_newest_record(
    service: SimulatedShare, client: ShareClient, edit: Callable[[Any], object], reported: bool
) -> None:
    """A malformed first record is reported, as long as any other is well-formed."""
    service.fault = read(share_faults.edited(edit))
    assert client.fetch().newest_malformed is reported


def as_text(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "Value": str(record["Value"])}


def only_in_dt(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "WT": None}


@pytest.mark.parametrize("change", [as_text, only_in_dt, lambda record: as_text(only_in_dt(record))])
def test_reads_a_new_format(
    service: SimulatedShare, client: ShareClient, change: Callable[[dict[str, Any]], object]
) -> None:
    """Values as text and instants only in DT are read correctly, and counted."""
    service.fault = read(share_faults.edited(lambda records: [*map(change, records[:9]), *records[9:]]))
    assert client.fetch() == Batch(readings_of(ANNA), drifted=9)
    assert client.latest_reading() == readings_of(ANNA)[-1]


def test_error_codes_stay_error_codes_as_text(service: SimulatedShare, client: ShareClient) -> None:
    """A value below 39 is not a reading as text either."""
    service.distort(share_faults.valued(38))
    service.fault = read(share_faults.edited(lambda records: [as_text(record) for record in records]))
    dates = tuple(reading.date for reading in readings_of(ANNA))
    assert client.fetch() == Batch(error_codes=dates, drifted=len(dates))


def test_a_huge_number_costs_only_its_record(service: SimulatedShare, client: ShareClient) -> None:
    """A number that Python refuses to parse is as wrong as any other that no sensor shows."""
    digits = "9" * 5000
    record = json.dumps(GOOD)
    service.fault = read(answer(f'[{digits}, {{"Value": {digits}}}, {record}, {{"WT": -{digits}}}]'.encode()))
    good = (Reading(224, "Flat", 1_745_081_013_817, -240),)
    assert client.fetch() == Batch(good, malformed=3, newest_malformed=True)


def test_sorts_readings_in_any_order(service: SimulatedShare, client: ShareClient) -> None:
    """Readings are sorted, whatever order they arrive in."""
    service.fault = read(share_faults.edited(lambda records: records[::2] + records[::-2]))
    assert client.fetch().readings == readings_of(ANNA)
    assert client.readings() == list(reversed(readings_of(ANNA)))


# Answers


def chunked(content: bytes) -> bytes:
    return head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


def endless(piece: bytes) -> Fault:
    """Send the same piece again and again, until the client gives up."""

    def deliver(connection: socket.socket, _head: bytes, _content: bytes) -> bool:
        try:
            while True:
                connection.sendall(piece * 1000)
        except ConnectionError:
            return False

    return lambda _request, _respond: Response(delivery=deliver)


DEEP: Final = b"[" * 100_000
DIGITS: Final = b"9" * 5000
BOMB: Final = gzip.compress(bytes(10 * MIB))
NOT_UNDERSTOOD: Final = {
    "null": share_faults.body(b"null"),
    "object": share_faults.body(b"{}"),
    "fault with 200": fault_of("AccountPasswordInvalid", status=200),
    "text": share_faults.body(b'"[]"'),
    "number": share_faults.body(b"5"),
    "true": share_faults.body(b"true"),
    "words": share_faults.body(b"Service is down"),
    "blank": share_faults.body(b" "),
    "HTML": share_faults.html(200),
    "half the JSON": share_faults.truncated(),
    "more than the JSON": share_faults.body(b"[]]"),
    "invalid UTF-8": share_faults.body(b'["\xff"]'),
    "half a character": share_faults.body("[1]".encode("utf-16")[:-1]),
    "deep": share_faults.body(DEEP),
    "deep objects": share_faults.body(b'{"":' * 100_000),
    "id": share_faults.zero_uuid(),
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
    "100 without end": endless(head(status=100)),
    "blanks without end": endless(head() + b" "),
}
OUT_OF_ORDER: Final = {
    **{f"HTML with {status}": share_faults.html(status) for status in (400, 401, 403, 404, 500, 502, 503, 504, 520)},
    **{f"nothing with {status}": share_faults.status(status) for status in (201, 204, 304, 500, 503)},
    "null with 500": share_faults.status(500, content=b"null"),
    "list with 500": share_faults.status(500, content=b'["AccountPasswordInvalid"]'),
    "deep with 500": share_faults.status(500, content=DEEP),
    "deep code": share_faults.status(500, content=b'{"Code": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "long number with 500": share_faults.status(500, content=b'{"Code": ' + DIGITS + b"}"),
    "invalid UTF-8 with 500": share_faults.status(500, content=b'{"Code": "\xff"}'),
    "broken gzip": answer(b"[]", Content_Encoding="gzip"),
    "broken middle of gzip": answer(gzip.compress(b"[]" * 1000)[:15] + b"quokka" * 9, Content_Encoding="gzip"),
    "broken deflate": answer(b"\xff[]", Content_Encoding="deflate"),
    "too many encodings": answer(b"[]", Content_Encoding="gzip, " * 30),
    "closed before the answer": share_faults.drop(),
    "closed in the body": share_faults.cut(),
    "closed in the status line": raw(b"HTTP/1.1 2", close=True),
    "closed in a body of known length": raw(head("Content-Length: 9") + b"[]", close=True),
    "closed between chunks": raw(head("Transfer-Encoding: chunked") + b"2\r\n[]\r\n", close=True),
    "reset": share_faults.reset(),
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
    """Each answer costs at most one request, one error and little memory; the next good answer is read as usual."""
    service.fault = read(fault)
    with grows_by_at_most(4 * MIB), takes(0, 10):
        failure(kind, client.fetch)
    assert asked(service, client)[3:] == [READ]
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[4:] == [READ]


@contextmanager
def grows_by_at_most(size: int) -> Iterator[None]:
    """Check the most memory allocated at any time, including the test's own."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


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
def test_recognizes_a_rate_limit(
    service: SimulatedShare, client: ShareClient, headers: dict[str, str | None], seconds: float | None
) -> None:
    """A rate limit contains the seconds by the server's own time, or that they are unknown."""
    service.fault = lambda _request, _respond: Response(429, b"{}", headers)
    assert failure(RateLimitedError, client.fetch).retry_after == seconds
    assert asked(service, client)[3:] == [READ]


def test_recognizes_a_rate_limit_of_any_length(service: SimulatedShare, client: ShareClient) -> None:
    """A wait that no float can hold is a long wait, not an error."""
    service.fault = share_faults.status(429, {"Retry-After": "9" * 400})
    wait = failure(RateLimitedError, client.fetch).retry_after
    assert wait is not None
    assert 1e8 < wait < float("inf")


@pytest.mark.parametrize("call", SIGN_IN)
def test_recognizes_a_rate_limit_of_a_sign_in(service: SimulatedShare, call: str) -> None:
    """A rate limit of a sign-in is not a rejection, whatever the body says."""
    content = json.dumps({"Code": "AccountPasswordInvalid"}).encode()
    service.fault = share_faults.only(share_faults.status(429, {"Retry-After": "60"}, content), call=call)
    client = client_of(service)
    assert failure(RateLimitedError, client.fetch).retry_after == 60
    assert asked(service, client) == SIGN_IN[: SIGN_IN.index(call) + 1]


# Arbitrary input


ReadWith = Callable[[Fault], Batch | ShareError]


@pytest.fixture(scope="module")
def read_with() -> Iterator[ReadWith]:
    """Yield a way to read the answer of a fault, with one client and one server for all."""
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
"""No deadline, since the duration depends on the network; no database of examples left behind."""

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
    """Whatever the bytes of an answer, the result is readings or a ShareError."""
    outcome = read_with(answer(content, status))
    assert isinstance(outcome, ShareError) or status == 200


@settings(anything, max_examples=100)
@given(content=JSON, status=st.sampled_from([200, 500]))
def test_survives_any_json(read_with: ReadWith, content: object, status: int) -> None:
    """Only a list with status 200 is a batch; any other JSON is a ShareError."""
    outcome = read_with(answer(json.dumps(content).encode(), status))
    assert isinstance(outcome, Batch) == (status == 200 and isinstance(content, list))


@settings(anything, max_examples=100)
@given(records=st.lists(RECORDS | JSON, max_size=5), place=st.integers(0, 5))
def test_survives_any_records(read_with: ReadWith, records: list[object], place: int) -> None:
    """Among any records the good one is found, and each is counted once."""
    records.insert(place, GOOD)
    batch = read_with(answer(json.dumps(records).encode()))
    assert isinstance(batch, Batch)
    assert Reading(224, "Flat", 1_745_081_013_817, -240) in batch.readings
    assert len(batch.readings) + len(batch.error_codes) + batch.malformed == len(records)
    assert batch.drifted < len(records)


@settings(anything, max_examples=100)
@given(lines=st.lists(st.tuples(NAMES, VALUES), max_size=6), content=st.binary(max_size=50))
@example(lines=[("Content-Length", b"-1"), ("Content-Length", b"2")], content=b"[]")
def test_survives_any_headers(read_with: ReadWith, lines: list[tuple[str, bytes]], content: bytes) -> None:
    """Whatever the headers of an answer, the result is readings or a ShareError."""
    written = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in lines)
    outcome = read_with(raw(b"HTTP/1.1 200 OK\r\n" + written + b"\r\n" + content, close=True))
    assert isinstance(outcome, Batch | ShareError)


@settings(anything, max_examples=100)
@given(content=st.binary())
def test_survives_any_connection(read_with: ReadWith, content: bytes) -> None:
    """Anything other than HTTP is a ShareError."""
    assert isinstance(read_with(raw(content, close=True)), ShareError)
