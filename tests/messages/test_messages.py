"""Every topic and every payload, as subscribers may rely on them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt import messages
from dexcom2mqtt.messages import Message, Past
from dexcom2mqtt.mirror import Mirror
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.status import Status
from dexcom2mqtt.topics import STATE_KEYS, Topics
from tests.support.builders import NOON, account, any_json, any_text, property_of, reading

if TYPE_CHECKING:
    from dexcom2mqtt.messages import State
    from dexcom2mqtt.readings import Unit

TOPICS = Topics("home/dexcom")
STATE_TOPIC = "home/dexcom/anna/state"
AVAILABILITY_TOPIC = "home/dexcom/anna/availability"

KEYS = [
    "value",
    "unit",
    "mg_dl",
    "mmol_l",
    "out_of_range",
    "trend",
    "trend_number",
    "direction",
    "arrow",
    "description",
    "delta",
    "range",
    "measurement_timestamp",
    "date",
]
KEY_TOPICS = [f"home/dexcom/anna/{key}" for key in KEYS]

IN_MG_DL: State = {
    "value": 72,
    "unit": "mg/dL",
    "mg_dl": 72,
    "mmol_l": 4.0,
    "out_of_range": None,
    "trend": "steady",
    "trend_number": 4,
    "direction": "Flat",
    "arrow": "→",
    "description": "steady",
    "delta": -9,
    "range": "in_range",
    "measurement_timestamp": "2025-04-19T08:00:00.000-04:00",
    "date": 1745064000000,
}
IN_MMOL_L = IN_MG_DL | {"value": 4.0, "unit": "mmol/L", "delta": -0.5}
NULLS = dict.fromkeys(KEYS, None) | {
    "unit": "mg/dL",
    "measurement_timestamp": "2025-04-19T08:00:00.000-04:00",
    "date": 1745064000000,
}

units = st.sampled_from(["mg/dL", "mmol/L"])
readings = st.builds(
    Reading,
    mg_dl=st.integers(39, 401),
    direction=st.sampled_from(["Flat", "DoubleDown", "None", "NotComputable"]) | st.text(min_size=1, max_size=64),
    date=st.integers(1, 4_102_444_799_999),
    offset_min=st.integers(-840, 840),
)
deltas = st.integers(-361, 361) | st.none()


def parsed(message: Message) -> dict[str, object]:
    """Parse a payload strictly: no NaN, no infinity, valid UTF-8."""
    payload: dict[str, object] = json.loads(message.payload.encode(), parse_constant=pytest.fail)
    return payload


def typed(payload: dict[str, object]) -> list[tuple[str, object, type]]:
    """Tell 4.0 from 4 and the order of the keys, which == on dicts does not."""
    return [(key, value, type(value)) for key, value in payload.items()]


def texts(sent: list[Message]) -> dict[str, str]:
    """Map each key to its bare text."""
    return {key: message.payload for message in sent for key in KEYS if message.topic == f"home/dexcom/anna/{key}"}


# --- topics ------------------------------------------------------------------------------------------------


def test_names_topics_below_the_base() -> None:
    """Every topic is below the base topic, those of an account below its key."""
    assert TOPICS.bridge_state == "home/dexcom/bridge/state"
    assert TOPICS.bridge_info == "home/dexcom/bridge/info"
    assert TOPICS.of("anna", "state") == STATE_TOPIC
    assert TOPICS.sync("home_dexcom") == "home/dexcom/bridge/sync/home_dexcom"


def test_all_but_the_stream_is_retained() -> None:
    """Whoever comes later finds everything but the readings of the stream."""
    retained = [
        *messages.fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0),
        *messages.stale_messages(TOPICS, "anna", IN_MG_DL),
        messages.bridge_online(TOPICS, 180.0),
        messages.bridge_offline(TOPICS),
        messages.bridge_info(TOPICS, version="1", started_at=None, protocol=None, accounts=[]),
        messages.status_message(TOPICS, "anna", Status()),
        messages.history_message(TOPICS, "anna", "0123abcd", []),
    ]
    assert all(message.retain for message in retained)
    assert not messages.reading_message(TOPICS, "anna", IN_MG_DL, backfill=False).retain


# --- state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "expected"), [("mg/dL", IN_MG_DL), ("mmol/L", IN_MMOL_L)])
def test_state_is_as_promised(unit: Unit, expected: State) -> None:
    """A state has exactly the keys of the contract, in their order, each with its type."""
    state = messages.state_of(reading(72, offset_min=-240), -9, account(unit))
    assert typed(state) == typed(expected)
    assert list(STATE_KEYS) == KEYS


@pytest.mark.parametrize(
    ("unit", "value", "delta"), [("mg/dL", 100, 0), ("mmol/L", 5.6, 0.0), ("mg/dL", 100, None), ("mmol/L", 5.6, None)]
)
def test_value_and_delta_are_in_the_accounts_unit(unit: Unit, value: float, delta: float | None) -> None:
    """A delta of nothing is 0 in mg/dL and 0.0 in mmol/L, and null where there is none."""
    state = messages.state_of(reading(100), None if delta is None else 0, account(unit))
    assert (state["value"], state["unit"], state["delta"]) == (value, unit, delta)
    assert json.dumps(state["delta"]) == json.dumps(delta)


@pytest.mark.parametrize(
    ("mg_dl", "out_of_range", "name"), [(39, "low", "very_low"), (401, "high", "very_high"), (100, None, "in_range")]
)
def test_limits_of_the_sensor_are_told(mg_dl: int, out_of_range: str | None, name: str) -> None:
    """A value at the sensor's limit is sent as it is, and said to be a limit."""
    state = messages.state_of(reading(mg_dl), None, account())
    assert (state["mg_dl"], state["out_of_range"], state["range"]) == (mg_dl, out_of_range, name)


