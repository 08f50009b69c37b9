"""Calls through a real proxy to a real server over TLS: every limit applies, and its faults are blamed on the proxy."""

from __future__ import annotations

import base64
import re
import socket
import traceback
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import pytest

from dexcom2mqtt.share import (
    ArgumentError,
    Batch,
    ShareClient,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
    transport,
)
from dexcom2mqtt.share.bounds import bounds
from dexcom2mqtt.share.errors import VariableError
from tests.support import proxy as at_proxy
from tests.support.proxy import ConnectProxy, Trouble
from tests.support.share_client import (
    ANNA,
    MIB,
    QUINN,
    LittleServer,
    client_of,
    client_to,
    failure,
    host,
    readings_of,
    secrets_in,
    takes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    import trustme

    from dexcom2mqtt.demo.share_service import SimulatedShare

FAR: Final = "https://far.invalid"
"""A server whose name only the proxy can look up."""
AUTHORIZATION: Final = "Basic " + base64.b64encode(f"{QUINN.username}:{QUINN.password}".encode()).decode()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[LittleServer]:
    with LittleServer(authority.issue_cert("far.invalid", "127.0.0.1")) as server:
        yield server


@pytest.fixture
def proxy(server: LittleServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    """Return a proxy that leads to the server and is named in the environment."""
    with ConnectProxy(server.server_address[1]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.name}")
        yield proxy


def far(url: str = FAR) -> ShareClient:
    return ShareClient(username=ANNA.username, password=ANNA.password, base_url=url)


# Through the proxy


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_uses_the_proxy(proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """All calls use one tunnel, and only the proxy looks up the server's name."""
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv(variable, f"http://{proxy.name}")
    client = far()
    assert client.fetch() == Batch()
    assert client.fetch() == Batch()
    assert proxy.asked == ["CONNECT far.invalid:443 HTTP/1.1"]
    assert proxy.shown == [""]
    assert client.proxy == proxy.name
    assert (client.requests, client.logins) == (4, 2)


def test_asks_for_the_port(server: LittleServer, proxy: ConnectProxy) -> None:
    """The proxy is asked for the server's own port; an IPv6 address is in brackets."""
    assert client_to(server).fetch() == Batch()
    failure(UnavailableError, far("https://[::1]:8443").fetch)
    assert proxy.asked == [f"CONNECT {host(server)} HTTP/1.1", "CONNECT [::1]:8443 HTTP/1.1"]


def test_sends_user_and_password(proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password are written before the host, with special characters in hexadecimal."""
    proxy.authorization = AUTHORIZATION
    monkeypatch.setenv("HTTPS_PROXY", with_credentials(proxy))
    client = far()
    assert client.fetch() == Batch()
    assert proxy.shown == [AUTHORIZATION]
    assert client.proxy == proxy.name
    assert not secrets_in(repr(vars(client)["_transport"].proxy))


def with_credentials(proxy: ConnectProxy) -> str:
    return f"http://{quote(QUINN.username, safe='')}:{quote(QUINN.password, safe='')}@{proxy.name}"


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "other.test, 127.0.0.0/8"])
def test_exempt_hosts_are_reached_directly(
    server: LittleServer, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, exempt: str
) -> None:
    """Hosts in NO_PROXY are reached without the proxy."""
    monkeypatch.setenv("NO_PROXY", exempt)
    client = client_to(server)
    assert client.fetch() == Batch()
    assert proxy.asked == []
    assert client.proxy is None


def test_http_uses_no_proxy(service: SimulatedShare, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without TLS, which is on this machine, is never asked through a proxy."""
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, f"http://{proxy.name}")
    client = client_of(service)
    assert client.fetch().readings == readings_of(ANNA)
    assert client.proxy is None
    assert proxy.asked == []


def test_no_netrc_is_read(
    server: LittleServer, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The credentials of a .netrc go neither to the server nor to the proxy, although the environment is used."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login user password word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    far().fetch()
    assert server.credentials == [None] * 3
    assert proxy.shown == [""]


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "http://quinn quokka:3128", "http://proxy:port"])
def test_reports_an_invalid_proxy(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """An invalid variable is an error before anything is sent, and only if it applies."""
    monkeypatch.setenv("HTTPS_PROXY", value)
    error = failure(VariableError, far)
    assert isinstance(error, ArgumentError)
    assert re.match("HTTPS_PROXY: (unsupported kind of proxy|expected a proxy's address)", str(error))
    far("http://127.0.0.1:8000")


# Within the bounds


TROUBLE: Final[dict[str, Trouble]] = {
    "silent": at_proxy.silence,
    "status line byte by byte": at_proxy.dripping(b"HTTP/1.1 200 " + b"OK" * 100),
    "headers byte by byte": at_proxy.dripping(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50),
    "head without end": at_proxy.saying(b"HTTP/1.1 200 OK\r\nX: y\r\n"),
}


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_a_proxy_has_the_time_of_the_call(proxy: ConnectProxy, trouble: Trouble) -> None:
    """A proxy that is silent, or answers endlessly, costs the time of one call, and is blamed."""
    proxy.trouble = trouble
    client = far()
    with takes(0.4, 4):
        error = failure(UnavailableError, client.fetch)
    assert str(error) == (
        f"no answer from the proxy {proxy.name}: it took too long; is it running, and is HTTPS_PROXY right?"
    )
    assert (client.requests, client.logins) == (1, 0)


ENDLESS: Final[dict[str, Trouble]] = {
    "long headers": at_proxy.saying(b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"y" * 60_000 + b"\r\n") * 90 + b"\r\n"),
    "one long header": at_proxy.saying(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2 * MIB),
    "many headers": at_proxy.saying(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n"),
    "100 again and again": at_proxy.saying(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
}


@pytest.mark.parametrize("trouble", ENDLESS.values(), ids=ENDLESS)
def test_a_proxy_has_the_size_of_a_call(proxy: ConnectProxy, trouble: Trouble) -> None:
    """A proxy whose answer is too large is given up, and is blamed."""
    proxy.trouble = trouble
    with takes(0, 4):
        error = failure(UnavailableError, far().fetch)
    assert str(error) == f"the proxy {proxy.name} sent an endless answer; is HTTPS_PROXY right?"
    assert bounds.bytes_left > -MIB


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("drip", [True, False], ids=["answer", "handshake"])
def test_a_call_through_the_proxy_ends_in_time(
    authority: trustme.CA, proxy: ConnectProxy, stack: ExitStack, drip: bool
) -> None:
    """The time of a call includes everything: the tunnel, the handshake, and an answer that arrives byte by byte."""
    if drip:
        server = stack.enter_context(LittleServer(authority.issue_cert("far.invalid"), drip=True))
        proxy.to = server.server_address[1]
    else:
        proxy.to = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    with takes(0.4, 4):
        error = failure(UnavailableError, far().fetch)
    assert str(error) == f"no answer from far.invalid through the proxy {proxy.name}: it took too long"


def test_the_tunnel_counts(proxy: ConnectProxy, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that the proxy took is subtracted from that of the handshake."""
    monkeypatch.setattr(transport, "CALL_SECONDS", 1.5)
    proxy.delay = 1.2
    proxy.to = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    with takes(1.4, 2.4):
        failure(UnavailableError, far().fetch)


def test_an_answer_through_the_proxy_is_limited_in_size(authority: trustme.CA, proxy: ConnectProxy) -> None:
    """An answer of more than 1 MiB is the server's fault, even through a proxy."""
    with LittleServer(authority.issue_cert("far.invalid"), more=MIB) as server:
        proxy.to = server.server_address[1]
        error = failure(UnexpectedResponseError, far().fetch)
    assert str(error) == "far.invalid answered more than 1 MiB"


def test_a_slow_proxy_is_good_enough(proxy: ConnectProxy) -> None:
    """A proxy that opens the tunnel slowly has as much time as a server."""
    proxy.delay = 0.5
    assert far().fetch() == Batch()


# Failures of the proxy


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            407,
            "requires a user name and a password, or different ones (407): write them into HTTPS_PROXY, as http://user:password@",
        ),
        (403, "does not allow this machine to reach far.invalid (403): allow it there, or add the server to NO_PROXY"),
        (302, "does not allow this machine to reach far.invalid (302): allow it there, or add the server to NO_PROXY"),
        (500, "cannot reach far.invalid (500); ask whoever runs it"),
        (502, "cannot reach far.invalid (502); ask whoever runs it"),
        (503, "cannot reach far.invalid (503); ask whoever runs it"),
    ],
)
def test_reports_a_refusal_of_the_proxy(
    server: LittleServer, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    """A proxy's refusal is blamed on the proxy, with what to do, and nothing has reached the server."""
    proxy.trouble = at_proxy.refusal(status)
    monkeypatch.setenv("HTTPS_PROXY", with_credentials(proxy))
    client = far()
    error = failure(UnavailableError, client.fetch)
    assert str(error).startswith(f"the proxy {proxy.name} {words}")
    assert not error.answered
    assert (client.requests, client.logins) == (1, 0)
    assert server.cookies == []


def test_reports_wrong_credentials_for_the_proxy(proxy: ConnectProxy) -> None:
    """If a proxy requires credentials, the error says so, and calls succeed once it gets them."""
    proxy.authorization = AUTHORIZATION
    assert "(407)" in str(failure(UnavailableError, far().fetch))
    proxy.authorization = None
    assert far().fetch() == Batch()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (at_proxy.hang_up, "no answer from the proxy {}: the connection was interrupted; is it running, and is"),
        (at_proxy.saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "the proxy {} answered with something other than HTTP; is"),
        (at_proxy.saying(b"HTTP/7.0 200 OK\r\n\r\n"), "the proxy {} answered with something other than HTTP; is"),
    ],
    ids=["hangs up", "other protocol", "other HTTP"],
)
def test_reports_an_answer_that_is_not_a_proxys(proxy: ConnectProxy, trouble: Trouble, words: str) -> None:
    """If something else accepts the connection, the error says that it is not a proxy."""
    proxy.trouble = trouble
    assert str(failure(UnavailableError, far().fetch)) == f"{words.format(proxy.name)} HTTPS_PROXY right?"


def test_reports_a_missing_proxy(proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is not running, or whose name is unknown, is blamed, and not Share."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    assert str(failure(UnavailableError, far().fetch)) == (
        f"no answer from the proxy 127.0.0.1:{port}: the connection was refused; "
        "is it running, and is HTTPS_PROXY right?"
    )
    for name in ("proxy.invalid", "a..b"):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{name}:3128")
        error = failure(UnavailableError, far().fetch)
        assert str(error).startswith(f"no answer from the proxy {name}:3128: ")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert "its name could not be looked up" in str(failure(UnavailableError, far().fetch))
    assert proxy.asked == []


@pytest.mark.parametrize("most", [0, 100, 2000])
def test_a_tunnel_may_close_halfway(proxy: ConnectProxy, most: int) -> None:
    """A tunnel that closes in the handshake or in an answer is an error that names both, and the next call succeeds."""
    proxy.most = most
    client = far()
    error = failure(UnavailableError, client.fetch)
    assert f"no answer from far.invalid through the proxy {proxy.name}: " in str(error)
    proxy.most = 2**30
    assert client.fetch() == Batch()


def test_the_certificate_is_the_servers(authority: trustme.CA, proxy: ConnectProxy) -> None:
    """Behind a tunnel the server must show its own certificate; a proxy that decrypts traffic is not trusted."""
    with LittleServer(authority.issue_cert("proxy.test")) as inside:
        proxy.to = inside.server_address[1]
        error = failure(UnavailableError, far().fetch)
    assert str(error) == "the certificate of far.invalid is not trusted by this machine"
    assert inside.cookies == []


def test_no_connection_is_left_to_the_garbage_collector(proxy: ConnectProxy) -> None:
    """A connection to a proxy that opens no tunnel is closed immediately, even while its error is referenced."""
    ended: list[bytes] = []

    def trouble(connection: socket.socket, _closed: object) -> None:
        connection.sendall(b"HTTP/1.1 403 No\r\n\r\n")
        connection.settimeout(2)
        ended.append(connection.recv(1))
        proxy.closed.set()

    proxy.trouble = trouble
    with pytest.raises(ShareError) as held:
        far().fetch()
    assert proxy.closed.wait(5)
    assert ended == [b""]
    assert not secrets_in("".join(traceback.format_exception(held.value)))
