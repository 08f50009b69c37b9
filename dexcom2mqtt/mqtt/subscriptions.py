"""What one connection subscribes to: what is wanted, what the broker has not answered to, and its answers.

Behind the subscriptions, a probe may be published to ourselves. MQTT promises no order between a SUBSCRIBE and what is
published behind it: a broker that handles packets of one client side by side may take the probe first, and then it
never comes back. So it has to wait until all of them are answered.

Pure: it says which filters belong in the next packet, and is told what was sent and what the broker said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dexcom2mqtt.mqtt.outcome import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dexcom2mqtt.mqtt.outcome import Refusal

_FILTERS_A_PACKET: Final = 8
"""As many as AWS IoT Core takes in one SUBSCRIBE."""


class Subscriptions:
    """The filters of one connection, from the moment when they are wanted until the broker has answered to them."""

    def __init__(self) -> None:
        self._wanted: list[str] = []
        self._unanswered: dict[int | None, list[str]] = {}  # by the identifier of their packet
        self._answers: list[tuple[str, Refusal | None]] = []
        self.probe = ""
        """The topic of a probe that is not back."""

    @property
    def settled(self) -> bool:
        """Whether the broker has answered to every filter that was wanted, be it by a refusal."""
        return not self._unanswered and not self._wanted

    @property
    def unanswered(self) -> bool:
        """Whether the broker owes an answer."""
        return bool(self._unanswered)

    @property
    def places(self) -> list[Place]:
        """What the broker has not answered to, the oldest first, and the probe."""
        places = [Place(topic, "subscribe") for filters in self._unanswered.values() for topic in filters]
        return [*places, Place(self.probe)] if self.probe else places

    def want(self, filters: Iterable[str]) -> None:
        """Subscribe to these as soon as possible."""
        self._wanted += filters

    def drop(self, filters: Iterable[str]) -> list[list[str]]:
        """Want no more of these; return them in packets, to unsubscribe from."""
        dropped = list(filters)
        self._wanted = [topic for topic in self._wanted if topic not in dropped]
        return [dropped[start : start + _FILTERS_A_PACKET] for start in range(0, len(dropped), _FILTERS_A_PACKET)]

    def packet(self, *, careful: bool, idle: bool) -> list[str]:
        """Take what is to be sent in one packet now, nothing if that is all.

        That is as many filters as any broker takes. If ``careful``, it is one, and only if no other packet is without
        an answer; whether that is so of messages, ``idle`` tells.
        """
        if careful and (self._unanswered or not idle):
            return []
        most = 1 if careful else _FILTERS_A_PACKET
        filters, self._wanted = self._wanted[:most], self._wanted[most:]
        return filters

    def sent(self, identifier: int | None, filters: list[str]) -> None:
        """Wait for the answer to a packet; without an identifier, there was no connection to send it on."""
        self._unanswered[identifier] = filters

    def answered(self, identifier: int, refusals: Sequence[Refusal | None]) -> None:
        """Record the answer to a packet: of each filter, why the broker refuses it, None if it does not."""
        self._answers += zip(self._unanswered.pop(identifier, []), refusals, strict=False)

    def came(self, topic: str) -> None:
        """Record that a message came: the probe is back, if it was that."""
        if topic == self.probe:
            self.probe = ""

    def take_answers(self) -> list[tuple[str, Refusal | None]]:
        """Return the filters that the broker answered to since the last call; with the reason if it refused one."""
        taken, self._answers = self._answers, []
        return taken
