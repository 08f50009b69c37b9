"""One call over real HTTP: its time and memory are limited, TLS is verified, and no secret leaks."""

from __future__ import annotations

import base64
import contextlib
import logging
import queue
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest
import trustme

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.demo.share_service import Fault, Request, Respond, Response, SimulatedShare
from dexcom2mqtt.share import Batch, ShareClient, ShareError, UnavailableError, UnexpectedResponseError, transport
from tests.support import share_faults
from tests.support.share_client import (
    ACCOUNTS,
    ANNA,
    AUTHENTICATE,
    KIM,
    LOGIN,
    MIB,
    NOW,
    QUINN,
    READ,
    SIGN_IN,
    WRITTEN,
    LittleServer,
    asked,
    client_of,
    client_to,
    failure,
    head,
    host,
    listen,
    raw,
    read,
    readings_of,
    secrets_in,
    takes,
)

if TYPE_CHECKING:
    from collections.abc import Callable


# Encodings


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("in_chunks", [True, False], ids=["chunked", "of known length"])
def test_reads_every_encoding(service: SimulatedShare, client: ShareClient, in_chunks: bool, compress: bool) -> None:
    """The answer may be compressed or not, in chunks or not: the client says that it accepts both."""
    heard: list[Request] = []

    def sent(request: Request, respond: Respond) -> Response:
        return replace(respond(request), chunked=in_chunks, compress=compress)

    service.fault = share_faults.chain(listen(heard), read(sent))
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
    """No readings, in whatever encoding, are no readings and no error."""
    service.fault = read(raw(content, close=b"Length" not in content))
    assert client.fetch() == Batch()


def test_ignores_bytes_after_an_answer(service: SimulatedShare, client: ShareClient) -> None:
    """Bytes after the end of an answer are not used as the answer to the next request."""
    two = head("Content-Length: 2") + b"[]"
    service.fault = read(raw(two * 2))
    assert client.fetch() == Batch()
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)


@pytest.mark.parametrize(
    ("content", "calls"),
    [
        (b"HTTP/1.1 200", [READ, LOGIN, READ]),
        (head()[:-2], [READ, LOGIN, READ]),
        (head("Content-Length: 9")[:-2], [READ]),
        (head("Transfer-Encoding: chunked")[:-2], [READ]),
    ],
)
def test_a_truncated_head_is_not_a_batch(
    service: SimulatedShare, client: ShareClient, content: bytes, calls: list[str]
) -> None:
    """An answer that breaks off within its head is an error; if it looks empty, the session is renewed first."""
    service.fault = read(raw(content, close=True))
    failure(UnavailableError, client.fetch)
    assert asked(service, client)[3:] == calls


@pytest.mark.parametrize("lines", [("Connection: close", "Content-Length: 1"), ("Content-Length: -1",)], ids=str)
def test_leaves_no_connection_to_the_garbage_collector(
    service: SimulatedShare, client: ShareClient, lines: tuple[str, ...]
) -> None:
    """An answer with a malformed head is closed immediately, not when its error is forgotten."""
    received: queue.Queue[bytes] = queue.Queue()

    def deliver(connection: socket.socket, _head: bytes, _content: bytes) -> bool:
        connection.sendall(head(*lines, "Content-Length: 2") + b"[]")
        received.put(connection.recv(1))
        return False

    service.fault = read(lambda _request, _respond: Response(delivery=deliver))
    with pytest.raises(UnavailableError) as held:
        client.fetch()
    assert received.get(timeout=2) == b""
    del held


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_accepts_an_answer_of_nearly_one_mebibyte(service: SimulatedShare, client: ShareClient, compress: bool) -> None:
    """A long answer is fine up to the limit, which applies to a compressed one when unpacked too."""
    service.fault = read(share_faults.padded(MIB if compress else MIB - 1000, compress=compress))
    assert client.fetch().readings == readings_of(ANNA)
    service.fault = read(share_faults.padded(MIB + 1, compress=compress))
    error = failure(UnexpectedResponseError, client.fetch)
    assert "more than 1 MiB" in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [*SIGN_IN, READ])
