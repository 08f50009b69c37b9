"""Any input: bytes and JSON as a history, a status, a refresh message or a configuration.

Few cases by default; more with `--hypothesis-profile=ci`, most with `long`.
"""

from __future__ import annotations

import json
import logging
import signal
import string
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from dexcom2mqtt.account.limits import RateLimits
from dexcom2mqtt.account.poller import poller_for
from dexcom2mqtt.account.rationed import client_of
from dexcom2mqtt.clock import Alarm, Clock, Stopped
from dexcom2mqtt.config import loading
from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.settings import Account
from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.messages.history import source_of
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.topics import Topics
from tests.support import share_faults
from tests.support.builders import any_json, any_text
from tests.support.processes import BUSY, MOSQUITTO, Mosquitto, Process, Subscriber, daemon, eventually, write_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dexcom2mqtt.messages.message import Message

pytestmark = pytest.mark.timeout(900)  # a thousand cases with the profile long

ANNA = SimulatedAccount("anna@example.com", "the password")
SOURCE = source_of("us", ANNA.username)

fuzz = settings(
    database=None,
    deadline=timedelta(seconds=30),  # nothing waits forever, but a machine may be busy
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


nested = st.builds(
    lambda opening, depth: (opening * depth).encode(), st.sampled_from(["[", '{"a":', "[[{}],"]), st.integers(1, 2000)
)
any_payload = st.binary(max_size=300) | any_json.map(as_json) | any_text.map(as_json) | nested


# --- retained messages of an account -----------------------------------------------------------------------

NOW = int(time.time())

any_date = st.integers(NOW - 100_000, NOW + 1_000).map(lambda at: at * 1000) | st.integers() | any_json
any_entry = st.fixed_dictionaries(
    {},
    optional={
        "date": any_date,
        "mg_dl": st.integers(30, 410) | any_json,
        "direction": st.sampled_from(["Flat", "", "None"]) | any_text | any_json,
        "offset_min": st.integers(-900, 900) | any_json,
    },
)
good_entry = st.fixed_dictionaries(
    {
        "date": st.integers(NOW - 100_000, NOW).map(lambda at: at * 1000),
        "mg_dl": st.integers(39, 401),
        "direction": st.sampled_from(["Flat", "None", "Bent"]),
        "offset_min": st.integers(-840, 840),
    }
)
any_history = st.fixed_dictionaries(
    {
        "version": st.just(1) | any_json,
        "source": st.just(SOURCE) | any_json,
        "readings": st.lists(good_entry, max_size=30) | st.lists(good_entry | any_entry, max_size=5) | any_json,
    }
).map(as_json)
any_status = st.fixed_dictionaries(
    {"rejected": st.lists(st.integers(NOW - 100_000, NOW + 100), max_size=20) | any_json}
).map(as_json)


class OnePollClock(Clock):
    """A clock that stops the program when it would begin to wait."""

    def alarm(self, back_by: Callable[[float], None] = lambda _: None) -> Alarm:
        return OnePollAlarm(self, back_by)


class OnePollAlarm(Alarm):
    """An alarm that stops the program instead of waiting."""

    def wait(self, seconds: float) -> NoReturn:  # noqa: ARG002  # raises at once
        raise Stopped


@pytest.fixture(scope="module")
def given_dates() -> list[int]:
    """Return the timestamps of the readings that the service below has."""
    now = time.time()
    return [record.taken for record in share.series(ANNA, now - 3600, now - 60)]


@pytest.fixture(scope="module")
def service(given_dates: list[int]) -> Iterator[SimulatedShare]:
    """Return a simulated Share service with the readings of an hour, which signs in quickly."""
    records = [{"WT": f"Date({date})", "Value": 100 + n, "Trend": "Flat"} for n, date in enumerate(given_dates)]
    with SimulatedShare([ANNA], time.time) as service:
        service.fault = share_faults.only(share_faults.body(as_json(records)), call="read")
        yield service


def poll_once(service: SimulatedShare, history: bytes | None, status: bytes | None) -> tuple[set[int], list[Message]]:
    """Read that back and poll once; return the dates of the published readings, and the retained messages."""
    given = {"account_id": ANNA.account_id, "password": ANNA.password, "share_url": service.base_url}
    account = build(Account, given)
    put: list[Message] = []
    topics = Topics("dexcom2mqtt")
    stream = Stream(topics)
    clock = OnePollClock()
    poller = poller_for(
        "anna",
        account,
        client_of(account, clock),
        clock=clock,
        topics=topics,
        put=put.extend,
        stream=stream,
        stale_after=900,
        rate_limits=RateLimits(),
    )
    poller.take_read_back(history, status)
    with suppress(Stopped):
        poller.run()
    taken: set[int] = set()
    now = clock.now()
    while messages := stream.take(now, 1000):
        taken |= {json.loads(message.payload)["date"] for message in messages}
        now += 1
    return taken, put


@fuzz
@given(
    history=st.none() | any_payload | any_history,
    status=st.none() | any_payload | any_status,
)
@example(history=None, status=None)
@example(history=as_json({"version": 1, "source": SOURCE, "readings": []}), status=b'{"rejected": []}')
@example(history=b"[" * 200_000, status=b'{"rejected": [' + b"9" * 5000 + b"]}")
@example(history=b" " * 2**20, status=b" " * 2**20)
def test_any_history_and_status(
    service: SimulatedShare,
    given_dates: list[int],
    caplog: pytest.LogCaptureFixture,
    history: bytes | None,
    status: bytes | None,
) -> None:
    """Retained messages are accepted whole or cost one line in the log; the account polls and publishes."""
    caplog.clear()
    published, put = poll_once(service, history, status)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    said = json.loads(next(message.payload for message in reversed(put) if message.topic.endswith("/status")))
    assert all(type(at) is int for at in said["rejected"])
    if said["share"] == "credentials_rejected":  # too many rejections before the start
        assert len(said["rejected"]) >= 5
        assert published == set()
        return
    for leaf in ("history", "status"):
        assert sum(f"anna: ignoring the retained {leaf}: " in line for line in lines) <= 1
    assert all("ignoring the retained" in line for line in lines), lines
    taken_over = history and not any("retained history" in line for line in lines)
    known = {entry["date"] for entry in json.loads(history)["readings"]} if history and taken_over else set()
    if taken_over:
        assert published <= set(given_dates) - known  # a duplicate of a known reading is not new
    else:
        assert published == set(given_dates)
    assert said["share"] == "ok"


# --- messages to a running daemon --------------------------------------------------------------------------


class Target:
    """A running daemon, and a client that sends to it."""

    def __init__(self, broker: Mosquitto, process: Process, subscriber: Subscriber, service: SimulatedShare) -> None:
        self.broker = broker
        self.process = process
        self.subscriber = subscriber
        self.service = service
        self.client = client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()

    @property
    def threads(self) -> set[str]:
        """Return the names of the daemon's threads."""
        folder = Path(f"/proc/{self.process.pid}/task")
        return {task.name for task in folder.iterdir()}

    def send(self, *payloads: tuple[bytes, bool, int]) -> None:
        """Send these, each retained or not, with QoS 0 or 1, and wait until the broker has the last one."""
        for payload, retain, qos in payloads:
            sent = self.client.publish("dexcom2mqtt/anna/refresh", payload, qos, retain)
        sent.wait_for_publish(5 * BUSY)


@contextmanager
def running(folder: Path, speed: float) -> Iterator[Target]:
    """Run a daemon with a real broker."""
    with ExitStack() as stack:
        broker = Mosquitto(folder)
        stack.callback(broker.kill)
        service = stack.enter_context(SimulatedShare([ANNA], accelerated(speed)))
        account = {"username": ANNA.username, "password": ANNA.password, "share_url": service.base_url}
        settings = {"accounts": {"anna": account}, "mqtt": {"host": "127.0.0.1", "port": broker.port}}
        process = stack.enter_context(daemon(write_config(folder / "c.yaml", settings), folder / "log", speed=speed))
        with Subscriber(broker.port) as subscriber:
            subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
            subscriber.wait_for("dexcom2mqtt/anna/history")
        target = Target(broker, process, subscriber, service)
        yield target
        target.client.disconnect()
        target.client.loop_stop()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return one daemon for all cases; at the end it still polls, has logged nothing bad, and stops in time."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; install the package mosquitto to run them")
    with running(tmp_path_factory.mktemp("fuzz"), 60.0) as target:
        yield target
        before = target.service.count(call="read")
        target.send((b"", False, 1))
        eventually(lambda: target.service.count(call="read") > before, 10, why="it does not poll any more")
        target.process.signal(signal.SIGTERM)
        began = time.monotonic()
        assert target.process.wait() == 0
        assert time.monotonic() - began < 2
        for word in ("Traceback", "WARNING", "ERROR", "CRITICAL"):
            assert word not in target.process.text()


