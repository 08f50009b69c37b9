"""Which authorities are trusted: the machine's, the usual ones, and those that the environment names."""

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
def _read_anew() -> Iterator[None]:
    """Let the process read the environment again: there is one context for all of it."""
    transport.adapter.cache_clear()
    yield
    transport.adapter.cache_clear()


@pytest.fixture
def own() -> trustme.CA:
    """Return an authority that nobody knows."""
    return trustme.CA()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_trusts_a_file_that_is_named(
    own: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The authorities of a file that a variable names are good, besides all others."""
    own.cert_pem.write_to_path(tmp_path / "own.pem")
    with LittleServer(own.issue_cert("127.0.0.1")) as server:
        failure(UnavailableError, client_to(server).fetch)
        transport.adapter.cache_clear()
        monkeypatch.setenv(variable, str(tmp_path / "own.pem"))
        assert client_to(server).fetch() == Batch()
    context = transport.adapter().poolmanager.connection_pool_kw["ssl_context"]
    assert len(context.get_ca_certs()) > 50


@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_trusts_a_folder_that_is_named(
    own: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A folder holds each authority in a file that is named by a number, as `openssl rehash` names them."""
    if OPENSSL is None:
        pytest.skip("openssl is not installed; install the package openssl to run them")
    own.cert_pem.write_to_path(tmp_path / "own.pem")
    subprocess.run([OPENSSL, "rehash", tmp_path], check=True, capture_output=True)
    monkeypatch.setenv(variable, str(tmp_path))
    with LittleServer(own.issue_cert("127.0.0.1")) as server:
        assert client_to(server).fetch() == Batch()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_tells_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A file or folder that is not there is a mistake, which names the variable; without TLS it does not matter."""
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
def test_tells_what_is_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: str
) -> None:
    """A file that holds something else is a mistake."""
    file = tmp_path / "own.pem"
    file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(VariableError, match=rf"^{variable}: .*own\.pem contains no PEM certificate$"):
        transport.adapter()


def test_tells_a_folder_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE names a file, as for OpenSSL itself."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path))
    with pytest.raises(VariableError, match=r"^SSL_CERT_FILE: .* cannot be read \(Is a directory\)$"):
        transport.adapter()


@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_tells_a_folder_that_cannot_be_read(own: trustme.CA, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """OpenSSL would pass over a folder that the daemon's user may not look into."""
    with tempfile.TemporaryDirectory() as folder:
        usual = Path(folder) / "usual.pem"
        own.cert_pem.write_to_path(usual)
        monkeypatch.setattr(certifi, "where", lambda: str(usual))  # the real ones may be where only root can read
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
    """Be no root for a while: root reads everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_an_intermediate_will_do(own: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority that is named need not be a root, with any Python."""
    child = own.create_child_ca()
    child.cert_pem.write_to_path(tmp_path / "child.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "child.pem"))
    with LittleServer(child.issue_cert("127.0.0.1")) as server:
        assert client_to(server).fetch() == Batch()


def test_a_plain_authority_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority without the identifiers that Python wants from 3.13 on is trusted where it is named."""
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
    """Return a certificate that says no more than it must, in PEM, and its key; by default it is signed by itself."""
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
