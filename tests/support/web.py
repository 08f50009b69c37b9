"""A daemon with its page, over real HTTP."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dexcom2mqtt.demo.share_service import Record, SimulatedAccount, SimulatedShare
from tests.support import share_faults
from tests.support.processes import Process, Subscriber, daemon, eventually, free_port, write_config

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.support.processes import Mosquitto

ANNA = SimulatedAccount("anna@example.com", "the password of anna", seed=1)
BEN = SimulatedAccount("ben@example.com", "the password of ben", seed=2)


class Household:
    """Anna and Ben: a Share service with the readings that a test adds, a broker, and the daemon with its page."""

    def __init__(self, stack: ExitStack, broker: Mosquitto, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._broker = broker
        self.service = stack.enter_context(SimulatedShare([ANNA, BEN], time.time))
        self.service.distort(share_faults.missing)
        self.config = folder / "config.yaml"

    def add(self, seconds_ago: float, value: int, trend: str = "Flat", *, who: SimulatedAccount = ANNA) -> int:
        """Add a reading taken that many seconds ago; return its date."""
        taken = round((time.time() - seconds_ago) * 1000)
        self.service.add(who.username, Record(taken, value, trend))
        return taken

    def start(self, *arguments: str, web: dict[str, Any] | None = None, **environ: Any) -> tuple[int, Process]:
        """Start the daemon; return the port of its page, and the process."""
        port = (web or {}).get("port") or free_port()
        people = {
            key: {"username": each.username, "password": each.password, "share_url": self.service.base_url}
            for key, each in (("anna", ANNA), ("ben", BEN))
        }
        config = {
            "accounts": people,
            "mqtt": {"host": "127.0.0.1", "port": self._broker.port},
            "web": {"port": port, **(web or {})},
        }
        file = write_config(self.config, config)
        return port, self._stack.enter_context(daemon(file, self._folder / "daemon.log", *arguments, **environ))

    def serve(self, **web: Any) -> tuple[int, Process]:
        """Start the daemon, and wait until its page is served; return the port, and the process."""
        port, process = self.start(web=web)
        eventually(lambda: answers(port))
        return port, process

    def subscribe(self) -> Subscriber:
        """Return a subscriber to everything at the broker."""
        return self._stack.enter_context(Subscriber(self._broker.port))


def refresh(subscriber: Subscriber, key: str = "anna") -> None:
    """Request a poll now."""
    subscriber.client.publish(f"dexcom2mqtt/{key}/refresh", "now")


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def get(port: int, target: str, method: str = "GET", **headers: str) -> Got:
    """Request exactly that target; in the names of headers a _ stands for a -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with closing(connection):
        # Not request(): it refuses what some clients send without encoding it.
        connection.putrequest(method, target, skip_accept_encoding=True, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return Got(response.status, dict(response.getheaders()), response.read())


def answers(port: int) -> bool:
    """Return whether somebody answers there."""
    with suppress(OSError, http.client.HTTPException):
        return get(port, "/health").status in {200, 503}
    return False


def account(port: int, key: str = "anna") -> dict[str, Any]:
    """Return what the page gets about an account."""
    (found,) = (each for each in get(port, "/api/accounts").json["accounts"] if each["key"] == key)
    assert isinstance(found, dict)
    return found
