"""What check says of the broker: whether it is there, lets us in, and lets us write and read."""

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
    """Return what failed at the broker, where nothing else did and it ended so."""
    assert done.returncode == 1
    (told,) = failed(done.stdout)
    assert told.startswith("broker: ")
    assert steps(done.stdout)[2][1].startswith("anna: Sharing is on.")
    return told


def test_a_broker_with_a_name_that_nobody_knows(bench: Bench) -> None:
    """A name that cannot be looked up is told, with what it may be."""
    done = bench.check(1883, host="broker.invalid")
    assert "its name cannot be looked up; check mqtt.host" in broker_failure(done)
    assert "The name is misspelt" in remedies(done.stdout)[0]


def test_a_broker_that_is_not_there(bench: Bench) -> None:
    """Where nothing listens, the first cause is that it does not run, and the last a firewall."""
    done = bench.check(free_port())
    assert "nothing listens there" in broker_failure(done)
    causes = remedies(done.stdout)
    assert "systemctl status mosquitto" in causes[0]
    assert "listener 1883" in causes[1]
    assert "container" in causes[2]
    assert "firewall" in causes[3]


def test_a_broker_that_is_frozen(bench: Bench, mosquitto: Mosquitto) -> None:
    """A broker that takes connections and says nothing is told to be frozen."""
    mosquitto.freeze()
    try:
        done = bench.check(mosquitto.port)
    finally:
        mosquitto.thaw()
    assert broker_failure(done).endswith("takes connections but does not answer; is it overloaded or frozen?")
    assert "takes connections, at 127.0.0.1." in done.stdout


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
    """Whose certificate it is and until when is told, and noted where it ends within a month."""
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
    assert shown[1].startswith("broker: Its certificate is our broker's, issued by trustme ")
    assert shown[1].endswith(f"good until {until:%Y-%m-%d}.")


def test_a_certificate_that_is_not_verified(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """With verify: false any certificate is taken, and that is noted."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file, "other.example"))
    done = bench.check(broker.port, tls={"verify": False})
    assert done.returncode == 0
    assert ("note", "broker: Its certificate is not looked at: mqtt.tls.verify is false.") in steps(done.stdout)


def test_a_certificate_of_an_unknown_authority(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """A certificate of an authority that is not known is told with the key that makes it known."""
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, *authority))
    done = bench.check(broker.port, tls={})
    assert "its certificate is not accepted" in broker_failure(done)
    assert "in mqtt.tls.ca_file" in remedies(done.stdout)[0]


def test_a_certificate_of_another_name(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """Where a certificate is of another name than the broker's, its names are told."""
    names = ("other.example", "192.168.1.2")
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, *authority, *names))
    for host in ("127.0.0.1", "localhost"):
        done = bench.check(broker.port, host=host, tls={"ca_file": str(authority[1])})
        assert "; check mqtt.host" in broker_failure(done)
        causes = remedies(done.stdout)
        assert "The certificate is made for other.example, 192.168.1.2: write one of these into mqtt.host." in causes[0]
        assert "as subjectAltName: docs/security.md" in causes[1]


