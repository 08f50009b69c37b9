"""The container image and compose.yaml: built and run as the documents say, with podman in place of docker.

Their base images, Python's and Mosquitto's, are replaced by a Debian with those programs under the same names.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
import yaml

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from tests.e2e.containers import COMPOSE, PYTHON, Chroot, Container, Machine, Podman, make_python
from tests.e2e.debian import Debian, needs
from tests.support.processes import MOSQUITTO, ROOT, Mosquitto, Subscriber, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.e2e]

BROKER = "docker.io/library/eclipse-mosquitto:2"
IMAGE = "localhost/dexcom2mqtt"
ANNA = SimulatedAccount("anna@example.com", "password of anna", seed=1)
VERSION = version("dexcom2mqtt")
BROKERS_PASSWORD = "password at the broker"

MOSQUITTO_IMAGE = f"""\
FROM {PYTHON}
VOLUME /mosquitto/data
ENTRYPOINT ["/docker-entrypoint.sh"]
CMD ["/usr/sbin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"]
"""
ENTRYPOINT = """\
#!/bin/sh
set -e
[ "$(id -u)" != 0 ] || chown -R mosquitto:mosquitto /mosquitto
exec "$@"
"""
"""The entry point of Mosquitto's image."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Return a podman with the two base images, which are otherwise made elsewhere."""
    needs("buildah", "podman", "setpriv", "nsenter", "ip", "git")
    if MOSQUITTO is None:
        pytest.skip("needs mosquitto")
    folder = tmp_path_factory.mktemp("containers")
    machine = Machine(folder)
    try:
        _make_bases(machine, folder)
        yield machine
    finally:
        machine.close()
        shutil.rmtree(folder)


def _make_bases(machine: Machine, folder: Path) -> None:
    """Make both images from one Debian."""
    debian = Debian(folder / "debian", "trixie", ["python3-venv", "mosquitto", "mosquitto-clients"])
    debian.run("usermod", "--uid=1883", "mosquitto")
    debian.run("groupmod", "--gid=1883", "mosquitto")
    debian.run("apt-get", "clean")
    debian.run("install", "-d", "-o", "1883", "-g", "1883", "/mosquitto/data", "/mosquitto/config")
    debian.inside("/docker-entrypoint.sh").write_text(ENTRYPOINT, encoding="utf-8")
    debian.inside("/docker-entrypoint.sh").chmod(0o755)
    make_python(machine, debian)
    (folder / "broker").mkdir()
    (folder / "broker" / "Dockerfile").write_text(MOSQUITTO_IMAGE, encoding="utf-8")
    machine.run("buildah", "build", "--pull-never", f"--tag={BROKER}", folder / "broker")


@pytest.fixture(scope="module")
def clone(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of this clone's files in git, with other files beside them that must not get into an image."""
    del machine  # first, so that a machine without it skips early
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "config.yaml").write_text("a secret", encoding="utf-8")
    (folder / "dexcom2mqtt" / "__pycache__").mkdir()
    (folder / "dexcom2mqtt" / "__pycache__" / "old.pyc").touch()
    return folder


@pytest.fixture(scope="module")
def image(machine: Machine, clone: Path) -> str:
    """Build the image."""
    machine.run("buildah", "build", "--pull-never", f"--tag={IMAGE}", clone, seconds=400)
    return IMAGE


