"""The command that tries everything once: the real command, a real mosquitto, the simulated Share service."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme
import yaml

from dexcom2mqtt.check import _rejected
from dexcom2mqtt.config import Account
from dexcom2mqtt.demo.share_service import (
    Fault,
    SimulatedAccount,
    SimulatedShare,
    accelerated,
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
from dexcom2mqtt.status import DRIFTED, MALFORMED, NEWEST_MALFORMED, NOTHING_SHARED
from tests.support.brokers import gatekeeper, login, secure
from tests.support.processes import (
    ROOT,
    Mosquitto,
    Subscriber,
    daemon,
    eventually,
    free_port,
    listening,
    retained,
    write_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dexcom2mqtt.demo.share_service import Distortion

ANNA: Final = SimulatedAccount("anna@example.com", "hunter2", seed=1)
BEN: Final = SimulatedAccount("ben.the.builder", "correct horse", seed=2)
FAKETIME: Final = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
UNWRAPPED: Final = {"COLUMNS": "1000"}
DAY: Final = 86400.0


@pytest.fixture
def share() -> Iterator[SimulatedShare]:
    """Return a running Share service with two accounts."""
    with SimulatedShare([ANNA, BEN], accelerated(1)) as service:
        yield service


class Bench:
    """A configuration that knows Anna and a broker, and the command with it."""

    def __init__(self, folder: Path, share: SimulatedShare) -> None:
        self._folder = folder
        self.share = share
        self.accounts = {"anna": self.account(ANNA)}
        self.environ = dict(os.environ) | UNWRAPPED
        self.environ.pop("PYTHONUNBUFFERED", None)  # what is written has to be seen at once without it

    def account(self, who: SimulatedAccount, **changes: Any) -> dict[str, Any]:
        return {"username": who.username, "password": who.password, "share_url": self.share.base_url} | changes

    def command(self, port: int, sections: dict[str, Any] | None = None, **mqtt: Any) -> list[str]:
        config = {"accounts": self.accounts, "mqtt": {"host": "127.0.0.1", "port": port, **mqtt}, **(sections or {})}
        file = write_config(self._folder / "config.yaml", config)
        return [sys.executable, "-m", "dexcom2mqtt", "check", "--config", str(file)]

    def check(
        self, port: int, sections: dict[str, Any] | None = None, *, encoding: str = "utf-8", **mqtt: Any
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(port, sections, **mqtt),
            capture_output=True,
            encoding=encoding,
            check=False,
            timeout=60,
            env=self.environ,
            cwd=ROOT,
        )
        written = done.stdout + done.stderr
        assert "Traceback" not in written
        secrets = (ANNA.username, ANNA.password, BEN.username, BEN.password, ANNA.account_id, "the-secret", "the-user")
        assert not [secret for secret in secrets if secret in written]
        return done

    def start(self, port: int, **mqtt: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(port, **mqtt),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=self.environ,
            cwd=ROOT,
        )


@pytest.fixture
def bench(tmp_path: Path, share: SimulatedShare) -> Bench:
    """Return a configuration, and the command with it."""
    return Bench(tmp_path, share)


def steps(text: str) -> list[tuple[str, str]]:
    """Return of each step its verdict and what it says, without what is said below it."""
    return [(line[:8].strip(), line[8:]) for line in text.splitlines() if line[:8].strip() in {"ok", "note", "FAILED"}]


def remedies(text: str) -> list[str]:
    """Return what is said below the steps."""
    return [line.strip() for line in text.splitlines() if line.startswith(" " * 8)]


def failed(text: str) -> list[str]:
    return [words for verdict, words in steps(text) if verdict == "FAILED"]


# When all is well


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_all_is_well(bench: Bench, mosquitto: Mosquitto, protocol: str) -> None:
    """Every step is told, one sign-in is made, and nothing is left at the broker."""
    with Subscriber(mosquitto.port) as witness:
        witness.client.publish("homeassistant/status", "online", qos=1, retain=True)
        witness.wait_for("homeassistant/status")
    done = bench.check(mosquitto.port, protocol=protocol)
    assert (done.returncode, done.stderr) == (0, "")
    spoken = "3.1.1" if protocol == "3.1.1" else "5"
    told = steps(done.stdout)
    newest = told.pop(2)
    assert newest[0] == "ok"
    assert newest[1].startswith("anna: Sharing is on. The newest reading is ")
    assert re.search(r" old; there are 28[78] of the last 24 hours\.$", newest[1])  # one may be on its way
    assert told == [
        ("ok", "configuration: It is good. Accounts: anna."),
        ("ok", f"anna: Signed in to {bench.share.base_url.split('/')[2]}, region us."),
        ("ok", "anna: This machine's clock agrees with Share's."),
        ("ok", f"broker: 127.0.0.1 port {mosquitto.port} takes connections, at 127.0.0.1."),
        ("ok", f"broker: It speaks MQTT {spoken} and accepts us without a user name."),
        ("ok", "broker: Publishing to dexcom2mqtt/bridge/# is allowed."),
        ("ok", "broker: Publishing to dexcom2mqtt/anna/# is allowed."),
        ("ok", "broker: Publishing to homeassistant/device/+/config is allowed."),
        ("ok", "broker: Home Assistant is there: homeassistant/status is online."),
    ]
    assert remedies(done.stdout) == []
    assert done.stdout.endswith("\nAll is well.\n")
    assert [request.call for request in bench.share.requests] == ["authenticate", "login", "read"]
    assert retained(mosquitto.port) == {"homeassistant/status": "online"}
    assert "as dexcom2mqtt-check" in mosquitto.log()
    assert "No will message specified." in mosquitto.log().split("as dexcom2mqtt-check")[1]


def test_the_sample_in_the_readme(bench: Bench, mosquitto: Mosquitto) -> None:
    """What README.md shows is what it writes, but for numbers and names."""
    written = bench.check(mosquitto.port, host="localhost").stdout
    for pattern, shown in (
        (r"127\.0\.0\.1:\d+", "share2.dexcom.com"),
        (r"port \d+", "port 1883"),
        (r"\d+ mg/dL .*? old; there are 28[78]", "85 mg/dL →, 2 min old; there are 288"),
    ):
        written = re.sub(pattern, shown, written)
    sample = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    assert re.sub("\n +", " ", sample) == written


def test_a_running_daemon_is_not_disturbed(bench: Bench, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Beside a daemon it says that there is one; the daemon stays connected, and its topics as they are."""
    file = Path(bench.command(mosquitto.port)[-1])
    with daemon(file, tmp_path / "daemon.log") as running, Subscriber(mosquitto.port) as witness:
        witness.wait_for("dexcom2mqtt/bridge/state", "online")
        witness.wait_for("dexcom2mqtt/anna/status")
        before = retained(mosquitto.port)
        witness.forget()
        done = bench.check(mosquitto.port)
        assert (done.returncode, done.stderr) == (0, "")
        assert steps(done.stdout)[-1] == ("note", "broker: A daemon is online below dexcom2mqtt.")
        assert retained(mosquitto.port).keys() == before.keys()
        assert "homeassistant/device/dexcom2mqtt_anna/config" in before
        assert {heard.topic for heard in witness.heard if not heard.topic.startswith("test/")} <= {
            "dexcom2mqtt/bridge/sync/dexcom2mqtt-check",
            "dexcom2mqtt/bridge/sync/dexcom2mqtt-check-retained",
            "dexcom2mqtt/anna/check",
            "homeassistant/device/dexcom2mqtt-check/config",
            *(f"dexcom2mqtt/anna/{leaf}" for leaf in ("reading", "status", "history", "state", "availability")),
        } | {f"dexcom2mqtt/anna/{leaf}" for leaf in json.loads(before["dexcom2mqtt/anna/state"])}
        assert running.running
        assert "WARNING" not in running.text()
        assert "ERROR" not in running.text()
        assert mosquitto.log().count(" as dexcom2mqtt (") == 1


