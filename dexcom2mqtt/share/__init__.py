"""A client of the Dexcom Share service. It can be used on its own; docs/library.md describes the public names.

It handles HTTP and translates every answer, good, bad or broken, into readings or into one small family of errors,
each of which says what the caller should do next. The service is unofficial, so it assumes nothing about the answers.
"""

from __future__ import annotations

from dexcom2mqtt.share.answers import CALL_BYTES, Batch
from dexcom2mqtt.share.client import BASE_URLS, CURRENT_MINUTES, MAX_COUNT, MAX_MINUTES, Region, ShareClient
from dexcom2mqtt.share.errors import (
    ArgumentError,
    CredentialsRejectedError,
    LockedOutError,
    RateLimitedError,
    ShareError,
    UnavailableError,
    UnexpectedResponseError,
)
from dexcom2mqtt.share.transport import CALL_SECONDS

__all__ = [
    "BASE_URLS",
    "CALL_BYTES",
    "CALL_SECONDS",
    "CURRENT_MINUTES",
    "MAX_COUNT",
    "MAX_MINUTES",
    "ArgumentError",
    "Batch",
    "CredentialsRejectedError",
    "LockedOutError",
    "RateLimitedError",
    "Region",
    "ShareClient",
    "ShareError",
    "UnavailableError",
    "UnexpectedResponseError",
]
