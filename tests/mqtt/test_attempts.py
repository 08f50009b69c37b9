"""What follows from how attempts to connect go: the protocol, the pauses, and what is said of them, once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest

from dexcom2mqtt.mqtt import patience
from dexcom2mqtt.mqtt.attempts import Attempts
from dexcom2mqtt.mqtt.outcome import Failure

if TYPE_CHECKING:
    from dexcom2mqtt.mqtt.outcome import Ending, Line, Protocol

REFUSED = Failure("does not take MQTT 5", ending="protocol_refused")
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
