"""The starter of Home Assistant's app, as a real process: with a stub of the Supervisor, a real broker and real HTTP.

As root, as in the app, it starts the daemon as another user.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from tests.support import supervisor_stub as stub
from tests.support.app_launcher import can_become_another
from tests.support.processes import ROOT, Mosquitto, Process, Subscriber, eventually, free_port
from tests.support.supervisor_stub import TOKEN, Answer, Supervisor
from tests.support.web import answers, get

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import ExitStack

ANNA = SimulatedAccount("anna@example.com", 'correct "horse" \\ №1', seed=1)
BEN = SimulatedAccount("+11234567890", "0123", seed=2)
FORM = {"name": "Anna", "username": ANNA.username, "password": ANNA.password, "region": "us", "unit": "mg/dL"}
BENS = {"name": "Ben", "username": BEN.username, "password": BEN.password, "region": "us", "unit": "mg/dL"}
LOGIN = ("addons", "secret of the broker")
OTHER_LOGIN = ("addons", "another secret of the broker")


@dataclass
class App:
    """The app of one test: the filled-in form, the Supervisor, the Share service, and the starter if it runs."""

    folder: Path
    supervisor: Supervisor
    share: SimulatedShare
    stack: ExitStack
    handed: Path = field(default_factory=lambda: Path(f"/dev/shm/dexcom2mqtt-test-{uuid.uuid4()}"))
    web: int = field(default_factory=free_port)
    """The port of the page."""
    ingress: int = field(default_factory=free_port)
    asks: str = "172.30.32.2"
    """The address from which ingress connects."""

    def start(self, *accounts: Mapping[str, object], every: float = 0.1, seconds: float = 10.0, **more: Any) -> Process:
        """Fill in the form, and start the starter; accounts get the address of the simulated Share."""
        options = self.folder / "options.json"
        options.write_text(json.dumps({"accounts": accounts, **more}), encoding="utf-8")
        options.chmod(0o600)
        urls = {f"DEXCOM2MQTT_ACCOUNTS__{key}__SHARE_URL": self.share.base_url for key in self._keys(accounts)}
        environ = {
            "SUPERVISOR_TOKEN": TOKEN,
            "HASSIO_TOKEN": TOKEN,
            "STUB": str(self.supervisor.port),
            "OPTIONS": str(options),
            "HANDED": str(self.handed),
            "EVERY": str(every),
            "SECONDS": str(seconds),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'home-assistant-app'}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            # Other tests have daemons with the usual client id and ports. Everything stays on this machine.
            "DEXCOM2MQTT_MQTT__CLIENT_ID": str(self.handed.name),
            "DEXCOM2MQTT_WEB__HOST": "127.0.0.1",
            "DEXCOM2MQTT_WEB__PORT": str(self.web),
            "DEXCOM2MQTT_INGRESS": f"127.0.0.1 {self.ingress} {self.asks}",
        }
        log = self.folder / "log"
        with_groups = ["setpriv", "--groups=4,27"] if os.geteuid() == 0 else []
        command = [*with_groups, sys.executable, "-m", "tests.support.app_launcher"]
        process = self.stack.enter_context(Process(command, log, environ | urls))
        self.stack.callback(_end_daemon, process)  # before the starter is killed, which would leave it behind
        return process

    @staticmethod
    def _keys(accounts: tuple[Mapping[str, object], ...]) -> list[str]:
        return [str(entry.get("key") or entry.get("name", "")).upper() for entry in accounts]


@pytest.fixture
def app(tmp_path: Path, stack: ExitStack) -> Iterator[App]:
    """Return an app whose Supervisor has no broker yet."""
    supervisor = stack.enter_context(Supervisor(stub.NOT_ENABLED))
    share = stack.enter_context(SimulatedShare([ANNA, BEN], time.time))
    app = App(tmp_path, supervisor, share, stack)
    yield app
    shutil.rmtree(app.handed, ignore_errors=True)


@pytest.fixture
def closed_broker(tmp_path: Path, start_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """Return a broker that accepts only ``LOGIN``."""
    _let_in(tmp_path / "passwords", LOGIN)
    return start_mosquitto("allow_anonymous false", f"password_file {tmp_path / 'passwords'}")


def _let_in(passwords: Path, login: tuple[str, str]) -> None:
    passwords.unlink(missing_ok=True)  # mosquitto 2.1 overwrites no file
    subprocess.run(["mosquitto_passwd", "-c", "-b", passwords, *login], check=True, capture_output=True)


def _ours(process: Process) -> int:
    """Return the process id of the daemon."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    return int(found[0]) if found else 0


def _end_daemon(process: Process) -> None:
    with contextlib.suppress(OSError):  # both have ended already
        if found := _ours(process):
            os.kill(found, signal.SIGKILL)


