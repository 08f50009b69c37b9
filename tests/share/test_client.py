"""One account of Share: signing in, keeping and renewing the session, and asking for readings and for the time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from dexcom2mqtt import share
from dexcom2mqtt.demo import share_service as sim
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.share import (
    ArgumentError,
    Batch,
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    Region,
    ShareClient,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)
from tests.support import share_faults
from tests.support.share_client import (
    ANNA,
    AUTHENTICATE,
    KIM,
    LOGIN,
    NOW,
    QUINN,
    READ,
    REJECTIONS,
    SIGN_IN,
    asked,
    client_of,
    failure,
    listen,
    read,
    readings_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dexcom2mqtt.demo.share_service import Fault, Request, SimulatedAccount, SimulatedShare


# Signing in


@pytest.mark.parametrize(
    ("who", "account", "steps"),
    [
        pytest.param({"username": QUINN.username}, QUINN, SIGN_IN, id="user name"),
        pytest.param({"username": ANNA.username}, ANNA, SIGN_IN, id="e-mail"),
        pytest.param({"username": KIM.username}, KIM, SIGN_IN, id="phone number"),
        pytest.param({"account_id": ANNA.account_id}, ANNA, [LOGIN], id="account id"),
        pytest.param({"account_id": ANNA.account_id.upper()}, ANNA, [LOGIN], id="account id in capitals"),
    ],
)
def test_signs_in(service: SimulatedShare, who: dict[str, Any], account: SimulatedAccount, steps: list[str]) -> None:
    """A user name, an e-mail, a phone number or an account id opens a session, each in the fewest steps."""
    client = ShareClient(**who, password=account.password, base_url=service.base_url)
    assert client.sign_in_requests == len(steps)
    assert client.fetch().readings == readings_of(account)
    assert asked(service, client) == [*steps, READ]
    assert client.signed_in
    assert client.sign_in_requests == 1


@pytest.mark.parametrize(
    ("region", "url", "application_id"),
    [
        ("us", "https://share2.dexcom.com/ShareWebServices/Services", "d89443d2-327c-4a6f-89e5-496bbb0317db"),
        ("ous", "https://shareous1.dexcom.com/ShareWebServices/Services", "d89443d2-327c-4a6f-89e5-496bbb0317db"),
        ("jp", "https://share.dexcom.jp/ShareWebServices/Services", "d8665ade-9673-4e27-9ff6-92db4ce13d13"),
    ],
)
@pytest.mark.parametrize("given_url", [True, False])
def test_asks_the_servers_of_the_region(
    service: SimulatedShare,
    monkeypatch: pytest.MonkeyPatch,
    region: Region,
    url: str,
    application_id: str,
    given_url: bool,
) -> None:
    """Each region has its server, which another base URL may replace, and its application id."""
    assert share.BASE_URLS[region] == url
    assert ShareClient(username="a", password="b", region=region).host == url.split("/")[2]
    heard: list[Request] = []
    service.fault = listen(heard)
    monkeypatch.setitem(share.BASE_URLS, region, "http://region.invalid" if given_url else service.base_url)
    client = client_of(service, region=region, base_url=f"{service.base_url}/" if given_url else None)
    client.fetch(30, 5)
    secrets = {"password": ANNA.password, "applicationId": application_id}
    assert [(request.call, dict(request.fields)) for request in heard] == [
        (AUTHENTICATE, {"accountName": ANNA.username} | secrets),
        (LOGIN, {"accountId": ANNA.account_id} | secrets),
        (READ, {}),
    ]
    assert [sorted(request.query) for request in heard] == [[], [], ["maxCount", "minutes", "sessionId"]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"password": "b"},
        {"username": "a", "account_id": ANNA.account_id, "password": "b"},
        {"username": "", "password": "b"},
        {"username": "a", "password": ""},
        {"account_id": "", "password": "b"},
        {"account_id": "anna", "password": "b"},
        {"account_id": sim.ZERO_UUID, "password": "b"},
        {"account_id": ANNA.account_id.replace("-", ""), "password": "b"},
        {"username": "a", "password": "b", "region": "eu"},
        {"username": "a", "password": "b", "base_url": "share2.dexcom.com"},
        {"username": "a", "password": "b", "base_url": "ftp://share2.dexcom.com"},
        {"username": "a", "password": "b", "base_url": "https://[::1"},
        {"username": "a", "password": "b", "base_url": "https://localhost:99999"},
        {"username": "a", "password": "b", "base_url": "https:///Services"},
    ],
    ids=str,
)
def test_refuses_invalid_arguments(arguments: dict[str, Any]) -> None:
    """Invalid arguments are refused immediately, and as a ValueError too."""
    assert isinstance(failure(ArgumentError, lambda: ShareClient(**arguments)), ValueError)


def test_sends_nothing_at_first(service: SimulatedShare) -> None:
    """Creating a client sends nothing."""
    client = client_of(service)
    assert asked(service, client) == []
    assert not client.signed_in


def test_keeps_the_account_id_if_the_second_step_fails(service: SimulatedShare) -> None:
    """If the second step fails, the first one is not repeated."""
    service.fault = share_faults.only(share_faults.html(503), call=LOGIN, times=1)
    client = client_of(service)
    failure(UnavailableError, client.fetch)
    assert client.sign_in_requests == 1
    client.fetch()
    assert asked(service, client) == [*SIGN_IN, LOGIN, READ]


# Sessions


def _answer_once(fault: Fault) -> Callable[[SimulatedShare], None]:
    def lose(service: SimulatedShare) -> None:
        service.fault = share_faults.only(fault, call=READ, times=1)

    return lose


LOSSES: Final[list[Any]] = [
    pytest.param(lambda service: service.drop_sessions(), id="SessionIdNotFound"),
    pytest.param(lambda service: service.expire_sessions(), id="SessionNotValid"),
    pytest.param(_answer_once(share_faults.error("SessionNotValid", "Error in the application.")), id="application"),
    pytest.param(_answer_once(share_faults.body(b"")), id="empty body"),
    pytest.param(_answer_once(share_faults.error(*REJECTIONS[0])), id="AccountPasswordInvalid"),
    pytest.param(_answer_once(share_faults.error("InvalidArgument", "UUID")), id="InvalidArgument"),
]


@pytest.mark.parametrize("lose", LOSSES)
def test_renews_a_lost_session(
    service: SimulatedShare, client: ShareClient, lose: Callable[[SimulatedShare], None]
) -> None:
    """A lost session costs one sign-in without the first step, and the readings arrive."""
    lose(service)
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[3:] == [READ, LOGIN, READ]
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[6:] == [READ]


@pytest.mark.parametrize("lose", LOSSES)
def test_renews_no_session_if_not_allowed(
    service: SimulatedShare, client: ShareClient, lose: Callable[[SimulatedShare], None]
) -> None:
    """With renew=False, a lost session is an error after one request; the next fetch signs in by id."""
    lose(service)
    failure(UnavailableError, lambda: client.fetch(renew=False))
    assert asked(service, client)[3:] == [READ]
    assert not client.signed_in
    client.fetch(renew=False)
    assert asked(service, client)[4:] == [LOGIN, READ]


@pytest.mark.parametrize(
    "fault",
    [
        share_faults.error("SessionIdNotFound"),
        share_faults.error("SessionNotValid"),
        share_faults.body(b""),
        share_faults.error(*REJECTIONS[0]),
    ],
)
def test_renews_a_session_once(service: SimulatedShare, client: ShareClient, fault: Fault) -> None:
    """A session that is lost again immediately is not renewed again."""
    service.fault = read(fault)
    failure(UnavailableError, client.fetch)
    assert asked(service, client)[3:] == [READ, LOGIN, READ]
    assert not client.signed_in
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)
    assert asked(service, client)[6:] == [LOGIN, READ]


def test_renews_the_session_of_a_known_account_id(service: SimulatedShare) -> None:
    """A client with an account id never authenticates."""
    client = client_of(service, username=None, account_id=ANNA.account_id)
    client.fetch()
    service.drop_sessions()
    client.fetch()
    assert asked(service, client) == [LOGIN, READ, READ, LOGIN, READ]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (share_faults.password_changed(), CredentialsRejectedError),
        (share_faults.error("SSO_AuthenticateMaxAttemptsExceeded"), LockedOutError),
        (share_faults.status(429), RateLimitedError),
        (share_faults.html(502), UnavailableError),
        (share_faults.body(b"{}"), UnexpectedResponseError),
    ],
)
def test_raises_why_a_session_could_not_be_renewed(
    service: SimulatedShare, client: ShareClient, fault: Fault, kind: type[ShareError]
) -> None:
    """An error while a session is renewed is raised as at the first sign-in, after one try."""
    service.drop_sessions()
    service.fault = share_faults.only(fault, call=LOGIN)
    failure(kind, client.fetch)
    assert asked(service, client)[3:] == [READ, LOGIN]
    assert not client.signed_in


# Readings


@pytest.mark.parametrize("name", ["minutes", "max_count"])
def test_refuses_numbers_beyond_what_share_returns(service: SimulatedShare, name: str) -> None:
    """Anything but a whole number within Share's bounds is refused, as a ValueError too, and nothing is sent."""
    client = client_of(service)
    too_many = {"minutes": 1441, "max_count": 289}[name]
    numbers: list[Any] = [0, -1, too_many, 2**70, True, False, 5.0, float("nan"), "5", b"5", None, [5]]
    for number in numbers:
        for call in (client.readings, client.fetch):
            error = failure(ArgumentError, partial(call, **{name: number}))
            assert isinstance(error, ValueError)
            assert str(error) == f"{name} must be a whole number from 1 to {too_many - 1}"
    assert asked(service, client) == []


