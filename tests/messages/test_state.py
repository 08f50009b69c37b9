"""A reading as subscribers get it, and that nobody ever sees an old one as current."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt.messages.bridge import bridge_info, bridge_offline, bridge_online
from dexcom2mqtt.messages.days import days_message
from dexcom2mqtt.messages.history import history_message
from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.state import (
    State,
    account_cleared,
    fresh_messages,
    reading_message,
    stale,
    stale_messages,
    state_of,
    unavailable,
    without_reading,
)
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.topics import STATE_KEYS
from tests.support.builders import account, property_of, reading
from tests.support.payloads import IN_MG_DL, KEYS, SOURCE, TOPICS, parsed, readings, typed

if TYPE_CHECKING:
    from dexcom2mqtt.readings import Reading, Unit

STATE_TOPIC = "home/dexcom/anna/state"
AVAILABILITY_TOPIC = "home/dexcom/anna/availability"
KEY_TOPICS = [f"home/dexcom/anna/{key}" for key in KEYS]
IN_MMOL_L = IN_MG_DL | {"value": 4.0, "unit": "mmol/L", "delta": -0.5}
NULLS = dict.fromkeys(KEYS, None) | {
    "unit": "mg/dL",
    "measurement_timestamp": "2025-04-19T08:00:00.000-04:00",
    "date": 1745064000000,
}

units = st.sampled_from(["mg/dL", "mmol/L"])
deltas = st.integers(-361, 361) | st.none()


def texts(sent: list[Message]) -> dict[str, str]:
    """Map each key to its bare text."""
    return {key: message.payload for message in sent for key in KEYS if message.topic == f"home/dexcom/anna/{key}"}


# --- topics ------------------------------------------------------------------------------------------------


def test_topics_are_below_the_base() -> None:
    """Every topic is below the base topic, and an account's topics are below its key."""
    assert TOPICS.bridge_state == "home/dexcom/bridge/state"
    assert TOPICS.bridge_info == "home/dexcom/bridge/info"
    assert TOPICS.of("anna", "state") == STATE_TOPIC
    assert TOPICS.sync("home_dexcom") == "home/dexcom/bridge/sync/home_dexcom"


def test_all_but_the_stream_is_retained() -> None:
    """Later subscribers get everything except the readings of the stream."""
    retained = [
        *fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0),
        *stale_messages(TOPICS, "anna", IN_MG_DL),
        bridge_online(TOPICS, 180.0),
        bridge_offline(TOPICS),
        bridge_info(TOPICS, version="1", started_at=None, protocol=None, accounts=[]),
        status_message(TOPICS, "anna", Status()),
        history_message(TOPICS, "anna", "0123abcd", []),
    ]
    assert all(message.retain for message in retained)
    assert not reading_message(TOPICS, "anna", IN_MG_DL, backfill=False).retain


# --- state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "expected"), [("mg/dL", IN_MG_DL), ("mmol/L", IN_MMOL_L)])
def test_state_is_as_promised(unit: Unit, expected: State) -> None:
    """A state has exactly the keys of the contract, in their order, each with its type."""
    state = state_of(reading(72, offset_min=-240), -9, account(unit))
    assert typed(state) == typed(expected)
    assert list(STATE_KEYS) == list(State.__annotations__) == KEYS


@pytest.mark.parametrize(
    ("unit", "value", "delta"), [("mg/dL", 100, 0), ("mmol/L", 5.6, 0.0), ("mg/dL", 100, None), ("mmol/L", 5.6, None)]
)
def test_value_and_delta_are_in_the_accounts_unit(unit: Unit, value: float, delta: float | None) -> None:
    """An unchanged value has a delta of 0 in mg/dL and 0.0 in mmol/L; an unknown delta is null."""
    state = state_of(reading(100), None if delta is None else 0, account(unit))
    assert (state["value"], state["unit"], state["delta"]) == (value, unit, delta)
    assert json.dumps(state["delta"]) == json.dumps(delta)


@pytest.mark.parametrize(
    ("mg_dl", "out_of_range", "name"), [(39, "low", "very_low"), (401, "high", "very_high"), (100, None, "in_range")]
)
def test_limits_of_the_sensor_are_marked(mg_dl: int, out_of_range: str | None, name: str) -> None:
    """A value at the sensor's limit is sent unchanged, and marked as a limit."""
    state = state_of(reading(mg_dl), None, account())
    assert (state["mg_dl"], state["out_of_range"], state["range"]) == (mg_dl, out_of_range, name)


def test_range_is_by_the_accounts_limits() -> None:
    """The range follows from the limits of this account, in mg/dL whatever its unit."""
    limits = (60, 80, 140, 200)
    assert state_of(reading(70), None, account("mmol/L", limits))["range"] == "low"
    assert state_of(reading(141), None, account("mmol/L", limits))["range"] == "high"