def test_range_is_by_the_accounts_limits() -> None:
    """The range is named by the limits of this account, in mg/dL whatever its unit."""
    limits = (60, 80, 140, 200)
    assert messages.state_of(reading(70), None, account("mmol/L", limits))["range"] == "low"
    assert messages.state_of(reading(141), None, account("mmol/L", limits))["range"] == "high"


def test_no_trend_is_null() -> None:
    """Where Share sends no trend, its name, arrow and description are null, and its number 0."""
    state = messages.state_of(reading(direction="None"), None, account())
    assert [state[key] for key in ("trend", "trend_number", "direction", "arrow", "description")] == [
        None,
        0,
        "None",
        None,
        None,
    ]


def test_stale_state_keeps_when_it_was() -> None:
    """Of a stale state all is null but when the reading was taken, and the unit."""
    assert typed(messages.stale(IN_MG_DL)) == typed(NULLS)


def test_state_without_a_reading() -> None:
    """Where no reading is known, the state has all keys, and only the unit is not null."""
    state = messages.without_reading(account("mmol/L"))
    assert typed(state) == typed(dict.fromkeys(KEYS, None) | {"unit": "mmol/L"})


# --- what is published -------------------------------------------------------------------------------------


def test_fresh_state_comes_before_availability() -> None:
    """A reading is published as state, then key by key, and last that it is available."""
    sent = messages.fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0)
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
    """Each key's topic holds what the JSON says without quotes, and unknown for null."""
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
    assert texts(messages.fresh_messages(TOPICS, "anna", state, 1000.0)) == expected | bare


def test_json_is_readable() -> None:
    """Arrows stand in the JSON as they are, not escaped."""
    assert "→" in messages.fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0)[0].payload


