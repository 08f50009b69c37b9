"""The errors of Share, as one family: each kind says what the caller should do next.

User names, passwords, account ids, session ids and the words of Share are never part of an error's text.
"""

from __future__ import annotations

from typing import Literal


class ShareError(Exception):
    """Any error of Share. Its text contains no secret and does not quote Share."""


class ArgumentError(ShareError, ValueError):
    """An argument is invalid for Share; nothing was sent."""


class VariableError(ArgumentError):
    """An environment variable about proxies or authorities cannot be used; the text names it."""


class UnavailableError(ShareError):
    """Share could not be reached or is out of order: try again soon."""

    def __init__(
        self,
        text: str,
        *,
        wrong_clock: bool = False,
        answered: bool = False,
        at_proxy: bool = False,
        missing: Literal["name", "authority"] | None = None,
    ) -> None:
        super().__init__(text)
        self.wrong_clock = wrong_clock
        """Whether the certificate is expired or not yet valid, as when this machine's clock is wrong."""
        self.answered = answered
        """Whether Share itself answered: false without an answer, and for a gateway's answer (502, 503, 504)."""
        self.at_proxy = at_proxy
        """Whether the environment's proxy failed; the text says what to do."""
        self.missing = missing
        """What this machine lacks: the address for Share's name, or the authority behind the server's certificate."""


class CredentialsRejectedError(ShareError):
    """Share rejected the user name, password, or region. Repeated tries lock the account."""


class LockedOutError(ShareError):
    """Too many failed sign-ins: Share accepts none for 15 to 20 minutes, and every try renews the lock."""


class RateLimitedError(ShareError):
    """Too many requests: send none to this server for a while."""

    def __init__(self, text: str, retry_after: float | None) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        """How many seconds the server asked to wait; None if it did not say."""


class UnexpectedResponseError(ShareError):
    """Share sent an unknown kind of answer."""


class SignedOutError(ShareError):
    """Share does not know the session; only the client itself sees this."""


class NothingSharedError(ShareError):
    """The account shares nothing; only the client itself sees this."""
