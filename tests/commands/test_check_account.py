"""What check says about an account: whether the sign-in works, what readings Share has, and the time."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme
import yaml

from dexcom2mqtt.commands.rejection import causes_of_rejection
from dexcom2mqtt.config.settings import Account
from dexcom2mqtt.config.values import Secret
from dexcom2mqtt.messages.status import DRIFTED, MALFORMED, NEWEST_MALFORMED, NOTHING_SHARED
from tests.support.checking import ANNA, BEN, Bench, failed, remedies, steps
from tests.support.processes import ROOT, Mosquitto
from tests.support.share_faults import (
    body,
    cut,
    drop,
    during,
    edited,
    error,
    hang,
    html,
    missing,
    only,
    padded,
    reset,
    skewed,
    status,
    together,
    truncated,
    valued,
    zero_uuid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.demo.share_service import Distortion, Fault

FAKETIME: Final = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
DAY: Final = 86400.0


# Credentials


@pytest.mark.parametrize(
    ("region", "page", "others"),
    [
        ("us", "uam1.dexcom.com", "uam2.dexcom.com, the region is ous; at uam.dexcom.jp, the region is jp"),
        ("ous", "uam2.dexcom.com", "uam1.dexcom.com, the region is us; at uam.dexcom.jp, the region is jp"),
        ("jp", "uam.dexcom.jp", "uam1.dexcom.com, the region is us; at uam2.dexcom.com, the region is ous"),
    ],
)
def test_a_wrong_password(bench: Bench, mosquitto: Mosquitto, region: str, page: str, others: str) -> None:
    """It is tried once, and every possible cause is printed, with the account page of each region."""
    bench.accounts = {"anna": bench.account(BEN, password="the-secret", region=region)}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    assert done.stderr == "dexcom2mqtt: 1 step failed; see above for what to do\n"
    assert [request.call for request in bench.share.requests] == ["authenticate"]
    (said,) = failed(done.stdout)
    assert said.startswith("anna: ")
    assert said.endswith(" rejected the credentials.")
    causes = remedies(done.stdout)
    assert [cause[:3] for cause in causes] == [f"{number}. " for number in range(1, 8)]
    assert "those of the person who wears the sensor" in causes[0]
    assert f"With region {region}, the credentials must work at {page}. If they work at {others}." in causes[1]
    assert "'+11234567890'" in causes[2]
    assert page in causes[3]
    assert "new terms" in causes[4]
    assert f"sign in once at {page}." in causes[4]
    assert f"once signed in at {page}" in causes[5]
    assert "account_id: " in causes[5]
    assert "wait 20 minutes" in causes[6]
    assert ("ok", "anna: This machine's clock agrees with Share's.") in steps(done.stdout)
    assert ("ok", "broker: Publishing to dexcom2mqtt/anna/# is allowed.") in steps(done.stdout)
    assert "All is well" not in done.stdout


@pytest.mark.parametrize("name", ["1 (123) 456-7890", "11234567891", "0170/1234567", "+1 123 456-7890"])
def test_a_user_name_that_looks_like_a_phone_number(bench: Bench, mosquitto: Mosquitto, name: str) -> None:
    """If the user name looks like a phone number without its country code, that is the first cause."""
    bench.accounts = {"anna": bench.account(ANNA, username=name)}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    causes = remedies(done.stdout)
    assert causes[0].startswith("1. The user name looks like a phone number.")
    assert done.stdout.count("'+11234567890'") == 1
    assert name not in done.stdout


def test_a_correct_phone_number_is_not_blamed(bench: Bench, mosquitto: Mosquitto) -> None:
    """A phone number with its + is not the first cause."""
    bench.accounts = {"anna": bench.account(ANNA, username="+11234567891")}
    assert "looks like" not in bench.check(mosquitto.port).stdout


def test_a_wrong_account_id(bench: Bench, mosquitto: Mosquitto) -> None:
    """If the account id is rejected, user names are not mentioned."""
    bench.accounts = {"anna": bench.account(ANNA, username=None, account_id="0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    assert len(remedies(done.stdout)) == 5
    assert "account_id" not in done.stdout
    assert "user name" not in done.stdout.replace("us without a user name", "")
    assert "phone" not in done.stdout


EXAMPLE: Final = "The user name is still the example's placeholder."
EDGE: Final = "The user name begins or ends with a space"
INVISIBLE: Final = "The user name contains an invisible character"
PASSWORD_EXAMPLE: Final = "The password is still the example's placeholder."
PASSWORD_EDGE: Final = "The password begins or ends with a space"
DIGITS: Final = "The password is only digits."
LONG: Final = "The password has more than 30 characters."
SEEN: Final = (EXAMPLE, EDGE, INVISIBLE, PASSWORD_EXAMPLE, PASSWORD_EDGE, DIGITS, LONG)


def rejected(**credentials: str) -> list[str]:
    """Return the causes for rejected credentials, in order; none shows the credentials."""
    hidden = {key: Secret(value) for key, value in credentials.items()}
    account = Account(username=hidden.get("username"), account_id=hidden.get("account_id"), password=hidden["password"])
    causes = list(causes_of_rejection(account))
    assert not [cause for cause in causes for value in credentials.values() if value.strip() in cause]
    return causes


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("ben.the.builder", []),
        ("ben the builder", []),
        ("zoë", []),
        ("USER NAME", [EXAMPLE]),
        ("anna@example.com", [EXAMPLE]),
        ("Ben@Example.COM", [EXAMPLE]),
        ("anna@example.com.au", []),
        ("anna@an-example.com", []),
        (" ben", [EDGE]),
        ("ben ", [EDGE]),
        ("ben\N{NO-BREAK SPACE}", [EDGE]),
        ("ben\N{ZERO WIDTH SPACE}", [INVISIBLE]),
        ("\N{ZERO WIDTH NO-BREAK SPACE}ben", [INVISIBLE]),
        ("ben\N{NO-BREAK SPACE}builder", [INVISIBLE]),
        ("ben\N{SOFT HYPHEN}builder", [INVISIBLE]),
        (" anna@example.com\N{ZERO WIDTH SPACE} x", [EDGE, INVISIBLE]),
        (" USER NAME", [EXAMPLE, EDGE]),
    ],
)
def test_oddities_of_a_user_name_come_first(name: str, seen: list[str]) -> None:
    """Placeholders, spaces at the ends and invisible characters are named, and nothing else."""
    said = rejected(username=name, password="correct horse")
    assert [next(text for text in SEEN if cause.startswith(text)) for cause in said[: len(seen)]] == seen
    assert not [cause for cause in said[len(seen) :] if cause.startswith(SEEN)]
    assert len(said) == 7 + len(seen)


@pytest.mark.parametrize(
    ("password", "seen"),
    [
        ("correct horse", []),
        ("x" * 30, []),
        ("x" * 31, [LONG]),
        ("13572468", [DIGITS]),
        ("1234567a", []),
        ("9" * 31, [DIGITS, LONG]),
        (" horse", [PASSWORD_EDGE]),
        ("horse ", [PASSWORD_EDGE]),
        ("horse\N{NO-BREAK SPACE}", [PASSWORD_EDGE]),
        ("13572468 ", [PASSWORD_EDGE, DIGITS]),
        ("PASSWORD", [PASSWORD_EXAMPLE]),
        ("her password at Dexcom", [PASSWORD_EXAMPLE]),
        ("Password", []),
    ],
)
@pytest.mark.parametrize("who", [{"username": "ben"}, {"account_id": ANNA.account_id}])
def test_oddities_of_a_password_come_first(who: dict[str, str], password: str, seen: list[str]) -> None:
    """Placeholders, only digits, too many characters and spaces at the ends are named, also with an account id."""
    said = rejected(**who, password=password)
    assert [next(text for text in SEEN if cause.startswith(text)) for cause in said[: len(seen)]] == seen
    assert not [cause for cause in said[len(seen) :] if cause.startswith(SEEN)]


def test_placeholders_are_those_of_the_examples() -> None:
    """The placeholders that check recognizes are those of config.example.yaml and the README."""
    accounts = [
        *yaml.safe_load((ROOT / "config.example.yaml").read_text(encoding="utf-8"))["accounts"].values(),
        *yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0])[
            "accounts"
        ].values(),
    ]
    assert len(accounts) == 2
    for written in accounts:
        said = rejected(username=written["username"], password=written["password"])
        assert said[0].startswith(EXAMPLE)
        assert said[1].startswith(PASSWORD_EXAMPLE)


def test_oddities_are_printed_by_the_command(bench: Bench, mosquitto: Mosquitto) -> None:
    """Whatever looks wrong with the credentials heads the list, the user name first, without being shown."""
    bench.accounts = {
        "anna": bench.account(ANNA, username="0170/1234567", password="12345678901234567890123456789012 ")
    }
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    heads = (
        "The user name looks like a phone number.",
        PASSWORD_EDGE,
        DIGITS,
        LONG,
        "The credentials must be those of",
    )
    for number, (cause, head) in enumerate(zip(remedies(done.stdout), heads, strict=False), 1):
        assert cause.startswith(f"{number}. {head}")
    assert "0170" not in done.stdout
    assert "23456789" not in done.stdout.replace("'+11234567890'", "").replace("12345678-90ab", "")


# What Share answers


FAULTS: Final[dict[str, tuple[Fault, str]]] = {
    "429": (status(429), "is receiving too many requests. Share asks for fewer requests"),
    "503": (status(503), "answered with status 503. Share cannot be reached or is down"),
    "a page": (html(403), "answered with status 403. Share cannot be reached"),
    "a page with 200": (html(200), "answered with something other than JSON. Share sent an unexpected answer"),
    "locked": (
        error("SSO_AuthenticateMaxAttemptsExceeded"),
        "has locked the account for a while after failed sign-ins",
    ),
    "malformed": (error("InvalidArgument", "accountName"), "calls the user name, password or account id malformed"),
    "zeros": (zero_uuid(), "rejected the credentials"),
    "null": (body(b"null"), "answered a sign-in with something other than an id"),
    "a read that is no list": (only(body(b"{}"), call="read"), "answered a read with something other than a list"),
    "a lost session": (only(error("SessionIdNotFound"), call="read"), "has ended the session"),
    "half": (truncated(), "answered with something other than JSON"),
    "too much": (padded(), "answered more than 1 MiB"),
    "closed": (drop(), "No answer from 127.0.0.1:"),
    "cut": (cut(), "the connection was interrupted"),
    "reset": (reset(), "the connection was interrupted"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_explained_and_stops_nothing_else(bench: Bench, mosquitto: Mosquitto, name: str) -> None:
    """A fault at one account is explained, and the next account and the broker are still tried."""
    fault, words = FAULTS[name]

    def of_anna(request: Any, respond: Any) -> Any:
        theirs = request.account is None or request.account.username == ANNA.username
        return fault(request, respond) if theirs else respond(request)

    bench.accounts = {"anna": bench.account(ANNA), "ben": bench.account(BEN)}
    bench.share.fault = of_anna
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    assert said.startswith("anna: ")
    assert words in said
    assert ("ok", "ben: This machine's clock agrees with Share's.") in steps(done.stdout)
    assert ("ok", "broker: Publishing to dexcom2mqtt/anna/# is allowed.") in steps(done.stdout)
    assert bench.share.count(call="authenticate", account=ANNA.username) <= 1
    assert bench.share.count(call="login", account=ANNA.username) <= 1


def test_share_not_answering(bench: Bench, mosquitto: Mosquitto) -> None:
    """A call that hangs is given up after 20 s, and the broker is still tried."""
    bench.share.fault = only(hang(), call="authenticate")
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    assert "it took too long. Share cannot be reached" in said
    assert ("ok", "broker: Publishing to dexcom2mqtt/anna/# is allowed.") in steps(done.stdout)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://share.invalid/Services", "its name could not be looked up. This machine cannot"),
        ("http://127.0.0.1:1/Services", "the connection was refused. Share cannot be reached or is down."),
    ],
)
def test_share_not_reachable(bench: Bench, mosquitto: Mosquitto, url: str, words: str) -> None:
    """If Share cannot be reached, the reason is printed, and clocks are not mentioned."""
    bench.accounts = {"anna": bench.account(ANNA, share_url=url)}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    assert words in said
    assert "clock" not in done.stdout


def malformed(records: list[Any]) -> list[Any]:
    return [{**record, "Value": "many"} for record in records]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (edited(lambda records: [records[0], *malformed(records[1:3]), *records[3:]]), MALFORMED.format(2)),
        (edited(lambda records: [*malformed(records[:1]), *records[1:]]), MALFORMED.format(1)),
        (edited(lambda records: [{**record, "WT": None} for record in records[:3]]), DRIFTED.format(3)),
    ],
)
def test_odd_records_are_a_note(bench: Bench, mosquitto: Mosquitto, fault: Fault, words: str) -> None:
    """While a reading is current, malformed records or a new form are a note, with the text of the log."""
    bench.share.fault = only(fault, call="read")
    done = bench.check(mosquitto.port, {"stale_after": 60})
    assert done.returncode == 0
    assert ("note", f"anna: {words}") in steps(done.stdout)
    assert "anna: Sharing is on. The newest reading is " in done.stdout


def test_an_account_that_shares_nothing(bench: Bench, mosquitto: Mosquitto) -> None:
    """It is explained with the daemon's text, and is not an outage."""
    bench.share.fault = only(error("MonitoredReceiverNotAssigned"), call="read")
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    assert failed(done.stdout) == [f"anna: {NOTHING_SHARED}"]
    assert ("ok", "anna: This machine's clock agrees with Share's.") in steps(done.stdout)


