"""The command that tries everything once: its output when all is well, its look and its exit."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.checking import ANNA, Bench, failed, remedies, steps, stopping_at
from tests.support.processes import ROOT, Mosquitto, Subscriber, daemon, eventually, free_port, retained
from tests.support.share_faults import hang, only

# When all is well


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_all_is_well(bench: Bench, mosquitto: Mosquitto, protocol: str) -> None:
    """Every step is printed, there is one sign-in, and nothing is left at the broker."""
    with Subscriber(mosquitto.port) as witness:
        witness.client.publish("homeassistant/status", "online", qos=1, retain=True)
        witness.wait_for("homeassistant/status")
    done = bench.check(mosquitto.port, protocol=protocol)
    assert (done.returncode, done.stderr) == (0, "")
    spoken = "3.1.1" if protocol == "3.1.1" else "5"
    said = steps(done.stdout)
    newest = said.pop(2)
    assert newest[0] == "ok"
    assert newest[1].startswith("anna: Sharing is on. The newest reading is ")
    assert re.search(r" old; Share has 28[78] from the last 24 hours\.$", newest[1])  # one may be on its way
    assert said == [
        ("ok", "configuration: Valid. Accounts: anna."),
        ("ok", f"anna: Signed in to {bench.share.base_url.split('/')[2]}, region us."),
        ("ok", "anna: This machine's clock agrees with Share's."),
        ("ok", f"broker: 127.0.0.1 port {mosquitto.port} accepts connections at 127.0.0.1."),
        ("ok", f"broker: It speaks MQTT {spoken} and accepts us without a user name."),
        ("ok", "broker: It accepts messages as large as a day's history: 25682 bytes."),
        ("ok", "broker: Publishing to dexcom2mqtt/bridge/# is allowed."),
        ("ok", "broker: Publishing to dexcom2mqtt/anna/# is allowed."),
        ("ok", "broker: Publishing to homeassistant/device/+/config is allowed."),
        ("ok", "broker: Home Assistant is online, according to homeassistant/status."),
    ]
    assert remedies(done.stdout) == []
    assert done.stdout.endswith("\nAll is well.\n")
    assert [request.call for request in bench.share.requests] == ["authenticate", "login", "read"]
    assert retained(mosquitto.port) == {"homeassistant/status": "online"}
    assert "as dexcom2mqtt-check" in mosquitto.log()
    assert "No will message specified." in mosquitto.log().split("as dexcom2mqtt-check")[1]


def test_the_sample_in_the_documents(bench: Bench, mosquitto: Mosquitto) -> None:
    """docs/troubleshooting.md shows what it prints, except for numbers and names."""
    written = bench.check(mosquitto.port, host="localhost").stdout
    for pattern, shown in (
        (r"127\.0\.0\.1:\d+", "share2.dexcom.com"),
        (r"port \d+", "port 1883"),
        (r"\d+ mg/dL .*? old; Share has 28[78]", "85 mg/dL →, 2 min old; Share has 288"),
    ):
        written = re.sub(pattern, shown, written)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sample = page.split("```text\n")[1].split("```")[0]
    assert re.sub("\n +", " ", sample) == written


def test_a_running_daemon_is_not_disturbed(bench: Bench, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """Beside a running daemon it says so; the daemon stays connected, and its topics stay as they are."""
    file = Path(bench.command(mosquitto.port)[-1])
    with daemon(file, tmp_path / "daemon.log") as running, Subscriber(mosquitto.port) as witness:
        witness.wait_for("dexcom2mqtt/bridge/state", "online")
        for leaf in ("status", "history", "days", "statistics"):
            witness.wait_for(f"dexcom2mqtt/anna/{leaf}")
        before = retained(mosquitto.port)
        witness.forget()
        done = bench.check(mosquitto.port)
        assert (done.returncode, done.stderr) == (0, "")
        assert steps(done.stdout)[-1] == ("note", "broker: A daemon is online below dexcom2mqtt.")
        assert retained(mosquitto.port).keys() == before.keys()
        assert "homeassistant/device/dexcom2mqtt_anna/config" in before
        assert {heard.topic for heard in witness.heard if not heard.topic.startswith("test/")} <= {
            "dexcom2mqtt/bridge/sync/dexcom2mqtt-check",
            "dexcom2mqtt/bridge/sync/dexcom2mqtt-check-retained",
            "dexcom2mqtt/anna/check",
            "homeassistant/device/dexcom2mqtt-check/config",
            *(f"dexcom2mqtt/anna/{leaf}" for leaf in ("reading", "status", "history", "days", "state", "availability")),
        } | {f"dexcom2mqtt/anna/{leaf}" for leaf in json.loads(before["dexcom2mqtt/anna/state"])}
        assert running.running
        assert "WARNING" not in running.text()
        assert "ERROR" not in running.text()
        assert mosquitto.log().count(" as dexcom2mqtt (") == 1


def test_account_id_and_unit(bench: Bench, mosquitto: Mosquitto) -> None:
    """An account id saves one request at sign-in, and the reading is shown in the account's unit."""
    bench.accounts = {"anna": bench.account(ANNA, username=None, account_id=ANNA.account_id, unit="mmol/L")}
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    assert " mmol/L " in done.stdout
    assert [request.call for request in bench.share.requests] == ["login", "read"]