def test_stale_state_comes_after_availability() -> None:
    """First it is said that nothing is available, then the state and its keys follow, and nothing expires."""
    sent = messages.stale_messages(TOPICS, "anna", IN_MG_DL)
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
    """All of a fresh state expires at the same time, and into exactly what is published of a stale one."""
    fresh = messages.fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0)
    for message in fresh:
        assert message.expires_at is not None
        assert 999.9 <= message.expires_at <= 1000.0
        assert message.successor is not None
        assert message.successor.topic == message.topic
    successors = {message.topic: message.successor for message in fresh}
    assert successors == {message.topic: message for message in messages.stale_messages(TOPICS, "anna", IN_MG_DL)}


def test_unavailable_lasts() -> None:
    """That there is no current reading is said for as long as nothing else is."""
    assert messages.unavailable(TOPICS, "anna") == Message(AVAILABILITY_TOPIC, "offline")


@given(taken=readings, delta=deltas, unit=units)
@property_of
def test_every_reading_is_published_alike(taken: Reading, delta: int | None, unit: Unit) -> None:
    """For every reading: valid JSON with all keys in order, the bare texts the same values, all in UTF-8."""
    state = messages.state_of(taken, delta, account(unit))
    whole, *keys, availability = messages.fresh_messages(TOPICS, "anna", state, 1000.0)
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
    """When a reading grows stale: first availability, then the state, then its keys."""
    mirror = Mirror(last=TOPICS.bridge_state)
    mirror.put(messages.fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0))
    mirror.take(990.0, 100)
    assert mirror.take(999.0, 100) == []
    assert mirror.take(1000.0, 100) == messages.stale_messages(TOPICS, "anna", IN_MG_DL)


def test_what_is_stale_already_is_never_sent_as_fresh() -> None:
    """A state that is stale by the time it can be sent is sent as stale, and in that order."""
    mirror = Mirror(last=TOPICS.bridge_state)
    mirror.put(messages.fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0))
    assert mirror.take(1000.5, 100) == messages.stale_messages(TOPICS, "anna", IN_MG_DL)


@pytest.mark.parametrize("moved", [-0.7, -0.2, 0.0, 0.2, 0.7])
def test_freshness_ends_in_order_after_a_correction(moved: float) -> None:
    """Where a late reading changed the delta, and the time by a little, freshness still ends in order."""
    mirror = Mirror(last=TOPICS.bridge_state)
    corrected = IN_MG_DL | {"delta": 3}
    mirror.put(messages.fresh_messages(TOPICS, "anna", IN_MG_DL, 1000.0))
    mirror.put(messages.fresh_messages(TOPICS, "anna", corrected, 1000.0 + moved))
    mirror.take(990.0, 100)
    sent = [message for tenth in range(9900, 10100) for message in mirror.take(tenth / 10, 100)]
    assert sent == messages.stale_messages(TOPICS, "anna", corrected)


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
    """Message by message, on a broker without expiry: when both topics come to say online, the state is fresh."""
    mirror = Mirror(last=TOPICS.bridge_state)
    broker = {
        message.topic: message for message in (messages.bridge_offline(TOPICS), messages.unavailable(TOPICS, "anna"))
    }
    now = 0.0

    def both_online() -> bool:
        return broker[TOPICS.bridge_state].payload == broker[AVAILABILITY_TOPIC].payload == "online"

    for passed, step, count in steps:
        now += passed
        if step == "reading":
            mirror.put(messages.fresh_messages(TOPICS, "anna", IN_MG_DL | {"value": count}, now + count))
        elif step == "heartbeat":
            mirror.put([messages.bridge_online(TOPICS, now + 1e6)])
        elif step == "reconnect":
            broker[TOPICS.bridge_state] = messages.bridge_offline(TOPICS)  # the last will
            mirror.send_all()
        for message in mirror.take(now, count) if step == "take" else []:
            were_online = both_online()
            broker[message.topic] = message
            if both_online():
                state = broker[STATE_TOPIC]
                assert state.expires_at is not None
                assert were_online or state.expires_at > now


