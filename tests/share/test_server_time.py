"""The time of day by Share: what one answer is worth, and several that agree or disagree."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt.share import (
    CredentialsRejectedError,
    RateLimitedError,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)
from dexcom2mqtt.share.server_time import ShareTime, parse_http_date
from tests.support import share_faults
from tests.support.builders import NOON, any_text, property_of
from tests.support.set_clock import SetClock
from tests.support.share_client import ANNA, NOW, REJECTIONS, client_of, failure, readings_of

if TYPE_CHECKING:
    from dexcom2mqtt.demo.share_service import Fault, SimulatedShare

PIECES = ["Sun,", "06", "31", "Nov", "2025", "94", "08:49:37", "8.49", "99:99:99", "GMT", "+0100", "-9999", "-", ":"]
PIECES += [",", "(", "\0", "٣", "1e9", "9" * 30]


# --- the time of day ---------------------------------------------------------------------------------------

IGNORED = [
    None,
    "",
    " ",
    "0",
    "now",
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "Fri, 31 Dec 1999 23:59:59 GMT",
    "Fri, 01 Jan 2100 00:00:01 GMT",
    "Sun, 32 Nov 2025 08:49:37 GMT",
    "Sun, 06 Nov 2025 25:49:37 GMT",
    "Sun, 06 Nov 99999 08:49:37 GMT",
    "Sun, 06 Nov 2025",
    "2025-04-19T12:00:00Z",
]

latencies = st.tuples(st.floats(0, 20), st.floats(0, 20))
truths = st.floats(1e9, 2e9)
answers = st.lists(st.tuples(st.floats(0, 900), latencies), min_size=1, max_size=20)

ROUNDING = 1e-5


def header(unix: float) -> str:
    """Return a Date header, truncated to whole seconds."""
    return format_datetime(datetime.fromtimestamp(int(unix), UTC), usegmt=True)


@dataclass
class World:
    """A clock that began at ``truth``, and Share, which knows the true time and answers after some latency."""

    truth: float
    clock: SetClock = field(default_factory=lambda: SetClock(1000.0))

    def __post_init__(self) -> None:
        self.share = ShareTime(self.clock)

    def answer(self, latency: tuple[float, float]) -> None:
        """Send a request and its answer with these latencies, in seconds."""
        there, back = latency
        sent = self.clock.at
        self.clock.at += there
        date = header(self.truth + self.clock.at)
        self.clock.at += back
        self.share.update(date, sent)

    @property
    def offset(self) -> float:
        """The estimated time at which the clock began."""
        unix = self.share.unix(0.0)
        assert unix is not None
        return unix

    @property
    def error(self) -> float:
        """How far the estimate is off."""
        return abs(self.offset - self.truth)


def test_the_time_is_unknown_until_share_sends_it() -> None:
    """Until Share has sent the time, it is unknown."""
    share = ShareTime(SetClock(100.0))
    assert not share.known
    assert share.now() is None
    assert share.unix(1.0) is None
    assert share.at(NOON) is None


def test_converts_times_both_ways() -> None:
    """Times of the clock become times of day and back."""
    clock = SetClock(100.0)
    share = ShareTime(clock)
    share.update(header(NOON), 100.0)
    assert share.known
    assert share.now() == pytest.approx(NOON + 0.5, abs=0.5)
    assert share.unix(42.0) == pytest.approx(NOON + 0.5 - 58, abs=0.5)
    assert share.at(share.unix(42.0) or 0) == pytest.approx(42.0, abs=ROUNDING)
    clock.at += 60
    assert share.now() == pytest.approx(NOON + 60.5, abs=0.5)


@given(truth=truths, answers=answers)
@property_of
def test_each_answer_brings_the_time_nearer(truth: float, answers: list[tuple[float, tuple[float, float]]]) -> None:
    """No answer moves the time away from the truth; after each it is off by at most its latency and a second."""
    world = World(truth)
    error = float("inf")
    for pause, latency in answers:
        world.clock.at += pause
        world.answer(latency)
        assert world.error <= error + ROUNDING
        assert world.error <= 1 + sum(latency) + ROUNDING
        error = world.error


@given(truth=truths, before=answers, after=answers)
@property_of
def test_one_quick_answer_settles_the_time(
    truth: float, before: list[tuple[float, tuple[float, float]]], after: list[tuple[float, tuple[float, float]]]
) -> None:
    """However slow the answers before and after a quick one, the time is right to within a second."""
    world = World(truth)
    for answers in (before, [(0.0, (0.0, 0.0))], after):
        for pause, latency in answers:
            world.clock.at += pause
            world.answer(latency)
    assert world.error <= 1 + ROUNDING


@given(truth=truths)
@property_of
def test_the_first_answer_counts_at_its_middle(truth: float) -> None:
    """An immediate first answer leaves half a second in doubt."""
    world = World(truth)
    world.answer((0.0, 0.0))
    assert world.error <= 0.5 + ROUNDING


@given(truth=truths, answers=answers)
@property_of
def test_repeated_answers_change_nothing(truth: float, answers: list[tuple[float, tuple[float, float]]]) -> None:
    """An answer that is repeated changes nothing, to the last bit."""
    world = World(truth)
    for moved in (True, False):
        world.clock.at = 1000.0
        for pause, latency in answers:
            before = world.offset if world.share.known else None
            world.clock.at += pause
            world.answer(latency)
            assert moved or world.offset == before


def after_answers(*answers: tuple[float, float]) -> tuple[World, list[int]]:
    """Send answers, each so many seconds after the last and with a Date wrong by so many.

    Return how many seconds the time was off after each.
    """
    world, wrong = World(NOON), []
    for pause, off in answers:
        world.clock.at += pause
        world.share.update(header(world.truth + world.clock.at + off), world.clock.at)
        wrong.append(round(world.offset - world.truth))
    return world, wrong


DAY = 86400


def test_is_settled_once_two_answers_half_a_minute_apart_agree() -> None:
    """One answer proves little, and another one right after it no more."""
    world, _ = after_answers((0, 0))
    assert not world.share.settled
    assert world.share.settles_at == world.clock.at + 30
    world, _ = after_answers((0, 0), (29, 0))
    assert not world.share.settled
    world, _ = after_answers((0, 0), (29, 0), (1, 0))
    assert world.share.settled
    assert world.share.settles_at is None


@pytest.mark.parametrize("off", [-DAY, -3600, -61, 62, 3600, DAY])
def test_a_single_wrong_date_changes_nothing(off: float) -> None:
    """Seconds to hours off, once: the agreed time stays, but does not count as settled meanwhile."""
    world, wrong = after_answers((0, 0), (40, 0), (300, off))
    assert wrong == [0, 0, 0]
    assert not world.share.settled
    assert world.share.jumped
    world, wrong = after_answers((0, 0), (40, 0), (300, off), (30, 0))
    assert wrong[-1] == 0
    assert world.share.settled
    assert not world.share.jumped


@pytest.mark.parametrize("off", [-3600, 3600])
def test_a_first_date_that_is_wrong_is_soon_forgotten(off: float) -> None:
    """Until two answers agree, the newest one counts."""
    world, wrong = after_answers((0, off), (30, 0))
    assert wrong == [off, 0]
    assert not world.share.settled
    _, wrong = after_answers((0, off), (30, 0), (30, 0))
    assert wrong[-1] == 0


def test_an_hour_of_dates_that_are_behind_changes_nothing() -> None:
    """Old readings would look new. Only after 75 minutes is the earlier time considered wrong."""
    hour = [(300.0, -3600.0)] * 13
    world, wrong = after_answers((0, 0), (40, 0), *hour)
    assert set(wrong) == {0}
    assert not world.share.settled
    world, wrong = after_answers((0, 0), (40, 0), *hour, (300, 0))
    assert wrong[-1] == 0
    assert world.share.settled
    world, wrong = after_answers((0, 0), (40, 0), *hour, *[(300.0, -3600.0)] * 3)
    assert wrong[-1] == -3600
    assert world.share.settled


def test_two_answers_reveal_a_paused_machine() -> None:
    """A virtual machine that was paused lost time: the later time counts once two answers agree, and not before."""
    world, wrong = after_answers((0, 0), (40, 0), (300, 8 * 3600), (30, 8 * 3600))
    assert wrong == [0, 0, 0, 8 * 3600]
    assert world.share.settled


def test_an_earlier_agreed_time_needs_no_75_minutes() -> None:
    """After an hour of dates that are ahead, the right time is back half a minute after the first right answer."""
    _, wrong = after_answers((0, 0), (40, 0), *[(300, 3600)] * 12, (300, 0), (30, 0))
    assert wrong[3] == 3600
    assert wrong[-2:] == [3600, 0]


def test_follows_a_clock_that_drifts() -> None:
    """If the machine's clock is slow by 100 parts per million, the time stays right to within a second or so."""
    world = World(NOON)
    for _ in range(2 * 288):
        world.clock.at += 300
        world.truth += 0.03
        world.answer((0.1, 0.1))
        assert world.error <= 1.2 + ROUNDING


