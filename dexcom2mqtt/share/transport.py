"""One bounded POST: 20 s in all, 1 MiB, TLS that is verified, and what went wrong in words without a URL.

It knows no session and no reading. The URL of a read holds the session id, and so do the libraries' texts: errors
carry the host alone and are raised ``from None``. The environment's proxy and authorities are read here (by `route`)
and not by requests, which would also take a .netrc's credentials.
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
"""How long one call may take in real seconds, the look-up of the host's name aside."""
_IDLE_SECONDS: Final = 60.0
"""By the clock: after that, whatever is between may have forgotten a connection, and drop what comes on it."""
_CERTIFICATE_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_CERTIFICATE_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_NO_NAME: Final = "its name could not be looked up"
_CREDENTIALS_WANTED: Final = 407
_FAILURES: Final = range(500, 600)


class Transport:
    """The connection to one server, for one account at a time: cookies are kept.

    Raises ArgumentError, and VariableError, which is one, where the environment's proxy or authorities are no good.
    """

    def __init__(self, base_url: str, clock: Clock) -> None:
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._http = _Session()
        self._http.trust_env = False  # a .netrc would add credentials, and the daemon is to know its own way
        self.host = _host_of(self._base_url)
        """The server, with its port where it has one of its own."""
        self.proxy = proxy_for(self._base_url, os.environ)
        """Through which the server is reached; None where directly."""
        encrypted = self._base_url.lower().startswith("https:")
        for scheme in ("https://", "http://"):
            self._http.mount(scheme, adapter() if encrypted else _plain_adapter())

    @property
    def sent(self) -> bool:
        """Whether the last call of this thread has got as far as sending something."""
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
                    allow_redirects=False,  # a redirected password would be one given away
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
            raise UnavailableError(_said_of_proxy(refused, self.host), at_proxy=True) from None
        if bounds.bytes_left < 0:
            raise UnexpectedResponseError(f"{self.host} answered more than 1 MiB") from None
        for cause in causes:
            if isinstance(cause, InterimError):
                raise UnexpectedResponseError(f"{self.host} kept delaying its answer") from None
            if isinstance(cause, ssl.SSLCertVerificationError):
                dates = cause.verify_code in {_CERTIFICATE_NOT_YET_VALID, _CERTIFICATE_EXPIRED}
                why = "outside its dates" if dates else "not one this machine trusts"
                told = f"the certificate of {self.host} is {why}"
                raise UnavailableError(told, wrong_clock=dates, missing=None if dates else "authority") from None
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
        raise ArgumentError("the base URL is neither https://host nor http://host")
    return host


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    """Yield an error and what led to it; urllib3 keeps causes in ``reason`` and requests in ``args``."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and cause not in seen:
            seen.append(cause)
            waiting += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]
    return seen


def _said_of_proxy(error: ProxyError, host: str) -> str:
    """Say what failed at the proxy, and what to do; nothing of it is Share's fault."""
    proxy, status, cause = error.proxy, error.status, error.__cause__
    # http.client has no class of its own for too many headers.
    endless = isinstance(cause, InterimError | http.client.LineTooLong) or type(cause) is http.client.HTTPException
    if endless or bounds.bytes_left < 0:
        return f"the proxy {proxy} sent an endless answer; is {proxy.variable} right?"
    if isinstance(cause, http.client.HTTPException) and not isinstance(cause, OSError):
        return f"the proxy {proxy} answered with something other than HTTP; is {proxy.variable} right?"
    if status is None:
        return f"no answer from the proxy {proxy}: {_describe(error)}; does it run, and is {proxy.variable} right?"
    if status == _CREDENTIALS_WANTED:
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
    """Say what failed in words of our own: the libraries' texts hold the URL, and so the session id."""
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
        """Connect within the call's bounds; urllib3 gives each address the whole time again, and each read."""
        host, port, options = self.host, int(self.port), self.socket_options or ()
        if bounds.proxy is None:
            return dial(host, port, options)
        return dial_through(bounds.proxy, host, port, options)

    @property
    def is_connected(self) -> bool:
        """Whether it can be used again. A NAT tells nobody that it has forgotten a connection."""
        return bounds.now() - self.used_at <= _IDLE_SECONDS and super().is_connected

    def send(self, data: Any) -> None:  # noqa: ANN401  # whatever http.client takes
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
        """Know of no redirect: requests would read all of its body, however much that unpacks to."""
        return


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections with bounds, and one TLS context for all of them: loading the CAs takes a Pi a while."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: object, **options: object) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)  # type: ignore[arg-type]
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def cert_verify(self, *_: object) -> None:
        """Leave the verification to the context, which requires it; requests would load its CAs once more."""


@functools.cache
def adapter() -> _Adapter:
    """Return the one adapter for all encrypted requests, made when it is first needed. Raises VariableError."""
    return _Adapter(_trusting_context())


@functools.cache
def _plain_adapter() -> _Adapter:
    return _Adapter(None)


def _trusting_context() -> ssl.SSLContext:
    """Trust the machine's authorities, the usual ones, and those that the environment names. Raises VariableError.

    OpenSSL reads two of the variables itself, and passes over what it cannot read.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # for a machine without CAs of its own
    named = authorities(os.environ)
    for variable, path in named:
        _trust(context, variable, path)
    if named:  # an authority of one's own is taken as it is, by each Python alike
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _trust(context: ssl.SSLContext, variable: str, path: str) -> None:
    try:
        if Path(path).is_dir() and variable != "SSL_CERT_FILE":
            next(Path(path).iterdir(), None)  # OpenSSL looks into it only when it needs to, and in silence
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise VariableError(f"{variable}: {path} holds no certificate in PEM") from None
    except OSError as error:
        raise VariableError(f"{variable}: {path} cannot be read ({error.strerror})") from None
