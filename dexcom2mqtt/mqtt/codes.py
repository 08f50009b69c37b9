"""What the reason codes of a broker mean: why it lets nobody in, why it hangs up, and why it refuses something.

The codes are those of MQTT 5, section 2.4; paho turns those of 3.1.1 into them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dexcom2mqtt.mqtt import dialling
from dexcom2mqtt.mqtt.outcome import Failure, Refusal

if TYPE_CHECKING:
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
"""Codes of a DISCONNECT that are not about what was sent: left, busy, shutting down, idle, ended by a person, moved."""
_BAD_CREDENTIALS: Final = frozenset({0x86, 0x87, 0x8C})  # bad user name or password; not authorized; bad method
_BAD_CLIENT_ID: Final = 0x85


def refusal(code: int, words: str) -> Refusal | None:
    """Return why a broker refuses a message or a subscription; None if it does not."""
    return Refusal(_REASONS.get(code, "other"), words) if code >= _FAILURE else None


def of_connack(code: int, words: str, place: str, protocol: Protocol, client_id: str) -> Failure:
    """Say why the broker at ``place`` does not let us in."""
    if code == _PROTOCOL_REFUSED:
        return Failure(f"{place} does not take MQTT {protocol}", dialling.OTHER_MQTT, ending="protocol_refused")
    if code in _BAD_CREDENTIALS:
        text = f"{place} refuses this daemon ({words}): check mqtt.username and mqtt.password"
        return Failure(text, dialling.REFUSED)
    if code in {_QOS_NOT_SUPPORTED, _RETAIN_NOT_SUPPORTED}:
        return Failure(f"{place} does not take the last will ({words})", ending="will_refused")
    if code == _BAD_CLIENT_ID:
        return Failure(f"{place} does not admit the client id {client_id} ({words}): mqtt.client_id", dialling.REFUSED)
    return Failure(f"{place} refuses the connection ({words}); its log says why")


def of_disconnect(code: int, text: str, *, busy: bool) -> Failure:
    """Say what a DISCONNECT of the broker means: if something was on its way, most are about that."""
    if code == _SESSION_TAKEN_OVER:
        return Failure(text, dialling.BROKE_OFF, "taken_over", certain=True)
    if code in _NOT_ABOUT_US or not busy:
        return Failure(text, dialling.BROKE_OFF)
    return Failure(text, dialling.BROKE_OFF, "closed_busy", reason=_REASONS.get(code, "hang_up"))
