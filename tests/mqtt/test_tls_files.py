"""Renewing the files of the TLS settings: what the next connection uses, and what is logged."""

from __future__ import annotations

import logging
import os
import ssl
from typing import TYPE_CHECKING, Final

import pytest
import trustme

from dexcom2mqtt.config.settings import Tls
from dexcom2mqtt.mqtt.tls_files import TlsFileError, TlsFiles, tls_context
from tests.support.certificates import chain_of, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OLD, NEW = trustme.CA(), trustme.CA()
NOW_AND_THEN: Final = (1_700_000_000_000_000_000, 1_700_000_000_000_000_000)


def der(authority: trustme.CA) -> bytes:
    return ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())


def trusted(context: ssl.SSLContext | None) -> list[bytes]:
    assert context
    return context.get_ca_certs(binary_form=True)


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    """Write an authority, and a client's certificate with its key."""
    OLD.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    write(OLD.issue_cert("anna@example.org"), tmp_path / "my.pem", tmp_path / "my.key")
    return Tls(ca_file=tmp_path / "ca.pem", cert_file=tmp_path / "my.pem", key_file=tmp_path / "my.key")


# --- renewing ----------------------------------------------------------------------------------------------


def in_place(file: Path, contents: bytes) -> None:
    file.write_bytes(contents)


def unseen_by_stat(file: Path, contents: bytes) -> None:
    """Write without changing size, time or inode, as if the clock stood still."""
    os.utime(file, ns=NOW_AND_THEN)
    file.write_bytes(contents.ljust(file.stat().st_size, b"\n"))
    os.utime(file, ns=NOW_AND_THEN)


def by_renaming(file: Path, contents: bytes) -> None:
    (file.parent / "new").write_bytes(contents)
    (file.parent / "new").replace(file)


def by_a_link(file: Path, contents: bytes) -> None:
    """Change a link in the path, as certbot and Kubernetes do."""
    folder = file.parent / f"of {file.name}"
    folder.mkdir()
    (folder / file.name).write_bytes(contents)
    (file.parent / "link").symlink_to(folder / file.name)
    (file.parent / "link").replace(file)


@pytest.mark.parametrize("renew", [in_place, unseen_by_stat, by_renaming, by_a_link])
def test_a_renewed_authority_serves_the_next_connection(
    tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture, renew: Callable[[Path, bytes], None]
) -> None:
    """However an authority is replaced, the next connection trusts the new one, and nothing is logged."""
    padded = OLD.cert_pem.bytes() + b"\n" * 500
    (tmp_path / "ca.pem").write_bytes(padded)
    files = TlsFiles(tls)
    before = files.context()
    assert trusted(before) == [der(OLD)]
    renew(tmp_path / "ca.pem", NEW.cert_pem.bytes())
    assert trusted(files.context()) == [der(NEW)]
    assert trusted(before) == [der(OLD)]
    assert not caplog.records


def test_the_context_is_reused_while_nothing_changes(tls: Tls) -> None:
    """The context stays the same as long as the contents do; touching a file changes nothing."""
    files, system = TlsFiles(tls), TlsFiles(Tls())
    before, of_the_system = files.context(), system.context()
    assert tls.ca_file
    tls.ca_file.touch()
    assert files.context() is before
    assert system.context() is of_the_system
    assert TlsFiles(None).context() is None


def test_a_renewed_client_certificate_serves_the_next_connection(tls: Tls, tmp_path: Path) -> None:
    """A new certificate or key makes a new context."""
    files = TlsFiles(tls)
    before = files.context()
    write(OLD.issue_cert("anna@example.org"), tmp_path / "my.pem", tmp_path / "my.key")
    assert files.context() is not before


@pytest.mark.parametrize("place", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_the_systems_authorities_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Without ca_file, a change of the system's authorities is noticed as well."""
    (tmp_path / "certs").mkdir()
    bundle = tmp_path / "certs" / "bundle.pem"
    OLD.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle if place == "SSL_CERT_FILE" else tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / ("certs" if place == "SSL_CERT_DIR" else "none")))
    files = TlsFiles(Tls())
    before = files.context()
    assert files.context() is before
    if place == "SSL_CERT_FILE":
        NEW.cert_pem.write_to_path(str(bundle))
        assert trusted(files.context()) == [der(NEW)]
    else:
        (tmp_path / "certs" / "0123abcd.0").symlink_to(bundle)
        assert files.context() is not before


