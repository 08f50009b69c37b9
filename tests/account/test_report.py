"""The status of an account: its contents, when it is published, and what is logged; on a clock that is set."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.account.rationed import Usage
from dexcom2mqtt.account.report import Kept, StatusReport
from dexcom2mqtt.account.verdict import Verdict
from dexcom2mqtt.clock import iso, local
from dexcom2mqtt.messages.status import REMEDIES, Learned, Past, PastSignIns
from dexcom2mqtt.share.server_time import ShareTime
from dexcom2mqtt.topics import Topics
from tests.support.builders import NOON
from tests.support.jumping import JumpingClock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.status import ShareState

BOOTED = 5000.0
HTTP_NOON = "Sat, 19 Apr 2025 12:00:00 GMT"
OF_THE_START = {"next_poll": BOOTED, "last_success": None, "learned": None, "usage": Usage(), "kept": Kept()}


class Desk:
    """A report, and the statuses that it put."""

    def __init__(self) -> None:
        self.clock = JumpingClock(end=math.inf, begin=BOOTED)
        self.time = ShareTime(self.clock)
        self.put: list[dict[str, Any]] = []
        self.report = StatusReport("anna", self.clock, self.time, Topics("dexcom2mqtt"), self._take)

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            assert message.topic == "dexcom2mqtt/anna/status"
            self.put.append(json.loads(message.payload))

    def publish(self, **facts: Any) -> None:
        self.report.publish(**(OF_THE_START | facts))

    @property
    def last(self) -> dict[str, Any]:
        return self.put[-1]


@pytest.fixture
def desk() -> Desk:
    """Return a report after reading back an empty past; Share says that it is noon."""
    desk = Desk()
    desk.time.update(HTTP_NOON, BOOTED)
    desk.report.restore(PastSignIns())
    return desk


def verdict(share: ShareState, message: str | None = None) -> Verdict:
    return Verdict(share, message or REMEDIES[share])


def test_publishes_the_facts(desk: Desk) -> None:
    """Each fact has its key; times are by Share's clock, delay and spread are in tenths of a second."""
    desk.report.become(verdict("ok"))
    desk.publish(
        next_poll=BOOTED + 315,
        last_success=BOOTED + 5,
        learned=Learned(14.26, 3.14),
        usage=Usage(requests=7, logins=2, rejected=(NOON - 9, NOON - 5)),
        kept=Kept(newest_at=NOON + 1.0, ahead_until=NOON * 1000),
    )
    assert desk.last == {
        "share": "ok",
        "message": REMEDIES["ok"],
        "since": iso(NOON),
        "last_reading_at": iso(NOON + 1),
        "last_success_at": iso(NOON + 5),
        "next_poll_at": iso(NOON + 315),
        "delay": 14.3,
        "spread": 3.1,
        "requests_24h": 7,
        "logins_24h": 2,
        "rejected": [NOON - 9, NOON - 5],
        "ahead_until": None,  # until the past counts
    }


def test_times_are_null_until_share_sends_the_time() -> None:
    """Without Share's time the status contains no times; `since` is added as soon as the time is known."""
    desk = Desk()
    desk.report.restore(PastSignIns())
    desk.publish(last_success=BOOTED)
    assert [desk.last[key] for key in ("since", "last_success_at", "next_poll_at")] == [None] * 3
    desk.clock.time += 60
    desk.time.update(HTTP_NOON, desk.clock.now())
    desk.publish()
    assert desk.last["since"] == iso(NOON - 60)


def test_since_does_not_change_within_a_state(desk: Desk) -> None:
    """It stays the same although Share's time becomes more precise, until the state changes."""
    desk.report.become(verdict("ok"))
    desk.publish()
    desk.clock.time += 600
    desk.time.update("Sat, 19 Apr 2025 12:10:20 GMT", desk.clock.now())
    desk.report.become(verdict("ok"))
    desk.publish()
    assert desk.last["since"] == iso(NOON)
    desk.report.become(verdict("unavailable"))
    desk.publish()
    assert desk.last["since"] == iso(NOON + 620)


# --- what is logged of a change ----------------------------------------------------------------------------


