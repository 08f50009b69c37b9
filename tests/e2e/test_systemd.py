"""The service as the README installs it, in a Debian booted by systemd, with a broker and a Share on loopback."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from tests.e2e.debian import APART, Debian, needs
from tests.support.processes import ROOT, Mosquitto, Process, Subscriber, eventually, retained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.e2e]

ANNA = SimulatedAccount("anna@example.com", "Anna's password at Share")
BROKER_LOGIN = ("daemon", "the password at the broker")
PACKAGES = ("systemd", "systemd-sysv", "dbus", "sudo", "python3-venv")
DOCS = "docs/deployment.md"
CONFIG = "/etc/dexcom2mqtt/config.yaml"
PI_CONFIG = "/home/pi/dexcom2mqtt/config.yaml"
UNIT = "/etc/systemd/system/dexcom2mqtt.service"
DROP_INS = "/run/systemd/system/dexcom2mqtt.service.d"
PROGRAM = "/opt/dexcom2mqtt/bin/dexcom2mqtt"
SOON = "[Service]\nRestartSec=1\nWatchdogSec=5\n"
"""Shorter times than the service's 30 s and 3 min, for tests that wait for them; another test checks the originals."""
STATUS = re.compile(r"^anna: (\d+) mg/dL [↑↗→↘↓]+ \d min ago, next poll \d\d:\d\d:\d\d$")


class Booted(Debian):
    """A Debian booted by systemd. It has this machine's network, and ends with the tests, however those end."""

    def boot(self, log: Path, *options: str) -> None:
        # When these tests end, unshare is killed, and with it everything in its namespace. If only nspawn is killed, it
        # leaves its container running.
        nspawn = ("systemd-nspawn", "--quiet", "--settings=no", "--register=no", "--keep-unit", "--console=pipe")
        self._unshare = Process([*APART, *nspawn, *options, "--boot", "-D", self.folder], log)
        try:
            eventually(self._is_up, 180)
        except AssertionError:
            pytest.skip(f"systemd does not boot in systemd-nspawn here: {self._unshare.text().strip() or 'no word'}")

    def _is_up(self) -> bool:
        assert self._unshare.running
        asked = self.run("systemctl", "is-system-running", may_fail=True) if self._leader() else None
        return asked is not None and asked.stdout.strip() in {"running", "degraded"}

    def _leader(self) -> str:
        """Return the process id of its systemd on this machine, or nothing."""
        nspawn = _child(str(self._unshare.pid))
        return nspawn and _child(nspawn)

    def entering(self) -> list[str]:
        """Return the prefix that runs a command in it, as one of its own processes."""
        return ["nsenter", "--all", f"--target={self._leader()}"]

    def end(self) -> None:
        """End everything that runs in it."""
        systemd = Path("/proc", self._leader(), "exe")
        self._unshare.kill()
        eventually(lambda: not systemd.exists())

    def write(self, path: str, text: str) -> None:
        """Write a file that only root can read."""
        self.run("install", "-D", "--mode=600", "/dev/stdin", path, given=text)

    def person(self, commands: str) -> None:
        """Run a line as a person with sudo would, in a copy of the repository."""
        self.run("runuser", "-u", "pi", "--", "sh", "-euc", f"cd /home/pi/dexcom2mqtt\n{commands}")

    def systemctl(self, *arguments: str, may_fail: bool = False) -> str:
        return self.run("systemctl", *arguments, may_fail=may_fail, seconds=60).stdout.strip()

    def shown(self, key: str) -> str:
        """Return a property of the service."""
        return self.systemctl("show", "--value", f"--property={key}", "dexcom2mqtt")

    def configure(self, settings: dict[str, Any], drop_in: str = "") -> None:
        """Set the configuration and the drop-in for the next start of the service."""
        self.run("tee", CONFIG, given=yaml.safe_dump(settings))  # its permissions stay the same
        self.write(f"{DROP_INS}/test.conf", drop_in)
        self.systemctl("daemon-reload")

    def signal(self, name: str) -> None:
        """Send the daemon a signal."""
        self.systemctl("kill", "--kill-whom=main", f"--signal={name}", "dexcom2mqtt")

    def journal(self, since: float = 0) -> str:
        """Return the journal since then, with all fields of each entry."""
        return self.run("journalctl", "--no-pager", "--output=verbose", "--all", f"--since=@{since:.3f}").stdout

    def healthcheck(self) -> tuple[int, str]:
        done = self.run("sudo", PROGRAM, "healthcheck", may_fail=True)
        return done.returncode, done.stdout + done.stderr


