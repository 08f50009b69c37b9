"""The simulated Dexcom Share service: the three calls, as recorded, over real HTTP on loopback.

Owns accounts, sessions, lock-outs, the arrival of readings, and the log of requests. Must not know the client that it
serves, nor share code with it, because tests would not notice a mistake in shared code. Its time is that of a given
clock, which may run faster than real time.

Tests decide what goes wrong: a `Fault` comes between a request and its answer, and a `Distortion` changes the readings
of an account before they reach Share.
"""

from __future__ import annotations

import argparse
import gzip
import http.server
import json
import math
import signal
import socket
import socketserver
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn, Self
from urllib.parse import parse_qsl, urlsplit

from dexcom2mqtt.demo.glucose import Glucose, trend_word, uniform

if TYPE_CHECKING:
    from email.message import Message
    from types import TracebackType

APPLICATION_IDS = frozenset({"d89443d2-327c-4a6f-89e5-496bbb0317db", "d8665ade-9673-4e27-9ff6-92db4ce13d13"})
ZERO_UUID = "00000000-0000-0000-0000-000000000000"

_ROOT = "/ShareWebServices/Services"
_CALLS = {
    f"{_ROOT}/General/AuthenticatePublisherAccount": "authenticate",
    f"{_ROOT}/General/LoginPublisherAccountById": "login",
    f"{_ROOT}/Publisher/ReadPublisherLatestGlucoseValues": "read",
}
_DAY = 24 * 3600.0
_CADENCE = 300.0  # seconds from one reading to the next
_MAX_MINUTES, _MAX_COUNT = 1440, 288
_MOVED = 4 * 3600.0  # how far a distortion may move a reading
_LOGGED = 100_000  # requests kept in the log, so that it does not grow during a run of weeks
_LEGACY_TRENDS = (  # a trend's number was its index
    *("None", "DoubleUp", "SingleUp", "FortyFiveUp", "Flat", "FortyFiveDown", "SingleDown", "DoubleDown"),
    *("NotComputable", "RateOutOfRange"),
)
_PHASE, _DRIFT, _JITTER, _DELAY = range(100, 104)  # series of random numbers, different from those of the glucose


# Accounts and their readings

Delay = Callable[[float], float]
"""Turns a random number in [0, 1), drawn for each reading, into the seconds until Share has the reading."""


def usual_delay(fixed: float = 8.0, mean: float = 2.0) -> Delay:
    """Return the delay of a phone with good coverage: `fixed` seconds, plus an exponential part of `mean` seconds."""
    return lambda u: fixed - mean * math.log(1 - u)


@dataclass(frozen=True, slots=True)
class SimulatedAccount:
    """An account at Share: the credentials, and what determines its readings.

    `account_id` is a UUID, by default made from the user name; `session_lifetime` is in seconds; `legacy` uses the
    format from before December 2021.
    """

    username: str
    password: str
    account_id: str = ""
    seed: int = 1
    zone_offset_min: int = -240
    session_lifetime: float = _DAY
    delay: Delay = field(default_factory=usual_delay)
    legacy: bool = False

    def __post_init__(self) -> None:
        if not self.account_id:
            object.__setattr__(self, "account_id", str(uuid.uuid5(uuid.NAMESPACE_DNS, self.username)))


@dataclass(frozen=True, slots=True)
class Record:
    """A reading: `taken` in Unix milliseconds, `value` in mg/dL; Share has it from `arrives` (Unix seconds) on."""

    taken: int
    value: int
    trend: str = "Flat"
    arrives: float = -math.inf


def series(account: SimulatedAccount, since: float, until: float) -> Iterator[Record]:
    """Yield the account's own readings taken from `since` until before `until`, Unix seconds, oldest first."""
    glucose = Glucose(account.seed, account.zone_offset_min)
    first = math.floor(since / _CADENCE) - 1
    before = glucose.level_at(_taken(account.seed, first - 1))
    for slot in range(first, math.ceil(until / _CADENCE) + 1):
        taken = _taken(account.seed, slot)
        level = glucose.level_at(taken)
        if since <= taken < until:
            trend = trend_word((level - before) / (_CADENCE / 60))
            arrives = taken + account.delay(uniform(account.seed, _DELAY, slot))
            yield Record(round(taken * 1000), round(level), trend, arrives)
        before = level


