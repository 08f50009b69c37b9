"""Asking the daemon on this machine for its health and its broker, through an abstract Unix socket, without a file.

Containers ask every minute, even on the smallest computers. So this module imports no more than it needs.
"""

from __future__ import annotations

import socket
import zlib
from typing import Final

HEALTHY: Final = "healthy"
"""The answer of a daemon whose loops are all alive."""

WHICH_BROKER: Final = b"which broker?"
"""A question; any other is answered with the daemon's health."""

_ANSWER_SECONDS: Final = 5.0


def address(client_id: str) -> str:
    """Return the abstract Unix address of the daemon with this client id, shortened if the id is too long for one."""
    name = client_id.encode(errors="replace")
    return f"\0dexcom2mqtt/{name[:64].decode(errors='replace')}/{zlib.crc32(name):08x}"


def ask(client_id: str) -> str:
    """Return ``HEALTHY`` or why the daemon with this client id is not healthy, after 5 s at the latest."""
    try:
        return _answer(client_id, b"?")
    except TimeoutError:
        return f"the daemon does not answer within {_ANSWER_SECONDS:g} s; is it frozen?"
    except OSError:
        return f"no daemon with the mqtt.client_id {client_id} answers on this machine"


def broker_of(client_id: str) -> str | None:
    """Return the broker of the daemon with this client id, as host:port; None if none answers."""
    try:
        return _answer(client_id, WHICH_BROKER)
    except OSError:
        return None


def _answer(client_id: str, question: bytes) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_ANSWER_SECONDS)
        sock.bind("")  # the kernel chooses an address, for the answer
        sock.connect(address(client_id))
        sock.send(question)
        return sock.recv(4096).decode(errors="replace")
