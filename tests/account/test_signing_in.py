"""When the password is sent, and when not: the real poller and real HTTP, on a clock that jumps."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.demo import share_service as share
from tests.account.test_polling import DAY, HOUR, MINUTE, World
from tests.support import share_faults
from tests.support.builders import most_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Make worlds, and end their services with the test."""
    with ExitStack() as stack:

        def make(**options: Any) -> World:
            world = World(**options)
            stack.callback(world.service.__exit__, None, None, None)
            return world

        yield make


FAULT = b'{"Code": "SessionIdNotFound", "Message": "Failed to find session object."}'
DEAD = {
    "a fault with 200": share_faults.body(FAULT),
    "another code": share_faults.error("SessionExpired", "Session expired"),
    "another spelling": share_faults.error("sessionidnotfound", "Failed to find session object."),
    "no code": share_faults.status(500, content=b'{"Message": "Session not active or timed out."}'),
    "nothing with 500": share_faults.status(500),
    "nothing with 401": share_faults.status(401),
    "a page with 401": share_faults.html(401),
    "a page with 403": share_faults.html(403),
    "InternalServerError": share_faults.error("InternalServerError", "Error in the application."),
    "null": share_faults.body(b"null"),
    "a page with 200": share_faults.html(200),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_session_that_ended_with_unknown_answers_is_renewed(make_world: Callable[..., World], name: str) -> None:
    """Ten minutes of faults, then one sign-in, and the readings are back."""
    world = make_world()
    world.live(HOUR)
    world.service.spoil_sessions(DEAD[name])
    died = world.unix
    world.live(17 * MINUTE)
    (signed_in,) = world.requests(died, password=True)
    assert 10 * MINUTE <= signed_in - died <= 16 * MINUTE
    assert world.status["share"] == "ok"
    world.live(2 * HOUR)
    assert len(world.requests(died, password=True)) == 1
    own = {record.taken for record in share.series(world.account, died - HOUR, world.unix - MINUTE)}
    assert own <= world.published.keys()


def test_a_day_of_faults_causes_few_sign_ins(make_world: Callable[..., World]) -> None:
    """A day of faults looks the same from outside: nine sign-ins, less and less often, and none that locks."""
    world = make_world()
    world.live(HOUR)
    began = world.unix
    world.service.fault = share_faults.only(share_faults.status(500), call="read")
    world.live(DAY)
    sent = [round((at - began) / MINUTE) for at in world.requests(began, password=True)]
    wanted = [10, 40, 100, 220, 460, 700, 940, 1180, 1420]
    assert len(sent) == len(wanted)
    assert all(0 <= at - due <= 7 * (number + 1) for number, (at, due) in enumerate(zip(sent, wanted, strict=True)))


@pytest.mark.parametrize(
    "fault",
    [
        share_faults.drop(),
        share_faults.status(429),
        share_faults.status(502),
        share_faults.html(503),
        share_faults.html(504),
        share_faults.body(b"[]"),
    ],
    ids=["no answer", "429", "502", "503", "504", "an empty list"],
)
def test_errors_unrelated_to_the_session_cause_no_sign_in(make_world: Callable[..., World], fault: share.Fault) -> None:
    """No answer, a rate limit, a gateway's error, or no readings: the session may still be valid."""
    world = make_world()
    world.live(HOUR)
    began = world.unix
    world.service.fault = fault
    world.live(12 * HOUR)
    assert world.requests(began, password=True) == []


def test_an_account_id_that_changed_is_looked_up(make_world: Callable[..., World]) -> None:
    """The old one is rejected once; the next sign-in, 5 minutes later, begins with the user name, and works."""
    world = make_world()
    world.live(HOUR)
    world.service.change_id("anna@example.com", "12345678-90ab-cdef-1234-567890abcdef")
    world.service.drop_sessions()
    changed = world.unix
    world.live(20 * MINUTE)
    log = [entry.call for entry in world.service.requests if entry.time >= changed and entry.password]
    assert log == ["login", "authenticate", "login"]
    assert world.status["share"] == "ok"


@pytest.mark.parametrize(
    "answer",
    [share_faults.html(403), share_faults.status(404), share_faults.error("NoSuchCode"), share_faults.body(b"5")],
)
@pytest.mark.parametrize("call", ["authenticate", "login"])
def test_a_sign_in_with_an_unknown_answer_backs_off(
    make_world: Callable[..., World], answer: share.Fault, call: str
) -> None:
    """The password is sent a few times in the first hour, and then every half hour."""
    world = make_world()
    world.service.fault = share_faults.only(answer, call=call)
    world.live(DAY)
    sent = world.requests(password=True)
    steps = 1 if call == "authenticate" else 2
    assert 40 <= len(sent) <= 53 * steps
    assert most_within(sent, HOUR) <= 7 * steps
    world.service.fault = share.no_fault
    world.live(31 * MINUTE)
    assert world.status["share"] == "ok"


def test_a_404_says_that_the_address_may_be_wrong(make_world: Callable[..., World]) -> None:
    """A missing page most likely means that this is not a Share service."""
    world = make_world()
    world.service.fault = share_faults.only(share_faults.status(404), call="authenticate")
    world.live(MINUTE)
    assert "share_url is not the address of a current Share service" in world.status["message"]


def test_a_missing_answer_does_not_back_off_for_long(make_world: Callable[..., World]) -> None:
    """Without an answer, or after a gateway's error, a sign-in is tried again within 5 minutes like any poll."""
    for fault in (share_faults.drop(), share_faults.status(503)):
        world = make_world()
        world.service.fault = fault
        world.live(3 * HOUR)
        world.service.fault = share.no_fault
        world.live(5 * MINUTE + 5)
        assert world.status["share"] == "ok"


@pytest.mark.parametrize("hours", [1, 6, 20])
def test_a_corrected_password_is_tried_immediately(make_world: Callable[..., World], hours: int) -> None:
    """It worked, was changed, and was rejected for hours; half an hour after the last try, a restart tries again."""
    world = make_world()
    world.live(HOUR)
    world.service.drop_sessions()
    world.service.fault = share_faults.only(share_faults.error("AccountPasswordInvalid"), call="login")
    world.live(hours * HOUR)
    assert world.status["share"] == "credentials_rejected"
    world.service.fault = share.no_fault
    world.clock.time = max(world.requests(password=True)) - world.unix + world.clock.time + 31 * MINUTE
    world.restart()
    began = world.unix
    world.live(MINUTE)
    assert world.status["share"] == "ok"
    assert world.requests(began, password=True)[0] - began < 20


def test_one_false_rejection_after_a_restart_costs_five_minutes(make_world: Callable[..., World]) -> None:
    """The retained history proves that the credentials worked within the last day."""
    world = make_world()
    world.live(HOUR)
    world.restart()
    began = world.unix
    world.service.fault = share_faults.only(
        share_faults.error("AccountPasswordInvalid"), call="authenticate", since=began, times=1
    )
    world.live(7 * MINUTE)
    assert world.status["share"] == "ok"
    first, second, *_ = world.requests(began, password=True)
    assert 5 * MINUTE <= second - first < 5.2 * MINUTE


def test_a_false_rejection_at_the_very_first_start_costs_two_minutes(make_world: Callable[..., World]) -> None:
    """Nothing is known about the credentials yet, and valid ones are rejected now and then."""
    world = make_world()
    world.service.fault = share_faults.only(share_faults.error("AccountPasswordInvalid"), call="authenticate", times=1)
    world.live(3 * MINUTE)
    assert world.status["share"] == "ok"


def test_another_persons_history_proves_nothing(make_world: Callable[..., World]) -> None:
    """Credentials that never worked stay rationed, whatever the broker retains of somebody else."""
    world = make_world()
    world.live(HOUR)
    topic = next(topic for topic in world.retained if topic.endswith("/history"))
    world.retained[topic] = world.retained[topic].replace(b'"source": "', b'"source": "0')
    world.service.fault = share_faults.error("AccountPasswordInvalid")
    world.restart()
    began = world.unix
    world.live(6 * HOUR)
    assert most_within(world.requests(began, password=True), HOUR) <= 3
