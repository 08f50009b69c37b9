"""Reaches the broker's port, checks its certificate, and explains in words what went wrong.

It knows nothing about MQTT: `connection` handles what a broker says. The advice on those answers is here all the same,
so that all advice about connecting is in one place.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dexcom2mqtt.mqtt.tls_files import tls_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.config.settings import Mqtt, Tls

CONNECT_SECONDS: Final = 5.0


class BrokerError(Exception):
    """The broker cannot be used; the text says why, and what to look at."""

    def __init__(self, text: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.causes = causes
        """Possible causes and what to do, the most likely first; empty if the text says enough."""


class Certificate(NamedTuple):
    """The fields of a broker's certificate that `check` shows."""

    subject: str
    issuer: str
    until: float
    """Unix seconds."""


def reach(mqtt: Mqtt) -> str:
    """Connect to the broker's port and disconnect; return the address that accepted. Raises BrokerError."""
    with _dialled(mqtt) as sock:
        return str(sock.getpeername()[0])


def certificate(mqtt: Mqtt, tls: Tls) -> Certificate | None:
    """Connect with TLS and disconnect; return the broker's certificate, or None if it is not verified.

    Raises BrokerError and TlsFileError.
    """
    context = tls_context(tls)
    with _explained(mqtt, tls):
        try:
            shown = _shown(mqtt, context)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code not in _ANOTHER_NAME:
                raise
            context.check_hostname = False  # only to read the names; nothing is sent
            why, causes = explain(error, tls=tls)
            raise _cannot_connect(mqtt, why, (_names_in(_shown(mqtt, context)), *causes[1:])) from None
    if not shown:
        return None
    subject, issuer = _common(shown, "subject"), _common(shown, "issuer")
    return Certificate(
        subject=subject.get("commonName") or ", ".join(_alternatives(shown)) or "without a name",
        issuer=issuer.get("organizationName") or issuer.get("commonName") or "an authority without a name",
        until=ssl.cert_time_to_seconds(shown["notAfter"]),
    )


def _shown(mqtt: Mqtt, context: ssl.SSLContext) -> dict[str, Any]:
    """Return the broker's certificate in Python's format; empty if it is not verified."""
    with _dialled(mqtt) as sock, context.wrap_socket(sock, server_hostname=mqtt.host) as secured:
        return dict(secured.getpeercert() or {})


def _common(shown: dict[str, Any], who: str) -> dict[str, str]:
    return dict(pair for part in shown[who] for pair in part)


def _alternatives(shown: dict[str, Any]) -> list[str]:
    return [name for _, name in shown.get("subjectAltName", ())]


def _names_in(shown: dict[str, Any]) -> str:
    """Say which names a certificate is valid for."""
    alternatives = _alternatives(shown)
    if alternatives:
        return f"The certificate is valid for {', '.join(alternatives)}: set mqtt.host to one of these."
    common = _common(shown, "subject").get("commonName", "(none)")
    return (
        f"The certificate has no subjectAltName, only the common name {common}, which can match a host name but not an "
        "address. Set mqtt.host to the host name, or create a new certificate."
    )


