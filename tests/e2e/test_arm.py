"""The built wheel in Debian for the processors of Raspberry Pis, emulated by QEMU: arm64, ARMv7, and ARMv6.

Debian 12 has the oldest supported Python, with an old pip and an old libc: a wheel that does not exist for one of these
is missing here first. Raspberry Pi OS 12 is based on it, except on ARMv6, where it is based on Raspbian. Here ARMv6 is
Debian's armel, on the processor of the Pi 1, Zero and Zero W (ARM1176).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, series
from tests.e2e.debian import Debian, needs
from tests.support.processes import ROOT, Mosquitto, Process, Subscriber, eventually, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e]

BINFMT = Path("/proc/sys/fs/binfmt_misc")
BIN = Path("/opt/dexcom2mqtt/bin")
DEXCOM2MQTT = BIN / "dexcom2mqtt"
CONFIG = Path("/srv/config.yaml")
ANNA = SimulatedAccount("anna@example.com", "the password")


@contextmanager
def emulated(processor: str) -> Iterator[None]:
    """Let the kernel run programs for another processor (QEMU's name) by QEMU; skip if it cannot."""
    handler = BINFMT / f"qemu-{processor}"
    with ExitStack() as undo:
        try:
            if not (BINFMT / "register").exists():
                subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True, capture_output=True)
                undo.callback(lambda: subprocess.run(["umount", BINFMT], check=True))
            if not handler.exists():
                (BINFMT / "register").write_bytes(Path(f"/usr/lib/binfmt.d/{handler.name}.conf").read_bytes())
                undo.callback(handler.write_text, "-1")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"the kernel does not accept QEMU for {processor}: {error}")
        yield


def build(folder: Path) -> Path:
    """Build the project's wheel, and return its path."""
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@contextmanager
def installed(arch: str, processor: str, extra: str = "", model: str = "") -> Iterator[Debian]:
    """Install the project as a user does, in a Debian for that architecture without a compiler."""
    needs(f"qemu-{processor}-static")
    with tempfile.TemporaryDirectory(prefix="dexcom2mqtt-") as name, emulated(processor):
        folder = Path(name)
        environ = {"QEMU_CPU": model} if model else {}
        debian = Debian(folder / "debian", "bookworm", ["python3-venv"], arch, environ)
        programs = " ".join(program.name for program in debian.inside("/usr/bin").iterdir())
        assert "python3" in programs
        assert not re.search(r"\b(cc|gcc|clang|tcc|rustc)\b", programs)
        wheel = build(folder)
        shutil.copy(wheel, debian.inside("/srv"))
        debian.run("python3", "-m", "venv", BIN.parent)
        # Compiling modules that are never imported would take QEMU a while.
        debian.run(BIN / "pip", "install", "--no-compile", f"dexcom2mqtt{extra} @ file:///srv/{wheel.name}")
        yield debian


@pytest.fixture(scope="module")
def arm64() -> Iterator[Debian]:
    with installed("arm64", "aarch64", "[demo]") as debian:
        yield debian


@pytest.fixture(scope="module", params=["armv7", "armv6"])
def arm32(request: pytest.FixtureRequest) -> Iterator[tuple[Debian, str]]:
    """Return a 32-bit Debian, and the name that its processor reports."""
    arch, model, machine = {"armv7": ("armhf", "", "armv7l"), "armv6": ("armel", "arm1176", "armv6l")}[request.param]
    with installed(arch, "arm", model=model) as debian:
        yield debian, machine


def test_arm64_commands(arm64: Debian) -> None:
    """On 64 bits it prints its version and its schema."""
    assert arm64.run("uname", "-m").stdout == "aarch64\n"
    assert arm64.run(DEXCOM2MQTT, "--version").stdout.strip() == version("dexcom2mqtt")
    schema = json.loads(arm64.run(BIN / "python", "-m", "dexcom2mqtt", "schema").stdout)
    assert {"accounts", "mqtt"} <= schema["properties"].keys()


def test_arm64_demo(arm64: Debian) -> None:
    """On 64 bits the demo shows readings, and ends with 0 when its time is over."""
    shown = arm64.run(DEXCOM2MQTT, "demo", "--duration", "20").stdout
    assert re.search(r"^dexcom2mqtt/anna/value \d+$", shown, re.MULTILINE), shown


def test_arm32_commands(arm32: tuple[Debian, str]) -> None:
    """On 32 bits it prints its version; the demo, which is not for them, says what it would need."""
    debian, machine = arm32
    assert debian.run("uname", "-m").stdout == f"{machine}\n"
    assert debian.run(DEXCOM2MQTT, "--version").stdout.strip() == version("dexcom2mqtt")
    demo = debian.run(DEXCOM2MQTT, "demo", may_fail=True)
    assert (demo.returncode, demo.stdout) == (1, "")
    assert re.fullmatch(rf"dexcom2mqtt: .* the extra demo, in the clone: {BIN}/pip install '\.\[demo\]'\n", demo.stderr)


def test_arm32_daemon(arm32: tuple[Debian, str], mosquitto: Mosquitto, tmp_path: Path) -> None:
    """On 32 bits the daemon publishes readings, is healthy meanwhile, and SIGTERM ends it with 0."""
    debian, _ = arm32
    with SimulatedShare([ANNA], time.time) as service, Subscriber(mosquitto.port) as subscriber:
        account = {"username": ANNA.username, "password": ANNA.password, "share_url": service.base_url}
        broker = {"host": "127.0.0.1", "port": mosquitto.port, "client_id": f"dexcom2mqtt-{mosquitto.port}"}
        write_config(debian.inside(CONFIG), {"accounts": {"anna": account}, "mqtt": broker})
        with Process(debian.command(DEXCOM2MQTT, "run", "--config", CONFIG), tmp_path / "log") as daemon:
            topic = "dexcom2mqtt/anna/availability"
            eventually(lambda: "online" in subscriber.payloads(topic) or not daemon.running, 60)
            assert daemon.running, daemon.text()
            newest = json.loads(subscriber.latest()["dexcom2mqtt/anna/state"])
            given = {record.taken: record.value for record in series(ANNA, time.time() - 900, time.time())}
            assert newest["mg_dl"] == given[newest["date"]]
            health = debian.command(DEXCOM2MQTT, "healthcheck", "--config", CONFIG)
            assert subprocess.run(health, check=True, capture_output=True, text=True).stdout == "healthy\n"
            terminate(daemon)
            assert daemon.wait() == 0, daemon.text()
        subscriber.wait_for("dexcom2mqtt/bridge/state", "offline")


def terminate(process: Process) -> None:
    """Send SIGTERM to a process in a Debian: to the only child of the started process."""
    (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    os.kill(int(pid), signal.SIGTERM)
