"""Which readings the ledger keeps, which are new, and which are missing."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.account.ledger import Ledger
from dexcom2mqtt.readings import Reading, parse_record
from tests.support.builders import NOON, property_of, reading

if TYPE_CHECKING:
    from collections.abc import Iterable

HOUR = 3600
DAY = 24 * HOUR

near_noon = st.builds(
    Reading,
    mg_dl=st.sampled_from([100, 101]),
    direction=st.just("Flat"),
    date=st.integers(0, 400).map(lambda second: (NOON + second) * 1000) | st.integers(0, 99).map(lambda ms: NOON + ms),
)
any_time = st.builds(
    Reading,
    mg_dl=st.integers(100, 102),
    direction=st.just("Flat"),
    date=st.integers(-30 * HOUR * 100, 60 * HOUR * 100).map(lambda centis: NOON * 1000 + centis * 10),
)


def ledger_of(readings: Iterable[Reading], now: float = NOON) -> Ledger:
    ledger = Ledger()
    ledger.add(readings, now)
    return ledger


def doubled(kept: Iterable[Reading], candidate: Reading) -> bool:
    """Return whether a reading is already kept, by the words of the contract."""
    return any(
        other.date == candidate.date or (other.mg_dl == candidate.mg_dl and abs(other.date - candidate.date) <= 30_000)
        for other in kept
    )


# --- what is new -------------------------------------------------------------------------------------------


def test_knows_nothing_at_first() -> None:
    """A new ledger contains no reading."""
    ledger = Ledger()
    assert ledger.readings == ()
    assert ledger.newest is None
    assert ledger.add([], NOON) == []


def test_returns_new_readings_oldest_first() -> None:
    """Whatever order they arrive in, new readings are returned and kept in order of time."""
    one, two, three = (reading(100 + n, seconds=n * 300 - 900) for n in range(3))
    ledger = Ledger()
    assert ledger.add([two, three, one], NOON) == [one, two, three]
    assert ledger.readings == (one, two, three)
    assert ledger.newest == three


def test_returns_nothing_twice() -> None:
    """A known reading is not new, in the same batch or in a later one."""
    one, two = reading(100, seconds=-600), reading(100, seconds=-300)
    ledger = Ledger()
    assert ledger.add([one, one], NOON) == [one]
    assert ledger.add([one, two], NOON) == [two]
    assert ledger.add([two, one], NOON) == []


def test_identifies_a_reading_by_its_time() -> None:
    """The same instant with another value is the same reading, and the one published first stays."""
    ledger = ledger_of([reading(100)])
    assert ledger.add([reading(150)], NOON) == []
    assert ledger.readings == (reading(100),)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize(
    ("seconds", "is_double"),
    [(0.001, True), (9.5, True), (29.999, True), (30, True), (30.001, False), (-30, True), (-30.001, False)],
)
def test_drops_doubles(seconds: float, is_double: bool, batches: int) -> None:
    """A reading of equal value within 30 s before or after a kept one is the same, uploaded by a second device."""
    first, second = reading(100), reading(100, seconds=seconds)
    ledger = Ledger()
    if batches == 1:
        assert len(ledger.add([first, second], NOON)) == (1 if is_double else 2)
    else:
        ledger.add([first], NOON)
        assert ledger.add([second], NOON) == ([] if is_double else [second])


def test_only_a_kept_reading_makes_a_double() -> None:
    """A reading 30 s from a dropped one, and more than that from every kept one, is new."""
    kept, dropped, new = (reading(100, seconds=seconds) for seconds in (-60, -40, -20))
    assert Ledger().add([kept, dropped, new], NOON) == [kept, new]


def test_keeps_a_calibration() -> None:
    """A second reading within seconds, with another value, is a separate reading."""
    before, after = reading(100, seconds=-10), reading(130, seconds=-1)
    ledger = Ledger()
    assert ledger.add([after, before], NOON) == [before, after]
    assert ledger.newest == after


def test_keeps_late_readings() -> None:
    """A reading that arrives after a newer one is new and takes its place in order of time; the newest stays."""
    early, late, newest = reading(100, seconds=-900), reading(110, seconds=-600), reading(120, seconds=-300)
    ledger = ledger_of([early, newest])
    assert ledger.add([late], NOON) == [late]
    assert ledger.readings == (early, late, newest)
    assert ledger.newest == newest


@pytest.mark.parametrize(("ahead", "is_kept"), [(1, True), (300, True), (300.001, False), (DAY, False)])
def test_drops_readings_of_the_future(ahead: float, is_kept: bool) -> None:
    """A reading more than 5 minutes in the future is dropped."""
    assert bool(Ledger().add([reading(100, seconds=ahead)], NOON)) is is_kept


def test_keeps_a_reading_of_the_future_when_it_is_due() -> None:
    """A reading dropped for being in the future is new when its time has come."""
    early = reading(100, seconds=600)
    ledger = ledger_of([early])
    assert ledger.add([early], NOON + 600) == [early]


@pytest.mark.parametrize(("age", "is_kept"), [(0, True), (DAY - 1, True), (DAY, True), (DAY + 900, False)])
def test_reaches_back_24_hours(age: float, is_kept: bool) -> None:
    """A reading of the last 24 hours is new; a much older one is dropped."""
    assert bool(Ledger().add([reading(100, seconds=-age)], NOON)) is is_kept


def test_forgets_readings_older_than_a_day() -> None:
    """Over a month, no more than a day's readings are kept, so memory does not grow."""
    ledger = Ledger()
    for slot in range(30 * 288):
        ledger.add([reading(100, seconds=slot * 300)], NOON + slot * 300)
    assert 288 <= len(ledger.readings) <= 291
    assert ledger.newest == reading(100, seconds=(30 * 288 - 1) * 300)


