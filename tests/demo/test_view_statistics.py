"""The demo's view: the percentage of the last 24 hours in range."""

from __future__ import annotations

import pytest

from tests.demo.test_view import drawn, picture, shown, told


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({"24h": {"in_range": 77.5}}, "78 % of 24 hours in range"),
        ({"24h": {"in_range": 0.0}}, "0 % of 24 hours in range"),
        ({"24h": {"in_range": None}}, ""),
        ({"24h": None}, ""),
        ({"24h": 7}, ""),
        ({}, ""),
        ([], ""),
    ],
)
def test_time_in_range_is_shown(statistics: object, words: str) -> None:
    """The view shows time in range in whole percent above the plot; nothing if it is unknown."""
    view = shown(told(picture(), "statistics", statistics))
    assert view.in_range == words
    for plain in (False, True):
        screen = drawn(view, 120, 40, plain=plain)
        title = next(line for line in screen.splitlines() if " hours" in line)
        assert (words in title) if words else "in range" not in title
