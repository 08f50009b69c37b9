"""Whether the daemon knows that it is alive and reports it: to systemd, and to anyone who asks on its socket."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Self

import pytest

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.config.settings import Mqtt
from dexcom2mqtt.daemon import asking
from dexcom2mqtt.daemon.asking import HEALTHY
from dexcom2mqtt.daemon.health import PATIENCE, Health
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.mqtt.inbox import ReadBack
from dexcom2mqtt.mqtt.link import BrokerLink
from dexcom2mqtt.topics import Topics
from tests.support import share_faults
from tests.support.jumping import JumpingClock
from tests.support.processes import Mosquitto, Process, Subscriber, daemon, eventually, free_port, write_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ANNA = SimulatedAccount("anna@example.com", "password of anna", seed=1)
BEN = SimulatedAccount("ben@example.com", "password of ben", seed=2)
SPEED = 120.0
SHORT = 4.0
"""Real seconds of patience with a loop, for tests that should not wait ten minutes."""


class Systemd:
    """The socket that systemd listens on, and the messages received."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self._messages: list[str] = []

    @property
    def messages(self) -> list[str]:
        while True:
            try:
                self._messages.append(self._socket.recv(4096 + 1).decode())
            except BlockingIOError:
                return self._messages

    @property
    def status(self) -> str:
        """The newest status line, or nothing."""
        found = [message.partition("STATUS=")[2] for message in self.messages if "STATUS=" in message]
        return found[-1] if found else ""

    @property
    def fed(self) -> int:
        """How often the watchdog was fed."""
        return self.messages.count("WATCHDOG=1")

    def fed_within(self, seconds: float) -> int:
        """Return how often the watchdog is fed in that time. The kernel keeps few messages that nobody reads."""
        before, until = self.fed, time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
            after = self.fed
        return after - before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@pytest.fixture
def service(stack: ExitStack) -> SimulatedShare:
    """Return the simulated Share service, whose clock runs as fast as the daemon's."""
    return stack.enter_context(SimulatedShare([ANNA, BEN], accelerated(SPEED)))


