"""What follows each attempt to connect: the protocol, the pause, and the log lines."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import pytest

from dexcom2mqtt.mqtt import patience
from dexcom2mqtt.mqtt.attempts import Attempts
from dexcom2mqtt.mqtt.outcome import Failure

if TYPE_CHECKING:
    from dexcom2mqtt.mqtt.outcome import Ending, Line, Protocol

REFUSED = Failure("does not support MQTT 5", ending="protocol_refused")
HUNG_UP = Failure("closed the connection without an answer", ending="closed_without_answer")
NOT_THERE = Failure("nothing listens there")
LOST = Failure("was lost", ending="closed_busy")
TAKEN_OVER = Failure("another program has connected", ending="taken_over")
JAMMED = Failure("has acknowledged nothing", ending="jammed")
WELL = "connected to the broker at home:1883 with MQTT 5"
SHORT, GOOD, LONG = 1.0, 31.0, 301.0
"""Seconds that a connection lasts: short, long enough to count as good, and long enough to end a take-over."""


@dataclass
class Story:
    """Some attempts: their protocols, the pauses after them, and the log."""

    attempts: Attempts
    protocols: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    log: list[tuple[int, str]] = field(default_factory=list)

    def fails(self, failure: Failure, *more: Failure) -> None:
        """Let attempts fail."""
        for each in (failure, *more):
            self._try()
            self._end(each, SHORT)

    def ends(self, failure: Failure, after: float = SHORT) -> None:
        """Let a connection succeed, and end after so many seconds."""
        self.connects()
        self._end(failure, after)

    def connects(self) -> None:
        self._try()
        self._log(self.attempts.connected())

    def lasts(self, seconds: float, *, idle: bool = True, speed: float = 1.0) -> None:
        self._log(self.attempts.lasts(seconds, seconds / speed, idle=idle))

    def _try(self) -> None:
        self.protocols.append(self.attempts.protocol)

    def _end(self, failure: Failure, lasted: float) -> None:
        following = self.attempts.failed(failure, lasted)
        self.pauses.append(following.pause)
        self._log(following.line)

    def _log(self, line: Line | None) -> None:
        if line is not None:
            self.log.append((line.level, line.text))

    @property
    def said(self) -> list[str]:
        return [text for _, text in self.log]


def story(wanted: Literal["auto"] | Protocol = "auto", chance: float = 1.0) -> Story:
    return Story(Attempts(wanted, "the broker at home:1883", lambda: chance))


# --- the protocol ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        pytest.param((NOT_THERE,) * 4, "5 5 5 5 5", id="not there"),
        pytest.param((REFUSED,), "5 3.1.1", id="refuses MQTT 5"),
        pytest.param((REFUSED,) * 4, "5 3.1.1 3.1.1 3.1.1 3.1.1", id="refuses both"),
        pytest.param((REFUSED, HUNG_UP, HUNG_UP, HUNG_UP), "5 3.1.1 3.1.1 3.1.1 3.1.1", id="refuses 5, hangs up at 3"),
        pytest.param((HUNG_UP,), "5 5", id="hangs up once"),
        pytest.param((HUNG_UP,) * 6, "5 5 3.1.1 5 5 3.1.1 5", id="hangs up at both: 3.1.1 is tried each third time"),
        pytest.param((HUNG_UP, NOT_THERE, HUNG_UP), "5 5 5 3.1.1", id="hangs up twice, not in a row"),
        pytest.param((HUNG_UP, HUNG_UP, NOT_THERE, HUNG_UP), "5 5 3.1.1 5 5", id="hangs up twice, then is not there"),
        pytest.param((HUNG_UP, HUNG_UP, REFUSED, REFUSED), "5 5 3.1.1 5 3.1.1", id="hangs up at 5, then refuses each"),
        pytest.param((HUNG_UP, REFUSED, HUNG_UP), "5 5 3.1.1 3.1.1", id="refuses 5 after it has hung up"),
    ],
)
def test_the_protocol_follows_from_how_attempts_fail(failures: tuple[Failure, ...], expected: str) -> None:
    """MQTT 5 is given up only if the broker refuses it or hangs up twice; 3.1.1 if it does not work either."""
    told = story()
    told.fails(*failures)
    assert " ".join([*told.protocols, told.attempts.protocol]) == expected


@pytest.mark.parametrize("wanted", ["5", "3.1.1"])
@pytest.mark.parametrize("failure", [REFUSED, HUNG_UP])
def test_a_chosen_protocol_is_kept(wanted: Protocol, failure: Failure) -> None:
    """The configured protocol stays, and a refusal is an ordinary failure."""
    told = story(wanted)
    told.fails(*[failure] * 5)
    assert {*told.protocols, told.attempts.protocol} == {wanted}
    assert told.pauses == [1, 2, 4, 8, 16]
    assert told.said == [failure.text]


@pytest.mark.parametrize("before", [(), (REFUSED,)])
def test_the_protocol_of_a_connection_is_kept(before: tuple[Failure, ...]) -> None:
    """Once the broker has accepted a connection, its protocol stays, whatever happens later."""
    told = story()
    if before:
        told.fails(*before)
    told.connects()
    told.fails(REFUSED, HUNG_UP, HUNG_UP, HUNG_UP)
    assert {*told.protocols[len(before) :], told.attempts.protocol} == {"3.1.1" if before else "5"}


def test_the_other_protocol_is_tried_at_once_if_one_is_refused() -> None:
    """A refusal of MQTT 5 causes no pause and no line, and the next failure counts as the first."""
    told = story()
    told.fails(REFUSED)
    assert (told.pauses, told.log) == ([0.0], [])
    told.fails(NOT_THERE)
    assert told.pauses == [0.0, 1.0]
    told.connects()
    assert told.said == [NOT_THERE.text, WELL.replace("MQTT 5", "MQTT 3.1.1")]


def test_a_broker_that_hangs_up_gets_its_pauses() -> None:
    """It may be overloaded, so the other protocol waits as well."""
    told = story()
    told.fails(*[HUNG_UP] * 4)
    assert told.pauses == [1, 2, 4, 8]
    assert told.said == [HUNG_UP.text]


# --- the pauses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chance", "first", "most"), [(0.0, 0.5, 15), (0.5, 0.75, 22.5), (1.0, 1, 30)])
def test_pauses_grow_to_half_a_minute(chance: float, first: float, most: float) -> None:
    """They double from 1 s to 30 s, and chance shortens each by up to a half."""
    told = story(chance=chance)
    told.fails(*[NOT_THERE] * 2000)
    assert told.pauses[:5] == [first * times for times in (1, 2, 4, 8, 16)]
    assert {*told.pauses[5:]} == {most}


@pytest.mark.parametrize(("lasted", "pause"), [(SHORT, 8), (30.0, 8), (GOOD, 1), (LONG, 1)])
def test_the_failure_after_a_good_connection_counts_as_the_first(lasted: float, pause: float) -> None:
    """Only a connection of more than 30 s counts as good."""
    told = story()
    told.fails(NOT_THERE, NOT_THERE, NOT_THERE)
    told.ends(LOST, lasted)
    assert told.pauses == [1, 2, 4, pause]
    told.fails(NOT_THERE)
    assert told.pauses[-1] == 2 * pause


def test_another_client_is_left_alone_for_a_minute() -> None:
    """After a take-over the pause is 60 s, regardless of chance, and the take-over counts as a failure."""
    told = story(chance=0.25)
    told.ends(TAKEN_OVER)
    told.ends(TAKEN_OVER, LONG)
    told.fails(NOT_THERE)
    assert told.pauses == [60, 60, 2 * 0.625]


# --- what is said ------------------------------------------------------------------------------------------


def test_a_failure_and_the_recovery_are_logged_once() -> None:
    """Repeated failures are one line, a different failure is another, and then the connection is logged."""
    told = story("5")
    told.fails(NOT_THERE, NOT_THERE, HUNG_UP, HUNG_UP, NOT_THERE)
    told.connects()
    told.lasts(LONG)
    assert told.log == [
        (logging.WARNING, NOT_THERE.text),
        (logging.WARNING, HUNG_UP.text),
        (logging.WARNING, NOT_THERE.text),
        (logging.INFO, WELL),
    ]


def test_a_failure_after_the_recovery_is_logged_again() -> None:
    """Each end of a connection is logged, since each connection was."""
    told = story()
    told.ends(LOST)
    told.ends(LOST)
    assert told.said == [WELL, LOST.text, WELL, LOST.text]


@pytest.mark.parametrize(
    ("failure", "lasted", "lines"),
    [(TAKEN_OVER, SHORT, 1), (TAKEN_OVER, 300.0, 1), (TAKEN_OVER, LONG, 2), (JAMMED, SHORT, 1), (JAMMED, LONG, 1)],
)
def test_a_recurring_end_is_logged_once(failure: Failure, lasted: float, lines: int) -> None:
    """If every connection ends in the same way, that is one line; a take-over after five minutes is a new one."""
    told = story()
    told.ends(failure)
    told.ends(failure, lasted)
    assert told.said == [WELL, *[failure.text] * lines]
    assert {level for level, text in told.log if text == failure.text} == {
        logging.ERROR if failure == TAKEN_OVER else logging.WARNING
    }


def test_a_recurring_end_is_over_when_something_else_happens() -> None:
    """After a different failure, the next connection is logged as usual."""
    for failure in (TAKEN_OVER, JAMMED):
        told = story()
        told.ends(failure)
        told.fails(NOT_THERE)
        told.connects()
        assert told.said == [WELL, failure.text, NOT_THERE.text, WELL]


@pytest.mark.parametrize(("seconds", "well"), [(SHORT, False), (300.0, False), (LONG, True)])
@pytest.mark.parametrize("idle", [True, False])
def test_the_end_of_a_take_over_is_logged_after_five_minutes(seconds: float, idle: bool, well: bool) -> None:
    """Until then the other client may come back. The line comes once, even if something is unacknowledged."""
    told = story()
    told.ends(TAKEN_OVER)
    told.connects()
    assert bool(told.attempts.unsettled)
    for _ in range(2):
        told.lasts(seconds, idle=idle)
    assert told.attempts.unsettled is not well
    assert told.said == [WELL, TAKEN_OVER.text, *[WELL] * well]
    told.ends(TAKEN_OVER, seconds)
    assert told.said[2:] == ([WELL, WELL, TAKEN_OVER.text] if well else [])


@pytest.mark.parametrize(
    ("seconds", "idle", "well"),
    [
        (patience.SECONDS, True, False),
        (patience.SECONDS + 1, True, True),
        (patience.SECONDS + 1, False, False),
        (LONG, False, False),
    ],
)
def test_the_recovery_of_a_jammed_broker_is_logged_once_all_is_acknowledged(
    seconds: float, idle: bool, well: bool
) -> None:
    """It may jam again at the same message: everything must be acknowledged, for longer than the patience lasts."""
    told = story()
    told.ends(JAMMED)
    told.connects()
    for _ in range(2):
        told.lasts(10 * seconds, idle=idle, speed=10)
    assert told.said == [WELL, JAMMED.text, *[WELL] * well]


def test_a_lasting_connection_is_not_logged_twice() -> None:
    """Without an earlier problem, there is no recovery to log."""
    told = story()
    told.connects()
    told.lasts(LONG)
    assert told.said == [WELL]


# --- another client of the same id -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "before", "suspected"),
    [
        ("closed_idle", None, True),
        ("closed_idle", JAMMED, True),
        ("closed_busy", None, False),
        ("closed_busy", TAKEN_OVER, True),
        ("closed_busy", JAMMED, False),
        ("taken_over", None, False),
        ("jammed", TAKEN_OVER, False),
        (None, TAKEN_OVER, False),
    ],
)
def test_another_client_is_suspected(ending: Ending | None, before: Failure | None, suspected: bool) -> None:
    """If a broker closes a connection without a reason, another client may have caused it."""
    told = story()
    if before:
        told.ends(before)
    told.connects()
    assert told.attempts.suspects_another(Failure("", ending=ending)) is suspected


# --- proxies in between, and limits of the broker ----------------------------------------------------------


def cut(idle: float) -> Failure:
    return Failure(LOST.text, ending="closed_idle", idle=idle)


@pytest.mark.parametrize(
    ("idles", "keepalive"),
    [
        ((50, 51, 49.5), 33),
        ((50, 50), 60),
        ((50, 50, 30), 60),
        ((50, 30, 50, 50, 51), 33),
        ((20, 20, 20), 13),
        ((15, 15, 15), 10),
        ((14, 14, 14), 60),
        ((100, 100, 100), 60),
    ],
)
def test_cuts_after_the_same_idle_time_shorten_the_keep_alive(idles: tuple[float, ...], keepalive: int) -> None:
    """Three in a row, after 15 s or more, within 2 s of each other: two thirds of that, at least 10 s."""
    told = story()
    for idle in idles:
        told.ends(cut(idle), GOOD)
    assert told.attempts.keepalive == keepalive
    assert len([text for text in told.said if "without traffic" in text]) == (keepalive != 60)


def test_other_ends_break_the_row_of_idle_cuts() -> None:
    """If the broker was restarted in between, the cuts prove nothing."""
    told = story()
    for failure in (cut(50), cut(50), LOST, cut(50)):
        told.ends(failure, GOOD)
    assert told.attempts.keepalive == 60


def test_a_third_cut_is_not_another_client() -> None:
    """So the link does not probe the broker, and does not wait a minute before it connects."""
    told = story()
    for _ in range(2):
        assert told.attempts.suspects_another(cut(50))
        told.ends(replace(TAKEN_OVER, idle=50), GOOD)
    told.connects()
    assert not told.attempts.suspects_another(cut(50))
    told.ends(cut(50), GOOD)
    assert told.pauses[-1] == 1


def test_a_confirmed_take_over_is_given_way() -> None:
    """If the broker confirms it, the pause grows from 1 to 10 minutes, and starts over after a long connection."""
    told = story()
    for _ in range(6):
        told.ends(replace(TAKEN_OVER, certain=True))
    assert told.pauses == [60, 120, 240, 480, 600, 600]
    told.ends(replace(TAKEN_OVER, certain=True), LONG)
    assert told.pauses[-1] == 60


WRONG = Failure("sent something that is not MQTT", ending="answered_wrongly")
SILENT = Failure("does not answer", ending="silent")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ((WRONG,), "5 3.1.1"),
        ((WRONG, WRONG, WRONG), "5 3.1.1 5 3.1.1"),
        ((SILENT, SILENT), "5 5 3.1.1"),
        ((SILENT, HUNG_UP, SILENT), "5 5 3.1.1 5"),
    ],
)
def test_mqtt_5_without_a_proper_answer_is_given_up(failures: tuple[Failure, ...], expected: str) -> None:
    """At once if the answer is wrong, after two attempts without one; 3.1.1 if it does not work either."""
    told = story()
    told.fails(*failures)
    assert " ".join([*told.protocols, told.attempts.protocol]) == expected
    assert not any(
        pause == 0 and protocol == "3.1.1" for pause, protocol in zip(told.pauses, told.protocols, strict=True)
    )


@pytest.mark.parametrize("failure", [WRONG, SILENT, HUNG_UP])
def test_mqtt_5_is_tried_first_on_every_later_connection(failure: Failure) -> None:
    """The broker has not refused it; but then a single attempt is enough."""
    told = story()
    told.fails(*[failure] * (1 if failure == WRONG else 2))
    tried = len(told.protocols)
    for _ in range(3):
        told.ends(LOST, GOOD)
        told.fails(failure)
    assert told.protocols[tried:] == ["3.1.1", "5"] * 3


@pytest.mark.parametrize("failure", [WRONG, SILENT, HUNG_UP])
def test_mqtt_5_that_worked_is_given_up_only_if_refused(failure: Failure) -> None:
    """A broker that is being restarted may behave strangely."""
    told = story()
    told.ends(LOST, GOOD)
    told.fails(*[failure] * 5)
    assert told.attempts.protocol == "5"


def test_the_will_is_lowered_until_the_broker_accepts_it() -> None:
    """First QoS 0, then not retained, each at once; after that it is a failure."""
    told = story()
    refused = Failure("refuses the last will", ending="will_refused")
    wills = []
    for _ in range(3):
        wills.append((told.attempts.will_qos, told.attempts.will_retain))
        told.fails(refused)
    assert wills == [(1, True), (0, True), (0, False)]
    assert told.pauses == [0, 0, 1]
    assert told.said == [refused.text]


def test_an_unprotected_connection_is_tried_again_after_a_minute() -> None:
    """It is one line, however often it happens."""
    told = story()
    given_up = Failure("refuses the topics that say whether a value is current", ending="unprotected")
    for _ in range(3):
        told.ends(given_up)
    assert told.pauses == [60, 60, 60]
    assert told.said == [WELL, given_up.text]


def test_repeated_hang_ups_are_logged_three_times() -> None:
    """By then it is a pattern, and `trouble` logs what causes it."""
    told = story()
    for _ in range(9):
        told.ends(LOST)
    assert told.said.count(LOST.text) == 3