# --- bridge ------------------------------------------------------------------------------------------------


def test_bridge_state() -> None:
    """The daemon is online until the message expires, and offline for as long as nothing else is said."""
    assert messages.bridge_online(TOPICS, 180.0) == Message(TOPICS.bridge_state, "online", 180.0)
    assert messages.bridge_offline(TOPICS) == Message(TOPICS.bridge_state, "offline")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_bridge_info(protocol: str) -> None:
    """The daemon describes itself with exactly the keys of the contract."""
    info = messages.bridge_info(
        TOPICS, version="1.2.3", started_at=NOON + 0.9, protocol=protocol, accounts=(key for key in ("anna", "ben"))
    )
    assert (info.topic, info.expires_at) == (TOPICS.bridge_info, None)
    assert typed(parsed(info)) == typed(
        {
            "version": "1.2.3",
            "schema_version": 1,
            "started_at": "2025-04-19T12:00:00+00:00",
            "protocol": protocol,
            "accounts": ["anna", "ben"],
        }
    )


def test_bridge_info_while_the_time_is_unknown() -> None:
    """Until Share has told the time, the daemon does not say when it started."""
    info = messages.bridge_info(TOPICS, version="1", started_at=None, protocol=None, accounts=[])
    assert parsed(info)["started_at"] is None


def test_info_is_read_back() -> None:
    """The accounts that were published are those that are read back."""
    message = messages.bridge_info(TOPICS, version="1", started_at=None, protocol="5", accounts=["anna", "b_2"])
    assert messages.parse_info(message.payload.encode()) == ["anna", "b_2"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"accounts": ["anna"]}',
        b'{"schema_version": 2, "accounts": ["anna"]}',
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "accounts": {"anna": 1}}',
        b'{"schema_version": 1, "accounts": ["anna", 1]}',
        b'{"schema_version": 1, "accounts": ["anna", "+"]}',
        b'{"schema_version": 1, "accounts": ["anna/x"]}',
        b'{"schema_version": 1, "accounts": ["bridge"]}',
        json.dumps({"schema_version": 1, "accounts": ["anna"] * 10_001}).encode(),
    ],
)
def test_info_that_is_not_ours(payload: bytes) -> None:
    """A list of accounts that is not plainly ours is refused as a whole, since it decides what is removed."""
    with pytest.raises(messages.ForeignError):
        messages.parse_info(payload)


def test_an_account_is_cleared_whole() -> None:
    """Every topic that is retained of an account is emptied: first of all, that something is current."""
    state = messages.state_of(reading(), None, account())
    published = [
        *messages.fresh_messages(TOPICS, "anna", state, 1.0),
        messages.history_message(TOPICS, "anna", SOURCE, []),
        messages.status_message(TOPICS, "anna", Status()),
    ]
    cleared = messages.account_cleared(TOPICS, "anna")
    assert {message.topic for message in cleared} == {message.topic for message in published}
    assert cleared[0].topic == TOPICS.of("anna", "availability")
    assert all(message.payload == "" and message.retain for message in cleared)


# --- status ------------------------------------------------------------------------------------------------

STATUS = Status(
    share="credentials_rejected",
    message="Check the region first.",
    since=NOON + 0.5,
    last_reading_at=NOON + 1.0,
    last_success_at=NOON + 2.0,
    next_poll_at=NOON + 3.0,
    delay=12.5,
    requests_24h=290,
    logins_24h=3,
    rejected=(NOON - 60, NOON),
)


def test_status_is_as_promised() -> None:
    """A status has exactly the keys of the contract, in their order, each with its type."""
    message = messages.status_message(TOPICS, "anna", STATUS)
    assert (message.topic, message.expires_at) == ("home/dexcom/anna/status", None)
    assert typed(parsed(message)) == typed(
        {
            "share": "credentials_rejected",
            "message": "Check the region first.",
            "since": "2025-04-19T12:00:00+00:00",
            "last_reading_at": "2025-04-19T12:00:01+00:00",
            "last_success_at": "2025-04-19T12:00:02+00:00",
            "next_poll_at": "2025-04-19T12:00:03+00:00",
            "delay": 12.5,
            "requests_24h": 290,
            "logins_24h": 3,
            "rejected": [NOON - 60, NOON],
            "ahead_until": None,
        }
    )


