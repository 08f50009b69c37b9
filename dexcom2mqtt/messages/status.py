"""How an account is doing: one table that says for each state what happened and what to do.

The log, the topic ``status``, systemd's status line and ``check`` all use this table. Nothing here quotes Share's
answers or contains a secret.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from dexcom2mqtt.clock import iso, parse_iso
from dexcom2mqtt.messages.message import ForeignError, Message, parse_object, to_json
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from dexcom2mqtt.topics import Topics

ShareState = Literal[
    "starting",
    "ok",
    "no_readings",
    "sensor_error",
    "phone_clock",
    "unavailable",
    "rate_limited",
    "credentials_rejected",
    "locked_out",
    "unexpected_response",
]
"""How an account is doing, in one word."""

REMEDIES: Final[dict[ShareState, str]] = {
    "starting": "Waiting for the first answer from Share.",
    "ok": "Readings arrive.",
    "no_readings": (
        "Share answers, but has no new reading. The sensor may be warming up, or the phone may be off or offline. If "
        "there has never been a reading: in the Dexcom app, sharing must be on and have at least one follower, and the "
        "credentials must be those of the person who wears the sensor, not a follower's."
    ),
    "sensor_error": (
        "The sensor sends error codes in place of readings. Look at the Dexcom app: it says what the sensor needs."
    ),
    "phone_clock": (
        "Readings have timestamps in the future: the clock of the wearer's phone is wrong. On the phone, set date and "
        "time to automatic. Until a reading arrives with the right time, no value is shown, because its age would be "
        "unknown. Look at the Dexcom app meanwhile."
    ),
    "unavailable": (
        "Share cannot be reached or is down. There is nothing to do for the first hour. If there is still no answer "
        "after that, check this machine's network and name resolution."
    ),
    "rate_limited": (
        "Share asks for fewer requests. The daemon waits before it asks again. If this repeats, stop other programs "
        "that read the same account or use the same internet connection for Share."
    ),
    "credentials_rejected": (
        "Share rejects the credentials. Check the region first (us, ous, jp), then user name and password. Write a "
        "phone number with + and the country code. The credentials must be those of the person who wears the sensor, "
        "not a follower's. Restart after a change. The daemon limits its sign-ins so that the account is not locked."
    ),
    "locked_out": (
        "Share has locked the account for a while after too many failed sign-ins. The daemon does not sign in for 20 "
        "minutes. Check the credentials, and stop other programs that sign in with an old password."
    ),
    "unexpected_response": (
        "Share sent an unexpected answer: maintenance, or a change of the service. The daemon keeps trying. If it "
        "lasts for a day, look for a newer version of dexcom2mqtt."
    ),
}
"""What happened and what to do, by the value of ``share``."""

LATE: Final = (
    "New readings arrive, but each is too old to be shown as current. Either the clock of the wearer's phone is behind "
    "(set date and time to automatic), or the phone uploads late (check its network, and the battery settings of the "
    "Dexcom app)."
)
UNSETTLED: Final = (
    "Readings seem to come from the future. Either Share's clock or the phone's is wrong; the next answer, in half a "
    "minute, will show which."
)
NOTHING_SHARED: Final = (
    "Nothing is shared from this account: it has no sensor yet, sharing is off, or nobody follows it. In the Dexcom "
    "app of the person who wears the sensor, start the sensor, switch sharing on, and invite a follower. The "
    "credentials must be that person's, not a follower's. Readings then arrive by themselves."
)
NEWEST_MALFORMED: Final = (
    "The newest record that Share sends makes no sense, so no reading is current; older readings still count. The next "
    "one may be valid: until then, look at the Dexcom app. If it lasts for a day, look for a newer version of "
    "dexcom2mqtt."
)
MALFORMED: Final = (
    "Share sends records that make no sense ({} in the last answer). They are ignored; all others count. Please report "
    "it if it lasts."
)
"""For the log, with the number of records; so is ``DRIFTED``."""
DRIFTED: Final = (
    "Share sends readings in a new form: the value as text, or only DT as the time ({} in the last answer). They still "
    "count. Please report it."
)

WRONG_CLOCK: Final = (
    "This machine's clock seems to be wrong: set it, or let the machine reach a time server. The daemon keeps trying."
)
NO_NAME: Final = (
    "This machine cannot look up names: it has no internet connection or no name server. Check its network. The daemon "
    "keeps trying."
)
NO_NAME_FOR_LONG: Final = "In a container: restart it; it only knows the name servers it found when it started."
"""What else to do after an hour without names."""
UNTRUSTED: Final = (
    "Something on this machine's network answers in place of Share: a filter, a virus scanner, or the sign-in page of "
    "a guest network. Use another network. If that is intended, name the file of its certificate authority in "
    "SSL_CERT_FILE. The password was not sent. The daemon keeps trying."
)
UNTRIED: Final = (
    "The current credentials have not been tried yet: after so many rejected sign-ins, one more might lock the "
    "account. The daemon tries them at the next poll; restarting again won't speed this up. To know sooner, "
    "try them once with dexcom2mqtt check."
)
BUG: Final = "Something went wrong inside dexcom2mqtt; its log says where. This account restarts after five minutes."

_MAX_COUNT: Final = 1000
_MAX_TIME: Final = 4_102_444_800  # the year 2100
_CLOCK_IS_RIGHT: Final[frozenset[object]] = frozenset(
    {"ok", "no_readings", "sensor_error"}
)  # else it would be phone_clock
_ROUNDING: Final = 2.0  # seconds: times are written in whole seconds, and Share's time comes in them
_WELL: Final = frozenset({"starting", "ok"})


@dataclass(frozen=True, slots=True)
class Status:
    """How an account is doing. Times are Unix seconds by Share's clock, or None while that is unknown."""

    share: ShareState = "starting"
    message: str = REMEDIES["starting"]
    since: float | None = None
    last_reading_at: float | None = None
    last_success_at: float | None = None
    next_poll_at: float | None = None
    delay: float | None = None
    """How many seconds after it was taken a reading can be read from Share; None until that is learned."""
    spread: float | None = None
    """How many seconds lie between the first requests for a reading that is late, as learned with ``delay``."""
    requests_24h: int = 0
    logins_24h: int = 0
    rejected: tuple[int, ...] = ()
    """When sign-ins were rejected in the last 24 hours, in Unix seconds."""
    ahead_until: int | None = None
    """The latest stamp of the last 24 hours that was in the future when first seen, in Unix milliseconds."""

    @property
    def well(self) -> bool:
        """Whether there is nothing to worry about."""
        return self.share in _WELL


