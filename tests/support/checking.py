"""The command check with a configuration, and its output, step by step."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from tests.support.processes import ROOT, listening, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANNA: Final = SimulatedAccount("anna@example.com", "hunter2", seed=1)
BEN: Final = SimulatedAccount("ben.the.builder", "correct horse", seed=2)
UNWRAPPED: Final = {"COLUMNS": "1000"}


class Bench:
    """A configuration that knows Anna and a broker, and the command with it."""

    def __init__(self, folder: Path, share: SimulatedShare) -> None:
        self._folder = folder
        self.share = share
        self.accounts = {"anna": self.account(ANNA)}
        self.environ = dict(os.environ) | UNWRAPPED
        self.environ.pop("PYTHONUNBUFFERED", None)  # without it, output must still appear at once

    def account(self, who: SimulatedAccount, **changes: Any) -> dict[str, Any]:
        return {"username": who.username, "password": who.password, "share_url": self.share.base_url} | changes

    def command(self, port: int, sections: dict[str, Any] | None = None, **mqtt: Any) -> list[str]:
        config = {"accounts": self.accounts, "mqtt": {"host": "127.0.0.1", "port": port, **mqtt}, **(sections or {})}
        file = write_config(self._folder / "config.yaml", config)
        return [sys.executable, "-m", "dexcom2mqtt", "check", "--config", str(file)]

    def check(
        self, port: int, sections: dict[str, Any] | None = None, *, encoding: str = "utf-8", **mqtt: Any
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(port, sections, **mqtt),
            capture_output=True,
            encoding=encoding,
            check=False,
            timeout=60,
            env=self.environ,
            cwd=ROOT,
        )
        written = done.stdout + done.stderr
        assert "Traceback" not in written
        secrets = (ANNA.username, ANNA.password, BEN.username, BEN.password, ANNA.account_id, "the-secret", "the-user")
        assert not [secret for secret in secrets if secret in written]
        return done

    def start(self, port: int, **mqtt: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(port, **mqtt),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=self.environ,
            cwd=ROOT,
        )


def steps(text: str) -> list[tuple[str, str]]:
    """Return the verdict and the text of each step, without the remedies below it."""
    return [(line[:8].strip(), line[8:]) for line in text.splitlines() if line[:8].strip() in {"ok", "note", "FAILED"}]


def remedies(text: str) -> list[str]:
    """Return what is printed below the steps."""
    return [line.strip() for line in text.splitlines() if line.startswith(" " * 8)]


def failed(text: str) -> list[str]:
    return [words for verdict, words in steps(text) if verdict == "FAILED"]


@contextlib.contextmanager
def stopping_at(port: int, word: bytes) -> Iterator[tuple[int, threading.Event, threading.Event]]:
    """Listen in front of a broker, and stop passing on its answers once a client has published ``word``.

    Yields the port, an event that is set then, and one to set so that its answers are passed on again, or, if the
    broker is gone by then, the connection ends.
    """
    reached, go_on = threading.Event(), threading.Event()

    def answers(upstream: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(4096):
                if reached.is_set():
                    go_on.wait(30)
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as upstream:
            threading.Thread(target=answers, args=(upstream, client), daemon=True).start()
            while data := client.recv(4096):
                if word in data:
                    reached.set()
                upstream.sendall(data)

    with listening(serve) as own_port:
        try:
            yield own_port, reached, go_on
        finally:
            go_on.set()
