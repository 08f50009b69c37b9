"""An MQTT broker inside this process, on loopback: for the demo and for tests.

Owns the thread and the event loop that amqtt runs in. Must not know who connects, or what is published. It speaks
MQTT 3.1.1 only, lets everybody in, and keeps nothing beyond its end. Without amqtt (the `demo` extra) the import
of this module raises `ImportError`.
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
    # The connections are accepted here, not by amqtt: it does not tell which free port it has taken.
    "listeners": {_LISTENER: {"type": "external"}},
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}
# Clients that vanish, speak MQTT 5, or are there when the broker ends are errors to amqtt; here they are daily life.
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
        """The port that clients connect to; right once the broker has started."""
        return self._port

    def start(self) -> None:
        """Serve from now on; raises `OSError` where the port is taken."""
        started: Future[int] = Future()
        self._stop = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="broker", daemon=True)
        self._thread.start()
        self._port = started.result()

    def close(self) -> None:
        """Close every connection, and forget every message."""
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
            started.set_exception(error)  # for start() to raise, which waits for it

    async def _serve(self, started: Future[int]) -> None:
        for name, level in _LOG_LEVELS.items():
            logging.getLogger(name).setLevel(level)
        broker = _Broker(_CONFIG)
        await broker.start()
        server = await asyncio.start_server(broker.accept, "127.0.0.1", self._port)
        started.set_result(server.sockets[0].getsockname()[1])
        await asyncio.wrap_future(self._stop)
        server.close()
        # It would deliver first what is under way, however long that takes; what it leaves, `run` cancels.
        await asyncio.wait([asyncio.create_task(broker.shutdown())], timeout=_GRACE_SECONDS)


class _Broker(Broker):  # type: ignore[misc]  # amqtt is not typed
    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection, and close it even where amqtt forgets to: it never said CONNECT."""
        # Cancelled at the end: Python 3.11.7 and 3.12.1, for two, would write that to the log as an error.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await self.stream_connected(reader, writer, _LISTENER)
            finally:
                writer.close()

    async def _publish_retained_messages_for_subscription(self, subscription: tuple[str, int], session: object) -> None:
        # amqtt sends a client that connects the retained messages of everybody's subscriptions.
        own = {id(member) for member, _qos in self._subscriptions.get(subscription[0], ())}
        if id(session) in own:
            await super()._publish_retained_messages_for_subscription(subscription, session)
