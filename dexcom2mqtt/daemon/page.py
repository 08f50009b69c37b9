"""The page of a daemon: who is to be seen there, and where it is served. Loaded only if it is wanted.

In Home Assistant's app it is served at a second place, for ingress: Home Assistant asks there for whoever has signed in
to it, so that nobody needs a token, and puts a path of its own in front.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.daemon.asking import HEALTHY
from dexcom2mqtt.web import page
from dexcom2mqtt.web.access import Access
from dexcom2mqtt.web.accounts import Person
from dexcom2mqtt.web.server import Server
from dexcom2mqtt.web.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dexcom2mqtt.account.poller import Poller
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account, Web

_log = logging.getLogger(__name__)

_LAST_PORT: Final = 65535


class Place(NamedTuple):
    """Where to listen, and who may read there."""

    host: str
    port: int
    access: Access


def configured(web: Web) -> Place:
    """Return the place that the configuration names."""
    name = socket.gethostname().lower()
    token = web.token and web.token.get_secret_value()
    return Place(web.host, web.port, Access(token or None, frozenset({name, name.partition(".")[0]})))


def ingress(text: str) -> Place | None:
    """Return the place for ingress, of a text such as ``0.0.0.0 8099 172.30.32.2``: host, port, who alone may ask.

    Without a token and under any name, since Home Assistant passes on by which name it was called. None if the text
    is not like that; then it is said.
    """
    try:
        host, port, peer = text.split()
        if 0 < int(port) <= _LAST_PORT:
            return Place(host, int(port), Access(names=None, peers=frozenset({str(ipaddress.IPv4Address(peer))})))
    except ValueError:
        pass
    _log.error("web: DEXCOM2MQTT_INGRESS is not as 0.0.0.0 8099 172.30.32.2; there is no page for ingress")
    return None


def serve(
    place: Place,
    accounts: Mapping[str, Account],
    pollers: Mapping[str, Poller],
    clock: Clock,
    health: Callable[[], str],
) -> None:
    """Serve the page there until the clock stops, then raise Stopped. ``health`` is asked how the daemon is."""
    people = {key: Person(accounts[key], poller.seen, poller.time.now) for key, poller in pollers.items()}

    def how_it_is() -> tuple[bool, str]:
        words = health()
        return words == HEALTHY, words

    Server(place.host, place.port, Site(people, clock, how_it_is, place.access, page.load()), clock).run()
