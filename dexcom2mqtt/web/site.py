"""Every path that is served, as a WSGI application: who may read, which answer, and what happens on an error.

It reads immutable overviews from the accounts' threads, so neither side waits for the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import version
from dexcom2mqtt.clock import system_time
from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.web import nightscout
from dexcom2mqtt.web.access import bearer
from dexcom2mqtt.web.accounts import described
from dexcom2mqtt.web.query import QueryError, parameters, wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIEnvironment

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.web.access import Access
    from dexcom2mqtt.web.accounts import PageAccount
    from dexcom2mqtt.web.page import Page

_log = logging.getLogger(__name__)

_REASONS: Final = {
    200: "OK",
    302: "Found",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_ALWAYS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_API: Final = "api/v1/"
_MOST_DAYS: Final = 20
"""The most accounts that are sent with a day of readings each; more would take so long that polling suffers."""
_EMPTY: Final = tuple(f"{_API}{name}" for name in ("treatments", "devicestatus", "profile"))

_UNKNOWN: Final = "This page needs a token: add ?token= and the value of web.token to the address.\n"
_ELSEWHERE: Final = "This port is only for Home Assistant: open the page there, or at the daemon's own port.\n"
_ASTRAY: Final = (
    "This machine is not known by that name: open it by its address, its own name, or a name that ends in .local. "
    "A reverse proxy must pass on one of these as Host.\n"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    body: bytes
    kind: str = _TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


class Site:
    """A WSGI application for the accounts that ``accounts`` returns now, which may come and go.

    ``first`` returns the key of the one that Nightscout's paths without a key are about, even while it is not shown:
    no client may get another person's values then. ``health`` returns whether the daemon is healthy, in words, too.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # what it shows, and to whom
        self,
        accounts: Callable[[], Mapping[str, PageAccount]],
        clock: Clock,
        health: Callable[[], tuple[bool, str]],
        access: Access,
        page: Page,
        first: Callable[[], str | None],
    ) -> None:
        self._accounts = accounts
        self._first = first
        self._clock = clock
        self._health = health
        self._access = access
        self._page = page
        self._boot = secrets.token_hex(4)  # so that no ETag of an earlier process matches one of this
        self._told = set[str]()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, whatever happens."""
        try:
            answer = self._answer(environ)
        except Exception as error:  # noqa: BLE001  # only this browser is affected, and gets an answer
            answer = self._fail(error)
        headers = {**_ALWAYS, "Content-Type": answer.kind, "Content-Length": str(len(answer.body)), **answer.headers}
        start_response(f"{answer.status} {_REASONS[answer.status]}", list(headers.items()))
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [answer.body]

    def _fail(self, error: Exception) -> Answer:
        """Answer that something failed; log it once for each place in the code."""
        where = redacted_traceback(error)
        if where not in self._told:
            self._told.add(where)
            _log.error("web: a bug in dexcom2mqtt; please report it:\n%s", where)
        return Answer(500, b"Something went wrong inside dexcom2mqtt; its log says where.\n")

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        if refused := self._refusal(environ):
            return refused
        parts = [part for part in environ["PATH_INFO"].split("/") if part]
        if parts == ["health"]:
            return self._healthy()
        try:
            given = parameters(environ.get("QUERY_STRING", ""))
        except QueryError as error:
            return Answer(400, f"{error}\n".encode())
        if not self._access.knows_token(_tokens(environ, given)):
            return Answer(401, _UNKNOWN.encode(), headers={"WWW-Authenticate": "Bearer"})
        return self._route(environ, parts, given)

    def _refusal(self, environ: WSGIEnvironment) -> Answer | None:
        """Return the refusal of a request that is not for this server, whatever its path; None if it is acceptable."""
        if not self._access.knows_peer(environ.get("REMOTE_ADDR", "")):
            return Answer(403, _ELSEWHERE.encode())
        if not self._access.knows_host(environ.get("HTTP_HOST")):
            return Answer(421, _ASTRAY.encode())
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return Answer(405, b"Only GET and HEAD.\n", headers={"Allow": "GET, HEAD"})
        return None

    def _route(self, environ: WSGIEnvironment, parts: list[str], given: Mapping[str, str]) -> Answer:
        """Answer a client that may read. Paths below an account's key are about that account only."""
        accounts = self._accounts()
        found = self._at("/".join(parts), accounts, accounts.get(self._first() or ""), environ, given)
        if found is None and parts and parts[0] in accounts:
            if len(parts) == 1 and not environ["PATH_INFO"].endswith("/"):
                # The page uses relative paths, and so does this, because a proxy may add a path in front.
                query = environ.get("QUERY_STRING", "")
                return Answer(302, b"", headers={"Location": f"{parts[0]}/{query and f'?{query}'}"})
            account = accounts[parts[0]]
            found = self._at("/".join(parts[1:]), {parts[0]: account}, account, environ, given)
        return found or Answer(404, b"There is nothing at this address.\n")

    def _at(
        self,
        path: str,
        accounts: Mapping[str, PageAccount],
        account: PageAccount | None,
        environ: WSGIEnvironment,
        given: Mapping[str, str],
    ) -> Answer | None:
        """Answer a path: about these accounts or, if it is one of Nightscout's, about one of them."""
        if path.startswith(_API):
            path = path.removesuffix(".json")
        match path:
            case "":
                return Answer(200, self._page.html, _HTML, {"Content-Security-Policy": self._page.policy})
            case "api/accounts":
                return self._page_data(accounts, environ.get("HTTP_IF_NONE_MATCH", ""))
            case "health":
                return self._healthy()
            case "pebble" | "api/v1/status" | "api/v1/entries" | "api/v1/entries/sgv" | "api/v1/entries/current":
                return _json(self._of_nightscout(path, account, given)) if account else None
        return _json([]) if path in _EMPTY else None

    def _healthy(self) -> Answer:
        well, words = self._health()
        return Answer(200 if well else 503, f"{words}\n".encode())

    def _of_nightscout(self, path: str, account: PageAccount, given: Mapping[str, str]) -> object:
        readings, now = account.seen()[0].readings, account.unix() or system_time()
        match path.rpartition("/")[2]:
            case "status":
                return nightscout.status(account.settings, version(), now, needs_token=self._access.token is not None)
            case "pebble":
                mmol = given.get("units", "mmol" if account.settings.unit == "mmol/L" else "") == "mmol"
                return nightscout.pebble(readings, wanted(given, 1), now, mmol=mmol)
            case "current":
                return nightscout.entries(readings, wanted({**given, "count": "1"}, 1))
        return nightscout.entries(readings, wanted(given, 10))

    def _page_data(self, accounts: Mapping[str, PageAccount], known: str) -> Answer:
        """Answer with the page's data. ``now`` is not in the ETag: a header has it with each answer."""
        now = self._clock.now()
        seen = {key: account.seen() for key, account in accounts.items()}
        fresh = {key: overview.fresh_until > now for key, (overview, _) in seen.items()}
        made = [
            (key, overview.number, fresh[key], status.share, status.message, status.since)
            for key, (overview, status) in seen.items()
        ]
        tag = f'"{self._boot}-{hashlib.sha256(repr(made).encode()).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Daemon-Clock": str(round(now * 1000))}
        if tag in known.replace(",", " ").split():
            return Answer(304, b"", _JSON, headers)
        day = len(accounts) <= _MOST_DAYS
        shown = [
            described(key, accounts[key].settings, overview, status, fresh=fresh[key], day=day)
            for key, (overview, status) in seen.items()
        ]
        return _json({"version": 1, "now": round(now * 1000), "accounts": shown}, headers)


def _tokens(environ: WSGIEnvironment, given: Mapping[str, str]) -> list[str]:
    """Return everything that a request sends as a token."""
    every = [
        bearer(environ.get("HTTP_AUTHORIZATION", "")),
        environ.get("HTTP_API_SECRET", ""),
        given.get("token", ""),
        given.get("secret", ""),
    ]
    return [text for text in every if text]


def _json(content: object, headers: Mapping[str, str] | None = None) -> Answer:
    written = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))  # for small clients
    return Answer(200, written.encode(), _JSON, headers or {})
