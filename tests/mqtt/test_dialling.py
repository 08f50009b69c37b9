"""TLS connections to a real mosquitto: authorities, certificates, their renewal, and why one is refused."""

from __future__ import annotations

import contextlib
import logging
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest
import trustme

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.config.settings import Mqtt, Tls
from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.mqtt.connection import Connection
from dexcom2mqtt.mqtt.dialling import explain
from dexcom2mqtt.mqtt.tls_files import TlsFiles
from tests.support.brokers import login, secure
from tests.support.certificates import by_the_manual, lines_of, write
from tests.support.processes import Mosquitto, eventually, listening

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from tests.mqtt.conftest import Running


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_tls_with_an_authority_and_a_password(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    protocol: str,
) -> None:
    """TLS works with an own authority, user name and password."""
    ca, ca_file = authority
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file), *login(tmp_path, "anna", "pässword"))
    running = start(broker.port, tls={"ca_file": ca_file}, username="anna", password="pässword", protocol=protocol)
    eventually(lambda: running.protocols == [protocol])
    running.mirror.put([Message("test/large", "x" * 200_000)])  # many records of TLS
    eventually(lambda: "test/large" in broker.log())
    assert running.stop() < 1
    eventually(lambda: "Received DISCONNECT from test" in broker.log(), 3)


def test_tls_with_a_client_certificate(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broker that requires a certificate gets it; without one, the log says what it requires."""
    ca, ca_file = authority
    mine = ca.issue_cert("anna@example.org", common_name="anna")
    mine.private_key_pem.write_to_path(str(tmp_path / "my.key"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "my.pem"))
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    tls = {"ca_file": ca_file, "cert_file": tmp_path / "my.pem", "key_file": tmp_path / "my.key"}
    running = start(broker.port, tls=tls)
    eventually(lambda: running.protocols)
    assert not caplog.records
    start(broker.port, tls={"ca_file": ca_file}, client_id="without")
    eventually(lambda: caplog.records)
    assert "it requires a client certificate" in caplog.text


@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")  # paho leaves a failed handshake to the collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("names", "trusted", "verify", "said"),
    [
        pytest.param((), False, True, "its certificate is not accepted", id="unknown authority"),
        pytest.param(("other.example",), True, True, "its certificate is not accepted", id="another name"),
        pytest.param(("other.example",), False, False, None, id="verify: false"),
    ],
)
def test_certificates_are_verified(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, ...],
    trusted: bool,
    verify: bool,
    said: str | None,
) -> None:
    """A certificate from an unknown authority, or for another name, is not accepted unless verify is false."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file, *names))
    running = start(broker.port, tls={"ca_file": ca_file if trusted else None, "verify": verify})
    if said:
        eventually(lambda: said in caplog.text)
        assert not running.protocols
    else:
        eventually(lambda: running.protocols)


SPEED: Final = 5.0
"""Shortens the pauses between attempts."""
DAY: Final = timedelta(days=1)


# --- renewed while it runs ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl:pytest.PytestUnraisableExceptionWarning")
def test_a_renewed_authority_restores_the_connection(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broker with a certificate from a new authority is not trusted until that authority's file is there."""
    ca, ca_file = authority
    mine = tmp_path / "mine.pem"
    mine.write_bytes(ca_file.read_bytes())
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file))
    running = start(broker.port, speed=SPEED, tls={"ca_file": mine})
    eventually(lambda: running.protocols)
    broker.stop()
    new = trustme.CA()
    new.cert_pem.write_to_path(str(ca_file))
    secure(tmp_path, new, ca_file)
    broker.start()
    eventually(lambda: "mqtt.tls.ca_file is not the authority that signed it" in caplog.text)
    mine.write_bytes(ca_file.read_bytes())
    eventually(lambda: len(running.protocols) == 2)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_renewed_client_certificate_restores_the_connection(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
    protocol: str,
) -> None:
    """The log says that the broker refuses the certificate; a new one is used as soon as its key is there."""
    caplog.set_level(logging.INFO)
    ca, ca_file = authority
    old, new = trustme.CA(), trustme.CA()
    files = {"cert_file": tmp_path / "my.pem", "key_file": tmp_path / "my.key"}
    write(old.issue_cert("anna@example.org", common_name="anna"), *files.values())
    clients = tmp_path / "clients.pem"  # whom the broker trusts
    old.cert_pem.write_to_path(str(clients))
    lines = secure(tmp_path, ca, ca_file, client=True)
    broker = start_mosquitto(f"cafile {clients}", *lines[1:])
    running = start(broker.port, speed=SPEED, protocol=protocol, tls={"ca_file": ca_file, **files})
    eventually(lambda: running.protocols)
    broker.stop()
    new.cert_pem.write_to_path(str(clients))
    broker.start()
    refused = "it does not accept this client's certificate (unknown ca); check mqtt.tls.cert_file"
    eventually(lambda: refused in caplog.text)
    assert "is mqtt.port the right one" not in caplog.text
    renewed = new.issue_cert("anna@example.org", common_name="anna")
    (chain,) = renewed.cert_chain_pems
    files["cert_file"].write_bytes(chain.bytes()[:400])
    eventually(lambda: "are not a PEM certificate and its unencrypted key" in caplog.text)
    files["cert_file"].write_bytes(chain.bytes())
    eventually(lambda: "do not belong together" in caplog.text)
    assert running.protocols == [protocol]
    files["key_file"].write_bytes(renewed.private_key_pem.bytes())
    eventually(lambda: len(running.protocols) == 2)
    assert "the files are valid again" in caplog.text


