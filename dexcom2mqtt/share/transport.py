"""One bounded POST: 20 s in all, 1 MiB, TLS that is verified, and what went wrong in words without a URL.

It knows no session and no reading. The URL of a read holds the session id, and so do the libraries' texts: errors
carry the host alone and are raised ``from None``.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import certifi
import requests
import requests.adapters
import urllib3
import urllib3.connection
from urllib3.util.connection import create_connection

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.share.answers import CALL_BYTES, Reply
from dexcom2mqtt.share.errors import ArgumentError, UnavailableError, UnexpectedResponseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CALL_SECONDS: Final = 20.0
"""How long one call may take in real seconds, the look-up of the host's name aside."""
_CONNECT_SECONDS: Final = 5.0
_MOST_INTERIM: Final = 10
_CERTIFICATE_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_CERTIFICATE_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


class Transport:
    """The connection to one server, for one account at a time: cookies are kept. Raises ArgumentError."""

    def __init__(self, base_url: str, clock: Clock) -> None:
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._http = _Session()
        self._http.trust_env = False  # a .netrc would add credentials, and the daemon is to know its own way
        self._http.mount("https://", adapter())
        self._http.mount("http://", adapter())
        self.host = _host_of(self._base_url)
        """The server, with its port where it has one of its own."""

    @property
    def sent(self) -> bool:
        """Whether the last call of this thread has got as far as sending something."""
        return _limits.sent

    def post(self, path: str, body: dict[str, str | None], query: dict[str, str | int | None] | None) -> Reply:
        """POST ``body`` and return the answer. Raises UnavailableError and UnexpectedResponseError."""
        with _limits.call(self._clock):
            try:
                response = self._http.post(
                    f"{self._base_url}/{path}",
                    params=query,
                    json=body,
                    timeout=(_CONNECT_SECONDS, CALL_SECONDS),
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
        if _limits.bytes_left < 0:
            raise UnexpectedResponseError(f"{self.host} answered more than 1 MiB") from None
        for cause in _causes(error):
            if isinstance(cause, _InterimError):
                raise UnexpectedResponseError(f"{self.host} put off its answer again and again") from None
            if isinstance(cause, ssl.SSLCertVerificationError):
                dates = cause.verify_code in {_CERTIFICATE_NOT_YET_VALID, _CERTIFICATE_EXPIRED}
                why = "outside its dates" if dates else "not one this machine trusts"
                raise UnavailableError(f"the certificate of {self.host} is {why}", wrong_clock=dates) from None
        raise UnavailableError(f"no answer from {self.host}: {_describe(error)}") from None


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


def _describe(error: BaseException) -> str:
    """Say what failed in words of our own: the libraries' texts hold the URL, and so the session id."""
    kinds = [type(cause).__name__ for cause in _causes(error)]
    if "gaierror" in kinds:
        return "its name could not be looked up"
    if "ConnectionRefusedError" in kinds:
        return "the connection was refused"
    if any("Timeout" in kind for kind in kinds):
        return "it took too long"
    if any("SSL" in kind for kind in kinds):
        return "the encrypted connection failed"
    return "the connection or the answer broke off"


class _Limits(threading.local):
    """What the call that this thread is making may still use. Connections are shared, so they look here."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._end = 0.0
        self.bytes_left = 0
        self.sent = False
        """Whether the call has got as far as sending something."""
        self.answers: list[http.client.HTTPResponse] = []
        """What the call has begun to read."""

    @contextlib.contextmanager
    def call(self, clock: Clock) -> Iterator[None]:
        """Begin a call, and close its answers when it ends, however it ends.

        An answer that ends with its connection is all that keeps the socket open, and urllib3 drops it unclosed where
        it finds the head at fault, as with two lengths.
        """
        self._clock = clock
        self._end = clock.now() + CALL_SECONDS * clock.speed
        self.bytes_left = CALL_BYTES
        self.sent = False
        try:
            yield
        finally:
            while self.answers:
                self.answers.pop().close()

    def seconds_left(self) -> float:
        left = self._clock.real(self._end - self._clock.now())
        if left <= 0:
            raise TimeoutError
        return left

    def use(self, count: int) -> int:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise ConnectionAbortedError
        return count


_limits = _Limits()


class _LimitedFile(io.RawIOBase):
    """A socket's file whose every read gets the time that is left of the whole call.

    A socket's own timeout bounds one read: a server that sends a byte each second would never time out.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants any buffer
        self._sock.settimeout(_limits.seconds_left())
        return _limits.use(self._file.readinto(buffer) or 0)

    def close(self) -> None:
        self._file.close()
        super().close()


class _LimitedSocket:
    """What http.client wants of a socket in order to read an answer: a file."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_LimitedFile(self._sock))


class _InterimError(http.client.HTTPException):
    """Too many interim responses (100 Continue), for which nobody asked."""


class _LimitedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
        super().__init__(_LimitedSocket(sock), debuglevel, method)  # type: ignore[arg-type]
        self._interim = 0
        _limits.answers.append(self)

    def _read_status(self) -> tuple[str, int, str]:
        """Read a status line. Only some Pythons limit how many interim ones they pass over."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if status == http.client.CONTINUE:
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                raise _InterimError
        return version, status, reason


def _connect(connection: urllib3.connection.HTTPConnection) -> socket.socket:
    """Connect to the first of the host's addresses that answers; urllib3 gives each the whole time again."""
    failure = OSError()
    for *_, (address, port, *_) in socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM):
        seconds = min(_CONNECT_SECONDS, _limits.seconds_left())
        try:
            sock = create_connection((str(address), int(port)), seconds, socket_options=connection.socket_options)
        except OSError as error:
            failure = error
        else:
            return _for_the_handshake(sock)
    raise failure


def _for_the_handshake(sock: socket.socket) -> socket.socket:
    """Give a new connection what is left of the call; close it where nothing is."""
    try:
        sock.settimeout(_limits.seconds_left())
    except TimeoutError:
        sock.close()
        raise
    return sock


class _LimitedHTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _LimitedResponse
    _new_conn = _connect

    def send(self, data: Any) -> None:  # noqa: ANN401  # whatever http.client takes
        if self.sock is None:
            self.connect()
        _limits.sent = True
        super().send(data)


class _LimitedHTTPSConnection(_LimitedHTTPConnection, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _LimitedHTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _LimitedHTTPSConnection


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002  # its name in requests
        """Know of no redirect: requests would read all of its body, however much that unpacks to."""
        return


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections with limits, and one TLS context for all of them: loading the CAs takes a Pi a while."""

    def init_poolmanager(self, *args: object, **options: object) -> None:
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())  # for a machine without CAs of its own
        super().init_poolmanager(*args, ssl_context=context, **options)  # type: ignore[arg-type]
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def cert_verify(self, *_: object) -> None:
        """Leave the verification to the context, which requires it; requests would load its CAs once more."""


@functools.cache
def adapter() -> _Adapter:
    """Return the one adapter for all requests of the process, made when it is first needed."""
    return _Adapter()
