"""The demo: a simulated service, an embedded broker, the real daemon, and what a subscriber receives.

It owns the composition, and the plain lines that replace the view if there is no terminal for it. The view learns
everything from the messages, as any subscriber does. Nothing leaves this machine, and no file is read or written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import socket
import sys
import threading
import time
from collections import deque
from queue import Queue
from typing import TYPE_CHECKING, Final, Protocol

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Settings
from dexcom2mqtt.daemon.daemon import STOP, Daemon
from dexcom2mqtt.demo import screen
from dexcom2mqtt.demo.embedded_broker import EmbeddedBroker
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.demo.view import Heard, Seen, Viewer, closing
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_KEY: Final = "anna"
_ACCOUNT: Final = SimulatedAccount("anna@example.com", "a password of the demo")
_WIDTH: Final = 110
_BACKFILL: Final = '"backfill": true}'
_REFRESH: Final = 0.1
_REDRAW: Final = 0.5
"""Real seconds after which the view is drawn again without a message, because times in it change."""

_NEW_FOR: Final = 1.5
"""Real seconds during which a message is shown as new."""

_ENDS: Final = STOP | {signal.SIGHUP, signal.SIGQUIT}
_LOG_LINES: Final = 1000
_SUBSCRIBE_SECONDS: Final = 5.0


class _Show(Protocol):
    def __call__(self, heard: Sequence[Heard]) -> None:
        """Show the messages received since the last call; there may be none."""


def run(*, speed: float, duration: float | None, mqtt_port: int) -> int:
    """Show readings arrive until SIGINT, SIGTERM, or the end of ``duration`` real seconds; return the exit code.

    ``speed`` is how many times faster than real time everything runs; ``mqtt_port`` is the broker's port on
    loopback, 0 for a free one.
    """
    # Before a thread starts, because threads inherit it. Otherwise these signals would end or stop the program without
    # restoring the terminal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDS, signal.SIGTSTP})
    began = time.monotonic()
    until = None if duration is None else began + duration
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # without UTF-8 an arrow must not end the demo
    now = accelerated(speed)
    try:
        broker = EmbeddedBroker(mqtt_port)
        broker.start()
    except OSError as error:
        print(f"dexcom2mqtt: no broker on port {mqtt_port}: {error.strerror}; choose another with --mqtt-port")
        return 1
    seen = Seen()
    with SimulatedShare([_ACCOUNT], now) as share:
        heard: Queue[Heard] = Queue()
        client = _subscribe(broker.port, heard, now)
        settings = _settings(share.base_url, broker.port, page := _free_port())
        daemon = Daemon(settings, Clock(speed))
        daemon.start()
        with contextlib.suppress(OSError):  # the pipe is broken or the terminal gone: nobody looks any more
            _introduce(share.base_url, broker.port, page, speed)
            with _shown(settings, speed, now) as show:
                seen = _follow(heard, show, until)
        daemon.stop()
        client.disconnect()  # without this, the next line takes a second
        client.loop_stop()
    broker.close()
    with contextlib.suppress(OSError):
        print(closing(seen), flush=True)
    return 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def _introduce(base_url: str, port: int, page: int, speed: float) -> None:
    print(f"a simulated Share service: {base_url}")
    print(f"an embedded MQTT broker:   127.0.0.1:{port} (look for yourself: any client, topic #)")
    print(f"the page for a browser:    http://127.0.0.1:{page}/")
    print(f"the clock:                 {speed:g} times as fast as the real one; Ctrl-C ends the demo", flush=True)


def _settings(base_url: str, port: int, page: int) -> Settings:
    anna = {"username": _ACCOUNT.username, "password": _ACCOUNT.password, "share_url": base_url}
    # The embedded broker does not speak MQTT 5. The daemon would find out by itself, but that takes a moment.
    mqtt = {"host": "127.0.0.1", "port": port, "protocol": "3.1.1"}
    return build(Settings, {"accounts": {_KEY: anna}, "mqtt": mqtt, "web": {"port": page}})


def _follow(heard: Queue[Heard], show: _Show, until: float | None) -> Seen:
    """Show messages until a signal arrives or the time is over; return everything that was received."""
    seen = Seen()
    while not signal.sigpending() & _ENDS and (until is None or time.monotonic() < until):
        time.sleep(_REFRESH)
        waiting = [heard.get() for _ in range(heard.qsize())]
        seen = seen.then(waiting)
        show(waiting)
    return seen


@contextlib.contextmanager
def _shown(settings: Settings, speed: float, now: Callable[[], float]) -> Iterator[_Show]:
    """Yield a function that shows messages: in the view if the terminal can show it, else as lines."""
    if not screen.suits(sys.stdout):
        yield _print_lines
        return
    account = settings.accounts[_KEY]
    viewer = Viewer(_KEY, account.name, Topics(settings.mqtt.base_topic), fresh_for=_NEW_FOR * speed)
    head = f"dexcom2mqtt demo, {speed:g} times as fast as real time"
    page = f"http://127.0.0.1:{settings.web.port}/" if settings.web else ""
    foot = f"Ctrl-C ends it. Look for yourself: {page}, or MQTT at 127.0.0.1:{settings.mqtt.port}, topic #"
    with _log_held(), screen.Screen(sys.stdout, account.ranges, head, foot) as terminal:
        yield Drawing(terminal, viewer, now)


class Drawing:
    """Draws the view when there is something new, and every now and then because times in it change."""

    def __init__(self, terminal: screen.Screen, viewer: Viewer, now: Callable[[], float]) -> None:
        self._terminal = terminal
        self._viewer = viewer
        self._now = now
        self._seen = Seen()
        self._drawn = 0.0

    def __call__(self, heard: Sequence[Heard]) -> None:
        """Show the messages received since the last call; there may be none."""
        self._seen = self._seen.then(heard)
        if heard or time.monotonic() - self._drawn >= _REDRAW:
            self._drawn = time.monotonic()
            self._terminal.draw(self._viewer.show(self._seen, self._now()))


def _print_lines(heard: Sequence[Heard]) -> None:
    """Print one line for each message, but only one for all backfilled readings."""
    lines = [f"{message.topic} {message.payload}" for message in heard]
    earlier = [line for line in lines if line.endswith(_BACKFILL)]
    for line in lines:
        if not line.endswith(_BACKFILL):
            print(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…")
    if earlier:
        print(f"{earlier[0].partition(' ')[0]} … {len(earlier)} earlier readings")
    sys.stdout.flush()


def _subscribe(port: int, heard: Queue[Heard], now: Callable[[], float]) -> paho.Client:
    """Subscribe to everything, and put every message into ``heard``."""
    client = paho.Client(CallbackAPIVersion.VERSION2)

    def take(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        heard.put(Heard.of(message.topic, bytes(message.payload), now()))

    def subscribe(*_: object) -> None:
        client.subscribe("#", qos=1)

    def confirm(*_: object) -> None:
        confirmed.set()

    confirmed = threading.Event()
    client.on_message, client.on_connect, client.on_subscribe = take, subscribe, confirm
    client.connect("127.0.0.1", port)
    client.loop_start()
    confirmed.wait(_SUBSCRIBE_SECONDS)
    return client


@contextlib.contextmanager
def _log_held() -> Iterator[None]:
    """Hold back the log until the view is gone, because lines would break the view; keep only the last ones."""
    root = logging.getLogger()
    if not sys.stderr.isatty():
        yield
        return
    held = _Held()
    handlers, root.handlers = root.handlers, [held]
    try:
        yield
    finally:
        root.handlers = handlers
        for record in held.records:
            root.handle(record)


class _Held(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