def test_status_of_the_beginning() -> None:
    """Before anything is known, times, the delay and stamps of the future are null, and nothing was rejected."""
    payload = parsed(messages.status_message(TOPICS, "anna", Status()))
    assert [key for key, value in payload.items() if value is None] == [
        "since",
        "last_reading_at",
        "last_success_at",
        "next_poll_at",
        "delay",
        "ahead_until",
    ]
    assert payload["rejected"] == []


@given(st.floats(0, 4e9))
@property_of
def test_times_of_a_status_are_whole_seconds_of_utc(unix: float) -> None:
    """Every time is ISO 8601 in UTC, cut to the second."""
    since = parsed(messages.status_message(TOPICS, "anna", replace(STATUS, since=unix)))["since"]
    assert isinstance(since, str)
    assert len(since) == len("2025-04-19T12:00:00+00:00")
    assert since.endswith("+00:00")


@given(any_text.filter(lambda text: text.isprintable()))
@property_of
def test_status_is_json_whatever_it_says(text: str) -> None:
    """Quotes and letters of any script come through."""
    assert parsed(messages.status_message(TOPICS, "anna", replace(STATUS, message=text)))["message"] == text


@given(st.lists(st.integers(0, 4_000_000_000), max_size=12))
@property_of
def test_rejected_sign_ins_are_read_back(rejected: list[int]) -> None:
    """What a status says of rejected sign-ins is what a restart takes over."""
    message = messages.status_message(TOPICS, "anna", replace(STATUS, rejected=tuple(rejected)))
    assert messages.parse_status(message.payload.encode()).rejected == tuple(rejected)


def test_what_matters_of_readings_is_read_back() -> None:
    """A restart learns when the last reading was taken, Share last answered, and how far stamps were ahead."""
    told = replace(STATUS, share="ok", last_reading_at=NOON - 60.0, last_success_at=NOON, ahead_until=NOON * 1000 + 7)
    before = messages.parse_status(messages.status_message(TOPICS, "anna", told).payload.encode())
    assert before.last_reading == NOON - 60
    assert before.stamps == Past(ahead_until=NOON * 1000 + 7, last_success=NOON, right=True)
    told = replace(told, share="phone_clock", ahead_until=None)
    before = messages.parse_status(messages.status_message(TOPICS, "anna", told).payload.encode())
    assert before.stamps == Past(last_success=NOON)


@pytest.mark.parametrize(
    ("share", "last_reading", "right"),
    [
        ("ok", 0, True),
        ("no_readings", 0, True),
        ("sensor_error", 0, True),
        ("phone_clock", 0, False),
        ("starting", 0, False),
        ("unavailable", 0, False),
        ("unavailable", 8, True),
    ],
)
def test_whether_the_phone_was_right_is_read_back(share: str, last_reading: int, *, right: bool) -> None:
    """It was if it would have been phone_clock else, or if a right reading came later than the latest false stamp."""
    told = replace(STATUS, share=share, last_reading_at=NOON + last_reading, ahead_until=(NOON + 7) * 1000)
    payload = messages.status_message(TOPICS, "anna", told).payload.encode()
    assert messages.parse_status(payload).stamps.right is right


@pytest.mark.parametrize("key", ["last_reading_at", "last_success_at", "next_poll_at"])
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1969-12-31T00:00:00Z"])
def test_a_time_that_makes_no_sense_is_refused(key: str, time: str) -> None:
    """A status with a time that cannot be written again is not taken over."""
    payload = parsed(messages.status_message(TOPICS, "anna", STATUS)) | {key: time}
    with pytest.raises(messages.ForeignError, match="times"):
        messages.parse_status(json.dumps(payload).encode())


