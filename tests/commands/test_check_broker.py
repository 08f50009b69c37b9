"""What check says about the broker: whether it can be reached, accepts us, and allows reading and writing."""

from __future__ import annotations

import contextlib
import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.brokers import gatekeeper, login, secure
from tests.support.certificates import by_the_manual, write
from tests.support.checking import Bench, failed, remedies, steps, stopping_at
from tests.support.processes import ROOT, Mosquitto, Subscriber, free_port, retained
from tests.support.relay import HANG_UP, PASS, Answer, Fate, Packet, Relay

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path


# Reaching it


def broker_failure(done: subprocess.CompletedProcess[str]) -> str:
    """Return the failure at the broker, which must be the only one."""
    assert done.returncode == 1
    (said,) = failed(done.stdout)
    assert said.startswith("broker: ")
    assert steps(done.stdout)[2][1].startswith("anna: Sharing is on.")
    return said


def test_an_unknown_broker_name(bench: Bench) -> None:
    """A name that cannot be looked up is reported, with possible causes."""
    done = bench.check(1883, host="broker.invalid")
    assert "its name cannot be looked up; check mqtt.host" in broker_failure(done)
    assert "The name is misspelled" in remedies(done.stdout)[0]


def test_no_broker(bench: Bench) -> None:
    """If nothing listens, the first cause is that the broker is not running, and the last a firewall."""
    done = bench.check(free_port())
    assert "nothing listens there" in broker_failure(done)
    causes = remedies(done.stdout)
    assert "systemctl status mosquitto" in causes[0]
    assert "listener 1883" in causes[1]
    assert "container" in causes[2]
    assert "firewall" in causes[3]


def test_a_broker_that_is_frozen(bench: Bench, mosquitto: Mosquitto) -> None:
    """A broker that accepts connections and says nothing is reported as frozen."""
    mosquitto.freeze()
    try:
        done = bench.check(mosquitto.port)
    finally:
        mosquitto.thaw()
    assert broker_failure(done).endswith("accepts connections but does not answer; is it overloaded or frozen?")
    assert "accepts connections at 127.0.0.1." in done.stdout


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    """Return a certificate authority and the file with its certificate."""
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


@pytest.mark.parametrize("days", [90, 10])
def test_the_certificate_is_shown(
    bench: Bench,
    start_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    days: int,
) -> None:
    """The certificate's subject and expiry are printed, as a note if it expires within a month."""
    ca, ca_file = authority
    lines = secure(tmp_path, ca, ca_file)
    until = datetime.now(UTC) + timedelta(days=days)
    server = ca.issue_cert("127.0.0.1", common_name="our broker", not_after=until)
    server.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    server.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    broker = start_mosquitto("allow_anonymous true", *lines)
    done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    assert (done.returncode, done.stderr) == (0, "")
    (shown,) = [step for step in steps(done.stdout) if "certificate" in step[1]]
    assert shown[0] == ("ok" if days == 90 else "note")
    assert shown[1].startswith("broker: Its certificate (our broker) was issued by trustme ")
    assert shown[1].endswith(f"valid until {until:%Y-%m-%d}.")


def test_a_certificate_that_is_not_verified(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """With verify: false any certificate is accepted, with a note."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file, "other.example"))
    done = bench.check(broker.port, tls={"verify": False})
    assert done.returncode == 0
    assert ("note", "broker: Its certificate is not verified: mqtt.tls.verify is false.") in steps(done.stdout)


def test_a_certificate_of_an_unknown_authority(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """A certificate of an unknown authority is reported, with the key that makes the authority known."""
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, *authority))
    done = bench.check(broker.port, tls={})
    assert "its certificate is not accepted" in broker_failure(done)
    assert "set mqtt.tls.ca_file" in remedies(done.stdout)[0]


def test_a_certificate_for_another_name(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """If a certificate is for other names than the broker's, its names are listed."""
    names = ("other.example", "192.168.1.2")
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, *authority, *names))
    for host in ("127.0.0.1", "localhost"):
        done = bench.check(broker.port, host=host, tls={"ca_file": str(authority[1])})
        assert "; check mqtt.host" in broker_failure(done)
        causes = remedies(done.stdout)
        assert "The certificate is valid for other.example, 192.168.1.2: set mqtt.host to one of these." in causes[0]
        assert "as subjectAltName: docs/security.md" in causes[1]


