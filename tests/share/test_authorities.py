"""Which authorities are trusted: the machine's, certifi's, and those that the environment names."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dexcom2mqtt.share import Batch, UnavailableError, transport
from dexcom2mqtt.share.errors import VariableError
from tests.support.share_client import LittleServer, client_to, failure

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENSSL = shutil.which("openssl")


@pytest.fixture(autouse=True)
def _read_again() -> Iterator[None]:
    """Make the process read the environment again: it has a single context."""
    transport.adapter.cache_clear()
    yield
    transport.adapter.cache_clear()


@pytest.fixture
def own() -> trustme.CA:
    """Return an authority that nobody trusts."""
    return trustme.CA()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_trusts_a_named_file(own: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The authorities in a file that a variable names are trusted, besides all others."""
    own.cert_pem.write_to_path(tmp_path / "own.pem")
    with LittleServer(own.issue_cert("127.0.0.1")) as server:
        failure(UnavailableError, client_to(server).fetch)
        transport.adapter.cache_clear()
        monkeypatch.setenv(variable, str(tmp_path / "own.pem"))
        assert client_to(server).fetch() == Batch()
    context = transport.adapter().poolmanager.connection_pool_kw["ssl_context"]
    assert len(context.get_ca_certs()) > 50


@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_trusts_a_named_folder(own: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A folder contains each authority in a file named by its hash, as `openssl rehash` names them."""
    if OPENSSL is None:
        pytest.skip("openssl is not installed; install the package openssl to run them")
    own.cert_pem.write_to_path(tmp_path / "own.pem")
    subprocess.run([OPENSSL, "rehash", tmp_path], check=True, capture_output=True)
    monkeypatch.setenv(variable, str(tmp_path))
    with LittleServer(own.issue_cert("127.0.0.1")) as server:
        assert client_to(server).fetch() == Batch()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_names_the_variable_of_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A missing file or folder is an error that names the variable; without TLS it does not matter."""
    missing = tmp_path / "missing"
    monkeypatch.setenv(variable, str(missing))
    with LittleServer() as server:
        assert client_to(server).fetch() == Batch()
        server.url = "https://127.0.0.1"
        error = failure(VariableError, lambda: client_to(server))
    assert str(error) == f"{variable}: {missing} cannot be read (No such file or directory)"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize(
    "content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"]
)
def test_names_the_variable_of_a_file_without_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: str
) -> None:
    """A file that contains something else is an error."""
    file = tmp_path / "own.pem"
    file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(VariableError, match=rf"^{variable}: .*own\.pem contains no PEM certificate$"):
        transport.adapter()


def test_refuses_a_folder_in_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE names a file, as for OpenSSL itself."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    with pytest.raises(VariableError, match=r"^SSL_CERT_FILE: .* cannot be read \(Is a directory\)$"):
        transport.adapter()


@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_reports_an_unreadable_folder(own: trustme.CA, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """OpenSSL would silently skip a folder that the daemon's user may not read."""
    with tempfile.TemporaryDirectory() as folder:
        usual = Path(folder) / "usual.pem"
        own.cert_pem.write_to_path(usual)
        monkeypatch.setattr(certifi, "where", lambda: str(usual))  # only root may be able to read the real ones
        Path(folder).chmod(0o311)
        monkeypatch.setenv(variable, folder)
        with (
            as_somebody(),
            pytest.raises(VariableError, match=rf"^{variable}: {folder} cannot be read \(Permission denied\)$"),
        ):
            transport.adapter()
        Path(folder).chmod(0o700)


@contextlib.contextmanager
def as_somebody() -> Iterator[None]:
    """Drop root privileges for a while: root reads everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_an_intermediate_is_enough(own: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named authority need not be a root, with any Python."""
    child = own.create_child_ca()
    child.cert_pem.write_to_path(tmp_path / "child.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "child.pem"))
    with LittleServer(child.issue_cert("127.0.0.1")) as server:
        assert client_to(server).fetch() == Batch()


def test_a_minimal_authority_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority without the identifiers that Python requires from 3.13 on is trusted if it is named."""
    authority, plain = signed("authority", ca=True)
    certificate, key = signed("localhost", plain)
    for name, pem in {"authority.pem": authority, "localhost.pem": certificate, "localhost.key": pem_of(key)}.items():
        (tmp_path / name).write_bytes(pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    with LittleServer() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "localhost.pem", tmp_path / "localhost.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.url = f"https://localhost:{server.server_address[1]}"
        assert client_to(server).fetch() == Batch()


def signed(
    name: str, by: ec.EllipticCurvePrivateKey | None = None, *, ca: bool = False
) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """Return a minimal certificate in PEM and its key; by default it is self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, "authority"))
    today = datetime.now(UTC)
    days = today - timedelta(1), today + timedelta(1)
    certificate = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), *days)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(by or key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