def test_follows_no_redirect(service: SimulatedShare, status: int, call: str) -> None:
    """A redirect is an error: neither the password nor the session goes to its target."""
    with SimulatedShare(ACCOUNTS, lambda: NOW) as other:
        path = {
            AUTHENTICATE: "General/AuthenticatePublisherAccount",
            LOGIN: "General/LoginPublisherAccountById",
            READ: "Publisher/ReadPublisherLatestGlucoseValues",
        }[call]
        service.fault = share_faults.only(
            share_faults.status(status, {"Location": f"{other.base_url}/{path}"}), call=call
        )
        client = client_of(service)
        failure(UnavailableError, client.fetch)
        assert asked(service, client) == [*SIGN_IN, READ][: [*SIGN_IN, READ].index(call) + 1]
        assert other.requests == []


@pytest.mark.parametrize("location", ["http://[::1", "//", "\xff\xfe", "", "http://localhost:99999/"])
def test_reads_no_redirect(service: SimulatedShare, client: ShareClient, location: str) -> None:
    """A redirect to an invalid address is an error like any other status."""
    service.fault = read(share_faults.status(302, {"Location": location}))
    assert str(failure(UnavailableError, client.fetch)) == f"{host(service)} answered with status 302"


# Hosts


def test_reports_a_refused_connection(service: SimulatedShare, client: ShareClient) -> None:
    """A server that is down is an error that says so; when it is back, the session continues."""
    at = host(service)
    service.close()
    failure(UnavailableError, client_of(service).fetch)
    error = failure(UnavailableError, client.fetch)
    assert (str(error), error.missing) == (f"no answer from {at}: the connection was refused", None)
    assert client.requests == 4
    service.start()
    assert client.fetch().readings == readings_of(ANNA)
    assert client.logins == 2


def test_reports_an_unknown_host() -> None:
    """A host that cannot be looked up is unavailable, and the error says so."""
    client = ShareClient(username="a", password="b", base_url="https://share.invalid/Services")
    error = failure(UnavailableError, client.fetch)
    assert str(error) == "no answer from share.invalid: its name could not be looked up"
    assert (error.missing, error.wrong_clock) == ("name", False)
    assert (client.requests, client.logins) == (1, 0)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".invalid", "*"])
def test_reports_an_impossible_host(host: str) -> None:
    """A host with an impossible name is unavailable too: that only shows when it is looked up."""
    failure(UnavailableError, ShareClient(username="a", password="b", base_url=f"http://{host}").fetch)


# Time limits


def dripping(content: bytes | None = None) -> Fault:
    """Send the whole answer, or this one, byte by byte: every read of the client gets something in time."""

    def fault(request: Request, respond: Respond) -> Response:
        slow = share_faults.drip(0.05)(request, respond)
        return replace(
            slow, delivery=lambda connection, top, rest: slow.delivery(connection, b"", content or top + rest)
        )

    return fault


SLOW: Final = {
    "no answer": share_faults.hang(),
    "byte by byte": dripping(),
    "body byte by byte": share_faults.drip(0.05),
    "body of known length byte by byte": dripping(b"  [          ]" + b" " * 200),
    "one header without end": dripping(head("X: " + "y" * 1000)),
    "100 again and again": dripping(head(status=100) * 100),
    "chunk by chunk": dripping(head("Transfer-Encoding: chunked") + b"1\r\n \r\n" * 200),
}


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("fault", SLOW.values(), ids=SLOW)
def test_a_call_ends_in_time(service: SimulatedShare, client: ShareClient, fault: Fault) -> None:
    """A call that would take too long ends when its time is over, even while bytes keep arriving."""
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
    service.fault = share_faults.only(dripping(), call=call)
    with takes(0.4, 4):
        failure(UnavailableError, client_of(service).fetch)


@pytest.mark.usefixtures("short_calls")
def test_a_call_has_its_time_in_real_seconds(service: SimulatedShare) -> None:
    """A fast clock makes no call shorter: the network is not faster."""
    client = client_of(service, clock=Clock(speed=10_000))
    assert client.fetch().readings == readings_of(ANNA)
    service.fault = share_faults.hang()
    with takes(0.4, 4):
        failure(UnavailableError, client.fetch)


