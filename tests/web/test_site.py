"""Every path, as a client sees it: the answer, who gets it, and that no request breaks it."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.messages.status import Status
from dexcom2mqtt.web import nightscout
from dexcom2mqtt.web.access import Access
from tests.support.builders import NOON, any_text, property_of, reading
from tests.support.site import Shown, encoded

if TYPE_CHECKING:
    from dexcom2mqtt.readings import Reading

TOKEN = "geheim42"
DAY = [reading(90 + n % 20, seconds=300 * n - 86_100) for n in range(288)]
OF_NIGHTSCOUT = ["/api/v1/entries", "/api/v1/entries/sgv", "/api/v1/entries/current", "/api/v1/status"]
EMPTY = ["/api/v1/treatments", "/api/v1/devicestatus", "/api/v1/profile"]
EVERY_PATH = ["/", "/api/accounts", "/health", "/pebble", *OF_NIGHTSCOUT, *EMPTY]


@pytest.fixture
def shown() -> Shown:
    """Return two accounts with a day of readings each."""
    shown = Shown()
    shown.show("anna", *DAY)
    shown.show("ben", *DAY[:-1], reading(200))
    return shown


# --- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY_PATH)
def test_every_path_answers(shown: Shown, path: str) -> None:
    """Each path works for the first account, below each account's own address, and with a superfluous slash."""
    for address in (path, f"/anna{path}", f"/ben{path}", f"/{path}", f"{path}/"):
        assert shown.ask(address).status == 200, address


@pytest.mark.parametrize("path", [*OF_NIGHTSCOUT, *EMPTY])
def test_nightscouts_paths_may_end_in_json(shown: Shown, path: str) -> None:
    """The answer is the same with and without .json, and always JSON."""
    with_it, without = shown.ask(f"{path}.json"), shown.ask(path)
    assert with_it.headers["Content-Type"] == without.headers["Content-Type"] == "application/json; charset=utf-8"
    assert with_it.body == without.body


@pytest.mark.parametrize("path", ["/x", "/cleo", "/anna/x", "/anna/ben/", "/api", "/api/v1", "/entries", "/page.html"])
def test_other_paths_are_not_found(shown: Shown, path: str) -> None:
    """A path that is not in the table is not found."""
    assert shown.ask(path).status == 404


def test_an_accounts_address_leads_to_its_page(shown: Shown) -> None:
    """Without the final slash it redirects to a relative address with it, and keeps the query."""
    answer = shown.ask("/anna", "token=x")
    assert (answer.status, answer.headers["Location"]) == (302, "anna/?token=x")
    assert shown.ask("/anna").headers["Location"] == "anna/"


def test_each_account_has_its_own_entries(shown: Shown) -> None:
    """Two children have two addresses; without one, the first account is used, whatever the query says."""
    values = {path: shown.ask(f"{path}/api/v1/entries", "count=1").json[0]["sgv"] for path in ("", "/anna", "/ben")}
    assert values == {"": DAY[-1].mg_dl, "/anna": DAY[-1].mg_dl, "/ben": 200}
    assert shown.ask("/api/v1/entries", "account=ben&count=1").json[0]["sgv"] == DAY[-1].mg_dl


def test_an_account_may_have_the_name_of_a_path() -> None:
    """The paths of the table have priority; below such an account, all paths work."""
    shown = Shown(keys=("api", "health"))
    shown.show("health", *DAY)
    assert shown.ask("/health").body == b"healthy\n"
    assert len(shown.ask("/health/api/v1/entries").json) == 10
    assert [each["key"] for each in shown.ask("/api/api/accounts").json["accounts"]] == ["api"]


@pytest.mark.parametrize(
    ("path", "query", "count"),
    [
        ("/api/v1/entries", "", 10),
        ("/api/v1/entries/sgv", "count=3", 3),
        ("/api/v1/entries", "count=1000", 288),
        ("/api/v1/entries/current", "count=10", 1),
        ("/api/v1/entries", "find[type]=mbg", 0),
        ("/api/v1/entries", f"find[date][$gt]={(NOON - 1000) * 1000}&count=30", 4),
    ],
)
def test_entries(shown: Shown, path: str, query: str, count: int) -> None:
    """The requested entries are returned, newest first."""
    entries = shown.ask(path, query).json
    assert [entry["date"] for entry in entries] == [each.date for each in DAY[::-1][:count]]