def _taken(seed: int, slot: int) -> float:
    """Return when the reading of a slot is taken: on the sensor's own five-minute grid, within half a second."""
    drift = math.sin(slot / 40 + uniform(seed, _DRIFT, 0)) / 4
    jitter = (uniform(seed, _JITTER, slot) - 0.5) / 2
    return (slot + uniform(seed, _PHASE, 0)) * _CADENCE + drift + jitter


def _as_json(record: Record, account: SimulatedAccount) -> dict[str, object]:
    hours, minutes = divmod(abs(account.zone_offset_min), 60)
    zone = f"{'-' if account.zone_offset_min < 0 else '+'}{hours:02}{minutes:02}"
    if account.legacy:
        shown = record.taken - 23_000  # as recorded: the receiver's clock differed from Share's
        trend = _LEGACY_TRENDS.index(record.trend) if record.trend in _LEGACY_TRENDS else record.trend
        return {
            "DT": f"/Date({shown}{zone})/",
            "ST": f"/Date({shown + 3_600_000})/",
            "Trend": trend,
            "Value": record.value,
            "WT": f"/Date({record.taken})/",
        }
    return {
        "WT": f"Date({record.taken})",
        "ST": f"Date({record.taken})",
        "DT": f"Date({record.taken}{zone})",
        "Value": record.value,
        "Trend": record.trend,
    }


# Distortions of readings

Distortion = Callable[[list[Record]], list[Record]]
"""Turns the readings as taken into those that Share gets, in any order."""


def unchanged(records: list[Record]) -> list[Record]:
    """Return the readings unchanged."""
    return records


# Requests and answers

Delivery = Callable[[socket.socket, bytes, bytes], bool]
"""Sends an answer's head and body over a connection; returns whether the connection may serve another request."""


def whole(connection: socket.socket, head: bytes, body: bytes) -> bool:
    """Send the whole answer at once."""
    connection.sendall(head + body)
    return True


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `time` by the service's clock; `call` is authenticate, login, read, or an unknown path."""

    time: float
    call: str
    account: SimulatedAccount | None
    query: Mapping[str, str]
    fields: Mapping[str, object]
    accepts_gzip: bool


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. Its headers override the usual ones; None removes one.

    `outcome` is its name in the log: `ok`, the `Code` of an error, or the name of a fault.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    outcome: str = "ok"
    chunked: bool = False
    compress: bool = True  # if the client accepts it
    delivery: Delivery = whole


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request in the log; `account` is the user name, None if no account matches."""

    time: float
    call: str
    account: str | None
    minutes: int | None
    max_count: int | None
    password: bool
    status: int
    outcome: str


# Faults of answers

Respond = Callable[[Request], Response]
Fault = Callable[[Request, Respond], Response]
"""Answers instead of the service; `Respond` gives the service's own answer."""


def no_fault(request: Request, respond: Respond) -> Response:
    """Return the service's own answer."""
    return respond(request)


def http_date(t: float) -> str:
    """Return a Unix time as HTTP writes it, for `Date` and `Retry-After`."""
    return formatdate(t, usegmt=True)


def json_bytes(value: object) -> bytes:
    """Return JSON as Share writes it, without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def error_answer(request: Request, code: str, message: str) -> Response:
    """Return one of Share's errors, in the recorded form."""
    thrown = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(request.time))
    exception = {
        "DateThrownLocal": thrown,
        "DateThrown": f"{thrown}Z",
        "ErrorCode": code,
        "Message": message,
        "FullText": f"com.dexcom.udp.common.data.exception.OnlineException: {message}",
    }
    content = {
        "Code": code,
        "Message": message,
        "SubCode": json.dumps({"OnlineException": exception}, indent=4),
        "TypeName": "FaultException",
    }
    return Response(500, json_bytes(content), outcome=code)


# The service