@pytest.mark.usefixtures("short_calls")
def test_a_handshake_ends_in_time() -> None:
    """A server that accepts the connection but never begins TLS is given up in time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with takes(0.4, 4):
            failure(UnavailableError, ShareClient(username="a", password="b", base_url=url).fetch)


@pytest.mark.usefixtures("short_calls")
def test_threads_share_no_limit(service: SimulatedShare) -> None:
    """Calls in one thread neither prolong nor shorten a call in another, which ends in its own time."""
    service.fault = share_faults.only(dripping(), account=QUINN.username)
    slow = threading.Thread(target=failure, args=(UnavailableError, client_of(service, QUINN).fetch))
    client, fetched = client_of(service), 0
    with takes(0.4, 4):
        slow.start()
        while slow.is_alive() and fetched < 1000:
            assert client.fetch().readings == readings_of(ANNA)
            fetched += 1
        slow.join()
    assert fetched > 3


# Connections


def noting_peers(peers: list[object], *, then: Callable[[socket.socket], bool] = lambda _: True) -> Fault:
    """Answer as the service does, and record from which port of the client each request comes."""

    def deliver(connection: socket.socket, top: bytes, content: bytes) -> bool:
        peers.append(connection.getpeername())
        connection.sendall(top + content)
        return then(connection)

    return lambda request, respond: replace(respond(request), delivery=deliver)


def test_keeps_the_connection(service: SimulatedShare) -> None:
    """Sign-in and reads, including errors, use one connection."""
    peers: list[object] = []
    client = client_of(service)
    for fault in (
        sim.no_fault,
        share_faults.html(503),
        share_faults.status(429),
        share_faults.error("X"),
        share_faults.truncated(),
        sim.no_fault,
    ):
        service.fault = share_faults.chain(noting_peers(peers), read(fault))
        with contextlib.suppress(ShareError):
            client.fetch()
    assert len(peers) == 8
    assert len(set(peers)) == 1


def test_reconnects_if_the_connection_was_closed(service: SimulatedShare) -> None:
    """A server that closes an idle connection causes no error."""
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


class LaterClock(Clock):
    """A clock that can be set forward, like that of a suspended machine."""

    later = 0.0

    def now(self) -> float:
        return super().now() + self.later


@pytest.mark.parametrize("speed", [1, 60])
def test_reconnects_if_the_connection_was_idle(service: SimulatedShare, speed: float) -> None:
    """A connection that was idle for more than a minute is not used again: a NAT may have forgotten it."""
    peers: list[object] = []
    service.fault = noting_peers(peers)
    clock = LaterClock(speed)
    client = client_of(service, clock=clock)
    client.fetch()
    for seconds in (30, 61, 30, 5 * 60):
        clock.later += seconds
        assert client.fetch().readings == readings_of(ANNA)
    *_, first, second, third, fourth, fifth = peers
    assert first == second
    assert third == fourth
    assert len({first, third, fifth}) == 3


def test_reconnects_if_the_server_was_restarted(service: SimulatedShare, client: ShareClient) -> None:
    """A server that restarts between requests causes no error, and the session stays."""
    service.close()
    service.start()
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[3:] == [READ]


def test_a_connection_works_in_every_thread(service: SimulatedShare, client: ShareClient) -> None:
    """A connection that one thread has opened works in another, with that thread's limits."""
    peers: list[object] = []
    service.fault = noting_peers(peers)
    client.fetch()
    batches: list[Batch] = []
    thread = threading.Thread(target=lambda: batches.append(client.fetch()))
    thread.start()
    thread.join()
    assert batches == [Batch(readings_of(ANNA))]
    assert len(set(peers)) == 1


def test_sends_cookies_only_for_their_account() -> None:
    """A cookie from one account's answers is sent with that account's requests, and with no other's."""
    with LittleServer() as server:
        anna, quinn = client_to(server), client_to(server)
        anna.fetch()
        quinn.fetch()
        anna.fetch()
    assert server.cookies == ["", "n=1", "n=2", "", "n=4", "n=5", "n=3"]


# TLS


def test_trusts_the_authorities_of_the_machine(authority: trustme.CA) -> None:
    """A certificate of an authority in SSL_CERT_FILE is good."""
    with LittleServer(authority.issue_cert("127.0.0.1")) as server:
        client = client_to(server)
        assert client.fetch() == Batch()
        assert client.time.known
        assert (client.requests, client.logins) == (3, 2)


WEEK = timedelta(days=7)


