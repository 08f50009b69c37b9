"""The stream of readings: what is sent when, what counts as published, and the history that a restart reads."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dexcom2mqtt.messages.history import parse_history
from dexcom2mqtt.messages.state import unavailable
from dexcom2mqtt.messages.stream import BACKFILL_A_SECOND, Stream
from dexcom2mqtt.messages.unpublished import Offer
from dexcom2mqtt.topics import Topics
from tests.support.builders import NOON, account, property_of, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.readings import Reading

TOPICS = Topics("dexcom2mqtt")
ANNA, BEN = "anna", "ben"
SOURCE = "0a1b2c3d"
STALE_AFTER = 900
HOUR = 3600
DAY = 24 * HOUR
EVERYTHING = 1000


def offer(taken: Reading) -> Offer:
    """Offer a reading as a poller would, on a clock that shows Unix seconds."""
    return Offer(taken, None, account(), taken.date / 1000 + STALE_AFTER)


def opened(*keys: str, history: Iterable[Reading] = ()) -> Stream:
    """Return a stream with these accounts, each of which has published the same readings before."""
    stream = Stream(TOPICS)
    kept = list(history)
    for key in keys:
        stream.open(key, SOURCE, kept)
    return stream


def offered(*seconds: float, key: str = ANNA) -> Stream:
    """Return a stream with readings taken that many seconds after noon."""
    stream = opened(key)
    stream.offer(key, [offer(reading(seconds=each)) for each in seconds])
    return stream


def test_a_first_start_of_many_accounts_costs_little() -> None:
    """While a day of readings of each of a thousand accounts waits for hours, finding the next one is quick."""
    keys = [f"a{number}" for number in range(1000)]
    stream = opened(*keys)
    day = [offer(reading(seconds=-300 * number)) for number in range(288)]
    for key in keys:
        stream.offer(key, day)
    before = time.process_time()
    taken = [len(stream.take(NOON - HOUR + second / 10, 20)) for second in range(50)]
    assert sum(taken) > 20
    assert time.process_time() - before < 5


def calls_of(run: Callable[[], object]) -> int:
    """Return how many calls of Python functions it takes to run this."""
    calls = itertools.count()

    def count(_frame: object, event: str, _arg: object) -> None:
        if event == "call":
            next(calls)

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return next(calls)


def calls_beside(accounts: int) -> int:
    """Return how many calls it takes to find a reading among that many idle accounts."""
    stream = opened(ANNA, *(f"a{number}" for number in range(accounts)), history=[reading(seconds=-300)])
    stream.histories(NOON)
    stream.offer(ANNA, [offer(reading())])
    return calls_of(lambda: (stream.histories(NOON), stream.next_at(NOON), stream.take(NOON, 20)))


def test_idle_accounts_cost_nothing() -> None:
    """The broker's thread looks several times per message: it must not go through a thousand accounts each time."""
    assert calls_beside(1000) == calls_beside(1)


def test_unchanged_accounts_cost_little() -> None:
    """While all of them wait for their turn, only those whose turn it is are searched."""
    keys = [f"a{number}" for number in range(1000)]
    stream = opened(*keys)
    for key in keys:
        stream.offer(key, [offer(reading(seconds=-300 * number)) for number in range(5)])
    later = NOON + HOUR
    assert len(stream.take(later, 1)) == 1
    assert calls_of(lambda: stream.take(later, 1)) < 6 * len(keys)


def said(taken: Iterable[Message]) -> list[tuple[str, float, bool]]:
    """Return of each message the account, when after noon its reading was taken, and whether it is backfill."""
    payloads = [(message.topic.split("/")[1], json.loads(message.payload)) for message in taken]
    return [(key, payload["date"] / 1000 - NOON, payload["backfill"]) for key, payload in payloads]


def publish(stream: Stream, now: float, most: int = EVERYTHING) -> list[tuple[str, float, bool]]:
    """Take everything to send now, and acknowledge all of it."""
    taken = stream.take(now, most)
    for message in taken:
        stream.acknowledged(message)
    return said(taken)