def _said(process: Process, words: str) -> None:
    eventually(lambda: words in process.text() or not process.running, 30, why=f"not said: {words}: {process.text()}")
    assert words in process.text()


def _readings_arrive(port: int, *keys: str, login: tuple[str, str] | None = None) -> None:
    with Subscriber(port, login=login) as subscriber:
        for key in keys:
            subscriber.wait_for(f"dexcom2mqtt/{key}/availability", "online", seconds=30)
        subscriber.wait_for("dexcom2mqtt/bridge/state", "online")


def _no_secret(process: Process) -> None:
    for secret in (TOKEN, ANNA.password, ANNA.username, BEN.username, LOGIN[1], OTHER_LOGIN[1]):
        assert secret not in process.text()


# --- readings ----------------------------------------------------------------------------------------------


def test_readings_arrive_at_the_supervisors_broker(app: App, closed_broker: Mosquitto) -> None:
    """The readings of both arrive, with the credentials from the Supervisor and the form; a stop exits with 0."""
    app.supervisor.answer = stub.broker(closed_broker.port, *LOGIN)
    process = app.start(FORM, BENS | {"key": "my_boy"})
    _readings_arrive(closed_broker.port, "anna", "my_boy", login=LOGIN)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    _no_secret(process)
    assert "ERROR" not in process.text()
    assert "WARNING" not in process.text()
    assert not app.handed.exists()
    with Subscriber(closed_broker.port, login=LOGIN) as subscriber:
        subscriber.wait_for("dexcom2mqtt/bridge/state", "offline")