def test_a_certificate_with_only_a_common_name(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """A certificate made by mosquitto's manual is valid for a host name; for an address check says why not."""
    broker = start_mosquitto(*by_the_manual(tmp_path, "localhost"))
    tls = {"ca_file": str(tmp_path / "ca.crt")}
    assert bench.check(broker.port, host="localhost", tls=tls).returncode == 0
    done = bench.check(broker.port, tls=tls)
    broker_failure(done)
    assert "has no subjectAltName, only the common name localhost" in remedies(done.stdout)[0]


def test_tls_at_a_port_without_it(bench: Bench, mosquitto: Mosquitto) -> None:
    """TLS at a port without it is reported, with the usual ports."""
    done = bench.check(mosquitto.port, tls={})
    assert "the encrypted connection fails (" in broker_failure(done)
    assert "The broker does not use TLS" in remedies(done.stdout)[0]


def test_a_frozen_broker_with_tls(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """If nothing answers the TLS handshake, the firewall is not blamed: the connection was made."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file))
    broker.freeze()
    try:
        done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    finally:
        broker.thaw()
    assert "no answer; check mqtt.host" in broker_failure(done)
    assert "frozen" in remedies(done.stdout)[2]


def test_no_tls_at_a_port_with_tls(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """A port that needs TLS is recognized, with the line that fixes it."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file))
    done = bench.check(broker.port)
    broker_failure(done)
    assert "write tls: true below mqtt:" in remedies(done.stdout)[0]


def test_a_broker_that_needs_a_client_certificate(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """If the client needs a certificate and has none, check says so, and what to do."""
    ca, ca_file = authority
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    assert "requires a client certificate" in broker_failure(done)
    assert "mqtt.tls.cert_file" in remedies(done.stdout)[0]
    assert "mqtt.port" not in done.stdout


def test_a_broker_that_rejects_our_certificate(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """If the broker rejects the client's certificate, its reason is printed, and what to do."""
    ca, ca_file = authority
    write(trustme.CA().issue_cert("anna@example.org"), tmp_path / "my.pem", tmp_path / "my.key")
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    ours = {"cert_file": str(tmp_path / "my.pem"), "key_file": str(tmp_path / "my.key")}
    done = bench.check(broker.port, tls={"ca_file": str(ca_file), **ours})
    assert "does not accept this client's certificate (unknown ca)" in broker_failure(done)
    assert "cafile" in remedies(done.stdout)[0]


# Permissions


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_refuses_the_credentials(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """A wrong password is tried once and reported; the right one is accepted."""
    broker = start_mosquitto(*login(tmp_path, "the-user", "the-secret"))
    done = bench.check(broker.port, protocol=protocol, username="the-user", password="wrong")
    assert "refuses this daemon" in broker_failure(done)
    assert "mosquitto_passwd" in remedies(done.stdout)[0]
    assert broker.log().count("not authorised") == 1
    assert bench.check(broker.port, protocol=protocol).returncode == 1
    done = bench.check(broker.port, protocol=protocol, username="the-user", password="the-secret")
    assert done.returncode == 0
    assert "accepts our user name and password" in done.stdout


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize(
    ("rules", "denied"),
    [
        (["readwrite dexcom2mqtt/#", "readwrite homeassistant/#"], []),
        (["readwrite dexcom2mqtt/#"], ["homeassistant/device/+/config"]),
        (
            ["readwrite dexcom2mqtt/bridge/sync/dexcom2mqtt-check", "readwrite homeassistant/#"],
            ["dexcom2mqtt/bridge/#", "dexcom2mqtt/anna/#"],
        ),
        (
            ["readwrite dexcom2mqtt/bridge/#"],
            ["dexcom2mqtt/anna/#", "homeassistant/device/+/config"],
        ),
    ],
)
def test_denials_by_access_control_are_reported(
    bench: Bench,
    start_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    protocol: str,
    rules: list[str],
    denied: list[str],
) -> None:
    """Publishing is really tried, below the base topic and below the discovery prefix."""
    (tmp_path / "acl").write_text("".join(f"topic {rule}\n" for rule in rules), encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    done = bench.check(broker.port, protocol=protocol)
    assert done.returncode == (1 if denied else 0)
    assert failed(done.stdout) == [f"broker: Publishing to {topic} is not allowed." for topic in denied]
    listed = remedies(done.stdout)
    undecided = [cause for cause in listed if "MQTT 3.1.1 does not say" in cause]
    assert len(undecided) == (protocol == "3.1.1" and "homeassistant/device/+/config" in denied)
    assert len([cause for cause in listed if "access control list must let" in cause]) == len(denied)
    assert len(listed) == len(undecided) + len(denied)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_discovery_need_not_be_readable(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """If it may be written but not read, all is well with MQTT 5; with 3.1.1 check says that this is possible."""
    (tmp_path / "acl").write_text("topic readwrite dexcom2mqtt/#\ntopic write homeassistant/#\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    done = bench.check(broker.port, protocol=protocol)
    assert done.returncode == (0 if protocol == "5" else 1)
    if protocol == "3.1.1":
        assert "that is harmless; MQTT 3.1.1 does not say" in remedies(done.stdout)[1]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_denied_reading_is_reported(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """If access control denies reading, check says so, and leaves nothing behind."""
    acl = tmp_path / "acl"
    acl.write_text("topic write #\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {acl}")
    done = bench.check(broker.port, protocol=protocol)
    assert "does not let the user of this daemon read and write all of its topics" in broker_failure(done)
    acl.write_text("topic readwrite #\n", encoding="utf-8")
    broker.reload()
    assert retained(broker.port) == {}


def test_the_example_of_access_control_is_enough(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """With the access control list of the examples all is well."""
    acl = ROOT / "examples" / "mosquitto" / "acl"
    broker = start_mosquitto(*login(tmp_path, "dexcom2mqtt", "the-secret"), f"acl_file {acl}")
    for protocol in ("5", "3.1.1"):
        done = bench.check(broker.port, username="dexcom2mqtt", password="the-secret", protocol=protocol)
        assert (done.returncode, done.stderr) == (0, "")


# Odd brokers


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""])
def test_a_broker_without_mqtt_5(bench: Bench, mosquitto: Mosquitto, answer: bytes) -> None:
    """A broker that refuses MQTT 5 or closes the connection is tried with 3.1.1, unless 5 is configured."""
    with gatekeeper(mosquitto.port, answer) as (port, levels):
        done = bench.check(port)
        assert done.returncode == 0
        assert levels == [5, 4]
        assert "It speaks MQTT 3.1.1 " in done.stdout
        done = bench.check(port, protocol="5")
        assert broker_failure(done)
        assert levels == [5, 4, 5]
        if answer:
            assert "does not support MQTT 5" in done.stdout
            assert "protocol: auto" in remedies(done.stdout)[0]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x03\x00\x55\x00"])
def test_something_that_is_not_a_broker(bench: Bench, answer: bytes) -> None:
    """The answer of a web server, or garbage, is reported as not MQTT, with possible causes."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        done = bench.check(server.getsockname()[1])
    assert "closed the connection without an answer" in broker_failure(done)
    assert "or a web server" in remedies(done.stdout)[1]


@pytest.mark.parametrize("answer", [b"", b"\x20\x03\x00\x85\x00", b"\x20\x02\x00\x02"])
def test_a_broker_that_admits_one_client_id(bench: Bench, mosquitto: Mosquitto, answer: bytes) -> None:
    """It refuses check's client id, with or without a reason; the causes include that."""

    def rule(packet: Packet) -> Fate:
        if packet.kind != "CONNECT" or b"-check" not in packet.data:
            return PASS
        return Answer(answer) if answer else HANG_UP

    with Relay(mosquitto.port, rule) as relay:
        done = bench.check(relay.port)
        assert broker_failure(done)
        assert "The broker allows only certain client ids: mqtt.client_id" in " ".join(remedies(done.stdout))


def test_a_broker_lost_in_the_middle(bench: Bench, mosquitto: Mosquitto) -> None:
    """A connection lost during a step is reported, with possible causes."""
    with stopping_at(mosquitto.port, b"-check-retained") as (port, reached, go_on), bench.start(port) as process:
        assert reached.wait(20)
        mosquitto.kill()
        go_on.set()
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert failed(output) == [f"broker: The connection to the broker at 127.0.0.1:{port} was lost."]
    assert "restarted" in remedies(output)[0]


def test_a_broker_without_retained_messages(bench: Bench, start_mosquitto: Callable[..., Mosquitto]) -> None:
    """A broker without retained messages cannot be used, and check says so."""
    broker = start_mosquitto("allow_anonymous true", "retain_available false")
    done = bench.check(broker.port)
    assert broker_failure(done) == "broker: It keeps no retained messages, so programs that connect later get no value."
    assert "retain_available" in remedies(done.stdout)[0]


# What the broker holds already


@pytest.mark.parametrize("payload", [None, "offline"])
def test_no_status_message_from_home_assistant(bench: Bench, mosquitto: Mosquitto, payload: str | None) -> None:
    """Without a retained birth message, the note says that this is normal."""
    if payload:
        with Subscriber(mosquitto.port) as witness:
            witness.client.publish("homeassistant/status", payload, qos=1, retain=True)
            witness.wait_for("homeassistant/status")
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    assert steps(done.stdout)[-1][0] == "note"
    assert (
        "No status message from Home Assistant on homeassistant/status yet. That is normal" in steps(done.stdout)[-1][1]
    )


def test_configured_names(bench: Bench, mosquitto: Mosquitto) -> None:
    """It tries the base topic, discovery prefix, status topic and client id of the configuration."""
    with Subscriber(mosquitto.port) as witness:
        witness.client.publish("ha/alive", "online", qos=1, retain=True)
        done = bench.check(
            mosquitto.port,
            {"home_assistant": {"discovery_prefix": "ha", "status_topic": "ha/alive"}},
            base_topic="home/glucose",
            client_id="bridge-1",
        )
        assert done.returncode == 0
        assert {heard.topic for heard in witness.heard} == {
            "ha/alive",
            "home/glucose/bridge/sync/bridge-1-check",
            "home/glucose/bridge/sync/bridge-1-check-retained",
            "home/glucose/anna/check",
            "ha/device/home_glucose-check/config",
        }
    assert "Publishing to home/glucose/anna/# is allowed." in done.stdout
    assert "Publishing to ha/device/+/config is allowed." in done.stdout
    assert "Home Assistant is online, according to ha/alive." in done.stdout
    assert "as bridge-1-check" in mosquitto.log()
