"""What the broker retained of one account before the start, and whether it is taken over.

It knows no payload: how each is read is told by ``messages``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from dexcom2mqtt.messages.message import ForeignError, FutureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dexcom2mqtt.share.server_time import ShareTime

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class NotYetError(Exception):
    """It cannot be judged before the next answer of Share, since it is the time that may be wrong."""


class Retained:
    """Reads what belongs to ``source``, the person of this account."""

    def __init__(self, key: str, source: str, time: ShareTime) -> None:
        self._key = key
        self.source = source
        self._time = time

    def read(
        self, what: str, payload: bytes | None, parse: Callable[[bytes, str, float], _T], today: float
    ) -> _T | None:
        """Return what a payload says; None if there is none, or if it is not ours, which is logged.

        ``today`` is in Unix seconds. Raises NotYetError.
        """
        try:
            return parse(payload, self.source, today) if payload else None
        except ForeignError as why:
            if isinstance(why, FutureError) and self._time.known and not self._time.settled:
                raise NotYetError from None  # the next answer of Share tells more
            _log.warning("%s: ignoring the retained %s: %s", self._key, what, why)
            return None