@pytest.fixture(scope="module")
def runtime(
    machine: Machine, image: str, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Podman | Chroot:
    """Return what runs containers here, and print which it is, and the size of the image."""
    podman = Podman(machine)
    trouble = podman.trouble(PYTHON)
    size = machine.inspect(image)["Size"] - machine.inspect(PYTHON)["Size"]
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    assert capture
    assert reporter
    with capture.global_and_fixture_disabled():
        reporter.write_line(f" {size / 1e6:.1f} MB on top of Python's image, run by {trouble or 'podman'}")
    return Chroot(machine, tmp_path_factory.mktemp("chroot")) if trouble else podman


@dataclass
class Services:
    """What a daemon needs: a broker with a password, the Share service, and the two passwords in files."""

    broker: Mosquitto
    share: SimulatedShare
    secrets: Path
    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def settings(self) -> dict[str, str]:
        """All settings but the passwords, as environment variables."""
        return {
            "DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": ANNA.username,
            "DEXCOM2MQTT_ACCOUNTS__ANNA__SHARE_URL": self.share.base_url,
            "DEXCOM2MQTT_MQTT__HOST": "127.0.0.1",
            "DEXCOM2MQTT_MQTT__PORT": str(self.broker.port),
            "DEXCOM2MQTT_MQTT__USERNAME": "dexcom2mqtt",
            # This machine's network may have other daemons, which would answer a health check for that name.
            "DEXCOM2MQTT_MQTT__CLIENT_ID": self.client_id,
        }

    def subscriber(self) -> Subscriber:
        return Subscriber(self.broker.port, login=("dexcom2mqtt", BROKERS_PASSWORD))


@pytest.fixture(scope="module")
def services(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Start a broker and the Share service on this machine's loopback."""
    del image  # first, so that a machine without it skips early
    folder = tmp_path_factory.mktemp("services")
    passwords = folder / "passwords"
    subprocess.run(["/usr/bin/mosquitto_passwd", "-c", "-b", passwords, "dexcom2mqtt", BROKERS_PASSWORD], check=True)
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "dexcom2mqtt_accounts__anna__password").write_text(ANNA.password, encoding="utf-8")
    (secrets / "dexcom2mqtt_mqtt__password").write_text(f"{BROKERS_PASSWORD}\n", encoding="utf-8")
    broker = Mosquitto(folder, "allow_anonymous false", f"password_file {passwords}")
    with SimulatedShare([ANNA], time.time) as share:
        yield Services(broker, share, secrets)
    broker.kill()


@pytest.fixture(scope="module")
def start(
    runtime: Podman | Chroot, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Container]]:
    """Start a container of the image; it ends with the module at the latest."""
    started: list[Container] = []

    def start(environ: Mapping[str, str], secrets: Path | None = None) -> Container:
        started.append(runtime.start(image, tmp_path_factory.mktemp("log") / "log", environ, secrets))
        return started[-1]

    yield start
    for container in started:
        container.process.kill()


@pytest.fixture(scope="module")
def daemon(start: Callable[..., Container], services: Services) -> Container:
    """Start the daemon with its passwords as secrets, and wait until it has published."""
    container = start(services.settings, services.secrets)
    with services.subscriber() as subscriber:
        _wait_for_readings(subscriber, container)
    return container


def _wait_for_readings(subscriber: Subscriber, container: Container | None = None) -> None:
    try:
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online", seconds=30)
        subscriber.wait_for("dexcom2mqtt/bridge/state", "online", seconds=30)
    except AssertionError as error:
        error.add_note(container.process.text() if container else "")
        raise
    assert 39 <= int(subscriber.wait_for("dexcom2mqtt/anna/value").payload) <= 401