def test_pebble(shown: Shown) -> None:
    """It returns one reading, in the account's unit unless another is requested."""
    assert [each["sgv"] for each in shown.ask("/ben/pebble").json["bgs"]] == ["200"]
    assert shown.ask("/ben/pebble", "units=mmol&count=2").json["bgs"][0]["sgv"] == "11.1"


def test_nothing_yet() -> None:
    """Before the first reading every path answers, without readings."""
    shown = Shown()
    assert [shown.ask(path).status for path in EVERY_PATH] == [200] * len(EVERY_PATH)
    assert shown.ask("/api/v1/entries").json == []
    assert shown.ask("/pebble").json["bgs"] == []


def test_a_process_without_accounts() -> None:
    """One of several processes may serve nobody at the moment: the page works, and Nightscout's paths do not."""
    shown = Shown(keys=())
    assert shown.ask("/").status == 200
    assert shown.ask("/api/accounts").json["accounts"] == []
    assert shown.ask("/health").status == 200
    assert {shown.ask(path).status for path in ("/pebble", *OF_NIGHTSCOUT)} == {404}


def test_accounts_come_and_go(shown: Shown) -> None:
    """A page that is open gets them without being loaded again, and no client gets another person's values."""
    everybody, tag = shown.now, ""
    for keys in (("anna", "ben"), ("ben",), (), ("anna",), ("anna", "ben")):
        shown.now = {key: everybody[key] for key in keys}
        answer = shown.ask("/api/accounts", IF_NONE_MATCH=tag)
        assert [each["key"] for each in answer.json["accounts"]] == list(keys)
        tag = answer.headers["ETag"]
        for path in ("/api/v1/entries", "/pebble", "/anna/pebble", "/anna/api/accounts"):
            assert shown.ask(path).status == (200 if "anna" in keys else 404)
        assert shown.ask("/ben/pebble").status == (200 if "ben" in keys else 404)


def test_health(shown: Shown) -> None:
    """Health is reported in the words of healthcheck, and by the status code."""
    assert (shown.ask("/health").status, shown.ask("/health").body) == (200, b"healthy\n")
    shown.well = False
    assert (shown.ask("/health").status, shown.ask("/health").body) == (503, b"overdue: account anna\n")


# --- the page's data ----------------------------------------------------------------------------------------


def test_accounts(shown: Shown) -> None:
    """Each account has its newest reading, until when that is current, its day, and its status."""
    anna, ben = shown.ask("/api/accounts").json["accounts"]
    assert (anna["key"], ben["key"]) == ("anna", "ben")
    assert (ben["state"]["value"], ben["state"]["range"], ben["unit"]) == (200, "high", "mg/dL")
    assert (ben["taken_at"], ben["fresh_until"]) == (1_000_000, 1_600_000)
    assert ben["ranges"] == {"very_low": 54, "low": 70, "high": 180, "very_high": 250}
    assert ben["readings"][-1] == [NOON * 1000, 200]
    assert ben["status"]["share"] == "starting"
    assert round(sum(ben["time_in_ranges"].values()), 6) == 100.0
    assert ben["time_in_ranges"]["high"] == 0.3
    assert [each["key"] for each in shown.ask("/ben/api/accounts").json["accounts"]] == ["ben"]


def test_a_stale_reading_is_not_sent(shown: Shown) -> None:
    """As soon as a reading is stale, all its keys are null except its time and unit, as on the broker."""
    shown.clock.at = 1600.0
    (anna,) = shown.ask("/anna/api/accounts").json["accounts"]
    assert anna["fresh_until"] is None
    assert {key for key, value in anna["state"].items() if value is not None} == {
        "unit",
        "measurement_timestamp",
        "date",
    }


