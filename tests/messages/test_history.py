"""The history: written, read back, and ignored if it is not ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dexcom2mqtt.messages.bridge import parse_info
from dexcom2mqtt.messages.history import history_message, parse_history, source_of
from dexcom2mqtt.messages.message import ForeignError, is_ours
from dexcom2mqtt.messages.state import reading_message, state_of
from dexcom2mqtt.messages.status import parse_status
from dexcom2mqtt.readings import Reading
from tests.support.builders import NOON, account, any_json, property_of, reading
from tests.support.payloads import SOURCE, TOPICS, any_payload, readings


def test_doubtful_readings_are_read_back_as_such() -> None:
    """Doubtful readings are read back separately from the right ones, even with the same stamp."""
    right, false = [reading(100), reading(110, seconds=300)], [reading(90, seconds=300), reading(91, seconds=20)]
    payload = history_message(TOPICS, "anna", SOURCE, right, false).payload
    assert [entry.get("doubtful", False) for entry in json.loads(payload)["readings"]] == [False, True, False, True]
    taken = parse_history(payload.encode(), SOURCE, NOON + 600)
    assert taken.readings == tuple(right)
    assert taken.doubtful == (false[1], false[0])


ENTRY = {"date": NOON * 1000, "mg_dl": 100, "direction": "Flat", "offset_min": -240}
HISTORY = {"version": 1, "source": SOURCE, "readings": [ENTRY]}
NO_LISTS: list[object] = [None, {}, "hunter2", 3]
NO_ENTRIES: list[object] = [None, [], "hunter2", {}]


def without(entry: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name != key}


def test_history_is_as_promised() -> None:
    """A history has exactly the keys of the contract, its readings in the order given."""
    kept = [reading(90, seconds=-300, direction="NONE?"), reading(100, offset_min=-240)]
    message = history_message(TOPICS, "anna", SOURCE, kept)
    assert (message.topic, message.expires_at) == ("home/dexcom/anna/history", None)
    assert json.loads(message.payload) == {
        "version": 1,
        "source": SOURCE,
        "readings": [
            {"date": NOON * 1000 - 300_000, "mg_dl": 90, "direction": "NONE?", "offset_min": 0},
            {"date": NOON * 1000, "mg_dl": 100, "direction": "Flat", "offset_min": -240},
        ],
    }


def test_source_identifies_a_person_without_revealing_who() -> None:
    """The source is the same after a restart, differs between persons, and contains no part of a name."""
    source = source_of("us", "anna@example.com")
    assert source == hashlib.sha256(b"us:anna@example.com").hexdigest()[:8]
    others = {source_of("ous", "anna@example.com"), source_of("us", "ben@example.com")}
    assert len({source, *others}) == 3


@given(st.lists(readings, max_size=30))
@property_of
def test_history_is_read_back(kept: list[Reading]) -> None:
    """A restart reads back all readings of a history, whatever trend words Share used."""
    message = history_message(TOPICS, "anna", SOURCE, kept)
    assert list(parse_history(message.payload.encode(), SOURCE, 4_102_444_800.0).readings) == kept


def test_longest_history_is_read_back() -> None:
    """A day of readings, each uploaded twice, is not too long."""
    kept = [reading(100 + slot % 2, seconds=slot * 150, direction="RateOutOfRange") for slot in range(576)]
    message = history_message(TOPICS, "anna", SOURCE, kept)
    assert list(parse_history(message.payload.encode(), SOURCE, NOON + 86400).readings) == kept


@pytest.mark.parametrize(("ahead", "is_ours"), [(0, True), (300, True), (301, False), (10**8, False)])
def test_history_in_the_future_is_not_ours(ahead: int, *, is_ours: bool) -> None:
    """A history with readings more than 5 minutes in the future is ignored entirely."""
    payload = history_message(TOPICS, "anna", SOURCE, [reading(), reading(seconds=ahead)]).payload.encode()
    if is_ours:
        assert parse_history(payload, SOURCE, NOON).readings == (reading(), reading(seconds=ahead))
    else:
        with pytest.raises(ForeignError):
            parse_history(payload, SOURCE, NOON)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hunter2",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 50_000,
        b'{"a":' * 50_000,
        *(json.dumps(HISTORY | change).encode() for change in ({"version": 2}, {"version": "1"}, {"version": None})),
        *(json.dumps(HISTORY | change).encode() for change in ({"source": "hunter2"}, {"source": None})),
        *(json.dumps(without(HISTORY, key)).encode() for key in HISTORY),
        *(json.dumps(HISTORY | {"readings": no_list}).encode() for no_list in NO_LISTS),
        *(json.dumps(HISTORY | {"readings": [ENTRY, no_entry]}).encode() for no_entry in NO_ENTRIES),
        *(json.dumps(HISTORY | {"readings": [without(ENTRY, key)]}).encode() for key in ENTRY),
        *(
            json.dumps(HISTORY | {"readings": [ENTRY, ENTRY | change]}).encode()
            for change in (
                {"date": "1745064000000"},
                {"date": 1745064000000.0},
                {"date": -1},
                {"date": 10**30},
                {"date": True},
                {"mg_dl": None},
                {"mg_dl": 38},
                {"mg_dl": 100.5},
                {"mg_dl": 10**30},
                {"mg_dl": float("nan")},
                {"direction": None},
                {"direction": 4},
                {"direction": "hunter2" * 1000},
                {"direction": "\ud800"},
                {"offset_min": None},
                {"offset_min": 10**30},
                {"offset_min": -10_000},
            )
        ),
        json.dumps(HISTORY).encode() + b" " * 2**21,
    ],
)
def test_history_that_is_not_ours(payload: bytes) -> None:
    """A history that is not clearly ours is ignored entirely, and the error does not quote it."""
    with pytest.raises(ForeignError) as refused:
        parse_history(payload, SOURCE, NOON)
    assert "hunter2" not in str(refused.value)


@given(
    st.binary()
    | any_json.map(lambda value: json.dumps(value).encode())
    | st.lists(any_json | st.fixed_dictionaries({key: st.just(value) | any_json for key, value in ENTRY.items()})).map(
        lambda entries: json.dumps(
            HISTORY | {"readings": entries, "rejected": entries, "schema_version": 1, "accounts": entries}
        ).encode()
    )
)
@property_of
def test_any_retained_payload_is_survived(payload: bytes) -> None:
    """Any payload retained as history or status is either read or raises ForeignError; the values read are valid."""
    with contextlib.suppress(ForeignError):
        assert all(at >= 0 for at in parse_status(payload).rejected)
    with contextlib.suppress(ForeignError):
        assert all(key.replace("_", "").isalnum() for key in parse_info(payload).accounts)
    assert is_ours("anna", "status", payload) in {True, False}
    with contextlib.suppress(ForeignError):
        for taken in parse_history(payload, SOURCE, NOON).readings:
            state = state_of(taken, None, account())
            assert reading_message(TOPICS, "anna", state, backfill=True).payload.encode()


readings_of_share = st.builds(
    Reading,
    mg_dl=st.integers(39, 2000),
    direction=st.text(st.characters(exclude_categories=["Cs"]), max_size=64),
    date=st.integers(1, NOON * 1000 + 300_000),
    offset_min=st.integers(-840, 840),
)


@property_of
@given(st.lists(readings_of_share, max_size=20))
def test_a_history_can_be_read_back(kept: list[Reading]) -> None:
    """Reading a history back returns its readings unchanged."""
    history = history_message(TOPICS, "anna", SOURCE, kept)
    assert list(parse_history(history.payload.encode(), SOURCE, NOON).readings) == kept


def test_a_whole_day_is_not_too_large() -> None:
    """A day with two readings in each slot, all with the longest word, is read back."""
    day = [reading(2000, seconds=-150 * slot, direction="𝄞" * 64, offset_min=-840) for slot in range(576)]
    history = history_message(TOPICS, "anna", SOURCE, day)
    assert list(parse_history(history.payload.encode(), SOURCE, NOON).readings) == day


GOOD = {"date": NOON * 1000, "mg_dl": 100, "direction": "Flat", "offset_min": 0}


def history_of(**changes: object) -> bytes:
    return json.dumps({"version": 1, "source": SOURCE, "readings": [GOOD], **changes}).encode()


def entry_of(**changes: object) -> bytes:
    """Write a history with a good first reading and a changed second one."""
    return history_of(readings=[GOOD, {**GOOD, **changes}])


FOREIGN = {
    "nothing": (b"", "not a JSON object"),
    "garbage": (b"\xff\xfe\0", "not a JSON object"),
    "half": (history_of()[:-1], "not a JSON object"),
    "a list": (b"[]", "not a JSON object"),
    "nested": (b"[" * 100_000, "not a JSON object"),
    "nested keys": (b'{"version":' * 20_000, "not a JSON object"),
    "a huge number": (b'{"version":' + b"1" * 5000 + b"}", "not a JSON object"),
    "huge": (b" " * 262_145, "far too large"),
    "huge and good": (history_of() + b" " * 262_144, "far too large"),
    "no version": (history_of(version=None), "another version"),
    "the next version": (history_of(version=2), "another version"),
    "a version in words": (history_of(version="1"), "another version"),
    "another person": (history_of(source="ffffffff"), "another person"),
    "nobody": (history_of(source=None), "another person"),
    "no readings": (history_of(readings=None), "not a list"),
    "readings by key": (history_of(readings={"0": GOOD}), "not a list"),
    "a reading that is none": (history_of(readings=[GOOD, 7]), "not an object"),
    "no date": (entry_of(date=None), "lacks a value"),
    "a date in words": (entry_of(date="now"), "lacks a value"),
    "a broken date": (entry_of(date=1.5), "lacks a value"),
    "a value that is true": (entry_of(mg_dl=True), "lacks a value"),
    "not a number": (entry_of(mg_dl=math.nan), "lacks a value"),
    "no direction": (entry_of(direction=None), "lacks a value"),
    "a zone that is none": (entry_of(offset_min=None), "lacks a value"),
    "an error code": (entry_of(mg_dl=38), "makes no sense"),
    "no glucose": (entry_of(mg_dl=2001), "makes no sense"),
    "before all time": (entry_of(date=0), "makes no sense"),
    "a huge date": (entry_of(date=10**30), "makes no sense"),
    "a long word": (entry_of(direction="x" * 65), "makes no sense"),
    "half a character": (entry_of(direction="\ud800"), "makes no sense"),
    "a zone off the earth": (entry_of(offset_min=841), "makes no sense"),
    "the future": (entry_of(date=NOON * 1000 + 300_001), "in the future"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_history_is_ignored_entirely(name: str) -> None:
    """A history that is not clearly ours raises ForeignError, even if a part is valid; the text says why."""
    payload, why = FOREIGN[name]
    with pytest.raises(ForeignError, match=why):
        parse_history(payload, SOURCE, NOON)


def test_our_history_is_accepted() -> None:
    """The history from which the table of foreign ones is made is ours, even up to five minutes in the future."""
    assert parse_history(history_of(), SOURCE, NOON).readings == (reading(100),)
    assert len(parse_history(entry_of(date=NOON * 1000 + 300_000), SOURCE, NOON).readings) == 2


@settings(property_of, max_examples=500)
@given(any_payload)
@example(history_of())
def test_any_history_is_read_entirely_or_rejected(payload: bytes) -> None:
    """Reading any payload returns everything in it, or raises ForeignError."""
    try:
        taken = parse_history(payload, SOURCE, NOON).readings
    except ForeignError:
        return
    history = history_message(TOPICS, "anna", SOURCE, taken)
    assert json.loads(history.payload)["readings"] == json.loads(payload)["readings"]
    assert all(0 < each.date <= (NOON + 300) * 1000 for each in taken)


def test_a_source_is_a_hash_of_region_and_user() -> None:
    """The source is 8 hex digits, regardless of case and spaces, and differs between regions and persons."""
    assert source_of("us", "anna@example.com") == hashlib.sha256(b"us:anna@example.com").hexdigest()[:8]
    assert source_of("us", " Anna@Example.com ") == source_of("us", "anna@example.com")
    others = [("ous", "anna@example.com"), ("us", "ben@example.com"), ("us", "+15550001111")]
    assert len({source_of(*who) for who in [("us", "anna@example.com"), *others]}) == 4
