"""Waking a thread that waits for sockets."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A socket pair. One thread waits for it among its other sockets; any thread may wake that one."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        for end in (self._out, self._in):
            end.settimeout(0)

    def wake(self) -> None:
        """End the wait of the thread, or its next wait if it is not waiting; for any thread."""
        with contextlib.suppress(OSError):  # it is full of such calls already, or closed
            self._in.send(b".")

    def fileno(self) -> int:
        """Return what to wait for: it is readable after ``wake``."""
        return self._out.fileno()

    def clear(self) -> None:
        """Forget the calls of ``wake``, so that the thread waits again."""
        with contextlib.suppress(OSError):
            self._out.recv(4096)

    def close(self) -> None:
        """Close both sockets; ``wake`` then does nothing."""
        self._in.close()
        self._out.close()
