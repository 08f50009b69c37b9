"""Parsing the bytes of Share's answers into an id, readings, or one of the errors. Pure.

It trusts nothing: the service is unofficial, and gateways may answer in its place.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.readings import LOW_MG_DL, MalformedRecordError, Reading, parse_record
from dexcom2mqtt.share.errors import (
    CredentialsRejectedError,
    LockedOutError,
    NothingSharedError,
    RateLimitedError,
    ShareError,
    SignedOutError,
    UnavailableError,
    UnexpectedResponseError,
)
from dexcom2mqtt.share.server_time import parse_http_date

if TYPE_CHECKING:
    from collections.abc import Iterable

CALL_BYTES: Final = 1024 * 1024
"""The maximum size of an answer, both as sent and unpacked."""

_MOST_BRACKETS: Final = 20_000
"""How many arrays and objects an answer may contain; 288 readings and their list are 289."""
NO_ID: Final = str(uuid.UUID(int=0))
"""What Share sends instead of an id if it rejects the credentials."""
_REJECTED: Final = frozenset(
    {"AccountPasswordInvalid", "SSO_AuthenticateAccountNotFound", "SSO_AuthenticatePasswordInvalid"}
)
_NOTHING_SHARED: Final = "MonitoredReceiverNotAssigned"
_SIGNED_OUT: Final = frozenset({"SessionIdNotFound", "SessionNotValid"})
_GATEWAY: Final = frozenset({502, 503, 504})


class Reply(NamedTuple):
    """An answer of any kind, with the two headers that matter."""

    status: int
    content: bytes
    date: str | None
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """The result of one read: the readings, oldest first, and counts of the other records."""

    readings: tuple[Reading, ...] = ()
    error_codes: tuple[int, ...] = ()
    """When the sensor sent error codes (values below 39, no glucose), in Unix milliseconds."""
    malformed: int = 0
    """How many records were malformed."""
    newest_malformed: bool = False
    """Whether the newest record, which Share sends first, was malformed while others were not."""
    drifted: int = 0
    """How many readings and error codes came in a format that Share did not use before: see ``Reading.drifted``."""
    nothing_shared: bool = False
    """Whether Share says that nothing is shared from this account: no sensor, sharing off, or no follower."""


def is_id(text: str) -> bool:
    """Return whether a text is a UUID that is not all zeros."""
    try:
        return str(uuid.UUID(text)) == text.lower() != NO_ID
    except ValueError:
        return False


def content_of(reply: Reply, host: str, *, reading: bool) -> bytes:
    """Return the content of a good answer; raise a ShareError for any other.

    ``reading`` is whether the request was for readings rather than a sign-in.
    """
    if len(reply.content) > CALL_BYTES:
        raise UnexpectedResponseError(f"{host} answered more than 1 MiB")
    if reply.status == HTTPStatus.OK:
        return reply.content
    if reply.status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = _parse_retry_after(reply.retry_after, reply.date)
        raise RateLimitedError(f"{host} is receiving too many requests", wait)
    raise _fault(host, reply.status, reply.content, reading=reading)


def id_of(content: bytes, host: str) -> str:
    """Return the id in the answer to a sign-in. Raises ShareError."""
    answer = _parse_json(content, host)
    if answer == NO_ID:
        raise CredentialsRejectedError(f"{host} rejected the credentials")
    if not isinstance(answer, str) or not is_id(answer):
        raise UnexpectedResponseError(f"{host} answered a sign-in with something other than an id")
    return answer


def batch_of(content: bytes, host: str) -> Batch:
    """Return the readings in the answer to a read. Raises ShareError."""
    if not content:  # the recorded answer to a session id of zeros
        raise SignedOutError
    records = _parse_json(content, host)
    if not isinstance(records, list):
        raise UnexpectedResponseError(f"{host} answered a read with something other than a list")
    return _sort_out(records)


def _parse_json(content: bytes, host: str) -> object:
    try:
        return _loads(content)
    except (ValueError, RecursionError):
        raise UnexpectedResponseError(f"{host} answered with something other than JSON") from None


def _loads(content: bytes) -> object:
    """Parse JSON. Raises ValueError and RecursionError."""
    # Some Pythons (3.14) parse nested arrays until they run out of memory.
    if content.count(b"[") + content.count(b"{") > _MOST_BRACKETS:
        raise ValueError
    # Python refuses to parse very large integers; a truncated one is just as wrong, and costs only its record.
    return json.loads(content, parse_int=lambda digits: int(digits[:20]))


def _sort_out(records: Iterable[object]) -> Batch:
    parsed = [_parse(record) for record in records]
    good = [reading for reading in parsed if reading is not None]
    return Batch(
        readings=tuple(sorted((each for each in good if each.mg_dl >= LOW_MG_DL), key=attrgetter("date"))),
        error_codes=tuple(sorted(each.date for each in good if each.mg_dl < LOW_MG_DL)),
        malformed=len(parsed) - len(good),
        newest_malformed=bool(good) and parsed[0] is None,
        drifted=sum(each.drifted for each in good),
    )


def _parse(record: object) -> Reading | None:
    try:
        return parse_record(record)
    except MalformedRecordError:
        return None


def _fault(host: str, status: int, content: bytes, *, reading: bool) -> ShareError:
    """Return the error for an answer that is not 200. Share sends 500 with a code for nearly every error."""
    try:
        fault = _loads(content)
    except (ValueError, RecursionError):
        fault = None
    fault = fault if isinstance(fault, dict) else {}
    code, message = str(fault.get("Code")), str(fault.get("Message"))
    if "maxattempts" in code.casefold():
        return LockedOutError(f"{host} has locked the account for a while after failed sign-ins")
    if code in _SIGNED_OUT:
        return SignedOutError(f"{host} does not know the session")
    if code == _NOTHING_SHARED and reading:
        return NothingSharedError(f"nothing is shared from this account of {host}")
    if code in _REJECTED or (code == "SSO_InternalError" and "Cannot Authenticate by" in message):
        return CredentialsRejectedError(f"{host} rejected the credentials")
    if code == "InvalidArgument":
        return CredentialsRejectedError(f"{host} calls the user name, password or account id malformed")
    said = f"answered with status {status}"
    if status == HTTPStatus.NOT_FOUND and not reading:
        said = "has nowhere to sign in (404): share_url is not the address of a current Share service"
    return UnavailableError(f"{host} {said}", answered=status not in _GATEWAY)


def _parse_retry_after(text: str | None, date: str | None) -> float | None:
    """Return the seconds in a Retry-After header, given the Date of the same answer; None if unknown."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    until, now = parse_http_date(text), parse_http_date(date)
    return None if until is None or now is None else max(0.0, until - now)
