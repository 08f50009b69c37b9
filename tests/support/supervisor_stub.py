"""A stub of Home Assistant's Supervisor: its answers to questions about the broker, over real HTTP."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN = "token of the app"


class Answer(NamedTuple):
    """The Supervisor's answer."""

    status: int
    body: bytes = b""
    late: float = 0.0
    """Seconds before it answers."""
    headers: tuple[tuple[str, str], ...] = ()


def answer(status: int, **body: object) -> Answer:
    return Answer(status, json.dumps(body).encode())


NOT_ENABLED = answer(400, result="error", message="Service not enabled")
FORBIDDEN = answer(403, result="error", message="No access to mqtt service!")


def broker(port: int, username: str = "", password: str = "", host: str = "127.0.0.1", **more: object) -> Answer:
    """Return a broker, in the Supervisor's form; without a user name it has none."""
    user = {"username": username, "password": password} if username else {}
    named = {"host": host, "port": port, "ssl": False, "protocol": "3.1.1", "addon": "core_mosquitto"}
    return answer(200, result="ok", data=named | user | more)


class Supervisor:
    """It answers ``answer``, or 401 without the token."""

    def __init__(self, answer: Answer, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.answer = answer
        self.asked: list[str] = []
        """The path of each request."""
        self._server = ThreadingHTTPServer(address, _handler(self._answer_to))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def _answer_to(self, path: str, headers: Any) -> Answer:
        self.asked.append(path)
        if headers["Authorization"] != f"Bearer {TOKEN}":
            return Answer(401)
        return self.answer if path == "/services/mqtt" else Answer(404)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _handler(answer_to: Callable[[str, Any], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name for it
            found = answer_to(self.path, self.headers)
            threading.Event().wait(found.late)
            try:
                self.send_response(found.status)
                for name, value in found.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(found.body)
            except OSError:  # the client did not wait
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    return Handler
