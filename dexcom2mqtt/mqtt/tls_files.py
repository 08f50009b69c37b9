"""The files of the TLS settings: what this client trusts and shows, read anew for each connection.

It makes contexts and opens no connection. That a file is no good ends the start alone: later, the last good ones serve.
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
    """A file of the TLS settings is no good; the text names the key and the file."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Make a TLS context of its settings. Raises TlsFileError."""
    context = _trusting(tls.ca_file)
    if tls.cert_file and tls.key_file:
        _show(context, tls.cert_file, tls.key_file)
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
        # Python 3.13 asks more of a certificate than openssl's own commands put into one. Whoever names a file trusts
        # it as it is, be it an authority by the recipe of Mosquitto's manual, one in between, or the broker's own.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _show(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    """Let the broker see the client's certificate."""
    files = f"{cert_file} and {key_file}"
    try:
        # An empty password makes an encrypted key an error; without it, OpenSSL would ask on the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsFileError(f"mqtt.tls.cert_file, key_file: {files} do not belong together") from None
        raise TlsFileError(
            f"mqtt.tls.cert_file, key_file: {files} are no certificate with its unencrypted key in PEM ({error})"
        ) from None
    except OSError as error:
        raise TlsFileError(f"mqtt.tls.cert_file, key_file: {files} cannot both be read ({error.strerror})") from None


class TlsFiles:
    """The authority and the client's certificate, as their files are now or, where those are no good, last were.

    Files are renewed while the daemon runs: rewritten, replaced, or by a link that leads elsewhere. So contents are
    compared, since sizes and times can be equal all the same; only where they differ is a context made anew, because
    a Raspberry Pi takes a while for the system's authorities. Without ``tls`` there is no context at all.

    Raises TlsFileError.
    """

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._contents = None if tls is None else _contents_of(tls)
        self._context = None if tls is None else tls_context(tls)
        self._trouble: str | None = None  # as it was said last, and is not yet over

    def context(self) -> ssl.SSLContext | None:
        """Return the context for the next connection; log once what is wrong with the files, and that it is over."""
        if self._tls is not None:
            try:
                self._renew(self._tls)
            except TlsFileError as error:
                self._complain(str(error))
            else:
                self._rejoice()
        return self._context

    def _renew(self, tls: Tls) -> None:
        contents = _contents_of(tls)
        if contents != self._contents:
            self._context = tls_context(tls)
            # As they were before they were loaded: what is written meanwhile is another difference at the next look.
            self._contents = contents

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("%s. What was read before stays in use until the files are good", trouble)

    def _rejoice(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            _log.info("mqtt.tls: the files are good again, and used from this connection on")


def _contents_of(tls: Tls) -> list[bytes | int | None]:
    """Return what tells whether anything was changed: a digest of each file, None for one that cannot be read."""
    system = ssl.get_default_verify_paths()
    files = [tls.ca_file or system.cafile, tls.cert_file, tls.key_file]
    contents: list[bytes | int | None] = [_digest(Path(file)) for file in files if file is not None]
    if tls.ca_file is None and system.capath is not None:  # OpenSSL reads single files there when it needs them
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
