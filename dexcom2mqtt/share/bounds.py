"""The seconds and bytes that a thread's current call may still use. Everything that a call reads goes through here.

It knows neither the request nor the route. A socket's own timeout only limits a single read: a server or proxy that
sends one byte each second would never time out.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import threading
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import Clock

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from dexcom2mqtt.share.route import Proxy

_MOST_INTERIM: Final = 10


class Bounds(threading.local):
    """What this thread's current call may still use. Connections are shared between calls, so they look here."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._end = 0.0
        self.bytes_left = 0
        self.proxy: Proxy | None = None
        """The proxy for a new connection of the call, or None."""
        self.sent = False
        """Whether the call has sent anything to the server."""
        self.answers: list[http.client.HTTPResponse] = []
        """The answers that the call has begun to read."""

    @contextlib.contextmanager
    def call(self, clock: Clock, seconds: float, size: int, proxy: Proxy | None) -> Iterator[None]:
        """Limit a call to ``seconds`` real seconds and ``size`` bytes, and close its answers when it ends.

        Some sockets stay open until their answer is closed, and urllib3 does not close an answer whose head is
        malformed, such as one with two lengths.
        """
        self._clock = clock
        self._end = clock.now() + seconds * clock.speed
        self.bytes_left = size
        self.proxy = proxy
        self.sent = False
        try:
            yield
        finally:
            while self.answers:
                self.answers.pop().close()

    def now(self) -> float:
        """Return the time by the call's clock."""
        return self._clock.now()

    def seconds_left(self) -> float:
        """Return how many real seconds are left. Raises TimeoutError if there are none."""
        left = self._clock.real(self._end - self._clock.now())
        if left <= 0:
            raise TimeoutError
        return left

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Stop the call's time for a block, such as a look-up of a name, which cannot be limited."""
        began = self.now()
        try:
            yield
        finally:
            self._end += self.now() - began

    def use(self, count: int) -> int:
        """Count bytes read and return ``count``. Raises ConnectionAbortedError if there are too many."""
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise ConnectionAbortedError
        return count


bounds: Final = Bounds()
"""The bounds of this thread's call."""


class _BoundedFile(io.RawIOBase):
    """A socket's file whose reads each time out when the time of the whole call is over."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants any buffer
        self._sock.settimeout(bounds.seconds_left())
        return bounds.use(self._file.readinto(buffer) or 0)

    def close(self) -> None:
        self._file.close()
        super().close()


class _BoundedSocket:
    """The part of a socket that http.client needs to read an answer: a file."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_BoundedFile(self._sock))


class InterimError(http.client.HTTPException):
    """Too many interim responses (100 Continue), which were not requested."""


class BoundedResponse(http.client.HTTPResponse):
    """An answer of the server or a proxy, read within the call's bounds. Raises InterimError."""

    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
        super().__init__(_BoundedSocket(sock), debuglevel, method)  # type: ignore[arg-type]
        self._interim = 0
        bounds.answers.append(self)

    def _read_status(self) -> tuple[str, int, str]:
        """Read a status line. Only some Pythons limit how many interim ones they skip."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if status == http.client.CONTINUE:
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                raise InterimError
        return version, status, reason