@pytest.mark.parametrize("ahead_until", ["soon", 1.5, -1, True, 10**16, [1]])
def test_a_stamp_that_makes_no_sense_is_refused(ahead_until: object) -> None:
    """A status whose latest stamp of the future is not a time is not taken over."""
    payload = parsed(messages.status_message(TOPICS, "anna", STATUS)) | {"ahead_until": ahead_until}
    with pytest.raises(messages.ForeignError, match="latest stamp"):
        messages.parse_status(json.dumps(payload).encode())


def test_doubtful_readings_are_read_back_as_such() -> None:
    """Readings that are marked as doubtful come back apart from the right ones, even those with the same stamp."""
    right, false = [reading(100), reading(110, seconds=300)], [reading(90, seconds=300), reading(91, seconds=20)]
    payload = messages.history_message(TOPICS, "anna", SOURCE, right, false).payload
    assert [entry.get("doubtful", False) for entry in json.loads(payload)["readings"]] == [False, True, False, True]
    taken = messages.parse_history(payload.encode(), SOURCE, NOON + 600)
    assert taken.readings == tuple(right)
    assert taken.doubtful == (false[1], false[0])


def test_a_lock_out_is_read_back() -> None:
    """A restart takes over until when an account is locked; of any other state it takes no time."""
    for share, locked_until in (("locked_out", NOON + 602), ("unavailable", None)):
        message = messages.status_message(TOPICS, "anna", replace(STATUS, share=share, next_poll_at=NOON + 600.0))
        assert messages.parse_status(message.payload.encode()).locked_until == locked_until


@pytest.mark.parametrize("at", [None, 3, "", "soon", "2025-04-19T12:10:00", "9999-99-99T00:00:00+00:00", []])
def test_a_lock_out_until_nobody_knows_when(at: object) -> None:
    """A time that makes no sense costs only itself."""
    status = {"share": "locked_out", "next_poll_at": at, "rejected": [NOON]}
    assert messages.parse_status(json.dumps(status).encode()) == messages.Before((NOON,))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hunter2",
        b"[]",
        b"{}",
        b'{"rejected": null}',
        b'{"rejected": 3}',
        b'{"rejected": "hunter2"}',
        b'{"rejected": ["hunter2"]}',
        b'{"rejected": [1745064000, null]}',
        b'{"rejected": [true]}',
        b'{"rejected": [-1]}',
        b'{"rejected": [NaN]}',
        b'{"rejected": [1e400]}',
        b'{"rejected": [' + b"9" * 1000 + b"]}",
        b'{"rejected": [' + b"9" * 5000 + b"]}",
        b'{"rejected": [1' + b",1" * 20_000 + b"]}",
        b'{"rejected": []}' + b" " * 2**21,
        b'{"rejected": \xff}',
        b"[" * 50_000,
    ],
)
def test_status_that_is_not_ours(payload: bytes) -> None:
    """A status that cannot be ours is refused, and what it holds is not quoted."""
    with pytest.raises(messages.ForeignError) as refused:
        messages.parse_status(payload)
    assert "hunter2" not in str(refused.value)


# --- the stream and the history ----------------------------------------------------------------------------

SOURCE = "0123abcd"
ENTRY = {"date": NOON * 1000, "mg_dl": 100, "direction": "Flat", "offset_min": -240}
HISTORY = {"version": 1, "source": SOURCE, "readings": [ENTRY]}

NO_LISTS: list[object] = [None, {}, "hunter2", 3]
NO_ENTRIES: list[object] = [None, [], "hunter2", {}]