@given(st.lists(st.lists(near_noon, max_size=6), max_size=6))
@property_of
def test_any_batches_in_any_order(batches: list[list[Reading]]) -> None:
    """However readings are batched and ordered, each is kept or doubles a kept one, and none is new twice."""
    ledger = Ledger()
    returned: list[Reading] = []
    for batch in batches:
        new = ledger.add(batch, NOON + 400)
        assert new == sorted(new, key=lambda taken: taken.date)
        returned += new
    kept = ledger.readings
    assert sorted(returned, key=lambda taken: taken.date) == list(kept)
    assert all(a.date < b.date for a, b in pairwise(kept))
    assert not any(doubled(kept[:index], candidate) for index, candidate in enumerate(kept))
    in_time = [taken for batch in batches for taken in batch if taken.date >= NOON * 1000]
    assert all(doubled(kept, taken) for taken in in_time)
    assert ledger.newest == (kept[-1] if kept else None)


@given(st.lists(any_time, max_size=8), st.lists(st.integers(0, 5 * HOUR), max_size=20))
@property_of
def test_nothing_is_new_twice_as_time_passes(sent: list[Reading], pauses: list[int]) -> None:
    """Over days in which Share sends the same again and again, each is new at most once, and a day's are kept."""
    ledger = Ledger()
    returned: list[int] = []
    now = NOON - 20 * HOUR
    for pause in pauses:
        now += pause
        returned += [taken.date for taken in ledger.add(sent, now)]
        dates = [taken.date / 1000 for taken in ledger.readings]
        assert max(dates, default=0) - min(dates, default=0) <= DAY + 600
        assert max(dates, default=0) <= now + 300
        in_time = [taken for taken in sent if now - DAY <= taken.date / 1000 <= now + 300]
        assert all(doubled(ledger.readings, taken) for taken in in_time)
    assert len(returned) == len(set(returned))


def test_the_oldest_beside_an_early_one_is_new_only_once() -> None:
    """Next to a reading slightly in the future, one at the very limit of age is not new each time."""
    sent = [reading(100, seconds=-DAY - 200), reading(100, seconds=250)]
    ledger = ledger_of(sent)
    assert ledger.add(sent, NOON) == []


