"""Whatever can go wrong with Share, as one family: each error says what the caller does next.

Never part of an error's text: user names, passwords, account ids, session ids, or anything that Share said.
"""

from __future__ import annotations

from typing import Literal


class ShareError(Exception):
    """Whatever went wrong with Share. The text names no secret and quotes nothing that Share said."""


class ArgumentError(ShareError, ValueError):
    """The caller passed something that Share cannot take; nothing was sent."""


class VariableError(ArgumentError):
    """A variable of the environment about proxies or authorities cannot be used; the text names it."""


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
        """Whether the certificate is outside its dates, as when this machine's clock is wrong."""
        self.answered = answered
        """Whether Share itself answered: not if there was no answer, and not if it is a gateway's (502, 503, 504)."""
        self.at_proxy = at_proxy
        """Whether it failed at the proxy of the environment; the text says what to do."""
        self.missing = missing
        """What this machine lacks: Share's address for its name, or the authority that signed what was shown to it."""


class CredentialsRejectedError(ShareError):
    """Share does not accept user name, password, or region. Trying again and again locks the account."""


class LockedOutError(ShareError):
    """Too many failed sign-ins: Share accepts none for 15 to 20 minutes, and every try renews that."""


class RateLimitedError(ShareError):
    """Too many requests: ask nothing of this server for a while."""

    def __init__(self, text: str, retry_after: float | None) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        """How many seconds the server asked to wait; None where it did not say."""


class UnexpectedResponseError(ShareError):
    """Share answered something that nobody understands yet."""


class SignedOutError(ShareError):
    """The session is gone; only the client itself ever sees this."""


class NothingSharedError(ShareError):
    """A read of an account that shares nothing; only the client itself ever sees this."""
