"""While a phone's clock is wrong or the broker is away, page and entries show nothing old as current."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dexcom2mqtt.web import nightscout
from dexcom2mqtt.web.query import Query
from tests.account.test_phone_clock import STALE_AFTER, Watched, worlds
from tests.account.test_polling import BEGIN, HOUR, MINUTE, TOPICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dexcom2mqtt.demo import share_service as share

TOLERANCE = 5 * MINUTE  # how far a phone's clock may be ahead without being called wrong


class Viewed(Watched):
    """A world that records the true age of each reading shown as current, and of each entry that looks current."""

    def __init__(self, **options: Any) -> None:
        self.oldest_seen = -math.inf  # true age in seconds
        self.oldest_entry = -math.inf  # the same, for entries dated within the last 15 minutes
        self._seen: tuple[float, float] | None = None  # the true time of the reading shown, and until when it is shown
        self.undetectable = False  # whether only false stamps that had passed arrived, which nothing reveals
        self._sent: set[int] = set()  # the true times of what Share has sent
        super().__init__(**options)

    def upload(self, records: list[share.Record]) -> list[share.Record]:
        uploaded = super().upload(records)
        stamps = {int(record.trend[1:]): record.taken for record in uploaded if record.arrives <= self.unix}
        new = {true: stamp for true, stamp in stamps.items() if true not in self._sent}
        self._sent |= new.keys()
        false = [stamp for true, stamp in new.items() if stamp - true > TOLERANCE * 1000]
        warned = "phone_clock" in self.retained.get(TOPICS.of("anna", "status"), b"").decode()
        if false and max(new.values()) <= (self.unix + TOLERANCE) * 1000 and not warned:
            self.undetectable = True
        return uploaded

    def _serve(self) -> None:
        super()._serve()
        self._view()

    def restart(self, *, broker: bool = True) -> None:
        self._view(ends=True)
        super().restart(broker=broker)

    def _view(self, *, ends: bool = False) -> None:
        """Record the reading shown until now, and the one shown from now on."""
        if self._seen is not None:
            true, until = self._seen
            self.oldest_seen = max(self.oldest_seen, BEGIN + min(self.clock.now(), until) - true)
        self._seen = None
        if ends:
            return
        overview, _ = self.poller.seen()
        for entry in nightscout.entries(overview.readings, Query(288)):
            if self.unix - entry["date"] / 1000 <= STALE_AFTER:
                self.oldest_entry = max(self.oldest_entry, self.unix - int(entry["direction"][1:]) / 1000)
        if overview.fresh_until > self.clock.now():
            direction = overview.state["direction"] or ""
            self._seen = int(direction[1:]) / 1000, overview.fresh_until

    def sees(self) -> bool:
        """Return whether a reading is shown as current."""
        return self._seen is not None and self._seen[1] > self.clock.now()


@pytest.fixture
def viewed() -> Iterator[Callable[..., Viewed]]:
    """Make worlds whose services end with the test."""
    with worlds(Viewed) as make:
        yield make


@pytest.mark.parametrize("minutes", [6, 20, 60])
def test_a_phone_that_is_ahead(viewed: Callable[..., Viewed], minutes: int) -> None:
    """Its false readings are neither shown nor among the entries, even after their stamps have passed."""
    world = viewed()
    world.live(HOUR)
    assert world.sees()
    world.set_phone(minutes * MINUTE)
    world.live(20 * MINUTE)
    assert not world.sees()
    world.set_phone(minutes * MINUTE, on=False)
    world.live(minutes * MINUTE + HOUR)
    assert world.oldest_seen <= STALE_AFTER + 1
    assert world.oldest_entry <= STALE_AFTER + TOLERANCE + 1


def test_a_restart_without_a_broker_shows_the_reading_after_its_first_answer(viewed: Callable[..., Viewed]) -> None:
    """Nobody knows which readings of the first answer are doubtful, so the value appears with the next reading."""
    world = viewed()
    world.live(2 * HOUR)
    world.restart(broker=False)
    world.live(25)
    assert not world.sees()
    assert world.poller.seen()[0].readings == ()
    world.live(6 * MINUTE)
    assert world.sees()
    world.live(HOUR)
    assert len(world.poller.seen()[0].readings) == pytest.approx(13, abs=1)
    assert world.poller.seen()[0].state["delta"] is not None
    world.read_back()
    world.live(2)
    assert len(world.poller.seen()[0].readings) > 280


def test_a_broker_that_comes_later_has_nothing_to_correct(viewed: Callable[..., Viewed]) -> None:
    """If the phone was ahead and is off, a restart shows nothing, neither without the broker nor once it is back."""
    world = viewed()
    world.live(2 * HOUR)
    world.set_phone(HOUR)
    world.live(20 * MINUTE)
    world.set_phone(HOUR, on=False)
    world.clock.time += 57 * MINUTE
    world.restart(broker=False)
    world.live(30)
    assert not world.sees()
    assert world.poller.seen()[0].readings == ()
    world.read_back()
    world.live(2)
    assert not world.sees()
    assert world.poller.seen()[0].readings
    assert world.oldest_seen <= STALE_AFTER + 1
    assert world.oldest_entry <= STALE_AFTER + TOLERANCE + 1


STEPS = st.one_of(
    st.tuples(st.just("phone"), st.sampled_from([-20, 0, 4, 20, 60, 180]), st.booleans()),
    st.tuples(st.just("live"), st.sampled_from([1, 11, 31, 75]), st.booleans()),
    st.tuples(st.just("pause"), st.sampled_from([1, 20, 58]), st.booleans()),
)


@pytest.mark.timeout(600)  # each example takes up to 10 s when ten workers share two cores
@settings(deadline=None, max_examples=15, database=None)
@given(st.lists(STEPS, min_size=2, max_size=9))
def test_whatever_happens(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever phone, broker and machine do, no reading shown is too old, and no entry looks newer than it is.

    Except for what docs/topics.md says: false stamps that had passed before the daemon first saw them look right.
    """
    world = Viewed()
    try:
        world.live(HOUR)
        read = True
        for what, minutes, yes in steps:
            if what == "phone":
                world.set_phone(minutes * MINUTE, on=yes)
            elif what == "live":
                world.live(minutes * MINUTE)
                if not read:
                    world.read_back()
                    read = True
            else:
                world.clock.time += minutes * MINUTE
                world.restart(broker=yes)
                read = yes
                world.live(30)
        world.live(HOUR)
        assume(not world.undetectable)
        assert world.oldest_seen <= STALE_AFTER + TOLERANCE + 1
        assert world.oldest_entry <= STALE_AFTER + TOLERANCE + 1
    finally:
        world.service.__exit__(None, None, None)
