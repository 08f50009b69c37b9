"""Home Assistant's app: its image built from the written folder alone, and run as the Supervisor runs it.

The first process is docker-init (tini); it has a folder at /data, memory at /dev/shm, the Supervisor under its name,
and docker's usual capabilities.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from tests.e2e.containers import PYTHON, Machine, make_python
from tests.e2e.debian import Debian, needs
from tests.support import supervisor_stub as stub
from tests.support.processes import MOSQUITTO, ROOT, Mosquitto, Process, Subscriber, eventually, free_port
from tests.support.supervisor_stub import TOKEN, Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e]

IMAGE = "localhost/app"
Ways = tuple[list[str], tuple[str, ...]]
"""A command that runs the app, and one that runs a command inside it."""
Start = Callable[[dict[str, str], Path], Ways]
"""A function that returns both, given the environment and a folder with the app's data."""
ADDRESS = ("127.0.0.91", 80)
"""The address of the Supervisor's stub: our requests to the Supervisor name no port."""
ANNA = SimulatedAccount("anna@example.com", "password of anna", seed=1)
LOGIN = ("addons", "password at the broker")
ENTRY = {"name": "Anna", "username": ANNA.username, "password": ANNA.password, "region": "us", "unit": "mg/dL"}
CAPABILITIES = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"),
    *("net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)
"""The capabilities that docker leaves to root in a container."""
INIT = ("/usr/bin/tini", "--")
ENTER = """\
set -e
root=$1 data=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mkdir -p "$root/data"
mount --bind "$data" "$root/data"
exec chroot "$root" "$@"
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Return a podman with the base image, which is otherwise made elsewhere."""
    needs("buildah", "podman", "setpriv", "nsenter", "unshare")
    if MOSQUITTO is None:
        pytest.skip("needs mosquitto")
    folder = tmp_path_factory.mktemp("containers")
    machine = Machine(folder)
    try:
        make_python(machine, Debian(folder / "debian", "trixie", ["python3-venv", "tini", "procps"]))
        yield machine
    finally:
        machine.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the repository, and build the image from the app's folder as the Supervisor does."""
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([ROOT / "scripts" / "home-assistant-app", folder], check=True, capture_output=True)
    given = [f"--build-arg={each}" for each in ("BUILD_VERSION=1.2.3", "BUILD_ARCH=amd64")]
    machine.run("buildah", "build", "--pull-never", *given, f"--tag={IMAGE}", folder / "dexcom2mqtt", seconds=400)
    return IMAGE


@dataclass(frozen=True)
class App:
    """The running app, and how to run a command in its container."""

    machine: Machine
    process: Process
    inside: tuple[str, ...]
    """The prefix of a command."""
    broker: Mosquitto

    def run(self, *command: str, may_fail: bool = False) -> str:
        return self.machine.run(*self.inside, *command, may_fail=may_fail).stdout

    def pid_of(self, pattern: str) -> str:
        return self.run("pgrep", "--full", pattern).split()[0]

    def status_of(self, pattern: str) -> dict[str, str]:
        lines = self.run("cat", f"/proc/{self.pid_of(pattern)}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def start(machine: Machine, image: str, pytestconfig: pytest.Config) -> Start:
    """Return how the app is run on this machine."""
    way = _by_chroot if _trouble(machine, image, pytestconfig) else _by_podman
    return partial(way, machine, image)


DAEMON = "dexcom2mqtt run"
STARTER = "^python -m starter"


@pytest.fixture(scope="module")
def app(machine: Machine, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Run the app; at first the Supervisor has no broker, and then one with a password."""
    folder = tmp_path_factory.mktemp("running")
    subprocess.run(["/usr/bin/mosquitto_passwd", "-c", "-b", folder / "passwords", *LOGIN], check=True)
    broker = Mosquitto(folder, "allow_anonymous false", f"password_file {folder / 'passwords'}")
    _fill_in(folder, mqtt={})
    with Supervisor(stub.NOT_ENABLED, ADDRESS) as supervisor, SimulatedShare([ANNA], time.time) as share:
        environ = {
            "TZ": "Europe/Berlin",
            "SUPERVISOR_TOKEN": TOKEN,
            "HASSIO_TOKEN": TOKEN,
            # Only for this test: the address of Share, and its own name and ports in this machine's network.
            "DEXCOM2MQTT_ACCOUNTS__ANNA__SHARE_URL": share.base_url,
            "DEXCOM2MQTT_MQTT__CLIENT_ID": str(uuid.uuid4()),
            "DEXCOM2MQTT_WEB__HOST": "127.0.0.1",
            "DEXCOM2MQTT_WEB__PORT": str(free_port()),
            "DEXCOM2MQTT_INGRESS": f"127.0.0.1 {free_port()} 172.30.32.2",
        }
        command, inside = start(environ, folder)
        process = Process(machine.command(*command), folder / "log")
        try:
            app = App(machine, process, inside, broker)
            eventually(lambda: "there is no broker yet" in process.text(), 60, why=process.text())
            supervisor.answer = stub.broker(broker.port, *LOGIN)
            yield app
        finally:
            process.kill()
            broker.kill()


def _fill_in(folder: Path, **options: object) -> None:
    (folder / "data").mkdir()
    file = folder / "data" / "options.json"
    file.write_text(json.dumps({"accounts": [ENTRY], **options}), encoding="utf-8")
    file.chmod(0o600)


def _trouble(machine: Machine, image: str, pytestconfig: pytest.Config) -> str:
    """Return why podman cannot run a container here, and print it; nothing if it can."""
    ran = machine.run("podman", "run", "--rm", "--network=host", image, "true", may_fail=True)
    trouble = ran.stderr.strip() if ran.returncode else ""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    assert capture
    assert reporter
    with capture.global_and_fixture_disabled():
        reporter.write_line(f" run by {f'chroot, for podman cannot: {trouble}' if trouble else 'podman'}")
    return trouble


def _by_podman(machine: Machine, image: str, environ: dict[str, str], folder: Path) -> Ways:
    """Run it in a container."""
    name = f"app-{uuid.uuid4()}"
    command = [
        *("podman", "run", "--rm", f"--name={name}", "--network=host", f"--add-host=supervisor:{ADDRESS[0]}"),
        *("--cap-drop=all", *(f"--cap-add={each}" for each in CAPABILITIES)),
        *(f"--env={key}={value}" for key, value in environ.items()),
        *(f"--volume={folder}/data:/data", f"--entrypoint={json.dumps(INIT)}"),
        *(image, *machine.inspect(image)["Config"]["Cmd"]),
    ]
    return command, ("podman", "exec", name)


def _by_chroot(machine: Machine, image: str, environ: dict[str, str], folder: Path) -> Ways:
    """Run it in the image's files, entered by chroot, if podman cannot run containers."""
    config = machine.inspect(image)["Config"]
    made = machine.run("buildah", "from", "--pull-never", image).stdout.strip()
    root = machine.run("buildah", "mount", made).stdout.strip()
    machine.run("sh", "-c", 'echo "$1 supervisor" >>"$0/etc/hosts"', root, ADDRESS[0])
    bounding = "--bounding-set=-all," + ",".join(f"+{each}" for each in CAPABILITIES)
    given = (*config["Env"], *(f"{key}={value}" for key, value in environ.items()))
    entered = ("env", "-i", f"--chdir={config['WorkingDir']}", *given, "setpriv", bounding)
    command = [
        *("sh", "-c", 'echo $$ >"$0"; exec "$@"', str(folder / "pid")),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", root, str(folder / "data")),
        *(*entered, *INIT, *config["Cmd"]),
    ]
    spaces = f"/proc/$(cat {folder}/pid)/ns"
    within = f'exec nsenter --mount={spaces}/mnt --pid={spaces}/pid_for_children "$@"'
    return command, ("sh", "-c", within, "sh", "chroot", root, *entered)


def test_the_images_metadata(machine: Machine, image: str) -> None:
    """It starts as root, ends on SIGTERM, has the health check, and the labels that the Supervisor looks for."""
    found = machine.inspect(image)
    config = found["Config"]
    assert (config.get("User", ""), config["Cmd"], config["StopSignal"]) == ("", ["python", "-m", "starter"], "SIGTERM")
    assert found["Healthcheck"]["Test"] == ["CMD", "dexcom2mqtt", "healthcheck"]
    labels = {name: config["Labels"][f"io.hass.{name}"] for name in ("type", "version", "arch")}
    assert labels == {"type": "app", "version": "1.2.3", "arch": "amd64"}


def test_the_images_files(machine: Machine, image: str) -> None:
    """On top of Python's image it has only the daemon and the starter: no pip, no cache, no installed package."""
    changed = machine.run("podman", "diff", image, PYTHON).stdout.split("\n")
    added = {line[2:] for line in changed if line.startswith("A ")}
    assert {"/opt/dexcom2mqtt/bin/dexcom2mqtt", "/opt/app/starter/run.py"} <= added
    assert [path for path in added if not path.startswith("/opt")] == []
    assert [path for path in added if "/pip/" in path or path.endswith(".whl")] == []


def test_readings_arrive(app: App) -> None:
    """With the options and the Supervisor's broker, readings are published, and the log has no secret."""
    with Subscriber(app.broker.port, login=LOGIN) as subscriber:
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online", seconds=30)
        subscriber.wait_for("homeassistant/device/dexcom2mqtt_anna/config")
        assert 39 <= int(subscriber.wait_for("dexcom2mqtt/anna/value").payload) <= 401
    for secret in (ANNA.password, ANNA.username, LOGIN[1], TOKEN):
        assert secret not in app.process.text()


def test_the_starter_is_root_and_the_daemon_nobody(app: App) -> None:
    """The daemon has its own user, no groups and no capabilities; only the init's child has the token."""
    starter, daemon = app.status_of(STARTER), app.status_of(DAEMON)
    assert (starter["PPid"], starter["Uid"].split()[0]) == ("1", "0")
    assert daemon["PPid"] == starter["Pid"]
    assert {*daemon["Uid"].split(), *daemon["Gid"].split()} == {"65532"}
    assert daemon["Groups"] == ""
    assert {int(daemon[f"Cap{of}"], 16) for of in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert daemon["NoNewPrivs"] == "1"
    as_nobody = ("setpriv", "--reuid=65532", "--regid=65532", "--clear-groups")
    environ = app.run(*as_nobody, "cat", f"/proc/{daemon['Pid']}/environ").split("\0")
    assert "TZ=Europe/Berlin" in environ
    assert not [each for each in environ if "TOKEN" in each or TOKEN in each or ANNA.password in each]
    assert ANNA.password not in app.run("cat", f"/proc/{daemon['Pid']}/cmdline")


def test_only_the_daemon_may_read_its_configuration(app: App) -> None:
    """Only root can read the options, and the configuration is in memory, readable only by the daemon."""
    of = ("stat", "--format=%u %a %n")
    assert app.run(*of, "/data/options.json").strip() == "0 600 /data/options.json"
    assert app.run(*of, "/dev/shm/dexcom2mqtt/config.yaml").strip() == "65532 400 /dev/shm/dexcom2mqtt/config.yaml"
    assert app.run("stat", "--file-system", "--format=%T", "/dev/shm").strip() == "tmpfs"


def test_health(machine: Machine, app: App, image: str) -> None:
    """The image's health check succeeds, and fails when the daemon is frozen."""
    check = machine.inspect(image)["Healthcheck"]["Test"][1:]
    assert app.run(*check).strip() == "healthy"
    app.run("kill", "-STOP", app.pid_of(DAEMON))
    assert app.run(*check, may_fail=True) == ""
    app.run("kill", "-CONT", app.pid_of(DAEMON))
    eventually(lambda: app.run(*check, may_fail=True).strip() == "healthy")


ASK = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=20)
connection.request("GET", sys.argv[3], headers={"Host": "homeassistant.example.com"} if len(sys.argv) > 4 else {})
print(connection.getresponse().status)
"""


def test_the_page(machine: Machine, start: Start, tmp_path: Path) -> None:
    """At its own address ingress gets the page without a token; others get nothing there, and need one at 8017.

    This runs in a separate network: a client that asks at an address of this machine has that address, too.
    """

    def ask(address: str, port: int, path: str, *stranger: str) -> str:
        asked = (sys.executable, "-c", ASK, address, str(port), path, *stranger)
        return machine.run(*asked, elsewhere=True, may_fail=True).stdout.strip()

    machine.run("ip", "address", "replace", "172.30.32.2/32", "dev", "lo", elsewhere=True)
    _fill_in(tmp_path, mqtt={"host": "127.0.0.1"}, web_token="Geheim42")
    command, _ = start({"DEXCOM2MQTT_MQTT__CLIENT_ID": str(uuid.uuid4())}, tmp_path)
    with Process(machine.command(*command, elsewhere=True), tmp_path / "log") as process:
        eventually(lambda: ask("172.30.32.2", 8099, "/"), 60, why=process.text())
        assert [ask("172.30.32.2", 8099, path, "stranger") for path in ("/", "/api/accounts", "/anna/")] == ["200"] * 3
        assert [ask("127.0.0.1", 8099, path) for path in ("/", "/health", "/?token=Geheim42")] == ["403"] * 3
        for address in ("127.0.0.1", "172.30.32.2"):
            paths = ("/", "/health", "/?token=Geheim42")
            assert [ask(address, 8017, path) for path in paths] == ["401", "200", "200"]


def test_a_stop_ends_both(app: App) -> None:
    """SIGTERM to the first process, as docker sends it, ends the app with 0 and publishes offline, within 10 s."""
    began = time.monotonic()
    app.run("kill", "-TERM", "1")
    assert app.process.wait() == 0, app.process.text()
    assert time.monotonic() - began < 5
    with Subscriber(app.broker.port, login=LOGIN) as subscriber:
        subscriber.wait_for("dexcom2mqtt/bridge/state", "offline")
    assert "stopped" in app.process.text()
    assert "ERROR" not in app.process.text()
