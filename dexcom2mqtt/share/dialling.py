"""Connecting within a call's bounds: to one address of a host after the other, and through a proxy if there is one.

It knows no TLS and no URL. A proxy's user and password are sent to it, and appear nowhere else.
"""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.share.bounds import BoundedResponse, bounds
from dexcom2mqtt.share.route import Proxy, at

if TYPE_CHECKING:
    from collections.abc import Iterable

SILENT_SECONDS: Final = 2.0
"""How long to wait for an address, in real seconds, while another one is left."""
_GOOD: Final = range(200, 300)

_worked: dict[tuple[str, int], Any] = {}
"""For each host and port, the address that worked last."""


class ProxyError(OSError):
    """The proxy cannot be used: it answered with a ``status`` other than success, or its ``__cause__`` says why."""

    def __init__(self, proxy: Proxy, status: int | None = None) -> None:
        super().__init__()
        self.proxy = proxy
        self.status = status


def dial(host: str, port: int, options: Iterable[tuple[int, int, int | bytes]]) -> socket.socket:
    """Return a connection to the first address of a host that accepts one, beginning with the one that worked last.

    ``options`` are the socket's. Raises OSError, and ValueError if the name of the host is impossible.
    """
    with bounds.untimed():
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses.sort(key=lambda address: address[4] != _worked.get((host, port)))
    failure = OSError()
    for others, (family, kind, protocol, _, address) in zip(reversed(range(len(addresses))), addresses, strict=True):
        left = bounds.seconds_left()
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(left, SILENT_SECONDS) if others else left)
            for option in options:
                sock.setsockopt(*option)
            sock.connect(address)
            sock.settimeout(bounds.seconds_left())  # for the next step, such as the TLS handshake
        except OSError as error:
            sock.close()
            failure = error
        else:
            _worked[host, port] = address
            return sock
    raise failure


def dial_through(proxy: Proxy, host: str, port: int, options: Iterable[tuple[int, int, int | bytes]]) -> socket.socket:
    """Return a connection to a host through a proxy. Raises ProxyError for any failure."""
    try:
        sock = dial(proxy.host, proxy.port, options)
    except (OSError, ValueError) as error:
        raise ProxyError(proxy) from error
    try:
        _open_tunnel(proxy, sock, at(host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _open_tunnel(proxy: Proxy, sock: socket.socket, where: str) -> None:
    credentials = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    try:
        sock.sendall(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{credentials}\r\n".encode())
        answer = BoundedResponse(sock, method="CONNECT")
        answer.begin()
        sock.settimeout(bounds.seconds_left())  # for the TLS handshake
    except (OSError, http.client.HTTPException) as error:
        raise ProxyError(proxy) from error
    if answer.status not in _GOOD:
        raise ProxyError(proxy, answer.status)