# --- invalid files -----------------------------------------------------------------------------------------


def half_of(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def gone(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("spoil", [half_of, emptied, gone, a_folder])
@pytest.mark.parametrize("which", ["ca.pem", "my.pem", "my.key"])
def test_the_last_valid_files_stay_in_use(
    tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str, spoil: Callable[[Path], None]
) -> None:
    """If a file is half written, empty or missing, the last valid ones stay in use; both are logged once."""
    caplog.set_level(logging.INFO)
    files = TlsFiles(tls)
    good = files.context()
    held = (tmp_path / which).read_bytes()
    spoil(tmp_path / which)
    for _ in range(3):
        assert files.context() is good
    (complaint,) = caplog.records
    assert complaint.levelno == logging.WARNING
    assert str(tmp_path / which) in complaint.getMessage()
    assert "The last valid files stay in use" in complaint.getMessage()
    if (tmp_path / which).is_dir():
        (tmp_path / which).rmdir()
    (tmp_path / which).write_bytes(held)
    for _ in range(3):
        assert files.context()
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert "valid again" in caplog.text
    gone(tmp_path / which)
    files.context()
    assert len(caplog.records) == 3  # a new problem is logged again


@pytest.mark.parametrize("first", ["my.pem", "my.key"])
def test_a_pair_is_used_when_it_matches(tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture, first: str) -> None:
    """A new certificate with the old key, or the reverse, is used once the other half is there."""
    files = TlsFiles(tls)
    good = files.context()
    renewed = OLD.issue_cert("anna@example.org")
    new = {"my.pem": chain_of(renewed), "my.key": renewed.private_key_pem.bytes()}
    (tmp_path / first).write_bytes(new.pop(first))
    assert files.context() is good
    assert "my.key do not belong together" in caplog.text
    for other, contents in new.items():
        (tmp_path / other).write_bytes(contents)
    renewed_context = files.context()
    assert renewed_context is not good
    assert files.context() is renewed_context


def test_a_different_problem_is_logged_as_well(tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If one file is fixed and another becomes invalid, that one is named."""
    files = TlsFiles(tls)
    held = (tmp_path / "ca.pem").read_bytes()
    emptied(tmp_path / "ca.pem")
    files.context()
    (tmp_path / "ca.pem").write_bytes(held)
    emptied(tmp_path / "my.key")
    files.context()
    assert ["ca_file" in record.getMessage() for record in caplog.records] == [True, False]


def test_each_kind_of_invalid_file_has_its_message(tls: Tls, tmp_path: Path) -> None:
    """At the start, a missing file, one without a certificate, and a wrong key have different messages."""
    other = OLD.issue_cert("ben@example.org").private_key_pem.bytes()
    for which, contents, told in (
        ("my.key", other, r"cert_file, key_file: .*my\.pem and .*my\.key do not belong together"),
        ("my.key", b"nothing", r"my\.pem and .*my\.key are not a PEM certificate and its unencrypted key"),
        ("my.key", None, r"my\.pem or .*my\.key cannot be read \(No such file or directory\)"),
        ("ca.pem", b"nothing", r"ca_file: .*ca\.pem contains no PEM certificate"),
        ("ca.pem", None, r"ca_file: .*ca\.pem cannot be read \(No such file or directory\)"),
    ):
        (tmp_path / which).unlink()
        if contents is not None:
            (tmp_path / which).write_bytes(contents)
        with pytest.raises(TlsFileError, match=told):
            TlsFiles(tls)


# --- how strictly ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("strict_python")
def test_a_named_authority_is_trusted_as_it_is(tls: Tls) -> None:
    """Python's strict checks apply to the system's authorities, but not to a named one."""
    named, system = tls_context(tls), tls_context(Tls())
    assert not named.verify_flags & ssl.VERIFY_X509_STRICT
    assert named.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert system.verify_flags & ssl.VERIFY_X509_STRICT
    for context in (named, system):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
