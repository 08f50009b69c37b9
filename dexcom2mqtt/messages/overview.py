"""What an account shows at a time, for readers within the process. Pure."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dexcom2mqtt.messages.delta import FURTHEST, NEAREST, delta
from dexcom2mqtt.messages.state import state_of, without_reading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.messages.state import State
    from dexcom2mqtt.readings import Reading


@dataclass(frozen=True, slots=True)
class Overview:
    """What an account shows. It never changes; a new one replaces it. Times are of the clock.

    ``state`` is the newest reading, which is current until ``fresh_until`` and was taken at ``taken_at``. ``readings``
    are those of the last 24 hours, oldest first, without the doubtful ones.
    """

    state: State
    fresh_until: float = -math.inf
    taken_at: float | None = None
    readings: tuple[Reading, ...] = ()
    number: int = field(default_factory=itertools.count().__next__, compare=False)
    """Its number among all that this process made."""


def overview_of(
    account: Account,
    kept: Sequence[Reading],
    after: int,
    shown: tuple[Reading, float] | None,
    at: Callable[[float], float | None],
) -> Overview:
    """Make an overview of the readings whose date is after that (Unix milliseconds).

    ``shown`` is the reading published as the newest, and until when it is current. ``at`` turns Unix seconds into a
    time of the clock.
    """
    readings = tuple(reading for reading in kept if reading.date > after)
    if not readings or shown is None or shown[0] is not readings[-1]:
        return Overview(without_reading(account), readings=readings)
    newest, fresh_until = shown
    earlier = (reading for reading in readings if NEAREST <= (newest.date - reading.date) / 1000 <= FURTHEST)
    state = state_of(newest, delta(newest, earlier), account)
    return Overview(state, fresh_until, at(newest.date / 1000), readings)
