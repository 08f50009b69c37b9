"""An HTTP proxy that opens tunnels (CONNECT), and ways in which proxies fail."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import pytest

Trouble = Callable[[socket.socket, threading.Event], None]
"""What happens to a connection instead of opening a tunnel; the event is set when the proxy is closed."""

DRIP_SECONDS: Final = 0.05
_VARIABLES: Final = ("https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir", "requests_ca_bundle")


def forget_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the proxy of whoever runs the tests; the tests' own servers are not behind it."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class ConnectProxy(socketserver.ThreadingTCPServer):
    """Connects every tunnel to one port of loopback, whatever the requested host.

    With ``authorization``, only for clients that send exactly that. It passes on at most ``most`` bytes of the server
    and then hangs up, and waits for ``delay`` seconds before it answers.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(
        self,
        port: int = 0,
        *,
        authorization: str | None = None,
        trouble: Trouble | None = None,
        most: int = 2**30,
        delay: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.to = port
        self.authorization = authorization
        self.trouble = trouble
        self.most = most
        self.delay = delay
        self.asked: list[str] = []
        """The first line of each request."""
        self.shown: list[str] = []
        """Their values of Proxy-Authorization."""
        self.closed = threading.Event()
        self.name = f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Print nothing: some tests are about clients that disconnect."""


class _Handler(socketserver.StreamRequestHandler):
    server: ConnectProxy

    def handle(self) -> None:
        asked = self.rfile.readline().decode().strip()
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        shown = headers.get("proxy-authorization", "")
        self.server.asked.append(asked)
        self.server.shown.append(shown)
        self.server.closed.wait(self.server.delay)
        if self.server.trouble is not None:
            self.server.trouble(self.connection, self.server.closed)
        elif self.server.authorization not in {None, shown}:
            refusal(407)(self.connection, self.server.closed)
        else:
            self._open()

    def _open(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.to)) as upstream:
            self.connection.sendall(b"HTTP/1.1 200 Connection established\r\nContent-Length: 5\r\n\r\n")
            back = threading.Thread(target=_pass_on, args=(upstream, self.connection, self.server.most), daemon=True)
            back.start()
            _pass_on(self.connection, upstream, 2**30)
            back.join(10)


def _pass_on(source: socket.socket, target: socket.socket, most: int) -> None:
    with suppress(OSError):
        while most > 0 and (piece := source.recv(min(most, 4096))):
            most -= len(piece)
            target.sendall(piece)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


# Faults


def refusal(status: int) -> Trouble:
    """Answer with a status that opens no tunnel, and with a page."""
    page = b"<html>No.</html>"
    head = f"HTTP/1.1 {status} No Way\r\nContent-Length: {len(page)}\r\n\r\n".encode()
    return lambda connection, _closed: connection.sendall(head + page)


def silence(_connection: socket.socket, closed: threading.Event) -> None:
    """Never answer."""
    closed.wait(30)


def hang_up(connection: socket.socket, _closed: threading.Event) -> None:
    """Close the connection without an answer."""
    connection.shutdown(socket.SHUT_RDWR)


def saying(content: bytes) -> Trouble:
    """Send exactly these bytes instead of an answer, and then nothing more."""

    def trouble(connection: socket.socket, closed: threading.Event) -> None:
        with suppress(OSError):
            connection.sendall(content)
        closed.wait(30)

    return trouble


def dripping(content: bytes) -> Trouble:
    """Send these bytes instead of an answer, one at a time: each read of the client gets something in time."""

    def trouble(connection: socket.socket, closed: threading.Event) -> None:
        with suppress(OSError):
            for byte in content:
                connection.sendall(bytes([byte]))
                if closed.wait(DRIP_SECONDS):
                    return

    return trouble