@contextlib.contextmanager
def _explained(mqtt: Mqtt, tls: Tls | None) -> Iterator[None]:
    """Turn errors while connecting into a BrokerError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise _cannot_connect(mqtt, *explain(error, tls=tls)) from None


def _cannot_connect(mqtt: Mqtt, why: str, causes: tuple[str, ...]) -> BrokerError:
    return BrokerError(f"cannot connect to the broker at {mqtt.host}:{mqtt.port}: {why}", causes)


def _dialled(mqtt: Mqtt) -> socket.socket:
    with _explained(mqtt, None):
        return socket.create_connection((mqtt.host, mqtt.port), CONNECT_SECONDS)


_LOCAL_ONLY: Final = (
    "Mosquitto 2 accepts only local connections until a file /etc/mosquitto/conf.d/*.conf has a line `listener 1883`. "
    "It then also needs a password file or `allow_anonymous true`: docs/security.md shows the safe way."
)
_NOT_THERE: Final = (
    "The broker is not running, or runs on another machine. On its machine, run `systemctl status mosquitto`.",
    _LOCAL_ONLY,
    "In a container, localhost is the container itself: set mqtt.host to the broker's container or machine.",
    "A firewall blocks the connection, or mqtt.port is wrong: usually it is 1883, with TLS 8883.",
)
_NO_NAME: Final = (
    "The name is misspelled, or only some machines know it: try the broker's address, such as 192.168.1.2.",
    "This machine has no network or no name server yet. Then it cannot look up other names either.",
)
_OUR_CERTIFICATE: Final = "The broker requires a client certificate: set mqtt.tls.cert_file and key_file."
_NO_TLS: Final = (
    "The broker does not use TLS on that port: usually the port is 8883 with TLS, and 1883 without.",
    _OUR_CERTIFICATE,
    "The broker is frozen or overloaded.",
)
_TLS_REFUSED: Final = (
    _OUR_CERTIFICATE,
    "The broker and this machine have no TLS version or no cipher in common, as one of them is too old.",
)
NO_MQTT: Final = (
    "The broker requires TLS on that port: write tls: true below mqtt:, or use its port without TLS, usually 1883.",
    "Something else listens there, such as MQTT over WebSockets (usually port 9001) or a web server.",
)
NO_MQTT_OVER_TLS: Final = (_OUR_CERTIFICATE, NO_MQTT[1])
CLIENT_ID: Final = "The broker allows only certain client ids: mqtt.client_id, to which check and purge append a word."
REFUSED: Final = (
    "mqtt.username or mqtt.password is wrong or missing; with Mosquitto, mosquitto_passwd creates users.",
    "With the broker in Home Assistant, use the name and password of a Home Assistant user.",
    CLIENT_ID,
)
OTHER_MQTT: Final = ("Write protocol: auto below mqtt:, or remove it: the daemon then tries both versions.",)
BROKE_OFF: Final = (
    "The broker was restarted, or the network failed: try again.",
    "The broker refuses something that was sent, such as retained messages: its log says what.",
)


_RECIPE: Final = "docs/security.md has the commands"
_CLOCK: Final = "`timedatectl` shows it, and `sudo timedatectl set-ntp true` sets it from the network."
_EXPIRED: Final = (
    "The broker's certificate or its authority's has expired: install a new one and restart the broker.",
    f"This machine's clock is ahead: {_CLOCK}",
)
_NOT_YET_VALID: Final = (
    f"This machine's clock is behind: {_CLOCK}",
    "The clock of the machine that made the certificate was ahead: create it again.",
)
_OTHER_HOST: Final = (
    "mqtt.host must be a name that the certificate is valid for.",
    f"Create a certificate that has this name as subjectAltName: {_RECIPE}.",
)
_OTHER_ADDRESS: Final = (
    "An address must be a subjectAltName of the certificate. Set mqtt.host to a name that it is valid for.",
    f"Create a certificate that has this address as subjectAltName: {_RECIPE}.",
)
_UNKNOWN_AUTHORITY: Final = (
    "If it is your own authority, set mqtt.tls.ca_file to its certificate (ca.crt, never its key).",
    "If it is a well-known one, intermediate certificates are missing: in Mosquitto, certfile must be the full chain.",
    "This machine's list of well-known authorities is missing or old: `sudo apt install ca-certificates`.",
)
_NOT_OF_THIS_AUTHORITY: Final = (
    "That file is old or wrong: copy the authority that signed the broker's certificate. No restart is needed.",
    "Intermediate certificates are missing: in Mosquitto, certfile must be the full chain.",
    "The certificate comes from a well-known authority, such as Let's Encrypt: remove ca_file.",
)
_SELF_SIGNED: Final = (
    "It is self-signed: copy the broker's certificate (never its key) here, and set mqtt.tls.ca_file to it.",
)
_STRICT: Final = "Python 3.13 is strict about the system's authorities: set mqtt.tls.ca_file to the authority's file."
_OTHERWISE_BAD: Final = f"It or its authority's is too weak, or not valid for a server. Create a new one: {_RECIPE}."

_ANOTHER_NAME: Final = frozenset({62, 64})
"""Numbers of OpenSSL (X509_V_ERR_…, x509_vfy.h), here and below: HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH."""
_NO_AUTHORITY: Final = frozenset({2, 7, 19, 20, 21})
"""The issuer is missing or has another key: UNABLE_TO_GET_ISSUER_CERT (and _LOCALLY), CERT_SIGNATURE_FAILURE,
SELF_SIGNED_CERT_IN_CHAIN, UNABLE_TO_VERIFY_LEAF_SIGNATURE."""


def _unaccepted(error: ssl.SSLCertVerificationError, *, authority_named: bool) -> tuple[str, tuple[str, ...]]:
    """Say why the broker's certificate is not accepted, what to check, and the possible causes."""
    told: tuple[str, tuple[str, ...]]
    match error.verify_code:
        case 9:  # CERT_NOT_YET_VALID
            told = "check this machine's clock", _NOT_YET_VALID
        case 10:  # CERT_HAS_EXPIRED
            told = "the broker needs a new one, unless this machine's clock is wrong", _EXPIRED
        case 62:
            told = "check mqtt.host: the certificate is for other names", _OTHER_HOST
        case 64:
            told = "check mqtt.host: the certificate does not list this address", _OTHER_ADDRESS
        case 18:  # DEPTH_ZERO_SELF_SIGNED_CERT
            told = "set mqtt.tls.ca_file to a copy of this certificate", _SELF_SIGNED
        case code if code in _NO_AUTHORITY and authority_named:
            told = "mqtt.tls.ca_file is not the authority that signed it", _NOT_OF_THIS_AUTHORITY
        case code if code in _NO_AUTHORITY:
            told = "for your own authority, set mqtt.tls.ca_file", _UNKNOWN_AUTHORITY
        case _:
            told = "check mqtt.tls", (_OTHERWISE_BAD,) if authority_named else (_STRICT, _OTHERWISE_BAD)
    look_at, causes = told
    return f"its certificate is not accepted ({error.verify_message.rstrip('.')}); {look_at}", causes