@fuzz
@given(payloads=st.lists(st.tuples(any_payload, st.booleans(), st.integers(0, 1)), min_size=1, max_size=5))
@example(payloads=[(b"\x00" * 2**20, False, 1)])
def test_any_refresh(target: Target, payloads: list[tuple[bytes, bool, int]]) -> None:
    """Whatever is sent to `refresh`, retained or not, the daemon and each of its threads keep running."""
    threads = target.threads
    target.send(*payloads)
    assert target.process.running
    assert target.threads == threads
    assert len(threads) == 6  # the main one, the broker's, the account's, the heart, health, the end


# --- the configuration -------------------------------------------------------------------------------------

KEYS = ["accounts", "anna", "mqtt", "host", "port", "tls", "username", "password", "region", "ranges", "low", "<<"]
KEYS += ["stale_after", "log_level", "home_assistant", "discovery", "account_id", "share_url", "base_topic", "unit"]
VALUES = ["us", "1883", "null", "~", "[]", "{}", "*a", "&a", "!!int 3", "0x1F", "1e999", "|", ">-", "- ", "? ", "yes"]
VALUES += ["https://[", "http://localhost:99999/", "\x00", "\ufeff", "é", "${HOME}", "%s%n", "9" * 400]

GOOD = b"accounts: {anna: {username: a, password: b}}"

