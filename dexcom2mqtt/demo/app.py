"""The demo: simulated service, embedded broker, the real daemon, and what a subscriber of the broker gets.

It owns the composition and the lines on the screen. Nothing leaves this machine, and no file is read or written.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from queue import Queue
from typing import Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.config import Settings
from dexcom2mqtt.daemon import STOP, Daemon, stop_wanted
from dexcom2mqtt.demo.embedded_broker import EmbeddedBroker
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated

_ACCOUNT: Final = SimulatedAccount("anna@example.com", "a password of the demo")
_WIDTH: Final = 110
_BACKFILL: Final = '"backfill": true}'
_REFRESH: Final = 0.1


def run(*, speed: float, duration: float | None, mqtt_port: int) -> int:
    """Show readings arrive until SIGINT, SIGTERM, or the end of ``duration`` real seconds; return the exit code.

    ``speed`` is how many times faster than real time everything runs; ``mqtt_port`` is the broker's port on
    loopback, 0 for a free one.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # before a thread starts: they inherit it
    began = time.monotonic()
    try:
        broker = EmbeddedBroker(mqtt_port)
        broker.start()
    except OSError as error:
        print(f"dexcom2mqtt: no broker on port {mqtt_port}: {error.strerror}; choose another with --mqtt-port")
        return 1
    with SimulatedShare([_ACCOUNT], accelerated(speed)) as share:
        print(f"a simulated Share service: {share.base_url}")
        print(f"an embedded MQTT broker:   127.0.0.1:{broker.port} (look for yourself: any client, topic #)")
        print(f"the clock:                 {speed:g} times as fast as the real one; Ctrl-C ends the demo", flush=True)
        lines: Queue[str] = Queue()
        client = _subscribe(broker.port, lines)
        daemon = Daemon(_settings(share.base_url, broker.port), Clock(speed))
        daemon.start()
        with contextlib.suppress(BrokenPipeError):  # nobody looks any more
            _show(lines, None if duration is None else began + duration)
        daemon.stop()
        client.loop_stop()
    broker.close()
    return 0


def _settings(base_url: str, port: int) -> Settings:
    anna = {"username": _ACCOUNT.username, "password": _ACCOUNT.password, "share_url": base_url}
    # The embedded broker does not speak MQTT 5; the daemon would find out, but that takes a moment.
    return Settings.model_validate(
        {"accounts": {"anna": anna}, "mqtt": {"host": "127.0.0.1", "port": port, "protocol": "3.1.1"}}
    )


def _show(lines: Queue[str], until: float | None) -> None:
    """Print the lines until a signal comes or the time is over."""
    while not stop_wanted() and (until is None or time.monotonic() < until):
        time.sleep(_REFRESH)
        waiting = [lines.get() for _ in range(lines.qsize())]
        earlier = [line for line in waiting if line.endswith(_BACKFILL)]
        for line in waiting:
            if line not in earlier:
                print(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…")
        if earlier:
            print(f"{earlier[0].partition(' ')[0]} … {len(earlier)} earlier readings")
        sys.stdout.flush()


def _subscribe(port: int, lines: Queue[str]) -> paho.Client:
    """Put a line into ``lines`` for every message that a subscriber of everything gets."""
    client = paho.Client(CallbackAPIVersion.VERSION2)

    def take(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        lines.put(f"{message.topic} {bytes(message.payload).decode()}")

    client.on_message = take
    client.connect("127.0.0.1", port)
    client.subscribe("#", qos=1)
    client.loop_start()
    return client
