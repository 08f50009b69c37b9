"""Opening a port, and finding out who has it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
from typing import Final

BACKLOG: Final = 50
_ASKING: Final = 5.0
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # the configured address, not one to bind


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on a port at every address of a name that this machine has. Raises OSError."""
    opened: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRNOTAVAIL:
                close(opened)
                raise
            missing = error  # such as ::1 of localhost, without IPv6
        else:
            opened.append(sock)
    if missing and not opened:
        raise missing
    return opened


def close(sockets: list[socket.socket]) -> None:
    """Close the sockets."""
    for sock in sockets:
        sock.close()


def why(error: OSError) -> str:
    """Say in words why a port cannot be opened."""
    return error.strerror or type(error).__name__


def serves(host: str, port: int) -> bool:
    """Return whether a dexcom2mqtt daemon answers there."""
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=_ASKING)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().read(64).startswith((b"healthy", b"overdue"))
    return False
