"""Percentages with one decimal that add up to 100.0. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def percentages(counts: Sequence[int]) -> list[float]:
    """Return each count as a percentage of the sum, rounded by largest remainder; zeros if all are zero."""
    whole = sum(counts)
    if not whole:
        return [0.0] * len(counts)
    tenths = [count * 1000 // whole for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda index: (-(counts[index] * 1000 % whole), index))
    for index in by_remainder[: 1000 - sum(tenths)]:
        tenths[index] += 1
    return [each / 10 for each in tenths]