def respond(stream: Stream, message: Message, answer: str) -> None:
    """Let the broker answer a message at noon, or not."""
    match answer:
        case "acknowledged":
            stream.acknowledged(message)
        case "refused":
            stream.refused(message, NOON + 300)


def kept_in(history: Message) -> list[float]:
    """Return when after noon the readings of a history were taken."""
    return [entry["date"] / 1000 - NOON for entry in json.loads(history.payload)["readings"]]


# --- what goes first ---------------------------------------------------------------------------------------


def test_nothing_is_sent_before_an_account_begins() -> None:
    """Until it is known what was published before, nothing is sent, and nothing is due."""
    stream = Stream(TOPICS)
    assert stream.take(NOON, EVERYTHING) == []
    assert stream.histories(NOON) == []
    assert stream.next_at(NOON) == math.inf
    stream.open(BEN, SOURCE, [])
    stream.offer(BEN, [offer(reading())])
    assert publish(stream, NOON) == [(BEN, 0, False)]
    assert [history.topic for history in stream.histories(NOON)] == [TOPICS.of(BEN, "history")]


def test_current_readings_go_first() -> None:
    """Current readings go before the others, each group oldest first, whatever the order of the offers."""
    stream = offered(-300, -HOUR, 0, -DAY + 60, -600, -7200)
    expected = [(-600, False), (-300, False), (0, False), (-DAY + 60, True), (-7200, True), (-HOUR, True)]
    assert publish(stream, NOON) == [(ANNA, seconds, backfill) for seconds, backfill in expected]


def test_current_readings_of_all_accounts_go_first() -> None:
    """One account's backfill waits for another's current reading."""
    stream = opened(ANNA, BEN)
    stream.offer(ANNA, [offer(reading(seconds=-HOUR))])
    stream.offer(BEN, [offer(reading(seconds=-5))])
    assert publish(stream, NOON) == [(BEN, -5, False), (ANNA, -HOUR, True)]


def test_no_more_than_asked_for() -> None:
    """A take returns at most as many as asked for, nothing in flight a second time, and the rest later."""
    stream = offered(-600, -300, 0)
    first = stream.take(NOON, 2)
    assert said(first) == [(ANNA, -600, False), (ANNA, -300, False)]
    assert stream.take(NOON, 0) == []
    assert said(stream.take(NOON, 2)) == [(ANNA, 0, False)]
    assert stream.take(NOON, 2) == []


@pytest.mark.parametrize(
    ("published", "taken", "at", "backfill"),
    [
        ([], 0, 0, False),
        ([], 0, STALE_AFTER - 0.001, False),
        ([], 0, STALE_AFTER, True),
        ([-300], 0, 0, False),
        ([300], 0, 300, True),
        ([300], 0, STALE_AFTER, True),
        ([-300, 300], 0, 300, True),
    ],
)
def test_late_readings_are_backfill(published: list[float], taken: float, at: float, *, backfill: bool) -> None:
    """A reading is backfill if a newer one was published before it, or if it is already stale."""
    before_a_restart = opened(ANNA, history=[reading(seconds=seconds) for seconds in published])
    without_one = offered(*published)
    publish(without_one, NOON)
    for stream in (before_a_restart, without_one):
        stream.offer(ANNA, [offer(reading(seconds=taken))])
        assert publish(stream, NOON + at) == [(ANNA, taken, backfill)]


def test_accounts_do_not_make_each_other_late() -> None:
    """A newer reading of another account does not make a reading backfill."""
    stream = opened(ANNA, BEN)
    stream.offer(ANNA, [offer(reading())])
    publish(stream, NOON)
    stream.offer(BEN, [offer(reading(seconds=-60))])
    assert publish(stream, NOON) == [(BEN, -60, False)]


def test_a_reading_is_published_with_its_state() -> None:
    """A message of the stream has the keys of the state and `backfill`; it is not retained and does not expire."""
    stream = opened(ANNA)
    given_one = offer(reading(85))
    stream.offer(ANNA, [given_one])
    (message,) = stream.take(NOON, EVERYTHING)
    assert json.loads(message.payload) == given_one.state() | {"backfill": False}
    assert (message.topic, message.retain, message.expires_at) == ("dexcom2mqtt/anna/reading", False, None)


