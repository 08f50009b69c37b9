"""A relay between a client and a real broker that understands MQTT packets, and causes rare events of brokers.

It passes on complete packets, and a rule of the test decides about each: it may be dropped, delayed, answered instead
of by the broker, replaced, or end the connection.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

from tests.support.processes import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

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
class Instead:
    """A packet to pass on instead."""

    data: bytes


@dataclass(frozen=True)
class Answer:
    """A packet to send back as if from the other side, which does not get the original."""

    data: bytes


Fate = float | Instead | Answer
Rule = Callable[["Packet"], Fate]


@dataclass(frozen=True)
class Packet:
    """One complete packet, when it came (by time.monotonic), and on which connection, from 1."""

    kind: Kind
    from_client: bool
    data: bytes
    at: float
    connection: int = 1

    @property
    def body(self) -> bytes:
        """The packet without its first byte and its length."""
        body = self.data[1:]
        while body[0] & 0x80:  # all bytes of the length except the last
            body = body[1:]
        return body[1:]

    @property
    def mid(self) -> bytes:
        """The packet identifier of a PUBLISH at QoS 1, SUBSCRIBE or PUBACK, as two bytes."""
        return self.body[2 + len(self.topic.encode()) :][:2] if self.kind == "PUBLISH" else self.body[:2]

    @property
    def filters(self) -> list[str]:
        """The filters of a SUBSCRIBE of MQTT 5 without properties, or of 3.1.1."""
        rest, found = self.body[3 if self.body[2:3] == b"\x00" and self.body[3:4] == b"\x00" else 2 :], list[str]()
        while self.kind == "SUBSCRIBE" and rest:
            length = int.from_bytes(rest[:2])
            found.append(rest[2 : 2 + length].decode())
            rest = rest[3 + length :]
        return found

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH, else an empty string."""
        if self.kind != "PUBLISH":
            return ""
        return self.body[2 : 2 + int.from_bytes(self.body[:2])].decode()


class Relay:
    """A port of loopback in front of the broker at ``port``, for use in a ``with``.

    ``rule`` decides about each packet: ``PASS``, ``DROP``, ``HANG_UP``, a delay in seconds, ``Instead`` or ``Answer``.
    A delayed packet does not delay others. The rule may be changed at any time.
    """

    def __init__(self, port: int, rule: Rule = lambda _: PASS) -> None:
        self._upstream = port
        self.rule = rule
        self.packets: list[Packet] = []
        """Every packet that came, whatever happened to it."""
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
        """Return all packets of a kind, or only those of a topic."""
        return [packet for packet in tuple(self.packets) if packet.kind == kind and topic in {"", packet.topic}]

    def hang_up(self) -> None:
        """End every connection."""
        for sock in tuple(self._open):
            _hang_up(sock)

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        number = self.connections
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._upstream)) as broker:
            self._open |= {client, broker}
            back = threading.Thread(target=self._pass_on, args=(broker, client, number), daemon=True)
            back.start()
            self._pass_on(client, broker, number, from_client=True)
            back.join()
            self._open -= {client, broker}

    def _pass_on(self, source: socket.socket, target: socket.socket, number: int, *, from_client: bool = False) -> None:
        lock = threading.Lock()

        def send(data: bytes, to: socket.socket = target) -> None:
            with lock, suppress(OSError):
                to.sendall(data)

        with suppress(OSError, EOFError):
            for kind, data in _packets(source):
                packet = Packet(kind, from_client, data, time.monotonic(), number)
                self.packets.append(packet)
                fate = self.rule(packet)
                if fate == HANG_UP:
                    break
                if isinstance(fate, Instead):
                    send(fate.data)
                elif isinstance(fate, Answer):
                    send(fate.data, source)
                elif fate == PASS:
                    send(data)
                elif fate > 0:
                    late = threading.Timer(fate, send, (data,))
                    late.daemon = True
                    late.start()
        _hang_up(target)
        _hang_up(source)


def _packets(source: socket.socket) -> Iterator[tuple[Kind, bytes]]:
    """Yield the data packet by packet. Raises EOFError at the end."""
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


def refused(packet: Packet, code: int) -> Answer:
    """Refuse a PUBLISH at QoS 1 or a SUBSCRIBE of one filter with a reason code of MQTT 5."""
    if packet.kind == "SUBSCRIBE":
        return Answer(b"\x90\x04" + packet.mid + b"\x00" + bytes([code]))
    return Answer(b"\x40\x04" + packet.mid + bytes([code]) + b"\x00")


def acknowledged(packet: Packet) -> Answer:
    """Acknowledge a PUBLISH at QoS 1, like a broker that drops it silently."""
    return Answer(b"\x40\x02" + packet.mid)