@pytest.mark.parametrize("date", IGNORED)
def test_ignores_impossible_times(date: str | None) -> None:
    """A header that is missing, makes no sense, or is not in this century changes nothing."""
    world = World(NOON)
    world.share.update(date, world.clock.at)
    assert not world.share.known
    world.answer((0.1, 0.1))
    before = world.offset
    world.share.update(date, world.clock.at)
    assert world.offset == before


@given(st.one_of(any_text, st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join)), truths)
@example("Sun, 06 Nov 2025 08:49:37 +999999999999999999999", NOON)
@example("Sun, 06 Nov " + "9" * 5000 + " 08:49:37 GMT", NOON)
@property_of
def test_survives_any_header(date: str, truth: float) -> None:
    """Whatever a header contains, nothing is raised, and the time is either known or not."""
    world = World(truth)
    world.share.update(date, world.clock.at)
    assert world.share.known is (world.share.now() is not None)


# --- dates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 -0000",
        "Sun, 06 Nov 1994 09:49:37 +0100",
    ],
)
def test_reads_every_format_of_an_http_date(text: str) -> None:
    """The three formats of HTTP are read, as GMT even if they do not say so."""
    assert parse_http_date(text) == 784111777


# --- the client's time -------------------------------------------------------------------------------------


def test_the_time_is_the_servers(service: SimulatedShare) -> None:
    """The time of day is the server's, to within the second to which its header is truncated."""
    clock = SetClock(1000.0)
    client = client_of(service, clock=clock)
    assert not client.time.known
    client.fetch()
    now = client.time.now()
    assert now is not None
    assert NOW <= now <= NOW + 1
    clock.at += 60
    assert client.time.now() == now + 60


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (share_faults.html(503), UnavailableError),
        (share_faults.status(429), RateLimitedError),
        (share_faults.body(b"x"), UnexpectedResponseError),
        (share_faults.error(*REJECTIONS[0]), CredentialsRejectedError),
    ],
)
def test_an_error_contains_the_time_too(service: SimulatedShare, fault: Fault, kind: type[ShareError]) -> None:
    """The header of an error contains the time as well."""
    service.fault = fault
    client = client_of(service)
    failure(kind, client.fetch)
    assert client.time.now() == pytest.approx(NOW, abs=2)


@pytest.mark.parametrize(
    "date",
    [
        *(None, "", "yesterday", "0", "\xff", "Sat, 19 Apr 1925 16:43:20 GMT", "Sat, 19 Apr 9999 16:43:20 GMT"),
        *("Mon, 99 Foo 99999999999 99:99:99 +9999", "1" * 5000, "Thu, 01 Jan 1970 00:00:00 GMT", "," * 50),
    ],
)
def test_an_invalid_date_is_ignored(service: SimulatedShare, date: str | None) -> None:
    """A missing or invalid header leaves the time unknown, and the readings good."""
    service.fault = share_faults.header("Date", date)
    client = client_of(service)
    assert client.fetch().readings == readings_of(ANNA)
    assert not client.time.known
