"""Real brokers of several makers, each on free ports of loopback, as processes of the test instead of services.

Each accepts one user, keeps its data in a folder of the test, and ends with everything it started.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from paho.mqtt.enums import MQTTProtocolVersion

from tests.support.brokers import login
from tests.support.processes import MOSQUITTO, ROOT, Process, Subscriber, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from paho.mqtt import client as paho

USER: Final = "house"
PASSWORD: Final = "the password of the house"
AEDES: Final = ROOT / ".aedes"
"""Where .ci/run lets npm install aedes."""

_RABBITMQ: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_RABBITMQ_3: Final = list(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-3.*"))
"""Whether this is Debian 12's, which does not support MQTT 5; Debian 13's does."""
_EJABBERD: Final = Path("/usr/sbin/ejabberdctl")
_OURS: Final = "DEXCOM2MQTT_TEST_BROKER"
_START_SECONDS: Final = 90.0
_DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True)
class Launch:
    """How to start a broker, and the commands to run before it."""

    command: Iterable[str | Path]
    environ: Mapping[str, str] = field(default_factory=dict)
    before: Iterable[str | Path] = ()


@dataclass(frozen=True)
class Kind:
    """A maker's broker and its properties, which docs/brokers.md describes."""

    name: str
    missing: Callable[[], str]
    """Returns what to install if it cannot run here, else nothing."""
    set_up: Callable[[Path, int], Launch]
    """Writes its configuration for a port into a folder, and returns how to start it."""
    protocol: Literal["5", "3.1.1"] = "3.1.1"
    keeps: bool = True
    """Whether retained messages survive a clean restart."""
    wildcards: bool = True
    """Whether a subscription with wildcards gets retained messages."""