_RENEWED: Final = "Replace the two files; no restart is needed."
_NONE_SHOWN: Final = (
    "Create one signed by the broker's authority, and set mqtt.tls.cert_file and key_file to it and its key.",
    "With Mosquitto, `require_certificate false` admits clients without one.",
)
_UNACCEPTED_OF_OURS: Final = {
    "certificate expired": (
        f"Create a new certificate for this client. {_RENEWED}",
        "The clock of the broker's machine is wrong.",
    ),
    "unknown ca": (
        "The broker does not trust its authority: in Mosquitto that is cafile, which is read only at the start.",
        "Intermediate certificates are missing: append them to mqtt.tls.cert_file.",
    ),
    "certificate revoked": (f"The broker's list of revoked certificates has it: create a new one. {_RENEWED}",),
}
_UNACCEPTED_ANYHOW: Final = (
    "The broker's log says what is wrong with mqtt.tls.cert_file.",
    f"It may have expired, or come from an authority that the broker does not trust. {_RENEWED}",
)
_OF_OURS: Final = ("certificate", "unknown ca", "access denied", "decrypt error")
"""Words in the alerts about the other side's certificate."""


def _alert(error: Exception) -> str:
    """Return the broker's reason for ending TLS, such as ``certificate expired``; empty if it gave none.

    OpenSSL writes ``TLSV13_ALERT_CERTIFICATE_REQUIRED``; the names are those of RFC 8446, section 6.
    """
    _, alert, word = str(getattr(error, "reason", None) or "").partition("_ALERT_")
    return word.replace("_", " ").lower() if alert else ""


def _unwelcome(alert: str, *, shown: bool) -> tuple[str, tuple[str, ...]]:
    """Say why the broker refuses our certificate, or that it requires one."""
    if not shown:
        return f"it requires a client certificate ({alert}); set mqtt.tls.cert_file and key_file", _NONE_SHOWN
    causes = _UNACCEPTED_OF_OURS.get(alert, _UNACCEPTED_ANYHOW)
    return f"it does not accept this client's certificate ({alert}); check mqtt.tls.cert_file", causes


def explain(error: Exception, *, tls: Tls | None) -> tuple[str, tuple[str, ...]]:
    """Return what failed while connecting, and its possible causes with what to do, the most likely first.

    ``tls`` is None if TLS cannot be the reason.
    """
    told: tuple[str, tuple[str, ...]]
    match error:
        case socket.gaierror():
            told = "its name cannot be looked up; check mqtt.host", _NO_NAME
        case ConnectionRefusedError():
            told = "nothing listens there; is the broker running? check mqtt.host and mqtt.port", _NOT_THERE
        case ssl.SSLCertVerificationError() if tls:
            told = _unaccepted(error, authority_named=tls.ca_file is not None)
        case ssl.SSLError() if tls and any(word in _alert(error) for word in _OF_OURS):
            told = _unwelcome(_alert(error), shown=tls.cert_file is not None)
        case ssl.SSLError() if tls and _alert(error):
            told = f"it refuses the encrypted connection ({_alert(error)}); its log says why", _TLS_REFUSED
        case ssl.SSLError() | ConnectionResetError() | BrokenPipeError() if tls:
            reason = getattr(error, "reason", None) or "closed"
            told = f"the encrypted connection fails ({reason}); check mqtt.port and mqtt.tls", _NO_TLS
        case TimeoutError():
            why = "no answer; check mqtt.host, mqtt.port and any firewall in between"
            told = why, _NO_TLS if tls else _NOT_THERE
        case OSError():
            told = f"{error.strerror or type(error).__name__}; check mqtt.host and this machine's network", _NOT_THERE
        case _:
            told = f"{type(error).__name__}; check mqtt.host and mqtt.port", _NO_NAME
    return told
