"""What the call that a thread is making may still use: seconds, bytes. Whatever a call reads goes through here.

It knows neither what is asked nor the way. A socket's own timeout bounds one read: a server, or a proxy, that sends a
byte each second would never time out.
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
    """What the call that this thread is making may still use. Connections are shared, so they look here."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._end = 0.0
        self.bytes_left = 0
        self.proxy: Proxy | None = None
        """Through which its connection is to be made, where there is none yet."""
        self.sent = False
        """Whether the call has got as far as sending something to the server."""
        self.answers: list[http.client.HTTPResponse] = []
        """What the call has begun to read."""

    @contextlib.contextmanager
    def call(self, clock: Clock, seconds: float, size: int, proxy: Proxy | None) -> Iterator[None]:
        """Begin a call of so many real seconds and bytes, and close its answers when it ends, however it ends.

        An answer that ends with its connection is all that keeps the socket open, and urllib3 drops it unclosed where
        it finds the head at fault, as with two lengths.
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
        """Return the time of the call's clock, in its seconds."""
        return self._clock.now()

    def seconds_left(self) -> float:
        """Return how many real seconds are left. Raises TimeoutError where none is."""
        left = self._clock.real(self._end - self._clock.now())
        if left <= 0:
            raise TimeoutError
        return left

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave what is done meanwhile out of the call's time, as a look-up of a name: nobody can bound it."""
        began = self.now()
        try:
            yield
        finally:
            self._end += self.now() - began

    def use(self, count: int) -> int:
        """Count bytes that were read. Raises ConnectionAbortedError where they are too many."""
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise ConnectionAbortedError
        return count


bounds: Final = Bounds()
"""Those of this thread's call."""


class _BoundedFile(io.RawIOBase):
    """A socket's file whose every read gets the time that is left of the whole call."""

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
    """What http.client wants of a socket in order to read an answer: a file."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_BoundedFile(self._sock))


class InterimError(http.client.HTTPException):
    """Too many interim responses (100 Continue), for which nobody asked."""


class BoundedResponse(http.client.HTTPResponse):
    """An answer of the server, or of a proxy, that is read within the call's bounds. Raises InterimError."""

    def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> None:
        super().__init__(_BoundedSocket(sock), debuglevel, method)  # type: ignore[arg-type]
        self._interim = 0
        bounds.answers.append(self)

    def _read_status(self) -> tuple[str, int, str]:
        """Read a status line. Only some Pythons limit how many interim ones they pass over."""
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if status == http.client.CONTINUE:
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                raise InterimError
        return version, status, reason
