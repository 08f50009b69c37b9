"""Percentages that add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.messages.percent import percentages
from tests.support.builders import property_of


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], []),
        ([0, 0], [0.0, 0.0]),
        ([1], [100.0]),
        ([1, 1, 1], [33.4, 33.3, 33.3]),
        ([1, 2, 0], [33.3, 66.7, 0.0]),
        ([2, 10, 200, 60, 16], [0.7, 3.5, 69.4, 20.8, 5.6]),
    ],
)
def test_the_largest_remainders_are_rounded_up(counts: list[int], expected: list[float]) -> None:
    """Each has one decimal, and of equal remainders the first is rounded up."""
    assert percentages(counts) == expected


@property_of
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8).filter(any))
def test_they_add_up_to_a_hundred(counts: list[int]) -> None:
    """The percentages of any counts add up to 100.0, and each is off by less than a tenth."""
    shares = percentages(counts)
    assert round(sum(shares), 6) == 100.0
    assert all(abs(share - 100 * count / sum(counts)) < 0.1 for share, count in zip(shares, counts, strict=True))
