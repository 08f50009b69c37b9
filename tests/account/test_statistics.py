"""The figures of a window: compared with the formulas written out again, and what must not change them."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.account.statistics import (
    LONG_WINDOWS,
    gmi_mmol_mol,
    gmi_percent,
    last_day,
    last_days,
    statistics_of,
)
from dexcom2mqtt.messages.days import counted, day_of
from dexcom2mqtt.readings import RANGES, Reading
from tests.support.builders import NOON, account, property_of, reading

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from dexcom2mqtt.messages.days import Limits
    from dexcom2mqtt.readings import Unit

LIMITS = (54, 70, 180, 250)
KEYS = [
    *("readings", "expected", "coverage", "days", "mean", "sd", "mean_mg_dl", "sd_mg_dl", "cv"),
    *RANGES,
    *("gmi", "gmi_mmol_mol"),
]
HOURS = 3600
DAYS = 86_400


def half_up(exact: Fraction | Decimal, places: str = "0.1") -> float:
    """Round as a person does on paper."""
    number = exact if isinstance(exact, Decimal) else Decimal(exact.numerator) / exact.denominator
    return float(number.quantize(Decimal(places), ROUND_HALF_UP))


def by_hand(values: Sequence[int], minutes: int, unit: Unit = "mg/dL") -> dict[str, Any]:
    """Compute what does not depend on ranges directly from all values, by the published formulas."""
    n, mean = len(values), Fraction(sum(values), len(values))
    in_unit = Fraction(1) if unit == "mg/dL" else Fraction("18.01559")
    found: dict[str, Any] = {
        "readings": n,
        "expected": half_up(Fraction(minutes, 5)),
        "coverage": half_up(min(Fraction(100 * n * 5, minutes), Fraction(100))),
        "mean": half_up(mean / in_unit),
        "mean_mg_dl": half_up(mean),
        "sd": None,
        "sd_mg_dl": None,
        "cv": None,
    }
    if n > 1:
        variance = Fraction(sum((value - mean) ** 2 for value in values), n - 1)
        sd = (Decimal(variance.numerator) / variance.denominator).sqrt()
        exact_mean = Decimal(mean.numerator) / mean.denominator
        found |= {"sd_mg_dl": half_up(sd), "cv": half_up(100 * sd / exact_mean)}
        found["sd"] = half_up(sd / (1 if unit == "mg/dL" else Decimal("18.01559")))
    return found


def of_days(
    count: int, readings: Sequence[Reading], *, unit: Unit = "mg/dL", offset_min: int = 0
) -> dict[str, Any] | None:
    return last_days(count, counted({}, readings, LIMITS), account(unit), NOON, offset_min)


def values_of(percentages: dict[str, Any]) -> list[float]:
    return [percentages[name] for name in RANGES]


glucose = st.integers(39, 401)
within_a_day = st.builds(
    Reading,
    mg_dl=glucose,
    direction=st.just("Flat"),
    date=st.integers((NOON - DAYS) * 1000 + 1, NOON * 1000),
    offset_min=st.sampled_from([0, -240, 330, 840]),
)
of_90_days = st.builds(
    Reading,
    mg_dl=glucose,
    direction=st.just("Flat"),
    date=st.integers((NOON - 80 * DAYS) * 1000, NOON * 1000),
    offset_min=st.just(0),
)


# --- the formulas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["mg/dL", "mmol/L"])
def test_a_window_has_the_documented_figures(unit: Unit) -> None:
    """Every key is present, in its order, with the figures that a person gets on paper."""
    values = [39, 53, 54, 69, 70, 100, 180, 181, 250, 251, 401]
    readings = [reading(value, seconds=-300 * place) for place, value in enumerate(values)]
    window = last_day(readings, account(unit), NOON)
    assert window is not None
    assert list(window) == KEYS
    assert window | by_hand(values, 1440, unit) == window
    assert window["days"] == 1
    assert values_of(window) == [18.2, 18.2, 27.2, 18.2, 18.2]  # 2, 2, 3, 2, 2 of 11
    assert (window["gmi"], window["gmi_mmol_mol"]) == (None, None)
    assert (window["expected"], window["coverage"]) == (288.0, 3.8)


def test_one_reading_has_no_deviation() -> None:
    """The divisor is n - 1, so a single reading has no deviation and no variation."""
    window = last_day([reading(100)], account(), NOON)
    assert window is not None
    assert (window["mean"], window["sd"], window["sd_mg_dl"], window["cv"]) == (100.0, None, None, None)
    assert last_day([], account(), NOON) is None


def test_a_half_is_rounded_up() -> None:
    """Even if no binary number is exactly that half: 17 of 100 and 3 of 101 make 100.15, which is 100.2."""
    values = [100] * 17 + [101] * 3  # 100.15
    window = last_day([reading(value, seconds=-n) for n, value in enumerate(values)], account(), NOON)
    assert window is not None
    assert window["mean"] == 100.2


@pytest.mark.parametrize(
    ("mean", "percent", "mmol_mol"),
    [("100", "5.702", "38.83"), ("150", "6.898", "51.89"), ("200", "8.094", "64.95"), ("350", "11.682", "104.13")],
)
def test_gmi_follows_bergenstal(mean: str, percent: str, mmol_mol: str) -> None:
    """The two formulas of 2018, at means from their table."""
    assert gmi_percent(Decimal(mean)) == Decimal(percent)
    assert gmi_mmol_mol(Decimal(mean)).quantize(Decimal("0.01")) == Decimal(mmol_mol)


def days_of(count: int, each: int) -> list[Reading]:
    """Return that many readings on each of the days before today, and none today."""
    return [
        reading(150, seconds=-12 * HOURS - day * DAYS - slot * 290)
        for day in range(count)
        for slot in range(1, each + 1)
    ]


def test_gmi_needs_70_percent_of_14_days() -> None:
    """With less data, or in a shorter window, it would claim more than is known."""
    expected = (13 * 1440 + 720) / 5  # until noon
    enough = math.ceil(0.7 * expected)
    readings = days_of(13, 288)[:enough]
    for kept, gmi in ((readings, 6.9), (readings[1:], None)):
        window = of_days(14, kept)
        assert window is not None
        assert window["gmi"] == gmi
        assert window["gmi_mmol_mol"] == (None if gmi is None else 52)
    week = of_days(7, readings)
    assert week is not None
    assert (week["coverage"], week["gmi"]) == (92.3, None)


def test_coverage_is_at_most_100() -> None:
    """Two devices that upload different values count twice, but coverage is never more than 100."""
    window = last_day([reading(100, seconds=-100 * n) for n in range(600)], account(), NOON)
    assert window is not None
    assert (window["readings"], window["coverage"]) == (600, 100.0)


# --- windows -----------------------------------------------------------------------------------------------


@property_of
@given(st.lists(within_a_day, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(readings: list[Reading], chance: random.Random) -> None:
    """A reading counts once, whenever and however often it is seen."""
    once = list({each.date: each for each in readings}.values())
    again = [*once, *chance.choices(once, k=5)]
    chance.shuffle(again)
    assert last_day(again, account(), NOON) == last_day(once, account(), NOON)


@property_of
@given(
    st.lists(of_90_days, min_size=1, max_size=60), st.sampled_from(LONG_WINDOWS), st.sampled_from(["mg/dL", "mmol/L"])
)
def test_a_window_of_days_equals_the_figures_of_all_its_readings(
    readings: list[Reading], count: int, unit: Unit
) -> None:
    """Adding up days separately gives the same result."""
    since = (day_of(NOON, 0) - count + 1) * DAYS * 1000
    values = [each.mg_dl for each in readings if each.date >= since]
    window = of_days(count, readings, unit=unit)
    if not values:
        assert window is None
        return
    assert window is not None
    assert window | by_hand(values, (count - 1) * 1440 + 720, unit) == window
    assert sum(map(round, (10 * each for each in values_of(window)))) == 1000
    days = {each.date // (DAYS * 1000) for each in readings if each.date >= since}
    assert window["days"] == len(days)


def test_the_day_slides_and_the_days_do_not() -> None:
    """The last 24 hours lose a reading when it is that old; the days lose it at the wearer's midnight."""
    one = [reading(100, seconds=-3 * HOURS)]  # 9 o'clock
    days = counted({}, one, LIMITS)

    def windows(seconds: float) -> dict[str, Any]:
        return statistics_of(one, days, account(), NOON + seconds, 0)

    assert windows(21 * HOURS - 1)["24h"] is not None
    assert windows(21 * HOURS)["24h"] is None
    assert windows(6.5 * DAYS - 1)["7d"] is not None
    assert windows(6.5 * DAYS)["7d"] is None
    assert windows(6.5 * DAYS)["14d"] is not None


