"""Claiming accounts, so that of several processes only one begins to serve an account that nobody serves. Pure.

A process publishes its claim on a topic that all of them hear, and waits until the broker has returned it, and for two
more seconds. A process that serves the account objects. If two claim it at the same time, at least one of them hears
the other; the one with the lower number gets it, and says so again, since the other may have missed the first time.

This needs messages that take less than a second to the broker and back. If they are slower, two may win the same
account. So whoever begins to serve one says so, and the one with the higher number stops.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.messages.ownership import claim_messages, outranks, parse_claim, serving_messages

if TYPE_CHECKING:
    from collections.abc import Collection

    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.topics import Topics

SETTLE_SECONDS: Final = 2.0
"""Real seconds after the return of a claim in which others may object."""
_RETURN_SECONDS: Final = 10.0
"""Real seconds in which a claim has to return."""


class Claiming:
    """The claims of one process. Times are by its clock, of which one real second has ``second`` seconds."""

    def __init__(self, topics: Topics, second: float) -> None:
        self._topics = topics
        self._second = second
        self._number = 0
        self._returning: set[bytes] = set()
        self._claimed = frozenset[str]()
        self._won = frozenset[str]()  # not served yet: what is retained about them is being read
        self.ends_at = math.inf
        """When to stop waiting for the return of the claim, and then for objections; infinity without a claim."""

    @property
    def returned(self) -> bool:
        """Whether the broker has returned the whole claim."""
        return not self._returning

    def begin(self, keys: Collection[str], now: float) -> list[Message]:
        """Claim these accounts, and no longer any other; return what to publish."""
        self._number += 1
        messages = claim_messages(self._topics, keys, self._number)
        self._claimed, self._won = frozenset(keys), frozenset()
        self._returning = {message.payload.encode() for message in messages}
        self.ends_at = now + _RETURN_SECONDS * self._second
        return messages

    def hear(self, payload: bytes, serves: frozenset[str], now: float) -> tuple[list[Message], frozenset[str]]:
        """Hear what a process says, perhaps this one, which ``serves`` these accounts.

        Return what to publish, and which of the accounts another process serves as well, with a better right.
        """
        said = parse_claim(payload)
        if said is None:
            return [], frozenset()
        if said.bridge == self._topics.bridge:
            self._return(payload, now)
            return [], frozenset()
        wins = outranks(self._topics.bridge, said.bridge)
        self._won -= said.serves
        held = serves | self._won
        answer = serving_messages(self._topics, held & (said.claims | said.serves if wins else said.claims))
        if wins:
            answer += claim_messages(self._topics, self._claimed & said.claims, 0)
        else:
            self._claimed -= said.claims
        self._claimed -= said.serves
        return answer, frozenset() if wins else serves & said.serves

    def end(self) -> frozenset[str]:
        """End the claim; return the accounts that this process may serve now: none if the claim did not return."""
        won = self._claimed if self.returned else frozenset()
        self._claimed, self.ends_at = frozenset(), math.inf
        self._returning.clear()
        self._won = won
        return won

    def settle(self) -> frozenset[str]:
        """Return the accounts that the ended claim has won, and that nobody else says to serve since."""
        won, self._won = self._won, frozenset()
        return won

    def abandon(self) -> None:
        """Give up everything that was claimed or won, since the connection was lost."""
        self.end()
        self.settle()

    def _return(self, payload: bytes, now: float) -> None:
        if payload in self._returning:
            self._returning.discard(payload)
            if not self._returning:
                self.ends_at = now + SETTLE_SECONDS * self._second