@pytest.mark.parametrize(("minutes", "max_count"), [(1, 1), (1, 288), (1440, 1), (1440, 288), (10, 3)])
def test_asks_for_so_many_minutes_and_readings(
    service: SimulatedShare, client: ShareClient, minutes: int, max_count: int
) -> None:
    """The newest readings of the requested minutes are returned, at most as many as requested, newest first."""
    expected = list(reversed(readings_of(ANNA, minutes)))[:max_count]
    assert client.readings(minutes, max_count) == expected
    request = service.requests[-1]
    assert (request.minutes, request.max_count) == (minutes, max_count)


def test_knows_the_latest_and_the_current_reading(client: ShareClient) -> None:
    """The latest reading is the newest of the day; the current one is the same while it is recent."""
    newest = readings_of(ANNA)[-1]
    assert client.latest_reading() == newest
    assert client.current_reading() == newest


@pytest.mark.parametrize("minutes", [10, 23 * 60])
def test_an_old_reading_is_not_current(service: SimulatedShare, client: ShareClient, minutes: int) -> None:
    """A reading of more than ten minutes ago is the latest, but not current."""
    begin = NOW - minutes * 60
    service.distort(share_faults.during(begin, NOW, share_faults.missing))
    assert client.latest_reading() == [each for each in readings_of(ANNA) if each.date < begin * 1000][-1]
    assert client.current_reading() is None