def test_changes_are_logged_once(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A problem is logged with what to do; a new message alone is not logged; the end of the problem is."""
    caplog.set_level(logging.INFO)
    for each in (
        verdict("ok"),
        verdict("ok"),
        verdict("no_readings"),
        verdict("no_readings", "Another reason."),
        verdict("locked_out"),
        verdict("ok"),
    ):
        desk.report.become(each)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f"anna: no_readings: {REMEDIES['no_readings']}"),
        (logging.WARNING, f"anna: locked_out: {REMEDIES['locked_out']}"),
        (logging.INFO, "anna: recovered"),
    ]


def test_a_problem_that_lasts_for_an_hour_is_logged_once_more(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """After an hour there is more to do, which is logged once, and again only after a recovery in between."""
    caplog.set_level(logging.INFO)
    name, silence = Verdict("unavailable", "No name.", "Restart it."), verdict("unavailable", "No answer.")
    long = "anna: unavailable: No name. Restart it."
    for _ in range(2):
        caplog.clear()
        for pause, became, lines in (
            (0, name, ["anna: unavailable: No name."]),
            (3599, name, []),
            (1, silence, []),
            (0, name, [long]),
            (3600, silence, []),
            (3600, name, []),
        ):
            desk.clock.time += pause
            desk.report.become(became)
            desk.publish()
            assert caplog.messages == lines
            caplog.clear()
        assert desk.last["message"] == "No name. Restart it."
        desk.report.become(verdict("ok"))


def test_another_message_is_published(desk: Desk) -> None:
    """The message is always that of the last verdict."""
    desk.report.become(verdict("no_readings"))
    desk.report.become(verdict("no_readings", "Another reason."))
    desk.publish()
    assert (desk.last["share"], desk.last["message"]) == ("no_readings", "Another reason.")


def test_knows_whether_the_account_works(desk: Desk) -> None:
    """The account counts as well before the first answer, and while readings arrive."""
    well = [desk.report.well]
    for share in ("unavailable", "ok"):
        desk.report.become(verdict(share))
        well.append(desk.report.well)
    assert well == [True, False, True]


def test_sums_up(desk: Desk) -> None:
    """In one line: the state if it is not ok, the reading if there is one, the next poll once it is known."""
    assert desk.report.summary(None) == "anna: starting"
    desk.publish(next_poll=BOOTED + 60)
    soon = f"next poll {local(NOON + 60)}"
    assert desk.report.summary("85 mg/dL → 2 min ago") == f"anna: starting, 85 mg/dL → 2 min ago, {soon}"
    desk.report.become(verdict("ok"))
    assert desk.report.summary("85 mg/dL → 2 min ago") == f"anna: 85 mg/dL → 2 min ago, {soon}"
    assert desk.report.summary(None) == f"anna: ok, {soon}"
    desk.report.become(verdict("unavailable"))
    assert desk.report.summary("85 mg/dL → 9 min ago") == f"anna: unavailable, 85 mg/dL → 9 min ago, {soon}"


# --- resuming after a restart -------------------------------------------------------------------------------

BEFORE = PastSignIns(
    rejected=(NOON - 60,),
    locked_until=NOON + 600.0,
    last_reading=NOON - 120.0,
    stamps=Past(ahead_until=NOON * 1000 + 7, last_success=NOON - 90.0),
)


def test_nothing_is_published_before_the_last_status_is_read() -> None:
    """It would replace the status that a restart has to resume from."""
    desk = Desk()
    desk.time.update(HTTP_NOON, BOOTED)
    desk.report.become(verdict("ok"))
    desk.publish()
    assert desk.put == []
    desk.report.restore(PastSignIns())
    assert [each["share"] for each in desk.put] == ["ok"]  # and then immediately


def test_resumes_from_the_last_status() -> None:
    """What must survive a restart is in the first status, and in each one until the account counts it."""
    desk = Desk()
    desk.time.update(HTTP_NOON, BOOTED)
    desk.report.restore(BEFORE)
    desk.publish(usage=Usage(rejected=(NOON,)))
    for published, rejected in zip(desk.put, ([NOON - 60], [NOON - 60, NOON]), strict=True):
        assert (published["share"], published["message"]) == ("locked_out", REMEDIES["locked_out"])
        assert published["next_poll_at"] == iso(NOON + 600)
        assert published["rejected"] == rejected
        assert published["last_reading_at"] == iso(NOON - 120)
        assert published["last_success_at"] == iso(NOON - 90)
        assert published["ahead_until"] == NOON * 1000 + 7


def test_facts_that_the_account_counts_itself_are_not_added_again() -> None:
    """From then on only the account's own facts count; the time of the last reading stays until there is another."""
    desk = Desk()
    desk.time.update(HTTP_NOON, BOOTED)
    desk.report.restore(BEFORE)
    desk.report.become(verdict("ok"))
    desk.publish(
        next_poll=BOOTED + 300,
        last_success=BOOTED,
        usage=Usage(rejected=(NOON - 60, NOON), restored=True),
        kept=Kept(ahead_until=None, restored=True),
    )
    assert (desk.last["share"], desk.last["rejected"]) == ("ok", [NOON - 60, NOON])
    assert (desk.last["ahead_until"], desk.last["next_poll_at"]) == (None, iso(NOON + 300))
    assert (desk.last["last_reading_at"], desk.last["last_success_at"]) == (iso(NOON - 120), iso(NOON))
    desk.publish(kept=Kept(newest_at=NOON, ahead_until=NOON * 1000 + 9, restored=True), usage=Usage(restored=True))
    assert (desk.last["last_reading_at"], desk.last["ahead_until"]) == (iso(NOON), NOON * 1000 + 9)


def test_facts_from_before_the_read_back_lose_nothing() -> None:
    """Facts gathered before the last status was read, and published after it, lose nothing from it."""
    desk = Desk()
    desk.time.update(HTTP_NOON, BOOTED)
    facts = {"usage": Usage(requests=1), "kept": Kept()}
    desk.report.restore(BEFORE)
    desk.publish(**facts)
    assert desk.last["rejected"] == [NOON - 60]
    assert desk.last["ahead_until"] == NOON * 1000 + 7