def test_files_that_are_gone_do_not_end_the_link(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the files are missing after a restart of the broker, the previously read ones stay in use."""
    ca, ca_file = authority
    files = {"ca_file": tmp_path / "mine.pem", "cert_file": tmp_path / "my.pem", "key_file": tmp_path / "my.key"}
    files["ca_file"].write_bytes(ca_file.read_bytes())
    write(ca.issue_cert("anna@example.org", common_name="anna"), files["cert_file"], files["key_file"])
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    running = start(broker.port, speed=SPEED, tls=files)
    eventually(lambda: running.protocols)
    for file in files.values():
        file.unlink()
    broker.stop()
    broker.start()
    eventually(lambda: len(running.protocols) == 2)
    (told,) = [record.getMessage() for record in caplog.records if "mqtt.tls." in record.getMessage()]
    assert told.startswith(
        f"mqtt.tls.ca_file: {files['ca_file']} cannot be read (No such file or directory). The last "
    )


# --- whom it trusts ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("strict_python")
def test_an_authority_by_the_recipe_of_the_manual(
    start_mosquitto: Callable[..., Mosquitto], start: Callable[..., Running], tmp_path: Path
) -> None:
    """An authority made as in mosquitto's manual works, on a strict Python as well."""
    broker = start_mosquitto(*by_the_manual(tmp_path, "localhost"))
    running = start(broker.port, host="localhost", tls={"ca_file": tmp_path / "ca.crt"})
    eventually(lambda: running.protocols)


@pytest.mark.usefixtures("strict_python")
@pytest.mark.parametrize("named", ["in between", "the broker's own"])
def test_a_certificate_that_is_not_a_root_can_be_named(
    start_mosquitto: Callable[..., Mosquitto], start: Callable[..., Running], tmp_path: Path, named: str
) -> None:
    """Trust starts at the named certificate: an intermediate authority, or the broker's certificate itself."""
    between = trustme.CA().create_child_ca()
    server = between.issue_cert("127.0.0.1")
    write(server, tmp_path / "server.pem", tmp_path / "server.key")
    between.cert_pem.write_to_path(str(tmp_path / "between.pem"))
    server.cert_chain_pems[0].write_to_path(str(tmp_path / "own.pem"))
    lines = lines_of(tmp_path / "between.pem", tmp_path / "server.pem", tmp_path / "server.key")
    broker = start_mosquitto(*lines)
    ca_file = tmp_path / ("between.pem" if named == "in between" else "own.pem")
    running = start(broker.port, tls={"ca_file": ca_file})
    eventually(lambda: running.protocols)


# --- why it is refused -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        (-2 * DAY, -DAY, "certificate has expired); the broker needs a new one, unless this machine's clock is wrong"),
        (DAY, 2 * DAY, "certificate is not yet valid); check this machine's clock"),
    ],
)
def test_a_certificate_outside_its_dates(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
    begins: timedelta,
    ends: timedelta,
    said: str,
) -> None:
    """A certificate that is not valid now is reported with what to check."""
    ca, ca_file = authority
    now = datetime.now(UTC)
    server = ca.issue_cert("127.0.0.1", not_before=now + begins, not_after=now + ends)
    write(server, tmp_path / "server.pem", tmp_path / "server.key")
    broker = start_mosquitto(*lines_of(ca_file, tmp_path / "server.pem", tmp_path / "server.key"))
    start(broker.port, tls={"ca_file": ca_file})
    # What is in the brackets is OpenSSL's, and a newer one says more.
    why, _, remedy = said.partition(")")
    eventually(lambda: why in caplog.text and remedy in caplog.text)