def test_trusts_the_phones_stamp(service: SimulatedShare, client: ShareClient) -> None:
    """An hour-old reading from a phone whose clock is an hour ahead passes for current, as the docstring says."""
    service.distort(share_faults.missing)
    taken = round((NOW - 60) * 1000)
    service.add(ANNA.username, sim.Record(taken, 100, arrives=NOW - 3600))
    assert client.current_reading() == Reading(100, "Flat", taken, 330)
    assert "clock is wrong" in (ShareClient.current_reading.__doc__ or "")


def test_knows_that_nothing_is_shared(service: SimulatedShare, client: ShareClient) -> None:
    """If an account shares nothing, the result is an empty batch that says so, and the session stays."""
    service.fault = read(share_faults.error("MonitoredReceiverNotAssigned", "no receiver"))
    assert client.fetch() == Batch(nothing_shared=True)
    assert client.readings() == []
    assert client.latest_reading() is None
    assert client.current_reading() is None
    client.ask_time()
    service.fault = sim.no_fault
    assert client.fetch().readings == readings_of(ANNA)
    assert service.count(call=LOGIN) == 1


def test_returns_nothing_if_there_are_no_readings(service: SimulatedShare, client: ShareClient) -> None:
    """If Share has no readings, the result is empty, without an error."""
    service.distort(share_faults.missing)
    assert client.fetch() == Batch()
    assert client.readings() == []
    assert client.latest_reading() is None
    assert client.current_reading() is None


# The time


def test_asks_for_the_time_without_the_password(service: SimulatedShare) -> None:
    """Share sends the time without a sign-in, and a session is neither needed nor lost."""
    client = client_of(service)
    for _ in range(2):
        client.ask_time()
        assert client.time.known
    assert asked(service, client) == [READ, READ]
    assert client.fetch().readings == readings_of(ANNA)
    client.ask_time()
    client.fetch()
    assert client.logins == 2


@pytest.mark.parametrize("code", ["SessionIdNotFound", "SessionNotValid", "AccountPasswordInvalid"])
def test_the_time_is_in_a_refusal_too(service: SimulatedShare, code: str) -> None:
    """An answer that does not know the session of zeros contains the time as well."""
    client = client_of(service)
    service.fault = share_faults.error(code)
    client.ask_time()
    assert client.time.known
