"""By how much glucose changed in about five minutes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dexcom2mqtt.readings import Reading

NEAREST: Final = 150
"""Seconds; what was taken less long before a reading says nothing about its change."""
FURTHEST: Final = 600
"""Seconds; nor does what was taken longer before."""
_BEST: Final = 300


def delta(reading: Reading, before: Iterable[Reading]) -> int | None:
    """Return how many mg/dL ``reading`` is above the one about five minutes before it.

    ``before`` has those between ``NEAREST`` and ``FURTHEST`` earlier. Of them it is the one nearest to 300 s earlier,
    and of two the older. None if there is none, or if either is out of the sensor's range and so no measurement.
    """
    distances = {(reading.date - earlier.date) / 1000: earlier for earlier in before}
    if not distances:
        return None
    earlier = distances[min(distances, key=lambda seconds: (abs(seconds - _BEST), -seconds))]
    if reading.out_of_range or earlier.out_of_range:
        return None
    return reading.mg_dl - earlier.mg_dl