def with_remedy(happened: str, remedy: str = "") -> str:
    """Join what happened and what to do, if there is more to say."""
    end = "" if happened.endswith("?") else "."
    return f"{happened[:1].upper()}{happened[1:]}{end} {remedy}".rstrip()


def phone_clock(seconds_ahead: float) -> str:
    """Say how far the phone's clock is ahead, and what to do."""
    return f"The wearer's phone seems to be {math.ceil(seconds_ahead / 60)} min ahead. {REMEDIES['phone_clock']}"


def status_message(topics: Topics, account: str, status: Status, *, released: bool = False) -> Message:
    """Return the message that says how an account is doing, and, if several processes share the accounts, whose it is.

    With ``released`` it is nobody's, so another process may serve it.
    """
    payload = {
        "share": status.share,
        "message": status.message,
        "since": iso(status.since),
        "last_reading_at": iso(status.last_reading_at),
        "last_success_at": iso(status.last_success_at),
        "next_poll_at": iso(status.next_poll_at),
        "delay": status.delay,
        "spread": status.spread,
        "requests_24h": status.requests_24h,
        "logins_24h": status.logins_24h,
        "rejected": list(status.rejected),
        "ahead_until": status.ahead_until,
    }
    if topics.bridge != ALONE:
        payload["bridge"] = None if released else topics.bridge
    return Message(topics.of(account, "status"), to_json(payload))


class Past(NamedTuple):
    """What a status says about stamps after a restart. Times are Unix seconds; ``ahead_until`` is Unix milliseconds.

    ``right`` is whether the phone's clock was known to be right when it was written.
    """

    ahead_until: int | None = None
    last_success: float | None = None
    right: bool = False


class Learned(NamedTuple):
    """When readings become readable, as a status says after a restart. Both numbers are seconds, as in ``Status``."""

    delay: float
    spread: float


class PastSignIns(NamedTuple):
    """What a status says after a restart: about sign-ins and readings, in Unix seconds, and about stamps."""

    rejected: tuple[int, ...] = ()
    locked_until: float | None = None
    last_reading: float | None = None
    learned: Learned | None = None
    stamps: Past = Past()  # immutable


def parse_status(payload: bytes) -> PastSignIns:
    """Return what of a status still matters after a restart. Raises ForeignError."""
    status = parse_object(payload)
    rejected = status.get("rejected")
    if not isinstance(rejected, list) or len(rejected) > _MAX_COUNT:
        raise ForeignError("its rejected sign-ins are not a list of a sensible length")
    if not all(type(at) is int and 0 <= at < _MAX_TIME for at in rejected):
        raise ForeignError("its rejected sign-ins are not times")
    ahead_until = status.get("ahead_until")
    if ahead_until is not None and not (type(ahead_until) is int and 0 <= ahead_until < _MAX_TIME * 1000):
        raise ForeignError("its latest stamp in the future is not a time")
    last_reading, last_success, next_poll = (
        _parse_time(status.get(key)) for key in ("last_reading_at", "last_success_at", "next_poll_at")
    )
    share = status.get("share")
    came_later = ahead_until is not None and (last_reading or 0) * 1000 > ahead_until
    return PastSignIns(
        tuple(rejected),
        next_poll + _ROUNDING if share == "locked_out" and next_poll is not None else None,
        last_reading,
        _parse_learned(status.get("delay"), status.get("spread")),
        Past(ahead_until, last_success, right=share in _CLOCK_IS_RIGHT or came_later),
    )


def _parse_learned(delay: object, spread: object) -> Learned | None:
    if delay is None or spread is None:  # not learned yet, or by a version that did not publish the spread
        return None
    if not isinstance(delay, int | float) or not isinstance(spread, int | float):
        raise ForeignError("its delay or its spread is not a number")
    if not math.isfinite(delay) or not math.isfinite(spread):
        raise ForeignError("its delay or its spread is not a finite number")
    return Learned(delay, spread)


def _parse_time(text: object) -> float | None:
    at = parse_iso(text)
    if at is not None and not 0 <= at < _MAX_TIME:
        raise ForeignError("one of its times makes no sense")
    return at