def _child(process: str) -> str:
    """Return the first child of a process, or nothing."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").partition(" ")[0]
    return ""


def blocks(file: str, heading: str) -> list[str]:
    """Return the blocks of shell commands and of unit lines below a heading."""
    section = (ROOT / file).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(?:sh|ini)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """Return a broker that accepts every client."""
    needs("mosquitto", "mosquitto_passwd", "systemd-nspawn", "nsenter", "setpriv")
    mosquitto = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    yield mosquitto
    mosquitto.kill()


@pytest.fixture(scope="module")
def share() -> Iterator[SimulatedShare]:
    with SimulatedShare([ANNA], time.time) as service:
        yield service


def settings(share: SimulatedShare, broker: Mosquitto) -> dict[str, Any]:
    """Return a valid configuration. No other daemon on this network has its client id."""
    anna = {"username": ANNA.username, "password": ANNA.password, "share_url": share.base_url}
    mqtt = {"host": "127.0.0.1", "port": broker.port, "client_id": f"e2e-{broker.port}"}
    return {"accounts": {"anna": anna}, "mqtt": mqtt}


@pytest.fixture(scope="module")
def installed(broker: Mosquitto, share: SimulatedShare, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """Return a booted Debian after somebody has typed the README's commands."""
    folder = tmp_path_factory.mktemp("debian")
    debian = Booted(folder / "root", "bookworm", PACKAGES)
    try:
        debian.boot(folder / "log")
        debian.run("useradd", "--create-home", "pi")
        # The environment contains the address of the package index; a Raspberry Pi needs none.
        debian.write("/etc/sudoers.d/pi", "pi ALL=(ALL) NOPASSWD: ALL\nDefaults !env_reset\n")
        for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
            copied = debian.inside(f"/home/pi/dexcom2mqtt/{name}")
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copied)
        debian.run("chown", "-R", "pi:", "/home/pi")
        install, check, _, service = blocks("README.md", "### Raspberry Pi")
        packages, clone, *rest = install.splitlines()
        assert set(packages.split()[3:]) & set(PACKAGES)  # it does not ask again
        assert clone.startswith("git clone ADDRESS dexcom2mqtt ")  # the clone exists already
        debian.run("install", "-o", "pi", "/dev/stdin", PI_CONFIG, given=yaml.safe_dump(settings(share, broker)))
        debian.person("\n".join(["cd ..", *rest, check]))
        debian.person(service)
        yield debian
    finally:
        debian.end()
        shutil.rmtree(folder / "root")


@pytest.fixture
def start(installed: Booted, share: SimulatedShare, broker: Mosquitto) -> Iterator[Callable[..., Booted]]:
    """Restart the service, with a drop-in if given, and return once it is ready."""

    def start(drop_in: str = "", **changed: Any) -> Booted:
        installed.systemctl("stop", "dexcom2mqtt")
        installed.systemctl("reset-failed", "dexcom2mqtt", may_fail=True)
        installed.configure(settings(share, broker) | changed, drop_in)
        installed.systemctl("start", "dexcom2mqtt")
        assert installed.systemctl("is-active", "dexcom2mqtt") == "active"
        return installed

    yield start
    if not broker.running:
        broker.start()


def restarted(debian: Booted, killed: str) -> bool:
    return debian.shown("MainPID") not in {"0", killed} and debian.shown("ActiveState") == "active"


def test_the_readmes_commands_start_it(installed: Booted, broker: Mosquitto) -> None:
    """After them it is active, also after a boot; its status line shows the reading that the broker has."""
    assert installed.systemctl("is-enabled", "dexcom2mqtt") == "enabled"
    assert installed.systemctl("is-active", "dexcom2mqtt") == "active"
    with Subscriber(broker.port) as subscriber:
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online")
        value = subscriber.wait_for("dexcom2mqtt/anna/value").payload
    said = eventually(lambda: STATUS.findall(installed.shown("StatusText")), why=installed.shown("StatusText"))
    assert said == [value]


