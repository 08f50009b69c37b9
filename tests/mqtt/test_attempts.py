"""What follows from how attempts to connect go: the protocol, the pauses, and what is said of them, once."""

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
"""How long a connection lasts: not for long, long enough to count as a good one, and to forget what was before."""


@dataclass
class Story:
    """What became of some attempts: which protocols they took, how long each pause was, and what was logged."""

    attempts: Attempts
    protocols: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    log: list[tuple[int, str]] = field(default_factory=list)

    def fails(self, failure: Failure, *more: Failure) -> None:
        """Let attempts come to nothing."""
        for each in (failure, *more):
            self._try()
            self._end(each, SHORT)

    def ends(self, failure: Failure, after: float = SHORT) -> None:
        """Let a connection come about, and end after so many seconds."""
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
    """MQTT 5 is left only if the broker refuses it, or has hung up on it twice; and 3.1.1, if it is no better."""
    told = story()
    told.fails(*failures)
    assert " ".join([*told.protocols, told.attempts.protocol]) == expected


@pytest.mark.parametrize("wanted", ["5", "3.1.1"])
@pytest.mark.parametrize("failure", [REFUSED, HUNG_UP])
def test_a_chosen_protocol_is_kept(wanted: Protocol, failure: Failure) -> None:
    """What the configuration says is not left for another, and a refusal is a failure like others."""
    told = story(wanted)
    told.fails(*[failure] * 5)
    assert {*told.protocols, told.attempts.protocol} == {wanted}
    assert told.pauses == [1, 2, 4, 8, 16]
    assert told.said == [failure.text]


@pytest.mark.parametrize("before", [(), (REFUSED,)])
def test_the_protocol_of_a_connection_is_kept(before: tuple[Failure, ...]) -> None:
    """Once a broker has let us in, its protocol stays, whatever it does later on."""
    told = story()
    if before:
        told.fails(*before)
    told.connects()
    told.fails(REFUSED, HUNG_UP, HUNG_UP, HUNG_UP)
    assert {*told.protocols[len(before) :], told.attempts.protocol} == {"3.1.1" if before else "5"}


def test_the_other_protocol_is_tried_at_once_if_one_is_refused() -> None:
    """A broker that refuses MQTT 5 is no trouble: no pause, no line, and the next failure is the first."""
    told = story()
    told.fails(REFUSED)
    assert (told.pauses, told.log) == ([0.0], [])
    told.fails(NOT_THERE)
    assert told.pauses == [0.0, 1.0]
    told.connects()
    assert told.said == [NOT_THERE.text, WELL.replace("MQTT 5", "MQTT 3.1.1")]


def test_a_broker_that_hangs_up_gets_its_pauses() -> None:
    """It may be overloaded: so the other protocol has to wait as well."""
    told = story()
    told.fails(*[HUNG_UP] * 4)
    assert told.pauses == [1, 2, 4, 8]
    assert told.said == [HUNG_UP.text]


# --- the pauses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chance", "first", "most"), [(0.0, 0.5, 15), (0.5, 0.75, 22.5), (1.0, 1, 30)])
def test_pauses_grow_to_half_a_minute(chance: float, first: float, most: float) -> None:
    """They double from a second to 30, and chance takes off up to a half."""
    told = story(chance=chance)
    told.fails(*[NOT_THERE] * 2000)
    assert told.pauses[:5] == [first * times for times in (1, 2, 4, 8, 16)]
    assert {*told.pauses[5:]} == {most}


@pytest.mark.parametrize(("lasted", "pause"), [(SHORT, 8), (30.0, 8), (GOOD, 1), (LONG, 1)])
def test_the_failure_after_a_good_connection_is_a_first_one(lasted: float, pause: float) -> None:
    """A connection that lasted for more than 30 s was a good one, and no shorter one is."""
    told = story()
    told.fails(NOT_THERE, NOT_THERE, NOT_THERE)
    told.ends(LOST, lasted)
    assert told.pauses == [1, 2, 4, pause]
    told.fails(NOT_THERE)
    assert told.pauses[-1] == 2 * pause


def test_another_client_is_left_alone_for_a_minute() -> None:
    """After a take-over the pause is 60 s, whatever chance says, and the take-over counts as a failure."""
    told = story(chance=0.25)
    told.ends(TAKEN_OVER)
    told.ends(TAKEN_OVER, LONG)
    told.fails(NOT_THERE)
    assert told.pauses == [60, 60, 2 * 0.625]


# --- what is said ------------------------------------------------------------------------------------------


def test_trouble_is_said_once_and_that_it_is_over() -> None:
    """The same failure is one line however often, another one is another; and then it is well again."""
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


def test_trouble_is_said_again_once_it_was_over() -> None:
    """Each end of a connection is said, since each connection was."""
    told = story()
    told.ends(LOST)
    told.ends(LOST)
    assert told.said == [WELL, LOST.text, WELL, LOST.text]


@pytest.mark.parametrize(
    ("failure", "lasted", "lines"),
    [(TAKEN_OVER, SHORT, 1), (TAKEN_OVER, 300.0, 1), (TAKEN_OVER, LONG, 2), (JAMMED, SHORT, 1), (JAMMED, LONG, 1)],
)
def test_what_recurs_is_said_once(failure: Failure, lasted: float, lines: int) -> None:
    """What ends every connection in the same way is one line; a take-over after more than five minutes is another."""
    told = story()
    told.ends(failure)
    told.ends(failure, lasted)
    assert told.said == [WELL, *[failure.text] * lines]
    assert {level for level, text in told.log if text == failure.text} == {
        logging.ERROR if failure == TAKEN_OVER else logging.WARNING
    }