def test_an_offer_wakes_the_broker_thread() -> None:
    """An offer calls ``changed``, because there is something to send."""
    calls: list[None] = []
    stream = Stream(TOPICS, changed=lambda: calls.append(None))
    stream.open(ANNA, SOURCE, [])
    stream.offer(ANNA, [offer(reading())])
    assert len(calls) == 1


# --- how fast ----------------------------------------------------------------------------------------------


def test_backfill_is_published_within_seconds() -> None:
    """A day of backfill is sent at 20 a second; a current reading does not wait for it."""
    stream = offered(*(-DAY + 300 * slot for slot in range(60)))
    assert len(publish(stream, NOON)) == BACKFILL_A_SECOND == 20
    assert publish(stream, NOON + 0.999) == []
    stream.offer(ANNA, [offer(reading())])
    assert publish(stream, NOON + 0.999) == [(ANNA, 0, False)]
    stream.histories(NOON + 0.999)
    assert stream.next_at(NOON + 0.999) == NOON + 1
    counts = []
    for second in (1, 2, 3):
        counts.append(len(publish(stream, NOON + second)))
        stream.histories(NOON + second + 0.999)
    assert counts == [20, 20, 0]


def test_no_more_than_a_second_of_backfill_without_a_history() -> None:
    """Backfill waits while 20 readings are in no history yet; if everything stops now, only those are repeated."""
    stream = offered(*(-DAY + 300 * slot for slot in range(60)))
    sent = stream.take(NOON, EVERYTHING)
    assert len(sent) == BACKFILL_A_SECOND
    for message in sent[:5]:
        stream.acknowledged(message)
    stream.histories(NOON + 0.5)
    assert len(stream.take(NOON + 1, EVERYTHING)) == 5
    for message in sent[5:]:
        stream.acknowledged(message)
    assert stream.take(NOON + 1.4, EVERYTHING) == []
    assert stream.next_at(NOON + 1.4) == NOON + 1.5
    stream.histories(NOON + 1.5)
    assert len(stream.take(NOON + 2, EVERYTHING)) == 15


@property_of
@given(
    slots=st.lists(st.tuples(st.sampled_from([ANNA, BEN]), st.integers(0, 280)), max_size=120, unique=True),
    steps=st.lists(st.tuples(st.floats(0, 1.5), st.integers(0, 30), st.booleans()), min_size=1, max_size=40),
)
def test_never_more_backfill_than_promised(slots: list[tuple[str, int]], steps: list[tuple[float, int, bool]]) -> None:
    """In any period of one second, at most 20 readings of backfill are sent, for all accounts together."""
    stream = opened(ANNA, BEN)
    for key, slot in slots:
        stream.offer(key, [offer(reading(seconds=-DAY + 300 * slot))])
    times: list[float] = []
    now = float(NOON)
    for seconds, most, connected in steps:
        now += seconds
        times += [now] * sum(backfill for _, _, backfill in said(stream.take(now, most)))
        if not connected:
            stream.lost()
    assert all(later - at >= 1 for at, later in zip(times, times[BACKFILL_A_SECOND:], strict=False))


@property_of
@given(
    seconds=st.lists(st.integers(-40, 0).map(lambda slot: slot * 300), max_size=60, unique=True),
    most=st.integers(1, 30),
    answers=st.lists(st.sampled_from(["acknowledged", "refused", "none"]), min_size=60, max_size=60),
    later=st.floats(0, 400),
)
@example(seconds=[-300 * slot for slot in range(21)], most=1, answers=["acknowledged"] * 60, later=0.0)
def test_there_is_nothing_to_do_before_next_at(seconds: list[int], most: int, answers: list[str], later: float) -> None:
    """Until `next_at` nothing can be taken and no history is due; then something is, unless nobody answered."""
    stream = offered(*seconds)
    for message, answer in zip(stream.take(NOON, most), answers, strict=False):
        respond(stream, message, answer)
    while stream.take(NOON, EVERYTHING) or stream.histories(NOON):
        pass  # a history that was sent makes room for more
    next_at = stream.next_at(NOON)
    assert next_at > NOON
    at = NOON + later
    did_something = bool(stream.histories(at)) | bool(stream.take(at, EVERYTHING))
    assert did_something == (next_at <= at)