@pytest.mark.parametrize(
    ("offset_min", "expected"),
    [(0, 6 * 288 + 144), (-240, 6 * 288 + 96), (330, 6 * 288 + 210), (780, 6 * 288 + 12)],
)
def test_today_is_the_wearers(offset_min: int, expected: int) -> None:
    """It begins at midnight in the wearer's zone, so noon in London is one o'clock at night in Apia."""
    window = of_days(7, [reading(100, offset_min=offset_min)], offset_min=offset_min)
    assert window is not None
    assert window["expected"] == expected


def test_a_reading_after_midnight_belongs_to_the_day_of_its_own_offset() -> None:
    """Half an hour apart around midnight is two days, whatever the zone."""
    before, after = (reading(100, seconds=seconds, offset_min=-240) for seconds in (15.75 * HOURS, 16.25 * HOURS))
    assert sorted(counted({}, [before, after], LIMITS)) == [day_of(NOON, 0), day_of(NOON, 0) + 1]


def test_daylight_saving_and_travel_lose_no_reading() -> None:
    """Days have 23 or 25 hours, or occur twice, and every reading is in exactly one of them."""
    offsets = [60] * 300 + [120] * 288 + [60] * 300 + [-480] * 288 + [720] * 288
    readings = [
        reading(100, seconds=300 * (slot - len(offsets)), offset_min=offset) for slot, offset in enumerate(offsets)
    ]
    days = counted({}, readings, LIMITS)
    assert sum(day.readings for day in days.values()) == len(readings)
    for offset_min in (720, -480):  # even if today is yesterday again
        window = of_days(7, readings, offset_min=offset_min)
        assert window is not None
        assert window["readings"] == len(readings)


