"""How much glucose changed in about five minutes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dexcom2mqtt.readings import Reading

NEAREST: Final = 150
"""Seconds; a reading taken less than this before another says nothing about the change."""
FURTHEST: Final = 600
"""Seconds; neither does a reading taken more than this before."""
_BEST: Final = 300


def delta(reading: Reading, before: Iterable[Reading]) -> int | None:
    """Return how many mg/dL ``reading`` is above the one about five minutes before it.

    ``before`` has the readings between ``NEAREST`` and ``FURTHEST`` earlier. The one nearest to 300 s earlier counts;
    of two equally near, the older. None if there is none, or if either is out of the sensor's range.
    """
    distances = {(reading.date - earlier.date) / 1000: earlier for earlier in before}
    if not distances:
        return None
    earlier = distances[min(distances, key=lambda seconds: (abs(seconds - _BEST), -seconds))]
    if reading.out_of_range or earlier.out_of_range:
        return None
    return reading.mg_dl - earlier.mg_dl
