"""A place to listen at: taking it, and telling who has it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
from typing import Final

BACKLOG: Final = 50
_ASKING: Final = 5.0
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what is written, not what is taken


def listen(host: str, port: int) -> list[socket.socket]:
    """Take a port at every address of a name that this machine has. Raises OSError."""
    taken: list[socket.socket] = []
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
                close(taken)
                raise
            missing = error  # such as ::1 of localhost, where there is no IPv6
        else:
            taken.append(sock)
    if missing and not taken:
        raise missing
    return taken


def close(sockets: list[socket.socket]) -> None:
    """Give up what was taken."""
    for sock in sockets:
        sock.close()


def why(error: OSError) -> str:
    """Say in words why a port cannot be taken."""
    return error.strerror or type(error).__name__


def serves(host: str, port: int) -> bool:
    """Tell whether a daemon like this one answers there."""
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=_ASKING)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().read(64).startswith((b"healthy", b"overdue"))
    return False
