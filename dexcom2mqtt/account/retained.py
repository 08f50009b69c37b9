"""Reading what the broker retained for one account before the start, and deciding whether to use it.

It knows no payload: ``messages`` parses each.
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
    """The payload cannot be judged before the next answer of Share, since the time may be wrong."""


class Retained:
    """Reads the retained payloads that belong to ``source``, which identifies this account at Share."""

    def __init__(self, key: str, source: str, time: ShareTime) -> None:
        self._key = key
        self.source = source
        self._time = time

    def read(
        self, what: str, payload: bytes | None, parse: Callable[[bytes, str, float], _T], today: float
    ) -> _T | None:
        """Return the parsed payload; None if there is none, or if it is not ours, which is logged.

        ``today`` is in Unix seconds. Raises NotYetError.
        """
        try:
            return parse(payload, self.source, today) if payload else None
        except ForeignError as why:
            if isinstance(why, FutureError) and self._time.known and not self._time.settled:
                raise NotYetError from None  # the next answer of Share may settle the time
            _log.warning("%s: ignoring the retained %s: %s", self._key, what, why)
            return None
