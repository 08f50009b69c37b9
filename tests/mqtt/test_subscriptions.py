"""The packets of subscriptions, and those without an answer."""

from __future__ import annotations

import pytest

from dexcom2mqtt.mqtt.outcome import Place, Refusal
from dexcom2mqtt.mqtt.subscriptions import Subscriptions

TEN = [f"topic/{number}" for number in range(10)]


def subscribed(*filters: str) -> Subscriptions:
    """Return subscriptions whose first packet, number 1, has been sent."""
    subscriptions = Subscriptions()
    subscriptions.want(filters)
    subscriptions.sent(1, subscriptions.packet(careful=False, idle=True))
    return subscriptions


def test_no_packet_has_more_than_eight_filters() -> None:
    """AWS IoT Core accepts no more, neither to subscribe nor to unsubscribe."""
    subscriptions = Subscriptions()
    subscriptions.want(TEN)
    packets = [subscriptions.packet(careful=False, idle=False) for _ in range(3)]
    assert packets == [TEN[:8], TEN[8:], []]
    assert subscriptions.drop(TEN) == packets[:2]


@pytest.mark.parametrize("idle", [True, False])
def test_one_is_sent_at_a_time_if_careful(*, idle: bool) -> None:
    """Only if nothing else is unacknowledged does a lost connection point to its cause."""
    subscriptions = Subscriptions()
    subscriptions.want(["a", "b"])
    first = subscriptions.packet(careful=True, idle=idle)
    assert first == (["a"] if idle else [])
    if first:
        subscriptions.sent(1, first)
        assert subscriptions.packet(careful=True, idle=True) == []
        subscriptions.answered(1, [None])
        assert subscriptions.packet(careful=True, idle=True) == ["b"]


def test_they_are_settled_when_each_is_answered() -> None:
    """Unsent filters count as well, and a refusal is an answer."""
    subscriptions = Subscriptions()
    assert subscriptions.settled
    subscriptions.want(["a", "b"])
    assert (subscriptions.settled, subscriptions.unanswered) == (False, False)
    subscriptions.sent(1, subscriptions.packet(careful=False, idle=True))
    assert (subscriptions.settled, subscriptions.unanswered) == (False, True)
    refusal = Refusal("rights", "Not authorized")
    subscriptions.answered(1, [None, refusal])
    assert (subscriptions.settled, subscriptions.unanswered) == (True, False)
    assert subscriptions.take_answers() == [("a", None), ("b", refusal)]
    assert subscriptions.take_answers() == []


def test_an_unexpected_answer_changes_nothing() -> None:
    """A broker may send an answer to a packet that was never sent."""
    subscriptions = subscribed("a")
    subscriptions.answered(7, [None])
    assert subscriptions.unanswered
    assert subscriptions.take_answers() == []


def test_dropped_filters_are_not_sent() -> None:
    """Those already sent are still answered."""
    subscriptions = subscribed("a")
    subscriptions.want(["b", "c"])
    assert subscriptions.drop(["a", "b"]) == [["a", "b"]]
    assert subscriptions.packet(careful=False, idle=True) == ["c"]
    assert subscriptions.places == [Place("a", "subscribe")]


def test_unanswered_filters_and_the_probe_are_places() -> None:
    """The probe counts until it is back; unsent filters do not."""
    subscriptions = subscribed("a", "b")
    subscriptions.want(["c"])
    subscriptions.probe = "probe"
    assert subscriptions.places == [Place("a", "subscribe"), Place("b", "subscribe"), Place("probe")]
    subscriptions.came("a")
    assert subscriptions.probe
    subscriptions.came("probe")
    subscriptions.answered(1, [None, None])
    assert subscriptions.places == []