def test_days_are_left_out_for_very_many_accounts() -> None:
    """A look at a thousand accounts at once must not slow down polling; each account has its own address."""
    shown = Shown(keys=tuple(f"a{n}" for n in range(21)))
    shown.show("a0", *DAY)
    assert shown.ask("/api/accounts").json["accounts"][0]["readings"] == []
    assert len(shown.ask("/a0/api/accounts").json["accounts"][0]["readings"]) == 288


def test_unchanged_data_is_not_sent_again(shown: Shown) -> None:
    """If nothing has changed, the answer is short, but still has the daemon's clock."""
    first = shown.ask("/api/accounts")
    shown.clock.at = 1005.0
    again = shown.ask("/api/accounts", IF_NONE_MATCH=f'W/"x", {first.headers["ETag"]}')
    assert (again.status, again.body, again.headers["Daemon-Clock"]) == (304, b"", "1005000")
    for change in ("a reading", "a status", "time"):
        if change == "a reading":
            shown.show("ben", *DAY[1:], reading(201))
        elif change == "a status":
            shown.status = Status(share="unavailable")
        else:
            shown.clock.at = 1700.0
        now = shown.ask("/api/accounts", IF_NONE_MATCH=first.headers["ETag"])
        assert now.status == 200, change
        assert now.headers["ETag"] != first.headers["ETag"]
        first = now


def test_another_process_has_other_etags(shown: Shown) -> None:
    """Data from an earlier process does not count as unchanged, because its clock may have been different."""
    assert shown.ask("/api/accounts").headers["ETag"] != Shown().ask("/api/accounts").headers["ETag"]


# --- who may read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*EVERY_PATH, "/anna/", "/anna/health", "/anna", "/x"])
def test_everything_except_health_requires_the_token(path: str) -> None:
    """Without the token nothing is revealed, not even which accounts exist."""
    shown = Shown(access=Access(TOKEN))
    answer = shown.ask(path)
    assert answer.status == (200 if path == "/health" else 401)
    assert path == "/health" or answer.body == shown.ask("/").body
    assert TOKEN.encode() not in answer.body


SHA1 = hashlib.sha1(TOKEN.encode(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        (f"token={TOKEN}", {}),
        (f"secret={SHA1}", {}),
        (f"secret={TOKEN}", {}),
        (f"token=token%3D{TOKEN}", {}),
        ("", {"AUTHORIZATION": f"Bearer {TOKEN}"}),
        ("", {"AUTHORIZATION": f"Bearer {SHA1.upper()}"}),
        ("", {"API_SECRET": SHA1}),
        ("", {"API_SECRET": f"token={TOKEN}"}),
        (f"token={TOKEN}", {"API_SECRET": "wrong"}),
    ],
)
def test_the_token_may_come_in_many_ways(query: str, headers: dict[str, str]) -> None:
    """Each Nightscout client sends it in its own way."""
    shown = Shown(access=Access(TOKEN))
    assert shown.ask("/api/v1/entries", query, **headers).status == 200
    assert shown.ask("/api/v1/status", query, **headers).json["settings"]["authDefaultRoles"] == "denied"


@pytest.mark.parametrize("host", ["example.com", "evil.com:8017", ""])
def test_a_name_of_another_machine(shown: Shown, host: str) -> None:
    """It is refused on every path, because a foreign page may use it."""
    assert {shown.ask(path, HOST=host).status for path in EVERY_PATH} == {421}


