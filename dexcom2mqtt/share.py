"""A client of the Dexcom Share service: sign in, renew the session, fetch readings. Useful on its own.

It owns HTTP and the translation of every answer, good, bad or broken, into readings or into one small family
of errors, each of which says what the caller does next. It knows nothing of schedules, of MQTT, or of what is
done with a reading. The service is unofficial: nothing is taken for granted.

Never logged, and never part of an error's text: user names, passwords, account ids and session ids. The URL of
a read holds the session id, so errors carry the host and the status alone and are raised ``from None``.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import socket
import ssl
import threading
import uuid
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args
from urllib.parse import urlsplit

import certifi
import requests
import requests.adapters
import urllib3
import urllib3.connection
from urllib3.util.connection import create_connection

from dexcom2mqtt.clock import Clock, ShareTime, parse_http_date
from dexcom2mqtt.readings import LOW_MG_DL, MalformedRecordError, Reading, parse_record

if TYPE_CHECKING:
    from collections.abc import Iterable

Region = Literal["us", "ous", "jp"]

BASE_URLS: Final[dict[Region, str]] = {
    "us": "https://share2.dexcom.com/ShareWebServices/Services",
    "ous": "https://shareous1.dexcom.com/ShareWebServices/Services",
    "jp": "https://share.dexcom.jp/ShareWebServices/Services",
}
_APPLICATION_IDS: Final[dict[Region, str]] = {
    "us": "d89443d2-327c-4a6f-89e5-496bbb0317db",
    "ous": "d89443d2-327c-4a6f-89e5-496bbb0317db",
    "jp": "d8665ade-9673-4e27-9ff6-92db4ce13d13",
}

MAX_MINUTES: Final = 1440
"""How far back Share remembers, in minutes."""
MAX_COUNT: Final = 288
"""How many records Share gives at most: 24 hours of one each 5 minutes, less if several devices upload each reading."""
CURRENT_MINUTES: Final = 10
"""How old, in minutes, the reading may be that ``current_reading`` returns."""

CALL_SECONDS: Final = 20.0
"""How long one call may take in real seconds, the look-up of the host's name aside."""
CALL_BYTES: Final = 1024 * 1024
"""How long one answer may be, both as sent and unpacked."""
_CONNECT_SECONDS: Final = 5.0
_MOST_BRACKETS: Final = 20_000
"""How many arrays and objects an answer may have; 288 readings and their list are 289."""
_MOST_INTERIM: Final = 10

_READ: Final = "Publisher/ReadPublisherLatestGlucoseValues"
_NO_ID: Final = str(uuid.UUID(int=0))

_REJECTED: Final = frozenset(
    {"AccountPasswordInvalid", "SSO_AuthenticateAccountNotFound", "SSO_AuthenticatePasswordInvalid"}
)
_NOTHING_SHARED: Final = "MonitoredReceiverNotAssigned"
_SIGNED_OUT: Final = frozenset({"SessionIdNotFound", "SessionNotValid"})
_GATEWAY: Final = frozenset({502, 503, 504})
_CERTIFICATE_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_CERTIFICATE_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


class ShareError(Exception):
    """Whatever went wrong with Share. The text names no secret and quotes nothing that Share said."""


class ArgumentError(ShareError, ValueError):
    """The caller passed something that Share cannot take; nothing was sent."""


class UnavailableError(ShareError):
    """Share could not be reached or is out of order: try again soon."""

    def __init__(self, text: str, *, wrong_clock: bool = False, answered: bool = False) -> None:
        super().__init__(text)
        self.wrong_clock = wrong_clock
        """Whether the certificate is outside its dates, as when this machine's clock is wrong."""
        self.answered = answered
        """Whether Share itself answered: not if there was no answer, and not if it is a gateway's (502, 503, 504)."""


class CredentialsRejectedError(ShareError):
    """Share does not accept user name, password, or region. Trying again and again locks the account."""


