"""How the broker is reached: TLS, its port, its certificate; and what went wrong there, in words for a person.

It knows nothing of MQTT. What a broker says, once it can be spoken to, is `connection`'s; the advice that belongs to
that stands here all the same, so that all advice about connecting is in one place.
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
        """What may have led to it and what to do, the most frequent first; empty where the text says it all."""


class Certificate(NamedTuple):
    """What a broker's certificate says, as far as it is looked at."""

    subject: str
    issuer: str
    until: float
    """Unix seconds."""


def reach(mqtt: Mqtt) -> str:
    """Connect to the broker's port, and leave; return the address that took the connection. Raises BrokerError."""
    with _dialled(mqtt) as sock:
        return str(sock.getpeername()[0])


def certificate(mqtt: Mqtt, tls: Tls) -> Certificate | None:
    """Make an encrypted connection to the broker, and leave; return the certificate, None where it is not verified.

    Raises BrokerError and TlsFileError.
    """
    context = tls_context(tls)
    with _explained(mqtt, tls):
        try:
            shown = _shown(mqtt, context)
        except ssl.SSLCertVerificationError as error:
            if error.verify_code not in _ANOTHER_NAME:
                raise
            context.check_hostname = False  # for a look at the names; nothing is sent
            why, causes = explain(error, tls=tls)
            raise _cannot_connect(mqtt, why, (_names_in(_shown(mqtt, context)), *causes[1:])) from None
    if not shown:
        return None
    subject, issuer = _common(shown, "subject"), _common(shown, "issuer")
    return Certificate(
        subject=subject.get("commonName") or ", ".join(_alternatives(shown)) or "nobody",
        issuer=issuer.get("organizationName") or issuer.get("commonName") or "nobody",
        until=ssl.cert_time_to_seconds(shown["notAfter"]),
    )


def _shown(mqtt: Mqtt, context: ssl.SSLContext) -> dict[str, Any]:
    """Return the broker's certificate as Python writes it; empty where it is not verified."""
    with _dialled(mqtt) as sock, context.wrap_socket(sock, server_hostname=mqtt.host) as secured:
        return dict(secured.getpeercert() or {})


def _common(shown: dict[str, Any], who: str) -> dict[str, str]:
    return dict(pair for part in shown[who] for pair in part)


def _alternatives(shown: dict[str, Any]) -> list[str]:
    return [name for _, name in shown.get("subjectAltName", ())]


def _names_in(shown: dict[str, Any]) -> str:
    """Say which names a certificate is made for."""
    alternatives = _alternatives(shown)
    if alternatives:
        return f"The certificate is made for {', '.join(alternatives)}: write one of these into mqtt.host."
    common = _common(shown, "subject").get("commonName", "nothing")
    return (
        f"The certificate has no subjectAltName, only the common name {common}: that is good for a host name, "
        "never for an address. Write the host name into mqtt.host, or make a new certificate."
    )