def test_without_discovery_its_prefix_is_not_tried(bench: Bench, mosquitto: Mosquitto) -> None:
    """Without discovery, nothing of Home Assistant's is tried."""
    done = bench.check(mosquitto.port, {"home_assistant": {"discovery": False}})
    assert done.returncode == 0
    assert "homeassistant" not in done.stdout
    assert "homeassistant" not in mosquitto.log()


# What it looks like


def test_each_line_appears_as_soon_as_it_is_known(bench: Bench, mosquitto: Mosquitto) -> None:
    """The successful sign-in is printed while Share has not yet answered the read."""
    bench.share.fault = only(hang(), call="read")
    with bench.start(mosquitto.port) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0].startswith("ok      configuration: ")
        assert lines[1].startswith("ok      anna: Signed in")
        assert process.poll() is None
        eventually(lambda: bench.share.count(call="read"))
        process.kill()
        assert process.stdout.read() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_is_no_traceback(bench: Bench, mosquitto: Mosquitto, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a closed terminal end it at once, with one line."""
    bench.share.fault = hang()
    with bench.start(mosquitto.port) as process:
        eventually(lambda: bench.share.count(call="authenticate"))
        process.send_signal(number)
        _, said = process.communicate(timeout=19)  # less than the 20 s of a call
    assert (process.returncode, said) == (1, "dexcom2mqtt: interrupted\n")


def test_an_interruption_leaves_nothing_at_the_broker(bench: Bench, mosquitto: Mosquitto) -> None:
    """SIGTERM during the publishing step removes what was retained."""
    left = "dexcom2mqtt/bridge/sync/dexcom2mqtt-check-retained"
    with stopping_at(mosquitto.port, b"-check-retained") as (port, reached, go_on), bench.start(port) as process:
        assert reached.wait(20)
        eventually(lambda: left in retained(mosquitto.port))
        process.send_signal(signal.SIGTERM)
        go_on.set()
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (1, "dexcom2mqtt: interrupted\n")
    assert retained(mosquitto.port) == {}


@pytest.mark.parametrize("columns", ["10", "50"])
def test_a_narrow_terminal(bench: Bench, mosquitto: Mosquitto, columns: str) -> None:
    """Lines are wrapped and aligned to the terminal, but never too narrow to read."""
    bench.accounts = {"anna": bench.account(ANNA, password="wrong")}
    bench.environ["COLUMNS"] = columns
    done = bench.check(mosquitto.port)
    lines = done.stdout.splitlines()
    assert 30 < max(map(len, lines)) <= max(int(columns), 40)
    assert len(lines) > 30
    assert all(line.startswith(("ok", "note", "FAILED", " " * 8)) for line in lines)
    assert lines[lines.index(next(line for line in lines if "1. " in line)) + 1].startswith(" " * 11)


@pytest.mark.parametrize(
    "environ",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LANG": "C", "LC_ALL": ""},
    ],
)
def test_a_terminal_without_arrows(bench: Bench, mosquitto: Mosquitto, environ: dict[str, str]) -> None:
    """If the output cannot encode an arrow, everything else is still printed."""
    bench.environ |= environ
    done = bench.check(mosquitto.port, encoding="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "All is well." in done.stdout


def test_a_reader_that_stops_reading(bench: Bench, mosquitto: Mosquitto) -> None:
    """With `head -1` it ends silently."""
    bench.share.fault = only(hang(), call="authenticate")
    with bench.start(mosquitto.port) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        eventually(lambda: bench.share.count(call="authenticate"))
        bench.share.close()  # which ends the call that hangs
        assert process.wait(20) == 1
        assert process.stderr.read() == ""


# Configuration


def test_every_problem_is_named_before_anything_is_tried(bench: Bench, mosquitto: Mosquitto) -> None:
    """Problems in the configuration end it with 78 and are all listed, and nothing is contacted."""
    bench.accounts = {"anna": bench.account(ANNA, region="uk", unit="mg")}
    done = bench.check(mosquitto.port, {"stale_after": 5, "mtqq": {}})
    assert (done.returncode, done.stdout) == (78, "")
    for place in (
        "accounts.anna.region: found 'uk'",
        "accounts.anna.unit: found 'mg'",
        "stale_after:",
        "mtqq: unknown",
    ):
        assert place in done.stderr
    assert bench.share.requests == []
    assert "New client connected" not in mosquitto.log()


def test_an_invalid_tls_file_costs_no_sign_in(bench: Bench, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """A file without a certificate is a problem in the configuration, reported before any sign-in."""
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing", encoding="utf-8")
    done = bench.check(mosquitto.port, tls={"ca_file": str(nothing)})
    assert (done.returncode, done.stdout) == (78, "")
    assert "mqtt.tls.ca_file: " in done.stderr
    assert bench.share.requests == []


def test_wrong_usage(bench: Bench) -> None:
    """An unknown option ends with 2."""
    done = subprocess.run([*bench.command(1), "--twice"], capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert bench.share.requests == []


# The page


def test_a_page_can_be_served(bench: Bench, mosquitto: Mosquitto, tmp_path: Path) -> None:
    """It says where it can listen; a running daemon that already has the port is fine."""
    web = {"web": {"port": free_port()}}
    place = f"127.0.0.1 port {web['web']['port']}"
    assert ("ok", f"web: The page can be served at {place}.") in steps(bench.check(mosquitto.port, web).stdout)
    file = Path(bench.command(mosquitto.port, web)[-1])
    with daemon(file, tmp_path / "daemon.log") as running:
        eventually(lambda: "web: listening" in running.text())
        done = bench.check(mosquitto.port, web)
    assert ("ok", f"web: A running daemon serves the page at {place}.") in steps(done.stdout)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("host", "why", "remedy"),
    [("127.0.0.1", "Address already in use", "ss -ltnp"), ("192.0.2.1", "Cannot assign requested address", "0.0.0.0")],
)
def test_a_page_that_cannot_be_served(bench: Bench, mosquitto: Mosquitto, host: str, why: str, remedy: str) -> None:
    """A port in use and an address that this machine does not have are reported with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = bench.check(mosquitto.port, {"web": {"host": host, "port": port}})
    assert failed(done.stdout) == [f"web: The page cannot be served at {host} port {port}: {why}."]
    assert remedy in " ".join(remedies(done.stdout))
    assert done.returncode == 1