class LockedOutError(ShareError):
    """Too many failed sign-ins: Share accepts none for 15 to 20 minutes, and every try renews that."""


class RateLimitedError(ShareError):
    """Too many requests: ask nothing of this server for a while."""

    def __init__(self, text: str, retry_after: float | None) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        """How many seconds the server asked to wait; None where it did not say."""


class UnexpectedResponseError(ShareError):
    """Share answered something that nobody understands yet."""


class _SignedOutError(ShareError):
    """The session is gone; only the client itself ever sees this."""


class _NothingSharedError(ShareError):
    """A read of an account that shares nothing; only the client itself ever sees this."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read brought: the readings, oldest first, and what was none."""

    readings: tuple[Reading, ...] = ()
    error_codes: tuple[int, ...] = ()
    """When the sensor sent error codes (values below 39, no glucose), in Unix milliseconds."""
    malformed: int = 0
    """How many records made no sense."""
    newest_malformed: bool = False
    """Whether the newest record, which Share sends first, made no sense while others did."""
    drifted: int = 0
    """How many readings and error codes came in a form that Share did not use before: see ``Reading.drifted``."""
    nothing_shared: bool = False
    """Whether Share says that nothing is shared from this account: no sensor, sharing off, or no follower."""


class ShareClient:
    """One account of the Dexcom Share service; for use by one thread at a time.

    The credentials are those of the publisher, who wears the sensor, never a follower's. ``username`` is a user
    name, an e-mail address, or a phone number written ``+11234567890``; ``account_id`` is a UUID; exactly one
    of the two. ``base_url`` takes the place of the region's server. Nothing is sent before the first reading is
    asked for.

    Raises ArgumentError where these do not fit.
    """

    def __init__(  # noqa: PLR0913  # all but the password are optional, and by name
        self,
        *,
        password: str,
        username: str | None = None,
        account_id: str | None = None,
        region: Region = "us",
        base_url: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if (username is None) == (account_id is None):
            raise ArgumentError("give either a user name or an account id, and not both")
        if not password or username == "":
            raise ArgumentError("the user name and the password cannot be empty")
        if account_id is not None and not _is_id(account_id):
            raise ArgumentError("the account id is not a UUID")
        if region not in get_args(Region):
            raise ArgumentError(f"the region is none of {', '.join(get_args(Region))}")
        self._username = username
        self._password = password
        self._account_id = account_id
        self._session_id: str | None = None
        self._base_url = (base_url or BASE_URLS[region]).rstrip("/")
        self._application_id = _APPLICATION_IDS[region]
        self._clock = clock or Clock()
        self._http = _Session()
        self._http.trust_env = False  # a .netrc would add credentials, and the daemon is to know its own way
        self._http.mount("https://", _adapter())
        self._http.mount("http://", _adapter())
        self.host = _host_of(self._base_url)
        """The server, with its port where it has one of its own."""
        self.time = ShareTime(self._clock)
        """The time of day, as this account's server tells it."""
        self.requests = 0
        """How many requests were made so far, answered or not."""
        self.logins = 0
        """How many of them carried the password: not those for which there was no connection."""
        self.sessions = 0
        """How many sessions were opened."""

    @property
    def signed_in(self) -> bool:
        """Whether there is a session, as far as is known."""
        return self._session_id is not None

    @property
    def sign_in_requests(self) -> int:
        """How many requests with the password a sign-in takes: one where the account id is known, else two."""
        return 1 if self._account_id else 2

    def readings(self, minutes: int = MAX_MINUTES, max_count: int = MAX_COUNT) -> list[Reading]:
        """Return the readings of the last ``minutes`` (1 to 1440), at most ``max_count`` (1 to 288) of them.

        They come newest first. Raises ArgumentError outside these bounds, and the rest of the ShareError family.
        """
        return list(reversed(self.fetch(minutes, max_count).readings))

    def latest_reading(self) -> Reading | None:
        """Return the newest reading of the last 24 hours, or None. Raises ShareError."""
        return next(iter(self.readings()), None)

    def current_reading(self) -> Reading | None:
        """Return the newest reading if it is at most 10 minutes old, or None. Raises ShareError.

        Its age is told by the stamp that the wearer's phone made, held against the minutes that Share looks back.
        A phone whose clock is wrong goes unnoticed here: an old reading may pass for a current one. The daemon
        notices.
        """
        return next(iter(self.readings(CURRENT_MINUTES)), None)

    def fetch(self, minutes: int = MAX_MINUTES, max_count: int = MAX_COUNT, *, renew: bool = True) -> Batch:
        """Read at most ``max_count`` (1 to 288) records of the last ``minutes`` (1 to 1440), newest first.

        Signs in where there is no session yet, else renews one that Share has forgotten, unless ``renew`` is false.
        It signs in once at most: where that session is not accepted either, UnavailableError is raised.
        Raises ShareError and nothing else.
        """
        _check("minutes", minutes, MAX_MINUTES)
        _check("max_count", max_count, MAX_COUNT)
        if self._session_id is not None:
            try:
                return self._read(minutes, max_count)
            except _SignedOutError:
                self._session_id = None
            if not renew:
                raise UnavailableError(f"{self.host} has ended the session")
        self.sign_in()
        try:
            return self._read(minutes, max_count)
        except _SignedOutError:
            self._session_id = None
            raise UnavailableError(f"{self.host} ended the new session at once") from None

    def sign_in(self) -> None:
        """Open a session. A valid account id is kept, so that later only one of the two steps is needed."""
        if self._account_id is None:
            self._account_id = self._ask_for_id("General/AuthenticatePublisherAccount", {"accountName": self._username})
        try:
            session_id = self._ask_for_id("General/LoginPublisherAccountById", {"accountId": self._account_id})
        except CredentialsRejectedError:
            if self._username is not None:
                self._account_id = None  # it may have changed, as by a migration: the next sign-in begins with the name
            raise
        self._session_id = session_id
        self.sessions += 1

    def ask_time(self) -> None:
        """Let Share tell the time, by a read that needs no password. Raises ShareError.

        A read with a session id of zeros is answered with nothing, as was recorded.
        """
        with contextlib.suppress(_SignedOutError, _NothingSharedError, CredentialsRejectedError):
            self._call(_READ, {}, {"sessionId": _NO_ID, "minutes": 1, "maxCount": 1})

    def _ask_for_id(self, path: str, who: dict[str, str | None]) -> str:
        body = who | {"password": self._password, "applicationId": self._application_id}
        try:
            answer = _parse_json(self._call(path, body), self.host)
        except _SignedOutError:
            raise UnexpectedResponseError(f"{self.host} answered a sign-in with a lost session") from None
        finally:
            self.logins += _limits.sent
        if answer == _NO_ID:
            raise CredentialsRejectedError(f"{self.host} did not accept the credentials")
        if not isinstance(answer, str) or not _is_id(answer):
            raise UnexpectedResponseError(f"{self.host} answered a sign-in with something that is no id")
        return answer

    def _read(self, minutes: int, max_count: int) -> Batch:
        query = {"sessionId": self._session_id, "minutes": minutes, "maxCount": max_count}
        try:
            content = self._call(_READ, {}, query)
        except CredentialsRejectedError:  # a read carries none: it is the session that was not accepted
            raise _SignedOutError from None
        except _NothingSharedError:
            return Batch(nothing_shared=True)
        if not content:  # recorded as the answer to a session id of zeros
            raise _SignedOutError
        records = _parse_json(content, self.host)
        if not isinstance(records, list):
            raise UnexpectedResponseError(f"{self.host} answered a read with something that is no list")
        return _sort_out(records)

    def _call(self, path: str, body: dict[str, str | None], query: dict[str, str | int | None] | None = None) -> bytes:
        """POST ``body`` and return the content of a good answer; raise a ShareError for any other."""
        self.requests += 1
        sent = self._clock.now()
        _limits.start_call(self._clock)
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
        date = response.headers.get("Date")
        self.time.tell(date, sent)
        if len(content) > CALL_BYTES:
            raise UnexpectedResponseError(f"{self.host} answered more than 1 MiB")
        if response.status_code == requests.codes.ok:
            return bytes(content)
        if response.status_code == requests.codes.too_many_requests:
            wait = _parse_retry_after(response.headers.get("Retry-After"), date)
            raise RateLimitedError(f"{self.host} is being asked too often", wait)
        raise _fault(self.host, response.status_code, bytes(content), reading=path == _READ)

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


def _check(name: str, number: object, most: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise ArgumentError(f"{name} must be a whole number from 1 to {most}")


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


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower() != _NO_ID
    except ValueError:
        return False


def _parse_json(content: bytes, host: str) -> object:
    try:
        return _loads(content)
    except (ValueError, RecursionError):
        raise UnexpectedResponseError(f"{host} answered with something that is no JSON") from None


def _loads(content: bytes) -> object:
    """Read JSON. Raises ValueError and RecursionError."""
    # Some Pythons (3.14) read arrays in arrays as deep as their memory allows.
    if content.count(b"[") + content.count(b"{") > _MOST_BRACKETS:
        raise ValueError
    # Python refuses to read very large integers; cut, one is as wrong as before, and costs its record alone.
    return json.loads(content, parse_int=lambda digits: int(digits[:20]))


def _sort_out(records: Iterable[object]) -> Batch:
    parsed = [_parse(record) for record in records]
    good = [reading for reading in parsed if reading is not None]
    return Batch(
        readings=tuple(sorted((each for each in good if each.mg_dl >= LOW_MG_DL), key=attrgetter("date"))),
        error_codes=tuple(sorted(each.date for each in good if each.mg_dl < LOW_MG_DL)),
        malformed=len(parsed) - len(good),
        newest_malformed=bool(good) and parsed[0] is None,
        drifted=sum(each.drifted for each in good),
    )


def _parse(record: object) -> Reading | None:
    try:
        return parse_record(record)
    except MalformedRecordError:
        return None


def _fault(host: str, status: int, content: bytes, *, reading: bool) -> ShareError:
    """Translate an answer that is not 200. Share says nearly everything with 500 and a code."""
    try:
        fault = _loads(content)
    except (ValueError, RecursionError):
        fault = None
    fault = fault if isinstance(fault, dict) else {}
    code, message = str(fault.get("Code")), str(fault.get("Message"))
    if "maxattempts" in code.casefold():
        return LockedOutError(f"{host} has locked the account for a while after failed sign-ins")
    if code in _SIGNED_OUT:
        return _SignedOutError(f"{host} does not know the session")
    if code == _NOTHING_SHARED and reading:
        return _NothingSharedError(f"nothing is shared from this account of {host}")
    if code in _REJECTED or (code == "SSO_InternalError" and "Cannot Authenticate by" in message):
        return CredentialsRejectedError(f"{host} did not accept the credentials")
    if code == "InvalidArgument":
        return CredentialsRejectedError(f"{host} found user name, password or account id malformed")
    said = f"answered with status {status}"
    if status == requests.codes.not_found and not reading:
        said = "has no place to sign in (404): share_url is not that of a Share service of today"
    return UnavailableError(f"{host} {said}", answered=status not in _GATEWAY)


def _parse_retry_after(text: str | None, date: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, given the Date of the same answer."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    until, now = parse_http_date(text), parse_http_date(date)
    return None if until is None or now is None else max(0.0, until - now)


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

    def start_call(self, clock: Clock) -> None:
        self._clock = clock
        self._end = clock.now() + CALL_SECONDS * clock.speed
        self.bytes_left = CALL_BYTES
        self.sent = False

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
            sock.settimeout(_limits.seconds_left())  # for the TLS handshake
            return sock
    raise failure


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
def _adapter() -> _Adapter:
    """Return the one adapter, made when it is first needed."""
    return _Adapter()