def test_the_last_answer_of_the_broker_is_never_lost(
    start_mosquitto: Callable[..., Mosquitto], tmp_path: Path, authority: tuple[trustme.CA, Path]
) -> None:
    """A broker's reason is reported whether it hangs up before or after our first packet."""
    ca, ca_file = authority
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    mqtt = Mqtt(host="127.0.0.1", port=broker.port, tls=Tls(ca_file=ca_file))
    told = []
    for _ in range(40):
        with Connection(mqtt, Clock(), "5", TlsFiles(mqtt.tls).context()) as connection:
            told.append(connection.open())
    assert {failure is not None and "requires a client certificate" in failure.text for failure in told} == {True}


def test_our_certificate_is_out_of_date(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the broker refuses our expired certificate, the log says so."""
    ca, ca_file = authority
    mine = ca.issue_cert("anna@example.org", not_after=datetime.now(UTC) - DAY)
    write(mine, tmp_path / "my.pem", tmp_path / "my.key")
    broker = start_mosquitto(*secure(tmp_path, ca, ca_file, client=True))
    start(broker.port, tls={"ca_file": ca_file, "cert_file": tmp_path / "my.pem", "key_file": tmp_path / "my.key"})
    eventually(lambda: "it does not accept this client's certificate (certificate expired)" in caplog.text)


@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (False, "it refuses the encrypted connection (handshake failure); its log says why"),
        (True, "it does not accept this client's certificate (unknown ca)"),
    ],
)
def test_a_broker_with_an_older_tls_requires_a_certificate(
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    caplog: pytest.LogCaptureFixture,
    shown: bool,
    said: str,
) -> None:
    """With TLS 1.2 the broker gives its reason during the handshake; that is reported as well."""
    ca, ca_file = authority
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    ca.issue_cert("127.0.0.1").configure_cert(context)
    write(trustme.CA().issue_cert("anna@example.org"), tmp_path / "my.pem", tmp_path / "my.key")

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            context.wrap_socket(client, server_side=True).close()

    ours = {"cert_file": tmp_path / "my.pem", "key_file": tmp_path / "my.key"} if shown else {}
    with listening(serve) as port:
        start(port, tls={"ca_file": ca_file, **ours})
        eventually(lambda: said in caplog.text)


@pytest.mark.parametrize(
    ("code", "named", "first"),
    [
        (18, False, "self-signed"),
        (19, False, "mqtt.tls.ca_file"),
        (20, False, "mqtt.tls.ca_file"),
        (20, True, "copy the authority that signed"),
        (7, True, "copy the authority that signed"),
        (62, True, "a name that the certificate is valid for"),
        (64, True, "a name that it is valid for"),
        (92, False, "Python 3.13 is strict"),
        (66, True, "too weak"),
    ],
)
def test_remedies_fit_the_reason(code: int, named: bool, first: str, tmp_path: Path) -> None:
    """The first remedy fits OpenSSL's reason and the configuration."""
    (tmp_path / "ca.pem").touch()
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_code, error.verify_message = code, "why."
    told, causes = explain(error, tls=Tls(ca_file=tmp_path / "ca.pem" if named else None))
    assert told.startswith("its certificate is not accepted (why); ")
    assert first in causes[0]


@pytest.mark.parametrize("alert", ["CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNSUPPORTED_CERTIFICATE"])
def test_alerts_about_certificates_are_about_ours(alert: str, tmp_path: Path) -> None:
    """If a broker ends TLS with an alert about certificates, that is reported as being about ours."""
    for file in ("my.pem", "my.key"):
        (tmp_path / file).touch()
    error = ssl.SSLError(1, alert)
    error.reason = f"TLSV13_ALERT_{alert}"
    word = alert.replace("_", " ").lower()
    assert f"it requires a client certificate ({word})" in explain(error, tls=Tls())[0]
    ours = Tls(cert_file=tmp_path / "my.pem", key_file=tmp_path / "my.key")
    assert f"it does not accept this client's certificate ({word})" in explain(error, tls=ours)[0]
