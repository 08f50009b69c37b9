"""How the broker is reached: TLS, its port, its certificate; and what went wrong there, in words for a person.

It knows nothing of MQTT. What a broker says, once it can be spoken to, is `connection`'s; the advice that belongs to
that stands here all the same, so that all advice about connecting is in one place.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.config import Mqtt, Tls

CONNECT_SECONDS: Final = 5.0


class BrokerError(Exception):
    """The broker cannot be used; the text says why, and what to look at."""

    def __init__(self, text: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.causes = causes
        """What may have led to it and what to do, the most frequent first; empty where the text says it all."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a broker's certificate says, as far as it is looked at."""

    subject: str
    issuer: str
    until: float
    """Unix seconds."""


class TlsFileError(Exception):
    """A file of the TLS settings is no good; the text names the key and the file."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Make a TLS context of its settings. Raises TlsFileError."""
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except OSError as error:
        raise TlsFileError(f"mqtt.tls.ca_file: {tls.ca_file} holds no certificate in PEM ({error})") from None
    if tls.cert_file:
        try:
            # An empty password makes an encrypted key an error; without it, OpenSSL would ask on the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
        except OSError as error:
            files = f"{tls.cert_file} and {tls.key_file}" if tls.key_file else tls.cert_file
            raise TlsFileError(
                f"mqtt.tls.cert_file, key_file: {files} are no certificate with its unencrypted key in PEM ({error})"
            ) from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def reach(mqtt: Mqtt) -> str:
    """Connect to the broker's port, and leave; return the address that took the connection. Raises BrokerError."""
    with _dialled(mqtt) as sock:
        return str(sock.getpeername()[0])


def certificate(mqtt: Mqtt, tls: Tls) -> Certificate | None:
    """Make an encrypted connection to the broker, and leave; return the certificate, None where it is not verified.

    Raises BrokerError and TlsFileError.
    """
    context = tls_context(tls)
    with (
        _dialled(mqtt) as sock,
        _explained(mqtt, tls=True),
        context.wrap_socket(sock, server_hostname=mqtt.host) as secured,
    ):
        shown: Any = secured.getpeercert()
    if not shown:
        return None
    subject, issuer = (dict(pair for part in shown[who] for pair in part) for who in ("subject", "issuer"))
    names = [name for _, name in shown.get("subjectAltName", ())]
    return Certificate(
        subject=subject.get("commonName") or ", ".join(names) or "nobody",
        issuer=issuer.get("organizationName") or issuer.get("commonName") or "nobody",
        until=ssl.cert_time_to_seconds(shown["notAfter"]),
    )


@contextlib.contextmanager
def _explained(mqtt: Mqtt, *, tls: bool) -> Iterator[None]:
    """Turn what can fail while connecting into a BrokerError."""
    try:
        yield
    except (OSError, ValueError) as error:
        why, causes = explain(error, tls=tls)
        raise BrokerError(f"cannot connect to the broker at {mqtt.host}:{mqtt.port}: {why}", causes) from None


def _dialled(mqtt: Mqtt) -> socket.socket:
    with _explained(mqtt, tls=False):
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
_NOT_TRUSTED: Final = (
    "The broker has a certificate of an authority of your own: name that authority's file in mqtt.tls.ca_file.",
    "mqtt.host has to be a name that the certificate is made for; an address works only if the certificate has it.",
    "The certificate is out of date, or this machine's clock is wrong.",
)
_OUR_CERTIFICATE: Final = "The broker wants a certificate of this client: mqtt.tls.cert_file and key_file."
_NO_TLS: Final = (
    "Behind that port the broker does not speak TLS: with TLS it is mostly 8883, without it 1883.",
    _OUR_CERTIFICATE,
    "The broker is frozen or overloaded.",
)
NO_MQTT: Final = (
    "The broker wants TLS at that port: write tls: {} below mqtt:, or take the port without TLS, mostly 1883.",
    "Something else listens there: MQTT over WebSockets (mostly 9001) and web pages are of no use.",
)
NO_MQTT_OVER_TLS: Final = (_OUR_CERTIFICATE, NO_MQTT[1])
REFUSED: Final = (
    "mqtt.username or mqtt.password is wrong or missing; with Mosquitto, mosquitto_passwd makes users.",
    "With the broker inside Home Assistant, it is the name and password of one of its users.",
    "The broker admits certain client ids only: mqtt.client_id, to which check and purge add a word.",
)
OTHER_MQTT: Final = ("Write protocol: auto below mqtt:, or leave it out: then the other one is tried, too.",)
BROKE_OFF: Final = (
    "The broker was restarted, or the network broke: try again.",
    "It does not take something that was sent, such as retained messages: its log says what.",
)


def explain(error: Exception, *, tls: bool) -> tuple[str, tuple[str, ...]]:
    """Say what failed while connecting, and what may have led to it and what to do, the most frequent first.

    ``tls`` is whether that may have been the encryption.
    """
    told: tuple[str, tuple[str, ...]]
    match error:
        case socket.gaierror():
            told = "its name cannot be looked up; check mqtt.host", _NO_NAME
        case ConnectionRefusedError():
            told = "nothing listens there; is the broker running? check mqtt.host and mqtt.port", _NOT_THERE
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not accepted ({error.verify_message}); check mqtt.tls and this machine's clock"
            told = why, _NOT_TRUSTED
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
