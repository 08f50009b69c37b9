"""What an answer of Share means: one state for each, and which of several counts."""

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
"""An answer of which each part alone would be a reason to worry."""
ALL_AT_ONCE = Found(newest=NEWEST, fresh=True, ahead=600.0, withheld=True, late=True)


def plain(share: ShareState) -> Verdict:
    return Verdict(share, REMEDIES[share])


def test_the_first_reason_counts() -> None:
    """Of several reasons the one counts that says most; take it away, and the next one does."""
    batch, found, told = EVERYTHING, ALL_AT_ONCE, []
    for found_changes, batch_changes in (
        ({}, {}),
        ({"ahead": None}, {}),
        ({"fresh": False}, {}),
        ({"withheld": False}, {}),
        ({}, {"nothing_shared": False}),
        ({}, {"error_codes": ()}),
        ({}, {"newest_malformed": False}),
        ({}, {"malformed": 0}),
        ({"late": False}, {}),
    ):
        found, batch = replace(found, **found_changes), replace(batch, **batch_changes)
        told.append(of_batch(batch, found))
    assert told == [
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
    """Without any reading, an error code is the newest that there is."""
    assert of_batch(Batch(error_codes=(1,)), Found()) == plain("sensor_error")


def test_malformed_records_beside_good_ones_are_no_trouble() -> None:
    """As long as there are readings, a record that makes no sense costs only itself."""
    assert of_batch(Batch(readings=(NEWEST,), malformed=1), Found(newest=NEWEST)) == plain("no_readings")


def test_nothing_at_all() -> None:
    """An empty list is no reading, and no other trouble."""
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
    assert of_error(error) == Verdict(share, status.tell(str(error), status.REMEDIES[share]))
    untried = share == "credentials_rejected"
    remedy = status.UNTRIED if untried else status.REMEDIES[share]
    assert of_error(error, untried=True) == Verdict(share, status.tell(str(error), remedy))


def test_a_wrong_clock_is_told() -> None:
    """If this machine's clock makes TLS fail, that is what to look at."""
    error = UnavailableError("share.example has a certificate that is not valid yet", wrong_clock=True)
    assert of_error(error) == Verdict("unavailable", status.tell(str(error), status.WRONG_CLOCK))


@pytest.mark.parametrize(
    ("missing", "remedy", "lasts"),
    [("name", status.NO_NAME, status.NO_NAME_FOR_LONG), ("authority", status.UNTRUSTED, "")],
)
def test_what_this_machine_lacks_is_not_told_as_share(
    missing: Literal["name", "authority"], remedy: str, lasts: str
) -> None:
    """Names and authorities are this machine's: nobody is to wait for Share to be mended."""
    told = of_error(UnavailableError("no answer from share.example: because", missing=missing))
    assert told == Verdict("unavailable", f"No answer from share.example: because. {remedy}", lasts)
    assert "out of order" not in told.message


def test_what_failed_at_the_proxy_is_not_told_as_share() -> None:
    """What to do is said already, and that Share may be out of order would lead elsewhere."""
    for told, shown in (("the proxy wants a password", "The proxy wants a password."), ("is it?", "Is it?")):
        assert of_error(UnavailableError(told, at_proxy=True)) == Verdict("unavailable", shown)


def test_every_error_that_an_answer_may_be_has_a_state() -> None:
    """No error of Share is without one, but those that only the client sees, and what a caller gets wrong."""
    never = {"SignedOutError", "NothingSharedError", "ArgumentError"}
    assert {error for error in ShareError.__subclasses__() if error.__name__ not in never} == STATES.keys()