def test_every_option_reaches_the_broker(app: App, mosquitto: Mosquitto) -> None:
    """The published messages show unit, limits, key and the rest; a filled-in broker is used without asking."""
    entry = FORM | {"name": "Anna Marie", "key": "girl", "unit": "mmol/L", "low": 56, "high": 57}
    mqtt = {"host": "127.0.0.1", "port": mosquitto.port, "username": "me", "password": "mine"}
    process = app.start(entry, mqtt=mqtt, stale_after=20, log_level="error")
    _readings_arrive(mosquitto.port, "girl")
    with Subscriber(mosquitto.port) as subscriber:
        device = json.loads(subscriber.wait_for("homeassistant/device/dexcom2mqtt_girl/config").payload)
        state = json.loads(subscriber.wait_for("dexcom2mqtt/girl/state").payload)
    assert device["dev"]["name"] == "Anna Marie"
    assert device["cmps"]["glucose_value"]["expire_after"] == 20 * 60
    assert state["unit"] == "mmol/L"
    assert state["range"] in {"low", "high"}
    assert "u'me'" in mosquitto.log()
    assert app.supervisor.asked == []
    assert "INFO" not in process.text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_daemon_has_no_rights_and_no_token(app: App, mosquitto: Mosquitto) -> None:
    """It is user 65532 without groups or capabilities, and its environment and command line have no secrets."""
    app.supervisor.answer = stub.broker(mosquitto.port)
    process = app.start(FORM)
    _readings_arrive(mosquitto.port, "anna")
    pid = _ours(process)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
    assert status["Name"].strip() == "dexcom2mqtt"
    if can_become_another():  # otherwise only the end-to-end part tests it
        assert {*status["Uid"].split(), *status["Gid"].split()} == {"65532"}
        assert status["Groups"].split() == []
        assert {int(status[f"Cap{of}"], 16) for of in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
        assert status["NoNewPrivs"].strip() == "1"
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"TOKEN" not in environ
    assert TOKEN.encode() not in environ
    assert ANNA.password.encode() not in environ + Path(f"/proc/{pid}/cmdline").read_bytes()
    (file,) = app.handed.iterdir()
    user = 65532 if can_become_another() else 0
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (user, 0o400)
    assert (app.handed.stat().st_uid, app.handed.stat().st_mode & 0o777) == (0, 0o755)
    assert "holds a password, and others" not in process.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_there_is_no_broker(app: App, number: signal.Signals) -> None:
    """It exits with 0 at once, even while it waits for an answer of the Supervisor."""
    app.supervisor.answer = Answer(200, late=30.0)
    process = app.start(FORM)
    eventually(lambda: app.supervisor.asked)
    began = time.monotonic()
    process.signal(number)
    assert process.wait() == 0
    assert time.monotonic() - began < 5


# --- the page ----------------------------------------------------------------------------------------------


def test_the_page_on_its_own_port_requires_the_token(app: App, mosquitto: Mosquitto) -> None:
    """The filled-in web_token lets a client in, and the log does not say where the daemon listens."""
    app.supervisor.answer = stub.broker(mosquitto.port)
    process = app.start(FORM, web_token="Geheim42")
    _readings_arrive(mosquitto.port, "anna")
    eventually(lambda: answers(app.web))
    assert [get(app.web, target).status for target in ("/", "/?token=wrong", "/?token=Geheim42")] == [401, 401, 200]
    assert get(app.web, "/?token=Geheim42", Host="example.com").status == 421
    assert "web" not in process.text()
    assert "Geheim42" not in process.text()


def test_ingress_is_only_for_the_supervisor(app: App, mosquitto: Mosquitto) -> None:
    """Others are refused on every path, whatever headers and token they send."""
    app.supervisor.answer = stub.broker(mosquitto.port)
    app.start(FORM, web_token="Geheim42")
    eventually(lambda: answers(app.web))
    targets = ("/", "/health", "/?token=Geheim42", "/api/accounts", "/nothing")
    assert {get(app.ingress, target).status for target in targets} == {403}
    assert get(app.ingress, "/", X_Forwarded_For="172.30.32.2", X_Real_IP="172.30.32.2").status == 403
    assert get(app.ingress, "/", Host="172.30.32.2").status == 403


def test_ingress_requires_no_token_and_no_name(app: App, mosquitto: Mosquitto) -> None:
    """Home Assistant has checked the user and may have any name, so ingress serves the page with its readings."""
    app.supervisor.answer = stub.broker(mosquitto.port)
    app.asks = "127.0.0.1"
    app.start(FORM, BENS, web_token="Geheim42")
    _readings_arrive(mosquitto.port, "anna", "ben")
    host = {"Host": "my-home.example.com", "X_Ingress_Path": "/api/hassio_ingress/x", "X_Forwarded_For": "10.0.0.9"}
    assert b"<script>" in get(app.ingress, "/", **host).body
    anna, ben = get(app.ingress, "/api/accounts", **host).json["accounts"]
    assert (anna["name"], ben["name"]) == ("Anna", "Ben")
    assert 39 <= anna["state"]["value"] <= 401
    assert get(app.ingress, "/health", **host).body == b"healthy\n"


# --- the Supervisor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (stub.NOT_ENABLED, "there is no broker yet: start the app Mosquitto broker, or fill in mqtt"),
        (stub.FORBIDDEN, "the Supervisor does not let this app ask for the broker (403)"),
        (Answer(401), "the Supervisor does not let this app ask for the broker (401)"),
        (Answer(502, b"<html>"), "the Supervisor cannot name a broker (502)"),
        (Answer(307, headers=(("Location", "http://127.0.0.1:1/"),)), "cannot name a broker (307)"),
        (Answer(200, b""), "the Supervisor's answer about the broker cannot be read"),
        (Answer(200, b"\xff" * 100_000), "cannot be read"),
        (Answer(200, b"[" * 60_000), "cannot be read"),
        (stub.answer(200, data=None), "cannot be read"),
        (stub.answer(200, result="ok", data={"host": "core-mosquitto"}), "cannot be read"),
        (stub.broker(1883, host="two words"), "cannot be read"),
        (stub.broker(70000), "cannot be read"),
        (stub.answer(200, data={"host": "core-mosquitto", "port": "1883"}), "cannot be read"),
        (stub.answer(200, data={"host": "core-mosquitto", "port": 1883, "password": ["list"]}), "cannot be read"),
        (Answer(200, late=2.0), "the Supervisor does not answer (within 0.3 s)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_waits_for_a_broker(app: App, answer: Answer, words: str, mosquitto: Mosquitto) -> None:
    """Whatever the Supervisor answers first, it keeps asking, logs that once, and starts the daemon with a broker."""
    app.supervisor.answer = answer
    process = app.start(FORM, seconds=0.3)
    _said(process, words)
    asked = len(app.supervisor.asked)
    eventually(lambda: len(app.supervisor.asked) >= asked + 3)
    assert _ours(process) == 0
    app.supervisor.answer = stub.broker(mosquitto.port)
    _readings_arrive(mosquitto.port, "anna")
    assert process.text().count("asking again until there is a broker") == 1
    assert process.text().count(f"the broker is 127.0.0.1 port {mosquitto.port}") == 1
    _no_secret(process)


def test_it_waits_for_the_supervisor_to_start(app: App, mosquitto: Mosquitto) -> None:
    """While the Supervisor is not listening, it keeps asking."""
    port = app.supervisor.port
    app.supervisor.close()
    process = app.start(FORM)
    _said(process, "the Supervisor does not answer (Connection refused); asking again")
    app.supervisor = Supervisor(stub.broker(mosquitto.port), ("127.0.0.1", port))
    _readings_arrive(mosquitto.port, "anna")


def test_new_credentials_restart_the_daemon(app: App, closed_broker: Mosquitto, tmp_path: Path) -> None:
    """A broker with new credentials refuses the daemon until the Supervisor reports the new ones."""
    app.supervisor.answer = stub.broker(closed_broker.port, *LOGIN)
    process = app.start(FORM)
    _readings_arrive(closed_broker.port, "anna", login=LOGIN)
    first = _ours(process)
    _let_in(tmp_path / "passwords", OTHER_LOGIN)
    closed_broker.stop()
    closed_broker.start()
    _said(process, "refuses this daemon")
    app.supervisor.answer = stub.broker(closed_broker.port, *OTHER_LOGIN)
    _said(process, f"the broker is 127.0.0.1 port {closed_broker.port}, with new credentials")
    _readings_arrive(closed_broker.port, "anna", login=OTHER_LOGIN)
    eventually(lambda: _ours(process) not in {0, first})
    _no_secret(process)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_broker_that_is_gone_for_a_while_stops_nothing(app: App, mosquitto: Mosquitto) -> None:
    """The Mosquitto app withdraws its broker while it restarts: the daemon keeps running, and nothing is logged."""
    app.supervisor.answer = stub.broker(mosquitto.port)
    process = app.start(FORM)
    _readings_arrive(mosquitto.port, "anna")
    first, said = _ours(process), process.text()
    for answer in (stub.NOT_ENABLED, Answer(200, b"nonsense"), stub.broker(mosquitto.port)):
        app.supervisor.answer = answer
        asked = len(app.supervisor.asked)
        eventually(lambda asked=asked: len(app.supervisor.asked) >= asked + 3)  # type: ignore[misc]
    assert _ours(process) == first
    assert process.text() == said


def test_a_filled_in_user_name_wins(app: App, closed_broker: Mosquitto) -> None:
    """A filled-in user name is used at the Supervisor's broker, without the Supervisor's password."""
    app.supervisor.answer = stub.broker(closed_broker.port, "somebody", "else")
    app.start(FORM, mqtt=dict(zip(("username", "password"), LOGIN, strict=True)))
    _readings_arrive(closed_broker.port, "anna", login=LOGIN)


# --- the end -----------------------------------------------------------------------------------------------


def test_problems_end_it_with_78(app: App) -> None:
    """Problems of the form are reported with its names and what to do, before the Supervisor is asked."""
    process = app.start(FORM | {"low": 3}, BENS | {"name": "Anna"})
    assert process.wait() == 78
    text = process.text()
    assert 'accounts, "Anna", low: a whole number from 55 to 249' in text
    assert "another key for one of the two, such as anna_2" in text
    assert "change it on the tab Configuration, save, and start the app again" in text
    assert app.supervisor.asked == []
    _no_secret(process)


def test_the_daemons_problems_end_it_with_78(app: App, mosquitto: Mosquitto) -> None:
    """Problems that only the daemon finds are reported with the form's names, too."""
    mqtt = {"host": "127.0.0.1", "port": mosquitto.port}
    process = app.start(FORM | {"username": " anna@example.com"}, mqtt=mqtt)
    assert process.wait() == 78
    assert '\n  accounts, "Anna", username: found a value (hidden' in process.text()
    assert "config.yaml" not in process.text()
    assert "change it on the tab Configuration" in process.text()
    _no_secret(process)


def test_a_warning_has_the_forms_names(app: App, mosquitto: Mosquitto) -> None:
    """The warning of a password that may have been mangled names the field of the form."""
    process = app.start(FORM | {"password": " blank"}, mqtt={"host": "127.0.0.1", "port": mosquitto.port})
    _said(process, 'accounts, "Anna", password: the password')


def test_a_daemon_that_is_killed_ends_it(app: App, mosquitto: Mosquitto) -> None:
    """The app ends with the daemon's exit code, and says how to have it restarted."""
    app.supervisor.answer = stub.broker(mosquitto.port)
    process = app.start(FORM)
    _readings_arrive(mosquitto.port, "anna")
    os.kill(_ours(process), signal.SIGKILL)
    assert process.wait() == 128 + 9
    assert "the daemon ended with 137; if the app's switch Watchdog is on, it restarts" in process.text()


def test_without_options_it_says_where_it_belongs(app: App) -> None:
    """Without Home Assistant, the image says that it needs it."""
    app.folder.joinpath("options.json").mkdir()
    environ = {"STUB": "1", "OPTIONS": str(app.folder / "none"), "HANDED": "/nowhere", "EVERY": "1", "SECONDS": "1"}
    environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'home-assistant-app'}"
    command = [sys.executable, "-m", "tests.support.app_launcher"]
    process = app.stack.enter_context(Process(command, app.folder / "log", environ))
    assert process.wait() == 78
    assert "cannot be read; this image runs only as an app in Home Assistant" in process.text()


def test_the_daemon_starts_without_a_running_broker(app: App) -> None:
    """If the broker cannot be reached, the daemon starts anyway and keeps trying."""
    app.supervisor.answer = stub.broker(free_port())
    process = app.start(FORM)
    _said(process, "127.0.0.1:")
    assert process.running
