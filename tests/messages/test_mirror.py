"""What has to be sent so that the broker has the picture."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.mirror import Mirror
from tests.support.builders import property_of

if TYPE_CHECKING:
    from collections.abc import Callable

LAST = "b/bridge/state"
EVERYTHING = 1000


def mirror_of(*messages: Message) -> Mirror:
    """Make a mirror that has sent these messages."""
    mirror = Mirror(last=LAST)
    mirror.put(messages)
    mirror.take(0.0, EVERYTHING)
    return mirror


def mortal(topic: str, expires_at: float, payload: str = "fresh") -> Message:
    """Make a message with a stale successor."""
    return Message(topic, payload, expires_at, Message(topic, "stale"))


def is_waiting(mirror: Mirror) -> bool:
    """Return whether there is something to send now."""
    return mirror.unsent


# --- put and take ------------------------------------------------------------------------------------------


def test_has_nothing_at_first() -> None:
    """A new mirror has nothing to send and nothing that expires."""
    mirror = Mirror(last=LAST)
    assert not is_waiting(mirror)
    assert mirror.take(0.0, EVERYTHING) == []
    assert mirror.next_at() == math.inf


def test_sends_in_the_order_given() -> None:
    """Each message is sent once, in the order of the puts."""
    messages = [Message(topic, "1") for topic in ("c", "a", "b", LAST)]
    mirror = Mirror(last=LAST)
    mirror.put(messages)
    assert is_waiting(mirror)
    assert mirror.take(0.0, EVERYTHING) == messages
    assert not is_waiting(mirror)
    assert mirror.take(0.0, EVERYTHING) == []


def test_sends_at_most_as_many_as_asked() -> None:
    """A limit leaves the rest for the next take, in order."""
    messages = [Message(topic, "1") for topic in "abcde"]
    mirror = Mirror(last=LAST)
    mirror.put(messages)
    assert mirror.take(0.0, 0) == []
    assert mirror.take(0.0, 2) == messages[:2]
    assert is_waiting(mirror)
    assert mirror.take(0.0, 2) == messages[2:4]
    assert mirror.take(0.0, 2) == messages[4:]
    assert not is_waiting(mirror)


def test_sends_only_changed_messages() -> None:
    """A message that the broker already has is not sent again; one with another payload is."""
    mirror = mirror_of(Message("a", "1"), Message("b", "1"))
    mirror.put([Message("a", "1"), Message("b", "2")])
    assert mirror.take(0.0, EVERYTHING) == [Message("b", "2")]


@pytest.mark.parametrize(
    ("before", "after", "is_sent"),
    [(None, None, False), (60.0, 60.0, False), (60.0, 61.0, True), (60.0, None, True), (None, 60.0, True)],
)
def test_sends_a_message_with_another_expiry(before: float | None, after: float | None, *, is_sent: bool) -> None:
    """The same payload with another expiry is sent again, if they differ by whole seconds, as in MQTT."""
    mirror = mirror_of(Message("a", "1", before))
    mirror.put([Message("a", "1", after)])
    assert mirror.take(0.0, EVERYTHING) == ([Message("a", "1", after)] if is_sent else [])


def test_a_slow_drift_of_the_expiry_is_sent_in_the_end() -> None:
    """If each put moves the expiry by less than a second, it is sent once the sum is a second."""
    mirror = mirror_of(Message("a", "1", 60.0))
    sent = []
    for tenth in range(100):
        mirror.put([Message("a", "1", 60 + tenth / 10)])
        sent += mirror.take(0.0, EVERYTHING)
    assert sent
    assert sent[-1].expires_at == pytest.approx(69.9, abs=1)


def test_only_the_newest_of_a_topic_is_sent() -> None:
    """A message replaced before it was sent is never sent, and its topic moves to its new place."""
    mirror = Mirror(last=LAST)
    mirror.put([Message("a", "1"), Message("b", "1")])
    mirror.put([Message("a", "2")])
    assert mirror.take(0.0, EVERYTHING) == [Message("b", "1"), Message("a", "2")]


def test_only_missing_keeps_existing_topics() -> None:
    """Topics that the picture has stay unchanged, sent or not, and the others are put."""
    mirror = mirror_of(Message("a", "1"))
    mirror.put([Message("b", "1")])
    mirror.put([Message("a", "0"), Message("b", "0"), Message("c", "0")], only_missing=True)
    assert mirror.take(0.0, EVERYTHING) == [Message("b", "1"), Message("c", "0")]


def test_close_ends_with_the_last_messages() -> None:
    """The last messages are sent after all earlier ones, and later puts are ignored."""
    mirror = mirror_of(Message("a", "online"), Message(LAST, "online"))
    mirror.put([Message("b", "1")])
    mirror.close([Message("a", "offline"), Message(LAST, "offline")])
    mirror.put([Message(LAST, "online"), Message("c", "1")])
    mirror.put([Message("d", "1")], only_missing=True)
    assert mirror.take(0.0, EVERYTHING) == [Message("b", "1"), Message("a", "offline"), Message(LAST, "offline")]
    mirror.put([Message(LAST, "online")])
    assert not is_waiting(mirror)


def test_calls_when_there_is_something_to_send() -> None:
    """A put that changes the picture calls ``changed``, outside of the lock; one that changes nothing does not."""
    calls: list[bool] = []
    mirror = Mirror(last=LAST, changed=lambda: calls.append(mirror.unsent))
    mirror.put([Message("a", "1")])
    assert calls == [True]
    mirror.take(0.0, EVERYTHING)
    mirror.put([Message("a", "1")])
    mirror.put([])
    assert calls == [True]
    mirror.close([Message("a", "2")])
    assert calls == [True, True]


# --- expiry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now", "is_expired"), [(9.999, False), (10.0, True), (1e6, True)])
def test_expires_into_its_successor(now: float, *, is_expired: bool) -> None:
    """At its expiry, and not before, a message is replaced by its successor, which is sent once."""
    mirror = mirror_of(mortal("a", 10.0))
    assert mirror.take(now, EVERYTHING) == ([Message("a", "stale")] if is_expired else [])
    assert mirror.take(now, EVERYTHING) == []
    assert mirror.take(1e7, EVERYTHING) == ([] if is_expired else [Message("a", "stale")])


def test_expires_in_order_of_time() -> None:
    """Messages are sent in the order of their expiry, and if that is the same, in the order of the puts."""
    mirror = mirror_of(mortal("c", 10.0), mortal("d", 10.0), mortal("b", 9.0), mortal("a", 11.0))
    assert [message.topic for message in mirror.take(20.0, EVERYTHING)] == ["b", "c", "d", "a"]


def test_each_message_expires_at_its_own_time() -> None:
    """A message does not expire together with an earlier one."""
    mirror = mirror_of(mortal("a", 10.0), mortal("b", 20.0))
    assert mirror.next_at() == 10.0
    assert mirror.take(15.0, EVERYTHING) == [Message("a", "stale")]
    assert mirror.next_at() == 20.0
    assert mirror.take(19.0, EVERYTHING) == []
    assert mirror.take(20.0, EVERYTHING) == [Message("b", "stale")]
    assert mirror.next_at() == math.inf


def test_a_message_that_expires_unsent_is_never_sent() -> None:
    """If a message expires while it waits, only its successor is sent."""
    mirror = Mirror(last=LAST)
    mirror.put([mortal("a", 10.0)])
    assert mirror.take(10.0, EVERYTHING) == [Message("a", "stale")]


def test_message_without_successor_vanishes() -> None:
    """An expired message without a successor is not sent, not even with the whole picture: the broker dropped it."""
    mirror = mirror_of(Message("a", "1", 10.0), Message("b", "1"))
    assert mirror.take(10.0, EVERYTHING) == []
    mirror.send_all()
    assert mirror.take(11.0, EVERYTHING) == [Message("b", "1")]
    waiting = Mirror(last=LAST)
    waiting.put([Message("a", "1", 10.0)])
    assert waiting.take(10.0, EVERYTHING) == []
    assert not is_waiting(waiting)


def test_a_vanished_message_can_be_put_again() -> None:
    """After a message has vanished, the same one with a new expiry is sent."""
    mirror = mirror_of(Message("a", "1", 10.0))
    mirror.take(10.0, EVERYTHING)
    mirror.put([Message("a", "1", 20.0)])
    assert mirror.take(11.0, EVERYTHING) == [Message("a", "1", 20.0)]


def test_replaced_in_time_does_not_expire() -> None:
    """A message that was replaced by a longer-lived one expires only at the new time."""
    mirror = mirror_of(mortal("a", 10.0))
    mirror.put([mortal("a", 20.0)])
    assert mirror.take(15.0, EVERYTHING) == [mortal("a", 20.0)]
    assert mirror.take(20.0, EVERYTHING) == [Message("a", "stale")]


def test_a_successor_expires_too() -> None:
    """A successor with its own expiry is replaced by its own successor at that time."""
    mirror = mirror_of(Message("a", "1", 10.0, Message("a", "2", 20.0, Message("a", "3"))))
    assert [message.payload for message in mirror.take(10.0, EVERYTHING)] == ["2"]
    assert mirror.next_at() == 20.0
    assert [message.payload for message in mirror.take(20.0, EVERYTHING)] == ["3"]


def test_closed_still_expires() -> None:
    """After the last messages, values that become stale are still sent as stale."""
    mirror = mirror_of(mortal("a", 10.0))
    mirror.close([Message("b", "offline")])
    assert mirror.take(9.0, EVERYTHING) == [Message("b", "offline")]
    assert mirror.take(10.0, EVERYTHING) == [Message("a", "stale")]


# --- the whole picture -------------------------------------------------------------------------------------


def test_sends_the_whole_picture_again() -> None:
    """After a connect everything is sent in the order of the puts, with the bridge's state last."""
    mirror = mirror_of(Message("a", "1"), Message(LAST, "online"), Message("b", "1"))
    mirror.put([Message("a", "2")])
    mirror.send_all()
    assert is_waiting(mirror)
    assert mirror.take(0.0, EVERYTHING) == [Message("b", "1"), Message("a", "2"), Message(LAST, "online")]
    assert not is_waiting(mirror)


