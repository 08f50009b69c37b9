"""Receives from the broker: retained messages that are read back, and the messages of subscriptions.

It knows the subscriptions and who gets their messages, but not what these mean. Until the first read-back is over, it
starts over on each connection; after that, only the subscriptions are repeated.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.mqtt.connection import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.mqtt.connection import Connection, Received

    Still = Callable[[Mapping[str, bytes], Collection[str]], float]
    """Returns how many real seconds after the probe to wait for more, given what was found, and the filters."""

READ_BACK_SECONDS: Final = 10.0
"""The most seconds to wait for retained messages: a broker that lets us write but not read sends none."""
_BATCH: Final = 40
"""Filters at a time: together with the other subscriptions, fewer than the 50 that AWS IoT Core allows."""


class Gathering:
    """The retained messages at some topics, gathered once on one connection.

    The probe is a message to ourselves, sent once all subscriptions are confirmed. MQTT does not promise that retained
    messages come before it, and some brokers send them later: so once it is back, ``still`` says how much longer to
    wait. A broker that lets us write but not read sends nothing, and gets 10 s. Without a ``probe``, as with a broker
    that refuses it, the confirmation of the subscriptions counts instead. That also gets 10 s; if ``patient``, the
    connection decides when to give up.
    """

    def __init__(  # noqa: PLR0913  # each is needed
        self,
        connection: Connection,
        clock: Clock,
        filters: Sequence[str],
        probe: str | None,
        still: Still,
        *,
        patient: bool = False,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._patient = patient
        self._exact = frozenset(filters)  # a thousand accounts have thousands of them
        self._wild = [topic for topic in filters if "+" in topic or "#" in topic]
        self._probe = probe
        self._still = still
        self._batches = [filters[start : start + _BATCH] for start in range(0, len(filters), _BATCH)] or [filters]
        self.found: dict[str, bytes] = {}
        """The payloads of retained messages, by topic."""
        self.over = False
        """Whether the gathering is over."""
        self.marks_live = False
        """Whether the broker marks live messages as retained."""
        self.came_back = False
        """Whether the probe came back to us."""
        self._impatient = False  # whether we already waited in vain for missing messages
        connection.subscribe([probe] if probe else [])
        self._begin()

    @property
    def due(self) -> float:
        """When to ``step`` although nothing came."""
        return math.inf if self.over else self._until

    def step(self, received: Sequence[Received]) -> list[Received]:
        """Handle received messages, and return those that belong to others."""
        others = []
        for each in received:
            if each.topic == self._probe:
                self.marks_live |= each.retained
                self._back = self.came_back = True
            elif each.topic not in self._exact and not any(matches(topic, each.topic) for topic in self._wild):
                others.append(each)
            elif each.retained:
                self.found[each.topic] = each.payload
        self._advance()
        return others

    def end(self, but: Collection[str] = ()) -> None:
        """Unsubscribe from all topics except these."""
        unwanted = [topic for topic in self._batches[0] if topic not in but]
        self._connection.unsubscribe([*unwanted, self._probe] if self._probe else unwanted)
        self._connection.subscriptions.gave_up_probe()

    def _begin(self) -> None:
        self._connection.subscribe(self._batches[0])
        self._probed_at = math.inf
        self._back = False
        self._back_at = math.inf
        self._until = self._clock.now() + self._seconds(READ_BACK_SECONDS)

    def _advance(self) -> None:
        now = self._clock.now()
        if self._probed_at == math.inf and self._ask():
            self._probed_at = now
            self._until = now + self._seconds(READ_BACK_SECONDS)
        if self._back:
            self._back_at = min(self._back_at, now)
            patience = 0.0 if self._impatient else self._still(self.found, self._batches[0])
            self._until = self._back_at + self._seconds(patience)
            if now >= self._until and not self.found:
                self._impatient = True
        if now < self._until:
            return
        if self._patient and self._probed_at == math.inf:
            self._until = math.inf
            return
        if len(self._batches) == 1:
            self.over = True
        else:
            self._connection.unsubscribe(self._batches.pop(0))
            self._begin()

    def _ask(self) -> bool:
        """Send the probe once the subscriptions are confirmed; return whether they are."""
        if self._probe is not None:
            return self._connection.probe(self._probe)
        self._back = self._connection.subscribed
        return self._back

    def _seconds(self, real: float) -> float:
        return real * self._clock.speed


class ReadBack(NamedTuple):
    """What to read from the broker, once: after the start, before publishing anything, or later.

    ``done`` is called with the existing retained payloads of ``topics`` once ``probe`` has come back and ``still`` (see
    Gathering) expects no more, or after 10 s. Only of the first read-back, ``awaited`` counts: what it returns is
    subscribed to after that, on new connections, too, and its messages are handed on like those of subscriptions.
    """

    topics: Sequence[str]
    probe: str
    done: Callable[[Mapping[str, bytes]], None]
    still: Still = lambda _found, _asked: 0.0
    awaited: Callable[[], Collection[str]] = lambda: ()


class Inbox:
    """Subscribes to the topics of ``read_back`` and to ``subscriptions``, and hands on their messages.

    ``received`` is called with each message that is not part of the read-back.
    """

    def __init__(
        self,
        clock: Clock,
        read_back: ReadBack,
        subscriptions: Sequence[str],
        received: Callable[[Received], None],
    ) -> None:
        self._clock = clock
        self._subscriptions = subscriptions
        self._received = received
        self._read_backs = deque([read_back])  # the first one is in progress
        self._still_awaited = read_back.awaited
        self.has_read_back = False
        """Whether the first read-back is over."""
        self._awaited: list[str] = []  # stay subscribed as long as they are awaited
        self._gathering: Gathering | None = None
        self._but, self._probes = frozenset[str](), True  # what the broker refuses on this connection
        self._marks_live = False

    @property
    def due(self) -> float:
        """When to ``take`` although nothing came."""
        return math.inf if self._gathering is None else self._gathering.due

    @property
    def reads_back(self) -> bool:
        """Whether a read-back is in progress."""
        return self._gathering is not None

    def read_back(self, read_back: ReadBack) -> None:
        """Read these, too, once those before are read, unless the connection ends before; for any thread."""
        self._read_backs.append(read_back)

    def subscribe(self, connection: Connection, *, but: Collection[str] = (), probes: bool = True) -> None:
        """Subscribe on a new connection, without the filters in ``but``, and only probe if ``probes``."""
        self._awaited = [*self._still_awaited()] if self.has_read_back else []
        connection.subscribe([topic for topic in (*self._subscriptions, *self._awaited) if topic not in but])
        self._gathering, self._but, self._probes = None, frozenset(but), probes
        if self.has_read_back:
            self._read_backs.clear()
        self._gather(connection)

    def _gather(self, connection: Connection) -> None:
        """Begin with the next read-back, if there is one and none is in progress."""
        if self._gathering is None and self._read_backs:
            read_back = self._read_backs[0]
            topics = [topic for topic in read_back.topics if topic not in self._but]
            probe = read_back.probe if self._probes else None
            self._gathering = Gathering(connection, self._clock, topics, probe, read_back.still, patient=True)

    def take(self, connection: Connection) -> None:
        """Hand on the messages since the last call, and end the read-back if it is complete or its time is over."""
        self._gather(connection)
        received = connection.take_received()
        if self._gathering is not None:
            received = self._gathering.step(received)
            self._end_if_over(connection, self._gathering)
        for each in received:
            # Some brokers mark all messages as retained; then the mark means nothing.
            self._received(each._replace(retained=each.retained and not self._marks_live))
        if self.has_read_back:
            self._await(connection)

    def _end_if_over(self, connection: Connection, gathering: Gathering) -> None:
        if not gathering.over:
            return
        self._marks_live |= gathering.marks_live
        read_back = self._read_backs.popleft()  # only this thread removes any
        read_back.done(gathering.found)
        self._gathering, self.has_read_back = None, True
        gathering.end(but=self._still_awaited())
        # Subscribing again makes the broker send again what the read-back took for itself.
        taken = frozenset(read_back.topics)
        self._awaited = [topic for topic in self._awaited if topic not in taken]
        self._await(connection)

    def _await(self, connection: Connection) -> None:
        """Subscribe to what is awaited now, and no longer to what is not."""
        before, self._awaited = self._awaited, [*self._still_awaited()]
        if before == self._awaited:
            return
        known, wanted = frozenset(before), frozenset(self._awaited)
        if over := [topic for topic in before if topic not in wanted]:
            connection.unsubscribe(over)
        if new := [topic for topic in self._awaited if topic not in known]:
            connection.subscribe(new)
