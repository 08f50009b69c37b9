"""Certificates on disk, as people make and renew them."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

RECIPE: Final = (
    "req -new -x509 -nodes -days 30 -extensions v3_ca -subj /CN=authority -keyout ca.key -out ca.crt",
    "genrsa -out server.key 2048",
    "req -out server.csr -key server.key -new -subj /CN={host}",
    "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 30",
)
"""The commands of mosquitto-tls(7), with answers to their questions."""


def by_the_manual(folder: Path, host: str) -> list[str]:
    """Make an authority and a broker's certificate as mosquitto's manual says; return mosquitto's settings."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; install the package openssl to run them")
    for command in RECIPE:
        arguments = [word.format(host=host) for word in command.split()]
        subprocess.run(["/usr/bin/openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
    return lines_of(folder / "ca.crt", folder / "server.crt", folder / "server.key")


def lines_of(ca_file: Path, cert_file: Path, key_file: Path) -> list[str]:
    """Return the settings with which mosquitto serves TLS with these files to every client."""
    return ["allow_anonymous true", f"cafile {ca_file}", f"certfile {cert_file}", f"keyfile {key_file}"]


def write(certificate: trustme.LeafCert, cert_file: Path, key_file: Path) -> None:
    """Write a certificate with its chain, and its key."""
    cert_file.write_bytes(chain_of(certificate))
    key_file.write_bytes(certificate.private_key_pem.bytes())


def chain_of(certificate: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
