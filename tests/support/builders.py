"""Builders for several test modules: readings, accounts, and values as a broken service might send them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hypothesis import settings
from hypothesis import strategies as st

from dexcom2mqtt.config.settings import Account, Ranges
from dexcom2mqtt.config.values import Secret
from dexcom2mqtt.readings import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NOON = 1_745_064_000
"""An instant in Unix seconds: 2025-04-19, 12:00 UTC."""

property_of = settings(deadline=None, max_examples=200, database=None)
"""How to test a property: without a time limit for one example, since machines differ."""

any_text = st.text(st.characters())
"""Text that may include half surrogate pairs: JSON can contain them, UTF-8 cannot."""

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(min_value=10**20) | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
"""Whatever Python's JSON parser can return, including huge numbers, NaN, infinity and nested values."""


def reading(mg_dl: int = 100, *, seconds: float = 0, direction: str = "Flat", offset_min: int = 0) -> Reading:
    """Make a reading taken that many seconds after noon."""
    return Reading(mg_dl, direction, round((NOON + seconds) * 1000), offset_min)


def account(unit: Literal["mg/dL", "mmol/L"] = "mg/dL", ranges: Sequence[int] = (54, 70, 180, 250)) -> Account:
    """Make an account with a unit and the four limits of its ranges."""
    very_low, low, high, very_high = ranges
    limits = Ranges(very_low=very_low, low=low, high=high, very_high=very_high)
    return Account(username=Secret("anna@example.com"), password=Secret("hunter2"), unit=unit, ranges=limits)


def most_within(events: Iterable[float], seconds: float) -> int:
    """Return the most events within any window of that many seconds."""
    events = sorted(events)
    return max((sum(start <= at < start + seconds for at in events) for start in events), default=0)