def test_a_malformed_newest_record_is_the_cause(bench: Bench, mosquitto: Mosquitto) -> None:
    """If nothing is current and the newest record is malformed, that is the cause, with the daemon's text."""
    bench.share.fault = only(edited(lambda records: [*malformed(records[:12]), *records[12:]]), call="read")
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    assert said.startswith("anna: No reading is current. The newest is ")
    assert remedies(done.stdout) == [f"1. {NEWEST_MALFORMED}"]
    assert ("note", f"anna: {MALFORMED.format(12)}") in steps(done.stdout)


@pytest.mark.parametrize("minutes", [12, 60, 180])
def test_a_phone_clock_ahead_is_reported(bench: Bench, mosquitto: Mosquitto, minutes: int) -> None:
    """A reading from the future is a failure: the minutes are given, and what to do."""
    bench.share.distort(skewed(minutes * 60.0))
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    ahead = re.match(r"anna: The wearer's phone seems to be (\d+) min ahead\. ", said)
    assert ahead
    assert minutes - 5 <= int(ahead[1]) <= minutes
    assert len(remedies(done.stdout)) == 3


def test_a_phone_a_few_minutes_ahead_is_fine(bench: Bench, mosquitto: Mosquitto) -> None:
    """Up to five minutes are no problem, as for the daemon."""
    bench.share.distort(skewed(240.0))
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    assert "anna: Sharing is on. The newest reading is " in done.stdout


