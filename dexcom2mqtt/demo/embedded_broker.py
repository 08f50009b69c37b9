"""An MQTT broker inside this process, on loopback: for the demo and for tests.

Owns the thread and the event loop of amqtt. Must not know who connects, or what is published. It speaks only MQTT
3.1.1, admits everybody, and keeps nothing after it is closed. Without amqtt (the `demo` extra), importing this module
raises `ImportError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from amqtt.broker import Broker

if TYPE_CHECKING:
    from types import TracebackType

_LISTENER = "default"
_CONFIG = {
    # This module accepts the connections, because amqtt does not say which free port it has chosen.
    "listeners": {_LISTENER: {"type": "external"}},
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}
# amqtt logs errors for clients that vanish, speak MQTT 5, or are connected when the broker ends. All are normal here.
_LOG_LEVELS = {"amqtt": logging.CRITICAL, "transitions": logging.CRITICAL, "asyncio": logging.ERROR}
_GRACE_SECONDS = 1.0
_STOP_SECONDS = 5.0


class EmbeddedBroker:
    """A broker on a port of 127.0.0.1, by default a free one, from `start` to `close` or as a context manager."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._thread: threading.Thread | None = None
        self._stop: Future[None] = Future()

    @property
    def port(self) -> int:
        """The port that clients connect to; valid once the broker has started."""
        return self._port

    def start(self) -> None:
        """Start to serve; raises `OSError` if the port is in use."""
        started: Future[int] = Future()
        self._stop = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="broker", daemon=True)
        self._thread.start()
        self._port = started.result()

    def close(self) -> None:
        """Close every connection, and drop every message."""
        if self._thread:
            self._stop.set_result(None)
            self._thread.join(_STOP_SECONDS)
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, started: Future[int]) -> None:
        try:
            asyncio.run(self._serve(started))
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)  # start() waits for this, and raises it

    async def _serve(self, started: Future[int]) -> None:
        for name, level in _LOG_LEVELS.items():
            logging.getLogger(name).setLevel(level)
        broker = _Broker(_CONFIG)
        await broker.start()
        server = await asyncio.start_server(broker.accept, "127.0.0.1", self._port)
        started.set_result(server.sockets[0].getsockname()[1])
        await asyncio.wrap_future(self._stop)
        server.close()
        # shutdown() first delivers pending messages, which may take long; after the timeout `asyncio.run` cancels it.
        await asyncio.wait([asyncio.create_task(broker.shutdown())], timeout=_GRACE_SECONDS)


class _Broker(Broker):  # type: ignore[misc]  # amqtt is not typed
    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection, and close it; amqtt leaves it open if the client never sends CONNECT."""
        # The task is cancelled at the end, which some Pythons (3.11.7, 3.12.1) would log as an error.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await self.stream_connected(reader, writer, _LISTENER)
            finally:
                writer.close()

    async def _publish_retained_messages_for_subscription(self, subscription: tuple[str, int], session: object) -> None:
        # When a client connects, amqtt sends it the retained messages for everybody's subscriptions.
        own = {id(member) for member, _qos in self._subscriptions.get(subscription[0], ())}
        if id(session) in own:
            await super()._publish_retained_messages_for_subscription(subscription, session)
