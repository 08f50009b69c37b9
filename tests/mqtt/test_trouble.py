"""The topics and filters that a broker refuses, with a set clock and without a connection."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.mqtt.outcome import Place
from dexcom2mqtt.mqtt.trouble import Ruling, Trouble

if TYPE_CHECKING:
    from dexcom2mqtt.mqtt.outcome import Reason

STATE, VALUE, HISTORY = Place("base/anna/state"), Place("base/anna/value"), Place("base/anna/history")
REFRESH = Place("base/+/refresh", "subscribe")
NOW = 1000.0


def trouble() -> Trouble:
    return Trouble("the broker at home:1883", {REFRESH.topic: "asking for a reading will not work"})


def told(ruling: Ruling | None) -> str:
    return "" if ruling is None or ruling.line is None else ruling.line.text


def end_alone(told_of: Trouble, place: Place, times: int, reason: Reason = "hang_up", now: float = NOW) -> Ruling:
    for _ in range(times):
        ruling = told_of.ended([place], reason, now)
    assert ruling
    return ruling


def test_one_at_a_time_after_two_ends_at_an_unknown_place() -> None:
    """If several were unacknowledged, the cause is unknown; so after two ends, one is sent at a time for an hour."""
    at_home = trouble()
    assert at_home.ended([STATE, VALUE], "hang_up", NOW) is None
    assert not at_home.careful(NOW)
    assert at_home.ended([STATE, HISTORY], "silence", NOW) is None
    assert at_home.careful(NOW)
    assert at_home.careful(NOW + 3599)
    assert not at_home.careful(NOW + 3600)


@pytest.mark.parametrize("between", ["settled", "unreachable"])
def test_ends_count_only_in_a_row(between: str) -> None:
    """If everything was accepted in between, or the broker was gone, the count starts over."""
    at_home = trouble()
    at_home.ended([STATE, VALUE], "hang_up", NOW)
    getattr(at_home, between)()
    at_home.ended([STATE, VALUE], "hang_up", NOW)
    assert not at_home.careful(NOW)


def test_an_idle_end_is_not_counted() -> None:
    """A connection that ends while idle has another reason."""
    at_home = trouble()
    for _ in range(9):
        assert at_home.ended([], "hang_up", NOW) is None
    assert (at_home.aside, at_home.careful(NOW)) == (frozenset(), False)


@pytest.mark.parametrize(("reason", "words"), [("hang_up", "hangs up whenever"), ("silence", "never acknowledges")])
def test_the_third_end_at_a_place_sets_it_aside(reason: Reason, words: str) -> None:
    """Only then is it named, and left out for five minutes."""
    at_home = trouble()
    assert told(end_alone(at_home, STATE, 2, reason)) == ""
    assert at_home.aside == frozenset()
    ruling = end_alone(at_home, STATE, 1, reason)
    assert (ruling.place, ruling.until, ruling.too_large) == (STATE, NOW + 300, True)
    assert ruling.line
    assert ruling.line.level == logging.ERROR
    assert words in told(ruling)
    assert STATE.topic in told(ruling)
    assert at_home.aside == {STATE.topic}


def test_only_the_same_place_counts() -> None:
    """Two ends here and one there are not three in a row."""
    at_home = trouble()
    end_alone(at_home, STATE, 2)
    end_alone(at_home, VALUE, 1)
    end_alone(at_home, STATE, 2)
    assert at_home.aside == frozenset()
    at_home.unreachable()
    end_alone(at_home, STATE, 2)
    assert at_home.aside == frozenset()


def test_an_accepted_place_starts_over() -> None:
    """A place that worked in between starts over, and its recovery is logged if its failure was."""
    at_home = trouble()
    end_alone(at_home, STATE, 2)
    assert at_home.taken(STATE, NOW) is None
    end_alone(at_home, STATE, 2)
    assert at_home.aside == frozenset()
    end_alone(at_home, STATE, 1)
    line = at_home.taken(STATE, NOW)
    assert line
    assert (line.level, line.text) == (logging.INFO, "the broker at home:1883 now accepts messages on base/anna/state")
    assert at_home.aside == frozenset()
    assert at_home.taken(STATE, NOW) is None


def test_a_place_set_aside_is_tried_alone_and_less_and_less_often() -> None:
    """When it is due, nothing else is sent; one more end sets it aside again, without a new line."""
    at_home, now = trouble(), NOW
    end_alone(at_home, STATE, 3)
    for pause in (300, 600, 1200, 2400, 3600, 3600):
        assert not at_home.careful(now + pause - 1)
        now += pause
        assert at_home.careful(now)
        ruling = end_alone(at_home, STATE, 1, now=now)
        assert told(ruling) == ""
        assert ruling.until == now + min(2 * pause, 3600)


def test_a_refusal_is_logged_at_once_and_tried_again_soon_and_then_less_often() -> None:
    """Permissions may be corrected at any time; the same refusal below one level is one line."""
    at_home = trouble()
    first = at_home.refused(STATE, "rights", "Not authorized", NOW)
    assert told(first) == (
        "the broker at home:1883 refuses messages on base/anna/state (Not authorized): its access control list "
        "must let the user of this daemon write there"
    )
    assert first.until == NOW + 2
    assert not at_home.aside
    second = at_home.refused(VALUE, "rights", "Not authorized", NOW)
    assert told(second) == ""
    assert at_home.refused(STATE, "rights", "Not authorized", NOW + 2).until == NOW + 12
    for now in (NOW + 12, NOW + 312, NOW + 612):  # which ends no connection
        assert at_home.refused(STATE, "rights", "Not authorized", now).until == now + 300
    assert at_home.aside == {STATE.topic}
    assert at_home.taken(STATE, NOW) is None  # the other one is still refused
    assert at_home.taken(VALUE, NOW) is not None


def test_refusals_together_count_once() -> None:
    """Twenty readings of one burst count as one refusal; otherwise the next attempt would be in an hour."""
    at_home = trouble()
    for _ in range(20):
        assert at_home.refused(STATE, "rights", "Not authorized", NOW).until == NOW + 2
    assert at_home.refused(STATE, "rights", "Not authorized", NOW + 2).until == NOW + 12
    assert not at_home.aside


def test_size_is_called_size() -> None:
    """Each topic is named, since each has its own reason to be large."""
    at_home = trouble()
    for place in (STATE, HISTORY):
        ruling = at_home.refused(place, "size", "25000 bytes", NOW)
        assert ruling.too_large
        assert f"refuses the message on {place.topic} (25000 bytes): it is too large" in told(ruling)


def test_a_shortened_message_is_set_aside_after_one_more_end() -> None:
    """As the place is known, each size needs one attempt, not three; it is sent alone, and named only at the end."""
    at_home = trouble()
    assert end_alone(at_home, HISTORY, 3).too_large
    at_home.shortened(HISTORY, NOW)
    assert at_home.aside == frozenset()
    assert at_home.careful(NOW)
    ruling = end_alone(at_home, HISTORY, 1)
    assert ruling.too_large
    assert HISTORY.topic in told(ruling)
    assert at_home.aside == {HISTORY.topic}


def test_quota_is_called_quota_and_waited_for() -> None:
    """Nothing is sent for one second, then longer; and one message at a time, so that few are refused."""
    at_home = trouble()
    assert "accepts no more messages for the moment" in told(at_home.refused(STATE, "quota", "Quota exceeded", NOW))
    assert at_home.quiet_until == NOW + 1
    assert at_home.careful(NOW + 3599)
    at_home.refused(VALUE, "quota", "Quota exceeded", NOW + 0.5)
    assert at_home.quiet_until == NOW + 1  # it was already sent
    now = NOW
    for pause in (2, 4, 8, 16, 32, 60, 60):
        now = at_home.quiet_until
        at_home.refused(VALUE, "quota", "Quota exceeded", now)
        assert at_home.quiet_until == now + pause
    assert at_home.aside == {VALUE.topic}
    at_home.taken(HISTORY, NOW)
    at_home.refused(STATE, "quota", "Quota exceeded", now + 60)
    assert at_home.quiet_until == now + 61


def test_a_refused_subscription_is_named_with_its_consequence() -> None:
    """It is set aside like a topic, but does not count as one."""
    at_home = trouble()
    text = told(at_home.refused(REFRESH, "rights", "Not authorized", NOW))
    assert text == (
        "the broker at home:1883 refuses the subscription to base/+/refresh (Not authorized): asking for a reading "
        "will not work. Its access control list must let the user of this daemon read there."
    )
    assert at_home.unsubscribed(NOW) == frozenset()
    for later in (2, 12):
        at_home.refused(REFRESH, "rights", "Not authorized", NOW + later)
    assert at_home.unsubscribed(NOW + 12) == {REFRESH.topic}
    assert at_home.unsubscribed(NOW + 312) == frozenset()
    assert at_home.overdue(NOW + 311) == frozenset()
    assert at_home.overdue(NOW + 312) == {REFRESH.topic}
    assert at_home.resubscribe_at(frozenset({REFRESH.topic, "other"})) == NOW + 312
    assert at_home.resubscribe_at(frozenset({"other"})) == math.inf
    at_home.taken(REFRESH, NOW)
    assert at_home.overdue(NOW + 312) == frozenset()
    assert at_home.resubscribe_at(frozenset({REFRESH.topic})) == math.inf
    assert at_home.aside == frozenset()


def test_an_unprotected_topic_is_tried_again_carefully() -> None:
    """One more failure sets it aside again; until then, one message is sent at a time."""
    at_home = trouble()
    end_alone(at_home, STATE, 3)
    end_alone(at_home, HISTORY, 3)
    at_home.try_again(frozenset({STATE.topic}), NOW)
    assert at_home.aside == {HISTORY.topic}
    assert at_home.careful(NOW + 3599)
    end_alone(at_home, STATE, 1)
    assert at_home.aside == {STATE.topic, HISTORY.topic}


def test_a_broker_without_retained_messages_is_reported_once() -> None:
    """It is the same on every connection."""
    at_home = trouble()
    line = at_home.no_retained_messages()
    assert line
    assert "keeps no retained messages" in line.text
    assert at_home.no_retained_messages() is None


@pytest.mark.parametrize("account", ["ben", "cleo"])
def test_the_same_topic_of_another_account_needs_one_end(account: str) -> None:
    """A topic forbidden for one account is forbidden for all, in one line."""
    at_home = trouble()
    end_alone(at_home, Place("ha/device/base_anna/config"), 3)
    assert told(end_alone(at_home, Place(f"ha/device/base_{account}/config"), 1)) == ""
    assert len(at_home.aside) == 2
    end_alone(at_home, STATE, 2)
    assert len(at_home.aside) == 2


def test_a_quota_that_ends_connections_spaces_messages() -> None:
    """More each time, up to 2 s; no place is blamed, and an hour without an end resets it."""
    at_home = trouble()
    for spacing in (0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        assert at_home.ended([STATE], "quota", NOW) is None
        assert at_home.spacing == spacing
    assert at_home.careful(NOW + 3599)
    assert at_home.aside == frozenset()
    at_home.taken(STATE, NOW + 3599)
    assert at_home.spacing == 2.0
    at_home.taken(STATE, NOW + 3600)
    assert at_home.spacing == 0.0


def test_a_quota_is_one_line_an_hour() -> None:
    """Each reading uses it up, and in between everything is accepted."""
    at_home, lines = trouble(), []
    for minutes in range(0, 130, 5):
        now = NOW + 60 * minutes
        lines += [told(at_home.refused(STATE, "quota", "", now)), at_home.taken(STATE, now + 2)]
    assert len([line for line in lines if line]) == 1


def test_unneeded_subscriptions_are_forgotten() -> None:
    """Those of the read-back end with it, and cause no careful sending."""
    at_home = trouble()
    end_alone(at_home, Place("base/anna/history", "subscribe"), 3)
    end_alone(at_home, REFRESH, 3)
    at_home.forget_subscriptions(frozenset({REFRESH.topic}))
    assert at_home.unsubscribed(NOW) == {REFRESH.topic}
