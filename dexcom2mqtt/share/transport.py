"""One limited POST: 20 s in all, 1 MiB, verified TLS, and errors whose texts contain no URL.

It knows no session and no reading. The URL of a read contains the session id, and so do the libraries' texts: errors
name only the host and are raised ``from None``. The environment's proxy and authorities are read here (by `route`)
and not by requests, which would also use a .netrc's credentials.
"""

from __future__ import annotations

import functools
import http.client
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

import certifi
import requests
import requests.adapters
import urllib3
import urllib3.connection

from dexcom2mqtt.share.answers import CALL_BYTES, Reply
from dexcom2mqtt.share.bounds import BoundedResponse, InterimError, bounds
from dexcom2mqtt.share.dialling import ProxyError, dial, dial_through
from dexcom2mqtt.share.errors import ArgumentError, UnavailableError, UnexpectedResponseError, VariableError
from dexcom2mqtt.share.route import authorities, proxy_for

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from dexcom2mqtt.clock import Clock

CALL_SECONDS: Final = 20.0
"""How long one call may take in real seconds, not counting the look-up of the host's name."""
_IDLE_SECONDS: Final = 60.0
"""By the clock: after that, a NAT may have forgotten an idle connection, and drop its packets."""
_CERTIFICATE_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_CERTIFICATE_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_NO_NAME: Final = "its name could not be looked up"
_PROXY_AUTHENTICATION_REQUIRED: Final = 407
_FAILURES: Final = range(500, 600)


class Transport:
    """The connection to one server, for a single account, since it keeps cookies.

    Raises ArgumentError, or its subclass VariableError if the environment's proxy or authorities cannot be used.
    """

    def __init__(self, base_url: str, clock: Clock) -> None:
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._http = _Session()
        self._http.trust_env = False  # a .netrc would add credentials, and `route` decides on proxies
        self.host = _host_of(self._base_url)
        """The server, with its port if the URL contains one."""
        self.proxy = proxy_for(self._base_url, os.environ)
        """The proxy to the server; None if it is reached directly."""
        encrypted = self._base_url.lower().startswith("https:")
        for scheme in ("https://", "http://"):
            self._http.mount(scheme, adapter() if encrypted else _plain_adapter())

    @property
    def sent(self) -> bool:
        """Whether the last call of this thread sent anything to the server."""
        return bounds.sent

    def post(self, path: str, body: dict[str, str | None], query: dict[str, str | int | None] | None) -> Reply:
        """POST ``body`` and return the answer. Raises UnavailableError and UnexpectedResponseError."""
        with bounds.call(self._clock, CALL_SECONDS, CALL_BYTES, self.proxy):
            try:
                response = self._http.post(
                    f"{self._base_url}/{path}",
                    params=query,
                    json=body,
                    timeout=CALL_SECONDS,
                    allow_redirects=False,  # a redirect must not get the password
                    stream=True,
                )
                with response:
                    content = response.raw.read(CALL_BYTES + 1, decode_content=True)
            except (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
                self._raise_unreachable(error)
        headers = response.headers
        return Reply(response.status_code, bytes(content), headers.get("Date"), headers.get("Retry-After"))

    def _raise_unreachable(self, error: BaseException) -> NoReturn:
        causes = list(_causes(error))
        if refused := next((cause for cause in causes if isinstance(cause, ProxyError)), None):
            raise UnavailableError(_proxy_failure(refused, self.host), at_proxy=True) from None
        if bounds.bytes_left < 0:
            raise UnexpectedResponseError(f"{self.host} answered more than 1 MiB") from None
        for cause in causes:
            if isinstance(cause, InterimError):
                raise UnexpectedResponseError(f"{self.host} kept delaying its answer") from None
            if isinstance(cause, ssl.SSLCertVerificationError):
                dates = cause.verify_code in {_CERTIFICATE_NOT_YET_VALID, _CERTIFICATE_EXPIRED}
                why = "expired or not yet valid" if dates else "not trusted by this machine"
                text = f"the certificate of {self.host} is {why}"
                raise UnavailableError(text, wrong_clock=dates, missing=None if dates else "authority") from None
        way = "" if self.proxy is None else f" through the proxy {self.proxy}"
        why = _describe(error)
        missing: Literal["name"] | None = "name" if why == _NO_NAME else None
        raise UnavailableError(f"no answer from {self.host}{way}: {why}", missing=missing) from None


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"https", "http"} and parts.hostname and parts.port != 0
        host = parts.netloc.rpartition("@")[2].lower() if usable else None
    except ValueError:
        host = None
    if not host:
        raise ArgumentError("the base URL must begin with https:// or http://, followed by a host")
    return host


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    """Return an error and all its causes; urllib3 keeps causes in ``reason``, and requests in ``args``."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and cause not in seen:
            seen.append(cause)
            waiting += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]
    return seen


def _proxy_failure(error: ProxyError, host: str) -> str:
    """Return what failed at the proxy, and what to do about it."""
    proxy, status, cause = error.proxy, error.status, error.__cause__
    # http.client has no specific class for too many headers.
    endless = isinstance(cause, InterimError | http.client.LineTooLong) or type(cause) is http.client.HTTPException
    if endless or bounds.bytes_left < 0:
        return f"the proxy {proxy} sent an endless answer; is {proxy.variable} right?"
    if isinstance(cause, http.client.HTTPException) and not isinstance(cause, OSError):
        return f"the proxy {proxy} answered with something other than HTTP; is {proxy.variable} right?"
    if status is None:
        return f"no answer from the proxy {proxy}: {_describe(error)}; is it running, and is {proxy.variable} right?"
    if status == _PROXY_AUTHENTICATION_REQUIRED:
        return (
            f"the proxy {proxy} requires a user name and a password, or different ones ({status}): write them into "
            f"{proxy.variable}, as http://user:password@{proxy}"
        )
    if status in _FAILURES:
        return f"the proxy {proxy} cannot reach {host} ({status}); ask whoever runs it"
    return (
        f"the proxy {proxy} does not allow this machine to reach {host} ({status}): allow it there, or add the "
        "server to NO_PROXY"
    )


def _describe(error: BaseException) -> str:
    """Return what failed in our own words: the libraries' texts contain the URL, and so the session id."""
    kinds = [type(cause).__name__ for cause in _causes(error)]
    if "gaierror" in kinds:
        return _NO_NAME
    if "ConnectionRefusedError" in kinds:
        return "the connection was refused"
    if any("Timeout" in kind for kind in kinds):
        return "it took too long"
    if any("SSL" in kind for kind in kinds):
        return "the encrypted connection failed"
    return "the connection was interrupted"


