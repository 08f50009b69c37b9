"""The files of the TLS settings: the trusted authority and the client certificate, checked before each connection.

It makes contexts and opens no connections. An invalid file prevents the start; later, the last valid files stay in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dexcom2mqtt.config.settings import Tls

_log = logging.getLogger(__name__)


class TlsFileError(Exception):
    """A file of the TLS settings is invalid; the text names the key and the file."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return a TLS context for these settings. Raises TlsFileError."""
    context = _trusting(tls.ca_file)
    if tls.cert_file and tls.key_file:
        _load_own(context, tls.cert_file, tls.key_file)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise TlsFileError(f"mqtt.tls.ca_file: {ca_file} contains no PEM certificate ({error})") from None
    except OSError as error:
        raise TlsFileError(f"mqtt.tls.ca_file: {ca_file} cannot be read ({error.strerror})") from None
    if ca_file is not None:
        # Python 3.13 requires more than openssl's commands put into a certificate. Users who name a file trust it as it
        # is: an authority made as in Mosquitto's manual, an intermediate one, or the broker's own certificate.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_own(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    """Load the client's certificate and key into the context."""
    files = f"{cert_file} and {key_file}"
    try:
        # The empty password makes an encrypted key an error; without it, OpenSSL would ask on the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsFileError(f"mqtt.tls.cert_file, key_file: {files} do not belong together") from None
        raise TlsFileError(
            f"mqtt.tls.cert_file, key_file: {files} are not a PEM certificate and its unencrypted key ({error})"
        ) from None
    except OSError as error:
        raise TlsFileError(
            f"mqtt.tls.cert_file, key_file: {cert_file} or {key_file} cannot be read ({error.strerror})"
        ) from None


class TlsFiles:
    """The authority and the client's certificate, as last read from valid files.

    Files can be renewed while the daemon runs: rewritten, replaced, or by changing a link. So contents are compared,
    since sizes and times may be equal. A new context is made only if they differ, because loading the system's
    authorities takes a while on a Raspberry Pi. Without ``tls`` there is no context at all.

    Raises TlsFileError.
    """

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._contents = None if tls is None else _contents_of(tls)
        self._context = None if tls is None else tls_context(tls)
        self._trouble: str | None = None  # the last logged problem, until it is over

    def context(self) -> ssl.SSLContext | None:
        """Return the context for the next connection; log once when a file is invalid, and once when all are valid."""
        if self._tls is not None:
            try:
                self._renew(self._tls)
            except TlsFileError as error:
                self._complain(str(error))
            else:
                self._recovered()
        return self._context

    def _renew(self, tls: Tls) -> None:
        contents = _contents_of(tls)
        if contents != self._contents:
            self._context = tls_context(tls)
            # Read before loading, so that the next check notices anything written in between.
            self._contents = contents

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("%s. The last valid files stay in use until this is fixed", trouble)

    def _recovered(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            _log.info("mqtt.tls: the files are valid again, and in use from this connection on")


def _contents_of(tls: Tls) -> list[bytes | int | None]:
    """Return a digest of each file, None for one that cannot be read, to see whether anything has changed."""
    system = ssl.get_default_verify_paths()
    files = [tls.ca_file or system.cafile, tls.cert_file, tls.key_file]
    contents: list[bytes | int | None] = [_digest(Path(file)) for file in files if file is not None]
    if tls.ca_file is None and system.capath is not None:  # OpenSSL reads its files only when it needs them
        contents.append(_changed_at(Path(system.capath)))
    return contents


def _digest(file: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return hashlib.sha256(file.read_bytes()).digest()
    return None


def _changed_at(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime_ns
    return None