@pytest.mark.parametrize("path", [*EVERY_PATH, "/anna/", "/x"])
def test_if_only_some_peers_may_connect(path: str) -> None:
    """Others get nothing, not even the daemon's health, whatever name and token they send."""
    shown = Shown(access=Access(TOKEN, None, frozenset({"172.30.32.2"})))
    answer = shown.ask(path, f"token={TOKEN}", X_FORWARDED_FOR="172.30.32.2", HOST="172.30.32.2")
    assert answer.status == 403
    assert answer.body == shown.ask("/", method="POST").body
    shown.asks_from = "172.30.32.2"
    assert shown.ask(path, f"token={TOKEN}", HOST="example.com").status == (404 if path == "/x" else 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"])
def test_nothing_can_be_changed(shown: Shown, method: str) -> None:
    """Only GET and HEAD are allowed."""
    answer = shown.ask("/api/v1/entries", method=method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", EVERY_PATH)
def test_head_is_get_without_the_body(shown: Shown, path: str) -> None:
    """HEAD returns the same headers as GET."""
    head, get = shown.ask(path, method="HEAD"), shown.ask(path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers == get.headers
    assert int(get.headers["Content-Length"]) == len(get.body)


@pytest.mark.parametrize("path", [*EVERY_PATH, "/x", "/anna"])
def test_no_other_page_may_use_it(shown: Shown, path: str) -> None:
    """No page of another origin may read or frame it, no cache stores it, and no referrer is sent."""
    headers = shown.ask(path).headers
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_the_page_runs_only_its_own_code(shown: Shown) -> None:
    """Its policy has the hashes of its only script and style, and allows connections only to this server."""
    answer = shown.ask("/")
    policy = answer.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy


# --- any request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/entries", "/api/accounts"])
def test_a_bug_is_logged_once_and_leaks_nothing(shown: Shown, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The browser gets only that something went wrong, the log also where; neither gets the message of the error."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CAN" + "ARY")

    with mock.patch.object(nightscout, "entries", broken), mock.patch("dexcom2mqtt.web.site.described", broken):
        answers = [shown.ask(path, "token=CANARY") for _ in range(3)]
    assert [answer.status for answer in answers] == [500] * 3
    assert b"CANARY" not in answers[0].body
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "RuntimeError" in record.getMessage()
    assert "CANARY" not in caplog.text


WORDS = st.sampled_from(["api", "v1", "entries", "sgv", "current", "status.json", "anna", "health", "pebble", "..", ""])
NAMES = st.sampled_from(
    ["count", "find[date][$gt]", "find[dateString][$lt]", "find[type]", "token", "units", "account"]
)
HEADERS = st.sampled_from(["HOST", "AUTHORIZATION", "API_SECRET", "IF_NONE_MATCH", "X_FORWARDED_FOR", "ORIGIN"])
LATIN = st.text(st.characters(max_codepoint=255))


@property_of
@given(
    st.lists(WORDS | any_text, max_size=6).map("/".join).map("/".__add__),
    (st.dictionaries(NAMES | any_text, any_text, max_size=4).map(encoded)) | LATIN,
    st.dictionaries(HEADERS, LATIN | st.just("localhost"), max_size=4),
    st.sampled_from(["", TOKEN]),
)
def test_any_request_is_answered(path: str, query: str, headers: dict[str, str], token: str) -> None:
    """Any request gets one of a few answers, without an error, and never the token."""
    shown = Shown(access=Access(token or None))
    shown.show("anna", *DAY[-5:])
    answer = shown.ask(path, query, **headers)
    assert answer.status in {200, 302, 304, 400, 401, 404, 421}
    assert not token or token.encode() not in answer.body
    assert "\n" not in "".join(answer.headers.values())


@property_of
@given(st.lists(st.tuples(st.integers(39, 401), st.integers(0, 86_400)), max_size=40, unique_by=lambda pair: pair[1]))
def test_any_readings_can_be_written(values: list[tuple[int, int]]) -> None:
    """Each path can write any day of readings, in the promised order."""
    shown = Shown()
    day: list[Reading] = [reading(mg_dl, seconds=seconds - 86_400) for mg_dl, seconds in sorted(values, key=_second)]
    if day:
        shown.show("anna", *day)
    entries: list[dict[str, Any]] = shown.ask("/api/v1/entries", "count=288").json
    assert [entry["date"] for entry in entries] == sorted((each.date for each in day), reverse=True)
    assert shown.ask("/pebble", "units=mmol&count=288").status == shown.ask("/api/accounts").status == 200


def _second(pair: tuple[int, int]) -> int:
    return pair[1]
