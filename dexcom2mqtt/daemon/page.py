"""The page of a daemon: which accounts it shows, and where it is served. Loaded only if configured.

In Home Assistant's app it is also served at a second place, for ingress. Home Assistant forwards the requests of its
signed-in users to it, so it needs no token; the browser sees it below a path of Home Assistant.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.daemon.asking import HEALTHY
from dexcom2mqtt.web import page
from dexcom2mqtt.web.access import Access
from dexcom2mqtt.web.accounts import PageAccount
from dexcom2mqtt.web.server import Server
from dexcom2mqtt.web.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account, Settings, Web
    from dexcom2mqtt.daemon.accounts import Accounts

_log = logging.getLogger(__name__)

_LAST_PORT: Final = 65535


class Place(NamedTuple):
    """Where to listen, and who may read."""

    host: str
    port: int
    access: Access


def configured(web: Web) -> Place:
    """Return the place that the configuration names."""
    name = socket.gethostname().lower()
    token = web.token and web.token.get_secret_value()
    return Place(web.host, web.port, Access(token or None, frozenset({name, name.partition(".")[0]})))


def ingress(text: str) -> Place | None:
    """Return the place for ingress from a text such as ``0.0.0.0 8099 172.30.32.2``: host, port, only client.

    It needs no token and accepts any host name, since Home Assistant passes on the name that the browser used. Logs an
    error and returns None if the text has another form.
    """
    try:
        host, port, peer = text.split()
        if 0 < int(port) <= _LAST_PORT:
            return Place(host, int(port), Access(names=None, peers=frozenset({str(ipaddress.IPv4Address(peer))})))
    except ValueError:
        pass
    _log.error("web: DEXCOM2MQTT_INGRESS must look like 0.0.0.0 8099 172.30.32.2; the page is not served to ingress")
    return None


class Shown:
    """The accounts on the page. They keep the order of the configuration, however they come and go.

    ``settings`` returns the configuration as it is now. For any thread.
    """

    def __init__(self, accounts: Accounts, settings: Callable[[], Settings]) -> None:
        self._accounts = accounts
        self._settings = settings
        self._order: tuple[str, ...] = ()  # all that were ever configured, each at its first place
        self._ordered: Mapping[str, Account] | None = None

    def now(self) -> dict[str, PageAccount]:
        """Return the accounts that are served now."""
        configured, pollers = self._accounts.configured, self._accounts.pollers
        served = [key for key in self._keys() if key in configured and key in pollers]
        return {key: PageAccount(configured[key], pollers[key].seen, pollers[key].time.now) for key in served}

    def first(self) -> str | None:
        """Return the first configured account, whether or not it is served now; None if there is none."""
        settings = self._settings()
        return next((key for key in self._keys() if key in settings.own_accounts or key in settings.broken), None)

    def _keys(self) -> tuple[str, ...]:
        own = self._settings().own_accounts
        if own is not self._ordered:
            self._order, self._ordered = tuple(dict.fromkeys([*self._order, *own])), own
        return self._order


def serve(
    place: Place, accounts: Accounts, settings: Callable[[], Settings], clock: Clock, health: Callable[[], str]
) -> None:
    """Serve the page at ``place`` until the clock stops, then raise Stopped.

    ``settings`` returns the configuration as it is now, and ``health`` the daemon's health.
    """
    shown = Shown(accounts, settings)

    def health_now() -> tuple[bool, str]:
        answer = health()
        return answer == HEALTHY, answer

    site = Site(shown.now, clock, health_now, place.access, page.load(), shown.first)
    Server(place.host, place.port, site, clock).run()