line = st.builds(
    lambda indent, key, colon, value: f"{' ' * indent}{key}{colon}{value}",
    st.integers(0, 6),
    st.sampled_from(KEYS) | st.text(string.printable, max_size=8),
    st.sampled_from([": ", ":", " ", ""]),
    st.sampled_from(VALUES) | st.text(string.printable, max_size=12),
)
tree = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.sampled_from(VALUES) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
any_file = (
    st.binary(max_size=300)
    | st.lists(line, max_size=8).map(lambda lines: "\n".join(lines).encode(errors="surrogatepass"))
    | tree.map(lambda value: yaml.safe_dump(value).encode())
    | nested
)
any_name = st.lists(st.sampled_from(KEYS) | st.text("ab_", max_size=3), max_size=5).map(
    lambda keys: f"DEXCOM2MQTT_{'__'.join(keys).upper()}"
)
any_value = st.sampled_from(VALUES) | st.text(max_size=20) | tree.map(yaml.safe_dump)
any_environment = st.dictionaries(any_name | st.text(max_size=10), any_value, max_size=5)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@fuzz
@given(content=any_file, environ=any_environment, secrets=st.dictionaries(any_name, any_file, max_size=2))
@example(content=GOOD, environ={}, secrets={})
@example(content=b"[" * 60_000, environ={"DEXCOM2MQTT_MQTT": "{a: " * 10_000}, secrets={})
@example(content=b"a: &a [x,x]\nb: &b [*a,*a]\n" + b"c: [*b,*b]\n" * 20, environ={}, secrets={})
def test_any_configuration(folder: Path, content: bytes, environ: dict[str, str], secrets: dict[str, bytes]) -> None:
    """Whatever the file, the environment and the secret files contain: settings, or every problem in words."""
    file = folder / "config.yaml"
    file.write_bytes(content)
    with tempfile.TemporaryDirectory(dir=folder) as given_secrets:
        for name, secret in secrets.items():
            (Path(given_secrets) / name.lower()).write_bytes(secret)
        try:
            loaded = loading.load(file, environ=environ, secrets=[Path(given_secrets)])
        except ConfigError as error:
            problems = error.problems
        else:
            assert loaded.accounts
            assert all(isinstance(warning, str) for warning in loaded.warnings)
            return
    assert problems
    assert all(problem.strip() and "Traceback" not in problem for problem in problems)


def test_the_valid_case_is_valid(folder: Path) -> None:
    """One of the cases is a valid configuration, so that not only problems are tested."""
    file = folder / "good.yaml"
    file.write_bytes(GOOD)
    environ = {"DEXCOM2MQTT_MQTT__PORT": "1884"}
    loaded = loading.load(file, environ=environ, secrets=[])
    assert (set(loaded.accounts), loaded.mqtt.port) == ({"anna"}, 1884)
