"""What must not stay current while the broker refuses some topics, and when held topics are sent."""

from __future__ import annotations

import math
from functools import partial

import pytest

from dexcom2mqtt.messages.bridge import bridge_offline, bridge_online
from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.state import fresh_messages, guarded, stale_messages, state_of, unavailable, unprotected
from dexcom2mqtt.topics import STATE_KEYS, Topics
from tests.support.builders import account, reading

TOPICS = Topics("home/dexcom")
STATE, VALUE, AVAILABILITY = (TOPICS.of("anna", leaf) for leaf in ("state", "value", "availability"))
EVERYTHING = 1000
FRESH = fresh_messages(TOPICS, "anna", state_of(reading(), None, account()), 900.0)
NULLS = {
    message.topic: message.payload for message in stale_messages(TOPICS, "anna", state_of(reading(), None, account()))
}


def mirror_of(*messages: Message) -> Mirror:
    """Make a mirror like the daemon's that has sent these messages."""
    mirror = Mirror(TOPICS.bridge_state, guard=partial(guarded, TOPICS))
    mirror.put(messages)
    mirror.take(0.0, EVERYTHING)
    return mirror


def sent(mirror: Mirror, now: float = 1.0) -> dict[str, str]:
    return {message.topic: message.payload for message in mirror.take(now, EVERYTHING)}


# --- guarded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", ["state", *STATE_KEYS])
def test_without_a_key_the_account_is_unavailable(leaf: str) -> None:
    """The broker may have an old value there, so the account is unavailable until the broker accepts a newer one."""
    mirror = mirror_of(*FRESH, bridge_online(TOPICS, 180.0))
    mirror.set_aside(frozenset({TOPICS.of("anna", leaf)}))
    assert sent(mirror) == {AVAILABILITY: "offline"}
    mirror.set_aside(frozenset())
    assert sent(mirror) == {AVAILABILITY: "online"}


def test_without_the_availability_there_is_no_value() -> None:
    """It may still say online, so the state says that there is no reading, and later readings are not shown."""
    mirror = mirror_of(*FRESH, bridge_online(TOPICS, 180.0))
    mirror.set_aside(frozenset({AVAILABILITY}))
    shown = sent(mirror)
    assert shown == {topic: payload for topic, payload in NULLS.items() if shown.get(topic)}
    assert shown.keys() >= {STATE, VALUE}
    mirror.put(fresh_messages(TOPICS, "anna", state_of(reading(200), None, account()), 1200.0))
    assert {payload for topic, payload in sent(mirror).items() if topic != AVAILABILITY} <= {*NULLS.values()}
    mirror.set_aside(frozenset())
    assert '"value": 200' in sent(mirror)[STATE]


@pytest.mark.parametrize(
    "topic", [TOPICS.of("ben", "state"), TOPICS.of("anna", "history"), TOPICS.of("anna", "reading"), "homeassistant/x"]
)
def test_other_topics_change_nothing(topic: str) -> None:
    """Topics of another account, and topics that do not show whether a value is current, change nothing."""
    mirror = mirror_of(*FRESH, bridge_online(TOPICS, 180.0))
    mirror.set_aside(frozenset({topic}))
    assert sent(mirror) == {}


@pytest.mark.parametrize(
    ("aside", "alone"),
    [
        ({STATE}, False),
        ({AVAILABILITY}, False),
        ({AVAILABILITY, VALUE}, True),
        ({AVAILABILITY, TOPICS.of("ben", "value")}, False),
        ({TOPICS.bridge_state}, True),
        ({TOPICS.bridge_info, "homeassistant/device/x/config", TOPICS.of("anna", "history")}, False),
        (set(), False),
    ],
)
def test_when_only_the_will_is_left(aside: set[str], *, alone: bool) -> None:
    """Only the last will is left if neither value nor availability can be sent, or the daemon's own state cannot."""
    assert unprotected(TOPICS, frozenset(aside)) is alone


# --- held --------------------------------------------------------------------------------------------------


def test_a_held_topic_waits_and_is_sent_as_it_is_then() -> None:
    """The other topics are sent meanwhile, including the last one; the held topic is due at its time."""
    mirror = mirror_of(Message("a", "1"), Message("b", "1"), bridge_offline(TOPICS))
    mirror.hold("a", 50.0)
    mirror.put([Message("a", "2"), Message("b", "2"), bridge_online(TOPICS, 180.0)])
    assert list(sent(mirror)) == ["b", TOPICS.bridge_state]
    assert mirror.next_at() == 50.0
    assert not mirror.unsent
    assert sent(mirror, 49.9) == {}
    assert sent(mirror, 50.0) == {"a": "2"}
    assert mirror.next_at() == 180.0


def test_the_last_topic_may_be_held() -> None:
    """It is then not sent with the others."""
    mirror = mirror_of(Message("a", "1"), bridge_offline(TOPICS))
    mirror.hold(TOPICS.bridge_state, 50.0)
    mirror.put([Message("a", "2")])
    assert list(sent(mirror)) == ["a"]
    assert list(sent(mirror, 50.0)) == [TOPICS.bridge_state]


def test_a_topic_outside_the_picture_is_not_held() -> None:
    """Readings are not in the picture, so their topic is not held."""
    mirror = mirror_of(Message("a", "1"))
    mirror.hold("x", 50.0)
    assert mirror.next_at() == math.inf


def test_a_held_topic_stays_held_on_the_next_connection() -> None:
    """The whole picture is sent again without it."""
    mirror = mirror_of(Message("a", "1"), Message("b", "1"))
    mirror.hold("a", 50.0)
    mirror.send_all()
    assert list(sent(mirror)) == ["b"]
    assert mirror.size("a") == 1
    assert mirror.size("x") == 0


def test_the_last_messages_do_not_wait_for_held_topics() -> None:
    """A stop does not wait for a topic that cannot be sent now."""
    mirror = mirror_of(*FRESH)
    mirror.hold(VALUE, math.inf)
    mirror.close([unavailable(TOPICS, "anna")])
    assert sent(mirror) == {AVAILABILITY: "offline"}
    assert not mirror.unsent


def test_the_last_topic_is_sent_only_when_allowed() -> None:
    """It says that the others are current, so they may have to be acknowledged first."""
    mirror = mirror_of(Message("a", "1"), bridge_offline(TOPICS))
    mirror.put([Message("a", "2"), bridge_online(TOPICS, 180.0)])
    left = [mirror.only_last_is_left]
    assert [message.topic for message in mirror.take(1.0, EVERYTHING, last=False)] == ["a"]
    left.append(mirror.only_last_is_left)
    assert left == [False, True]
    assert mirror.take(1.0, EVERYTHING, last=False) == []
    assert list(sent(mirror)) == [TOPICS.bridge_state]


def test_a_released_topic_is_sent_at_once() -> None:
    """This happens on a connection that tries it once more, and at a stop."""
    mirror = mirror_of(Message("a", "1"), Message("b", "1"))
    for topic in ("a", "b"):
        mirror.hold(topic, 1000.0)
    mirror.release(["a"])
    assert list(sent(mirror)) == ["a"]
    mirror.close([Message("b", "offline")])
    assert sent(mirror) == {"b": "offline"}