# --- what counts as published ------------------------------------------------------------------------------


def test_acknowledged_readings_are_history() -> None:
    """Only acknowledged readings are in the history, and those are never sent again."""
    stream = offered(-300, 0)
    first, second = stream.take(NOON, EVERYTHING)
    assert stream.histories(NOON) == []
    stream.acknowledged(first)
    assert [kept_in(history) for history in stream.histories(NOON)] == [[-300]]
    stream.acknowledged(second)
    assert [kept_in(history) for history in stream.histories(NOON + 1)] == [[-300, 0]]
    assert stream._accounts[ANNA].sent == set()  # noqa: SLF001  # finished readings take no memory
    stream.lost()
    assert stream.take(NOON + 1, EVERYTHING) == []


def test_a_foreign_acknowledgement_is_ignored() -> None:
    """Acknowledgements of messages that the stream did not send, or of answered ones, are ignored."""
    stream = offered(0)
    (message,) = stream.take(NOON, EVERYTHING)
    for foreign in (replace(message, topic="other"), unavailable(TOPICS, ANNA)):
        stream.acknowledged(foreign)
        stream.refused(foreign, NOON + 300)
    assert stream.histories(NOON) == []
    stream.acknowledged(message)
    stream.acknowledged(message)
    stream.refused(message, NOON + 300)
    assert len(stream.histories(NOON)) == 1
    stream.offer(ANNA, [offer(reading(seconds=300))])
    assert publish(stream, NOON + 300) == [(ANNA, 300, False)]


def test_history_at_most_once_a_second() -> None:
    """Each account's history is sent at once, then at most once a second, and is complete in the end."""
    stream = opened(ANNA, BEN)
    sent: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for tick in range(60):
        now = NOON + tick / 8
        if tick < 24:
            for key in (ANNA, BEN):
                stream.offer(key, [offer(reading(seconds=tick))])
            publish(stream, now)
        for history in stream.histories(now):
            sent[history.topic.split("/")[1]].append((now - NOON, len(kept_in(history))))
    assert dict(sent) == {key: [(0, 1), (1, 9), (2, 17), (3, 24)] for key in (ANNA, BEN)}
    assert stream.next_at(NOON + 60) == math.inf


def test_history_holds_a_day() -> None:
    """The history has the last 24 hours, oldest first, with exactly the promised keys."""
    stream = opened(ANNA, history=[reading(seconds=-60), reading(85, seconds=-HOUR, direction="Bent", offset_min=-240)])
    stream.offer(ANNA, [offer(reading(seconds=seconds)) for seconds in (-DAY - 1, -DAY, -7200, 0)])
    publish(stream, NOON)
    (history,) = stream.histories(NOON)
    payload = json.loads(history.payload)
    assert list(payload) == ["version", "source", "readings"]
    assert (payload["version"], payload["source"]) == (1, SOURCE)
    assert kept_in(history) == [-DAY, -7200, -HOUR, -60, 0]
    assert list(payload["readings"][2].items()) == [
        ("date", (NOON - HOUR) * 1000),
        ("mg_dl", 85),
        ("direction", "Bent"),
        ("offset_min", -240),
    ]
    assert (history.topic, history.retain, history.expires_at) == ("dexcom2mqtt/anna/history", True, None)


def test_a_refused_reading_stays_unpublished_and_is_tried_again_later() -> None:
    """A refused reading is in no history and is sent again after 300 s; other accounts continue."""
    stream = opened(ANNA, BEN)
    stream.offer(ANNA, [offer(reading(seconds=-300)), offer(reading())])
    for message in stream.take(NOON, EVERYTHING):
        stream.refused(message, NOON + 300)
    assert stream.histories(NOON) == []
    stream.offer(ANNA, [offer(reading(seconds=60))])
    stream.offer(BEN, [offer(reading(seconds=60))])
    assert publish(stream, NOON + 299) == [(BEN, 60, False)]
    stream.histories(NOON + 299)
    assert stream.next_at(NOON + 299) == NOON + 300
    assert publish(stream, NOON + 300) == [(ANNA, -300, False), (ANNA, 0, False), (ANNA, 60, False)]


