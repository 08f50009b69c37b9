"""The daemon as a process whose clock runs faster; otherwise it is the command ``dexcom2mqtt run``.

The command line has no option for this, since users do not need one. These variables of the environment change it:
``SPEED``; ``CALL_SECONDS``, a time limit for calls to Share that suits the speed; ``BUG_IN``, an account whose third
and fourth poll end in an unexpected exception; ``PATIENCE``, how long a loop may be overdue; ``BLOCK``, which thread
blocks forever in a read as soon as the file ``BLOCK_WHEN`` exists: ``share``, ``broker`` or ``heart``; ``JAM``, how
many real seconds an acknowledgement may take, suiting the speed, too; ``LATE``, how many real seconds it waits for the
messages of an earlier daemon, instead of a moment that suits the speed; ``NAMED``, whether ``healthcheck`` finds the
daemon: those of other tests that run at the same time have the same client id; ``WEB_BROKEN``, whether every request to
the page ends in an exception; ``WEB_AGAIN``, after how many real seconds a port is tried again; ``DUE``, a file for how
many seconds of the clock each poll was late; ``LOOK``, after how many real seconds it looks at the folder with the
accounts again.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

from dexcom2mqtt import cli
from dexcom2mqtt.account.poller import Poller
from dexcom2mqtt.clock import Clock
from dexcom2mqtt.daemon import daemon as composition
from dexcom2mqtt.daemon import health, process, reloading
from dexcom2mqtt.daemon.heartbeat import Heartbeat
from dexcom2mqtt.mqtt import patience
from dexcom2mqtt.mqtt.inbox import Inbox
from dexcom2mqtt.share import transport
from dexcom2mqtt.web import server
from dexcom2mqtt.web.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable


_SECONDS: dict[str, tuple[object, str]] = {
    "CALL_SECONDS": (transport, "CALL_SECONDS"),
    "PATIENCE": (health, "PATIENCE"),
    "JAM": (patience, "SECONDS"),
    "WEB_AGAIN": (server, "_AGAIN"),
    "LOOK": (reloading, "_EVERY"),
}
_PLACES: dict[str, tuple[type, str]] = {
    "share": (transport.Transport, "post"),
    "broker": (Inbox, "take"),
    "heart": (Heartbeat, "tick"),
}


def main() -> int:
    """Read the hooks from the environment and the rest from the command line."""
    run = process.run
    clock = Clock(float(os.environ["SPEED"]))
    with ExitStack() as hooks:
        hooks.enter_context(mock.patch.object(process, "run", lambda settings: run(settings, clock)))
        for name, (owner, constant) in _SECONDS.items():
            if seconds := os.environ.get(name):
                hooks.enter_context(mock.patch.object(owner, constant, float(seconds)))
        if key := os.environ.get("BUG_IN"):
            hooks.enter_context(mock.patch.object(Poller, "poll", _with_a_bug(key, Poller.poll)))
        if "WEB_BROKEN" in os.environ:
            hooks.enter_context(mock.patch.object(Site, "_answer", _broken))
        if path := os.environ.get("DUE"):
            hooks.enter_context(mock.patch.object(Poller, "poll", _timed(Path(path), clock, Poller.poll)))
        late = os.environ.get("LATE") or clock.real(composition.ANYTHING_SECONDS)
        hooks.enter_context(mock.patch.object(composition, "ANYTHING_SECONDS", float(late)))
        if what := os.environ.get("BLOCK"):
            owner, method = _PLACES[what]
            blocking = _blocking(getattr(owner, method), Path(os.environ["BLOCK_WHEN"]))
            hooks.enter_context(mock.patch.object(owner, method, blocking))
        if "NAMED" not in os.environ:
            hooks.enter_context(mock.patch.object(health, "address", return_value=""))
        return cli.main(sys.argv[1:])


def _with_a_bug(key: str, poll: Callable[[Poller], float]) -> Callable[[Poller], float]:
    polls = itertools.count(1)

    def broken(poller: Poller) -> float:
        if poller.key == key and next(polls) in {3, 4}:
            raise RuntimeError("a bug that a test put here")
        return poll(poller)

    return broken


def _broken(*_: object) -> NoReturn:
    raise RuntimeError("a bug that a test put here")


def _timed(file: Path, clock: Clock, poll: Callable[[Poller], float]) -> Callable[[Poller], float]:
    def timed(poller: Poller) -> float:
        with file.open("a", encoding="ascii") as stream:
            stream.write(f"{clock.now() - poller.due}\n")
        return poll(poller)

    return timed


def _blocking(method: Callable[..., Any], when: Path) -> Callable[..., Any]:
    silent = socket.socket(type=socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))  # nobody sends anything there

    def blocking(self: object, *arguments: object) -> object:
        if when.exists():
            silent.recv(1)
        return method(self, *arguments)

    return blocking


if __name__ == "__main__":
    sys.exit(main())
