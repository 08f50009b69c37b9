"""The route to a server as set in the environment: which proxy to use, and which authorities to trust.

Pure: the variables are parameters; it looks up no name and opens no file. A variable may contain a proxy's user and
password, so no text from here quotes its value.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from dexcom2mqtt.share.errors import VariableError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROXY_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_NO_PROXY_VARIABLES: Final = ("no_proxy", "NO_PROXY")
_FOLDERS_VARIABLE: Final = "SSL_CERT_DIR"
_AUTHORITY_VARIABLES: Final = ("SSL_CERT_FILE", _FOLDERS_VARIABLE, "REQUESTS_CA_BUNDLE")
_HTTPS_PORT: Final = 443
_HTTP_PORT: Final = 80
_UNSUPPORTED_KINDS: Final = {"https", "socks", "socks4", "socks4a", "socks5", "socks5h"}
_NAME: Final = re.compile(r"[\w.-]+")
_WITH_PORT: Final = re.compile(r"(\[[^]]+\]|[^:]+):([0-9]+)")
_ALLOWED: Final = (
    "allowed: http://host:port, with user:password@ before the host if the proxy requires them; write special "
    "characters in these in hexadecimal, such as %40 for @"
)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, which opens a tunnel (CONNECT). Its ``str`` is host and port."""

    host: str
    port: int
    variable: str
    """The environment variable that names it."""
    authorization: str | None = field(default=None, repr=False)
    """Its user and password, as the value of the header Proxy-Authorization; a secret."""

    def __str__(self) -> str:
        return at(self.host, self.port)


def at(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a URL; None if there is none, and always for http. Raises VariableError.

    As in curl, the first variable that is set of https_proxy, HTTPS_PROXY, all_proxy and ALL_PROXY counts, and an empty
    value means no proxy.
    """
    parts = urlsplit(url)
    variable = _first_set(_PROXY_VARIABLES, environ)
    value = environ.get(variable, "").strip()
    if parts.scheme != "https" or not value:
        return None
    exempt = environ.get(_first_set(_NO_PROXY_VARIABLES, environ), "")
    if is_exempt(parts.hostname or "", parts.port or _HTTPS_PORT, exempt):
        return None
    return _parsed(variable, value)


def authorities(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each file or folder of authorities that the environment names, with its variable."""
    named = [(variable, environ[variable]) for variable in _AUTHORITY_VARIABLES if environ.get(variable)]
    return [
        (variable, path)
        for variable, value in named
        for path in (value.split(":") if variable == _FOLDERS_VARIABLE else [value])
        if path
    ]


def is_exempt(host: str, port: int, exempt: str) -> bool:
    """Return whether ``exempt``, the value of NO_PROXY, exempts a host from the proxy.

    Its entries are separated by commas or blanks: ``*`` for every host, a name for itself and all names below it, an
    address, or a range of addresses such as 192.168.0.0/16; each of them also with ``:port``.
    """
    host = host.lower().rstrip(".")
    return any(_covers(entry, host, port) for entry in re.split(r"[\s,]+", exempt.lower()) if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    if with_port := _WITH_PORT.fullmatch(entry):
        entry = with_port[1]
        if int(with_port[2]) != port:
            return False
    entry = entry.strip("[]")
    try:
        addresses = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    try:
        return ipaddress.ip_address(host) in addresses
    except ValueError:
        return False


def _first_set(variables: tuple[str, ...], environ: Mapping[str, str]) -> str:
    return next((variable for variable in variables if variable in environ), variables[0])


def _parsed(variable: str, value: str) -> Proxy:
    kind, marked, rest = value.partition("://")
    if not marked:
        kind, rest = "http", value
    if kind.lower() in _UNSUPPORTED_KINDS:
        raise VariableError(f"{variable}: unsupported kind of proxy, {kind.lower()}://; {_ALLOWED}")
    malformed = VariableError(f"{variable}: expected a proxy's address (value hidden); {_ALLOWED}")
    if kind.lower() != "http" or not value.isprintable() or " " in value:
        raise malformed
    try:
        parts = urlsplit(f"http://{rest}")
        host, port = parts.hostname or "", _HTTP_PORT if parts.port is None else parts.port
    except ValueError:  # its text quotes the value
        raise malformed from None
    if not _is_host(host) or port == 0 or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise malformed
    return Proxy(host, port, variable, _basic(parts.username, parts.password))


def _is_host(host: str) -> bool:
    if _NAME.fullmatch(host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None:
        return None
    credentials = f"{unquote(user)}:{unquote(password or '')}"
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"
