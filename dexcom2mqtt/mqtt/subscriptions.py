"""The subscriptions of one connection: the filters to send, those without an answer, and the broker's answers.

After the subscriptions, we may publish a probe to ourselves. MQTT promises no order between a SUBSCRIBE and a later
PUBLISH: a broker that handles packets of one client in parallel may handle the probe first, and then it never comes
back. So the probe has to wait until all subscriptions are answered.

Pure: it says which filters belong in the next packet, and is told what was sent and what the broker answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dexcom2mqtt.mqtt.outcome import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dexcom2mqtt.mqtt.outcome import Refusal

_FILTERS_A_PACKET: Final = 8
"""The most that AWS IoT Core accepts in one SUBSCRIBE."""


class Subscriptions:
    """The filters of one connection, from the request until the broker's answer."""

    def __init__(self) -> None:
        self._wanted: list[str] = []
        self._unanswered: dict[int | None, list[str]] = {}  # by packet identifier
        self._answers: list[tuple[str, Refusal | None]] = []
        self.probe = ""
        """The topic of a probe that has not come back, or an empty text."""

    @property
    def settled(self) -> bool:
        """Whether the broker has accepted or refused every filter."""
        return not self._unanswered and not self._wanted

    @property
    def unanswered(self) -> bool:
        """Whether the broker owes an answer."""
        return bool(self._unanswered)

    @property
    def places(self) -> list[Place]:
        """The filters without an answer, the oldest first, and the probe."""
        places = [Place(topic, "subscribe") for filters in self._unanswered.values() for topic in filters]
        return [*places, Place(self.probe)] if self.probe else places

    def want(self, filters: Iterable[str]) -> None:
        """Subscribe to these as soon as possible."""
        self._wanted += filters

    def drop(self, filters: Iterable[str]) -> list[list[str]]:
        """Forget these filters; return them in packets for UNSUBSCRIBE."""
        dropped = list(filters)
        self._wanted = [topic for topic in self._wanted if topic not in dropped]
        return [dropped[start : start + _FILTERS_A_PACKET] for start in range(0, len(dropped), _FILTERS_A_PACKET)]

    def packet(self, *, careful: bool, idle: bool) -> list[str]:
        """Take and return the filters to send in one packet now; empty if there are none.

        These are as many as any broker accepts. If ``careful``, it is only one, and none while a packet is unanswered.
        ``idle`` says whether all messages are acknowledged.
        """
        if careful and (self._unanswered or not idle):
            return []
        most = 1 if careful else _FILTERS_A_PACKET
        filters, self._wanted = self._wanted[:most], self._wanted[most:]
        return filters

    def sent(self, identifier: int | None, filters: list[str]) -> None:
        """Record that a packet was sent; the identifier is None if there was no connection to send it on."""
        self._unanswered[identifier] = filters

    def answered(self, identifier: int, refusals: Sequence[Refusal | None]) -> None:
        """Record the answer to a packet: for each filter, why the broker refuses it, or None if it accepts it."""
        self._answers += zip(self._unanswered.pop(identifier, []), refusals, strict=False)

    def came(self, topic: str) -> None:
        """Record that a message arrived, which may be the probe."""
        if topic == self.probe:
            self.probe = ""

    def gave_up_probe(self) -> None:
        """Stop waiting for the probe."""
        self.probe = ""

    def take_answers(self) -> list[tuple[str, Refusal | None]]:
        """Return the filters that the broker answered since the last call, each with the reason if it refused it."""
        taken, self._answers = self._answers, []
        return taken
