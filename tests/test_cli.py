"""The command line: exit codes, help, what a command loads (a library takes a second on a Pi), the demo."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import ROOT, Process, eventually, free_port, write_config

if TYPE_CHECKING:
    from pathlib import Path

LIBRARIES = {"paho", "requests", "tenacity", "urllib3", "yaml"}
PROGRAM = """
import json, sys
from dexcom2mqtt import cli
try:
    cli.main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""


def loaded(folder: Path, *arguments: str) -> set[str]:
    """Run a command and return all modules loaded at its end."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    # Never a configuration of this machine: with one, run would not end.
    environ = {"PYTHONPATH": str(ROOT), "DEXCOM2MQTT_CONFIG": str(folder / "missing.yaml")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environ, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--version"], set()),
        (["--help"], set()),
        (["--no-such-option"], set()),
        (["schema"], set()),
        (["healthcheck"], {"yaml"}),
        (["run"], {"yaml"}),
        (["purge", "--account", "anna"], {"yaml"}),
    ],
)
def test_a_command_loads_only_the_libraries_it_needs(tmp_path: Path, arguments: list[str], needed: set[str]) -> None:
    """Without a configuration, even run and purge end before they load the networking libraries."""
    assert loaded(tmp_path, *arguments) & LIBRARIES == needed


def test_a_closed_output_is_not_a_failure() -> None:
    """Without any standard output, a command ends as it would otherwise."""
    command = f"exec {sys.executable} -m dexcom2mqtt schema >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dexcom2mqtt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environ or None)


def test_problems_end_with_78_and_name_every_place(tmp_path: Path) -> None:
    """A configuration with problems ends with 78 and lists them on standard error, without traceback or secret."""
    file = tmp_path / "config.yaml"
    file.write_text("accounts:\n  anna:\n    username: a\n    pasword: hunter2\n    region: usa\nmqtt: {port: x}\n")
    for arguments in (["--config", str(file)], ["run", "--config", str(file)], ["--config", str(file), "run"]):
        done = run(*arguments)
        assert done.returncode == 78
        assert done.stdout == ""
        for place in ("accounts.anna.region", "accounts.anna.pasword", "accounts.anna.password", "mqtt.port"):
            assert place in done.stderr
        assert "hunter2" not in done.stderr
        assert "Traceback" not in done.stderr


def test_an_invalid_tls_file_ends_with_78(tmp_path: Path) -> None:
    """A CA file without a certificate is a problem in the configuration."""
    (tmp_path / "ca.pem").write_text("nothing")
    config = {
        "accounts": {"anna": {"username": "a", "password": "b"}},
        "mqtt": {"tls": {"ca_file": str(tmp_path / "ca.pem")}},
    }
    done = run("--config", str(write_config(tmp_path / "config.yaml", config)))
    assert done.returncode == 78
    assert "mqtt.tls.ca_file" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_ends_with_2() -> None:
    """An unknown command, option or value is wrong usage."""
    for arguments in (["fly"], ["--no-such"], ["--log-level", "loud"], ["demo", "--speed", "0"]):
        assert run(*arguments).returncode == 2


def test_small_commands_work_without_a_configuration() -> None:
    """`--version`, `schema` and all help need no configuration."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run("--version").stdout)
    schema = json.loads(run("schema").stdout)
    known = {
        "accounts",
        "mqtt",
        "home_assistant",
        "statistics",
        "web",
        "shard",
        "accounts_dir",
        "stale_after",
        "log_level",
    }
    assert known == set(schema["properties"])
    for arguments in (["--help"], ["run", "--help"], ["demo", "--help"], ["schema", "--help"]):
        done = run(*arguments)
        assert done.returncode == 0
        assert "--config" in done.stdout


def test_the_demo_shows_readings_and_ends_by_itself() -> None:
    """The demo needs nothing, shows every message, and ends with 0 after its duration."""
    done = run("demo", "--duration", "10", "--speed", "100")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dexcom2mqtt/anna/value ") >= 2
    assert "dexcom2mqtt/bridge/state online" in done.stdout
    assert done.stderr == ""


def test_the_demo_ends_on_a_signal(tmp_path: Path) -> None:
    """Ctrl-C ends the demo cleanly."""
    with Process([sys.executable, "-m", "dexcom2mqtt", "demo"], tmp_path / "log") as demo:
        eventually(lambda: "dexcom2mqtt/anna/value " in demo.text())
        demo.signal(signal.SIGINT)
        assert demo.wait() == 0
        assert "Traceback" not in demo.text()


def test_run_leaves_an_account_with_a_broken_file_out(tmp_path: Path) -> None:
    """It logs one line for each broken file, without a secret, and serves the others."""
    place = tmp_path / "accounts"
    place.mkdir()
    write_config(place / "anna.yaml", {"username": "a", "password": "p", "share_url": "http://127.0.0.1:9"})
    (place / "ben.yaml").write_text("username: b\npasword: hunter2\nregion: usa\n")
    (place / "ben.yaml").chmod(0o600)
    config = {"mqtt": {"host": "127.0.0.1", "port": free_port()}, "accounts_dir": str(place)}
    file = write_config(tmp_path / "config.yaml", config)
    with Process([sys.executable, "-m", "dexcom2mqtt", "run", "--config", file], tmp_path / "log") as running:
        eventually(lambda: "cannot connect to the broker" in running.text(), why=running.text())
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    (line,) = [each.partition("an account is left out: ")[2] for each in running.text().splitlines() if "ben" in each]
    assert line.startswith("accounts.ben.password: missing or empty; allowed: ")
    assert f"accounts.ben.region: found 'usa'; allowed: us, ous, jp ({place}/ben.yaml, line 3)" in line
    assert "hunter2" not in running.text()


def test_healthcheck_asks_its_own_shard(tmp_path: Path) -> None:
    """On a machine with several processes each has a name of its own; a wrong index is a problem."""
    file = write_config(tmp_path / "config.yaml", {"mqtt": {"client_id": "no such"}, "shard": {"count": 3}})
    environ = {"DEXCOM2MQTT_CONFIG": str(file), "DEXCOM2MQTT_SHARD__INDEX": "2"}
    done = run("healthcheck", **environ)
    assert done.returncode == 1
    assert done.stderr == "dexcom2mqtt: no daemon with the mqtt.client_id no such-2 answers on this machine\n"
    done = run("healthcheck", **environ | {"DEXCOM2MQTT_SHARD__INDEX": "3"})
    assert done.returncode == 78
    assert "shard.index: found '3'; allowed: less than 3" in done.stderr
