"""A relay between a client and a real broker that understands MQTT packets, and brings about what brokers do rarely.

It passes whole packets on, and a rule of the test decides what becomes of each: it may be dropped, late, or the end.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

from tests.support.processes import listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Kind = Literal[
    "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK",
    "PINGREQ", "PINGRESP", "DISCONNECT",
]  # fmt: skip
_KINDS: Final[dict[int, Kind]] = {
    1: "CONNECT", 2: "CONNACK", 3: "PUBLISH", 4: "PUBACK", 8: "SUBSCRIBE", 9: "SUBACK", 10: "UNSUBSCRIBE",
    11: "UNSUBACK", 12: "PINGREQ", 13: "PINGRESP", 14: "DISCONNECT",
}  # fmt: skip

PASS: Final = 0.0
DROP: Final = -1.0
HANG_UP: Final = -2.0


@dataclass(frozen=True)
class Packet:
    """One packet, whole, and when it came (by time.monotonic)."""

    kind: Kind
    from_client: bool
    data: bytes
    at: float

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH, else an empty text."""
        if self.kind != "PUBLISH":
            return ""
        body = self.data[1:]
        while body[0] & 0x80:  # the bytes of the length, but for the last
            body = body[1:]
        return body[3 : 3 + int.from_bytes(body[1:3])].decode()


class Relay:
    """A port of loopback behind which is the broker at ``port``, for use in a ``with``.

    ``rule`` says of each packet what becomes of it: ``PASS``, ``DROP``, ``HANG_UP``, or by how many seconds it is
    late. Others are not held up by a late one. It may be changed at any time.
    """

    def __init__(self, port: int, rule: Callable[[Packet], float] = lambda _: PASS) -> None:
        self._upstream = port
        self.rule = rule
        self.packets: list[Packet] = []
        """Every packet that came, whatever became of it."""
        self.connections = 0
        self._stack = ExitStack()
        self._open: set[socket.socket] = set()
        self.port = 0

    def __enter__(self) -> Self:
        self.port = self._stack.enter_context(listening(self._serve))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for sock in tuple(self._open):
            _hang_up(sock)

    def came(self, kind: Kind, topic: str = "") -> list[Packet]:
        """Return the packets of a kind that came, and of these, if given, those of a topic."""
        return [packet for packet in tuple(self.packets) if packet.kind == kind and topic in {"", packet.topic}]

    def hang_up(self) -> None:
        """End every connection."""
        for sock in tuple(self._open):
            _hang_up(sock)

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._upstream)) as broker:
            self._open |= {client, broker}
            back = threading.Thread(target=self._pass_on, args=(broker, client), daemon=True)
            back.start()
            self._pass_on(client, broker, from_client=True)
            back.join()
            self._open -= {client, broker}

    def _pass_on(self, source: socket.socket, target: socket.socket, *, from_client: bool = False) -> None:
        lock = threading.Lock()

        def send(data: bytes) -> None:
            with lock, suppress(OSError):
                target.sendall(data)

        with suppress(OSError, EOFError):
            for kind, data in _packets(source):
                packet = Packet(kind, from_client, data, time.monotonic())
                self.packets.append(packet)
                fate = self.rule(packet)
                if fate == HANG_UP:
                    break
                if fate == PASS:
                    send(data)
                elif fate > 0:
                    late = threading.Timer(fate, send, (data,))
                    late.daemon = True
                    late.start()
        _hang_up(target)
        _hang_up(source)


def _packets(source: socket.socket) -> Iterator[tuple[Kind, bytes]]:
    """Yield what is sent, packet by packet. Raises EOFError at the end."""
    with source.makefile("rb") as file:
        while True:
            head = _read(file.read, 1)
            length = shift = 0
            while True:
                byte = _read(file.read, 1)
                head += byte
                length |= (byte[0] & 0x7F) << shift
                shift += 7
                if not byte[0] & 0x80:
                    break
            yield _KINDS[head[0] >> 4], head + _read(file.read, length)


def _read(read: Callable[[int], bytes], count: int) -> bytes:
    data = read(count)
    if len(data) < count:
        raise EOFError
    return data


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