@pytest.mark.parametrize(("count", "high"), [(69, None), (70, 100.0)])
def test_ranges_that_changed_in_between(count: int, high: float | None) -> None:
    """Percentages cover the readings counted with today's ranges, and are null if those are under 70 % of all."""
    new: Limits = (54, 70, 140, 250)
    old = counted({}, [reading(150, seconds=-DAYS - n) for n in range(100 - count)], LIMITS)
    days = counted(old, [reading(150, seconds=-n) for n in range(count)], new)
    window = last_days(7, days, account(ranges=new), NOON, 0)
    assert window is not None
    assert (window["readings"], window["mean"], window["high"]) == (100, 150.0, high)
    assert window["in_range"] == (None if high is None else 0.0)
    day = last_day([reading(150)], account(ranges=new), NOON)
    assert day is not None
    assert day["high"] == 100.0


def test_without_days_there_is_only_the_last_day() -> None:
    """If the counts of 90 days are switched off, the windows of days are null."""
    said = statistics_of([reading(100)], None, account("mmol/L"), NOON, 0)
    assert list(said) == ["version", "unit", "24h", "7d", "14d", "30d", "90d"]
    assert (said["version"], said["unit"]) == (1, "mmol/L")
    assert [said[f"{count}d"] for count in LONG_WINDOWS] == [None] * 4
    day = said["24h"]
    assert isinstance(day, dict)
    assert (day["mean"], day["mean_mg_dl"]) == (5.6, 100.0)