def test_no_trend_is_null() -> None:
    """If Share sends no trend, its name, arrow and description are null, and its number is 0."""
    state = state_of(reading(direction="None"), None, account())
    assert [state[key] for key in ("trend", "trend_number", "direction", "arrow", "description")] == [
        None,
        0,
        "None",
        None,
        None,
    ]


def test_stale_state_keeps_its_time() -> None:
    """In a stale state everything is null except the time of the reading and the unit."""
    assert typed(stale(IN_MG_DL)) == typed(NULLS)


def test_state_without_a_reading() -> None:
    """Without any reading, the state has all keys, and only the unit is not null."""
    state = without_reading(account("mmol/L"))
    assert typed(state) == typed(dict.fromkeys(KEYS, None) | {"unit": "mmol/L"})


# --- what is published -------------------------------------------------------------------------------------


def test_fresh_state_comes_before_availability() -> None:
    """A reading is published as state, then key by key, and last as available."""
    sent = fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0)
    assert [message.topic for message in sent] == [STATE_TOPIC, *KEY_TOPICS, AVAILABILITY_TOPIC]
    assert typed(parsed(sent[0])) == typed(IN_MG_DL)
    assert sent[-1].payload == "online"


@pytest.mark.parametrize(
    ("state", "bare"),
    [
        (IN_MG_DL, {"value": "72", "delta": "-9"}),
        (IN_MMOL_L, {"value": "4.0", "delta": "-0.5", "unit": "mmol/L"}),
        (
            IN_MG_DL | {"trend": None, "arrow": None, "description": None, "delta": None},
            {"value": "72", "trend": "unknown", "arrow": "unknown", "description": "unknown", "delta": "unknown"},
        ),
    ],
)
def test_keys_are_bare_text(state: State, bare: dict[str, str]) -> None:
    """Each key's topic has the value of the JSON without quotes, and unknown for null."""
    expected = {
        "unit": "mg/dL",
        "mg_dl": "72",
        "mmol_l": "4.0",
        "out_of_range": "unknown",
        "trend": "steady",
        "trend_number": "4",
        "direction": "Flat",
        "arrow": "→",
        "description": "steady",
        "range": "in_range",
        "measurement_timestamp": "2025-04-19T08:00:00.000-04:00",
        "date": "1745064000000",
    }
    assert texts(fresh_messages(TOPICS, "anna", state, 1000.0)) == expected | bare


def test_json_is_readable() -> None:
    """Arrows are not escaped in the JSON."""
    assert "→" in fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0)[0].payload


def test_stale_state_comes_after_availability() -> None:
    """First comes the availability, then the state and its keys, and nothing expires."""
    sent = stale_messages(TOPICS, "anna", IN_MG_DL)
    assert [message.topic for message in sent] == [AVAILABILITY_TOPIC, STATE_TOPIC, *KEY_TOPICS]
    assert sent[0].payload == "offline"
    assert typed(parsed(sent[1])) == typed(NULLS)
    assert {key: text for key, text in texts(sent).items() if text != "unknown"} == {
        "unit": "mg/dL",
        "measurement_timestamp": "2025-04-19T08:00:00.000-04:00",
        "date": "1745064000000",
    }
    assert all(message.expires_at is None and message.successor is None for message in sent)


def test_fresh_becomes_stale() -> None:
    """All messages of a fresh state expire at the same time, and their successors are those of a stale one."""
    fresh = fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0)
    for message in fresh:
        assert message.expires_at is not None
        assert 999.9 <= message.expires_at <= 1000.0
        assert message.successor is not None
        assert message.successor.topic == message.topic
    successors = {message.topic: message.successor for message in fresh}
    assert successors == {message.topic: message for message in stale_messages(TOPICS, "anna", IN_MG_DL)}


def test_unavailable_lasts() -> None:
    """The message that there is no current reading does not expire."""
    assert unavailable(TOPICS, "anna") == Message(AVAILABILITY_TOPIC, "offline")


@given(taken=readings, delta=deltas, unit=units)
@property_of
def test_every_reading_is_published_alike(taken: Reading, delta: int | None, unit: Unit) -> None:
    """Every reading gives valid JSON with all keys in order, and the same values as bare texts, all in UTF-8."""
    state = state_of(taken, delta, account(unit))
    whole, *keys, availability = fresh_messages(TOPICS, "anna", state, 1000.0)
    assert typed(parsed(whole)) == typed(state)
    assert list(state) == KEYS
    assert [message.topic for message in keys] == KEY_TOPICS
    for message, value in zip(keys, state.values(), strict=True):
        assert message.payload.encode()
        assert message.payload == (
            "unknown" if value is None else value if isinstance(value, str) else json.dumps(value)
        )
    assert availability.payload == "online"
    assert (unit == "mmol/L") is isinstance(state["value"], float)