@pytest.fixture
def systemd(stack: ExitStack, tmp_path: Path) -> Systemd:
    return stack.enter_context(Systemd(str(tmp_path / "notify")))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the file that `start` writes."""
    return tmp_path / "config.yaml"


@pytest.fixture
def start(stack: ExitStack, service: SimulatedShare, config: Path, tmp_path: Path) -> Callable[..., Process]:
    """Start a daemon with a unique client id, for Anna or the given accounts, with a broker on that port."""

    def start(port: int, accounts: dict[str, Any] | None = None, client_id: str = "", **environ: str) -> Process:
        anna = {"username": ANNA.username, "password": ANNA.password, "share_url": service.base_url}
        mqtt = {"host": "127.0.0.1", "port": port, "client_id": client_id or str(uuid.uuid4())}
        write_config(config, {"accounts": accounts or {"anna": anna}, "mqtt": mqtt})
        log = tmp_path / f"{uuid.uuid4()}.log"
        return stack.enter_context(daemon(config, log, speed=SPEED, NAMED="yes", **environ))

    return start


def healthcheck(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dexcom2mqtt", "healthcheck", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def healthy(config: Path) -> bool:
    done = healthcheck(config)
    if done.returncode == 0:
        assert (done.stdout, done.stderr) == ("healthy\n", "")
    return done.returncode == 0


def online(port: int) -> None:
    """Wait until the daemon at this broker publishes a reading."""
    with Subscriber(port) as subscriber:
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online")


# --- overdue loops -----------------------------------------------------------------------------------------


class Watched:
    """A Health that is looked at once a second, on a clock that jumps."""

    def __init__(self, stack: ExitStack, speed: float = 1.0) -> None:
        self.clock = JumpingClock(end=1e9)
        self.clock.speed = speed
        self.health = Health(self.clock, "test", str, {})
        stack.callback(self.health.close)
        self.anna = self.health.loop("account anna")
        self.broker = self.health.loop("the broker's connection")

    def after(self, seconds: float) -> str:
        """Let this many real seconds pass; return the health then."""
        for _ in range(int(seconds)):
            self.clock.time += self.clock.speed
            answer = self.health.look()
        return answer


@pytest.mark.parametrize("speed", [1.0, 60.0])
def test_a_loop_that_is_not_back_in_time_is_overdue(stack: ExitStack, speed: float) -> None:
    """A loop may be late for the patience, in real seconds; then it is named until it is back."""
    watched = Watched(stack, speed)
    watched.broker(1e9)
    watched.anna(watched.clock.now() + 300 * speed)
    assert watched.after(300 + PATIENCE) == HEALTHY
    assert watched.after(1) == "overdue: account anna"
    watched.broker(watched.clock.now() - PATIENCE * speed - 1)
    assert watched.after(1) == "overdue: account anna, the broker's connection"
    watched.anna(watched.clock.now())
    assert watched.after(1) == "overdue: the broker's connection"
    watched.broker(watched.clock.now())
    assert watched.after(1) == HEALTHY


def test_a_loop_that_has_ended_is_forgotten(stack: ExitStack) -> None:
    """An account that another process serves now is not watched any more; forgetting it twice does no harm."""
    watched = Watched(stack)
    watched.anna(watched.clock.now() + 10)
    watched.broker(watched.clock.now() + 10_000)
    assert watched.after(PATIENCE + 60) == "overdue: account anna"
    watched.health.forget("account anna")
    watched.health.forget("account anna")
    assert watched.after(60) == HEALTHY


def test_a_loop_that_never_begins_is_overdue(stack: ExitStack) -> None:
    """Each loop is expected from the moment it is registered."""
    watched = Watched(stack)
    assert watched.after(PATIENCE) == HEALTHY
    assert watched.after(1) == "overdue: account anna, the broker's connection"


@pytest.mark.parametrize("speed", [1.0, 60.0])
def test_a_pause_of_the_process_makes_no_loop_overdue(stack: ExitStack, speed: float) -> None:
    """After the machine slept, each loop gets the full patience again; one that stays away is found then."""
    watched = Watched(stack, speed)
    watched.clock.time += 8 * 3600 * speed
    assert watched.health.look() == HEALTHY
    watched.anna(watched.clock.now())
    assert watched.after(PATIENCE) == HEALTHY
    watched.anna(watched.clock.now())
    assert watched.after(1) == "overdue: the broker's connection"


def test_a_loop_that_is_back_is_reported_at_once(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overdue loop is found when its time is over, and its return at once, although nobody looks in between."""
    monkeypatch.setattr("dexcom2mqtt.daemon.health.PATIENCE", 1.0)
    systemd = stack.enter_context(Systemd(str(tmp_path / "notify")))
    clock = Clock()
    health = Health(clock, str(uuid.uuid4()), lambda: "all is well", {"NOTIFY_SOCKET": systemd.name})
    back_by = health.loop("the heartbeat")
    thread = threading.Thread(target=health.run)
    thread.start()
    stack.callback(thread.join)
    stack.callback(clock.stop)
    eventually(lambda: systemd.status == "all is well")
    eventually(lambda: systemd.status == "overdue: the heartbeat", 5)
    back_by(clock.now() + 3600)
    eventually(lambda: systemd.status == "all is well", 5)


def test_patience_is_longer_than_any_bounded_call() -> None:
    """resolv.conf allows at most 5 attempts of 30 s at 3 servers; a fetch is 4 calls of 20 s."""
    assert max(30 * 5 * 3, 4 * (20 + 30)) + 60 < PATIENCE


@contextlib.contextmanager
def connecting(port: int, speed: float = 1.0) -> Iterator[list[tuple[float, float]]]:
    """Keep a BrokerLink running; yield a list of when it spoke and by when it promised to be back."""
    promised: list[tuple[float, float]] = []
    clock = Clock(speed)
    link = BrokerLink(
        Mqtt(host="127.0.0.1", port=port),
        clock,
        Mirror(last="test/state"),
        Stream(Topics("test")),
        will=Message("test/state", "offline"),
        read_back=ReadBack((), "test/probe", lambda _: None),
        back_by=lambda at: promised.append((clock.now(), at)),
    )
    thread = threading.Thread(target=link.run)
    thread.start()
    yield promised
    clock.stop()
    thread.join()


def test_the_connection_to_the_broker_says_how_long_it_takes() -> None:
    """Before a connect and before a pause it says how long they take at most, in the clock's time."""
    with connecting(free_port(), speed=100.0) as promised:
        eventually(lambda: len(promised) >= 10)
    for (connect, answered), (pause, back) in zip(promised[::2], promised[1::2], strict=False):
        assert 1300 < answered - connect <= 1500
        assert 0 < back - pause <= 30