@pytest.mark.parametrize(
    ("distortion", "fault", "words", "causes"),
    [
        pytest.param(missing, None, "Share has no reading from the last 24 hours.", 4, id="none"),
        pytest.param(valued(10), None, "The sensor sends error codes in place of readings.", 0, id="only error codes"),
        pytest.param(None, edited(malformed), "Share sent an unexpected answer", 0, id="nonsense"),
        pytest.param("old", None, "No reading is current. The newest is ", 4, id="old"),
        pytest.param("errors", None, "No reading is current. The newest is ", 1, id="old, and error codes since"),
    ],
)
def test_without_a_current_reading_it_says_why(
    bench: Bench,
    mosquitto: Mosquitto,
    distortion: Distortion | str | None,
    fault: Fault | None,
    words: str,
    causes: int,
) -> None:
    """No readings at all, only old ones, and error codes each have their causes."""
    now = time.time()
    if distortion == "old":
        distortion = during(now - 3 * 3600, now + DAY, missing)
    elif distortion == "errors":
        distortion = together(
            during(now - 3 * 3600, now + DAY, valued(10)), during(now - 3 * 3600 - 300, now - 3 * 3600, missing)
        )
    if distortion is not None:
        assert not isinstance(distortion, str)
        bench.share.distort(distortion)
    if fault is not None:
        bench.share.fault = only(fault, call="read")
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    assert said.startswith(f"anna: {words}") or f" {words}" in said
    listed = remedies(done.stdout)
    assert len(listed) == causes
    if distortion is missing:
        assert "sharing must be on and have at least one follower" in listed[0]
        assert "Stelo" in listed[3]
    elif causes == 1:
        assert "The sensor sends error codes" in listed[0]
    elif causes == 3:
        assert " 3 h old; " in said
        assert "The phone is off" in listed[0]


