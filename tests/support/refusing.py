"""Things that a broker may refuse, simulated by a relay before a real one: a topic, too much at once, an expiry."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from tests.support.relay import DROP, HANG_UP, PASS, Fate, Instead, refused

if TYPE_CHECKING:
    from tests.support.relay import Packet

Kind = Literal["hang-up", "silence", "refusal"]
NOT_AUTHORIZED: Final = 0x87
QUOTA_EXCEEDED: Final = 0x97
_UNSPECIFIED: Final = 0x80  # the only refusal of a subscription that MQTT 3.1.1 has
_EXPIRY: Final = b"\x05\x02"  # the length of the properties if this is the only one, and its number


@dataclass
class Refusing:
    """A fault at one topic, or at the subscription to one filter, while it is ``on``; all else passes.

    A hang-up ends the connection without a reason; silence acknowledges nothing; a refusal says that it is not allowed.
    The broker itself never gets the packet.
    """

    kind: Kind
    where: str
    protocol: str = "5"
    subscription: bool = False
    expires: bool = True
    """Whether the broker gets the expiry of messages."""
    on: bool = False
    hits: list[Packet] = field(default_factory=list)
    """The packets that the broker did not get."""
    _awaited: dict[tuple[int, bytes], int] = field(default_factory=dict)

    def __call__(self, packet: Packet) -> Fate:
        """Return what happens to a packet, as the rule of a relay."""
        if packet.kind == "SUBACK":
            return self._suback(packet)
        if self.on and self._is_it(packet):
            self.hits.append(packet)
            if self.kind == "refusal":
                return self._subscribe(packet) if self.subscription else refused(packet, NOT_AUTHORIZED)
            return HANG_UP if self.kind == "hang-up" else DROP
        return PASS if self.expires or packet.kind != "PUBLISH" else without_expiry(packet)

    def _is_it(self, packet: Packet) -> bool:
        if not packet.from_client:
            return False
        return self.where in packet.filters if self.subscription else packet.topic == self.where

    def _subscribe(self, packet: Packet) -> Fate:
        """Replace the subscription by another, and remember which answer to change."""
        self._awaited[packet.connection, packet.mid] = packet.filters.index(self.where)
        name = self.where.encode()
        return Instead(packet.data.replace(name, b"x" * len(name)))

    def _suback(self, packet: Packet) -> Fate:
        place = self._awaited.pop((packet.connection, packet.mid), None)
        if place is None:
            return PASS
        answer = bytearray(packet.data)
        at = len(answer) - len(packet.body) + (3 if self.protocol == "5" else 2) + place
        answer[at] = NOT_AUTHORIZED if self.protocol == "5" else _UNSPECIFIED
        return Instead(bytes(answer))


class Quota:
    """A broker that accepts ``most`` messages in a second, this long, and refuses more, by MQTT 5."""

    def __init__(self, most: int, second: float = 1.0) -> None:
        self._second = second
        self._taken: deque[float] = deque(maxlen=most)
        self._lock = threading.Lock()
        self.refused = 0

    def __call__(self, packet: Packet) -> Fate:
        """Return what happens to a packet, as the rule of a relay."""
        if not packet.from_client or packet.kind != "PUBLISH" or not packet.data[0] & 0x06:
            return PASS
        with self._lock:
            if len(self._taken) == self._taken.maxlen and packet.at - self._taken[0] < self._second:
                self.refused += 1
                return refused(packet, QUOTA_EXCEEDED)
            self._taken.append(packet.at)
            return PASS


def without_expiry(packet: Packet) -> Fate:
    """Pass on a PUBLISH of MQTT 5 at QoS 1 without its expiry, as to a broker that does not know expiries."""
    body = packet.body
    at = 2 + len(packet.topic.encode()) + 2
    if not packet.data[0] & 0x06 or body[at : at + 2] != _EXPIRY:
        return PASS
    body = body[:at] + b"\x00" + body[at + 6 :]
    return Instead(packet.data[:1] + _length(len(body)) + body)


def _length(number: int) -> bytes:
    """Write the length of a packet."""
    written = bytearray()
    while True:
        number, seven = divmod(number, 0x80)
        written.append(seven | (0x80 if number else 0))
        if not number:
            return bytes(written)
