"""Real processes for the tests: a mosquitto, the daemon, and a subscriber that records its messages."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import yaml
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a port of loopback on which nobody listens now.

    It is not one that the system assigns to outgoing connections: one of those could get it while a broker that listens
    there restarts.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_768)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


BUSY = 4
"""How many times longer a busy machine may take than an idle one. It costs time only if a test fails."""


def eventually(what: Callable[[], T], seconds: float = 15.0, *, why: str = "") -> T:
    """Return the result of `what` as soon as it is true; fail after `seconds`, or as long as a busy machine takes."""
    until = time.monotonic() + BUSY * seconds
    while not (got := what()):
        assert time.monotonic() < until, why or "it did not happen in time"
        time.sleep(0.01)
    return got


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Call `serve` with each connection to a port of loopback, in its own thread; yield the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


class Process:
    """A process that ends with the test, and its output."""

    def __init__(self, arguments: Iterable[str | Path], output: Path, environ: Mapping[str, str] | None = None) -> None:
        self.output = output
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [str(argument) for argument in arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=dict(os.environ) | dict(environ or {}),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 10.0 * BUSY) -> int:
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Kill it, even if it is stopped."""
        if self.running:
            self._process.kill()
        self._process.wait(10 * BUSY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Mosquitto:
    """A real broker on a free port of loopback."""

    def __init__(self, folder: Path, *settings: str, port: int | None = None, persistent: bool = False) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            "user root",  # as root it would otherwise switch to a user who cannot read our files
            "log_type all",
            "max_queued_messages 100000",
            *(["persistence true", f"persistence_location {folder}/"] if persistent else []),
            *(settings or ("allow_anonymous true",)),
        ]
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: Process | None = None
        self.start()

    def start(self) -> None:
        assert MOSQUITTO
        self._process = Process([MOSQUITTO, "-c", self._config], self._log)
        eventually(self._listens, why=f"mosquitto did not start: {self._process.text()}")

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process:
            self._process.kill()

    def stop(self) -> None:
        """End it as an operating system would."""
        assert self._process
        self._process.signal(signal.SIGTERM)
        self._process.wait()

    def freeze(self) -> None:
        assert self._process
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def frozen(self) -> bool:
        assert self._process
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] == "T"

    def save(self) -> None:
        """Make it write its messages to its file."""
        assert self._process
        file = self._folder / "mosquitto.db"
        file.unlink(missing_ok=True)
        self._process.signal(signal.SIGUSR1)
        eventually(file.exists)

    def reload(self) -> None:
        """Make it read its files again, and wait until it does."""
        assert self._process
        before = self.log().count("Reloading config.")
        self._process.signal(signal.SIGHUP)
        eventually(lambda: self.log().count("Reloading config.") > before)

    def log(self) -> str:
        assert self._process
        return self._process.text()

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass(frozen=True)
class Heard:
    """A message as a subscriber got it."""

    topic: str
    payload: str
    retained: bool
    expiry: int | None
    at: float


class Subscriber:
    """A client that subscribes to everything and records it, in order."""

    def __init__(
        self,
        port: int,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        login: tuple[str, str] | None = None,
        set_up: Callable[[paho.Client], None] = lambda _: None,
        seconds: float = 5.0,
    ) -> None:
        self._heard: list[Heard] = []
        self._lock = threading.Lock()
        self.subscribed = threading.Event()
        """Set while it is connected and receives new messages."""
        self.client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        if login:
            client.username_pw_set(*login)
        set_up(client)
        client.on_connect = self._subscribe
        client.on_subscribe = self._confirm
        client.on_disconnect = self._lose
        client.on_message = self._take
        client.connect("127.0.0.1", port)
        client.loop_start()
        if not self.subscribed.wait(BUSY * seconds):
            client.loop_stop()
            raise AssertionError("the subscriber could not subscribe")

    def _subscribe(self, client: paho.Client, *_: object) -> None:
        client.subscribe("#")

    def _confirm(self, *_: object) -> None:
        self.subscribed.set()

    def _lose(self, *_: object) -> None:
        self.subscribed.clear()

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        expiry = getattr(message.properties, "MessageExpiryInterval", None)
        heard = Heard(message.topic, bytes(message.payload).decode(), message.retain, expiry, time.monotonic())
        with self._lock:
            self._heard.append(heard)

    @property
    def heard(self) -> list[Heard]:
        with self._lock:
            return list(self._heard)

    def forget(self) -> None:
        with self._lock:
            self._heard.clear()

    def payloads(self, topic: str) -> list[str]:
        return [heard.payload for heard in self.heard if heard.topic == topic]

    def latest(self) -> dict[str, str]:
        """Return the latest payload of each topic."""
        return {heard.topic: heard.payload for heard in self.heard}

    def wait_for(self, topic: str, payload: str | None = None, seconds: float = 15.0) -> Heard:
        """Wait until there is a message on a topic and the latest is `payload`, if that is given; return it."""

        def last() -> Heard | None:
            found = [heard for heard in self.heard if heard.topic == topic]
            return found[-1] if found and payload in {None, found[-1].payload} else None

        found = eventually(last, seconds, why=f"{topic} did not become {payload}: {self.payloads(topic)}")
        assert found
        return found

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def retained(port: int, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> dict[str, str]:
    """Return the broker's retained messages, as a new subscriber gets them."""
    with Subscriber(port, protocol) as subscriber:
        marker = f"test/{time.monotonic_ns()}"
        subscriber.client.publish(marker, "end")
        subscriber.wait_for(marker)
        return {heard.topic: heard.payload for heard in subscriber.heard if heard.retained}


def write_config(path: Path, settings: Mapping[str, Any]) -> Path:
    """Write a configuration that nobody else can read."""
    path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    path.chmod(0o600)
    return path


def daemon(config: Path, output: Path, *arguments: str, speed: float = 1.0, **environ: str) -> Process:
    """Start the daemon with a clock that runs `speed` times as fast as real time."""
    command: list[str | Path] = [sys.executable, "-m", "tests.support.launcher", "--config", config, *arguments]
    return Process(command, output, {"SPEED": str(speed)} | environ)
