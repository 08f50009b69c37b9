"""A system that does not let the daemon start threads, or more of them: the real command under a kernel filter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.daemon import asking
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support.processes import ROOT, Mosquitto, Process, Subscriber, eventually, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANNA = SimulatedAccount("anna@example.com", "the password", seed=1)
CLIENT_ID = f"test-{uuid.uuid4()}"


@pytest.fixture
def config(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Path]:
    with SimulatedShare([ANNA], accelerated(1.0)) as service:
        account = {"username": ANNA.username, "password": ANNA.password, "share_url": service.base_url}
        mqtt = {"host": "127.0.0.1", "port": mosquitto.port, "client_id": CLIENT_ID}
        yield write_config(tmp_path / "config.yaml", {"accounts": {"anna": account}, "mqtt": mqtt})


def command(when: str, name: str, config: Path) -> list[str | Path]:
    return [sys.executable, "-m", "tests.support.no_threads", when, name, "--config", config]


def test_the_daemon_says_it_in_one_line(config: Path, mosquitto: Mosquitto) -> None:
    """It ends with 1 and says what to do, without a traceback."""
    done = subprocess.run(command("now", "run", config), capture_output=True, text=True, check=False, cwd=ROOT)
    said = done.stderr.splitlines()
    assert (done.returncode, said[:-1]) == (1, [line for line in said[:-1] if " INFO " in f" {line} "])
    assert said[-1].startswith(
        "dexcom2mqtt: this system lets the daemon start no more threads; it needs one per account"
    )
    assert "Docker before 20.10.10" in said[-1]
    assert "TasksMax=" in said[-1]
    assert CLIENT_ID not in mosquitto.log()


def test_check_finds_it(config: Path) -> None:
    """It fails, says how many threads can start, and continues with everything else."""
    environ = os.environ | {"COLUMNS": "1000"}
    done = subprocess.run(
        command("now", "check", config), capture_output=True, text=True, check=False, cwd=ROOT, env=environ
    )
    assert done.returncode == 1
    assert "FAILED  machine: This machine lets the daemon start only 0 of the 5 threads it needs." in done.stdout
    assert "1. In a container: Docker before 20.10.10 prevents it." in done.stdout
    assert "ok      anna: Signed in" in done.stdout


def test_the_stop_needs_no_new_thread(config: Path, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """A daemon that cannot start more threads still publishes offline and ends with 0."""
    with Subscriber(mosquitto.port) as witness, Process(command("later", "run", config), tmp_path / "log") as running:
        witness.wait_for("dexcom2mqtt/anna/availability", "online")
        eventually(lambda: asking.ask(CLIENT_ID) == asking.HEALTHY)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0, running.text()
        witness.wait_for("dexcom2mqtt/bridge/state", "offline")
        assert witness.payloads("dexcom2mqtt/anna/availability")[-1] == "offline"
        assert "Traceback" not in running.text()