@contextlib.contextmanager
def _explained(mqtt: Mqtt, tls: Tls | None) -> Iterator[None]:
    """Turn what can fail while connecting into a BrokerError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise _cannot_connect(mqtt, *explain(error, tls=tls)) from None


def _cannot_connect(mqtt: Mqtt, why: str, causes: tuple[str, ...]) -> BrokerError:
    return BrokerError(f"cannot connect to the broker at {mqtt.host}:{mqtt.port}: {why}", causes)


def _dialled(mqtt: Mqtt) -> socket.socket:
    with _explained(mqtt, None):
        return socket.create_connection((mqtt.host, mqtt.port), CONNECT_SECONDS)


_NOT_THERE: Final = (
    "The broker does not run, or not on that machine: on it, look at `systemctl status mosquitto`.",
    "Mosquitto 2 takes connections of its own machine alone until its configuration has a line `listener 1883`.",
    "In a container, localhost is the container itself: write the name of the broker's container or machine.",
    "A firewall is between, or the port is another one: mqtt.port; with TLS it is mostly 8883.",
)
_NO_NAME: Final = (
    "The name is misspelt, or known to some machines only: try the broker's address in its place, as 192.168.1.2.",
    "This machine has no network or no name server yet: then other names cannot be looked up either.",
)
_OUR_CERTIFICATE: Final = "The broker wants a certificate of this client: mqtt.tls.cert_file and key_file."
_NO_TLS: Final = (
    "Behind that port the broker does not speak TLS: with TLS it is mostly 8883, without it 1883.",
    _OUR_CERTIFICATE,
    "The broker is frozen or overloaded.",
)
_TLS_REFUSED: Final = (
    _OUR_CERTIFICATE,
    "It is so old, or so new, that it has no version of TLS or no cipher in common with this machine.",
)
NO_MQTT: Final = (
    "The broker wants TLS at that port: write tls: true below mqtt:, or take the port without TLS, mostly 1883.",
    "Something else listens there: MQTT over WebSockets (mostly 9001) and web pages are of no use.",
)
NO_MQTT_OVER_TLS: Final = (_OUR_CERTIFICATE, NO_MQTT[1])
CLIENT_ID: Final = "The broker admits certain client ids only: mqtt.client_id, to which check and purge add a word."
REFUSED: Final = (
    "mqtt.username or mqtt.password is wrong or missing; with Mosquitto, mosquitto_passwd makes users.",
    "With the broker inside Home Assistant, it is the name and password of one of its users.",
    CLIENT_ID,
)
OTHER_MQTT: Final = ("Write protocol: auto below mqtt:, or leave it out: then the other one is tried, too.",)
BROKE_OFF: Final = (
    "The broker was restarted, or the network broke: try again.",
    "It does not take something that was sent, such as retained messages: its log says what.",
)


_RECIPE: Final = "docs/security.md has the commands that make one"
_CLOCK: Final = "`timedatectl` shows it, and `sudo timedatectl set-ntp true` sets it by the network."
_EXPIRED: Final = (
    "The broker's certificate, or its authority's, is due: the broker has to have a new one, and to be restarted.",
    f"This machine's clock is ahead: {_CLOCK}",
)
_NOT_YET_VALID: Final = (
    f"This machine's clock is behind: {_CLOCK}",
    "The clock of the machine that made the certificate was ahead: create it again.",
)
_OTHER_HOST: Final = (
    "mqtt.host has to be a name that the certificate is made for.",
    f"Make a certificate that has this name as subjectAltName: {_RECIPE}.",
)
_OTHER_ADDRESS: Final = (
    "Only an address that is a subjectAltName of the certificate is good: write a name that it is made for.",
    f"Make a certificate that has this address as subjectAltName: {_RECIPE}.",
)
_UNKNOWN_AUTHORITY: Final = (
    "The authority is your own: name its file (ca.crt, never its key) in mqtt.tls.ca_file.",
    "It is a well-known one, but those in between are missing: with Mosquitto, certfile has to be the full chain.",
    "This machine's list of well-known ones is missing or old: `sudo apt install ca-certificates`.",
)
_NOT_OF_THIS_AUTHORITY: Final = (
    "That file is old or another one: copy the one that signed the broker's certificate. It is read at each try.",
    "Those in between are missing: with Mosquitto, certfile has to be the full chain.",
    "The certificate comes from a well-known authority, such as Let's Encrypt: leave ca_file out.",
)
_SELF_SIGNED: Final = (
    "It is signed by itself: copy the broker's certificate (never its key) here, and name it in mqtt.tls.ca_file.",
)
_STRICT: Final = "Python 3.13 is strict about the system's authorities: name the authority's file in mqtt.tls.ca_file."
_OTHERWISE_BAD: Final = f"It, or its authority's, is too weak or not made for a server: make a new one; {_RECIPE}."

_ANOTHER_NAME: Final = frozenset({62, 64})
"""Numbers of OpenSSL (X509_V_ERR_…, x509_vfy.h), here and below: HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH."""
_NO_AUTHORITY: Final = frozenset({2, 7, 19, 20, 21})
"""The issuer is not there, or has another key: UNABLE_TO_GET_ISSUER_CERT (and _LOCALLY), CERT_SIGNATURE_FAILURE,
SELF_SIGNED_CERT_IN_CHAIN, UNABLE_TO_VERIFY_LEAF_SIGNATURE."""


def _unaccepted(error: ssl.SSLCertVerificationError, *, authority_named: bool) -> tuple[str, tuple[str, ...]]:
    """Say what to look at where the broker's certificate is not accepted, and what may be wrong."""
    told: tuple[str, tuple[str, ...]]
    match error.verify_code:
        case 9:  # CERT_NOT_YET_VALID
            told = "check this machine's clock", _NOT_YET_VALID
        case 10:  # CERT_HAS_EXPIRED
            told = "the broker needs a new one, unless this machine's clock is wrong", _EXPIRED
        case 62:
            told = "check mqtt.host: the certificate is made for other names", _OTHER_HOST
        case 64:
            told = "check mqtt.host: an address has to be in the certificate", _OTHER_ADDRESS
        case 18:  # DEPTH_ZERO_SELF_SIGNED_CERT
            told = "check mqtt.tls.ca_file: it has to be this very certificate", _SELF_SIGNED
        case code if code in _NO_AUTHORITY and authority_named:
            told = "mqtt.tls.ca_file is not the authority that signed it", _NOT_OF_THIS_AUTHORITY
        case code if code in _NO_AUTHORITY:
            told = "for an authority of your own, set mqtt.tls.ca_file", _UNKNOWN_AUTHORITY
        case _:
            told = "check mqtt.tls", (_OTHERWISE_BAD,) if authority_named else (_STRICT, _OTHERWISE_BAD)
    look_at, causes = told
    return f"its certificate is not accepted ({error.verify_message.rstrip('.')}); {look_at}", causes


