"""The page of a daemon: who is to be seen there, and where it is served. Loaded only if it is configured."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

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


def serve(
    web: Web,
    accounts: Mapping[str, Account],
    pollers: Mapping[str, Poller],
    clock: Clock,
    health: Callable[[], str],
) -> None:
    """Serve the page until the clock stops, then raise Stopped. ``health`` is asked how the daemon is."""
    people = {key: Person(accounts[key], poller.seen, poller.time.now) for key, poller in pollers.items()}
    name = socket.gethostname().lower()
    token = web.token and web.token.get_secret_value()
    access = Access(token or None, frozenset({name, name.partition(".")[0]}))

    def how_it_is() -> tuple[bool, str]:
        words = health()
        return words == HEALTHY, words

    Server(web.host, web.port, Site(people, clock, how_it_is, access, page.load()), clock).run()
