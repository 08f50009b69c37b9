"""Which accounts this process serves, if several processes share them: each account has one owner at a time.

The owner is in the account's retained ``status``. It keeps the account as long as its own state at the broker is
``online``. An account without such an owner is claimed, see ``claiming``, and then taken. After a lost connection a
process does not know whether another one has taken its accounts meanwhile, so it claims them again.

A process that is alone claims nothing. It only waits for accounts that one of several processes still serves.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.daemon.claiming import Claiming
from dexcom2mqtt.daemon.holdings import Holdings, Waiting
from dexcom2mqtt.daemon.round import Round, Wanted, a_moment
from dexcom2mqtt.messages.ownership import serving_messages
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.daemon.serving import Serving
    from dexcom2mqtt.mqtt.inbox import Still
    from dexcom2mqtt.mqtt.link import BrokerLink
    from dexcom2mqtt.topics import Topics

_log = logging.getLogger(__name__)

_AGAIN: Final = 30.0
"""Real seconds until it looks again at accounts that others serve, unless something changes before."""
_SOON: Final = 5.0
"""Real seconds until it looks again at accounts that another process has claimed as well."""
_NOT_RETURNED: Final = (
    "no account can be served: the broker does not return what is published to %s. Its access control list must let "
    "the user of this daemon read and write there. The daemon keeps trying"
)


class Ownership:
    """Takes the wanted accounts as soon as nobody else serves them. ``tick`` does the work, in one thread.

    ``owned`` are the accounts that it serves from the start, being alone. ``changed`` is called when ``tick`` has
    something to do, and ``over`` after each round.
    """

    def __init__(  # noqa: PLR0913  # passed by name
        self,
        topics: Topics,
        clock: Clock,
        serving: Serving,
        *,
        owned: Iterable[str],
        link: Callable[[], BrokerLink],
        changed: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        self._topics = topics
        self._clock = clock
        self._serving = serving
        self._link = link
        self._changed = changed
        self._over = over
        self.begun = False
        """Whether ``begin`` was called."""
        self._lock = threading.RLock()
        self._claiming = Claiming(topics, clock.speed)
        self._events: deque[tuple[Round | None, Callable[[], None]]] = deque()
        self.holdings = Holdings(serving, owned, self._lock, self._look_soon)
        self._round: Round | None = None
        self._next = math.inf  # when to look next
        self.waiting = Waiting(topics)
        self._said = False  # whether it was logged that claims do not return

    def begin(self, wanted: Mapping[str, Wanted]) -> None:
        """Begin to take accounts, once the broker is connected."""
        with self._lock:
            self.holdings.wanted, self.begun = dict(wanted), True
            self._look_soon()

    def connected(self) -> None:
        """Record a new connection, on which nothing is sent yet: others may have taken accounts; for any thread."""
        with self._lock:
            self._round = None
            self._claiming.abandon()
            if self._topics.bridge != ALONE:
                self.holdings.doubt()
            if self.holdings.wanted:
                self._look_soon()

    def heard(self, topic: str, payload: bytes) -> bool:
        """Take a message if it is about ownership, and return whether it is; for any thread."""
        if topic == self._topics.claims:
            self._events.append((None, partial(self._hear, payload)))
        elif topic not in self.waiting.watched:
            return False
        elif self.waiting.is_over(topic, payload):
            self._events.append((None, self._look_soon))
        else:
            return True
        self._changed()
        return True

    def want(self, key: str, wanted: Wanted) -> None:
        """Take one more account, or serve one with another configuration."""
        with self._lock:
            self.holdings.wanted[key] = wanted
            if self.holdings.serves(key):
                self.holdings.end(key, self._serving.restart if key in self.holdings.owned else self._serving.lose)
            self._look_soon()

    def drop(self, key: str) -> None:
        """Stop serving an account that was removed from the configuration. Clear it if nobody else serves it."""
        with self._lock:
            self.holdings.wanted[key] = Wanted("clear")
            if self.holdings.serves(key):
                self.holdings.end(key, self._serving.lose)
            self._look_soon()

    def lose(self, key: str) -> None:
        """Stop serving an account that another process serves; take it once that no longer does."""
        with self._lock:
            self.holdings.end(key, self._serving.lose)

    def tick(self) -> float:
        """Do what is due; return in how many seconds to call again, if nothing happens before that."""
        with self._lock:
            while self._events:
                this, handle = self._events.popleft()
                if this is None or this is self._round:
                    handle()
            if self._round is not None and self._clock.now() >= self._claiming.ends_at:
                self._end_claim(self._round)
            if self._round is None and self._clock.now() >= self._next:
                self._look()
            due = self._next if self._round is None else self._claiming.ends_at
            return due - self._clock.now()

    def _look(self) -> None:
        """Begin a round: read who serves the accounts that are wanted."""
        self._next = math.inf
        this = self._round = Round(self._topics, self.holdings.left, self._serving.keeps_days)
        if this.keys:
            self._read(this, this.status_topics(), self._on_statuses, a_moment)
        else:
            self._finish(this)

    def _on_statuses(self, this: Round, found: Mapping[str, bytes]) -> None:
        states = this.take_statuses(found)
        if states:
            self._read(this, states, self._on_states, a_moment)
        else:
            self._on_states(this, {})

    def _on_states(self, this: Round, found: Mapping[str, bytes]) -> None:
        """Claim the accounts that are free."""
        this.take_states(found)
        this.free -= self.holdings.leave_to_others(this)
        for key in self.holdings.unsure & this.others.keys():
            _log.warning("%s: %s serves it now", key, this.others[key])
            self.holdings.end(key, self._serving.lose)
        if self._topics.bridge == ALONE or not this.free:
            self._retrieve(this)
        else:
            self._link().tell(self._claiming.begin(this.free, self._clock.now()))

    def _end_claim(self, this: Round) -> None:
        returned, won = self._claiming.returned, self._claiming.end()
        if returned:
            self._said = False
            if this.free - won:  # another process claims them, too, and should serve them soon
                self._next = self._clock.now() + _SOON * self._clock.speed
            this.free &= won
            self._retrieve(this)
            return
        if not self._said:
            self._said = True
            _log.error(_NOT_RETURNED, self._topics.claims)
        self._round, self._next = None, self._clock.now() + _AGAIN * self._clock.speed

    def _retrieve(self, this: Round) -> None:
        """Read what the broker retains for the accounts that this process may take."""
        new = sorted(this.free - self.holdings.unsure)
        if new:
            self._read(this, [*self._serving.topics_of(new), *this.kept_topics(new)], self._on_retained, this.still)
        else:
            self._on_retained(this, {})

    def _on_retained(self, this: Round, found: Mapping[str, bytes]) -> None:
        """Take the accounts, or clear or release them."""
        this.confirm(found)
        undisputed = this.free if self._topics.bridge == ALONE else this.free & self._claiming.settle()
        holdings, free = self.holdings, self.holdings.takeable(undisputed)
        new = sorted(free - holdings.unsure)
        serve = {key: account for key in new if (account := holdings.wanted[key].account) is not None}
        self._serving.take(serve, found, this.infos(found))
        holdings.keep(kept := (free & holdings.unsure) | serve.keys())
        self._serving.go_on(kept)
        for key in set(new) - serve.keys():
            if holdings.tried(key) == "clear":
                self._serving.clear(key)
            else:
                self._serving.release(key, this.statuses[key])
        if kept and self._topics.bridge != ALONE:
            self._link().tell(serving_messages(self._topics, kept))  # if messages are slow, another one won them, too
            _log.info("accounts served by %s: %s", self._topics.bridge, len(holdings.owned))
        self._finish(this)

    def _finish(self, this: Round) -> None:
        """End a round, and wait for the accounts that others serve."""
        self.waiting.update({key: owner for key, owner in this.others.items() if key in self.holdings.wanted})
        self._round = None
        self._next = min(self._next, self._clock.now() + _AGAIN * self._clock.speed if self.holdings.left else math.inf)
        self._over()

    def _hear(self, payload: bytes) -> None:
        answers, lost = self._claiming.hear(payload, self.holdings.owned, self._clock.now())
        self._link().tell(answers)
        for key in lost:
            _log.warning("%s: another process serves it, too", key)
            self.holdings.end(key, self._serving.lose)

    def _look_soon(self) -> None:
        """Begin a round as soon as none is in progress."""
        self._next = self._clock.now()
        self._changed()

    def _read(
        self, this: Round, topics: Collection[str], then: Callable[[Round, Mapping[str, bytes]], None], still: Still
    ) -> None:
        def done(found: Mapping[str, bytes]) -> None:
            self._events.append((this, partial(then, this, found)))
            self._changed()

        self._link().read_back(tuple(topics), done, still)
