"""Clients of the simulated Share service, faults of its answers byte by byte, and the search for secrets."""

from __future__ import annotations

import base64
import http.server
import json
import re
import socketserver
import ssl
import threading
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote, quote_plus

import pytest

from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.demo.share_service import Fault, Request, Respond, Response, SimulatedAccount, SimulatedShare
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.share import ShareClient, ShareError
from tests.support import share_faults

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    import trustme

NOW: Final = 1_745_081_000.0
"""The service's time stands still, so that each answer is predictable."""
MIB: Final = 2**20

# Names and passwords with characters that each encoding writes differently.
ANNA = SimulatedAccount("zoë.quokka+cgm@example.com", 'wörd & "p/ss\\%+', zone_offset_min=330)
QUINN = SimulatedAccount("quinn quokka", "qüokka=&päss", seed=2, legacy=True)
KIM = SimulatedAccount("+15550123456", "0123 ü/quokka", seed=3)
ACCOUNTS: Final = (ANNA, QUINN, KIM)

AUTHENTICATE, LOGIN, READ = "authenticate", "login", "read"
SIGN_IN = [AUTHENTICATE, LOGIN]

REJECTIONS = [
    ("AccountPasswordInvalid", "Publisher account password failed"),
    ("SSO_InternalError", f"Time out issue. Msg=Cannot Authenticate by AccountName='{ANNA.username}'"),
    ("SSO_InternalError", f"Time out issue. Msg=Cannot Authenticate by AccountId='{ANNA.account_id}'"),
    ("InvalidArgument", f"Missing required field(s): accountName {ANNA.username}"),
    ("InvalidArgument", f"Missing required field(s): password {ANNA.password}"),
    ("InvalidArgument", f"Cannot deserialize UUID from String {ANNA.account_id}"),
    ("SSO_AuthenticateAccountNotFound", ""),
    ("SSO_AuthenticatePasswordInvalid", ""),
]


# Secrets in any form


_ID: Final = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}")
WRITTEN: Final[list[Callable[[str], str]]] = [
    str,
    quote,
    quote_plus,
    lambda secret: quote(secret, safe=""),
    lambda secret: json.dumps(secret)[1:-1],
    lambda secret: repr(secret)[1:-1],
]


def secrets_in(text: str) -> set[str]:
    """Return the user names, passwords and ids in a text, also in base64; any id counts as a secret."""
    texts = [text, *_decoded(text)]
    known = {secret for account in ACCOUNTS for secret in (account.username, account.password)}
    found = {secret for secret in known for write in WRITTEN if any(write(secret) in each for each in texts)}
    return found | {match.group() for each in texts for match in _ID.finditer(each)}


def _decoded(text: str) -> Iterator[str]:
    for run in _BASE64.findall(text):
        standard = run.translate({ord("-"): "+", ord("_"): "/"})
        for start in range(4):  # it may follow other base64 characters
            length = len(standard) - start
            padded = standard[start : len(standard) - (length % 4 == 1)] + "=" * (-length % 4 % 3)
            yield base64.b64decode(padded).decode("utf-8", "replace")


def check_silence(error: ShareError) -> None:
    """Check that an error contains no secret and does not refer to a library's error, which might."""
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert not secrets_in("\n".join([str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]))


Error = TypeVar("Error", bound=ShareError)


def failure(kind: type[Error], call: Callable[[], object]) -> Error:
    """Return the error of exactly this kind that the call raises, after checking that it contains no secret."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    check_silence(error)
    # The frames would keep a broken connection open until the next collection of garbage.
    del caught
    error.__context__ = None
    return error.with_traceback(None)


# The client


def client_of(service: SimulatedShare, account: SimulatedAccount = ANNA, **options: Any) -> ShareClient:
    who = {"username": account.username, "password": account.password, "base_url": service.base_url}
    return ShareClient(**(who | options))


def host(server: SimulatedShare | LittleServer) -> str:
    """Return the name of a server in errors: with its port."""
    return (server.base_url if isinstance(server, SimulatedShare) else server.url).split("/")[2]


def asked(service: SimulatedShare, client: ShareClient) -> list[str]:
    """Return the calls that the service got: exactly as many as the client counted."""
    log = service.requests
    assert client.requests == len(log)
    assert client.logins == sum(request.password for request in log)
    return [request.call for request in log]


def readings_of(account: SimulatedAccount, minutes: int = 1440) -> tuple[Reading, ...]:
    """Return Share's records of an account, oldest first."""
    return tuple(
        Reading(record.value, record.trend, record.taken, account.zone_offset_min)
        for record in sim.series(account, NOW - minutes * 60, NOW)
        if record.arrives <= NOW
    )


# Faults


def read(fault: Fault) -> Fault:
    """Cause a fault in reads only."""
    return share_faults.only(fault, call=READ)


def answer(content: bytes, status: int = 200, **headers: str | None) -> Fault:
    """Answer with exactly these bytes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request, _respond: Response(status, content, named, compress=False)


def raw(content: bytes, *, close: bool = False) -> Fault:
    """Send exactly these bytes on the connection instead of an answer."""

    def deliver(connection: socket.socket, _head: bytes, _content: bytes) -> bool:
        connection.sendall(content)
        return not close

    return lambda _request, _respond: Response(delivery=deliver)


def head(*lines: str, status: int = 200) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} As It Is", *lines, "", ""]).encode("latin-1")


def fault_of(code: object, message: object = "", status: int = 500) -> Fault:
    content = {"Code": code, "Message": message, "SubCode": "{}", "TypeName": "FaultException"}
    return answer(json.dumps(content).encode(), status)


def listen(heard: list[Request]) -> Fault:
    """Answer as the service does, and record the request."""

    def fault(request: Request, respond: Respond) -> Response:
        heard.append(request)
        return respond(request)

    return fault


@contextmanager
def takes(at_least: float, at_most: float) -> Iterator[None]:
    """Check how many real seconds it takes."""
    start = time.monotonic()
    yield
    assert at_least <= time.monotonic() - start <= at_most


# Our own server


class LittleServer(socketserver.ThreadingTCPServer):
    """Signs everybody in and has no readings; uses TLS if it has a certificate."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, certificate: trustme.LeafCert | None = None, *, drip: bool = False, more: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.drip = drip
        self.more = more
        """How many spaces follow each answer."""
        self.cookies: list[str] = []
        """The Cookie header of each request."""
        self.credentials: list[str | None] = []
        """The Authorization header of each request."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Print nothing: some tests are about clients that disconnect."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LittleServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.cookies.append(self.headers.get("Cookie", ""))
        self.server.credentials.append(self.headers.get("Authorization"))
        content = b"[]" if "Read" in self.path else json.dumps(ANNA.account_id).encode()
        content += b" " * self.server.more
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + 100 * self.server.drip))
        self.send_header("Set-Cookie", f"n={len(self.server.cookies)}; path=/")
        self.end_headers()
        self.wfile.write(content)
        for _ in range(100 * self.server.drip):
            time.sleep(0.05)
            self.wfile.write(b" ")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in http.server
        """Print nothing."""


def client_to(server: LittleServer) -> ShareClient:
    return ShareClient(username=ANNA.username, password=ANNA.password, base_url=server.url)
