"""A link to the broker as in the daemon, and helpers for its tests."""

from __future__ import annotations

import ssl
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Mqtt
from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.state import guarded, unprotected
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.mqtt.inbox import ReadBack
from dexcom2mqtt.mqtt.link import BrokerLink
from dexcom2mqtt.topics import Topics
from tests.support.relay import PASS, Packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dexcom2mqtt.mqtt.connection import Received

STATE = "test/bridge/state"
ONLINE, OFFLINE = Message(STATE, "online"), Message(STATE, "offline")


def written(settings: Any) -> Any:
    """Return settings as in a configuration file: paths as text."""
    if isinstance(settings, dict):
        return {key: written(value) for key, value in settings.items()}
    return str(settings) if isinstance(settings, Path) else settings


class Running:
    """A BrokerLink in a thread, as the daemon runs it."""

    def __init__(self, port: int, *, speed: float = 1.0, subscriptions: tuple[str, ...] = (), **settings: Any) -> None:
        self.clock = Clock(speed)
        topics = Topics("test")
        self.mirror = Mirror(STATE, self.wake, partial(guarded, topics))
        self.stream = Stream(Topics("test"), changed=self.wake)
        self.found: list[Mapping[str, bytes]] = []
        self.protocols: list[str] = []
        self.received: list[Received] = []
        self.link = BrokerLink(
            build(Mqtt, {"port": port, "base_topic": "test", "host": "127.0.0.1"} | written(settings)),
            self.clock,
            self.mirror,
            self.stream,
            will=OFFLINE,
            read_back=ReadBack(("test/anna/history",), "test/bridge/sync/test", self.found.append),
            unprotected=partial(unprotected, topics),
            subscriptions=dict.fromkeys(subscriptions, "nothing is asked for"),
            connected=self.protocols.append,
            received=self.received.append,
        )
        self.mirror.put([ONLINE, Message("test/a", "1"), Message("test/b", "2")])
        self.thread = threading.Thread(target=self.link.run, daemon=True)
        self.thread.start()

    def wake(self) -> None:
        self.link.wake()

    def stop(self) -> float:
        """Stop as the daemon does; return how many seconds it took."""
        began = time.monotonic()
        self.mirror.close([OFFLINE])
        self.clock.stop()
        self.link.join()
        return time.monotonic() - began


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a BrokerLink; it ends with the test."""
    started: list[Running] = []

    def start(*arguments: Any, **settings: Any) -> Running:
        started.append(Running(*arguments, **settings))
        return started[-1]

    yield start
    for running in started:
        running.clock.stop()
        running.link.wake()
        running.thread.join(12)
        assert not running.thread.is_alive()


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    """Return a certificate authority and the file with its certificate."""
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


@pytest.fixture
def strict_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any Python as strict with certificates as 3.13."""
    made = ssl.create_default_context

    def strict(**arguments: Path | None) -> ssl.SSLContext:
        context = made(**arguments)  # type: ignore[arg-type]
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


SUBACKS_LATE = 0.3


def is_late(packet: Packet) -> float:
    return SUBACKS_LATE if packet.kind == "SUBACK" else PASS
