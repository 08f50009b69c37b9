"""What a person is told about an account, and what to do."""

from __future__ import annotations

import pytest

from dexcom2mqtt.status import (
    BUG,
    DRIFTED,
    MALFORMED,
    NEWEST_MALFORMED,
    NOTHING_SHARED,
    REMEDIES,
    Status,
    tell,
)

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


def test_knows_exactly_the_states_of_the_contract() -> None:
    """There is a text for each value of share, and for nothing else."""
    assert sorted(REMEDIES) == sorted(STATES)


@pytest.mark.parametrize("share", STATES)
def test_every_text_is_a_sentence_of_its_own(share: str) -> None:
    """Each text is of whole sentences in one line, and no other state's."""
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
def test_every_trouble_has_its_remedy(share: str, words: list[str]) -> None:
    """Each trouble names what to check or to do about it."""
    assert [word for word in words if word not in REMEDIES[share]] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NOTHING_SHARED, ["Nothing is shared", "sensor", "sharing", "follower", "not a follower's"]),
        (NEWEST_MALFORMED, ["newest record", "makes no sense", "no reading is current", "older ones count", "app"]),
        (MALFORMED.format(3), ["make no sense", "3", "only the others count", "report"]),
        (DRIFTED.format(3), ["a form that is new", "3", "they are read", "report"]),
    ],
)
def test_what_is_odd_has_words_of_its_own(text: str, words: list[str]) -> None:
    """What Share says in words of its own is told as what it is, in whole sentences, and differs from every state's."""
    assert [word for word in words if word not in text] == []
    assert text[0].isupper()
    assert text.endswith(".")
    assert "  " not in text
    assert text not in REMEDIES.values()


def test_a_bug_is_told_as_one() -> None:
    """Where the fault is the program's own, the text says so and where to look."""
    assert "dexcom2mqtt" in BUG
    assert "log" in BUG
    assert "five minutes" in BUG


@pytest.mark.parametrize("share", STATES)
def test_tells_what_happened_and_what_to_do(share: str) -> None:
    """What happened comes first, as a sentence, and then what to do."""
    assert tell("share.example answered with status 502", share) == (
        f"Share.example answered with status 502. {REMEDIES[share]}"
    )


def test_a_wrong_clock_is_named() -> None:
    """Where the clock is to blame, the text says so rather than to look at the network."""
    text = tell("the certificate is outside its dates", "unavailable", wrong_clock=True)
    assert text.startswith("The certificate is outside its dates. ")
    assert "clock" in text
    assert REMEDIES["unavailable"] not in text


def test_begins_by_starting() -> None:
    """Before anything is known, the account is starting, and nothing else is claimed."""
    assert Status() == Status(
        share="starting",
        message=REMEDIES["starting"],
        since=None,
        last_reading_at=None,
        last_success_at=None,
        next_poll_at=None,
        delay=None,
        requests_24h=0,
        logins_24h=0,
        rejected=(),
    )


@pytest.mark.parametrize("share", STATES)
def test_knows_what_is_trouble(share: str) -> None:
    """All but starting and ok is something to worry about."""
    assert Status(share=share).well is (share in {"starting", "ok"})