@pytest.mark.parametrize(
    ("name", "begins", "ends", "wrong_clock", "why"),
    [
        pytest.param("127.0.0.1", -2 * WEEK, -WEEK, True, "expired or not yet valid", id="expired"),
        pytest.param("127.0.0.1", WEEK, 2 * WEEK, True, "expired or not yet valid", id="not yet valid"),
        pytest.param("localhost", -WEEK, WEEK, False, "not trusted by this machine", id="of another host"),
    ],
)
def test_reports_an_invalid_certificate(
    authority: trustme.CA, name: str, begins: timedelta, ends: timedelta, wrong_clock: bool, why: str
) -> None:
    """If only the dates of a certificate are wrong, this machine's clock may be the cause; otherwise it is not."""
    today = datetime.now(UTC)
    certificate = authority.issue_cert(name, not_before=today + begins, not_after=today + ends)
    with LittleServer(certificate) as server:
        error = failure(UnavailableError, client_to(server).fetch)
    assert error.wrong_clock is wrong_clock
    assert error.missing == (None if wrong_clock else "authority")
    assert str(error) == f"the certificate of {host(server)} is {why}"
    assert server.cookies == []


@pytest.mark.usefixtures("authority")
def test_trusts_no_other_authority() -> None:
    """A certificate of an unknown authority is not trusted, nothing is sent, and the clock is not blamed."""
    with LittleServer(trustme.CA().issue_cert("127.0.0.1")) as server:
        error = failure(UnavailableError, client_to(server).fetch)
    assert not error.wrong_clock
    assert str(error) == f"the certificate of {host(server)} is not trusted by this machine"
    assert server.cookies == []


def test_trusts_the_usual_authorities_everywhere(authority: trustme.CA) -> None:
    """The authorities of certifi are trusted even if the machine names others."""
    del authority
    context = transport.adapter().poolmanager.connection_pool_kw["ssl_context"]
    assert len(context.get_ca_certs()) > 50


def test_reports_a_server_without_tls(service: SimulatedShare) -> None:
    """A server that does not speak TLS where it should is unavailable, and the clock is not blamed."""
    client = client_of(service, base_url=service.base_url.replace("http:", "https:"))
    error = failure(UnavailableError, client.fetch)
    assert not error.wrong_clock
    assert str(error) == f"no answer from {host(service)}: the encrypted connection failed"
    assert service.requests == []


@pytest.mark.usefixtures("short_calls")
def test_a_call_over_tls_ends_in_time(authority: trustme.CA) -> None:
    """The time limit applies to TLS as well, while one byte after another arrives."""
    with LittleServer(authority.issue_cert("127.0.0.1"), drip=True) as server, takes(0.4, 4):
        error = failure(UnavailableError, client_to(server).fetch)
    assert str(error) == f"no answer from {host(server)}: it took too long"
    assert not error.wrong_clock


# Secrets


@pytest.mark.parametrize("write", [*WRITTEN, lambda text: base64.b64encode(f"x{text}y".encode()).decode()])
@pytest.mark.parametrize("secret", [ANNA.username, KIM.password, ANNA.account_id])
def test_the_search_for_secrets_finds_them(secret: str, write: Callable[[str], str]) -> None:
    """The search that every test here relies on finds a secret in every spelling, and nothing else."""
    assert secrets_in(f"/{write(secret)} and more") == {secret}
    assert secrets_in("https://share2.dexcom.com/ShareWebServices/Services/General answered with status 500") == set()


MALFORMED_HEADERS: Final = head("Content-Length: 2", "no header", "Date: x") + b"[]"


def test_the_library_would_log_the_session(
    service: SimulatedShare, client: ShareClient, caplog: pytest.LogCaptureFixture
) -> None:
    """urllib3 logs the URL with the session id, also as a warning: the daemon has to silence it."""
    service.fault = read(raw(MALFORMED_HEADERS, close=True))
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    client.fetch()
    assert secrets_in(caplog.text)
    caplog.clear()


def test_the_log_contains_no_secret(
    service: SimulatedShare, client: ShareClient, caplog: pytest.LogCaptureFixture
) -> None:
    """With the daemon's settings nothing is logged about calls, good or bad."""
    service.fault = read(raw(MALFORMED_HEADERS, close=True))
    client.fetch()
    for fault in (share_faults.drop(), share_faults.error("X"), sim.no_fault):
        service.fault = fault
        with contextlib.suppress(ShareError):
            client.fetch()
    assert caplog.text == ""
