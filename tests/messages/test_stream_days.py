"""The stream counts each reading once, when it enters the history, and sends both together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.messages.days import Tally, counted, day_of, resumed
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.messages.unpublished import Offer
from tests.support.builders import NOON, account, property_of, reading
from tests.support.payloads import SOURCE, TOPICS

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from dexcom2mqtt.messages.days import Days
    from dexcom2mqtt.readings import Reading

LIMITS = (54, 70, 180, 250)
TODAY = day_of(NOON, 0)
HISTORY, DAYS = TOPICS.of("anna", "history"), TOPICS.of("anna", "days")


def opened(history: Iterable[Reading] = (), *, since: int = 0, waits: bool = False, days: Days | None = None) -> Stream:
    """Return a stream that continues from a history, and from days, or still waits for them."""
    stream, known = Stream(TOPICS), tuple(history)
    tally = resumed(days, known, LIMITS, TODAY)
    if waits:
        tally = Tally(LIMITS, tally.days, waiting=(known, ()))
    stream.open("anna", SOURCE, known, since=since, tally=tally)
    return stream


def publish(stream: Stream, *readings: Reading, doubtful: bool = False) -> None:
    """Offer readings and acknowledge whatever that makes the stream send."""
    stream.offer("anna", [Offer(each, None, account(), 2 * NOON, doubtful=doubtful) for each in readings])
    for now in range(NOON, NOON + 100):
        for message in stream.take(now, 1000):
            stream.acknowledged(message)
        stream.histories(now)


def sums(stream: Stream) -> dict[int, int]:
    """Return the number of readings by day, with today as 0."""
    tally = stream.tally("anna")
    assert tally is not None
    return {number - TODAY: day.readings for number, day in tally.days.items()}


def said(stream: Stream, now: float = 2 * NOON) -> dict[str, Any]:
    """Return the messages to send by topic, in order."""
    return {message.topic: json.loads(message.payload) for message in stream.histories(now)}


def test_a_reading_counts_when_the_broker_has_it() -> None:
    """It is not counted when offered or sent: after a lost connection it is sent again."""
    stream = opened()
    stream.offer("anna", [Offer(reading(), None, account(), 2 * NOON)])
    for _ in range(2):
        (message,) = stream.take(NOON, 10)
        assert sums(stream) == {}
        stream.lost()
    (message,) = stream.take(NOON, 10)
    stream.acknowledged(message)
    assert sums(stream) == {0: 1}


def test_history_and_days_go_together() -> None:
    """A restart finds the same readings published and counted; both are sent at most once a second."""
    stream = opened()
    assert list(said(stream)) == [DAYS]  # empty, so that it exists
    for n in range(3):
        stream.offer("anna", [Offer(reading(seconds=n), None, account(), 2 * NOON)])
        for message in stream.take(NOON, 10):
            stream.acknowledged(message)
    assert said(stream, 2 * NOON + 0.9) == {}
    found = said(stream, 2 * NOON + 1)
    assert list(found) == [HISTORY, DAYS]
    assert len(found[HISTORY]["readings"]) == found[DAYS]["days"][0]["n"] == 3
    assert said(stream, 2 * NOON + 10) == {}


def test_readings_that_count_as_published_are_not_counted_again() -> None:
    """This covers the history, and readings that it had no room for."""
    stream = opened([reading(seconds=n) for n in range(5)], since=NOON * 1000)
    assert sums(stream) == {0: 5}
    publish(stream, reading(seconds=-60), reading(seconds=60))
    assert sums(stream) == {0: 6}


def test_doubtful_readings_do_not_count() -> None:
    """They are published only for the record."""
    stream = opened()
    publish(stream, reading(), doubtful=True)
    assert sums(stream) == {}
    publish(stream, reading())
    assert sums(stream) == {0: 1}


def test_late_readings_count_for_their_day() -> None:
    """This also holds after midnight, and ``counted`` is called for each."""
    stream, heard = Stream(TOPICS), []
    stream.open("anna", SOURCE, (), tally=Tally(LIMITS), counted=lambda: heard.append(1))
    publish(stream, reading(seconds=13 * 3600), reading(seconds=11 * 3600), reading(seconds=-7 * 3600))
    assert sums(stream) == {0: 2, 1: 1}
    assert len(heard) == 3


def test_awaited_days_are_not_sent() -> None:
    """They would overwrite those that may still arrive; the days that arrive are joined to the count since."""
    earlier = counted({}, [reading(seconds=-86_400), reading(), reading(seconds=1)], LIMITS)
    stream = opened([reading(), reading(seconds=1)], waits=True)
    publish(stream, reading(seconds=60))
    assert sums(stream) == {0: 3}
    stream.fit(lambda _: 5000)  # a new connection, on which both would be sent again
    assert not stream.shorten(DAYS, 1000)
    assert list(said(stream)) == [HISTORY]
    stream.settle("anna", earlier, TODAY)
    found = said(stream, 3 * NOON)
    assert list(found) == [DAYS]
    assert [day["n"] for day in found[DAYS]["days"]] == [1, 3]


def test_days_that_never_arrive_start_over() -> None:
    """They start over with the history and the readings counted since."""
    stream = opened([reading(), reading(seconds=1)], waits=True)
    publish(stream, reading(seconds=60))
    stream.settle("anna", None, TODAY)
    assert [day["n"] for day in said(stream, 3 * NOON)[DAYS]["days"]] == [3]


def test_without_a_tally_nothing_is_counted() -> None:
    """If days are not wanted, none are sent."""
    stream = Stream(TOPICS)
    stream.open("anna", SOURCE, ())
    assert stream.tally("ben") is None
    publish(stream, reading())
    assert stream.tally("anna") is None
    stream.settle("anna", {}, TODAY)
    assert said(stream) == {}


def test_days_fit_the_limit_of_the_broker() -> None:
    """The newest days that fit are sent; all are kept, for a broker that accepts them."""
    days = counted({}, [reading(seconds=-86_400 * n) for n in range(90)], LIMITS)
    stream = opened([reading()], days=days)
    stream.fit(lambda topic: 3000 if topic == DAYS else 1e9)
    found = said(stream)
    assert 2500 < len(json.dumps(found[DAYS])) <= 3000
    assert found[DAYS]["days"][-1]["day"] == "2025-04-19"
    assert len(sums(stream)) == 90
    assert stream.shorten(DAYS, 2048)
    assert len(json.dumps(said(stream, 3 * NOON)[DAYS])) <= 2048
    assert not stream.shorten(DAYS, 1024)  # then size was not the problem
    assert len(said(stream, 4 * NOON)[DAYS]["days"]) == 90
    assert not stream.shorten(DAYS, 4096)


@property_of
@given(
    st.lists(st.integers(-570, 0), min_size=1, max_size=30, unique=True),
    st.randoms(use_true_random=False),
    st.integers(0, 30),
)
def test_order_and_repetition_change_nothing(slots: list[int], chance: random.Random, restart_at: int) -> None:
    """In whatever order and however often readings come, even across a restart, each is counted once for its day."""
    readings = [reading(100 + slot % 50, seconds=150 * slot) for slot in slots]
    come = [*readings, *chance.choices(readings, k=5)]
    chance.shuffle(come)
    stream = opened()
    known: dict[int, Reading] = {}
    for place, each in enumerate(come):
        if place == restart_at:
            tally = stream.tally("anna")
            assert tally is not None
            stream = opened(known.values(), days=tally.days)
        publish(stream, each)
        known[each.date] = each
    tally = stream.tally("anna")
    assert tally is not None
    assert tally.days == counted({}, readings, LIMITS)