def test_starts_over_with_each_connect() -> None:
    """A connect in the middle of the picture sends it from the start, and nothing twice on one connection."""
    mirror = mirror_of(Message("a", "1"), Message("b", "1"), Message(LAST, "online"))
    mirror.send_all()
    mirror.take(0.0, 1)
    mirror.send_all()
    mirror.send_all()
    assert [message.topic for message in mirror.take(0.0, EVERYTHING)] == ["a", "b", LAST]


def test_stale_picture_is_complete_before_the_bridge_is_online() -> None:
    """Values that became stale without a connection are sent as stale, and before the bridge's state."""
    mirror = mirror_of(mortal("a", 10.0), Message("b", "1"), Message(LAST, "online"))
    mirror.send_all()
    sent = mirror.take(20.0, EVERYTHING)
    assert sorted(message.topic for message in sent) == sorted(["a", "b", LAST])
    assert Message("a", "stale") in sent
    assert sent[-1] == Message(LAST, "online")


@pytest.mark.parametrize("already_sent", [0, 1, 2])
def test_changed_picture_is_complete_before_the_bridge_is_online(already_sent: int) -> None:
    """Changes made while the picture is being sent are also sent before the bridge's state."""
    mirror = mirror_of(Message("a", "1"), Message("b", "1"), Message(LAST, "online"))
    mirror.send_all()
    mirror.take(0.0, already_sent)
    mirror.put([Message("b", "2")])
    sent = mirror.take(0.0, EVERYTHING)
    assert Message("b", "2") in sent
    assert sent[-1] == Message(LAST, "online")