def test_a_time_that_jumps_forgets_nothing() -> None:
    """While Share sends a time years ahead, nothing new is accepted; afterwards no known reading is new."""
    ledger = Ledger()
    known = [reading(100 + number, seconds=300 * number) for number in range(4)]
    assert ledger.add(known[:3], NOON + 700) == known[:3]
    assert ledger.add(known, NOON + 1000 + 10 * 365 * DAY) == []
    assert ledger.add(known, NOON + 1000) == known[3:]


# --- a restart ---------------------------------------------------------------------------------------------


def test_restored_readings_are_known() -> None:
    """Readings kept before a restart are not new after it, and take their place among later ones."""
    before, late, since = reading(100, seconds=-900), reading(110, seconds=-600), reading(120, seconds=-300)
    ledger = ledger_of([since])
    ledger.restore([late, before], NOON)
    assert ledger.readings == (before, late, since)
    assert ledger.newest == since
    assert ledger.add([before, late, since], NOON) == []
    assert ledger.delta(since) == 10


def test_a_restored_reading_takes_precedence_over_its_double() -> None:
    """Of a reading from before a restart and a later double of it, the published one stays."""
    published, double = reading(100, seconds=-600), reading(100, seconds=-591)
    ledger = ledger_of([double])
    ledger.restore([published], NOON)
    assert ledger.readings == (published,)


def test_restores_nothing_that_would_not_be_kept() -> None:
    """Readings that are too old, doubled, or in the future are not restored either."""
    early, double, old, ahead = (reading(100, seconds=seconds) for seconds in (-60, -50, -DAY - 900, 900))
    ledger = Ledger()
    ledger.restore([ahead, early, old, double], NOON)
    assert ledger.readings == (early,)


# --- the delta ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "delta"),
    [
        ({}, None),
        ({300: 90}, 10),
        ({300: 110}, -10),
        ({300: 100}, 0),
        ({149.999: 90}, None),
        ({150: 90}, 10),
        ({600: 90}, 10),
        ({600.001: 90}, None),
        ({9: 99, 300: 90}, 10),
        ({300: 90, 600: 80}, 10),
        ({290: 91, 311: 90}, 9),
        ({289: 91, 310: 90}, 10),
        ({290: 91, 310: 90}, 10),
        ({200: 91, 400: 90}, 10),
        ({200.001: 91, 400: 90}, 9),
        ({-300: 80, 300: 90}, 10),
    ],
)
def test_delta_is_the_change_over_five_minutes(earlier: dict[float, int], delta: int | None) -> None:
    """The delta is relative to the reading nearest to 300 s earlier, from 150 to 600 s; of two, the older one."""
    ledger = ledger_of([*(reading(value, seconds=-before) for before, value in earlier.items()), reading(100)])
    assert ledger.delta(reading(100)) == delta


@pytest.mark.parametrize(
    ("earlier", "now", "delta"), [(39, 60, None), (60, 39, None), (401, 380, None), (380, 401, None), (40, 400, 360)]
)
def test_delta_needs_two_measurements(earlier: int, now: int, delta: int | None) -> None:
    """If either end is LOW or HIGH, which are limits and not measurements, there is no delta."""
    ledger = ledger_of([reading(earlier, seconds=-300), reading(now)])
    assert ledger.delta(reading(now)) == delta


def test_delta_does_not_look_for_a_better_neighbour() -> None:
    """If the nearest reading is out of range there is no delta, even if another one is in time."""
    ledger = ledger_of([reading(40, seconds=-500), reading(39, seconds=-300), reading(60)])
    assert ledger.delta(reading(60)) is None


def test_delta_of_a_late_reading() -> None:
    """A late reading's delta is relative to the one before it, and it changes the delta of the next one."""
    oldest, late, newest = reading(100, seconds=-600), reading(110, seconds=-300), reading(130)
    ledger = ledger_of([oldest, newest])
    assert ledger.delta(newest) == 30
    ledger.add([late], NOON)
    assert ledger.delta(late) == 10
    assert ledger.delta(newest) == 20


# --- what is missing ---------------------------------------------------------------------------------------


