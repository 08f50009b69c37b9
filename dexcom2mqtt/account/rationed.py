"""Asking Share for one account within every limit; nothing else sends requests to Share.

It records the requests and decides when the next one is allowed: sign-ins are rationed, since repeated tries with a
wrong password lock the account. It does not know what readings mean. A fetch includes a few quick retries (with
tenacity); longer waits are up to the schedule.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.account.limits import DeadSession, SignIns
from dexcom2mqtt.clock import DAY
from dexcom2mqtt.share import (
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    ShareClient,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dexcom2mqtt.account.limits import RateLimits
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.config.values import Secret
    from dexcom2mqtt.messages.status import PastSignIns
    from dexcom2mqtt.share import Batch

_RETRY_FIRST: Final = 1.0
_RETRY_MOST: Final = 8.0


class Usage(NamedTuple):
    """What was asked of Share in the last 24 hours."""

    requests: int = 0
    logins: int = 0
    """How many of them contained the password."""
    rejected: tuple[int, ...] = ()
    """When sign-ins were rejected, in Unix seconds."""
    restored: bool = False
    """Whether the status from before the start, if there was one, is included."""


def worth_a_quick_retry(error: BaseException) -> bool:
    """Return whether trying again within seconds may help and can do no harm: only if Share is unavailable."""
    return isinstance(error, UnavailableError) and not error.wrong_clock


class RationedClient:
    """Fetches for one account. Only its own thread calls it, except for ``restore``.

    All accounts share ``rate_limits``. ``back_by`` lets the watchdog notice a thread that hangs: it is called before
    each wait with the time when the wait ends, and before each request with the time when the request starts.
    ``may_ask`` says whether to try again.
    """

    def __init__(
        self,
        client: ShareClient,
        clock: Clock,
        rate_limits: RateLimits,
        back_by: Callable[[float], None],
        may_ask: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._clock = clock
        self._rate_limits = rate_limits
        self._back_by = back_by
        self._may_ask = may_ask
        self._sleep = clock.alarm(back_by).sleep
        self._sign_ins = SignIns()
        self._session = DeadSession()
        self._calls: deque[tuple[float, int, int]] = deque()  # when, requests, those with the password
        self._before: PastSignIns | None = None  # from before the start, until it counts
        self._restored = False
        self.time = client.time
        """The time of day by this account's server."""
        self.asked_at = 0.0
        """When the last request was sent, by the clock."""

    @property
    def sign_in_at(self) -> float:
        """When to fetch at the latest because the session seems dead; infinity if it does not."""
        return self._session.sign_in_at

    @property
    def tried(self) -> bool:
        """Whether the credentials have been sent since the start."""
        return self._client.logins > 0

    def not_before(self) -> float:
        """Return the earliest time (by the clock) for a fetch within every limit."""
        self._restore_if_time_known()
        sign_ins, requests = self._sign_ins, self._client.sign_in_requests
        sign_in = 0.0 if self._client.signed_in else sign_ins.allowed_at(requests)
        return max(sign_in, sign_ins.locked_until, self._rate_limits.until(self._client.host))

    def fetch(self, minutes: int, attempts: int) -> Batch:
        """Return the readings of the last ``minutes``, after at most ``attempts``. Raises ShareError and Stopped.

        It does not retry after a sign-in, or while a limit is in force.
        """
        try:
            self._learn_the_time()
            batch = self._fetch_once(minutes) if attempts == 1 else self._fetch_with_retries(minutes, attempts)
        except RateLimitedError as error:
            self._rate_limits.limit(self._client.host, self._clock.now(), error.retry_after)
            raise
        finally:
            self._restore_if_time_known()
        return batch

    def _fetch_with_retries(self, minutes: int, attempts: int) -> Batch:
        import tenacity  # noqa: PLC0415  # the first poll has a single attempt, and starts faster without it

        logins = self._client.logins

        def enough(state: tenacity.RetryCallState) -> bool:
            limited = self._client.logins > logins or self.not_before() > self._clock.now()
            return limited or state.attempt_number >= attempts or not self._may_ask()

        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception(worth_a_quick_retry),
            stop=enough,
            wait=tenacity.wait_exponential_jitter(initial=_RETRY_FIRST, max=_RETRY_MOST),
            sleep=self._sleep,
            reraise=True,
        )
        batch: Batch = retry(self._fetch_once, minutes)
        return batch

    def restore(self, before: PastSignIns) -> None:
        """Count the sign-ins from before a restart, as soon as Share has sent the time; from any thread, once."""
        self._before = before

    def worked_before(self) -> None:
        """Record that these credentials opened a session in the last 24 hours, before a restart."""
        self._restore_if_time_known()  # first: rejections since then count, and would not if restored later
        self._sign_ins.worked_before()

    def usage(self) -> Usage:
        """Return the requests of the last 24 hours."""
        now = self._clock.now()
        while self._calls and self._calls[0][0] <= now - DAY:
            self._calls.popleft()
        rejected = (self._client.time.unix(at) for at in self._sign_ins.rejected if at > now - DAY)
        return Usage(
            requests=sum(requests for _, requests, _ in self._calls),
            logins=sum(logins for _, _, logins in self._calls),
            # Rounded: truncating would make them a second older at each restart.
            rejected=tuple(round(at) for at in rejected if at is not None),
            restored=self._restored,
        )

    def _learn_the_time(self) -> None:
        """Ask Share for just the time, if it decides whether the password may be sent after a restart."""
        before, client = self._before, self._client
        rationed = before is not None and (before.rejected or before.locked_until is not None)
        if rationed and not client.time.known and not client.signed_in:
            self._calls.append((self._clock.now(), 1, 0))
            client.ask_time()
        self._restore_if_time_known()

    def _restore_if_time_known(self) -> None:
        before, time = self._before, self._client.time
        if before is None or not time.known:
            return
        rejected = [at for unix in before.rejected if (at := time.at(unix)) is not None]
        locked_until = None if before.locked_until is None else time.at(before.locked_until)
        self._sign_ins.restore(rejected, self._clock.now(), locked_until)
        self._before, self._restored = None, True

    def _fetch_once(self, minutes: int) -> Batch:
        """Fetch, and record the requests and sign-ins that it took."""
        client, now = self._client, self._clock.now()
        self._back_by(now)
        may_sign_in = self._sign_ins.allowed_at(client.sign_in_requests) <= now
        may_renew = self._sign_ins.allowed_at(client.sign_in_requests, understood=True) <= now
        if not client.signed_in and not may_sign_in:
            raise self._too_early()
        seems_dead = client.signed_in and may_sign_in and self._session.sign_in_at <= now
        requests, logins, sessions = client.requests, client.logins, client.sessions
        accepted, answered = None, False
        try:
            if seems_dead:
                client.sign_in()
            batch = client.fetch(minutes, renew=may_renew and not seems_dead)
        except CredentialsRejectedError:
            accepted = False
            raise
        except LockedOutError:
            self._sign_ins.lock_out(self._clock.now())
            raise
        except (UnavailableError, UnexpectedResponseError) as error:
            answered = isinstance(error, UnexpectedResponseError) or error.answered
            if answered and client.signed_in and client.logins == logins:
                self._session.fault(self._clock.now())
            raise
        finally:
            self.asked_at = now
            self._calls.append((now, client.requests - requests, client.logins - logins))
            if seems_dead and client.logins > logins:
                self._session.renewed(now)
            if client.logins > logins:
                accepted = True if client.sessions > sessions else accepted
                used = client.logins - logins
                self._sign_ins.note(self._clock.now(), requests=used, accepted=accepted, answered=answered)
        self._session.listed()
        return batch

    def _too_early(self) -> ShareError:
        """Return the error that no sign-in is allowed yet, if the loop did not wait for it after a restart or a bug."""
        if self._sign_ins.locked_until > self._clock.now():
            return LockedOutError(f"{self._client.host} has locked the account for a while after failed sign-ins")
        if self._sign_ins.rejected:
            return CredentialsRejectedError(f"{self._client.host} rejected the credentials before the restart")
        return UnavailableError(f"{self._client.host} has ended the session too often; the next sign-in must wait")


def client_of(account: Account, clock: Clock) -> ShareClient:
    """Make the client of an account."""
    return ShareClient(
        username=_plain(account.username),
        account_id=_plain(account.account_id),
        password=account.password.get_secret_value(),
        region=account.region,
        base_url=account.share_url,
        clock=clock,
    )


def _plain(secret: Secret | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