def test_continues_in_order_after_the_picture() -> None:
    """After the picture, changes are sent in their order."""
    mirror = mirror_of(Message("a", "1"), Message("b", "1"), Message(LAST, "online"))
    mirror.send_all()
    mirror.take(0.0, EVERYTHING)
    mirror.put([Message("b", "2"), Message("a", "2")])
    assert mirror.take(0.0, EVERYTHING) == [Message("b", "2"), Message("a", "2")]


# --- properties --------------------------------------------------------------------------------------------


@dataclass
class World:
    """A mirror, a broker with the messages taken, and what it should have by simple rules."""

    mirror: Mirror = field(default_factory=lambda: Mirror(last=LAST))
    now: int = 0
    held: dict[str, Message] = field(default_factory=dict)
    ought: dict[str, Message] = field(default_factory=dict)

    def put(self, topic: int, payload: int, left: int) -> None:
        """Put a message: on some topics it lasts, on some it has a successor, on one it just expires."""
        expires_at = self.now + left
        message = [
            Message("lasting", f"{payload}"),
            mortal("mortal", expires_at, f"{payload}"),
            mortal("mortal too", expires_at, f"{payload}"),
            Message(LAST, "online", expires_at),
        ][topic]
        self.ought[message.topic] = message
        self.mirror.put([message])

    def put_missing(self, payload: int, _left: int) -> None:
        """Put a message only if its topic has none."""
        message = Message("lasting", f"missing {payload}")
        self.ought.setdefault(message.topic, message)
        self.mirror.put([message], only_missing=True)

    def take(self, most: int) -> None:
        """Let the mirror send, and time pass for both the broker and the rules."""
        sent = self.mirror.take(self.now, most)
        assert len(sent) <= most
        for message in sent:
            self.held[message.topic] = message
        for picture in (self.held, self.ought):
            for message in list(picture.values()):
                if message.expires_at is not None and message.expires_at <= self.now:
                    del picture[message.topic]
                    if picture is self.ought and message.successor is not None:
                        self.ought[message.topic] = message.successor

    def reconnect(self) -> None:
        """Connect to a broker that has forgotten everything."""
        self.held.clear()
        self.mirror.send_all()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("put_missing"), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("take"), st.integers(0, 4)),
        st.tuples(st.just("reconnect")),
        st.tuples(st.just("wait"), st.integers(0, 9)),
    ),
    max_size=40,
)