_RENEWED: Final = "The files are read anew at each try: once they are replaced, nothing has to be restarted."
_NONE_SHOWN: Final = (
    "Make one that the broker's authority has signed, and name it and its key: mqtt.tls.cert_file and key_file.",
    "With Mosquitto, `require_certificate false` lets clients in without one.",
)
_UNACCEPTED_OF_OURS: Final = {
    "certificate expired": (
        f"This client's certificate is due for a new one. {_RENEWED}",
        "The clock of the broker's machine is wrong.",
    ),
    "unknown ca": (
        "It is of another authority than the broker trusts: with Mosquitto that is its cafile, read at its start.",
        "The authorities in between are missing: append them to mqtt.tls.cert_file, below this client's own.",
    ),
    "certificate revoked": (f"The broker's list of revoked certificates has it: make a new one. {_RENEWED}",),
}
_UNACCEPTED_ANYHOW: Final = (
    "The broker's log says what it does not like about mqtt.tls.cert_file.",
    f"It may be out of date, or of an authority that the broker does not trust. {_RENEWED}",
)
_OF_OURS: Final = ("certificate", "unknown ca", "access denied", "decrypt error")
"""What is in the alerts that speak of the other side's certificate."""


def _alert(error: Exception) -> str:
    """Return the broker's own word on why it ends the encryption, as ``certificate expired``; empty where it gave none.

    OpenSSL's are as ``TLSV13_ALERT_CERTIFICATE_REQUIRED``; the names are those of RFC 8446, section 6.
    """
    _, alert, word = str(getattr(error, "reason", None) or "").partition("_ALERT_")
    return word.replace("_", " ").lower() if alert else ""


def _unwelcome(alert: str, *, shown: bool) -> tuple[str, tuple[str, ...]]:
    """Say what the broker has against us, where it spoke of certificates: it can only mean ours."""
    if not shown:
        return f"it wants a certificate of this client ({alert}); set mqtt.tls.cert_file and key_file", _NONE_SHOWN
    causes = _UNACCEPTED_OF_OURS.get(alert, _UNACCEPTED_ANYHOW)
    return f"it does not accept this client's certificate ({alert}); check mqtt.tls.cert_file", causes


def explain(error: Exception, *, tls: Tls | None) -> tuple[str, tuple[str, ...]]:
    """Say what failed while connecting, and what may have led to it and what to do, the most frequent first.

    ``tls`` is None where it cannot have been the encryption.
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
            why = "no answer; check mqtt.host, mqtt.port, and any firewall between"
            told = why, _NO_TLS if tls else _NOT_THERE
        case OSError():
            told = f"{error.strerror or type(error).__name__}; check mqtt.host and this machine's network", _NOT_THERE
        case _:
            told = f"{type(error).__name__}; check mqtt.host and mqtt.port", _NO_NAME
    return told
