"""The server: waitress with limits, on an address or port that may be in use or missing for a while.

It knows no paths. Whatever happens here, polling and publishing continue: they never wait for the server, and no
exception leaves its thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from waitress import wasyncore
from waitress.server import create_server

from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.web.listening import listen, why

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from dexcom2mqtt.clock import Clock

_log = logging.getLogger(__name__)

CONNECTIONS: Final = 50
"""The most connections open at once; further ones wait."""

_AGAIN: Final = 60.0
_LARGEST_ANSWER: Final = 64 * 1024 * 1024
_BOUNDS: Final[dict[str, Any]] = {
    "asyncore_use_poll": True,
    "asyncore_loop_timeout": 30,  # seconds; it wakes at once when somebody connects
    "channel_timeout": 30,
    "cleanup_interval": 30,
    "connection_limit": CONNECTIONS,
    "threads": 2,
    "max_request_header_size": 8 * 1024,  # including the URL
    "max_request_body_size": 1024,  # nobody has a reason to send one
    "outbuf_overflow": _LARGEST_ANSWER,  # more would go to a file, but nothing must be written to disk
    "log_socket_errors": False,  # clients may hang up
    "ident": None,
}


class Server:
    """Serves an application at one address and port until the clock stops."""

    def __init__(self, host: str, port: int, application: WSGIApplication, clock: Clock) -> None:
        self._host = host
        self._port = port
        self._application = application
        self._clock = clock
        self._alarm = clock.alarm()
        self._told = ""

    def run(self) -> None:
        """Serve; if that is not possible, say so once and try again every minute. Raises Stopped."""
        logging.getLogger("waitress").setLevel(logging.ERROR)
        while True:
            try:
                self._serve()
            except OSError as error:
                why_not = f"web: cannot listen at {self._host} port {self._port} ({why(error)})"
                self._tell(f"{why_not}; trying again every minute")
            except Exception as error:  # noqa: BLE001  # nothing else must be affected
                self._tell(f"web: a bug in dexcom2mqtt; please report it:\n{redacted_traceback(error)}")
            self._alarm.sleep(_AGAIN * self._clock.speed)

    def _serve(self) -> None:
        """Serve until something goes wrong."""
        channels: dict[int, Any] = {}
        server = create_server(self._application, map=channels, sockets=listen(self._host, self._port), **_BOUNDS)
        self._told = ""
        _log.info("web: listening at %s port %s", self._host, self._port)
        try:
            server.run()
        finally:
            server.task_dispatcher.shutdown(timeout=1)
            wasyncore.close_all(channels, ignore_all=True)

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            _log.error("%s", what)
