"""What a broker's reason codes mean: why it refuses a connection, disconnects, or refuses a message or subscription.

The codes are those of MQTT 5, section 2.4; paho converts those of 3.1.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dexcom2mqtt.mqtt import dialling
from dexcom2mqtt.mqtt.outcome import Failure, Refusal

if TYPE_CHECKING:
    import ssl

    from dexcom2mqtt.config.settings import Tls
    from dexcom2mqtt.mqtt.outcome import Protocol, Reason

_PROTOCOL_REFUSED: Final = 0x84
_SESSION_TAKEN_OVER: Final = 0x8E
_FAILURE: Final = 0x80
_QOS_NOT_SUPPORTED: Final = 0x9B
_RETAIN_NOT_SUPPORTED: Final = 0x9A
_REASONS: Final[dict[int, Reason]] = {
    0x87: "rights", 0x90: "rights", 0x8F: "rights",  # not authorized; topic name, topic filter invalid
    0x95: "size", 0x99: "size",  # packet too large; payload format invalid
    0x93: "quota", 0x96: "quota", 0x97: "quota",  # receive maximum exceeded; message rate too high; quota exceeded
}  # fmt: skip
_NOT_ABOUT_US: Final = frozenset({0x00, 0x89, 0x8B, 0x8D, 0x98, 0x9C, 0x9D})
"""Codes of a DISCONNECT that has nothing to do with our messages: normal, busy, shutting down, idle, admin, moved."""
_BAD_CREDENTIALS: Final = frozenset({0x86, 0x87, 0x8C})  # bad user name or password; not authorized; bad method
_BAD_CLIENT_ID: Final = 0x85
_CLOSED: Final = 0x80  # paho's code for a connection that ended without DISCONNECT
_NOT_UNDERSTOOD: Final = 0x82  # paho's code for a connection that it ended because of a malformed packet


def refusal(code: int, words: str) -> Refusal | None:
    """Return why a broker refuses a message or a subscription; None if it accepts it."""
    return Refusal(_REASONS.get(code, "other"), words) if code >= _FAILURE else None


def unreachable(error: Exception, place: str, tls: Tls | None) -> Failure:
    """Say why the broker at ``place`` could not be reached."""
    why, causes = dialling.explain(error, tls=tls)
    return Failure(f"cannot connect to {place}: {why}", causes)


def of_connack(code: int, words: str, place: str, protocol: Protocol, client_id: str) -> Failure:
    """Say why the broker at ``place`` refuses the connection."""
    if code == _PROTOCOL_REFUSED:
        return Failure(f"{place} does not support MQTT {protocol}", dialling.OTHER_MQTT, ending="protocol_refused")
    if code in _BAD_CREDENTIALS:
        text = f"{place} refuses this daemon ({words}): check mqtt.username and mqtt.password"
        return Failure(text, dialling.REFUSED)
    if code in {_QOS_NOT_SUPPORTED, _RETAIN_NOT_SUPPORTED}:
        return Failure(f"{place} refuses the last will ({words})", ending="will_refused")
    if code == _BAD_CLIENT_ID:
        return Failure(f"{place} refuses the client id {client_id} ({words}): check mqtt.client_id", dialling.REFUSED)
    return Failure(f"{place} refuses the connection ({words}); its log says why")


def of_disconnect(code: int, text: str, *, busy: bool) -> Failure:
    """Say what the broker's DISCONNECT means. If something was unacknowledged (``busy``), most codes are about that."""
    if code == _SESSION_TAKEN_OVER:
        return Failure(text, dialling.BROKE_OFF, "taken_over", certain=True)
    if code in _NOT_ABOUT_US or not busy:
        return Failure(text, dialling.BROKE_OFF)
    return Failure(text, dialling.BROKE_OFF, "closed_busy", reason=_REASONS.get(code, "hang_up"))


def of_no_answer(code: int, place: str, tls: Tls | None, refusal: ssl.SSLError | None) -> Failure:
    """Say why a connection ended before the broker at ``place`` answered. ``refusal`` is the TLS error, if any."""
    if refusal is not None:
        return unreachable(refusal, place, tls)
    text = f"{place} closed the connection without an answer; is mqtt.port the right one?"
    causes = dialling.NO_MQTT if tls is None else dialling.NO_MQTT_OVER_TLS
    return Failure(text, causes, "closed_without_answer" if code == _CLOSED else "answered_wrongly")


def of_loss(code: int, lost: str, idle: float | None) -> Failure:
    """Say why a connection ended without a DISCONNECT.

    ``idle`` is how many real seconds nothing was sent or received, or None if something was unacknowledged.
    """
    if idle is None and code == _NOT_UNDERSTOOD:
        # Mosquitto 2.0 refuses messages above its message_size_limit with a code that a PUBACK must not have.
        return Failure(f"{lost}: the broker sent an answer that MQTT does not allow", dialling.BROKE_OFF, "closed_busy")
    if code == _CLOSED:
        return Failure(lost, dialling.BROKE_OFF, "closed_busy" if idle is None else "closed_idle", idle=idle)
    return Failure(lost, dialling.BROKE_OFF)
