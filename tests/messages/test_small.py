"""A history that has to be small: which readings it leaves out, and that they are not published again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.messages.bridge import awaited, bridge_info
from dexcom2mqtt.messages.history import history_message, parse_history, shortened
from dexcom2mqtt.messages.message import ForeignError, FutureError
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.messages.unpublished import Offer
from tests.support.builders import NOON, account, reading
from tests.support.payloads import SOURCE, TOPICS

DAY = [reading(100, seconds=300 * number - 86_100) for number in range(288)]
WHOLE = len(history_message(TOPICS, "anna", SOURCE, DAY).payload)


@given(most=st.integers(200, 30_000))
def test_the_newest_that_fit_are_kept(most: int) -> None:
    """It has as many readings as fit, and says since when it is complete; if all fit, nothing changes."""
    message = shortened(TOPICS, "anna", SOURCE, DAY, most_bytes=most)
    history = json.loads(message.payload)
    kept = parse_history(message.payload.encode(), SOURCE, NOON)
    assert len(message.payload) <= most
    assert kept.readings == tuple(DAY[288 - len(kept.readings) :])
    if most >= WHOLE:
        assert message == history_message(TOPICS, "anna", SOURCE, DAY)
    elif kept.readings:
        assert history["since"] == kept.since == kept.readings[0].date
        assert most - len(message.payload) < 3 * (WHOLE / 288)
    else:
        assert kept.since == DAY[-1].date + 1


def test_doubtful_readings_count_too() -> None:
    """Both kinds are shortened to the same time."""
    message = shortened(TOPICS, "anna", SOURCE, DAY[::2], DAY[1::2], most_bytes=10_000)
    kept = parse_history(message.payload.encode(), SOURCE, NOON)
    assert min(each.date for each in kept.readings) - min(each.date for each in kept.doubtful) in {-300_000, 300_000}


def test_since_stays_until_a_day_later() -> None:
    """A daemon that read a short history keeps its ``since`` until that is a day old."""
    since = DAY[100].date
    assert json.loads(shortened(TOPICS, "anna", SOURCE, DAY[100:], since=since).payload)["since"] == since
    later = [reading(100, seconds=300 * number) for number in range(288)]
    assert "since" not in json.loads(shortened(TOPICS, "anna", SOURCE, later, since=since).payload)


@pytest.mark.parametrize("since", ["1", 1.5, None, True, []])
def test_a_senseless_since_is_not_ours(since: object) -> None:
    """A history with a senseless ``since`` is ignored entirely."""
    payload = json.dumps({"version": 1, "source": SOURCE, "since": since, "readings": []}).encode()
    with pytest.raises(ForeignError):
        parse_history(payload, SOURCE, NOON)


def test_a_since_in_the_future_waits_for_the_time() -> None:
    """It raises FutureError, as readings in the future do."""
    payload = json.dumps({"version": 1, "source": SOURCE, "since": (NOON + 3600) * 1000, "readings": []}).encode()
    with pytest.raises(FutureError):
        parse_history(payload, SOURCE, NOON)


def stream_of(since: int = 0) -> Stream:
    stream = Stream(TOPICS)
    stream.open("anna", SOURCE, [each for each in DAY if each.date >= since], since=since)
    return stream


def test_readings_without_room_in_the_history_count_as_published() -> None:
    """Share still has them after a restart, so they are offered again, but not sent."""
    stream = stream_of(DAY[100].date)
    stream.offer("anna", [Offer(each, None, account(), 0.0) for each in [*DAY[:100], reading(99, seconds=300)]])
    stream.histories(NOON)  # before that there is no room for more
    (only,) = stream.take(NOON + 301, 1000)
    assert json.loads(only.payload)["mg_dl"] == 99


def test_a_history_fits_the_limit_of_the_broker() -> None:
    """It is written again at once, and only if it has to be smaller."""
    stream = stream_of()
    assert [len(each.payload) for each in stream.histories(NOON)] == [WHOLE]
    stream.fit(lambda topic: 10_000 if topic == TOPICS.of("anna", "history") else 0)
    (short,) = stream.histories(NOON)
    assert 9000 < len(short.payload) <= 10_000
    stream.fit(lambda _: 20_000)
    assert stream.histories(NOON) == []


def test_a_history_is_halved_as_long_as_that_helps() -> None:
    """Other topics are not shortened, and a history not to less than 2 kB."""
    stream, topic = stream_of(), TOPICS.of("anna", "history")
    assert not stream.shorten(TOPICS.of("anna", "state"), 1000)
    assert stream.shorten(topic, WHOLE / 2)
    (short,) = stream.histories(NOON)
    assert len(short.payload) <= WHOLE / 2
    assert not stream.shorten(topic, 511)


# --- what is still to come ----------------------------------------------------------------------------------


def status(at: object) -> bytes:
    return json.dumps({"last_reading_at": at}).encode()


INFO, STATUS, HISTORY = TOPICS.bridge_info, TOPICS.of("anna", "status"), TOPICS.of("anna", "history")
DAYS = TOPICS.of("anna", "days")
ASKED = (INFO, STATUS, HISTORY, DAYS)


def info(*, days: bool) -> bytes:
    said = bridge_info(TOPICS, version="1", started_at=None, protocol="5", accounts=["anna"], days=days)
    return said.payload.encode()


LEFT, WITH_DAYS = info(days=False), info(days=True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, "anything"),
        ({STATUS: status("x"), HISTORY: b"{}"}, "anything"),
        ({INFO: b"garbage"}, "nothing"),
        ({INFO: LEFT}, "the rest"),
        ({INFO: LEFT, STATUS: status("2026-01-01T00:00:00+00:00")}, "the rest"),
        ({INFO: LEFT, STATUS: status(None)}, "nothing"),
        ({INFO: LEFT, STATUS: b"garbage"}, "nothing"),
        ({INFO: LEFT, HISTORY: b"{}"}, "the rest"),
        ({INFO: LEFT, STATUS: status("2026-01-01T00:00:00+00:00"), HISTORY: b"{}"}, "nothing"),
        ({INFO: WITH_DAYS, STATUS: status(None)}, "the rest"),
        ({INFO: WITH_DAYS, STATUS: status(None), DAYS: b"{}"}, "nothing"),
    ],
)
def test_which_messages_are_awaited(found: dict[str, bytes], expected: str) -> None:
    """Each account named has a status, a history once it had a reading, and days if they are kept."""
    assert awaited(TOPICS, found, ASKED) == expected


def test_only_requested_topics_are_awaited() -> None:
    """A removed account is not read back, and others come in a later batch."""
    assert awaited(TOPICS, {INFO: LEFT}, (INFO,)) == "nothing"