def regular(start: float, end: float) -> list[Reading]:
    """Make a reading every 5 minutes, between so many seconds from noon."""
    return [reading(100, seconds=seconds) for seconds in range(round(start), round(end), 300)]


def test_reads_everything_if_nothing_is_known() -> None:
    """Without any reading, all 24 hours are read."""
    assert Ledger().minutes_to_read(NOON) == 1440


@pytest.mark.parametrize("since", [0, 1, 299, 300, 330, 1800])
def test_reads_back_to_the_newest_reading(since: float) -> None:
    """Without a gap, the read goes back to the newest reading, and little further."""
    ledger = ledger_of(regular(-DAY, 1))
    assert since <= ledger.minutes_to_read(NOON + since) * 60 <= since + 180


@pytest.mark.parametrize(("distance", "is_gap"), [(300, False), (449, False), (450, False), (450.001, True)])
def test_a_gap_is_longer_than_seven_and_a_half_minutes(distance: float, is_gap: bool) -> None:
    """The read goes back to a gap, which is more than 7.5 minutes between readings."""
    before = [reading(100, seconds=-HOUR - distance - slot * 300) for slot in range(3)]
    minutes = ledger_of([*before, *regular(-HOUR, 1)]).minutes_to_read(NOON)
    assert (minutes * 60 >= HOUR + distance) is is_gap
    assert minutes * 60 <= (HOUR + distance + 180 if is_gap else 180)


def test_reaches_back_to_the_oldest_gap() -> None:
    """Of several gaps, the oldest counts."""
    ledger = ledger_of([*regular(-9 * HOUR, -6 * HOUR), *regular(-5 * HOUR, -2 * HOUR), *regular(-HOUR, 1)])
    assert 6 * 60 <= ledger.minutes_to_read(NOON) <= 6 * 60 + 8


def test_a_filled_gap_is_not_read_again() -> None:
    """Once late readings have filled a gap, it is no longer read."""
    ledger = ledger_of([*regular(-9 * HOUR, -6 * HOUR), *regular(-5 * HOUR, 1)])
    ledger.add(regular(-6 * HOUR, -5 * HOUR), NOON)
    assert ledger.minutes_to_read(NOON) <= 3


def test_never_reads_more_than_a_day() -> None:
    """A gap of more than 24 hours ago cannot be filled any more, and Share accepts at most 1440 minutes."""
    ledger = ledger_of(regular(-DAY + 600, -DAY + 1200))
    assert ledger.minutes_to_read(NOON + HOUR) == 1440


@given(st.lists(any_time, max_size=20), st.integers(0, 30 * HOUR))
@property_of
def test_reads_no_more_than_share_can_return(readings: list[Reading], later: int) -> None:
    """Whatever is known, the read covers 1 to 1440 whole minutes, at least back to the newest reading."""
    ledger = ledger_of(readings)
    minutes = ledger.minutes_to_read(NOON + later)
    assert 1 <= minutes <= 1440
    newest = ledger.newest
    assert newest is None or minutes * 60 >= min(NOON + later - newest.date / 1000, DAY)


def test_keeps_readings_without_their_records() -> None:
    """The record is for users of the client; over a day it would take five times the memory of the readings."""
    made = parse_record({"WT": f"Date({NOON}000)", "DT": f"Date({NOON}000+0000)", "Value": 100, "Trend": "Flat"})
    assert made.json is not None
    ledger = Ledger()
    assert ledger.add([made], NOON) == [made]
    assert [kept.json for kept in ledger.readings] == [None]


def test_a_late_reading_is_kept_in_its_place() -> None:
    """Readings that arrive after newer ones are ordered before them, also for doubles in the same batch."""
    ledger = ledger_of([reading(100, seconds=600)], NOON + 600)
    ledger.add([reading(90, seconds=0), reading(90, seconds=10), reading(95, seconds=300)], NOON + 600)
    assert [kept.mg_dl for kept in ledger.readings] == [90, 95, 100]
    assert [ledger.delta(kept) for kept in ledger.readings] == [None, 5, 5]