class _BoundedHTTPConnection(urllib3.connection.HTTPConnection):
    response_class = BoundedResponse
    used_at = 0.0

    def _new_conn(self) -> socket.socket:
        """Connect within the call's bounds; urllib3 would give each address and each read the full time."""
        host, port, options = self.host, int(self.port), self.socket_options or ()
        if bounds.proxy is None:
            return dial(host, port, options)
        return dial_through(bounds.proxy, host, port, options)

    @property
    def is_connected(self) -> bool:
        """Whether the connection can be used again. A NAT may forget an idle connection silently."""
        return bounds.now() - self.used_at <= _IDLE_SECONDS and super().is_connected

    def send(self, data: Any) -> None:  # noqa: ANN401  # anything that http.client accepts
        if self.sock is None:
            self.connect()
        bounds.sent = True
        self.used_at = bounds.now()
        super().send(data)


class _BoundedHTTPSConnection(_BoundedHTTPConnection, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _BoundedHTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedHTTPSConnection


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002  # its name in requests
        """Ignore redirects: requests would read the whole body of one, however large it is when unpacked."""
        return


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections with bounds, which share one TLS context: loading the CAs takes long on a Pi."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: object, **options: object) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)  # type: ignore[arg-type]
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def cert_verify(self, *_: object) -> None:
        """Do nothing: the context verifies certificates, and requests would load its CAs again."""


@functools.cache
def adapter() -> _Adapter:
    """Return the adapter for all encrypted requests, made at the first call. Raises VariableError."""
    return _Adapter(_trusting_context())


@functools.cache
def _plain_adapter() -> _Adapter:
    return _Adapter(None)


def _trusting_context() -> ssl.SSLContext:
    """Return a context that trusts the machine's, certifi's and the environment's authorities. Raises VariableError.

    OpenSSL reads two of the variables itself, but silently skips files that it cannot read.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # for a machine without CAs
    named = authorities(os.environ)
    for variable, path in named:
        _trust(context, variable, path)
    if named:  # every Python version then accepts a private authority without further checks
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _trust(context: ssl.SSLContext, variable: str, path: str) -> None:
    try:
        if Path(path).is_dir() and variable != "SSL_CERT_FILE":
            next(Path(path).iterdir(), None)  # OpenSSL reads it only when needed, and ignores errors
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise VariableError(f"{variable}: {path} contains no PEM certificate") from None
    except OSError as error:
        raise VariableError(f"{variable}: {path} cannot be read ({error.strerror})") from None
