"""Which authorities are trusted: the machine's, the usual ones, and those that the environment names."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

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
    from pathlib import Path

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
    with pytest.raises(VariableError, match=rf"^{variable}: .*own\.pem holds no certificate in PEM$"):
        transport.adapter()


def test_an_intermediate_will_do(own: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority that is named need not be a root, with any Python."""
    child = own.create_child_ca()
    child.cert_pem.write_to_path(tmp_path / "child.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "child.pem"))
    with LittleServer(child.issue_cert("127.0.0.1")) as server:
        assert client_to(server).fetch() == Batch()


def test_a_plain_authority_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority without the identifiers that Python wants from 3.13 on is trusted where it is named."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now(UTC)
    pem = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, today - timedelta(1), today + timedelta(1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "plain.pem").write_bytes(pem)
    (tmp_path / "plain.key").write_bytes(private)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "plain.pem"))
    with LittleServer() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "plain.pem", tmp_path / "plain.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.url = f"https://localhost:{server.server_address[1]}"
        assert client_to(server).fetch() == Batch()