@pytest.mark.parametrize("answer", ["acknowledged", "refused", "none"])
def test_an_unpublished_reading_makes_nothing_late(answer: str) -> None:
    """A reading is backfill if a newer one was acknowledged, but not if that was lost or refused."""
    stream = offered(0)
    for message in stream.take(NOON, EVERYTHING):
        respond(stream, message, answer)
    if answer == "none":
        stream.lost()
    stream.offer(ANNA, [offer(reading(seconds=-300))])
    late = publish(stream, NOON + 300)
    expected = [(ANNA, -300, False), (ANNA, 0, False)]
    assert late == ([(ANNA, -300, True)] if answer == "acknowledged" else expected)


def test_lost_readings_are_sent_again() -> None:
    """After the connection ended, only unacknowledged readings are sent again, in their present state."""
    stream = offered(-600, -300, 0)
    stream.acknowledged(stream.take(NOON, EVERYTHING)[1])
    stream.lost()
    assert publish(stream, NOON + 700) == [(ANNA, 0, False), (ANNA, -600, True)]
    assert publish(stream, NOON + 700) == []


def test_an_acknowledgement_after_the_end_is_ignored() -> None:
    """An acknowledgement that arrives after the connection ended is ignored."""
    stream = offered(0)
    (message,) = stream.take(NOON, EVERYTHING)
    stream.lost()
    stream.acknowledged(message)
    assert stream.histories(NOON) == []
    assert publish(stream, NOON) == [(ANNA, 0, False)]


def test_history_is_sent_again_after_a_restart() -> None:
    """The history from before a restart is due at once, for a broker that may have lost it."""
    stream = opened(ANNA, history=[reading(seconds=-300)])
    stream.open(BEN, SOURCE, [])
    assert [kept_in(history) for history in stream.histories(NOON)] == [[-300]]
    assert stream.histories(NOON + 1) == []


def test_a_stop_sends_changed_histories() -> None:
    """At a stop, the unsent histories are returned, and no others."""
    stream = opened(ANNA, BEN)
    stream.offer(ANNA, [offer(reading(seconds=-300)), offer(reading())])
    for message in stream.take(NOON, EVERYTHING):
        stream.acknowledged(message)
        first = stream.histories(NOON)
    assert first == []
    stream.offer(BEN, [offer(reading())])  # which is never published
    assert [(history.topic, kept_in(history)) for history in stream.histories(math.inf)] == [
        (TOPICS.of(ANNA, "history"), [-300, 0])
    ]


def test_nothing_older_than_two_days_waits() -> None:
    """While nothing can be published, only the last two days wait, so that memory does not grow."""
    stream = opened(ANNA)
    for slot in range(1000):
        stream.offer(ANNA, [offer(reading(seconds=300 * slot))])
        if slot == 0:
            (on_its_way,) = stream.take(NOON, EVERYTHING)
    newest = 999 * 300
    stream.acknowledged(on_its_way)  # which is no longer waiting
    stream.lost()
    waiting: list[float] = []
    while taken := publish(stream, NOON + newest + len(waiting)):
        waiting += [seconds for _, seconds, _ in taken]
        stream.histories(NOON + newest + len(waiting))
    assert sorted(waiting) == [newest - 2 * DAY + 300 * slot for slot in range(577)]


