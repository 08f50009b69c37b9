"""What an answer of Share, or the lack of one, means for an account: a state, and what to do about it. Pure.

The daemon and ``check`` both use it, so that both say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.messages import status
from dexcom2mqtt.share.errors import (
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)

if TYPE_CHECKING:
    from dexcom2mqtt.messages.status import ShareState
    from dexcom2mqtt.readings import Reading
    from dexcom2mqtt.share.answers import Batch

STATES: Final[dict[type[ShareError], ShareState]] = {
    UnavailableError: "unavailable",
    CredentialsRejectedError: "credentials_rejected",
    LockedOutError: "locked_out",
    RateLimitedError: "rate_limited",
    UnexpectedResponseError: "unexpected_response",
}
"""The state of an account after each error of Share."""


class Verdict(NamedTuple):
    """A state, and the text that says what happened and what to do."""

    share: ShareState
    message: str
    if_it_lasts: str = ""
    """What to add once the state has lasted for an hour."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is known about an account's readings after an answer."""

    newest: Reading | None = None
    """The newest of all, not only of those in this answer."""
    new: bool = False
    """Whether the newest came with this answer."""
    current: bool = False
    """Whether the newest is current."""
    ahead: float | None = None
    """How many seconds the phone's clock is ahead; None if it is not known to be wrong."""
    withheld: bool = False
    """Whether some are left for the next answer, since the time is not settled and they seem to be in the future."""
    late: bool = False
    """Whether new readings arrived recently, but too old to be current."""


def of_batch(batch: Batch, found: Found) -> Verdict:
    """Return the verdict on an answer with a list, even an empty one."""
    last = 0 if found.newest is None else found.newest.date
    verdicts: tuple[tuple[bool, ShareState, str | None], ...] = (
        (found.ahead is not None, "phone_clock", status.phone_clock(found.ahead or 0.0)),
        (found.current, "ok", None),
        (found.withheld, "no_readings", status.UNSETTLED),
        (batch.nothing_shared, "no_readings", status.NOTHING_SHARED),
        (max(batch.error_codes, default=0) > last, "sensor_error", None),
        (batch.newest_malformed, "unexpected_response", status.NEWEST_MALFORMED),
        (batch.malformed > 0 and not batch.readings, "unexpected_response", None),
        (found.late, "no_readings", status.LATE),
        (True, "no_readings", None),
    )
    share, message = next((share, message) for holds, share, message in verdicts if holds)
    return Verdict(share, message or status.REMEDIES[share])


def of_error(error: ShareError, *, untried: bool = False) -> Verdict:
    """Return the verdict on a failure; ``untried`` is whether the credentials have not been sent since the start."""
    share = STATES[type(error)]
    if isinstance(error, UnavailableError):
        if_it_lasts = status.NO_NAME_FOR_LONG if error.missing == "name" else ""
        return Verdict(share, status.with_remedy(str(error), _remedy(error)), if_it_lasts)
    untried = untried and isinstance(error, CredentialsRejectedError)
    return Verdict(share, status.with_remedy(str(error), status.UNTRIED if untried else status.REMEDIES[share]))


def _remedy(error: UnavailableError) -> str:
    """Return what to do if Share cannot be reached; empty if the error already says it."""
    if error.at_proxy:
        return ""
    if error.wrong_clock:
        return status.WRONG_CLOCK
    by_missing = {"name": status.NO_NAME, "authority": status.UNTRUSTED}
    return by_missing[error.missing] if error.missing else status.REMEDIES["unavailable"]
