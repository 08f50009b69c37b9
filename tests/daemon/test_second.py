"""A second daemon with the same client id at the same broker would disconnect the first, so it does not even try."""

from __future__ import annotations

import signal
import sys
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.daemon import asking
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support.processes import BUSY, Process, eventually, free_port, write_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from tests.support.processes import Mosquitto

ANNA = SimulatedAccount("anna@example.com", "the password", seed=1)
WORDS = "is already running on this machine, perhaps as a service (systemctl status dexcom2mqtt): stop it first"


class Machine:
    """Daemons with one configuration, except for the broker's port."""

    def __init__(self, folder: Path, stack: ExitStack, url: str) -> None:
        self.client_id = f"test-{uuid.uuid4()}"
        self._folder, self._stack, self._url = folder, stack, url
        self._started = 0

    def config(self, port: int) -> Path:
        account = {"username": ANNA.username, "password": ANNA.password, "share_url": self._url}
        mqtt = {"host": "127.0.0.1", "port": port, "client_id": self.client_id}
        return write_config(self._folder / f"{port}.yaml", {"accounts": {"anna": account}, "mqtt": mqtt})

    def start(self, port: int, *command: str, **environ: str) -> Process:
        self._started += 1
        arguments: list[str | Path] = [sys.executable, "-m", "dexcom2mqtt", *command, "--config", self.config(port)]
        return self._stack.enter_context(Process(arguments, self._folder / f"log{self._started}", environ))


@pytest.fixture
def machine(tmp_path: Path, stack: ExitStack) -> Iterator[Machine]:
    with SimulatedShare([ANNA], accelerated(1.0)) as service:
        yield Machine(tmp_path, stack, service.base_url)


def connected(broker: Mosquitto, machine: Machine) -> int:
    return broker.log().count(f" as {machine.client_id} (")


@pytest.fixture
def first(machine: Machine, mosquitto: Mosquitto) -> Process:
    """Start one and wait until it is healthy and connected."""
    running = machine.start(mosquitto.port)
    eventually(lambda: asking.ask(machine.client_id) == asking.HEALTHY, why=running.text())
    eventually(lambda: connected(mosquitto, machine))
    return running


def test_a_second_one_ends_before_it_touches_the_broker(machine: Machine, first: Process, mosquitto: Mosquitto) -> None:
    """It says what is already running and ends with 1; the first one stays connected."""
    second = machine.start(mosquitto.port)
    assert second.wait() == 1
    assert WORDS in second.text()
    assert f"{machine.client_id} at 127.0.0.1:{mosquitto.port} " in second.text()
    assert first.running
    assert connected(mosquitto, machine) == 1


def test_one_at_another_broker_only_causes_a_warning(
    machine: Machine, first: Process, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    """Only the name is taken, which is a warning."""
    other = start_mosquitto()
    second = machine.start(other.port)
    eventually(lambda: connected(other, machine), why=second.text())
    eventually(lambda: "healthcheck cannot reach this daemon" in second.text())
    assert second.running
    assert first.running


def test_one_that_is_stopping_is_waited_for(machine: Machine, first: Process, mosquitto: Mosquitto) -> None:
    """As during a restart: the new one continues as soon as the old one is gone."""
    second = machine.start(mosquitto.port)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    eventually(lambda: connected(mosquitto, machine) == 2, why=second.text())
    assert second.running


def test_a_stop_while_it_waits_is_a_stop(machine: Machine, first: Process, mosquitto: Mosquitto) -> None:
    """SIGTERM ends it with 0, whatever it is waiting for."""
    second = machine.start(mosquitto.port)
    began = time.monotonic()
    eventually(lambda: waits(second), why=second.text())
    second.signal(signal.SIGTERM)
    assert second.wait() == 0
    assert time.monotonic() - began < 5 * BUSY
    assert first.running
    assert connected(mosquitto, machine) == 1


def waits(process: Process) -> bool:
    """Return whether a process has blocked SIGTERM, which it does before it looks for another daemon."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:  # noqa: PTH123  # of the kernel
        blocked = next(line for line in status if line.startswith("SigBlk:"))
    return bool(int(blocked.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_purge_refuses_while_one_runs(machine: Machine, first: Process, mosquitto: Mosquitto) -> None:
    """The daemon would publish again what it removes; at another broker it refuses to be safe."""
    for port in (mosquitto.port, free_port()):
        purge = machine.start(port, "purge")
        assert purge.wait() == 1
        words = f"a daemon with the mqtt.client_id {machine.client_id} is running on this machine: stop it first"
        assert words in purge.text()
    assert first.running


def test_purge_of_a_shard_asks_for_its_own_daemon(machine: Machine) -> None:
    """The client id of one of several processes ends in its index."""
    name, machine.client_id = machine.client_id, f"{machine.client_id}-1"
    first = machine.start(free_port())
    eventually(lambda: asking.ask(machine.client_id) == asking.HEALTHY, why=first.text())
    machine.client_id = name
    shard = {"DEXCOM2MQTT_SHARD__COUNT": "2", "DEXCOM2MQTT_SHARD__INDEX": "1"}
    purge = machine.start(free_port(), "purge", **shard)
    assert purge.wait() == 1
    assert f"a daemon with the mqtt.client_id {name}-1 is running on this machine: stop it first" in purge.text()