def test_the_units_settings(
    installed: Booted, share: SimulatedShare, broker: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    """The unit has everything that others rely on, and systemd finds nothing wrong with it."""
    installed.configure(settings(share, broker))  # without any drop-in
    promised = {
        "Type": "notify",
        "Restart": "on-failure",
        "RestartUSec": "30s",
        "RestartPreventExitStatus": "2 78",
        "WatchdogUSec": "3min",
    }
    assert {key: installed.shown(key) for key in promised} == promised
    verified = installed.run("systemd-analyze", "verify", UNIT)
    assert verified.stdout + verified.stderr == ""
    security = installed.run("systemd-analyze", "security", "--no-pager", "--offline=true", UNIT).stdout
    exposure = re.search(r"Overall exposure level for dexcom2mqtt.service: ([\d.]+)", security)
    assert exposure, security
    with capsys.disabled():
        print(exposure.group())  # noqa: T201  # how close to the limit it is
    assert float(exposure.group(1)) <= 1.2


def test_it_has_no_privileges(start: Callable[..., Booted]) -> None:
    """Its user exists only while it runs, can do nothing, and cannot read the configuration except from systemd."""
    debian = start()
    pid = debian.shown("MainPID")
    status = dict(re.findall(r"^(\w+):\s*(.*)$", debian.run("cat", f"/proc/{pid}/status").stdout, re.MULTILINE))
    (uid,), (gid,) = set(status["Uid"].split()), set(status["Gid"].split())
    assert all(61184 <= int(one) <= 65519 for one in (uid, gid))  # the range that systemd assigns
    assert {int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    def read_by_it(path: str) -> subprocess.CompletedProcess[str]:
        it = ("nsenter", "--all", f"--target={pid}", f"--setuid={uid}", f"--setgid={gid}")
        return debian.run(*it, "cat", path, may_fail=True)

    assert read_by_it(CONFIG).stderr == f"cat: {CONFIG}: Permission denied\n"
    handed_over = read_by_it("/run/credentials/dexcom2mqtt.service/config.yaml").stdout
    assert handed_over == debian.inside(CONFIG).read_text(encoding="utf-8")


def test_it_restarts_when_killed(start: Callable[..., Booted]) -> None:
    """After a SIGKILL systemd restarts it."""
    debian = start(SOON)
    pid = debian.shown("MainPID")
    debian.signal("KILL")
    eventually(lambda: restarted(debian, pid), 30)
    assert debian.shown("NRestarts") == "1"


def test_it_restarts_when_frozen(start: Callable[..., Booted]) -> None:
    """When it hangs, and not before, the watchdog ends it, and the journal has the stack of each thread."""
    debian = start(SOON)
    began = time.time()
    pid = debian.shown("MainPID")

    def fed() -> int:
        return int(debian.shown("WatchdogTimestampMonotonic"))

    enough = fed() + 7_000_000  # microseconds, longer than the watchdog waits
    eventually(lambda: fed() > enough)
    assert (debian.shown("MainPID"), debian.shown("NRestarts")) == (pid, "0")
    debian.signal("STOP")
    eventually(lambda: restarted(debian, pid), 30)
    journal = debian.journal(began)
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal


def test_it_stops_at_once(start: Callable[..., Booted], broker: Mosquitto) -> None:
    """It ends within 2 s and leaves nothing on the broker that looks current; the log reports no problem."""
    since = time.time()
    with Subscriber(broker.port) as subscriber:
        debian = start()
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online")
    began = time.monotonic()
    debian.systemctl("stop", "dexcom2mqtt")
    assert time.monotonic() - began < 2
    left = retained(broker.port)
    assert left["dexcom2mqtt/bridge/state"] == left["dexcom2mqtt/anna/availability"] == "offline"
    assert (debian.shown("Result"), debian.shown("ExecMainStatus")) == ("success", "0")
    assert re.findall(r"MESSAGE=(INFO|WARNING|ERROR|CRITICAL) *(.*)", debian.journal(since))[-1] == ("INFO", "stopped")
    assert not re.search(r"MESSAGE=(WARNING|ERROR|CRITICAL)", debian.journal(since))


def test_a_problem_in_the_configuration_ends_it(
    start: Callable[..., Booted], share: SimulatedShare, broker: Mosquitto
) -> None:
    """It is not restarted; the journal lists every problem, and once they are fixed it runs."""
    debian = start()
    began = time.time()
    debian.configure(settings(share, broker) | {"stale_after": 1, "log_level": "loud"}, SOON)
    debian.systemctl("restart", "dexcom2mqtt", may_fail=True)
    found = {key: debian.shown(key) for key in ("ActiveState", "NRestarts", "Result", "ExecMainStatus")}
    assert found == {"ActiveState": "failed", "NRestarts": "0", "Result": "exit-code", "ExecMainStatus": "78"}
    journal = debian.journal(began)
    assert re.search(r"MESSAGE=.*\bstale_after\b", journal)
    assert re.search(r"MESSAGE=.*\blog_level\b", journal)
    start()


def test_it_starts_without_share_and_broker(
    start: Callable[..., Booted], share: SimulatedShare, broker: Mosquitto
) -> None:
    """Without broker and Share it becomes active, and is healthy; once both are there it continues by itself."""
    broker.kill()
    share.close()
    try:
        debian = start()
        eventually(lambda: debian.shown("StatusText").startswith("anna: unavailable"), 30)
        assert debian.healthcheck() == (0, "healthy\n")
        pid = debian.shown("MainPID")
    finally:
        share.start()
        broker.start()
    with Subscriber(broker.port) as subscriber:
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online", 60)
    assert debian.shown("MainPID") == pid


@pytest.mark.parametrize(("plain", "encrypted"), [("anna", "mqtt"), ("mqtt", "anna")])
def test_secrets_can_be_credentials(
    start: Callable[..., Booted],
    share: SimulatedShare,
    start_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    plain: str,
    encrypted: str,
) -> None:
    """As the unit and the docs show, one in a file and one encrypted: both work, and the journal has neither."""
    password = {"anna": ANNA.password, "mqtt": BROKER_LOGIN[1]}
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", passwords, *BROKER_LOGIN], check=True)
    guarded = start_mosquitto("allow_anonymous false", f"password_file {passwords}")
    remarks = "".join((ROOT / file).read_text("utf-8") for file in ("systemd/dexcom2mqtt.service", DOCS))
    (encrypt,) = re.findall(rf"systemd-creds encrypt .*/{encrypted}\.cred", remarks)
    drop_in = re.findall(
        rf"^#?(LoadCredential=.*/{plain}-password|LoadCredentialEncrypted=.*/{encrypted}\.cred)$", remarks, re.MULTILINE
    )
    assert len(drop_in) == 2

    debian = start()
    debian.write(f"/etc/dexcom2mqtt/{plain}-password", f"{password[plain]}\n")
    debian.run(*encrypt.split(), given=f"{password[encrypted]}\n")
    assert password[encrypted] not in debian.run("cat", encrypt.split()[-1]).stdout
    accounts, mqtt = settings(share, guarded).values()
    del accounts["anna"]["password"]
    began = time.time()
    start("\n".join(["[Service]", *drop_in, ""]), accounts=accounts, mqtt=mqtt | {"username": BROKER_LOGIN[0]})
    with Subscriber(guarded.port, login=BROKER_LOGIN) as subscriber:
        subscriber.wait_for("dexcom2mqtt/anna/availability", "online")
    assert share.count(began, password=True, outcome="ok")
    journal = debian.journal()
    assert re.search("MESSAGE=INFO *connected to the broker", journal)
    assert not any(each in journal for each in password.values())


def test_healthcheck_detects_a_frozen_daemon(start: Callable[..., Booted]) -> None:
    """It is healthy while it runs, not while it is frozen, and again when it continues."""
    debian = start()
    assert debian.healthcheck() == (0, "healthy\n")
    debian.signal("STOP")
    assert debian.healthcheck() == (1, "dexcom2mqtt: the daemon does not answer within 5 s; is it frozen?\n")
    debian.signal("CONT")
    assert debian.healthcheck() == (0, "healthy\n")


CONTAINER = "/run/systemd/system/service.d/zzz-lxc-service.conf"
TAKEN_AWAY = """[Service]
ProcSubset=all
ProtectProc=default
ProtectControlGroups=no
ProtectKernelTunables=no
NoNewPrivileges=no
LoadCredential=
ImportCredential=
PrivateNetwork=no
"""
"""The lines that LXC containers add to each service, as lxc/distrobuilder's generator writes them (issue 985)."""


def test_a_container_that_removes_credentials(
    start: Callable[..., Booted], installed: Booted, share: SimulatedShare, broker: Mosquitto
) -> None:
    """The log says that systemd did not pass the configuration on; with the documented drop-in it runs."""
    installed.systemctl("stop", "dexcom2mqtt")
    installed.write(CONTAINER, TAKEN_AWAY)
    installed.configure(settings(share, broker))
    began = time.time()
    installed.systemctl("start", "dexcom2mqtt", may_fail=True)
    assert installed.shown("ExecMainStatus") == "78"
    assert "systemd did not hand it over" in installed.journal(began)
    runs_as_in_a_container(installed)
    installed.run("rm", "-r", CONTAINER, f"{UNIT}.d")
    assert start().healthcheck() == (0, "healthy\n")


def test_a_container_that_allows_no_mounts(installed: Booted, tmp_path: Path) -> None:
    """Without changes the service cannot be confined and does not start; with the documented drop-in it runs."""
    installed.systemctl("stop", "dexcom2mqtt")
    installed.end()
    installed.boot(tmp_path / "log", "--system-call-filter=~unshare")
    eventually(lambda: installed.shown("ExecMainStatus") == "226", why=installed.journal())
    runs_as_in_a_container(installed)
    installed.run("rm", "-r", f"{UNIT}.d")
    installed.end()
    installed.boot(tmp_path / "again")


def runs_as_in_a_container(debian: Booted) -> None:
    """Type the documented commands, and check that they help."""
    (commands,) = blocks(DOCS, "### In an LXC container")[:1]
    debian.run("sh", "-euc", f"cd /home/pi/dexcom2mqtt\n{commands}")
    assert debian.systemctl("is-active", "dexcom2mqtt") == "active"
    assert debian.healthcheck() == (0, "healthy\n")
    assert debian.run("stat", "-c", "%U", f"/proc/{debian.shown('MainPID')}").stdout.strip() == "dexcom2mqtt"
    debian.systemctl("stop", "dexcom2mqtt")
    debian.run("userdel", "dexcom2mqtt")
    debian.run("chown", "root", CONFIG)


def test_a_limit_on_processes_is_reported(installed: Booted, share: SimulatedShare, broker: Mosquitto) -> None:
    """The log says in one line that no more threads can be started, and what to raise."""
    installed.systemctl("stop", "dexcom2mqtt")
    installed.configure(settings(share, broker), "[Service]\nLimitNPROC=3\n")
    began = time.time()
    installed.systemctl("start", "dexcom2mqtt", may_fail=True)
    eventually(lambda: "this system lets the daemon start no more threads" in installed.journal(began))
    assert "Traceback" not in installed.journal(began)
    assert installed.shown("ExecMainStatus") == "1"


def test_nothing_is_left_of_it(start: Callable[..., Booted], broker: Mosquitto) -> None:
    """The documented commands restart it, update it, then remove it and its messages at the broker."""
    debian = start()
    killed = debian.shown("MainPID")
    change, update, remove = (
        block
        for block in blocks(DOCS, "## With systemd")
        if block.startswith(("sudo nano", "git pull", "sudo systemctl disable"))
    )
    debian.person(change.partition("\n")[2])  # the editor is not used
    assert restarted(debian, killed)
    killed = debian.shown("MainPID")
    debian.person(update.replace("git pull\n", ""))  # there is nothing newer
    assert restarted(debian, killed)
    assert [topic for topic in retained(broker.port) if "dexcom2mqtt" in topic]
    debian.person(remove)
    assert not [topic for topic in retained(broker.port) if "dexcom2mqtt" in topic]
    left = [path for path in ("/opt/dexcom2mqtt", "/etc/dexcom2mqtt", UNIT) if debian.inside(path).exists()]
    assert left == []
    assert debian.systemctl("is-active", "dexcom2mqtt", may_fail=True) == "inactive"