def live(steps: list[tuple[str, int]], then: Callable[[World], None]) -> World:
    """Run the steps, and do something after each."""
    world = World()
    for name, *numbers in steps:
        if name == "wait":
            world.now += numbers[0]
        else:
            getattr(world, name)(*numbers)
        then(world)
    return world


@given(steps)
@property_of
def test_the_broker_ends_with_the_picture(steps: list[tuple[str, int]]) -> None:
    """Whatever happened, once all is sent the broker has the picture, and nothing is left to send."""
    world = live(steps, then=lambda _: None)
    while world.mirror.unsent:
        world.take(2)
    world.take(EVERYTHING)
    assert world.held == world.ought
    assert world.mirror.take(world.now, EVERYTHING) == []


@given(steps)
@property_of
def test_never_oversleeps_an_expiry(steps: list[tuple[str, int]]) -> None:
    """The next expiry is never later than that of any message in the picture."""

    def check(world: World) -> None:
        expiries = [message.expires_at for message in world.ought.values() if message.expires_at is not None]
        assert world.mirror.next_at() <= min(expiries, default=math.inf)

    live(steps, then=check)


@given(steps)
@property_of
def test_nothing_old_follows_something_new(steps: list[tuple[str, int]]) -> None:
    """Each message taken is what its topic should have at that moment."""

    def check(world: World) -> None:
        sent = {message.topic: message for message in world.mirror.take(world.now, EVERYTHING)}
        world.take(0)
        assert sent.items() <= world.ought.items()

    live(steps, then=check)