class _RefusalError(Exception):
    """A request that Share answers with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


@dataclass(slots=True, eq=False)
class _Publisher:
    """The present state of an account at the service."""

    account: SimulatedAccount
    distortion: Distortion = unchanged
    added: list[Record] = field(default_factory=list)
    rejections: int = 0
    locked_until: float = -math.inf


@dataclass(slots=True)
class _Session:
    owner: _Publisher
    expires: float
    spoiled: Fault = no_fault


class SimulatedShare:
    """Dexcom Share for some accounts, on a port of 127.0.0.1.

    `now` is the service's clock in Unix seconds; readings begin 24 hours before this object was created. Port 0 means
    a free port, which is kept: after `close` and `start` the service is the same one on the same port. After
    `max_rejections` wrong passwords without a correct one in between, sign-ins are locked for `lock_seconds`, and every
    further try renews the lock.

    `fault` may be set, and every method called, at any time and from any thread.
    """

    def __init__(
        self,
        accounts: Iterable[SimulatedAccount],
        now: Callable[[], float],
        port: int = 0,
        *,
        max_rejections: int = 5,
        lock_seconds: float = 900.0,
    ) -> None:
        self.fault: Fault = no_fault
        self._now = now
        self._port = port
        self._max_rejections = max_rejections
        self._lock_seconds = lock_seconds
        self._begin = now() - _DAY
        self._publishers = {account.username: _Publisher(account) for account in accounts}
        self._by_id = {each.account.account_id.lower(): each for each in self._publishers.values()}
        self._sessions: dict[str, _Session] = {}
        self._log: deque[LoggedRequest] = deque(maxlen=_LOGGED)
        self._guard = threading.Lock()  # protects everything above that changes
        self._server: _Server | None = None

    @property
    def base_url(self) -> str:
        """The URL of the calls, without a slash at the end; valid once the service has started."""
        return f"http://127.0.0.1:{self._port}{_ROOT}"

    @property
    def requests(self) -> list[LoggedRequest]:
        """The newest 100 000 requests, oldest first."""
        with self._guard:
            return list(self._log)

    def count(self, since: float = -math.inf, **conditions: object) -> int:
        """Return how many logged requests since then (Unix seconds) have all these values, such as `password=True`."""
        return sum(
            entry.time >= since and all(getattr(entry, name) == value for name, value in conditions.items())
            for entry in self.requests
        )

    def add(self, username: str, *records: Record) -> None:
        """Give an account further readings, which no distortion changes."""
        oldest = (self._now() - _DAY) * 1000 - _CADENCE * 1000
        with self._guard:
            publisher = self._publishers[username]
            publisher.added = [record for record in (*publisher.added, *records) if record.taken >= oldest]

    def distort(self, distortion: Distortion, username: str | None = None) -> None:
        """Set the distortion that changes the readings of one account, or of all."""
        with self._guard:
            for publisher in self._chosen(username):
                publisher.distortion = distortion

    def drop_sessions(self, username: str | None = None) -> None:
        """Forget the sessions of one account, or of all: `SessionIdNotFound`."""
        with self._guard:
            chosen = self._chosen(username)
            self._sessions = {key: each for key, each in self._sessions.items() if each.owner not in chosen}

    def expire_sessions(self, username: str | None = None) -> None:
        """End the sessions of one account, or of all: `SessionNotValid`."""
        with self._guard:
            for session in self._sessions.values():
                if session.owner in self._chosen(username):
                    session.expires = -math.inf

    def spoil_sessions(self, fault: Fault, username: str | None = None) -> None:
        """Break the present sessions of one account, or of all: `fault` answers every read with them."""
        with self._guard:
            for session in self._sessions.values():
                if session.owner in self._chosen(username):
                    session.spoiled = fault

    def change_id(self, username: str, account_id: str) -> None:
        """Give an account another id, as a migration does: the old id is rejected from then on."""
        with self._guard:
            publisher = self._publishers[username]
            publisher.account = replace(publisher.account, account_id=account_id)
            self._by_id = {each.account.account_id.lower(): each for each in self._publishers.values()}

    def start(self) -> None:
        """Start to serve; raises `OSError` if the port is in use."""
        self._server = _Server(self._port, self._handle)
        self._port = self._server.server_address[1]
        self._server.start()

    def close(self) -> None:
        """Refuse connections, and end the present ones at once, even those that hang."""
        if self._server:
            self._server.close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chosen(self, username: str | None) -> list[_Publisher]:
        return list(self._publishers.values()) if username is None else [self._publishers[username]]

    def _handle(self, path: str, headers: Message, content: bytes) -> tuple[bytes, bytes, Delivery]:
        request = self._understood(path, headers, content)
        response = self.fault(request, self._respond_by_session)
        entry = LoggedRequest(
            request.time,
            request.call,
            request.account.username if request.account else None,
            _number(request.query, "minutes"),
            _number(request.query, "maxCount"),
            "password" in request.fields,
            response.status,
            response.outcome,
        )
        with self._guard:
            self._log.append(entry)
        return *_on_the_wire(request, response), response.delivery

    def _understood(self, path: str, headers: Message, content: bytes) -> Request:
        url = urlsplit(path)
        call = _CALLS.get(url.path, url.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        fields = _object(content)
        with self._guard:
            publisher = self._whose(call, query, fields)
        return Request(
            time=self._now(),
            call=call,
            account=publisher.account if publisher else None,
            query=query,
            fields=fields,
            accepts_gzip="gzip" in headers.get("Accept-Encoding", ""),
        )

    def _whose(self, call: str, query: Mapping[str, str], fields: Mapping[str, object]) -> _Publisher | None:
        match call:
            case "authenticate":
                return self._publishers.get(str(fields.get("accountName")))
            case "login":
                return self._by_id.get(str(fields.get("accountId")).lower())
            case "read" if session := self._sessions.get(query.get("sessionId", "")):
                return session.owner
        return None

    def _respond_by_session(self, request: Request) -> Response:
        session = self._sessions.get(request.query.get("sessionId", ""))
        return self._respond(request) if session is None else session.spoiled(request, self._respond)

    def _respond(self, request: Request) -> Response:
        answer = {"authenticate": self._authenticate, "login": self._login, "read": self._read}.get(request.call)
        if answer is None:
            return Response(404, outcome="404")
        try:
            with self._guard:
                return answer(request)
        except _RefusalError as refusal:
            return error_answer(request, refusal.code, refusal.message)

    def _authenticate(self, request: Request) -> Response:
        _check_arguments(request, "accountName", "password")
        if request.account is None:
            _reject_password()
        self._check_password(request.account, request)
        return Response(body=json_bytes(request.account.account_id))

    def _login(self, request: Request) -> Response:
        account_id = str(request.fields.get("accountId", ""))
        if account_id in ("", ZERO_UUID):
            return Response(body=json_bytes(ZERO_UUID), outcome="zero UUID")
        _check_uuid(account_id)
        _check_arguments(request, "password")
        if request.account is None:
            raise _RefusalError(
                "SSO_InternalError",
                "Synchronization of SSO account during authenticate call failed Time out issue.  "
                f"AccountId={account_id} Error encountered accessing Keycloak endpoint: UAM_ERROR: "
                f"HttpStatus='401 UNAUTHORIZED(401)' Msg=Cannot Authenticate by AccountId='{account_id}'",
            )
        self._check_password(request.account, request)
        return Response(body=json_bytes(self._new_session(request.account, request.time)))

    def _check_password(self, account: SimulatedAccount, request: Request) -> None:
        publisher = self._publishers[account.username]
        if request.time < publisher.locked_until:
            publisher.locked_until = request.time + self._lock_seconds
            raise _RefusalError("SSO_AuthenticateMaxAttemptsExceeded", "Maximum authentication attempts exceeded")
        if request.fields["password"] == account.password:
            publisher.rejections = 0
            return
        publisher.rejections += 1
        if publisher.rejections >= self._max_rejections:
            publisher.rejections = 0
            publisher.locked_until = request.time + self._lock_seconds
        _reject_password()

    def _new_session(self, account: SimulatedAccount, now: float) -> str:
        remembered = {key: each for key, each in self._sessions.items() if each.expires > now - _DAY}
        session_id = str(uuid.uuid4())
        session = _Session(self._publishers[account.username], now + account.session_lifetime)
        self._sessions = {**remembered, session_id: session}
        return session_id

    def _read(self, request: Request) -> Response:
        session_id = request.query.get("sessionId", "")
        if session_id == ZERO_UUID:
            return Response(outcome="zero UUID")
        session = self._sessions.get(session_id)
        if session is None:
            raise _RefusalError("SessionIdNotFound", f"Failed to find session object. [SessionId = {session_id}]")
        if session.expires <= request.time:
            raise _RefusalError("SessionNotValid", f"Session not active or timed out. [SessionId = {session_id}]")
        minutes = _checked_number(request, "minutes", _MAX_MINUTES)
        count = _checked_number(request, "maxCount", _MAX_COUNT)
        records = self._known(session.owner, request.time, request.time - minutes * 60)
        newest = sorted(records, key=lambda record: record.taken, reverse=True)[:count]
        return Response(body=json_bytes([_as_json(each, session.owner.account) for each in newest]), chunked=True)

    def _known(self, publisher: _Publisher, now: float, since: float) -> list[Record]:
        """Return the readings taken after `since` that Share has by `now`."""
        # Begins earlier than requested, because a distortion may move a reading into the requested time.
        moved = 0.0 if publisher.distortion is unchanged else _MOVED
        taken = list(series(publisher.account, max(since - moved, self._begin), now))
        records = publisher.distortion(taken) + publisher.added
        return [record for record in records if record.taken > since * 1000 and record.arrives <= now]


def _reject_password() -> NoReturn:
    raise _RefusalError("AccountPasswordInvalid", "Publisher account password failed")


def _check_arguments(request: Request, *names: str) -> None:
    for name in names:
        value = request.fields.get(name)
        if not isinstance(value, str) or not value:
            raise _RefusalError("InvalidArgument", f"Missing required field(s): {name}")
    if request.fields.get("applicationId") not in APPLICATION_IDS:
        raise _RefusalError("InvalidArgument", "Missing required field(s): applicationId")


def _check_uuid(text: str) -> None:
    with suppress(ValueError):
        if str(uuid.UUID(text)) == text.lower():
            return
    raise _RefusalError(
        "InvalidArgument",
        "Missing required field(s): JSON parse error: Cannot deserialize value of type `java.util.UUID` "
        f'from String "{text}": UUID has to be represented by standard 36-char representation',
    )


def _checked_number(request: Request, name: str, limit: int) -> int:
    number = _number(request.query, name)
    if number is None or number > limit:
        raise _RefusalError("InvalidArgument", f"Invalid argument: {name}")
    return number


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    return int(text) if text.isdecimal() else None


def _object(content: bytes) -> dict[str, object]:
    """Return the JSON object in a request's body; an empty one if the body is anything else."""
    with suppress(ValueError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {}


# HTTP


def _on_the_wire(request: Request, response: Response) -> tuple[bytes, bytes]:
    """Return an answer's head and body as sent over the connection."""
    content = response.body
    headers: dict[str, str | None] = {
        "Date": http_date(request.time),
        "Content-Type": "application/json",
        "Server": "cloudflare",
    }
    if content and response.compress and request.accepts_gzip:
        content = gzip.compress(content, 1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    if content and response.chunked:
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        headers["Transfer-Encoding"] = "chunked"
    else:
        headers["Content-Length"] = str(len(content))
    headers.update({name.title(): value for name, value in response.headers.items()})
    lines = [f"HTTP/1.1 {response.status} {_reason(response.status)}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1"), content


def _reason(code: int) -> str:
    with suppress(ValueError):
        return HTTPStatus(code).phrase
    return "Unknown"


class _Server(socketserver.ThreadingTCPServer):
    """One thread for each connection; unlike `HTTPServer` it does not look up its own name in DNS."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024  # many accounts may sign in at the same moment

    def __init__(self, port: int, handle: Callable[[str, Message, bytes], tuple[bytes, bytes, Delivery]]) -> None:
        self.handle = handle
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(("127.0.0.1", port), _Handler)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.02,), name="share", daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):  # the client has already closed it
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, timeout=0.5)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, client = super().get_request()
        with self._changed:
            self._connections.add(connection)
        return connection, client

    def close_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        super().close_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may disconnect at any time
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        head, answer, deliver = self.server.handle(self.path, self.headers, content)
        if not deliver(self.connection, head, answer):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in http.server
        """Print nothing: the service has its own log."""


# As a process of its own


def accelerated(speed: float) -> Callable[[], float]:
    """Return a clock in Unix seconds that begins at the real time and runs `speed` times too fast."""
    begin, started = time.time(), time.monotonic()
    return lambda: begin + (time.monotonic() - started) * speed


def main(arguments: list[str] | None = None) -> None:
    """Serve one account until SIGTERM or SIGINT; print the base URL to standard output once it is ready."""
    parser = argparse.ArgumentParser(description="The simulated Dexcom Share service.")
    parser.add_argument("--username", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--account-id", default="")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than real time its clock runs")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args(arguments)
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before any thread starts, because threads inherit it
    account = SimulatedAccount(options.username, options.password, options.account_id)
    with SimulatedShare([account], accelerated(options.speed), options.port) as service:
        print(service.base_url, flush=True)  # a parent process waits for this
        signal.sigwait(stop)


if __name__ == "__main__":
    main()
