"""The site as a WSGI application, called without a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.messages.overview import Overview, overview_of
from dexcom2mqtt.messages.state import without_reading
from dexcom2mqtt.messages.status import Status
from dexcom2mqtt.web.access import Access
from dexcom2mqtt.web.accounts import PageAccount
from dexcom2mqtt.web.page import Page, load
from dexcom2mqtt.web.site import Site
from tests.support.builders import NOON, account
from tests.support.web import Got

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dexcom2mqtt.readings import Reading


class FixedClock(Clock):
    """A clock that a test sets."""

    at = 1000.0

    def now(self) -> float:
        return self.at


@dataclass
class Shown:
    """Some people and the site that shows those in ``now``; at ``clock.at`` it is noon."""

    keys: Sequence[str] = ("anna", "ben")
    access: Access = field(default_factory=Access)
    well: bool = True
    page: Page = field(default_factory=load)
    asks_from: str = "192.168.1.9"

    def __post_init__(self) -> None:
        self.clock = FixedClock()
        self.status = Status()
        self.overviews = {key: Overview(without_reading(account())) for key in self.keys}
        self.now = {key: PageAccount(account(), self._seen(key), lambda: float(NOON)) for key in self.keys}
        self.site = Site(
            lambda: self.now,
            self.clock,
            lambda: (self.well, "healthy" if self.well else "overdue: account anna"),
            self.access,
            self.page,
            lambda: next(iter(self.keys), None),
        )

    def _seen(self, key: str) -> Any:
        return lambda: (self.overviews[key], self.status)

    def show(self, key: str, *readings: Reading, fresh_for: float = 600.0) -> None:
        """Show readings, the last of which is current for that many seconds."""
        shown = (readings[-1], self.clock.at + fresh_for)
        self.overviews[key] = overview_of(account(), readings, 0, shown, lambda unix: unix - NOON + 1000)

    def ask(self, path: str, query: str = "", method: str = "GET", **headers: str) -> Got:
        """Send a request; the names of headers are those of WSGI, without HTTP_."""
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "REMOTE_ADDR": self.asks_from}
        environ |= {f"HTTP_{name}": value for name, value in ({"HOST": "localhost"} | headers).items()}
        sent: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
            sent.extend((status, headers))

        body = b"".join(self.site(environ, start_response))
        status, sent_headers = sent
        assert all(value == value.encode("latin-1").decode("latin-1") for _, value in sent_headers)
        return Got(int(status.split()[0]), dict(sent_headers), body)


def encoded(parameters: Mapping[str, str]) -> str:
    """Write a query."""
    return "&".join(
        f"{quote(name, errors='replace')}={quote(value, errors='replace')}" for name, value in parameters.items()
    )
