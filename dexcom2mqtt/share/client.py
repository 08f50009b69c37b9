"""One account of the Dexcom Share service: sign in, renew the session, fetch readings.

It owns the session. It knows nothing about schedules, MQTT, or how readings are used. User names, passwords, account
ids and session ids are never logged and never part of an error's text.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Literal, get_args

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.share import answers
from dexcom2mqtt.share.answers import Batch
from dexcom2mqtt.share.errors import (
    ArgumentError,
    CredentialsRejectedError,
    NothingSharedError,
    SignedOutError,
    UnavailableError,
    UnexpectedResponseError,
)
from dexcom2mqtt.share.server_time import ShareTime
from dexcom2mqtt.share.transport import Transport

if TYPE_CHECKING:
    from dexcom2mqtt.readings import Reading

Region = Literal["us", "ous", "jp"]

BASE_URLS: Final[dict[Region, str]] = {
    "us": "https://share2.dexcom.com/ShareWebServices/Services",
    "ous": "https://shareous1.dexcom.com/ShareWebServices/Services",
    "jp": "https://share.dexcom.jp/ShareWebServices/Services",
}
_APPLICATION_IDS: Final[dict[Region, str]] = {
    "us": "d89443d2-327c-4a6f-89e5-496bbb0317db",
    "ous": "d89443d2-327c-4a6f-89e5-496bbb0317db",
    "jp": "d8665ade-9673-4e27-9ff6-92db4ce13d13",
}

MAX_MINUTES: Final = 1440
"""How far back Share keeps readings, in minutes."""
MAX_COUNT: Final = 288
"""How many records Share returns at most: 24 hours of them, or less if several devices upload each reading."""
CURRENT_MINUTES: Final = 10
"""How old, in minutes, the result of ``current_reading`` may be."""

_READ: Final = "Publisher/ReadPublisherLatestGlucoseValues"


class ShareClient:
    """One account of the Dexcom Share service; for use by one thread at a time.

    The credentials are those of the publisher, who wears the sensor, never a follower's. Give either ``username`` (a
    user name, an e-mail address, or a phone number written ``+11234567890``) or ``account_id`` (a UUID).
    ``base_url`` replaces the region's server. Nothing is sent before the first request for readings.

    Raises ArgumentError if an argument is invalid, or if the environment's proxy or authorities cannot be used.
    """

    def __init__(  # noqa: PLR0913  # keywords only, and all but the password are optional
        self,
        *,
        password: str,
        username: str | None = None,
        account_id: str | None = None,
        region: Region = "us",
        base_url: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if (username is None) == (account_id is None):
            raise ArgumentError("give either a user name or an account id, not both")
        if not password or username == "":
            raise ArgumentError("the user name and the password cannot be empty")
        if account_id is not None and not answers.is_id(account_id):
            raise ArgumentError("the account id is not a UUID")
        if region not in get_args(Region):
            raise ArgumentError(f"the region must be one of {', '.join(get_args(Region))}")
        self._username = username
        self._password = password
        self._account_id = account_id
        self._session_id: str | None = None
        self._application_id = _APPLICATION_IDS[region]
        self._clock = clock or Clock()
        self._transport = Transport(base_url or BASE_URLS[region], self._clock)
        self.host = self._transport.host
        """The server, with its port if the URL contains one."""
        self.proxy = None if self._transport.proxy is None else str(self._transport.proxy)
        """The proxy to the server, as host and port; None if the environment names none."""
        self.time = ShareTime(self._clock)
        """The time of day by this account's server."""
        self.requests = 0
        """How many requests were made so far, whether answered or not."""
        self.logins = 0
        """How many of them sent the password; a request without a connection does not count."""
        self.sessions = 0
        """How many sessions were opened."""

    @property
    def signed_in(self) -> bool:
        """Whether there is a session, as far as known."""
        return self._session_id is not None

    @property
    def sign_in_requests(self) -> int:
        """How many requests with the password a sign-in takes: one if the account id is known, else two."""
        return 1 if self._account_id else 2

    def readings(self, minutes: int = MAX_MINUTES, max_count: int = MAX_COUNT) -> list[Reading]:
        """Return the readings of the last ``minutes`` (1 to 1440), at most ``max_count`` (1 to 288) of them.

        They come newest first. Raises ArgumentError outside these bounds, and the other kinds of ShareError.
        """
        return list(reversed(self.fetch(minutes, max_count).readings))

    def latest_reading(self) -> Reading | None:
        """Return the newest reading of the last 24 hours, or None. Raises ShareError."""
        return next(iter(self.readings()), None)

    def current_reading(self) -> Reading | None:
        """Return the newest reading if it is at most 10 minutes old, or None. Raises ShareError.

        Share computes its age from the stamp made by the wearer's phone. If that phone's clock is wrong, this method
        does not notice, and an old reading may pass for a current one. The daemon does notice.
        """
        return next(iter(self.readings(CURRENT_MINUTES)), None)

    def fetch(self, minutes: int = MAX_MINUTES, max_count: int = MAX_COUNT, *, renew: bool = True) -> Batch:
        """Read at most ``max_count`` (1 to 288) of the newest records of the last ``minutes`` (1 to 1440).

        Signs in if there is no session yet, or if Share has forgotten it and ``renew`` is true.
        It signs in at most once: if Share does not accept the new session either, it raises UnavailableError.
        Raises no other errors than ShareError.
        """
        _check("minutes", minutes, MAX_MINUTES)
        _check("max_count", max_count, MAX_COUNT)
        if self._session_id is not None:
            try:
                return self._read(minutes, max_count)
            except SignedOutError:
                self._session_id = None
            if not renew:
                raise UnavailableError(f"{self.host} has ended the session")
        self.sign_in()
        try:
            return self._read(minutes, max_count)
        except SignedOutError:
            self._session_id = None
            raise UnavailableError(f"{self.host} ended the new session at once") from None

    def sign_in(self) -> None:
        """Open a session. A valid account id is kept, so that later sign-ins need only one of the two steps."""
        if self._account_id is None:
            self._account_id = self._ask_for_id("General/AuthenticatePublisherAccount", {"accountName": self._username})
        try:
            session_id = self._ask_for_id("General/LoginPublisherAccountById", {"accountId": self._account_id})
        except CredentialsRejectedError:
            if self._username is not None:
                self._account_id = None  # it may have changed, as in a migration: the next sign-in looks it up again
            raise
        self._session_id = session_id
        self.sessions += 1

    def ask_time(self) -> None:
        """Get the time from Share with a read that needs no password. Raises ShareError.

        Recordings show that the answer to a session id of zeros is empty.
        """
        with contextlib.suppress(SignedOutError, NothingSharedError, CredentialsRejectedError):
            self._call(_READ, {}, {"sessionId": answers.NO_ID, "minutes": 1, "maxCount": 1})

    def _ask_for_id(self, path: str, who: dict[str, str | None]) -> str:
        body = who | {"password": self._password, "applicationId": self._application_id}
        try:
            return answers.id_of(self._call(path, body), self.host)
        except SignedOutError:
            raise UnexpectedResponseError(f"{self.host} answered a sign-in with a lost session") from None
        finally:
            self.logins += self._transport.sent

    def _read(self, minutes: int, max_count: int) -> Batch:
        query = {"sessionId": self._session_id, "minutes": minutes, "maxCount": max_count}
        try:
            content = self._call(_READ, {}, query)
        except CredentialsRejectedError:  # a read sends none: Share rejected the session
            raise SignedOutError from None
        except NothingSharedError:
            return Batch(nothing_shared=True)
        return answers.batch_of(content, self.host)

    def _call(self, path: str, body: dict[str, str | None], query: dict[str, str | int | None] | None = None) -> bytes:
        """POST ``body`` and return the content of a good answer; raise a ShareError for any other."""
        self.requests += 1
        sent = self._clock.now()
        reply = self._transport.post(path, body, query)
        self.time.update(reply.date, sent)
        return answers.content_of(reply, self.host, reading=path == _READ)


def _check(name: str, number: object, most: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise ArgumentError(f"{name} must be a whole number from 1 to {most}")
