"""What the status of an account says, and what to do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dexcom2mqtt.messages.message import ForeignError
from dexcom2mqtt.messages.status import (
    BUG,
    DRIFTED,
    MALFORMED,
    NEWEST_MALFORMED,
    NOTHING_SHARED,
    REMEDIES,
    Learned,
    Past,
    PastSignIns,
    ShareState,
    Status,
    parse_status,
    status_message,
    with_remedy,
)
from tests.support.builders import NOON, any_text, property_of
from tests.support.payloads import TOPICS, any_payload, parsed, typed

STATES = [
    "starting",
    "ok",
    "no_readings",
    "sensor_error",
    "phone_clock",
    "unavailable",
    "rate_limited",
    "credentials_rejected",
    "locked_out",
    "unexpected_response",
]


def test_has_exactly_the_states_of_the_contract() -> None:
    """Each value of ``share`` has a text, and there are no others."""
    assert sorted(REMEDIES) == sorted(STATES)


@pytest.mark.parametrize("share", STATES)
def test_every_text_is_different(share: ShareState) -> None:
    """Each text consists of whole sentences in one line, and differs from all others."""
    text = REMEDIES[share]
    assert text[0].isupper()
    assert text.endswith(".")
    assert "\n" not in text
    assert "  " not in text
    assert list(REMEDIES.values()).count(text) == 1


@pytest.mark.parametrize(
    ("share", "words"),
    [
        ("no_readings", ["sharing", "follower", "sensor", "phone"]),
        ("sensor_error", ["sensor", "app"]),
        ("unavailable", ["network"]),
        ("rate_limited", ["other programs"]),
        ("credentials_rejected", ["region", "us, ous, jp", "password", "phone number", "+", "not a follower's"]),
        ("locked_out", ["20 minutes", "credentials", "other programs"]),
        ("unexpected_response", ["newer version"]),
    ],
)
def test_every_error_has_its_remedy(share: ShareState, words: list[str]) -> None:
    """The text of each error says what to check or to do."""
    assert [word for word in words if word not in REMEDIES[share]] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NOTHING_SHARED, ["Nothing is shared", "sensor", "sharing", "follower", "not a follower's"]),
        (
            NEWEST_MALFORMED,
            ["newest record", "makes no sense", "no reading is current", "older readings still count", "app"],
        ),
        (MALFORMED.format(3), ["make no sense", "3", "all others count", "report"]),
        (DRIFTED.format(3), ["a new form", "3", "They still count", "report"]),
    ],
)
def test_special_cases_have_their_own_texts(text: str, words: list[str]) -> None:
    """Each special case has a text of whole sentences, which differs from the texts of all states."""
    assert [word for word in words if word not in text] == []
    assert text[0].isupper()
    assert text.endswith(".")
    assert "  " not in text
    assert text not in REMEDIES.values()


def test_a_bug_is_reported_as_one() -> None:
    """For a bug in the program, the text says so, and where to look."""
    assert "dexcom2mqtt" in BUG
    assert "log" in BUG
    assert "five minutes" in BUG


@pytest.mark.parametrize("share", STATES)
def test_says_what_happened_and_what_to_do(share: ShareState) -> None:
    """What happened comes first, as a sentence, and then what to do."""
    assert with_remedy("share.example answered with status 502", REMEDIES[share]) == (
        f"Share.example answered with status 502. {REMEDIES[share]}"
    )


@pytest.mark.parametrize(
    ("happened", "told"), [("the proxy wants a password", "The proxy wants a password."), ("is it?", "Is it?")]
)
def test_says_only_what_happened_if_that_includes_what_to_do(happened: str, told: str) -> None:
    """Without a remedy nothing follows, and the text ends with one punctuation mark."""
    assert with_remedy(happened) == told


def test_the_first_status_is_starting() -> None:
    """Before anything is known, the account is starting, and everything else is empty."""
    assert Status() == Status(
        share="starting",
        message=REMEDIES["starting"],
        since=None,
        last_reading_at=None,
        last_success_at=None,
        next_poll_at=None,
        delay=None,
        spread=None,
        requests_24h=0,
        logins_24h=0,
        rejected=(),
    )


@pytest.mark.parametrize("share", STATES)
def test_knows_which_states_are_errors(share: ShareState) -> None:
    """All states except starting and ok are something to worry about."""
    assert Status(share=share).well is (share in {"starting", "ok"})


STATUS = Status(
    share="credentials_rejected",
    message="Check the region first.",
    since=NOON + 0.5,
    last_reading_at=NOON + 1.0,
    last_success_at=NOON + 2.0,
    next_poll_at=NOON + 3.0,
    delay=12.5,
    spread=3.5,
    requests_24h=290,
    logins_24h=3,
    rejected=(NOON - 60, NOON),
)


def test_status_is_as_promised() -> None:
    """A status has exactly the keys of the contract, in their order, each with its type."""
    message = status_message(TOPICS, "anna", STATUS)
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
            "spread": 3.5,
            "requests_24h": 290,
            "logins_24h": 3,
            "rejected": [NOON - 60, NOON],
            "ahead_until": None,
        }
    )


def test_status_of_the_beginning() -> None:
    """Before anything is known, times, delay, spread and future stamps are null, and there are no rejected sign-ins."""
    payload = parsed(status_message(TOPICS, "anna", Status()))
    assert [key for key, value in payload.items() if value is None] == [
        "since",
        "last_reading_at",
        "last_success_at",
        "next_poll_at",
        "delay",
        "spread",
        "ahead_until",
    ]
    assert payload["rejected"] == []


@given(st.floats(0, 4e9))
@property_of
def test_times_of_a_status_are_whole_seconds_in_utc(unix: float) -> None:
    """Every time is ISO 8601 in UTC, cut to the second."""
    since = parsed(status_message(TOPICS, "anna", replace(STATUS, since=unix)))["since"]
    assert isinstance(since, str)
    assert len(since) == len("2025-04-19T12:00:00+00:00")
    assert since.endswith("+00:00")


@given(any_text.filter(lambda text: text.isprintable()))
@property_of
def test_status_is_json_whatever_the_message(text: str) -> None:
    """Quotes and letters of any script are kept."""
    assert parsed(status_message(TOPICS, "anna", replace(STATUS, message=text)))["message"] == text


@given(st.lists(st.integers(0, 4_000_000_000), max_size=12))
@property_of
def test_rejected_sign_ins_are_read_back(rejected: list[int]) -> None:
    """A restart reads back the rejected sign-ins of a status."""
    message = status_message(TOPICS, "anna", replace(STATUS, rejected=tuple(rejected)))
    assert parse_status(message.payload.encode()).rejected == tuple(rejected)


def test_the_times_of_readings_are_read_back() -> None:
    """A restart learns when the last reading was taken, when Share last answered, and how far stamps were ahead."""
    told = replace(STATUS, share="ok", last_reading_at=NOON - 60.0, last_success_at=NOON, ahead_until=NOON * 1000 + 7)
    before = parse_status(status_message(TOPICS, "anna", told).payload.encode())
    assert before.last_reading == NOON - 60
    assert before.stamps == Past(ahead_until=NOON * 1000 + 7, last_success=NOON, right=True)
    told = replace(told, share="phone_clock", ahead_until=None)
    before = parse_status(status_message(TOPICS, "anna", told).payload.encode())
    assert before.stamps == Past(last_success=NOON)


def test_what_was_learned_is_read_back() -> None:
    """A restart reads back delay and spread; it starts over if one is missing, as an older version leaves it."""
    message = status_message(TOPICS, "anna", replace(STATUS, delay=-120.5, spread=4))
    assert parse_status(message.payload.encode()).learned == Learned(-120.5, 4)
    for delay, spread in ((None, 4.0), (12.5, None), (None, None)):
        message = status_message(TOPICS, "anna", replace(STATUS, delay=delay, spread=spread))
        assert parse_status(message.payload.encode()).learned is None


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
def test_whether_the_phone_was_right_is_read_back(share: ShareState, last_reading: int, *, right: bool) -> None:
    """It was right if any other state shows it, or if a right reading came later than the latest false stamp."""
    told = replace(STATUS, share=share, last_reading_at=NOON + last_reading, ahead_until=(NOON + 7) * 1000)
    payload = status_message(TOPICS, "anna", told).payload.encode()
    assert parse_status(payload).stamps.right is right


@pytest.mark.parametrize("key", ["last_reading_at", "last_success_at", "next_poll_at"])
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1969-12-31T00:00:00Z"])
def test_a_senseless_time_is_rejected(key: str, time: str) -> None:
    """A status with a time that cannot be written again is ignored."""
    payload = parsed(status_message(TOPICS, "anna", STATUS)) | {key: time}
    with pytest.raises(ForeignError, match="times"):
        parse_status(json.dumps(payload).encode())


@pytest.mark.parametrize(
    "pair", ['"12", "spread": 3', '12, "spread": [3]', '1e999, "spread": 3', '12, "spread": -1e999']
)
def test_what_was_learned_must_be_numbers(pair: str) -> None:
    """A delay or spread that is no finite number was not published by us."""
    with pytest.raises(ForeignError, match="its delay or its spread"):
        parse_status(f'{{"rejected": [], "delay": {pair}}}'.encode())


@pytest.mark.parametrize("ahead_until", ["soon", 1.5, -1, True, 10**16, [1]])
def test_a_senseless_stamp_is_rejected(ahead_until: object) -> None:
    """A status whose latest stamp in the future is not a time is ignored."""
    payload = parsed(status_message(TOPICS, "anna", STATUS)) | {"ahead_until": ahead_until}
    with pytest.raises(ForeignError, match="latest stamp"):
        parse_status(json.dumps(payload).encode())


def test_a_lock_out_is_read_back() -> None:
    """A restart learns until when an account is locked out; other states have no such time."""
    cases: list[tuple[ShareState, int | None]] = [("locked_out", NOON + 602), ("unavailable", None)]
    for share, locked_until in cases:
        message = status_message(TOPICS, "anna", replace(STATUS, share=share, next_poll_at=NOON + 600.0))
        assert parse_status(message.payload.encode()).locked_until == locked_until


@pytest.mark.parametrize("at", [None, 3, "", "soon", "2025-04-19T12:10:00", "9999-99-99T00:00:00+00:00", []])
def test_a_lock_out_with_an_unknown_end(at: object) -> None:
    """Only the senseless time is ignored."""
    status = {"share": "locked_out", "next_poll_at": at, "rejected": [NOON]}
    assert parse_status(json.dumps(status).encode()) == PastSignIns((NOON,))


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
    """A status that cannot be ours is ignored, and the error does not quote it."""
    with pytest.raises(ForeignError) as refused:
        parse_status(payload)
    assert "hunter2" not in str(refused.value)


REJECTED = {
    "nothing": b"",
    "no list": b'{"rejected": {}}',
    "none": b"{}",
    "a broken number": b'{"rejected": [1.5]}',
    "true": b'{"rejected": [true]}',
    "before all time": b'{"rejected": [0, -1]}',
    "the year 2100": b'{"rejected": [4102444800]}',
    "too many": json.dumps({"rejected": [0] * 1001}).encode(),
    "nested": b'{"rejected": ' + b"[" * 100_000,
    "huge": b'{"rejected": []}'.ljust(262_145),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_foreign_status_is_ignored_entirely(name: str) -> None:
    """If the rejected sign-ins are not a list of times, none of them is read, not even the valid ones."""
    with pytest.raises(ForeignError):
        parse_status(REJECTED[name])


@settings(property_of, max_examples=500)
@given(any_payload)
@example(b'{"rejected": []}')
@example(b'{"rejected": [%d, 0]}' % NOON)
def test_any_status_is_read_entirely_or_rejected(payload: bytes) -> None:
    """Reading any payload returns all of its rejected sign-ins, or raises ForeignError."""
    try:
        taken = parse_status(payload)
    except ForeignError:
        return
    assert list(taken.rejected) == json.loads(payload)["rejected"]
    assert all(type(at) is int and at >= 0 for at in taken.rejected)