def test_account_id_and_unit(bench: Bench, mosquitto: Mosquitto) -> None:
    """With an account id one request less signs in, and the reading is shown in the account's unit."""
    bench.accounts = {"anna": bench.account(ANNA, username=None, account_id=ANNA.account_id, unit="mmol/L")}
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    assert " mmol/L " in done.stdout
    assert [request.call for request in bench.share.requests] == ["login", "read"]


def test_without_discovery_its_prefix_is_not_tried(bench: Bench, mosquitto: Mosquitto) -> None:
    """Where Home Assistant is not to know of it, nothing of it is looked at."""
    done = bench.check(mosquitto.port, {"home_assistant": {"discovery": False}})
    assert done.returncode == 0
    assert "homeassistant" not in done.stdout
    assert "homeassistant" not in mosquitto.log()


# What it looks like


def test_each_line_appears_as_soon_as_it_is_known(bench: Bench, mosquitto: Mosquitto) -> None:
    """While Share does not answer to a read, it can be read already that the sign-in worked."""
    bench.share.fault = only(hang(), call="read")
    with bench.start(mosquitto.port) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0].startswith("ok      configuration: ")
        assert lines[1].startswith("ok      anna: Signed in")
        assert process.poll() is None
        eventually(lambda: bench.share.count(call="read"))
        process.kill()
        assert process.stdout.read() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_is_no_traceback(bench: Bench, mosquitto: Mosquitto, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a terminal that is closed end it at once, with one line."""
    bench.share.fault = hang()
    with bench.start(mosquitto.port) as process:
        eventually(lambda: bench.share.count(call="authenticate"))
        process.send_signal(number)
        _, told = process.communicate(timeout=10)
    assert (process.returncode, told) == (1, "dexcom2mqtt: interrupted\n")


def test_an_interruption_leaves_nothing_at_the_broker(bench: Bench, mosquitto: Mosquitto) -> None:
    """SIGTERM in the middle of trying to publish takes back what is retained."""
    left = "dexcom2mqtt/bridge/sync/dexcom2mqtt-check-retained"
    with stopping_at(mosquitto.port, b"-check-retained") as (port, reached, go_on), bench.start(port) as process:
        assert reached.wait(20)
        eventually(lambda: left in retained(mosquitto.port))
        process.send_signal(signal.SIGTERM)
        go_on.set()
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (1, "dexcom2mqtt: interrupted\n")
    assert retained(mosquitto.port) == {}


@pytest.mark.parametrize("columns", ["10", "50"])
def test_a_narrow_terminal(bench: Bench, mosquitto: Mosquitto, columns: str) -> None:
    """Lines are wrapped to the terminal, below each other, and never narrower than can be read."""
    bench.accounts = {"anna": bench.account(ANNA, password="wrong")}
    bench.environ["COLUMNS"] = columns
    done = bench.check(mosquitto.port)
    lines = done.stdout.splitlines()
    assert 30 < max(map(len, lines)) <= max(int(columns), 40)
    assert len(lines) > 30
    assert all(line.startswith(("ok", "note", "FAILED", " " * 8)) for line in lines)
    assert lines[lines.index(next(line for line in lines if "1. " in line)) + 1].startswith(" " * 11)


@pytest.mark.parametrize(
    "environ",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LANG": "C", "LC_ALL": ""},
    ],
)
def test_a_terminal_without_arrows(bench: Bench, mosquitto: Mosquitto, environ: dict[str, str]) -> None:
    """Where the output cannot hold an arrow, all else is written nevertheless."""
    bench.environ |= environ
    done = bench.check(mosquitto.port, encoding="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "All is well." in done.stdout


def test_a_reader_that_leaves(bench: Bench, mosquitto: Mosquitto) -> None:
    """Behind `head -1` it ends in silence."""
    bench.share.fault = only(hang(), call="authenticate")
    with bench.start(mosquitto.port) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        eventually(lambda: bench.share.count(call="authenticate"))
        bench.share.close()  # which ends the call that hangs
        assert process.wait(20) == 1
        assert process.stderr.read() == ""


# Configuration


def test_every_mistake_is_named_before_anything_is_tried(bench: Bench, mosquitto: Mosquitto) -> None:
    """Mistakes in the configuration end it with 78, all of them named, and nobody is asked anything."""
    bench.accounts = {"anna": bench.account(ANNA, region="uk", unit="mg")}
    done = bench.check(mosquitto.port, {"stale_after": 5, "mtqq": {}})
    assert (done.returncode, done.stdout) == (78, "")
    for place in (
        "accounts.anna.region: found 'uk'",
        "accounts.anna.unit: found 'mg'",
        "stale_after:",
        "mtqq: unknown",
    ):
        assert place in done.stderr
    assert bench.share.requests == []
    assert "New client connected" not in mosquitto.log()


def test_a_tls_file_that_is_none_costs_no_sign_in(bench: Bench, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """A file that holds no certificate is a mistake in the configuration, told before anybody signs in."""
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing", encoding="utf-8")
    done = bench.check(mosquitto.port, tls={"ca_file": str(nothing)})
    assert (done.returncode, done.stdout) == (78, "")
    assert "mqtt.tls.ca_file: " in done.stderr
    assert bench.share.requests == []


def test_wrong_usage(bench: Bench) -> None:
    """An option that is none ends with 2."""
    done = subprocess.run([*bench.command(1), "--twice"], capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert bench.share.requests == []


# Share


@pytest.mark.parametrize(
    ("region", "page", "others"),
    [
        ("us", "uam1.dexcom.com", "uam2.dexcom.com, the region is ous; at uam.dexcom.jp, the region is jp"),
        ("ous", "uam2.dexcom.com", "uam1.dexcom.com, the region is us; at uam.dexcom.jp, the region is jp"),
        ("jp", "uam.dexcom.jp", "uam1.dexcom.com, the region is us; at uam2.dexcom.com, the region is ous"),
    ],
)
def test_a_wrong_password(bench: Bench, mosquitto: Mosquitto, region: str, page: str, others: str) -> None:
    """It is tried once, and everything that it can be is told, with the account page of each region."""
    bench.accounts = {"anna": bench.account(BEN, password="the-secret", region=region)}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    assert done.stderr == "dexcom2mqtt: 1 failed; see above for what to do\n"
    assert [request.call for request in bench.share.requests] == ["authenticate"]
    (told,) = failed(done.stdout)
    assert told.startswith("anna: ")
    assert told.endswith(" did not accept the credentials.")
    causes = remedies(done.stdout)
    assert [cause[:3] for cause in causes] == [f"{number}. " for number in range(1, 8)]
    assert "those of the person who wears the sensor" in causes[0]
    assert f"For {region} they have to work at {page}. If they work at {others}." in causes[1]
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
    """Where the user name looks like a phone number without its country, that is the first cause."""
    bench.accounts = {"anna": bench.account(ANNA, username=name)}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    causes = remedies(done.stdout)
    assert causes[0].startswith("1. The user name looks like a phone number.")
    assert done.stdout.count("'+11234567890'") == 1
    assert name not in done.stdout


def test_a_phone_number_that_is_right_is_no_suspect(bench: Bench, mosquitto: Mosquitto) -> None:
    """A phone number with its + is not what is blamed first."""
    bench.accounts = {"anna": bench.account(ANNA, username="+11234567891")}
    assert "looks like" not in bench.check(mosquitto.port).stdout


def test_a_wrong_account_id(bench: Bench, mosquitto: Mosquitto) -> None:
    """Where the account id is not accepted, nothing is said of user names."""
    bench.accounts = {"anna": bench.account(ANNA, username=None, account_id="0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    assert len(remedies(done.stdout)) == 5
    assert "account_id" not in done.stdout
    assert "user name" not in done.stdout.replace("us without a user name", "")
    assert "phone" not in done.stdout


EXAMPLE: Final = "The user name is still the one of the examples."
EDGE: Final = "The user name begins or ends with a blank"
UNSEEN: Final = "The user name has a character in it that cannot be seen"
PASSWORD_EXAMPLE: Final = "The password is still the one of the examples."
PASSWORD_EDGE: Final = "The password begins or ends with a blank"
DIGITS: Final = "The password is of digits alone."
LONG: Final = "The password has more than 30 characters."
SEEN: Final = (EXAMPLE, EDGE, UNSEEN, PASSWORD_EXAMPLE, PASSWORD_EDGE, DIGITS, LONG)


def rejected(**credentials: str) -> list[str]:
    """Return what is said of credentials that Share rejected, in their order; nothing of it shows them."""
    told = list(_rejected(Account(**credentials)))
    assert not [cause for cause in told for value in credentials.values() if value.strip() in cause]
    return told


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
        ("ben\N{ZERO WIDTH SPACE}", [UNSEEN]),
        ("\N{ZERO WIDTH NO-BREAK SPACE}ben", [UNSEEN]),
        ("ben\N{NO-BREAK SPACE}builder", [UNSEEN]),
        ("ben\N{SOFT HYPHEN}builder", [UNSEEN]),
        (" anna@example.com\N{ZERO WIDTH SPACE} x", [EDGE, UNSEEN]),
        (" USER NAME", [EXAMPLE, EDGE]),
    ],
)
def test_what_is_odd_about_a_user_name_comes_first(name: str, seen: list[str]) -> None:
    """Placeholders, blanks at an end and characters that nobody sees are named, and nothing else is."""
    told = rejected(username=name, password="correct horse")
    assert [next(text for text in SEEN if cause.startswith(text)) for cause in told[: len(seen)]] == seen
    assert not [cause for cause in told[len(seen) :] if cause.startswith(SEEN)]
    assert len(told) == 7 + len(seen)


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
def test_what_is_odd_about_a_password_comes_first(who: dict[str, str], password: str, seen: list[str]) -> None:
    """Placeholders, digits alone, too great a length and blanks at an end are named, also with an account id."""
    told = rejected(**who, password=password)
    assert [next(text for text in SEEN if cause.startswith(text)) for cause in told[: len(seen)]] == seen
    assert not [cause for cause in told[len(seen) :] if cause.startswith(SEEN)]


def test_placeholders_are_those_of_the_examples() -> None:
    """What check takes for a placeholder is what config.example.yaml and the README have there."""
    accounts = [
        *yaml.safe_load((ROOT / "config.example.yaml").read_text(encoding="utf-8"))["accounts"].values(),
        *yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0])[
            "accounts"
        ].values(),
    ]
    assert len(accounts) == 2
    for written in accounts:
        told = rejected(username=written["username"], password=written["password"])
        assert told[0].startswith(EXAMPLE)
        assert told[1].startswith(PASSWORD_EXAMPLE)


def test_what_is_odd_is_told_by_the_command(bench: Bench, mosquitto: Mosquitto) -> None:
    """All that is odd about the credentials heads the list, the user name first, and none of it is shown."""
    bench.accounts = {
        "anna": bench.account(ANNA, username=" 0170/1234567", password="12345678901234567890123456789012 ")
    }
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    heads = ("The user name looks like a phone number.", EDGE, PASSWORD_EDGE, DIGITS, LONG, "They have to be those of")
    for number, (cause, head) in enumerate(zip(remedies(done.stdout), heads, strict=False), 1):
        assert cause.startswith(f"{number}. {head}")
    assert "0170" not in done.stdout
    assert "23456789" not in done.stdout.replace("'+11234567890'", "").replace("12345678-90ab", "")


FAULTS: Final[dict[str, tuple[Fault, str]]] = {
    "429": (status(429), "is being asked too often. Share asks for fewer requests"),
    "503": (status(503), "answered with status 503. Share cannot be reached or is out of order"),
    "a page": (html(403), "answered with status 403. Share cannot be reached"),
    "a page with 200": (html(200), "answered with something that is no JSON. Share answered something that was not"),
    "locked": (
        error("SSO_AuthenticateMaxAttemptsExceeded"),
        "has locked the account for a while after failed sign-ins",
    ),
    "malformed": (error("InvalidArgument", "accountName"), "found user name, password or account id malformed"),
    "zeros": (zero_uuid(), "did not accept the credentials"),
    "null": (body(b"null"), "answered a sign-in with something that is no id"),
    "a read that is no list": (only(body(b"{}"), call="read"), "answered a read with something that is no list"),
    "a lost session": (only(error("SessionIdNotFound"), call="read"), "has ended the session"),
    "half": (truncated(), "answered with something that is no JSON"),
    "too much": (padded(), "answered more than 1 MiB"),
    "closed": (drop(), "No answer from 127.0.0.1:"),
    "cut": (cut(), "the connection or the answer broke off"),
    "reset": (reset(), "the connection or the answer broke off"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_words_and_stops_nobody_else(bench: Bench, mosquitto: Mosquitto, name: str) -> None:
    """What Share does to one account is told in words, and the next one and the broker are tried all the same."""
    fault, words = FAULTS[name]

    def of_anna(request: Any, respond: Any) -> Any:
        theirs = request.account is None or request.account.username == ANNA.username
        return fault(request, respond) if theirs else respond(request)

    bench.accounts = {"anna": bench.account(ANNA), "ben": bench.account(BEN)}
    bench.share.fault = of_anna
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    assert told.startswith("anna: ")
    assert words in told
    assert ("ok", "ben: This machine's clock agrees with Share's.") in steps(done.stdout)
    assert ("ok", "broker: Publishing to dexcom2mqtt/anna/# is allowed.") in steps(done.stdout)
    assert bench.share.count(call="authenticate", account=ANNA.username) <= 1
    assert bench.share.count(call="login", account=ANNA.username) <= 1


def test_a_share_that_says_nothing(bench: Bench, mosquitto: Mosquitto) -> None:
    """A call that hangs is given up after 20 s, and the broker is tried."""
    bench.share.fault = only(hang(), call="authenticate")
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    assert "it took too long. Share cannot be reached" in told
    assert ("ok", "broker: Publishing to dexcom2mqtt/anna/# is allowed.") in steps(done.stdout)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://share.invalid/Services", "its name could not be looked up"),
        ("http://127.0.0.1:1/Services", "the connection was refused"),
    ],
)
def test_a_share_that_is_not_there(bench: Bench, mosquitto: Mosquitto, url: str, words: str) -> None:
    """Without a way to Share, the reason is told, and nothing of clocks."""
    bench.accounts = {"anna": bench.account(ANNA, share_url=url)}
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    assert words in told
    assert "check this machine's network and name resolution" in told
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
    """While a reading is current, records that make no sense or have a new form are a note, in the words of the log."""
    bench.share.fault = only(fault, call="read")
    done = bench.check(mosquitto.port, {"stale_after": 60})
    assert done.returncode == 0
    assert ("note", f"anna: {words}") in steps(done.stdout)
    assert "anna: Sharing is on. The newest reading is " in done.stdout


def test_an_account_that_shares_nothing(bench: Bench, mosquitto: Mosquitto) -> None:
    """What Share says of sharing is told in the words of the daemon, and is no outage."""
    bench.share.fault = only(error("MonitoredReceiverNotAssigned"), call="read")
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    assert failed(done.stdout) == [f"anna: {NOTHING_SHARED}"]
    assert ("ok", "anna: This machine's clock agrees with Share's.") in steps(done.stdout)


def test_a_newest_record_that_makes_no_sense_is_told(bench: Bench, mosquitto: Mosquitto) -> None:
    """If nothing is current and the newest record makes no sense, that is why, in the words of the daemon."""
    bench.share.fault = only(edited(lambda records: [*malformed(records[:12]), *records[12:]]), call="read")
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    assert told.startswith("anna: No reading is current. The newest is ")
    assert remedies(done.stdout) == [f"1. {NEWEST_MALFORMED}"]
    assert ("note", f"anna: {MALFORMED.format(12)}") in steps(done.stdout)


@pytest.mark.parametrize("minutes", [12, 60, 180])
def test_a_phone_whose_clock_is_ahead_is_told(bench: Bench, mosquitto: Mosquitto, minutes: int) -> None:
    """A reading of the future is no proof that all is well: the minutes are named, and what to do."""
    bench.share.distort(skewed(minutes * 60.0))
    done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    ahead = re.match(r"anna: The wearer's phone seems to be (\d+) min ahead\. ", told)
    assert ahead
    assert minutes - 5 <= int(ahead[1]) <= minutes
    assert len(remedies(done.stdout)) == 3


def test_a_phone_a_few_minutes_ahead_is_fine(bench: Bench, mosquitto: Mosquitto) -> None:
    """Up to five minutes are no trouble, for the daemon neither."""
    bench.share.distort(skewed(240.0))
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    assert "anna: Sharing is on. The newest reading is " in done.stdout


@pytest.mark.parametrize(
    ("distortion", "fault", "words", "causes"),
    [
        pytest.param(missing, None, "Share has no reading of the last 24 hours.", 4, id="none"),
        pytest.param(valued(10), None, "The sensor sends error codes in place of readings.", 0, id="only error codes"),
        pytest.param(None, edited(malformed), "Share answered something that was not understood", 0, id="nonsense"),
        pytest.param("old", None, "No reading is current. The newest is ", 4, id="old"),
        pytest.param("errors", None, "No reading is current. The newest is ", 1, id="old, and error codes since"),
    ],
)
def test_without_a_fresh_reading_it_is_told_why(
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
    (told,) = failed(done.stdout)
    assert told.startswith(f"anna: {words}") or f" {words}" in told
    listed = remedies(done.stdout)
    assert len(listed) == causes
    if distortion is missing:
        assert "sharing has to be on and to have at least one follower" in listed[0]
        assert "Stelo" in listed[3]
    elif causes == 1:
        assert "The sensor sends error codes" in listed[0]
    elif causes == 3:
        assert " 3 h old; there are " in told
        assert "The phone is off" in listed[0]


def test_stale_after_is_the_limit(bench: Bench, mosquitto: Mosquitto) -> None:
    """A reading of half an hour ago is a failure by default, and none where the configuration takes it for current."""
    now = time.time()
    bench.share.distort(during(now - 1800, now + DAY, missing))
    assert bench.check(mosquitto.port).returncode == 1
    assert bench.check(mosquitto.port, {"stale_after": 60}).returncode == 0


@pytest.mark.parametrize(
    ("off", "words"), [("+2h", "2 h ahead of"), ("-3d", "3 days behind"), ("-300s", "5 min behind")]
)
def test_a_wrong_clock_is_a_note(bench: Bench, mosquitto: Mosquitto, tmp_path: Path, off: str, words: str) -> None:
    """This machine's clock is compared with Share's; a reading's age is told by Share's."""
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
    (told,) = [words for verdict, words in steps(done.stdout) if verdict == "note" and "clock" in words]
    assert told.startswith(f"anna: This machine's clock is {words} Share's.")
    assert "timedatectl" in remedies(done.stdout)[0]


@contextlib.contextmanager
def encrypted(certificate: trustme.LeafCert) -> Iterator[int]:
    """Shake hands with whoever comes, and hang up; yield the port."""
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
def test_a_certificate_of_share_that_is_not_good(
    bench: Bench, mosquitto: Mosquitto, tmp_path: Path, known: bool
) -> None:
    """An expired certificate tells of this machine's clock, and one of an unknown authority does not."""
    ca, stranger = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    bench.environ["SSL_CERT_FILE"] = str(tmp_path / "ca.pem")
    old = datetime.now(UTC) - timedelta(days=1)
    certificate = ca.issue_cert("127.0.0.1", not_after=old) if known else stranger.issue_cert("127.0.0.1")
    with encrypted(certificate) as port:
        bench.accounts = {"anna": bench.account(ANNA, share_url=f"https://127.0.0.1:{port}/Services")}
        done = bench.check(mosquitto.port)
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    if known:
        assert "is outside its dates. This machine's clock seems to be wrong" in told
        assert remedies(done.stdout) == [f"1. This machine takes today for {datetime.now(UTC):%Y-%m-%d}."]
    else:
        assert "is not one this machine trusts" in told
        assert remedies(done.stdout) == []


# The broker


def broker_failure(done: subprocess.CompletedProcess[str]) -> str:
    """Return what failed at the broker, where nothing else did and it ended so."""
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    assert told.startswith("broker: ")
    assert steps(done.stdout)[2][1].startswith("anna: Sharing is on.")
    return told


def test_a_broker_with_a_name_that_nobody_knows(bench: Bench) -> None:
    """A name that cannot be looked up is told, with what it may be."""
    done = bench.check(1883, host="broker.invalid")
    assert "its name cannot be looked up; check mqtt.host" in broker_failure(done)
    assert "The name is misspelt" in remedies(done.stdout)[0]


def test_a_broker_that_is_not_there(bench: Bench) -> None:
    """Where nothing listens, the first cause is that it does not run, and the last a firewall."""
    done = bench.check(free_port())
    assert "nothing listens there" in broker_failure(done)
    causes = remedies(done.stdout)
    assert "systemctl status mosquitto" in causes[0]
    assert "listener 1883" in causes[1]
    assert "container" in causes[2]
    assert "firewall" in causes[3]


def test_a_broker_that_is_frozen(bench: Bench, mosquitto: Mosquitto) -> None:
    """A broker that takes connections and says nothing is told to be frozen."""
    mosquitto.freeze()
    try:
        done = bench.check(mosquitto.port)
    finally:
        mosquitto.thaw()
    assert broker_failure(done).endswith("takes connections but does not answer; is it overloaded or frozen?")
    assert "takes connections, at 127.0.0.1." in done.stdout


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    """Return a certificate authority and the file with its certificate."""
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


@pytest.mark.parametrize("days", [90, 10])
def test_the_certificate_is_shown(
    bench: Bench,
    start_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    days: int,
) -> None:
    """Whose certificate it is and until when is told, and noted where it ends within a month."""
    ca, ca_file = authority
    lines = secure(tmp_path, ca, ca_file)
    until = datetime.now(UTC) + timedelta(days=days)
    server = ca.issue_cert("127.0.0.1", common_name="our broker", not_after=until)
    server.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    server.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    broker = start_mosquitto("allow_anonymous true", *lines)
    done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    assert (done.returncode, done.stderr) == (0, "")
    (shown,) = [step for step in steps(done.stdout) if "certificate" in step[1]]
    assert shown[0] == ("ok" if days == 90 else "note")
    assert shown[1].startswith("broker: Its certificate is our broker's, issued by trustme ")
    assert shown[1].endswith(f"good until {until:%Y-%m-%d}.")


def test_a_certificate_that_is_not_verified(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """With verify: false any certificate is taken, and that is noted."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file, "other.example"))
    done = bench.check(broker.port, tls={"verify": False})
    assert done.returncode == 0
    assert ("note", "broker: Its certificate is not looked at: mqtt.tls.verify is false.") in steps(done.stdout)


@pytest.mark.parametrize(("names", "trusted"), [((), False), (("other.example",), True)])
def test_a_certificate_that_is_not_accepted(
    bench: Bench,
    start_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    names: tuple[str, ...],
    trusted: bool,
) -> None:
    """A certificate of an unknown authority, or of another name, is told with what to write."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file, *names))
    done = bench.check(broker.port, tls={"ca_file": str(ca_file)} if trusted else {})
    assert "its certificate is not accepted" in broker_failure(done)
    causes = remedies(done.stdout)
    assert "mqtt.tls.ca_file" in causes[0]
    assert "mqtt.host has to be a name" in causes[1]


def test_tls_where_there_is_none(bench: Bench, mosquitto: Mosquitto) -> None:
    """TLS at a port without is told, and which ports are usual."""
    done = bench.check(mosquitto.port, tls={})
    assert "the encrypted connection fails (" in broker_failure(done)
    assert "the broker does not speak TLS" in remedies(done.stdout)[0]


def test_a_frozen_broker_with_tls(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """Where nobody answers to TLS, the firewall is no suspect: the connection was there."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file))
    broker.freeze()
    try:
        done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    finally:
        broker.thaw()
    assert "no answer; check mqtt.host" in broker_failure(done)
    assert "frozen" in remedies(done.stdout)[2]


def test_no_tls_where_there_is(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """A port with TLS taken for one without is told, with the line that mends it."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file))
    done = bench.check(broker.port)
    broker_failure(done)
    assert "write tls: {} below mqtt:" in remedies(done.stdout)[0]


def test_a_broker_that_wants_a_certificate_of_ours(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """Where the client needs a certificate and has none, that is among the causes."""
    ca, ca_file = authority
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    broker_failure(done)
    assert "mqtt.tls.cert_file" in remedies(done.stdout)[0]
    assert "tls: {}" not in done.stdout


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_refuses_the_credentials(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """A wrong password is told, and asked once; the right one is said to be accepted."""
    broker = start_mosquitto(*login(tmp_path, "the-user", "the-secret"))
    done = bench.check(broker.port, protocol=protocol, username="the-user", password="wrong")
    assert "refuses this daemon" in broker_failure(done)
    assert "mosquitto_passwd" in remedies(done.stdout)[0]
    assert broker.log().count("not authorised") == 1
    assert bench.check(broker.port, protocol=protocol).returncode == 1
    done = bench.check(broker.port, protocol=protocol, username="the-user", password="the-secret")
    assert done.returncode == 0
    assert "accepts our user name and password" in done.stdout


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize(
    ("rules", "denied"),
    [
        (["readwrite dexcom2mqtt/#", "readwrite homeassistant/#"], []),
        (["readwrite dexcom2mqtt/#"], ["homeassistant/device/+/config"]),
        (
            ["readwrite dexcom2mqtt/bridge/sync/dexcom2mqtt-check", "readwrite homeassistant/#"],
            ["dexcom2mqtt/bridge/#", "dexcom2mqtt/anna/#"],
        ),
        (
            ["readwrite dexcom2mqtt/bridge/#"],
            ["dexcom2mqtt/anna/#", "homeassistant/device/+/config"],
        ),
    ],
)
def test_what_access_control_denies_is_told(
    bench: Bench,
    start_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    protocol: str,
    rules: list[str],
    denied: list[str],
) -> None:
    """Whether publishing is allowed is really tried, below the base topic and below the discovery prefix."""
    (tmp_path / "acl").write_text("".join(f"topic {rule}\n" for rule in rules), encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    done = bench.check(broker.port, protocol=protocol)
    assert done.returncode == (1 if denied else 0)
    assert failed(done.stdout) == [f"broker: Publishing to {topic} is not allowed." for topic in denied]
    listed = remedies(done.stdout)
    untold = [cause for cause in listed if "MQTT 3.1.1 does not tell" in cause]
    assert len(untold) == (protocol == "3.1.1" and "homeassistant/device/+/config" in denied)
    assert len([cause for cause in listed if "access control list has to let" in cause]) == len(denied)
    assert len(listed) == len(untold) + len(denied)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_discovery_need_not_be_readable(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """Where it may be written but not read, all is well with MQTT 5; with 3.1.1 it is said that this may be so."""
    (tmp_path / "acl").write_text("topic readwrite dexcom2mqtt/#\ntopic write homeassistant/#\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    done = bench.check(broker.port, protocol=protocol)
    assert done.returncode == (0 if protocol == "5" else 1)
    if protocol == "3.1.1":
        assert "which does no harm: MQTT 3.1.1 does not tell" in remedies(done.stdout)[1]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_may_not_be_read_is_told(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """Where access control returns nothing, it is told that this may be so, and nothing is left."""
    acl = tmp_path / "acl"
    acl.write_text("topic write #\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {acl}")
    done = bench.check(broker.port, protocol=protocol)
    assert "does not let the user of this daemon read and write all of its topics" in broker_failure(done)
    acl.write_text("topic readwrite #\n", encoding="utf-8")
    broker.reload()
    assert retained(broker.port) == {}


def test_the_example_of_access_control_is_enough(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """With the list of the examples all is well."""
    acl = ROOT / "examples" / "mosquitto" / "acl"
    broker = start_mosquitto(*login(tmp_path, "dexcom2mqtt", "the-secret"), f"acl_file {acl}")
    for protocol in ("5", "3.1.1"):
        done = bench.check(broker.port, username="dexcom2mqtt", password="the-secret", protocol=protocol)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""])
def test_a_broker_without_mqtt_5(bench: Bench, mosquitto: Mosquitto, answer: bytes) -> None:
    """A broker that refuses MQTT 5, or hangs up on it, is tried with 3.1.1, unless 5 was asked for."""
    with gatekeeper(mosquitto.port, answer) as (port, levels):
        done = bench.check(port)
        assert done.returncode == 0
        assert levels == [5, 4]
        assert "It speaks MQTT 3.1.1 " in done.stdout
        done = bench.check(port, protocol="5")
        assert broker_failure(done)
        assert levels == [5, 4, 5]
        if answer:
            assert "does not take MQTT 5" in done.stdout
            assert "protocol: auto" in remedies(done.stdout)[0]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x03\x00\x55\x00"])
def test_something_that_is_no_broker(bench: Bench, answer: bytes) -> None:
    """The answer of a web server, or any garbage, is told to be none of MQTT, with what it may be."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        done = bench.check(server.getsockname()[1])
    assert "closed the connection without an answer" in broker_failure(done)
    assert "web pages are of no use" in remedies(done.stdout)[1]


@contextlib.contextmanager
def stopping_at(port: int, word: bytes) -> Iterator[tuple[int, threading.Event, threading.Event]]:
    """Stand before a broker, and stop passing on its answers once a client has published ``word``.

    Yields the port, an event that it has, and one after which all is passed on again, or, where the broker is gone
    by then, nothing any more.
    """
    reached, go_on = threading.Event(), threading.Event()

    def answers(upstream: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(4096):
                if reached.is_set():
                    go_on.wait(30)
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as upstream:
            threading.Thread(target=answers, args=(upstream, client), daemon=True).start()
            while data := client.recv(4096):
                if word in data:
                    reached.set()
                upstream.sendall(data)

    with listening(serve) as own_port:
        try:
            yield own_port, reached, go_on
        finally:
            go_on.set()


def test_a_broker_that_leaves_in_the_middle(bench: Bench, mosquitto: Mosquitto) -> None:
    """A connection that ends while something is tried is told, with what it may be."""
    with stopping_at(mosquitto.port, b"-check-retained") as (port, reached, go_on), bench.start(port) as process:
        assert reached.wait(20)
        mosquitto.kill()
        go_on.set()
        told, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert failed(told) == [f"broker: The connection to the broker at 127.0.0.1:{port} was lost."]
    assert "restarted" in remedies(told)[0]


def test_a_broker_that_keeps_nothing(bench: Bench, start_mosquitto: Callable[..., Mosquitto]) -> None:
    """A broker without retained messages cannot be used, and that is told."""
    broker = start_mosquitto("allow_anonymous true", "retain_available false")
    done = bench.check(broker.port)
    assert broker_failure(done)
    assert "its log says what" in remedies(done.stdout)[1]


@pytest.mark.parametrize("word", [None, "offline"])
def test_home_assistant_that_left_no_word(bench: Bench, mosquitto: Mosquitto, word: str | None) -> None:
    """Without a retained birth message it is said that this is usual."""
    if word:
        with Subscriber(mosquitto.port) as witness:
            witness.client.publish("homeassistant/status", word, qos=1, retain=True)
            witness.wait_for("homeassistant/status")
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    assert steps(done.stdout)[-1][0] == "note"
    assert "Home Assistant has left no word on homeassistant/status." in steps(done.stdout)[-1][1]


def test_names_of_one_s_own(bench: Bench, mosquitto: Mosquitto) -> None:
    """The base topic, the discovery prefix, the status topic and the client id of the configuration are those tried."""
    with Subscriber(mosquitto.port) as witness:
        witness.client.publish("ha/alive", "online", qos=1, retain=True)
        done = bench.check(
            mosquitto.port,
            {"home_assistant": {"discovery_prefix": "ha", "status_topic": "ha/alive"}},
            base_topic="home/glucose",
            client_id="bridge-1",
        )
        assert done.returncode == 0
        assert {heard.topic for heard in witness.heard} == {
            "ha/alive",
            "home/glucose/bridge/sync/bridge-1-check",
            "home/glucose/bridge/sync/bridge-1-check-retained",
            "home/glucose/anna/check",
            "ha/device/home_glucose-check/config",
        }
    assert "Publishing to home/glucose/anna/# is allowed." in done.stdout
    assert "Publishing to ha/device/+/config is allowed." in done.stdout
    assert "Home Assistant is there: ha/alive is online." in done.stdout
    assert "as bridge-1-check" in mosquitto.log()