def without(entry: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize("backfill", [True, False])
def test_reading_of_the_stream(*, backfill: bool) -> None:
    """Every reading is published as its state and whether a newer one came before it, and never expires."""
    message = messages.reading_message(TOPICS, "anna", IN_MG_DL, backfill=backfill)
    assert typed(parsed(message)) == typed(IN_MG_DL | {"backfill": backfill})
    assert (message.topic, message.expires_at) == ("home/dexcom/anna/reading", None)


def test_history_is_as_promised() -> None:
    """A history has exactly the keys of the contract, its readings in the order given."""
    kept = [reading(90, seconds=-300, direction="NONE?"), reading(100, offset_min=-240)]
    message = messages.history_message(TOPICS, "anna", SOURCE, kept)
    assert (message.topic, message.expires_at) == ("home/dexcom/anna/history", None)
    assert json.loads(message.payload) == {
        "version": 1,
        "source": SOURCE,
        "readings": [
            {"date": NOON * 1000 - 300_000, "mg_dl": 90, "direction": "NONE?", "offset_min": 0},
            {"date": NOON * 1000, "mg_dl": 100, "direction": "Flat", "offset_min": -240},
        ],
    }


def test_source_names_a_person_without_telling_who() -> None:
    """The source is the same after a restart, another for another person, and no piece of a name."""
    source = messages.source_of("us", "anna@example.com")
    assert source == hashlib.sha256(b"us:anna@example.com").hexdigest()[:8]
    others = {messages.source_of("ous", "anna@example.com"), messages.source_of("us", "ben@example.com")}
    assert len({source, *others}) == 3


@given(st.lists(readings, max_size=30))
@property_of
def test_history_is_read_back(kept: list[Reading]) -> None:
    """What a history holds is what a restart takes over, whatever words Share used."""
    message = messages.history_message(TOPICS, "anna", SOURCE, kept)
    assert list(messages.parse_history(message.payload.encode(), SOURCE, 4_102_444_800.0).readings) == kept


def test_longest_history_is_read_back() -> None:
    """A day of readings, each uploaded twice, is not too much."""
    kept = [reading(100 + slot % 2, seconds=slot * 150, direction="RateOutOfRange") for slot in range(576)]
    message = messages.history_message(TOPICS, "anna", SOURCE, kept)
    assert list(messages.parse_history(message.payload.encode(), SOURCE, NOON + 86400).readings) == kept


@pytest.mark.parametrize(("ahead", "is_ours"), [(0, True), (300, True), (301, False), (10**8, False)])
def test_history_of_the_future_is_not_ours(ahead: int, *, is_ours: bool) -> None:
    """A history with readings of more than 5 minutes from now is refused as a whole."""
    payload = messages.history_message(TOPICS, "anna", SOURCE, [reading(), reading(seconds=ahead)]).payload.encode()
    if is_ours:
        assert messages.parse_history(payload, SOURCE, NOON).readings == (reading(), reading(seconds=ahead))
    else:
        with pytest.raises(messages.ForeignError):
            messages.parse_history(payload, SOURCE, NOON)


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
    """A history that is not plainly ours is refused as a whole, and what it holds is not quoted."""
    with pytest.raises(messages.ForeignError) as refused:
        messages.parse_history(payload, SOURCE, NOON)
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
def test_whatever_a_broker_holds_is_survived(payload: bytes) -> None:
    """Whatever is retained where history and status should be is taken over or refused, and what is taken is sound."""
    with contextlib.suppress(messages.ForeignError):
        assert all(at >= 0 for at in messages.parse_status(payload).rejected)
    with contextlib.suppress(messages.ForeignError):
        assert all(key.replace("_", "").isalnum() for key in messages.parse_info(payload))
    assert messages.is_ours("anna", "status", payload) in {True, False}
    with contextlib.suppress(messages.ForeignError):
        for taken in messages.parse_history(payload, SOURCE, NOON).readings:
            state = messages.state_of(taken, None, account())
            assert messages.reading_message(TOPICS, "anna", state, backfill=True).payload.encode()