def test_stale_after_is_the_limit(bench: Bench, mosquitto: Mosquitto) -> None:
    """A half-hour-old reading is a failure by default, but not if stale_after makes it current."""
    now = time.time()
    bench.share.distort(during(now - 1800, now + DAY, missing))
    assert bench.check(mosquitto.port).returncode == 1
    assert bench.check(mosquitto.port, {"stale_after": 60}).returncode == 0


# The clock


@pytest.mark.parametrize(
    ("off", "words"), [("+2h", "2 h ahead of"), ("-3d", "3 days behind"), ("-300s", "5 min behind")]
)
def test_a_wrong_clock_is_a_note(bench: Bench, mosquitto: Mosquitto, tmp_path: Path, off: str, words: str) -> None:
    """This machine's clock is compared with Share's, which determines a reading's age."""
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed; install the package faketime to run them")
    says = tmp_path / "clock"
    says.write_text(f"{off}\n", encoding="utf-8")
    bench.environ |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(says),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    (said,) = [words for verdict, words in steps(done.stdout) if verdict == "note" and "clock" in words]
    assert said.startswith(f"anna: This machine's clock is {words} Share's.")
    assert "timedatectl" in remedies(done.stdout)[0]


@contextlib.contextmanager
def encrypted(certificate: trustme.LeafCert) -> Iterator[int]:
    """Complete TLS handshakes and close the connections; yield the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with contextlib.suppress(OSError), client, context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(10)


@pytest.mark.parametrize("known", [True, False])
def test_an_invalid_certificate_of_share(bench: Bench, mosquitto: Mosquitto, tmp_path: Path, known: bool) -> None:
    """An expired certificate points to this machine's clock, and one of an unknown authority does not."""
    ca, stranger = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    bench.environ["SSL_CERT_FILE"] = str(tmp_path / "ca.pem")
    old = datetime.now(UTC) - timedelta(days=1)
    certificate = ca.issue_cert("127.0.0.1", not_after=old) if known else stranger.issue_cert("127.0.0.1")
    with encrypted(certificate) as port:
        bench.accounts = {"anna": bench.account(ANNA, share_url=f"https://127.0.0.1:{port}/Services")}
        done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    if known:
        assert "is expired or not yet valid. This machine's clock seems to be wrong" in said
        assert remedies(done.stdout) == [f"1. This machine thinks that today is {datetime.now(UTC):%Y-%m-%d}."]
    else:
        assert "is not trusted by this machine" in said
        assert remedies(done.stdout) == []