def test_a_doubtful_reading_does_not_replace_a_right_one_of_the_same_time() -> None:
    """Both are sent, the doubtful one as backfill, and the history distinguishes them."""
    stream = Stream(TOPICS)
    stream.open(ANNA, SOURCE, [])
    stream.offer(ANNA, [replace(offer(reading()), fresh_until=-math.inf, doubtful=True)])
    stream.offer(ANNA, [offer(reading())])
    taken = stream.take(NOON, 20)
    assert [json.loads(message.payload)["backfill"] for message in taken] == [False, True]
    for message in taken:
        stream.acknowledged(message)
    (history,) = stream.histories(math.inf)
    assert [entry.get("doubtful", False) for entry in json.loads(history.payload)["readings"]] == [False, True]
    stream.offer(ANNA, [replace(offer(reading(seconds=-HOUR)), fresh_until=-math.inf, doubtful=True)])
    stream.offer(ANNA, [replace(offer(reading(seconds=-HOUR)), fresh_until=-math.inf)])
    same = stream.take(NOON + 2, 20)
    assert same[0] == same[1]  # identical
    for message in same:
        stream.acknowledged(message)
    (history,) = stream.histories(math.inf)
    assert len(json.loads(history.payload)["readings"]) == 4
    again = Stream(TOPICS)
    before = parse_history(history.payload.encode(), SOURCE, NOON)
    again.open(ANNA, SOURCE, before.readings, before.doubtful)
    assert again.histories(math.inf) == [history]


# --- all of it together ------------------------------------------------------------------------------------


