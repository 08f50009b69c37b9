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
    from collections.abc import Callable

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Web
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


def serve(place: Place, accounts: Accounts, clock: Clock, health: Callable[[], str]) -> None:
    """Serve the page at ``place`` until the clock stops, then raise Stopped. ``health`` returns the daemon's health."""

    def shown() -> dict[str, PageAccount]:
        configured = accounts.configured
        served = [(key, poller) for key, poller in accounts.pollers.items() if key in configured]
        return {key: PageAccount(configured[key], poller.seen, poller.time.now) for key, poller in served}

    def health_now() -> tuple[bool, str]:
        answer = health()
        return answer == HEALTHY, answer

    Server(place.host, place.port, Site(shown, clock, health_now, place.access, page.load()), clock).run()