def test_sends_some_topics_again() -> None:
    """Only those topics of the picture are sent again, once each, after everything that was still unsent."""
    woken = []
    mirror = Mirror(last=LAST, changed=lambda: woken.append(True))
    mirror.put([Message("a", "1"), Message("b", "2"), Message(LAST, "3")])
    mirror.take(0.0, EVERYTHING)
    woken.clear()
    mirror.send_again(["b", "a", "nothing"])
    mirror.send_again(["b"])
    assert mirror.take(0.0, EVERYTHING) == [Message("b", "2"), Message("a", "1")]
    assert woken == [True, True]
    mirror.send_again(["nothing"])
    assert woken == [True, True]
    assert not is_waiting(mirror)


def test_sends_nothing_again_after_the_end() -> None:
    """After the last messages nothing is sent again."""
    mirror = mirror_of(Message("a", "1"))
    mirror.close([])
    mirror.send_again(["a"])
    assert not is_waiting(mirror)


def test_any_thread_may_put() -> None:
    """Everything that several threads put while another one takes is sent, in the order of each thread."""
    mirror = Mirror(last=LAST)

    def put(topic: str) -> None:
        for payload in range(300):
            mirror.put([Message(topic, f"{payload}")])

    threads = [threading.Thread(target=put, args=(topic,)) for topic in "abcd"]
    for thread in threads:
        thread.start()
    sent: list[Message] = []
    while any(thread.is_alive() for thread in threads) or mirror.unsent:
        sent += mirror.take(0.0, 3)
    for topic in "abcd":
        payloads = [int(message.payload) for message in sent if message.topic == topic]
        assert payloads == sorted(set(payloads))
        assert payloads[-1] == 299


OURS, THEIRS = Message("d/anna/state", "1"), Message("d/ben/state", "2")


def test_withholds_the_topics_of_another() -> None:
    """What is withheld is neither sent nor waited for; once it is released, its newest form is sent."""
    woken = []
    mirror = Mirror(last=LAST, changed=lambda: woken.append(True))
    mirror.withhold(frozenset({"d/ben"}))
    mirror.put([OURS, THEIRS, Message(LAST, "3")])
    assert mirror.take(0.0, EVERYTHING) == [OURS, Message(LAST, "3")]
    assert not mirror.unsent
    mirror.put([replace(THEIRS, payload="4")])
    assert not is_waiting(mirror)
    woken.clear()
    mirror.withhold(frozenset())
    assert woken == [True]
    assert mirror.take(0.0, EVERYTHING) == [replace(THEIRS, payload="4")]


def test_only_the_last_topic_is_left_beside_withheld_ones() -> None:
    """The last topic does not wait for what is withheld, after a connect either."""
    mirror = Mirror(last=LAST)
    mirror.put([THEIRS, Message(LAST, "3")])
    mirror.withhold(frozenset({"d/ben"}))
    for _ in range(2):
        assert mirror.only_last_is_left
        assert mirror.take(0.0, EVERYTHING) == [Message(LAST, "3")]
        mirror.send_all()


def test_forgets_what_another_sends_from_now_on() -> None:
    """Forgotten topics are never sent again, not even when they expire; the others are."""
    mirror = Mirror(last=LAST)
    mirror.put([OURS, replace(THEIRS, expires_at=10.0, successor=THEIRS)])
    mirror.forget({"d/ben"})
    assert mirror.take(0.0, EVERYTHING) == [OURS]
    mirror.send_all()
    assert mirror.take(20.0, EVERYTHING) == [OURS]
    mirror.put([THEIRS])
    assert mirror.take(20.0, EVERYTHING) == [THEIRS]