def test_what_recurs_is_over_when_something_else_happens() -> None:
    """After another failure, the next connection is said as always."""
    for failure in (TAKEN_OVER, JAMMED):
        told = story()
        told.ends(failure)
        told.fails(NOT_THERE)
        told.connects()
        assert told.said == [WELL, failure.text, NOT_THERE.text, WELL]


@pytest.mark.parametrize(("seconds", "well"), [(SHORT, False), (300.0, False), (LONG, True)])
@pytest.mark.parametrize("idle", [True, False])
def test_that_the_other_client_stays_away_is_said_after_five_minutes(seconds: float, idle: bool, well: bool) -> None:
    """Until then it may come back, and only then is it said, once; whatever is on its way."""
    told = story()
    told.ends(TAKEN_OVER)
    told.connects()
    for _ in range(2):
        told.lasts(seconds, idle=idle)
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
def test_that_a_broker_acknowledges_again_is_said_if_nothing_is_left(seconds: float, idle: bool, well: bool) -> None:
    """It may jam again at the same message: so all has to be acknowledged, and the patience with it to be over."""
    told = story()
    told.ends(JAMMED)
    told.connects()
    for _ in range(2):
        told.lasts(10 * seconds, idle=idle, speed=10)
    assert told.said == [WELL, JAMMED.text, *[WELL] * well]


def test_a_connection_that_lasts_is_not_said_twice() -> None:
    """If nothing had been wrong, nothing becomes well."""
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
    """A broker that closes without a word may have been told to by another client, if it had nothing against ours."""
    told = story()
    if before:
        told.ends(before)
    told.connects()
    assert told.attempts.suspects_another(Failure("", ending=ending)) is suspected


# --- what is between, and what the broker cannot do ---------------------------------------------------------


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
def test_what_is_cut_at_the_same_idle_time_gets_a_shorter_keep_alive(idles: tuple[float, ...], keepalive: int) -> None:
    """Three times in a row, within two seconds, after at least fifteen: two thirds of it, and never under ten."""
    told = story()
    for idle in idles:
        told.ends(cut(idle), GOOD)
    assert told.attempts.keepalive == keepalive
    assert len([text for text in told.said if "without traffic" in text]) == (keepalive != 60)


def test_other_ends_break_the_row_of_idle_cuts() -> None:
    """A broker that was restarted in between tells nothing of what cuts."""
    told = story()
    for failure in (cut(50), cut(50), LOST, cut(50)):
        told.ends(failure, GOOD)
    assert told.attempts.keepalive == 60


def test_a_third_cut_is_no_other_client() -> None:
    """So nobody is asked, and the next connection does not wait for a minute."""
    told = story()
    for _ in range(2):
        assert told.attempts.suspects_another(cut(50))
        told.ends(replace(TAKEN_OVER, idle=50), GOOD)
    told.connects()
    assert not told.attempts.suspects_another(cut(50))
    told.ends(cut(50), GOOD)
    assert told.pauses[-1] == 1


def test_another_client_that_the_broker_names_is_given_way() -> None:
    """If it is certain, the pause grows from a minute to ten, and begins anew after a good while."""
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
def test_mqtt_5_that_is_not_answered_in_words_is_left(failures: tuple[Failure, ...], expected: str) -> None:
    """At once if the answer is wrong, after two attempts if there is none; and 3.1.1, if it is no better."""
    told = story()
    told.fails(*failures)
    assert " ".join([*told.protocols, told.attempts.protocol]) == expected
    assert not any(
        pause == 0 and protocol == "3.1.1" for pause, protocol in zip(told.pauses, told.protocols, strict=True)
    )


@pytest.mark.parametrize("failure", [WRONG, SILENT, HUNG_UP])
def test_mqtt_5_is_tried_first_on_every_later_connection(failure: Failure) -> None:
    """The broker has not refused it; but once is enough then."""
    told = story()
    told.fails(*[failure] * (1 if failure == WRONG else 2))
    tried = len(told.protocols)
    for _ in range(3):
        told.ends(LOST, GOOD)
        told.fails(failure)
    assert told.protocols[tried:] == ["3.1.1", "5"] * 3


@pytest.mark.parametrize("failure", [WRONG, SILENT, HUNG_UP])
def test_mqtt_5_that_worked_is_not_left_without_a_word(failure: Failure) -> None:
    """The port of a broker that is being restarted behaves strangely."""
    told = story()
    told.ends(LOST, GOOD)
    told.fails(*[failure] * 5)
    assert told.attempts.protocol == "5"


def test_a_will_is_made_as_the_broker_takes_it() -> None:
    """First at QoS 0, then not retained, each at once; and then it is a failure."""
    told = story()
    refused = Failure("refuses the last will", ending="will_refused")
    wills = []
    for _ in range(3):
        wills.append((told.attempts.will_qos, told.attempts.will_retain))
        told.fails(refused)
    assert wills == [(1, True), (0, True), (0, False)]
    assert told.pauses == [0, 0, 1]
    assert told.said == [refused.text]


def test_what_cannot_be_protected_is_tried_again_after_a_minute() -> None:
    """And it is one line however often."""
    told = story()
    given_up = Failure("refuses the topics that say whether a value is current", ending="unprotected")
    for _ in range(3):
        told.ends(given_up)
    assert told.pauses == [60, 60, 60]
    assert told.said == [WELL, given_up.text]


def test_what_hangs_up_again_and_again_is_said_three_times() -> None:
    """By then it is a pattern: what it is about is said by the one who finds out."""
    told = story()
    for _ in range(9):
        told.ends(LOST)
    assert told.said.count(LOST.text) == 3
