"""What an answer of Share means: one state for each, and which of several reasons counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from dexcom2mqtt.account.verdict import STATES, Found, Verdict, of_batch, of_error
from dexcom2mqtt.messages import status
from dexcom2mqtt.messages.status import REMEDIES, ShareState
from dexcom2mqtt.share import (
    Batch,
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)
from tests.support.builders import NOON, reading

NEWEST = reading()
EVERYTHING = Batch(
    error_codes=((NOON + 300) * 1000,), malformed=2, newest_malformed=True, nothing_shared=True, drifted=1
)
"""An answer in which each part alone would be a reason for a warning."""
ALL_AT_ONCE = Found(newest=NEWEST, current=True, ahead=600.0, withheld=True, late=True)


def plain(share: ShareState) -> Verdict:
    return Verdict(share, REMEDIES[share])


def test_the_first_reason_counts() -> None:
    """Of several reasons, the most telling one counts; without it, the next one does."""
    batch, found, verdicts = EVERYTHING, ALL_AT_ONCE, []
    for found_changes, batch_changes in (
        ({}, {}),
        ({"ahead": None}, {}),
        ({"current": False}, {}),
        ({"withheld": False}, {}),
        ({}, {"nothing_shared": False}),
        ({}, {"error_codes": ()}),
        ({}, {"newest_malformed": False}),
        ({}, {"malformed": 0}),
        ({"late": False}, {}),
    ):
        found, batch = replace(found, **found_changes), replace(batch, **batch_changes)
        verdicts.append(of_batch(batch, found))
    assert verdicts == [
        Verdict("phone_clock", status.phone_clock(600.0)),
        plain("ok"),
        Verdict("no_readings", status.UNSETTLED),
        Verdict("no_readings", status.NOTHING_SHARED),
        plain("sensor_error"),
        Verdict("unexpected_response", status.NEWEST_MALFORMED),
        plain("unexpected_response"),
        Verdict("no_readings", status.LATE),
        plain("no_readings"),
    ]


@pytest.mark.parametrize(("seconds", "share"), [(-1, "no_readings"), (0, "no_readings"), (1, "sensor_error")])
def test_error_codes_count_if_they_are_newer(seconds: int, share: ShareState) -> None:
    """The sensor sends error codes now only if the last of them is later than the newest reading."""
    assert of_batch(Batch(error_codes=((NOON + seconds) * 1000,)), Found(newest=NEWEST)) == plain(share)


def test_error_codes_alone() -> None:
    """Without any reading, an error code is the newest record."""
    assert of_batch(Batch(error_codes=(1,)), Found()) == plain("sensor_error")


def test_malformed_records_beside_good_ones_do_not_matter() -> None:
    """As long as there are readings, a malformed record only costs itself."""
    assert of_batch(Batch(readings=(NEWEST,), malformed=1), Found(newest=NEWEST)) == plain("no_readings")


def test_nothing_at_all() -> None:
    """An empty list means no readings, and no other problem."""
    assert of_batch(Batch(), Found()) == plain("no_readings")


@pytest.mark.parametrize(
    ("error", "share"),
    [
        (UnavailableError("share.example broke off"), "unavailable"),
        (CredentialsRejectedError("share.example rejected the credentials"), "credentials_rejected"),
        (LockedOutError("share.example has locked the account"), "locked_out"),
        (RateLimitedError("share.example is receiving too many requests", 60.0), "rate_limited"),
        (UnexpectedResponseError("share.example answered nonsense"), "unexpected_response"),
    ],
)
def test_each_error_is_a_state(error: ShareError, share: ShareState) -> None:
    """What happened comes first, then what to do; untried credentials matter only if they were rejected."""
    assert of_error(error) == Verdict(share, status.with_remedy(str(error), status.REMEDIES[share]))
    untried = share == "credentials_rejected"
    remedy = status.UNTRIED if untried else status.REMEDIES[share]
    assert of_error(error, untried=True) == Verdict(share, status.with_remedy(str(error), remedy))


def test_a_wrong_clock_is_reported() -> None:
    """If this machine's clock makes TLS fail, the message says so."""
    error = UnavailableError("share.example has a certificate that is not valid yet", wrong_clock=True)
    assert of_error(error) == Verdict("unavailable", status.with_remedy(str(error), status.WRONG_CLOCK))


@pytest.mark.parametrize(
    ("missing", "remedy", "lasts"),
    [("name", status.NO_NAME, status.NO_NAME_FOR_LONG), ("authority", status.UNTRUSTED, "")],
)
def test_faults_of_this_machine_are_not_blamed_on_share(
    missing: Literal["name", "authority"], remedy: str, lasts: str
) -> None:
    """Names and authorities are up to this machine: nobody should wait for Share to be repaired."""
    verdict = of_error(UnavailableError("no answer from share.example: because", missing=missing))
    assert verdict == Verdict("unavailable", f"No answer from share.example: because. {remedy}", lasts)
    assert "out of order" not in verdict.message


def test_faults_of_the_proxy_are_not_blamed_on_share() -> None:
    """The error already says what to do; that Share may be out of order would be misleading."""
    for text, shown in (("the proxy wants a password", "The proxy wants a password."), ("is it?", "Is it?")):
        assert of_error(UnavailableError(text, at_proxy=True)) == Verdict("unavailable", shown)


def test_every_error_that_an_answer_may_be_has_a_state() -> None:
    """Every error has a state, except those that only the client sees, and wrong arguments of a caller."""
    never = {"SignedOutError", "NothingSharedError", "ArgumentError"}
    assert {error for error in ShareError.__subclasses__() if error.__name__ not in never} == STATES.keys()