def test_an_idle_connection_rests(mosquitto: Mosquitto) -> None:
    """On an idle connection, the loop waits for news until its next ping is due, and says so."""
    with connecting(mosquitto.port) as promised:
        eventually(lambda: promised and promised[-1][1] - promised[-1][0] > 50)
        eventually(lambda: Clock().now() - promised[-1][0] > 3)  # what came with the connection is done by then
    assert all(back - said <= 60 for said, back in promised)


# --- questions and reports, in one process -----------------------------------------------------------------


@pytest.fixture
def run(stack: ExitStack) -> Callable[..., str]:
    """Run a Health in a thread, as the daemon does; return its client id."""

    def run(words: Callable[[], str] = str, client_id: str = "", **environ: str) -> str:
        client_id = client_id or str(uuid.uuid4())
        clock = Clock()
        watched = Health(clock, client_id, words, environ)
        thread = threading.Thread(target=watched.run, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(clock.stop)
        return client_id

    return run


def test_answers_by_client_id(run: Callable[..., str]) -> None:
    """Anyone who knows the client id, however long, can ask; without a daemon the answer says so."""
    for client_id in (run(), run(client_id="🩸" * 128)):
        eventually(lambda client_id=client_id: asking.ask(client_id) == HEALTHY)  # type: ignore[misc]
    assert asking.ask("nobody") == "no daemon with the mqtt.client_id nobody answers on this machine"


def test_one_question_gets_one_answer(run: Callable[..., str]) -> None:
    """One question gets one answer, even after another round of the daemon."""
    client_id = run()
    eventually(lambda: asking.ask(client_id) == HEALTHY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        asker.bind("")
        asker.settimeout(2.5)
        asker.sendto(b"?", asking.address(client_id))
        assert asker.recv(100) == HEALTHY.encode()
        with pytest.raises(TimeoutError):
            asker.recv(100)


def test_a_question_without_an_address_does_no_harm(run: Callable[..., str]) -> None:
    """Any program may send anything there; the next question is still answered."""
    client_id = run()
    eventually(lambda: asking.ask(client_id) == HEALTHY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stray:
        stray.connect(asking.address(client_id))
        for garbage in (b"", b"?", b"\xff" * 5000):
            stray.send(garbage)
    assert asking.ask(client_id) == HEALTHY


def test_a_notification_that_failed_is_sent_again(run: Callable[..., str], tmp_path: Path) -> None:
    """A notification that cannot be sent does no harm, and is sent later."""
    words = ["first"]
    client_id = run(lambda: words[0], NOTIFY_SOCKET=str(tmp_path / "late"), WATCHDOG_USEC="1000000")
    eventually(lambda: asking.ask(client_id) == HEALTHY)
    with Systemd(str(tmp_path / "late")) as systemd:
        eventually(lambda: systemd.fed)
        assert systemd.messages[0] == "READY=1\nSTATUS=first"
        words[0] = "second → ü"
        eventually(lambda: systemd.status == "second → ü")
        fed = systemd.fed
        eventually(lambda: systemd.fed >= fed + 2)
        reported = [message for message in systemd.messages if "STATUS" in message]
        assert reported == ["READY=1\nSTATUS=first", "READY=1\nSTATUS=second → ü"]


def test_it_is_ready_with_nothing_to_say(run: Callable[..., str], systemd: Systemd) -> None:
    """A daemon without an account, which waits for those of another process, is ready all the same."""
    run(lambda: "", NOTIFY_SOCKET=systemd.name)
    eventually(lambda: systemd.messages == ["READY=1\nSTATUS="])


@pytest.mark.parametrize("microseconds", ["", "0", "-1", "soon"])
def test_without_a_watchdog_none_is_fed(run: Callable[..., str], systemd: Systemd, microseconds: str) -> None:
    """If systemd asks for no watchdog messages, or sets nonsense, none are sent."""
    client_id = run(NOTIFY_SOCKET=systemd.name, WATCHDOG_USEC=microseconds)
    eventually(lambda: asking.ask(client_id) == HEALTHY)
    assert asking.ask(client_id) == HEALTHY  # that was a round more
    assert systemd.fed == 0


# --- the daemon --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_how_it_goes(
    mosquitto: Mosquitto, start: Callable[..., Process], stack: ExitStack, tmp_path: Path, *, abstract: bool
) -> None:
    """Ready, the reading with its age and the next poll in local time, the watchdog, and the stop."""
    systemd = stack.enter_context(Systemd(f"@{uuid.uuid4()}" if abstract else str(tmp_path / "notify")))
    with Subscriber(mosquitto.port) as subscriber:
        running = start(mosquitto.port, NOTIFY_SOCKET=systemd.name, WATCHDOG_USEC="1000000", TZ="XXX-05:30")
        eventually(lambda: "mg/dL" in systemd.status)
        assert systemd.messages[0].startswith("READY=1\nSTATUS=anna: starting")

        def reported() -> list[tuple[str, str]]:
            pattern = r"anna: (\d+ mg/dL [↑↗→↘↓]+) [0-9] min ago, next poll (\d\d:\d\d:\d\d)"
            return [match.groups() for each in systemd.messages if (match := re.search(rf"{pattern}$", each))]  # type: ignore[misc]

        def polls() -> set[tuple[str, str]]:
            zone = timezone(timedelta(hours=5, minutes=30))
            published = [json.loads(each)["next_poll_at"] for each in subscriber.payloads("dexcom2mqtt/anna/status")]
            times = [f"{datetime.fromisoformat(each).astimezone(zone):%H:%M:%S}" for each in published if each]
            states = map(json.loads, subscriber.payloads("dexcom2mqtt/anna/state"))
            values = [f"{state['value']} mg/dL {state['arrow']}" for state in states]
            return {(value, at) for value in values for at in times}

        eventually(lambda: len({*reported()} & polls()) >= 2)
        assert systemd.fed >= 2
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        eventually(lambda: "STOPPING=1" in systemd.messages)
    assert max(map(len, systemd.messages)) < 100


def test_the_status_line_of_many_accounts_is_cut(
    service: SimulatedShare, start: Callable[..., Process], systemd: Systemd
) -> None:
    """Ten accounts are listed, those in trouble first, within systemd's 4096 bytes."""
    well = {f"{'a' * 255}{n}": {"username": ANNA.username, "password": ANNA.password} for n in range(1)}
    ill = {f"{'b' * 254}{n}": {"username": f"nobody {n}", "password": "x"} for n in range(10, 21)}
    accounts = {key: account | {"share_url": service.base_url} for key, account in (well | ill).items()}
    running = start(free_port(), accounts, NOTIFY_SOCKET=systemd.name)

    def reported() -> list[str]:
        return [each.partition(":")[0] for each in systemd.status.split("; ")]

    # While the eleventh is rejected already and one of the others not yet, that one takes its place.
    eventually(lambda: systemd.status.count(": credentials_rejected") == 10, why=running.text())
    eventually(lambda: reported() == [*[*ill][:10], "and 2 more"], why=systemd.status)
    assert max(len(message.encode()) for message in systemd.messages) <= 4096


@pytest.mark.parametrize(
    ("what", "name"),
    [("share", "account anna"), ("broker", "the broker's connection"), ("heart", "the heartbeat")],
)
def test_a_blocked_loop_is_unhealthy(
    mosquitto: Mosquitto,
    start: Callable[..., Process],
    systemd: Systemd,
    config: Path,
    tmp_path: Path,
    what: str,
    name: str,
) -> None:
    """While all loops run, the daemon is healthy; a blocked loop stops the watchdog and is named."""
    block = tmp_path / "block"
    environ = {"PATIENCE": str(SHORT), "BLOCK": what, "BLOCK_WHEN": str(block), "WATCHDOG_USEC": "1000000"}
    running = start(mosquitto.port, NOTIFY_SOCKET=systemd.name, **environ)
    online(mosquitto.port)
    assert systemd.fed_within(SHORT + 2) >= 5
    assert healthy(config)
    assert "overdue" not in systemd.status + running.text()

    block.touch()
    eventually(lambda: systemd.status == f"overdue: {name}", SHORT + 10)
    done = healthcheck(config)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"dexcom2mqtt: overdue: {name}\n")
    assert systemd.fed_within(2) == 0
    assert running.running
    assert running.text().count("overdue") == 1


@pytest.mark.parametrize("fault", ["down", "hanging"])
def test_a_daemon_without_broker_and_share_is_healthy(
    mosquitto: Mosquitto,
    service: SimulatedShare,
    start: Callable[..., Process],
    systemd: Systemd,
    config: Path,
    fault: str,
) -> None:
    """With neither broker nor Share, at the start and for longer than the patience, it is ready and healthy."""
    if fault == "down":
        service.close()
        mosquitto.kill()
    else:
        service.fault = share_faults.hang()
        mosquitto.freeze()
    environ = {"PATIENCE": str(SHORT), "CALL_SECONDS": "1", "WATCHDOG_USEC": "1000000"}
    running = start(mosquitto.port, NOTIFY_SOCKET=systemd.name, **environ)
    eventually(lambda: systemd.status.startswith("anna: unavailable"), why=running.text())
    assert systemd.fed_within(SHORT + 2) >= 5
    assert healthy(config)
    assert "overdue" not in "".join(systemd.messages) + running.text()


def test_a_frozen_daemon_is_unhealthy(start: Callable[..., Process], config: Path) -> None:
    """If the process is frozen, healthcheck fails within seconds; it recovers when the process continues."""
    running = start(free_port())
    eventually(lambda: healthy(config))
    running.signal(signal.SIGSTOP)
    began = time.monotonic()
    done = healthcheck(config)
    assert (done.returncode, done.stderr) == (1, "dexcom2mqtt: the daemon does not answer within 5 s; is it frozen?\n")
    assert time.monotonic() - began < 10
    running.signal(signal.SIGCONT)
    assert healthy(config)
    running.signal(signal.SIGKILL)
    running.wait()
    done = healthcheck(config)
    assert done.returncode == 1
    assert re.fullmatch("dexcom2mqtt: no daemon with the mqtt.client_id .* answers on this machine\n", done.stderr)


def test_daemons_are_told_apart_by_client_id(start: Callable[..., Process], config: Path, tmp_path: Path) -> None:
    """Each of two daemons is asked separately; a second one with the same client id logs it once and keeps running."""
    other = tmp_path / "other.yaml"
    frozen = start(free_port())
    eventually(lambda: healthy(config))
    config.rename(other)
    first = start(free_port(), client_id="same one " + frozen.output.stem)
    eventually(lambda: healthy(config))
    frozen.signal(signal.SIGSTOP)
    assert not healthy(other)
    assert healthy(config)

    second = start(port := free_port(), client_id="same one " + frozen.output.stem)
    eventually(lambda: "healthcheck cannot reach this daemon" in second.text())
    eventually(lambda: f"cannot connect to the broker at 127.0.0.1:{port}" in second.text())
    time.sleep(1)
    assert second.text().count("healthcheck") == 1
    assert "healthcheck" not in first.text()
    assert first.running
    assert second.running
    assert healthy(config)


def test_healthcheck_needs_no_account_and_no_secret(
    start: Callable[..., Process], config: Path, tmp_path: Path
) -> None:
    """It reads only the client id, from every source that the daemon reads."""
    client_id = str(uuid.uuid4())
    running = start(free_port(), client_id=client_id)
    eventually(lambda: healthy(config), why=running.text())
    secrets = tmp_path / "secrets"
    for unreadable in ("dexcom2mqtt_accounts__anna__password", "dexcom2mqtt_mqtt__password"):
        (secrets / unreadable).mkdir(parents=True)

    def ends_with(text: str, **environ: str) -> int:
        config.write_text(text)
        command = [sys.executable, "-m", "dexcom2mqtt", "healthcheck"]
        environ = {"DEXCOM2MQTT_CONFIG": str(config), "CREDENTIALS_DIRECTORY": str(secrets)} | environ
        return subprocess.run(command, timeout=30, check=False, env=environ, capture_output=True).returncode

    assert ends_with("", DEXCOM2MQTT_MQTT__CLIENT_ID=client_id) == 0
    assert ends_with("mqtt: {client_id: x}", DEXCOM2MQTT_MQTT__BASE_TOPIC=client_id) == 1
    assert ends_with("", DEXCOM2MQTT_MQTT__BASE_TOPIC=client_id) == 0
    wrong = (
        f"accounts: {{anna: 5}}\nmqtt: {{client_id: {client_id}, password: x, tls: {{ca_file: none}}}}\nlog_level: x"
    )
    assert ends_with(wrong) == 0
    assert ends_with(wrong, DEXCOM2MQTT_MQTT__CLIENT_ID="x") == 1
    assert ends_with("mqtt: {client_id: a#}") == 78
    assert ends_with("mqtt: {") == 78
