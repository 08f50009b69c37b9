"""The days: counted, written, read back, joined to an earlier count, and ignored if they are not ours."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dexcom2mqtt.messages.days import Tally, counted, day_of, days_message, kept, parse_days, resumed
from dexcom2mqtt.messages.message import ForeignError, FutureError
from tests.support.builders import NOON, any_json, property_of, reading
from tests.support.payloads import SOURCE, TOPICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dexcom2mqtt.messages.days import Days
    from dexcom2mqtt.readings import Reading

LIMITS = (54, 70, 180, 250)
NARROW = (54, 70, 140, 250)
DAYS = 86_400
TODAY = day_of(NOON, 0)
GOOD = {
    "day": "2025-04-19",
    "ranges": [54, 70, 180, 250],
    "n": 2,
    "sum": 300,
    "squares": 50_000,
    "bands": [0, 0, 1, 1, 0],
}


def written(days: Days, most_bytes: float = math.inf) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(days_message(TOPICS, "anna", SOURCE, days, most_bytes).payload)["days"]
    return found


def on(day: int, values: Sequence[int]) -> list[Reading]:
    """Return readings with these values, that many days after today."""
    return [reading(value, seconds=day * DAYS + n) for n, value in enumerate(values)]


def numbers(days: Days) -> dict[int, int]:
    """Return the number of readings by day, with today as 0."""
    return {number - TODAY: day.readings for number, day in days.items()}


# --- counting ----------------------------------------------------------------------------------------------


def test_days_are_as_promised() -> None:
    """A day has exactly the keys of the contract; the days come oldest first."""
    days = counted({}, [*on(0, [39, 401]), *on(-1, [53, 54, 69, 70, 180, 181, 250, 251])], LIMITS)
    message = days_message(TOPICS, "anna", SOURCE, days)
    assert (message.topic, message.retain, message.expires_at) == ("home/dexcom/anna/days", True, None)
    assert json.loads(message.payload) == {
        "version": 1,
        "source": SOURCE,
        "days": [
            {
                "day": "2025-04-18",
                "ranges": [54, 70, 180, 250],
                "n": 8,
                "sum": 1108,
                "squares": 53**2 + 54**2 + 69**2 + 70**2 + 180**2 + 181**2 + 250**2 + 251**2,
                "bands": [1, 2, 2, 2, 1],
            },
            {
                "day": "2025-04-19",
                "ranges": [54, 70, 180, 250],
                "n": 2,
                "sum": 440,
                "squares": 39**2 + 401**2,
                "bands": [1, 0, 0, 0, 1],
            },
        ],
    }


def test_a_day_is_the_wearers() -> None:
    """The same instant may be another day further east; a late reading counts for the day on which it was taken."""
    late = reading(100, seconds=-DAYS, offset_min=0)
    days = counted({}, [reading(100, offset_min=780), reading(100, offset_min=-780), reading(100), late], LIMITS)
    assert numbers(days) == {-1: 2, 0: 1, 1: 1}


def test_90_days_are_kept() -> None:
    """The 91st day drops the oldest; days later than today, after a journey west, stay."""
    days = counted({}, [reading(100, seconds=-DAYS * n) for n in range(90)], LIMITS)
    assert len(days) == 90
    assert sorted(numbers(counted(days, on(1, [100]), LIMITS))) == list(range(-88, 2))
    assert sorted(numbers(kept(days, TODAY - 1))) == list(range(-89, 1))
    assert numbers(counted(days, on(-90, [100]), LIMITS)) == numbers(days)


def test_a_late_reading_is_counted_by_the_ranges_of_its_day() -> None:
    """A day keeps the ranges it began with."""
    days = counted(counted({}, on(-1, [150]), LIMITS), [*on(-1, [150])[:1], *on(0, [150])], NARROW)
    assert [(day["ranges"][2], day["bands"]) for day in written(days)] == [
        (180, [0, 0, 2, 0, 0]),
        (140, [0, 0, 0, 1, 0]),
    ]


# --- continuing after a restart ----------------------------------------------------------------------------


def test_a_restart_continues_counting() -> None:
    """The count stays, the history is not counted again, and days that are too old are dropped."""
    earlier = counted({}, [*on(-95, [100]), *on(-1, [100, 100]), *on(0, [100])], LIMITS)
    tally = resumed(earlier, on(0, [100]), LIMITS, TODAY)
    assert numbers(tally.days) == {-1: 2, 0: 1}
    assert numbers(tally.count(reading(100, seconds=-DAYS)).days) == {-1: 3, 0: 1}


@pytest.mark.parametrize("earlier", [None, {}])
def test_without_an_earlier_count_it_begins_with_the_history(earlier: Days | None) -> None:
    """So the first start of a version that counts days has one day at once."""
    tally = resumed(earlier, [*on(-1, [100]), *on(0, [100, 100])], LIMITS, TODAY)
    assert numbers(tally.days) == {-1: 1, 0: 2}
    assert numbers(resumed(earlier, None, LIMITS, TODAY).days) == {}


def test_changed_ranges_count_today_again() -> None:
    """Today is counted again from the history; earlier days keep their ranges."""
    earlier = counted({}, [*on(-1, [150, 150]), *on(0, [150, 150, 160])], LIMITS)
    tally = resumed(earlier, [*on(-1, [150]), *on(0, [150, 160])], NARROW, TODAY)
    assert [(day["n"], day["ranges"][2], day["bands"]) for day in written(tally.days)] == [
        (2, 180, [0, 0, 2, 0, 0]),
        (2, 140, [0, 0, 0, 2, 0]),
    ]


def test_a_lost_history_counts_no_day_twice() -> None:
    """Share then returns a day of readings: today is counted again from them, and earlier days stay unchanged."""
    earlier = counted({}, [*on(-2, [100]), *on(-1, [100, 100]), *on(0, [100, 100])], LIMITS)
    tally = resumed(earlier, None, LIMITS, TODAY)
    for each in [*on(-1, [100, 100]), *on(0, [100, 100, 100])]:
        tally = tally.count(each)
    assert numbers(tally.days) == {-2: 1, -1: 2, 0: 3}


def test_an_earlier_count_that_arrives_late_is_joined() -> None:
    """It is added to the count since the start; the history, which it includes, is not counted again."""
    history = on(0, [100, 110])
    earlier = counted({}, [*on(-1, [100]), *history], LIMITS)
    begun = resumed(None, history, LIMITS, TODAY)
    waiting = Tally(LIMITS, begun.days, waiting=(tuple(history), ()))
    since = [reading(150, seconds=300), reading(160, seconds=DAYS)]
    for each in since:
        waiting = waiting.count(each)
    assert numbers(waiting.days) == {0: 3, 1: 1}
    joined = waiting.joined(earlier, TODAY)
    assert joined == Tally(LIMITS, counted(earlier, since, LIMITS))
    assert joined.joined(earlier, TODAY) is not None
    assert joined.joined(earlier, TODAY).days == joined.days
    given_up = waiting.joined(None, TODAY)
    assert (given_up.days, given_up.waiting) == (waiting.days, None)


@property_of
@given(st.lists(st.integers(39, 401), max_size=8), st.lists(st.integers(39, 401), max_size=8), st.integers(0, 8))
def test_a_late_count_makes_no_difference(before: list[int], since: list[int], split: int) -> None:
    """Whether the earlier count arrives in time or late, the sums are the same, even if the ranges changed."""
    history = on(0, before)
    earlier = counted({}, [*on(-1, before), *history], LIMITS)
    later = [reading(value, seconds=300 * n - 3600) for n, value in enumerate(since)]
    in_time = resumed(earlier, history, NARROW, TODAY)
    late = Tally(NARROW, counted({}, history, NARROW), waiting=(tuple(history), ()))
    for each in later[:split]:
        in_time, late = in_time.count(each), late.count(each)
    late = late.joined(earlier, TODAY)
    for each in later[split:]:
        in_time, late = in_time.count(each), late.count(each)
    assert late == in_time


# --- written and read back ---------------------------------------------------------------------------------


@property_of
@given(st.dictionaries(st.integers(-89, 0), st.lists(st.integers(39, 2000), min_size=1, max_size=5), max_size=20))
def test_days_are_read_back(values: dict[int, list[int]]) -> None:
    """A restart reads back exactly the days that were written."""
    days = counted({}, [each for day, some in values.items() for each in on(day, some)], LIMITS)
    payload = days_message(TOPICS, "anna", SOURCE, days).payload.encode()
    assert parse_days(payload, SOURCE, NOON) == days


@pytest.mark.parametrize("most", [12_000, 5000, 300, 20])
def test_a_broker_that_accepts_less_gets_the_newest(most: int) -> None:
    """As many days as fit, and never more bytes."""
    days = counted({}, [reading(100, seconds=-DAYS * n) for n in range(90)], LIMITS)
    message = days_message(TOPICS, "anna", SOURCE, days, most)
    left = json.loads(message.payload)["days"]
    assert len(message.payload) <= most or not left
    assert left == (written(days)[-len(left) :] if left else [])
    if left and len(left) < 90:
        more = days_message(TOPICS, "anna", SOURCE, dict(sorted(days.items())[-len(left) - 2 :]))
        assert len(more.payload) > most


def test_days_across_the_date_line_are_not_in_the_future() -> None:
    """In Kiribati it is already tomorrow."""
    days = counted({}, [reading(100, offset_min=840)], LIMITS)
    payload = days_message(TOPICS, "anna", SOURCE, days).payload.encode()
    assert numbers(parse_days(payload, SOURCE, NOON)) == {1: 1}
    with pytest.raises(FutureError):
        parse_days(payload, SOURCE, NOON - DAYS)


def days_of(**changes: object) -> bytes:
    return json.dumps({"version": 1, "source": SOURCE, "days": [GOOD], **changes}).encode()


def entry_of(**changes: object) -> bytes:
    return days_of(days=[GOOD | changes])


FOREIGN = {
    "garbage": (b"\xff\xfe\0", "not a JSON object"),
    "half": (days_of()[:-1], "not a JSON object"),
    "a list": (b"[]", "not a JSON object"),
    "huge": (days_of() + b" " * 262_144, "far too large"),
    "no version": (days_of(version=None), "another version"),
    "the next version": (days_of(version=2), "another version"),
    "another person": (days_of(source="ffffffff"), "another person"),
    "no days": (days_of(days=None), "not a list"),
    "a year": (days_of(days=[GOOD] * 181), "not a list of a sensible length"),
    "a day that is none": (days_of(days=[7]), "not an object"),
    "a day twice": (days_of(days=[GOOD, GOOD]), "not in order"),
    "no order": (days_of(days=[GOOD, GOOD | {"day": "2025-04-18"}]), "not in order"),
    "no date": (entry_of(day=None), "not a date"),
    "a date in words": (entry_of(day="today"), "not a date"),
    "a date in short": (entry_of(day="20250419"), "not a date"),
    "before all time": (entry_of(day="1969-12-31"), "not a date"),
    "no count": (entry_of(n=None), "lacks a number"),
    "a count that is true": (entry_of(n=True, bands=[0, 0, 1, 0, 0]), "lacks a number"),
    "a broken sum": (entry_of(sum=300.0), "lacks a number"),
    "nothing counted": (entry_of(n=0, sum=0, squares=0, bands=[0] * 5), "makes no sense"),
    "an absurd count": (entry_of(n=10_001, sum=10**6, squares=10**9, bands=[0, 0, 10_001, 0, 0]), "makes no sense"),
    "bands of others": (entry_of(bands=[0, 0, 1, 0, 0]), "makes no sense"),
    "four bands": (entry_of(bands=[0, 0, 1, 1]), "lacks a number"),
    "a negative band": (entry_of(bands=[0, 0, 3, -1, 0]), "makes no sense"),
    "no ranges": (entry_of(ranges=None), "lacks a number"),
    "ranges that fall": (entry_of(ranges=[54, 70, 250, 180]), "makes no sense"),
    "a range beyond all": (entry_of(ranges=[54, 70, 180, 1001]), "makes no sense"),
    "a sum too small": (entry_of(sum=77), "makes no sense"),
    "a sum too large": (entry_of(sum=4001, squares=10**7), "makes no sense"),
    "squares too small": (entry_of(squares=44_999), "makes no sense"),
    "squares too large": (entry_of(squares=600_001), "makes no sense"),
    "the future": (entry_of(day="2025-04-21"), "in the future"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_days_are_ignored_entirely(name: str) -> None:
    """Days that are not clearly ours raise ForeignError, even if a part is valid; the text says why."""
    payload, why = FOREIGN[name]
    with pytest.raises(ForeignError, match=why):
        parse_days(payload, SOURCE, NOON)


def test_our_days_are_accepted() -> None:
    """The days from which the table of foreign ones is made are ours."""
    assert numbers(parse_days(days_of(), SOURCE, NOON)) == {0: 2}


@settings(property_of, max_examples=500)
@given(
    st.binary(max_size=200)
    | any_json.map(lambda value: json.dumps(value).encode())
    | st.lists(st.fixed_dictionaries({key: st.just(value) | any_json for key, value in GOOD.items()}), max_size=3).map(
        lambda entries: days_of(days=entries)
    )
)
@example(days_of())
def test_any_days_are_read_entirely_or_rejected(payload: bytes) -> None:
    """Reading any payload returns everything in it, or raises ForeignError."""
    try:
        taken = parse_days(payload, SOURCE, NOON)
    except ForeignError:
        return
    assert written(taken) == json.loads(payload)["days"]
