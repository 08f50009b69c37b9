"""Who may read: by a client's address, its token, and the name by which it calls this machine. Pure.

A foreign web page can make a browser in this network send requests here, under any name that it points here (DNS
rebinding). So only names that nobody outside can assign are served.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(?::\d{1,5})?", re.ASCII)
_LABELS: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in. Without a token everybody may read; ``names`` are this machine's, None for any name.

    ``peers`` are the IPv4 addresses that may connect, None for any.
    """

    token: str | None = None
    names: frozenset[str] | None = frozenset()
    peers: frozenset[str] | None = None

    def knows_peer(self, address: str) -> bool:
        """Return whether this address may connect. An IPv6 socket puts ``::ffff:`` before IPv4 addresses."""
        return self.peers is None or address.lower().removeprefix("::ffff:") in self.peers

    def knows_token(self, given: Iterable[str]) -> bool:
        """Return whether one of these is the token: in plain, as ``token=…``, or as its SHA-1.

        It takes equally long if none is.
        """
        if self.token is None:
            return True
        right = [_digest(self.token), _digest(f"token={self.token}")]
        hashed = _digest(hashlib.sha1(self.token.encode(), usedforsecurity=False).hexdigest())
        found = False
        for text in given:
            for digest in right:
                found |= hmac.compare_digest(_digest(text), digest)
            found |= hmac.compare_digest(_digest(text.lower()), hashed)
        return found

    def knows_host(self, host: str | None) -> bool:
        """Return whether a Host header names this machine; a client that sends none is not a browser."""
        if self.names is None or host is None:
            return True
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = (match["name"] or "").rstrip(".")
        if match["v6"] or _is_address(name):
            return _is_address(match["v6"] or name)
        return name == "localhost" or name in self.names or _is_of_the_network(name)


def bearer(authorization: str) -> str:
    """Return the token of an Authorization header, empty if it has none."""
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(text: str) -> bytes:
    """Make texts equally long, so that comparing them does not reveal the length of the right one."""
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_of_the_network(name: str) -> bool:
    """Return whether a name is one that machines announce in their own network, and that no name server has."""
    return name.endswith(".local") and _LABELS.fullmatch(name) is not None