def test_a_certificate_with_a_common_name_alone(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """A certificate as mosquitto's manual makes it is good for a host name; for an address it is told why not."""
    broker = start_mosquitto(*by_the_manual(tmp_path, "localhost"))
    tls = {"ca_file": str(tmp_path / "ca.crt")}
    assert bench.check(broker.port, host="localhost", tls=tls).returncode == 0
    done = bench.check(broker.port, tls=tls)
    broker_failure(done)
    assert "has no subjectAltName, only the common name localhost" in remedies(done.stdout)[0]


def test_tls_where_there_is_none(bench: Bench, mosquitto: Mosquitto) -> None:
    """TLS at a port without is told, and which ports are usual."""
    done = bench.check(mosquitto.port, tls={})
    assert "the encrypted connection fails (" in broker_failure(done)
    assert "the broker does not speak TLS" in remedies(done.stdout)[0]


def test_a_frozen_broker_with_tls(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """Where nobody answers to TLS, the firewall is no suspect: the connection was there."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file))
    broker.freeze()
    try:
        done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    finally:
        broker.thaw()
    assert "no answer; check mqtt.host" in broker_failure(done)
    assert "frozen" in remedies(done.stdout)[2]


def test_no_tls_where_there_is(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """A port with TLS taken for one without is told, with the line that mends it."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file))
    done = bench.check(broker.port)
    broker_failure(done)
    assert "write tls: true below mqtt:" in remedies(done.stdout)[0]


def test_a_broker_that_wants_a_certificate_of_ours(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """Where the client needs a certificate and has none, that is told, and what to do."""
    ca, ca_file = authority
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    done = bench.check(broker.port, tls={"ca_file": str(ca_file)})
    assert "wants a certificate of this client" in broker_failure(done)
    assert "mqtt.tls.cert_file" in remedies(done.stdout)[0]
    assert "mqtt.port" not in done.stdout


def test_a_broker_that_does_not_accept_our_certificate(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """Where the broker refuses the client's certificate, its reason is told, and what to do."""
    ca, ca_file = authority
    write(trustme.CA().issue_cert("anna@example.org"), tmp_path / "my.pem", tmp_path / "my.key")
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    ours = {"cert_file": str(tmp_path / "my.pem"), "key_file": str(tmp_path / "my.key")}
    done = bench.check(broker.port, tls={"ca_file": str(ca_file), **ours})
    assert "does not accept this client's certificate (unknown ca)" in broker_failure(done)
    assert "cafile" in remedies(done.stdout)[0]


# Rights


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_refuses_the_credentials(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """A wrong password is told, and asked once; the right one is said to be accepted."""
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
def test_what_access_control_denies_is_told(
    bench: Bench,
    start_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    protocol: str,
    rules: list[str],
    denied: list[str],
) -> None:
    """Whether publishing is allowed is really tried, below the base topic and below the discovery prefix."""
    (tmp_path / "acl").write_text("".join(f"topic {rule}\n" for rule in rules), encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    done = bench.check(broker.port, protocol=protocol)
    assert done.returncode == (1 if denied else 0)
    assert failed(done.stdout) == [f"broker: Publishing to {topic} is not allowed." for topic in denied]
    listed = remedies(done.stdout)
    untold = [cause for cause in listed if "MQTT 3.1.1 does not tell" in cause]
    assert len(untold) == (protocol == "3.1.1" and "homeassistant/device/+/config" in denied)
    assert len([cause for cause in listed if "access control list has to let" in cause]) == len(denied)
    assert len(listed) == len(untold) + len(denied)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_discovery_need_not_be_readable(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """Where it may be written but not read, all is well with MQTT 5; with 3.1.1 it is said that this may be so."""
    (tmp_path / "acl").write_text("topic readwrite dexcom2mqtt/#\ntopic write homeassistant/#\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {tmp_path}/acl")
    done = bench.check(broker.port, protocol=protocol)
    assert done.returncode == (0 if protocol == "5" else 1)
    if protocol == "3.1.1":
        assert "which does no harm: MQTT 3.1.1 does not tell" in remedies(done.stdout)[1]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_may_not_be_read_is_told(
    bench: Bench, start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, protocol: str
) -> None:
    """Where access control returns nothing, it is told that this may be so, and nothing is left."""
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
    """With the list of the examples all is well."""
    acl = ROOT / "examples" / "mosquitto" / "acl"
    broker = start_mosquitto(*login(tmp_path, "dexcom2mqtt", "the-secret"), f"acl_file {acl}")
    for protocol in ("5", "3.1.1"):
        done = bench.check(broker.port, username="dexcom2mqtt", password="the-secret", protocol=protocol)
        assert (done.returncode, done.stderr) == (0, "")


# Odd brokers


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""])
def test_a_broker_without_mqtt_5(bench: Bench, mosquitto: Mosquitto, answer: bytes) -> None:
    """A broker that refuses MQTT 5, or hangs up on it, is tried with 3.1.1, unless 5 was asked for."""
    with gatekeeper(mosquitto.port, answer) as (port, levels):
        done = bench.check(port)
        assert done.returncode == 0
        assert levels == [5, 4]
        assert "It speaks MQTT 3.1.1 " in done.stdout
        done = bench.check(port, protocol="5")
        assert broker_failure(done)
        assert levels == [5, 4, 5]
        if answer:
            assert "does not take MQTT 5" in done.stdout
            assert "protocol: auto" in remedies(done.stdout)[0]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x03\x00\x55\x00"])
def test_something_that_is_no_broker(bench: Bench, answer: bytes) -> None:
    """The answer of a web server, or any garbage, is told to be none of MQTT, with what it may be."""
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
    assert "web pages are of no use" in remedies(done.stdout)[1]


@pytest.mark.parametrize("answer", [b"", b"\x20\x03\x00\x85\x00", b"\x20\x02\x00\x02"])
def test_a_broker_that_admits_one_client_id(bench: Bench, mosquitto: Mosquitto, answer: bytes) -> None:
    """It hangs up at the one of check, or says why; and that is among what it may be."""

    def rule(packet: Packet) -> Fate:
        if packet.kind != "CONNECT" or b"-check" not in packet.data:
            return PASS
        return Answer(answer) if answer else HANG_UP

    with Relay(mosquitto.port, rule) as relay:
        done = bench.check(relay.port)
        assert broker_failure(done)
        assert "The broker admits certain client ids only: mqtt.client_id" in " ".join(remedies(done.stdout))


def test_a_broker_that_leaves_in_the_middle(bench: Bench, mosquitto: Mosquitto) -> None:
    """A connection that ends while something is tried is told, with what it may be."""
    with stopping_at(mosquitto.port, b"-check-retained") as (port, reached, go_on), bench.start(port) as process:
        assert reached.wait(20)
        mosquitto.kill()
        go_on.set()
        told, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert failed(told) == [f"broker: The connection to the broker at 127.0.0.1:{port} was lost."]
    assert "restarted" in remedies(told)[0]


def test_a_broker_that_keeps_nothing(bench: Bench, start_mosquitto: Callable[..., Mosquitto]) -> None:
    """A broker without retained messages cannot be used, and that is told."""
    broker = start_mosquitto("allow_anonymous true", "retain_available false")
    done = bench.check(broker.port)
    assert broker_failure(done) == "broker: It keeps no retained messages, and so has no value when a program asks."
    assert "retain_available" in remedies(done.stdout)[0]


# What is there already


@pytest.mark.parametrize("word", [None, "offline"])
def test_home_assistant_that_left_no_word(bench: Bench, mosquitto: Mosquitto, word: str | None) -> None:
    """Without a retained birth message it is said that this is usual."""
    if word:
        with Subscriber(mosquitto.port) as witness:
            witness.client.publish("homeassistant/status", word, qos=1, retain=True)
            witness.wait_for("homeassistant/status")
    done = bench.check(mosquitto.port)
    assert done.returncode == 0
    assert steps(done.stdout)[-1][0] == "note"
    assert "Home Assistant has left no word on homeassistant/status." in steps(done.stdout)[-1][1]


def test_names_of_one_s_own(bench: Bench, mosquitto: Mosquitto) -> None:
    """The base topic, the discovery prefix, the status topic and the client id of the configuration are those tried."""
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
    assert "Home Assistant is there: ha/alive is online." in done.stdout
    assert "as bridge-1-check" in mosquitto.log()