class RealBroker:
    """One of them, running, for use in a ``with``."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self._mark = secrets.token_hex(8)
        self._log = folder / "broker.log"
        self._launch = kind.set_up(folder, self.port)
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        if self._launch.before:
            self._run(self._launch.before)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of it; those of Erlang start others in separate sessions."""
        for pid in _marked(self._mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()
        eventually(lambda: not _marked(self._mark), why="a process of the broker is left")

    def start(self) -> None:
        """Start it, and wait until it accepts its user."""
        self._run(self._launch.command)
        eventually(self._lets_in, _START_SECONDS, why=f"{self.kind.name} did not start: {self.log()[-3000:]}")

    def stop(self) -> None:
        """End it as an operating system would."""
        self._processes[-1].signal(signal.SIGTERM)
        self._processes[-1].wait(30)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._processes[-1].kill()

    @property
    def running(self) -> bool:
        return self._processes[-1].running

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def subscriber(self, *topics: str, seconds: float = 10.0) -> ExactSubscriber:
        """Return a client that subscribes to these topics and reconnects after a restart of the broker."""
        protocol = MQTTProtocolVersion.MQTTv5 if self.kind.protocol == "5" else MQTTProtocolVersion.MQTTv311
        return ExactSubscriber(topics, self.port, protocol, seconds)

    def held(self, topics: Iterable[str]) -> dict[str, str]:
        """Return its retained messages at exactly these topics, as a new subscriber gets them.

        Two marks show that all have come. aedes sends the retained messages of one subscription in order, but those of
        two subscriptions mixed; ejabberd and RabbitMQ send one subscription after the other, but each in reverse.
        """
        marks = [f"test/{time.monotonic_ns()}/{number}" for number in range(2)]
        with self.subscriber("test/nothing") as first:
            for mark in marks:
                first.retain(mark, "here")
            with self.subscriber(*topics, marks[0]) as late:
                late.wait_for(marks[0])
                late.client.subscribe(marks[1])
                late.wait_for(marks[1])
                heard = [each for each in late.heard if each.retained and each.topic not in marks]
            for mark in marks:
                first.retain(mark, "")
        return {each.topic: each.payload for each in heard}

    def _run(self, command: Iterable[str | Path]) -> None:
        environ = {**self._launch.environ, _OURS: self._mark}
        self._processes.append(Process([*_DIES_WITH_US, *command], self._log, environ))

    def _lets_in(self) -> bool:
        assert self.running, f"{self.kind.name} has ended: {self.log()[-3000:]}"
        with suppress(OSError, AssertionError), self.subscriber("test/start", seconds=1):
            return True
        return False


class ExactSubscriber(Subscriber):
    """A subscriber to some topics only."""

    def __init__(self, topics: Iterable[str], port: int, protocol: MQTTProtocolVersion, seconds: float) -> None:
        self._topics = [(topic, 0) for topic in topics]
        super().__init__(
            port,
            protocol,
            (USER, PASSWORD),
            set_up=lambda client: client.reconnect_delay_set(1, 1),
            seconds=seconds,
        )

    def _subscribe(self, client: paho.Client, *_: object) -> None:
        client.subscribe(self._topics)

    def retain(self, topic: str, payload: str) -> None:
        """Publish a retained message, or clear it."""
        self.client.publish(topic, payload, qos=1, retain=True).wait_for_publish(10)

    def forget_all_but(self, leaf: str) -> None:
        """Forget the messages on other topics than those that end in this level."""
        with self._lock:
            self._heard = [heard for heard in self._heard if heard.topic.endswith(f"/{leaf}")]


def _marked(mark: str) -> list[int]:
    """Return the ids of the processes that have the mark in their environment, as their children have."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{_OURS}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


# Makers


def _installed(package: str, program: str | Path | None) -> Callable[[], str]:
    there = program is not None and shutil.which(program)
    return lambda: "" if there else f"{package} is not installed; install the package {package} to run them"


def _mosquitto(folder: Path, port: int) -> Launch:
    assert MOSQUITTO
    lines = [
        f"listener {port} 127.0.0.1",
        "user root",
        "persistence true",
        f"persistence_location {folder}/",
        *login(folder, USER, PASSWORD),
    ]
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Launch([MOSQUITTO, "-c", folder / "mosquitto.conf"])


def _no_aedes() -> str:
    if (AEDES / "node_modules/aedes").exists() and shutil.which("node"):
        return ""
    return "aedes is not installed; .ci/run lets npm install it"


def _aedes(milliseconds: int) -> Callable[[Path, int], Launch]:
    server = ROOT / "tests/support/aedes_server.mjs"
    return lambda _, port: Launch(["node", server, AEDES, str(port), USER, PASSWORD, str(milliseconds)])


def _rabbitmq(folder: Path, port: int) -> Launch:
    settings = [
        "listeners.tcp = none",
        f"mqtt.listeners.tcp.1 = 127.0.0.1:{port}",
        f"default_user = {USER}",
        f"default_pass = {PASSWORD}",
        "log.console = true",
        "log.file = false",
    ]
    (folder / "rabbitmq.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
    (folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n", encoding="utf-8")
    names, nodes = str(free_port()), str(free_port())
    environ = {
        "HOME": str(folder),  # for Erlang's cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": names,
        "RUNNING_UNDER_SYSTEMD": "1",  # then it ends on its signal, without a shell in between
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_DIST_PORT": nodes,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "feature_flags"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
    }
    # Otherwise it would start an epmd that keeps running when it ends.
    return Launch([_RABBITMQ], environ, before=["epmd", "-address", "127.0.0.1", "-port", names])


def _ejabberd(folder: Path, port: int) -> Launch:
    settings = [
        "hosts: [localhost]",
        "listen:",
        f"  - {{port: {port}, ip: 127.0.0.1, module: mod_mqtt}}",
        "auth_method: internal",
        "certfiles: []",
        "modules: {mod_mqtt: {}}",
    ]
    (folder / "ejabberd.yml").write_text("\n".join(settings) + "\n", encoding="utf-8")
    environ = {
        "HOME": str(folder),
        "EJABBERD_CONFIG_PATH": str(folder / "ejabberd.yml"),
        "EJABBERD_LOG_PATH": str(folder / "ejabberd.log"),
        "ERL_CRASH_DUMP": str(folder / "crash"),
        "ERL_LIBS": str(next(Path("/usr/lib").glob("*/ejabberd-*")).parent),
    }
    user = f'ejabberd_auth:try_register(<<"{USER}">>, <<"localhost">>, <<"{PASSWORD}">>).'
    # Like ejabberdctl, but without a name, so that it needs no epmd.
    return Launch(["erl", "-noinput", "-mnesia", "dir", f'"{folder}/mnesia"', "-s", "ejabberd", "-eval", user], environ)


def _nats(folder: Path, port: int) -> Launch:
    settings = [
        "server_name: house",
        f"listen: 127.0.0.1:{free_port()}",
        f'jetstream {{ store_dir: "{folder}/store" }}',
        f"mqtt {{ host: 127.0.0.1, port: {port} }}",
        f'authorization {{ user: {USER}, password: "{PASSWORD}" }}',
    ]
    (folder / "nats.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
    return Launch(["nats-server", "-c", folder / "nats.conf"])


KINDS: Final = (
    Kind("mosquitto", _installed("mosquitto", MOSQUITTO), _mosquitto, "5"),
    Kind("aedes", _no_aedes, _aedes(0), keeps=False),
    # Like its persistence in a database, from which the retained messages must come first.
    Kind("aedes_late", _no_aedes, _aedes(100), keeps=False),
    Kind(
        "rabbitmq",
        _installed("rabbitmq-server", _RABBITMQ),
        _rabbitmq,
        "3.1.1" if _RABBITMQ_3 else "5",
        wildcards=False,
    ),
    Kind("nats", _installed("nats-server", "nats-server"), _nats),
    Kind("ejabberd", _installed("ejabberd", _EJABBERD), _ejabberd, "5"),
)
