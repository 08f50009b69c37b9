"""Encrypted connections to a real mosquitto: authorities, certificates, and files that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.mqtt.dialling import TlsFileError
from tests.mqtt.conftest import Running
from tests.support.brokers import login, secure
from tests.support.processes import Mosquitto, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import trustme


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_tls_with_an_authority_and_a_password(
    start_mosquitto: Callable[..., Mosquitto],
    start: Callable[..., Running],
    tmp_path: Path,
    authority: tuple[trustme.CA, Path],
    protocol: str,
) -> None:
    """TLS with the broker's own authority, user name and password."""
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
    """A broker that wants a certificate gets it; without one, the log says that the encrypted connection fails."""
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
    """A certificate of an unknown authority, or of another name, is not accepted, unless verify is false."""
    ca, ca_file = authority
    broker = start_mosquitto("allow_anonymous true", *secure(tmp_path, ca, ca_file, *names))
    running = start(broker.port, tls={"ca_file": ca_file if trusted else None, "verify": verify})
    if said:
        eventually(lambda: said in caplog.text)
        assert not running.protocols
    else:
        eventually(lambda: running.protocols)


def test_a_tls_file_that_is_none_is_named(tmp_path: Path, authority: tuple[trustme.CA, Path]) -> None:
    """A file that holds no certificate, and a key that is encrypted or another's, are mistakes with their names."""
    _, ca_file = authority
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing", encoding="utf-8")
    with pytest.raises(TlsFileError, match=r"ca_file.*nothing\.pem"):
        Running(1, tls={"ca_file": nothing})
    with pytest.raises(TlsFileError, match=r"cert_file.*ca\.pem"):
        Running(1, tls={"ca_file": ca_file, "cert_file": ca_file, "key_file": nothing})