# --- how they go together with the mirror ------------------------------------------------------------------


def test_freshness_ends_in_order() -> None:
    """When a reading becomes stale, first the availability changes, then the state, then its keys."""
    mirror = Mirror(last=TOPICS.bridge_state)
    mirror.put(fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0))
    mirror.take(990.0, 100)
    assert mirror.take(999.0, 100) == []
    assert mirror.take(1000.0, 100) == stale_messages(TOPICS, "anna", IN_MG_DL)


def test_a_stale_state_is_never_sent_as_fresh() -> None:
    """A state that is stale by the time it can be sent is sent as stale, in that order."""
    mirror = Mirror(last=TOPICS.bridge_state)
    mirror.put(fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0))
    assert mirror.take(1000.5, 100) == stale_messages(TOPICS, "anna", IN_MG_DL)


@pytest.mark.parametrize("moved", [-0.7, -0.2, 0.0, 0.2, 0.7])
def test_freshness_ends_in_order_after_a_correction(moved: float) -> None:
    """If a late reading changes the delta, and the time a little, freshness still ends in order."""
    mirror = Mirror(last=TOPICS.bridge_state)
    corrected = IN_MG_DL | {"delta": 3}
    mirror.put(fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0))
    mirror.put(fresh_messages(TOPICS, "anna", corrected, 1000.0 + moved))
    mirror.take(990.0, 100)
    sent = [message for tenth in range(9900, 10100) for message in mirror.take(tenth / 10, 100)]
    assert sent == stale_messages(TOPICS, "anna", corrected)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 9),
            st.sampled_from(["reading", "heartbeat", "take", "take", "reconnect"]),
            st.integers(1, 40),
        ),
        max_size=40,
    )
)
@example([(1, "reading", 6), (1, "heartbeat", 1), (1, "take", 40), (9, "reconnect", 1), (1, "take", 40)])
@property_of
def test_nobody_sees_an_old_number_become_current(steps: list[tuple[int, str, int]]) -> None:
    """On a broker without expiry, after each message: if both topics say online, the state is fresh."""
    mirror = Mirror(last=TOPICS.bridge_state)
    broker = {message.topic: message for message in (bridge_offline(TOPICS), unavailable(TOPICS, "anna"))}
    now = 0.0

    def both_online() -> bool:
        return broker[TOPICS.bridge_state].payload == broker[AVAILABILITY_TOPIC].payload == "online"

    for passed, step, count in steps:
        now += passed
        if step == "reading":
            mirror.put(fresh_messages(TOPICS, "anna", IN_MG_DL | {"value": count}, now + count))
        elif step == "heartbeat":
            mirror.put([bridge_online(TOPICS, now + 1e6)])
        elif step == "reconnect":
            broker[TOPICS.bridge_state] = bridge_offline(TOPICS)  # the last will
            mirror.send_all()
        for message in mirror.take(now, count) if step == "take" else []:
            were_online = both_online()
            broker[message.topic] = message
            if both_online():
                state = broker[STATE_TOPIC]
                assert state.expires_at is not None
                assert were_online or state.expires_at > now


# --- what else there is of an account ----------------------------------------------------------------------


def test_an_account_is_cleared_completely() -> None:
    """Every retained topic of an account is emptied, its availability first."""
    state = state_of(reading(), None, account())
    published = [
        *fresh_messages(TOPICS, "anna", state, 1.0),
        history_message(TOPICS, "anna", SOURCE, []),
        status_message(TOPICS, "anna", Status()),
        days_message(TOPICS, "anna", SOURCE, {}),
        Message(TOPICS.of("anna", "statistics"), "{}"),
    ]
    cleared = account_cleared(TOPICS, "anna")
    assert {message.topic for message in cleared} == {message.topic for message in published}
    assert cleared[0].topic == TOPICS.of("anna", "availability")
    assert all(message.payload == "" and message.retain for message in cleared)


@pytest.mark.parametrize("backfill", [True, False])
def test_reading_of_the_stream(*, backfill: bool) -> None:
    """Every reading is published as its state with ``backfill``, and never expires."""
    message = reading_message(TOPICS, "anna", IN_MG_DL, backfill=backfill)
    assert typed(parsed(message)) == typed(IN_MG_DL | {"backfill": backfill})
    assert (message.topic, message.expires_at) == ("home/dexcom/anna/reading", None)