class Delivery(RuleBasedStateMachine):
    """Readings come in any order; the broker answers, refuses, or loses the connection; the daemon restarts.

    The clock shows Unix seconds. The broker keeps the history that was last published, and nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = float(NOON)
        self.given: dict[str, dict[int, Reading]] = {ANNA: {}, BEN: {}}
        self.acknowledged: dict[str, dict[int, float]] = {ANNA: {}, BEN: {}}  # by this process, and when
        self.ever: set[tuple[str, int]] = set()
        self.heard: Counter[tuple[str, int]] = Counter()
        self.excused: Counter[tuple[str, int]] = Counter()  # how often each may have been repeated
        self.on_their_way: list[Message] = []
        self.retained: dict[str, bytes] = {}

    @initialize()
    def start(self) -> None:
        self.stream = Stream(TOPICS)
        for key in (ANNA, BEN):
            history = parse_history(self.retained[key], SOURCE, self.now).readings if key in self.retained else ()
            published = {kept.date for kept in history}
            self.stream.open(key, SOURCE, history)
            self.stream.offer(key, [offer(each) for date, each in self.given[key].items() if date not in published])

    @rule(key=st.sampled_from([ANNA, BEN]), slots=st.lists(st.integers(-250, 60), max_size=40))
    def share_gives(self, key: str, slots: list[int]) -> None:
        """Offer a batch of readings from long ago until now; those known already are not offered again."""
        batch = {each.date: each for slot in slots if (each := reading(seconds=300 * slot)).date / 1000 <= self.now}
        new = [each for date, each in batch.items() if date not in self.given[key]]
        self.given[key] |= {each.date: each for each in new}
        self.stream.offer(key, [offer(each) for each in new])

    @rule(most=st.integers(0, 20))
    def send(self, most: int) -> None:
        for message in self.stream.take(self.now, min(most, 20 - len(self.on_their_way))):
            key, seconds, backfill = said([message])[0]
            date = round((NOON + seconds) * 1000)
            under_way = [said([each])[0][:2] for each in self.on_their_way]
            assert (key, seconds) not in under_way
            assert date not in self.acknowledged[key]
            newer = [at for at in self.acknowledged[key] if at > date]
            newer += [1 for who, at in under_way if who == key and at > seconds]
            assert backfill == (bool(newer) or date / 1000 + STALE_AFTER <= self.now)
            self.heard[key, date] += 1
            assert self.heard[key, date] <= 1 + self.excused[key, date]
            self.on_their_way.append(message)

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data(), refuse=st.sampled_from([False, False, False, True]))
    def broker_answers(self, data: st.DataObject, *, refuse: bool) -> None:
        message = self.on_their_way.pop(data.draw(st.integers(0, len(self.on_their_way) - 1)))
        key, seconds, _ = said([message])[0]
        if refuse:
            self.stream.refused(message, self.now + 300)
            self.excused[key, round((NOON + seconds) * 1000)] += 1  # it was not published, so nobody got it
        else:
            self._acknowledge(message)

    @rule()
    def broker_acknowledges_all(self) -> None:
        while self.on_their_way:
            self._acknowledge(self.on_their_way.pop(0))

    @rule()
    def connection_ends(self) -> None:
        self._excuse_what_is_on_its_way()
        self.stream.lost()

    @rule()
    def daemon_restarts(self) -> None:
        """Acknowledged readings that are in no history yet may be repeated: those of one second."""
        self._excuse_what_is_on_its_way()
        for key, dates in self.acknowledged.items():
            saved = {entry["date"] for entry in json.loads(self.retained.get(key, b'{"readings": []}'))["readings"]}
            for date, at in list(dates.items()):
                if date not in saved:
                    assert at >= self.now - 1
                    self.excused[key, date] += 1
                    del dates[date]
        self.start()

    @rule(seconds=st.integers(1, 400))
    def time_passes(self, seconds: int) -> None:
        for _ in range(min(seconds, 3)):
            self.now += 1
            self._histories()
        self.now += seconds

    @invariant()
    def histories_are_of_what_was_acknowledged(self) -> None:
        self._histories()

    def teardown(self) -> None:
        """In the end everything is published, and the history says so."""
        for _ in range(100):
            self.now += 10
            self._histories()
            for message in self.stream.take(self.now, 20):
                self._acknowledge(message)
        self.connection_ends()
        for _ in range(100):
            self.now += 10
            for message in self.stream.take(self.now, 20):
                self._acknowledge(message)
            self._histories()
        for key, dates in self.given.items():
            assert {(key, date) for date in dates} <= self.ever
            if dates:
                assert [entry["date"] for entry in json.loads(self.retained[key])["readings"]] == sorted(dates)
        assert self.stream.next_at(self.now) == math.inf

    def _acknowledge(self, message: Message) -> None:
        key, seconds, _ = said([message])[0]
        date = round((NOON + seconds) * 1000)
        self.stream.acknowledged(message)
        self.acknowledged[key][date] = self.now
        self.ever.add((key, date))

    def _excuse_what_is_on_its_way(self) -> None:
        for key, seconds, _ in said(self.on_their_way):
            self.excused[key, round((NOON + seconds) * 1000)] += 1
        self.on_their_way.clear()

    def _histories(self) -> None:
        for history in self.stream.histories(self.now):
            key = history.topic.split("/")[1]
            dates: Sequence[int] = [entry["date"] for entry in json.loads(history.payload)["readings"]]
            assert dates == sorted(self.acknowledged[key])
            self.retained[key] = history.payload.encode()


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(deadline=None, database=None, stateful_step_count=40)


def test_readings_of_a_withheld_account_wait() -> None:
    """Those of other accounts are sent, and once it is no longer withheld, they are, too."""
    stream = opened(ANNA, BEN)
    stream.withhold(frozenset({ANNA}))
    for key in (ANNA, BEN):
        stream.offer(key, [offer(reading())])
    assert [message.topic for message in stream.take(NOON, EVERYTHING)] == [TOPICS.of(BEN, "reading")]
    assert stream.next_at(NOON) == math.inf
    stream.withhold(frozenset())
    assert [message.topic for message in stream.take(NOON, EVERYTHING)] == [TOPICS.of(ANNA, "reading")]


def test_a_forgotten_account_leaves_nothing_behind() -> None:
    """Its readings are no longer sent, and acknowledgements of those already sent do not matter."""
    stream = opened(ANNA, BEN)
    for key in (ANNA, BEN):
        stream.offer(key, [offer(reading()), offer(reading(seconds=300))])
    sent = stream.take(NOON, 2)
    stream.forget(ANNA)
    for message in sent:
        stream.acknowledged(message)
    rest = stream.take(NOON, EVERYTHING)
    assert {message.topic for message in rest} <= {TOPICS.of(BEN, "reading")}
    assert {message.topic for message in stream.histories(math.inf)} <= {TOPICS.of(BEN, "history")}
    stream.open(ANNA, SOURCE, [])
    stream.offer(ANNA, [offer(reading())])
    assert [message.topic for message in stream.take(NOON, EVERYTHING)] == [TOPICS.of(ANNA, "reading")]
