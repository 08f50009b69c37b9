"""What a subscriber sees of accounts that several processes share: part of ``shards.py``.

It goes by the rule for subscribers: an account has a current value while its ``status`` names a process whose state is
``online`` and its own ``availability`` is ``online``.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dexcom2mqtt.topics import Topics

_RECEIVED: Final = "$SYS/broker/messages/received"
"""How many MQTT packets the broker has received; some versions of Mosquitto do not count messages alone."""


class Gap(NamedTuple):
    """A time without a current value, in Unix seconds."""

    key: str
    since: float
    until: float


class Sight(NamedTuple):
    """A reading on the topic ``reading``: when it came (Unix seconds), and its account and date."""

    at: float
    key: str
    date: int


class Onlooker:
    """Subscribes to what these accounts and processes publish, and records it. Any thread may look."""

    def __init__(self, port: int, topics: Topics, bridges: Sequence[str]) -> None:
        self._topics = topics
        self._subscribed = threading.Event()
        self._lock = threading.Lock()
        self._available: dict[str, bool] = {}
        self._online: set[str] = set()
        self._lost_at: dict[str, float] = {}
        self.owner: dict[str, str | None] = {}
        """Which process serves each account now."""
        self.owners: dict[str, set[str]] = defaultdict(set)
        """Which processes have served each account so far."""
        self.current: set[str] = set()
        """The accounts with a current value now."""
        self.first: dict[str, float] = {}
        """When each account had its first current value, in Unix seconds."""
        self.gaps: list[Gap] = []
        """The times without a current value that are over."""
        self.seen: dict[str, dict[int, float]] = defaultdict(dict)
        """When each reading came first, by account and date."""
        self.repeats: list[Sight] = []
        self.released: list[Sight] = []
        """When which accounts were released; without a date."""
        self.counts: list[tuple[float, int]] = []
        """How many MQTT packets the broker had received by when, once a second."""
        leaves = [topics.of("+", leaf) for leaf in ("reading", "status", "availability")]
        self._filters = [*leaves, *map(topics.state_of, bridges), _RECEIVED]
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.on_connect = self._subscribe
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._take
        client.connect("127.0.0.1", port)
        client.loop_start()
        if not self._subscribed.wait(30):
            raise RuntimeError("the broker confirms no subscription")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def missing(self, dates: dict[str, set[int]]) -> int:
        """Return how many of these readings have not come."""
        with self._lock:
            return sum(len(each - self.seen[key].keys()) for key, each in dates.items())

    def _subscribe(self, client: paho.Client, *_: object) -> None:
        client.subscribe(
            [(each, 0) for each in self._filters]
        )  # QoS 0: without acknowledgements, which would count, too

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        now = time.time()
        name, leaf = self._topics.split(message.topic)
        with self._lock:
            if message.topic == _RECEIVED:
                self.counts.append((now, int(message.payload)))
            elif leaf == "reading":
                self._take_reading(now, name, json.loads(message.payload)["date"])
            elif leaf == "state":
                self._take_state(now, name, online=message.payload == b"online")
            elif leaf == "availability":
                self._available[name] = message.payload == b"online"
                self._judge(now, name)
            elif message.payload:
                self._take_status(now, name, json.loads(message.payload).get("bridge"))

    def _take_reading(self, now: float, key: str, date: int) -> None:
        if date in self.seen[key]:
            self.repeats.append(Sight(now, key, date))
        else:
            self.seen[key][date] = now

    def _take_state(self, now: float, bridge: str, *, online: bool) -> None:
        if online == (bridge in self._online):
            return
        self._online ^= {bridge}
        for key in [key for key, owner in self.owner.items() if owner == bridge]:
            self._judge(now, key)

    def _take_status(self, now: float, key: str, owner: str | None) -> None:
        if owner is None and self.owner.get(key):
            self.released.append(Sight(now, key, 0))
        self.owner[key] = owner
        if owner is not None:
            self.owners[key].add(owner)
        self._judge(now, key)

    def _judge(self, now: float, key: str) -> None:
        """Record whether an account has a current value, if that changed."""
        is_current = self._available.get(key, False) and self.owner.get(key) in self._online
        if is_current == (key in self.current):
            return
        self.current ^= {key}
        if not is_current:
            self._lost_at[key] = now
        elif key in self._lost_at:
            self.gaps.append(Gap(key, self._lost_at.pop(key), now))
        else:
            self.first[key] = now