def test_the_images_metadata(machine: Machine, image: str) -> None:
    """It has the user, command, signal, health check and labels in docker's form."""
    found = machine.inspect(image)
    config = found["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("65532:65532", ["dexcom2mqtt"], ["run"])
    assert config["StopSignal"] == "SIGTERM"
    assert found["Healthcheck"]["Test"] == ["CMD", "dexcom2mqtt", "healthcheck"]
    assert found["Healthcheck"]["Timeout"] >= 10e9
    assert config["Labels"]["org.opencontainers.image.title"] == "dexcom2mqtt"
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION


def test_the_images_files(machine: Machine, image: str) -> None:
    """On top of Python's image it has only the installed daemon: no pip, no cache, no sources, no compiler."""
    changed = machine.run("podman", "diff", image, PYTHON).stdout.split("\n")
    added = {line[2:] for line in changed if line.startswith("A ")}
    assert "/opt/dexcom2mqtt/bin/dexcom2mqtt" in added
    assert [path for path in added if not path.startswith("/opt/dexcom2mqtt")] == []
    assert [path for path in added if re.search(r"/pip\b|/\.cache|\.(c|h|rs)$", path)] == []
    assert [line for line in changed if line.startswith("D ")] == []


def test_the_builders_context(machine: Machine, clone: Path, image: str) -> None:
    """No configuration, no secret, no history: a build can only copy the parts of the package."""
    del image  # it must be built first
    (clone / "secrets").mkdir()
    (clone / "secrets" / "password").touch()
    (clone.parent / "All").write_text(f"FROM {PYTHON}\nCOPY . /context\n", encoding="utf-8")
    machine.run("buildah", "build", "--pull-never", "--tag=all", f"--file={clone.parent / 'All'}", clone)
    shutil.rmtree(clone / "secrets")
    changed = machine.run("podman", "diff", "localhost/all", PYTHON).stdout.split("\n")
    got = {line.removeprefix("A /context/") for line in changed if line.startswith("A /context/")}
    assert {path for path in got if "/" not in path} == {"pyproject.toml", "README.md", "LICENSE", "dexcom2mqtt"}
    assert not [path for path in got if "__pycache__" in path]


def test_version(machine: Machine, runtime: Podman | Chroot, image: str) -> None:
    """Arguments reach the command, which prints its version."""
    ran = machine.run(*runtime.command(image, "--version"))
    assert (ran.stdout.strip(), ran.stderr) == (VERSION, "")


def test_readings_arrive_with_passwords_from_secrets(daemon: Container, services: Services) -> None:
    """With both passwords in /run/secrets, the last day is published, and no password is in the log."""
    with services.subscriber() as subscriber:
        eventually(lambda: subscriber.latest().get("dexcom2mqtt/anna/history", "").count("mg_dl") > 250, 60)
    for secret in (ANNA.password, ANNA.username, BROKERS_PASSWORD):
        assert secret not in daemon.process.text()


def test_it_has_no_privileges_and_writes_nothing(daemon: Container) -> None:
    """It runs as 65532 without capabilities or a way to get them, and has changed no file."""
    status = dict(line.split(":\t", 1) for line in daemon.run("cat", "/proc/1/status").splitlines() if "\t" in line)
    assert status["Name"] == "dexcom2mqtt"
    assert {status["Uid"], status["Gid"]} == {"\t".join(["65532"] * 4)}
    assert {int(status[f"Cap{of}"], 16) for of in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    mounts = [line.split() for line in daemon.run("cat", "/proc/1/mountinfo").splitlines()]
    writable = {mount[4] for mount in mounts if mount[5].startswith("rw")}
    assert not [place for place in writable if not place.startswith(("/proc", "/dev"))]
    assert set(daemon.changes()) <= {"/run/secrets"}


def test_health(daemon: Container, services: Services) -> None:
    """It is healthy, even if the broker is down; but not when it is frozen."""
    assert daemon.healthy()
    services.broker.stop()
    eventually(lambda: "broker" in daemon.process.text().rpartition("connected to the broker")[2].lower())
    assert daemon.healthy()
    services.broker.start()
    daemon.signal("STOP")
    assert not daemon.healthy()
    daemon.signal("CONT")
    eventually(daemon.healthy)


def test_readings_arrive_with_the_environment_alone_and_stop_ends_it(
    start: Callable[..., Container], daemon: Container, services: Services
) -> None:
    """Without a file, too; on SIGTERM it publishes offline and ends with 0, within 2 s."""
    daemon.stop()
    passwords = {
        "DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD": ANNA.password,
        "DEXCOM2MQTT_MQTT__PASSWORD": BROKERS_PASSWORD,
    }
    container = start(services.settings | passwords)
    with services.subscriber() as subscriber:
        _wait_for_readings(subscriber, container)
        began = time.monotonic()
        code = container.stop()
        took = time.monotonic() - began
        assert code == 0, container.process.text()
        assert took < 2
        subscriber.wait_for("dexcom2mqtt/bridge/state", "offline")
        subscriber.wait_for("dexcom2mqtt/anna/availability", "offline")


def test_a_broken_configuration_ends_it(machine: Machine, runtime: Podman | Chroot, image: str) -> None:
    """It ends with 78 and lists each problem on standard error."""
    wrong = {"DEXCOM2MQTT_ACCOUNTS__ANNA__REGION": "mars", "DEXCOM2MQTT_MQTT__PORT": "many"}
    ran = machine.run(*runtime.command(image, environ=wrong), may_fail=True)
    assert (ran.returncode, ran.stdout) == (78, "")
    for place in ("accounts.anna.region", "accounts.anna.password", "mqtt.port"):
        assert place in ran.stderr


def _documented(kind: str) -> list[str]:
    """Return the blocks of docs/deployment.md about Docker."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    text = text.partition("\n## With Docker\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _needs_compose(machine: Machine, runtime: Podman | Chroot, network: str) -> None:
    if isinstance(runtime, Chroot):
        pytest.skip("podman cannot run a container here")
    if not COMPOSE.exists():
        pytest.skip("needs podman-compose from PyPI")
    tried = machine.run("podman", "run", "--rm", f"--network={network}", PYTHON, "true", elsewhere=True, may_fail=True)
    if tried.returncode:
        pytest.skip(f"podman cannot make a network for containers: {tried.stderr.strip()}")


def test_compose_as_documented(machine: Machine, runtime: Podman | Chroot, clone: Path, tmp_path: Path) -> None:
    """The documented commands start a broker with users, and a daemon that connects; both without privileges."""
    _needs_compose(machine, runtime, "bridge")
    folder = shutil.copytree(clone, tmp_path / "clone")

    def run(*command: str, may_fail: bool = False, said: str = "") -> subprocess.CompletedProcess[str]:
        return machine.run(*command, folder=folder, elsewhere=True, may_fail=may_fail, said=said)

    def subscribe(*options: str) -> subprocess.CompletedProcess[str]:
        listen = ("mosquitto_sub", "-t", "dexcom2mqtt/bridge/state", "-C", "1", "-W", "5", *options)
        return run("docker", "compose", "exec", "-T", "mosquitto", *listen, may_fail=True)

    begin, add_user, ask_version = _documented("sh")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert begin in readme  # its path for Docker is this one
    run("sh", "-ec", begin.replace("her password at Dexcom", ANNA.password))  # as the reader does
    run("sh", "-ec", add_user, said="password\npassword\n")
    eventually(lambda: subscribe("-u", "homeassistant", "-P", "password").stdout.strip() == "online", 60)
    assert "not authorised" in subscribe().stderr
    assert (
        run("docker", "compose", "exec", "-T", "dexcom2mqtt", "dexcom2mqtt", "healthcheck").stdout.strip() == "healthy"
    )
    for service, user in (("mosquitto", "1883"), ("dexcom2mqtt", "65532")):
        status = run("docker", "compose", "exec", "-T", service, "cat", "/proc/1/status").stdout
        assert re.search(rf"^Uid:\t{user}\t", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert "Warning" not in run("docker", "compose", "logs", "mosquitto").stdout
    log = run("docker", "compose", "logs", "dexcom2mqtt").stdout
    assert ANNA.password not in log
    assert "ERROR" not in log
    assert run("sh", "-ec", ask_version).stdout.strip() == VERSION
    run("docker", "compose", "down", "--volumes")


def test_compose_with_an_existing_broker(
    machine: Machine, runtime: Podman | Chroot, clone: Path, services: Services, tmp_path: Path
) -> None:
    """The documented compose.override.yaml makes the daemon connect to a broker on this machine's loopback."""
    _needs_compose(machine, runtime, "host")
    (override,) = (block for block in _documented("yaml") if "network_mode: host" in block)
    folder = shutil.copytree(clone, tmp_path / "clone")
    (folder / "secrets").mkdir(0o700)
    (folder / "secrets" / "dexcom2mqtt_accounts__anna__username").write_text(ANNA.username, encoding="utf-8")
    shutil.copytree(services.secrets, folder / "secrets", dirs_exist_ok=True)
    (folder / "compose.override.yaml").write_text(override, encoding="utf-8")
    # Only for this test: the addresses of its broker and its Share service.
    here = {
        key: value for key, value in services.settings.items() if key.endswith(("__PORT", "__SHARE_URL", "__CLIENT_ID"))
    }
    (folder / "here.yaml").write_text(yaml.safe_dump({"services": {"dexcom2mqtt": {"environment": here}}}))
    files = [f"--file={name}" for name in ("compose.yaml", "compose.override.yaml", "here.yaml")]
    machine.run("docker", "compose", *files, "up", "-d", "dexcom2mqtt", folder=folder)
    with services.subscriber() as subscriber:
        _wait_for_readings(subscriber)
    machine.run("docker", "compose", *files, "down", folder=folder)
